//! Files changed at random: each change is noticed, or changes no number.

use std::path::PathBuf;

use lstc::rewrite::config::Config;
use lstc::rewrite::opened::Opened;
use lstc::side;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::tuned::{Tuned, succeeded};

/// Mutants of each kind of file that are made unless `LSTC_MUTANTS` says another number.
const MUTANTS: u64 = 300;

fn count() -> u64 {
    std::env::var("LSTC_MUTANTS").ok().and_then(|count| count.parse().ok()).unwrap_or(MUTANTS)
}

/// A file with a bit turned over, a byte set, bytes put in or taken out, an end cut off, or a part of it copied over another.
fn mutant(bytes: &[u8], seed: u64) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut below = |limit: usize| (rng.next_u64() % limit.max(1) as u64) as usize;
    let mut mutant = bytes.to_vec();
    let at = below(bytes.len());
    let some = 1 + below(16.min(bytes.len() - at));
    match below(6) {
        0 => mutant[at] ^= 1 << below(8),
        1 => mutant[at] = below(256) as u8,
        2 => drop(mutant.splice(at..at, (0..some).map(|_| below(256) as u8).collect::<Vec<u8>>())),
        3 => drop(mutant.drain(at..at + some)),
        4 => mutant.truncate(at),
        _ => {
            let from = below(bytes.len() - some);
            mutant.copy_within(from..from + some, at.min(bytes.len() - some));
        }
    }
    mutant
}

/// Makes mutants of a file, one after the other in its place, and looks at each: an error notices it, and anything else must be equal
/// to what is read of the sound file.
fn sweep<T: PartialEq>(tuned: &Tuned, name: &str, read: impl Fn() -> anyhow::Result<T>) {
    let sound = tuned.read(name);
    let expected = read().unwrap_or_else(|e| panic!("{name} is sound: {e:?}"));
    let (mut noticed, mut same) = (0, 0);
    for seed in 0..count() {
        let bytes = mutant(&sound, seed);
        tuned.put(name, &bytes);
        match read() {
            Err(_) => noticed += 1,
            Ok(found) if found == expected => same += 1,
            Ok(_) => panic!("mutant {seed} of {name} is accepted, with other contents"),
        }
    }
    tuned.put(name, sound);
    println!("{name}: {noticed} mutants noticed, {same} without a change that counts, 0 accepted with other contents");
}

#[test]
fn mutants_of_checkpoints_and_side_networks_are_noticed() {
    let tuned = Tuned::new();
    succeeded(&tuned.train("run", &[]));
    for name in ["run/checkpoint.safetensors", "run/best.safetensors", "tuned/side.safetensors"] {
        let path = tuned.path(name);
        sweep(&tuned, name, || side::load_with(&path));
    }
}

#[test]
fn mutants_of_manifests_are_noticed() {
    let tuned = Tuned::new();
    let directory = tuned.path("tuned");
    sweep(&tuned, "tuned/lst.yaml", || {
        let mut record = Opened::new(&directory)?.record;
        // The files were checked. Where the source lies, and how the model is trained, may change.
        record.files.clear();
        record.source.iter_mut().for_each(|source| source.file = PathBuf::new());
        let options = Config::read(&directory.join("lst.yaml"))?.options();
        Ok((format!("{record:?}"), format!("{options:?}")))
    });
}
