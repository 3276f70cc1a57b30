//! Graphviz output.

use std::fmt::Write;

use petgraph::dot::{Config, Dot};

use crate::infer::shape_text;
use crate::ir::Graph;

/// The graph in Graphviz's language: a box for each node, coloured by the pass that made it, an edge for each value with its shape.
pub fn dot(graph: &Graph) -> String {
    let flow = graph.dataflow();
    let node = |_, (_, id): (_, &crate::ir::NodeId)| {
        let node = graph.node(*id);
        let colour = if node.origin == crate::ir::Origin::SOURCE { "#d0d7de" } else { "#9ec5fe" };
        format!(
            "label=\"{}\\n{}\" tooltip=\"{}\" shape=box style=filled fillcolor=\"{colour}\"",
            escape(&node.op),
            node.origin,
            escape(&node.name)
        )
    };
    let edge = |_, edge: petgraph::graph::EdgeReference<'_, crate::ir::ValueId, u32>| {
        let shape = graph.shape(*edge.weight()).map_or_else(String::new, |s| shape_text(&s));
        format!("label=\"{}\"", escape(&shape))
    };
    let mut text = String::new();
    let body = Dot::with_attr_getters(&flow, &[Config::EdgeNoLabel, Config::NodeNoLabel], &edge, &node);
    write!(text, "{body:?}").expect("a String takes all text");
    text
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}
