//! Graphs that are deep where the matcher looks, to be refused without recursing into them or walking them over and
//! over.

use std::time::{Duration, Instant};

use lstc_graph::load_bytes;
use lstc_graph::onnx::proto::attribute_proto::AttributeType;
use lstc_graph::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, tensor_shape_proto, type_proto,
};
use lstc_models::{explain, recognise};
use prost::Message;

const LIMIT: Duration = Duration::from_secs(1);

/// A model of these nodes with inputs `x: f32`, of unknown shape, and `s: i64[4]`, a matrix `w`, a vector `v`, a scalar `c`,
/// bounds `low` and `high`, and output `y`.
fn model(nodes: Vec<NodeProto>) -> ModelProto {
    let weight = |name: &str, dims: &[i64]| TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(1),
        dims: dims.to_vec(),
        float_data: vec![1.0; dims.iter().product::<i64>() as usize],
        ..TensorProto::default()
    };
    let bound = |name: &str, value: f32| TensorProto { float_data: vec![value], ..weight(name, &[]) };
    let dim = |d: &i64| {
        let value = (*d > 0).then_some(tensor_shape_proto::dimension::Value::DimValue(*d));
        tensor_shape_proto::Dimension { value, ..Default::default() }
    };
    let input = |name: &str, kind: i32, dims: Option<&[i64]>| {
        let shape = dims.map(|dims| TensorShapeProto { dim: dims.iter().map(dim).collect() });
        let value = Some(type_proto::Value::TensorType(type_proto::Tensor { elem_type: Some(kind), shape }));
        ValueInfoProto {
            name: Some(name.to_owned()),
            r#type: Some(TypeProto { value, ..TypeProto::default() }),
            ..ValueInfoProto::default()
        }
    };
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
        graph: Some(GraphProto {
            node: nodes,
            initializer: vec![
                weight("w", &[4, 4]),
                weight("v", &[4]),
                weight("c", &[]),
                bound("low", -1e5),
                bound("high", 1e5),
            ],
            input: vec![input("x", 1, None), input("s", 7, Some(&[4]))],
            output: vec![ValueInfoProto { name: Some("y".to_owned()), ..ValueInfoProto::default() }],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    }
}

fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: Some(op.to_owned()),
        input: inputs.iter().map(ToString::to_string).collect(),
        output: vec![output.to_owned()],
        ..NodeProto::default()
    }
}

/// `length` nodes from `x` to a value `from`, each reading the one before as the operands say.
fn chain(length: usize, op: &str, operands: &[&str]) -> Vec<NodeProto> {
    let name = |i: usize| match i {
        0 => "x".to_owned(),
        i if i == length => "from".to_owned(),
        i => format!("n{i}"),
    };
    let operand = |i: usize, o: &str| if o == "_" { name(i) } else { o.to_owned() };
    let made = |i: usize| NodeProto {
        input: operands.iter().map(|o| operand(i, o)).collect(),
        output: vec![name(i + 1)],
        op_type: Some(op.to_owned()),
        ..NodeProto::default()
    };
    (0..length).map(made).collect()
}

fn with_ints(mut node: NodeProto, name: &str, values: &[i64]) -> NodeProto {
    node.attribute.push(AttributeProto {
        name: Some(name.to_owned()),
        ints: values.to_vec(),
        r#type: Some(AttributeType::Ints.into()),
        ..AttributeProto::default()
    });
    node
}

/// A norm of `input`, named with `tag`.
fn norm(input: &str, tag: &str, output: &str) -> Vec<NodeProto> {
    let n = |s: &str| format!("{tag}{s}");
    vec![
        node("Mul", &[input, input], &n("square")),
        with_ints(node("ReduceMean", &[&n("square")], &n("mean")), "axes", &[-1]),
        node("Add", &[&n("mean"), "c"], &n("sum")),
        node("Sqrt", &[&n("sum")], &n("root")),
        node("Div", &[input, &n("root")], &n("normed")),
        node("Mul", &["v", &n("normed")], output),
    ]
}

#[test]
fn deep_graphs_are_refused() {
    const LENGTH: usize = 20_000;
    let head = |mut nodes: Vec<NodeProto>, last: &str| {
        nodes.extend(norm(last, "final.", "h"));
        nodes.push(node("MatMul", &["h", "w"], "y"));
        nodes
    };
    let shapes: [(&str, &str, &[&str]); 13] = [
        ("copies", "Identity", &["_"]),
        ("a stream of doublings", "Add", &["_", "_"]),
        ("a stream of constants", "Add", &["_", "c"]),
        ("a stream of one input", "Add", &["x", "_"]),
        ("a product of squares", "Mul", &["_", "_"]),
        ("a product with constants", "Mul", &["c", "_"]),
        ("a quotient", "Div", &["_", "c"]),
        ("quotients of themselves", "Div", &["_", "_"]),
        ("choices", "Where", &["c", "_", "_"]),
        ("guards", "Clip", &["_", "low", "high"]),
        ("guards on one side", "Min", &["_", "high"]),
        ("splits", "Split", &["_"]),
        ("quantised and back", "DequantizeLinear", &["_", "c"]),
    ];
    let mut longest = (Duration::ZERO, "");
    let mut count = 0;
    for (what, op, operands) in shapes {
        let from = || chain(LENGTH, op, operands);
        let attention = {
            // The chain is what is added to the scores of an attention, or scales them.
            let mut nodes = from();
            nodes.push(node("MatMul", &["x", "x"], "scores"));
            nodes.push(node("Add", &["from", "scores"], "biased"));
            nodes.push(node("Softmax", &["biased"], "weights"));
            nodes.push(node("MatMul", &["weights", "x"], "mixed"));
            nodes.push(with_ints(node("Transpose", &["mixed"], "swapped"), "perm", &[0, 2, 1, 3]));
            nodes.push(node("Reshape", &["swapped", "s"], "merged"));
            nodes.push(node("MatMul", &["merged", "w"], "branch"));
            nodes.push(node("Add", &["x", "branch"], "stream"));
            head(nodes, "stream")
        };
        let feed_forward = {
            let mut nodes = from();
            nodes.push(node("MatMul", &["from", "w"], "branch"));
            nodes.push(node("Add", &["x", "branch"], "stream"));
            head(nodes, "stream")
        };
        let mut logits = from();
        logits.extend(norm("x", "final.", "h"));
        logits.push(node("Mul", &["from", "h"], "scaled"));
        logits.push(node("MatMul", &["scaled", "w"], "y"));
        for (place, nodes) in [
            ("as the stream", head(from(), "from")),
            ("in an attention", attention),
            ("in a feed-forward", feed_forward),
            ("before the logits", logits),
        ] {
            let graph = load_bytes(model(nodes).encode_to_vec().into(), "deep.onnx".as_ref());
            let mut graph = graph.unwrap_or_else(|e| panic!("{what} {place}: {e}"));
            let start = Instant::now();
            let refused = recognise(&mut graph).err().unwrap_or_else(|| panic!("{what} {place} must be refused"));
            let took = start.elapsed();
            assert!(refused.refusals.len() < 200, "{} refusals", refused.refusals.len());
            println!(
                "{what} {place}: {took:.2?}, {}",
                refused.refusals[refused.refusals.len() - 1].to_string().chars().take(160).collect::<String>()
            );
            assert!(took < LIMIT, "{what} {place}: {took:?}");
            let start = Instant::now();
            assert!(explain(&mut graph).0.is_err(), "{what} {place} must be refused when it is explained, too");
            let told = start.elapsed();
            assert!(told < LIMIT, "{what} {place} explained: {told:?}");
            longest = longest.max((took, what));
            count += 1;
        }
    }
    println!("{count} graphs of {LENGTH} nodes and more, the longest in {longest:.2?}");
}

#[test]
fn splits_of_splits_are_refused() {
    let mut nodes = vec![node("MatMul", &["x", "w"], "product")];
    nodes.extend(chain(20_000, "Split", &["_"]));
    nodes[1].input[0] = "product".to_owned();
    nodes.push(node("Identity", &["from"], "y"));
    let graph = load_bytes(model(nodes).encode_to_vec().into(), "deep.onnx".as_ref());
    let mut graph = graph.unwrap_or_else(|e| panic!("{e}"));
    let refused = recognise(&mut graph).expect_err("it must be refused");
    assert!(refused.to_string().contains("splits a part of a product further"), "{refused}");
    assert!(explain(&mut graph).0.is_err());
}
