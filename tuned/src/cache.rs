//! What a cache of taps is called on the disk, and how its numbers are stored.

mod element;
mod size;

use std::path::Path;

pub use element::{Element, Unfit};
pub use size::Size;

/// The file that says what a cache was made for.
pub const ABOUT: &str = "cache.yaml";
/// The endings of a shard and of its index.
pub const RECORDS: &str = "taps";
pub const INDEX: &str = "index";

/// True for a folder that holds a cache.
pub fn is_cache(folder: &Path) -> bool {
    folder.join(ABOUT).is_file()
}

/// True for the name of a cache's file.
pub fn is_own(name: &str) -> bool {
    name == ABOUT || is_shard(Path::new(name))
}

/// True for the name of a shard or its index.
pub fn is_shard(path: &Path) -> bool {
    shard(path).is_some() && path.extension().is_some_and(|e| e == RECORDS || e == INDEX)
}

/// The number in a shard's name.
pub fn shard(path: &Path) -> Option<u64> {
    let stem = path.file_stem()?.to_str()?;
    stem.parse().ok().filter(|number| stem == shard_name(*number))
}

/// A shard's name without its ending.
pub fn shard_name(number: u64) -> String {
    format!("{number:06}")
}
