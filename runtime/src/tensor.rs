//! Tensors on the host.

use half::f16;
use ndarray::{ArrayD, ArrayViewD};
use ort::session::SessionInputValue;
use ort::value::{DynValue, PrimitiveTensorElementType, TensorRef};

use super::error::{Error, Result};

/// The element type of a tensor; it prints as `f32`, `i64`, `bool` and so on.
pub use ort::value::TensorElementType as ElementType;

/// A tensor in the memory of the host.
#[derive(Clone, Debug, PartialEq)]
pub enum Tensor {
    F32(ArrayD<f32>),
    F64(ArrayD<f64>),
    F16(ArrayD<f16>),
    I32(ArrayD<i32>),
    I64(ArrayD<i64>),
    Bool(ArrayD<bool>),
}

/// Evaluates one expression for whichever array a tensor holds.
macro_rules! each {
    ($tensor:expr, $array:ident => $body:expr) => {
        match $tensor {
            Tensor::F32($array) => $body,
            Tensor::F64($array) => $body,
            Tensor::F16($array) => $body,
            Tensor::I32($array) => $body,
            Tensor::I64($array) => $body,
            Tensor::Bool($array) => $body,
        }
    };
}

impl Tensor {
    pub fn shape(&self) -> &[usize] {
        each!(self, array => array.shape())
    }

    pub fn element_type(&self) -> ElementType {
        match self {
            Tensor::F32(_) => ElementType::Float32,
            Tensor::F64(_) => ElementType::Float64,
            Tensor::F16(_) => ElementType::Float16,
            Tensor::I32(_) => ElementType::Int32,
            Tensor::I64(_) => ElementType::Int64,
            Tensor::Bool(_) => ElementType::Bool,
        }
    }

    /// True if every element is finite.
    pub fn is_finite(&self) -> bool {
        match self {
            Tensor::F32(array) => array.iter().all(|v| v.is_finite()),
            Tensor::F64(array) => array.iter().all(|v| v.is_finite()),
            Tensor::F16(array) => array.iter().all(|v| v.is_finite()),
            Tensor::I32(_) | Tensor::I64(_) | Tensor::Bool(_) => true,
        }
    }

    /// Calls a function with the elements' bytes, in row-major order.
    pub(super) fn with_bytes<T>(&self, read: impl FnOnce(&[u8]) -> T) -> T {
        each!(self, array => {
            let rows = array.as_standard_layout();
            let elements = rows.as_slice().expect("it was brought into standard layout");
            // SAFETY: the elements are numbers or truth values, without padding, and bytes need no alignment.
            read(unsafe { std::slice::from_raw_parts(elements.as_ptr().cast(), size_of_val(elements)) })
        })
    }

    /// What ONNX Runtime reads in a run: the array itself, or a copy if its elements are not in row-major order.
    pub(super) fn to_input(&self) -> ort::Result<SessionInputValue<'_>> {
        each!(self, array => input(array))
    }

    /// A copy that ONNX Runtime owns.
    pub(super) fn to_value(&self) -> ort::Result<DynValue> {
        self.clone().into_value()
    }

    /// The same, owned by ONNX Runtime.
    pub(super) fn into_value(self) -> ort::Result<DynValue> {
        each!(self, array => Ok(ort::value::Tensor::from_array(array)?.into_dyn()))
    }

    /// Copies what ONNX Runtime returned under `name`.
    pub(super) fn from_output(name: &str, value: &DynValue) -> Result<Tensor> {
        match value.dtype().tensor_type() {
            Some(ElementType::Float32) => copy(value).map(Tensor::F32).map_err(Error::run),
            Some(ElementType::Float64) => copy(value).map(Tensor::F64).map_err(Error::run),
            Some(ElementType::Float16) => copy(value).map(Tensor::F16).map_err(Error::run),
            Some(ElementType::Int32) => copy(value).map(Tensor::I32).map_err(Error::run),
            Some(ElementType::Int64) => copy(value).map(Tensor::I64).map_err(Error::run),
            Some(ElementType::Bool) => copy(value).map(Tensor::Bool).map_err(Error::run),
            Some(found) => Err(Error::UnsupportedType { name: name.to_owned(), found }),
            None => Err(Error::NotATensor { name: name.to_owned(), kind: value.dtype().to_string() }),
        }
    }
}

fn input<T>(array: &ArrayD<T>) -> ort::Result<SessionInputValue<'_>>
where
    T: PrimitiveTensorElementType + Clone + std::fmt::Debug + 'static,
{
    if array.is_standard_layout() {
        Ok(TensorRef::from_array_view(array)?.into())
    } else {
        Ok(ort::value::Tensor::from_array(array.clone())?.into())
    }
}

fn copy<T: PrimitiveTensorElementType + Clone>(value: &DynValue) -> ort::Result<ArrayD<T>> {
    Ok(value.try_extract_array::<T>()?.to_owned())
}

macro_rules! element {
    ($type:ty, $variant:ident, $element:ident, $as:ident) => {
        impl Tensor {
            #[doc = concat!("The elements as `", stringify!($type), "`; an error if they are of another type.")]
            pub fn $as(&self) -> Result<ArrayViewD<'_, $type>> {
                match self {
                    Tensor::$variant(array) => Ok(array.view()),
                    other => Err(Error::WrongType {
                        name: "the tensor".to_owned(),
                        expected: ElementType::$element,
                        found: other.element_type(),
                    }),
                }
            }
        }

        impl<D: ndarray::Dimension> From<ndarray::Array<$type, D>> for Tensor {
            fn from(array: ndarray::Array<$type, D>) -> Tensor {
                Tensor::$variant(array.into_dyn())
            }
        }
    };
}

element!(f32, F32, Float32, as_f32);
element!(f64, F64, Float64, as_f64);
element!(f16, F16, Float16, as_f16);
element!(i32, I32, Int32, as_i32);
element!(i64, I64, Int64, as_i64);
element!(bool, Bool, Bool, as_bool);
