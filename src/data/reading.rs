//! How a file of rows is read.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{anyhow, bail};
use serde::{Deserialize, Serialize};

use super::batch::Fixed;
use crate::report::Hinted;

/// How rows are read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reading {
    /// The form of the file; by its extension where there is none.
    pub format: Option<DataFormat>,
    pub input_field: String,
    pub target_field: String,
    /// Put before every input.
    pub prefix: String,
    /// In tokens, with the end token.
    pub max_source_length: usize,
    /// In tokens, with the end token.
    pub max_target_length: usize,
    pub on_bad_row: OnBadRow,
}

impl Default for Reading {
    fn default() -> Reading {
        Reading {
            format: None,
            input_field: "text".to_owned(),
            target_field: "label".to_owned(),
            prefix: String::new(),
            max_source_length: 128,
            max_target_length: 32,
            on_bad_row: OnBadRow::Fail,
        }
    }
}

impl Reading {
    /// The same, where what a model fixes is a limit too.
    pub fn within(&self, fixed: &Fixed) -> Reading {
        let at_most = |length: usize, fixed: Option<usize>| fixed.map_or(length, |fixed| fixed.min(length));
        Reading {
            max_source_length: at_most(self.max_source_length, fixed.source),
            max_target_length: at_most(self.max_target_length, fixed.target),
            ..self.clone()
        }
    }

    /// # Errors
    /// A length that leaves no room for a token before the end token.
    pub fn check(&self) -> anyhow::Result<()> {
        for (name, length) in
            [("max_source_length", self.max_source_length), ("max_target_length", self.max_target_length)]
        {
            if length < 2 {
                bail!("`{name}` is {length}: at least 2 are needed, for one token and the end token");
            }
        }
        Ok(())
    }
}

/// What becomes of a row that cannot be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum OnBadRow {
    /// The first one is an error.
    #[default]
    Fail,
    /// It is left out and counted.
    Skip,
}

/// The form of a file of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DataFormat {
    /// One JSON object a line.
    Jsonl,
    /// Comma-separated, with a header row.
    Csv,
    /// Tab-separated, with a header row; quotes as in CSV.
    Tsv,
}

impl DataFormat {
    /// The form that a file's extension names.
    ///
    /// # Errors
    /// An extension that names none, or compression.
    pub fn of(path: &Path) -> anyhow::Result<DataFormat> {
        let extension = path.extension().and_then(OsStr::to_str).map(str::to_ascii_lowercase);
        match extension.as_deref() {
            Some("jsonl" | "json" | "ndjson") => Ok(DataFormat::Jsonl),
            Some("csv") => Ok(DataFormat::Csv),
            Some("tsv") => Ok(DataFormat::Tsv),
            Some("gz" | "bz2" | "xz" | "zst" | "lz4" | "zip" | "7z") => {
                let error = anyhow!("`{}` is compressed, and compressed files are not read", path.display());
                Err(Hinted::new(error, "unpack it first").into())
            }
            _ => {
                let error = anyhow!("the extension of `{}` names no form of data that lstc reads", path.display());
                let hint = "there are `.jsonl`, `.json` and `.ndjson` (one JSON object a line), `.csv` and `.tsv`; \
                            --data-format jsonl, csv or tsv says it for other names";
                Err(Hinted::new(error, hint).into())
            }
        }
    }
}
