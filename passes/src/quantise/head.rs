//! The side network's frozen LM head in 8 bits: its product in the forward pass, and the one that its gradient takes.
//!
//! ```text
//! logits = [y W_1, y W_2, ...]      dy = sum over c of dlogits_c W_c^T      W_c = q_c s_c
//! ```
//!
//! Both products are with the same numbers, so that the gradient is the one of the loss that is computed. W_c is made from
//! its integers, by a DequantizeLinear with a scale for each token, where a product takes it, and is freed after it: of the
//! vocabulary one chunk at a time is in memory in f32. No activation is quantised.
//!
//! Requires: a differentiated graph. Ensures: no node but the source's own reads the head's matrix in floats.

use lstc_graph::{Attributes, Builder, DType, Graph, NodeId, Origin, ValueId, Weight};
use lstc_models::Orientation;

use super::matrix::Floats;
use crate::block::MatrixValue;
use crate::module::Module;
use crate::options::Int8Weights;
use crate::pipeline::Pass;
use crate::problem::Problem;

pub struct QuantiseHead;

/// Bytes of a chunk in f32 at most, and into how many the vocabulary falls at least.
const CHUNK: usize = 24 << 20;
const CHUNKS: usize = 4;

/// The opset from which DequantizeLinear has a scale for each index of an axis.
const OPSET: i64 = 13;

/// The head in 8 bits.
#[derive(Clone, Debug)]
pub struct QuantisedHead {
    pub orientation: Orientation,
    /// In the order of the vocabulary.
    pub chunks: Vec<Chunk>,
    pub bytes_before: u64,
    pub bytes_after: u64,
}

impl QuantisedHead {
    /// How far an element is from its own in a matrix in floats at most, in steps.
    ///
    /// # Errors
    /// A graph that this head does not belong to; a matrix of other sizes.
    pub fn furthest(&self, graph: &Graph, (weight, lies): (&Weight, Orientation)) -> Result<f64, String> {
        let gone = || "the LM head's matrix is gone".to_owned();
        let wanted = weight.to_f32().ok_or_else(gone)?;
        weight.release();
        let &[rows, columns] = weight.dims() else { return Err(gone()) };
        let [vocabulary, width] = if lies == Orientation::OutIn { [rows, columns] } else { [columns, rows] };
        if self.chunks.iter().map(|c| c.count).sum::<usize>() != vocabulary {
            return Err(gone());
        }
        let of_source = |token: usize, feature: usize| match lies {
            Orientation::OutIn => wanted.get(token * width + feature),
            Orientation::InOut => wanted.get(feature * vocabulary + token),
        };
        let mut worst = 0.0_f64;
        for chunk in &self.chunks {
            let integers = graph.weight(chunk.integers).and_then(Weight::to_i64).ok_or_else(gone)?;
            let scales = graph.weight(chunk.scales).and_then(Weight::to_f32).ok_or_else(gone)?;
            for (i, integer) in integers.iter().enumerate() {
                let (token, feature) = match self.orientation {
                    Orientation::OutIn => (i / width, i % width),
                    Orientation::InOut => (i % chunk.count, i / chunk.count),
                };
                let (scale, wanted) = match (scales.get(token), of_source(chunk.first + token, feature)) {
                    (Some(scale), Some(wanted)) => (f64::from(*scale), f64::from(*wanted)),
                    _ => return Err(gone()),
                };
                let apart = (*integer as f64 * scale - wanted).abs() - f64::from(f32::MIN_POSITIVE) * 127.0;
                if apart > 0.0 {
                    worst = worst.max(apart / scale);
                }
            }
        }
        Ok(if worst.is_nan() { f64::INFINITY } else { worst })
    }
}

/// Some tokens of the vocabulary.
#[derive(Clone, Debug)]
pub struct Chunk {
    first: usize,
    count: usize,
    pub integers: ValueId,
    pub scales: ValueId,
}

impl Pass for QuantiseHead {
    fn name(&self) -> &'static str {
        "quantise-head"
    }

    fn run(&self, module: &mut Module) -> Result<(), Vec<Problem>> {
        if !module.options.backbone.quantise_head {
            return Ok(());
        }
        let opset = module.graph.opset();
        if opset < OPSET {
            let problem =
                format!("--quantise-head needs opset {OPSET}, and the model uses opset {opset}: export it again");
            return Err(vec![Problem::model(problem)]);
        }
        let head = self::head(module).map_err(|what| vec![Problem::model(what)])?;
        module.quantised_head = Some(head);
        Ok(())
    }
}

fn head(module: &mut Module) -> Result<QuantisedHead, String> {
    let not_there = || "the LM head has no float matrix".to_owned();
    let graph = &module.graph;
    let MatrixValue { value: matrix, orientation } = module.head_matrix.ok_or_else(not_there)?;
    let readers: Vec<NodeId> = graph
        .uses()
        .of(matrix)
        .iter()
        .filter(|(id, slot)| *slot == 1 && graph.node(*id).is("Gemm") && graph.node(*id).inputs.len() == 2)
        .map(|(id, _)| *id)
        .collect();
    let weight = module.head_constant().and_then(|v| graph.weight(v)).ok_or_else(not_there)?.clone();
    let floats = match module.store.sketches {
        true => Floats::sketch(&weight, orientation),
        false => Floats::read(&weight, orientation),
    };
    let floats = floats.ok_or_else(not_there)?;
    weight.release();
    if !floats.is_finite() {
        return Err("the LM head's matrix has an element that is not finite".to_owned());
    }
    let (integers, scales) = floats.int8(Int8Weights::Signed);
    let (width, vocabulary) = (floats.inputs, floats.outputs);
    drop(floats);
    let store = module.store.clone();
    let b = Builder::new(&mut module.graph, Origin::pass("quantise-head"));
    b.scope("lm_head");
    let per_chunk = (CHUNK / 4 / width.max(1)).min(vocabulary.div_ceil(CHUNKS)).max(1);
    let mut chunks = Vec::new();
    for first in (0..vocabulary).step_by(per_chunk) {
        let count = per_chunk.min(vocabulary - first);
        let column = |k: usize, n: usize| integers[k * vocabulary + first + n];
        // As the matrix lies in the source.
        let (dims, bytes): (_, Vec<u8>) = match orientation {
            Orientation::InOut => ([width, count], (0..width * count).map(|i| column(i / count, i % count)).collect()),
            Orientation::OutIn => ([count, width], (0..width * count).map(|i| column(i % width, i / width)).collect()),
        };
        let kept = store.keep(DType::I8, dims.to_vec(), bytes)?;
        let steps = Weight::from_f32(&[count], &scales[first..first + count]);
        let add = |name: &str, weight| b.edit(|graph| graph.add_weight(name, weight));
        chunks.push(Chunk { first, count, integers: add("lm_head/int8", kept), scales: add("lm_head/scales", steps) });
    }
    let bytes_after = (vocabulary * (width + 4)) as u64;
    for id in readers {
        replace(&b, id, orientation, &chunks);
    }
    Ok(QuantisedHead { orientation, chunks, bytes_before: weight.bytes().len() as u64, bytes_after })
}

/// Replaces a product with the whole by products with the chunks.
fn replace(b: &Builder, id: NodeId, orientation: Orientation, chunks: &[Chunk]) {
    let node = b.read(|graph| graph.node(id).clone());
    let (Some(x), Some(y)) = (node.input(0), node.output(0)) else { return };
    let turned = node.attributes.get_int("transB").unwrap_or(0) != 0;
    let to_vocabulary = turned == (orientation == Orientation::OutIn);
    let gemm = |x: ValueId, matrix: ValueId, sum: Option<ValueId>| {
        let operands: Vec<ValueId> = [Some(x), Some(matrix), sum].into_iter().flatten().collect();
        let attributes = if turned { Attributes::none().int("transB", 1) } else { Attributes::none() };
        b.unshared("Gemm", &operands, attributes, 1)[0]
    };
    let matrix = |chunk: &Chunk| {
        // A node of its own for each product, by scales of its own: the runtime would make one of equal nodes, and keep
        // what it gives from the forward pass to the backward one.
        let scales = b.edit(|graph| {
            let scales = graph.weight(chunk.scales).cloned().expect("a chunk has scales");
            let own = Weight::from_f32(scales.dims(), &scales.to_f32().expect("scales are floats"));
            graph.add_weight("lm_head/scales", own)
        });
        let axis = if orientation == Orientation::OutIn { 0 } else { 1 };
        b.unshared("DequantizeLinear", &[chunk.integers, scales], Attributes::none().int("axis", axis), 1)[0]
    };
    let made = if to_vocabulary {
        let parts: Vec<ValueId> = chunks.iter().map(|chunk| gemm(x, matrix(chunk), None)).collect();
        b.unshared("Concat", &parts, Attributes::none().int("axis", 1), 1)[0]
    } else {
        let mut sum = None;
        for chunk in chunks {
            let (first, end) = (chunk.first as i64, (chunk.first + chunk.count) as i64);
            let part = match chunks.len() {
                1 => x,
                _ => b.op("Slice", &[x, b.i64s(&[first]), b.i64s(&[end]), b.i64s(&[1])], Attributes::none()),
            };
            sum = Some(gemm(part, matrix(chunk), sum));
        }
        let Some(sum) = sum else { return };
        sum
    };
    let by = b.read(|graph| graph.producer_of(made)).expect("a node was emitted").0;
    b.edit(|graph| graph.remake(y, by));
}
