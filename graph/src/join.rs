//! One graph of two, in which inputs of the second are values of the first.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::dtype::DType;
use crate::ir::{Graph, Node, NodeId, Source, Value, ValueId};
use crate::weight::Weight;

/// Joins two graphs. Each pair of `wires` is an input of `second` and the value of `first` that it becomes. Outputs are
/// those of the second; large weights that both hold are one in the result, by content.
///
/// # Errors
/// Graphs of different opsets; an input of the second whose name the first has too; shapes that do not fit.
pub fn join(first: Graph, second: &Graph, wires: &[(ValueId, ValueId)]) -> Result<Graph, String> {
    let mut joined = first;
    for (domain, version) in &second.opsets {
        match joined.opsets.iter().find(|(d, _)| d == domain) {
            Some((_, other)) if other != version => {
                let domain = if domain.is_empty() { "ai.onnx" } else { domain };
                return Err(format!("are of versions {other} and {version} of the operator set {domain}"));
            }
            Some(_) => {}
            None => joined.opsets.push((domain.clone(), *version)),
        }
    }
    joined.ir_version = joined.ir_version.max(second.ir_version);
    joined.functions.extend(second.functions.iter().cloned());
    let first_values = joined.values.len();
    let offset = joined.nodes.len() as u32;
    let mut place: HashMap<ValueId, ValueId> = wires.iter().copied().collect();
    for id in second.value_ids().filter(|v| !place.contains_key(v)).collect::<Vec<_>>() {
        let Value { name, source, dtype, fact } = second.value(id).clone();
        if matches!(source, Source::Input(_)) && joined.find(&name).is_some() {
            return Err(format!("both have a value `{name}`, which is an input of the second"));
        }
        let source = match source {
            Source::Node(NodeId(node), slot) => Source::Node(NodeId(node + offset), slot),
            other => other,
        };
        place.insert(id, joined.add_value(&name, source, dtype, fact));
    }
    let moved = |values: &[Option<ValueId>]| values.iter().map(|v| v.map(|v| place[&v])).collect();
    let mut names: HashSet<String> = joined.nodes.iter().flatten().map(|n| n.name.clone()).collect();
    for node in &second.nodes {
        joined.nodes.push(node.as_ref().map(|node| Node {
            name: unused(&node.name, &mut names),
            inputs: moved(&node.inputs),
            outputs: moved(&node.outputs),
            ..node.clone()
        }));
    }
    let kept = second.inputs.iter().filter(|v| !wires.iter().any(|(input, _)| input == *v));
    joined.inputs.extend(kept.map(|v| place[v]));
    joined.outputs = second.outputs.iter().map(|v| place[v]).collect();
    joined.next_symbol = joined.next_symbol.max(second.next_symbol);
    share(&mut joined, first_values);
    joined.infer().map_err(|(node, reason)| format!("do not fit: `{}` {reason}", joined.node(node).name))?;
    Ok(joined)
}

/// A node's name, or the same with a number where another node has it: ONNX Runtime refuses two of one name.
fn unused(name: &str, names: &mut HashSet<String>) -> String {
    let mut free = name.to_owned();
    let mut count = 0;
    while !names.insert(free.clone()) {
        count += 1;
        free = format!("{name}_{count}");
    }
    free
}

/// Weights below this size are not worth a comparison.
const MIN_SHARED: usize = 1024;

/// Readers of a weight at or behind `boundary` read an equal one before it instead, where there is one.
fn share(graph: &mut Graph, boundary: usize) {
    let large = |v: &ValueId| graph.weight(*v).is_some_and(|w| w.bytes().len() >= MIN_SHARED);
    let (before, behind): (Vec<ValueId>, Vec<ValueId>) =
        graph.value_ids().filter(large).partition(|v| v.index() < boundary);
    let mut known: HashMap<(DType, Vec<usize>, u64), Vec<ValueId>> = HashMap::new();
    let key = |graph: &Graph, v: ValueId| {
        let weight = graph.weight(v).expect("large weights were taken");
        (weight.dtype(), weight.dims().to_vec(), fingerprint(weight))
    };
    for value in before {
        known.entry(key(graph, value)).or_default().push(value);
    }
    for value in behind {
        let candidates = known.get(&key(graph, value)).cloned().unwrap_or_default();
        let equal = candidates.into_iter().find(|c| graph.weight(*c) == graph.weight(value));
        if let Some(equal) = equal {
            graph.redirect(value, equal);
        }
        // What was compared need not stay in memory.
        [Some(value), equal].iter().flatten().filter_map(|v| graph.weight(*v)).for_each(Weight::release);
    }
}

/// A hash of some of a weight's bytes: what tells most unequal weights apart without reading them.
fn fingerprint(weight: &Weight) -> u64 {
    const PIECES: usize = 16;
    const PIECE: usize = 64;
    let bytes = weight.bytes();
    let mut hasher = DefaultHasher::new();
    for piece in 0..PIECES {
        let at = (bytes.len() - PIECE.min(bytes.len())) / PIECES * piece;
        bytes[at..(at + PIECE).min(bytes.len())].hash(&mut hasher);
    }
    hasher.finish()
}
