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

/// The moves before a value, the last first, and what they move.
fn moves_before(graph: &Graph, value: ValueId) -> (Vec<NodeId>, ValueId) {
    let (mut moves, mut value) = (Vec::new(), value);
    while let Some((id, _)) = graph.producer_of(value).filter(|_| moves.len() < MAX_MOVES) {
        let mover = graph.node(id);
        let moved = mover.input(0).filter(|_| mover.is_default_domain() && MOVES.contains(&mover.op.as_str()));
        let Some(moved) = moved.filter(|_| !is_move(graph, mover)) else { break };
        moves.push(id);
        value = moved;
    }
    (moves, value)
}

/// The same moves of another value.
fn moved(b: &Builder, graph: &Graph, moves: &[NodeId], value: ValueId) -> ValueId {
    moves.iter().rev().map(|id| graph.node(*id)).fold(value, |value, mover| {
        let operands: Vec<ValueId> =
            std::iter::once(value).chain(mover.inputs[1..].iter().copied().flatten()).collect();
        b.unshared(&mover.op, &operands, mover.attributes.clone(), 1)[0]
    })
}

/// Moves between numbers that are not activations of this graph and their dequantisation with one scale for all: the
/// nodes, the last first.
fn moved_before(graph: &Graph, node: &Node) -> Option<Vec<NodeId>> {
    let scale = node.input(1).filter(|_| node.is("DequantizeLinear"))?;
    if graph.weight(scale)?.elements() != 1 {
        return None;
    }
    let (moves, _) = moves_before(graph, node.input(0)?);
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
            let first = moves.last().and_then(|id| graph.node(*id).input(0)).ok_or("an operand is missing")?;
            let value = dequantise(b, Some(first), node.input(1), node.input(2))?;
            Ok(vec![(0, moved(b, graph, &moves, value))])
        }
        "QLinearMatMul" => {
            let side = |i: usize| dequantise(b, node.input(i), node.input(i + 1), node.input(i + 2));
            let product = matmul(b, side(0)?, side(3)?);
            let parts = [product, operand(node, 6)?, operand(node, 7)?];
            Ok(vec![(0, b.unshared("QuantizeLinear", &parts, Attributes::none(), 1)[0])])
        }
        "DynamicQuantizeMatMul" if node.input(4).is_none() => {
            let y = right(b, graph, [operand(node, 1)?, operand(node, 2)?], node.input(3))?;
            Ok(vec![(0, matmul(b, operand(node, 0)?, y))])
        }
        "MatMulIntegerToFloat" if node.input(6).is_none() => {
            let x = before(graph, operand(node, 0)?, operand(node, 2)?, node.input(4)).ok_or(NOT_QUANTISED_HERE)?;
            let y = right(b, graph, [operand(node, 1)?, operand(node, 3)?], node.input(5))?;
            Ok(vec![(0, matmul(b, x.floats(b, graph), y))])
        }
        "Mul" => {
            let IntegerProduct { x, integers, scale, zero } = integer_product(graph, node).ok_or(NOT_QUANTISED_HERE)?;
            let y = right(b, graph, [integers, scale], zero)?;
            Ok(vec![(0, matmul(b, x.floats(b, graph), y))])
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
    let (Some(integers), Some(scale)) = (integers, scale) else { return Err("an operand is missing") };
    let parts: Vec<ValueId> = [Some(integers), Some(scale), zero].into_iter().flatten().collect();
    Ok(b.op("DequantizeLinear", &parts, Attributes::none().int("axis", 1)))
}

/// Floats that a `DynamicQuantizeLinear` quantised, and the moves of the integers that it gave.
struct Activation {
    x: ValueId,
    moves: Vec<NodeId>,
}

impl Activation {
    /// The floats, moved as their integers are.
    fn floats(&self, b: &Builder, graph: &Graph) -> ValueId {
        moved(b, graph, &self.moves, self.x)
    }
}

/// What `DynamicQuantizeLinear` quantised into `integers` with `scale` and the zero point.
fn before(graph: &Graph, integers: ValueId, scale: ValueId, zero: Option<ValueId>) -> Option<Activation> {
    let (moves, integers) = moves_before(graph, integers);
    let (id, 0) = graph.producer_of(integers)? else { return None };
    let node = graph.node(id);
    let undone = zero.is_some() && node.output(2) == zero && node.output(1) == Some(scale);
    let x = node.input(0).filter(|_| node.is("DynamicQuantizeLinear") && undone)?;
    Some(Activation { x, moves })
}

/// The right operand of a product: activations as they were before they were quantised, or a dequantised matrix.
fn right(
    b: &Builder,
    graph: &Graph,
    [integers, scale]: [ValueId; 2],
    zero: Option<ValueId>,
) -> Result<ValueId, &'static str> {
    if let Some(activation) = before(graph, integers, scale, zero) {
        return Ok(activation.floats(b, graph));
    }
    let (moves, matrix) = moves_before(graph, integers);
    if moves.is_empty() || graph.weight(matrix).is_none() {
        return dequantise(b, Some(integers), Some(scale), zero);
    }
    if graph.weight(scale).is_none_or(|scale| scale.elements() != 1) {
        return Err("it moves integers that have more than one scale");
    }
    Ok(moved(b, graph, &moves, dequantise(b, Some(matrix), Some(scale), zero)?))
}

struct IntegerProduct {
    x: Activation,
    integers: ValueId,
    scale: ValueId,
    zero: Option<ValueId>,
}

/// `Cast(MatMulInteger(quantised x, y)) * (scale of x * scale of y)`, as `quantize_dynamic` writes it: y is a matrix of integers, or
/// quantised as x is.
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

#[cfg(test)]
mod tests {
    use lstc_graph::parse;

    use super::super::restate;

    /// The operators that `y` is computed by in plain words, where the graph has a quantised product.
    fn plain(nodes: &str) -> Option<Vec<String>> {
        let inputs = "a: f32[batch, 2, length, 3], b: f32[batch, 2, length, 3], other: f32[], w: i8[4, 3], o: i8[]";
        let text = format!(
            "({inputs}) {{ q, s, z = DynamicQuantizeLinear(a)  r, t, v = DynamicQuantizeLinear(b)  {nodes} }} -> y"
        );
        let graph = parse(&text, 17).unwrap_or_else(|e| panic!("{text}: {e:?}"));
        let mut view = restate(&graph)?.graph;
        view.remove_dead();
        Some(view.order().expect("no cycle").iter().map(|id| view.node(*id).op.clone()).collect())
    }

    const SWAP: &str = "turned = Transpose<perm=[0, 1, 3, 2]>(r)";

    #[test]
    fn integers_of_two_activations_are_a_product_of_both() {
        let nodes = format!("{SWAP}  i = MatMulInteger(q, turned, z, v)  f = Cast<to=1>(i)");
        let wanted = ["Transpose", "MatMul"];
        assert_eq!(plain(&format!("{nodes}  scale = Mul(s, t)  y = Mul(f, scale)")).expect("restated"), wanted);
        assert_eq!(plain(&format!("{nodes}  scale = Mul(t, s)  y = Mul(scale, f)")).expect("restated"), wanted);
    }

    #[test]
    fn integers_under_the_scale_of_others_are_no_product() {
        for (zeros, scales) in [("z, v", "s, s"), ("z, v", "other, t"), ("v, z", "s, t"), ("z, z", "s, t")] {
            let nodes = format!("{SWAP}  i = MatMulInteger(q, turned, {zeros})  f = Cast<to=1>(i)");
            let found = plain(&format!("{nodes}  scale = Mul({scales})  y = Mul(f, scale)"));
            let is_plain = found.as_ref().is_some_and(|ops| *ops == ["Transpose", "MatMul"]);
            assert!(!is_plain, "{zeros}, {scales}: {found:?}");
        }
    }
}
