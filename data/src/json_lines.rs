//! Rows as JSON objects, one per line.
//!
//! A file is already tokenised if its first row has arrays of integers `input_ids` and `labels`, or the first and no
//! text; then all rows must be. In other files numbers and booleans are read as text, a number in its shortest JSON form.

use anyhow::anyhow;
use lstc_base::report::Hinted;

use super::fields::{Field, Fields};
use super::reading::{Reading, Targets};
use super::rows::{Content, Row};
use super::source::{Line, Source};
use super::template::Template;
use super::tokenised::{self, INPUT_IDS, LABELS, Tokenised};

pub struct JsonLines {
    pub source: Source,
    line: Vec<u8>,
    number: u64,
    input: Template,
    target_field: String,
    targets: Targets,
    form: Option<Form>,
    /// What is not read of the rows, though it might be.
    pub note: Option<String>,
}

/// What the rows of a file hold.
#[derive(Clone, Copy)]
enum Form {
    Text,
    Ids,
}

impl JsonLines {
    /// # Errors
    /// A template that is not well-formed.
    pub fn new(source: Source, reading: &Reading) -> anyhow::Result<JsonLines> {
        let (input, target_field, targets) = (reading.input()?, reading.target_field.clone(), reading.targets);
        Ok(JsonLines { source, line: Vec::new(), number: 0, input, target_field, targets, form: None, note: None })
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
        let mut names: Vec<&str> = self.input.fields().iter().map(String::as_str).collect();
        names.push(&self.target_field);
        names.extend(tokenised::FIELDS);
        names.extend(tokenised::UNSUPPORTED);
        let fields = Fields::of(line, &names)?;
        if self.form.is_none() {
            self.form = Some(form(&fields, &self.input));
            self.note = beside(&fields, &self.input);
        }
        match self.form {
            Some(Form::Ids) => Tokenised::of(&fields, self.targets).map(|row| Content::Ids(Box::new(row))),
            Some(Form::Text) | None => {
                let texts: Vec<String> =
                    self.input.fields().iter().map(|name| fields.text(name)).collect::<Result<_, _>>()?;
                let target = match self.targets {
                    Targets::Read => fields.text(&self.target_field)?,
                    Targets::Absent => String::new(),
                };
                Ok(Content::Text { input: self.input.filled(&texts), target })
            }
        }
    }
}

fn is_ids(fields: &Fields, name: &str) -> bool {
    matches!(fields.get(name), Some(Field::Ids(_)))
}

fn has_text(fields: &Fields, input: &Template) -> bool {
    let is_text = |name: &String| matches!(fields.get(name), Some(Field::Text(_) | Field::Integer(_)));
    input.fields().iter().any(is_text)
}

fn form(fields: &Fields, input: &Template) -> Form {
    let has_both = is_ids(fields, INPUT_IDS) && is_ids(fields, LABELS);
    // Whatever `input_ids` holds, it is what such a row was to be read from.
    let has_no_other = fields.get(INPUT_IDS).is_some() && !has_text(fields, input);
    match has_both || has_no_other {
        true => Form::Ids,
        false => Form::Text,
    }
}

/// Which of text and token ids counts, if a row has both.
fn beside(fields: &Fields, input: &Template) -> Option<String> {
    let has_both = is_ids(fields, INPUT_IDS) && has_text(fields, input);
    let text = input.named();
    has_both.then(|| match form(fields, input) {
        Form::Ids => format!("its rows have `{INPUT_IDS}` and `{LABELS}`: {text} beside them is not read"),
        Form::Text => format!("its rows have {text}, and no `{LABELS}` of token ids: `{INPUT_IDS}` is not read"),
    })
}

fn array() -> anyhow::Error {
    let error = anyhow!("it begins with a JSON array, but each line must be an object of its own");
    Hinted::new(error, "`jq -c '.[]'` turns an array into lines").into()
}
