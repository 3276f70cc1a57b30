//! How a side network was trained, as its own file records it: what reads it later reads text in the same way.

use std::fs;
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use lstc_base::files::parent;
use lstc_base::report::{Hinted, word};
use lstc_data::{Corpus, Reading, Tokenizer};
use lstc_tuned::run::{CHECKPOINT, METRICS, STARTED, Started};
use lstc_tuned::side;
use serde::{Deserialize, Serialize};

/// The key of the metadata.
const KEY: &str = "lstc.trained";

/// How a side network was trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trained {
    /// BLAKE3 of what train.yaml says.
    pub started: String,
    /// How its data was read.
    pub reading: Reading,
    /// BLAKE3 of the tokenizer's file; none if the data held token ids.
    pub tokenizer: Option<String>,
    /// SHA-256 of the tokenised examples that the run evaluates on, if any.
    pub eval: Option<String>,
}

impl Trained {
    /// What the metadata of a side network's file says; none if an earlier version wrote it, or another program.
    ///
    /// # Errors
    /// A file that cannot be read or is damaged.
    pub fn read(file: &Path) -> anyhow::Result<Option<Trained>> {
        let metadata = side::metadata(file)?;
        let damaged =
            || format!("`{}` does not say how it was trained in a form that this version reads", file.display());
        metadata.get(KEY).map(|text| serde_json::from_str(text).with_context(damaged)).transpose()
    }

    /// An entry of the metadata.
    ///
    /// # Errors
    /// None that a run causes.
    pub fn entry(&self) -> anyhow::Result<(&'static str, String)> {
        Ok((KEY, serde_json::to_string(self)?))
    }

    /// Whether text is turned into the same tokens as in training.
    ///
    /// # Errors
    /// Another tokenizer.
    fn check_tokenizer(&self, tokenizer: Option<&Tokenizer>, file: &Path) -> anyhow::Result<()> {
        match (&self.tokenizer, tokenizer) {
            (Some(expected), Some(found)) if expected != found.hash() => {
                bail!("`{}` was trained with another tokenizer than `{}`", file.display(), found.path().display())
            }
            (Some(_), None) => bail!("`{}` was trained with a tokenizer, and there is none", file.display()),
            _ => Ok(()),
        }
    }
}

/// The settings with which a side network's file is used.
pub struct Settings {
    pub started: Started,
    pub trained: Option<Trained>,
}

impl Settings {
    /// Those of the run that made a side network; what the file and its folder do not say is as in `otherwise`.
    ///
    /// # Errors
    /// A run whose train.yaml is missing, cannot be read, or is not what the run was started with; a file that is damaged.
    pub fn of(file: &Path, otherwise: Started) -> anyhow::Result<Settings> {
        let trained = Trained::read(file)?;
        let folder = parent(file);
        let record = folder.join(STARTED);
        let is_there = |name: &str| fs::symlink_metadata(folder.join(name)).is_ok();
        if is_there(STARTED) {
            let started = Started::read(folder)?;
            if let Some(trained) = &trained
                && trained.started != Started::hash(folder)?
            {
                let error = anyhow!("`{}` has changed since `{}` was trained", record.display(), file.display());
                let hint =
                    "put back what was there, or move it away: the side network's own file says how text is read";
                return Err(Hinted::new(error, hint).into());
            }
            return Ok(Settings { started, trained });
        }
        match trained {
            Some(trained) => {
                let started = Started { data: trained.reading.clone(), ..otherwise };
                Ok(Settings { started, trained: Some(trained) })
            }
            None if is_there(CHECKPOINT) || is_there(METRICS) => {
                let error = anyhow!("`{}` is missing: it says how text is read", record.display());
                let hint = format!(
                    "put it back, or copy {} to another folder and pass flags such as --prefix",
                    word(&file.to_string_lossy())
                );
                Err(Hinted::new(error, hint).into())
            }
            None => Ok(Settings { started: otherwise, trained: None }),
        }
    }

    /// Whether text is turned into the same tokens as in training. If the user names another tokenizer, the result is a warning.
    ///
    /// # Errors
    /// Another tokenizer, unless it `is_named`.
    pub fn check_tokenizer(
        &self,
        file: &Path,
        tokenizer: Option<&Tokenizer>,
        is_named: bool,
    ) -> anyhow::Result<Option<String>> {
        match self.trained.as_ref().map_or(Ok(()), |trained| trained.check_tokenizer(tokenizer, file)) {
            Ok(()) => Ok(None),
            Err(error) if is_named => Ok(Some(error.to_string())),
            Err(error) => Err(Hinted::new(error, "put back what was there, or name it with --tokenizer FILE").into()),
        }
    }

    /// Whether these are the examples that the run evaluated on, if they were read as the run reads its own.
    ///
    /// # Errors
    /// Other examples.
    pub fn check_evaluated(&self, corpus: &Corpus) -> anyhow::Result<()> {
        let Some(trained) = &self.trained else { return Ok(()) };
        let is_read_alike = self.started.data == trained.reading;
        match &trained.eval {
            Some(expected) if is_read_alike && expected != corpus.sha256() => {
                let error = anyhow!("the data that the run evaluated on has changed since");
                Err(Hinted::new(error, "put back what was there, or name a file with --data").into())
            }
            _ => Ok(()),
        }
    }
}
