//! Places on a device to which values are bound by name, the same in every run.
//!
//! A value that is bound again for each run is copied to wherever ONNX Runtime allocates it, but a captured graph would keep
//! reading the first place. A place is as large as the largest value it has held; a smaller one lies at its beginning.

use std::collections::HashMap;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ort::AsPointer as _;
use ort::memory::{AllocationDevice, Allocator, MemoryInfo};
use ort::value::DynValue;

use super::binding::memory;
use super::cuda::{Block, Cuda};
use super::error::{Error, Result};
use super::session::Session;
use super::tensor::{ElementType, Tensor};

/// Places for the inputs and outputs of the sessions that share them; none on the CPU, whose sessions read the host's memory.
#[derive(Clone, Debug, Default)]
pub struct Places(Option<Arc<OnDevice>>);

#[derive(Debug)]
struct OnDevice {
    cuda: &'static Cuda,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    blocks: HashMap<String, Block>,
    /// Counts what voids captures: blocks that were replaced by larger ones, for one.
    moves: u64,
}

impl Places {
    pub(super) fn on(cuda: &'static Cuda) -> Places {
        Places(Some(Arc::new(OnDevice { cuda, state: Mutex::default() })))
    }

    /// True if values are in the host's memory, and need no place.
    pub fn is_host(&self) -> bool {
        self.0.is_none()
    }

    /// True if these are places on the device that a session runs on.
    pub fn are_for(&self, session: &Session) -> bool {
        self.is_host() == session.cuda.is_none()
    }

    /// Changes when a value moves to another place: earlier captures are void.
    pub fn moves(&self) -> u64 {
        self.0.as_ref().map_or(0, |on| on.state().moves)
    }

    /// Voids earlier captures although no value has moved.
    pub fn void(&self) {
        if let Some(on) = &self.0 {
            on.state().moves += 1;
        }
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.0.as_ref().map_or(0, |on| on.state().blocks.values().map(|block| block.length as u64).sum())
    }

    /// Makes room for a value of this size, before anything is captured.
    ///
    /// # Errors
    /// No memory on the device.
    pub fn reserve(&self, name: &str, bytes: usize) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |on| on.place(name, bytes).map(drop))
    }

    /// Starts to copy a tensor of the host to its place; returns what to bind. `None` on the CPU.
    pub(super) fn put(&self, name: &str, tensor: &Tensor) -> Result<Option<DynValue>> {
        let Some(on) = &self.0 else { return Ok(None) };
        tensor.with_bytes(|bytes| {
            let place = on.place(name, bytes.len())?;
            on.cuda.send(place, bytes)
        })?;
        on.value(name, tensor.element_type(), tensor.shape()).map(Some)
    }

    /// As [`Places::put`], for an ONNX Runtime value in the host's memory. One in pinned memory is not copied on the host, but kept
    /// until the device has read it.
    pub(super) fn put_value(&self, name: &str, value: DynValue, pinned: bool) -> Result<DynValue> {
        let Some(on) = &self.0 else { return Ok(value) };
        let (element, dims) = described(&value)?;
        let bytes = bytes_of(element, &dims);
        let place = on.place(name, bytes)?;
        if pinned {
            on.cuda.send_value(place, value, bytes)?;
        } else {
            // SAFETY: the tensor has this many bytes, which nothing else writes to meanwhile.
            on.cuda.send(place, unsafe { std::slice::from_raw_parts(address(&value)?.cast(), bytes) })?;
        }
        on.value(name, element, &dims)
    }

    /// As [`Places::put_value`], for a value on the device.
    pub(super) fn copy_value(&self, name: &str, value: &DynValue) -> Result<DynValue> {
        let Some(on) = &self.0 else {
            return Err(Error::run(ort::Error::new("a value on a device has a place there")));
        };
        let (element, dims) = described(value)?;
        let bytes = bytes_of(element, &dims);
        on.cuda.copy_within(on.place(name, bytes)?, address(value)?, bytes)?;
        on.value(name, element, &dims)
    }

    /// The place for an output of this type and shape.
    pub(super) fn output(&self, name: &str, element: ElementType, dims: &[usize]) -> Result<Option<DynValue>> {
        let Some(on) = &self.0 else { return Ok(None) };
        on.place(name, bytes_of(element, dims))?;
        on.value(name, element, dims).map(Some)
    }
}

impl OnDevice {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a value of this size lies.
    fn place(&self, name: &str, bytes: usize) -> Result<*mut std::ffi::c_void> {
        let mut state = self.state();
        if let Some(block) = state.blocks.get(name).filter(|block| block.length >= bytes) {
            return Ok(block.memory);
        }
        let block = self.cuda.allocate(bytes)?;
        let place = block.memory;
        if let Some(smaller) = state.blocks.insert(name.to_owned(), block) {
            state.moves += 1;
            // Unfinished work may still read or write it.
            self.cuda.wait()?;
            drop(smaller);
        }
        Ok(place)
    }

    /// A tensor at a place that is large enough.
    fn value(&self, name: &str, element: ElementType, dims: &[usize]) -> Result<DynValue> {
        let state = self.state();
        let block = state.blocks.get(name).expect("a place was made for it");
        let shape: Vec<i64> = dims.iter().map(|size| i64::try_from(*size).unwrap_or(i64::MAX)).collect();
        let info: MemoryInfo = memory(AllocationDevice::CUDA, self.cuda.index()).map_err(Error::run)?;
        let mut value = ptr::null_mut();
        // SAFETY: the call follows the C API. The block is at least as large as the tensor, and lives as long as the places, which
        // whatever is bound to them holds.
        unsafe {
            let create = ort::api().CreateTensorWithDataAsOrtValue;
            let status =
                create(info.ptr(), block.memory, block.length, shape.as_ptr(), shape.len(), element.into(), &mut value);
            ort::Error::result_from_status(status).map_err(Error::run)?;
            let value = NonNull::new(value).ok_or_else(|| Error::run(ort::Error::new("no tensor was made")))?;
            Ok(DynValue::from_ptr(value, Some(&Allocator::default())))
        }
    }
}

fn described(value: &DynValue) -> Result<(ElementType, Vec<usize>)> {
    let unknown = || Error::run(ort::Error::new("a value that is not a tensor"));
    let element = value.dtype().tensor_type().ok_or_else(unknown)?;
    let shape = value.dtype().tensor_shape().ok_or_else(unknown)?;
    Ok((element, shape.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect()))
}

fn bytes_of(element: ElementType, dims: &[usize]) -> usize {
    let elements = dims.iter().fold(1_usize, |elements, dim| elements.saturating_mul(*dim));
    element.byte_size(elements).unwrap_or(usize::MAX)
}

/// The address of a tensor's numbers.
pub(super) fn address(value: &DynValue) -> Result<*mut std::ffi::c_void> {
    let mut address = ptr::null_mut();
    // SAFETY: the call follows the C API: the value is a tensor, or the call fails.
    let status = unsafe { (ort::api().GetTensorMutableData)(value.ptr().cast_mut(), &mut address) };
    // SAFETY: the status is the call's own.
    unsafe { ort::Error::result_from_status(status) }.map_err(Error::run)?;
    Ok(address)
}
