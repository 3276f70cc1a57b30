//! The loaded library: one per process.

use std::env;
use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ort::AsPointer as _;
use ort::environment::Environment;
use ort::ep::{self, ExecutionProvider as _};
use ort::logging::LogLevel;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};

use super::binding::memory;
use super::cuda::Cuda;
use super::error::{Error, Result};
use super::library::Library;
use super::session::SessionBuilder;

/// ONNX Runtime, loaded into this process.
///
/// **Invariant:** there is one in a process, and it lives as long as the process: ONNX Runtime's environment is global
/// and cannot be made a second time.
#[derive(Debug)]
pub struct Runtime {
    library: Library,
    environment: Environment,
    /// The opened CUDA devices.
    devices: Mutex<Vec<&'static Cuda>>,
}

static LOADED: OnceLock<Runtime> = OnceLock::new();

impl Runtime {
    /// Loads `library`, or returns the runtime that was loaded from it before.
    ///
    /// ONNX Runtime sends no telemetry and collects none, unless the variable `ORT_DISABLE_TELEMETRY` is set to 0. It prints
    /// nothing, unless the variable `ORT_LOG` (`fatal`, `error`, `warning`, `info` or `verbose`) asks for its log on stderr:
    /// failures are in this module's errors.
    ///
    /// # Errors
    /// The library does not load, or another one is already loaded.
    pub fn load(library: &Library) -> Result<&'static Runtime> {
        static LOADING: Mutex<()> = Mutex::new(());
        let _alone = LOADING.lock().unwrap_or_else(PoisonError::into_inner);

        if let Some(runtime) = LOADED.get() {
            return if runtime.library.path == library.path {
                Ok(runtime)
            } else {
                Err(Error::AlreadyLoaded { loaded: runtime.library.path.clone(), asked: library.path.clone() })
            };
        }
        collect_nothing();
        let builder =
            ort::init_from(&library.path).map_err(|source| Error::Load { path: library.path.clone(), source })?;
        let builder = builder.with_name("lstc").with_telemetry(false);
        let environment = if env::var_os("ORT_LOG").is_some() {
            builder.build()
        } else {
            let environment = builder.with_logger(Arc::new(|_, _, _, _, _| {})).build();
            environment.inspect(|environment| environment.set_log_level(LogLevel::Error))
        };
        let environment = environment.map_err(|source| Error::Start { source })?;
        share_arena(&environment).map_err(|source| Error::Start { source })?;
        Ok(LOADED.get_or_init(|| Runtime { library: library.clone(), environment, devices: Mutex::default() }))
    }

    /// The library that was loaded.
    pub fn library(&self) -> &Library {
        &self.library
    }

    /// The execution providers that the library was built with; whether one of them works here shows in a session.
    pub fn providers(&self) -> Vec<String> {
        let mut names = ptr::null_mut();
        let mut count = 0;
        let api = ort::api();
        // SAFETY: the calls follow the C API: the list is owned by the caller until it is released, and it holds
        // `count` NUL-terminated names where the status is null.
        unsafe {
            let status = (api.GetAvailableProviders)(&mut names, &mut count);
            if ort::Error::result_from_status(status).is_err() || names.is_null() {
                return Vec::new();
            }
            let count = usize::try_from(count).unwrap_or(0);
            let list = std::slice::from_raw_parts(names, count)
                .iter()
                .map(|&name| CStr::from_ptr(name).to_string_lossy().into_owned())
                .collect();
            let _ = ort::Error::result_from_status((api.ReleaseAvailableProviders)(names, count as i32));
            list
        }
    }

    /// A session to be set up: on the CPU, optimised, with as many threads as there are cores.
    pub fn session(&self) -> SessionBuilder<'_> {
        SessionBuilder::new(self)
    }

    /// The CUDA device of this index, opened if necessary.
    ///
    /// # Errors
    /// A library without CUDA, or without what it needs; no such device.
    pub fn cuda(&self, index: u32) -> Result<&'static Cuda> {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = devices.iter().find(|device| device.index() == index) {
            return Ok(device);
        }
        let library = &self.library.path;
        if !self.providers().iter().any(|name| name == ep::CUDA::NAME) {
            return Err(Error::WithoutCuda { path: library.clone() });
        }
        let directory = library.parent().unwrap_or(Path::new("."));
        preload(directory);
        // The provider is loaded first: without it, ONNX Runtime ends the process instead of refusing an arena.
        let provider = ep::CUDA::default().build().error_on_failure();
        let options = ort::session::Session::builder(&self.environment).map_err(|source| Error::Options { source })?;
        options.with_execution_providers([provider]).map_err(|error| Error::device(index, error.into()))?;
        let device: &'static Cuda = Box::leak(Box::new(Cuda::open(directory, index)?));
        share_device_arena(&self.environment, device)?;
        devices.push(device);
        Ok(device)
    }

    pub(super) fn environment(&self) -> &Environment {
        &self.environment
    }
}

/// Loads NVIDIA's libraries, each after those that it needs: the provider asks for them by name, and the loader then finds
/// them loaded. Missing ones are left to the system's search path.
fn preload(directory: &Path) {
    for name in ep::cuda::CUDA_DYLIBS.iter().chain(ep::cuda::CUDNN_DYLIBS) {
        if let Some(file) = nvidia(directory, name) {
            // A failure shows, with its name, when the provider needs the library.
            let _ = ort::util::preload_dylib(file);
        }
    }
}

/// A library of NVIDIA's: beside ONNX Runtime's, or where NVIDIA's own Python packages have it, beside the package `onnxruntime`.
pub(super) fn nvidia(directory: &Path, name: &str) -> Option<PathBuf> {
    let packages = directory.join("../../nvidia");
    let folders = [directory.to_owned(), packages.join("cu13/lib"), packages.join("cudnn/lib")];
    folders.into_iter().map(|folder| folder.join(name)).find(|file| file.exists())
}

/// Turns ONNX Runtime's telemetry off before it starts.
///
/// Without this it describes the machine and the program in a file in the user's cache directory, to be sent later, when its
/// environment is made: before an environment could be asked not to.
fn collect_nothing() {
    const VARIABLE: &str = "ORT_DISABLE_TELEMETRY";
    if env::var_os(VARIABLE).is_none() {
        // SAFETY: Rust's own readers of the environment wait for each other. Of foreign code, what lstc loads is ONNX Runtime,
        // whose threads begin after this.
        unsafe { env::set_var(VARIABLE, "1") };
    }
}

/// As [`share_arena`], on a CUDA device.
fn share_device_arena(environment: &Environment, device: &Cuda) -> Result<()> {
    let index = device.index().to_string();
    let options = [
        (c"device_id".to_owned(), CString::new(index).expect("a number has no NUL")),
        (c"arena_extend_strategy".to_owned(), c"kSameAsRequested".to_owned()),
    ];
    let keys: Vec<_> = options.iter().map(|(key, _)| key.as_ptr()).collect();
    let values: Vec<_> = options.iter().map(|(_, value)| value.as_ptr()).collect();
    let memory = memory(AllocationDevice::CUDA, device.index()).map_err(|source| Error::Start { source })?;
    let mut arena = ptr::null_mut();
    let api = ort::api();
    // SAFETY: as in `share_arena`; the options are strings of this function, and their count is right.
    unsafe {
        let made = (api.CreateArenaCfg)(0, SAME_AS_REQUESTED, OWN_CHOICE, OWN_CHOICE, &mut arena);
        ort::Error::result_from_status(made).map_err(|source| Error::Start { source })?;
        let done = (api.CreateAndRegisterAllocatorV2)(
            environment.ptr().cast_mut(),
            c"CUDAExecutionProvider".as_ptr(),
            memory.ptr(),
            arena,
            keys.as_ptr(),
            values.as_ptr(),
            keys.len(),
        );
        (api.ReleaseArenaCfg)(arena);
        ort::Error::result_from_status(done).map_err(|source| Error::device(device.index(), source))
    }
}

/// An arena that grows by the requested size; its other sizes are ONNX Runtime's choice.
const SAME_AS_REQUESTED: i32 = 1;
const OWN_CHOICE: i32 = -1;

/// Gives all sessions that ask for it one arena on the CPU, which grows by the requested size: each session reuses what an
/// earlier one released.
///
/// By default ONNX Runtime has an arena for each session, which grows by doubling.
fn share_arena(environment: &Environment) -> ort::Result<()> {
    let memory = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Arena, MemoryType::Default)?;
    let mut arena = ptr::null_mut();
    let api = ort::api();
    // SAFETY: the calls follow the C API. The environment and the memory's description outlive them; the configuration is
    // copied, and released here where it was made.
    unsafe {
        let made = (api.CreateArenaCfg)(0, SAME_AS_REQUESTED, OWN_CHOICE, OWN_CHOICE, &mut arena);
        ort::Error::result_from_status(made)?;
        let done = (api.CreateAndRegisterAllocator)(environment.ptr().cast_mut(), memory.ptr(), arena);
        (api.ReleaseArenaCfg)(arena);
        ort::Error::result_from_status(done)
    }
}
