//! Predicted memory of training: the most that is resident at once.
//!
//! For Ladder Side-Tuning on the CPU, as `lstc train` does it:
//!
//! * weights: each constant matrix of a product of the backbone, once for every product, as kernels lay it out for
//!   themselves; the other weights, and those that something else reads too, where their file is mapped; the side network;
//! * activations: the peaks of a walk through train.onnx in the runtime's order, its backbone and its side network each in
//!   a session of its own. A value lives from the node that makes it to the last that reads it; reshapes are views; the
//!   arena that they lie in has gaps;
//! * gradients and both moments of the side network;
//! * the process, the library, and the library's graph.
//!
//! For full fine-tuning, in a program as lean: the weights once, every floating-point value that the model computes, since
//! its backward pass needs nearly all of them, the logits' gradient, and the same runtime.

use std::collections::{HashMap, HashSet};
use std::fmt;

use lstc_graph::{DType, Dim, Graph, MICROSOFT, NodeId, ValueId, dim_text};
use lstc_passes::loss::counted;
use lstc_passes::{Artifacts, Module, Parts, parts};
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
    /// The process, ONNX Runtime, and its graph.
    pub runtime: u64,
    pub total: u64,
}

impl Cost {
    fn new(trainable: usize, weights: u64, activations: u64, runtime: u64) -> Cost {
        let optimizer = trainable as u64 * 4 * 3;
        let total = weights + activations + optimizer + runtime;
        Cost { trainable, weights, activations, optimizer, runtime, total }
    }
}

/// What ONNX Runtime's arena takes for values of so many bytes: it does not fill every gap. Measured.
fn wasted(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 20 * 3)
}

/// The process with the library loaded, and a node of a graph in it: measured, ONNX Runtime 1.32 on x86-64.
const PROCESS: u64 = 32 << 20;
const NODE: u64 = 15 << 10;

/// A prediction, for Ladder Side-Tuning beside full fine-tuning.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    pub reduction: usize,
    /// What was asked for, but for the sizes that the model fixes.
    pub sizes: Sizes,
    pub lst: Cost,
    pub full: Cost,
}

impl Memory {
    pub fn predict(module: &Module, artifacts: &Artifacts, sizes: Sizes) -> Memory {
        let binding = Binding::new(module, sizes);
        let side: usize = module.parameters.iter().map(|p| p.dims.iter().product::<usize>()).sum();
        let backbone = frozen_elements(module);
        let train = &artifacts.train;
        let gradients = module.parameters.iter().filter_map(|p| p.gradient);
        let taps: Vec<ValueId> = module.taps.iter().map(|t| t.value).collect();
        let Parts { backbone: early, side: late, .. } = parts(train, &taps);
        let elsewhere = late.outputs.iter().copied().chain(gradients).collect();
        let activations = binding.peak(&early, &HashSet::new()) + binding.peak(&late, &elsewhere);
        let weights = resident_weights(&early) + mapped_weights(&late) + side as u64 * 4;
        let runtime = PROCESS + NODE * train.node_ids().count() as u64;
        let full = module.unquantised().slice(&[module.anatomy.head.logits]);
        let kept = binding.sum_of_floats(&full) + 2 * binding.bytes(&full, module.anatomy.head.logits);
        Memory {
            reduction: module.options.method.reduction,
            sizes: binding.sizes(module),
            lst: Cost::new(side, weights, wasted(activations), runtime),
            full: Cost::new(backbone, backbone as u64 * 4, kept, runtime),
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
        numbers.extend(counted((sizes.batch as i64).saturating_mul(sizes.target_length as i64)));
        Binding { numbers }
    }

    /// What the inputs have, whether it was asked for or the model fixes it.
    fn sizes(&self, module: &Module) -> Sizes {
        let size = |dim: &Dim| usize::try_from(self.number(dim)).unwrap_or(1);
        let (first, last) = (&module.anatomy.towers[0], module.anatomy.last());
        Sizes { batch: size(&first.batch), source_length: size(&first.length), target_length: size(&last.length) }
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

    /// The most bytes that are alive at once when the nodes run in their order, without what lies `elsewhere`.
    fn peak(&self, graph: &Graph, elsewhere: &HashSet<ValueId>) -> u64 {
        let order = runtime_order(graph);
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
                let stored = |v: &&ValueId| !elsewhere.contains(v) && !is_fused(graph, **v);
                for value in graph.node(*id).outputs.iter().flatten().filter(stored) {
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

/// The order in which ONNX Runtime runs the nodes: depth first, backwards from those that nobody reads, the latest of the
/// file first.
fn runtime_order(graph: &Graph) -> Vec<NodeId> {
    enum Visit {
        Enter(NodeId),
        Leave(NodeId),
    }
    let uses = graph.uses();
    let is_leaf = |id: &NodeId| graph.node(*id).outputs.iter().flatten().all(|v| uses.of(*v).is_empty());
    let file = graph.order().unwrap_or_else(|_| graph.node_ids().collect());
    let place: HashMap<NodeId, usize> = file.iter().enumerate().map(|(place, id)| (*id, place)).collect();
    let mut stack: Vec<Visit> = file.iter().copied().filter(is_leaf).map(Visit::Enter).collect();
    let mut seen = HashSet::new();
    let mut order = Vec::new();
    while let Some(visit) = stack.pop() {
        match visit {
            Visit::Leave(id) => order.push(id),
            Visit::Enter(id) => {
                if !seen.insert(id) {
                    continue;
                }
                stack.push(Visit::Leave(id));
                let producer = |value: &ValueId| graph.producer_of(*value).map(|(producer, _)| producer);
                let mut before: Vec<NodeId> = graph.node(id).inputs.iter().flatten().filter_map(producer).collect();
                before.sort_unstable_by_key(|id| place[id]);
                stack.extend(before.into_iter().filter(|id| !seen.contains(id)).map(Visit::Enter));
            }
        }
    }
    order
}

/// Operators whose output is their first operand's memory.
fn is_view(graph: &Graph, id: NodeId) -> bool {
    ["Reshape", "Identity", "Unsqueeze", "Squeeze", "Flatten"].iter().any(|op| graph.node(id).is(op))
}

/// Sums of quantised products: the runtime makes one operator of the product and what scales it.
fn is_fused(graph: &Graph, value: ValueId) -> bool {
    let is_sum = |v: ValueId| graph.producer_of(v).is_some_and(|(id, _)| graph.node(id).is("MatMulInteger"));
    let cast_of = |v: ValueId| {
        graph.producer_of(v).and_then(|(id, _)| graph.node(id).input(0).filter(|_| graph.node(id).is("Cast")))
    };
    is_sum(value) || cast_of(value).is_some_and(is_sum)
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

/// Operators of ONNX Runtime's own that lay their matrix out for themselves.
const PACKING: [&str; 3] = ["DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits"];

/// Types that products on the CPU are not computed in, but in f32.
fn is_narrow(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

/// The weights as a session on the CPU holds them.
fn resident_weights(graph: &Graph) -> u64 {
    let uses = graph.uses();
    let packed = |(id, slot): &&(NodeId, usize)| {
        let node = graph.node(*id);
        let own = node.domain == MICROSOFT && PACKING.contains(&node.op.as_str());
        let is_matrix = node.input(1).and_then(|v| graph.weight(v)).is_some_and(|w| w.dims().len() == 2);
        let plain = || is_matrix && ["MatMul", "Gemm", "MatMulInteger"].iter().any(|op| node.is(op));
        *slot == 1 && (own || plain())
    };
    let resident = |value: ValueId| {
        let (weight, readers) = (graph.weight(value)?, uses.of(value));
        let packed = readers.iter().filter(packed).count();
        let mapped = usize::from(packed < readers.len());
        let bytes = weight.bytes().len() as u64;
        let wide = if is_narrow(weight.dtype()) { 2 * bytes } else { bytes };
        Some(packed as u64 * wide + mapped as u64 * bytes)
    };
    graph.value_ids().filter_map(resident).sum()
}

/// The weights as a session holds them that uses them where their file is mapped.
fn mapped_weights(graph: &Graph) -> u64 {
    let uses = graph.uses();
    let is_read = |value: &ValueId| !uses.of(*value).is_empty();
    graph.value_ids().filter(is_read).filter_map(|value| Some(graph.weight(value)?.bytes().len() as u64)).sum()
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sizes { batch, source_length, target_length } = self.sizes;
        writeln!(
            f,
            "predicted memory of training, batch {batch}, {source_length} tokens in, {target_length} out (fp32)"
        )?;
        let row = |name: String, c: &Cost| {
            let [weights, activations, optimizer, runtime, total] =
                [c.weights, c.activations, c.optimizer, c.runtime, c.total].map(|b| Bytes(b).to_string());
            [name, c.trainable.to_string(), weights, activations, optimizer, runtime, total]
        };
        let rows = [
            row(format!("side tuning, r={}", self.reduction), &self.lst),
            row("full fine-tuning".to_owned(), &self.full),
        ];
        let header = ["", "trainable", "weights", "kept activations", "gradients and moments", "runtime", "total"];
        writeln!(f, "{}", report::table(header, rows))
    }
}
