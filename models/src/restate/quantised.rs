//! Products of quantised operands as products of floats: `x` as it was before it was quantised, with the dequantised
//! matrix.

use lstc_graph::{Attributes, Builder, Graph, MICROSOFT, Node, NodeId, ValueId};

use super::{Made, operand};

const NOT_QUANTISED_HERE: &str = "its left operand is not quantised from floats by a DynamicQuantizeLinear";

/// True for a node that ends a quantised product, or moves quantised numbers.
pub(super) fn is_quantised(graph: &Graph, node: &Node) -> bool {
    node.is("QLinearMatMul")
        || is_move(graph, node)
        || moved_before(graph, node).is_some()
        || node.domain == MICROSOFT && ["DynamicQuantizeMatMul", "MatMulIntegerToFloat"].contains(&node.op.as_str())
        || node.is("Mul") && integer_product(graph, node).is_some()
}

/// Operators that give each element another place.
const MOVES: [&str; 4] = ["Reshape", "Transpose", "Squeeze", "Unsqueeze"];

/// Moves in a row that are looked through: more than any attention has.
const MAX_MOVES: usize = 16;

/// Moves between numbers that are no activations of this graph and their dequantisation with one scale for all: the
/// nodes, the last first.
fn moved_before(graph: &Graph, node: &Node) -> Option<Vec<NodeId>> {
    let scale = node.input(1).filter(|_| node.is("DequantizeLinear"))?;
    if graph.weight(scale)?.elements() != 1 {
        return None;
    }
    let mut moves = Vec::new();
    let mut value = node.input(0)?;
    while let Some((id, _)) = graph.producer_of(value).filter(|_| moves.len() < MAX_MOVES) {
        let mover = graph.node(id);
        if !mover.is_default_domain() || !MOVES.contains(&mover.op.as_str()) || is_move(graph, mover) {
            break;
        }
        moves.push(id);
        value = mover.input(0)?;
    }
    (!moves.is_empty()).then_some(moves)
}

/// Moves of quantised activations, which are moves of the numbers before them.
fn is_move(graph: &Graph, node: &Node) -> bool {
    let moves = |node: &Node| node.is_default_domain() && MOVES.contains(&node.op.as_str());
    let mut node = node;
    for _ in 0..MAX_MOVES {
        let maker = node.input(0).filter(|_| moves(node)).and_then(|v| graph.producer_of(v));
        let Some((maker, _)) = maker else { return false };
        node = graph.node(maker);
        if node.is("QuantizeLinear") || node.is("QLinearMatMul") {
            return true;
        }
    }
    false
}

/// What takes a quantised node's place: the same on floats.
pub(super) fn of_floats(b: &Builder, graph: &Graph, node: &Node) -> Made {
    match node.op.as_str() {
        _ if is_move(graph, node) => {
            // What is moved was restated before: it is quantised from floats.
            let x = operand(node, 0)?;
            let parts = b.read(|view| {
                let quantise = view.node(view.producer_of(x)?.0);
                quantise.is("QuantizeLinear").then(|| quantise.inputs.clone())
            });
            let parts = parts.ok_or("what it moves is not quantised from floats")?;
            let at = |slot: usize| parts.get(slot).copied().flatten();
            let float = dequantise(b, Some(x), at(1), at(2))?;
            let operands: Vec<ValueId> =
                std::iter::once(float).chain(node.inputs[1..].iter().copied().flatten()).collect();
            let moved = b.unshared(&node.op, &operands, node.attributes.clone(), 1)[0];
            let parts: Vec<ValueId> = std::iter::once(moved).chain(parts[1..].iter().copied().flatten()).collect();
            Ok(vec![(0, b.unshared("QuantizeLinear", &parts, Attributes::none(), 1)[0])])
        }
        "DequantizeLinear" => {
            let moves = moved_before(graph, node).unwrap_or_default();
            let first = moves.last().and_then(|id| graph.node(*id).input(0)).ok_or("an operand is absent")?;
            let mut value = dequantise(b, Some(first), node.input(1), node.input(2))?;
            for mover in moves.iter().rev().map(|id| graph.node(*id)) {
                let operands: Vec<ValueId> =
                    std::iter::once(value).chain(mover.inputs[1..].iter().copied().flatten()).collect();
                value = b.unshared(&mover.op, &operands, mover.attributes.clone(), 1)[0];
            }
            Ok(vec![(0, value)])
        }
        "QLinearMatMul" => {
            let side = |i: usize| dequantise(b, node.input(i), node.input(i + 1), node.input(i + 2));
            let product = matmul(b, side(0)?, side(3)?);
            let parts = [product, operand(node, 6)?, operand(node, 7)?];
            Ok(vec![(0, b.unshared("QuantizeLinear", &parts, Attributes::none(), 1)[0])])
        }
        "DynamicQuantizeMatMul" if node.input(4).is_none() => {
            let weight = dequantise(b, node.input(1), node.input(2), node.input(3))?;
            Ok(vec![(0, matmul(b, operand(node, 0)?, weight))])
        }
        "MatMulIntegerToFloat" if node.input(6).is_none() => {
            let x = before(graph, operand(node, 0)?, operand(node, 2)?, node.input(4)).ok_or(NOT_QUANTISED_HERE)?;
            let weight = dequantise(b, node.input(1), node.input(3), node.input(5))?;
            Ok(vec![(0, matmul(b, x, weight))])
        }
        "Mul" => {
            let product = integer_product(graph, node).ok_or(NOT_QUANTISED_HERE)?;
            let IntegerProduct { x, integers, scale, zero } = product;
            let weight = dequantise(b, Some(integers), Some(scale), zero)?;
            Ok(vec![(0, matmul(b, x, weight))])
        }
        _ => Err("it adds a bias to the product"),
    }
}

fn matmul(b: &Builder, x: ValueId, y: ValueId) -> ValueId {
    b.unshared("MatMul", &[x, y], Attributes::none(), 1)[0]
}

fn dequantise(
    b: &Builder,
    integers: Option<ValueId>,
    scale: Option<ValueId>,
    zero: Option<ValueId>,
) -> Result<ValueId, &'static str> {
    let (Some(integers), Some(scale)) = (integers, scale) else { return Err("an operand is absent") };
    let parts: Vec<ValueId> = [Some(integers), Some(scale), zero].into_iter().flatten().collect();
    Ok(b.op("DequantizeLinear", &parts, Attributes::none().int("axis", 1)))
}

/// What `DynamicQuantizeLinear` quantised into `integers` with `scale` and the zero point.
fn before(graph: &Graph, integers: ValueId, scale: ValueId, zero: Option<ValueId>) -> Option<ValueId> {
    let (id, 0) = graph.producer_of(integers)? else { return None };
    let node = graph.node(id);
    let undone = zero.is_some() && node.output(2) == zero && node.output(1) == Some(scale);
    (node.is("DynamicQuantizeLinear") && undone).then(|| node.input(0))?
}

struct IntegerProduct {
    x: ValueId,
    integers: ValueId,
    scale: ValueId,
    zero: Option<ValueId>,
}

/// `Cast(MatMulInteger(quantised x, W)) * (scale of x * scale of W)`, as `quantize_dynamic` writes it.
fn integer_product(graph: &Graph, node: &Node) -> Option<IntegerProduct> {
    let maker = |v: ValueId, op: &str| Some(graph.node(graph.producer_of(v)?.0)).filter(|n| n.is(op));
    let (a, b) = (node.input(0)?, node.input(1)?);
    [(a, b), (b, a)].into_iter().find_map(|(cast, scales)| {
        let product = maker(maker(cast, "Cast")?.input(0)?, "MatMulInteger")?;
        let scales = maker(scales, "Mul")?;
        let (s, t) = (scales.input(0)?, scales.input(1)?);
        let quantised = |scale| before(graph, product.input(0)?, scale, product.input(2));
        let (x, scale) = quantised(s).map(|x| (x, t)).or_else(|| Some((quantised(t)?, s)))?;
        Some(IntegerProduct { x, integers: product.input(1)?, scale, zero: product.input(3) })
    })
}
