//! Tokenizers against Hugging Face's own, and what is made of their configuration.

use lstc_data::{SpecialTokens, Tokenizer};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::Deserialize;

use super::{SPECIAL, nano, root};

#[derive(Deserialize)]
struct Case {
    tokenizer: String,
    end: i64,
    texts: Vec<Text>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    limit: usize,
    ids: Vec<u32>,
}

fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string(root("tests/data/encodings.json")).expect("the fixture is committed");
    serde_json::from_str(&text).expect("make.py wrote it")
}

#[test]
fn ids_are_those_of_hugging_face() {
    let cases = cases();
    assert_eq!(cases.len(), 3, "unigram, BPE and WordPiece");
    for case in cases {
        let tokenizer = Tokenizer::open(&root(&case.tokenizer), SpecialTokens { end: case.end, ..SPECIAL })
            .expect("the tokenizer is committed");
        assert!(case.texts.len() > 90);
        for Text { text, limit, ids } in &case.texts {
            let encoded = tokenizer.encode(text, *limit).expect("every text has tokens");
            assert_eq!(&encoded.ids, ids, "{}: {text:?} at {limit}", case.tokenizer);
        }
        for limit in [128, 16, 2] {
            let (texts, ids): (Vec<_>, Vec<_>) =
                case.texts.iter().filter(|t| t.limit == limit).map(|t| (t.text.clone(), t.ids.clone())).unzip();
            let all = tokenizer.encode_all(texts, limit).expect("every text has tokens");
            assert_eq!(all.into_iter().map(|e| e.ids).collect::<Vec<_>>(), ids, "{} at {limit}", case.tokenizer);
        }
    }
}

#[test]
fn the_end_token_comes_once() {
    for text in ["a dog", "a dog</s>", "a dog </s></s>", "</s>", ""] {
        for limit in 1..6 {
            let ids = nano().encode(text, limit).expect("tokens").ids;
            assert_eq!(ids.last(), Some(&1), "{text:?} at {limit}");
            assert_eq!(ids.iter().filter(|id| **id == 1).count(), 1, "{text:?} at {limit}");
            assert!(ids.len() <= limit);
        }
    }
}

#[test]
fn truncation_is_told() {
    let whole = nano().encode("a small dog", 128).expect("tokens");
    let length = whole.ids.len();
    assert!(!whole.truncated);
    assert!(!nano().encode("a small dog", length).expect("tokens").truncated);
    assert!(nano().encode("a small dog", length - 1).expect("tokens").truncated);
}

#[test]
fn text_comes_back_without_special_tokens() {
    for text in ["a person with good manners", "animal"] {
        let ids = nano().encode(text, 128).expect("tokens").ids;
        assert_eq!(nano().decode(&[&[0], &ids[..], &[0, 0]].concat()).expect("text"), text);
    }
    let bpe = Tokenizer::open(&root("tests/data/bpe.json"), SPECIAL).expect("the tokenizer is committed");
    let ids = bpe.encode("a caf\u{e9} \u{1f600}", 128).expect("tokens").ids;
    assert_eq!(bpe.decode(&ids).expect("text"), "a caf\u{e9} \u{1f600}");
}

#[test]
fn a_long_text_is_cut_as_a_whole_one_would_be() {
    let mut random = ChaCha8Rng::seed_from_u64(8);
    let mut word = |_| TEXT_OF_WORDS[(random.next_u64() % TEXT_OF_WORDS.len() as u64) as usize];
    let words: String = (0..40_000).map(&mut word).collect();
    let spaced = format!("a{}b", " ".repeat(100_000));
    for case in cases() {
        let tokenizer = Tokenizer::open(&root(&case.tokenizer), SpecialTokens { end: case.end, ..SPECIAL })
            .expect("the tokenizer is committed");
        for text in [&words, &words.replace(' ', ""), &spaced] {
            assert!(text.len() > 100_000);
            let whole = tokenizer.encode(text, 1 << 20).expect("tokens");
            let cut = tokenizer.encode(text, 128).expect("tokens");
            assert_eq!(cut.truncated, whole.ids.len() > 128);
            let kept = cut.ids.len() - 1;
            assert_eq!(cut.ids[..kept], whole.ids[..kept], "{}", case.tokenizer);
            assert_eq!(tokenizer.encode_all(vec![text.clone()], 128).expect("tokens"), [cut]);
        }
    }
}

const TEXT_OF_WORDS: [&str; 8] =
    ["a dog ", "garden, ", "sea-", "shells\n", "caf\u{e9} ", "\u{1f600}", "x ", "antidis  "];

#[test]
fn damaged_tokenizers_are_refused_without_a_panic() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = folder.path().join("tokenizer.json");
    let nano = std::fs::read_to_string(root("models/t5-nano/tokenizer.json")).expect("it is committed");
    let precompiled = r#""normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "model""#;
    let damages = [
        nano.replace("\"model\"", precompiled),
        nano.replace("\"decoder\": {", "\"decoder\": {{"),
        nano.replace("\"special_tokens\": {", "\"special_tokens\": {}, \"none\": {"),
        nano[..nano.len() / 2].to_owned(),
    ];
    for damaged in damages {
        assert_ne!(damaged, nano);
        std::fs::write(&path, &damaged).expect("the folder is there");
        let error = format!("{:#}", Tokenizer::open(&path, SPECIAL).expect_err("it is damaged"));
        assert!(error.contains("is not a tokenizer: "), "{error}");
    }
}

#[test]
fn what_is_no_tokenizer_of_the_model_is_refused() {
    let told = |path: &str, special| format!("{:#}", Tokenizer::open(&root(path), special).expect_err("refused"));
    assert!(told("tests/data/none.json", SPECIAL).contains("cannot read"));
    assert!(told("Cargo.toml", SPECIAL).contains("is not a tokenizer"));
    assert!(told("tests/data/encodings.json", SPECIAL).contains("is not a tokenizer"));
    let far = told("tests/data/bpe.json", SpecialTokens { end: 40_000, ..SPECIAL });
    assert!(far.contains("has no token 40000"), "{far}");
    assert!(told("tests/data/bpe.json", SpecialTokens { end: -1, ..SPECIAL }).contains("has no token -1"));
}
