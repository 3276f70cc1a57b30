//! Predicted memory of training: the peak of what is resident.
//!
//! For Ladder Side-Tuning on the CPU, as `lstc train` does it:
//!
//! * weights: each constant matrix of a product of the backbone, once for every product, in the kernels' own
//!   layout; the other weights, and those that something else reads too, in their mapped file; the side network;
//! * activations: the peaks of a walk through train.onnx in the runtime's order, its backbone and its side network each in
//!   a session of its own, which share an arena: the backbone's working memory is free when the side network reads its
//!   taps, unless the backbone is already reading the next batch. A value lives from the node that makes it to the last that reads it;
//!   reshapes are views; the arena has gaps;
//! * gradients and both moments of the side network;
//! * the process, the library, and the library's graph.
//!
//! On a CUDA device, of its memory: every weight once for each session that reads it, the side network and its moments, the taps in
//! places of their own, and the larger of the two peaks. The driver's own memory is not included.
//!
//! For full fine-tuning, in an equally lean program: the weights once, every floating-point value that the model computes, since
//! its backward pass needs nearly all of them, the logits' gradient, and the same runtime.

mod walk;

use std::collections::HashSet;

use lstc_graph::{DType, Graph, MICROSOFT, NodeId, ValueId};
use lstc_passes::Parts;
use serde::Serialize;

pub use walk::Numbers;

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
    pub fn new(trainable: usize, weights: u64, activations: u64, runtime: u64) -> Cost {
        let optimizer = trainable as u64 * 4 * 3;
        let total = total([weights, activations, optimizer, runtime]);
        Cost { trainable, weights, activations, optimizer, runtime, total }
    }
}

/// A saturating sum.
pub fn total(bytes: impl IntoIterator<Item = u64>) -> u64 {
    bytes.into_iter().fold(0, u64::saturating_add)
}

/// Where the taps of a step come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taps {
    /// The backbone, which runs before the side network.
    Computed,
    /// The backbone, which runs in parallel with the side network, on the next batch.
    Ahead,
    /// A cache that has all of them: the backbone is not needed.
    Kept,
}

/// A step of training.
pub struct Step<'p> {
    pub parts: &'p Parts,
    /// Values that the optimizer keeps in place.
    pub elsewhere: HashSet<ValueId>,
    /// Elements of the side network.
    pub trainable: usize,
    pub source: Taps,
    /// The backbone's weights are used in their mapped file.
    pub mapped: bool,
}

impl Step<'_> {
    /// Bytes of the taps of a batch.
    pub fn taps(&self, numbers: &Numbers) -> u64 {
        let backbone = &self.parts.backbone;
        total(backbone.outputs.iter().map(|tap| numbers.bytes(backbone, *tap)))
    }

    /// As [`Step::cost`], for a CUDA device's memory.
    pub fn cost_on_device(&self, numbers: &Numbers, Extras { captured, evaluated }: Extras) -> Cost {
        let Parts { backbone, side, .. } = self.parts;
        let taps = self.taps(numbers);
        let outputs = backbone.outputs.iter().copied().collect();
        let (before, after) = match self.source {
            Taps::Kept => (0, numbers.peak(side, &self.elsewhere)),
            _ => (numbers.peak(backbone, &outputs), numbers.peak(side, &self.elsewhere)),
        };
        let frozen = mapped_weights(backbone);
        let copies = u64::from(self.source != Taps::Kept) + u64::from(evaluated);
        let weights = frozen * copies + mapped_weights(side) * (1 + u64::from(evaluated)) + self.trainable as u64 * 4;
        let activations = wasted(before.max(after)).saturating_add(taps);
        let copies = if captured { 3 } else { 0 };
        let optimizer = self.trainable as u64 * 4 * (2 + copies);
        Cost {
            trainable: self.trainable,
            weights,
            activations,
            optimizer,
            runtime: 0,
            total: total([weights, activations, optimizer]),
        }
    }

    pub fn cost(&self, numbers: &Numbers) -> Cost {
        let Parts { backbone, side, .. } = self.parts;
        let taps = self.taps(numbers);
        let after = taps.saturating_add(numbers.peak(side, &self.elsewhere));
        let before = || numbers.peak(backbone, &HashSet::new());
        let activations = match self.source {
            Taps::Computed => before().max(after),
            Taps::Ahead => before().saturating_add(after),
            Taps::Kept => after,
        };
        let read = [side].into_iter().chain((self.source != Taps::Kept).then_some(backbone));
        let nodes: usize = read.map(|graph| graph.node_ids().count()).sum();
        let frozen = match (self.source, self.mapped) {
            (Taps::Kept, _) => 0,
            (_, true) => mapped_weights(backbone),
            (_, false) => resident_weights(backbone),
        };
        let weights = frozen + mapped_weights(side) + self.trainable as u64 * 4;
        Cost::new(self.trainable, weights, wasted(activations), runtime(nodes))
    }
}

/// What a run keeps on a device besides its steps.
#[derive(Clone, Copy, Debug)]
pub struct Extras {
    /// Steps are captured: meanwhile there is a second copy of the side network and its moments.
    pub captured: bool,
    /// Epochs are evaluated, by sessions with weights of their own.
    pub evaluated: bool,
}

/// What the process takes with graphs of this many nodes.
pub fn runtime(nodes: usize) -> u64 {
    PROCESS + NODE * nodes as u64
}

/// What ONNX Runtime's arena takes for values of this many bytes: it does not fill every gap. Measured.
fn wasted(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 20 * 3)
}

/// The process with the library loaded, and a node of a graph in it: measured, ONNX Runtime 1.32 on x86-64.
const PROCESS: u64 = 44 << 20;
const NODE: u64 = 11 << 9;

/// ONNX Runtime's own operators that rearrange their matrix.
const PACKING: [&str; 3] = ["DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits"];

/// Types whose products the CPU computes in f32.
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

/// The weights as a session holds them if it uses them in their mapped file.
fn mapped_weights(graph: &Graph) -> u64 {
    let uses = graph.uses();
    let is_read = |value: &ValueId| !uses.of(*value).is_empty();
    graph.value_ids().filter(is_read).filter_map(|value| Some(graph.weight(value)?.bytes().len() as u64)).sum()
}
