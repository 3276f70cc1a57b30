//! Whether an installed library may be loaded: who owns it, who can write to it, and whether it is what was installed.
//!
//! A library runs as soon as it is loaded. One in the cache directory is loaded unasked, so only its owner and the superuser must be
//! able to replace it, and its hash was recorded when it was installed.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use lstc_base::hash::{State, blake3};
use lstc_graph::regular;
use serde::{Deserialize, Serialize};

/// What was installed, in its directory.
const RECORD: &str = "installed.json";

/// Bytes of the longest record that is read.
const LARGEST_RECORD: u64 = 1 << 20;

const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// A library as it was installed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Library {
    file: String,
    blake3: String,
    state: State,
}

/// Makes what was unpacked into a directory writable by its owner alone, and records its libraries.
///
/// # Errors
/// From the file system.
pub(super) fn seal(directory: &Path) -> anyhow::Result<()> {
    keep_to_owner(directory)?;
    let mut libraries = Vec::new();
    for file in files(directory)? {
        keep_to_owner(&file)?;
        let (name, hash) = (name(&file), hash(&file)?);
        libraries.push(Library { file: name, blake3: hash, state: State::new(&fs::metadata(&file)?) });
    }
    libraries.sort_by(|a, b| a.file.cmp(&b.file));
    let path = directory.join(RECORD);
    fs::write(&path, serde_json::to_vec_pretty(&libraries)?)
        .with_context(|| format!("cannot write `{}`", path.display()))?;
    Ok(keep_to_owner(&path)?)
}

/// Whether it was recorded what was installed in a directory.
pub(super) fn is_recorded(directory: &Path) -> bool {
    fs::symlink_metadata(directory.join(RECORD)).is_ok()
}

/// Removes write permission for group and others, where this user may.
///
/// # Errors
/// From the file system.
pub(super) fn keep_to_owner(path: &Path) -> io::Result<()> {
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & (GROUP_WRITES | OTHERS_WRITE) == 0 {
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(mode & !(GROUP_WRITES | OTHERS_WRITE)))
}

/// Whether the libraries of an installation may be loaded.
///
/// # Errors
/// Why they must not be loaded, in words.
pub(super) fn check(directory: &Path) -> Result<(), String> {
    let unreadable = |path: &Path, error: &io::Error| format!("`{}` cannot be read: {error}", path.display());
    let place = directory.canonicalize().map_err(|e| unreadable(directory, &e))?;
    let found = files(&place).map_err(|e| unreadable(&place, &e))?;
    // The folder that it was looked up in, too, if it is a link there.
    let named = directory.parent().unwrap_or(directory);
    let named = named.canonicalize().map_err(|e| unreadable(named, &e))?;
    let own: Vec<&Path> = [Some(place.as_path()), place.parent(), Some(&named)].into_iter().flatten().collect();
    for path in own.iter().copied().chain(found.iter().map(PathBuf::as_path)) {
        owned(path)?;
    }
    for path in place.ancestors().chain(named.ancestors()).filter(|path| !own.contains(path)) {
        not_open(path)?;
    }
    intact(&place, &found)
}

/// A path that belongs to this user or the superuser, and that no one else can write to.
fn owned(path: &Path) -> Result<(), String> {
    let metadata = metadata(path)?;
    let (owner, user) = (metadata.uid(), user(Metadata::uid));
    if owner != 0 && Some(owner) != user {
        return Err(format!("`{}` belongs to another user (uid {owner})", path.display()));
    }
    if metadata.mode() & (GROUP_WRITES | OTHERS_WRITE) != 0 {
        return Err(format!(
            "`{}` can be written to by other users: its mode is {:o}",
            path.display(),
            metadata.mode() & 0o7777
        ));
    }
    Ok(())
}

/// A folder above, in which others cannot replace it. Where each user has a group of their own, `umask 002` leaves that
/// group write permission.
fn not_open(path: &Path) -> Result<(), String> {
    let metadata = metadata(path)?;
    let mode = metadata.mode();
    let by_group = mode & GROUP_WRITES != 0 && metadata.gid() != 0 && Some(metadata.gid()) != user(Metadata::gid);
    if mode & STICKY == 0 && (by_group || mode & OTHERS_WRITE != 0) {
        return Err(format!(
            "`{}`, above it, can be written to by other users: its mode is {:o}",
            path.display(),
            mode & 0o7777
        ));
    }
    Ok(())
}

/// Each library is as it was installed. Earlier versions recorded nothing: their libraries cannot be checked.
fn intact(place: &Path, found: &[PathBuf]) -> Result<(), String> {
    let path = place.join(RECORD);
    let text = match regular::read_text(&path, LARGEST_RECORD) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(format!("`{}` is missing, so its libraries cannot be checked", path.display()));
        }
        read => read.map_err(|e| format!("`{}` cannot be read: {e}", path.display()))?,
    };
    owned(&path)?;
    let recorded: Vec<Library> =
        serde_json::from_str(&text).map_err(|e| format!("`{}` is damaged: {e}", path.display()))?;
    for file in found {
        let Some(library) = recorded.iter().find(|library| library.file == name(file)) else {
            return Err(format!("`{}` was not installed by lstc", file.display()));
        };
        if State::new(&metadata(file)?) == library.state {
            continue;
        }
        let hash = hash(file).map_err(|e| format!("`{}` cannot be read: {e}", file.display()))?;
        if hash != library.blake3 {
            return Err(format!("`{}` is damaged: it is not what was installed", file.display()));
        }
    }
    match recorded.iter().find(|library| !found.iter().any(|file| name(file) == library.file)) {
        Some(missing) => Err(format!("`{}` is missing", place.join(&missing.file).display())),
        None => Ok(()),
    }
}

/// The shared libraries of a directory.
fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let paths = fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    Ok(paths.into_iter().filter(|path| name(path).contains(".so")).collect())
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn hash(path: &Path) -> io::Result<String> {
    let hash = blake3(&mut regular::open(path)?, &AtomicBool::new(false))?;
    Ok(hash.expect("nothing stops it"))
}

fn metadata(path: &Path) -> Result<Metadata, String> {
    fs::metadata(path).map_err(|e| format!("`{}` cannot be read: {e}", path.display()))
}

/// The user or group ID of this process, from its folder in /proc.
fn user(number: impl Fn(&Metadata) -> u32) -> Option<u32> {
    fs::metadata("/proc/self").ok().map(|metadata| number(&metadata))
}
