//! A constant matrix in another type: 8 bits by column, 4 or 8 bits by block, or another float type.
//!
//! ```text
//! 8 bits           W[k, n] ~ s[n] q[k, n]                  s[n] = max |W[:, n]| / 127,  q in [-127, 127]
//! 8 bits, blocks   W[k, n] ~ s[n, b] (q[k, n] - 128)       b = k / 32,  q in [1, 255]
//! 4 bits, blocks   W[k, n] ~ s[n, b] (q[k, n] - z[n, b])   b = k / 32,  q and z in [0, 15]
//! ```
//!
//! **Invariant:** no element is further from its own than half a step s.

use half::{bf16, f16};
use lstc_graph::{DType, Weight};
use lstc_models::Orientation;
use rayon::prelude::*;

use crate::options::Int8Weights;

/// Input features that have a scale in common.
pub const BLOCK: usize = 32;

/// Rows that are written together where the source lies the other way: a cache line of it.
const TOGETHER: usize = 16;

/// What 8 bits reach on either side of zero.
const MOST: f32 = 127.0;

/// The number that stands for zero in u8.
const MIDDLE: u8 = 128;

/// The elements of a float matrix, as `[in, out]`.
pub struct Floats {
    values: Vec<f32>,
    pub inputs: usize,
    pub outputs: usize,
    orientation: Orientation,
}

impl Floats {
    /// Reads a matrix; `None` for another rank, or for integers.
    pub fn read(weight: &Weight, orientation: Orientation) -> Option<Floats> {
        let [a, b] = *weight.dims() else { return None };
        let (inputs, outputs) = match orientation {
            Orientation::InOut => (a, b),
            Orientation::OutIn => (b, a),
        };
        Some(Floats { values: weight.to_f32()?, inputs, outputs, orientation })
    }

    /// A matrix of the same shape that was not read: everything made of it is zeros.
    pub fn sketch(weight: &Weight, orientation: Orientation) -> Option<Floats> {
        let [a, b] = *weight.dims() else { return None };
        let (inputs, outputs) = match orientation {
            Orientation::InOut => (a, b),
            Orientation::OutIn => (b, a),
        };
        Some(Floats { values: Vec::new(), inputs, outputs, orientation })
    }

    fn is_sketch(&self) -> bool {
        self.values.is_empty()
    }

    /// True where every element is a number.
    pub fn is_finite(&self) -> bool {
        self.values.par_iter().all(|v| v.is_finite())
    }

    #[inline]
    fn at(&self, k: usize, n: usize) -> f32 {
        match self.orientation {
            Orientation::InOut => self.values[k * self.outputs + n],
            Orientation::OutIn => self.values[n * self.inputs + k],
        }
    }

    /// The scale of each column.
    fn scales(&self) -> Vec<f32> {
        let largest = |n: usize| (0..self.inputs).fold(0.0_f32, |m, k| m.max(self.at(k, n).abs()));
        match self.orientation {
            Orientation::OutIn => (0..self.outputs).into_par_iter().map(|n| scale(largest(n))).collect(),
            Orientation::InOut => {
                let rows = self.values.par_chunks(self.outputs.max(1));
                let zero = || vec![0.0_f32; self.outputs];
                let joined = |mut m: Vec<f32>, row: &[f32]| {
                    m.iter_mut().zip(row).for_each(|(m, v)| *m = m.max(v.abs()));
                    m
                };
                let most = rows.fold(zero, joined).reduce(zero, |a, b| joined(a, &b));
                most.into_iter().map(scale).collect()
            }
        }
    }

    /// The matrix `[in, out]` in bytes that stand for integers, and the scale of each column.
    pub fn int8(&self, form: Int8Weights) -> (Vec<u8>, Vec<f32>) {
        if self.is_sketch() {
            return (vec![0; self.inputs * self.outputs], vec![0.0; self.outputs]);
        }
        let scales = self.scales();
        let mut bytes = vec![0_u8; self.inputs * self.outputs];
        let byte = |k: usize, n: usize| {
            let integer = match scales[n] {
                0.0 => 0,
                s => (self.at(k, n) / s).round_ties_even().clamp(-MOST, MOST) as i8,
            };
            match form {
                Int8Weights::Signed => integer as u8,
                Int8Weights::Unsigned => (integer as u8).wrapping_add(MIDDLE),
            }
        };
        let width = self.outputs.max(1);
        bytes.par_chunks_mut(TOGETHER * width).enumerate().for_each(|(chunk, rows)| {
            let first = chunk * TOGETHER;
            match self.orientation {
                Orientation::InOut => {
                    rows.iter_mut().enumerate().for_each(|(i, b)| *b = byte(first + i / width, i % width))
                }
                Orientation::OutIn => {
                    for n in 0..width {
                        rows.iter_mut().skip(n).step_by(width).enumerate().for_each(|(i, b)| *b = byte(first + i, n));
                    }
                }
            }
        });
        (bytes, scales)
    }

    /// The matrix in blocks, as `MatMulNBits` takes it; in 4 bits with or without zero points, whichever loses less.
    pub fn blocks(&self, bits: BlockBits) -> Blocks {
        let blocks = self.inputs.div_ceil(BLOCK);
        if self.is_sketch() {
            let scales = self.outputs * blocks;
            let zeros = match bits {
                BlockBits::Four => Some(vec![0; self.outputs * blocks.div_ceil(2)]),
                BlockBits::Eight => None,
            };
            return Blocks { blocks, integers: vec![0; scales * bits.bytes()], scales: vec![0.0; scales], zeros };
        }
        match bits {
            BlockBits::Four => self.blocks_of_4(blocks),
            BlockBits::Eight => self.blocks_of_8(blocks),
        }
    }

    /// Elements of a column's block.
    fn block(&self, n: usize, block: usize) -> impl Iterator<Item = f32> + Clone + '_ {
        let first = block * BLOCK;
        (first..self.inputs.min(first + BLOCK)).map(move |k| self.at(k, n))
    }

    fn blocks_of_8(&self, blocks: usize) -> Blocks {
        let step = |i: usize| {
            let values = self.block(i / blocks, i % blocks);
            scale(values.fold(0.0, |most, v| most.max(v.abs())))
        };
        let scales: Vec<f32> = (0..self.outputs * blocks).into_par_iter().map(step).collect();
        let mut integers = vec![MIDDLE; self.outputs * blocks * BLOCK];
        integers.par_chunks_mut(BLOCK).zip(&scales).enumerate().for_each(|(i, (integers, scale))| {
            if *scale > 0.0 {
                for (q, v) in integers.iter_mut().zip(self.block(i / blocks, i % blocks)) {
                    *q = ((v / scale).round_ties_even().clamp(-MOST, MOST) as i8 as u8).wrapping_add(MIDDLE);
                }
            }
        });
        Blocks { blocks, integers, scales, zeros: None }
    }

    fn blocks_of_4(&self, blocks: usize) -> Blocks {
        let mut columns: Vec<Column> = (0..self.outputs).into_par_iter().map(|n| Column::new(self, n, true)).collect();
        let symmetric: Vec<Column> = (0..self.outputs).into_par_iter().map(|n| Column::new(self, n, false)).collect();
        let loss = |columns: &[Column]| columns.iter().map(|c| c.loss).sum::<f64>();
        let with_zeros = loss(&columns) < loss(&symmetric);
        if !with_zeros {
            columns = symmetric;
        }
        Blocks {
            blocks,
            integers: columns.iter().flat_map(|c| &c.integers).copied().collect(),
            scales: columns.iter().flat_map(|c| &c.scales).copied().collect(),
            zeros: with_zeros.then(|| columns.iter().flat_map(|c| pairs(&c.zeros)).collect()),
        }
    }

    /// The matrix `[in, out]` in another float type, little-endian.
    pub fn cast(&self, to: DType) -> Vec<u8> {
        if self.is_sketch() {
            return vec![0; self.inputs * self.outputs * to.size()];
        }
        let width = self.outputs.max(1);
        let elements = (0..self.inputs * self.outputs).into_par_iter().map(|i| self.at(i / width, i % width));
        match to {
            DType::F16 => elements.flat_map_iter(|v| f16::from_f32(v).to_le_bytes()).collect(),
            DType::BF16 => elements.flat_map_iter(|v| bf16::from_f32(v).to_le_bytes()).collect(),
            _ => elements.flat_map_iter(f32::to_le_bytes).collect(),
        }
    }

    /// True where every element is a number in this type.
    pub fn fits(&self, to: DType) -> bool {
        match to {
            DType::F16 => self.values.par_iter().all(|v| f16::from_f32(*v).is_finite()),
            DType::BF16 => self.values.par_iter().all(|v| bf16::from_f32(*v).is_finite()),
            _ => self.is_finite(),
        }
    }
}

/// The step of a column whose largest element this is; 0 where it is nothing.
fn scale(largest: f32) -> f32 {
    let scale = largest / MOST;
    if scale.is_normal() { scale } else { 0.0 }
}

/// The bits of an element in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockBits {
    Four,
    Eight,
}

impl BlockBits {
    pub fn count(self) -> usize {
        match self {
            BlockBits::Four => 4,
            BlockBits::Eight => 8,
        }
    }

    /// Of a block.
    pub fn bytes(self) -> usize {
        BLOCK * self.count() / 8
    }
}

/// A matrix in blocks.
pub struct Blocks {
    /// Of a column.
    pub blocks: usize,
    /// `[out, blocks, bytes]`, of 4 bits the lower half of a byte first.
    pub integers: Vec<u8>,
    /// `[out * blocks]`
    pub scales: Vec<f32>,
    /// `[out * ceil(blocks / 2)]` in 4 bits; the middle for all where there are none.
    pub zeros: Option<Vec<u8>>,
}

/// A column in 4 bits.
struct Column {
    integers: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<u8>,
    /// The sum of the squared errors.
    loss: f64,
}

impl Column {
    fn new(floats: &Floats, n: usize, with_zeros: bool) -> Column {
        let mut column = Column { integers: Vec::new(), scales: Vec::new(), zeros: Vec::new(), loss: 0.0 };
        for block in 0..floats.inputs.div_ceil(BLOCK) {
            let values: Vec<f32> = floats.block(n, block).collect();
            let (low, high) = values.iter().fold((0.0_f32, 0.0_f32), |(l, h), v| (l.min(*v), h.max(*v)));
            let scale = if with_zeros { (high - low) / 15.0 } else { (-low / 8.0).max(high / 7.0) };
            let (scale, zero) = match scale {
                s if !s.is_normal() => (0.0, 8),
                s if with_zeros => (s, (-low / s).round_ties_even().clamp(0.0, 15.0) as u8),
                s => (s, 8),
            };
            let integer = |v: f32| match scale {
                0.0 => zero,
                s => ((v / s).round_ties_even() + f32::from(zero)).clamp(0.0, 15.0) as u8,
            };
            let mut integers = [zero; BLOCK];
            for (q, v) in integers.iter_mut().zip(&values) {
                *q = integer(*v);
                let found = scale * (f32::from(*q) - f32::from(zero));
                column.loss += f64::from(found - v).powi(2);
            }
            column.integers.extend(pairs(&integers));
            column.scales.push(scale);
            column.zeros.push(zero);
        }
        column
    }
}

/// Numbers below 16 in half as many bytes, the first of two in the lower half.
fn pairs(numbers: &[u8]) -> Vec<u8> {
    numbers.chunks(2).map(|pair| pair[0] | pair.get(1).unwrap_or(&0) << 4).collect()
}

#[cfg(test)]
mod tests {
    use lstc_models::Quantised;

    use super::*;

    /// A matrix with every sign, a large element, a column of zeros and one of the smallest numbers.
    fn sample(inputs: usize, outputs: usize) -> Vec<f32> {
        let element = |i: usize| {
            let (k, n) = (i / outputs, i % outputs);
            match n {
                0 => 0.0,
                1 => f32::MIN_POSITIVE / 3.0,
                2 => (k as f32).sin() + if k == 3 { 100.0 } else { 0.0 },
                3 => 1.0 + (k as f32).cos().abs(),
                _ => ((k * 37 + n * 11) as f32).sin() * 0.1,
            }
        };
        (0..inputs * outputs).map(element).collect()
    }

    fn weights(inputs: usize, outputs: usize) -> [(Floats, Vec<f32>); 2] {
        let values = sample(inputs, outputs);
        let turned: Vec<f32> = (0..inputs * outputs).map(|i| values[i % inputs * outputs + i / inputs]).collect();
        let read = |dims: [usize; 2], v: &[f32], orientation| {
            Floats::read(&Weight::from_f32(&dims, v), orientation).expect("it is a matrix")
        };
        [
            (read([inputs, outputs], &values, Orientation::InOut), values.clone()),
            (read([outputs, inputs], &turned, Orientation::OutIn), values),
        ]
    }

    fn bytes(dtype: DType, dims: &[usize], bytes: Vec<u8>) -> Weight {
        Weight::new(dtype, dims.to_vec(), bytes.into(), None).expect("the bytes fit")
    }

    /// The largest error, in steps.
    fn furthest(found: &[f32], wanted: &[f32], step: impl Fn(usize) -> f32) -> f32 {
        let apart = |i: usize| (found[i] - wanted[i]).abs() - f32::MIN_POSITIVE;
        (0..wanted.len()).map(|i| apart(i).max(0.0) / step(i).max(f32::MIN_POSITIVE)).fold(0.0, f32::max)
    }

    #[test]
    fn eight_bits_are_within_half_a_step_in_both_forms_and_orientations() {
        let (inputs, outputs) = (45, 7);
        for (floats, wanted) in weights(inputs, outputs) {
            for (form, dtype) in [(Int8Weights::Signed, DType::I8), (Int8Weights::Unsigned, DType::U8)] {
                let (integers, scales) = floats.int8(form);
                let zero = bytes(dtype, &[], vec![if dtype == DType::U8 { 128 } else { 0 }]);
                let integers = bytes(dtype, &[inputs, outputs], integers);
                let steps = Weight::from_f32(&[outputs], &scales);
                let found = Quantised::linear(&integers, &steps, Some(&zero), 1, 0).expect("the parts fit");
                let found = found.dequantised().to_f32().expect("f32");
                let error = furthest(&found, &wanted, |i| scales[i % outputs]);
                assert!(error <= 0.5001, "{dtype}: {error} steps");
                assert!(scales[2] > 0.7 && scales[4] < 0.001, "each column has its own scale");
            }
        }
    }

    #[test]
    fn blocks_are_within_half_a_step_and_the_last_one_is_padded() {
        for (inputs, bits) in [45, 64, 16].into_iter().flat_map(|k| [(k, BlockBits::Four), (k, BlockBits::Eight)]) {
            let outputs = 7;
            for (floats, wanted) in weights(inputs, outputs) {
                let Blocks { blocks, integers, scales, zeros } = floats.blocks(bits);
                assert_eq!((blocks, scales.len()), (inputs.div_ceil(BLOCK), outputs * blocks));
                let integers = bytes(DType::U8, &[outputs, blocks, bits.bytes()], integers);
                let steps = Weight::from_f32(&[outputs * blocks], &scales);
                let zeros = zeros.map(|z| bytes(DType::U8, &[z.len()], z));
                let shape = [outputs, inputs];
                let found = Quantised::packed(&integers, &steps, zeros.as_ref(), shape, bits.count(), BLOCK);
                let found = found.expect("the parts fit").dequantised().to_f32().expect("f32");
                let turned: Vec<f32> = (0..wanted.len()).map(|i| wanted[i % inputs * outputs + i / inputs]).collect();
                let error = furthest(&found, &turned, |i| scales[i / inputs * blocks + i % inputs / BLOCK]);
                assert!(error <= 0.5001, "{error} steps");
            }
        }
    }

    #[test]
    fn zero_points_are_there_where_they_lose_less() {
        let of = |values: &[f32]| {
            let weight = Weight::from_f32(&[values.len(), 1], values);
            Floats::read(&weight, Orientation::InOut).expect("it is a matrix").blocks(BlockBits::Four).zeros.is_some()
        };
        let positive: Vec<f32> = (0..32).map(|i| 1.0 + (i as f32).sin() / 2.0).collect();
        assert!(of(&positive));
        let symmetric: Vec<f32> = (0..32).map(|i| (i % 16) as f32 - 8.0).collect();
        assert!(!of(&symmetric), "every element is a multiple of the step");
    }

    #[test]
    fn float_types_round_and_turn() {
        for (floats, wanted) in weights(5, 6) {
            let found = bytes(DType::F16, &[5, 6], floats.cast(DType::F16)).to_f32().expect("f16");
            let rounded: Vec<f32> = wanted.iter().map(|v| f16::from_f32(*v).to_f32()).collect();
            assert_eq!(found, rounded);
            let found = bytes(DType::F32, &[5, 6], floats.cast(DType::F32)).to_f32().expect("f32");
            assert_eq!(found, wanted);
        }
        let large = Floats::read(&Weight::from_f32(&[1, 1], &[1e6]), Orientation::InOut).expect("a matrix");
        assert!(!large.fits(DType::F16) && large.fits(DType::BF16));
    }
}
