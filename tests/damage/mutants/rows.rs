//! Data files as users give them: a row is read or refused, with the file's name.

use std::fs;
use std::path::Path;

use lstc_data::{Corpus, OnBadRow, Reading, SpecialTokens, Tokenizer};
use serde_json::{Value, json};

use super::chance::Chance;
use super::{MUTANTS, bytes, each, jsons, names};

const SPECIAL: SpecialTokens = SpecialTokens { pad: 0, end: 1, start: 0 };
const VOCABULARY: u32 = 4096;

/// Reads a file of rows, with bad rows refused and with bad rows left out.
fn read(path: &Path, tokenizer: &Tokenizer) -> &'static str {
    let read = |on_bad_row| {
        let reading = Reading { on_bad_row, ..Reading::default() };
        let scratch = std::env::temp_dir();
        let read = Corpus::read(path, &reading, Some(tokenizer), SPECIAL, &scratch, VOCABULARY, &mut |_, _| ());
        if let Err(error) = &read {
            names(error, path.file_name().and_then(|name| name.to_str()).expect("a name"));
        }
        read.ok()
    };
    match (read(OnBadRow::Fail), read(OnBadRow::Skip)) {
        (Some(strict), Some(lenient)) => {
            assert_eq!(strict.sha256(), lenient.sha256(), "no row is bad, and one is left out");
            "read"
        }
        (None, Some(lenient)) => {
            assert!(lenient.skipped().count > 0, "it is refused for a row that is read");
            "read but for bad rows"
        }
        (None, None) => "refused",
        (Some(_), None) => panic!("it is refused where bad rows are left out"),
    }
}

fn texts() -> Vec<Value> {
    let row = |row: usize| {
        let (text, label) = (format!("a \"small\" dog, {row} tall trees"), ["animal", "plant"][row % 2]);
        json!({"text": text, "label": label, "id": row})
    };
    (0..8).map(row).collect()
}

fn tokenised() -> Vec<Value> {
    let row = |row: usize| {
        let ids: Vec<usize> = (0..3 + row % 4).map(|at| 2 + (row * 31 + at * 17) % 28).chain([1, 0]).collect();
        let mask: Vec<usize> = ids.iter().map(|id| usize::from(*id != 0)).collect();
        json!({"input_ids": ids, "attention_mask": mask, "labels": [5, 1, -100], "decoder_input_ids": [0, 5, 1]})
    };
    (0..8).map(row).collect()
}

/// Rows as JSON lines.
fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

/// Rows as a table.
fn table(delimiter: char) -> String {
    let row = |row: Value| format!("{}{delimiter}\"{}\"{delimiter}{}\n", row["id"], "a dog", row["label"]);
    let names = ["id", "text", "label"].join(&delimiter.to_string());
    format!("{names}\n{}", texts().into_iter().map(row).collect::<String>())
}

/// A text with bytes of its format, or of none, put in, taken out or moved.
fn mutant(text: &str, chance: &mut Chance) -> Vec<u8> {
    const PIECES: [&[u8]; 18] = [
        b"\n",
        b"\r",
        b"\r\n",
        b"\"",
        b"\"\"",
        b",",
        b"\t",
        b"\0",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\xe9",
        b"\xed\xa0\x80",
        b"{",
        b"[[",
        b"\\ud800",
        b"1e999",
        b"\n\n\n\"",
        b" \xc2\xa0",
    ];
    let mut mutant = text.as_bytes().to_vec();
    for _ in 0..=chance.below(3) {
        let piece = chance.one(&PIECES).unwrap_or_default();
        let at = chance.below(mutant.len());
        match chance.below(4) {
            0 => drop(mutant.splice(at..at, piece.to_vec())),
            1 => drop(mutant.splice(at..at, piece.repeat(1 + chance.below(200)))),
            2 => mutant.retain(|byte| !piece.contains(byte)),
            _ => drop(mutant.splice(at..(at + 40).min(mutant.len()), piece.to_vec())),
        }
    }
    mutant
}

#[test]
fn mutants_of_data_are_read_or_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/t5-nano/tokenizer.json");
    let tokenizer = Tokenizer::open(&tokenizer, SPECIAL).expect("it is committed");
    let files = [
        ("texts.jsonl", lines(&texts())),
        ("ids.jsonl", lines(&tokenised())),
        ("a.csv", table(',')),
        ("a.tsv", table('\t')),
    ];
    for (name, sound) in files {
        let path = folder.path().join(name);
        let judge = |bytes: Vec<u8>| {
            fs::write(&path, bytes).expect("a temporary folder");
            read(&path, &tokenizer)
        };
        assert_eq!(judge(sound.clone().into()), "read", "{name}");
        each(&format!("{name}, by bytes"), MUTANTS, |seed| judge(bytes::mutant(sound.as_bytes(), seed)));
        each(&format!("{name}, by marks"), MUTANTS, |seed| judge(mutant(&sound, &mut Chance::new(seed))));
    }
    for (name, sound) in [("texts.jsonl", texts()), ("ids.jsonl", tokenised())] {
        let path = folder.path().join(name);
        each(&format!("{name}, by fields"), MUTANTS, |seed| {
            let mut chance = Chance::new(seed);
            let Value::Array(rows) = jsons::mutant(&Value::Array(sound.clone()), &mut chance) else {
                return "not rows";
            };
            fs::write(&path, lines(&rows)).expect("a temporary folder");
            read(&path, &tokenizer)
        });
    }
}
