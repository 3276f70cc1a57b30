//! Graphs in double precision: the side network, loss and gradient after the cut, on the backbone's own f32 values.
//!
//! In f64 a finite difference has steps too short for the kinks of ReLU to matter, and rounding too small to hide a
//! wrong gradient.

use lstc_graph::{Builder, DType, Graph, NodeId, Origin, Source, ValueId, Weight};
use lstc_passes::quantise::QUANTISE;

/// Operators without an f64 kernel on the CPU; they stay in f32 between casts. `OneHot` makes zeros and ones, which
/// are the same in both, and `DequantizeLinear` makes values that are rounded once and for all.
const NARROW: [&str; 3] = ["DequantizeLinear", "Erf", "OneHot"];

/// Larger constants are cast when the graph runs, not copied into it.
const MAX_CONSTANT: usize = 1024;

/// True if nothing in a widened graph rounds to f32.
pub fn is_exact(graph: &Graph) -> bool {
    !new_nodes(graph).iter().any(|id| graph.node(*id).is("Erf"))
}

fn new_nodes(graph: &Graph) -> Vec<NodeId> {
    let is_new = |id: &NodeId| ![Origin::SOURCE, QUANTISE].contains(&graph.node(*id).origin);
    graph.node_ids().filter(is_new).collect()
}

/// The graph with every new node in f64. Parameters become f64 inputs; f32 values of the backbone are cast where new
/// nodes read them.
pub fn widen(graph: &Graph) -> Graph {
    let mut wide = graph.clone();
    let nodes = new_nodes(graph);
    let is_f32 = |v: ValueId| graph.value(v).dtype == Some(DType::F32);
    let made_new: Vec<bool> = {
        let mut made = vec![false; graph.values()];
        nodes.iter().flat_map(|id| graph.node(*id).outputs.iter().flatten()).for_each(|v| made[v.index()] = true);
        made
    };
    for input in graph.inputs.iter().filter(|v| graph.value(**v).is_trainable()) {
        wide.set_dtype(*input, DType::F64);
    }
    for value in graph.value_ids().filter(|v| made_new[v.index()] && is_f32(*v)) {
        wide.set_dtype(value, DType::F64);
    }
    for id in nodes {
        let node = graph.node(id);
        let narrow = NARROW.contains(&node.op.as_str());
        for (slot, input) in node.inputs.iter().enumerate() {
            let Some(input) = input.filter(|v| is_f32(*v)) else { continue };
            let is_wide = made_new[input.index()] || graph.value(input).is_trainable();
            if is_wide == narrow {
                let b = Builder::new(&mut wide, Origin::pass("verify"));
                let wanted = if narrow { DType::F32 } else { DType::F64 };
                let value = match &graph.value(input).source {
                    Source::Weight(weight) if weight.elements() <= MAX_CONSTANT => b.constant(to_f64(weight)),
                    _ => b.cast(input, wanted),
                };
                wide.reconnect(id, slot, value);
            }
        }
        let outputs: Vec<ValueId> = node.outputs.iter().flatten().copied().filter(|v| is_f32(*v)).collect();
        if narrow {
            for output in outputs {
                wide.set_dtype(output, DType::F32);
                let b = Builder::new(&mut wide, Origin::pass("verify"));
                let value = b.cast(output, DType::F64);
                wide.redirect(output, value);
            }
        } else if node.is("Cast") && node.attributes.get_int("to") == Some(DType::F32.onnx().into()) {
            wide.set_attribute(id, "to", lstc_graph::Attribute::Int(DType::F64.onnx().into()));
        }
    }
    wide
}

fn to_f64(weight: &Weight) -> Weight {
    let values = weight.to_f32().unwrap_or_default();
    let bytes: Vec<u8> = values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect();
    Weight::new(DType::F64, weight.dims().to_vec(), bytes.into(), None).expect("as many elements as before")
}
