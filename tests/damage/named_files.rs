//! What a user names: regular files are read, and nothing else; fields and numbers that say what they mean.

use super::tuned::{Tuned, refused, succeeded};

#[test]
fn what_is_not_a_regular_file_is_refused_at_once_wherever_it_is_named() {
    let tuned = Tuned::new();
    let made = std::process::Command::new("mkfifo").arg(tuned.path("pipe")).status().expect("mkfifo runs");
    assert!(made.success());
    for file in ["pipe", "/dev/zero"] {
        for command in [
            &["rewrite", file, "-o", "x"][..],
            &["rewrite", "model.onnx", "-o", "x", "--config", file],
            &["inspect", file],
            &["train", "tuned", "--out", "run", "--train", file],
            &["train", "tuned", "--out", "run", "--train", "train.jsonl", "--eval", file],
            &["train", "tuned", "--out", "run", "--train", "train.jsonl", "--config", file],
            &["train", "tuned", "--out", "run", "--train", "train.jsonl", "--tokenizer", file],
            &["eval", "tuned", "--data", file, "--side", "tuned/side.safetensors"],
            &["eval", "tuned", "--data", "eval.jsonl", "--side", file],
            &["export", "tuned", "-o", "out.onnx", "--side", file],
            &["import", "tuned", "--side", file],
        ] {
            refused(&tuned.lstc(command), &["not a regular file"]);
        }
    }
}

#[test]
fn numbers_that_round_to_nothing_and_fields_that_are_given_twice_are_refused() {
    let tuned = Tuned::new();
    refused(&tuned.train("run", &["--lr", "1e-46"]), &["train.lr is 1e-46, which single precision rounds to 0"]);
    for (flag, value) in [
        ("--epsilon", "1e-46"),
        ("--alpha", "1e40"),
        ("--weight-decay", "1e-40"),
        ("--clip", "inf"),
        ("--clip", "1e-400"),
    ] {
        let told = ["which", flag];
        refused(&tuned.lstc(&["rewrite", "model.onnx", "-o", "x", flag, value]), &told);
    }
    tuned.put("options.yaml", "optimizer: {epsilon: 1.0e-46}\n");
    refused(&tuned.lstc(&["rewrite", "model.onnx", "-o", "x", "--config", "options.yaml"]), &["rounds to 0"]);
    for options in ["optimizer: {clip: 1e-400}", "method: {dropout: -0.0001e-400}", "loss:\n  distill: 2e-999\n"] {
        tuned.put("options.yaml", options);
        refused(&tuned.lstc(&["rewrite", "model.onnx", "-o", "x", "--config", "options.yaml"]), &["rounds to 0"]);
    }
    let normal = |deviation: &str| tuned.lstc(&["rewrite", "model.onnx", "-o", "x", "--init-projections", deviation]);
    refused(&normal("normal:3e38"), &["method.init_projections has the deviation 3e38, but it must be at most 1e30"]);
    refused(&normal("normal:1e-400"), &["the deviation is 1e-400, which rounds to 0"]);
    refused(&normal("normal:much"), &["expected aligned, uniform or normal:S"]);
    tuned.put("twice.jsonl", "{\"input_ids\": [3, 1], \"labels\": [5, 1], \"labels\": [6, 1]}\n");
    let train = ["train", "tuned", "--out", "run", "--train", "twice.jsonl"];
    refused(&tuned.lstc(&train), &["line 1: field `labels` is given twice"]);
    succeeded(&tuned.train("run", &["--lr", "1e-37"]));
}

#[test]
fn options_that_have_no_effect_are_refused() {
    let tuned = Tuned::new();
    let with = |options: &str| {
        tuned.put("options.yaml", options);
        tuned.train("run", &["--config", "options.yaml"])
    };
    let hint = "leave them out, or rewrite the model with them";
    for (options, told) in [
        ("optimizer: {beta1: 0.8, clip: 1}", "optimizer.beta1 is 0.8, and the graphs were made with 0.9"),
        ("method: {temperature: 0.5}", "method.temperature is 0.5, and the graphs were made with 0.1"),
        ("loss: {distill: 1}", "loss.distill is 1.0, and the graphs were made with 0.0"),
        ("sizes: {batch: 4}", "sizes.batch is 4, and the graphs were made with null"),
        ("backbone: {type: int8}", "backbone.type is \"int8\", and the graphs were made with \"source\""),
    ] {
        refused(&with(options), &["options.yaml` has options that only a rewrite can change", told, hint]);
    }
    refused(&with("data: {pad_token_id: 3}"), &["data.pad_token_id is 3, but the model was rewritten with 0"]);
    refused(&with("tokens: {pad: 3}"), &["`tokens` is what a rewrite records, and not an option", "data.pad_token_id"]);
    let manifest = String::from_utf8(tuned.read("tuned/lst.yaml")).expect("text");
    tuned.put("tuned/lst.yaml", manifest.replace("eos_token_id: null", "eos_token_id: 7"));
    refused(&tuned.train("run", &[]), &["data.eos_token_id is 7, but the model was rewritten with 1"]);
    tuned.put("tuned/lst.yaml", &manifest);
    assert!(!tuned.path("run").exists(), "a folder was left behind");
    // What the graphs were made with may be said again, in another form too.
    succeeded(&with("optimizer: {beta1: 0.90}\nmethod: {alpha: 0}\ntrain: {epochs: 1}\ndata: {pad_token_id: 0}\n"));
    succeeded(&tuned.train("run-2", &["--config", "tuned/lst.yaml"]));
}

#[test]
fn keys_that_are_given_twice_are_refused_in_what_others_wrote_too() {
    let tuned = Tuned::new();
    let tokenizer = std::fs::read("models/t5-nano/tokenizer.json").expect("it is committed");
    let text = String::from_utf8(tokenizer).expect("text");
    tuned.put("tokenizer.json", text.replacen('{', "{\"version\": \"2.0\",", 1));
    let train = ["--tokenizer", "tokenizer.json"];
    refused(&tuned.train("run", &train), &["tokenizer.json` is not a tokenizer", "the key `version` is given twice"]);

    let side = tuned.read("tuned/side.safetensors");
    let length = u64::from_le_bytes(side[..8].try_into().expect("8 bytes")) as usize;
    let header = String::from_utf8(side[8..8 + length].to_vec()).expect("text");
    let name = format!(
        "\"{}\":",
        lstc_tuned::side::load(&tuned.path("tuned/side.safetensors")).expect("ours").keys().next().expect("one")
    );
    let at = header.find(&name).expect("it has the tensor");
    let entry = header[at..].split_inclusive('}').next().expect("an object");
    let twice = header.replacen(entry, &format!("{entry},{entry}"), 1);
    let bytes = [&(twice.len() as u64).to_le_bytes()[..], twice.as_bytes(), &side[8 + length..]].concat();
    tuned.put("twice.safetensors", bytes);
    let eval = tuned.lstc(&["eval", "tuned", "--data", "eval.jsonl", "--side", "twice.safetensors"]);
    refused(&eval, &["twice.safetensors` is damaged", "is given twice"]);
}
