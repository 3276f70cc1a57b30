//! Rows of a CSV or TSV file, below a header row that names the columns.
//!
//! A quoted field may hold delimiters and line ends. A row with more or fewer fields than the header is a bad one.

use std::io;
use std::path::Path;

use anyhow::{Context, bail};
use csv_core::{ReadRecordResult, Reader, ReaderBuilder};

use super::reading::Reading;
use super::rows::{Content, Row, listed};
use super::source::{LONGEST_ROW, Source};

const MOST_COLUMNS: usize = 1 << 16;

pub struct Table {
    pub source: Source,
    records: Records,
    columns: usize,
    input: (usize, String),
    target: (usize, String),
}

impl Table {
    /// # Errors
    /// From the file system; a header without the wanted columns, with those that it has.
    pub fn open(mut source: Source, delimiter: u8, path: &Path, reading: &Reading) -> anyhow::Result<Table> {
        let mut records = Records::new(delimiter);
        let header = records.next(&mut source).with_context(|| format!("cannot read `{}`", path.display()))?;
        let Some(header) = header else { bail!("`{}` is empty", path.display()) };
        if header.is_too_long || header.fields > MOST_COLUMNS {
            bail!("`{}`: the header row has more than {MOST_COLUMNS} columns or 16 MiB", path.display());
        }
        let names: Vec<String> =
            (0..header.fields).map(|field| String::from_utf8_lossy(records.field(field)).into_owned()).collect();
        let column = |wanted: &str| {
            let has = || listed(names.iter().map(String::as_str));
            let mut found = names.iter().enumerate().filter(|(_, name)| *name == wanted).map(|(index, _)| index);
            match (found.next(), found.next()) {
                (Some(index), None) => Ok((index, wanted.to_owned())),
                (Some(_), Some(_)) => bail!("`{}` has more than one column `{wanted}`: {}", path.display(), has()),
                _ => bail!("`{}` has no column `{wanted}`; it has {}", path.display(), has()),
            }
        };
        let (input, target) = (column(&reading.input_field)?, column(&reading.target_field)?);
        Ok(Table { source, columns: names.len(), input, target, records })
    }

    pub fn next(&mut self) -> io::Result<Option<Row>> {
        let Some(record) = self.records.next(&mut self.source)? else { return Ok(None) };
        Ok(Some(Row { line: record.line, content: self.content(&record) }))
    }

    fn content(&self, record: &Record) -> Result<Content, String> {
        if record.is_unclosed {
            return Err("a quote is opened and not closed before the end of the file".to_owned());
        }
        if record.is_too_long {
            return Err("it is longer than 16 MiB".to_owned());
        }
        if record.fields != self.columns {
            return Err(format!("its number of fields is {}, not {} as in the header", record.fields, self.columns));
        }
        let text = |(column, name): &(usize, String)| match std::str::from_utf8(self.records.field(*column)) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(format!("field `{name}` is not UTF-8")),
        };
        Ok(Content::Text { input: text(&self.input)?, target: text(&self.target)? })
    }
}

/// Splits bytes into records, of which it holds the last one.
struct Records {
    reader: Reader,
    line: u64,
    text: Vec<u8>,
    ends: Vec<usize>,
}

/// What is known of the last record.
struct Record {
    /// Where it begins, from 1.
    line: u64,
    fields: usize,
    is_too_long: bool,
    is_unclosed: bool,
}

impl Records {
    fn new(delimiter: u8) -> Records {
        let reader = ReaderBuilder::new().delimiter(delimiter).build();
        Records { reader, line: 1, text: vec![0; 1 << 16], ends: vec![0; MOST_COLUMNS + 1] }
    }

    /// A field of the last record, which is not too long and has it.
    fn field(&self, field: usize) -> &[u8] {
        let start = if field == 0 { 0 } else { self.ends[field - 1] };
        &self.text[start..self.ends[field]]
    }

    /// Reads the next record; empty lines are passed over.
    fn next(&mut self, source: &mut Source) -> io::Result<Option<Record>> {
        self.pass_line_ends(source)?;
        let mut record = Record { line: self.line, fields: 0, is_too_long: false, is_unclosed: false };
        let mut written = 0;
        let mut last_byte = None;
        loop {
            let input = source.fill()?;
            let at_end = input.is_empty();
            // What does not fit any more is parsed and dropped.
            let kept = record.fields.min(self.ends.len() - 1);
            let (result, read, wrote, ended) =
                self.reader.read_record(input, &mut self.text[written..], &mut self.ends[kept..]);
            self.line += input[..read].iter().filter(|b| **b == b'\n').count() as u64;
            last_byte = input[..read].last().copied().or(last_byte);
            source.consume(read);
            written += wrote;
            record.fields += ended;
            match result {
                ReadRecordResult::InputEmpty | ReadRecordResult::OutputEndsFull => {}
                ReadRecordResult::OutputFull if self.text.len() < LONGEST_ROW => {
                    self.text.resize((self.text.len() * 2).min(LONGEST_ROW), 0);
                }
                ReadRecordResult::OutputFull => {
                    record.is_too_long = true;
                    written = 0;
                }
                ReadRecordResult::Record => {
                    // Outside quotes a line end would have ended the record.
                    record.is_unclosed = at_end && matches!(last_byte, Some(b'\n' | b'\r'));
                    return Ok(Some(record));
                }
                ReadRecordResult::End => return Ok(None),
            }
        }
    }

    fn pass_line_ends(&mut self, source: &mut Source) -> io::Result<()> {
        loop {
            let input = source.fill()?;
            let count = input.iter().take_while(|b| matches!(b, b'\n' | b'\r')).count();
            let done = count < input.len() || input.is_empty();
            self.line += input[..count].iter().filter(|b| **b == b'\n').count() as u64;
            source.consume(count);
            if done {
                return Ok(());
            }
        }
    }
}
