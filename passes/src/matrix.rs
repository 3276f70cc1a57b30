//! Reads a frozen matrix in place, element by element, whatever its orientation and float type.

use bytes::Bytes;
use half::{bf16, f16};
use lstc_graph::{DType, Weight};
use lstc_models::Orientation;
use ndarray::{Array2, ArrayD, IxDyn};

/// A view of a constant matrix as `[out, in]`.
pub struct Matrix {
    bytes: Bytes,
    dtype: DType,
    pub rows: usize,
    pub columns: usize,
    orientation: Orientation,
}

impl Matrix {
    /// The matrix that a weight of rank 2 holds; `None` for another rank or for integers.
    pub fn new(weight: &Weight, orientation: Orientation) -> Option<Matrix> {
        let [a, b] = *weight.dims() else { return None };
        let (rows, columns) = match orientation {
            Orientation::OutIn => (a, b),
            Orientation::InOut => (b, a),
        };
        let matrix = Matrix { bytes: weight.bytes().clone(), dtype: weight.dtype(), rows, columns, orientation };
        weight.dtype().is_float().then_some(matrix)
    }

    /// Element `[row, column]`.
    #[inline]
    pub fn at(&self, row: usize, column: usize) -> f32 {
        let index = match self.orientation {
            Orientation::OutIn => row * self.columns + column,
            Orientation::InOut => column * self.rows + row,
        };
        element(&self.bytes, self.dtype, index)
    }

    /// Calls `f(row, column)` for each pair, in the order in which the elements lie.
    pub fn visit(&self, columns: &[usize], mut f: impl FnMut(usize, usize)) {
        match self.orientation {
            Orientation::OutIn => (0..self.rows).for_each(|row| columns.iter().for_each(|c| f(row, *c))),
            Orientation::InOut => columns.iter().for_each(|c| (0..self.rows).for_each(|row| f(row, *c))),
        }
    }

    /// The sub-matrix of some rows and columns.
    pub fn cut(&self, rows: &[usize], columns: &[usize]) -> ArrayD<f32> {
        Array2::from_shape_fn((rows.len(), columns.len()), |(i, j)| self.at(rows[i], columns[j])).into_dyn()
    }
}

#[inline]
fn element(bytes: &[u8], dtype: DType, index: usize) -> f32 {
    match dtype {
        DType::F32 => {
            let b = &bytes[index * 4..index * 4 + 4];
            f32::from_le_bytes([b[0], b[1], b[2], b[3]])
        }
        DType::F16 => f16::from_le_bytes([bytes[index * 2], bytes[index * 2 + 1]]).to_f32(),
        DType::BF16 => bf16::from_le_bytes([bytes[index * 2], bytes[index * 2 + 1]]).to_f32(),
        _ => {
            let b: [u8; 8] = bytes[index * 8..index * 8 + 8].try_into().expect("f64 is the only other float type");
            f64::from_le_bytes(b) as f32
        }
    }
}

/// Some elements of a constant vector.
pub fn vector(weight: &Weight, kept: &[usize]) -> ArrayD<f32> {
    let values: Vec<f32> = kept.iter().map(|i| element(weight.bytes(), weight.dtype(), *i)).collect();
    ArrayD::from_shape_vec(IxDyn(&[kept.len()]), values).expect("as many values as indices")
}
