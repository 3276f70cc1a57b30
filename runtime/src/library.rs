//! Where an ONNX Runtime library may lie, and which one is used.

use std::env;
use std::error::Error as _;
use std::ffi::CStr;
use std::fmt;
use std::fs;
use std::io::{ErrorKind, Read};
use std::iter;
use std::mem;
use std::path::{self, Path, PathBuf};
use std::process::{Command, Stdio};
use std::ptr;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use lstc_graph::regular;

use super::error::{Error, Result, too_old};
use super::install;
use super::pins::Flavour;
use super::session::Device;
use super::trust;

/// The variable that names a library file and overrides every other place.
const VARIABLE: &str = "ORT_DYLIB_PATH";

/// The oldest library that provides the API lstc is built against.
pub(super) const OLDEST: Version = Version { major: 1, minor: ort::MINOR_VERSION, patch: 0 };

/// The version that ONNX Runtime reports, such as 1.32.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

impl Version {
    /// Reads `1.32.0`, with or without a patch number and whatever follows it (`1.33.0-dev`).
    pub fn parse(text: &str) -> Option<Version> {
        let mut numbers = text.split('.').map(|part| {
            let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            part[..digits].parse().ok()
        });
        let (major, minor) = (numbers.next()??, numbers.next()??);
        let patch = numbers.next().flatten().unwrap_or(0);
        Some(Version { major, minor, patch })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// How a library was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Named by `ORT_DYLIB_PATH`.
    Variable,
    /// Put into the user's cache directory by `lstc runtime install`.
    Installed,
    /// Part of the `onnxruntime` package of the active Python environment.
    Python,
    /// In `LD_LIBRARY_PATH` or a directory of the system.
    System,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Variable => VARIABLE,
            Origin::Installed => "lstc runtime install",
            Origin::Python => "Python package",
            Origin::System => "system",
        })
    }
}

/// A library file that exists, loads, and is new enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    pub path: PathBuf,
    pub version: Version,
    pub origin: Origin,
}

/// One place that was searched.
#[derive(Clone, Debug)]
pub struct Look {
    pub origin: Origin,
    /// The file, or the directory in which there is none.
    pub path: PathBuf,
    pub outcome: Outcome,
}

/// What was found in a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Usable(Version),
    Absent,
    TooOld(Version),
    /// A library without the CUDA provider beside it, where CUDA was asked for.
    WithoutCuda(Version),
    /// Installed, but others can write to it, or it is not what was installed.
    Untrusted(String),
    /// Not a library, not for this machine, or not ONNX Runtime.
    Broken(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Usable(version) => write!(f, "version {version}"),
            Outcome::Absent => f.write_str("no library there"),
            Outcome::TooOld(version) => f.write_str(&too_old(*version)),
            Outcome::WithoutCuda(version) => write!(f, "version {version}, without the CUDA provider beside it"),
            Outcome::Untrusted(reason) => write!(f, "not loaded: {reason}"),
            Outcome::Broken(reason) => write!(f, "does not load: {reason}"),
        }
    }
}

/// The library that is used, if any, and every place that was searched up to it, in order.
#[derive(Clone, Debug)]
pub struct Search {
    pub device: Device,
    pub library: Option<Library>,
    pub looked: Vec<Look>,
}

impl Search {
    /// The library, or why there is none.
    pub fn into_library(self) -> Result<Library> {
        if let Some(Look { path, outcome: Outcome::Untrusted(reason), .. }) = self.looked.last() {
            return Err(Error::Untrusted { path: path.clone(), reason: reason.clone() });
        }
        match (self.library, self.looked.first()) {
            (Some(library), _) => Ok(library),
            (None, Some(Look { origin: Origin::Variable, path, outcome })) => {
                Err(Error::Explicit { path: path.clone(), outcome: outcome.clone() })
            }
            (None, _) => Err(Error::NotFound { device: self.device, looked: self.looked }),
        }
    }

    fn look(&mut self, origin: Origin, path: &Path) {
        let outcome = examine(path, self.device, origin);
        if let Outcome::Usable(version) = outcome {
            self.library = Some(Library { path: path.to_owned(), version, origin });
        }
        self.looked.push(Look { origin, path: path.to_owned(), outcome });
    }
}

/// The library that serves `device`.
pub fn find(device: Device) -> Result<Library> {
    search(device).into_library()
}

/// Looks for a library that serves `device` and stops at the first.
///
/// In this order: the file that `ORT_DYLIB_PATH` names, and then no other; the user's cache directory; the `onnxruntime`
/// package of the Python environment that lstc itself is installed in, then of the active one; `LD_LIBRARY_PATH` and the
/// directories of the system.
pub fn search(device: Device) -> Search {
    let mut search = Search { device, library: None, looked: Vec::new() };
    if let Some(path) = variable(VARIABLE) {
        // Without a directory the loader would search its own path for the name.
        search.look(Origin::Variable, &path::absolute(&path).unwrap_or(path));
        return search;
    }
    for (origin, directory) in places(device) {
        let files = library_files(&directory);
        if files.is_empty() {
            search.looked.push(Look { origin, path: directory, outcome: Outcome::Absent });
            continue;
        }
        // No other library is silently used in its place.
        if origin == Origin::Installed
            && let Err(reason) = trust::check(&directory)
        {
            search.looked.push(Look { origin, path: directory, outcome: Outcome::Untrusted(reason) });
            return search;
        }
        for file in files {
            search.look(origin, &file);
            if search.library.is_some() {
                return search;
            }
        }
    }
    search
}

fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn places(device: Device) -> impl Iterator<Item = (Origin, PathBuf)> {
    let flavours: &[Flavour] = match device {
        Device::Cpu => &[Flavour::Cpu, Flavour::Cuda],
        Device::Cuda(_) => &[Flavour::Cuda],
    };
    let installed = install::directories(flavours).into_iter().map(|directory| (Origin::Installed, directory));
    let python = iter::once_with(python_packages).flatten().map(|directory| (Origin::Python, directory));
    let system = system_directories().into_iter().map(|directory| (Origin::System, directory));
    installed.chain(python).chain(system)
}

/// The `capi` directories of the `onnxruntime` package: of the environment that lstc was installed into with pip, and of the
/// active one, or of the `python3` that would run.
fn python_packages() -> Vec<PathBuf> {
    let own = env::current_exe().ok().and_then(|file| Some(file.parent()?.parent()?.to_owned()));
    // A prefix such as /usr/local is only mentioned if something is there.
    let mut found: Vec<PathBuf> = own.iter().flat_map(|prefix| capi(prefix)).filter(|place| place.is_dir()).collect();
    // Relative to the working directory, an environment would be any user's.
    let prefix = |name: &str| variable(name).filter(|prefix| prefix.is_absolute());
    let active: Vec<PathBuf> =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(prefix).flat_map(|prefix| capi(&prefix)).collect();
    if found.is_empty() && active.is_empty() {
        found.extend(ask_python().map(|package| package.join("capi")));
    }
    found.extend(active);
    found.dedup();
    found
}

/// Where the library of the package `onnxruntime` lies, or would lie, below an environment's prefix.
fn capi(prefix: &Path) -> Vec<PathBuf> {
    let Ok(versions) = fs::read_dir(prefix.join("lib")) else { return Vec::new() };
    let python = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("python3");
    let package = |version: fs::DirEntry| {
        // The second is what Debian calls it in its own Python.
        let packages = ["site-packages", "dist-packages"].map(|name| version.path().join(name));
        packages.into_iter().find(|folder| folder.is_dir()).map(|folder| folder.join("onnxruntime/capi"))
    };
    versions.flatten().filter(python).filter_map(package).collect()
}

/// Asks `python3` where its `onnxruntime` lies or would lie, without importing it. Packages in the working directory do
/// not count.
fn ask_python() -> Option<PathBuf> {
    const QUESTION: &str = "\
import sys
sys.path = [place for place in sys.path if place]
from importlib.util import find_spec
from sysconfig import get_path
spec = find_spec('onnxruntime')
found = spec and spec.submodule_search_locations
print(found[0] if found else get_path('platlib') + '/onnxruntime', end='')
";
    const PATIENCE: Duration = Duration::from_secs(3);
    /// In bytes.
    const LONGEST_PATH: u64 = 1 << 16;

    let mut python = Command::new("python3")
        .args(["-c", QUESTION])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let output = python.stdout.take()?;
    let (sender, answer) = mpsc::channel();
    // Whatever python3 starts may keep its output open for longer than it lives itself.
    thread::spawn(move || {
        let mut text = String::new();
        let read = output.take(LONGEST_PATH).read_to_string(&mut text);
        // No one listens after the time is up.
        let _ = sender.send(read.ok().map(|_| text));
    });
    let answer = answer.recv_timeout(PATIENCE).ok().flatten();
    // It has either answered, or takes too long.
    let _ = python.kill();
    let _ = python.wait();
    answer.filter(|answer| !answer.is_empty()).map(PathBuf::from)
}

fn system_directories() -> Vec<PathBuf> {
    let search_path = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    // An empty entry would mean the working directory.
    let mut directories: Vec<PathBuf> =
        env::split_paths(&search_path).filter(|directory| directory.is_absolute()).collect();
    let multiarch = format!("/usr/lib/{}-linux-gnu", env::consts::ARCH);
    for fixed in ["/usr/local/lib", "/usr/local/lib64", &multiarch, "/usr/lib64", "/usr/lib"] {
        directories.push(fixed.into());
    }
    directories
}

/// The files of a directory that are named as the library is, each once, the newest name first.
pub(super) fn library_files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("libonnxruntime.so"))
        .filter_map(|entry| fs::canonicalize(entry.path()).ok())
        .filter(|file| file.is_file())
        .collect();
    files.sort_by_key(|file| std::cmp::Reverse(version_in_name(file)));
    files.dedup();
    files
}

pub(super) fn version_in_name(file: &Path) -> Option<Version> {
    Version::parse(file.file_name()?.to_str()?.strip_prefix("libonnxruntime.so.")?)
}

fn examine(path: &Path, device: Device, origin: Origin) -> Outcome {
    // A library is read to its end, and a pipe has none.
    match regular::open(path) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::IsADirectory) => return Outcome::Absent,
        Err(error) => return Outcome::Broken(error.to_string()),
        Ok(_) => {}
    }
    match load_version(path) {
        Err(reason) => Outcome::Broken(reason),
        Ok(version) if version < OLDEST => Outcome::TooOld(version),
        // A library that the user names may find its provider elsewhere.
        Ok(version)
            if device != Device::Cpu
                && origin != Origin::Variable
                && !(has_cuda_beside(path) && offers_cuda(path).unwrap_or(false)) =>
        {
            Outcome::WithoutCuda(version)
        }
        Ok(version) => Outcome::Usable(version),
    }
}

fn has_cuda_beside(path: &Path) -> bool {
    path.with_file_name("libonnxruntime_providers_cuda.so").is_file()
}

/// Whether a library was built with CUDA. The packages `onnxruntime` and `onnxruntime-gpu` share a folder, and the first one's
/// library then has the second one's provider beside it, but cannot load it.
fn offers_cuda(path: &Path) -> Option<bool> {
    // SAFETY: it was loaded before, to ask its version.
    let library = mem::ManuallyDrop::new(unsafe { libloading::Library::new(path) }.ok()?);
    // SAFETY: the signatures are those of the C API of the version that is asked for, which the library has: its version is no
    // older. The list is the library's, which takes it back.
    unsafe {
        let base = library.get::<unsafe extern "C" fn() -> *const ort::sys::OrtApiBase>(b"OrtGetApiBase").ok()?;
        let api = ((*base()).GetApi)(ort::sys::ORT_API_VERSION).as_ref()?;
        let (mut names, mut count) = (ptr::null_mut(), 0);
        let refused = (api.GetAvailableProviders)(&raw mut names, &raw mut count);
        if !refused.0.is_null() {
            return None;
        }
        let name = |index: usize| CStr::from_ptr(*names.add(index)).to_bytes() == b"CUDAExecutionProvider";
        let offers = (0..usize::try_from(count).ok()?).any(name);
        let _ = (api.ReleaseAvailableProviders)(names, count);
        Some(offers)
    }
}

/// Loads a library to ask its version. It stays loaded: unloading C++ is the greater risk, and the one that is found is
/// used next.
pub(super) fn load_version(path: &Path) -> Result<Version, String> {
    // SAFETY: loading runs the initialisers of a file that the user, or a place that the user trusts, names as ONNX
    // Runtime; that is the whole point of loading at run time.
    let library = unsafe { libloading::Library::new(path) }.map_err(|error| {
        // The cause has the loader's own message.
        error.source().map_or_else(|| error.to_string(), ToString::to_string)
    })?;
    let library = mem::ManuallyDrop::new(library);
    // SAFETY: `OrtGetApiBase` has had this signature in every release of ONNX Runtime.
    let base = unsafe { library.get::<unsafe extern "C" fn() -> *const ort::sys::OrtApiBase>(b"OrtGetApiBase") }
        .map_err(|_| "it is not ONNX Runtime (no `OrtGetApiBase` in it)".to_owned())?;
    // SAFETY: the returned table is static, and the version a NUL-terminated string in it.
    let text = unsafe {
        let base = base().as_ref().ok_or("its `OrtGetApiBase` returns nothing")?;
        CStr::from_ptr((base.GetVersionString)()).to_string_lossy()
    };
    Version::parse(&text).ok_or_else(|| format!("it reports its version as `{text}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_far_as_they_are_numbers() {
        let version = |major, minor, patch| Some(Version { major, minor, patch });
        assert_eq!(Version::parse("1.32.0"), version(1, 32, 0));
        assert_eq!(Version::parse("1.33"), version(1, 33, 0));
        assert_eq!(Version::parse("1.33.1-dev+abc"), version(1, 33, 1));
        assert_eq!(Version::parse("1.x"), None);
        assert_eq!(Version::parse(""), None);
        assert!(Version::parse("1.9.0") < Version::parse("1.28.0"));
    }
}
