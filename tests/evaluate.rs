//! Evaluation: what the two halves of the inference graph give is what the whole graph gives.

#[path = "matrix/archive.rs"]
mod archive;
#[path = "common/cli.rs"]
mod cli;
mod common;
#[path = "evaluate/predict.rs"]
mod predict;

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use lstc::rewrite::{Request, SourceModel, rewrite};
use lstc_data::{Batch, Corpus, Reading};
use lstc_graph::{Graph, ValueId};
use lstc_passes::Options;
use lstc_passes::scoring::scoring;
use lstc_runtime::{Session, Tensor};
use lstc_train::evaluate::Scorer;
use lstc_tuned::config::Config;
use lstc_tuned::opened::{Execution, Opened};
use lstc_tuned::run::Started;
use lstc_tuned::side::Side;
use ndarray::{Array2, Array3, Axis, s};

/// Rows of different lengths, for models of 32 tokens or more.
const ROWS: &str = "{\"input_ids\": [4, 9, 3, 1], \"labels\": [5, 8, 1]}
{\"input_ids\": [12, 1], \"labels\": [6, 1]}
{\"input_ids\": [2, 7, 7, 20, 11, 1], \"labels\": [9, 3, 4, 1]}
";

/// Logits of the whole graph.
fn logits(session: &mut Session, opened: &Opened, batch: &Batch, given: &Array2<i64>, side: &Side) -> Array3<f32> {
    let batch = Batch { target_in: given.clone(), target_mask: Array2::ones(given.dim()), ..batch.clone() };
    let mut inputs = opened.feeds(&batch);
    let side: Vec<(&str, Tensor)> = side.iter().map(|(name, v)| (name.as_str(), v.clone().into())).collect();
    inputs.extend(side.into_iter().filter(|(name, _)| session.inputs().iter().any(|p| p.name == *name)));
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (*name, t)).collect();
    let result = session.run(&inputs, &["logits"]).expect("a run").remove(0);
    result.as_f32().expect("f32").to_owned().into_dimensionality().expect("three axes")
}

/// log p of each of a row's labels, in double precision.
fn log_likelihood(logits: &Array3<f32>, row: usize, labels: &[i64]) -> f64 {
    let of = |(at, label): (usize, &i64)| {
        let row = logits.slice(s![row, at, ..]).mapv(f64::from);
        let largest = row.iter().copied().fold(f64::MIN, f64::max);
        row[*label as usize] - largest - row.mapv(|v| (v - largest).exp()).sum().ln()
    };
    labels.iter().enumerate().filter(|(_, label)| **label >= 0).map(of).sum()
}

/// The products whose numbers none of the tokens given out moves, whatever their sizes do.
fn products_of_source(infer: &Graph, late: &[ValueId]) -> HashSet<String> {
    let mut moved: HashSet<ValueId> = late.iter().copied().collect();
    let mut products = HashSet::new();
    for id in infer.order().expect("no cycle") {
        let node = infer.node(id);
        if !node.is("Shape") && node.inputs.iter().flatten().any(|v| moved.contains(v)) {
            moved.extend(node.outputs.iter().flatten());
        } else if ["MatMul", "Gemm", "MatMulInteger", "MatMulNBits"].contains(&node.op.as_str()) {
            products.insert(node.name.clone());
        }
    }
    products
}

/// The source of a batch is read once: no product of the encoder is left to the half that runs for each label and token.
fn check_halves(name: &str, opened: &Opened) {
    let infer = opened.graph("infer.onnx").expect("a graph");
    let late: Vec<ValueId> = opened.late().into_iter().filter_map(|name| infer.find(name)).collect();
    let wanted = products_of_source(&infer, &late);
    let encode = scoring(&infer, &late).expect("two halves").encode;
    let found: HashSet<String> = encode.node_ids().map(|id| encode.node(id).name.clone()).collect();
    let lost: Vec<&String> = wanted.difference(&found).collect();
    assert!(!wanted.is_empty() && lost.is_empty(), "{name}: {} of {} are lost: {lost:?}", lost.len(), wanted.len());
}

fn check(name: &str) {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(name);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = Config::read(&case.join("lst.yaml")).expect("the case's options");
    let (model, output) = (case.join("model.onnx"), folder.path().join("tuned"));
    let (options, training) = (config.options(), config.training());
    rewrite(Request { model: (&model).into(), options, training, output: &output, force: false }, |_, _| ())
        .expect("a rewrite");
    let opened = Opened::new(&output).expect("a rewritten model");
    check_halves(name, &opened);
    let (side, _) = opened.side(&case.join("side.safetensors")).expect("the case's side network");
    let data = folder.path().join("rows.jsonl");
    fs::write(&data, ROWS).expect("a file");
    let tokens = opened.record.tokens;
    let fixed = opened.fixed();
    let count = fixed.batch.map_or(3, |batch| batch.min(3));
    let reading = Reading {
        max_source_length: fixed.source.unwrap_or(8),
        max_target_length: fixed.target.unwrap_or(8),
        ..Reading::default()
    };
    let corpus = Corpus::read(&data, &reading, None, tokens, folder.path(), 32, &mut |_, _| ()).expect("it is data");
    let rows: Vec<u32> = (0..count as u32).collect();
    let batch = Batch::new(&corpus, &rows, tokens, &fixed).expect("a batch");

    let execution = Execution { mapped: true, ..Execution::cpu(common::runtime(), 1) };
    let mut whole = opened.session(&opened.graph("infer.onnx").expect("a graph"), &execution).expect("a session");
    let mut scorer = Scorer::open(&opened, &execution).expect("a scorer");
    let parameters = scorer.upload(&side).expect("it fits");
    let encoded = scorer.encode(&batch, &parameters).expect("a run");
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-5 * b.abs().max(1.0);

    let expected = logits(&mut whole, &opened, &batch, &batch.target_in, &side);
    let own = scorer.own(&encoded, &parameters).expect("a run");
    for (row, found) in own.iter().enumerate() {
        let labels: Vec<i64> = batch.labels.row(row).to_vec();
        let wanted = log_likelihood(&expected, row, &labels);
        assert!(near(*found, wanted), "{name}, row {row}: {found}, not {wanted}");
    }

    let label = [7_u32, 3, 1];
    let found = scorer.likelihood(&encoded, &label, tokens.start, &parameters).expect("a run");
    let (height, width) = (batch.source.nrows(), fixed.target.unwrap_or(3));
    let start = |at: usize| if at == 0 || at > 2 { tokens.start } else { i64::from(label[at - 1]) };
    let given = Array2::from_shape_fn((height, width), |(_, at)| start(at));
    let expected = logits(&mut whole, &opened, &batch, &given, &side);
    for (row, found) in found.iter().enumerate() {
        let wanted = log_likelihood(&expected, row, &label.map(i64::from));
        assert!(near(*found, wanted), "{name}, row {row}: {found}, not {wanted}");
    }

    // One row at a time, with nothing behind the last token where sizes are free.
    let said = scorer.greedy(&encoded, 4, (tokens.start, tokens.end), &parameters).expect("a run");
    let mut given = vec![vec![tokens.start]; height];
    for step in 0..fixed.target.unwrap_or(4).min(4) {
        let width = fixed.target.unwrap_or(step + 1);
        let padded =
            Array2::from_shape_fn((height, width), |(row, at)| given[row].get(at).copied().unwrap_or(tokens.start));
        let next = logits(&mut whole, &opened, &batch, &padded, &side);
        for (row, given) in given.iter_mut().enumerate() {
            let row = next.index_axis(Axis(0), row);
            let row = row.index_axis(Axis(0), step);
            let best = row.iter().enumerate().fold(0, |best, (id, v)| if *v > row[best] { id } else { best });
            given.push(best as i64);
        }
    }
    for (row, said) in said.iter().enumerate() {
        let wanted: Vec<u32> =
            given[row][1..].iter().take_while(|id| **id != tokens.end).map(|id| *id as u32).collect();
        assert_eq!(*said, wanted, "{name}, row {row}");
    }
}

#[test]
fn halves_give_what_the_whole_gives() {
    for name in [
        "gated_dynamo",
        "relu_torchscript",
        "merge_last",
        "first_block_dropped",
        "two_and_three_blocks",
        "unfolded_sdpa",
        "fixed_gate_static",
        "folded_position_bias",
        "opset_23",
        "unoptimised_dynamo",
        "unoptimised_sdpa",
    ] {
        check(name);
    }
}

#[test]
fn every_exporters_source_is_read_once() {
    for name in [
        "dy_relu_tied_f32_equal",
        "dy_gated_untied_f32_unequal",
        "dy_gated_tied_equal_onnxsim",
        "dy_sdpa",
        "dy_sdpa_opset_23",
        "dy_unfolded",
        "dy_umt5",
        "dy_f16_ort",
        "dy_dynamic_qint8",
        "ts_relu_tied_f32_equal",
        "ts_unfolded",
        "optimum_merged",
        "reported_dynamo_export",
        "reported_dynamo_raw",
        "reported_opset_converted",
        "reported_states_given_back",
        "reported_optimum_quantised",
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        archive::unpack(name, folder.path());
        let (model, output) = (SourceModel::find(&[folder.path().to_owned()]), folder.path().join("tuned"));
        let (model, options, training) = (model.expect("a model"), Options::default(), Started::default());
        rewrite(Request { model, options, training, output: &output, force: false }, |_, _| ()).expect("a rewrite");
        check_halves(name, &Opened::new(&output).expect("a rewritten model"));
    }
}
