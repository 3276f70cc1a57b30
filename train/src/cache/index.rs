//! The index of a shard: which rows it holds, and where.
//!
//! ```text
//! index = header entry*      both 40 bytes, little-endian
//! header = "lstctaps" identity[32]
//! entry = row u64, offset u64, source tokens u32, target tokens u32, checksum of the record u64, checksum of the entry u64
//! ```
//!
//! **Invariant:** an entry is written after its record, and at once. A process that was killed leaves one
//! entry too few, or an incomplete one, which is dropped.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};

/// Bytes of an entry.
pub const BYTES: usize = 40;

const MAGIC: &[u8; 8] = b"lstctaps";

/// The BLAKE3 of a cache's identity.
pub type IdentityHash = [u8; 32];

/// One row of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub row: u64,
    pub offset: u64,
    pub source: u32,
    pub target: u32,
    /// Checksum of the record.
    pub checksum: u64,
}

/// The first 64 bits of the BLAKE3.
pub fn checksum(bytes: &[u8]) -> u64 {
    let hash = blake3::hash(bytes);
    u64::from_le_bytes(*hash.as_bytes().first_chunk().expect("a hash has 32 bytes"))
}

impl Entry {
    fn to_bytes(self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        let mut out = &mut bytes[..];
        let mut put = |part: &[u8]| out.write_all(part).expect("the parts are as long as an entry");
        put(&self.row.to_le_bytes());
        put(&self.offset.to_le_bytes());
        put(&self.source.to_le_bytes());
        put(&self.target.to_le_bytes());
        put(&self.checksum.to_le_bytes());
        let check = checksum(&bytes[..BYTES - 8]);
        bytes[BYTES - 8..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// None if the entry's own checksum does not match.
    fn from_bytes(bytes: &[u8; BYTES]) -> Option<Entry> {
        let mut rest = &bytes[..];
        let mut take = || {
            let (part, after) = rest.split_first_chunk::<8>().expect("an entry is five parts of 8 bytes");
            rest = after;
            *part
        };
        let (row, offset) = (u64::from_le_bytes(take()), u64::from_le_bytes(take()));
        let lengths = u64::from_le_bytes(take());
        let (of_record, of_entry) = (u64::from_le_bytes(take()), u64::from_le_bytes(take()));
        let holds = checksum(&bytes[..BYTES - 8]) == of_entry;
        let (source, target) = (lengths as u32, (lengths >> 32) as u32);
        holds.then_some(Entry { row, offset, source, target, checksum: of_record })
    }
}

/// Begins an index.
///
/// # Errors
/// From the file system.
pub fn begin(file: &mut File, identity: &IdentityHash) -> io::Result<()> {
    file.write_all(&[&MAGIC[..], identity].concat())
}

/// Adds an entry.
///
/// # Errors
/// From the file system.
pub fn add(file: &mut File, entry: Entry) -> io::Result<()> {
    file.write_all(&entry.to_bytes())
}

/// What an index holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// This many entries were damaged, and are dropped. An incomplete one does not count.
    Entries { dropped: usize },
    /// It belongs to another cache.
    Other,
}

/// Reads an index, entry by entry.
///
/// # Errors
/// From the file system.
pub fn read(file: File, identity: &IdentityHash, mut each: impl FnMut(Entry)) -> io::Result<Found> {
    let mut file = BufReader::new(file);
    let Some(header) = next(&mut file)? else { return Ok(Found::Entries { dropped: 0 }) };
    if header[..8] != MAGIC[..] || header[8..] != identity[..] {
        return Ok(Found::Other);
    }
    let mut dropped = 0;
    while let Some(bytes) = next(&mut file)? {
        match Entry::from_bytes(&bytes) {
            Some(entry) => each(entry),
            None => dropped += 1,
        }
    }
    Ok(Found::Entries { dropped })
}

/// The next 40 bytes; none if fewer are left.
fn next(file: &mut impl Read) -> io::Result<Option<[u8; BYTES]>> {
    let mut bytes = [0; BYTES];
    match file.read_exact(&mut bytes) {
        Ok(()) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn entry(row: u64) -> Entry {
        Entry { row, offset: row * 1000, source: 7, target: 3, checksum: row ^ 0xabcd }
    }

    fn entries(bytes: &[u8], identity: &IdentityHash) -> (Vec<Entry>, Found) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("index");
        fs::write(&path, bytes).expect("a file");
        let mut found = Vec::new();
        let read = read(File::open(&path).expect("a file"), identity, |e| found.push(e)).expect("it can be read");
        (found, read)
    }

    fn written(rows: u64) -> Vec<u8> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("index");
        let mut file = File::create(&path).expect("a file");
        begin(&mut file, &[7; 32]).expect("it is written");
        (0..rows).for_each(|row| add(&mut file, entry(row)).expect("it is written"));
        fs::read(&path).expect("a file")
    }

    #[test]
    fn a_torn_tail_is_dropped_wherever_it_is_torn() {
        let bytes = written(3);
        for length in 0..=bytes.len() {
            let (found, read) = entries(&bytes[..length], &[7; 32]);
            let whole = (length / BYTES).saturating_sub(1);
            assert_eq!(found, (0..whole as u64).map(entry).collect::<Vec<_>>());
            assert_eq!(read, Found::Entries { dropped: 0 });
        }
    }

    #[test]
    fn no_entry_is_believed_that_was_changed() {
        let bytes = written(3);
        for at in BYTES..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            let (found, read) = entries(&changed, &[7; 32]);
            assert_eq!((found.len(), read), (2, Found::Entries { dropped: 1 }), "byte {at}");
        }
        for at in 0..BYTES {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            assert_eq!(entries(&changed, &[7; 32]), (Vec::new(), Found::Other));
        }
        assert_eq!(entries(&bytes, &[8; 32]).1, Found::Other);
    }
}
