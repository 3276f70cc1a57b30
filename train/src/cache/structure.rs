//! What decides a value of a graph, as a hash: the operators, attributes and constants that it is computed from, whatever
//! the names of the nodes and values between.
//!
//! ```text
//! hash(input) = H(name)   hash(weight) = H(type, dims, bytes)   hash(value) = H(operator, attributes, output, hash(operands))
//! ```
//!
//! A weight of many bytes counts by its name instead: its bytes are those of the source model, which a manifest names by its
//! own hash, or follow from them.

use std::collections::{BTreeMap, HashMap};

use anyhow::anyhow;
use blake3::{Hash, Hasher};
use lstc_graph::{Attribute, Graph, NodeId, Source, ValueId, Weight};

/// The most bytes of a weight that counts by its bytes: those of the largest folded constant.
const SMALL: usize = 256 << 10;

/// The hash of each output of a graph.
///
/// # Errors
/// A graph with a cycle.
pub fn fingerprints(graph: &Graph) -> anyhow::Result<Vec<Hash>> {
    let order = graph.order().map_err(|id| anyhow!("`{}` depends on itself", graph.node(id).name))?;
    let mut known: HashMap<ValueId, Hash> = HashMap::new();
    for id in order {
        let node = graph.node(id);
        for operand in node.inputs.iter().flatten() {
            if !known.contains_key(operand) {
                known.insert(*operand, leaf(graph, *operand));
            }
        }
        for (slot, output) in node.outputs.iter().enumerate() {
            if let Some(output) = output {
                known.insert(*output, computed(graph, id, slot, &known));
            }
        }
    }
    Ok(graph.outputs.iter().map(|value| known.get(value).copied().unwrap_or_else(|| leaf(graph, *value))).collect())
}

/// A value that no node computes.
fn leaf(graph: &Graph, value: ValueId) -> Hash {
    let value = graph.value(value);
    let mut hasher = Hasher::new();
    match &value.source {
        Source::Weight(weight) => {
            put(&mut hasher, b"weight");
            put_weight(&mut hasher, weight);
            if weight.bytes().len() > SMALL {
                put(&mut hasher, value.name.as_bytes());
            }
        }
        _ => {
            put(&mut hasher, b"input");
            put(&mut hasher, value.name.as_bytes());
        }
    }
    hasher.finalize()
}

fn computed(graph: &Graph, id: NodeId, slot: usize, known: &HashMap<ValueId, Hash>) -> Hash {
    let node = graph.node(id);
    let mut hasher = Hasher::new();
    put(&mut hasher, node.kind().as_bytes());
    for (name, attribute) in node.attributes.iter() {
        put(&mut hasher, name.as_bytes());
        match attribute {
            Attribute::Tensor(weight) => put_weight(&mut hasher, weight),
            other => put(&mut hasher, format!("{other:?}").as_bytes()),
        }
    }
    put(&mut hasher, &(slot as u64).to_le_bytes());
    for operand in &node.inputs {
        let hash = operand.and_then(|operand| known.get(&operand));
        put(&mut hasher, hash.map_or(&b""[..], |hash| &hash.as_bytes()[..]));
    }
    hasher.finalize()
}

/// The type and shape of a weight, and its bytes where they are few.
fn put_weight(hasher: &mut Hasher, weight: &Weight) {
    put(hasher, format!("{:?} {:?}", weight.dtype(), weight.dims()).as_bytes());
    if weight.bytes().len() <= SMALL {
        put(hasher, weight.bytes());
        weight.release();
    }
}

/// A part with its length, so that no two lists of parts hash alike.
fn put(hasher: &mut Hasher, part: &[u8]) {
    hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
}

/// How many products a graph has of each operator and matrix type, as in `MatMul f32`; this distinguishes precisions.
pub fn products(graph: &Graph) -> BTreeMap<String, usize> {
    let mut products = BTreeMap::new();
    for id in graph.node_ids() {
        let node = graph.node(id);
        if node.op == "Gemm" || node.op.contains("MatMul") {
            let matrix = node.input(1).and_then(|v| graph.value(v).dtype).map_or_else(String::new, |d| format!(" {d}"));
            *products.entry(format!("{}{matrix}", node.kind())).or_default() += 1;
        }
    }
    products
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(text: &str) -> Vec<Hash> {
        let graph = lstc_graph::parse(text, 17).expect("a graph");
        fingerprints(&graph).expect("no cycle")
    }

    #[test]
    fn names_between_do_not_count_and_everything_else_does() {
        let one = hashes("(x: f32[B, 4]) { y = Softmax<axis=-1>(x)\n z = Add(y, x) }");
        assert_eq!(one, hashes("(x: f32[B, 4]) { a = Softmax<axis=-1>(x)\n z = Add(a, x) }"));
        for other in [
            "(x: f32[B, 4]) { y = Softmax<axis=0>(x)\n z = Add(y, x) }",
            "(x: f32[B, 4]) { y = Softmax<axis=-1>(x)\n z = Add(x, y) }",
            "(x: f32[B, 4]) { y = Softmax<axis=-1>(x)\n z = Mul(y, x) }",
            "(w: f32[B, 4]) { y = Softmax<axis=-1>(w)\n z = Add(y, w) }",
        ] {
            assert_ne!(one, hashes(other), "{other}");
        }
    }
}
