//! The specification of a well-formed graph.
//!
//! * every node's inputs and outputs are values of the graph, and each output names its node as its source;
//! * names are unique, and every input and output of the graph exists;
//! * there is no cycle;
//! * every value that a node or the graph's interface touches has an element type and a symbolic shape.

use std::collections::HashSet;
use std::fmt;

use crate::ir::{Graph, Source, ValueId};

/// One thing that is wrong with a graph, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// The node or value.
    pub place: String,
    pub reason: String,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.place, self.reason)
    }
}

/// Every flaw of a graph; none for a well-formed one.
pub fn verify(graph: &Graph) -> Vec<Flaw> {
    let mut flaws = Vec::new();
    let mut touched: HashSet<ValueId> = graph.inputs.iter().chain(&graph.outputs).copied().collect();
    for id in graph.node_ids() {
        let node = graph.node(id);
        touched.extend(node.inputs.iter().chain(&node.outputs).flatten());
        for (slot, output) in node.outputs.iter().enumerate() {
            if let Some(output) = output
                && !matches!(graph.value(*output).source, Source::Node(n, s) if n == id && s == slot)
            {
                flaws.push(Flaw {
                    place: graph.value(*output).name.clone(),
                    reason: format!("is written by `{}`, but says it comes from elsewhere", node.name),
                });
            }
        }
    }
    let mut names = HashSet::new();
    for value in &touched {
        let value = graph.value(*value);
        if !names.insert(value.name.as_str()) {
            flaws.push(Flaw { place: value.name.clone(), reason: "is the name of two values".to_owned() });
        }
        if let Source::Node(node, _) = value.source
            && graph.nodes[node.index()].is_none()
        {
            flaws.push(Flaw { place: value.name.clone(), reason: "is read, but its node was removed".to_owned() });
        }
    }
    if let Err(node) = graph.order() {
        let place = graph.node(node).name.clone();
        flaws.push(Flaw { place, reason: "is part of a cycle".to_owned() });
    }
    for id in touched {
        let value = graph.value(id);
        let missing = match (value.dtype, value.shape()) {
            (Some(_), Some(_)) => continue,
            (None, Some(_)) => "no element type",
            (Some(_), None) => "no shape",
            (None, None) => "neither element type nor shape",
        };
        let maker = match value.source {
            Source::Node(node, _) if graph.nodes[node.index()].is_some() => {
                format!(" (output of the {} `{}`)", graph.node(node).op, graph.node(node).name)
            }
            _ => String::new(),
        };
        flaws.push(Flaw { place: value.name.clone(), reason: format!("has {missing}{maker}") });
    }
    flaws.sort_by(|a, b| (&a.place, &a.reason).cmp(&(&b.place, &b.reason)));
    flaws
}
