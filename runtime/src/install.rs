//! Fetching ONNX Runtime: pinned wheels, checked, unpacked into the user's cache directory.
//!
//! * An installation is one directory, `<cache>/lstc/onnxruntime-<version>-<flavour>`, with the libraries side by side.
//! * It appears by one rename of a directory whose files are complete and on the disk: a directory of that name is a whole
//!   installation, even if others install at the same time or are killed.
//! * Nothing is unpacked from a file whose SHA-256 is not pinned, unless the user insists.

use std::env;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use lstc_base::hash;
use lstc_base::report::Advise;
use lstc_base::scratch::Scratch;
use lstc_graph::regular;

use super::error::AGAIN;
use super::library::{self, OLDEST, Version, library_files, load_version};
use super::pins::{Flavour, Package, Pin};
use super::pip::{self, PipError};
use super::trust;
use super::wheel::{self, WheelError};

/// What to install, and from what.
#[derive(Clone, Debug)]
pub struct Request {
    pub flavour: Flavour,
    /// Wheels to install from, one for each package; pip fetches them if there are none.
    pub wheels: Vec<PathBuf>,
    /// Whether wheels other than the pinned ones are accepted.
    pub allow_unpinned: bool,
    /// Whether to replace an existing installation.
    pub force: bool,
}

impl Request {
    /// The pinned wheels, through pip, unless they are installed already.
    pub fn new(flavour: Flavour) -> Request {
        Request { flavour, wheels: Vec::new(), allow_unpinned: false, force: false }
    }
}

/// What is installed.
#[derive(Clone, Debug)]
pub struct Installed {
    pub flavour: Flavour,
    pub version: Version,
    pub directory: PathBuf,
    pub library: PathBuf,
    /// The size of the directory's files.
    pub bytes: u64,
    /// Whether this call installed it; otherwise it was there before.
    pub fresh: bool,
}

/// What an installation reports on its progress.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// Another process is installing.
    Waiting,
    /// pip starts on a package.
    Downloading {
        package: &'a str,
    },
    /// So many bytes of all packages have arrived so far.
    Arrived {
        bytes: u64,
    },
    /// A wheel that is not pinned is used anyway.
    Unpinned {
        file: &'a Path,
        sha256: &'a str,
    },
    Unpacking {
        package: &'a str,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("there is no ONNX Runtime wheel for {flavour} on {machine}")]
    NoWheel { flavour: Flavour, machine: String },
    #[error("cannot find the cache directory: neither XDG_CACHE_HOME nor HOME is set")]
    NoCacheDirectory,
    #[error("{}", not_installed(home, there))]
    NotInstalled { home: PathBuf, there: Vec<String> },
    #[error("cannot use `{}`", path.display())]
    Files { path: PathBuf, source: io::Error },
    #[error("cannot fetch `{expected}`")]
    Pip { source: PipError, expected: &'static str },
    #[error(
        "`{}` is not the pinned wheel\n  expected sha256 {} ({})\n  found    sha256 {found}",
        file.display(), expected.sha256, expected.file
    )]
    NotPinned { file: PathBuf, expected: PinnedWheel, found: String },
    #[error("`{}` is for {machine}, not for this machine", file.display())]
    OtherMachine { file: PathBuf, machine: &'static str },
    #[error("`{}` is not a wheel of {}", file.display(), packages.join(", "))]
    OtherPackage { file: PathBuf, packages: Vec<&'static str> },
    #[error("wheels are missing: {}", files.join(", "))]
    MissingWheels { files: Vec<&'static str> },
    #[error("cannot unpack `{}`", file.display())]
    Wheel { file: PathBuf, source: WheelError },
    #[error("the installation in `{}` is not used: {reason}", directory.display())]
    Untrusted { directory: PathBuf, reason: String },
    #[error("cannot record what was installed")]
    Record { source: anyhow::Error },
    #[error("the wheel contains no ONNX Runtime library")]
    NoLibrary,
    #[error("the library in the wheel does not load: {reason}")]
    DoesNotLoad { reason: String },
    #[error("the library in the wheel is {}", super::error::too_old(*version))]
    TooOld { version: Version },
}

fn not_installed(home: &Path, there: &[String]) -> String {
    match there {
        [] => format!("no ONNX Runtime is installed in `{}`", home.display()),
        _ => format!("no such ONNX Runtime is installed in `{}`, which has {}", home.display(), there.join(", ")),
    }
}

/// The file name and the SHA-256 of a wheel that would have been accepted.
#[derive(Clone, Copy, Debug)]
pub struct PinnedWheel {
    pub file: &'static str,
    pub sha256: &'static str,
}

impl Advise for InstallError {
    fn hint(&self) -> Option<String> {
        match self {
            InstallError::NoWheel { .. } => {
                Some("set ORT_DYLIB_PATH to an ONNX Runtime library that was built for this machine".into())
            }
            InstallError::NoCacheDirectory => Some("set XDG_CACHE_HOME to a directory".into()),
            InstallError::Files { source, .. }
            | InstallError::Wheel { source: WheelError::Write { source, .. }, .. }
            | InstallError::Pip { source: PipError::Scratch { source, .. }, .. }
                if source.kind() == io::ErrorKind::StorageFull =>
            {
                Some("XDG_CACHE_HOME can name a directory on a larger disk".into())
            }
            InstallError::Pip { expected, .. } => Some(format!(
                "without pip or a network, copy `{expected}` from another machine and pass it with --wheel"
            )),
            InstallError::NotPinned { .. } => {
                Some("if you trust the wheel, --allow-unpinned installs it anyway".into())
            }
            InstallError::Untrusted { .. } => Some(AGAIN.to_owned()),
            InstallError::MissingWheels { .. } => Some("pass --wheel once for each of them".into()),
            _ => None,
        }
    }
}

/// Installs a library, or finds it installed.
pub fn install(request: &Request, progress: &mut dyn FnMut(Progress)) -> Result<Installed, InstallError> {
    let packages = request.flavour.packages();
    let pins = downloads(request.flavour)?;
    let home = home().ok_or(InstallError::NoCacheDirectory)?;
    fs::create_dir_all(&home).map_err(files(&home))?;
    // What is wrong with another user's folder is reported when the installation is checked.
    let _ = trust::keep_to_owner(&home);
    let _alone = lock(&home, progress)?;

    let pinned = directory(&home, request.flavour, request.flavour.version());
    // One that an earlier version installed is replaced: nothing shows whether it is what was installed.
    if !request.force
        && trust::is_recorded(&pinned)
        && let Some(installed) = installed(request.flavour, pinned)
    {
        trusted(&installed.directory)?;
        return Ok(installed);
    }
    let work = Scratch::new_in(&home).map_err(files(&home))?;
    let content = work.path().join("content");
    fs::create_dir(&content).map_err(files(&content))?;

    if request.wheels.is_empty() {
        let into = work.path().join("wheels");
        fs::create_dir(&into).map_err(files(&into))?;
        for (package, pin) in packages.iter().zip(pins) {
            let file = pip::download(package, pin, &into, progress)
                .map_err(|source| InstallError::Pip { source, expected: pin.file })?;
            let wheel = Wheel::identify(&file, &[(package, pin)], false, progress)?;
            wheel.unpack(&content, progress)?;
        }
    } else {
        let choice: Vec<_> = packages.iter().zip(pins).collect();
        let mut wheels = Vec::new();
        for file in &request.wheels {
            wheels.push(Wheel::identify(file, &choice, request.allow_unpinned, progress)?);
        }
        let missing: Vec<_> = choice
            .iter()
            .filter(|(package, _)| !wheels.iter().any(|wheel| wheel.package == *package))
            .map(|(_, pin)| pin.file)
            .collect();
        if !missing.is_empty() {
            return Err(InstallError::MissingWheels { files: missing });
        }
        for wheel in wheels {
            wheel.unpack(&content, progress)?;
        }
    }

    let library = library_files(&content).into_iter().next().ok_or(InstallError::NoLibrary)?;
    trust::seal(&content).map_err(|source| InstallError::Record { source })?;
    let version = load_version(&library).map_err(|reason| InstallError::DoesNotLoad { reason })?;
    if version < OLDEST {
        return Err(InstallError::TooOld { version });
    }
    let target = directory(&home, request.flavour, version);
    publish(&content, &target, work.path())?;
    trusted(&target)?;
    let installed = installed(request.flavour, target).ok_or(InstallError::NoLibrary)?;
    Ok(Installed { fresh: true, ..installed })
}

/// The directories in which a library of these flavours is installed or would be, the one to prefer first: by flavour in
/// the given order, then the pinned version, then the newest.
pub(super) fn directories(flavours: &[Flavour]) -> Vec<PathBuf> {
    let Some(home) = home() else { return Vec::new() };
    let installed = installations();
    let mut directories = Vec::new();
    for &flavour in flavours {
        let pinned = flavour.version();
        let mine = installed.iter().filter(|(of, version)| *of == flavour && *version != pinned);
        let mut others: Vec<Version> = mine.map(|(_, version)| *version).collect();
        others.sort();
        others.push(pinned);
        directories.extend(others.into_iter().rev().map(|version| directory(&home, flavour, version)));
    }
    directories
}

/// What is installed, by the names of the directories.
pub(super) fn installations() -> Vec<(Flavour, Version)> {
    let entries: Vec<_> = home().and_then(|home| fs::read_dir(home).ok()).into_iter().flatten().flatten().collect();
    let of = |flavour: Flavour| {
        let version = move |entry: &fs::DirEntry| installed_version(entry.file_name().to_str()?, flavour);
        entries.iter().filter_map(move |entry| Some((flavour, version(entry)?)))
    };
    Flavour::ALL.into_iter().flat_map(of).collect()
}

/// `<cache>/lstc`.
pub(super) fn home() -> Option<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(cache.join("lstc"))
}

pub(super) fn directory(home: &Path, flavour: Flavour, version: Version) -> PathBuf {
    home.join(format!("onnxruntime-{version}-{flavour}"))
}

/// Reads the version back from the name of an installation's directory.
fn installed_version(name: &str, flavour: Flavour) -> Option<Version> {
    let version = name.strip_prefix("onnxruntime-")?.strip_suffix(&flavour.to_string())?.strip_suffix('-')?;
    Version::parse(version)
}

fn trusted(directory: &Path) -> Result<(), InstallError> {
    trust::check(directory).map_err(|reason| InstallError::Untrusted { directory: directory.to_owned(), reason })
}

fn installed(flavour: Flavour, directory: PathBuf) -> Option<Installed> {
    let library = library_files(&directory).into_iter().next()?;
    let version = library::version_in_name(&library).unwrap_or(flavour.version());
    let bytes = pip::size_below(&directory);
    Some(Installed { flavour, version, directory, library, bytes, fresh: false })
}

/// The wheel to download for each package of a flavour.
fn downloads(flavour: Flavour) -> Result<Vec<&'static Pin>, InstallError> {
    let machine = env::consts::ARCH;
    let pins = flavour.packages().iter().map(|package| package.wheel(machine)).collect::<Option<_>>();
    pins.filter(|_| env::consts::OS == "linux")
        .ok_or_else(|| InstallError::NoWheel { flavour, machine: format!("{} {machine}", env::consts::OS) })
}

/// The lock is released when the file is closed, at the latest when the process ends.
pub(super) fn lock(home: &Path, progress: &mut dyn FnMut(Progress)) -> Result<File, InstallError> {
    let path = home.join("install.lock");
    let file = lstc_base::files::append(&path).map_err(files(&path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            progress(Progress::Waiting);
            file.lock().map_err(files(&path))?;
        }
        Err(TryLockError::Error(source)) => return Err(InstallError::Files { path, source }),
    }
    Ok(file)
}

/// A wheel whose SHA-256 was checked, by the very handle that it is unpacked from.
struct Wheel<'r> {
    path: &'r Path,
    file: File,
    package: &'static Package,
}

impl<'r> Wheel<'r> {
    /// Finds which of the packages a file is a wheel of: by its digest, or, where the digest need not be pinned, by its
    /// name.
    fn identify(
        path: &'r Path,
        choice: &[(&'static Package, &'static Pin)],
        allow_unpinned: bool,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Wheel<'r>, InstallError> {
        let mut file = regular::open(path).map_err(files(path))?;
        let found = hash::sha256(&mut file).map_err(files(path))?;
        for (package, wanted) in choice {
            if let Some(pin) = package.wheels.iter().find(|pin| pin.sha256 == found) {
                if pin.machine() != wanted.machine() {
                    return Err(InstallError::OtherMachine { file: path.to_owned(), machine: pin.machine() });
                }
                return Ok(Wheel { path, file, package });
            }
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let named = choice.iter().find(|(package, _)| package.has_wheel_named(&name));
        match named {
            Some((package, _)) if allow_unpinned => {
                progress(Progress::Unpinned { file: path, sha256: &found });
                Ok(Wheel { path, file, package })
            }
            None if allow_unpinned => Err(InstallError::OtherPackage {
                file: path.to_owned(),
                packages: choice.iter().map(|(package, _)| package.name).collect(),
            }),
            _ => {
                let (package, wanted) = named.unwrap_or(&choice[0]);
                let pin = package.wheels.iter().find(|pin| pin.file == name).unwrap_or(wanted);
                let expected = PinnedWheel { file: pin.file, sha256: pin.sha256 };
                Err(InstallError::NotPinned { file: path.to_owned(), expected, found })
            }
        }
    }

    fn unpack(self, into: &Path, progress: &mut dyn FnMut(Progress)) -> Result<(), InstallError> {
        progress(Progress::Unpacking { package: self.package.name });
        wheel::unpack(self.file, self.package, into)
            .map_err(|source| InstallError::Wheel { file: self.path.to_owned(), source })
    }
}

/// Makes `content` the installation at `target`. What was there before goes to `discard`.
fn publish(content: &Path, target: &Path, discard: &Path) -> Result<(), InstallError> {
    sync(content)?;
    if target.exists() {
        fs::rename(target, discard.join("replaced")).map_err(files(target))?;
    }
    fs::rename(content, target).map_err(files(target))?;
    sync(target.parent().unwrap_or(target))
}

fn sync(directory: &Path) -> Result<(), InstallError> {
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(files(directory))
}

pub(super) fn files(path: &Path) -> impl Fn(io::Error) -> InstallError {
    move |source| InstallError::Files { path: path.to_owned(), source }
}
