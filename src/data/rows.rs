//! Rows of a file, whatever its form.

use std::path::Path;

use anyhow::Context;

use super::json_lines::JsonLines;
use super::reading::{DataFormat, Reading};
use super::source::Source;
use super::table::Table;

/// One row, or why it is a bad one.
pub struct Row {
    /// Where it begins in the file, from 1.
    pub line: u64,
    pub content: Result<Content, String>,
}

pub enum Content {
    Text {
        input: String,
        target: String,
    },
    /// Token ids as the file has them: nothing of them is checked.
    Ids {
        input: Vec<i64>,
        target: Vec<i64>,
    },
}

pub enum Rows {
    JsonLines(JsonLines),
    Table(Box<Table>),
}

impl Rows {
    /// # Errors
    /// A file that cannot be read, a form that is not known, a column that is missing.
    pub fn open(path: &Path, reading: &Reading) -> anyhow::Result<Rows> {
        let format = match reading.format {
            Some(format) => format,
            None => DataFormat::of(path)?,
        };
        let source = Source::open(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let table =
            |source, delimiter| Table::open(source, delimiter, path, reading).map(|table| Rows::Table(Box::new(table)));
        match format {
            DataFormat::Csv => table(source, b','),
            DataFormat::Tsv => table(source, b'\t'),
            DataFormat::Jsonl => Ok(Rows::JsonLines(JsonLines::new(source, reading))),
        }
    }

    /// The next row; none at the end of the file.
    ///
    /// # Errors
    /// From the file system.
    pub fn next(&mut self) -> anyhow::Result<Option<Row>> {
        match self {
            Rows::JsonLines(lines) => lines.next(),
            Rows::Table(table) => Ok(table.next()?),
        }
    }

    /// Bytes read, of how many.
    pub fn progress(&self) -> (u64, u64) {
        match self {
            Rows::JsonLines(lines) => lines.source.progress(),
            Rows::Table(table) => table.source.progress(),
        }
    }
}

/// Names as a message lists them; a few of many.
pub fn listed<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    const SHOWN: usize = 12;
    let count = names.len();
    let mut text: Vec<String> = names.take(SHOWN).map(|name| format!("`{}`", shortened(name))).collect();
    if count > SHOWN {
        text.push(format!("and {} more", count - SHOWN));
    }
    text.join(", ")
}

fn shortened(name: &str) -> String {
    const SHOWN: usize = 60;
    match name.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &name[..end]),
        None => name.to_owned(),
    }
}
