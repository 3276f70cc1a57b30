//! The tokenised examples of one file.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use lstc_base::hash::State;
use sha2::{Digest, Sha256};

use super::intake::Intake;
use super::rows::Rows;
use super::tokenised::HIDDEN;
use super::words::Words;
use super::{Reading, SpecialTokens, Tokenizer};

/// Index words per example: where its tokens begin and its line in the file, both 64 bits with the lower half first,
/// then the lengths of source and target.
pub(super) const ENTRY: usize = 6;

/// Tokenised examples, in the order of their file.
///
/// **Invariant:** there is at least one; sources and targets hold at least one token each, and only ids of the vocabulary.
#[derive(Debug)]
pub struct Corpus {
    pub(super) tokens: Arc<Words>,
    pub(super) index: Words,
    pub(super) skipped: Skipped,
    pub(super) truncated: (usize, usize),
    pub(super) hides_source: bool,
    pub(super) note: Option<String>,
    pub(super) sha256: String,
    /// Of its file; none if it was not read from one.
    pub(super) state: Option<State>,
}

/// One tokenised row. The highest bit of each token says whether it is hidden: in the source from attention, in the
/// target from the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Example<'a> {
    /// The line in the file where it begins, from 1.
    pub row: u64,
    pub source: &'a [u32],
    /// With the end token.
    pub target: &'a [u32],
}

/// A token's id, and whether it counts.
pub(super) fn token(word: u32) -> (i64, bool) {
    (i64::from(word & !HIDDEN), word & HIDDEN == 0)
}

impl Example<'_> {
    /// The tokens of the target whose labels count.
    pub fn labels(&self) -> Vec<u32> {
        self.target.iter().copied().filter(|word| token(*word).1).collect()
    }
}

/// Bad rows that were left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    pub count: usize,
    /// Why the first few were, with file, line and field.
    pub first: Vec<String>,
}

/// The SHA-256 of the lengths and the ids of examples, as they are added.
#[derive(Default)]
pub(super) struct Fingerprint(Sha256);

impl Fingerprint {
    pub(super) fn add(&mut self, source: &[u32], target: &[u32]) {
        let lengths = [source.len() as u32, target.len() as u32];
        lengths.iter().chain(source).chain(target).for_each(|word| self.0.update(word.to_le_bytes()));
    }

    pub(super) fn finish(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Corpus {
    /// Reads and tokenises a file. Its tokens go to an unnamed file in the folder `scratch`; ids must be below
    /// `vocabulary`. `progress` gets the bytes read, and of how many.
    ///
    /// Rows with token ids need no tokenizer: their ids are taken without padding, and cut to the limits with their last token
    /// kept. A row with a blank input is bad unless a prefix precedes it; one with a blank target always is.
    ///
    /// # Errors
    /// A file that cannot be read, that changes meanwhile, or has no usable row; the first bad row, where rows are not to be skipped, with its line
    /// and field.
    pub fn read(
        path: &Path,
        reading: &Reading,
        tokenizer: Option<&Tokenizer>,
        special: SpecialTokens,
        scratch: &Path,
        vocabulary: u32,
        progress: &mut dyn FnMut(u64, u64),
    ) -> anyhow::Result<Corpus> {
        reading.check()?;
        let mut rows = Rows::open(path, reading)?;
        let mut intake = Intake::new(path, reading, tokenizer, special, vocabulary, scratch)?;
        while let Some(row) = rows.next().map_err(|error| error.context(format!("cannot read `{}`", path.display())))? {
            if intake.take(row)? {
                let (read, of) = rows.source().progress();
                progress(read, of);
            }
        }
        let source = rows.source();
        if source.now().with_context(|| format!("cannot read `{}`", path.display()))? != source.state() {
            bail!("`{}` has changed while it was read", path.display());
        }
        let state = Some(source.state());
        let corpus = Corpus { note: rows.note().map(str::to_owned), state, ..intake.finish()? };
        let (read, of) = rows.source().progress();
        progress(read, of);
        Ok(corpus)
    }

    pub fn len(&self) -> usize {
        self.index.len() / ENTRY
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// # Panics
    /// If there is no such example.
    pub fn example(&self, index: usize) -> Example<'_> {
        let entry = self.entry(index);
        let long = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
        let start = long(entry[0], entry[1]) as usize;
        let middle = start + entry[4] as usize;
        let end = middle + entry[5] as usize;
        Example {
            row: long(entry[2], entry[3]),
            source: &self.tokens[start..middle],
            target: &self.tokens[middle..end],
        }
    }

    /// Tokens of an example's source and target.
    pub(super) fn lengths(&self, index: usize) -> (u32, u32) {
        let entry = self.entry(index);
        (entry[4], entry[5])
    }

    /// Tokens of the longest source, and of the longest target.
    pub fn longest(&self) -> (usize, usize) {
        let lengths = (0..self.len()).map(|index| self.lengths(index));
        let (source, target) = lengths.fold((0, 0), |most, one| (most.0.max(one.0), most.1.max(one.1)));
        (source as usize, target as usize)
    }

    fn entry(&self, index: usize) -> &[u32] {
        &self.index[index * ENTRY..][..ENTRY]
    }

    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// How many sources and how many targets were longer than their limits.
    pub fn truncated(&self) -> (usize, usize) {
        self.truncated
    }

    /// Whether a source has hidden tokens between others: a model without a mask would read them.
    pub fn hides_source(&self) -> bool {
        self.hides_source
    }

    /// What is not read of the rows, though it might be.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// The hash of the lengths and the ids of all examples, in order, in hexadecimal: whether two files, each read in its
    /// own way, train the same.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The state in which its file was read; none for a part of a file.
    pub fn state(&self) -> Option<State> {
        self.state
    }

    /// The target of each example.
    pub fn all_targets(&self) -> impl Iterator<Item = &[u32]> {
        (0..self.len()).map(|index| self.example(index).target)
    }

    /// The distinct targets in ascending order; none if there are more than `at_most`, or one has labels that do not count.
    pub fn targets(&self, at_most: usize) -> Option<Vec<Vec<u32>>> {
        let mut targets = BTreeSet::new();
        for index in 0..self.len() {
            let target = self.example(index).target;
            let is_whole = target.iter().all(|word| token(*word).1);
            if !is_whole || (targets.insert(target) && targets.len() > at_most) {
                return None;
            }
        }
        Some(targets.into_iter().map(<[u32]>::to_vec).collect())
    }
}
