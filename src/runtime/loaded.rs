//! The loaded library: one a process.

use std::env;
use std::ffi::CStr;
use std::ptr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ort::AsPointer as _;
use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};

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
}

static LOADED: OnceLock<Runtime> = OnceLock::new();

impl Runtime {
    /// Loads `library`, or returns the runtime that was loaded from it before.
    ///
    /// ONNX Runtime sends no telemetry and collects none, unless the variable `ORT_DISABLE_TELEMETRY` is set to 0. It prints
    /// nothing, unless the variable `ORT_LOG` (`fatal`, `error`, `warning`, `info` or `verbose`) asks for its log on stderr:
    /// what fails is in the errors of this module.
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
        Ok(LOADED.get_or_init(|| Runtime { library: library.clone(), environment }))
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

    pub(super) fn environment(&self) -> &Environment {
        &self.environment
    }
}

/// Asks ONNX Runtime for no telemetry, before it begins.
///
/// Without this it describes the machine and the program in a file in the user's cache directory, to be sent later, when its
/// environment is made: before an environment can be told to do without.
fn collect_nothing() {
    const VARIABLE: &str = "ORT_DISABLE_TELEMETRY";
    if env::var_os(VARIABLE).is_none() {
        // SAFETY: Rust's own readers of the environment wait for each other. Of foreign code, what lstc loads is ONNX Runtime,
        // whose threads begin after this.
        unsafe { env::set_var(VARIABLE, "1") };
    }
}

/// Gives all sessions that ask for it one arena on the CPU, which grows by what is asked for: what one session leaves, the
/// next one uses.
///
/// ONNX Runtime's own way is an arena for each session, which grows by doubling.
fn share_arena(environment: &Environment) -> ort::Result<()> {
    const SAME_AS_REQUESTED: i32 = 1;
    const OWN_CHOICE: i32 = -1;
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
