//! Bytes of a table, split into records and fields.
//!
//! With quotes, as RFC 4180 says: a field that begins with a quote may hold delimiters, line ends and doubled quotes, and
//! ends with its quote. A quote inside another field is text. Without quotes, every quote is text and every line is a
//! record.

use std::io;

use super::source::{LONGEST_ROW, Source};

pub const MOST_COLUMNS: usize = 1 << 16;

/// Splits bytes into records, and holds the last one.
pub struct Records {
    delimiter: u8,
    has_quotes: bool,
    line: u64,
    text: Vec<u8>,
    ends: Vec<usize>,
}

/// What is known of the last record.
pub struct Record {
    /// Where it begins, from 1.
    pub line: u64,
    pub fields: usize,
    pub is_too_long: bool,
    /// The field, from 1, whose closing quote is followed by text.
    pub text_after_quote: Option<usize>,
    /// The line of a quote that is not closed before the end of the file.
    pub unclosed: Option<u64>,
}

/// Where in a record the next byte lies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    FieldStart,
    Bare,
    Quoted,
    /// After a quote inside a quoted field, which ends the field unless another quote follows.
    AfterQuote,
}

impl Records {
    pub fn new(delimiter: u8, has_quotes: bool) -> Records {
        Records { delimiter, has_quotes, line: 1, text: Vec::new(), ends: Vec::new() }
    }

    /// A field of the last record, which must have it and not be too long.
    pub fn field(&self, field: usize) -> &[u8] {
        let start = if field == 0 { 0 } else { self.ends[field - 1] };
        &self.text[start..self.ends[field]]
    }

    /// Reads the next record; empty lines are skipped.
    pub fn next(&mut self, source: &mut Source) -> io::Result<Option<Record>> {
        self.pass_line_ends(source)?;
        self.text.clear();
        self.text.shrink_to(1 << 16);
        self.ends.clear();
        let mut record =
            Record { line: self.line, fields: 0, is_too_long: false, text_after_quote: None, unclosed: None };
        let (mut place, mut quoted_at) = (Place::FieldStart, self.line);
        let mut is_empty = true;
        loop {
            let input = source.fill()?;
            if input.is_empty() {
                if is_empty {
                    return Ok(None);
                }
                record.unclosed = (place == Place::Quoted).then_some(quoted_at);
                self.end_field(&mut record);
                return Ok(Some(record));
            }
            is_empty = false;
            let mut read = 0;
            let mut ended = false;
            for byte in input {
                read += 1;
                self.line += u64::from(*byte == b'\n');
                place = match (place, *byte) {
                    (Place::FieldStart, b'"') if self.has_quotes => {
                        quoted_at = self.line;
                        Place::Quoted
                    }
                    (Place::Quoted, b'"') => Place::AfterQuote,
                    (Place::AfterQuote, b'"') => self.push(b'"', Place::Quoted, &mut record),
                    (Place::Quoted, byte) => self.push(byte, Place::Quoted, &mut record),
                    (_, b'\n' | b'\r') => {
                        ended = true;
                        break;
                    }
                    (_, byte) if byte == self.delimiter => {
                        self.end_field(&mut record);
                        Place::FieldStart
                    }
                    (Place::AfterQuote, byte) => {
                        record.text_after_quote.get_or_insert(record.fields + 1);
                        self.push(byte, Place::Bare, &mut record)
                    }
                    (Place::FieldStart | Place::Bare, byte) => self.push(byte, Place::Bare, &mut record),
                };
            }
            source.consume(read);
            if ended {
                self.end_field(&mut record);
                return Ok(Some(record));
            }
        }
    }

    /// What no longer fits is dropped.
    fn push(&mut self, byte: u8, next: Place, record: &mut Record) -> Place {
        if self.text.len() < LONGEST_ROW {
            self.text.push(byte);
        } else {
            record.is_too_long = true;
        }
        next
    }

    fn end_field(&mut self, record: &mut Record) {
        record.fields += 1;
        if self.ends.len() <= MOST_COLUMNS {
            self.ends.push(self.text.len());
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
