//! Models whose names and dimensions clash with those of the written graphs, or do not say what is equal.

mod common;

use std::path::{Path, PathBuf};

use lstc::rewrite::{Request, rewrite};
use lstc::verify::verify;
use lstc_graph::{DataFiles, Dim, Graph, encode, load};
use lstc_passes::Options;

fn case(name: &str) -> Graph {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(name).join("model.onnx");
    load(&path).unwrap_or_else(|e| panic!("{e}"))
}

/// Writes a changed model and rewrites it.
fn rewritten(graph: &Graph, folder: &Path) -> anyhow::Result<PathBuf> {
    let model = folder.join("model.onnx");
    std::fs::write(&model, encode(graph, &DataFiles::default()))?;
    let output = folder.join("tuned");
    let mut options = Options::default();
    options.method.reduction = 4;
    rewrite(
        Request { model: (&model).into(), options, training: Default::default(), output: &output, force: false },
        |_, _| (),
    )?;
    Ok(output)
}

#[track_caller]
fn holds(graph: &Graph) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = rewritten(graph, folder.path()).unwrap_or_else(|e| panic!("{e:?}"));
    let verdict = verify(&output, common::runtime(), 0, |_| ()).unwrap_or_else(|e| panic!("{e:?}"));
    assert!(verdict.holds, "{verdict}");
}

#[test]
fn every_dimension_may_have_a_symbol_of_its_own() {
    for name in ["relu_torchscript", "gated_dynamo"] {
        let mut graph = case(name);
        for input in graph.inputs.clone() {
            let symbol = |axis| Dim::pos_var(&format!("{}_{axis}", graph.value(input).name));
            let shape = [symbol(0), symbol(1)];
            graph.refine(input, &shape);
        }
        holds(&graph);
    }
}

#[test]
fn a_backbone_may_use_the_interfaces_names() {
    let mut graph = case("relu_torchscript");
    let inner: Vec<_> = graph.node_ids().filter_map(|id| graph.node(id).output(0)).take(6).collect();
    let weight = graph.value_ids().find(|v| graph.weight(*v).is_some()).expect("a weight");
    let names = ["loss", "labels", "lr", "step", "grad_norm", "encoder.side_first_downsample.weight.grad"];
    for (value, name) in inner.into_iter().zip(names) {
        graph.rename(value, name).expect("the name is free");
    }
    graph.rename(weight, "encoder.side_first_downsample.weight").expect("the name is free");
    holds(&graph);
}

#[test]
fn an_input_with_one_of_the_interfaces_names_is_told() {
    let mut graph = case("relu_torchscript");
    let mask = graph.find("attention_mask").expect("the case has a mask");
    graph.rename(mask, "labels").expect("the name is free");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let error = rewritten(&graph, folder.path()).expect_err("it cannot be rewritten");
    let text = format!("{error:#}");
    assert!(text.contains("`labels`: an input of the model has a name of the training graphs"), "{text}");
}
