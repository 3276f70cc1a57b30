//! Directories that appear whole: written under a temporary name, then renamed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tempfile::TempDir;

use super::manifest::is_rewritten;
use crate::report::Hinted;

/// Begins the name of a folder that is being written; the process's number follows.
const PREFIX: &str = ".lstc-";

/// A folder of a process that is gone is removed when it is this old. Processes of other machines are not seen.
const STALE: Duration = Duration::from_secs(600);

/// The folder that a path lies in.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new("."))
}

/// Whether a directory may be written at `output`, for a model that must stay.
///
/// # Errors
/// Something is there and is not to be replaced, or may not be.
pub fn check(model: &[PathBuf], output: &Path, force: bool) -> anyhow::Result<()> {
    if output.file_name().is_none() {
        bail!("`{}` names no directory that could be made", output.display());
    }
    let Ok(metadata) = fs::symlink_metadata(output) else { return Ok(()) };
    let is_rewrite = is_rewritten(output);
    let is_empty = fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_none());
    if metadata.is_dir() && is_empty {
        return Ok(());
    }
    if !metadata.is_dir() || !is_rewrite {
        bail!("`{}` is there already and is no rewritten model: it will not be replaced", output.display());
    }
    let run = output.join(super::RUN);
    if run.exists() {
        let error = anyhow!("`{}` holds a training run, which would be lost", output.display());
        let hint = format!("write to another directory, or remove `{}` first", run.display());
        return Err(Hinted::new(error, hint).into());
    }
    if !force {
        let error = anyhow!("`{}` is there already", output.display());
        return Err(Hinted::new(error, "--force replaces it").into());
    }
    let inside = |file: &PathBuf| match (file.canonicalize(), output.canonicalize()) {
        (Ok(file), Ok(output)) => file.starts_with(output),
        _ => false,
    };
    if model.iter().any(inside) {
        bail!("the model lies in `{}`, which would be replaced", output.display());
    }
    Ok(())
}

/// A new folder beside `output`, which is removed unless it is published.
///
/// # Errors
/// From the file system.
pub fn begin(output: &Path) -> anyhow::Result<TempDir> {
    let parent = parent(output);
    fs::create_dir_all(parent).with_context(|| format!("cannot create `{}`", parent.display()))?;
    sweep(parent);
    tempfile::Builder::new()
        .prefix(&format!("{PREFIX}{}-", std::process::id()))
        .tempdir_in(parent)
        .with_context(|| format!("cannot create a folder in `{}`", parent.display()))
}

/// Removes what killed processes left.
fn sweep(parent: &Path) {
    let is_stale = |path: &Path| {
        let name = path.file_name()?.to_str()?.strip_prefix(PREFIX)?;
        let process = name.split('-').next()?.parse::<u32>().ok()?;
        let age = fs::symlink_metadata(path).ok()?.modified().ok()?.elapsed().ok()?;
        Some(age > STALE && !Path::new(&format!("/proc/{process}")).exists())
    };
    let Ok(entries) = fs::read_dir(parent) else { return };
    for path in entries.flatten().map(|e| e.path()) {
        if is_stale(&path) == Some(true) {
            // What cannot be removed is in nobody's way.
            let _ = fs::remove_dir_all(path);
        }
    }
}

/// Puts a finished folder in its place. An earlier rewrite gives way in the same step, where `force` says so, and is
/// then removed; anything else that has come there meanwhile stays.
///
/// # Errors
/// From the file system, or as [`check`]; what is there is then as it was.
pub fn publish(folder: TempDir, model: &[PathBuf], output: &Path, force: bool) -> anyhow::Result<()> {
    let context = || format!("cannot rename the finished folder to `{}`", output.display());
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).with_context(context)?;
    check(model, output, force)?;
    // A rename takes the place of nothing, or of an empty directory; the system refuses any other.
    let occupied = fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_some());
    if force && occupied {
        exchange(folder.path(), output).with_context(context)?;
        return folder.close().context("the new directory is in place, but the earlier one cannot be removed");
    }
    fs::rename(folder.path(), output).with_context(context)?;
    let _ = folder.keep(); // it has another name now
    Ok(())
}

/// Exchanges two directories' names, in one step where the file system can.
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
