//! What lstc says: data on stdout, talk on stderr, and how a command ends.
//!
//! **Invariant:** nothing else in lstc prints. A closed stdout (`lstc ... | head`) ends the command in silence.

use std::error::Error as StdError;
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, TableStyle};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::interrupt;

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The request was carried out.
    Done,
    /// The answer is no: the model is not supported, or a check fails.
    No,
    /// lstc or its environment failed.
    Failed,
    /// The user asked to stop; what was done is saved.
    Interrupted,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(match exit {
            Exit::Done => 0,
            Exit::No => 1,
            Exit::Failed => 2,
            Exit::Interrupted => interrupt::EXIT_CODE,
        })
    }
}

/// The format in which a command writes its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    #[default]
    Text,
    Json,
}

/// Writes a command's data to stdout: as its text, or as JSON on several lines.
pub fn data<T: fmt::Display + Serialize>(data: &T, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Text => text(&inert(&trimmed(&data.to_string()))),
        Format::Json => text(&format!("{}\n", serde_json::to_string_pretty(data)?)),
    }
}

/// Writes text that is a command's data to stdout.
pub fn text(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// Writes data to stdout as it is made.
///
/// # Errors
/// From `write`; a stdout that is closed or full.
pub fn stream(write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    write(&mut stdout)?;
    Ok(stdout.flush()?)
}

/// A table for a text report, as wide as the terminal allows.
pub fn table<const COLUMNS: usize>(
    header: [&str; COLUMNS],
    rows: impl IntoIterator<Item = [String; COLUMNS]>,
) -> Table {
    let mut table = Table::new();
    table.load_style(TableStyle::default()).set_content_arrangement(ContentArrangement::Dynamic).set_header(header);
    table.add_rows(rows);
    table
}

/// An error with something that the user can do about it.
#[derive(Debug)]
pub struct Hinted {
    source: anyhow::Error,
    hint: String,
}

impl Hinted {
    pub fn new(source: impl Into<anyhow::Error>, hint: impl Into<String>) -> Hinted {
        Hinted { source: source.into(), hint: hint.into() }
    }

    pub fn hint(&self) -> &str {
        &self.hint
    }
}

impl fmt::Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl StdError for Hinted {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.source()
    }
}

/// An error that knows what the user can do about it.
pub trait Advise: StdError {
    fn hint(&self) -> Option<String>;

    /// True for the answer to a question, such as whether a model is supported, and not a failure.
    fn is_answer(&self) -> bool {
        false
    }
}

impl Advise for Hinted {
    fn hint(&self) -> Option<String> {
        Some(self.hint.clone())
    }
}

/// Recognises an error of one type that advises.
pub type Known = for<'e> fn(&'e (dyn StdError + 'static)) -> Option<&'e dyn Advise>;

/// Recognises an error of type `E`.
pub fn known<'e, E: Advise + 'static>(error: &'e (dyn StdError + 'static)) -> Option<&'e dyn Advise> {
    error.downcast_ref::<E>().map(|error| error as &dyn Advise)
}

/// Reports why a command failed, and returns its exit code. The errors that advise are of the types in `known`.
pub fn failure(error: &anyhow::Error, known: &[Known]) -> Exit {
    if is_closed_stdout(error) {
        return Exit::Done;
    }
    say(&inert(&explain(error, known)));
    if advising(error, known).any(Advise::is_answer) { Exit::No } else { Exit::Failed }
}

/// The errors of a chain that advise.
fn advising<'e>(error: &'e anyhow::Error, known: &'e [Known]) -> impl Iterator<Item = &'e dyn Advise> {
    error.chain().filter_map(|cause| known.iter().find_map(|known| known(cause)))
}

fn is_closed_stdout(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe))
}

/// `error:`, then each cause, then each hint, on one or more lines each.
fn explain(error: &anyhow::Error, known: &[Known]) -> String {
    let mut text = format!("error: {error}\n");
    for cause in error.chain().skip(1) {
        text.push_str(&format!("  Caused by: {}\n", cause.to_string().trim_end().replace('\n', "\n  ")));
    }
    for hint in advising(error, known).filter_map(Advise::hint) {
        text.push_str(&format!("hint: {hint}\n"));
    }
    text
}

/// Text as one word of a shell.
pub fn word(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+:,=@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

pub fn warning(text: impl fmt::Display) {
    say(&inert(&format!("warning: {text}\n")));
}

pub fn note(text: impl fmt::Display) {
    say(&inert(&trimmed(&format!("{text}\n"))));
}

/// Text whose lines do not end with blanks, as the last cells of tables do.
pub fn trimmed(text: &str) -> String {
    text.split('\n').map(|line| line.trim_end_matches(' ')).collect::<Vec<_>>().join("\n")
}

/// A line that is replaced by the next one, with a bar if it is known how much there is to do. Shown only on a
/// terminal.
#[derive(Debug, Default)]
pub struct ProgressLine {
    bar: Option<ProgressBar>,
}

impl ProgressLine {
    pub fn show(&mut self, text: impl fmt::Display) {
        let bar = self.bar.get_or_insert_with(|| {
            ProgressBar::no_length().with_style(ProgressStyle::with_template("{msg}").expect("a valid template"))
        });
        bar.set_message(text.to_string());
    }

    /// `label`, a bar that is full at `of`, and `text`.
    pub fn bar(&mut self, label: impl fmt::Display, done: u64, of: u64, text: impl fmt::Display) {
        let label = label.to_string();
        if self.bar.as_ref().is_some_and(|bar| bar.prefix() != label) {
            self.clear();
        }
        let bar = self.bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{prefix} {bar:24} {msg}").expect("a valid template");
            ProgressBar::no_length().with_style(style.progress_chars("━╸─"))
        });
        bar.set_length(of);
        bar.set_position(done);
        bar.set_prefix(label);
        bar.set_message(text.to_string());
    }

    pub fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A duration as people read it, as in 1:05 or 2:00:00.
pub struct Clock(pub Duration);

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        if hours > 0 { write!(f, "{hours}:{minutes:02}:{seconds:02}") } else { write!(f, "{minutes}:{seconds:02}") }
    }
}

/// Text that may hold names from files, without terminal control characters.
fn inert(text: &str) -> String {
    let commands = |c: char| (c.is_control() && c != '\n' && c != '\t') || ('\u{202a}'..='\u{202e}').contains(&c);
    text.chars().map(|c| if commands(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

fn say(text: &str) {
    // An error here cannot be reported: stderr is closed.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// A size in bytes as people read it, as in 33.2 MiB.
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
        if self.0 < 1024 {
            return write!(f, "{} bytes", self.0);
        }
        let mut size = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while size >= 1024.0 && unit + 1 < UNITS.len() {
            size /= 1024.0;
            unit += 1;
        }
        write!(f, "{size:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn an_error_is_reported_with_its_causes_and_hints() {
        let file = io::Error::new(io::ErrorKind::NotFound, "no such file");
        let error = anyhow::Error::from(Hinted::new(anyhow::Error::from(file).context("cannot read `a`"), "make it"));
        let error = Err::<(), _>(error).context("cannot start").unwrap_err();
        insta::assert_snapshot!(explain(&error, &[known::<Hinted>]), @r"
        error: cannot start
          Caused by: cannot read `a`
          Caused by: no such file
        hint: make it
        ");
    }

    #[test]
    fn names_from_files_do_not_command_the_terminal() {
        assert_eq!(inert("a\x1b[31mb\u{202e}c\n\td\r"), "a\u{fffd}[31mb\u{fffd}c\n\td\u{fffd}");
    }

    #[test]
    fn sizes_are_readable() {
        let text = |bytes| Bytes(bytes).to_string();
        assert_eq!(text(12), "12 bytes");
        assert_eq!(text(1024), "1.0 KiB");
        assert_eq!(text(34_824_680), "33.2 MiB");
        assert_eq!(text(3 << 30), "3.0 GiB");
    }

    #[test]
    fn durations_are_readable() {
        let text = |seconds| Clock(Duration::from_secs(seconds)).to_string();
        assert_eq!([text(7), text(65), text(7200)], ["0:07", "1:05", "2:00:00"]);
    }

    #[test]
    fn lines_do_not_end_with_blanks() {
        let text = trimmed(&format!("{}\n", table(["a", "b"], [["long".to_owned(), "1".to_owned()]])));
        assert!(text.lines().count() == 2 && text.lines().all(|line| !line.ends_with(' ')), "{text:?}");
    }

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(word("/model/block.1/Mul"), "/model/block.1/Mul");
        assert_eq!(word("a b"), "'a b'");
        assert_eq!(word("it's"), r"'it'\''s'");
        assert_eq!(word(""), "''");
    }
}
