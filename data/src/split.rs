//! A corpus in two: a share of its examples that is held out, and the rest.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use lstc_graph::count;

use super::Corpus;
use super::corpus::{ENTRY, Fingerprint};
use super::order::{random, shuffle};
use super::words::WordsWriter;

/// Keeps the order in which examples are held out distinct from those of the epochs.
const STREAM: u64 = u64::MAX;

impl Corpus {
    /// The examples that are trained on, and those that are held out: `share` of all, drawn by `seed`. Where `by_target`
    /// says so, each target has its share of both, to the nearest example; a target that occurs once is trained on. Both
    /// keep the order of the file, no example is in both, and the same corpus, share and seed give the same two on every
    /// machine. The indices go to unnamed files in the folder `scratch`.
    ///
    /// # Errors
    /// Too few examples to hold one out; from the file system.
    pub fn split(self, share: f64, seed: u64, by_target: bool, scratch: &Path) -> anyhow::Result<(Corpus, Corpus)> {
        let mut groups: BTreeMap<&[u32], Vec<u32>> = BTreeMap::new();
        for index in 0..self.len() {
            let target = if by_target { self.example(index).target } else { &[] };
            groups.entry(target).or_default().push(index as u32);
        }
        let mut random = random(seed, STREAM);
        let groups: Vec<Vec<u32>> = groups.into_values().collect();
        let counts = quotas(&groups.iter().map(Vec::len).collect::<Vec<_>>(), share);
        let mut is_held_out = vec![false; self.len()];
        for (mut group, count) in groups.into_iter().zip(counts) {
            shuffle(&mut group, &mut random);
            group[..count].iter().for_each(|index| is_held_out[*index as usize] = true);
        }
        if !is_held_out.contains(&true) {
            let of = if by_target { ", each with a target of its own" } else { "" };
            bail!("{}{of}: too few to hold out a share of {share}", count(self.len(), "example"));
        }
        let part = |held_out: bool| self.part(|index| is_held_out[index] == held_out, scratch);
        let (rest, held_out) = (part(false)?, part(true)?);
        // Notes about the file are given once.
        Ok((Corpus { skipped: self.skipped, truncated: self.truncated, note: self.note, ..rest }, held_out))
    }

    /// Some of the examples, sharing the tokens of all.
    fn part(&self, takes: impl Fn(usize) -> bool, scratch: &Path) -> anyhow::Result<Corpus> {
        let full = || format!("cannot write an index to `{}`", scratch.display());
        let mut index = WordsWriter::create(scratch).with_context(full)?;
        let mut fingerprint = Fingerprint::default();
        for at in (0..self.len()).filter(|at| takes(*at)) {
            index.push(&self.index[at * ENTRY..][..ENTRY]).with_context(full)?;
            let example = self.example(at);
            fingerprint.add(example.source, example.target);
        }
        Ok(Corpus {
            tokens: Arc::clone(&self.tokens),
            index: index.finish().with_context(full)?,
            skipped: Default::default(),
            truncated: (0, 0),
            hides_source: self.hides_source,
            note: None,
            sha256: fingerprint.finish(),
            state: None,
        })
    }
}

/// How many of each group are held out: its share rounded down, and one more where rounding loses the most, until the share of
/// all is reached. Each of several groups keeps an example, and so does the whole.
fn quotas(groups: &[usize], share: f64) -> Vec<usize> {
    let all: usize = groups.iter().sum();
    let wanted = ((all as f64 * share).round() as usize).max(1);
    let exact = |count: usize| count as f64 * share;
    let mut quotas: Vec<usize> = groups.iter().map(|count| exact(*count) as usize).collect();
    let mut missing = wanted.saturating_sub(quotas.iter().sum());
    let mut by_loss: Vec<usize> = (0..groups.len()).collect();
    by_loss.sort_by(|a, b| exact(groups[*b]).fract().total_cmp(&exact(groups[*a]).fract()));
    for group in by_loss {
        if missing > 0 && quotas[group] + 1 < groups[group] {
            quotas[group] += 1;
            missing -= 1;
        }
    }
    quotas
}

#[cfg(test)]
mod tests {
    use super::quotas;

    #[test]
    fn each_group_gives_its_share() {
        assert_eq!(quotas(&[100], 0.1), [10]);
        assert_eq!(quotas(&[50, 30, 20], 0.1), [5, 3, 2]);
        assert_eq!(quotas(&[5, 5, 5, 5], 0.1), [1, 1, 0, 0]);
        assert_eq!(quotas(&[19, 11, 1], 0.1), [2, 1, 0]);
        assert_eq!(quotas(&[2], 0.01), [1]);
    }

    #[test]
    fn what_is_trained_on_is_never_used_up() {
        assert_eq!(quotas(&[3, 1, 1], 0.9), [2, 0, 0]);
        assert_eq!(quotas(&[1], 0.5), [0]);
        assert_eq!(quotas(&[2, 2], 0.99), [1, 1]);
    }
}
