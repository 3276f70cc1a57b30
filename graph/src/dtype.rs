//! Element types.

use std::fmt;

use crate::onnx::proto::tensor_proto::DataType;

/// An element type that lstc can hold. Strings, complex numbers and sequences are refused when a model is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    F32,
    F64,
    F16,
    BF16,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    Bool,
}

/// Rust name, ONNX code, size in bytes.
const TABLE: [(DType, &str, DataType, usize); 13] = [
    (DType::F32, "f32", DataType::Float, 4),
    (DType::F64, "f64", DataType::Double, 8),
    (DType::F16, "f16", DataType::Float16, 2),
    (DType::BF16, "bf16", DataType::Bfloat16, 2),
    (DType::I8, "i8", DataType::Int8, 1),
    (DType::I16, "i16", DataType::Int16, 2),
    (DType::I32, "i32", DataType::Int32, 4),
    (DType::I64, "i64", DataType::Int64, 8),
    (DType::U8, "u8", DataType::Uint8, 1),
    (DType::U16, "u16", DataType::Uint16, 2),
    (DType::U32, "u32", DataType::Uint32, 4),
    (DType::U64, "u64", DataType::Uint64, 8),
    (DType::Bool, "bool", DataType::Bool, 1),
];

impl DType {
    fn row(self) -> &'static (DType, &'static str, DataType, usize) {
        TABLE.iter().find(|row| row.0 == self).expect("every type has its row")
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        self.row().3
    }

    /// The short name: `f32`, `i64`, `bool`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The code of `TensorProto.DataType`.
    pub fn onnx(self) -> i32 {
        self.row().2 as i32
    }

    /// The type of a code, which is an attribute where a node has it.
    pub fn from_onnx(code: impl Into<i64>) -> Option<DType> {
        let code = code.into();
        TABLE.iter().find(|row| i64::from(row.2 as i32) == code).map(|row| row.0)
    }

    pub fn from_name(name: &str) -> Option<DType> {
        TABLE.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F64 | DType::F16 | DType::BF16)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
