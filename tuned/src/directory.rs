//! Directories that appear complete: written under a temporary name, then renamed.
//!
//! **Invariant:** a directory that is replaced holds only what a rewrite wrote there and no one has changed, or what a run that failed
//! to start left.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use lstc_base::files::parent;
use lstc_base::interrupt;
use lstc_base::report::Hinted;
use lstc_base::scratch::{self, Made, Scratch};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::intact::Own;
use crate::is_own;
use crate::manifest::is_rewritten;
use crate::run;

/// Files that an error names; the rest are counted.
const MAX_LISTED: usize = 5;

/// Whether a directory may be written at `output`, for a model that must be kept.
///
/// # Errors
/// Something is there that is not to be replaced, or must not be.
pub fn check(model: &[PathBuf], output: &Path, force: bool) -> anyhow::Result<()> {
    let shown = output.display();
    if output.file_name().is_none() {
        bail!("`{shown}` does not name a directory that could be made");
    }
    let Ok(metadata) = fs::symlink_metadata(output) else { return Ok(()) };
    let is_empty = || fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_none());
    if metadata.is_dir() && is_empty() {
        return Ok(());
    }
    if !metadata.is_dir() || !is_rewritten(output) {
        let error = anyhow!("`{shown}` already exists, is not a rewritten model, and will not be replaced");
        return Err(Hinted::new(error, "write to another directory: -o DIR").into());
    }
    let mut foreign = Vec::new();
    collect(output, Path::new(""), &Own::of(output), &mut foreign).with_context(|| format!("cannot read `{shown}`"))?;
    if !foreign.is_empty() {
        foreign.sort_unstable();
        let more = foreign.len().saturating_sub(MAX_LISTED);
        let mut listed = foreign[..foreign.len() - more].join("\n  ");
        if more > 0 {
            listed += &format!("\n  and {more} more");
        }
        let error = anyhow!("`{shown}` holds files that `lstc rewrite` did not write and would delete\n  {listed}");
        return Err(Hinted::new(
            error,
            "move them elsewhere, also with --force, or write to another directory: -o DIR",
        )
        .into());
    }
    if !force {
        return Err(Hinted::new(anyhow!("`{shown}` already exists"), "--force replaces it").into());
    }
    let inside = |file: &PathBuf| match (file.canonicalize(), output.canonicalize()) {
        (Ok(file), Ok(output)) => file.starts_with(output),
        _ => false,
    };
    if model.iter().any(inside) {
        bail!("the model is in `{shown}`, which would be replaced");
    }
    Ok(())
}

/// Adds the files below a rewritten directory that no rewrite wrote. Empty folders do not count, nor does what runs left that failed
/// to start or were killed.
fn collect(directory: &Path, below: &Path, own: &Own, foreign: &mut Vec<String>) -> anyhow::Result<()> {
    let folder = directory.join(below);
    for entry in fs::read_dir(&folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let (path, shown) = (entry.path(), below.join(&name));
        let named = |what: &str| format!("`{}`{what}", shown.display());
        if !entry.file_type()?.is_dir() {
            let as_written = name.to_str().filter(|name| below == Path::new("") && is_own(name));
            let stranger = as_written.map_or(Ok(Some("")), |name| own.stranger(name))?;
            if let Some(why) = stranger.filter(|_| !run::is_left(&folder, &name)) {
                foreign.push(named(why));
            }
        } else if run::is_run(&path) {
            foreign.push(named(", a training run"));
        } else if is_in_use(&path) {
            foreign.push(named(", which another process is using"));
        } else if !scratch::is_left(&path) {
            collect(directory, &shown, own, foreign)?;
        }
    }
    Ok(())
}

/// Whether a process is working in a folder: it holds its lock.
fn is_in_use(folder: &Path) -> bool {
    File::open(folder).is_ok_and(|folder| matches!(folder.try_lock(), Err(TryLockError::WouldBlock)))
}

/// A directory that is being written.
pub struct Unfinished {
    scratch: Scratch,
    content: PathBuf,
    _parents: Made,
}

impl Unfinished {
    pub fn path(&self) -> &Path {
        &self.content
    }
}

/// A new folder beside `output`, which is removed unless it is published.
///
/// # Errors
/// From the file system.
pub fn begin(output: &Path) -> anyhow::Result<Unfinished> {
    let parent = parent(output);
    let context = || format!("cannot create a folder in `{}`", parent.display());
    let parents = scratch::make(parent).with_context(context)?;
    let scratch = Scratch::new_in(parent).with_context(context)?;
    // Its permissions are those of any new folder, but no one else can reach it before it is published.
    let content = scratch.path().join("content");
    fs::create_dir(&content).with_context(context)?;
    Ok(Unfinished { scratch, content, _parents: parents })
}

/// Puts a finished folder in its place. With `force`, an earlier rewrite is replaced in the same step, and then
/// removed; anything else that has appeared there meanwhile is kept.
///
/// # Errors
/// From the file system, or as [`check`]; what is there is then unchanged.
pub fn publish(folder: Unfinished, model: &[PathBuf], output: &Path, force: bool) -> anyhow::Result<()> {
    let context = || format!("cannot rename the finished folder to `{}`", output.display());
    check(model, output, force)?;
    let held = interrupt::hold();
    // A rename takes the place of nothing, or of an empty directory; the system refuses any other.
    let occupied = fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_some());
    if force && occupied {
        exchange(folder.path(), output).with_context(context)?;
    } else {
        fs::rename(folder.path(), output).with_context(context)?;
    }
    drop(held);
    folder.scratch.close().context("the new directory is in place, but the temporary one cannot be removed")
}

/// Exchanges two directories' names, in one step if the file system can.
fn exchange(new: &Path, old: &Path) -> std::io::Result<()> {
    match renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            let aside: PathBuf = new.with_extension("old");
            fs::rename(old, &aside)?;
            if let Err(error) = fs::rename(new, old) {
                fs::rename(&aside, old)?;
                return Err(error);
            }
            fs::rename(&aside, new)
        }
        done => Ok(done?),
    }
}
