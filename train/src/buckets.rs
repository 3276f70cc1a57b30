//! The sizes of batches on a device: few, so that a step of each can be captured once and replayed.
//!
//! A batch is filled up to the sizes of its bucket with padding, which has no effect: source tokens to a multiple of 32, target
//! tokens to a power of two, examples to those of a full batch, rows whose labels count to a power of two.

use lstc_data::{Batch, Corpus, Fixed};
use lstc_tuned::opened::Opened;

use crate::memory::Sizes;

/// Source tokens are filled up to a multiple of this.
const SOURCE_STEP: usize = 32;

/// How batches are filled up.
#[derive(Clone, Copy, Debug)]
pub struct Buckets {
    /// Sizes that the model fixes.
    fixed: Fixed,
    /// Examples of a full batch, where batches are filled up.
    full: Option<usize>,
    /// The longest possible source and target.
    longest: (usize, usize),
    pads_source: bool,
    pads_target: bool,
}

impl Buckets {
    /// Batches as they are, as far as the model does not fix their sizes.
    pub fn none(opened: &Opened) -> Buckets {
        Buckets { fixed: opened.fixed(), full: None, longest: (0, 0), pads_source: false, pads_target: false }
    }

    /// Batches filled up, as far as that changes nothing: a model without a mask for its source reads padding, and distillation
    /// counts it.
    pub fn new(opened: &Opened, corpus: &Corpus, batch_size: usize) -> Buckets {
        let distills = opened.record.distills();
        Buckets {
            fixed: opened.fixed(),
            full: (!distills).then_some(batch_size.min(corpus.len())),
            longest: corpus.longest(),
            pads_source: opened.reads_padding().is_none(),
            pads_target: !distills,
        }
    }

    /// The sizes of the largest possible batch.
    pub fn largest(&self, corpus: &Corpus, batch_size: usize) -> Sizes {
        let (source, target) = corpus.longest();
        let padded = if self.pads_source { self.padded_source(source) } else { source };
        Sizes {
            batch: self.fixed.batch.or(self.full).unwrap_or(batch_size.min(corpus.len())),
            source_length: self.fixed.source.unwrap_or(padded),
            target_length: self.fixed.target.unwrap_or(target),
        }
    }

    fn padded_source(&self, length: usize) -> usize {
        length.next_multiple_of(SOURCE_STEP).min(self.longest.0.next_multiple_of(8))
    }

    /// The sizes of a batch of these rows.
    pub fn sizes(&self, corpus: &Corpus, rows: &[u32]) -> Fixed {
        let examples = || rows.iter().map(|row| corpus.example(*row as usize));
        let source = || examples().map(|e| e.source.len()).max().unwrap_or(0);
        let target = || examples().map(|e| e.target.len()).max().unwrap_or(0);
        let padded_source = || self.padded_source(source());
        let padded_target = || target().next_power_of_two().min(self.longest.1.max(1));
        Fixed {
            batch: self.fixed.batch.or(self.full),
            source: self.fixed.source.or_else(|| self.pads_source.then(padded_source)),
            target: self.fixed.target.or_else(|| self.pads_target.then(padded_target)),
        }
    }
}

/// How many rows of a batch are listed: those whose labels count, filled up to a power of two as far as there are any.
pub fn listed(batch: &Batch) -> usize {
    batch.counted.next_power_of_two().min(batch.labels.len())
}
