//! Hashes of files: SHA-256, and BLAKE3 for those that may be large.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

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
