//! Models whose masks, axes, types or sizes say something else than the usual, from rewriting to training.
//!
//! Most have the weights of `plain.onnx`: what is trained on them must then be the same. `tests/masks/make.py` writes the models,
//! and what PyTorch makes of them.

#[path = "common/cli.rs"]
mod cli;
mod common;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use lstc::rewrite::compile;
use lstc_passes::Options;
use lstc_passes::Problem;
use lstc_runtime::Tensor;
use ndarray::{Array2, ArrayD};
use serde_json::Value;

use cli::{lstc, stderr, stdout, text};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/masks").join(name)
}

fn options() -> Options {
    let mut options = Options::default();
    options.method.reduction = 2;
    options
}

/// A rewritten model beside rows of unequal lengths, whose sources and targets differ in length too.
struct Work {
    folder: tempfile::TempDir,
}

impl Work {
    fn new(files: &[&str]) -> Work {
        Work::with(files, &[])
    }

    fn with(files: &[&str], flags: &[&str]) -> Work {
        common::runtime(); // installs the library that the commands need
        let work = Work { folder: tempfile::tempdir().expect("a temporary folder") };
        let files: Vec<PathBuf> = files.iter().map(|file| fixture(file)).collect();
        let tuned = work.path("tuned");
        let mut arguments = vec!["rewrite"];
        arguments.extend(files.iter().map(|file| text(file)));
        arguments.extend(["-o", text(&tuned), "-r", "2", "--dropout", "0"]);
        arguments.extend(flags);
        let rewritten = lstc(&arguments);
        assert!(rewritten.status.success(), "{}", stderr(&rewritten));
        let mut rows = String::new();
        for row in 0..12 {
            let ids = |count: usize, step: usize| -> Vec<usize> {
                (0..count).map(|i| 2 + (row * 5 + i * step) % 30).collect()
            };
            let (source, target) = (ids(3 + row * 7 % 8, 7), ids(1 + row % 4, 11));
            writeln!(rows, r#"{{"input_ids": {source:?}, "labels": {target:?}}}"#).expect("a string");
        }
        fs::write(work.path("rows.jsonl"), rows).expect("a writable folder");
        work
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, command: &str, data: &str, more: &[&str]) -> Output {
        let (tuned, rows) = (self.path("tuned"), self.path("rows.jsonl"));
        let arguments = [&[command, text(&tuned), data, text(&rows)], more].concat();
        lstc(&arguments)
    }

    fn train(&self, more: &[&str]) -> Output {
        let flags = ["--epochs", "2", "--threads", "1", "--lr", "0.05", "--warmup-steps", "0"];
        self.command("train", "--train", &[&flags, more].concat())
    }

    /// The losses of all steps.
    fn losses(&self) -> Vec<f64> {
        let trained = self.train(&["--batch-size", "5"]);
        assert!(trained.status.success(), "{}", stderr(&trained));
        let metrics = fs::read_to_string(self.path("tuned/run/metrics.jsonl")).expect("a run writes its metrics");
        let lines = metrics.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        lines.filter_map(|line| line["loss"].as_f64().filter(|_| line["lr"].is_number())).collect()
    }
}

fn refused(output: &Output, words: &[&str]) {
    assert!(!output.status.success(), "{}", stdout(output));
    for word in words {
        assert!(stderr(output).contains(word), "`{word}` is not in: {}", stderr(output));
    }
}

/// True where no two numbers differ by more than rounding.
fn agree(a: &[f64], b: &[f64]) -> bool {
    !a.is_empty() && a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4 * b.abs())
}

/// The logits of a model's own file, given `padding` for a mask whose ones mark padding.
fn logits(name: &str, mask: &str) -> Vec<f64> {
    let read = |file: &str| -> Value {
        serde_json::from_str(&fs::read_to_string(fixture(file)).expect("it is committed")).expect("JSON")
    };
    let inputs = read("inputs.json");
    let array = |name: &str| -> Tensor {
        let rows: Vec<Vec<i64>> = serde_json::from_value(inputs[name].clone()).expect("rows of integers");
        Array2::from_shape_fn((rows.len(), rows[0].len()), |(i, j)| rows[i][j]).into_dyn().into()
    };
    let bytes = fs::read(fixture(name)).expect("it is committed");
    let mut session = common::runtime().session().load(&bytes, None).expect("ONNX Runtime loads it");
    let given = [
        ("input_ids", array("input_ids")),
        ("attention_mask", array(mask)),
        ("decoder_input_ids", array("decoder_input_ids")),
    ];
    let given: Vec<(&str, &Tensor)> = given.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let found = session.run(&given, &["logits"]).expect("it runs");
    let found: ArrayD<f32> = found[0].as_f32().expect("logits are f32").to_owned();
    let mut wanted = Vec::new();
    flatten(&read("logits.json")["masked"], &mut wanted);
    let largest = wanted.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    found.iter().zip(&wanted).map(|(found, wanted)| (f64::from(*found) - wanted).abs() / largest).collect()
}

fn flatten(value: &Value, into: &mut Vec<f64>) {
    match value {
        Value::Array(parts) => parts.iter().for_each(|part| flatten(part, into)),
        number => into.push(number.as_f64().expect("a number")),
    }
}

#[test]
fn a_mask_whose_ones_mark_padding_trains_as_one_whose_ones_mark_tokens() {
    // What the models are, by PyTorch: the same, each with its own mask.
    for (name, mask) in [("plain.onnx", "attention_mask"), ("inverted.onnx", "padding")] {
        assert!(logits(name, mask).iter().all(|error| *error < 1e-5), "{name}");
    }
    let inverted = Work::new(&["inverted.onnx"]);
    let verdict = lstc(&["verify", text(&inverted.path("tuned"))]);
    assert!(verdict.status.success(), "{}{}", stdout(&verdict), stderr(&verdict));
    assert!(logits("inverted.onnx", "attention_mask").iter().any(|error| *error > 1e-2));
    let plain = Work::new(&["plain.onnx"]).losses();
    for name in ["inverted.onnx", "of_tokens.onnx"] {
        let found = Work::new(&[name]).losses();
        assert!(agree(&found, &plain), "{name}: {found:?} against {plain:?}");
    }
}

#[test]
fn what_axes_are_called_is_of_no_matter() {
    let plain = Work::new(&["plain.onnx"]).losses();
    for name in ["same_axes.onnx", "other_axes.onnx", "unnamed_axes.onnx"] {
        let work = Work::new(&[name]);
        let found = work.losses();
        assert!(agree(&found, &plain), "{name}: {found:?} against {plain:?}");
        let verdict = lstc(&["verify", text(&work.path("tuned"))]);
        assert!(verdict.status.success(), "{name}: {}{}", stdout(&verdict), stderr(&verdict));
    }
}

#[test]
fn a_cache_is_refused_where_any_attention_reads_padding() {
    let cache = |work: &Work| work.train(&["--cache", text(&work.path("cache"))]);
    let masked = Work::new(&["pair/encoder_model.onnx", "pair/decoder_model.onnx"]);
    let trained = cache(&masked);
    assert!(trained.status.success(), "{}", stderr(&trained));
    assert!(!stderr(&trained).contains("reads padding"), "{}", stderr(&trained));

    let unmasked = Work::new(&["pair/encoder_model.onnx", "pair_unmasked/decoder_model.onnx"]);
    refused(&cache(&unmasked), &["the decoder's cross-attention reads padding", "depend on how a batch is padded"]);
    let trained = unmasked.train(&["--out", text(&unmasked.path("other"))]);
    assert!(trained.status.success(), "{}", stderr(&trained));
    assert!(stderr(&trained).contains("warning: the decoder's cross-attention reads padding"), "{}", stderr(&trained));
}

#[test]
fn an_encoder_and_a_decoder_of_two_float_types_are_joined() {
    let work = Work::new(&["mixed_pair/encoder_model.onnx", "mixed_pair/decoder_model.onnx"]);
    let verdict = lstc(&["verify", text(&work.path("tuned"))]);
    assert!(verdict.status.success(), "{}{}", stdout(&verdict), stderr(&verdict));
    assert!(work.losses().iter().all(|loss| loss.is_finite()));
}

#[test]
fn a_tap_beyond_f16_is_named_and_f32_mends_it() {
    let half = Work::new(&["half.onnx"]);
    let verdict = lstc(&["verify", text(&half.path("tuned"))]);
    assert!(verdict.status.success(), "{}{}", stdout(&verdict), stderr(&verdict));

    let tap = "what block 0 of the encoder makes is not finite";
    let overflows = Work::new(&["overflow.onnx"]);
    let verdict = lstc(&["verify", text(&overflows.path("tuned"))]);
    assert_eq!(verdict.status.code(), Some(1), "{}{}", stdout(&verdict), stderr(&verdict));
    assert!(stdout(&verdict).contains(tap), "{}", stdout(&verdict));
    refused(&overflows.train(&[]), &["step 1:", tap, "--backbone fp32"]);

    let wide = Work::with(&["overflow.onnx"], &["--backbone", "fp32"]);
    let verdict = lstc(&["verify", text(&wide.path("tuned"))]);
    assert!(verdict.status.success(), "{}{}", stdout(&verdict), stderr(&verdict));
    assert!(wide.losses().iter().all(|loss| loss.is_finite()));
}

#[test]
fn a_batch_that_the_model_fixes_is_held_against_the_one_that_is_asked_for() {
    let work = Work::new(&["fixed_batch_1.onnx"]);
    let words = ["the model's batch is fixed at 1: --batch-size cannot be 16"];
    refused(&work.train(&["--batch-size", "16"]), &words);
    let trained = work.train(&["--batch-size", "1"]);
    assert!(trained.status.success(), "{}", stderr(&trained));
    refused(&work.command("eval", "--data", &["--batch-size", "16"]), &words);
    let evaluated = work.command("eval", "--data", &[]);
    assert!(evaluated.status.success(), "{}", stderr(&evaluated));
}

#[test]
fn an_operator_of_another_domain_is_a_changed_backbone() {
    let (mut module, _) =
        compile(fixture("plain.onnx"), options(), Some("freeze"), |_, _| ()).unwrap_or_else(|e| panic!("{e:?}"));
    assert_eq!(module.check(), Ok(()));
    let relu = module.graph.node_ids().find(|id| module.graph.node(*id).is("Relu")).expect("T5 has one");
    let name = module.graph.node(relu).name.clone();
    module.graph.replace_op(relu, lstc_graph::MICROSOFT, "Relu");
    let breaches = module.check().expect_err("it is another operator");
    assert_eq!(breaches, [Problem::node(name, "invariant 3: a node of the backbone was changed")]);
}
