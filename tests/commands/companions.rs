//! What lies beside a model: which special tokens are taken, from where, and which tokenizer.

use std::fs;
use std::path::PathBuf;

use lstc_data::{SpecialTokens, Tokenizer};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{case, code, lstc, stderr, stdout, text};

/// A folder with a model of 32 tokens in `onnx/`.
struct Repository {
    folder: tempfile::TempDir,
}

/// A file's name and what it holds.
type File = (&'static str, Value);

/// What a rewrite says of the special tokens, or why there is none.
type Said = Result<String, String>;

impl Repository {
    fn new(files: &[File]) -> Repository {
        let repository = Repository { folder: tempfile::tempdir().expect("a temporary folder") };
        fs::create_dir(repository.path("onnx")).expect("the folder is new");
        fs::copy(case("relu_torchscript").join("model.onnx"), repository.path("onnx/model.onnx")).expect("a copy");
        for (name, content) in files {
            fs::write(repository.path(name), content.to_string()).expect("the folder is there");
        }
        repository
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn rewrite(&self, flags: &[&str]) -> Said {
        let (model, output) = (self.path("onnx/model.onnx"), self.path("tuned"));
        let was_there = output.exists();
        let done = lstc(&[&["rewrite", text(&model), "-o", text(&output), "--force"], flags].concat());
        if code(&done) != 0 {
            assert_eq!(output.exists(), was_there, "{}", stderr(&done));
            return Err(stderr(&done).replace(text(&self.folder.path().join("")), ""));
        }
        let line = stdout(&done).lines().find_map(|l| l.trim().strip_prefix("special tokens: ").map(str::to_owned));
        let looked = lstc(&["inspect", text(&output)]);
        let line = line.expect("they are told");
        assert!(stdout(&looked).contains(&line), "{}", stdout(&looked));
        Ok(line)
    }

    fn tokens(&self) -> SpecialTokens {
        lstc_tuned::manifest::record(&self.path("tuned")).expect("a manifest").tokens
    }
}

/// A tokenizer whose texts end with this token, or with none.
fn tokenizer(end: Option<u32>) -> Value {
    let names = ["<pad>", "</s>", "<end>", "<unk>", "a", "b"];
    let vocabulary: serde_json::Map<_, _> =
        names.iter().enumerate().map(|(id, n)| ((*n).to_owned(), id.into())).collect();
    let post = end.map(|id| {
        let name = names[id as usize];
        json!({
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": name, "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {name: {"id": name, "ids": [id], "tokens": [name]}},
        })
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": post, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    })
}

fn config(start: Option<u32>) -> Value {
    json!({"model_type": "t5", "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": start})
}

#[test]
fn special_tokens_come_from_all_that_lies_beside_the_model_or_above_it() {
    let generation = |id: u32| json!({"decoder_start_token_id": id, "eos_token_id": [1, 7]});
    let cases: [(&[File], [i64; 3]); 7] = [
        (&[("onnx/config.json", config(Some(3)))], [0, 1, 3]),
        (&[("config.json", config(Some(3))), ("tokenizer.json", tokenizer(Some(1)))], [0, 1, 3]),
        (&[("onnx/config.json", config(None)), ("onnx/generation_config.json", generation(5))], [0, 1, 5]),
        (&[("config.json", config(None)), ("generation_config.json", generation(5))], [0, 1, 5]),
        (&[("config.json", config(None)), ("onnx/tokenizer.json", tokenizer(None))], [0, 1, 0]),
        (&[("onnx/tokenizer.json", tokenizer(Some(1)))], [0, 1, 0]),
        // Nobody says that this is a model's: it is passed over.
        (&[("config.json", json!({"pad_token_id": 9, "eos_token_id": 9}))], [0, 1, 0]),
    ];
    for (files, [pad, end, start]) in cases {
        let repository = Repository::new(files);
        let said = repository.rewrite(&[]).unwrap_or_else(|error| panic!("{files:?}: {error}"));
        assert_eq!(repository.tokens(), SpecialTokens { pad, end, start }, "{said}");
        let has_tokenizer = files.iter().any(|(name, _)| name.ends_with("tokenizer.json"));
        assert_eq!(repository.path("tuned/tokenizer.json").exists(), has_tokenizer, "{files:?}");
        if files.len() == 1 && files[0].1.get("model_type").is_none() {
            assert!(said.contains("T5's default: no file beside the model names it"), "{said}");
        }
    }
    let all = Repository::new(&[("config.json", config(None)), ("generation_config.json", generation(5))]);
    insta::assert_snapshot!(all.rewrite(&[]).expect("they agree"), @"padding 0 (../config.json), end 1 (../config.json, ../generation_config.json), decoder start 5 (../generation_config.json)");
}

#[test]
fn files_that_contradict_each_other_are_named() {
    let names = |end: &str| json!({"eos_token": {"content": end}, "pad_token": "<pad>"});
    let cases: [(&[File], &str); 4] = [
        (
            &[("config.json", config(Some(0))), ("generation_config.json", json!({"decoder_start_token_id": 5}))],
            "the decoder's start token is 0 in ../config.json, and 5 in ../generation_config.json",
        ),
        (
            &[("onnx/config.json", config(Some(0))), ("onnx/tokenizer.json", tokenizer(Some(2)))],
            "the end token is 1 in config.json, and 2 in the post-processor of tokenizer.json",
        ),
        (
            &[("onnx/tokenizer.json", tokenizer(Some(2))), ("onnx/tokenizer_config.json", names("</s>"))],
            "the end token is 2 in the post-processor of tokenizer.json, and 1 in tokenizer_config.json",
        ),
        (
            &[("onnx/config.json", json!({"pad_token_id": 4})), ("onnx/tokenizer.json", tokenizer(None))],
            "the padding token is 4 in config.json, and 0 in `<pad>` of tokenizer.json",
        ),
    ];
    for (files, reason) in cases {
        let repository = Repository::new(files);
        let refusal = repository.rewrite(&[]).expect_err("they contradict each other");
        assert!(refusal.contains(reason), "{refusal}");
        let flags = ["--pad-token-id", "0", "--eos-token-id", "1", "--decoder-start-token-id", "6"];
        assert!(flags.iter().step_by(2).all(|flag| refusal.contains(flag)), "{refusal}");
        repository.rewrite(&flags).expect("what the user says counts");
        assert_eq!(repository.tokens(), SpecialTokens { pad: 0, end: 1, start: 6 });
        let (from, again) = (repository.path("tuned"), repository.path("again"));
        let done = lstc(&["rewrite", "--from", text(&from), "-o", text(&again)]);
        assert_eq!(code(&done), 0, "{}", stderr(&done));
        assert_eq!(lstc_tuned::manifest::record(&again).expect("a manifest").tokens, repository.tokens());
    }
}

#[test]
fn what_nobody_says_is_asked_for() {
    let repository = Repository::new(&[("onnx/tokenizer.json", tokenizer(Some(2)))]);
    insta::assert_snapshot!(repository.rewrite(&[]).expect_err("its start token is not known"), @r"
    error: nothing beside the model names its decoder's start token, and its other special tokens are not those of T5
    hint: set it with --decoder-start-token-id ID, or put the model's config.json beside it
    ");
    let said = repository.rewrite(&["--decoder-start-token-id", "2"]).expect("all are known");
    assert_eq!(
        said,
        "padding 0 (`<pad>` of tokenizer.json), end 2 (the post-processor of tokenizer.json), decoder start 2 (--decoder-start-token-id)"
    );
    let beyond = repository.rewrite(&["--decoder-start-token-id", "1000"]).expect_err("the model has fewer tokens");
    assert!(
        beyond.contains("the decoder's start token is 1000 (--decoder-start-token-id), but the model's LM head has")
    );
}

#[test]
fn bytes_need_no_tokenizer_file() {
    #[derive(Deserialize)]
    struct Case {
        text: String,
        ids: Vec<u32>,
    }
    let mut config = config(Some(0));
    config["tokenizer_class"] = "ByT5Tokenizer".into();
    let repository = Repository::new(&[("config.json", config)]);
    repository.rewrite(&[]).expect("a ByT5");
    let special = SpecialTokens { pad: 0, end: 1, start: 0 };
    let tokenizer = Tokenizer::open(&repository.path("tuned/tokenizer.json"), special).expect("it is written");
    let cases: Vec<Case> = serde_json::from_str(include_str!("../data/byt5.json")).expect("it is committed");
    for Case { text, ids } in cases {
        assert_eq!(tokenizer.encode(&text, 128).expect("every text has bytes").ids, ids, "{text}");
    }
    assert_eq!(tokenizer.decode(&[102, 100, 105, 198, 172, 1]).expect("bytes"), "caf\u{e9}");
}

#[test]
fn a_tokenizer_in_another_form_is_named_with_its_conversion() {
    let repository = Repository::new(&[("config.json", config(Some(0)))]);
    fs::write(repository.path("spiece.model"), b"\n\x0e\n\x05<pad>\x15\0\0\0\0\x18\x03").expect("the folder is there");
    let (model, output) = (repository.path("onnx/model.onnx"), repository.path("tuned"));
    let done = lstc(&["rewrite", text(&model), "-o", text(&output)]);
    assert_eq!(code(&done), 0, "{}", stderr(&done));
    let talk = stderr(&done);
    assert!(talk.contains("spiece.model`, but lstc reads text only with `tokenizer.json`"), "{talk}");
    assert!(talk.contains("AutoTokenizer.from_pretrained") && talk.contains("save_pretrained"), "{talk}");
}
