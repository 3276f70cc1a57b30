//! Where a directory's side network came from.

use std::path::{Path, PathBuf};

use anyhow::Context;
use lstc_base::hash::sha256;
use lstc_graph::regular;
use serde::{Deserialize, Serialize};

/// Where a directory's side network came from: `side` of the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The file that it was read from, and its SHA-256.
    pub imported: PathBuf,
    pub sha256: String,
    /// SHA-256 of side.safetensors as it was written.
    pub written: String,
}

/// The SHA-256 of a file.
///
/// # Errors
/// A file that cannot be read.
pub fn hash(path: &Path) -> anyhow::Result<String> {
    let context = || format!("cannot read `{}`", path.display());
    sha256(&mut regular::open(path).with_context(context)?).with_context(context)
}
