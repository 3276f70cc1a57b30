//! The memory of this process as the kernel counts it, and of ONNX Runtime's arena by its own count.

use std::ffi::{CStr, c_char};
use std::ptr;

use ort::AsPointer as _;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};

use super::binding::{DeviceTensor, memory};
use super::error::{Error, Result};
use super::places::Places;
use super::session::{Device, Session};

/// Bytes of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// Resident now, shared files included.
    pub now: u64,
    /// The peak of resident memory.
    pub peak: u64,
}

impl Resident {
    /// Reads `/proc/self/status`; zeros if the kernel does not report it.
    pub fn read() -> Resident {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Resident { now: field(&status, "VmRSS:"), peak: field(&status, "VmHWM:") }
    }
}

/// Bytes that the machine can provide without swapping, according to `/proc/meminfo`.
pub fn available_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    Some(field(&info, "MemAvailable:")).filter(|bytes| *bytes > 0)
}

/// Bytes in the arena that the sessions on a device share: values, and on the CPU weights in the kernels' own layout, else all weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arena {
    pub in_use: u64,
    /// The peak in use.
    pub peak: u64,
    /// What the arena holds of the process's memory.
    pub reserved: u64,
}

/// Where tensors for a session's inputs lie on the host: for one on the CPU in the arena that all of these share, so that the
/// room of a dropped tensor, with its resident pages, goes to the next.
#[derive(Debug)]
pub struct HostMemory(Allocator);

impl HostMemory {
    /// A tensor in the host's memory. It is uninitialised: the caller must write to all of it before reading it.
    ///
    /// # Errors
    /// No memory.
    pub fn tensor(&self, dims: &[usize]) -> Result<DeviceTensor> {
        DeviceTensor::within(&self.0, None, dims)
    }
}

impl Session {
    /// # Errors
    /// From ONNX Runtime.
    pub fn host_memory(&self) -> Result<HostMemory> {
        match self.device {
            Device::Cpu => self.arena_allocator().map(HostMemory),
            // Pinned memory, which the device reads by itself.
            Device::Cuda(index) => {
                let pinned = memory(AllocationDevice::CUDA_PINNED, index).map_err(Error::run)?;
                Allocator::new(&self.session, pinned).map(HostMemory).map_err(Error::run)
            }
        }
    }

    fn arena_allocator(&self) -> Result<Allocator> {
        let memory = match self.device {
            Device::Cpu => MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Arena, MemoryType::Default),
            Device::Cuda(index) => memory(AllocationDevice::CUDA, index),
        };
        Allocator::new(&self.session, memory.map_err(Error::run)?).map_err(Error::run)
    }

    /// Gives the arena of this session, and of all others on its device, room for this many bytes in one piece. On the CPU,
    /// an untouched piece is not resident.
    ///
    /// An arena grows by the requested size, piece by piece, and no value spans two pieces: batches of many sizes would
    /// leave it full of pieces that fit nothing.
    ///
    /// # Errors
    /// No memory.
    pub fn reserve(&self, bytes: u64) -> Result<()> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.arena_allocator()?.alloc::<u8>(bytes).map(drop).map_err(Error::run)
    }

    /// Gives a session that captures its runs room for the small arrays that its nodes read from pinned memory: CUDA allocates none
    /// while a stream is captured.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn reserve_pinned(&self) -> Result<()> {
        const ROOM: usize = 16 << 20;
        self.host_memory()?.0.alloc::<u8>(ROOM).map(drop).map_err(Error::run)
    }

    /// The memory that the sessions of a device take: on the CPU the resident memory of the process, elsewhere what their arena and
    /// these places hold of the device's. An arena returns nothing, so its peak is what it holds.
    ///
    /// # Errors
    /// A library that does not report it.
    pub fn memory(&self, places: &Places) -> Result<Resident> {
        if self.device == Device::Cpu {
            return Ok(Resident::read());
        }
        let (arena, places) = (self.arena()?, places.bytes());
        Ok(Resident { now: arena.in_use + places, peak: arena.reserved + places })
    }

    /// The arena of this session, and of all others on its device.
    ///
    /// # Errors
    /// A library that does not report it.
    pub fn arena(&self) -> Result<Arena> {
        let allocator = self.arena_allocator()?;
        let mut pairs = ptr::null_mut();
        let api = ort::api();
        // SAFETY: the calls follow the C API: the pairs are the caller's until they are released, and a value is a
        // NUL-terminated text of theirs, or null.
        unsafe {
            ort::Error::result_from_status((api.AllocatorGetStats)(allocator.ptr(), &mut pairs)).map_err(Error::run)?;
            let number = |key: &CStr| {
                let text: *const c_char = (api.GetKeyValue)(pairs, key.as_ptr());
                let text = (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy());
                text.and_then(|text| text.parse().ok()).unwrap_or_default()
            };
            let arena =
                Arena { in_use: number(c"InUse"), peak: number(c"MaxInUse"), reserved: number(c"TotalAllocated") };
            (api.ReleaseKeyValuePairs)(pairs);
            Ok(arena)
        }
    }
}

/// A line such as `VmRSS:    1234 kB`, in bytes.
fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_what_was_touched() {
        let before = Resident::read();
        let touched = vec![1_u8; 64 << 20];
        let after = Resident::read();
        assert!(after.peak >= before.now + (60 << 20), "{before:?} {after:?}");
        assert_eq!(touched[touched.len() - 1], 1);
    }
}
