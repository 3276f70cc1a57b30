//! The folder of a training run: the names of its files, and how the run was started.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, bail};
use lstc_base::files;
use lstc_data::Reading;
use lstc_graph::regular;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::options::TrainOptions;

/// Where a run stands.
pub const CHECKPOINT: &str = "checkpoint.safetensors";

/// What a run logs.
pub const METRICS: &str = "metrics.jsonl";

/// The side network of a run's best evaluation.
pub const BEST: &str = "best.safetensors";

/// How a run was started: what `--resume` follows.
pub const STARTED: &str = "train.yaml";

/// A run, as its own file records it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Started {
    pub train: TrainOptions,
    pub data: Reading,
}

impl Started {
    /// What a run's folder records.
    ///
    /// # Errors
    /// A folder without a run, or with a damaged record.
    pub fn read(out: &Path) -> anyhow::Result<Started> {
        let path = out.join(STARTED);
        let text = regular::read_text(&path, Config::LIMIT)
            .with_context(|| format!("there is no run in `{}`", out.display()))?;
        if text.trim().is_empty() {
            bail!("`{}` is damaged: it is empty", path.display());
        }
        serde_yaml::from_str(&text).with_context(|| format!("`{}` is damaged", path.display()))
    }

    /// As text.
    ///
    /// # Errors
    /// None that a run causes.
    pub fn text(&self) -> anyhow::Result<String> {
        Ok(serde_yaml::to_string(self)?)
    }

    /// BLAKE3 of what a run's folder records, wherever the folder is.
    ///
    /// # Errors
    /// As [`Started::read`].
    pub fn hash(out: &Path) -> anyhow::Result<String> {
        let mut started = Started::read(out)?;
        started.train.out = None;
        Ok(blake3::hash(serde_yaml::to_string(&started)?.as_bytes()).to_hex().to_string())
    }

    /// Writes it into the folder of a run.
    ///
    /// # Errors
    /// From the file system.
    pub fn write(&self, out: &Path) -> anyhow::Result<()> {
        let text = self.text()?;
        files::replace(&out.join(STARTED), |file| Ok(file.write_all(text.as_bytes())?))
    }
}

/// True for a folder that holds what a run made.
pub fn is_run(folder: &Path) -> bool {
    [CHECKPOINT, BEST, METRICS].iter().any(|name| fs::symlink_metadata(folder.join(name)).is_ok())
}

/// True for the name of a file that a run writes.
pub fn is_own(name: &str) -> bool {
    [CHECKPOINT, BEST, METRICS, STARTED].contains(&name)
}

/// True for what a run that failed to start left in its folder: how it was started, as it was written.
pub fn is_left(folder: &Path, name: &OsStr) -> bool {
    let as_written = || Started::read(folder).and_then(|started| started.text()).ok();
    let text = || fs::read_to_string(folder.join(name)).ok();
    name == STARTED && !is_run(folder) && as_written().is_some_and(|written| text() == Some(written))
}
