//! Graphviz output.

use std::fmt::Write;

use petgraph::dot::{Config, Dot};

use crate::infer::shape_text;
use crate::ir::{Graph, Node};
use crate::visit::{Edge, Flow};

/// The graph in Graphviz's language: a box for each node, coloured by the pass that made it, an edge for each value with its shape.
pub fn dot(graph: &Graph) -> String {
    let node = |_, (_, node): (_, &Node)| {
        let colour = if node.origin == crate::ir::Origin::SOURCE { "#d0d7de" } else { "#9ec5fe" };
        format!(
            "label=\"{}\\n{}\" tooltip=\"{}\" shape=box style=filled fillcolor=\"{colour}\"",
            escape(&node.op),
            node.origin,
            escape(&node.name)
        )
    };
    let edge = |_, edge: Edge| {
        let shape = graph.shape(edge.value()).map_or_else(String::new, |s| shape_text(&s));
        format!("label=\"{}\"", escape(&shape))
    };
    let mut text = String::new();
    let body = Dot::with_attr_getters(Flow(graph), &[Config::EdgeNoLabel, Config::NodeNoLabel], &edge, &node);
    write!(text, "{body:?}").expect("a String takes all text");
    text
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}
