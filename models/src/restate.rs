//! Fused operators as plain nodes.
//!
//! ONNX Runtime's optimiser and the newest opsets fuse the parts of a transformer into operators of their own.
//! Recognition works on a view of the graph in which each of these is the plain nodes that define it, under the values
//! that it has. What a fused operator keeps to itself and the side network needs, such as a residual sum or a mask in
//! additive form, is a new value of the view.
//!
//! | operator | as plain nodes |
//! | --- | --- |
//! | `SkipSimplifiedLayerNormalization` | the residual sum, and its norm |
//! | `FusedMatMul`, `Gemm` without a bias | transpositions, a product, a scale |
//! | `Attention` (opset 23), `MultiHeadAttention` | heads, scores, masks, softmax, mix |
//! | exponentials over their sum | `Softmax` |
//! | products of integers, as ONNX Runtime's quantisation leaves them | a product of floats, with a dequantised matrix or of activations |
//! | what is computed of flattened tokens or heads | the same of tokens and heads (`flattened.rs`) |
//!
//! **Invariant:** an operator in a form that is not understood is left unchanged, and is refused where it matters.

mod attention;
mod flattened;
mod quantised;

use std::collections::HashMap;
use std::ops::Range;

use lstc_graph::{Attributes, Builder, DType, Graph, MICROSOFT, Node, NodeId, Origin, ValueId};

/// The origin of nodes that restate what the source computes.
pub const RESTATED: Origin = Origin::pass("restate");

/// The view of a graph, and what was done to each fused operator.
pub struct View {
    pub graph: Graph,
    pub fused: Vec<Fused>,
}

/// A fused operator, and what was done with it.
pub struct Fused {
    pub node: Node,
    /// What it computes, in words.
    pub rule: &'static str,
    /// Indices of the values that the view has for it; or why it is left unchanged.
    pub values: Result<Range<usize>, &'static str>,
}

/// The graph without fused operators, under the same ids; `None` where it has none.
pub fn restate(graph: &Graph) -> Option<View> {
    let plain = restate_where(graph, |_| true);
    let lifts = flattened::lifts(plain.as_ref().map_or(graph, |view| &view.graph));
    if lifts.is_empty() {
        return plain;
    }
    let mut view = plain.unwrap_or_else(|| View { graph: graph.clone(), fused: Vec::new() });
    view.fused.extend(lifts.apply(&mut view.graph));
    Some(view)
}

/// A graph with the quantised products and moves of some nodes on dequantised numbers, and their attention of `com.microsoft` as plain
/// nodes; `None` where it has none of these. What is not understood stays.
pub fn restate_for_device(graph: &Graph, chosen: impl Fn(&Node) -> bool) -> Option<Graph> {
    let is_wanted = |node: &Node| node.op == "MultiHeadAttention" || quantised::is_quantised(graph, node);
    Some(restate_where(graph, |node| is_wanted(node) && chosen(node))?.graph)
}

fn restate_where(graph: &Graph, chosen: impl Fn(&Node) -> bool) -> Option<View> {
    let is_chosen = |id: &NodeId| is_fused(graph, graph.node(*id)) && chosen(graph.node(*id));
    let fused: Vec<NodeId> = graph.node_ids().filter(is_chosen).collect();
    if fused.is_empty() {
        return None;
    }
    let mut view = graph.clone();
    let mut told = Vec::new();
    let mut moved = HashMap::new();
    for id in fused {
        // In the view as it is by now: what this node reads may already be restated.
        let node = graph.node(id).clone();
        let first = values(&view);
        let b = Builder::new(&mut view, RESTATED);
        b.scope(&node.name);
        const ATTENTION: &str = "heads, scores, masks, softmax and mix";
        const PRODUCT: &str = "transpositions, a product and a scale";
        let (rule, made) = match (node.op.as_str(), node.domain.as_str()) {
            ("SkipSimplifiedLayerNormalization", _) => ("a residual sum and its norm", skip_norm(&b, &node)),
            ("FusedMatMul", _) => (PRODUCT, product(&b, &node)),
            ("Gemm", _) => (PRODUCT, gemm(&b, &node)),
            ("MultiHeadAttention", _) => (ATTENTION, attention::multi_head(&b, &node)),
            ("Attention", _) => (ATTENTION, attention::attention(&b, &node)),
            _ if quantised::is_quantised(graph, &node) => {
                ("the same on dequantised numbers", quantised::of_floats(&b, graph, &node))
            }
            _ => ("a softmax", softmax(&b, graph, &node)),
        };
        let all = values(&view);
        told.push(Fused {
            node: node.clone(),
            rule,
            values: made.as_ref().map(|_| first..all).map_err(|reason| *reason),
        });
        for (slot, value) in made.into_iter().flatten() {
            let (Some(old), Some((by, _))) = (node.output(slot), view.producer_of(value)) else { continue };
            view.refine_like(value, old);
            view.remake(old, by);
            moved.insert(value, old);
        }
    }
    view.redirect_all(&moved);
    Some(View { graph: view, fused: told })
}

fn values(graph: &Graph) -> usize {
    graph.value_ids().size_hint().0
}

/// The values that take the place of a node's outputs, by slot; or why the node is left unchanged.
type Made = Result<Vec<(usize, ValueId)>, &'static str>;

const UNKNOWN_SHAPE: &str = "the shape of an operand is not known";

fn operand(node: &Node, slot: usize) -> Result<ValueId, &'static str> {
    node.input(slot).ok_or("an operand is missing")
}

fn is_fused(graph: &Graph, node: &Node) -> bool {
    const OWN: [&str; 3] = ["SkipSimplifiedLayerNormalization", "FusedMatMul", "MultiHeadAttention"];
    node.domain == MICROSOFT && OWN.contains(&node.op.as_str())
        || node.is("Attention")
        || node.is("Gemm")
        || quantised::is_quantised(graph, node)
        || node.is("Div") && exponentials(graph, node).is_some()
}

/// `norm(x + skip)`: the norm, and the sum where the operator gives it.
fn skip_norm(b: &Builder, node: &Node) -> Made {
    if node.input(3).is_some() || node.output(1).is_some() || node.output(2).is_some() {
        return Err("it adds a bias, or returns the mean and deviation of the norm");
    }
    let sum = b.unshared("Add", &[operand(node, 0)?, operand(node, 1)?], Attributes::none(), 1)[0];
    let epsilon = node.attributes.get_float("epsilon").unwrap_or(1e-12);
    let attributes = Attributes::none().int("axis", -1).float("epsilon", epsilon);
    let norm = b.unshared("SimplifiedLayerNormalization", &[sum, operand(node, 2)?], attributes, 1)[0];
    Ok(vec![(3, sum), (0, norm)])
}

/// `alpha a' b'`, with the last two axes of each transposed where asked.
fn product(b: &Builder, node: &Node) -> Made {
    let flag = |name: &str| node.attributes.get_int(name).unwrap_or(0) != 0;
    if flag("transBatchA") || flag("transBatchB") {
        return Err("it transposes the batch axis");
    }
    let side = |slot: usize, swap: bool| {
        let value = operand(node, slot)?;
        if !swap {
            return Ok(value);
        }
        let rank = b.shape(value).ok_or(UNKNOWN_SHAPE)?.len();
        let mut perm: Vec<i64> = (0..rank as i64).collect();
        if rank < 2 {
            return Err("it transposes an operand of fewer than two axes");
        }
        perm.swap(rank - 1, rank - 2);
        Ok(b.transpose(value, &perm))
    };
    let (x, y) = (side(0, flag("transA"))?, side(1, flag("transB"))?);
    let alpha = node.attributes.get_float("alpha").unwrap_or(1.0);
    let product = b.unshared("MatMul", &[x, y], Attributes::none(), 1)[0];
    if alpha == 1.0 {
        return Ok(vec![(0, product)]);
    }
    Ok(vec![(0, b.unshared("Mul", &[product, constant_like(b, alpha, x)], Attributes::none(), 1)[0])])
}

/// `alpha a' b'`: a product of two axes, without a bias or with zeros for one.
fn gemm(b: &Builder, node: &Node) -> Made {
    let is_zeros =
        |c: ValueId| b.read(|graph| graph.weight(c).is_some_and(|w| w.bytes().iter().all(|byte| *byte == 0)));
    if node.input(2).is_some_and(|c| !is_zeros(c)) {
        return Err("it adds a bias");
    }
    product(b, node)
}

/// A scalar of the element type of `like`; recognition looks through the cast.
fn constant_like(b: &Builder, value: f32, like: ValueId) -> ValueId {
    b.cast(b.f32(value), b.dtype(like).filter(|d| d.is_float()).unwrap_or(DType::F32))
}

fn softmax(b: &Builder, graph: &Graph, node: &Node) -> Made {
    let x = exponentials(graph, node).ok_or("it is not a softmax over the last axis")?;
    Ok(vec![(0, b.unshared("Softmax", &[x], Attributes::none().int("axis", -1), 1)[0])])
}

/// Copies and casts in a row that are looked through, between the parts of a softmax.
const MAX_COPIES: usize = 16;

/// `exp(x - max(x)) / sum(exp(x - max(x)))` over the last axis: x.
fn exponentials(graph: &Graph, node: &Node) -> Option<ValueId> {
    let is_float = |v: ValueId| graph.value(v).dtype.is_some_and(DType::is_float);
    let maker = |v: ValueId| {
        let mut value = v;
        for _ in 0..MAX_COPIES {
            let node = graph.node(graph.producer_of(value)?.0);
            match node.input(0) {
                Some(inner) if node.is("Cast") && is_float(inner) && is_float(value) => value = inner,
                Some(inner) if node.is("Identity") => value = inner,
                _ => return Some((value, node)),
            }
        }
        None
    };
    let over_last = |n: &Node| {
        (n.attributes.get_int("keepdims").unwrap_or(1) != 0).then_some(())?;
        let axes = n.attributes.get_ints("axes").map(<[i64]>::to_vec);
        let axes = axes.or_else(|| graph.weight(n.input(1)?)?.to_i64())?;
        let last = graph.shape(n.input(0)?).map_or(-1, |s| s.len() as i64 - 1);
        (axes == [-1] || axes == [last]).then_some(())
    };
    let (exponential, exp) = maker(node.input(0)?).filter(|(_, n)| n.is("Exp"))?;
    let (_, sum) = maker(node.input(1)?).filter(|(_, n)| n.is("ReduceSum"))?;
    over_last(sum)?;
    let summed = maker(sum.input(0)?)?.0;
    let (_, shifted) = maker(exp.input(0)?).filter(|(_, n)| n.is("Sub"))?;
    let (_, largest) = maker(shifted.input(1)?).filter(|(_, n)| n.is("ReduceMax"))?;
    over_last(largest)?;
    let x = shifted.input(0)?;
    (summed == exponential && maker(x)?.0 == maker(largest.input(0)?)?.0).then_some(x)
}
