//! What shows at a glance that a graph is not for this compiler.

use lstc_graph::{Graph, MICROSOFT, NodeId, Origin, misuses};

use crate::place::Place;
use crate::refusal::Refusal;

/// The oldest opset whose operators the emitted graphs use.
const OLDEST_OPSET: i64 = 11;

/// Every such thing.
pub fn refusals(graph: &Graph) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let mut refuse = |reason: String| {
        refusals.push(Refusal::whole(Place::Model, reason));
    };
    if graph.node_ids().any(|id| graph.node(id).origin != Origin::SOURCE) {
        refuse("was written by lstc itself: rewrite the model that it was made from".to_owned());
    }
    for node in strange_nodes(graph) {
        refuse(node);
    }
    for (id, reason) in misuses(graph) {
        refuse(format!(
            "has a node that ONNX does not allow: the {} `{}` {reason}",
            graph.node(id).op,
            graph.node(id).name
        ));
    }
    if graph.opset() < OLDEST_OPSET {
        refuse(format!("uses opset {}, but {OLDEST_OPSET} is the oldest supported: export it again", graph.opset()));
    }
    refusals
}

/// Operators that compute something which no shape and no pattern is known of, each named once.
fn strange_nodes(graph: &Graph) -> Vec<String> {
    let mut kinds: Vec<String> = Vec::new();
    let mut live: Vec<NodeId> = graph.ancestors(graph.outputs.iter().copied()).into_iter().collect();
    live.sort_unstable();
    let mut found = Vec::new();
    for node in live.into_iter().map(|id| graph.node(id)) {
        let strange = if !node.is_default_domain() && node.domain != MICROSOFT {
            "an operator of a domain that lstc does not know"
        } else if node.op.contains("Sequence") || node.op.starts_with("Optional") {
            "an operator on sequences, which lstc does not read"
        } else {
            continue;
        };
        if !kinds.contains(&node.kind()) {
            kinds.push(node.kind());
            found.push(format!("computes {} in `{}`: {strange}", node.kind(), node.name));
        }
    }
    found
}
