//! What a trace says of models that are understood, of the same with every name scrambled, and of refused ones.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use lstc_graph::onnx::proto::attribute_proto::AttributeType;
use lstc_graph::onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto};
use lstc_graph::{Graph, load, load_bytes, parse};
use lstc_models::{
    Attempt, Known, Meeting, NodeTrace, Outcome, Place, Reason, SublayerGuess, SublayerTrace, TowerKind, Trace,
    explain, recognise,
};
use prost::Message;

fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cases")
}

fn models() -> Vec<PathBuf> {
    let folders = std::fs::read_dir(cases()).expect("the cases are committed");
    let files = folders.map(|e| e.expect("a readable folder").path().join("model.onnx"));
    let found: Vec<PathBuf> = files.filter(|p| p.exists()).collect();
    assert!(found.len() >= 10, "only {} cases", found.len());
    found
}

fn refused() -> Vec<PathBuf> {
    let files = std::fs::read_dir(cases().join("refused")).expect("the cases are committed");
    files.map(|e| e.expect("a readable folder").path()).collect()
}

fn open(path: &Path) -> Graph {
    load(path).unwrap_or_else(|e| panic!("{e}"))
}

fn of_refused(name: &str) -> (Graph, Trace) {
    let mut graph = open(&cases().join("refused").join(name));
    let (found, trace) = explain(&mut graph);
    assert!(found.is_err(), "{name} must be refused");
    (graph, trace)
}

fn sublayers(trace: &Trace) -> impl Iterator<Item = &SublayerTrace> {
    trace.towers.iter().flat_map(|t| &t.blocks).flat_map(|b| &b.sublayers)
}

fn reason(outcome: &Outcome) -> &Reason {
    match outcome {
        Outcome::No(reason) => reason,
        Outcome::Matched { found } => panic!("matched: {found}"),
    }
}

/// Everything of some attempts that does not depend on names.
fn skeleton(text: &mut String, depth: usize, tried: &[Attempt]) {
    for attempt in tried {
        let outcome = match &attempt.outcome {
            Outcome::Matched { found } => found,
            Outcome::No(reason) => &reason.node.operator,
        };
        let took: Vec<&str> = attempt.took.iter().map(|n| n.operator.as_str()).collect();
        let _ = writeln!(
            text,
            "{:depth$}{} at {}: {} {outcome}, took {took:?}",
            "",
            attempt.pattern,
            attempt.at.operator,
            attempt.outcome.is_match()
        );
        skeleton(text, depth + 2, &attempt.tried);
    }
}

fn describe(trace: &Trace) -> String {
    let mut text = String::new();
    skeleton(&mut text, 0, &trace.head);
    for tower in &trace.towers {
        let _ = writeln!(text, "{} ended {}", tower.kind, tower.ended.is_some());
        skeleton(&mut text, 2, &tower.embedding);
        for block in &tower.blocks {
            let _ = writeln!(text, "block {}, {} refusals", block.index, block.refusals.len());
            for sublayer in &block.sublayers {
                let _ = writeln!(text, "  {} {}", sublayer.kind.name(), sublayer.outcome.is_match());
                skeleton(&mut text, 4, &sublayer.tried);
            }
        }
        skeleton(&mut text, 2, &tower.final_norm);
    }
    text
}

#[test]
fn what_is_explained_is_what_is_recognised() {
    for path in models() {
        let (mut plain, mut told) = (open(&path), open(&path));
        let wanted = recognise(&mut plain).unwrap_or_else(|e| panic!("{}:\n{e}", path.display()));
        let (found, trace) = explain(&mut told);
        assert_eq!(format!("{wanted:?}"), format!("{:?}", found.expect("it is recognised")), "{}", path.display());
        assert_eq!(plain.node_ids().count(), told.node_ids().count());
        assert_eq!(
            wanted.towers.iter().map(|t| t.blocks.len()).collect::<Vec<_>>(),
            trace.towers.iter().map(|t| t.blocks.len()).collect::<Vec<_>>()
        );
        assert!(!trace.cut && trace.towers.iter().all(|t| t.ended.is_none() && t.refusals.is_empty()));
        assert!(sublayers(&trace).all(|s| s.outcome.is_match()), "{}:\n{}", path.display(), describe(&trace));
        assert!(trace.head.iter().any(|a| a.outcome.is_match()));
    }
    for path in refused() {
        let refusals = recognise(&mut open(&path)).expect_err("it must be refused").refusals;
        assert_eq!(
            refusals,
            explain(&mut open(&path)).0.expect_err("it must be refused").refusals,
            "{}",
            path.display()
        );
    }
}

#[test]
fn names_play_no_part() {
    for path in models().into_iter().chain(refused()) {
        let mut graph = open(&path);
        let plain = describe(&explain(&mut graph).1);
        let mut graph = open(&path);
        for (index, id) in graph.value_ids().enumerate() {
            graph.rename(id, &format!("v{}", (index * 7919) % 1_000_003)).expect("scrambled names are unique");
        }
        graph.rename_nodes(|index| format!("n{}", (index * 104_729) % 1_000_003));
        assert_eq!(plain, describe(&explain(&mut graph).1), "{}", path.display());
    }
}

#[test]
fn a_sublayer_is_told_down_to_the_pattern_that_failed() {
    let (_, trace) = of_refused("unknown_activation.onnx");
    let failed: Vec<&SublayerTrace> = sublayers(&trace).filter(|s| !s.outcome.is_match()).collect();
    assert_eq!(failed.len(), 2);
    for sublayer in failed {
        assert_eq!(sublayer.kind, SublayerGuess::FeedForward);
        assert_eq!(sublayer.add.operator, "Add");
        let why = reason(&sublayer.outcome);
        assert_eq!((why.node.operator.as_str(), why.reads.len()), ("Elu", 1));
        assert!(why.reads[0].operator == "MatMul" && why.reads[0].shape.starts_with("f32["), "{:?}", why.reads);
        let mut tried = &sublayer.tried;
        let mut way = Vec::new();
        while let Some(attempt) = tried.iter().find(|a| !a.outcome.is_match()) {
            way.push(attempt.pattern);
            assert_eq!(reason(&attempt.outcome), why);
            tried = &attempt.tried;
        }
        assert_eq!(way, ["feed-forward", "plain", "activation"]);
    }
}

#[test]
fn a_walk_that_goes_astray_is_told() {
    let (_, trace) = of_refused("missing_residual.onnx");
    let failed = sublayers(&trace).find(|s| !s.outcome.is_match()).expect("one is not understood");
    assert!(reason(&failed.outcome).reason.contains("not added to the residual stream"));
    assert!(failed.tried.iter().any(|a| a.pattern == "feed-forward" && a.outcome.is_match()));
    let (_, trace) = of_refused("bert.onnx");
    // The walk continues behind a head that is not understood.
    let kinds = |trace: &Trace| sublayers(trace).map(|s| s.kind).collect::<Vec<_>>();
    let block = [SublayerGuess::SelfAttention, SublayerGuess::FeedForward];
    assert_eq!(kinds(&trace), [block, block].concat());
    assert!(trace.towers.len() == 1 && trace.towers[0].ended.is_some());
    assert_eq!(reason(&trace.head[0].outcome).node.operator, "LayerNormalization");
}

/// The patterns that met a node in the way that is given.
fn met(node: &NodeTrace, known: Known) -> Vec<(Place, &[&'static str])> {
    node.parts.iter().filter(|p| p.known == known).map(|p| (p.place, &p.patterns[..])).collect()
}

#[test]
fn a_node_is_told_with_the_patterns_that_met_it() {
    let (graph, trace) = of_refused("unknown_activation.onnx");
    let about = |name: &str| trace.about(&graph, name).unwrap_or_else(|| panic!("{name} is there"));
    let place = Place::Sublayer(TowerKind::Decoder, 1, SublayerGuess::FeedForward);
    let node = about("/model/decoder/block.1/layer.2/DenseReluDense/act/Relu");
    assert_eq!(met(&node, Known::Blamed), [(place, &["feed-forward", "plain", "activation"][..])]);
    assert!(met(&node, Known::Took).is_empty());
    assert_eq!(node.nearest.expect("its reader was tried").steps, 1);
    let node = about("/model/decoder/block.1/layer.2/DenseReluDense/wo/MatMul");
    assert_eq!(met(&node, Known::Took), [(place, &["feed-forward", "linear"][..])]);
    assert!(node.nearest.is_none());
    let add = about("/model/decoder/block.1/layer.2/Add");
    assert_eq!(met(&add, Known::Stream), [(place, &[][..])]);
    // A value is reported as the node that makes it, an input as itself.
    let value = about("/model/decoder/block.1/layer.2/Add_output_0");
    assert_eq!(value.node, add.node);
    let input = about("attention_mask");
    let nearest = input.nearest.expect("a mask is computed from it");
    assert_eq!(input.node.operator, "input");
    let masks = |p: &Meeting| p.patterns.last() == Some(&"mask");
    assert!(nearest.steps > 1 && nearest.parts.iter().all(masks), "{nearest:?}");
    assert!(trace.about(&graph, "nowhere").is_none());
}

#[test]
fn a_node_that_no_pattern_took_is_told_with_the_nearest() {
    let (graph, trace) = of_refused("extra_consumer.onnx");
    let node = trace.about(&graph, "mean_attention").expect("it is there");
    assert!(node.parts.is_empty() && node.live, "{node:?}");
    assert_eq!(node.read_by.len(), 1);
    let nearest = node.nearest.expect("its reader was tried");
    assert_eq!((nearest.node.name.as_str(), nearest.steps), ("per_query", 1));
    assert!(nearest.parts.iter().any(|p| p.known == Known::Blamed && p.patterns.last() == Some(&"linear")));
}

fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: Some(op.to_owned()),
        name: Some(format!("{output} of {op}")),
        input: inputs.iter().map(ToString::to_string).collect(),
        output: vec![output.to_owned()],
        ..NodeProto::default()
    }
}

/// Writes each softmax as exponentials over their sum.
fn unfuse_softmax(graph: &mut GraphProto) {
    for old in std::mem::take(&mut graph.node) {
        if old.op_type() != "Softmax" {
            graph.node.push(old);
            continue;
        }
        let (x, y) = (&old.input[0], &old.output[0]);
        let part = |what: &str| format!("{y} {what}");
        let axes = AttributeProto {
            name: Some("axes".to_owned()),
            r#type: Some(AttributeType::Ints.into()),
            ints: vec![-1],
            ..AttributeProto::default()
        };
        let largest = NodeProto { attribute: vec![axes], ..node("ReduceMax", &[x], &part("largest")) };
        graph.node.extend([
            largest,
            node("Sub", &[x, &part("largest")], &part("shifted")),
            node("Exp", &[&part("shifted")], &part("exponentials")),
            node("ReduceSum", &[&part("exponentials"), "last axis"], &part("sum")),
            node("Div", &[&part("exponentials"), &part("sum")], y),
        ]);
    }
    graph.initializer.push(lstc_graph::onnx::proto::TensorProto {
        name: Some("last axis".to_owned()),
        data_type: Some(7),
        dims: vec![1],
        int64_data: vec![-1],
        ..Default::default()
    });
}

#[test]
fn fused_operators_are_told_with_what_became_of_them() {
    let path = cases().join("relu_torchscript/model.onnx");
    let bytes = std::fs::read(&path).expect("the case is committed");
    let mut model = ModelProto::decode(&bytes[..]).expect("the case is a model");
    unfuse_softmax(model.graph.as_mut().expect("the case is a model"));
    let mut graph = load_bytes(model.encode_to_vec().into(), &path).unwrap_or_else(|e| panic!("{e}"));
    let (found, trace) = explain(&mut graph);
    found.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(trace.fused.len(), 6);
    for fused in &trace.fused {
        assert_eq!((fused.node.operator.as_str(), fused.rule, fused.left), ("Div", "a softmax", None));
        let made: Vec<&str> = fused.restated.iter().map(|n| n.operator.as_str()).collect();
        assert_eq!(made, ["Softmax"]);
        // The operator's own name leads to the pattern that took what stands for it.
        let about = trace.about(&graph, &fused.node.name).expect("it is there");
        assert!(met(&about, Known::Took).iter().any(|(_, patterns)| patterns == &["attention"]), "{about:?}");
        let stands_for = trace.about(&graph, &fused.restated[0].name).expect("it is known");
        assert_eq!(stands_for.fused.map(|f| f.node), Some(fused.node.clone()));
    }
}

#[test]
fn a_fused_operator_that_is_left_as_it_is_is_told_with_the_reason() {
    let text = "(q: f32[B, 2, 4, 8], k: f32[B, 2, 4, 8], v: f32[B, 2, 4, 8]) {
        y = Attention<softcap=1.5>(q, k, v)
    }";
    let mut graph = parse(text, 23).unwrap_or_else(|e| panic!("{e}"));
    let (found, trace) = explain(&mut graph);
    assert!(found.is_err());
    assert_eq!(trace.fused.len(), 1);
    assert_eq!(trace.fused[0].left, Some("it applies a soft cap to the scores"));
    assert!(trace.fused[0].restated.is_empty());
}
