//! Labelled text through the public interface: tokens against Hugging Face's, every form of file, bad rows, order, batches.

#[path = "data/batches.rs"]
mod batches;
#[path = "data/files.rs"]
mod files;
#[path = "data/tables.rs"]
mod tables;
#[path = "data/tokenised.rs"]
mod tokenised;
#[path = "data/tokens.rs"]
mod tokens;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use lstc_data::{Corpus, OnBadRow, Reading, SpecialTokens, Tokenizer};
use tempfile::TempDir;

/// Of the tokenizer in `models/t5-nano`.
const SPECIAL: SpecialTokens = SpecialTokens { pad: 0, end: 1, start: 0 };
const VOCABULARY: u32 = 4096;

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn nano() -> &'static Tokenizer {
    static NANO: OnceLock<Tokenizer> = OnceLock::new();
    NANO.get_or_init(|| Tokenizer::open(&root("models/t5-nano/tokenizer.json"), SPECIAL).expect("it is committed"))
}

/// A file of data in a folder of its own.
struct File {
    folder: TempDir,
    path: PathBuf,
}

fn file(name: &str, bytes: impl AsRef<[u8]>) -> File {
    let folder = TempDir::new().expect("a temporary folder");
    let path = folder.path().join(name);
    fs::write(&path, bytes).expect("the folder is new");
    File { folder, path }
}

impl File {
    fn read_with(&self, reading: &Reading, tokenizer: Option<&Tokenizer>) -> anyhow::Result<Corpus> {
        Corpus::read(&self.path, reading, tokenizer, SPECIAL, self.folder.path(), VOCABULARY, &mut |_, _| {})
    }

    fn read(&self, reading: &Reading) -> anyhow::Result<Corpus> {
        self.read_with(reading, Some(nano()))
    }

    /// Why reading fails, with the names of files alone, and the hint.
    fn refusal(&self, reading: &Reading) -> String {
        let error = self.read(reading).expect_err("it is refused");
        let hint = match error.downcast_ref::<lstc_base::report::Hinted>() {
            Some(hinted) => format!("\nhint: {}", hinted.hint()),
            None => String::new(),
        };
        format!("{error:#}{hint}").replace(&format!("{}/", self.folder.path().display()), "")
    }

    /// The reasons for which rows are skipped, with the names of files alone.
    fn skipped(&self, reading: Reading) -> (Corpus, Vec<String>) {
        let corpus = self.read(&Reading { on_bad_row: OnBadRow::Skip, ..reading }).expect("there are good rows");
        let folder = format!("{}/", self.folder.path().display());
        let reasons = corpus.skipped().first.iter().map(|why| why.replace(&folder, "")).collect();
        (corpus, reasons)
    }
}

/// Each example as its line, its input and its target.
fn texts(corpus: &Corpus) -> Vec<(u64, String, String)> {
    let text = |ids: &[u32]| nano().decode(ids).expect("ids of the vocabulary");
    (0..corpus.len()).map(|i| corpus.example(i)).map(|e| (e.row, text(e.source), text(e.target))).collect()
}
