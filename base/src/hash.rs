//! Hashes of files: SHA-256, and BLAKE3 for those that may be large. And what shows that a hash is still that of its file.

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A state of a file. A file that was written to is in another, and so is a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    bytes: u64,
    device: u64,
    inode: u64,
    /// Seconds and nanoseconds: when its contents, and when anything about it, last changed.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl State {
    pub fn new(metadata: &Metadata) -> State {
        State {
            bytes: metadata.len(),
            device: metadata.dev(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The SHA-256 of a file, in hexadecimal, from its start; the file is left at its start again.
pub fn sha256(file: &mut File) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    file.rewind()?;
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hasher.update(&buffer[..count]),
        }
    }
    file.rewind()?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Bytes read at a time: few enough for a core's cache.
const BLOCK: usize = 1 << 20;

/// The BLAKE3 of a file, in hexadecimal; none if it was stopped. The file is read, not mapped: its
/// pages do not count as this process's.
pub fn blake3(file: &mut File, stop: &AtomicBool) -> io::Result<Option<String>> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BLOCK];
    loop {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        match file.read(&mut buffer)? {
            0 => return Ok(Some(hasher.finalize().to_hex().to_string())),
            count => hasher.update(&buffer[..count]),
        };
    }
}
