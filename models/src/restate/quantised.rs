//! Products of quantised operands as products of floats: `x` as it was before it was quantised, with the dequantised
//! matrix.

use lstc_graph::{Attributes, Builder, DType, Graph, MICROSOFT, Node, ValueId};

use super::{Made, operand};

const NOT_QUANTISED_HERE: &str = "its left operand is not quantised from floats by a DynamicQuantizeLinear";

/// True for a node that ends a quantised product, or moves quantised numbers.
pub(super) fn is_quantised(graph: &Graph, node: &Node) -> bool {
    node.is("QLinearMatMul")
        || is_move(graph, node)
        || node.domain == MICROSOFT && ["DynamicQuantizeMatMul", "MatMulIntegerToFloat"].contains(&node.op.as_str())
        || node.is("Mul") && integer_product(graph, node).is_some()
}

/// Moves of quantised activations, which are moves of the numbers before them.
fn is_move(graph: &Graph, node: &Node) -> bool {
    const MOVES: [&str; 4] = ["Reshape", "Transpose", "Squeeze", "Unsqueeze"];
    let quantised =
        |v: ValueId| matches!(graph.value(v).dtype, Some(DType::I8 | DType::U8)) && graph.producer_of(v).is_some();
    node.is_default_domain() && MOVES.contains(&node.op.as_str()) && node.input(0).is_some_and(quantised)
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
            let x = before(graph, operand(node, 0)?, operand(node, 2)?).ok_or(NOT_QUANTISED_HERE)?;
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

/// What `DynamicQuantizeLinear` quantised into `integers` with `scale`.
fn before(graph: &Graph, integers: ValueId, scale: ValueId) -> Option<ValueId> {
    let (id, 0) = graph.producer_of(integers)? else { return None };
    let node = graph.node(id);
    (node.is("DynamicQuantizeLinear") && node.output(1) == Some(scale)).then(|| node.input(0))?
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
        let integers = product.input(0)?;
        let (x, scale) =
            before(graph, integers, s).map(|x| (x, t)).or_else(|| Some((before(graph, integers, t)?, s)))?;
        Some(IntegerProduct { x, integers: product.input(1)?, scale, zero: product.input(3) })
    })
}
