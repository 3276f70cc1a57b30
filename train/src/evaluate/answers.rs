//! A model's answer to each row of a file: its label, or the text that it generates.

use std::io::Write;

use lstc_data::{Input, Inputs, Tokenizer};
use serde::Serialize;
use serde_json::{Map, Value};

use super::labels::Label;
use super::{Scored, text};

/// The format of the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum AnswerForm {
    /// One JSON object per line.
    Jsonl,
    /// Comma-separated, with a header row, as in RFC 4180.
    Csv,
}

/// The answer to one row.
#[derive(Serialize)]
struct Answer<'a> {
    /// The line of the data file, from 1.
    row: u64,
    input: Input,
    /// The likeliest label.
    #[serde(skip_serializing_if = "Option::is_none")]
    predicted: Option<&'a str>,
    /// Of the likeliest label, if it is one of the known ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    probability: Option<f64>,
    /// How far its log-likelihood is above the next label's, in nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    margin: Option<f64>,
    /// Of each label, in their order; they add up to 1.
    #[serde(skip_serializing_if = "Map::is_empty")]
    probabilities: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generated: Option<String>,
}

/// Writes the answer to each example, in the order of the data file, beside its input.
///
/// # Errors
/// From the data file, which is read once more; from `out`.
pub fn write_answers(
    out: &mut dyn Write,
    form: AnswerForm,
    scored: &[Scored],
    labels: &[Label],
    tokenizer: Option<&Tokenizer>,
    inputs: &mut Inputs,
) -> anyhow::Result<()> {
    let generates = scored.iter().any(|s| s.generated.is_some());
    if form == AnswerForm::Csv {
        let mut header = vec!["row".to_owned(), "input".to_owned()];
        if !labels.is_empty() {
            header.extend(["predicted", "probability", "margin"].map(str::to_owned));
            header.extend(labels.iter().map(|(_, text)| format!("probability of {text}")));
        }
        header.extend(generates.then(|| "generated".to_owned()));
        record(out, &header)?;
    }
    for s in scored {
        let (best, probabilities) = (s.best(), s.probabilities());
        let named = |(label, probability): (&Label, &f64)| (label.1.clone(), Value::from(*probability));
        let answer = Answer {
            row: s.row,
            input: inputs.at(s.row)?,
            predicted: best.map(|place| labels[place].1.as_str()),
            probability: best.map(|place| probabilities[place]),
            margin: s.margin(),
            probabilities: labels.iter().zip(&probabilities).map(named).collect(),
            generated: s.generated.as_ref().map(|ids| text(ids, tokenizer)).transpose()?,
        };
        match form {
            AnswerForm::Jsonl => {
                serde_json::to_writer(&mut *out, &answer)?;
                out.write_all(b"\n")?;
            }
            AnswerForm::Csv => {
                let number = |value: Option<f64>| value.map_or_else(String::new, |v| v.to_string());
                let mut fields = vec![answer.row.to_string(), answer.input.to_string()];
                if !labels.is_empty() {
                    fields.push(answer.predicted.unwrap_or_default().to_owned());
                    fields.extend([number(answer.probability), number(answer.margin)]);
                    fields.extend(probabilities.iter().map(f64::to_string));
                }
                fields.extend(answer.generated);
                record(out, &fields)?;
            }
        }
    }
    Ok(())
}

/// One line of a table. A field with a comma, a quote or a line end is quoted, and its quotes are doubled.
fn record(out: &mut dyn Write, fields: &[String]) -> std::io::Result<()> {
    let field = |field: &String| match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.clone(),
    };
    writeln!(out, "{}", fields.iter().map(field).collect::<Vec<_>>().join(","))
}
