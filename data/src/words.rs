//! 32-bit words in an unnamed file: written once, then mapped into memory.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

/// Words that are being written.
pub struct WordsWriter {
    out: BufWriter<File>,
    count: u64,
}

impl WordsWriter {
    /// A file in `folder` that disappears with the process.
    pub fn create(folder: &Path) -> io::Result<WordsWriter> {
        Ok(WordsWriter { out: BufWriter::with_capacity(1 << 16, tempfile::tempfile_in(folder)?), count: 0 })
    }

    pub fn push(&mut self, words: &[u32]) -> io::Result<()> {
        self.count += words.len() as u64;
        words.iter().try_for_each(|word| self.out.write_all(&word.to_ne_bytes()))
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn finish(self) -> io::Result<Words> {
        let file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        // SAFETY: the file has no name and its only handle is closed here, so nothing can change or truncate it.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Words { map })
    }
}

/// Words of a file, read as they are needed.
#[derive(Debug)]
pub struct Words {
    map: Mmap,
}

impl Deref for Words {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        // SAFETY: a mapping begins at a page, which is aligned for u32, it is not written to while it is borrowed, and
        // every bit pattern is a u32.
        let (before, words, after) = unsafe { self.map.align_to::<u32>() };
        debug_assert!(before.is_empty() && after.is_empty());
        words
    }
}
