//! Rows as JSON objects, one a line.
//!
//! A file is tokenised already where its first row has arrays of integers `input_ids` and `labels`; then all rows must. In
//! other files numbers and booleans stand for their text, a number as JSON writes it shortest.

use anyhow::anyhow;

use super::fields::{Field, Fields};
use super::reading::Reading;
use super::rows::{Content, Row};
use super::source::{Line, Source};
use crate::report::Hinted;

const INPUT_IDS: &str = "input_ids";
const LABELS: &str = "labels";

pub struct JsonLines {
    pub source: Source,
    line: Vec<u8>,
    number: u64,
    input_field: String,
    target_field: String,
    form: Option<Form>,
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
        JsonLines { source, line: Vec::new(), number: 0, input_field, target_field, form: None }
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
        let line = std::str::from_utf8(&self.line)
            .map_err(|error| format!("byte {} of the line is not UTF-8", error.valid_up_to() + 1))?;
        let fields = Fields::of(line, [&self.input_field, &self.target_field, INPUT_IDS, LABELS])?;
        let form = *self.form.get_or_insert_with(|| form(&fields));
        match form {
            Form::Text => {
                Ok(Content::Text { input: fields.text(&self.input_field)?, target: fields.text(&self.target_field)? })
            }
            Form::Ids => Ok(Content::Ids { input: fields.ids(INPUT_IDS)?, target: fields.ids(LABELS)? }),
        }
    }
}

fn form(fields: &Fields) -> Form {
    match (fields.get(INPUT_IDS), fields.get(LABELS)) {
        (Some(Field::Ids(_)), Some(Field::Ids(_))) => Form::Ids,
        _ => Form::Text,
    }
}

fn array() -> anyhow::Error {
    let error = anyhow!("it begins with a JSON array, where each line is to be an object of its own");
    Hinted::new(error, "`jq -c '.[]'` turns an array into lines").into()
}
