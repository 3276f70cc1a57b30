//! One file of records, with its index beside it: `000001.taps` and `000001.index`.
//!
//! **Invariant:** a shard belongs to the process that made it. No other process adds to it, and none shortens it, so
//! any number of processes can fill one folder at the same time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use lstc_graph::regular;
use lstc_tuned::cache::{INDEX, RECORDS, shard, shard_name};
use memmap2::{Mmap, UncheckedAdvice};

use super::index::{self, Entry, IdentityHash, checksum};
use super::layout::Lengths;

/// The size beyond which a shard takes no more records.
pub const LARGEST: u64 = 256 << 20;

/// The index that lies beside a shard.
pub fn index_of(records: &Path) -> PathBuf {
    records.with_extension(INDEX)
}

/// The shards of a folder by their numbers, oldest first: those that have an index.
///
/// # Errors
/// From the file system.
pub fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if let Some(number) = shard(&path)
            && path.extension().is_some_and(|e| e == INDEX)
        {
            found.push((number, path.with_extension(RECORDS)));
        }
    }
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// A shard that is being filled.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    records: File,
    index: File,
    length: u64,
}

impl Writer {
    /// Makes a shard under the next free number.
    ///
    /// # Errors
    /// From the file system.
    pub fn create(folder: &Path, identity: &IdentityHash) -> io::Result<Writer> {
        let no_more = || io::Error::other("no shard can have a higher number than those that are there");
        let numbers = fs::read_dir(folder)?.filter_map(|entry| shard(&entry.ok()?.path()));
        let mut number = numbers.max().unwrap_or(0).checked_add(1).ok_or_else(no_more)?;
        let new = |path: &Path| OpenOptions::new().write(true).create_new(true).open(path);
        let (path, records) = loop {
            let path = folder.join(shard_name(number)).with_extension(RECORDS);
            match new(&path) {
                // Another process took the number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    number = number.checked_add(1).ok_or_else(no_more)?;
                }
                Err(error) => return Err(error),
                Ok(file) => break (path, file),
            }
        };
        let mut index = new(&index_of(&path))?;
        index::begin(&mut index, identity)?;
        Ok(Writer { path, records, index, length: 0 })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn is_full(&self) -> bool {
        self.length >= LARGEST
    }

    /// Adds a record, and then its entry.
    ///
    /// # Errors
    /// From the file system, e.g. no space. The shard then takes no more records.
    pub fn add(&mut self, row: u64, lengths: Lengths, record: &[u8]) -> io::Result<Entry> {
        let narrow = |length| u32::try_from(length).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
        let (source, target) = (narrow(lengths.source)?, narrow(lengths.target)?);
        let entry = Entry { row, offset: self.length, source, target, checksum: checksum(record) };
        let written = self.records.write_all(record).and_then(|()| index::add(&mut self.index, entry));
        if written.is_err() {
            // An incomplete record would take space from others on a full disk.
            let _ = self.records.set_len(self.length);
        }
        self.length += record.len() as u64;
        written.map(|()| entry)
    }
}

/// A shard to read from.
#[derive(Debug)]
pub struct Shard {
    map: Mmap,
}

impl Shard {
    /// Maps a shard as long as it is now.
    ///
    /// # Errors
    /// From the file system.
    pub fn map(path: &Path) -> io::Result<Shard> {
        let file = regular::open(path)?;
        // SAFETY: records are written once and never changed, and no process shortens a shard. What anyone else does to
        // the file while it is mapped is found by the checksums, or ends the process.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Shard { map })
    }

    /// A range of the shard; none if the shard is shorter.
    pub fn get(&self, offset: u64, bytes: usize) -> Option<&[u8]> {
        let start = usize::try_from(offset).ok()?;
        self.map.get(start..start.checked_add(bytes)?)
    }

    /// Lets the kernel read a range in advance.
    pub fn expect(&self, offset: u64, bytes: usize) {
        if self.get(offset, bytes).is_none() {
            return;
        }
        // Ignored advice costs nothing.
        let _ = self.map.advise_range(memmap2::Advice::WillNeed, offset as usize, bytes);
    }

    /// Gives back the memory that reading a range took.
    pub fn release(&self, offset: u64, bytes: usize) {
        if self.get(offset, bytes).is_none() {
            return;
        }
        // SAFETY: the map is of a file and read-only: a later read of the pages finds the file's bytes again.
        let advised = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset as usize, bytes) };
        debug_assert!(advised.is_ok(), "the range is mapped: {advised:?}");
    }
}
