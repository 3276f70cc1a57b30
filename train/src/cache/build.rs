//! Fills a cache before training: the rows of a share that are not kept yet, in batches of similar length.

use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::bail;
use lstc_data::{Batch, Corpus};
use lstc_runtime::Tensor;
use lstc_tuned::opened::Opened;
use serde::Serialize;

use super::{Cache, Holding};

/// A share of the rows, as in `1/4`: rows `i`, `i + n`, `i + 2n` and so on. Shares may be numbered from 0 or from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    part: u32,
    of: u32,
}

impl Share {
    pub const ALL: Share = Share { part: 0, of: 1 };

    fn has(self, row: u32) -> bool {
        row % self.of == self.part % self.of
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Share, String> {
        let problem = || format!("`{text}` is not a share: expected a number and how many there are, as in 1/4");
        let (part, of) = text.split_once('/').ok_or_else(problem)?;
        let number = |text: &str| text.parse::<u32>().map_err(|_| problem());
        let share = Share { part: number(part)?, of: number(of)? };
        if share.of == 0 || share.part > share.of { Err(problem()) } else { Ok(share) }
    }
}

/// The progress of filling a cache.
#[derive(Clone, Copy, Debug)]
pub struct Going {
    pub what: &'static str,
    /// Rows that are done, and their total.
    pub done: usize,
    pub of: usize,
    /// Tokens a second, where rows are computed.
    pub rate: Option<f64>,
}

/// Rows that are checked between two reports of progress.
const LOOK: usize = 64;

/// The outcome of filling a cache.
#[derive(Clone, Debug, Serialize)]
pub struct Built {
    /// Rows of the share; those that were kept before, and that are kept now.
    pub share: usize,
    pub before: usize,
    pub added: usize,
    /// Tokens of the rows that were computed.
    pub tokens: usize,
    pub seconds: f64,
    pub tokens_per_second: f64,
    /// The user asked to stop before the end.
    pub interrupted: bool,
    pub cache: Holding,
}

/// Computes the taps of the rows of a share that are not kept, until the cache is full; with `check` also of those whose records are
/// not as they were written. `proceed` is given the progress, and ends the work by returning false.
///
/// # Errors
/// From `compute`; from the file system.
pub fn build(
    cache: &mut Cache,
    opened: &Opened,
    corpus: &Corpus,
    (share, batch_size, check): (Share, usize, bool),
    mut compute: impl FnMut(&Batch) -> anyhow::Result<Vec<Tensor>>,
    mut proceed: impl FnMut(&mut Cache, &Going) -> bool,
) -> anyhow::Result<Built> {
    let begun = Instant::now();
    let mine: Vec<u32> = (0..corpus.len() as u32).filter(|row| share.has(*row)).collect();
    let mut interrupted = false;
    for (done, row) in mine.iter().enumerate().filter(|_| check) {
        cache.check(corpus, *row as usize)?;
        if done % LOOK == 0 && !proceed(cache, &Going { what: "checking", done, of: mine.len(), rate: None }) {
            interrupted = true;
            break;
        }
    }
    let (kept, mut missing): (Vec<u32>, Vec<u32>) = mine.into_iter().partition(|row| cache.has(*row));
    missing.sort_by_key(|row| {
        let example = corpus.example(*row as usize);
        std::cmp::Reverse((example.source.len(), example.target.len()))
    });
    let (of, before) = (missing.len(), cache.store.kept());
    let (mut done, mut tokens) = (0, 0);
    for rows in missing.chunks(batch_size.max(1)) {
        if interrupted || cache.reported.full {
            break;
        }
        let batch = Batch::new(corpus, rows, opened.record.tokens, &opened.fixed())?;
        cache.compute(opened, corpus, rows, &batch, &mut compute)?;
        if cache.reported.failed {
            // The last warning is what failed.
            bail!("{}", cache.take_warnings().pop().unwrap_or_default());
        }
        done += rows.len();
        tokens += batch.tokens;
        let rate = Some(rate(tokens, begun.elapsed()));
        interrupted = !proceed(cache, &Going { what: "building", done, of, rate }) && done < of;
    }
    let elapsed = begun.elapsed();
    Ok(Built {
        share: kept.len() + of,
        before: kept.len(),
        added: cache.store.kept().saturating_sub(before),
        tokens,
        seconds: elapsed.as_secs_f64(),
        tokens_per_second: rate(tokens, elapsed),
        interrupted,
        cache: cache.holding(),
    })
}

fn rate(tokens: usize, elapsed: Duration) -> f64 {
    tokens as f64 / elapsed.as_secs_f64().max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_every_row_once_from_0_or_from_1() {
        let share = |text: &str| text.parse::<Share>().expect("a share");
        for shares in [["0/3", "1/3", "2/3"], ["1/3", "2/3", "3/3"]] {
            assert!((0..20).all(|row| shares.iter().filter(|text| share(text).has(row)).count() == 1));
        }
        assert!((0..9).all(|row| share("1/1").has(row) && Share::ALL.has(row)));
        for wrong in ["", "1", "4/3", "1/0", "-1/2", "a/b"] {
            assert!(wrong.parse::<Share>().is_err(), "{wrong}");
        }
    }
}
