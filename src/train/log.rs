//! The metrics of a run, one JSON object a line.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// The file of a run's metrics.
pub const METRICS: &str = "metrics.jsonl";

/// What is logged of one step.
#[derive(Clone, Debug, Serialize)]
pub struct StepLine {
    pub step: u64,
    pub epoch: u64,
    pub loss: f64,
    pub lr: f64,
    pub grad_norm: f64,
    pub seconds: f64,
    /// Without padding.
    pub tokens: usize,
    pub tokens_per_second: f64,
    /// Resident now, in bytes; on a device, in use of its memory.
    pub memory: u64,
    /// Its peak, in bytes.
    pub peak_memory: u64,
    /// How far each gate is open, by its parameter: at the first step, some times in an epoch on the CPU, and
    /// where the run is saved or an epoch ends.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub gates: BTreeMap<String, f64>,
}

/// What is logged of one evaluation.
#[derive(Clone, Debug, Serialize)]
pub struct EvalLine {
    pub step: u64,
    pub epoch: u64,
    pub eval_loss: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_accuracy: Option<f64>,
    pub seconds: f64,
}

/// An open log.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Opens the log of a run that stands at `step` and has closed so many epochs: lines of what a resumed run makes again,
    /// and a line that was not finished, are taken out.
    ///
    /// # Errors
    /// From the file system.
    pub fn open(folder: &Path, step: u64, epochs: u64) -> anyhow::Result<Log> {
        #[derive(Deserialize)]
        struct Line {
            step: u64,
            epoch: u64,
            eval_loss: Option<f64>,
        }
        let path = folder.join(METRICS);
        let context = || format!("cannot write `{}`", path.display());
        if let Ok(old) = File::open(&path) {
            crate::files::replace(&path, |new| {
                for line in BufReader::new(old).lines() {
                    let line = line?;
                    match serde_json::from_str::<Line>(&line) {
                        Ok(read) if read.step <= step && (read.eval_loss.is_none() || read.epoch <= epochs) => {
                            writeln!(new, "{line}")?;
                        }
                        _ => {}
                    }
                }
                Ok(())
            })?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&path).with_context(context)?;
        Ok(Log { path, file })
    }

    /// Adds a line.
    ///
    /// # Errors
    /// From the file system.
    pub fn write(&mut self, line: &impl Serialize) -> anyhow::Result<()> {
        let text = format!("{}\n", serde_json::to_string(line)?);
        self.file.write_all(text.as_bytes()).with_context(|| format!("cannot write `{}`", self.path.display()))
    }
}
