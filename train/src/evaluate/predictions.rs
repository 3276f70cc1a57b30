//! Predictions, one JSON object per line.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::Context;
use lstc_data::Tokenizer;
use lstc_tuned::output::Output;
use serde::Serialize;

use super::{Label, Scored, text};

/// What was predicted for one row of a data file.
#[derive(Serialize)]
struct Prediction<'p> {
    /// The line of the data file, from 1.
    row: u64,
    target: String,
    /// The likeliest label.
    #[serde(skip_serializing_if = "Option::is_none")]
    predicted: Option<&'p str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generated: Option<String>,
    /// Of the target, in nats.
    log_likelihood: f64,
    /// Log-likelihood of each label.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<&'p str, f64>,
}

/// Writes what was predicted for each example, in the order of the data file.
///
/// # Errors
/// From the output.
pub fn write_predictions(
    output: &Output,
    scored: &[Scored],
    labels: &[Label],
    tokenizer: Option<&Tokenizer>,
) -> anyhow::Result<()> {
    output.write(|file| {
        let mut out = std::io::BufWriter::new(file);
        for s in scored {
            let prediction = Prediction {
                row: s.row,
                target: text(&s.target, tokenizer)?,
                predicted: s.best().map(|place| labels[place].1.as_str()),
                generated: s.generated.as_ref().map(|ids| text(ids, tokenizer)).transpose()?,
                log_likelihood: s.likelihood,
                labels: labels.iter().map(|(_, text)| text.as_str()).zip(s.labels.iter().copied()).collect(),
            };
            serde_json::to_writer(&mut out, &prediction)?;
            out.write_all(b"\n")?;
        }
        out.flush().context("cannot write the predictions")
    })
}
