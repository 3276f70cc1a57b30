//! The norms of a graph, however an exporter or an optimiser wrote them.

use lstc_graph::{Graph, ValueId};

use crate::anatomy::Norm;
use crate::matcher::Matcher;

/// A norm by the root mean square over the last axis, and where it is.
#[derive(Clone, Debug)]
pub struct FoundNorm {
    pub x: ValueId,
    pub y: ValueId,
    pub norm: Norm,
}

/// Every norm of the graph that is spelled out, in the order of its nodes; those that are one operator already are left out.
pub fn norms(graph: &Graph) -> Vec<FoundNorm> {
    let matcher = Matcher::new(graph);
    let products = graph.node_ids().map(|id| graph.node(id)).filter(|node| node.is("Mul"));
    let found = |y: ValueId| {
        let (norm, x) = matcher.attempt(|| matcher.norm(y)).ok()?;
        Some(FoundNorm { x, y, norm })
    };
    products.filter_map(|node| node.output(0)).filter_map(found).collect()
}
