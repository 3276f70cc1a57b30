//! The gradient of a norm by the root mean square, with its weight: one rule for all of its operators.
//!
//! ```text
//! y = n w, n = x / r, r = sqrt(c sum(x^2) + epsilon)      dx = (dy w - c n sum(dy n w)) / r,   dw = dy n, summed over rows
//! ```
//!
//! dy n is needed for both. Its products with w and with ones are the two sums: of the passes over what is as large as x, half
//! of those are left that the operators' own rules would make.

use lstc_graph::{Dim, Graph, Node, Uses, ValueId};

use super::Backward;
use super::rules::{is_active, x, y};

/// The parts of a norm.
struct Norm {
    x: ValueId,
    n: ValueId,
    root: ValueId,
    /// c: one over the width, where the mean is taken.
    factor: ValueId,
    weight: ValueId,
}

/// The gradients of x and w; `None` for a product of another kind.
pub fn normed(
    g: &mut Backward,
    node: &Node,
    dy: ValueId,
    uses: &Uses,
    (active, wanted): (&[bool], &[ValueId]),
) -> Option<Vec<(ValueId, ValueId)>> {
    let single = |value: ValueId| uses.of(value).len() == 1 && !wanted.contains(&value);
    let norm = g.b.read(|graph| (0..2).find_map(|at| norm(graph, node, at, &single)))?;
    let ([rows, columns], [weights]) = (&g.b.shape(norm.x)?[..], &g.b.shape(norm.weight)?[..]) else { return None };
    let (rows, one) = (rows.clone(), Dim::Value(1));
    let Dim::Value(width) = *weights else { return None };
    if columns != weights || !active.get(norm.x.index()).is_some_and(|active| *active) {
        return None;
    }
    let dy = g.fit(dy, y(node));
    let product = g.b.mul(dy, norm.n);
    let column = g.b.reshape(g.b.mul(norm.weight, norm.factor), &[width.into(), 1]);
    let slope = g.b.shaped(g.b.gemm(product, column, None, false, false), &[rows, one]);
    let through = g.b.sub(g.b.mul(dy, norm.weight), g.b.mul(norm.n, slope));
    let mut gradients = vec![(norm.x, g.b.div(through, norm.root))];
    let at = usize::from(x(node, 1) == norm.weight);
    if is_active(node, at, active) {
        gradients.push((norm.weight, g.fit(product, norm.weight)));
    }
    Some(gradients)
}

/// The norm whose output before its weight is operand `at` of a product.
fn norm(graph: &Graph, product: &Node, at: usize, single: &impl Fn(ValueId) -> bool) -> Option<Norm> {
    let made = |value: ValueId, op: &str| {
        let node = graph.node(graph.producer_of(value)?.0);
        (node.is(op) && single(value)).then_some(node)
    };
    let scalar = |value: ValueId| graph.weight(value).is_some_and(|w| w.dims().iter().product::<usize>() == 1);
    let constant = |node: &Node| -> Option<(ValueId, ValueId)> {
        let (a, b) = (node.input(0)?, node.input(1)?);
        if scalar(b) { Some((a, b)) } else { scalar(a).then_some((b, a)) }
    };
    if !product.is("Mul") {
        return None;
    }
    let (n, weight) = (product.input(at)?, product.input(1 - at)?);
    let quotient = made(n, "Div")?;
    let (x, root) = (quotient.input(0)?, quotient.input(1)?);
    let (mean, _) = constant(made(made(root, "Sqrt")?.input(0)?, "Add")?)?;
    let (sum, factor) = constant(made(mean, "Mul")?)?;
    let sum = made(sum, "ReduceSum")?;
    let square = made(sum.input(0)?, "Mul")?;
    let is_square = square.input(0) == Some(x) && square.input(1) == Some(x);
    (is_square && sums_rows(graph, sum)).then_some(Norm { x, n, root, factor, weight })
}

/// True for a sum along the last axis of a matrix, which stays, with the size 1.
fn sums_rows(graph: &Graph, sum: &Node) -> bool {
    let given = sum.attributes.get_ints("axes").map(<[i64]>::to_vec);
    let axes = given.or_else(|| graph.weight(sum.input(1)?)?.to_i64());
    sum.attributes.get_int("keepdims").unwrap_or(1) != 0 && matches!(axes.as_deref(), Some([-1 | 1]))
}
