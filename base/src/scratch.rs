//! Temporary folders: for unfinished output, and for what only this process reads.
//!
//! Such a folder is removed when it is dropped, and when a signal ends the process. A later command removes what a killed
//! process left: a folder is locked as long as its process lives, whatever its PID and machine.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process;

use crate::interrupt::{self, Passing, Registered};

/// The prefix of the folders' names; the process's number follows, for people.
const PREFIX: &str = ".lstc-";

/// An empty file in each folder: one of another's that is named alike has none.
const MARK: &str = ".temporary";

/// A folder of this process.
#[derive(Debug)]
pub struct Scratch {
    /// None once removed or kept.
    folder: Option<PathBuf>,
    _lock: File,
    _registered: Registered,
}

impl Scratch {
    /// One in the system's temporary folder.
    ///
    /// # Errors
    /// From the file system.
    pub fn new() -> io::Result<Scratch> {
        Scratch::new_in(&env::temp_dir())
    }

    /// One in a folder, accessible to this user alone.
    ///
    /// # Errors
    /// From the file system.
    pub fn new_in(parent: &Path) -> io::Result<Scratch> {
        sweep(parent);
        loop {
            let mut registry = interrupt::hold();
            let prefix = format!("{PREFIX}{}-", process::id());
            let folder = tempfile::Builder::new().prefix(&prefix).tempdir_in(parent)?;
            // Another process may have swept it meanwhile.
            if let Some(lock) = lock(folder.path())? {
                File::create_new(folder.path().join(MARK))?;
                let folder = folder.keep();
                let registered = registry.add(Passing::Folder(folder.clone()));
                return Ok(Scratch { folder: Some(folder), _lock: lock, _registered: registered });
            }
        }
    }

    pub fn path(&self) -> &Path {
        self.folder.as_deref().expect("it is removed or kept only as it is consumed")
    }

    /// Removes the folder.
    ///
    /// # Errors
    /// From the file system.
    pub fn close(mut self) -> io::Result<()> {
        self.folder.take().map_or(Ok(()), fs::remove_dir_all)
    }

    /// Leaves the folder where it is.
    pub fn keep(mut self) -> PathBuf {
        self.folder.take().expect("it is removed or kept only as it is consumed")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            // What cannot be removed now is swept later.
            let _ = fs::remove_dir_all(folder);
        }
    }
}

/// Locks a folder as its process does; none if it is locked or gone.
fn lock(folder: &Path) -> io::Result<Option<File>> {
    let file = match File::open(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => return Ok(None),
        // A file system without locks: nothing there is swept.
        Err(TryLockError::Error(_)) | Ok(()) => {}
    }
    let is_there = fs::metadata(folder).is_ok_and(|found| file.metadata().is_ok_and(|own| own.ino() == found.ino()));
    Ok(is_there.then_some(file))
}

/// Removes from a folder what killed processes left there.
pub fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|t| t.is_dir())
            && is_left(&path)
            && let Some(_lock) = abandoned(&path)
        {
            // A folder that cannot be removed does no harm.
            let _ = fs::remove_dir_all(path);
        }
    }
}

/// True for a temporary folder of this process, another, or a killed one: by its name, and what is in it.
pub fn is_left(folder: &Path) -> bool {
    let is_named = folder.file_name().and_then(OsStr::to_str).is_some_and(is_name);
    let is_empty = || fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    is_named && (fs::symlink_metadata(folder.join(MARK)).is_ok_and(|mark| mark.is_file()) || is_empty())
}

/// `.lstc-`, a number, `-`, and letters.
fn is_name(name: &str) -> bool {
    let parts = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-'));
    parts.is_some_and(|(process, rest)| process.parse::<u32>().is_ok() && !rest.is_empty())
}

/// The lock of a folder whose process is gone.
fn abandoned(folder: &Path) -> Option<File> {
    let file = File::open(folder).ok()?;
    file.try_lock().is_ok().then_some(file)
}

/// Folders that were created. Those that are empty when this is dropped, or when a signal ends the process, are removed.
#[derive(Debug, Default)]
pub struct Made {
    /// The outermost first.
    folders: Vec<(PathBuf, Registered)>,
}

impl Drop for Made {
    fn drop(&mut self) {
        for (folder, _) in self.folders.iter().rev() {
            // One that is not empty stays.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Creates a folder and its parents.
///
/// # Errors
/// From the file system.
pub fn make(folder: &Path) -> io::Result<Made> {
    let is_missing = |folder: &&Path| *folder != Path::new("") && fs::symlink_metadata(folder).is_err();
    let missing: Vec<&Path> = folder.ancestors().take_while(is_missing).collect();
    let mut registry = interrupt::hold();
    fs::create_dir_all(folder)?;
    let mut add = |folder: &&Path| (folder.to_path_buf(), registry.add(Passing::EmptyFolder(folder.to_path_buf())));
    Ok(Made { folders: missing.iter().rev().map(&mut add).collect() })
}
