//! Models as people have them, on the whole way: inspected, rewritten, trained, evaluated and exported, with no flag that
//! says what kind of model it is.

#[path = "matrix/archive.rs"]
mod archive;
#[path = "common/cli.rs"]
mod cli;
mod common;

use std::fmt::Write;
use std::fs;
use std::path::Path;

use cli::{lstc, stderr, stdout, text};

/// Of each kind one: two files, their step merged in, half precision, bf16, opset 11, one position table a block, quantised in
/// three ways, and optimised.
const MODELS: [&str; 11] = [
    "2f_relu_tied_f32_equal",
    "optimum_merged",
    "2f_gated_untied_f16_unequal",
    "ts_bf16",
    "ts_opset_11",
    "dy_umt5",
    "ts_dynamic_qint8",
    "dy_nbits_4_block_16",
    "2f_qdq",
    "ts_gated_tied_equal_extended",
    "ts_transformers_optimised",
];

/// Examples whose label is told by the first token.
fn examples(path: &Path) {
    let mut rows = String::new();
    for i in 0..48 {
        let (label, rest) = (10 + i % 3, 20 + i % 7);
        let _ =
            writeln!(rows, "{{\"input_ids\": [{}, {rest}, {}, 1], \"labels\": [{label}, 1]}}", label + 30, 5 + i % 4);
    }
    fs::write(path, rows).expect("a writable folder");
}

#[test]
fn every_kind_of_model_goes_the_whole_way() {
    common::runtime(); // installs the library that training needs
    for name in MODELS {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |file: &str| folder.path().join(file);
        let (model, tuned, data, exported) = (path("model"), path("tuned"), path("data.jsonl"), path("tuned.onnx"));
        fs::create_dir(&model).expect("a folder");
        archive::unpack(name, &model);
        examples(&data);
        let step = |arguments: &[&str]| {
            let output = lstc(arguments);
            let (talk, said) = (stderr(&output), stdout(&output));
            assert!(output.status.success(), "{name}: {arguments:?}\n{said}{talk}");
            said
        };
        step(&["inspect", text(&model)]);
        step(&["rewrite", text(&model), "-r", "4", "-o", text(&tuned)]);
        let trained = step(&[
            "train",
            text(&tuned),
            "--train",
            text(&data),
            "--eval",
            text(&data),
            "--epochs",
            "15",
            "--batch-size",
            "16",
            "--lr",
            "1e-2",
            "--format",
            "json",
        ]);
        let losses: Vec<f64> = fs::read_to_string(tuned.join("run/metrics.jsonl"))
            .expect("a run has metrics")
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()?.get("loss")?.as_f64())
            .collect();
        let (first, last) = (losses[0], losses[losses.len() - 1]);
        assert!(last < 0.7 * first, "{name}: the loss went from {first} to {last}\n{trained}");
        step(&["eval", text(&tuned), "--data", text(&data)]);
        let said = step(&["export", text(&tuned), "-o", text(&exported)]);
        println!("{name:<32} loss {first:.3} -> {last:.3}  {}", said.lines().last().unwrap_or_default().trim());
    }
}
