//! Predicted memory of training: the weights, the activations that are alive at once, gradients and optimizer state.
//!
//! For Ladder Side-Tuning the activations are the peak of a walk through train.onnx in the order of its nodes: a value
//! lives from the node that makes it to the last that reads it; reshapes are views. For full fine-tuning they are
//! every floating-point value that the model computes, since its backward pass needs nearly all of them, and the
//! logits' gradient.

use std::collections::HashMap;
use std::fmt;

use lstc_graph::{Dim, Graph, NodeId, ValueId, dim_text};
use lstc_passes::{Artifacts, Module};
use serde::Serialize;

use crate::report::{self, Bytes};
use crate::rewrite::frozen_elements;

/// Sizes for the symbolic dimensions.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sizes {
    pub batch: usize,
    pub source_length: usize,
    pub target_length: usize,
}

/// Bytes of one way to train.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Cost {
    pub trainable: usize,
    pub weights: u64,
    pub activations: u64,
    /// Gradients and both moments.
    pub optimizer: u64,
    pub total: u64,
}

impl Cost {
    fn new(trainable: usize, weights: u64, activations: u64) -> Cost {
        let optimizer = trainable as u64 * 4 * 3;
        Cost { trainable, weights, activations, optimizer, total: weights + activations + optimizer }
    }
}

/// A prediction, for Ladder Side-Tuning beside full fine-tuning.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    pub reduction: usize,
    pub sizes: Sizes,
    pub lst: Cost,
    pub full: Cost,
}

impl Memory {
    pub fn predict(module: &Module, artifacts: &Artifacts, sizes: Sizes) -> Memory {
        let binding = Binding::new(module, sizes);
        let side: usize = module.parameters.iter().map(|p| p.dims.iter().product::<usize>()).sum();
        let backbone = frozen_elements(module);
        let weights = bytes_of_weights(&artifacts.train);
        let full = module.graph.slice(&[module.anatomy.head.logits]);
        let kept = binding.sum_of_floats(&full) + 2 * binding.bytes(&full, module.anatomy.head.logits);
        Memory {
            reduction: module.options.method.reduction,
            sizes,
            lst: Cost::new(side, weights + side as u64 * 4, binding.peak(&artifacts.train)),
            full: Cost::new(backbone, backbone as u64 * 4, kept),
        }
    }
}

/// Numbers for the symbolic dimensions of a model.
struct Binding {
    numbers: HashMap<String, i64>,
}

impl Binding {
    fn new(module: &Module, sizes: Sizes) -> Binding {
        let mut numbers = HashMap::new();
        let towers = &module.anatomy.towers;
        for (index, tower) in towers.iter().enumerate() {
            let length = if index + 1 == towers.len() { sizes.target_length } else { sizes.source_length };
            numbers.insert(dim_text(&tower.batch), sizes.batch as i64);
            numbers.insert(dim_text(&tower.length), length as i64);
        }
        Binding { numbers }
    }

    /// The size of a dimension; 1 for one that depends on something else.
    fn number(&self, dim: &Dim) -> i64 {
        match dim {
            Dim::Value(v) => i64::from(*v),
            Dim::Var(symbol) => self.numbers.get(&symbol.name).copied().unwrap_or(1),
            Dim::Mul(a, b) => self.number(a).saturating_mul(self.number(b)),
            Dim::Add(a, b) => self.number(a).saturating_add(self.number(b)),
            Dim::Sub(a, b) => self.number(a).saturating_sub(self.number(b)),
            Dim::Div(a, b) | Dim::DivCeil(a, b) => self.number(a) / self.number(b).max(1),
            Dim::Max(a, b) | Dim::Broadcast(a, b) => self.number(a).max(self.number(b)),
            Dim::Min(a, b) => self.number(a).min(self.number(b)),
            Dim::Neg(a) => -self.number(a),
        }
    }

    fn bytes(&self, graph: &Graph, value: ValueId) -> u64 {
        let shape = graph.shape(value).unwrap_or_default();
        let elements = shape.iter().fold(1_i64, |n, d| n.saturating_mul(self.number(d).max(0)));
        let size = graph.value(value).dtype.map_or(4, |d| d.size() as u64);
        (elements as u64).saturating_mul(size)
    }

    fn sum_of_floats(&self, graph: &Graph) -> u64 {
        let float = |v: &ValueId| graph.value(*v).dtype.is_some_and(|d| d.is_float());
        let outputs = graph.node_ids().filter(|id| !is_view(graph, *id)).flat_map(|id| &graph.node(id).outputs);
        outputs.flatten().filter(|v| float(v)).map(|v| self.bytes(graph, *v)).sum()
    }

    /// The most bytes that are alive at once when the nodes run in their order.
    fn peak(&self, graph: &Graph) -> u64 {
        let order = graph.order().unwrap_or_else(|_| graph.node_ids().collect());
        let mut last_use: HashMap<ValueId, usize> = HashMap::new();
        for (at, id) in order.iter().enumerate() {
            for value in graph.node(*id).inputs.iter().flatten() {
                last_use.insert(owner(graph, *value), at);
            }
        }
        for output in &graph.outputs {
            last_use.insert(owner(graph, *output), order.len());
        }
        let mut ends: Vec<u64> = vec![0; order.len() + 1];
        let (mut alive, mut peak) = (0_u64, 0_u64);
        for (at, id) in order.iter().enumerate() {
            if !is_view(graph, *id) {
                for value in graph.node(*id).outputs.iter().flatten() {
                    let bytes = self.bytes(graph, *value);
                    alive += bytes;
                    ends[last_use.get(value).copied().unwrap_or(at)] += bytes;
                }
            }
            peak = peak.max(alive);
            alive -= ends[at];
        }
        peak
    }
}

/// Operators whose output is their first operand's memory.
fn is_view(graph: &Graph, id: NodeId) -> bool {
    ["Reshape", "Identity", "Unsqueeze", "Squeeze", "Flatten"].iter().any(|op| graph.node(id).is(op))
}

/// The value whose memory a value lies in.
fn owner(graph: &Graph, value: ValueId) -> ValueId {
    let mut value = value;
    while let Some((id, 0)) = graph.producer_of(value)
        && is_view(graph, id)
        && let Some(inner) = graph.node(id).input(0)
    {
        value = inner;
    }
    value
}

fn bytes_of_weights(graph: &Graph) -> u64 {
    let uses = graph.uses();
    let used = graph.value_ids().filter(|v| !uses.of(*v).is_empty());
    used.filter_map(|v| graph.weight(v)).map(|w| w.bytes().len() as u64).sum()
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sizes { batch, source_length, target_length } = self.sizes;
        writeln!(
            f,
            "predicted memory of training, batch {batch}, {source_length} tokens in, {target_length} out (fp32)"
        )?;
        let row = |name: String, c: &Cost| {
            let bytes = |b| Bytes(b).to_string();
            [name, c.trainable.to_string(), bytes(c.weights), bytes(c.activations), bytes(c.optimizer), bytes(c.total)]
        };
        let rows = [
            row(format!("side tuning, r={}", self.reduction), &self.lst),
            row("full fine-tuning".to_owned(), &self.full),
        ];
        let header = ["", "trainable", "weights", "kept activations", "gradients and moments", "total"];
        writeln!(f, "{}", report::table(header, rows))
    }
}
