//! Files that a user names for a command to write.
//!
//! **Invariant:** only a regular file is replaced, and only if the user says so. What a command reads, and
//! what belongs to a rewritten model, a run or a cache, is never replaced.

use std::collections::HashSet;
use std::fs::{self, File, FileType, Metadata};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, anyhow};
use lstc_base::files::{self, Draft};
use lstc_base::report::Hinted;
use lstc_base::scratch::Scratch;
use rustix::fs::makedev;

use crate::manifest::is_rewritten;
use crate::{cache, is_own, run};

/// Files that a command reads, whatever their names: by device and inode number.
#[derive(Clone, Debug, Default)]
pub struct Inputs(HashSet<(u64, u64)>);

impl Inputs {
    /// These files, and those that lie in these folders.
    pub fn of<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Inputs {
        let mut inputs = Inputs::default();
        paths.into_iter().for_each(|path| inputs.add(path.as_ref()));
        inputs
    }

    pub fn add(&mut self, path: &Path) {
        let Ok(metadata) = fs::metadata(path) else { return };
        self.0.insert(identity(&metadata));
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        self.0.extend(entries.filter_map(|entry| Some(identity(&fs::metadata(entry.path()).ok()?))));
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Where a command's output goes.
#[derive(Clone, Debug)]
pub struct Output {
    path: PathBuf,
    to: To,
    force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    /// A regular file, which appears whole.
    File,
    Stdout,
    Stderr,
    /// An open stream, or a device that discards its input: it is written to.
    Stream,
}

impl Output {
    /// The output that a user names, for a command that reads some files. `force` replaces a file.
    ///
    /// # Errors
    /// Something is there that is not to be replaced; a folder that cannot be written to.
    pub fn new(path: &Path, inputs: &Inputs, force: bool) -> anyhow::Result<Output> {
        let to = stream(path).unwrap_or(To::File);
        let opened = fs::metadata(path).ok().filter(|opened| to != To::File && opened.is_file());
        if opened.is_some_and(|opened| inputs.0.contains(&identity(&opened))) {
            return Err(is_read(path));
        }
        if to == To::File {
            check(path, inputs, force)?;
            files::check(path)?;
        }
        Ok(Output { path: path.to_owned(), to, force })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes it.
    ///
    /// # Errors
    /// From the file system, or from `write`; a file that has appeared there meanwhile.
    pub fn write(&self, write: impl FnOnce(&mut Draft) -> anyhow::Result<()>) -> anyhow::Result<()> {
        match self.to {
            To::File if self.force => files::replace(&self.path, write),
            To::File => files::create(&self.path, write),
            _ => self.pour(write),
        }
    }

    /// Writes a temporary file, and then its contents to a stream.
    fn pour(&self, write: impl FnOnce(&mut Draft) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let context = || format!("cannot write to `{}`", self.path.display());
        let scratch = Scratch::new().with_context(context)?;
        let whole = scratch.path().join("output");
        files::create(&whole, write)?;
        let mut stream = match self.to {
            // At its current position: opening a file again would begin at its start.
            To::Stdout => io::stdout().as_fd().try_clone_to_owned().map(File::from),
            To::Stderr => io::stderr().as_fd().try_clone_to_owned().map(File::from),
            _ => File::options().append(true).open(&self.path),
        }
        .with_context(context)?;
        let copied = File::open(whole).and_then(|mut whole| io::copy(&mut whole, &mut stream));
        copied.and_then(|_| stream.flush()).with_context(context)
    }
}

/// The stream that a path names; none if it names a file.
fn stream(path: &Path) -> Option<To> {
    let path = std::path::absolute(path).ok()?;
    let descriptor = ["/dev/fd", "/proc/self/fd"].iter().find_map(|folder| path.strip_prefix(folder).ok());
    let number = descriptor.and_then(|rest| rest.to_str()?.parse::<u32>().ok());
    match (path.to_str()?, number) {
        ("/dev/stdout", _) | (_, Some(1)) => Some(To::Stdout),
        ("/dev/stderr", _) | (_, Some(2)) => Some(To::Stderr),
        (_, Some(_)) => Some(To::Stream),
        _ => {
            let metadata = fs::symlink_metadata(&path).ok()?;
            let is_null = metadata.file_type().is_char_device() && metadata.rdev() == makedev(1, 3);
            is_null.then_some(To::Stream)
        }
    }
}

/// Whether a file may be written under this name.
///
/// # Errors
/// Something is there that is not to be replaced, or must not be.
pub fn check(path: &Path, inputs: &Inputs, force: bool) -> anyhow::Result<()> {
    let shown = path.display();
    if let Some(what) = owner(path) {
        let error = anyhow!("`{shown}` belongs to {what}, and will not be replaced");
        return Err(Hinted::new(error, "give the output another name").into());
    }
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.with_context(|| format!("cannot write `{shown}`"))?,
    };
    if !metadata.is_file() {
        let kind = kind(metadata.file_type());
        let error = anyhow!("`{shown}` is {kind}, not a regular file, and will not be replaced");
        return Err(Hinted::new(error, "give the output another name").into());
    }
    if inputs.0.contains(&identity(&metadata)) {
        return Err(is_read(path));
    }
    if !force {
        return Err(Hinted::new(anyhow!("`{shown}` already exists"), "--force replaces it").into());
    }
    Ok(())
}

fn is_read(path: &Path) -> anyhow::Error {
    let error = anyhow!("`{}` is a file that this command reads, and will not be replaced", path.display());
    Hinted::new(error, "give the output another name").into()
}

fn kind(of: FileType) -> &'static str {
    if of.is_dir() {
        "a folder"
    } else if of.is_symlink() {
        "a symbolic link"
    } else if of.is_fifo() {
        "a named pipe"
    } else if of.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// What a file of lstc's own belongs to.
fn owner(path: &Path) -> Option<String> {
    // Its parent folder, whatever path leads there.
    let Some(Component::Normal(name)) = path.components().next_back() else { return None };
    let (folder, name) = (files::parent(path).canonicalize().ok()?, name.to_str()?);
    let of = |what: &str| Some(format!("the {what} `{}`", folder.display()));
    if is_rewritten(&folder) && is_own(name) {
        of("rewritten model")
    } else if run::is_run(&folder) && run::is_own(name) {
        of("run")
    } else if cache::is_cache(&folder) && cache::is_own(name) {
        of("cache")
    } else {
        None
    }
}
