//! Rows of a file, whatever its format.

use std::path::Path;

use anyhow::{Context, anyhow};
use lstc_base::report::{Hinted, word};

use super::json_lines::JsonLines;
use super::kind::Kind;
use super::reading::{DataFormat, Reading};
use super::source::Source;
use super::table::Table;
use super::tokenised::Tokenised;

/// One row, or why it is bad.
pub struct Row {
    /// Where it begins in the file, from 1.
    pub line: u64,
    pub content: Result<Content, String>,
}

pub enum Content {
    Text { input: String, target: String },
    Ids(Box<Tokenised>),
}

pub enum Rows {
    JsonLines(Box<JsonLines>),
    Table(Box<Table>),
}

impl Rows {
    /// # Errors
    /// A file that cannot be read or does not hold text, an unknown format, a missing column.
    pub fn open(path: &Path, reading: &Reading) -> anyhow::Result<Rows> {
        if path.is_dir() {
            return Err(folder(path));
        }
        let mut source = Source::open(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let start = source.fill().with_context(|| format!("cannot read `{}`", path.display()))?;
        Kind::check(path, start)?;
        let format = match reading.format {
            Some(format) => format,
            None => DataFormat::of(path)?,
        };
        let quoting = reading.quoting.unwrap_or(format.quoting());
        let table = |source, delimiter| {
            Table::open(source, delimiter, quoting, path, reading).map(|table| Rows::Table(Box::new(table)))
        };
        match format {
            DataFormat::Csv => table(source, b','),
            DataFormat::Tsv => table(source, b'\t'),
            DataFormat::Jsonl => JsonLines::new(source, reading).map(|lines| Rows::JsonLines(Box::new(lines))),
        }
    }

    /// The next row; none at the end of the file.
    ///
    /// # Errors
    /// From the file system; a file that is not in its format.
    pub fn next(&mut self) -> anyhow::Result<Option<Row>> {
        match self {
            Rows::JsonLines(lines) => lines.next(),
            Rows::Table(table) => table.next(),
        }
    }

    /// What is not read of the rows, though it might be.
    pub fn note(&self) -> Option<&str> {
        match self {
            Rows::JsonLines(lines) => lines.note.as_deref(),
            Rows::Table(_) => None,
        }
    }

    /// The bytes that the rows come from.
    pub fn source(&self) -> &Source {
        match self {
            Rows::JsonLines(lines) => &lines.source,
            Rows::Table(table) => &table.source,
        }
    }
}

fn folder(path: &Path) -> anyhow::Error {
    let error = anyhow!("`{}` is a folder, but a file of rows is expected", path.display());
    let hint = match path.join("dataset_dict.json").exists() || path.join("dataset_info.json").exists() {
        false => "name one of its files".to_owned(),
        true => format!(
            "Hugging Face datasets writes it as JSON lines; add ['train'] to choose one of several splits:\n  python -c \"import \
             sys, datasets; datasets.load_from_disk(sys.argv[1]).to_json('train.jsonl')\" {}",
            word(&path.to_string_lossy())
        ),
    };
    Hinted::new(error, hint).into()
}

/// Names as a message lists them; only a few if there are many.
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
