//! Files that are not models, damaged files, and hostile models: each is a typed error that names the file and the
//! place, or a graph; never a panic, a long wait or memory that a number in the file asked for.

mod common;

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lstc_graph::onnx::proto::attribute_proto::AttributeType;
use lstc_graph::onnx::proto::tensor_proto::{DataLocation, DataType};
use lstc_graph::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use lstc_graph::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, SparseTensorProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use lstc_graph::{Graph, LoadError, load, load_bytes, print, shape_text, verify};
use prost::Message;

use common::{MESSAGES, count_messages, memory};

const LIMIT: Duration = Duration::from_secs(1);

fn read(model: &ModelProto) -> Result<Graph, LoadError> {
    count_messages();
    load_bytes(model.encode_to_vec().into(), "hostile.onnx".as_ref())
}

/// The error of a model that must be refused within the time limit, whose text holds each of `wanted`.
#[track_caller]
fn refused(model: &ModelProto, wanted: &[&str]) {
    let start = Instant::now();
    let error = match read(model) {
        Ok(graph) => panic!("must be refused: {}", print(&graph)),
        Err(error) => error.to_string(),
    };
    let took = start.elapsed();
    println!("{took:.0?} {error}");
    assert!(took < LIMIT, "{took:?}");
    assert!(error.contains("cannot read `hostile.onnx`"), "{error}");
    for text in wanted {
        assert!(error.contains(text), "{text:?} is not in {error}");
    }
}

/// A model that may be read; whatever is then known of its shapes can be printed.
#[track_caller]
fn harmless(model: &ModelProto) -> String {
    let start = Instant::now();
    let text = match read(model) {
        Ok(graph) => {
            let shape = |v| graph.shape(v).map_or_else(|| "?".to_owned(), |s| shape_text(&s));
            let shapes: Vec<String> = graph.value_ids().map(shape).collect();
            let flaws = verify(&graph).len();
            let last = shapes.last().cloned().unwrap_or_default();
            assert!(shapes.iter().all(|s| s.len() < 20_000), "a shape of {} characters", last.len());
            last + &format!(" ({flaws} flaws)")
        }
        Err(error) => error.to_string(),
    };
    let took = start.elapsed();
    println!("{took:.0?} {text}");
    assert!(took < LIMIT, "{took:?}: {text}");
    text
}

fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        op_type: Some(op.to_owned()),
        name: Some(format!("the_{}", op.to_lowercase())),
        input: inputs.iter().map(ToString::to_string).collect(),
        output: outputs.iter().map(ToString::to_string).collect(),
        ..NodeProto::default()
    }
}

fn with(mut node: NodeProto, attribute: AttributeProto) -> NodeProto {
    node.attribute.push(attribute);
    node
}

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto { name: Some(name.to_owned()), r#type: Some(kind.into()), ..AttributeProto::default() }
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { i: Some(value), ..attribute(name, AttributeType::Int) }
}

fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto { ints: values.to_vec(), ..attribute(name, AttributeType::Ints) }
}

fn tensor(name: &str, kind: DataType, dims: &[i64], bytes: &[u8]) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(kind.into()),
        dims: dims.to_vec(),
        raw_data: Some(bytes.to_vec().into()),
        ..TensorProto::default()
    }
}

fn i64s(name: &str, values: &[i64]) -> TensorProto {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    tensor(name, DataType::Int64, &[values.len() as i64], &bytes)
}

fn i64_scalar(name: &str, value: i64) -> TensorProto {
    tensor(name, DataType::Int64, &[], &value.to_le_bytes())
}

/// A float input; a dimension below zero is the symbol `B`.
fn input(name: &str, kind: DataType, dims: &[i64]) -> ValueInfoProto {
    let dim = |d: &i64| {
        let symbol = || dimension::Value::DimParam("B".to_owned());
        let value = if *d < 0 { symbol() } else { dimension::Value::DimValue(*d) };
        Dimension { value: Some(value), ..Dimension::default() }
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect() };
    typed(name, type_proto::Value::TensorType(type_proto::Tensor { elem_type: Some(kind.into()), shape: Some(shape) }))
}

fn typed(name: &str, value: type_proto::Value) -> ValueInfoProto {
    let kind = TypeProto { value: Some(value), ..TypeProto::default() };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(kind), ..ValueInfoProto::default() }
}

fn output(name: &str) -> ValueInfoProto {
    ValueInfoProto { name: Some(name.to_owned()), ..ValueInfoProto::default() }
}

/// A model with an input `x: f32[B, 4]` and an output `y`.
/// A model of these nodes. The first of a kind has a name.
fn model(mut nodes: Vec<NodeProto>, initializers: Vec<TensorProto>) -> ModelProto {
    let mut seen = HashSet::new();
    nodes.iter_mut().filter(|node| !seen.insert(node.op_type().to_owned())).for_each(|node| node.name = None);
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
        graph: Some(GraphProto {
            node: nodes,
            initializer: initializers,
            input: vec![input("x", DataType::Float, &[-1, 4])],
            output: vec![output("y")],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    }
}

fn relu() -> ModelProto {
    model(vec![node("Relu", &["x"], &["y"])], Vec::new())
}

fn with_weight(weight: TensorProto) -> ModelProto {
    let name = weight.name().to_owned();
    model(vec![node("Add", &["x", &name], &["y"])], vec![weight])
}

fn graph_of(model: &mut ModelProto) -> &mut GraphProto {
    model.graph.as_mut().expect("the model was just made")
}

#[test]
fn what_is_no_file() {
    count_messages();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("empty.onnx"), b"").expect("a writable folder");
    std::fs::write(at("text.onnx"), b"hello, this is not protobuf at all").expect("a writable folder");
    std::fs::write(at("other.onnx"), other_message()).expect("a writable folder");
    let error = |path: &Path| {
        let start = Instant::now();
        let error = load(path).err().unwrap_or_else(|| panic!("{} must be refused", path.display()));
        assert!(start.elapsed() < LIMIT);
        assert_eq!(error.path, path);
        println!("{error}");
        error.to_string()
    };
    assert!(error(&at("missing.onnx")).ends_with("No such file or directory"));
    assert!(error(folder.path()).contains("is a directory"));
    assert!(error(&at("empty.onnx")).contains("is empty"));
    assert!(error(&at("text.onnx")).contains("is not an ONNX model"));
    assert!(error(&at("other.onnx")).contains("is not an ONNX model"));
    if cfg!(unix) {
        assert!(error(Path::new("/dev/zero")).contains("is not a regular file"));
        let made = std::process::Command::new("mkfifo").arg(at("fifo.onnx")).status();
        if made.is_ok_and(|s| s.success()) {
            assert!(error(&at("fifo.onnx")).contains("is not a regular file"));
        }
    }
    let mut random = Random(7);
    for length in [1, 2, 3, 10, 1000, 100_000] {
        let bytes: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
        let result = load_bytes(bytes.into(), "random.onnx".as_ref());
        assert!(result.is_err(), "{length} random bytes");
    }
    assert_eq!(MESSAGES.load(Ordering::SeqCst), 0);
}

/// A message of another schema whose every field is one of `ModelProto`'s by number.
fn other_message() -> Vec<u8> {
    NodeProto { name: Some("a node, not a model".to_owned()), ..NodeProto::default() }.encode_to_vec()
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }
}

#[test]
fn graphs_that_are_none() {
    let mut none = relu();
    none.opset_import.clear();
    refused(&none, &["opset_import: the model gives no version of the default ONNX operator set"]);
    let mut none = relu();
    none.graph = None;
    refused(&none, &["it holds no graph"]);
    let mut none = relu();
    graph_of(&mut none).node.clear();
    refused(&none, &["graph: has no nodes", "output `y`: no node makes it"]);
    let mut none = relu();
    graph_of(&mut none).output.clear();
    refused(&none, &["graph: has no outputs"]);
    let mut twice = relu();
    graph_of(&mut twice).output.push(output("y"));
    refused(&twice, &["output `y`: is listed twice"]);
    let mut absent = relu();
    graph_of(&mut absent).output.push(output("z"));
    refused(&absent, &["output `z`: no node makes it"]);
    refused(
        &model(vec![node("Relu", &["q"], &["y"])], Vec::new()),
        &["Relu `the_relu`: reads `q`, which is not defined"],
    );
    let cycle = vec![node("Relu", &["b"], &["a"]), node("Relu", &["a"], &["b"]), node("Add", &["x", "b"], &["y"])];
    refused(&model(cycle, Vec::new()), &["Relu `b`: is part of a cycle"]);
    let own = vec![node("Add", &["x", "y"], &["y"])];
    refused(&model(own, Vec::new()), &["Add `the_add`: is part of a cycle"]);
    let twice = vec![node("Relu", &["x"], &["y"]), node("Abs", &["x"], &["y"])];
    refused(&model(twice, Vec::new()), &["value `y`: is defined twice"]);
    refused(&model(vec![node("Relu", &["x"], &["y", "y"])], Vec::new()), &["value `y`: is defined twice"]);
    let mut twice = with_weight(i64s("w", &[1]));
    graph_of(&mut twice).initializer.push(i64s("w", &[1]));
    refused(&twice, &["value `w`: is defined twice"]);
    let mut twice = model(vec![node("Relu", &["x"], &["z"]), node("Relu", &["z"], &["y"])], Vec::new());
    graph_of(&mut twice).node[1].name = Some("the_relu".to_owned());
    refused(&twice, &["Relu `the_relu`: has the name of another node"]);
    let mut twice = relu();
    graph_of(&mut twice).input.push(input("x", DataType::Float, &[1]));
    refused(&twice, &["value `x`: is defined twice"]);
    refused(&model(vec![node("", &["x"], &["y"])], Vec::new()), &["node `the_`: has no operator"]);
    let mut twice = relu();
    twice.opset_import.push(twice.opset_import[0].clone());
    refused(&twice, &["the model gives the version of ai.onnx twice"]);
    let mut twice = relu();
    graph_of(&mut twice).value_info.extend([input("y", DataType::Float, &[1]), input("y", DataType::Float, &[2])]);
    refused(&twice, &["value `y`: is declared twice, with two types or shapes"]);
    let mut same = relu();
    graph_of(&mut same).value_info.extend([input("y", DataType::Float, &[1]), input("y", DataType::Float, &[1])]);
    harmless(&same);
    let both = TensorProto { float_data: vec![1.0; 4], ..tensor("w", DataType::Float, &[4], &[0; 16]) };
    refused(&with_weight(both), &["initializer `w`: has its numbers in more than one field"]);
    let external = TensorProto {
        data_location: Some(DataLocation::External.into()),
        external_data: vec![StringStringEntryProto { key: Some("location".to_owned()), value: Some("w".to_owned()) }],
        ..tensor("w", DataType::Float, &[4], &[0; 16])
    };
    refused(&with_weight(external), &["initializer `w`: has its numbers in more than one field"]);

    let axis_twice = with(with(node("Softmax", &["x"], &["y"]), int("axis", 0)), int("axis", 1));
    refused(&model(vec![axis_twice], Vec::new()), &["attribute `axis`: is given twice"]);
}

#[test]
fn what_lstc_does_not_hold() {
    let branch = AttributeProto { g: Some(GraphProto::default()), ..attribute("then_branch", AttributeType::Graph) };
    let conditional = model(vec![with(node("If", &["x"], &["y"]), branch)], Vec::new());
    refused(&conditional, &["If `the_if`: holds a subgraph or a type"]);
    let strings =
        TensorProto { string_data: vec![b"a"[..].into()], raw_data: None, ..tensor("s", DataType::String, &[1], &[]) };
    refused(&with_weight(strings), &["initializer `s`: has element type STRING, which lstc does not support"]);
    let strings =
        TensorProto { string_data: vec![b"a"[..].into()], raw_data: None, ..tensor("s", DataType::Float, &[1], &[]) };
    refused(&with_weight(strings), &["initializer `s`: holds strings"]);
    refused(&with_weight(tensor("c", DataType::Complex64, &[], &[0; 8])), &["`c`: has element type COMPLEX64"]);
    let unknown = TensorProto { data_type: Some(12345), ..i64s("u", &[1]) };
    refused(&with_weight(unknown), &["initializer `u`: has element type number 12345"]);
    let mut sparse = relu();
    let values = Some(i64s("sparse_weight", &[1]));
    graph_of(&mut sparse).sparse_initializer.push(SparseTensorProto { values, ..SparseTensorProto::default() });
    refused(&sparse, &["initializer `sparse_weight`: is sparse"]);
    let mut sequence = relu();
    let elem_type = Some(Box::new(TypeProto::default()));
    let kind = type_proto::Value::SequenceType(Box::new(type_proto::Sequence { elem_type }));
    graph_of(&mut sequence).input.push(typed("many", kind));
    refused(&sequence, &["input `many`: is not a dense tensor"]);
    let mut untyped = relu();
    graph_of(&mut untyped).input.push(output("untyped"));
    refused(&untyped, &["input `untyped`: is not a dense tensor"]);
    let empty = with(node("Constant", &[], &["y"]), attribute("value", AttributeType::Tensor));
    refused(&model(vec![empty], Vec::new()), &["Constant `y`: holds no tensor"]);
    refused(&model(vec![node("Constant", &[], &["y"])], Vec::new()), &["Constant `y`: must have one attribute"]);
    refused(
        &model(vec![node("Constant", &[], &["y", "z"])], Vec::new()),
        &["Constant `the_constant`: must have one output"],
    );
}

#[test]
fn weights_of_impossible_sizes() {
    let before = memory("VmRSS");
    let sized = |dims: &[i64]| with_weight(tensor("w", DataType::Float, dims, &[0; 4]));
    refused(&sized(&[1 << 62]), &["initializer `w`: declares an absurd size: f32 [4611686018427387904]"]);
    refused(&sized(&[1 << 32, 1 << 32, 1 << 32]), &["initializer `w`: declares an absurd size"]);
    refused(&sized(&[0, 1 << 40]), &["initializer `w`: declares an absurd size"]);
    refused(&sized(&[1 << 20, 1 << 20]), &["which takes 4398046511104 bytes, but holds 4"]);
    refused(&sized(&[-1]), &["initializer `w`: has a dimension of -1"]);
    refused(&sized(&[i64::MIN]), &["has a dimension of -9223372036854775808"]);
    refused(&sized(&[1; 100_000]), &["initializer `w`: has 100000 dimensions"]);
    let typed = TensorProto { raw_data: None, float_data: vec![1.0], ..tensor("w", DataType::Float, &[3], &[]) };
    refused(&with_weight(typed), &["initializer `w`: declares f32 [3], which takes 12 bytes, but holds 4"]);
    let mut deep = relu();
    graph_of(&mut deep).input = vec![input("x", DataType::Float, &[1; 100_000])];
    refused(&deep, &["input `x`: has 100000 dimensions"]);
    // The reader of a refused weight is not to blame.
    let error = read(&sized(&[-1])).err().expect("it was just refused");
    assert_eq!(error.problems.len(), 1, "{error}");
    let peak = memory("VmHWM");
    println!("memory: {before} MiB before, {peak} MiB at most");
    assert!(peak < before + 200);
}

#[test]
fn external_data() {
    count_messages();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let inner = folder.path().join("inner");
    std::fs::create_dir_all(inner.join("folder")).expect("a writable folder");
    std::fs::write(folder.path().join("secret"), [1; 64]).expect("a writable folder");
    std::fs::write(inner.join("w.data"), [1; 64]).expect("a writable folder");
    std::fs::write(inner.join("empty.data"), []).expect("a writable folder");
    let path = inner.join("model.onnx");
    let try_load = |entries: &[(&str, &str)]| {
        let entry =
            |(k, v): &(&str, &str)| StringStringEntryProto { key: Some(k.to_string()), value: Some(v.to_string()) };
        let weight = TensorProto {
            raw_data: None,
            data_location: Some(DataLocation::External.into()),
            external_data: entries.iter().map(entry).collect(),
            ..tensor("w", DataType::Float, &[4], &[])
        };
        std::fs::write(&path, with_weight(weight).encode_to_vec()).expect("a writable folder");
        load(&path)
    };
    try_load(&[("location", "w.data"), ("offset", "48"), ("length", "16")]).unwrap_or_else(|e| panic!("{e}"));
    try_load(&[("location", "w.data")]).unwrap_or_else(|e| panic!("{e}"));
    let outside = "outside the model's folder: refused";
    let secret = folder.path().join("secret").display().to_string();
    let huge = u64::MAX.to_string();
    let beyond = "340282366920938463463374607431768211456";
    let cases: Vec<(Vec<(&str, &str)>, &str)> = vec![
        (vec![], "has external data without a location"),
        (vec![("location", "")], outside),
        (vec![("location", "../secret")], outside),
        (vec![("location", "../../secret")], outside),
        (vec![("location", "folder/../../secret")], outside),
        (vec![("location", &secret)], outside),
        (vec![("location", "folder")], "is a directory"),
        (vec![("location", ".")], "is a directory"),
        (vec![("location", "absent.data")], "cannot be read: No such file or directory"),
        (vec![("location", "nul\0.data")], "cannot be read"),
        (vec![("location", "empty.data")], "is too short: 0 bytes, but 0 + 16 are needed"),
        (vec![("location", "w.data"), ("offset", "49")], "is too short: 64 bytes, but 49 + 16 are needed"),
        (vec![("location", "w.data"), ("offset", &huge)], "is too short: 64 bytes"),
        (vec![("location", "w.data"), ("offset", beyond)], "has external data whose offset is `3402"),
        (vec![("location", "w.data"), ("offset", "-1")], "has external data whose offset is `-1`"),
        (vec![("location", "w.data"), ("offset", "0x10")], "has external data whose offset is `0x10`"),
        (vec![("location", "w.data"), ("offset", "+16")], "has external data whose offset is `+16`"),
        (vec![("location", "w.data"), ("length", "")], "has external data whose length is ``"),
        (vec![("location", "w.data"), ("offset", "0"), ("offset", "16")], "repeat the key `offset`"),
        (vec![("location", "w.data"), ("offset", "16"), ("offset", "16")], "repeat the key `offset`"),
        (vec![("location", "w.data"), ("length", "16"), ("length", "16")], "repeat the key `length`"),
        (vec![("location", "w.data"), ("location", "empty.data")], "repeat the key `location`"),
        (vec![("location", "w.data"), ("length", "many")], "has external data whose length is `many`"),
        (vec![("location", "w.data"), ("length", "17")], "takes 16 bytes, but its external data declares 17"),
        (vec![("location", "w.data"), ("length", &huge)], "its external data declares 18446744073709551615"),
    ];
    println!("{} external locations", cases.len());
    for (entries, wanted) in cases {
        let error = try_load(&entries).err().unwrap_or_else(|| panic!("{entries:?} must be refused")).to_string();
        println!("{error}");
        assert!(error.contains(&format!("cannot read `{}`", path.display())), "{error}");
        assert!(error.contains("initializer `w`: ") && error.contains(wanted), "{wanted}: {error}");
    }
}

#[test]
fn deep_graphs() {
    const NODES: usize = 100_000;
    let chain = |op: &str| -> Vec<NodeProto> {
        let name = |i: usize| {
            if i == 0 {
                "x".to_owned()
            } else if i == NODES {
                "y".to_owned()
            } else {
                format!("v{i}")
            }
        };
        let operands = |i: usize| if op == "Identity" { vec![name(i)] } else { vec![name(i); 2] };
        let made = |i: usize| NodeProto { input: operands(i), output: vec![name(i + 1)], ..node(op, &[], &[]) };
        (0..NODES).map(made).collect()
    };
    let backwards = |mut nodes: Vec<NodeProto>| {
        nodes.reverse();
        nodes
    };
    // The length of x is added to itself, and multiplied by itself, over and over.
    let of_shape = |op: &str| {
        let mut nodes = vec![with(node("Shape", &["x"], &["v1"]), int("end", 1))];
        nodes.extend(chain(op).into_iter().skip(1));
        nodes
    };
    let with_axis = |mut nodes: Vec<NodeProto>| {
        nodes.iter_mut().for_each(|n| n.attribute.push(int("axis", 0)));
        nodes
    };
    let many = |op: &str| NodeProto { input: vec!["x".to_owned(); NODES], ..node(op, &[], &["y"]) };
    type Case<'a> = (&'a str, &'a dyn Fn() -> Vec<NodeProto>);
    let cases: [Case; 10] = [
        ("a chain of Identity", &|| chain("Identity")),
        ("the same, written backwards", &|| backwards(chain("Identity"))),
        ("a tensor doubled by Concat", &|| with_axis(chain("Concat"))),
        ("a length doubled by Add", &|| of_shape("Add")),
        ("a length squared by Mul", &|| of_shape("Mul")),
        ("a length less itself by Sub", &|| of_shape("Sub")),
        ("a length divided by itself", &|| of_shape("Div")),
        ("a vector of lengths doubled by Concat", &|| {
            let mut nodes = with_axis(chain("Concat"));
            nodes[0] = node("Shape", &["x"], &["v1"]);
            nodes
        }),
        ("one Concat of many", &|| vec![with(many("Concat"), int("axis", 0))]),
        ("one Sum of many", &|| vec![many("Sum")]),
    ];
    let before = memory("VmRSS");
    for (what, nodes) in cases {
        let bytes = model(nodes(), Vec::new()).encode_to_vec();
        let start = Instant::now();
        // The stack of a test's own thread, so that a recursion shows.
        let result = load_bytes(bytes.into(), "deep.onnx".as_ref());
        let took = start.elapsed();
        let graph = result.unwrap_or_else(|e| panic!("{what}: {e}"));
        let y = graph.find("y").expect("the output has its name");
        let shape = graph.shape(y).map_or_else(|| "?".to_owned(), |s| shape_text(&s));
        println!("{what}: {took:.2?}, {shape}");
        assert!(took < Duration::from_secs(4), "{what}: {took:?}");
        assert!(shape.len() < 20_000);
    }
    println!("memory: {before} MiB before, {} MiB at most", memory("VmHWM"));
}

#[test]
fn shapes_that_hurt() {
    let messages = MESSAGES.load(Ordering::SeqCst);
    let before = memory("VmRSS");
    let shaped = |op: &str, shape: &[i64]| model(vec![node(op, &["x", "s"], &["y"])], vec![i64s("s", shape)]);
    refused(
        &shaped("Reshape", &[i64::MIN, 4]),
        &["Reshape `the_reshape`: is reshaped to [-2147483648, 4], which has a negative size"],
    );
    refused(&shaped("Reshape", &[1; 65]), &["Reshape `the_reshape`: makes a tensor of 65 dimensions"]);
    harmless(&shaped("Reshape", &[i64::MAX, i64::MAX, -1]));
    harmless(&shaped("Reshape", &[-1, -1, 0, 0]));
    harmless(&shaped("Reshape", &[0, 0, 0, 0]));
    harmless(&shaped("Expand", &[i64::MAX, i64::MIN]));
    harmless(&shaped("Tile", &[i64::MAX, i64::MAX]));
    refused(&shaped("Tile", &[-3, 1, 1]), &["Tile `the_tile`: input or attribute has invalid value"]);
    refused(&shaped("Reshape", &[4, -7]), &["is reshaped to [4, -7], which has a negative size"]);

    // Shapes whose length is declared, and whose contents are not there.
    let asked = |op: &str, inputs: &[&str], length: i64| {
        let mut asked = model(vec![node(op, inputs, &["y"])], Vec::new());
        graph_of(&mut asked).input.push(input("s", DataType::Int64, &[length]));
        asked
    };
    let two_thousand_million = 2_000_000_000;
    refused(&asked("Reshape", &["x", "s"], two_thousand_million), &["makes a tensor of 2000000000 dimensions"]);
    refused(&asked("Expand", &["x", "s"], two_thousand_million), &["makes a tensor of 2000000000 dimensions"]);
    refused(&asked("ConstantOfShape", &["s"], two_thousand_million), &["makes a tensor of 2000000000 dimensions"]);

    let value = |v: TensorProto| AttributeProto { t: Some(v), ..attribute("value", AttributeType::Tensor) };
    let constant = |shape: &[i64]| {
        let of_ints = with(node("ConstantOfShape", &["s"], &["y"]), value(i64s("", &[7])));
        model(vec![of_ints], vec![i64s("s", shape)])
    };
    harmless(&constant(&[i32::MAX.into()]));
    harmless(&constant(&[1 << 31]));
    harmless(&constant(&[1 << 31, 1 << 31, 1 << 31]));
    refused(&constant(&[-1]), &["ConstantOfShape `the_constantofshape`"]);
    let long = with(node("ConstantOfShape", &["s"], &["y"]), value(tensor("", DataType::Int64, &[1 << 40], &[0; 8])));
    refused(&model(vec![long], vec![i64s("s", &[1])]), &["attribute `value`", "declares an absurd size"]);

    let slice = |start: i64, end: i64, axis: i64, step: i64| {
        let operands = vec![i64s("a", &[start]), i64s("b", &[end]), i64s("c", &[axis]), i64s("d", &[step])];
        model(vec![node("Slice", &["x", "a", "b", "c", "d"], &["y"])], operands)
    };
    harmless(&slice(0, i64::MAX, 0, 1));
    for (start, end) in [(i64::MIN, i64::MAX), (i64::MAX, i64::MIN), (3, 1), (-1, i64::MIN)] {
        for step in [1, -1, 0, i64::MIN, i64::MAX] {
            for axis in [0, 1, -2] {
                harmless(&slice(start, end, axis, step));
            }
        }
    }
    refused(&slice(0, 1, i64::MAX, 1), &["Slice `the_slice`: incorrect input rank: [B, 4]"]);

    let range = |a: i64, b: i64, c: i64| {
        let operands = vec![i64_scalar("a", a), i64_scalar("b", b), i64_scalar("c", c)];
        model(vec![node("Range", &["a", "b", "c"], &["y"])], operands)
    };
    for (a, b, c) in [(0, i64::MAX, 1), (i64::MIN, i64::MAX, 1), (i64::MAX, i64::MIN, -1), (0, 1 << 40, i64::MIN)] {
        harmless(&range(a, b, c));
    }
    refused(&range(0, 1, 0), &["Range `the_range`: input or attribute has invalid value"]);

    let perm = |perm: &[i64]| model(vec![with(node("Transpose", &["x"], &["y"]), ints("perm", perm))], Vec::new());
    for bad in [&[0, 7][..], &[0, 0], &[0], &[0, 1, 2], &[-1, 0], &[i64::MAX, i64::MIN]] {
        refused(&perm(bad), &["Transpose `the_transpose`: is not a permutation of 2 axes"]);
    }

    let axis = |op: &str, inputs: &[&str], axis: i64| {
        model(vec![with(node(op, inputs, &["y"]), int("axis", axis))], vec![i64s("i", &[0])])
    };
    refused(&axis("Gather", &["x", "i"], i64::MAX), &["Gather `the_gather`: incorrect input rank"]);
    refused(&axis("Gather", &["x", "i"], 2), &["Gather `the_gather`"]);
    refused(&axis("Concat", &["x", "x"], 2), &["Concat `the_concat`: incorrect input rank: [B, 4] and [B, 4]"]);
    refused(&axis("Concat", &["x", "x", "x"], i64::MIN), &["Concat `the_concat`"]);
    refused(&axis("Flatten", &["x"], i64::MAX), &["Flatten `the_flatten`"]);
    harmless(&axis("Softmax", &["x"], i64::MAX));
    harmless(&axis("ArgMax", &["x"], i64::MAX));

    let parts = with(with(node("Split", &["x"], &["y"]), int("num_outputs", 1 << 31)), int("axis", 1));
    harmless(&model(vec![parts], Vec::new()));
    let parts = with(node("Split", &["x", "s"], &["y"]), int("axis", i64::MIN));
    refused(&model(vec![parts], vec![i64s("s", &[1 << 40, 1])]), &["Split `the_split`: incorrect input rank"]);
    let parts = with(node("Split", &["x", "s"], &["y"]), int("axis", 1));
    refused(
        &model(vec![parts], vec![i64s("s", &[-4, 8])]),
        &["Split `the_split`: makes a tensor with a dimension of -4"],
    );

    let hot = |depth: i64| {
        let mut hot =
            model(vec![node("OneHot", &["i", "d", "v"], &["y"])], vec![i64s("i", &[0]), i64_scalar("d", depth)]);
        graph_of(&mut hot).initializer.push(tensor("v", DataType::Float, &[2], &[0; 8]));
        hot
    };
    refused(&hot(-3), &["OneHot `the_onehot`: makes a tensor with a dimension of -3"]);
    harmless(&hot(i64::MAX));

    let matrices =
        model(vec![node("MatMul", &["x", "w"], &["y"])], vec![tensor("w", DataType::Float, &[5, 1], &[0; 20])]);
    refused(&matrices, &["MatMul `the_matmul`: input shapes are incompatible: [B, 4] and [5, 1]"]);
    for op in
        ["Add", "MatMul", "Gemm", "Gather", "Slice", "Range", "Where", "OneHot", "TopK", "Tile", "Split", "Squeeze"]
    {
        harmless(&model(vec![node(op, &[], &["y"])], Vec::new()));
        harmless(&model(vec![node(op, &["", "", "x"], &["y"])], Vec::new()));
    }
    let twice = model(vec![with(node("Unsqueeze", &["x"], &["y"]), ints("axes", &[0, 0, 0]))], Vec::new());
    harmless(&twice);
    let many =
        model(vec![with(node("Unsqueeze", &["x"], &["y"]), ints("axes", &(0..5000).collect::<Vec<_>>()))], Vec::new());
    harmless(&many);

    let peak = memory("VmHWM");
    println!("memory: {before} MiB before, {peak} MiB at most; {messages} panic messages");
    assert_eq!(MESSAGES.load(Ordering::SeqCst), 0, "a panic message was printed");
}
