//! What passes work on: the graph, what is known of it, and what has been made so far.

use std::collections::HashSet;
use std::sync::Arc;

use lstc_graph::{Dim, Graph, Node, Origin, ValueId};
use lstc_models::{Anatomy, RESTATED, TowerId};

use crate::block::MatrixValue;
use crate::contract::{Compared, Contract};
use crate::fold::Folded;
use crate::initial::Initial;
use crate::ladder::key::Key;
use crate::ladder::plan::{Group, Plan, PlannedParameter};
use crate::options::Options;
pub use crate::point::Point;
use crate::problem::Problem;
use crate::quantise::{QUANTISE, Quantised, QuantisedHead, Store};

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
    pub fn new(graph: Graph, anatomy: Anatomy, options: Options) -> Result<Module, Vec<Problem>> {
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

    /// What is promised of the graphs so far.
    pub fn contract(&self) -> Contract {
        Contract {
            values: self.source.values(),
            reads: self.cut.clone(),
            remade: self.quantised.iter().flat_map(|q| q.remade().copied()).collect(),
            folded: self.folded.as_ref().map(|folded| folded.values.clone()).unwrap_or_default(),
            inner: self.quantised.as_ref().map(Quantised::inner).unwrap_or_default(),
        }
    }

    /// Holds the graph against the contract, as after every pass.
    ///
    /// # Errors
    /// Every breach, with the node or value.
    pub fn check(&self) -> Result<(), Vec<Problem>> {
        let (contract, graph) = (self.contract(), &self.graph);
        let of = |value: ValueId| (!self.is_new(value)).then_some(value);
        let mut breaches = contract.breaches(&Compared { graph, model: &self.source, of: &of });
        breaches.backbone.extend(contract.losses(graph, &self.source));
        match &self.quantised {
            Some(quantised) => breaches.backbone.extend(quantised.breaches(graph)),
            None => {
                let made = graph.node_ids().map(|id| graph.node(id)).filter(|node| node.origin == QUANTISE);
                let problem = |node: &Node| Problem::node(&node.name, "computes in a precision that was not asked for");
                breaches.backbone.extend(made.map(problem));
            }
        }
        let breaches = breaches.numbered();
        if breaches.is_empty() { Ok(()) } else { Err(breaches) }
    }
}
