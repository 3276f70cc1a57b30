//! Rows as JSON objects, one a line.
//!
//! A file is tokenised already where its first row has arrays of integers `input_ids` and `labels`, or the first and no
//! text; then all rows must be. In other files numbers and booleans stand for their text, a number as JSON writes it shortest.

use anyhow::anyhow;

use super::fields::{Field, Fields};
use super::reading::Reading;
use super::rows::{Content, Row};
use super::source::{Line, Source};
use super::tokenised::{self, INPUT_IDS, LABELS, Tokenised};
use crate::report::Hinted;

pub struct JsonLines {
    pub source: Source,
    line: Vec<u8>,
    number: u64,
    input_field: String,
    target_field: String,
    form: Option<Form>,
    /// What of the rows is not read, though it might be.
    pub note: Option<String>,
}

/// What the rows of a file hold.
#[derive(Clone, Copy)]
enum Form {
    Text,
    Ids,
}

impl JsonLines {
    pub fn new(source: Source, reading: &Reading) -> JsonLines {
        let (input_field, target_field) = (reading.input_field.clone(), reading.target_field.clone());
        JsonLines { source, line: Vec::new(), number: 0, input_field, target_field, form: None, note: None }
    }

    pub fn next(&mut self) -> anyhow::Result<Option<Row>> {
        loop {
            let found = self.source.line(&mut self.line)?;
            self.number += 1;
            let content = match found {
                Line::End => return Ok(None),
                Line::TooLong => Err("it is longer than 16 MiB".to_owned()),
                Line::Whole if self.line.trim_ascii().is_empty() => continue,
                Line::Whole if self.form.is_none() && self.line.trim_ascii_start().starts_with(b"[") => {
                    return Err(array());
                }
                Line::Whole => self.content(),
            };
            return Ok(Some(Row { line: self.number, content }));
        }
    }

    fn content(&mut self) -> Result<Content, String> {
        let line = std::str::from_utf8(&self.line).map_err(|error| {
            let byte = error.valid_up_to() + 1;
            format!("byte {byte} of the line is not UTF-8; `iconv -f LATIN1 -t UTF-8` converts Latin-1")
        })?;
        let mut names = vec![self.input_field.as_str(), &self.target_field];
        names.extend(tokenised::FIELDS);
        names.extend(tokenised::UNSUPPORTED);
        let fields = Fields::of(line, &names)?;
        if self.form.is_none() {
            self.form = Some(form(&fields, &self.input_field));
            self.note = beside(&fields, &self.input_field);
        }
        match self.form {
            Some(Form::Ids) => Tokenised::of(&fields).map(|row| Content::Ids(Box::new(row))),
            Some(Form::Text) | None => {
                Ok(Content::Text { input: fields.text(&self.input_field)?, target: fields.text(&self.target_field)? })
            }
        }
    }
}

fn is_ids(fields: &Fields, name: &str) -> bool {
    matches!(fields.get(name), Some(Field::Ids(_)))
}

fn is_text(fields: &Fields, name: &str) -> bool {
    matches!(fields.get(name), Some(Field::Text(_) | Field::Integer(_)))
}

fn form(fields: &Fields, input_field: &str) -> Form {
    let has_ids = is_ids(fields, INPUT_IDS);
    match has_ids && (is_ids(fields, LABELS) || !is_text(fields, input_field)) {
        true => Form::Ids,
        false => Form::Text,
    }
}

/// Which of text and token ids counts, where a row has both.
fn beside(fields: &Fields, input_field: &str) -> Option<String> {
    let has_both = is_ids(fields, INPUT_IDS) && is_text(fields, input_field);
    has_both.then(|| match form(fields, input_field) {
        Form::Ids => format!("its rows have `{INPUT_IDS}` and `{LABELS}`: `{input_field}` beside them is not read"),
        Form::Text => {
            format!("its rows have `{input_field}`, and no `{LABELS}` of token ids: `{INPUT_IDS}` is not read")
        }
    })
}

fn array() -> anyhow::Error {
    let error = anyhow!("it begins with a JSON array, where each line is to be an object of its own");
    Hinted::new(error, "`jq -c '.[]'` turns an array into lines").into()
}
