//! The committed cases.

use std::path::{Path, PathBuf};

/// Folders of `tests/cases` that hold a file of this name: at least `count`.
pub fn with(file: &str, count: usize) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let entries = std::fs::read_dir(root).expect("the cases are committed");
    let mut found: Vec<PathBuf> = entries.map(|e| e.expect("a readable folder").path()).collect();
    found.retain(|p| p.join(file).exists());
    found.sort();
    assert!(found.len() >= count, "only {} cases hold {file}", found.len());
    found
}
