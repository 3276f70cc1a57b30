//! The metrics of a run, one JSON object per line.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use lstc_base::report::Hinted;
use lstc_data::{Line, Source};
use lstc_graph::regular;
use lstc_tuned::run::METRICS;
use serde::{Deserialize, Serialize};

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
    /// How far each gate is open, by its parameter: at the first step, a few times per epoch on the CPU, and whenever
    /// the run is saved or an epoch ends.
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
    /// Opens the log of a run that stands at `step` and has closed so many epochs: lines that a resumed run will write again,
    /// and an unfinished last line, are removed. A link in its place is not followed.
    ///
    /// # Errors
    /// From the file system; a line before the last that is damaged.
    pub fn open(folder: &Path, step: u64, epochs: u64) -> anyhow::Result<Log> {
        let path = folder.join(METRICS);
        let context = || format!("cannot write `{}`", path.display());
        match regular::open(&path) {
            Ok(old) => lstc_base::files::replace(&path, |new| keep(old, step, epochs, new))?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(context),
        }
        let file = lstc_base::files::append(&path).with_context(context)?;
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

/// Copies the lines of a log up to where a run stands.
fn keep(old: File, step: u64, epochs: u64, new: &mut impl Write) -> anyhow::Result<()> {
    #[derive(Deserialize)]
    struct Logged {
        step: u64,
        epoch: u64,
        eval_loss: Option<f64>,
    }
    let mut log = Source::of(old)?;
    let mut line = Vec::new();
    for number in 1_u64.. {
        let read = match log.line(&mut line)? {
            Line::End => break,
            Line::TooLong => Err(anyhow!("it is longer than 16 MiB")),
            Line::Whole => serde_json::from_slice::<Logged>(&line).map_err(anyhow::Error::from),
        };
        match read {
            Ok(read) if read.step <= step && (read.eval_loss.is_none() || read.epoch <= epochs) => {
                new.write_all(&line)?;
                new.write_all(b"\n")?;
            }
            Err(error) if !log.fill()?.is_empty() => {
                let error = error.context(format!("line {number} of the log is damaged"));
                return Err(Hinted::new(error, "move it away: the resumed run then starts a new log").into());
            }
            _ => {}
        }
    }
    Ok(())
}
