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
    for (flag, value) in [("--epsilon", "1e-46"), ("--alpha", "1e40"), ("--weight-decay", "1e-40"), ("--clip", "inf")] {
        let told = ["which", flag];
        refused(&tuned.lstc(&["rewrite", "model.onnx", "-o", "x", flag, value]), &told);
    }
    tuned.put("options.yaml", "optimizer: {epsilon: 1.0e-46}\n");
    refused(&tuned.lstc(&["rewrite", "model.onnx", "-o", "x", "--config", "options.yaml"]), &["rounds to 0"]);
    tuned.put("twice.jsonl", "{\"input_ids\": [3, 1], \"labels\": [5, 1], \"labels\": [6, 1]}\n");
    let train = ["train", "tuned", "--out", "run", "--train", "twice.jsonl"];
    refused(&tuned.lstc(&train), &["line 1: field `labels` is given twice"]);
    succeeded(&tuned.train("run", &["--lr", "1e-37"]));
}
