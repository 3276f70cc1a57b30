//! Mutants of a model, by its nodes, values, constants and interface.

use lstc_graph::onnx::proto::attribute_proto::AttributeType;
use lstc_graph::onnx::proto::tensor_proto::{DataLocation, DataType};
use lstc_graph::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use lstc_graph::onnx::proto::type_proto::Value;
use lstc_graph::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
};

use super::chance::Chance;

type Change = fn(&mut ModelProto, &mut GraphProto, &mut Chance);

const CHANGES: [Change; 30] = [
    // Nodes.
    |_, graph, chance| {
        let (a, b) = (chance.below(graph.node.len()), chance.below(graph.node.len()));
        graph.node.swap(a, b);
    },
    |_, graph, chance| drop(graph.node.remove(chance.below(graph.node.len()))),
    |_, graph, chance| {
        let mut copy = chance.one(&graph.node).unwrap_or_default();
        copy.output.iter_mut().for_each(|output| output.push_str("_copy"));
        graph.node.insert(chance.below(graph.node.len()), copy);
    },
    |_, graph, chance| graph.node.extend(chance.one(&graph.node)),
    |_, graph, chance| node(graph, chance).op_type = Some(operator(chance)),
    |_, graph, chance| {
        let domain = chance.one(&["", "ai.onnx", "com.microsoft", "ai.onnx.ml", "nowhere"]).unwrap_or_default();
        node(graph, chance).domain = Some(domain.to_owned());
    },
    |_, graph, chance| node(graph, chance).name = Some("same".to_owned()),
    // What nodes read and make.
    rewired,
    rewired,
    |_, graph, chance| {
        let (other, own) = (input(graph, chance), chance.below(4));
        if let Some(place) = node(graph, chance).input.get_mut(own) {
            *place = other;
        }
    },
    |_, graph, chance| node(graph, chance).input.reverse(),
    |_, graph, chance| drop(node(graph, chance).input.pop()),
    |_, graph, chance| {
        let other = value(graph, chance);
        node(graph, chance).input.push(other);
    },
    |_, graph, chance| {
        let node = node(graph, chance);
        if let Some(input) = chance.one_of(&mut node.input) {
            input.clear();
        }
    },
    |_, graph, chance| {
        let other = value(graph, chance);
        let node = node(graph, chance);
        if let Some(output) = chance.one_of(&mut node.output) {
            *output = other;
        }
    },
    |_, graph, chance| node(graph, chance).output.push("another".to_owned()),
    // Attributes.
    |_, graph, chance| attribute(graph, chance, |all, at, _| drop(all.remove(at))),
    |_, graph, chance| attribute(graph, chance, |all, at, _| all.push(all[at].clone())),
    |_, graph, chance| attribute(graph, chance, |all, at, chance| changed(&mut all[at], chance)),
    |_, graph, chance| attribute(graph, chance, |all, at, chance| changed(&mut all[at], chance)),
    |_, graph, chance| attribute(graph, chance, |all, at, chance| all[at].r#type = Some(chance.below(15) as i32)),
    |_, graph, chance| {
        let added = added(chance);
        node(graph, chance).attribute.push(added);
    },
    // Constants.
    |_, graph, chance| constant(graph, chance, reshaped),
    |_, graph, chance| constant(graph, chance, |tensor, chance| tensor.data_type = Some(chance.below(18) as i32)),
    |_, graph, chance| constant(graph, chance, revalued),
    |_, graph, chance| constant(graph, chance, replaced),
    |_, graph, chance| drop(graph.initializer.remove(chance.below(graph.initializer.len()))),
    |_, graph, chance| graph.initializer.extend(chance.one(&graph.initializer)),
    // The interface.
    interface,
    |model, _, chance| match chance.below(4) {
        0 => model.ir_version = Some(chance.odd()),
        1 => drop(model.opset_import.pop()),
        2 => model.opset_import.push(OperatorSetIdProto { domain: Some(String::new()), version: Some(chance.odd()) }),
        _ => model.opset_import.iter_mut().for_each(|set| set.version = Some(1 + chance.below(30) as i64)),
    },
];

/// A model with one change, or a few.
pub fn mutant(model: &ModelProto, seed: u64) -> ModelProto {
    let mut chance = Chance::new(seed);
    let mut mutant = model.clone();
    let mut graph = mutant.graph.take().unwrap_or_default();
    let changes = if chance.once_in(4) { 2 + chance.below(3) } else { 1 };
    for _ in 0..changes {
        if graph.node.is_empty() || graph.initializer.is_empty() {
            break;
        }
        CHANGES[chance.below(CHANGES.len())](&mut mutant, &mut graph, &mut chance);
    }
    mutant.graph = Some(graph);
    mutant
}

fn node<'g>(graph: &'g mut GraphProto, chance: &mut Chance) -> &'g mut NodeProto {
    let at = chance.below(graph.node.len());
    &mut graph.node[at]
}

/// The name of any value.
fn value(graph: &GraphProto, chance: &mut Chance) -> String {
    let made = graph.node.iter().flat_map(|node| &node.output);
    let given = graph.input.iter().map(ValueInfoProto::name).chain(graph.initializer.iter().map(TensorProto::name));
    let all: Vec<&str> = made.map(String::as_str).chain(given).collect();
    chance.one(&all).unwrap_or_default().to_owned()
}

/// The name of a value that a node reads.
fn input(graph: &GraphProto, chance: &mut Chance) -> String {
    let node = chance.one(&graph.node).unwrap_or_default();
    chance.one(&node.input).unwrap_or_default()
}

/// A node reads a value that is made just before or just after it.
fn rewired(_: &mut ModelProto, graph: &mut GraphProto, chance: &mut Chance) {
    let at = chance.below(graph.node.len());
    let near = (at + chance.below(40)).saturating_sub(20).min(graph.node.len() - 1);
    let made = chance.one(&graph.node[near].output).unwrap_or_default();
    if let Some(input) = chance.one_of(&mut graph.node[at].input) {
        *input = made;
    }
}

fn operator(chance: &mut Chance) -> String {
    const OPERATORS: [&str; 40] = [
        "Abs",
        "Add",
        "And",
        "ArgMax",
        "Cast",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "CumSum",
        "Div",
        "Dropout",
        "Equal",
        "Erf",
        "Expand",
        "Flatten",
        "Gather",
        "GatherND",
        "Gemm",
        "Identity",
        "If",
        "LayerNormalization",
        "Less",
        "Log",
        "Loop",
        "MatMul",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Pow",
        "Range",
        "ReduceMean",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Slice",
        "Softmax",
        "Sub",
        "Transpose",
        "Where",
    ];
    chance.one(&OPERATORS).unwrap_or_default().to_owned()
}

/// Changes the attributes of a node that has some.
fn attribute(
    graph: &mut GraphProto,
    chance: &mut Chance,
    change: impl FnOnce(&mut Vec<AttributeProto>, usize, &mut Chance),
) {
    let mut some: Vec<_> = graph.node.iter_mut().filter(|node| !node.attribute.is_empty()).collect();
    if let Some(node) = chance.one_of(&mut some) {
        let at = chance.below(node.attribute.len());
        change(&mut node.attribute, at, chance);
    }
}

fn changed(attribute: &mut AttributeProto, chance: &mut Chance) {
    let odd = chance.odd();
    attribute.i = attribute.i.map(|_| odd);
    attribute.f =
        attribute.f.map(|f| chance.one(&[f * 2.0, -f, 0.0, f32::NAN, f32::INFINITY, odd as f32]).unwrap_or(f));
    attribute.s = attribute.s.take().map(|_| "odd".into());
    match chance.below(3) {
        0 => attribute.ints.reverse(),
        1 => attribute.ints.extend((!attribute.ints.is_empty()).then_some(odd)),
        _ => chance.one_of(&mut attribute.ints).into_iter().for_each(|place| *place = odd),
    }
    attribute.t.iter_mut().for_each(|tensor| revalued(tensor, chance));
}

fn added(chance: &mut Chance) -> AttributeProto {
    const NAMES: [&str; 14] = [
        "allowzero",
        "alpha",
        "axes",
        "axis",
        "beta",
        "epsilon",
        "exclusive",
        "keepdims",
        "noop_with_empty_axes",
        "perm",
        "to",
        "transA",
        "transB",
        "value",
    ];
    let name = chance.one(&NAMES).map(str::to_owned);
    let attribute = AttributeProto { name, ..AttributeProto::default() };
    match chance.below(4) {
        0 => AttributeProto { f: Some(chance.odd() as f32), r#type: Some(AttributeType::Float.into()), ..attribute },
        1 => AttributeProto {
            ints: (0..chance.below(5)).map(|_| chance.odd()).collect(),
            r#type: Some(AttributeType::Ints.into()),
            ..attribute
        },
        2 => AttributeProto { s: Some("odd".into()), r#type: Some(AttributeType::String.into()), ..attribute },
        _ => AttributeProto { i: Some(chance.odd()), r#type: Some(AttributeType::Int.into()), ..attribute },
    }
}

/// Changes an initializer, or the value of a node that is a constant.
fn constant(graph: &mut GraphProto, chance: &mut Chance, change: impl FnOnce(&mut TensorProto, &mut Chance)) {
    let inline =
        graph.node.iter_mut().flat_map(|node| &mut node.attribute).filter_map(|attribute| attribute.t.as_mut());
    let mut all: Vec<&mut TensorProto> = graph.initializer.iter_mut().chain(inline).collect();
    // Most are matrices, and most of what is decided by numbers is decided by few.
    if !chance.once_in(3) {
        all.retain(|tensor| tensor.raw_data().len() <= 64);
    }
    if let Some(tensor) = chance.one_of(&mut all) {
        change(tensor, chance);
    }
}

fn reshaped(tensor: &mut TensorProto, chance: &mut Chance) {
    match chance.below(5) {
        0 => tensor.dims.reverse(),
        1 => tensor.dims.clear(),
        2 => tensor.dims.push(chance.one(&[0, 1, i64::MAX]).unwrap_or(1)),
        3 => tensor.dims = vec![tensor.dims.iter().fold(1, |all: i64, dim| all.saturating_mul(*dim))],
        _ => {
            let odd = chance.odd();
            chance.one_of(&mut tensor.dims).into_iter().for_each(|dim| *dim = odd);
        }
    }
}

/// Sets an element, or all of them.
fn revalued(tensor: &mut TensorProto, chance: &mut Chance) {
    let odd = chance.odd();
    let float = chance.one(&[0.0, -1.0, 0.5, 2.0, 1e-45, 3e38, -3e38, f32::INFINITY, f32::NAN]).unwrap_or_default();
    let element = match tensor.data_type() {
        code if code == DataType::Int64 as i32 => odd.to_le_bytes().to_vec(),
        code if code == DataType::Float as i32 => float.to_le_bytes().to_vec(),
        code if code == DataType::Int32 as i32 => (odd as i32).to_le_bytes().to_vec(),
        _ => vec![odd as u8],
    };
    let mut bytes = tensor.raw_data().to_vec();
    let at = chance.below(bytes.len() / element.len());
    let all = chance.once_in(4);
    for (index, place) in bytes.chunks_exact_mut(element.len()).enumerate() {
        if all || index == at {
            place.copy_from_slice(&element);
        }
    }
    if tensor.raw_data.is_some() {
        tensor.raw_data = Some(bytes.into());
    }
}

/// Moves the numbers of a tensor elsewhere.
fn replaced(tensor: &mut TensorProto, chance: &mut Chance) {
    match chance.below(5) {
        0 => (tensor.dims, tensor.raw_data) = (vec![i32::MAX.into(), 0], Some(Vec::new().into())),
        4 => tensor.raw_data = None,
        1 => tensor.int64_data.push(chance.odd()),
        2 => tensor.data_location = Some(DataLocation::External.into()),
        _ => match chance.one_of(&mut tensor.external_data) {
            Some(entry) => entry.value = Some(chance.odd().to_string()),
            None => tensor.float_data.push(1.0),
        },
    }
}

/// Changes an input, an output, or what is declared of a value.
fn interface(_: &mut ModelProto, graph: &mut GraphProto, chance: &mut Chance) {
    let name = value(graph, chance);
    let list = match chance.below(3) {
        0 => &mut graph.input,
        1 => &mut graph.output,
        _ => &mut graph.value_info,
    };
    if list.is_empty() {
        return;
    }
    let at = chance.below(list.len());
    match chance.below(7) {
        0 => drop(list.remove(at)),
        1 => list.push(list[at].clone()),
        2 => list.push(ValueInfoProto { name: Some("another".to_owned()), ..list[at].clone() }),
        3 => list[at].name = Some(name),
        4 => list[at].r#type = None,
        5 => list.reverse(),
        _ => declared(&mut list[at], chance),
    }
}

/// Changes the declared type of a value.
fn declared(info: &mut ValueInfoProto, chance: &mut Chance) {
    let Some(Value::TensorType(tensor)) = info.r#type.as_mut().and_then(|declared| declared.value.as_mut()) else {
        return;
    };
    let Some(shape) = tensor.shape.as_mut().filter(|_| !chance.once_in(4)) else {
        tensor.elem_type = Some(chance.below(18) as i32);
        return;
    };
    let dimension = |value| Dimension { value: Some(value), ..Dimension::default() };
    let fixed = dimension(dimension::Value::DimValue(chance.odd()));
    match chance.below(5) {
        0 => shape.dim.push(fixed),
        1 => drop(shape.dim.pop()),
        2 => shape.dim.reverse(),
        3 => shape.dim.fill(dimension(dimension::Value::DimParam("same".to_owned()))),
        _ => chance.one_of(&mut shape.dim).into_iter().for_each(|dim| *dim = fixed.clone()),
    }
}
