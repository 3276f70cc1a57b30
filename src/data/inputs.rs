//! The inputs of a file, read once more, as they were written.

use std::fmt;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use super::Reading;
use super::rows::{Content, Rows};

/// A row's input: its text as the template makes it, without the prefix, or its token ids as the file has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Input {
    Text(String),
    Ids(Vec<i64>),
}

/// Ids are separated by blanks.
impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Input::Text(text) => f.write_str(text),
            Input::Ids(ids) => f.write_str(&ids.iter().map(i64::to_string).collect::<Vec<_>>().join(" ")),
        }
    }
}

/// Reads the inputs of a file in its order.
pub struct Inputs<'p> {
    path: &'p Path,
    rows: Rows,
}

impl<'p> Inputs<'p> {
    /// # Errors
    /// As [`super::Corpus::read`], except for bad rows.
    pub fn open(path: &'p Path, reading: &Reading) -> anyhow::Result<Inputs<'p>> {
        Ok(Inputs { path, rows: Rows::open(path, reading)? })
    }

    /// The input of the row that begins at this line, which comes after those that were asked for before.
    ///
    /// # Errors
    /// From the file system; a file that has changed, and no longer has such a row.
    pub fn at(&mut self, line: u64) -> anyhow::Result<Input> {
        let changed = || format!("`{}` has changed while it was read", self.path.display());
        loop {
            let row = self.rows.next().with_context(changed)?.with_context(changed)?;
            if row.line != line {
                continue;
            }
            return match row.content {
                Ok(Content::Text { input, .. }) => Ok(Input::Text(input)),
                Ok(Content::Ids(row)) => Ok(Input::Ids(row.into_input())),
                Err(why) => Err(anyhow::anyhow!(why)).with_context(changed),
            };
        }
    }
}
