//! How a file of rows is read.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{anyhow, bail};
use lstc_base::report::Hinted;
use serde::{Deserialize, Serialize};

use super::Template;
use super::batch::Fixed;

/// How rows are read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reading {
    /// The format of the file; by its extension if none is given.
    pub format: Option<DataFormat>,
    /// How quotes in a table are read; by its format if not given.
    pub quoting: Option<Quoting>,
    /// For several, whose names are separated by commas, the input is `name: text` of each.
    pub input_field: String,
    /// The input if it is more than a field: text with `{field}`s in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    pub target_field: String,
    /// Put before every input.
    pub prefix: String,
    /// In tokens, with the end token.
    pub max_source_length: usize,
    /// In tokens, with the end token.
    pub max_target_length: usize,
    pub on_bad_row: OnBadRow,
    /// What pads rows; by default what the files beside the model say. Settled when a model is rewritten, like the two
    /// below.
    pub pad_token_id: Option<i64>,
    /// What ends every text.
    pub eos_token_id: Option<i64>,
    /// What the decoder begins with.
    pub decoder_start_token_id: Option<i64>,
    /// Set by what is done with the rows; not an option.
    #[serde(skip)]
    pub targets: Targets,
}

/// Whether rows have targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Targets {
    #[default]
    Read,
    /// No targets are read: each target is the end token alone.
    Absent,
}

impl Default for Reading {
    fn default() -> Reading {
        Reading {
            format: None,
            quoting: None,
            input_field: "text".to_owned(),
            template: None,
            target_field: "label".to_owned(),
            prefix: String::new(),
            max_source_length: 128,
            max_target_length: 32,
            on_bad_row: OnBadRow::Fail,
            pad_token_id: None,
            eos_token_id: None,
            decoder_start_token_id: None,
            targets: Targets::Read,
        }
    }
}

impl Reading {
    /// The same, with the sizes that a model fixes as limits too.
    pub fn within(&self, fixed: &Fixed) -> Reading {
        let at_most = |length: usize, fixed: Option<usize>| fixed.map_or(length, |fixed| fixed.min(length));
        Reading {
            max_source_length: at_most(self.max_source_length, fixed.source),
            max_target_length: at_most(self.max_target_length, fixed.target),
            ..self.clone()
        }
    }

    /// How the input is made of a row's fields.
    ///
    /// # Errors
    /// A template that is not well-formed.
    pub fn input(&self) -> anyhow::Result<Template> {
        match &self.template {
            Some(text) => Template::parse(text).map_err(|problem| anyhow!("the template is not valid: {problem}")),
            None => Ok(Template::of_fields(&self.input_field)),
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

/// What to do with a row that cannot be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum OnBadRow {
    /// Stop with an error at the first one.
    #[default]
    Fail,
    /// Leave it out and count it.
    Skip,
}

/// How quotes in a table are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Quoting {
    /// Quotes are text, as in the TSV files of GLUE.
    None,
    /// A field that begins with a quote ends with one, and may hold delimiters and line ends; inside, quotes are doubled.
    Rfc4180,
}

/// The format of a file of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DataFormat {
    /// One JSON object per line.
    Jsonl,
    /// Comma-separated, with a header row.
    Csv,
    /// Tab-separated, with a header row.
    Tsv,
}

impl DataFormat {
    /// How quotes in a table of this format are read by default.
    pub fn quoting(self) -> Quoting {
        match self {
            DataFormat::Csv => Quoting::Rfc4180,
            DataFormat::Tsv | DataFormat::Jsonl => Quoting::None,
        }
    }

    /// The format that a file's extension names.
    ///
    /// # Errors
    /// An extension that names none.
    pub fn of(path: &Path) -> anyhow::Result<DataFormat> {
        let extension = path.extension().and_then(OsStr::to_str).map(str::to_ascii_lowercase);
        match extension.as_deref() {
            Some("jsonl" | "json" | "ndjson") => Ok(DataFormat::Jsonl),
            Some("csv") => Ok(DataFormat::Csv),
            Some("tsv") => Ok(DataFormat::Tsv),
            _ => {
                let error = anyhow!("the extension of `{}` does not say in which format its data is", path.display());
                let hint = "lstc reads `.jsonl`, `.json` and `.ndjson` (one JSON object a line), `.csv` and `.tsv`; \
                            for files with other names, pass --data-format jsonl, csv or tsv";
                Err(Hinted::new(error, hint).into())
            }
        }
    }
}
