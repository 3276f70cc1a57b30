//! Checkpoints: where a run stands, in one safetensors file that is written atomically.
//!
//! The tensors are the parameters under their names, so that the file is a side network too, and their moments; the
//! file's metadata says the rest. What a resumed run begins from is fully checked: its checksum, and each tensor by name and shape.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, anyhow};
use lstc_base::report::Hinted;
use lstc_runtime::DeviceTensor;
use lstc_tuned::manifest::Record;
use lstc_tuned::options::Schedule;
use lstc_tuned::run::BEST;
use lstc_tuned::side::{self, Seal, Side};
use serde::{Deserialize, Serialize};

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
    /// BLAKE3 of what train.yaml says: how the run was started.
    pub started: String,
    /// What the run's numbers depend on: a resumed run must agree.
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
    /// Whether this is better than another: by accuracy if there is one, and then by loss.
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
    /// The share of the training file that is evaluated on, if any.
    #[serde(default)]
    pub eval_fraction: Option<f64>,
    pub epochs: u64,
    pub batch_size: usize,
    pub accumulate: usize,
    pub lr: f64,
    pub schedule: Schedule,
    pub warmup_steps: Option<u64>,
    pub seed: u64,
}

impl Identity {
    /// What differs in another run, in words.
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
                ("model", _) => "the model has been rewritten since".to_owned(),
                ("data", _) => "the training data, the tokenizer or how they are read has changed".to_owned(),
                ("eval", _) => "the evaluation data, the tokenizer or how they are read has changed".to_owned(),
                (_, Some(theirs)) => format!("{name} was {value} and is now {theirs}"),
                (_, None) => format!("{name} was {value}"),
            })
            .collect()
    }
}

/// Replaces the previous checkpoint.
///
/// # Errors
/// From the file system; the previous one is then unchanged.
pub fn save(
    path: &Path,
    state: &[(String, DeviceTensor)],
    progress: &Progress,
    origin: [(&'static str, String); 2],
) -> anyhow::Result<()> {
    let [trained, made_for] = origin;
    side::save_on_device(path, state, &[(KEY, serde_json::to_string(progress)?), trained, made_for])
}

/// Reads the checkpoint of a run of a rewritten model.
///
/// A checkpoint without a checksum is refused, although earlier versions wrote them: nothing shows whether its numbers are
/// those that were saved, and the effect of a damaged moment on a run would go unnoticed.
///
/// # Errors
/// A file that is missing, damaged or not a checkpoint; every tensor that is missing, has another shape, holds numbers that are
/// not finite, or is not the rewritten model's.
pub fn load(path: &Path, record: &Record) -> anyhow::Result<(Side, Progress)> {
    read(path, record).map_err(|error| {
        let best = path.with_file_name(BEST);
        let hint = format!(
            "put a copy of the checkpoint in its place, or start another run from the best side network of this one: \
             `lstc train DIR --from {} --out ANOTHER`",
            lstc_base::report::word(&best.to_string_lossy())
        );
        Hinted::new(anyhow!("{error:#}").context("the run cannot be resumed"), hint).into()
    })
}

fn read(path: &Path, record: &Record) -> anyhow::Result<(Side, Progress)> {
    let (state, metadata, seal) = side::load_with(path)?;
    let name = path.display();
    let Some(text) = metadata.get(KEY) else {
        return Err(anyhow!("`{name}` is not a checkpoint: it does not say where the run stands"));
    };
    if seal == Seal::Foreign {
        return Err(anyhow!("`{name}` has no checksum: an earlier version of lstc wrote it, or another program"));
    }
    let progress =
        serde_json::from_str(text).with_context(|| format!("`{name}` is not a checkpoint of this version"))?;
    let misfits = misfits(&state, record);
    if misfits.is_empty() {
        return Ok((state, progress));
    }
    Err(anyhow!("`{name}` does not fit the rewritten model\n  {}", misfits.join("\n  ")))
}

/// How a checkpoint's tensors differ from the parameters and moments of a rewritten model, in words.
fn misfits(state: &Side, record: &Record) -> Vec<String> {
    let moments = record.moments.iter().flat_map(|m| m.tensors().map(|name| (name, m.shape.as_slice())));
    let parameters = record.shapes().map(|(name, shape)| (name.to_owned(), shape));
    let wanted: BTreeMap<String, &[usize]> = parameters.chain(moments).collect();
    let mut misfits = Vec::new();
    for (name, shape) in &wanted {
        match state.get(name) {
            None => misfits.push(format!("`{name}` is missing; its shape is {shape:?}")),
            Some(found) if found.shape() != *shape => {
                misfits.push(format!("`{name}` is {:?} in the checkpoint, and {shape:?} in the model", found.shape()));
            }
            Some(found) if found.iter().any(|v| !v.is_finite()) => {
                misfits.push(format!("`{name}` holds numbers that are not finite"));
            }
            Some(_) => {}
        }
    }
    let unknown = state.keys().filter(|name| !wanted.contains_key(*name));
    misfits.extend(unknown.map(|name| format!("`{name}` is neither a parameter nor a moment of the model")));
    misfits
}
