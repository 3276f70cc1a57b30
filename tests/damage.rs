//! Damage: what lstc wrote, and somebody or something changed since, is noticed by whatever reads it.
//!
//! `LSTC_MUTANTS=10000 cargo test --test damage mutants -- --nocapture` makes so many mutants of each kind of file.

#[path = "damage/checkpoints.rs"]
mod checkpoints;
mod common;
#[path = "damage/manifests.rs"]
mod manifests;
#[path = "damage/mutants.rs"]
mod mutants;
#[path = "damage/named_files.rs"]
mod named_files;
#[path = "damage/runs.rs"]
mod runs;
#[path = "damage/tuned.rs"]
mod tuned;
