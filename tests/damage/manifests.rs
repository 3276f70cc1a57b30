//! The manifest against the graphs: what they were made with is not edited behind them.

use super::tuned::{Tuned, refused, said, succeeded};

/// The manifest with one line of it changed.
fn edited(tuned: &Tuned, from: &str, to: &str) {
    let text = String::from_utf8(tuned.read("tuned/lst.yaml")).expect("text");
    assert!(text.contains(from), "`{from}` is not in: {text}");
    tuned.put("tuned/lst.yaml", text.replacen(from, to, 1));
}

#[test]
fn options_that_the_graphs_were_not_made_with_are_refused_with_both_values() {
    let tuned = Tuned::new();
    let manifest = tuned.read("tuned/lst.yaml");
    succeeded(&tuned.train("tuned/run", &[]));
    for (from, to, said) in [
        ("beta1: 0.9", "beta1: 0.8", "optimizer.beta1 is 0.8, and train.onnx was made with 0.9"),
        ("temperature: 0.1", "temperature: 0.2", "method.temperature is 0.2, and train.onnx was made with 0.1"),
        ("distill: 0.0", "distill: 0.5", "loss.distill is 0.5, and train.onnx was made with 0.0"),
        ("pad: 0", "pad: 3", "tokens.pad is 3, and train.onnx was made with 0"),
        ("gate: learnable", "gate: fixed", "method.gate is \"fixed\", and train.onnx was made with \"learnable\""),
        ("tower: decoder\n  point: embedding", "tower: encoder\n  point: embedding", "taps["),
    ] {
        edited(&tuned, from, to);
        let hint = "hint: put it back, or rewrite the model with it: `lstc rewrite --from tuned -o AGAIN`";
        refused(&tuned.train("run", &[]), &["tuned/lst.yaml` is not what the graphs were made with", said, hint]);
        assert!(!tuned.path("run").exists(), "a folder was left behind");
        tuned.put("tuned/lst.yaml", &manifest);
    }
    edited(&tuned, "beta1: 0.9", "beta1: 0.8");
    for command in [
        &["train", "tuned", "--resume"][..],
        &["eval", "tuned", "--data", "eval.jsonl"],
        &["export", "tuned", "-o", "out.onnx"],
        &["inspect", "tuned"],
        &["import", "tuned", "--side", "tuned/side.safetensors", "-o", "other.safetensors"],
        &["cache", "build", "tuned", "--data", "train.jsonl", "--cache", "taps"],
        &["rewrite", "model.onnx", "-o", "shared", "--share", "tuned"],
    ] {
        refused(&tuned.lstc(command), &["optimizer.beta1 is 0.8, and train.onnx was made with 0.9"]);
    }
    let verified = tuned.lstc(&["verify", "tuned"]);
    assert_eq!(verified.status.code(), Some(1), "{}", said(&verified));
    // What was edited takes effect with another rewrite.
    succeeded(&tuned.lstc(&["rewrite", "--from", "tuned", "-o", "again"]));
    succeeded(&tuned.lstc(&["inspect", "again"]));
    assert!(String::from_utf8_lossy(&tuned.read("again/lst.yaml")).contains("beta1: 0.8"));
}

#[test]
fn how_a_model_is_trained_stays_free() {
    let tuned = Tuned::new();
    let flags = ["train", "tuned", "--out", "run", "--train", "train.jsonl"];
    edited(&tuned, "epochs: 5", "epochs: 1 # one is enough");
    edited(&tuned, "optimizer:", "\n# by hand\noptimizer:");
    edited(&tuned, "model.onnx\n", "moved.onnx\n");
    let output = tuned.lstc(&flags);
    succeeded(&output);
    assert!(said(&output).contains("; 2 steps"), "{}", said(&output));
}

#[test]
fn a_graph_of_another_rewrite_is_refused() {
    let tuned = Tuned::new();
    let mut config = lstc_tuned::config::Config::read(&tuned.path("tuned/lst.yaml")).expect("a manifest");
    config.optimizer.beta2 = 0.99;
    tuned.rewrite("other", &config);
    tuned.put("tuned/apply.onnx", tuned.read("other/apply.onnx"));
    refused(&tuned.lstc(&["inspect", "tuned"]), &["apply.onnx"]);
}

#[test]
fn a_key_that_is_given_twice_is_refused() {
    let tuned = Tuned::new();
    edited(&tuned, "  epochs: 5", "  epochs: 5\n  epochs: 6");
    refused(&tuned.train("run", &[]), &["duplicate"]);
    tuned.put("options.yaml", "method: {reduction: 4, reduction: 8}\n");
    refused(&tuned.lstc(&["rewrite", "model.onnx", "--config", "options.yaml", "-o", "x"]), &["duplicate"]);
}
