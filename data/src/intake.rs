//! From rows to the examples of a corpus: tokenised in chunks, checked, and written in the rows' order.

use std::path::Path;

use anyhow::{Context, anyhow, bail};
use lstc_base::report::Hinted;

use super::corpus::{Corpus, Fingerprint, Skipped};
use super::reading::Targets;
use super::rows::{Content, Row};
use super::tokenised::{HIDDEN, Tokenised};
use super::words::WordsWriter;
use super::{Encoded, OnBadRow, Reading, SpecialTokens, Tokenizer};

/// The most rows that are tokenised together.
const CHUNK_ROWS: usize = 512;
/// Text that is tokenised together, in bytes: tokenizers need about a hundred bytes a token.
const CHUNK_TEXT: usize = 256 << 10;
/// Skipped rows whose reasons are kept.
const REASONS: usize = 5;

pub struct Intake<'a> {
    path: &'a Path,
    reading: &'a Reading,
    /// The fields of input and target, as a message names them.
    input: String,
    target: String,
    tokenizer: Option<&'a Tokenizer>,
    special: SpecialTokens,
    vocabulary: u32,
    scratch: &'a Path,
    chunk: Vec<Row>,
    chunk_text: usize,
    tokens: WordsWriter,
    index: WordsWriter,
    examples: u32,
    fingerprint: Fingerprint,
    skipped: Skipped,
    truncated: (usize, usize),
    hides_source: bool,
}

/// A row's source and target.
type Pair = (Encoded, Encoded);

impl<'a> Intake<'a> {
    /// # Errors
    /// A folder that no file can be made in.
    pub fn new(
        path: &'a Path,
        reading: &'a Reading,
        tokenizer: Option<&'a Tokenizer>,
        special: SpecialTokens,
        vocabulary: u32,
        scratch: &'a Path,
    ) -> anyhow::Result<Intake<'a>> {
        let words =
            || WordsWriter::create(scratch).with_context(|| format!("cannot create a file in `{}`", scratch.display()));
        Ok(Intake {
            path,
            reading,
            input: reading.input()?.named(),
            target: format!("`{}`", reading.target_field),
            tokenizer,
            special,
            vocabulary,
            scratch,
            chunk: Vec::new(),
            chunk_text: 0,
            tokens: words()?,
            index: words()?,
            examples: 0,
            fingerprint: Fingerprint::default(),
            skipped: Skipped::default(),
            truncated: (0, 0),
            hides_source: false,
        })
    }

    /// Takes a row, and says whether a chunk was written with it.
    ///
    /// # Errors
    /// A bad row, if they are not skipped; text without a tokenizer; a full disk.
    pub fn take(&mut self, row: Row) -> anyhow::Result<bool> {
        self.chunk_text += match &row.content {
            Ok(Content::Text { input, target }) => self.reading.prefix.len() + input.len() + target.len(),
            Ok(Content::Ids(row)) => 8 * row.len(),
            Err(why) => why.len(),
        };
        self.chunk.push(row);
        let is_full = self.chunk.len() >= CHUNK_ROWS || self.chunk_text >= CHUNK_TEXT;
        if is_full {
            self.write_chunk()?;
        }
        Ok(is_full)
    }

    /// # Errors
    /// As [`Intake::take`], and if no row was usable.
    pub fn finish(mut self) -> anyhow::Result<Corpus> {
        self.write_chunk()?;
        if self.examples == 0 {
            match self.skipped.first.first() {
                Some(why) => {
                    bail!("no row of `{}` can be used, {} are bad: {why}", self.path.display(), self.skipped.count)
                }
                None => bail!("`{}` holds no rows", self.path.display()),
            }
        }
        let full = || format!("cannot write the tokenised examples to `{}`", self.scratch.display());
        Ok(Corpus {
            tokens: self.tokens.finish().with_context(full)?.into(),
            index: self.index.finish().with_context(full)?,
            skipped: self.skipped,
            truncated: self.truncated,
            hides_source: self.hides_source,
            note: None,
            sha256: self.fingerprint.finish(),
            state: None,
        })
    }

    fn write_chunk(&mut self) -> anyhow::Result<()> {
        let chunk = std::mem::take(&mut self.chunk);
        self.chunk_text = 0;
        let lines: Vec<u64> = chunk.iter().map(|row| row.line).collect();
        for (line, pair) in lines.into_iter().zip(self.tokenised(chunk)?) {
            match pair {
                Ok(pair) => self.write(line, &pair)?,
                Err(why) => self.bad_row(line, &why)?,
            }
        }
        Ok(())
    }

    /// The tokens of each row of a chunk, or why it has none.
    fn tokenised(&self, chunk: Vec<Row>) -> anyhow::Result<Vec<Result<Pair, String>>> {
        let mut texts = (Vec::new(), Vec::new());
        let mut rows: Vec<Result<Option<Pair>, String>> = Vec::with_capacity(chunk.len());
        for row in chunk {
            rows.push(match row.content.and_then(|content| self.without_blanks(content)) {
                Ok(Content::Text { input, target }) => {
                    texts.0.push(format!("{}{input}", self.reading.prefix));
                    texts.1.push(target);
                    Ok(None)
                }
                Ok(Content::Ids(row)) => self.taken(&row).map(Some),
                Err(why) => Err(why),
            });
        }
        let mut encoded = self.encoded(texts.0, texts.1)?.into_iter();
        let pair = |row: Result<Option<Pair>, String>| match row? {
            Some(pair) => Ok(pair),
            None => encoded.next().expect("there is one for each row of text"),
        };
        Ok(rows.into_iter().map(pair).collect())
    }

    fn without_blanks(&self, content: Content) -> Result<Content, String> {
        if let Content::Text { input, target } = &content {
            let blank = |name: &str| Err(format!("field {name} is empty"));
            if self.reading.targets == Targets::Read && target.trim().is_empty() {
                return blank(&self.target);
            }
            if input.trim().is_empty() && self.reading.prefix.trim().is_empty() {
                return blank(&self.input);
            }
        }
        Ok(content)
    }

    fn encoded(&self, inputs: Vec<String>, targets: Vec<String>) -> anyhow::Result<Vec<Result<Pair, String>>> {
        if inputs.is_empty() {
            return Ok(Vec::new());
        }
        let Some(tokenizer) = self.tokenizer else {
            let error = anyhow!("`{}` holds text, and there is no tokenizer", self.path.display());
            return Err(Hinted::new(error, "--tokenizer takes the model's `tokenizer.json`").into());
        };
        let reading = self.reading;
        // One text without tokens fails a whole batch: then each row is tried alone.
        let retry = (inputs.clone(), targets.clone());
        let sources = tokenizer.encode_all(inputs, reading.max_source_length);
        let targets = match reading.targets {
            Targets::Read => tokenizer.encode_all(targets, reading.max_target_length),
            Targets::Absent => targets.iter().map(|_| self.no_target()).collect(),
        };
        let encoded: Vec<Result<Pair, String>> = match (sources, targets) {
            (Ok(sources), Ok(targets)) => sources.into_iter().zip(targets).map(Ok).collect(),
            _ => retry.0.iter().zip(&retry.1).map(|(i, t)| self.encoded_alone(tokenizer, i, t)).collect(),
        };
        for (source, target) in encoded.iter().flatten() {
            let fits = self.in_vocabulary(&self.input, source);
            if let Err(reason) = fits.and_then(|()| self.in_vocabulary(&self.target, target)) {
                // Not the row's fault: with another model's tokenizer, no row would mean what it says.
                let error = anyhow!("`{}`: {reason}: the tokenizer is not the model's", self.path.display());
                return Err(Hinted::new(error, "--tokenizer takes the model's `tokenizer.json`").into());
            }
        }
        Ok(encoded)
    }

    fn encoded_alone(&self, tokenizer: &Tokenizer, input: &str, target: &str) -> Result<Pair, String> {
        let reading = self.reading;
        let reason = |name: &str, error: anyhow::Error| format!("field {name} has no tokens: {error:#}");
        let source = tokenizer.encode(input, reading.max_source_length).map_err(|e| reason(&self.input, e))?;
        let target = match reading.targets {
            Targets::Read => tokenizer.encode(target, reading.max_target_length),
            Targets::Absent => self.no_target(),
        };
        Ok((source, target.map_err(|e| reason(&self.target, e))?))
    }

    /// The end token alone.
    fn no_target(&self) -> anyhow::Result<Encoded> {
        let end = u32::try_from(self.special.end).context("the end token is not a token id")?;
        Ok(Encoded { ids: vec![end], truncated: false })
    }

    /// Ids of a file that is already tokenised, cut to the limits.
    fn taken(&self, row: &Tokenised) -> Result<Pair, String> {
        let taken = |name: &str, tokens: Vec<u32>, limit: usize| {
            let taken = cut(tokens, limit);
            self.in_vocabulary(name, &taken).map(|()| taken)
        };
        let source = taken("`input_ids`", row.source(self.special)?, self.reading.max_source_length)?;
        let target = match self.reading.targets {
            Targets::Read => taken("`labels`", row.target(self.special)?, self.reading.max_target_length)?,
            Targets::Absent => self.no_target().map_err(|error| error.to_string())?,
        };
        Ok((source, target))
    }

    /// Whether the model has these tokens, which come from the fields `name`.
    fn in_vocabulary(&self, name: &str, encoded: &Encoded) -> Result<(), String> {
        match encoded.ids.iter().map(|id| id & !HIDDEN).find(|id| *id >= self.vocabulary) {
            None => Ok(()),
            Some(id) => {
                let size = self.vocabulary;
                Err(format!("field {name} has token {id}, but the model has embeddings for {size} tokens"))
            }
        }
    }

    fn write(&mut self, line: u64, (source, target): &Pair) -> anyhow::Result<()> {
        let start = self.tokens.count();
        let lengths = [source.ids.len() as u32, target.ids.len() as u32];
        let entry = [start as u32, (start >> 32) as u32, line as u32, (line >> 32) as u32, lengths[0], lengths[1]];
        self.tokens
            .push(&source.ids)
            .and_then(|()| self.tokens.push(&target.ids))
            .and_then(|()| self.index.push(&entry))
            .with_context(|| format!("cannot write the tokenised examples to `{}`", self.scratch.display()))?;
        self.hides_source |= source.ids.iter().any(|id| id & HIDDEN != 0);
        self.fingerprint.add(&source.ids, &target.ids);
        self.truncated.0 += usize::from(source.truncated);
        self.truncated.1 += usize::from(target.truncated);
        self.examples = self.examples.checked_add(1).with_context(|| {
            format!("`{}` has more than {} rows, the most that are read", self.path.display(), u32::MAX)
        })?;
        Ok(())
    }

    fn bad_row(&mut self, line: u64, why: &str) -> anyhow::Result<()> {
        let problem = format!("`{}`, line {line}: {why}", self.path.display());
        match self.reading.on_bad_row {
            OnBadRow::Fail => {
                let skip = "--on-bad-row skip leaves such rows out and counts them";
                let hint = match self.examples {
                    0 => format!("--input-field, --template and --target-field name the fields to read; {skip}"),
                    _ => skip.to_owned(),
                };
                Err(Hinted::new(anyhow!(problem), hint).into())
            }
            OnBadRow::Skip => {
                self.skipped.count += 1;
                if self.skipped.first.len() < REASONS {
                    self.skipped.first.push(problem);
                }
                Ok(())
            }
        }
    }
}

/// At most `limit` tokens, of which the last stays the last.
fn cut(mut ids: Vec<u32>, limit: usize) -> Encoded {
    let truncated = ids.len() > limit;
    if truncated {
        let last = ids.len() - 1;
        ids.swap(limit - 1, last);
        ids.truncate(limit);
    }
    Encoded { ids, truncated }
}
