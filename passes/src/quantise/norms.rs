//! Norms in the form that ONNX Runtime fuses into one operator.
//!
//! ```text
//! exported   n = x (1 / root)
//! here       n = x / root
//! ```
//!
//! With the square, the mean and the weight around it, the quotient is its SimplifiedLayerNormalization: one pass over what takes
//! four. The last bit may differ, and the quantised backbone's results are its own anyway.

use std::collections::HashSet;

use lstc_graph::{Attributes, Builder, DType, Graph, NodeId, Uses, ValueId};

use super::Remade;
use crate::module::is_backbone;

/// Divides by a root instead of multiplying by its reciprocal, where nothing else reads that; not for a value that is `needed` as
/// it is.
pub fn quotients(b: &Builder, uses: &Uses, needed: &HashSet<ValueId>) -> Vec<Remade> {
    let found: Vec<_> = b.read(|graph| {
        let nodes = graph.node_ids().filter_map(|id| Some((id, scaled(graph, uses, id)?)));
        nodes.filter(|(_, (_, _, n))| !needed.contains(n)).collect()
    });
    let remake = |(source, (x, root, value)): (NodeId, (ValueId, ValueId, ValueId))| {
        let made = b.unshared("Div", &[x, root], Attributes::none(), 1)[0];
        let by = b.read(|graph| graph.producer_of(made)).expect("a node was emitted").0;
        b.edit(|graph| graph.remake(value, by));
        Remade { value, source, by }
    };
    found.into_iter().map(remake).collect()
}

/// The operands of the backbone's product with the reciprocal of a root: what is multiplied, the root, and what is made.
fn scaled(graph: &Graph, uses: &Uses, id: NodeId) -> Option<(ValueId, ValueId, ValueId)> {
    let product = Some(graph.node(id)).filter(|node| node.is("Mul") && is_backbone(&node.origin))?;
    let made_by = |value: ValueId, op: &str| {
        let node = graph.node(graph.producer_of(value)?.0);
        node.is(op).then(|| node.input(0))?
    };
    let n = product.output(0).filter(|n| graph.value(*n).dtype == Some(DType::F32))?;
    (0..2).find_map(|at| {
        let (x, reciprocal) = (product.input(1 - at)?, product.input(at)?);
        let root = made_by(reciprocal, "Reciprocal").filter(|root| made_by(*root, "Sqrt").is_some())?;
        (uses.of(reciprocal).len() == 1).then_some((x, root, n))
    })
}

#[cfg(test)]
mod tests {
    use lstc_graph::{Origin, parse};

    use super::*;

    /// Whether `n` is a quotient, where `nodes` make it of x and of `root`, and it is needed or not.
    fn divides(nodes: &str, needed: bool) -> bool {
        let text =
            format!("(x: f32[B, 4], square: f32[B, 1]) {{ root = Sqrt(square)  {nodes}  out = Relu(n) }} -> out");
        let mut graph = parse(&text, 17).expect("the test's graph is well-formed");
        let n = graph.find("n").expect("the test names its values so");
        let (uses, needed) = (graph.uses(), needed.then_some(n).into_iter().collect());
        let b = Builder::new(&mut graph, Origin::pass("test"));
        let remade = quotients(&b, &uses, &needed);
        let quotient = b.read(|graph| graph.node(graph.producer_of(n).expect("a node makes it").0).is("Div"));
        assert_eq!(remade.len(), usize::from(quotient));
        quotient
    }

    #[test]
    fn what_is_multiplied_by_the_reciprocal_of_a_root_is_divided_by_the_root() {
        assert!(divides("r = Reciprocal(root)  n = Mul(x, r)", false));
        assert!(divides("r = Reciprocal(root)  n = Mul(r, x)", false));
    }

    #[test]
    fn what_others_read_and_what_is_no_root_stays() {
        assert!(!divides("r = Reciprocal(root)  n = Mul(x, r)", true));
        assert!(!divides("r = Reciprocal(root)  m = Mul(x, r)  n = Add(m, r)", false));
        assert!(!divides("r = Reciprocal(square)  n = Mul(x, r)", false));
        assert!(!divides("n = Mul(x, root)", false));
    }
}
