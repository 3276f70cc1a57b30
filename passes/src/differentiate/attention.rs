//! The gradient of attention where it mixes values by probabilities: one rule for the product and its softmax.
//!
//! ```text
//! y = p v, p = softmax(s)        ds = p (dy v^T - sum(dy y)),   dv = p^T dy
//! ```
//!
//! For `sum_k dp p`, the mean slope of a row of p, is `dy y`: the sum runs along a head's few numbers, not along the keys.
//! It is subtracted within the product: `[dy, -sum(dy y)] [v, 1]^T`. Beside the product itself, one pass over what is as
//! large as p is left of the four that the rules of the product and the softmax would make.
//!
//! Of all that a step of long texts keeps from forward to backward, p is by far the largest, and it is cheap to compute. Where
//! that is asked for, it is not kept but computed again: `p = softmax(q k^T + ...)`, of the same operands in the same order.

use lstc_graph::{DType, Dim, Node, Uses, ValueId};

use super::rules::{is_active, mat_mul, swapped, unswapped, x, y};
use super::{Backward, Side};
use crate::module::is_backbone;

/// The scores s, their gradient, and that of v where it is active; `None` for a product of another kind.
pub fn mixed(
    g: &mut Backward,
    node: &Node,
    dy: ValueId,
    uses: &Uses,
    (active, wanted): (&[bool], &[ValueId]),
) -> Option<Vec<(ValueId, ValueId)>> {
    if !node.is("MatMul") {
        return None;
    }
    let (a, b) = (x(node, 0), x(node, 1));
    let rank = g.b.shape(y(node))?.len();
    let has_rank = |value| g.b.shape(value).is_some_and(|shape| shape.len() == rank);
    if rank < 2 || !has_rank(a) || !has_rank(b) || g.b.dtype(a) != Some(DType::F32) {
        return None;
    }
    let single = |value: ValueId| uses.of(value).len() == 1 && !wanted.contains(&value);
    // y = p v, or the same with queries last: y = v p^T.
    let (p, v, queries_last) = match scores(g, a) {
        Some(_) => (a, b, false),
        None => (unswapped(g, b).filter(|_| single(b))?, a, true),
    };
    let scores = scores(g, p).filter(|_| single(p))?;
    let [of_p, of_v, of_y] = [p, v, y(node)].map(|value| g.shape(value));
    let alike = |shape: &[Dim]| shape[..rank - 2] == of_y[..rank - 2];
    if !alike(&of_p) || !alike(&of_v) || !active[scores.index()] {
        return None;
    }
    let dy = g.fit(dy, y(node));
    // The axis of a head's numbers, in v and in y.
    let axis = if queries_last { rank - 2 } else { rank - 1 };
    let (left, slope) = with_slope(g, dy, y(node), axis, uses);
    let p = if g.options.recompute_attention { again(g, p, slope).unwrap_or(p) } else { p };
    let sides: Vec<Side> = (0..rank).map(|i| if i == axis { Side::One } else { Side::Of(i) }).collect();
    let ones = g.ones(v, &sides);
    let right = g.b.concat(&[v, ones], axis as i64);
    let product = match queries_last {
        true => g.b.matmul(swapped(g, left), right),
        false => g.b.matmul(left, swapped(g, right)),
    };
    let mut gradients = vec![(scores, g.b.mul(p, g.b.shaped(product, &of_p)))];
    let (of_p, of_v) = if queries_last { (1, 0) } else { (0, 1) };
    if is_active(node, of_v, active) {
        let mut node = node.clone();
        node.inputs[of_p] = Some(if queries_last { swapped(g, p) } else { p });
        let mut values_alone = vec![false; active.len()];
        values_alone[v.index()] = true;
        gradients.extend(mat_mul(g, &node, dy, &values_alone)[of_v].map(|gradient| (v, gradient)));
    }
    Some(gradients)
}

/// `[dy, -sum(dy y)]`, and the sum. Of y that is a part of what others make too, as heads in groups are, this is a part of what
/// is computed of the whole at once.
fn with_slope(g: &mut Backward, dy: ValueId, y: ValueId, axis: usize, uses: &Uses) -> (ValueId, ValueId) {
    let extended = |g: &Backward, dy, y| {
        let slope = g.b.reduce_sum(g.b.mul(dy, y), &[axis as i64], true);
        (g.b.concat(&[dy, g.b.neg(slope)], axis as i64), slope)
    };
    let whole = g.b.read(|graph| {
        let [(concat, place)] = uses.of(y) else { return None };
        let concat = graph.node(*concat);
        let (split, part) = graph.producer_of(dy)?;
        let split = graph.node(split);
        let along = concat.attributes.get_int("axis")?;
        let sizes = graph.weight(split.input(1)?)?.to_i64()?;
        let alike = concat.is("Concat") && split.is("Split") && split.attributes.get_int("axis") == Some(along);
        let of_parts = part == *place && sizes.len() == concat.inputs.len() && usize::try_from(along).ok()? < axis;
        (alike && of_parts).then(|| Some((split.input(0)?, concat.output(0)?, part, sizes, along)))?
    });
    let Some((dys, ys, part, sizes, along)) = whole else { return extended(g, dy, y) };
    let (all, slope) = extended(g, dys, ys);
    let (left, mut shape) = (g.b.split(all, &sizes, along)[part], g.shape(dy));
    shape[axis] = (shape[axis].clone() + Dim::Value(1)).simplify();
    (g.b.shaped(left, &shape), slope)
}

/// What a softmax along the last axis is taken of.
fn scores(g: &mut Backward, p: ValueId) -> Option<ValueId> {
    let last = g.b.shape(p)?.len() as i64 - 1;
    g.b.read(|graph| {
        let node = graph.node(graph.producer_of(p)?.0);
        let axis = node.attributes.get_int("axis").unwrap_or(-1);
        (node.is("Softmax") && (axis == -1 || axis == last)).then(|| node.input(0))?
    })
}

/// `value` computed again by the operators from a product of queries and keys on; `None` where others made it.
///
/// The queries are there when the slope is, and not before: so these nodes are not copies of the forward ones, of which ONNX
/// Runtime would make one.
fn again(g: &mut Backward, value: ValueId, slope: ValueId) -> Option<ValueId> {
    let node = g.b.read(|graph| Some(graph.node(graph.producer_of(value)?.0).clone()))?;
    let shape = g.shape(value);
    if is_backbone(&node.origin) || node.outputs.len() != 1 {
        return None;
    }
    let first = match node.op.as_str() {
        "MatMul" => {
            let queries = x(&node, 0);
            match unswapped(g, queries) {
                Some(queries) => {
                    let queries = g.after(queries, slope);
                    swapped(g, queries)
                }
                None => g.after(queries, slope),
            }
        }
        "Softmax" | "Add" | "Mul" if g.shape(x(&node, 0)) == shape => again(g, x(&node, 0), slope)?,
        _ => return None,
    };
    let inputs: Vec<ValueId> = std::iter::once(first).chain(node.inputs.iter().skip(1).copied().flatten()).collect();
    let value = g.b.op(&node.op, &inputs, node.attributes.clone());
    Some(g.b.shaped(value, &shape))
}
