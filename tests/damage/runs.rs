//! Runs, and the files that a command reads more than once.

use std::fs;
use std::os::unix::fs::symlink;

use lstc_train::evaluate::Scorer;
use lstc_tuned::opened::{Execution, Opened};

use super::common;
use super::tuned::{Tuned, refused, said, succeeded};

#[test]
fn what_is_read_again_is_still_what_was_checked() {
    for changed in ["infer.onnx", "backbone.data"] {
        let tuned = Tuned::new();
        let name = format!("tuned/{changed}");
        let opened = Opened::new(&tuned.path("tuned")).expect("a rewritten model");
        let execution = Execution { mapped: true, ..Execution::cpu(common::runtime(), 1) };
        drop(Scorer::open(&opened, &execution).expect("a scorer"));
        let whole = tuned.read(&name);
        let problem = || Scorer::open(&opened, &execution).err().map(|error| error.to_string()).unwrap_or_default();
        // In another state, with the same contents.
        tuned.put(&name, &whole);
        assert_eq!(problem(), "");
        let mut other = whole.clone();
        let last = other.len() - 1;
        other[last] ^= 1;
        tuned.put("other", &other);
        fs::rename(tuned.path("other"), tuned.path(&name)).expect("it is ours");
        assert!(problem().contains("has changed since the rewrite") || problem().contains("damaged"), "{}", problem());
        fs::remove_file(tuned.path(&name)).expect("it is there");
        assert!(!problem().is_empty());
    }
}

#[test]
fn a_side_network_is_used_as_it_was_trained() {
    let tuned = Tuned::new();
    succeeded(&tuned.train("run", &["--max-source-length", "3"]));
    let record = String::from_utf8(tuned.read("run/train.yaml")).expect("text");
    let predict = ["predict", "tuned", "--data", "eval.jsonl", "--side", "run"];
    let eval = ["eval", "tuned", "--side", "run", "--no-generation"];
    let from = ["train", "tuned", "--from", "run", "--out", "next", "--epochs", "1"];
    let figures =
        |output: &std::process::Output| succeeded(output).split_once('\n').map(|(_, figures)| figures.to_owned());
    let expected = figures(&tuned.lstc(&eval));
    let unreadable: [(&str, &dyn Fn()); 4] = [
        ("`run/train.yaml` has changed since `run/best.safetensors` was trained", &|| {
            tuned.put("run/train.yaml", record.replace("max_source_length: 3", "max_source_length: 4"));
        }),
        ("`run/train.yaml` is damaged: it is empty", &|| tuned.put("run/train.yaml", "")),
        ("`run/train.yaml` is damaged", &|| tuned.put("run/train.yaml", "train: [\n")),
        ("there is no run in `run`", &|| {
            fs::remove_file(tuned.path("run/train.yaml")).expect("it is there");
            symlink("nowhere", tuned.path("run/train.yaml")).expect("a link");
        }),
    ];
    for (problem, damage) in unreadable {
        damage();
        for command in [&predict[..], &eval, &from] {
            refused(&tuned.lstc(command), &[problem]);
        }
        let _ = fs::remove_file(tuned.path("run/train.yaml"));
        tuned.put("run/train.yaml", &record);
    }
    assert!(!tuned.path("next").exists());
    // Without it, the file itself says how text is read.
    fs::remove_file(tuned.path("run/train.yaml")).expect("it is there");
    let named = tuned.lstc(&[&eval[..], &["--data", "eval.jsonl", "--batch-size", "4"]].concat());
    assert_eq!(figures(&named), expected);
}

#[test]
fn an_evaluation_is_on_what_the_run_evaluated_on() {
    let tuned = Tuned::new();
    let eval = |flags: &[&str]| tuned.lstc(&[&["eval", "tuned", "--no-generation"], flags].concat());
    let changed = "the data that the run evaluated on has changed since";
    succeeded(&tuned.train("tuned/run", &[]));
    succeeded(&eval(&[]));
    let rows = tuned.read("eval.jsonl");
    tuned.put(
        "eval.jsonl",
        &rows[..rows.len() / 2 + 1 + rows[rows.len() / 2..].iter().position(|b| *b == b'\n').unwrap_or(0)],
    );
    refused(&eval(&[]), &[changed, "hint: put back what was there, or name a file with --data"]);
    succeeded(&eval(&["--data", "eval.jsonl"]));
    tuned.put("eval.jsonl", &rows);
    succeeded(&eval(&[]));

    // Held out of the training data.
    let train = ["train", "tuned", "--train", "train.jsonl", "--eval", "0.25", "--epochs", "1", "--out", "held"];
    succeeded(&tuned.lstc(&train));
    succeeded(&eval(&["--side", "held"]));
    let rows = tuned.read("train.jsonl");
    let reversed: Vec<&[u8]> = rows.split_inclusive(|b| *b == b'\n').rev().collect();
    tuned.put("train.jsonl", reversed.concat());
    refused(&eval(&["--side", "held"]), &[changed]);
}

#[test]
fn another_tokenizer_than_the_run_had_is_refused() {
    let tuned = Tuned::new();
    let wordlevel = |words: &str| {
        format!(
            "{{\"version\": \"1.0\", \"truncation\": null, \"padding\": null, \"added_tokens\": [], \"normalizer\": null, \
             \"pre_tokenizer\": {{\"type\": \"Whitespace\"}}, \"post_processor\": null, \"decoder\": null, \
             \"model\": {{\"type\": \"WordLevel\", \"unk_token\": \"u\", \"vocab\": {{\"p\": 0, \"e\": 1, \"u\": 2, {words}}}}}}}"
        )
    };
    tuned.put("words.json", wordlevel("\"a\": 3, \"b\": 4"));
    tuned.put("text.jsonl", "{\"text\": \"a b\", \"label\": \"a\"}\n{\"text\": \"b b\", \"label\": \"b\"}\n".repeat(4));
    let train = ["train", "tuned", "--train", "text.jsonl", "--eval", "text.jsonl", "--tokenizer", "words.json"];
    succeeded(&tuned.lstc(&[&train[..], &["--out", "run", "--epochs", "1"]].concat()));
    let eval = ["eval", "tuned", "--side", "run", "--data", "text.jsonl", "--no-generation"];
    let predict = ["predict", "tuned", "--side", "run", "--data", "text.jsonl"];
    succeeded(&tuned.lstc(&eval));
    tuned.put("words.json", wordlevel("\"b\": 3, \"a\": 4"));
    let other = "was trained with another tokenizer";
    for command in [&eval[..], &predict] {
        refused(&tuned.lstc(command), &[other, "words.json", "hint: put back what was there"]);
        let named = tuned.lstc(&[command, &["--tokenizer", "words.json"]].concat());
        succeeded(&named);
        assert!(said(&named).contains(other), "{}", said(&named));
    }
}

#[test]
fn a_side_network_of_another_rewrite_is_told_from_this_ones() {
    let tuned = Tuned::new();
    let mut config = lstc_tuned::config::Config::read(&tuned.path("tuned/lst.yaml")).expect("a manifest");
    config.method.temperature = 0.5;
    tuned.rewrite("other", &config);
    let data = ["--data", "eval.jsonl", "--no-generation"];
    let own = tuned.lstc(&[&["eval", "tuned", "--side", "tuned/side.safetensors"], &data[..]].concat());
    succeeded(&own);
    assert!(!said(&own).contains("was made for"), "{}", said(&own));
    let told = "other/side.safetensors` was made for temperature 0.5, not 0.1";
    for command in [
        &["eval", "tuned", "--side", "other/side.safetensors", "--data", "eval.jsonl", "--no-generation"][..],
        &["predict", "tuned", "--side", "other/side.safetensors", "--data", "eval.jsonl"],
        &[
            "train",
            "tuned",
            "--from",
            "other/side.safetensors",
            "--train",
            "train.jsonl",
            "--epochs",
            "1",
            "--out",
            "run",
        ],
        &["export", "tuned", "--side", "other/side.safetensors", "-o", "out.onnx", "--no-check"],
        &["import", "tuned", "--side", "other/side.safetensors", "-o", "start.safetensors"],
    ] {
        let output = tuned.lstc(command);
        succeeded(&output);
        assert!(said(&output).contains(told), "{command:?}: {}", said(&output));
    }
    // What is imported, or trained here, is of this rewrite.
    for side in ["start.safetensors", "run"] {
        let output = tuned.lstc(&[&["eval", "tuned", "--side", side], &data[..]].concat());
        assert!(!said(&output).contains("was made for"), "{}", said(&output));
    }
}

#[test]
fn a_log_of_one_endless_line_takes_no_memory() {
    let tuned = Tuned::new();
    succeeded(&tuned.train("run", &[]));
    let log = tuned.path("run/metrics.jsonl");
    fs::File::options().append(true).open(&log).and_then(|log| log.set_len(200 << 20)).expect("a sparse file");
    succeeded(&tuned.lstc(&["inspect", "run"]));
    // What a killed process left unfinished is cut off.
    succeeded(&tuned.lstc(&["train", "tuned", "--out", "run", "--resume"]));
    assert!(fs::metadata(log).is_ok_and(|log| log.len() < 1 << 20));
}
