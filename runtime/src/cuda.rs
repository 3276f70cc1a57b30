//! A CUDA device as lstc itself uses it beside ONNX Runtime: one stream for all sessions, copies that the host does not wait for, memory.
//!
//! All sessions of a process run on the device's one stream. Each may read what an earlier one left, without the
//! host waiting in between.
//!
//! **Invariant:** pinned memory from which a copy was started is not written to before the copy is over.

use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::{Mutex, MutexGuard, PoisonError};

use libloading::os::unix::{Library, RTLD_NOW, Symbol};
use ort::value::DynValue;

use super::error::{Error, Result};
use super::loaded::nvidia;
use super::places::address;

/// The CUDA runtime that ONNX Runtime's provider is linked with.
const CUDART: &str = "libcudart.so.13";

/// Copies to the device that may be under way at once, and their bytes, before the host waits for the oldest.
const MOST_UNDER_WAY: usize = 512;
const MOST_BYTES: usize = 1 << 28;

/// Pieces of pinned memory that are kept for later copies.
const MOST_IDLE: usize = 64;

/// The functions of the CUDA runtime that lstc calls.
macro_rules! functions {
    ($($name:ident = $symbol:literal($($argument:ty),*);)*) => {
        struct Api {
            $($name: unsafe extern "C" fn($($argument),*) -> c_int,)*
            error_string: unsafe extern "C" fn(c_int) -> *const c_char,
            _library: Library,
        }

        impl Api {
            /// # Safety
            /// The library is a CUDA runtime of version 13, whose functions have these types.
            unsafe fn new(library: Library) -> std::result::Result<Api, libloading::Error> {
                // SAFETY: guaranteed by the caller.
                unsafe {
                    $(let $name: Symbol<unsafe extern "C" fn($($argument),*) -> c_int> = library.get($symbol)?;)*
                    let text: Symbol<unsafe extern "C" fn(c_int) -> *const c_char> = library.get("cudaGetErrorString")?;
                    Ok(Api { $($name: *$name,)* error_string: *text, _library: library })
                }
            }
        }
    };
}

type Handle = *mut c_void;

functions! {
    set_device = "cudaSetDevice"(c_int);
    get_device_count = "cudaGetDeviceCount"(*mut c_int);
    device_get_attribute = "cudaDeviceGetAttribute"(*mut c_int, c_int, c_int);
    mem_get_info = "cudaMemGetInfo"(*mut usize, *mut usize);
    malloc = "cudaMalloc"(*mut Handle, usize);
    free = "cudaFree"(Handle);
    host_alloc = "cudaHostAlloc"(*mut Handle, usize, c_uint);
    free_host = "cudaFreeHost"(Handle);
    memcpy_async = "cudaMemcpyAsync"(Handle, *const c_void, usize, c_int, Handle);
    memset_async = "cudaMemsetAsync"(Handle, c_int, usize, Handle);
    stream_create_with_flags = "cudaStreamCreateWithFlags"(*mut Handle, c_uint);
    stream_synchronize = "cudaStreamSynchronize"(Handle);
    event_create_with_flags = "cudaEventCreateWithFlags"(*mut Handle, c_uint);
    event_record = "cudaEventRecord"(Handle, Handle);
    event_query = "cudaEventQuery"(Handle);
    event_synchronize = "cudaEventSynchronize"(Handle);
    event_destroy = "cudaEventDestroy"(Handle);
}

/// Values of CUDA's enumerations.
mod value {
    use std::ffi::{c_int, c_uint};

    pub const NOT_READY: c_int = 600;
    pub const OUT_OF_MEMORY: c_int = 2;
    pub const HOST_TO_DEVICE: c_int = 1;
    pub const DEVICE_TO_HOST: c_int = 2;
    pub const DEVICE_TO_DEVICE: c_int = 3;
    /// Streams that do not wait for the default stream, and events without times.
    pub const NON_BLOCKING: c_uint = 1;
    pub const DISABLE_TIMING: c_uint = 2;
    pub const COMPUTE_CAPABILITY_MAJOR: c_int = 75;
    pub const COMPUTE_CAPABILITY_MINOR: c_int = 76;
}

/// A device, with the stream on which all work of this process runs. There is one for each device that was opened, and it lives as
/// long as the process, as ONNX Runtime's provider does.
pub struct Cuda {
    api: Api,
    index: u32,
    stream: Handle,
    copies: Mutex<Copies>,
}

#[derive(Default)]
struct Copies {
    /// In the order in which they were started.
    under_way: VecDeque<UnderWay>,
    idle: Vec<Pinned>,
}

/// A copy to the device, the event that marks its end, and what it reads.
struct UnderWay {
    over: Handle,
    bytes: usize,
    source: Source,
}

/// What a copy to the device reads.
enum Source {
    Pinned(Pinned),
    /// A tensor in pinned memory of ONNX Runtime's.
    Tensor {
        _kept: DynValue,
    },
}

// SAFETY: the handles are the CUDA runtime's, whose functions may be called from any thread.
unsafe impl Send for Cuda {}
// SAFETY: as above; what changes is behind a lock.
unsafe impl Sync for Cuda {}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cuda({})", self.index)
    }
}

impl Cuda {
    /// Opens a device. `directory` is where ONNX Runtime's library lies, and NVIDIA's beside it, unless the system has them.
    ///
    /// # Errors
    /// No CUDA runtime; no such device, or one that cannot be used.
    pub(super) fn open(directory: &Path, index: u32) -> Result<Cuda> {
        let name = nvidia(directory, CUDART).map_or_else(|| CUDART.into(), PathBuf::into_os_string);
        let missing = |source: libloading::Error| Error::Cuda {
            index,
            missing: Some(CUDART.to_owned()),
            source: ort::Error::new(source.to_string()),
        };
        // SAFETY: the provider is linked with this very library, whose initialisers it runs too.
        let library = unsafe { Library::open(Some(name), RTLD_NOW) }.map_err(missing)?;
        // SAFETY: it is the CUDA runtime of version 13, by its name.
        let api = unsafe { Api::new(library) }.map_err(missing)?;
        let cuda = Cuda { api, index, stream: ptr::null_mut(), copies: Mutex::default() };
        let number = c_int::try_from(index).unwrap_or(c_int::MAX);
        let mut stream = ptr::null_mut();
        // SAFETY: the pointers are to values of this function.
        let opened = unsafe {
            let mut count = 0;
            cuda.call((cuda.api.get_device_count)(&mut count)).and_then(|()| match number < count {
                true => cuda.call((cuda.api.set_device)(number)),
                false => Err(Error::NoSuchDevice { index, count: u32::try_from(count).unwrap_or(0) }),
            })
        };
        opened.map_err(|error| match error {
            Error::CudaCall { reason, .. } => Error::Cuda { index, missing: None, source: ort::Error::new(reason) },
            other => other,
        })?;
        // SAFETY: as above.
        cuda.call(unsafe { (cuda.api.stream_create_with_flags)(&mut stream, value::NON_BLOCKING) })?;
        Ok(Cuda { stream, ..cuda })
    }

    pub(super) fn index(&self) -> u32 {
        self.index
    }

    /// The stream, for sessions to run on.
    pub(super) fn stream(&self) -> *mut () {
        self.stream.cast()
    }

    /// The compute capability, as 75 for Turing and 80 for Ampere.
    ///
    /// # Errors
    /// From the CUDA runtime.
    pub fn capability(&self) -> Result<u32> {
        let index = c_int::try_from(self.index).unwrap_or(c_int::MAX);
        let read = |attribute| {
            let mut number = 0;
            // SAFETY: the pointer is to a value of this function.
            self.call(unsafe { (self.api.device_get_attribute)(&mut number, attribute, index) })?;
            Ok(u32::try_from(number).unwrap_or(0))
        };
        Ok(10 * read(value::COMPUTE_CAPABILITY_MAJOR)? + read(value::COMPUTE_CAPABILITY_MINOR)?)
    }

    /// Whether the device multiplies numbers of bf16: from Ampere on.
    ///
    /// # Errors
    /// From the CUDA runtime.
    pub fn has_bf16(&self) -> Result<bool> {
        Ok(self.capability()? >= 80)
    }

    /// Free bytes of the device's memory, and all of them.
    ///
    /// # Errors
    /// From the CUDA runtime.
    pub fn memory(&self) -> Result<(u64, u64)> {
        self.choose()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the pointers are to values of this function.
        self.call(unsafe { (self.api.mem_get_info)(&mut free, &mut total) })?;
        Ok((free as u64, total as u64))
    }

    /// Waits until all work that was started is finished.
    ///
    /// # Errors
    /// A failure on the device meanwhile.
    pub fn wait(&self) -> Result<()> {
        // SAFETY: the stream is this device's.
        self.call(unsafe { (self.api.stream_synchronize)(self.stream) })
    }

    /// Starts to copy bytes from the host to the device. They may change at once: the copy goes through pinned memory.
    pub(super) fn send(&'static self, to: Handle, bytes: &[u8]) -> Result<()> {
        let mut source = self.pinned(bytes.len())?;
        source.bytes_mut().copy_from_slice(bytes);
        self.start(to, source.memory.as_ptr(), bytes.len(), Source::Pinned(source))
    }

    /// Starts to copy a tensor that lies in pinned memory, and keeps it until that is over.
    pub(super) fn send_value(&self, to: Handle, tensor: DynValue, bytes: usize) -> Result<()> {
        self.start(to, address(&tensor)?, bytes, Source::Tensor { _kept: tensor })
    }

    fn start(&self, to: Handle, from: *const c_void, bytes: usize, source: Source) -> Result<()> {
        self.copy(to, from, bytes, value::HOST_TO_DEVICE)?;
        let over = self.mark().inspect_err(|_| drop(self.wait()))?;
        self.copies().under_way.push_back(UnderWay { over, bytes, source });
        Ok(())
    }

    fn copies(&self) -> MutexGuard<'_, Copies> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to copy from the device to pinned memory, which may be read once the event has occurred.
    fn fetch_pinned(&self, from: Handle, to: &Pinned) -> Result<Handle> {
        self.copy(to.memory.as_ptr(), from, to.length, value::DEVICE_TO_HOST)?;
        self.mark()
    }

    /// Copies from the device to the host, and waits for it.
    pub(super) fn fetch(&'static self, from: Handle, bytes: &mut [u8]) -> Result<()> {
        let pinned = self.pinned(bytes.len())?;
        let over = self.fetch_pinned(from, &pinned)?;
        self.come(over)?;
        bytes.copy_from_slice(pinned.bytes());
        self.give_back(pinned);
        Ok(())
    }

    /// Starts to copy within the device's memory.
    pub(super) fn copy_within(&self, to: Handle, from: Handle, bytes: usize) -> Result<()> {
        self.copy(to, from, bytes, value::DEVICE_TO_DEVICE)
    }

    fn copy(&self, to: Handle, from: *const c_void, bytes: usize, kind: c_int) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the callers pass memory of this many bytes, which lives until the copy is over.
        self.call(unsafe { (self.api.memcpy_async)(to, from, bytes, kind, self.stream) })
    }

    /// Makes this thread's calls go to this device: memory and events are made on the thread's current one.
    fn choose(&self) -> Result<()> {
        // SAFETY: a number is all that it takes.
        self.call(unsafe { (self.api.set_device)(c_int::try_from(self.index).unwrap_or(c_int::MAX)) })
    }

    /// An event that occurs when all work started so far is finished.
    fn mark(&self) -> Result<Handle> {
        self.choose()?;
        let mut event = ptr::null_mut();
        // SAFETY: the pointer is to a value of this function; the stream is this device's.
        unsafe {
            self.call((self.api.event_create_with_flags)(&mut event, value::DISABLE_TIMING))?;
            self.call((self.api.event_record)(event, self.stream))?;
        }
        Ok(event)
    }

    /// Whether an event has occurred.
    fn has_come(&self, event: Handle) -> Result<bool> {
        // SAFETY: the event was made by `mark`, and is destroyed by `come` alone.
        match unsafe { (self.api.event_query)(event) } {
            value::NOT_READY => Ok(false),
            status => self.call(status).map(|()| true),
        }
    }

    /// Waits for an event, and destroys it.
    fn come(&self, event: Handle) -> Result<()> {
        let come = match self.has_come(event) {
            // SAFETY: as in `has_come`.
            Ok(false) => self.call(unsafe { (self.api.event_synchronize)(event) }),
            other => other.map(drop),
        };
        // SAFETY: the event is not used any more.
        unsafe { (self.api.event_destroy)(event) };
        come
    }

    /// Pinned memory: that of a finished copy if it fits, otherwise new.
    fn pinned(&'static self, length: usize) -> Result<Pinned> {
        let mut copies = self.copies();
        while let Some(oldest) = copies.under_way.front() {
            let bytes: usize = copies.under_way.iter().map(|copy| copy.bytes).sum();
            let is_full = copies.under_way.len() >= MOST_UNDER_WAY || bytes > MOST_BYTES;
            if !is_full && !self.has_come(oldest.over)? {
                break;
            }
            let UnderWay { over, source, .. } = copies.under_way.pop_front().expect("it was seen just now");
            self.come(over)?;
            if let Source::Pinned(pinned) = source {
                copies.idle.push(pinned);
            }
        }
        let fits = |pinned: &Pinned| (length..=length.saturating_mul(2).max(4096)).contains(&pinned.capacity);
        if let Some(at) = copies.idle.iter().position(fits) {
            return Ok(Pinned { length, ..copies.idle.swap_remove(at) });
        }
        let kept = copies.idle.len().saturating_sub(MOST_IDLE);
        copies.idle.drain(..kept);
        drop(copies);
        self.choose()?;
        let mut memory = ptr::null_mut();
        let capacity = length.next_multiple_of(256).max(256);
        // SAFETY: the pointer is to a value of this function.
        self.call(unsafe { (self.api.host_alloc)(&mut memory, capacity, 0) })?;
        let memory = NonNull::new(memory).ok_or_else(|| self.failed("no memory was given"))?;
        Ok(Pinned { _owner: Owner(self, memory), memory, length, capacity })
    }

    fn give_back(&self, pinned: Pinned) {
        self.copies().idle.push(pinned);
    }

    /// Zeroed memory on the device.
    pub(super) fn allocate(&'static self, length: usize) -> Result<Block> {
        self.choose()?;
        let mut memory = ptr::null_mut();
        // SAFETY: the pointer is to a value of this function; the block was allocated with this length.
        unsafe {
            self.call((self.api.malloc)(&mut memory, length.max(1)))?;
            self.call((self.api.memset_async)(memory, 0, length.max(1), self.stream))?;
        }
        Ok(Block { cuda: self, memory, length })
    }

    /// Starts to read one number from the device; [`Awaited::get`] waits for it.
    pub(super) fn read_later(&'static self, from: Handle) -> Result<Awaited> {
        let pinned = self.pinned(size_of::<f32>())?;
        let over = self.fetch_pinned(from, &pinned)?;
        Ok(Awaited { cuda: self, coming: Some((over, pinned)) })
    }

    fn call(&self, status: c_int) -> Result<()> {
        match status {
            0 => Ok(()),
            value::OUT_OF_MEMORY => {
                Err(Error::OutOfMemory { source: ort::Error::new("the CUDA runtime: out of memory") })
            }
            _ => {
                // SAFETY: the function returns a text that is never freed.
                let text = unsafe { CStr::from_ptr((self.api.error_string)(status)) };
                Err(self.failed(&text.to_string_lossy()))
            }
        }
    }

    fn failed(&self, reason: &str) -> Error {
        Error::CudaCall { index: self.index, reason: reason.to_owned() }
    }
}

/// Pinned memory of the host: the device reads and writes it by itself.
#[derive(Debug)]
pub(super) struct Pinned {
    /// Frees it.
    _owner: Owner,
    memory: NonNull<c_void>,
    length: usize,
    capacity: usize,
}

/// Frees pinned memory.
struct Owner(&'static Cuda, NonNull<c_void>);

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pinned by {:?}", self.0)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // SAFETY: the memory is the CUDA runtime's, and it is not used any more.
        unsafe { (self.0.api.free_host)(self.1.as_ptr()) };
    }
}

// SAFETY: only the owner uses the memory.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: it was allocated with this length, and every bit pattern is a byte.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.length) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and there is one owner.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr().cast(), self.length) }
    }
}

/// Memory on a device.
#[derive(Debug)]
pub(super) struct Block {
    cuda: &'static Cuda,
    pub(super) memory: Handle,
    pub(super) length: usize,
}

// SAFETY: only the owner uses the memory, and any thread may free it.
unsafe impl Send for Block {}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: the memory is the CUDA runtime's, which frees it once the device is done with it.
        unsafe { (self.cuda.api.free)(self.memory) };
    }
}

/// A number of the device that is on its way to the host.
#[derive(Debug)]
pub struct Awaited {
    cuda: &'static Cuda,
    /// The event, and the number's destination; `None` once taken.
    coming: Option<(Handle, Pinned)>,
}

// SAFETY: only the owner uses the event.
unsafe impl Send for Awaited {}

impl Awaited {
    /// Waits for the number.
    pub(super) fn get(mut self) -> Result<f32> {
        let (over, pinned) = self.coming.take().expect("it is taken once");
        self.cuda.come(over)?;
        let bytes: [u8; 4] = pinned.bytes().try_into().expect("four bytes were asked for");
        self.cuda.give_back(pinned);
        Ok(f32::from_ne_bytes(bytes))
    }
}

impl Drop for Awaited {
    /// The device may still write to the memory.
    fn drop(&mut self) {
        if let Some((over, pinned)) = self.coming.take() {
            let _ = self.cuda.come(over);
            self.cuda.give_back(pinned);
        }
    }
}
