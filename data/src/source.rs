//! The bytes of a file as they come, and lines of them that are never longer than the limit.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use lstc_base::hash::State;
use lstc_graph::regular;

/// In bytes. A longer row is bad; it is skipped without being held in memory.
pub const LONGEST_ROW: usize = 16 << 20;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A file that is read once, front to back. A byte-order mark at its start is skipped.
pub struct Source {
    reader: BufReader<File>,
    consumed: u64,
    size: u64,
    state: State,
}

/// What [`Source::line`] found.
pub enum Line {
    Whole,
    TooLong,
    End,
}

impl Source {
    pub fn open(path: &Path) -> io::Result<Source> {
        Source::of(regular::open(path)?)
    }

    /// A file that is open at its start.
    pub fn of(file: File) -> io::Result<Source> {
        let metadata = file.metadata()?;
        let (size, state) = (metadata.len(), State::new(&metadata));
        let mut source = Source { reader: BufReader::with_capacity(1 << 16, file), consumed: 0, size, state };
        if source.fill()?.starts_with(BYTE_ORDER_MARK) {
            source.consume(BYTE_ORDER_MARK.len());
        }
        Ok(source)
    }

    /// The next bytes; none at the end.
    pub fn fill(&mut self) -> io::Result<&[u8]> {
        // A filled buffer is returned again unchanged: the loop only waits for it.
        while let Err(error) = self.reader.fill_buf() {
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        self.reader.fill_buf()
    }

    pub fn consume(&mut self, count: usize) {
        self.reader.consume(count);
        self.consumed += count as u64;
    }

    /// Bytes read, and the file's size: what it was when it was opened, or more if the file has grown.
    pub fn progress(&self) -> (u64, u64) {
        (self.consumed, self.size.max(self.consumed))
    }

    /// The file's state when it was opened.
    pub fn state(&self) -> State {
        self.state
    }

    /// The file's state now: another if the file has been written to since it was opened.
    pub fn now(&self) -> io::Result<State> {
        Ok(State::new(&self.reader.get_ref().metadata()?))
    }

    /// The next line, without its end.
    pub fn line(&mut self, line: &mut Vec<u8>) -> io::Result<Line> {
        line.clear();
        line.shrink_to(1 << 16);
        let mut length = 0;
        loop {
            let buffer = self.fill()?;
            let end = buffer.iter().position(|b| *b == b'\n');
            let part = &buffer[..end.unwrap_or(buffer.len())];
            let is_last = end.is_some() || buffer.is_empty();
            if buffer.is_empty() && length == 0 {
                return Ok(Line::End);
            }
            length += part.len();
            if length <= LONGEST_ROW {
                line.extend_from_slice(part);
            }
            let count = part.len() + usize::from(end.is_some());
            self.consume(count);
            if is_last {
                break;
            }
        }
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(if length <= LONGEST_ROW { Line::Whole } else { Line::TooLong })
    }
}
