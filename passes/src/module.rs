//! What passes work on: the graph, what is known of it, and what has been made so far.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use lstc_graph::{Dim, Graph, NodeId, Origin, Role, Source, ValueId};
use lstc_models::{Anatomy, RESTATED, TowerId};

use crate::block::MatrixValue;
use crate::fold::Folded;
use crate::initial::Initial;
use crate::key::Key;
use crate::options::Options;
use crate::plan::{Group, Plan, PlannedParameter};
pub use crate::point::Point;
use crate::quantise::{QUANTISE, Quantised, QuantisedHead, Remade, Store};

/// A hidden state of the backbone that the side network reads.
#[derive(Clone, Debug)]
pub struct Tap {
    pub tower: TowerId,
    pub point: Point,
    /// The backbone's own value, `[batch, length, width]`.
    pub value: ValueId,
    /// What new nodes read: the same in f32.
    pub read: ValueId,
}

/// A trainable tensor.
#[derive(Clone, Debug)]
pub struct Parameter {
    pub key: Key,
    /// In the reference's state dict; also the graph input's name.
    pub name: String,
    pub dims: Vec<usize>,
    pub group: Group,
    pub value: ValueId,
    /// dLoss/dParameter, once the graph is differentiated.
    pub gradient: Option<ValueId>,
}

/// A model on its way through the pipeline.
pub struct Module {
    pub graph: Graph,
    pub anatomy: Anatomy,
    pub options: Options,
    pub plan: Plan,
    /// What fixed sizes made of the backbone, where they were asked for.
    pub folded: Option<Folded>,
    /// What became of the backbone's products, where another precision was asked for.
    pub quantised: Option<Quantised>,
    /// The LM head in 8 bits, where that was asked for.
    pub quantised_head: Option<QuantisedHead>,
    /// Where new constants of the backbone are kept.
    pub store: Store,
    pub taps: Vec<Tap>,
    /// Backbone values that new nodes may read.
    pub cut: HashSet<ValueId>,
    /// Initial values, in the order of the plan's parameters.
    pub initial: Vec<Initial>,
    pub parameters: Vec<Parameter>,
    /// The side state after each tower's final norm, `[batch * length, d/r]`, in the anatomy's order.
    pub side_outputs: Vec<ValueId>,
    pub logits: Option<ValueId>,
    pub labels: Option<ValueId>,
    pub loss: Option<ValueId>,
    /// What the head reads, `[batch * length, d]`.
    pub head_input: Option<ValueId>,
    /// The LM head's matrix in f32, as the side network's products read it.
    pub head_matrix: Option<MatrixValue>,
    /// Where differentiation begins: a value and the gradient of the loss there.
    pub seed: Option<(ValueId, ValueId)>,
    /// Values named in train.onnx's interface.
    pub step: Option<StepValues>,
    /// The graph before its products were quantised.
    pub(crate) unquantised: Option<Arc<Graph>>,
    /// The graph as it was read: what the backbone must stay.
    source: Arc<Graph>,
}

/// What an optimizer step gives.
#[derive(Clone, Debug)]
pub struct StepValues {
    pub grad_norm: ValueId,
    /// `<name>.next` of each parameter.
    pub next: Vec<ValueId>,
    /// `adam.m/<name>.next` and `adam.v/<name>.next` of each group.
    pub moments: Vec<[ValueId; 2]>,
}

/// True for a node of the source, one that restates a fused node of it, or one that computes a product of it in another
/// precision.
pub fn is_backbone(origin: &Origin) -> bool {
    [Origin::SOURCE, RESTATED, QUANTISE].contains(origin)
}

impl Module {
    /// A recognised model, with the side network that the options ask for planned.
    ///
    /// # Errors
    /// Every option that does not fit the model.
    pub fn new(graph: Graph, anatomy: Anatomy, options: Options) -> Result<Module, Vec<String>> {
        let plan = Plan::new(&graph, &anatomy, &options)?;
        Ok(Module {
            source: Arc::new(graph.clone()),
            graph,
            anatomy,
            options,
            plan,
            folded: None,
            quantised: None,
            quantised_head: None,
            store: Store::default(),
            taps: Vec::new(),
            cut: HashSet::new(),
            initial: Vec::new(),
            parameters: Vec::new(),
            side_outputs: Vec::new(),
            logits: None,
            labels: None,
            loss: None,
            head_input: None,
            head_matrix: None,
            seed: None,
            step: None,
            unquantised: None,
        })
    }

    pub fn tap(&self, tower: TowerId, point: Point) -> ValueId {
        let tap = self.taps.iter().find(|t| t.tower == tower && t.point == point);
        tap.expect("taps were set of what the options read").read
    }

    /// Gives the inputs and the towers other sizes. What these decide is inferred again by the caller.
    pub(crate) fn resize(&mut self, replace: impl Fn(&Dim) -> Dim) {
        for input in self.graph.inputs.clone() {
            if let Some(shape) = self.graph.shape(input) {
                let shape: Vec<Dim> = shape.iter().map(&replace).collect();
                self.graph.refine(input, &shape);
            }
        }
        for tower in &mut self.anatomy.towers {
            tower.batch = replace(&tower.batch);
            tower.length = replace(&tower.length);
        }
    }

    /// True for a value that a pass made.
    pub fn is_new(&self, value: ValueId) -> bool {
        value.index() >= self.source.values()
    }

    /// The graph input of a planned parameter.
    pub fn parameter(&self, key: Key) -> ValueId {
        self.parameters.iter().find(|p| p.key == key).expect("planned parameters were declared").value
    }

    /// True for a backbone value that fixed sizes made a constant.
    pub fn is_folded(&self, value: ValueId) -> bool {
        self.folded.as_ref().is_some_and(|folded| folded.values.contains(&value))
    }

    /// The constant that the side network's LM head is, or is a cast of.
    pub fn head_constant(&self) -> Option<ValueId> {
        let value = self.head_matrix?.value;
        if self.graph.weight(value).is_some() {
            return Some(value);
        }
        let node = self.graph.node(self.graph.producer_of(value)?.0);
        node.input(0).filter(|v| node.is("Cast") && self.graph.weight(*v).is_some())
    }

    /// The graph as it was read.
    pub fn source(&self) -> &Graph {
        &self.source
    }

    /// The graph with the backbone's products as they are in the source.
    pub fn unquantised(&self) -> &Graph {
        self.unquantised.as_deref().unwrap_or(&self.graph)
    }

    pub fn planned(&self) -> impl Iterator<Item = &PlannedParameter> {
        self.plan.parameters.iter()
    }

    /// The invariants that hold after every pass.
    ///
    /// 1. No frozen value depends on a trainable parameter.
    /// 2. No new node reads a backbone value other than a tap, a mask, bucket indices or the frozen head weight.
    /// 3. The backbone's nodes are the source model's, unchanged, and those that restate fused ones. A value that fixed
    ///    sizes decide may be a constant, and its node gone. Where another precision was asked for, a product, the heads that
    ///    become of it, or a norm may be made by the nodes that the pass `quantise` recorded for it, and by no others.
    /// 4. Every value has an element type and a symbolic shape.
    ///
    /// # Errors
    /// Every breach, with the node or value.
    pub fn check(&self) -> Result<(), Vec<String>> {
        let mut breaches = Vec::new();
        self.check_frozen(&mut breaches);
        self.check_cut(&mut breaches);
        self.check_backbone(&mut breaches);
        breaches.extend(lstc_graph::verify(&self.graph).iter().map(|f| format!("invariant 4: {f}")));
        if breaches.is_empty() { Ok(()) } else { Err(breaches) }
    }

    fn check_frozen(&self, breaches: &mut Vec<String>) {
        let graph = &self.graph;
        let trainable = graph.value_ids().filter(|v| graph.value(*v).is_trainable());
        let touched = graph.dependents(trainable);
        for id in graph.node_ids().filter(|id| is_backbone(&graph.node(*id).origin)) {
            let node = graph.node(id);
            if node.outputs.iter().flatten().any(|v| touched[v.index()]) {
                breaches.push(format!("invariant 1: the frozen node `{}` depends on a trainable parameter", node.name));
            }
        }
    }

    fn check_cut(&self, breaches: &mut Vec<String>) {
        let graph = &self.graph;
        let inner_values = self.quantised.as_ref().map(Quantised::inner).unwrap_or_default();
        let inner = |v: &ValueId| inner_values.contains(v);
        let of_source = |v: &ValueId| !self.is_new(*v) || inner(v);
        for id in graph.node_ids().filter(|id| !is_backbone(&graph.node(*id).origin)) {
            let node = graph.node(id);
            for value in node.inputs.iter().flatten().filter(|v| of_source(v) && !self.cut.contains(v)) {
                let name = &graph.value(*value).name;
                breaches.push(format!(
                    "invariant 2: `{}` of pass {} reads the backbone's `{name}`, which is not a tap",
                    node.name, node.origin
                ));
            }
        }
    }

    fn check_backbone(&self, breaches: &mut Vec<String>) {
        let left: HashSet<NodeId> = self.graph.node_ids().collect();
        let remade: HashMap<ValueId, Remade> =
            self.quantised.iter().flat_map(|q| q.remade().map(|r| (r.value, *r))).collect();
        let replaced = |id: NodeId, value: ValueId| remade.get(&value).is_some_and(|r| r.source == id);
        for id in self.source.node_ids() {
            let before = self.source.node(id);
            if !left.contains(&id) {
                if !before.outputs.iter().flatten().all(|v| self.is_folded(*v) || replaced(id, *v)) {
                    breaches.push(format!("invariant 3: the backbone's node `{}` was removed", before.name));
                }
                continue;
            }
            let after = self.graph.node(id);
            let same = (&before.domain, &before.op) == (&after.domain, &after.op)
                && before.inputs == after.inputs
                && before.outputs == after.outputs
                && before.attributes == after.attributes;
            if !same {
                breaches.push(format!("invariant 3: the backbone's node `{}` was changed", before.name));
            }
        }
        for id in self.source.value_ids() {
            let (before, after) = (self.source.value(id), self.graph.value(id));
            let same = match (&before.source, &after.source) {
                (Source::Weight(a), Source::Weight(b)) => a.bytes().as_ptr() == b.bytes().as_ptr() || a == b,
                (Source::Node(a, i), Source::Node(b, j)) => {
                    (a, i) == (b, j) || *j == 0 && remade.get(&id).is_some_and(|r| r.by == *b && r.source == *a)
                }
                (Source::Input(_), Source::Input(role)) => *role == Role::Frozen,
                (Source::Node(..), Source::Weight(_)) => self.is_folded(id),
                _ => false,
            };
            if !same {
                breaches.push(format!("invariant 3: the backbone's value `{}` was changed", before.name));
            }
        }
        match &self.quantised {
            Some(quantised) => {
                breaches.extend(quantised.breaches(&self.graph).into_iter().map(|b| format!("invariant 3: {b}")));
            }
            None => {
                let made = |id: &NodeId| self.graph.node(*id).origin == QUANTISE;
                breaches.extend(self.graph.node_ids().filter(made).map(|id| {
                    format!(
                        "invariant 3: `{}` computes in a precision that was not asked for",
                        self.graph.node(id).name
                    )
                }));
            }
        }
    }
}
