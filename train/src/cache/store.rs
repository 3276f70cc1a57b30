//! The records of a cache: which rows are kept, and how rows are read and added.
//!
//! **Invariant:** a record is given back as it was written, or not at all: its checksum is checked whenever it is read.
//!
//! **Invariant:** memory grows by 24 bytes a row, not with the records.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use lstc_base::report::Hinted;
use lstc_graph::regular;
use lstc_tuned::cache::Size;

use super::budget::{Budget, Full};
use super::index::{self, Found, IdentityHash, checksum};
use super::layout::{Layout, Lengths};
use super::shard::{self, Shard, Writer};

/// Where a record lies.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// The shard's position in the list, from 1.
    shard: NonZeroU32,
    offset: u64,
    checksum: u64,
}

impl Place {
    fn shard(&self) -> usize {
        self.shard.get() as usize - 1
    }
}

/// A shard of the list, mapped when it is first read.
#[derive(Debug)]
struct Listed {
    path: PathBuf,
    map: Option<Shard>,
}

/// The outcome of adding a row.
#[derive(Debug)]
pub enum Kept {
    Yes,
    NoRoom(Full),
    /// An earlier row failed.
    Stopped,
    /// The element type cannot hold the row's numbers.
    Unfit,
    /// The file system failed: no more rows are kept.
    Failed(io::Error),
}

/// What is not as it was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Entries of an index.
    pub entries: usize,
    /// Records.
    pub records: usize,
}

/// An open cache.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    identity: IdentityHash,
    layout: Layout,
    places: Vec<Option<Place>>,
    kept: usize,
    shards: Vec<Listed>,
    writer: Writing,
    budget: Budget,
    damage: Damage,
    scratch: Vec<u8>,
}

/// Where rows are added.
#[derive(Debug)]
enum Writing {
    /// No row has been added yet, or the last shard is full.
    Idle,
    /// To the last shard of the list.
    Open(Writer),
    Stopped,
}

impl Store {
    /// Opens the cache in an existing folder, for this many rows; `lengths` gives the tokens of each. Entries that do not fit
    /// the rows, or are incomplete, are left out.
    ///
    /// # Errors
    /// From the file system; a shard of another cache.
    pub fn open(
        folder: &Path,
        identity: IdentityHash,
        layout: Layout,
        rows: usize,
        lengths: impl Fn(usize) -> Lengths,
        budget: Option<Size>,
    ) -> anyhow::Result<Store> {
        let context = || format!("cannot read the cache `{}`", folder.display());
        let (mut used, mut lost) = (0, BTreeSet::new());
        let mut store = Store {
            folder: folder.to_owned(),
            identity,
            layout,
            places: vec![None; rows],
            kept: 0,
            shards: Vec::new(),
            writer: Writing::Idle,
            budget: Budget::new(folder, Some(Size(0)), 0).with_context(context)?,
            damage: Damage::default(),
            scratch: Vec::new(),
        };
        for path in shard::list(folder).with_context(context)? {
            used += store.add_shard(path, &lengths, &mut lost)?;
        }
        // Nothing is lost of a row that is kept elsewhere.
        lost.retain(|row| !store.has(*row));
        store.damage.entries = if store.kept == rows { 0 } else { store.damage.entries + lost.len() };
        store.budget = Budget::new(folder, budget, used).with_context(context)?;
        Ok(store)
    }

    /// Reads the entries of a shard's index, and the rows whose records are missing; returns the bytes that entries and records take,
    /// counted as when they were written.
    fn add_shard(
        &mut self,
        path: PathBuf,
        lengths: &impl Fn(usize) -> Lengths,
        lost: &mut BTreeSet<usize>,
    ) -> anyhow::Result<u64> {
        let index_path = shard::index_of(&path);
        let context = || format!("cannot read `{}`", index_path.display());
        let index = regular::open(&index_path).with_context(context)?;
        let position = NonZeroU32::new(u32::try_from(self.shards.len() + 1).context("too many shards")?);
        let shard = position.expect("a sum with 1 is not 0");
        let Store { places, layout, kept, damage, .. } = self;
        let (mut used, mut entries) = (0, Vec::new());
        let read = index::read(index, &self.identity, |entry| entries.push(entry));
        // Another process may be adding records, each before its entry. A shard that is gone has no bytes.
        let bytes = fs::metadata(&path).map_or(0, |m| m.len());
        for entry in entries {
            let place = Place { shard, offset: entry.offset, checksum: entry.checksum };
            let row = usize::try_from(entry.row).ok().filter(|row| *row < places.len());
            let here = Lengths { source: entry.source as usize, target: entry.target as usize };
            let end = |row| entry.offset.checked_add(layout.bytes(lengths(row)) as u64);
            let Some(row) = row.filter(|row| lengths(*row) == here) else {
                damage.entries += 1;
                continue;
            };
            if end(row).is_some_and(|end| end <= bytes) {
                used += (layout.bytes(here) + index::BYTES) as u64;
                *kept += usize::from(places[row].replace(place).is_none());
            } else {
                lost.insert(row);
            }
        }
        match read.with_context(context)? {
            Found::Entries { dropped } => damage.entries += dropped,
            Found::Other => {
                let error = anyhow!("`{}` belongs to another cache, or is damaged", index_path.display());
                let hint = "remove it and the file of records beside it: their rows are computed again";
                return Err(Hinted::new(error, hint).into());
            }
        }
        self.shards.push(Listed { path, map: None });
        Ok(used)
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Whether a row is kept. Its record may turn out to be damaged.
    pub fn has(&self, row: usize) -> bool {
        self.places.get(row).is_some_and(Option::is_some)
    }

    /// Rows that are kept.
    pub fn kept(&self) -> usize {
        self.kept
    }

    pub fn rows(&self) -> usize {
        self.places.len()
    }

    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    pub fn damage(&self) -> Damage {
        self.damage
    }

    /// Adds a row, from the numbers of each tap.
    pub fn keep(&mut self, row: usize, lengths: Lengths, taps: &[&[f32]]) -> Kept {
        if matches!(self.writer, Writing::Stopped) {
            return Kept::Stopped;
        }
        let bytes = (self.layout.bytes(lengths) + index::BYTES) as u64;
        if let Err(full) = self.budget.take(&self.folder, bytes) {
            return Kept::NoRoom(full);
        }
        let mut record = std::mem::take(&mut self.scratch);
        let kept = match self.layout.encode(lengths, taps, &mut record) {
            Err(_) => Kept::Unfit,
            Ok(()) => self.append(row, lengths, &record).map_or_else(Kept::Failed, |()| Kept::Yes),
        };
        self.scratch = record;
        if !matches!(kept, Kept::Yes) {
            self.budget.give_back(bytes);
        }
        if matches!(kept, Kept::Failed(_)) {
            self.writer = Writing::Stopped;
        }
        kept
    }

    fn append(&mut self, row: usize, lengths: Lengths, record: &[u8]) -> io::Result<()> {
        if !matches!(&self.writer, Writing::Open(writer) if !writer.is_full()) {
            let writer = Writer::create(&self.folder, &self.identity)?;
            self.shards.push(Listed { path: writer.path().to_owned(), map: None });
            self.writer = Writing::Open(writer);
        }
        let Writing::Open(writer) = &mut self.writer else { return Err(io::ErrorKind::Other.into()) };
        let entry = writer.add(row as u64, lengths, record)?;
        let shard = u32::try_from(self.shards.len()).ok().and_then(NonZeroU32::new).ok_or(io::ErrorKind::Other)?;
        let place = Place { shard, offset: entry.offset, checksum: entry.checksum };
        self.kept += usize::from(self.places[row].replace(place).is_none());
        Ok(())
    }

    /// Reads rows that are kept into the numbers of each tap of each row; tokens after a row's own become zeros. A record that
    /// is damaged is dropped. True if all were read.
    ///
    /// # Errors
    /// From the file system.
    pub fn read(&mut self, rows: Vec<(usize, Lengths, Vec<&mut [f32]>)>, threads: usize) -> anyhow::Result<bool> {
        for (row, lengths, _) in &rows {
            self.map(*row, *lengths)?;
        }
        let lengths: Vec<(usize, Lengths)> = rows.iter().map(|(row, lengths, _)| (*row, *lengths)).collect();
        let damaged = {
            let read = |(row, lengths, taps): &mut (usize, Lengths, Vec<&mut [f32]>)| {
                let record = self.record(*row, *lengths)?;
                self.layout.decode(*lengths, record, taps);
                Some(())
            };
            let numbers: usize = rows.iter().flat_map(|(_, _, taps)| taps).map(|tap| tap.len()).sum();
            let threads = if numbers < FEW { 1 } else { threads.clamp(1, rows.len().max(1)) };
            damaged_of(rows, threads, &read)
        };
        for (row, lengths) in lengths.into_iter().filter(|(row, _)| damaged.contains(row)) {
            self.drop_damaged(row, lengths);
        }
        Ok(damaged.is_empty())
    }

    /// Whether a row's record is as it was written; one that is not is dropped.
    ///
    /// # Errors
    /// From the file system.
    pub fn check(&mut self, row: usize, lengths: Lengths) -> anyhow::Result<bool> {
        self.map(row, lengths)?;
        let holds = self.record(row, lengths).is_some();
        self.release(row, lengths);
        if !holds {
            self.drop_damaged(row, lengths);
        }
        Ok(holds)
    }

    /// Its replacement has room even if the budget is used up.
    fn drop_damaged(&mut self, row: usize, lengths: Lengths) {
        self.damage.records += 1;
        if self.places[row].take().is_some() {
            self.kept -= 1;
            self.budget.give_back((self.layout.bytes(lengths) + index::BYTES) as u64);
        }
    }

    /// Gives back the memory that reading a row took.
    pub fn release(&self, row: usize, lengths: Lengths) {
        if let Some((shard, place)) = self.mapped(row) {
            shard.release(place.offset, self.layout.bytes(lengths));
        }
    }

    /// Lets the kernel read rows in advance, if their shards are mapped already.
    pub fn expect(&self, row: usize, lengths: Lengths) {
        if let Some((shard, place)) = self.mapped(row) {
            shard.expect(place.offset, self.layout.bytes(lengths));
        }
    }

    fn mapped(&self, row: usize) -> Option<(&Shard, &Place)> {
        let place = self.places.get(row)?.as_ref()?;
        Some((self.shards.get(place.shard())?.map.as_ref()?, place))
    }

    /// Maps the shard of a row at least to the row's end.
    fn map(&mut self, row: usize, lengths: Lengths) -> anyhow::Result<()> {
        let bytes = self.layout.bytes(lengths);
        let Some(place) = self.places.get(row).copied().flatten() else { return Ok(()) };
        let listed = &mut self.shards[place.shard()];
        if listed.map.as_ref().is_none_or(|map| map.get(place.offset, bytes).is_none()) {
            let map = Shard::map(&listed.path);
            listed.map = Some(map.with_context(|| format!("cannot read `{}`", listed.path.display()))?);
        }
        Ok(())
    }

    /// A row's record, if it is as it was written.
    fn record(&self, row: usize, lengths: Lengths) -> Option<&[u8]> {
        let (shard, place) = self.mapped(row)?;
        let record = shard.get(place.offset, self.layout.bytes(lengths))?;
        (checksum(record) == place.checksum).then_some(record)
    }
}

/// Numbers that one thread reads.
const FEW: usize = 1 << 19;

type Wanted<'t> = (usize, Lengths, Vec<&'t mut [f32]>);

/// Reads rows on several threads; returns those that could not be read.
fn damaged_of(mut rows: Vec<Wanted>, threads: usize, read: &(impl Fn(&mut Wanted) -> Option<()> + Sync)) -> Vec<usize> {
    let part = rows.len().div_ceil(threads).max(1);
    let each = |rows: &mut [Wanted]| -> Vec<usize> {
        rows.iter_mut().filter_map(|row| if read(row).is_none() { Some(row.0) } else { None }).collect()
    };
    if threads == 1 {
        return each(&mut rows);
    }
    std::thread::scope(|scope| {
        let parts: Vec<_> = rows.chunks_mut(part).map(|part| scope.spawn(move || each(part))).collect();
        parts
            .into_iter()
            .flat_map(|part| part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}
