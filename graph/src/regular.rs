//! Files that a user names: opened only where they are regular files, without waiting, and read up to a limit.
//!
//! A named pipe would be waited on for ever, a device may have no end, and either may change what it is between two looks.
//! What Git leaves in place of a large file that was not fetched is refused too: it is a regular file, but never the one that was
//! meant.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// What a Git LFS pointer begins with, and bytes of the longest (<https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md>).
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
const LONGEST_POINTER: u64 = 1023;

/// Opens a regular file for reading.
///
/// # Errors
/// From the file system; a directory, a pipe, a socket or a device; a Git LFS pointer.
pub fn open(path: &Path) -> io::Result<File> {
    // Opening a device may do something to it already.
    check(&std::fs::metadata(path)?)?;
    // Another file may have taken its place: a pipe is not waited on, and what was opened decides.
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    let metadata = file.metadata()?;
    check(&metadata)?;
    let mut start = [0; POINTER.len()];
    let is_pointer = (POINTER.len() as u64..=LONGEST_POINTER).contains(&metadata.len())
        && file.read_exact_at(&mut start, 0).is_ok()
        && start == *POINTER;
    if is_pointer {
        let reason = "it is a Git LFS pointer, not the file itself, which `git lfs pull` fetches";
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    Ok(file)
}

/// Reads a regular file of at most so many bytes.
///
/// # Errors
/// As [`open`]; a file that is larger.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // A file of /proc says that it is empty.
    open(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it is larger than {} MiB", limit.div_ceil(1 << 20)),
        ));
    }
    Ok(bytes)
}

/// Reads a regular file of UTF-8 text of at most so many bytes.
///
/// # Errors
/// As [`read`]; a file that is not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    String::from_utf8(read(path, limit)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))
}

fn check(metadata: &Metadata) -> io::Result<()> {
    if metadata.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a directory, not a file"));
    }
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(path: &Path, with: &str) {
        let error = read(path, 1 << 20).expect_err("it is not a regular file").to_string();
        assert!(error.contains(with), "{}: {error}", path.display());
    }

    #[test]
    fn only_regular_files_are_read_and_only_so_far() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("a"), "text").expect("a temporary folder");
        assert_eq!(read_text(&path("a"), 4).expect("a regular file"), "text");
        assert_eq!(read(&path("a"), 3).expect_err("a larger file").kind(), io::ErrorKind::FileTooLarge);
        std::fs::write(path("latin"), b"\xe9").expect("a temporary folder");
        assert_eq!(read_text(&path("latin"), 4).expect_err("not UTF-8").kind(), io::ErrorKind::InvalidData);

        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n";
        std::fs::write(path("pointer"), pointer).expect("a temporary folder");
        refused(&path("pointer"), "git lfs pull");
        std::fs::write(path("prose"), format!("{pointer}{}", "x".repeat(1024))).expect("a temporary folder");
        assert!(read(&path("prose"), 4096).is_ok());

        std::os::unix::fs::symlink(path("a"), path("link")).expect("a temporary folder");
        assert_eq!(read(&path("link"), 4).expect("a link to a regular file"), b"text");

        rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .expect("a pipe");
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).expect("a socket");
        std::os::unix::fs::symlink(path("pipe"), path("link to a pipe")).expect("a temporary folder");
        for name in ["pipe", "socket", "link to a pipe"] {
            refused(&path(name), "not a regular file");
        }
        refused(Path::new("/dev/zero"), "not a regular file");
        refused(folder.path(), "a directory");
    }
}
