//! Files that appear whole.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use lstc_graph::regular;
use rustix::fs::{CWD, Mode, OFlags, RenameFlags, renameat_with};
use rustix::process::umask;

use crate::interrupt;
use crate::scratch::Scratch;

/// A file that is being written under a temporary name.
#[derive(Debug)]
pub struct Draft {
    file: File,
    path: PathBuf,
}

impl Draft {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The parent folder of a path.
pub fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new("."))
}

/// Writes a file under a temporary name, syncs it, and renames it: a reader finds either the earlier file or the whole new one, and a
/// process that is killed leaves the earlier one. The permissions are those that the process's mask allows, and none that the
/// earlier file did not have.
///
/// # Errors
/// From the file system, e.g. no space; from `write`. The earlier file is then as it was.
pub fn replace(path: &Path, write: impl FnOnce(&mut Draft) -> anyhow::Result<()>) -> anyhow::Result<()> {
    put(path, write, |from, to| fs::rename(from, to))
}

/// As [`replace`], for a file that does not exist yet.
///
/// # Errors
/// As [`replace`]; a file that has appeared there meanwhile.
pub fn create(path: &Path, write: impl FnOnce(&mut Draft) -> anyhow::Result<()>) -> anyhow::Result<()> {
    put(path, write, rename_new)
}

fn put(
    path: &Path,
    write: impl FnOnce(&mut Draft) -> anyhow::Result<()>,
    rename: impl FnOnce(&Path, &Path) -> io::Result<()>,
) -> anyhow::Result<()> {
    let (folder, context) = (parent(path), || format!("cannot write `{}`", path.display()));
    // In a folder of its own: `write` may put other files beside it.
    let scratch = Scratch::new_in(folder).with_context(context)?;
    let temporary = scratch.path().join("file");
    let mut draft = Draft { file: File::create_new(&temporary).with_context(context)?, path: temporary };
    let mode = draft.file.metadata().with_context(context)?.permissions().mode();
    write(&mut draft).with_context(context)?;
    // By its name: `write` may have put another file there.
    let written = File::open(draft.path()).with_context(context)?;
    let earlier = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file);
    let mode = earlier.map_or(mode, |earlier| mode & earlier.permissions().mode());
    written.set_permissions(Permissions::from_mode(mode)).with_context(context)?;
    written.sync_all().with_context(context)?;
    let held = interrupt::hold();
    rename(draft.path(), path).with_context(context)?;
    drop(held);
    File::open(folder).and_then(|folder| folder.sync_all()).with_context(context)
}

/// Renames a file to a name that is free.
///
/// # Errors
/// From the file system; a name that is not free.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system that cannot do it in one step.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if fs::symlink_metadata(to).is_err() => {
            fs::rename(from, to)
        }
        done => Ok(done?),
    }
}

/// Copies a small file to a name that is free. Users who could not read the original cannot read the copy.
///
/// # Errors
/// From the file system.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = regular::open(from)?;
    let mode = source.metadata()?.permissions().mode();
    let mut target = File::options().write(true).create_new(true).mode(mode & 0o666).open(to)?;
    io::copy(&mut source, &mut target).map(drop)
}

/// Opens a file to append to it, and creates it if it does not exist. A symbolic link is not followed.
///
/// # Errors
/// From the file system; a link, or something else that is not a regular file.
pub fn append(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new().append(true).create(true).custom_flags(flags.bits() as i32).open(path);
    let file = file.map_err(|error| match rustix::io::Errno::from_io_error(&error) {
        Some(rustix::io::Errno::LOOP) => io::Error::new(error.kind(), "it is a symbolic link, which is not followed"),
        _ => error,
    })?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok(file)
}

/// Lets no user read what this process writes from now on who cannot read these files.
pub fn keep_private<P: AsRef<Path>>(read: impl IntoIterator<Item = P>) {
    let modes = read.into_iter().filter_map(|path| Some(fs::metadata(path).ok()?.permissions().mode()));
    let all = modes.fold(0o777, |all, mode| all & mode);
    let mut denied = Mode::empty();
    denied.set(Mode::RWXG, all & 0o040 == 0);
    denied.set(Mode::RWXO, all & 0o004 == 0);
    let now = umask(Mode::empty());
    umask(now | denied);
}

/// Checks that a file can be written, before there is anything to write.
///
/// # Errors
/// A folder that is missing or not writable.
pub fn check(path: &Path) -> anyhow::Result<()> {
    let made = Scratch::new_in(parent(path)).map(drop);
    // Without the temporary name.
    made.map_err(|e| io::Error::from(e.kind())).with_context(|| format!("cannot write `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("it is there").permissions().mode() & 0o777
    }

    #[test]
    fn what_fails_half_way_leaves_the_earlier_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a");
        replace(&path, |f| Ok(f.write_all(b"one")?)).expect("it is written");
        let failed = replace(&path, |f| {
            f.write_all(b"tw")?;
            anyhow::bail!("no more")
        });
        assert!(failed.is_err_and(|e| e.to_string().contains("cannot write")));
        assert_eq!(fs::read(&path).expect("it is there"), b"one");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }

    #[test]
    fn no_one_may_read_more_than_before() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [path, plain] = ["a", "plain"].map(|name| folder.path().join(name));
        File::create(&plain).expect("a file");
        replace(&path, |f| Ok(f.write_all(b"one")?)).expect("it is written");
        assert_eq!(mode(&path), mode(&plain), "as the mask of the process has it");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("it is ours");
        replace(&path, |f| Ok(f.write_all(b"two")?)).expect("it is written");
        assert_eq!(mode(&path), 0o600);
        let copied = folder.path().join("copied");
        copy(&path, &copied).expect("it is copied");
        assert_eq!((mode(&copied), fs::read(&copied).expect("it is there")), (0o600, b"two".to_vec()));
    }

    #[test]
    fn what_is_there_is_not_created() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a");
        create(&path, |f| Ok(f.write_all(b"one")?)).expect("it is written");
        assert!(create(&path, |f| Ok(f.write_all(b"two")?)).is_err());
        assert_eq!(fs::read(&path).expect("it is there"), b"one");
    }
}
