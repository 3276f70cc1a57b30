//! Files changed at random: each change is noticed, or changes no number.
//!
//! No mutant of any file makes lstc panic, hang, or allocate as much as a number in the file says, and each that is refused is named.
//! What is made of a seed is always the same: `LSTC_MUTANT=SEED` makes that one mutant of each kind of file, and no other.

#[path = "mutants/bytes.rs"]
mod bytes;
#[path = "mutants/cached.rs"]
mod cached;
#[path = "mutants/chance.rs"]
mod chance;
#[path = "mutants/graphs.rs"]
mod graphs;
#[path = "mutants/jsons.rs"]
mod jsons;
#[path = "mutants/rewritten.rs"]
mod rewritten;
#[path = "mutants/rows.rs"]
mod rows;
#[path = "mutants/sources.rs"]
mod sources;
#[path = "mutants/texts.rs"]
mod texts;
#[path = "mutants/watch.rs"]
mod watch;

use std::collections::BTreeMap;
use std::path::Path;

use watch::Watch;

use super::tuned::Tuned;

/// Mutants of each kind of file that are made unless `LSTC_MUTANTS` says another number.
const MUTANTS: u64 = 300;

/// As [`MUTANTS`], of files that take long to judge.
const FEW: u64 = 10;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|number| number.parse().ok())
}

/// Judges mutants of a kind of file, one after the other: `judge` makes the mutant of a seed and says what became of it.
fn each(what: &str, usual: u64, mut judge: impl FnMut(u64) -> &'static str) {
    let seeds = number("LSTC_MUTANT").map_or(0..number("LSTC_MUTANTS").unwrap_or(usual), |seed| seed..seed + 1);
    let mut outcomes: BTreeMap<&str, u64> = BTreeMap::new();
    let mut watch = Watch::new(what);
    for seed in seeds {
        let outcome = watch.over(seed, || judge(seed));
        *outcomes.entry(outcome).or_default() += 1;
    }
    let outcomes: Vec<String> = outcomes.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
    println!("mutants of {what}: {}; at most {:.0?} each", outcomes.join(", "), watch.longest());
}

/// An error for a damaged file says which it is.
fn names(error: &anyhow::Error, file: &str) {
    let said = format!("{error:#}");
    assert!(said.contains(file), "`{file}` is not in: {said}");
}

/// Makes mutants of a file, one after the other in its place, and looks at each: an error notices it, and names the file or another
/// of its folder; anything else must be equal to what is read of the sound file.
fn sweep<T: PartialEq>(tuned: &Tuned, name: &str, read: impl Fn() -> anyhow::Result<T>) {
    let sound = tuned.read(name);
    let expected = read().unwrap_or_else(|e| panic!("{name} is sound: {e:?}"));
    let path = tuned.path(name);
    let folder = path.parent().and_then(Path::to_str).expect("a file in a folder");
    each(name, MUTANTS, |seed| {
        tuned.put(name, bytes::mutant(&sound, seed));
        match read() {
            Err(error) => {
                names(&error, folder);
                "noticed"
            }
            Ok(found) => {
                assert!(found == expected, "it is accepted, with other contents");
                "without a change that counts"
            }
        }
    });
    tuned.put(name, sound);
}
