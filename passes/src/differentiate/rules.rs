//! One gradient rule per operator, its equation above it.
//!
//! dy is the gradient of the node's first output y. A rule returns the gradient of each operand, in order, and need
//! not emit one for an operand that is not active.

use lstc_graph::{Attributes, DType, Dim, Node, ValueId};

use super::{Backward, Contributions};
use crate::module::is_backbone;
use crate::problem::Problem;

/// `(backward, node, dy, active values) -> gradients of the operands`
pub type Rule = fn(&mut Backward, &Node, ValueId, &[bool]) -> Contributions;

/// The rules by operator, in alphabetical order.
pub const RULES: &[(&str, Rule)] = &[
    ("Add", add),
    ("Cast", cast),
    ("Concat", concat),
    ("Div", div),
    ("Dropout", dropout),
    ("Erf", erf),
    ("Exp", exp),
    ("Gather", gather),
    ("GatherElements", gather_elements),
    ("Gemm", gemm),
    ("Identity", identity),
    ("LogSoftmax", log_softmax),
    ("MatMul", mat_mul),
    ("Mul", mul),
    ("Neg", neg),
    ("Reciprocal", reciprocal),
    ("ReduceSum", reduce_sum),
    ("Relu", relu),
    ("Reshape", reshape),
    ("Sigmoid", sigmoid),
    ("Softmax", softmax),
    ("Sqrt", sqrt),
    ("Sub", sub),
    ("Sum", sum),
    ("Tanh", tanh),
    ("Transpose", transpose),
    ("Unsqueeze", reshape),
    ("Where", select),
];

/// Operators whose rules take a dy that broadcasts to y's shape; the others get it in full. A sum over an axis that only
/// the other operand has must see that axis: in a product it does.
pub const BROADCASTS: &[&str] = &["Div", "Mul", "Where"];

/// The rule of an operator.
pub fn rule(op: &str) -> Option<Rule> {
    RULES.binary_search_by_key(&op, |(name, _)| name).ok().map(|i| RULES[i].1)
}

/// Operand `index` of a node, which the operator cannot lack.
pub(super) fn x(node: &Node, index: usize) -> ValueId {
    node.input(index).expect("required operands were checked by shape inference")
}

pub(super) fn y(node: &Node) -> ValueId {
    node.output(0).expect("the first output has a gradient, so it is there")
}

pub(super) fn is_active(node: &Node, index: usize, active: &[bool]) -> bool {
    // What the backward pass made is not among the values that were looked at.
    node.input(index).is_some_and(|v| active.get(v.index()).is_some_and(|active| *active))
}

fn one(gradient: ValueId) -> Contributions {
    vec![Some(gradient)]
}

// y = a + b                 da = dy, db = dy, each summed to its operand's shape
fn add(g: &mut Backward, node: &Node, dy: ValueId, active: &[bool]) -> Contributions {
    (0..2).map(|i| is_active(node, i, active).then(|| g.fit(dy, x(node, i)))).collect()
}

// y = x in another float type      dx = dy in x's type
fn cast(g: &mut Backward, node: &Node, dy: ValueId, _: &[bool]) -> Contributions {
    one(g.b.cast(dy, g.b.dtype(x(node, 0)).unwrap_or(DType::F32)))
}

// y = a b ... side by side  each operand: its part of dy
fn concat(g: &mut Backward, node: &Node, dy: ValueId, active: &[bool]) -> Contributions {
    let axis = node.attributes.get_int("axis").unwrap_or(0);
    let sizes: Option<Vec<i64>> = node.inputs.iter().flatten().map(|v| size_along(g, *v, axis)).collect();
    let Some(sizes) = sizes else {
        g.problems.push(Problem::node(&node.name, "Concat has a gradient rule only for parts of constant size"));
        return vec![None; node.inputs.len()];
    };
    let parts = g.b.split(dy, &sizes, axis);
    (0..parts.len()).map(|i| is_active(node, i, active).then(|| parts[i])).collect()
}

/// The size of a value along an axis, where it is constant.
fn size_along(g: &mut Backward, value: ValueId, axis: i64) -> Option<i64> {
    let shape = g.shape(value);
    let axis = if axis < 0 { axis + shape.len() as i64 } else { axis };
    match shape.get(usize::try_from(axis).ok()?)? {
        Dim::Value(size) => Some(i64::from(*size)),
        _ => None,
    }
}

// y = a / b                 da = dy / b, db = -dy y / b
fn div(g: &mut Backward, node: &Node, dy: ValueId, active: &[bool]) -> Contributions {
    let (a, b) = (x(node, 0), x(node, 1));
    let scaled = g.b.div(dy, b);
    let da = is_active(node, 0, active).then(|| g.fit(scaled, a));
    let db = is_active(node, 1, active).then(|| {
        let product = g.b.mul(scaled, y(node));
        let product = g.fit(product, b);
        g.b.neg(product)
    });
    vec![da, db]
}

// y = x mask / (1 - rate)   dx = dy mask / (1 - rate)
fn dropout(g: &mut Backward, node: &Node, dy: ValueId, _: &[bool]) -> Contributions {
    let mask = node.output(1).expect("dropout is emitted with its mask");
    let kept = g.b.sub(g.b.f32(1.0), x(node, 1));
    one(g.b.select(mask, g.b.div(dy, kept), g.b.f32(0.0)))
}

// y = erf(x)                dx = dy 2/sqrt(pi) exp(-x^2)
fn erf(g: &mut Backward, node: &Node, dy: ValueId, _: &[bool]) -> Contributions {
    let x = x(node, 0);
    let slope = g.b.mul(g.b.exp(g.b.neg(g.b.mul(x, x))), g.b.f32(std::f32::consts::FRAC_2_SQRT_PI));
    one(g.b.mul(dy, slope))
}

// y = exp(x)                dx = dy y
fn exp(g: &mut Backward, node: &Node, dy: ValueId, _: &[bool]) -> Contributions {
    one(g.b.mul(dy, y(node)))
}

// y = table[indices]        dtable = onehot(indices) dy, a row of the table's first
//
// The one-hot product is deterministic on every device, and for tables of few rows, such as position tables, it is not large.
// ONNX Runtime's ScatterND adds up on the CPU from several threads at once, and loses terms where indices are repeated.
fn gather(g: &mut Backward, node: &Node, dy: ValueId, _: &[bool]) -> Contributions {
    let (table, indices) = (x(node, 0), x(node, 1));
    let shape = g.shape(table);
    let [Dim::Value(rows), Dim::Value(columns)] = shape[..] else {
        g.problems.push(Problem::node(&node.name, "Gather has a gradient rule only for matrices of constant size"));
        return vec![None];
    };
    if node.attributes.get_int("axis").unwrap_or(0) != 0 {
        g.problems.push(Problem::node(&node.name, "Gather has a gradient rule only for rows, axis 0"));
        return vec![None];
    }
    let chosen = one_hot(g, indices, rows, 0);
    let updates = g.b.reshape(dy, &[-1, columns.into()]);
    one(g.b.gemm(chosen, updates, None, false, false))
}

/// A matrix with `depth` along an axis, and a vector for each index along the other. OneHot has kernels for i64 indices with
/// an i64 depth, not for i32.
fn one_hot(g: &mut Backward, indices: ValueId, depth: i32, axis: i64) -> ValueId {
    let flat = g.b.reshape(indices, &[-1]);
    g.b.one_hot(g.b.cast(flat, DType::I64), depth.into(), axis)
}

// y = x[row, index[row]]    dx = onehot(index) dy
fn gather_elements(g: &mut Backward, node: &Node, dy: ValueId, _: &[bool]) -> Contributions {
    let (x, indices) = (x(node, 0), x(node, 1));
    let (shape, picked) = (g.shape(x), g.shape(indices));
    let axis = node.attributes.get_int("axis").unwrap_or(0);
    match (&shape[..], &picked[..]) {
        ([rows, Dim::Value(depth)], [picks, Dim::Value(1)]) if matches!(axis, 1 | -1) && rows == picks => {
            let chosen = one_hot(g, indices, *depth, -1);
            let chosen = g.b.shaped(chosen, &shape);
            one(g.b.mul(chosen, dy))
        }
        _ => {
            let reason = "GatherElements has a gradient rule only for one element of each row of a matrix";
            g.problems.push(Problem::node(&node.name, reason));
            vec![None]
        }
    }
}

// y = a b + c               da = dy b^T, db = a^T dy, dc = dy; with a or b transposed, so is its gradient
fn gemm(g: &mut Backward, node: &Node, dy: ValueId, active: &[bool]) -> Contributions {
    let (a, b) = (x(node, 0), x(node, 1));
    let flag = |name| node.attributes.get_int(name).unwrap_or(0) != 0;
    let (ta, tb) = (flag("transA"), flag("transB"));
    for factor in ["alpha", "beta"] {
        if node.attributes.get_float(factor).is_some_and(|f| f != 1.0) {
            g.problems
                .push(Problem::node(&node.name, format!("Gemm has a gradient rule only for a factor {factor} of 1")));
        }
    }
    let da = is_active(node, 0, active).then(|| match ta {
        false => g.b.gemm(dy, b, None, false, !tb),
        true => g.b.gemm(b, dy, None, tb, true),
    });
    let db = is_active(node, 1, active).then(|| match tb {
        false => g.b.gemm(a, dy, None, !ta, false),
        true => g.b.gemm(dy, a, None, true, ta),
    });
    let dc = is_active(node, 2, active).then(|| g.fit(dy, x(node, 2)));
    vec![da, db, dc]
}

// y = x                     dx = dy
fn identity(_: &mut Backward, _: &Node, dy: ValueId, _: &[bool]) -> Contributions {
    one(dy)
}

// y = log softmax(x)        dx = dy - exp(y) sum(dy, axis)
fn log_softmax(g: &mut Backward, node: &Node, dy: ValueId, _: &[bool]) -> Contributions {
    let axis = node.attributes.get_int("axis").unwrap_or(-1);
    let total = g.b.reduce_sum(dy, &[axis], true);
    one(g.b.sub(dy, g.b.mul(g.b.exp(y(node)), total)))
}

// y = a b                   da = dy b^T, db = a^T dy, on the last two axes, summed over repeated batches
// y = a^T b                 da = b dy^T;   y = a b^T:   db = dy^T a
//
// So no gradient is transposed where the operand was: ONNX Runtime's products read an operand either way.
pub(super) fn mat_mul(g: &mut Backward, node: &Node, dy: ValueId, active: &[bool]) -> Contributions {
    let (a, b) = (x(node, 0), x(node, 1));
    if g.shape(a).len() < 2 || g.shape(b).len() < 2 {
        g.problems.push(Problem::node(&node.name, "MatMul has a gradient rule only for operands of rank 2 and more"));
        return vec![None, None];
    }
    let da = is_active(node, 0, active).then(|| match unswapped(g, a) {
        Some(inner) => {
            let product = g.b.matmul(b, swapped(g, dy));
            let product = g.fit(product, inner);
            swapped(g, product)
        }
        None => {
            let product = g.b.matmul(dy, swapped(g, b));
            g.fit(product, a)
        }
    });
    let db = is_active(node, 1, active).then(|| match unswapped(g, b) {
        Some(inner) => {
            let product = g.b.matmul(swapped(g, dy), a);
            let product = g.fit(product, inner);
            swapped(g, product)
        }
        None => {
            let product = g.b.matmul(swapped(g, a), dy);
            g.fit(product, b)
        }
    });
    vec![da, db]
}

/// The last two axes exchanged.
pub(super) fn swapped(g: &mut Backward, value: ValueId) -> ValueId {
    let perm = swap(g.shape(value).len());
    transposed(g, value, &perm)
}

/// A permutation that exchanges the last two of `rank` axes, of which there are two at least.
fn swap(rank: usize) -> Vec<i64> {
    let mut perm: Vec<i64> = (0..rank as i64).collect();
    perm.swap(rank - 1, rank - 2);
    perm
}

/// The value whose last two axes were exchanged to make this one.
pub(super) fn unswapped(g: &mut Backward, value: ValueId) -> Option<ValueId> {
    let swap = swap(g.shape(value).len());
    g.b.read(|graph| {
        let node = graph.node(graph.producer_of(value)?.0);
        let perm = node.attributes.get_ints("perm")?;
        (node.is("Transpose") && !is_backbone(&node.origin) && perm == swap).then(|| node.input(0))?
    })
}

/// A value with its axes permuted; where that undoes a permutation, the value as it was.
fn transposed(g: &mut Backward, value: ValueId, perm: &[i64]) -> ValueId {
    let undone = g.b.read(|graph| {
        let node = graph.node(graph.producer_of(value)?.0);
        let before = node.attributes.get_ints("perm")?;
        let is_inverse = perm.iter().enumerate().all(|(to, from)| before.get(*from as usize) == Some(&(to as i64)));
        (node.is("Transpose") && !is_backbone(&node.origin) && is_inverse).then(|| node.input(0))?
    });
    undone.unwrap_or_else(|| g.b.transpose(value, perm))
}

// y = a b                   da = dy b, db = dy a, each summed to its operand's shape
fn mul(g: &mut Backward, node: &Node, dy: ValueId, active: &[bool]) -> Contributions {
    let (a, b) = (x(node, 0), x(node, 1));
    let da = is_active(node, 0, active).then(|| {
        let product = g.b.mul(dy, b);
        g.fit(product, a)
    });
    let db = is_active(node, 1, active).then(|| {
        let product = g.b.mul(dy, a);
        g.fit(product, b)
    });
    vec![da, db]
}

// y = -x                    dx = -dy
fn neg(g: &mut Backward, _: &Node, dy: ValueId, _: &[bool]) -> Contributions {
    one(g.b.neg(dy))
}

// y = 1 / x                 dx = -dy y^2
fn reciprocal(g: &mut Backward, node: &Node, dy: ValueId, _: &[bool]) -> Contributions {
    let y = y(node);
    one(g.b.neg(g.b.mul(dy, g.b.mul(y, y))))
}

// y = sum(x, axes)          dx = dy, which broadcasts along the axes
fn reduce_sum(g: &mut Backward, node: &Node, dy: ValueId, _: &[bool]) -> Contributions {
    let rank = g.shape(x(node, 0)).len() as i64;
    let keeps = node.attributes.get_int("keepdims").unwrap_or(1) != 0;
    let axes = node.attributes.get_ints("axes").map(<[i64]>::to_vec);
    let axes = axes.or_else(|| node.input(1).and_then(|v| g.b.read(|graph| graph.weight(v)?.to_i64())));
    if node.input(1).is_some() && axes.is_none() {
        g.problems.push(Problem::node(&node.name, "ReduceSum has a gradient rule only for constant axes"));
    }
    let mut kept = dy;
    if !keeps && let Some(axes) = axes {
        let mut axes: Vec<i64> = axes.iter().map(|a| if *a < 0 { a + rank } else { *a }).collect();
        axes.sort_unstable();
        kept = axes.into_iter().fold(kept, |kept, axis| g.b.unsqueeze(kept, axis));
    }
    one(kept) // broadcasts to x's shape
}

// y = max(x, 0)             dx = dy (y > 0)
fn relu(g: &mut Backward, node: &Node, dy: ValueId, _: &[bool]) -> Contributions {
    let passes = g.b.op("Greater", &[y(node), g.b.f32(0.0)], Attributes::none());
    // ONNX Runtime's Where takes ten times as long as a product.
    let dtype = g.b.dtype(dy).unwrap_or(DType::F32);
    one(g.b.mul(dy, g.b.cast(passes, dtype)))
}

// y = x in another shape    dx = dy in x's shape
fn reshape(g: &mut Backward, node: &Node, dy: ValueId, _: &[bool]) -> Contributions {
    one(g.reshape_like(dy, x(node, 0)))
}

// y = 1 / (1 + exp(-x))     dx = dy y (1 - y)
fn sigmoid(g: &mut Backward, node: &Node, dy: ValueId, _: &[bool]) -> Contributions {
    let y = y(node);
    one(g.b.mul(dy, g.b.mul(y, g.b.sub(g.b.f32(1.0), y))))
}

// y = softmax(x)            dx = y (dy - sum(dy y, axis))
fn softmax(g: &mut Backward, node: &Node, dy: ValueId, _: &[bool]) -> Contributions {
    let y = y(node);
    let axis = node.attributes.get_int("axis").unwrap_or(-1);
    let inner = g.b.reduce_sum(g.b.mul(dy, y), &[axis], true);
    one(g.b.mul(y, g.b.sub(dy, inner)))
}

// y = sqrt(x)               dx = dy / (2 y)
fn sqrt(g: &mut Backward, node: &Node, dy: ValueId, _: &[bool]) -> Contributions {
    one(g.b.div(g.b.mul(dy, g.b.f32(0.5)), y(node)))
}

// y = a - b                 da = dy, db = -dy, each summed to its operand's shape
fn sub(g: &mut Backward, node: &Node, dy: ValueId, active: &[bool]) -> Contributions {
    let da = is_active(node, 0, active).then(|| g.fit(dy, x(node, 0)));
    let db = is_active(node, 1, active).then(|| {
        let summed = g.fit(dy, x(node, 1));
        g.b.neg(summed)
    });
    vec![da, db]
}

// y = a + b + ...           each operand: dy, summed to its shape
fn sum(g: &mut Backward, node: &Node, dy: ValueId, active: &[bool]) -> Contributions {
    (0..node.inputs.len()).map(|i| is_active(node, i, active).then(|| g.fit(dy, x(node, i)))).collect()
}

// y = tanh(x)               dx = dy (1 - y^2)
fn tanh(g: &mut Backward, node: &Node, dy: ValueId, _: &[bool]) -> Contributions {
    let y = y(node);
    one(g.b.mul(dy, g.b.sub(g.b.f32(1.0), g.b.mul(y, y))))
}

// y = x with axes permuted  dx = dy with the inverse permutation
fn transpose(g: &mut Backward, node: &Node, dy: ValueId, _: &[bool]) -> Contributions {
    let rank = g.shape(x(node, 0)).len();
    let reversed: Vec<i64> = (0..rank as i64).rev().collect();
    let perm = node.attributes.get_ints("perm").unwrap_or(&reversed);
    let mut inverse = vec![0; rank];
    perm.iter().enumerate().for_each(|(to, from)| inverse[*from as usize] = to as i64);
    one(transposed(g, dy, &inverse))
}

// y = condition ? a : b     da = condition ? dy : 0, db = condition ? 0 : dy, each summed to its operand's shape
fn select(g: &mut Backward, node: &Node, dy: ValueId, active: &[bool]) -> Contributions {
    let condition = x(node, 0);
    let zero = g.b.f32(0.0);
    // What is summed to a smaller operand must have y's axes.
    let seen = |g: &mut Backward, operand| if g.shape(operand) == g.shape(y(node)) { dy } else { g.fit(dy, y(node)) };
    let da = is_active(node, 1, active).then(|| {
        let dy = seen(g, x(node, 1));
        let chosen = g.b.select(condition, dy, zero);
        g.fit(chosen, x(node, 1))
    });
    let db = is_active(node, 2, active).then(|| {
        let dy = seen(g, x(node, 2));
        let chosen = g.b.select(condition, zero, dy);
        g.fit(chosen, x(node, 2))
    });
    vec![None, da, db]
}
