//! Values that stay on a session's device from run to run, and runs that read and write them in place.

use std::ptr::{self, NonNull};

use ndarray::{ArrayBase, ArrayD, Data, IxDyn};
use ort::AsPointer as _;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::IoBinding;
use ort::session::Session as OrtSession;
use ort::value::DynValue;

use super::error::{Error, Result};
use super::session::{Device, Session};
use super::tensor::Tensor;

/// Numbers of 32 bits in a device's memory. On the CPU they lie on ONNX Runtime's own alignment, on which the order of
/// its vectorised sums depends.
#[derive(Debug)]
pub struct DeviceTensor {
    value: ort::value::Tensor<f32>,
    dims: Vec<usize>,
    device: Device,
}

/// A tensor as an allocator gives it. [`ort::value::Tensor::new`] would clear it, which takes as long as to fill it.
fn raw(allocator: &Allocator, dims: &[usize]) -> ort::Result<ort::value::Tensor<f32>> {
    let shape: Vec<i64> = dims.iter().map(|size| i64::try_from(*size).unwrap_or(i64::MAX)).collect();
    let mut value = ptr::null_mut();
    // SAFETY: the call follows the C API: the shape is read, and the value, which is f32's, is the caller's. Whoever makes a tensor
    // writes to all of it before it is read, and no bits are invalid in an f32.
    unsafe {
        let create = ort::api().CreateTensorAsOrtValue;
        let kind = ort::sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
        ort::Error::result_from_status(create(
            allocator.ptr().cast_mut(),
            shape.as_ptr(),
            shape.len(),
            kind,
            &mut value,
        ))?;
        let value = NonNull::new(value).ok_or_else(|| ort::Error::new("no tensor was made"))?;
        Ok(ort::value::Tensor::from_ptr(value, Some(allocator)))
    }
}

impl DeviceTensor {
    /// Whoever makes one writes to all of it first: what it holds before is nothing to build on.
    fn new(session: &OrtSession, device: Device, dims: &[usize]) -> Result<DeviceTensor> {
        let allocator = match device {
            Device::Cpu => Allocator::default(),
            Device::Cuda(index) => memory(AllocationDevice::CUDA, index)
                .and_then(|info| Allocator::new(session, info))
                .map_err(Error::run)?,
        };
        DeviceTensor::within(&allocator, device, dims)
    }

    /// As [`DeviceTensor::new`], of an allocator of this device.
    pub(super) fn within(allocator: &Allocator, device: Device, dims: &[usize]) -> Result<DeviceTensor> {
        let value = raw(allocator, dims).map_err(Error::run)?;
        let mut tensor = DeviceTensor { value, dims: dims.to_vec(), device };
        if cfg!(debug_assertions)
            && let Some(numbers) = tensor.numbers_mut()
        {
            numbers.fill(f32::NAN);
        }
        Ok(tensor)
    }

    /// The numbers, in row-major order, of a tensor in the host's memory.
    pub fn numbers_mut(&mut self) -> Option<&mut [f32]> {
        (self.device == Device::Cpu).then(|| self.value.extract_tensor_mut().1)
    }

    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Replaces the contents.
    ///
    /// # Panics
    /// When the shapes differ.
    pub fn write<S: Data<Elem = f32>>(&mut self, values: &ArrayBase<S, IxDyn>) -> Result<()> {
        assert_eq!(values.shape(), self.dims, "a tensor keeps its shape");
        let values = values.as_standard_layout();
        let slice = values.as_slice().expect("it was brought into standard layout");
        match self.device {
            Device::Cpu => self.value.extract_tensor_mut().1.copy_from_slice(slice),
            Device::Cuda(_) => {
                let host = ort::value::TensorRef::from_array_view(values.view()).map_err(Error::run)?;
                host.copy_into(&mut self.value).map_err(Error::run)?;
            }
        }
        Ok(())
    }

    /// A copy of the contents in the host's memory.
    pub fn read(&self) -> Result<ArrayD<f32>> {
        match self.device {
            Device::Cpu => Ok(self.value.extract_array().to_owned()),
            Device::Cuda(_) => {
                Ok(self.value.to(AllocationDevice::CPU, 0).map_err(Error::run)?.extract_array().to_owned())
            }
        }
    }
}

fn memory(device: AllocationDevice<'static>, index: u32) -> ort::Result<MemoryInfo<'static>> {
    MemoryInfo::new(device, i32::try_from(index).unwrap_or(i32::MAX), AllocatorType::Device, MemoryType::Default)
}

/// What a run left on the device, or what is there for one, whatever its type and shape.
#[derive(Debug)]
pub struct Kept {
    name: String,
    value: DynValue,
}

impl Kept {
    /// For an input of this name.
    pub fn new(name: &str, tensor: DeviceTensor) -> Kept {
        Kept { name: name.to_owned(), value: tensor.value.into_dyn() }
    }

    /// A tensor on the host for an input of this name.
    pub fn host(name: &str, tensor: Tensor) -> Result<Kept> {
        Ok(Kept { name: name.to_owned(), value: tensor.into_value().map_err(Error::run)? })
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Inputs and outputs of a session, bound once or anew for each run.
#[derive(Debug)]
pub struct Binding {
    binding: IoBinding,
    device: Device,
    /// Outputs that stay on the device.
    kept: Vec<String>,
    /// Outputs that are read back, in the order in which they were bound.
    fetched: Vec<String>,
}

impl Binding {
    /// An input that is read where it lies.
    pub fn input(&mut self, name: &str, tensor: &DeviceTensor) -> Result<()> {
        self.binding.bind_input(name, &tensor.value).map_err(Error::run)
    }

    /// An input from the host, copied now.
    pub fn feed(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        let value = tensor.to_value().map_err(Error::run)?;
        self.binding.bind_input(name, &value).map_err(Error::run)
    }

    /// An input that another session left on the same device, or that lies on the host.
    pub fn pass(&mut self, kept: &Kept) -> Result<()> {
        self.binding.bind_input(kept.name.as_str(), &kept.value).map_err(Error::run)
    }

    /// An output that stays on the device. A binding with such an output serves for one run.
    pub fn keep(&mut self, name: &str) -> Result<()> {
        let memory = match self.device {
            Device::Cpu => memory(AllocationDevice::CPU, 0),
            Device::Cuda(index) => memory(AllocationDevice::CUDA, index),
        };
        self.binding.bind_output_to_device(name, &memory.map_err(Error::run)?).map_err(Error::run)?;
        self.kept.push(name.to_owned());
        Ok(())
    }

    /// An output that is written where `tensor` lies. It may be an input's tensor too, where every node that reads the
    /// input runs before the one that writes the output: [`lstc_passes::written_in_place`] tells.
    pub fn output(&mut self, name: &str, tensor: &mut DeviceTensor) -> Result<()> {
        self.binding.bind_output(name, &mut tensor.value).map_err(Error::run)
    }

    /// An output that each run gives to the host.
    pub fn fetch(&mut self, name: &str) -> Result<()> {
        let host = memory(AllocationDevice::CPU, 0).map_err(Error::run)?;
        self.binding.bind_output_to_device(name, &host).map_err(Error::run)?;
        self.fetched.push(name.to_owned());
        Ok(())
    }
}

impl Session {
    /// A tensor of zeros in the host's memory, for an output of known shape. One that the session would allocate stays in its arena
    /// from run to run, and keeps what lies around it apart.
    pub fn zeros_on_host(&self, dims: &[usize]) -> Result<DeviceTensor> {
        let mut tensor = DeviceTensor::new(&self.session, Device::Cpu, dims)?;
        tensor.write(&ArrayD::zeros(dims))?;
        Ok(tensor)
    }

    /// A tensor on the session's device with the values of one on the host.
    pub fn upload(&self, values: &ArrayD<f32>) -> Result<DeviceTensor> {
        let mut tensor = DeviceTensor::new(&self.session, self.device, values.shape())?;
        tensor.write(values)?;
        Ok(tensor)
    }

    /// A binding with nothing bound.
    pub fn binding(&self) -> Result<Binding> {
        let binding = self.session.create_binding().map_err(Error::run)?;
        Ok(Binding { binding, device: self.device, kept: Vec::new(), fetched: Vec::new() })
    }

    /// Runs the session on what is bound, and returns the fetched outputs in the order in which they were bound.
    ///
    /// # Errors
    /// What ONNX Runtime has against the run: a missing input, a shape that does not fit, no memory.
    pub fn run_bound(&mut self, binding: &Binding) -> Result<Vec<Tensor>> {
        let outputs = self.session.run_binding(&binding.binding).map_err(Error::run)?;
        binding
            .fetched
            .iter()
            .map(|name| {
                let value = outputs.get(name.as_str()).ok_or_else(|| Error::NoSuchPort {
                    direction: "output",
                    name: name.clone(),
                    known: Vec::new(),
                })?;
                Tensor::from_output(name, value)
            })
            .collect()
    }

    /// Runs the session on what is bound, and returns what was to stay on the device.
    ///
    /// # Errors
    /// As [`Session::run_bound`].
    pub fn run_keeping(&mut self, binding: Binding) -> Result<Vec<Kept>> {
        let mut outputs = self.session.run_binding(&binding.binding).map_err(Error::run)?;
        let take = |name: &String| outputs.remove(name).map(|value| Kept { name: name.clone(), value });
        Ok(binding.kept.iter().filter_map(take).collect())
    }
}
