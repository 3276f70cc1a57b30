//! One batch, padded, on the host.

use anyhow::bail;
use ndarray::{Array1, Array2};

use super::corpus::token;
use super::{Corpus, Example, SpecialTokens};

/// The label of a position that does not count.
pub const IGNORED: i64 = -100;

/// Sizes that a model with static shapes requires.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fixed {
    pub batch: Option<usize>,
    pub source: Option<usize>,
    pub target: Option<usize>,
}

/// Examples side by side: `[batch, length]` arrays, as long as the longest example or as the model requires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The examples' lines in their file. Rows that fill up a fixed batch have none, so there may be fewer lines than rows.
    pub rows: Vec<u64>,
    pub source: Array2<i64>,
    /// 1 where `source` has a token that counts, 0 where it is hidden or padded.
    pub source_mask: Array2<i64>,
    /// The start token, then the target without its last token.
    pub target_in: Array2<i64>,
    pub target_mask: Array2<i64>,
    /// The target; [`IGNORED`] where a label does not count, and in padding.
    pub labels: Array2<i64>,
    /// Labels that count.
    pub counted: usize,
    /// Tokens of sources and targets, without padding.
    pub tokens: usize,
}

impl Batch {
    /// A batch of the examples with these indices. A fixed batch that is not full is filled up with copies of its first
    /// example, whose labels are all [`IGNORED`].
    ///
    /// # Errors
    /// No example, or examples that do not fit into a fixed shape.
    ///
    /// # Panics
    /// For an index that the corpus does not have.
    pub fn new(corpus: &Corpus, indices: &[u32], special: SpecialTokens, shape: &Fixed) -> anyhow::Result<Batch> {
        let examples: Vec<Example> = indices.iter().map(|index| corpus.example(*index as usize)).collect();
        let Some(first) = examples.first() else { bail!("a batch of no examples") };
        let longest = |length: fn(&Example) -> usize| examples.iter().map(length).max().unwrap_or(0);
        let batch = fitting("examples", examples.len(), shape.batch)?;
        let source = fitting("source tokens", longest(|e| e.source.len()), shape.source)?;
        let target = fitting("target tokens", longest(|e| e.target.len()), shape.target)?;
        let padded = |value: i64, length: usize| Array2::from_elem((batch, length), value);
        let mut made = Batch {
            rows: examples.iter().map(|e| e.row).collect(),
            source: padded(special.pad, source),
            source_mask: padded(0, source),
            target_in: padded(special.pad, target),
            target_mask: padded(0, target),
            labels: padded(IGNORED, target),
            counted: examples.iter().map(|e| e.target.iter().filter(|word| token(**word).1).count()).sum(),
            tokens: examples.iter().map(|e| e.source.len() + e.target.len()).sum(),
        };
        for row in 0..batch {
            let example = examples.get(row).unwrap_or(first);
            made.fill(row, example, special.start);
            if row < examples.len() {
                fill(&mut made.labels, row, example.target.iter().map(|word| label(*word)));
            }
        }
        Ok(made)
    }

    /// `count` rows of `labels` in row-major order: those that count, then others.
    pub fn counted_rows(&self, count: usize) -> Array1<i64> {
        let rows = |counts: bool| {
            let is_wanted = move |(_, label): &(usize, &i64)| (**label != IGNORED) == counts;
            self.labels.iter().enumerate().filter(is_wanted).map(|(row, _)| row as i64)
        };
        rows(true).chain(rows(false)).take(count).collect()
    }

    fn fill(&mut self, row: usize, example: &Example, start: i64) {
        let before_last = example.target.len().saturating_sub(1);
        let given = example.target[..before_last].iter().map(|word| token(*word).0);
        fill(&mut self.source, row, example.source.iter().map(|word| token(*word).0));
        fill(&mut self.source_mask, row, example.source.iter().map(|word| i64::from(token(*word).1)));
        fill(&mut self.target_in, row, std::iter::once(start).chain(given));
        fill(&mut self.target_mask, row, example.target.iter().map(|_| 1));
    }
}

fn label(word: u32) -> i64 {
    let (id, counts) = token(word);
    if counts { id } else { IGNORED }
}

/// Puts values at the start of a row.
fn fill(array: &mut Array2<i64>, row: usize, values: impl IntoIterator<Item = i64>) {
    array.row_mut(row).iter_mut().zip(values).for_each(|(cell, value)| *cell = value);
}

fn fitting(what: &str, needed: usize, fixed: Option<usize>) -> anyhow::Result<usize> {
    match fixed {
        Some(fixed) if needed > fixed => bail!("{needed} {what} do not fit the model, whose shape is fixed at {fixed}"),
        Some(fixed) => Ok(fixed),
        None => Ok(needed),
    }
}
