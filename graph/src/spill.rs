//! Constants that were computed, kept in a file and mapped from there.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::sync::{Mutex, PoisonError};

use memmap2::{Mmap, MmapOptions};

use crate::dtype::DType;
use crate::weight::Weight;

/// A mapping begins at a multiple of this on every known machine.
const ALIGNMENT: u64 = 1 << 16;

/// A file that holds constants. One without a name disappears with the last of them.
#[derive(Debug)]
pub struct Spill {
    /// The file, and where the next constant goes.
    file: Mutex<(File, u64)>,
}

impl Spill {
    /// Takes an empty file, which nothing else writes to.
    pub fn new(file: File) -> Spill {
        Spill { file: Mutex::new((file, 0)) }
    }

    /// Writes a constant; it is read from the file where it is needed.
    ///
    /// # Errors
    /// From the file system; bytes that are not a tensor of this type and shape.
    pub fn keep(&self, dtype: DType, dims: Vec<usize>, bytes: &[u8]) -> io::Result<Weight> {
        let mut held = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, next) = &mut *held;
        let misfit = || io::Error::new(io::ErrorKind::InvalidInput, "the bytes do not fit the shape");
        if bytes.is_empty() {
            return Weight::new(dtype, dims, Vec::new().into(), None).ok_or_else(misfit);
        }
        file.seek(SeekFrom::Start(*next))?;
        file.write_all(bytes)?;
        let map = map(file, *next, bytes.len())?;
        *next = (*next + bytes.len() as u64).next_multiple_of(ALIGNMENT);
        Weight::spilled(dtype, dims, map).ok_or_else(misfit)
    }
}

fn map(file: &File, offset: u64, length: usize) -> io::Result<Mmap> {
    // SAFETY: the file is this process's own, and what was written to it is never changed.
    unsafe { MmapOptions::new().offset(offset).len(length).map(file) }
}
