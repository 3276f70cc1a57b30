//! What is beside a model: its tokenizer, and the files that name its special tokens.

use std::fs;
use std::path::{Path, PathBuf};

use lstc::rewrite::{open, tokens};
use lstc_data::{Reading, SpecialTokens, Tokenizer, Vocabulary};
use serde_json::{Value, json};

use super::chance::Chance;
use super::{MUTANTS, bytes, each, jsons, names};

const TEXTS: [&str; 6] =
    ["", "a small dog", "  \u{301}\u{2581}a\u{0}\u{10ffff} ", "<extra_id_0></s>", "ÄÖ 犬 🐕", "1234567890"];

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Reads a tokenizer, and uses it.
fn tokenised(path: &Path, special: SpecialTokens) -> &'static str {
    if let Err(error) = Vocabulary::open(path) {
        names(&error, "tokenizer.json");
    }
    let tokenizer = match Tokenizer::open(path, special) {
        Ok(tokenizer) => tokenizer,
        Err(error) => {
            names(&error, "tokenizer.json");
            return "refused";
        }
    };
    let mut outcome = "read";
    for text in TEXTS {
        match tokenizer.encode(text, 16) {
            Ok(encoded) => {
                assert!((1..=16).contains(&encoded.ids.len()));
                outcome = tokenizer.decode(&encoded.ids).map_or("read, and does not decode every text", |_| outcome);
            }
            Err(_) => outcome = "read, and does not encode every text",
        }
    }
    // As a data file is read: all at once.
    let texts: Vec<String> = TEXTS.iter().map(|text| (*text).to_owned()).collect();
    assert!(tokenizer.encode_all(texts, 16).is_ok() || outcome != "read");
    outcome
}

#[test]
fn mutants_of_tokenizers_are_read_or_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("tokenizer.json");
    let files = [("tests/data/bpe.json", 1), ("tests/data/wordpiece.json", 3), ("models/t5-nano/tokenizer.json", 1)];
    for (file, end) in files {
        let sound = fs::read(root(file)).expect("it is committed");
        let structure: Value = serde_json::from_slice(&sound).expect("it is JSON");
        let special = SpecialTokens { pad: 0, end, start: 0 };
        let judge = |bytes: Vec<u8>| {
            fs::write(&path, bytes).expect("a temporary folder");
            tokenised(&path, special)
        };
        each(&format!("{file}, by bytes"), MUTANTS / 3, |seed| judge(bytes::mutant(&sound, seed)));
        each(&format!("{file}, by fields"), MUTANTS / 3, |seed| {
            judge(jsons::mutant(&structure, &mut Chance::new(seed)).to_string().into())
        });
    }
}

#[test]
fn mutants_of_configurations_are_read_or_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name);
    let model = path("model.onnx");
    fs::copy(root("tests/cases/relu_torchscript/model.onnx"), &model).expect("a temporary folder");
    let files = [
        (
            "config.json",
            json!({"model_type": "t5", "d_model": 32, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
                   "tokenizer_class": "T5Tokenizer"}),
        ),
        ("generation_config.json", json!({"pad_token_id": 0, "eos_token_id": [1], "decoder_start_token_id": 0})),
        ("tokenizer_config.json", json!({"pad_token": "<pad>", "eos_token": {"content": "</s>", "special": true}})),
        ("special_tokens_map.json", json!({"pad_token": {"content": "<pad>"}, "eos_token": "</s>"})),
    ];
    files.iter().for_each(|(name, json)| fs::write(path(name), json.to_string()).expect("a temporary folder"));
    fs::copy(root("models/t5-nano/tokenizer.json"), path("tokenizer.json")).expect("a temporary folder");
    let (_, anatomy) = open(&(&model).into()).expect("a model");
    let read = || tokens(&(&model).into(), &anatomy, &Reading::default());
    let expected = read().expect("they agree").ids;
    for (name, sound) in &files {
        let judge = |bytes: Vec<u8>| {
            fs::write(path(name), bytes).expect("a temporary folder");
            match read() {
                Ok(found) if found.ids == expected => "read",
                // Nothing else names it, and nothing contradicts what this file says.
                Ok(_) => "read, and names other tokens",
                Err(error) => {
                    names(&error, name);
                    "refused"
                }
            }
        };
        let text = sound.to_string();
        each(&format!("{name}, by bytes"), MUTANTS / 3, |seed| judge(bytes::mutant(text.as_bytes(), seed)));
        each(&format!("{name}, by fields"), MUTANTS / 3, |seed| {
            judge(jsons::mutant(sound, &mut Chance::new(seed)).to_string().into())
        });
        judge(text.into());
    }
}
