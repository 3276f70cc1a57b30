//! The checksum of a side network's file: a BLAKE3 of its metadata and tensors, kept in its metadata.
//!
//! What is hashed is what the file says, not its bytes: the metadata by key, and each tensor's name, type, shape and bytes, by
//! name. A file that was read and written by another tool, metadata and all, is still what lstc wrote.
//!
//! Every file of lstc's has the key [`FORMAT`] beside [`CHECKSUM`], so that one cannot lose its checksum by one damaged key.

use std::collections::BTreeMap;
use std::path::Path;

use blake3::Hasher;
use safetensors::SafeTensors;
use serde::Serialize;

/// Every key of the metadata that is lstc's own begins so.
const OWN: &str = "lstc.";

/// Says how the checksum is made.
pub const FORMAT: &str = "lstc.format";
pub const VERSION: &str = "2";

/// The checksum, in hexadecimal.
pub const CHECKSUM: &str = "lstc.blake3";

/// Hexadecimal digits of a checksum.
pub const DIGITS: usize = 64;

/// What a file holds besides its tensors, by key.
pub type Metadata = BTreeMap<String, String>;

/// Who wrote a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Seal {
    /// lstc wrote it, and its checksum matches.
    Holds { blake3: String },
    /// Another program wrote it: there is nothing to check its values against.
    Foreign,
}

impl Seal {
    /// The warning for a file that lstc did not write.
    pub fn note(&self, path: &Path) -> Option<String> {
        let text =
            || format!("`{}` was not written by lstc: it has no checksum to check its values against", path.display());
        (*self == Seal::Foreign).then(text)
    }
}

/// Why a file is not as lstc wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("its checksum does not match: its tensors or its metadata are not what was written")]
    Differs,
    #[error("lstc wrote it, but it has no checksum: its metadata is damaged, or an earlier version wrote it")]
    Missing,
}

/// A checksum in the making.
pub struct Checksum(Hasher);

impl Checksum {
    /// Begins the checksum of a file with this metadata, in which the checksum itself does not count.
    pub fn new(metadata: &Metadata) -> Checksum {
        let mut sum = Checksum(Hasher::new());
        let counted: Vec<_> = metadata.iter().filter(|(key, _)| *key != CHECKSUM).collect();
        sum.number(counted.len());
        for (key, value) in counted {
            sum.field(key.as_bytes());
            sum.field(value.as_bytes());
        }
        sum
    }

    /// The next tensor, in the order of the names.
    pub fn tensor(&mut self, name: &str, dtype: &str, shape: &[usize], bytes: &[u8]) {
        self.field(name.as_bytes());
        self.field(dtype.as_bytes());
        self.number(shape.len());
        shape.iter().for_each(|&size| self.number(size));
        self.field(bytes);
    }

    pub fn finish(&self) -> String {
        self.0.finalize().to_hex().to_string()
    }

    /// Lengths precede contents, so that no two files are hashed alike.
    fn field(&mut self, bytes: &[u8]) {
        self.number(bytes.len());
        self.0.update(bytes);
    }

    fn number(&mut self, number: usize) {
        self.0.update(&(number as u64).to_le_bytes());
    }
}

/// Whether a file says that lstc wrote it.
pub fn is_ours(metadata: &Metadata) -> bool {
    metadata.keys().any(|key| key.starts_with(OWN))
}

/// Checks a file against its checksum.
///
/// # Errors
/// A file of lstc's whose checksum is missing or does not match.
pub fn check(tensors: &SafeTensors, metadata: &Metadata) -> Result<Seal, Broken> {
    if !is_ours(metadata) {
        return Ok(Seal::Foreign);
    }
    let Some(recorded) = metadata.get(CHECKSUM) else { return Err(Broken::Missing) };
    let mut sum = Checksum::new(metadata);
    let mut names = tensors.names();
    names.sort_unstable();
    for name in names {
        let Ok(view) = tensors.tensor(name) else { return Err(Broken::Differs) };
        sum.tensor(name, &view.dtype().to_string(), view.shape(), view.data());
    }
    let found = sum.finish();
    let is_known = metadata.get(FORMAT).is_some_and(|version| version == VERSION);
    if is_known && found == *recorded { Ok(Seal::Holds { blake3: found }) } else { Err(Broken::Differs) }
}
