//! Rows of a CSV or TSV file, below a header row that names the columns.
//!
//! A row with more or fewer fields than the header is bad. A quote that is never closed is an error of the whole file: what
//! follows it may be rows.

use std::path::Path;

use anyhow::{Context, anyhow, bail};
use lstc_base::report::{Hinted, word};
use lstc_graph::count;

use super::reading::{Quoting, Reading, Targets};
use super::records::{MOST_COLUMNS, Record, Records};
use super::rows::{Content, Row, listed};
use super::source::Source;
use super::template::Template;

pub struct Table {
    pub source: Source,
    records: Records,
    columns: usize,
    template: Template,
    inputs: Vec<(usize, String)>,
    /// None if targets are not read.
    target: Option<(usize, String)>,
}

impl Table {
    /// # Errors
    /// From the file system; a header without the wanted columns, with those that it has.
    pub fn open(
        mut source: Source,
        delimiter: u8,
        quoting: Quoting,
        path: &Path,
        reading: &Reading,
    ) -> anyhow::Result<Table> {
        let mut records = Records::new(delimiter, quoting == Quoting::Rfc4180);
        let header = records.next(&mut source).with_context(|| format!("cannot read `{}`", path.display()))?;
        let Some(header) = header else { bail!("`{}` is empty", path.display()) };
        if header.is_too_long || header.fields > MOST_COLUMNS {
            bail!("`{}`: the header row has more than {MOST_COLUMNS} columns or 16 MiB", path.display());
        }
        whole(&header).with_context(|| format!("cannot read `{}`", path.display()))?;
        let names: Vec<String> =
            (0..header.fields).map(|field| String::from_utf8_lossy(records.field(field)).into_owned()).collect();
        let has = || listed(names.iter().map(String::as_str));
        let column = |wanted: &str| {
            let mut found = names.iter().enumerate().filter(|(_, name)| *name == wanted).map(|(index, _)| index);
            match (found.next(), found.next()) {
                (Some(index), None) => Ok((index, wanted.to_owned())),
                (Some(_), Some(_)) => bail!("`{}` has more than one column `{wanted}`: {}", path.display(), has()),
                _ => {
                    let error = anyhow!("`{}` has no column `{wanted}`; it has {}", path.display(), has());
                    Err(Hinted::new(error, missing(&names, path)).into())
                }
            }
        };
        let template = reading.input()?;
        let inputs = template.fields().iter().map(|name| column(name)).collect::<anyhow::Result<_>>()?;
        let target = match reading.targets {
            Targets::Read => Some(column(&reading.target_field)?),
            Targets::Absent => None,
        };
        Ok(Table { source, columns: names.len(), template, inputs, target, records })
    }

    /// # Errors
    /// From the file system; a quote that is not closed.
    pub fn next(&mut self) -> anyhow::Result<Option<Row>> {
        let Some(record) = self.records.next(&mut self.source)? else { return Ok(None) };
        whole(&record)?;
        Ok(Some(Row { line: record.line, content: self.content(&record) }))
    }

    fn content(&self, record: &Record) -> Result<Content, String> {
        if record.is_too_long {
            return Err("it is longer than 16 MiB".to_owned());
        }
        if let Some(field) = record.text_after_quote {
            return Err(format!(
                "text follows the closing quote of field {field}: in CSV a quote inside quotes is doubled (--quoting none \
                 reads quotes as text)"
            ));
        }
        if record.fields != self.columns {
            return Err(format!("it has {}, but the header has {}", count(record.fields, "field"), self.columns));
        }
        let text = |(column, name): &(usize, String)| match std::str::from_utf8(self.records.field(*column)) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(format!("field `{name}` is not UTF-8; `iconv -f LATIN1 -t UTF-8` converts Latin-1")),
        };
        let inputs: Vec<String> = self.inputs.iter().map(text).collect::<Result<_, _>>()?;
        let target = self.target.as_ref().map(text).transpose()?.unwrap_or_default();
        Ok(Content::Text { input: self.template.filled(&inputs), target })
    }
}

/// # Errors
/// A quote that is not closed.
fn whole(record: &Record) -> anyhow::Result<()> {
    let Some(line) = record.unclosed else { return Ok(()) };
    let error = anyhow!("the quote that opens a field in line {line} is not closed before the end of the file");
    let hint = "in CSV a field that begins with a quote ends with one; --quoting none reads quotes as text";
    Err(Hinted::new(error, hint).into())
}

/// What to do about a header without a wanted column.
fn missing(names: &[String], path: &Path) -> String {
    let [only] = names else {
        return "--input-field and --target-field name the columns; the first row of the file is its header".to_owned();
    };
    let file = word(&path.to_string_lossy());
    match [",", "\t", ";", "|"].into_iter().find(|other| only.contains(other)) {
        Some("\t") => "its columns are separated by tabs: --data-format tsv".to_owned(),
        Some(",") => "its columns are separated by commas: --data-format csv".to_owned(),
        Some(other) => format!(
            "its columns are separated by `{other}`; this converts it to CSV:\n  python -c \"import csv, sys; \
             csv.writer(sys.stdout).writerows(csv.reader(sys.stdin, delimiter='{other}'))\" < {file} > converted.csv"
        ),
        None => "the first row of the file is its header, and names the columns".to_owned(),
    }
}
