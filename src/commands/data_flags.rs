//! The flags that say how data files are read, the same for every command that reads them.

use std::path::PathBuf;

use lstc_data::{DataFormat, OnBadRow, Quoting, Reading, Template};

use super::arguments::at_least;
use super::set;

/// How data files are read, as flags. A flag that is not given leaves the configuration's value.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Data")]
pub struct DataFlags {
    /// A Hugging Face tokenizer.json [default: the one that was beside the model]
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,

    /// Field or column of the input; several, as in sentence1,sentence2, give the input "sentence1: ... sentence2: ..."
    /// [default: text]
    #[arg(long, value_name = "NAMES")]
    input_field: Option<String>,

    /// The input as text with fields in braces, as in "mrpc sentence1: {sentence1} sentence2: {sentence2}"; {{ and }} are braces
    #[arg(long, value_name = "TEXT", conflicts_with = "input_field", value_parser = template)]
    template: Option<String>,

    /// Field or column of the target [default: label]
    #[arg(long, value_name = "NAME")]
    target_field: Option<String>,

    /// Text to put before every input, as in "sst2 sentence: "
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,

    /// Format of the data files [default: by their extension]
    #[arg(long, value_enum, value_name = "FORM")]
    data_format: Option<DataFormat>,

    /// How quotes in CSV and TSV are read [default: rfc4180 in CSV, none in TSV]
    #[arg(long, value_enum, value_name = "STYLE")]
    quoting: Option<Quoting>,

    /// Most tokens of an input; longer inputs are cut [default: 128]
    #[arg(long, value_name = "N", value_parser = at_least::<usize>(2))]
    max_source_length: Option<usize>,

    /// Most tokens of a target; longer targets are cut [default: 32]
    #[arg(long, value_name = "N", value_parser = at_least::<usize>(2))]
    max_target_length: Option<usize>,

    /// What to do with a row that cannot be used [default: fail]
    #[arg(long, value_enum, value_name = "WHAT")]
    on_bad_row: Option<OnBadRow>,
}

fn template(text: &str) -> Result<String, String> {
    Template::parse(text).map(|_| text.to_owned())
}

impl DataFlags {
    pub fn apply(&self, reading: &mut Reading) {
        set(&mut reading.input_field, &self.input_field);
        // One replaces the other.
        if self.template.is_some() || self.input_field.is_some() {
            reading.template.clone_from(&self.template);
        }
        set(&mut reading.target_field, &self.target_field);
        set(&mut reading.prefix, &self.prefix);
        set(&mut reading.max_source_length, &self.max_source_length);
        set(&mut reading.max_target_length, &self.max_target_length);
        set(&mut reading.on_bad_row, &self.on_bad_row);
        if self.data_format.is_some() {
            reading.format = self.data_format;
        }
        if self.quoting.is_some() {
            reading.quoting = self.quoting;
        }
    }
}
