//! Memory while a large file is read. Alone in its process, so that nothing else is measured.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;

use lstc_data::{Corpus, Reading, SpecialTokens, Tokenizer, epoch_batches};
use tempfile::TempDir;

const SPECIAL: SpecialTokens = SpecialTokens { pad: 0, end: 1, start: 0 };

/// Rows of about 600 bytes, of which a quarter is the text.
fn write(path: &Path, rows: usize) {
    let mut out = BufWriter::new(fs::File::create(path).expect("the folder is new"));
    let note = "n".repeat(430);
    for row in 0..rows {
        let text = format!("row {row} tells of a small dog that plays in the garden with {} other dogs", row % 97);
        writeln!(out, "{{\"note\": \"{note}\", \"text\": \"{text}\", \"label\": \"animal {}\"}}", row % 8)
            .expect("there is room");
    }
    out.flush().expect("there is room");
}

/// Anonymous memory of this process, in MiB.
fn anonymous() -> f64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("Linux 4.5 has it");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).expect("a number of KiB") / 1024.0
}

#[test]
fn memory_does_not_grow_with_the_file() {
    let folder = TempDir::new().expect("a temporary folder");
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/t5-nano/tokenizer.json");
    let tokenizer = Tokenizer::open(&tokenizer, SPECIAL).expect("it is committed");
    let read = |rows: usize| {
        let path = folder.path().join("a.jsonl");
        write(&path, rows);
        let before = anonymous();
        let mut peak = before;
        let corpus =
            Corpus::read(&path, &Reading::default(), Some(&tokenizer), SPECIAL, folder.path(), 4096, &mut |_, _| {
                peak = peak.max(anonymous());
            });
        let corpus = corpus.expect("good rows");
        assert_eq!(corpus.len(), rows);
        let batches = epoch_batches(&corpus, 8, 1, 0);
        peak = peak.max(anonymous());
        assert_eq!(batches.len(), rows.div_ceil(8));
        (fs::metadata(&path).expect("it is there").len(), peak - before)
    };
    // The threads and their buffers come with the first rows.
    let (_, small) = read(1000);
    let (bytes, grown) = read(110_000);
    println!("{bytes} bytes raise anonymous memory by {grown:.1} MiB, the first rows by {small:.1}");
    assert!(bytes > 55_000_000, "{bytes}");
    assert!(grown < 12.0, "{grown} MiB");
    assert!(small < 40.0, "{small} MiB");
}
