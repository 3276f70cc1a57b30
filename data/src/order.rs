//! How the examples of a corpus are divided into batches, and in which order these come.
//!
//! **Invariant:** every example comes once. A batch smaller than the others comes last.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::Corpus;

/// Batches whose examples are sorted by length together: enough for little padding, few enough for batches to stay random.
const WINDOW: usize = 64;

/// Batches of indices into a corpus, 4 bytes an example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batches {
    indices: Vec<u32>,
    batch_size: usize,
    /// The order of the full batches.
    order: Vec<u32>,
}

impl Batches {
    pub fn len(&self) -> usize {
        self.indices.len().div_ceil(self.batch_size)
    }

    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// # Panics
    /// If there is no such batch.
    pub fn get(&self, batch: usize) -> &[u32] {
        let place = self.order.get(batch).map_or(batch, |place| *place as usize);
        let start = place * self.batch_size;
        &self.indices[start..self.indices.len().min(start + self.batch_size)]
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        (0..self.len()).map(|batch| self.get(batch))
    }
}

/// The batches of one epoch, with examples of like length together: all examples are shuffled, windows of them are sorted
/// by length and cut into batches, and the batches are shuffled. The same on every machine.
///
/// # Panics
/// For a batch size of 0.
pub fn epoch_batches(corpus: &Corpus, batch_size: usize, seed: u64, epoch: u64) -> Batches {
    assert_ne!(batch_size, 0, "a batch holds at least one example");
    let mut random = random(seed, epoch);
    let mut indices = all(corpus);
    shuffle(&mut indices, &mut random);
    let full = indices.len() / batch_size;
    for window in indices[..full * batch_size].chunks_mut(WINDOW.saturating_mul(batch_size)) {
        window.sort_by_key(|index| corpus.lengths(*index as usize));
    }
    let mut order: Vec<u32> = (0..full as u32).collect();
    shuffle(&mut order, &mut random);
    Batches { indices, batch_size, order }
}

/// The order of examples when nothing is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As in the file.
    File,
    /// The longest first: the least padding, and the most memory at once.
    Length,
}

/// Batches of all examples for evaluation.
///
/// # Panics
/// For a batch size of 0.
pub fn sequential_batches(corpus: &Corpus, batch_size: usize, order: Order) -> Batches {
    assert_ne!(batch_size, 0, "a batch holds at least one example");
    let mut indices = all(corpus);
    if order == Order::Length {
        indices.sort_by_key(|index| std::cmp::Reverse(corpus.lengths(*index as usize)));
    }
    Batches { indices, batch_size, order: Vec::new() }
}

fn all(corpus: &Corpus) -> Vec<u32> {
    // A corpus has no more examples than u32 counts.
    (0..corpus.len() as u32).collect()
}

/// ChaCha with the seed and the epoch as its key, so that epochs are independent of one another.
pub(super) fn random(seed: u64, epoch: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// Fisher-Yates. Written out, since a library's may change between versions.
pub(super) fn shuffle(values: &mut [u32], random: &mut ChaCha8Rng) {
    for last in (1..values.len()).rev() {
        let drawn = (u128::from(random.next_u64()) * (last as u128 + 1)) >> 64;
        values.swap(last, drawn as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_the_same_on_every_machine() {
        let mut values: Vec<u32> = (0..12).collect();
        shuffle(&mut values, &mut random(7, 1));
        insta::assert_snapshot!(format!("{values:?}"), @"[4, 8, 7, 1, 6, 2, 9, 3, 5, 11, 0, 10]");
    }
}
