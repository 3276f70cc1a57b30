//! Mutants of any file, by its bytes.

use super::chance::Chance;

/// A file with a bit turned over, a byte set, bytes put in or taken out, an end cut off, or a part of it copied over another.
pub fn mutant(bytes: &[u8], seed: u64) -> Vec<u8> {
    let mut chance = Chance::new(seed);
    let mut mutant = bytes.to_vec();
    let at = chance.below(bytes.len());
    let some = 1 + chance.below(16.min(bytes.len() - at));
    match chance.below(6) {
        0 => mutant[at] ^= 1 << chance.below(8),
        1 => mutant[at] = chance.byte(),
        2 => drop(mutant.splice(at..at, (0..some).map(|_| chance.byte()).collect::<Vec<u8>>())),
        3 => drop(mutant.drain(at..at + some)),
        4 => mutant.truncate(at),
        _ => {
            let from = chance.below(bytes.len() - some);
            mutant.copy_within(from..from + some, at.min(bytes.len() - some));
        }
    }
    mutant
}
