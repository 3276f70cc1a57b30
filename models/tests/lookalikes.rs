//! What looks like a copy, a constant or a product and is not, each next to the form that is.

use std::path::Path;

use lstc_graph::load_bytes;
use lstc_graph::onnx::proto::attribute_proto::AttributeType;
use lstc_graph::onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};
use lstc_models::recognise;
use prost::Message;

/// The keys of the encoder's first self-attention, and its scores.
const KEYS: &str = "/model/encoder/block.0/layer.0/SelfAttention/k/MatMul_output_0";
const SCORES: &str = "/model/encoder/block.0/layer.0/SelfAttention/MatMul_output_0";
const PROBABILITIES: &str = "/model/encoder/block.0/layer.0/SelfAttention/Softmax_output_0";
/// The length of what is attended to, where heads are put together again.
const LENGTH: &str = "/model/encoder/block.0/layer.0/SelfAttention/Unsqueeze_10_output_0";

fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        op_type: Some(op.to_owned()),
        name: Some(format!("new {}", outputs[0])),
        input: inputs.iter().map(ToString::to_string).collect(),
        output: outputs.iter().map(ToString::to_string).collect(),
        ..NodeProto::default()
    }
}

fn with_int(mut node: NodeProto, name: &str, value: i64) -> NodeProto {
    node.attribute.push(AttributeProto {
        name: Some(name.to_owned()),
        i: Some(value),
        r#type: Some(AttributeType::Int.into()),
        ..AttributeProto::default()
    });
    node
}

/// A cast to an element type by its number in ONNX.
fn cast(x: &str, to: i64, y: &str) -> NodeProto {
    with_int(node("Cast", &[x], &[y]), "to", to)
}

const F32: i64 = 1;
const I32: i64 = 6;
const I64: i64 = 7;
const BOOL: i64 = 9;

fn f32s(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(F32 as i32),
        dims: dims.to_vec(),
        float_data: values.to_vec(),
        ..TensorProto::default()
    }
}

fn i64s(name: &str, dims: &[i64], values: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(I64 as i32),
        dims: dims.to_vec(),
        int64_data: values.to_vec(),
        ..TensorProto::default()
    }
}

/// u8 numbers.
fn u8s(name: &str, dims: &[i64], value: i32) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(2),
        dims: dims.to_vec(),
        int32_data: vec![value; dims.iter().product::<i64>() as usize],
        ..TensorProto::default()
    }
}

/// Readers of `value` read `new` instead, which these nodes make of it.
fn spliced(graph: &mut GraphProto, value: &str, new: &str, nodes: Vec<NodeProto>) {
    for input in graph.node.iter_mut().flat_map(|n| &mut n.input).filter(|i| *i == value) {
        new.clone_into(input);
    }
    graph.node.extend(nodes);
}

/// These nodes make `value` instead of the one that did, whose operands may identify them.
fn replaced(graph: &mut GraphProto, value: &str, nodes: impl FnOnce(&[String]) -> Vec<NodeProto>) {
    let at = graph.node.iter().position(|n| n.output.iter().any(|o| o == value)).expect("the case has the value");
    let old = graph.node.remove(at);
    graph.node.extend(nodes(&old.input));
}

/// Whether a model is recognised after a change; the refusals of one that is not.
fn recognised(change: impl FnOnce(&mut GraphProto)) -> Result<(), String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cases/relu_torchscript/model.onnx");
    let bytes = std::fs::read(&path).expect("the case is committed");
    let mut model = ModelProto::decode(&bytes[..]).expect("the case is a model");
    change(model.graph.as_mut().expect("the case is a model"));
    let mut graph = load_bytes(model.encode_to_vec().into(), &path).unwrap_or_else(|e| panic!("{e}"));
    recognise(&mut graph).map(|_| ()).map_err(|refused| refused.to_string())
}

fn accepts(change: impl FnOnce(&mut GraphProto)) {
    recognised(change).unwrap_or_else(|reasons| panic!("{reasons}"));
}

fn refuses(words: &str, change: impl FnOnce(&mut GraphProto)) {
    let reasons = recognised(change).expect_err("it must be refused");
    assert!(reasons.contains(words), "{words:?} is not in\n{reasons}");
}

#[test]
fn quantisation_is_undone_by_its_own_scale_and_zero_point() {
    let pair = |scale: f32, zero: i32| {
        move |graph: &mut GraphProto| {
            graph.initializer.extend([f32s("s", &[], &[0.02]), f32s("t", &[], &[scale])]);
            graph.initializer.extend([u8s("z", &[], 128), u8s("y", &[], zero)]);
            let quantise = node("QuantizeLinear", &[KEYS, "s", "z"], &["integers"]);
            spliced(graph, KEYS, "back", vec![quantise, node("DequantizeLinear", &["integers", "t", "y"], &["back"])]);
        }
    };
    accepts(pair(0.02, 128));
    refuses("`new back` is a DequantizeLinear", pair(0.03, 128));
    refuses("`new back` is a DequantizeLinear", pair(0.02, 100));
}

#[test]
fn quantisation_that_loses_the_sign_is_a_relu() {
    let pair = |value: &'static str| {
        move |graph: &mut GraphProto| {
            graph.initializer.extend([f32s("s", &[], &[0.02]), u8s("z", &[], 0)]);
            let quantise = node("QuantizeLinear", &[value, "s", "z"], &["integers"]);
            spliced(graph, value, "back", vec![quantise, node("DequantizeLinear", &["integers", "s", "z"], &["back"])]);
        }
    };
    accepts(pair(PROBABILITIES));
    refuses("`new back` is a DequantizeLinear", pair(KEYS));
}

#[test]
fn a_product_of_integers_has_the_zero_point_of_its_quantisation() {
    let product = |zero: &'static str| {
        move |graph: &mut GraphProto| {
            let dims = |name: &str| graph.initializer.iter().find(|t| t.name() == name).map(|t| t.dims.clone());
            let made = graph.node.iter().find(|n| n.output[0] == KEYS).expect("the case has the value");
            let dims = dims(&made.input[1]).expect("its second operand is a matrix");
            graph.initializer.extend([u8s("w", &dims, 7), f32s("t", &[], &[0.01]), u8s("other", &[], 100)]);
            replaced(graph, KEYS, |operands| {
                vec![
                    node("DynamicQuantizeLinear", &[&operands[0]], &["q", "s", "z"]),
                    node("MatMulInteger", &["q", "w", zero], &["sums"]),
                    cast("sums", F32, "floats"),
                    node("Mul", &["s", "t"], &["scales"]),
                    node("Mul", &["floats", "scales"], &[KEYS]),
                ]
            });
        }
    };
    accepts(product("z"));
    refuses("is a Mul, where a MatMul was expected", product("other"));
    refuses("is a Mul, where a MatMul was expected", product(""));
}

#[test]
fn a_guard_lies_on_the_far_side() {
    let guard = |op: &'static str, bound: f32| {
        move |graph: &mut GraphProto| {
            graph.initializer.push(f32s("bound", &[], &[bound]));
            spliced(graph, KEYS, "guarded", vec![node(op, &[KEYS, "bound"], &["guarded"])]);
        }
    };
    accepts(guard("Min", 65504.0));
    accepts(guard("Max", -65504.0));
    refuses("is a Min", guard("Min", -65504.0));
    refuses("is a Max", guard("Max", 65504.0));
}

#[test]
fn a_slice_whose_steps_are_not_known_is_no_copy() {
    let slice = |nodes: Vec<NodeProto>| {
        |graph: &mut GraphProto| {
            graph.initializer.extend([i64s("first", &[1], &[0]), i64s("last", &[1], &[i64::MAX])]);
            graph.initializer.extend([i64s("axis", &[1], &[1]), i64s("one", &[1], &[1])]);
            graph.initializer.push(f32s("two", &[1], &[2.0]));
            let mut nodes = nodes;
            nodes.push(node("Slice", &[KEYS, "first", "last", "axis", "steps"], &["slice"]));
            spliced(graph, KEYS, "slice", nodes);
        }
    };
    accepts(slice(vec![node("Identity", &["one"], &["steps"])]));
    refuses("is a Slice", slice(vec![cast("two", I64, "steps")]));
}

#[test]
fn casts_that_change_a_number_make_another_one() {
    let scaled = |nodes: Vec<NodeProto>| {
        |graph: &mut GraphProto| {
            graph.initializer.extend([f32s("1.5", &[], &[1.5]), i64s("5", &[], &[5]), i64s("2", &[], &[2])]);
            graph.initializer.push(i64s("2^32 + 5", &[], &[(1 << 32) + 5]));
            let mut nodes = nodes;
            nodes.push(node("Mul", &[SCORES, "factor"], &["scaled"]));
            spliced(graph, SCORES, "scaled", nodes);
        }
    };
    let reason = "scales the scores by something that is not constant";
    accepts(scaled(vec![cast("5", I32, "narrow"), cast("narrow", F32, "factor")]));
    refuses(reason, scaled(vec![cast("2^32 + 5", I32, "narrow"), cast("narrow", F32, "factor")]));
    refuses(reason, scaled(vec![cast("5", BOOL, "true"), cast("true", F32, "factor")]));
    refuses(reason, scaled(vec![cast("1.5", I64, "whole"), cast("whole", F32, "factor")]));
    refuses(reason, scaled(vec![node("Div", &["5", "2"], &["whole"]), cast("whole", F32, "factor")]));
}

#[test]
fn a_split_has_sizes_that_are_known() {
    let split = |nodes: Vec<NodeProto>, sizes: &'static [&'static str]| {
        move |graph: &mut GraphProto| {
            let width =
                graph.initializer.iter().find(|t| t.name() == "onnx::MatMul_892").expect("the case has it").dims[1];
            graph.initializer.extend([i64s("sizes", &[1], &[width]), f32s("float sizes", &[1], &[width as f32])]);
            let operands: Vec<&str> = [KEYS].iter().chain(sizes).copied().collect();
            let mut nodes = nodes;
            nodes.push(with_int(node("Split", &operands, &["part"]), "axis", -1));
            spliced(graph, KEYS, "part", nodes);
        }
    };
    accepts(split(vec![], &[]));
    accepts(split(vec![], &["sizes"]));
    refuses("of constant sizes", split(vec![cast("float sizes", I64, "unknown")], &["unknown"]));
}

#[test]
fn exponentials_of_rounded_numbers_are_no_softmax() {
    let softmax = |rounded: bool| {
        move |graph: &mut GraphProto| {
            let minus_one = AttributeProto {
                name: Some("axes".to_owned()),
                ints: vec![-1],
                r#type: Some(AttributeType::Ints.into()),
                ..AttributeProto::default()
            };
            graph.initializer.push(i64s("last axis", &[1], &[-1]));
            replaced(graph, PROBABILITIES, |operands| {
                let x = &operands[0];
                let largest = NodeProto { attribute: vec![minus_one], ..node("ReduceMax", &[x], &["largest"]) };
                let between = if rounded { I32 } else { 10 };
                vec![
                    largest,
                    node("Sub", &[x, "largest"], &["below"]),
                    cast("below", between, "between"),
                    cast("between", F32, "power"),
                    node("Exp", &["power"], &["exponential"]),
                    node("ReduceSum", &["exponential", "last axis"], &["sum"]),
                    node("Div", &["exponential", "sum"], &[PROBABILITIES]),
                ]
            });
        }
    };
    accepts(softmax(false));
    refuses("not of self-attention", softmax(true));
}

#[test]
fn a_norm_has_a_weight_for_each_feature() {
    refuses("a norm weighs 1 features of a stream that is", |graph| {
        let mul = "/model/encoder/block.0/layer.0/layer_norm/Mul_1_output_0";
        let norm = graph.node.iter_mut().find(|n| n.output[0] == mul).expect("the case has the norm");
        let weights: Vec<&str> = graph.initializer.iter().map(TensorProto::name).collect();
        let slot = norm.input.iter().position(|i| weights.contains(&i.as_str())).expect("one operand is the weight");
        norm.input[slot] = "one for all".to_owned();
        graph.initializer.push(f32s("one for all", &[1], &[1.5]));
    });
}

#[test]
fn a_node_that_onnx_does_not_allow_is_refused() {
    fn first<'g>(graph: &'g mut GraphProto, op: &str) -> &'g mut NodeProto {
        graph.node.iter_mut().find(|n| n.op_type() == op).expect("the case has one")
    }
    let third = recognised(|graph| {
        let product = first(graph, "MatMul");
        let again = product.input[0].clone();
        product.input.push(again);
    });
    assert!(third.is_err_and(|e| e.contains("has 3 operands, but MatMul takes at most 2")));
    let unknown = recognised(|graph| {
        let relu = first(graph, "Relu");
        *relu = with_int(relu.clone(), "slope", 2);
    });
    assert!(unknown.is_err_and(|e| e.contains("has an attribute `slope`, which Relu does not have")));
}

#[test]
fn who_reads_a_type_or_a_shape_alone_reads_no_numbers() {
    let least = |x: &str| with_int(node("ReduceMin", &[x], &["least"]), "keepdims", 0);
    // Scores times the root of a one, or of the least key.
    let scaled = |x: &'static str, like: &'static str| {
        move |graph: &mut GraphProto| {
            graph.initializer.push(f32s("one", &[], &[1.0]));
            let factor = [least(KEYS), node("CastLike", &[x, like], &["cast"]), node("Sqrt", &["cast"], &["factor"])];
            let product = node("Mul", &[SCORES, "factor"], &["scaled"]);
            spliced(graph, SCORES, "scaled", factor.into_iter().chain([product]).collect());
        }
    };
    accepts(scaled("one", KEYS));
    accepts(scaled("one", "least"));
    refuses("scales the scores by something that is not constant", scaled("least", "one"));

    // The length that heads are laid out by, and a zero that is made of probabilities.
    let laid_out = |zero: Vec<NodeProto>| {
        move |graph: &mut GraphProto| {
            let sum = node("Add", &[LENGTH, "zero"], &["sum"]);
            spliced(graph, LENGTH, "sum", zero.into_iter().chain([sum]).collect());
        }
    };
    accepts(laid_out(vec![node("Size", &[PROBABILITIES], &["size"]), node("Sub", &["size", "size"], &["zero"])]));
    let words = "is also read by the ReduceMin `new least`, which is not part of the model";
    refuses(words, laid_out(vec![least(PROBABILITIES), cast("least", I64, "zero")]));
}
