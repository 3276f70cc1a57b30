//! `lstc runtime`: the ONNX Runtime library.

use std::fmt;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use lstc_base::report::{self, Bytes, Exit, Format, ProgressLine};
use lstc_runtime::install::{self, Installed, Progress, Request};
use lstc_runtime::remove::{Removed, Which, remove};
use lstc_runtime::{Device, Flavour, Look, Outcome};
use serde::Serialize;

/// Install, show and remove the ONNX Runtime library that lstc runs on
#[derive(Debug, Args)]
pub struct Runtime {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Install(Install),
    Show(Show),
    Remove(Remove),
}

impl Runtime {
    pub fn run(self) -> anyhow::Result<Exit> {
        match self.command {
            Command::Install(install) => install.run(),
            Command::Show(show) => show.run(),
            Command::Remove(remove) => remove.run(),
        }
    }
}

/// Fetch the ONNX Runtime library into the user's cache directory
#[derive(Debug, Args)]
#[command(
    long_about = "\
Fetch the ONNX Runtime library into the user's cache directory.

The library comes from a wheel of the Python package index, through pip, so that the index, proxy and credentials that \
pip is configured with are used. Only the shared libraries and their licences are unpacked; Python is not needed to run \
them. A wheel is used only if its SHA-256 is the one that this release of lstc was tested with.",
    after_long_help = "\
Examples:
  lstc runtime install
  lstc runtime install --cuda
  lstc runtime install --wheel onnxruntime-1.32.0-cp311-cp311-manylinux_2_28_x86_64.whl

The directory is $XDG_CACHE_HOME/lstc, or ~/.cache/lstc."
)]
struct Install {
    /// Install the build for NVIDIA GPUs (CUDA 13) with the CUDA libraries it needs; about 830 MB to fetch
    #[arg(
        long,
        long_help = "\
Install the build for NVIDIA GPUs (CUDA 13), with cuBLAS, cuRAND, NVRTC and the CUDA runtime beside it: about 830 MB to \
fetch, and 1.2 GB on the disk. The driver must be there already. cuDNN and cuFFT are left out: \
lstc uses operators that the CUDA provider runs without them."
    )]
    cuda: bool,

    /// Install from this wheel instead of through pip; give it once for each package
    #[arg(long, value_name = "FILE")]
    wheel: Vec<PathBuf>,

    /// Accept wheels whose SHA-256 is not a pinned one
    #[arg(long, requires = "wheel")]
    allow_unpinned: bool,

    /// Reinstall what is already installed
    #[arg(long)]
    force: bool,

    /// Format of the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Install {
    fn run(self) -> anyhow::Result<Exit> {
        let request = Request {
            flavour: if self.cuda { Flavour::Cuda } else { Flavour::Cpu },
            wheels: self.wheel,
            allow_unpinned: self.allow_unpinned,
            force: self.force,
        };
        let mut line = ProgressLine::default();
        let installed = install::install(&request, &mut |progress| notify(progress, &mut line))?;
        drop(line);
        report::data(&InstallReport::new(&installed), self.format)?;
        Ok(Exit::Done)
    }
}

fn notify(progress: Progress, line: &mut ProgressLine) {
    match progress {
        Progress::Waiting => report::note("waiting for another installation to finish"),
        Progress::Downloading { package } => {
            line.clear();
            report::note(format_args!("fetching {package} with pip"));
        }
        Progress::Arrived { bytes } => line.show(Bytes(bytes)),
        Progress::Unpinned { file, sha256 } => {
            line.clear();
            report::warning(format_args!("`{}` (sha256 {sha256}) is not pinned, but used anyway", file.display()));
        }
        Progress::Unpacking { package } => line.show(format_args!("unpacking {package}")),
    }
}

#[derive(Serialize)]
struct InstallReport {
    /// True if this command installed it; false if it was already installed.
    fresh: bool,
    version: String,
    flavour: String,
    directory: PathBuf,
    library: PathBuf,
    bytes: u64,
}

impl InstallReport {
    fn new(installed: &Installed) -> InstallReport {
        InstallReport {
            fresh: installed.fresh,
            version: installed.version.to_string(),
            flavour: installed.flavour.to_string(),
            directory: installed.directory.clone(),
            library: installed.library.clone(),
            bytes: installed.bytes,
        }
    }
}

impl fmt::Display for InstallReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.fresh { "installed" } else { "already installed" };
        let (version, flavour, size) = (&self.version, &self.flavour, Bytes(self.bytes));
        writeln!(f, "{state}: ONNX Runtime {version} ({flavour}), {size}, in {}", self.directory.display())
    }
}

/// Show which ONNX Runtime library is used, and where it was looked for
#[derive(Debug, Args)]
#[command(
    long_about = "\
Show which ONNX Runtime library is used, and where it was looked for.

The first of these that holds a library that is new enough is used: what `lstc runtime install` put into the cache directory; \
the `onnxruntime` package of the active Python environment; the directories of LD_LIBRARY_PATH and of the system. If \
ORT_DYLIB_PATH is set, only the file that it names is looked at.",
    after_long_help = "\
Examples:
  lstc runtime show
  lstc runtime show --device cuda
  lstc runtime show --format json | jq -r .library.path"
)]
struct Show {
    /// The device that the library must support: cpu, cuda or cuda:1
    #[arg(long, default_value_t)]
    device: Device,

    /// Format of the report
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Show {
    fn run(self) -> anyhow::Result<Exit> {
        let search = lstc_runtime::search(self.device);
        let looked = search.looked.iter().map(LookReport::new).collect();
        match search.into_library() {
            Ok(library) => {
                let loaded = lstc_runtime::Runtime::load(&library)?;
                let library = Some(LibraryReport::new(loaded));
                report::data(&ShowReport { library, looked }, self.format)?;
                Ok(Exit::Done)
            }
            Err(error) => {
                report::data(&ShowReport { library: None, looked }, self.format)?;
                Err(error.into())
            }
        }
    }
}

/// Remove what `lstc runtime install` fetched
#[derive(Debug, Args)]
#[command(
    long_about = "\
Remove what `lstc runtime install` fetched: the version that is named, or all of it. Other libraries, of Python or of the \
system, are not touched.",
    after_long_help = "\
Examples:
  lstc runtime remove
  lstc runtime remove 1.32.0
  lstc runtime remove 1.31.1-cuda"
)]
struct Remove {
    /// Which installation, as in 1.32.0, or 1.32.0-cpu if both builds are installed [default: all]
    #[arg(value_name = "VERSION")]
    which: Option<Which>,

    /// Format of the report
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Remove {
    fn run(self) -> anyhow::Result<Exit> {
        let mut line = ProgressLine::default();
        let removed = remove(self.which, &mut |progress| notify(progress, &mut line))?;
        drop(line);
        let removed = removed.iter().map(RemovedReport::new).collect();
        report::data(&RemoveReport { removed }, self.format)?;
        Ok(Exit::Done)
    }
}

#[derive(Serialize)]
struct RemoveReport {
    removed: Vec<RemovedReport>,
}

#[derive(Serialize)]
struct RemovedReport {
    version: String,
    flavour: String,
    directory: PathBuf,
    bytes: u64,
}

impl RemovedReport {
    fn new(removed: &Removed) -> RemovedReport {
        RemovedReport {
            version: removed.version.to_string(),
            flavour: removed.flavour.to_string(),
            directory: removed.directory.clone(),
            bytes: removed.bytes,
        }
    }
}

impl fmt::Display for RemoveReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.removed.iter().try_for_each(|r| {
            let (version, flavour, size) = (&r.version, &r.flavour, Bytes(r.bytes));
            writeln!(f, "removed: ONNX Runtime {version} ({flavour}), {size}, from {}", r.directory.display())
        })
    }
}

#[derive(Serialize)]
struct ShowReport {
    library: Option<LibraryReport>,
    looked: Vec<LookReport>,
}

#[derive(Serialize)]
struct LibraryReport {
    path: PathBuf,
    version: String,
    origin: String,
    providers: Vec<String>,
}

impl LibraryReport {
    fn new(loaded: &lstc_runtime::Runtime) -> LibraryReport {
        let library = loaded.library();
        LibraryReport {
            path: library.path.clone(),
            version: library.version.to_string(),
            origin: library.origin.to_string(),
            providers: loaded.providers(),
        }
    }
}

#[derive(Serialize)]
struct LookReport {
    origin: String,
    path: PathBuf,
    usable: bool,
    result: String,
}

impl LookReport {
    fn new(look: &Look) -> LookReport {
        LookReport {
            origin: look.origin.to_string(),
            path: look.path.clone(),
            usable: matches!(look.outcome, Outcome::Usable(_)),
            result: look.outcome.to_string(),
        }
    }
}

impl fmt::Display for ShowReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(library) = &self.library {
            writeln!(f, "ONNX Runtime {}", library.version)?;
            writeln!(f, "  library    {}", library.path.display())?;
            writeln!(f, "  from       {}", library.origin)?;
            writeln!(f, "  providers  {}\n", library.providers.join(", "))?;
        }
        let rows =
            self.looked.iter().map(|look| [look.origin.clone(), look.path.display().to_string(), look.result.clone()]);
        writeln!(f, "{}", report::table(["from", "looked at", "found"], rows))
    }
}
