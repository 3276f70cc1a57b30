//! What a method promises of its graphs, and the one check of it. The driver makes it after every pass, against the model that was
//! read; `lstc verify` makes it on the graphs on disk, against the model as it is compiled again.
//!
//! For every method:
//!
//! 1. No node of the backbone depends on a trainable parameter.
//! 2. New nodes read of the backbone only what the contract names.
//! 3. The backbone's nodes and weights are the model's, but for what the contract says others make.
//! 4. Every value has an element type and a symbolic shape.
//!
//! That no gradient enters the backbone is Ladder Side-Tuning's own promise: its contract names taps, masks, bucket indices and the
//! frozen head, and nothing else.

use std::collections::{HashMap, HashSet};

use lstc_graph::{Graph, Node, NodeId, Role, Source, ValueId, Weight};

use crate::module::is_backbone;
use crate::problem::Problem;
use crate::quantise::{QUANTISE, Remade};

/// What a method promises of its graphs.
#[derive(Clone, Debug, Default)]
pub struct Contract {
    /// How many values the model has: those of new nodes come after them.
    pub values: usize,
    /// Values of the backbone that new nodes may read.
    pub reads: HashSet<ValueId>,
    /// Values of the backbone that other nodes make than in the model.
    pub remade: Vec<Remade>,
    /// Values of the backbone that fixed sizes made constants.
    pub folded: HashSet<ValueId>,
    /// Values of the nodes that make remade ones.
    pub inner: HashSet<ValueId>,
}

/// Graphs that are compared: what is made of a model, and the model.
pub struct Compared<'c> {
    pub graph: &'c Graph,
    pub model: &'c Graph,
    /// The model's value that a value of the graph is.
    pub of: &'c dyn Fn(ValueId) -> Option<ValueId>,
}

/// Breaches of a contract.
#[derive(Clone, Debug, Default)]
pub struct Breaches {
    pub frozen: Vec<Problem>,
    pub reads: Vec<Problem>,
    pub backbone: Vec<Problem>,
    pub shapes: Vec<Problem>,
}

impl Breaches {
    /// All of them, each with the number of what it breaches.
    pub fn numbered(self) -> Vec<Problem> {
        let Breaches { frozen, reads, backbone, shapes } = self;
        let all = [frozen, reads, backbone, shapes].into_iter().zip(1..);
        let numbered = |(problems, number): (Vec<Problem>, i32)| {
            let named = move |p: Problem| Problem { what: format!("invariant {number}: {}", p.what), ..p };
            problems.into_iter().map(named)
        };
        all.flat_map(numbered).collect()
    }
}

impl Contract {
    /// Every breach in a graph, with the node or value.
    pub fn breaches(&self, compared: &Compared) -> Breaches {
        let shapes = lstc_graph::verify(compared.graph);
        Breaches {
            frozen: frozen(compared.graph),
            reads: self.unnamed(compared),
            backbone: self.changes(compared),
            shapes: shapes.iter().map(|found| Problem::model(found.to_string())).collect(),
        }
    }

    /// New nodes that read a value of the backbone that is not named.
    fn unnamed(&self, compared: &Compared) -> Vec<Problem> {
        let Compared { graph, of, .. } = compared;
        let mut problems = Vec::new();
        for node in graph.node_ids().map(|id| graph.node(id)).filter(|node| !is_backbone(&node.origin)) {
            for read in node.inputs.iter().flatten() {
                let value = of(*read).unwrap_or(*read);
                let is_of_backbone = value.index() < self.values || self.inner.contains(&value);
                if is_of_backbone && !self.reads.contains(&value) {
                    let name = &graph.value(*read).name;
                    let what =
                        format!("a node of pass {} reads the backbone's `{name}`, which is not a tap", node.origin);
                    problems.push(Problem::node(&node.name, what));
                }
            }
        }
        problems
    }

    /// What of the model is no longer in a graph that is to hold all of it, and what of its values is made by others.
    pub fn losses(&self, graph: &Graph, model: &Graph) -> Vec<Problem> {
        let mut problems = Vec::new();
        let left: HashSet<NodeId> = graph.node_ids().collect();
        let remade: HashMap<ValueId, Remade> = self.remade.iter().map(|r| (r.value, *r)).collect();
        let is_replaced = |id: NodeId, value: ValueId| {
            self.folded.contains(&value) || remade.get(&value).is_some_and(|r| r.source == id)
        };
        for id in model.node_ids().filter(|id| !left.contains(id)) {
            let node = model.node(id);
            if !node.outputs.iter().flatten().all(|v| is_replaced(id, *v)) {
                problems.push(Problem::node(&node.name, "a node of the backbone was removed"));
            }
        }
        for id in model.value_ids() {
            let (before, after) = (model.value(id), graph.value(id));
            let same = match (&before.source, &after.source) {
                (Source::Weight(a), Source::Weight(b)) => a.bytes().as_ptr() == b.bytes().as_ptr() || a == b,
                (Source::Node(a, i), Source::Node(b, j)) => {
                    (a, i) == (b, j) || *j == 0 && remade.get(&id).is_some_and(|r| r.by == *b && r.source == *a)
                }
                (Source::Input(_), Source::Input(role)) => *role == Role::Frozen,
                (Source::Node(..), Source::Weight(_)) => self.folded.contains(&id),
                _ => false,
            };
            if !same {
                problems.push(Problem::value(&before.name, "a value of the backbone was changed"));
            }
        }
        problems
    }

    /// Nodes of the backbone that are not the model's, and weights that they read. Those that another precision makes are held
    /// against the model only if it has them too: the pass that made them has its own record.
    fn changes(&self, Compared { graph, model, of }: &Compared) -> Vec<Problem> {
        let is_compiled = model.node_ids().any(|id| model.node(id).origin == QUANTISE);
        let mut problems = Vec::new();
        let alike = |values: &[Option<ValueId>], others: &[Option<ValueId>]| {
            values.len() == others.len() && values.iter().zip(others).all(|(v, other)| v.and_then(of) == *other)
        };
        let is_held = |node: &&Node| is_backbone(&node.origin) && (is_compiled || node.origin != QUANTISE);
        for node in graph.node_ids().map(|id| graph.node(id)).filter(is_held) {
            let original = node.output(0).and_then(of).and_then(|v| model.producer_of(v)).map(|(id, _)| model.node(id));
            let same = original.is_some_and(|original| {
                (&original.domain, &original.op) == (&node.domain, &node.op)
                    && original.attributes == node.attributes
                    && alike(&node.inputs, &original.inputs)
                    && alike(&node.outputs, &original.outputs)
            });
            if !same {
                problems.push(Problem::node(&node.name, "a node of the backbone was changed"));
            }
            for value in node.inputs.iter().flatten() {
                let Some(weight) = graph.weight(*value) else { continue };
                let is_same = of(*value).is_some_and(|v| {
                    let is_original =
                        |original: &Weight| original.bytes().as_ptr() == weight.bytes().as_ptr() || original == weight;
                    self.folded.contains(&v) || model.weight(v).is_some_and(is_original)
                });
                if !is_same {
                    let problem = Problem::value(&graph.value(*value).name, "a weight of the backbone was changed");
                    problems.push(problem);
                }
            }
        }
        problems
    }
}

/// Nodes of the backbone that depend on a trainable parameter.
fn frozen(graph: &Graph) -> Vec<Problem> {
    let touched = graph.dependents(graph.value_ids().filter(|v| graph.value(*v).is_trainable()));
    let moves = |node: &&Node| node.outputs.iter().flatten().any(|v| touched[v.index()]);
    let nodes = graph.node_ids().map(|id| graph.node(id)).filter(|node| is_backbone(&node.origin));
    let problem = |node: &Node| Problem::node(&node.name, "a frozen node depends on a trainable parameter");
    nodes.filter(moves).map(problem).collect()
}
