//! The backbone's products with constant matrices, found by how they are computed.

use std::collections::{HashMap, HashSet};

use lstc_graph::{Graph, MICROSOFT, NodeId, ValueId};
use lstc_models::{Anatomy, Orientation};

/// `y = x W`, W constant.
#[derive(Clone, Debug)]
pub struct Product {
    pub node: NodeId,
    pub x: ValueId,
    pub y: ValueId,
    /// The constant that the second operand is, or is a transposed or cast copy of.
    pub weight: ValueId,
    pub orientation: Orientation,
}

/// The products of a backbone.
#[derive(Clone, Debug, Default)]
pub struct Products {
    /// Products of floats with a constant matrix, in the order of the graph.
    pub plain: Vec<Product>,
    /// How many others there are with a constant: fused, or quantised already.
    pub others: usize,
}

/// Operators that multiply by a matrix, and the operand that it is.
const PLAIN: (&str, usize) = ("MatMul", 1);
const OTHERS: [(&str, usize); 3] = [("Gemm", 1), ("MatMulInteger", 1), ("QLinearMatMul", 3)];
const FUSED: [(&str, usize); 4] =
    [("DynamicQuantizeMatMul", 1), ("FusedMatMul", 1), ("MatMulIntegerToFloat", 1), ("MatMulNBits", 1)];

/// The products that the towers are computed by: all of the backbone's but the LM head, or with it.
pub fn products(graph: &Graph, anatomy: &Anatomy, with_head: bool) -> Products {
    let outputs = anatomy.towers.iter().flat_map(|t| t.blocks.iter().map(|b| b.output).chain([t.output]));
    let towers = graph.ancestors(outputs.chain(with_head.then_some(anatomy.head.logits)));
    let mut found = Products::default();
    for id in graph.node_ids().filter(|id| towers.contains(id)) {
        let node = graph.node(id);
        let slot = |list: &[(&str, usize)]| list.iter().find(|(op, _)| node.op == *op).map(|(_, slot)| *slot);
        let other = match node.domain.as_str() {
            MICROSOFT => slot(&FUSED),
            _ if node.is_default_domain() => slot(&OTHERS),
            _ => None,
        };
        if let Some(matrix) = other.and_then(|slot| node.input(slot)) {
            found.others += usize::from(constant(graph, matrix, true).is_some());
        } else if node.is(PLAIN.0)
            && let (Some(x), Some(w), Some(y)) = (node.input(0), node.input(PLAIN.1), node.output(0))
            && !is_constant(graph, x)
        {
            match constant(graph, w, false) {
                Some((weight, orientation)) => found.plain.push(Product { node: id, x, y, weight, orientation }),
                None => found.others += usize::from(constant(graph, w, true).is_some()),
            }
        }
    }
    found
}

fn is_constant(graph: &Graph, value: ValueId) -> bool {
    graph.weight(value).is_some()
}

/// The constant of two axes that a value is or is made of, after casts and transpositions; with `quantised`, also of
/// integers or of other axes.
fn constant(graph: &Graph, value: ValueId, quantised: bool) -> Option<(ValueId, Orientation)> {
    let (mut value, mut orientation) = (value, Orientation::InOut);
    loop {
        if let Some(weight) = graph.weight(value) {
            let is_matrix = weight.dims().len() == 2 && weight.dtype().is_float();
            return (is_matrix || quantised).then_some((value, orientation));
        }
        let (node, _) = graph.producer_of(value)?;
        let node = graph.node(node);
        if node.is("Transpose") && node.attributes.get_ints("perm").is_none_or(|p| p == [1, 0]) {
            orientation = match orientation {
                Orientation::InOut => Orientation::OutIn,
                Orientation::OutIn => Orientation::InOut,
            };
        } else if !(node.is("Cast") || node.is("Identity") || quantised && node.is("DequantizeLinear")) {
            return None;
        }
        value = node.input(0)?;
    }
}

/// The products of each block, by tower and block: those that its output is computed by, and no block or tower before.
pub fn by_block(graph: &Graph, anatomy: &Anatomy, products: &[Product]) -> Vec<Vec<Vec<usize>>> {
    let outputs: HashSet<ValueId> = anatomy.towers.iter().map(|t| t.output).collect();
    let place: HashMap<NodeId, usize> = products.iter().enumerate().map(|(i, p)| (p.node, i)).collect();
    let mut taken = HashSet::new();
    let mut of_block = |input: ValueId, output: ValueId| {
        let nodes = graph.ancestors_until([output], |v| v == input || outputs.contains(&v));
        let mut own: Vec<usize> = nodes.iter().filter_map(|id| place.get(id).copied()).collect();
        own.retain(|i| taken.insert(*i));
        own.sort_unstable();
        own
    };
    let towers = anatomy.towers.iter();
    towers.map(|t| t.blocks.iter().map(|b| of_block(b.input, b.output)).collect()).collect()
}
