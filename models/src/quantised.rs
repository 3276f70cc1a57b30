//! Matrices of integers with scales: `w = (q - zero) * scale`, as ONNX Runtime's quantisation tools write them.

use lstc_graph::Weight;

/// A quantised matrix. Its parts match: that is checked when it is made.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantised {
    integers: Weight,
    /// Scales in f32, in the order of [`Quantised::group`].
    scales: Vec<f32>,
    /// Zero points, one for all or one for each scale.
    zeros: Vec<f32>,
    dims: [usize; 2],
    layout: Layout,
}

/// Which elements have a scale in common, and how the integers lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// One integer an element; `block` of them along `axis` have a scale in common, as have all along the other axis
    /// where `shared` says so.
    Whole { axis: usize, block: usize, shared: bool },
    /// `bits` bits an element, the lowest first, padded to whole blocks along each row.
    Packed { bits: usize, block: usize },
}

impl Quantised {
    /// What `DequantizeLinear` makes of a matrix: one scale for all, one for each index of an axis, or one for each
    /// block of indices of an axis.
    ///
    /// # Errors
    /// Parts that do not match.
    pub fn linear(
        integers: &Weight,
        scales: &Weight,
        zeros: Option<&Weight>,
        axis: i64,
        block: usize,
    ) -> Result<Quantised, String> {
        let &[rows, columns] = integers.dims() else {
            return Err(format!("holds integers of shape {:?}, not a matrix", integers.dims()));
        };
        if rows == 0 || columns == 0 {
            return Err(format!("holds no integers: its shape is {:?}", integers.dims()));
        }
        let dims = [rows, columns];
        let axis = usize::from(matches!(axis, 1 | -1));
        let count = scales.elements();
        let layout = if count == 1 {
            Layout::Whole { axis: 0, block: rows.max(1), shared: true }
        } else if block == 0 && count == dims[axis] {
            Layout::Whole { axis, block: 1, shared: true }
        } else if block > 0 && scales.dims().len() == 2 && count == dims[1 - axis] * dims[axis].div_ceil(block) {
            Layout::Whole { axis, block, shared: false }
        } else {
            return Err(format!("has {count} scales for integers {dims:?}"));
        };
        if integers.to_i64().is_none() {
            return Err(format!("holds {} where integers were expected", integers.dtype()));
        }
        Quantised { integers: integers.clone(), scales: floats(scales)?, zeros: Vec::new(), dims, layout }
            .with_zeros(zeros.map(numbers).transpose()?, 0.0)
    }

    /// The matrix `[N, K]` of a `MatMulNBits`.
    ///
    /// # Errors
    /// Parts that do not match.
    pub fn packed(
        integers: &Weight,
        scales: &Weight,
        zeros: Option<&Weight>,
        [n, k]: [usize; 2],
        bits: usize,
        block: usize,
    ) -> Result<Quantised, String> {
        if !matches!(bits, 2 | 4 | 8) || block < 16 || !block.is_power_of_two() {
            return Err(format!("has {bits} bits in blocks of {block}, which lstc cannot read"));
        }
        let blocks = k.div_ceil(block);
        let bytes = block.checked_mul(bits).map(|bits| bits / 8);
        let wanted = bytes.and_then(|bytes| n.checked_mul(blocks)?.checked_mul(bytes));
        let is_empty = n == 0 || k == 0;
        if is_empty
            || integers.dtype().size() != 1
            || Some(integers.elements()) != wanted
            || scales.elements() != n * blocks
        {
            let (found, scales) = (integers.dims(), scales.elements());
            return Err(format!("holds {found:?} bytes and {scales} scales, which do not fit [{n}, {k}]"));
        }
        let zeros = match zeros {
            Some(zeros) if zeros.dtype().is_float() => Some(floats(zeros)?),
            Some(zeros) => {
                let row = (blocks * bits).div_ceil(8);
                if zeros.elements() != n * row {
                    return Err(format!("holds {} bytes of zero points, not {}", zeros.elements(), n * row));
                }
                let zero = |i: usize| packed(&zeros.bytes()[i / blocks * row..], i % blocks, bits);
                Some((0..n * blocks).map(zero).collect())
            }
            None => None,
        };
        let layout = Layout::Packed { bits, block };
        let middle = (1_u32 << (bits - 1)) as f32;
        Quantised { integers: integers.clone(), scales: floats(scales)?, zeros: Vec::new(), dims: [n, k], layout }
            .with_zeros(zeros, middle)
    }

    fn with_zeros(mut self, zeros: Option<Vec<f32>>, absent: f32) -> Result<Quantised, String> {
        self.zeros = zeros.unwrap_or_else(|| vec![absent]);
        if self.zeros.len() != 1 && self.zeros.len() != self.scales.len() {
            return Err(format!("has {} zero points for {} scales", self.zeros.len(), self.scales.len()));
        }
        Ok(self)
    }

    /// True where both hold the same integers of one file.
    pub fn is_same(&self, other: &Quantised) -> bool {
        self.integers.bytes().as_ptr() == other.integers.bytes().as_ptr()
    }

    /// Rows and columns.
    pub fn dims(&self) -> [usize; 2] {
        self.dims
    }

    /// Index of the scale of an element.
    fn group(&self, row: usize, column: usize) -> usize {
        let blocks = |block: usize, length: usize| length.div_ceil(block);
        match self.layout {
            Layout::Whole { axis: 0, block, shared: true } => row / block,
            Layout::Whole { block, shared: true, .. } => column / block,
            Layout::Whole { axis: 0, block, .. } => row / block * self.dims[1] + column,
            Layout::Whole { block, .. } | Layout::Packed { block, .. } => {
                row * blocks(block, self.dims[1]) + column / block
            }
        }
    }

    /// The numbers in f32.
    pub fn dequantised(&self) -> Weight {
        let [rows, columns] = self.dims;
        let integers = match self.layout {
            Layout::Whole { .. } => self.integers.to_i64().expect("it was made of integers"),
            Layout::Packed { .. } => Vec::new(),
        };
        let zero = |group: usize| if self.zeros.len() == 1 { self.zeros[0] } else { self.zeros[group] };
        let mut values = Vec::with_capacity(rows * columns);
        for row in 0..rows {
            for column in 0..columns {
                let integer = match self.layout {
                    Layout::Whole { .. } => integers[row * columns + column] as f32,
                    Layout::Packed { bits, block } => {
                        let width = columns.div_ceil(block) * block * bits / 8;
                        packed(&self.integers.bytes()[row * width..], column, bits)
                    }
                };
                let group = self.group(row, column);
                values.push((integer - zero(group)) * self.scales[group]);
            }
        }
        Weight::from_f32(&self.dims, &values)
    }
}

/// The unsigned integer of so many bits at an index.
fn packed(bytes: &[u8], index: usize, bits: usize) -> f32 {
    let at = index * bits;
    f32::from((bytes[at / 8] >> (at % 8)) & ((1_u16 << bits) - 1) as u8)
}

fn floats(weight: &Weight) -> Result<Vec<f32>, String> {
    weight.to_f32().ok_or_else(|| format!("has scales of {}", weight.dtype()))
}

/// The elements of a tensor of any type.
fn numbers(weight: &Weight) -> Result<Vec<f32>, String> {
    let integers = || Some(weight.to_i64()?.into_iter().map(|v| v as f32).collect());
    weight.to_f32().or_else(integers).ok_or_else(|| format!("has zero points of {}", weight.dtype()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lstc_graph::DType;

    fn bytes(dtype: DType, dims: &[usize], bytes: &[u8]) -> Weight {
        Weight::new(dtype, dims.to_vec(), bytes.to_vec().into(), None).expect("the bytes fit")
    }

    fn values(quantised: Result<Quantised, String>) -> Vec<f32> {
        quantised.expect("the parts fit").dequantised().to_f32().expect("f32")
    }

    #[test]
    fn scales_of_all_columns_rows_and_blocks() {
        let integers = bytes(DType::I8, &[2, 3], &[1, 2, 3, 255, 254, 253]);
        let scales = |v: &[f32]| Weight::from_f32(&[v.len()], v);
        let zeros = bytes(DType::I8, &[3], &[0, 1, 0]);
        assert_eq!(
            values(Quantised::linear(&integers, &scales(&[0.5]), None, 1, 0)),
            [0.5, 1.0, 1.5, -0.5, -1.0, -1.5]
        );
        let columns = values(Quantised::linear(&integers, &scales(&[1.0, 2.0, 3.0]), Some(&zeros), 1, 0));
        assert_eq!(columns, [1.0, 2.0, 9.0, -1.0, -6.0, -9.0]);
        assert_eq!(values(Quantised::linear(&integers, &scales(&[1.0, 2.0]), None, 0, 0))[3..], [-2.0, -4.0, -6.0]);
        let blocks = Weight::from_f32(&[2, 2], &[1.0, 10.0, 2.0, 20.0]);
        assert_eq!(values(Quantised::linear(&integers, &blocks, None, 1, 2)), [1.0, 2.0, 30.0, -2.0, -4.0, -60.0]);
        assert!(Quantised::linear(&integers, &scales(&[1.0, 2.0]), None, 1, 0).is_err());
    }

    #[test]
    fn nibbles_come_lowest_first() {
        let mut raw = [0x88_u8; 16];
        raw[0] = 0x21;
        raw[8] = 0xf7;
        let integers = bytes(DType::U8, &[1, 2, 8], &raw);
        let scales = Weight::from_f32(&[2], &[1.0, 2.0]);
        let found = values(Quantised::packed(&integers, &scales, None, [1, 20], 4, 16));
        assert_eq!((found.len(), &found[..3], &found[16..18]), (20, &[-7.0, -6.0, 0.0][..], &[-2.0, 14.0][..]));
        let zeros = bytes(DType::U8, &[1], &[0x10]);
        let found = values(Quantised::packed(&integers, &scales, Some(&zeros), [1, 20], 4, 16));
        assert_eq!((&found[..2], &found[16..18]), (&[1.0, 2.0][..], &[12.0, 28.0][..]));
        let (nothing, scale) = (bytes(DType::U8, &[0], &[]), Weight::from_f32(&[1], &[1.0]));
        assert!(Quantised::packed(&nothing, &scale, None, [1, 20], 4, 1 << 62).is_err());
        // A size that no bytes stand behind.
        let scale = Weight::from_f32(&[0], &[]);
        assert!(Quantised::packed(&nothing, &scale, None, [1 << 60, 0], 4, 16).is_err());
        assert!(Quantised::linear(&bytes(DType::I8, &[1 << 30, 0], &[]), &scale, None, 1, 0).is_err());
    }
}
