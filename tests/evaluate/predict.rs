//! `lstc predict`: the same numbers as `lstc eval`, for rows that have no target.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use super::cli::{lstc, stderr, stdout, text};
use super::common;

/// A model that was rewritten, beside data.
struct Tuned {
    folder: tempfile::TempDir,
}

impl Tuned {
    fn new(model: &str, flags: &[&str]) -> Tuned {
        common::runtime(); // installs the library that the commands need
        let tuned = Tuned { folder: tempfile::tempdir().expect("a temporary folder") };
        let (model, output) = (Path::new(env!("CARGO_MANIFEST_DIR")).join(model), tuned.path("tuned"));
        done(&lstc(&[&["rewrite", text(&model), "-o", text(&output)], flags].concat()));
        tuned
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        fs::write(self.path(name), content).expect("a temporary folder");
        self.path(name)
    }

    fn predict(&self, data: &Path, flags: &[&str]) -> Output {
        lstc(&[&["predict", text(&self.path("tuned")), "--data", text(data), "--threads", "1"], flags].concat())
    }
}

fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    stdout(output)
}

fn refused(output: &Output, with: &str) {
    assert_eq!(output.status.code(), Some(2), "{}", stderr(output));
    assert!(stderr(output).contains(with), "`{with}` is not in: {}", stderr(output));
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"))
}

/// Rows of token ids whose label follows from the first of them.
fn rows(count: usize, with_labels: bool) -> String {
    let row = |row: usize| {
        let ids: Vec<usize> = (0..2 + row * 7 % 5).map(|at| 2 + (row * 31 + at * 17) % 28).chain([1]).collect();
        let label = ["5, 1", "6, 1", "7, 9, 1"][ids[0] % 3];
        let labels = if with_labels { format!(", \"labels\": [{label}]") } else { String::new() };
        format!("{{\"input_ids\": {ids:?}{labels}}}\n")
    };
    (0..count).map(row).collect()
}

#[test]
fn answers_are_what_eval_finds() {
    let tuned = Tuned::new("tests/cases/gated_dynamo/model.onnx", &["-r", "4"]);
    let (train, data) = (tuned.write("train.jsonl", &rows(60, true)), tuned.write("new.jsonl", &rows(23, false)));
    let directory = tuned.path("tuned");
    let flags = ["--epochs", "3", "--lr", "1e-2", "--batch-size", "4", "--threads", "1"];
    done(&lstc(&[&["train", text(&directory), "--train", text(&train)][..], &flags].concat()));

    let answers = done(&tuned.predict(&data, &[]));
    assert_eq!(answers, done(&tuned.predict(&data, &[])), "the same bytes each time");
    let answers = lines(&answers);
    assert_eq!(answers.len(), 23);

    let (labelled, found) = (tuned.write("labelled.jsonl", &rows(23, true)), tuned.path("found.jsonl"));
    let eval = ["eval", text(&directory), "--data", text(&labelled), "--predictions", text(&found), "--threads", "1"];
    done(&lstc(&eval));
    let found = lines(&fs::read_to_string(found).expect("predictions"));
    let inputs = lines(&rows(23, false));
    for ((answer, found), input) in answers.iter().zip(&found).zip(&inputs) {
        assert_eq!((&answer["row"], &answer["predicted"]), (&found["row"], &found["predicted"]));
        assert_eq!(answer["input"], input["input_ids"], "the input is passed through");
        assert_eq!(answer.get("generated"), None);
        let labels = found["labels"].as_object().expect("likelihoods");
        let sum: f64 = labels.values().map(|l| number(l).exp()).sum();
        let mut falling: Vec<f64> = labels.values().map(number).collect();
        falling.sort_by(|a, b| b.total_cmp(a));
        for (label, likelihood) in labels {
            let expected = number(likelihood).exp() / sum;
            assert!((number(&answer["probabilities"][label]) - expected).abs() < 1e-12, "{label}: {answer}");
        }
        let predicted = answer["predicted"].as_str().expect("a label");
        assert_eq!(answer["probability"], answer["probabilities"][predicted]);
        assert!((number(&answer["margin"]) - (falling[0] - falling[1])).abs() < 1e-12, "{answer}");
    }

    // Text too where it is asked for, and into a file.
    let (file, generated) = (tuned.path("answers.jsonl"), tuned.path("generated.jsonl"));
    assert_eq!(done(&tuned.predict(&data, &["-o", text(&file)])), "");
    assert_eq!(lines(&fs::read_to_string(file).expect("answers")), answers);
    done(&tuned.predict(&data, &["--generate", "-o", text(&generated)]));
    for (answer, found) in lines(&fs::read_to_string(generated).expect("answers")).iter().zip(&found) {
        assert_eq!((&answer["predicted"], &answer["generated"]), (&found["predicted"], &found["generated"]));
    }

    // Targets are not read, however wrong they are.
    let wrong = tuned.write("wrong.jsonl", &rows(23, false).replace('}', ", \"labels\": \"?\"}"));
    assert_eq!(lines(&done(&tuned.predict(&wrong, &[]))), answers);

    // Without a run nothing says what the labels are.
    let initial = directory.join("side.safetensors");
    let text_alone = lines(&done(&tuned.predict(&data, &["--side", text(&initial)])));
    assert!(text_alone.iter().all(|a| a.get("predicted").is_none() && a["generated"].is_string()), "{text_alone:?}");
    let from = ["--side", text(&initial), "--labels-from", text(&train)];
    let from = lines(&done(&tuned.predict(&data, &from)));
    assert!(from.iter().all(|a| a["probabilities"].as_object().is_some_and(|p| p.len() == 3)), "{from:?}");
    refused(&tuned.predict(&data, &["--labels", "a"]), "--labels needs a tokenizer");
    let many: String = (0..200)
        .map(|n| format!("{{\"input_ids\": [4, 1], \"labels\": [{}, {}, 1]}}\n", 2 + n % 20, 2 + n / 20))
        .collect();
    let many = tuned.write("many.jsonl", &many);
    refused(&tuned.predict(&data, &["--labels-from", text(&many)]), "are not labels");
}

#[test]
fn text_is_passed_through_as_it_is() {
    let tuned = Tuned::new("models/t5-nano/model.onnx", &[]);
    let initial = tuned.path("tuned/side.safetensors");
    let flags = ["--side", text(&initial), "--labels", "animal,plant", "--template", "gloss: {a} {b}"];
    let data = tuned.write("new.csv", "b,a\n\"one, \"\"two\"\"\nthree\",x\n,y\n");
    let answers = lines(&done(&tuned.predict(&data, &flags)));
    let field = |key: &str| answers.iter().map(|a| a[key].clone()).collect::<Vec<_>>();
    assert_eq!(field("input"), ["gloss: x one, \"two\"\nthree", "gloss: y "]);
    assert_eq!(field("row"), [2, 4]);

    let table = done(&tuned.predict(&data, &[&flags[..], &["--format", "csv"]].concat()));
    let mut records = table.split("\n");
    let header = "row,input,predicted,probability,margin,probability of animal,probability of plant";
    assert_eq!(records.next(), Some(header));
    assert_eq!(records.next(), Some("2,\"gloss: x one, \"\"two\"\""));
    let rest = records.next().expect("the rest of the first record").strip_prefix("three\",").expect("a quoted field");
    let first = &answers[0];
    let numbers = |keys: &[&Value]| keys.iter().map(|v| number(v).to_string()).collect::<Vec<_>>().join(",");
    let p = &first["probabilities"];
    let expected = numbers(&[&first["probability"], &first["margin"], &p["animal"], &p["plant"]]);
    assert_eq!(rest, format!("{},{expected}", first["predicted"].as_str().expect("a label")));

    // Bad rows are left out where that is asked for, and named.
    let holes = tuned.write("holes.jsonl", "{\"text\": \"a\"}\n{\"txt\": \"b\"}\n{\"text\": \"c\"}\n");
    let flags = ["--side", text(&initial), "--labels", "animal,plant"];
    refused(&tuned.predict(&holes, &flags), "no field `text`; it has `txt`");
    let kept = tuned.predict(&holes, &[&flags[..], &["--on-bad-row", "skip"]].concat());
    let rows: Vec<Value> = lines(&done(&kept)).iter().map(|a| a["row"].clone()).collect();
    assert_eq!(rows, [1, 3]);
    assert!(stderr(&kept).contains("left out 1 bad row\n"), "{}", stderr(&kept));
    refused(&tuned.predict(&data, &["--side", text(&initial)]), "no column `text`");
}
