//! Constant tensors. A weight knows its type and shape; its bytes stay in the mapped file until it is asked for.

use std::ffi::c_void;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use half::{bf16, f16};
use memmap2::Mmap;
use rustix::mm::{Advice, madvise};

use crate::dtype::DType;

/// Where in a file the bytes of a weight lie.
///
/// **Invariant:** the bytes of a weight that has one are a view of a read-only map of that file. The loader alone makes
/// them, and none can be had to give to another weight.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileRange {
    pub file: Arc<PathBuf>,
    pub offset: u64,
}

/// A constant tensor: row-major, little-endian bytes, usually a range of a memory map.
///
/// **Invariant:** `bytes.len() == elements * dtype.size()`.
#[derive(Clone, Debug)]
pub struct Weight {
    dtype: DType,
    dims: Vec<usize>,
    bytes: Bytes,
    place: Option<Arc<FileRange>>,
    /// **Invariant:** true only where the bytes are a view of a read-only map of a file.
    mapped: bool,
}

/// Two weights are equal when type, shape and bytes are: their place does not matter.
impl PartialEq for Weight {
    fn eq(&self, other: &Self) -> bool {
        self.dtype == other.dtype && self.dims == other.dims && self.bytes == other.bytes
    }
}

impl Weight {
    /// A weight over `bytes`; `None` where their number does not fit the shape.
    pub fn new(dtype: DType, dims: Vec<usize>, bytes: Bytes, place: Option<FileRange>) -> Option<Weight> {
        let wanted = byte_len(dtype, &dims)?;
        let mapped = place.is_some();
        (wanted == bytes.len()).then(|| Weight { dtype, dims, bytes, place: place.map(Arc::new), mapped })
    }

    /// A weight over a map of a file without a name.
    pub(crate) fn spilled(dtype: DType, dims: Vec<usize>, map: Mmap) -> Option<Weight> {
        let weight = Weight::new(dtype, dims, Bytes::from_owner(map), None)?;
        Some(Weight { mapped: true, ..weight })
    }

    pub fn scalar_f32(value: f32) -> Weight {
        Weight::from_f32(&[], &[value])
    }

    pub fn scalar_i64(value: i64) -> Weight {
        Weight::from_i64(&[], &[value])
    }

    /// # Panics
    /// When the number of values does not fit the shape: a mistake of the caller.
    pub fn from_f32(dims: &[usize], values: &[f32]) -> Weight {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Weight::new(DType::F32, dims.to_vec(), bytes.into(), None).expect("as many values as the shape has elements")
    }

    /// # Panics
    /// As [`Weight::from_f32`].
    pub fn from_i64(dims: &[usize], values: &[i64]) -> Weight {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Weight::new(DType::I64, dims.to_vec(), bytes.into(), None).expect("as many values as the shape has elements")
    }

    /// Numbers in a type that a model's input may have; `None` for other types, and for more or fewer numbers than the shape has.
    pub fn from_integers(dtype: DType, dims: &[usize], values: &[i64]) -> Option<Weight> {
        let bytes: Vec<u8> = match dtype {
            DType::I64 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DType::I32 => values.iter().flat_map(|v| (*v as i32).to_le_bytes()).collect(),
            DType::Bool => values.iter().map(|v| u8::from(*v != 0)).collect(),
            DType::F32 => values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect(),
            _ => return None,
        };
        Weight::new(dtype, dims.to_vec(), bytes.into(), None)
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    pub fn elements(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The file range that the bytes are a view of, if any.
    pub fn place(&self) -> Option<&FileRange> {
        self.place.as_deref()
    }

    /// As `==`, keeping only the part of a mapped weight in memory that is being read.
    pub fn is_same(&self, other: &Weight) -> bool {
        const STRIPE: usize = 8 << 20;
        let alike = self.dtype == other.dtype && self.dims == other.dims;
        let (a, b) = (&self.bytes, &other.bytes);
        let same_place = || a.as_ptr() == b.as_ptr() && a.len() == b.len();
        alike
            && (same_place()
                || a.chunks(STRIPE).zip(b.chunks(STRIPE)).all(|(a, b)| {
                    let same = a == b;
                    self.release();
                    other.release();
                    same
                }))
    }

    /// Gives back the memory that reading a mapped weight took. It can be read again, from its file.
    pub fn release(&self) {
        if !self.mapped {
            return;
        }
        let page = rustix::param::page_size();
        let first = self.bytes.as_ptr() as usize;
        // Whole pages only: the others are shared with a neighbour.
        let (start, end) = (first.next_multiple_of(page), (first + self.bytes.len()) / page * page);
        if start < end {
            // SAFETY: the pages lie inside the bytes, which are a view of a read-only map of a file: who reads them
            // afterwards finds the file's bytes again.
            let advised = unsafe { madvise(start as *mut c_void, end - start, Advice::LinuxDontNeed) };
            debug_assert!(advised.is_ok(), "the range is mapped: {advised:?}");
        }
    }

    /// The elements as integers; `None` for floats.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        fn read<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> i64) -> Vec<i64> {
            bytes.chunks_exact(N).map(|c| f(c.try_into().expect("chunks of N bytes"))).collect()
        }
        let b = &self.bytes;
        Some(match self.dtype {
            DType::I64 => read(b, i64::from_le_bytes),
            DType::I32 => read(b, |c| i32::from_le_bytes(c).into()),
            DType::I16 => read(b, |c| i16::from_le_bytes(c).into()),
            DType::I8 => read(b, |c: [u8; 1]| (c[0] as i8).into()),
            DType::U8 | DType::Bool => read(b, |c: [u8; 1]| c[0].into()),
            DType::U16 => read(b, |c| u16::from_le_bytes(c).into()),
            DType::U32 => read(b, |c| u32::from_le_bytes(c).into()),
            DType::U64 => read(b, |c| u64::from_le_bytes(c) as i64),
            DType::F32 | DType::F64 | DType::F16 | DType::BF16 => return None,
        })
    }

    /// The elements as f32, whatever the float type; `None` for integers.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        fn read<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            bytes.chunks_exact(N).map(|c| f(c.try_into().expect("chunks of N bytes"))).collect()
        }
        let b = &self.bytes;
        Some(match self.dtype {
            DType::F32 => read(b, f32::from_le_bytes),
            DType::F64 => read(b, |c| f64::from_le_bytes(c) as f32),
            DType::F16 => read(b, |c| f16::from_le_bytes(c).to_f32()),
            DType::BF16 => read(b, |c| bf16::from_le_bytes(c).to_f32()),
            _ => return None,
        })
    }

    /// The value of a tensor of one element, as f64.
    pub fn as_scalar(&self) -> Option<f64> {
        if self.elements() != 1 {
            return None;
        }
        match self.dtype {
            DType::F64 => Some(f64::from_le_bytes(self.bytes[..].try_into().ok()?)),
            _ if self.dtype.is_float() => Some(self.to_f32()?[0].into()),
            _ => Some(self.to_i64()?[0] as f64),
        }
    }
}

/// Bytes that a tensor of this shape takes; `None` on overflow.
pub(crate) fn byte_len(dtype: DType, dims: &[usize]) -> Option<usize> {
    dims.iter().try_fold(dtype.size(), |n, &d| n.checked_mul(d)).filter(|&n| n <= isize::MAX as usize)
}
