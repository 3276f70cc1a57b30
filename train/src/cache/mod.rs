//! The tap cache. The backbone is frozen and has no dropout, so its taps for an example are the same in every epoch: they
//! are computed once, kept on the disk, and read in later epochs.
//!
//! ```text
//! folder/cache.yaml      what the cache is for (identity.rs)
//! folder/000001.taps     records, one after the other (shard.rs, layout.rs, element.rs)
//! folder/000001.index    the row and place of each record, and checksums (index.rs)
//! ```
//!
//! **Invariant:** from the step in which they are kept, a row's taps are what the cache returns: a run that was resumed, or
//! whose cache was built before, trains on the same numbers.
//!
//! **Invariant:** nothing that is kept is thrown out or changed. A cache that is full keeps no more, and the other rows are
//! computed in every epoch.
//!
//! **Invariant:** what is damaged is found by a checksum, and computed again; it never becomes a number.

mod budget;
mod build;
mod identity;
mod index;
mod layout;
mod shard;
mod store;
mod structure;
mod survey;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use half::f16;
use lstc_base::report::Hinted;
use lstc_data::{Batch, Corpus, Fixed};
use lstc_graph::count;
use lstc_runtime::{DeviceTensor, HostMemory, Tensor};
use lstc_tuned::cache::{Element, Size};
use lstc_tuned::opened::Opened;
use ndarray::ArrayD;
use serde::Serialize;

use budget::Full;
pub use build::{Built, Share, build};
pub use identity::{Identity, TapIdentity, recorded};
pub use layout::{Axis, Lengths, Native};
use layout::{Layout, TapShape};
use store::{Kept, Store};
pub use survey::{Survey, survey};

/// How a cache is opened.
#[derive(Clone, Debug)]
pub struct Request<'r> {
    pub folder: &'r Path,
    /// By default that of the cache where there is one, else [`Element::Fp32`].
    pub element: Option<Element>,
    /// By default the disk's free space less a margin.
    pub budget: Option<Size>,
    /// Threads that read and convert records.
    pub threads: usize,
}

/// The taps of a corpus, as far as they are kept.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    identity: Identity,
    store: Store,
    threads: usize,
    /// Rows whose numbers the element type cannot hold.
    unfit: BTreeSet<usize>,
    reported: Reported,
    warnings: Vec<String>,
}

/// What was reported once, and is not reported again.
#[derive(Clone, Copy, Debug, Default)]
struct Reported {
    full: bool,
    failed: bool,
    unfit: bool,
    damaged: bool,
}

/// What a cache holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holding {
    pub folder: PathBuf,
    pub dtype: Element,
    /// Rows that are kept, and all rows.
    pub kept: usize,
    pub rows: usize,
    /// Bytes on the disk.
    pub bytes: u64,
    /// Rows with numbers that the element type cannot hold, as far as was seen.
    pub unfit: usize,
    /// Records and entries that were damaged.
    pub damaged: usize,
}

impl Cache {
    /// Opens the cache in a folder, or creates one there.
    ///
    /// # Errors
    /// A cache for something else, with all differences; a folder that holds other files; a model whose taps depend on the
    /// padding; from the file system.
    pub fn open(request: &Request, opened: &Opened, identity: Identity, corpus: &Corpus) -> anyhow::Result<Cache> {
        if let Some(reading) = opened.reads_padding() {
            let error = anyhow!("{reading}: the taps depend on how a batch is padded");
            let hint = "a cache keeps the taps of an example without padding; export the model with the source's \
                        attention_mask in every attention over it";
            return Err(Hinted::new(error, hint).into());
        }
        let identity = identity::settle(request.folder, identity, request.element)?;
        let lengths = |row| identity.lengths(&corpus.example(row));
        let (hash, layout) = (identity.hash()?, identity.layout());
        let store = Store::open(request.folder, hash, layout, corpus.len(), lengths, request.budget)?;
        let damaged = store.damage().entries;
        let mut cache = Cache {
            folder: request.folder.to_owned(),
            identity,
            store,
            threads: request.threads,
            unfit: BTreeSet::new(),
            reported: Reported::default(),
            warnings: Vec::new(),
        };
        if damaged > 0 {
            let folder = cache.folder.display();
            cache.warnings.push(format!(
                "the cache `{folder}` has {}: the rows are computed again",
                count(damaged, "damaged entry")
            ));
        }
        Ok(cache)
    }

    /// Whether a row is kept.
    pub fn has(&self, row: u32) -> bool {
        self.store.has(row as usize)
    }

    /// Whether all rows are kept.
    pub fn is_whole(&self) -> bool {
        self.store.kept() == self.store.rows()
    }

    /// Rows that can still be kept, of those that are not.
    pub fn can_keep(&self, row: u32) -> bool {
        !self.has(row) && !self.unfit.contains(&(row as usize))
    }

    /// How taps are kept.
    pub fn element(&self) -> Element {
        self.identity.dtype
    }

    /// Drops a row whose record is not as it was written.
    fn check(&mut self, corpus: &Corpus, row: usize) -> anyhow::Result<()> {
        if self.store.has(row) && !self.store.check(row, self.identity.lengths(&corpus.example(row)))? {
            self.tell_of_damage();
        }
        Ok(())
    }

    fn tell_of_damage(&mut self) {
        if !self.reported.damaged {
            self.reported.damaged = true;
            let folder = self.folder.display();
            self.warnings.push(format!("records of the cache `{folder}` are damaged: their rows are computed again"));
        }
    }

    pub fn holding(&self) -> Holding {
        let damage = self.store.damage();
        Holding {
            folder: self.folder.clone(),
            dtype: self.identity.dtype,
            kept: self.store.kept(),
            rows: self.store.rows(),
            bytes: self.store.budget().used().0,
            unfit: self.unfit.len(),
            damaged: damage.entries + damage.records,
        }
    }

    /// Warnings since the last call. Each kind appears once.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// Lets the kernel read rows in advance.
    pub fn expect(&self, corpus: &Corpus, rows: &[u32]) {
        for row in rows {
            self.store.expect(*row as usize, self.identity.lengths(&corpus.example(*row as usize)));
        }
    }

    /// The taps of a batch of these rows: from the cache if all are kept, otherwise from `compute`. Rows that were not
    /// kept before are then kept, as far as there is room.
    ///
    /// # Errors
    /// From `compute`, or if it returns taps that the cache is not for; no memory; from the file system.
    pub fn taps(
        &mut self,
        (opened, corpus, memory): (&Opened, &Corpus, &HostMemory),
        rows: &[u32],
        batch: &Batch,
        compute: impl FnOnce(&Batch) -> anyhow::Result<Vec<Tensor>>,
    ) -> anyhow::Result<Vec<Tap>> {
        let wanted = self.wanted(corpus, rows, batch)?;
        let shapes = shapes(self.store.layout(), batch);
        let room = || shapes.iter().map(|shape| memory.tensor(shape)).collect::<Result<Vec<_>, _>>();
        let mut kept = None;
        if rows.iter().all(|row| self.has(*row)) {
            let mut tensors = room()?;
            kept = self.fill(&wanted, batch, &mut tensors)?.then_some(tensors);
        }
        let tensors = match kept {
            Some(tensors) => tensors,
            None => {
                let computed = self.compute(opened, corpus, rows, batch, compute)?;
                let mut tensors = room()?;
                for ((tensor, tap), [_, length, _]) in tensors.iter_mut().zip(&computed).zip(&shapes) {
                    tensor.write(&tap.slice_axis(ndarray::Axis(1), (..*length).into()))?;
                }
                drop(computed);
                self.fill(&wanted, batch, &mut tensors)?;
                tensors
            }
        };
        let native = |(tensor, shape): (DeviceTensor, &TapShape)| match shape.native {
            Native::F32 => Ok(Tap::F32(tensor)),
            Native::F16 => Ok(Tap::F16(tensor.read()?.mapv(f16::from_f32))),
        };
        tensors.into_iter().zip(&self.store.layout().taps).map(native).collect()
    }

    /// The taps of a batch of these rows as `compute` gives them, and as long as what is kept. Rows that were not kept are kept
    /// then, as far as there is room.
    ///
    /// # Errors
    /// As [`Cache::taps`].
    pub fn compute(
        &mut self,
        opened: &Opened,
        corpus: &Corpus,
        rows: &[u32],
        batch: &Batch,
        compute: impl FnOnce(&Batch) -> anyhow::Result<Vec<Tensor>>,
    ) -> anyhow::Result<Vec<ArrayD<f32>>> {
        let wanted = self.wanted(corpus, rows, batch)?;
        let (filled, source) = batch.source.dim();
        let sizes = |target| Fixed { batch: Some(filled), source: Some(source), target: Some(target) };
        let long = self.identity.target_length.map(sizes);
        let long = long.map(|shape| Batch::new(corpus, rows, opened.record.tokens, &shape)).transpose()?;
        let computed = long.as_ref().unwrap_or(batch);
        let shapes = shapes(self.store.layout(), computed);
        let taps = widened(compute(computed)?, &shapes)?;
        self.keep(&wanted, &batch.rows, &taps)?;
        Ok(taps)
    }

    /// The rows of a batch, with their lengths.
    fn wanted(&self, corpus: &Corpus, rows: &[u32], batch: &Batch) -> anyhow::Result<Vec<(usize, Lengths)>> {
        let is_of = |(row, line): (&u32, &u64)| corpus.example(*row as usize).row == *line;
        if rows.len() != batch.rows.len() || !rows.iter().zip(&batch.rows).all(is_of) {
            bail!("the batch does not hold the rows whose taps are wanted");
        }
        let of = |row: &u32| (*row as usize, self.identity.lengths(&corpus.example(*row as usize)));
        Ok(rows.iter().map(of).collect())
    }

    /// Keeps rows of a batch, of these lines of their file, that are not kept.
    fn keep(&mut self, wanted: &[(usize, Lengths)], lines: &[u64], taps: &[ArrayD<f32>]) -> anyhow::Result<()> {
        let slices: Option<Vec<&[f32]>> = taps.iter().map(|tap| tap.as_slice()).collect();
        let slices = slices.context(ORDER)?;
        for (at, ((row, lengths), line)) in wanted.iter().zip(lines).enumerate() {
            if !self.can_keep(*row as u32) {
                continue;
            }
            let numbers: Vec<&[f32]> = slices
                .iter()
                .zip(taps)
                .map(|(slice, tap)| {
                    let size = slice.len() / tap.shape()[0].max(1);
                    &slice[at * size..][..size]
                })
                .collect();
            let kept = self.store.keep(*row, *lengths, &numbers);
            if matches!(kept, Kept::Unfit) {
                self.unfit.insert(*row);
            }
            self.warn(*line, &kept);
        }
        Ok(())
    }

    fn warn(&mut self, line: u64, kept: &Kept) {
        let (folder, of) = (self.folder.display(), self.store.rows());
        let rest = "the others are computed in every epoch";
        match kept {
            Kept::Yes => {}
            Kept::NoRoom(full) if !self.reported.full => {
                self.reported.full = true;
                let (kept, limit) = (self.store.kept(), self.store.budget().limit());
                let why = match full {
                    Full::Budget => format!("its budget is {limit}"),
                    Full::Disk => "its disk is nearly full".to_owned(),
                };
                self.warnings
                    .push(format!("the cache `{folder}` is full with {kept} of {}, {why}: {rest}", count(of, "row")));
            }
            Kept::Failed(error) => {
                self.reported.failed = true;
                let kept = self.store.kept();
                let what = format!("cannot write to the cache `{folder}`: {error}");
                self.warnings.push(format!("{what}; it keeps {kept} of {}: {rest}", count(of, "row")));
            }
            Kept::Unfit if !self.reported.unfit => {
                self.reported.unfit = true;
                let name = self.identity.dtype.name();
                let what = format!("the taps of line {line} of the data have numbers that {name} cannot hold");
                self.warnings.push(format!("{what}: such rows are not kept, but computed in every epoch"));
            }
            Kept::NoRoom(_) | Kept::Unfit | Kept::Stopped => {}
        }
    }

    /// Puts what is kept of a batch's rows into its taps. Rows that fill up a fixed batch are copies of its first one. True where all
    /// rows were read.
    fn fill(&mut self, wanted: &[(usize, Lengths)], batch: &Batch, taps: &mut [DeviceTensor]) -> anyhow::Result<bool> {
        let (all, rows) = (wanted.iter().all(|(row, _)| self.store.has(*row)), batch.source.nrows().max(1));
        let mut parts: Vec<(usize, Lengths, Vec<&mut [f32]>)> =
            wanted.iter().map(|(row, lengths)| (*row, *lengths, Vec::new())).collect();
        for tap in &mut *taps {
            let numbers = tap.numbers_mut().context("a tap is not in the host's memory")?;
            let size = numbers.len() / rows;
            for (part, numbers) in parts.iter_mut().zip(numbers.chunks_exact_mut(size.max(1))) {
                part.2.push(numbers);
            }
        }
        parts.retain(|(row, ..)| self.store.has(*row));
        let read = self.store.read(parts, self.threads)?;
        for (row, lengths) in wanted {
            self.store.release(*row, *lengths);
        }
        if !read {
            self.tell_of_damage();
        }
        if wanted.first().is_some_and(|(row, _)| self.store.has(*row)) {
            taps.iter_mut().filter_map(DeviceTensor::numbers_mut).for_each(|tap| copy_first(tap, rows, wanted.len()));
        }
        Ok(all && read)
    }
}

/// One tap of a batch, `[batch, length, width]`, in the type of the graphs.
pub enum Tap {
    F32(DeviceTensor),
    F16(ArrayD<f16>),
}

/// What no tap is that comes from ONNX Runtime.
const ORDER: &str = "a tap is not in row-major order";

/// The shape of each tap of a batch.
fn shapes(layout: &Layout, batch: &Batch) -> Vec<[usize; 3]> {
    let padded = Lengths { source: batch.source.ncols(), target: batch.target_in.ncols() };
    let rows = batch.source.nrows();
    layout.taps.iter().map(|tap| [rows, padded.along(tap.axis), tap.width]).collect()
}

/// The taps that a backbone gave, in f32.
fn widened(taps: Vec<Tensor>, shapes: &[[usize; 3]]) -> anyhow::Result<Vec<ArrayD<f32>>> {
    if taps.len() != shapes.len() || taps.iter().zip(shapes).any(|(tap, shape)| tap.shape() != shape) {
        let found: Vec<_> = taps.iter().map(Tensor::shape).collect();
        bail!("the backbone gave taps of shapes {found:?}, not {shapes:?}");
    }
    taps.into_iter()
        .map(|tap| match tap {
            Tensor::F32(tap) if tap.is_standard_layout() => Ok(tap),
            Tensor::F32(tap) => Ok(tap.as_standard_layout().into_owned()),
            Tensor::F16(tap) => Ok(tap.as_standard_layout().mapv(f16::to_f32)),
            other => bail!("the backbone gave a tap of {}, which a cache cannot store", other.element_type()),
        })
        .collect()
}

/// Overwrites the rows from `from` on with the first one.
fn copy_first(numbers: &mut [f32], rows: usize, from: usize) {
    let size = numbers.len() / rows.max(1);
    if size > 0 {
        let (first, others) = numbers.split_at_mut(size);
        others.chunks_exact_mut(size).skip(from.saturating_sub(1)).for_each(|row| row.copy_from_slice(first));
    }
}
