//! The inputs of a file, read once more, as they were written.

use std::fmt;
use std::path::Path;

use anyhow::{Context, anyhow};
use lstc_base::hash::State;
use serde::Serialize;

use super::rows::{Content, Rows};
use super::{Corpus, Reading};

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
    /// Opens the file that a corpus was read from.
    ///
    /// # Errors
    /// As [`Corpus::read`], except for bad rows; a file that has changed since.
    pub fn open(path: &'p Path, reading: &Reading, corpus: &Corpus) -> anyhow::Result<Inputs<'p>> {
        let inputs = Inputs { path, rows: Rows::open(path, reading)? };
        inputs.check(corpus.state())?;
        Ok(inputs)
    }

    /// # Errors
    /// A file that was written to while its inputs were read.
    pub fn finish(&self) -> anyhow::Result<()> {
        self.check(Some(self.rows.source().state()))
    }

    fn check(&self, expected: Option<State>) -> anyhow::Result<()> {
        let now = self.rows.source().now().with_context(|| format!("cannot read `{}`", self.path.display()))?;
        match expected == Some(now) {
            true => Ok(()),
            false => Err(anyhow!("`{}` has changed since its rows were read", self.path.display())),
        }
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
                Err(why) => Err(anyhow!(why)).with_context(changed),
            };
        }
    }
}
