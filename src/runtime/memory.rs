//! What memory this process holds, as the kernel counts it, and what of it ONNX Runtime's arena holds, by its own count.

use std::ffi::{CStr, c_char};
use std::ptr;

use ort::AsPointer as _;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};

use super::binding::DeviceTensor;
use super::error::{Error, Result};
use super::session::{Device, Session};

/// Bytes of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// Resident now, shared files included.
    pub now: u64,
    /// The most that was resident at once.
    pub peak: u64,
}

impl Resident {
    /// Reads `/proc/self/status`; zeros where the kernel does not tell.
    pub fn read() -> Resident {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Resident { now: field(&status, "VmRSS:"), peak: field(&status, "VmHWM:") }
    }
}

/// Bytes that the machine can give without swapping, as `/proc/meminfo` tells.
pub fn available_memory() -> Option<u64> {
    let told = std::fs::read_to_string("/proc/meminfo").ok()?;
    Some(field(&told, "MemAvailable:")).filter(|bytes| *bytes > 0)
}

/// Bytes in the arena that sessions on the CPU share: values, and weights in the kernels' own layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arena {
    pub in_use: u64,
    /// The most that was in use at once.
    pub peak: u64,
    /// What the arena has of the process's memory.
    pub reserved: u64,
}

/// Where tensors for a session's inputs lie on the host: for one on the CPU in the arena that all of these share, so that what is
/// dropped leaves its room to the next, whose pages are there.
#[derive(Debug)]
pub struct HostMemory(Allocator);

impl HostMemory {
    /// A tensor in the host's memory. Whoever makes one writes to all of it first: what it holds before is nothing to build on.
    ///
    /// # Errors
    /// No memory.
    pub fn tensor(&self, dims: &[usize]) -> Result<DeviceTensor> {
        DeviceTensor::within(&self.0, Device::Cpu, dims)
    }
}

impl Session {
    /// # Errors
    /// From ONNX Runtime.
    pub fn host_memory(&self) -> Result<HostMemory> {
        match self.device {
            Device::Cpu => self.arena_allocator().map(HostMemory),
            Device::Cuda(_) => Ok(HostMemory(Allocator::default())),
        }
    }

    fn arena_allocator(&self) -> Result<Allocator> {
        let memory = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Arena, MemoryType::Default);
        Allocator::new(&self.session, memory.map_err(Error::run)?).map_err(Error::run)
    }

    /// Gives the arena of this session, and of all others on the CPU, room for so many bytes in one piece. Of a piece that no
    /// value has touched nothing is resident.
    ///
    /// An arena grows by what is asked for, piece by piece, and values cannot lie across two: batches of many sizes would
    /// leave it full of pieces that fit none.
    ///
    /// # Errors
    /// No memory.
    pub fn reserve(&self, bytes: u64) -> Result<()> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.arena_allocator()?.alloc::<u8>(bytes).map(drop).map_err(Error::run)
    }

    /// The arena of this session, and of all others on the CPU.
    ///
    /// # Errors
    /// A library that does not count.
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
