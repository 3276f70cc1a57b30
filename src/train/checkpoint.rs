//! Checkpoints: where a run stands, in one safetensors file that appears whole.
//!
//! The tensors are the parameters under their names, so that the file is a side network too, and their moments; the
//! file's metadata says the rest.

use std::path::Path;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::runtime::DeviceTensor;
use crate::side::{self, Side};

/// The file of a run's last checkpoint.
pub const CHECKPOINT: &str = "checkpoint.safetensors";

/// The key of the metadata that says where a run stands.
const KEY: &str = "lstc.progress";

/// Where a run stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Steps made.
    pub step: u64,
    /// Epochs after which the model was evaluated.
    pub epochs: u64,
    /// The best evaluation so far.
    pub best: Option<Best>,
    /// What the run is of: one that is resumed must be of the same.
    pub identity: Identity,
}

/// The best evaluation of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    pub step: u64,
    pub epoch: u64,
    pub loss: f64,
    pub accuracy: Option<f64>,
}

impl Best {
    /// Whether this is better than another: by accuracy where there is one, and then by loss.
    pub fn beats(&self, other: &Best) -> bool {
        match (self.accuracy, other.accuracy) {
            (Some(a), Some(b)) if a != b => a > b,
            _ => self.loss < other.loss,
        }
    }
}

/// Everything that the numbers of a run depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// SHA-256 of the training graph, and of the tokenised data.
    pub model: String,
    pub data: String,
    pub eval: Option<String>,
    /// The share of the training file that is evaluated on, where it is one.
    #[serde(default)]
    pub eval_fraction: Option<f64>,
    pub epochs: u64,
    pub batch_size: usize,
    pub accumulate: usize,
    pub lr: f64,
    pub schedule: super::Schedule,
    pub warmup_steps: Option<u64>,
    pub seed: u64,
}

impl Identity {
    /// What another run has otherwise, in words.
    pub fn differences(&self, other: &Identity) -> Vec<String> {
        let fields = |identity: &Identity| match serde_json::to_value(identity) {
            Ok(serde_json::Value::Object(fields)) => fields,
            _ => serde_json::Map::new(),
        };
        let (mine, theirs) = (fields(self), fields(other));
        let is_other_share = self.eval_fraction != other.eval_fraction;
        let follows = |name: &str| is_other_share && (name == "data" || name == "eval");
        let differs = mine.iter().filter(|(name, value)| theirs.get(*name) != Some(value) && !follows(name));
        differs
            .map(|(name, value)| match (name.as_str(), theirs.get(name)) {
                ("model", _) => "the model was rewritten since".to_owned(),
                ("data", _) => "the training data, the tokenizer or how they are read has changed".to_owned(),
                ("eval", _) => "the evaluation data, the tokenizer or how they are read has changed".to_owned(),
                (_, Some(theirs)) => format!("{name} was {value} and is now {theirs}"),
                (_, None) => format!("{name} was {value}"),
            })
            .collect()
    }
}

/// Writes a checkpoint in the place of the one before.
///
/// # Errors
/// From the file system; the one before is then as it was.
pub fn save(path: &Path, state: &[(String, DeviceTensor)], progress: &Progress) -> anyhow::Result<()> {
    side::save_on_device(path, state, &[(KEY, serde_json::to_string(progress)?)])
}

/// Reads a checkpoint.
///
/// # Errors
/// A file that is missing, damaged or no checkpoint.
pub fn load(path: &Path) -> anyhow::Result<(Side, Progress)> {
    let (state, metadata) = side::load_with(path)?;
    let Some(text) = metadata.get(KEY) else {
        bail!("`{}` is no checkpoint: it does not say where the run stands", path.display());
    };
    let progress =
        serde_json::from_str(text).with_context(|| format!("`{}` is no checkpoint of this version", path.display()))?;
    Ok((state, progress))
}
