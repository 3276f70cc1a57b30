//! Values that stay on a session's device from run to run, and runs that read and write them in place.

use std::ptr::{self, NonNull};

use ndarray::{ArrayBase, ArrayD, Data, IxDyn};
use ort::AsPointer as _;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::Session as OrtSession;
use ort::session::{IoBinding, RunOptions};
use ort::value::DynValue;

use super::cuda::{Awaited, Cuda};
use super::error::{Error, Result};
use super::places::Places;
use super::session::{Device, Port, Session};
use super::tensor::{ElementType, Tensor};

/// Numbers of 32 bits in a device's memory. On the CPU they lie on ONNX Runtime's own alignment, on which the order of
/// its vectorised sums depends.
#[derive(Debug)]
pub struct DeviceTensor {
    value: ort::value::Tensor<f32>,
    dims: Vec<usize>,
    /// `None` for the host's memory.
    device: Option<&'static Cuda>,
}

/// An uninitialised tensor. [`ort::value::Tensor::new`] would clear it, which takes as long as filling it.
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
    /// Uninitialised: the caller must write to all of it before reading it.
    fn new(session: &OrtSession, device: Option<&'static Cuda>, dims: &[usize]) -> Result<DeviceTensor> {
        let allocator = match device {
            None => Allocator::default(),
            Some(cuda) => memory(AllocationDevice::CUDA, cuda.index())
                .and_then(|info| Allocator::new(session, info))
                .map_err(Error::run)?,
        };
        DeviceTensor::within(&allocator, device, dims)
    }

    /// As [`DeviceTensor::new`], from an allocator of this device, or in the host's memory.
    pub(super) fn within(allocator: &Allocator, device: Option<&'static Cuda>, dims: &[usize]) -> Result<DeviceTensor> {
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
        self.device.is_none().then(|| self.value.extract_tensor_mut().1)
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
            None => self.value.extract_tensor_mut().1.copy_from_slice(slice),
            Some(cuda) => cuda.send(self.value.data_ptr_mut(), bytes_of(slice))?,
        }
        Ok(())
    }

    /// A copy of the contents in the host's memory.
    pub fn read(&self) -> Result<ArrayD<f32>> {
        match self.device {
            None => Ok(self.value.extract_array().to_owned()),
            Some(cuda) => {
                let mut values = ArrayD::zeros(self.dims.as_slice());
                let slice = values.as_slice_mut().expect("a new array is in standard layout");
                cuda.fetch(self.value.data_ptr().cast_mut(), bytes_of_mut(slice))?;
                Ok(values)
            }
        }
    }

    /// The first number, once the device has reached this point. Work started later does not change it.
    pub fn read_later(&self) -> Result<Measured> {
        match self.device {
            None => Ok(Measured::Known(self.value.extract_tensor().1.first().copied().unwrap_or(f32::NAN))),
            Some(cuda) => cuda.read_later(self.value.data_ptr().cast_mut()).map(Measured::Awaited),
        }
    }

    /// A copy on the same device.
    pub fn copy(&self, session: &Session) -> Result<DeviceTensor> {
        let mut copy = DeviceTensor::new(&session.session, self.device, &self.dims)?;
        copy.copy_from(self)?;
        Ok(copy)
    }

    /// Replaces the contents by those of a tensor of the same shape and device.
    pub fn copy_from(&mut self, other: &DeviceTensor) -> Result<()> {
        assert_eq!(other.dims, self.dims, "a tensor keeps its shape");
        match self.device {
            None => self.value.extract_tensor_mut().1.copy_from_slice(other.value.extract_tensor().1),
            Some(cuda) => {
                let bytes = self.dims.iter().product::<usize>() * size_of::<f32>();
                cuda.copy_within(self.value.data_ptr_mut(), other.value.data_ptr().cast_mut(), bytes)?;
            }
        }
        Ok(())
    }
}

/// A number that a run computes: available at once on the CPU, on its way from a device.
#[derive(Debug)]
pub enum Measured {
    Known(f32),
    Awaited(Awaited),
}

impl Measured {
    /// Waits for the number.
    ///
    /// # Errors
    /// A failure on the device meanwhile.
    pub fn get(self) -> Result<f32> {
        match self {
            Measured::Known(number) => Ok(number),
            Measured::Awaited(awaited) => awaited.get(),
        }
    }
}

fn bytes_of(numbers: &[f32]) -> &[u8] {
    // SAFETY: every f32 is four bytes, and bytes need no alignment.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
}

fn bytes_of_mut(numbers: &mut [f32]) -> &mut [u8] {
    // SAFETY: as above, and every bit pattern is an f32.
    unsafe { std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), size_of_val(numbers)) }
}

pub(super) fn memory(device: AllocationDevice<'static>, index: u32) -> ort::Result<MemoryInfo<'static>> {
    MemoryInfo::new(device, i32::try_from(index).unwrap_or(i32::MAX), AllocatorType::Device, MemoryType::Default)
}

/// An output of a run, or an input for one, on the device, of any type and shape.
#[derive(Debug)]
pub struct Kept {
    name: String,
    value: DynValue,
    lies: Lies,
}

/// Where a value lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lies {
    /// At its place: where the sessions that share the places read it in every run.
    Placed,
    /// Wherever ONNX Runtime allocated it, on the device of the session that made it.
    There,
    /// In pinned memory of the host, which a device reads by itself.
    Pinned,
    /// In other memory of the host.
    Host,
}

impl Kept {
    /// For an input of this name: a tensor of [`HostMemory::tensor`](super::HostMemory::tensor).
    pub fn new(name: &str, tensor: DeviceTensor) -> Kept {
        Kept { name: name.to_owned(), value: tensor.value.into_dyn(), lies: Lies::Pinned }
    }

    /// A tensor on the host for an input of this name.
    pub fn host(name: &str, tensor: Tensor) -> Result<Kept> {
        Ok(Kept { name: name.to_owned(), value: tensor.into_value().map_err(Error::run)?, lies: Lies::Host })
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Inputs and outputs of a session, bound once, or again for each run.
#[derive(Debug)]
pub struct Binding {
    binding: IoBinding,
    device: Device,
    /// Where inputs are copied to on a device, and where outputs that stay there are written.
    places: Places,
    /// Outputs that stay on the device, or on the host.
    kept: Vec<(String, Lies)>,
    /// Those that have a place.
    placed: Vec<Kept>,
    /// Outputs that are read back, in the order in which they were bound.
    fetched: Vec<String>,
    /// The captured graph that a run replays, or is captured as.
    graph: Option<u32>,
}

impl Binding {
    /// True where inputs lie in the host's memory.
    pub fn is_host(&self) -> bool {
        self.places.is_host()
    }

    /// An input that is read in place.
    pub fn input(&mut self, name: &str, tensor: &DeviceTensor) -> Result<()> {
        self.binding.bind_input(name, &tensor.value).map_err(Error::run)
    }

    /// An input from the host, copied now.
    pub fn feed(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        let value = match self.places.put(name, tensor)? {
            Some(placed) => placed,
            None => tensor.to_value().map_err(Error::run)?,
        };
        self.binding.bind_input(name, &value).map_err(Error::run)
    }

    /// An input that another session left on the same device, or that is on the host. On a device it is read at its place.
    pub fn pass(&mut self, kept: Kept) -> Result<()> {
        let Kept { name, value, lies } = kept;
        let value = match lies {
            _ if self.places.is_host() => value,
            Lies::Placed => value,
            Lies::There => self.places.copy_value(&name, &value)?,
            Lies::Pinned => self.places.put_value(&name, value, true)?,
            Lies::Host => self.places.put_value(&name, value, false)?,
        };
        self.binding.bind_input(name, &value).map_err(Error::run)
    }

    /// An input that another session left on the same device, and that others read too.
    pub fn lend(&mut self, kept: &Kept) -> Result<()> {
        self.binding.bind_input(kept.name.as_str(), &kept.value).map_err(Error::run)
    }

    /// An output that stays on the device, in ONNX Runtime's memory; one of integers stays on the host, where sizes are read. A
    /// binding with such an output serves for one run.
    pub fn keep(&mut self, port: &Port) -> Result<()> {
        let is_size = port.element_type == ElementType::Int64;
        let (memory, lies) = match self.device {
            Device::Cuda(index) if !is_size => (memory(AllocationDevice::CUDA, index), Lies::There),
            _ => (memory(AllocationDevice::CPU, 0), Lies::Host),
        };
        self.binding.bind_output_to_device(port.name.as_str(), &memory.map_err(Error::run)?).map_err(Error::run)?;
        self.kept.push((port.name.clone(), lies));
        Ok(())
    }

    /// As [`Binding::keep`], for an output of this shape, at the same place in every run on a device.
    pub fn keep_placed(&mut self, port: &Port, dims: &[usize]) -> Result<()> {
        let Some(mut value) = self.places.output(&port.name, port.element_type, dims)? else { return self.keep(port) };
        self.binding.bind_output(port.name.as_str(), &mut value).map_err(Error::run)?;
        self.placed.push(Kept { name: port.name.clone(), value, lies: Lies::Placed });
        Ok(())
    }

    /// An output that is written where `tensor` lies. It may be an input's tensor too, where every node that reads the
    /// input runs before the one that writes the output: see `written_in_place` of lstc-passes.
    pub fn output(&mut self, name: &str, tensor: &mut DeviceTensor) -> Result<()> {
        self.binding.bind_output(name, &mut tensor.value).map_err(Error::run)
    }

    /// An output that each run returns to the host.
    pub fn fetch(&mut self, name: &str) -> Result<()> {
        let host = memory(AllocationDevice::CPU, 0).map_err(Error::run)?;
        self.binding.bind_output_to_device(name, &host).map_err(Error::run)?;
        self.fetched.push(name.to_owned());
        Ok(())
    }

    /// Runs replay what was captured under this number, or are captured under it if nothing was; `None` for plain runs.
    /// In a session that was not opened for it, runs are plain.
    pub fn replay(&mut self, graph: Option<u32>) {
        self.graph = graph;
    }

    /// Options of a run: on a device, only fetching a value waits for it.
    fn options(&self, captures: bool) -> Result<RunOptions> {
        let mut options = RunOptions::new().map_err(Error::run)?;
        if matches!(self.device, Device::Cuda(_)) && self.fetched.is_empty() {
            options.disable_device_sync().map_err(Error::run)?;
        }
        if captures {
            let number = self.graph.map_or_else(|| "-1".to_owned(), |graph| graph.to_string());
            options.set("gpu_graph_id", number).map_err(Error::run)?;
        }
        Ok(options)
    }
}

impl Session {
    /// A tensor of zeros for an output of known shape that a run measures. On the CPU, one that the session allocates would stay in
    /// its arena from run to run, and fragment it.
    pub fn zeros(&self, dims: &[usize]) -> Result<DeviceTensor> {
        self.upload(&ArrayD::zeros(dims))
    }

    /// A tensor on the session's device with the values of one on the host.
    pub fn upload(&self, values: &ArrayD<f32>) -> Result<DeviceTensor> {
        let mut tensor = DeviceTensor::new(&self.session, self.cuda, values.shape())?;
        tensor.write(values)?;
        Ok(tensor)
    }

    /// Places for the inputs and outputs of this session, and of others on the same device.
    pub fn places(&self) -> Places {
        self.cuda.map_or_else(Places::default, Places::on)
    }

    /// Waits until the device has finished all work started on it.
    ///
    /// # Errors
    /// A failure on the device meanwhile.
    pub fn wait(&self) -> Result<()> {
        self.cuda.map_or(Ok(()), Cuda::wait)
    }

    /// A binding with nothing bound.
    pub fn binding(&self, places: &Places) -> Result<Binding> {
        let binding = self.session.create_binding().map_err(Error::run)?;
        Ok(Binding {
            binding,
            device: self.device,
            places: places.clone(),
            kept: Vec::new(),
            placed: Vec::new(),
            fetched: Vec::new(),
            graph: None,
        })
    }

    /// Runs the session on what is bound, and returns the fetched outputs in the order in which they were bound. On a device, a run
    /// that fetches nothing continues after the return.
    ///
    /// # Errors
    /// The run fails in ONNX Runtime: a missing input, a shape that does not fit, no memory.
    pub fn run_bound(&mut self, binding: &Binding) -> Result<Vec<Tensor>> {
        let options = binding.options(self.captures)?;
        let outputs = self.session.run_binding_with_options(&binding.binding, &options).map_err(Error::run)?;
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

    /// Runs the session on what is bound, and returns the outputs that stay on the device. On a device the run continues after the return.
    ///
    /// # Errors
    /// As [`Session::run_bound`].
    pub fn run_keeping(&mut self, binding: Binding) -> Result<Vec<Kept>> {
        let options = binding.options(self.captures)?;
        let mut outputs = self.session.run_binding_with_options(&binding.binding, &options).map_err(Error::run)?;
        let take = |(name, lies): &(String, Lies)| {
            outputs.remove(name).map(|value| Kept { name: name.clone(), value, lies: *lies })
        };
        let mut kept: Vec<Kept> = binding.kept.iter().filter_map(take).collect();
        kept.extend(binding.placed);
        Ok(kept)
    }
}
