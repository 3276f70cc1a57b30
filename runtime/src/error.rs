//! What can go wrong between looking for ONNX Runtime and reading a result.

use std::path::PathBuf;

use lstc_base::report::Advise;

use super::library::{Look, OLDEST, Outcome, Version};
use super::pins::brought_by;
use super::session::Device;
use super::tensor::ElementType;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong between looking for ONNX Runtime and reading a result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no usable ONNX Runtime library was found{}", rejected(looked))]
    NotFound { device: Device, looked: Vec<Look> },

    #[error("ORT_DYLIB_PATH names `{}`: {outcome}", path.display())]
    Explicit { path: PathBuf, outcome: Outcome },

    #[error("the ONNX Runtime in `{}` is not used: {reason}", path.display())]
    Untrusted { path: PathBuf, reason: String },

    #[error("cannot load ONNX Runtime from `{}`", path.display())]
    Load { path: PathBuf, source: ort::LoadDynamicError },

    #[error(
        "this process runs on the ONNX Runtime at `{}` and cannot also load `{}`",
        loaded.display(),
        asked.display()
    )]
    AlreadyLoaded { loaded: PathBuf, asked: PathBuf },

    #[error("ONNX Runtime did not start")]
    Start { source: ort::Error },

    #[error("the ONNX Runtime at `{}` was built without CUDA", path.display())]
    WithoutCuda { path: PathBuf },

    #[error("cannot use CUDA device {index}{}", lacking(missing.as_deref()))]
    Cuda { index: u32, missing: Option<String>, source: ort::Error },

    #[error("this model needs cuDNN on CUDA, and `libcudnn.so.9` is missing")]
    WithoutCudnn { source: ort::Error },

    #[error("there is no CUDA device {index}: this machine has {count}, numbered from 0")]
    NoSuchDevice { index: u32, count: u32 },

    #[error("CUDA device {index} failed: {reason}")]
    CudaCall { index: u32, reason: String },

    #[error("cannot set up a session")]
    Options { source: ort::Error },

    #[error("cannot read the model `{}`", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },

    #[error("ONNX Runtime refuses {model}")]
    Model { model: String, source: ort::Error },

    #[error("`{name}` is a {kind}, and lstc supports tensors only")]
    NotATensor { name: String, kind: String },

    #[error("the model has no {direction} `{name}`; it has {}", known.join(", "))]
    NoSuchPort { direction: &'static str, name: String, known: Vec<String> },

    #[error("`{name}` is {expected}, not {found}")]
    WrongType { name: String, expected: ElementType, found: ElementType },

    #[error("`{name}` is {found}, which lstc does not read")]
    UnsupportedType { name: String, found: ElementType },

    #[error("ONNX Runtime failed while running the model")]
    Run { source: ort::Error },

    #[error("not enough memory to run the model")]
    OutOfMemory { source: ort::Error },
}

/// What to do about an installation that is not used.
pub(super) const AGAIN: &str =
    "`lstc runtime install --force` installs it again; only their owner may have write access to the folders above it";

/// What ONNX Runtime, CUDA and C++ say when there is no memory.
const OUT_OF_MEMORY: [&str; 3] = ["Failed to allocate memory", "out of memory", "bad_alloc"];

/// Reads the name out of `...: libcublas.so.13: cannot open shared object file: No such file or directory`.
fn missing_library(message: &str) -> Option<String> {
    let (before, _) = message.split_once(": cannot open shared object file")?;
    before.rsplit([' ', '/']).next().filter(|name| name.contains(".so")).map(str::to_owned)
}

impl Error {
    /// The error for a CUDA device that ONNX Runtime cannot use, or that lacks something.
    pub(super) fn device(index: u32, source: ort::Error) -> Error {
        Error::Cuda { index, missing: missing_library(source.message()), source }
    }

    /// The error for a model that ONNX Runtime refuses.
    pub(super) fn model(model: String, source: ort::Error) -> Error {
        match OUT_OF_MEMORY.iter().any(|words| source.message().contains(words)) {
            true => Error::OutOfMemory { source },
            false => Error::Model { model, source },
        }
    }

    /// The error for a run that failed.
    pub(super) fn run(source: ort::Error) -> Error {
        match OUT_OF_MEMORY.iter().any(|words| source.message().contains(words)) {
            true => Error::OutOfMemory { source },
            false if source.message().contains("cuDNN is unavailable") => Error::WithoutCudnn { source },
            false => Error::Run { source },
        }
    }
}

impl Advise for Error {
    fn hint(&self) -> Option<String> {
        match self {
            Error::NotFound { device: Device::Cpu, .. } => Some("`lstc runtime install` fetches one".into()),
            Error::NotFound { device: Device::Cuda(_), .. } => {
                Some("`lstc runtime install --cuda` fetches one for CUDA".into())
            }
            Error::Untrusted { .. } => Some(AGAIN.to_owned()),
            Error::Explicit { .. } => Some("unset ORT_DYLIB_PATH to let lstc look for a library itself".into()),
            Error::Cuda { missing: Some(library), .. } if library == DRIVER => {
                Some("libcuda.so.1 comes with the NVIDIA driver; without an NVIDIA GPU, use the CPU".into())
            }
            Error::Cuda { missing: Some(library), .. } => Some(match brought_by(library) {
                Some((package, true)) => format!(
                    "the Python package {package} contains it; `lstc runtime install --cuda` installs it next to ONNX Runtime"
                ),
                Some((package, false)) => from_package(package),
                None => "add the folder that contains it to LD_LIBRARY_PATH".to_owned(),
            }),
            Error::WithoutCudnn { .. } => Some(from_package("nvidia-cudnn-cu13")),
            Error::NoSuchDevice { .. } => Some("`--device cuda:0` is the first one, `--device cpu` needs none".into()),
            Error::WithoutCuda { .. } => Some(
                "`lstc runtime install --cuda` fetches one that has it; `lstc runtime show --device cuda` shows which is used"
                    .into(),
            ),
            _ => None,
        }
    }
}

fn from_package(package: &str) -> String {
    format!("`pip install {package}` provides it; LD_LIBRARY_PATH must include its folder")
}

/// The only CUDA library that no package ships.
const DRIVER: &str = "libcuda.so.1";

fn lacking(library: Option<&str>) -> String {
    library.map_or_else(String::new, |name| format!(": `{name}` is missing"))
}

/// The libraries that were there but could not serve, one a line.
fn rejected(looked: &[Look]) -> String {
    looked
        .iter()
        .filter(|look| look.outcome != Outcome::Absent)
        .map(|look| format!("\n  `{}`: {}", look.path.display(), look.outcome))
        .collect()
}

pub(super) fn too_old(version: Version) -> String {
    format!("version {version}, older than the {OLDEST} that lstc needs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_missing_library_is_read_from_the_message() {
        let message = "Failed to load library libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot \
                       open shared object file: No such file or directory";
        assert_eq!(missing_library(message).as_deref(), Some("libcublasLt.so.13"));
        assert_eq!(missing_library("CUDA execution provider is not enabled in this build."), None);
    }
}
