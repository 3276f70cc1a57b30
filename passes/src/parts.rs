//! A training graph in two at its taps: the backbone, which no gradient enters, and the side network's step.
//!
//! ```text
//! backbone: model's inputs -> taps
//! side:     taps, model's inputs (for masks and position buckets), labels, parameters, ... -> what the graph gives
//! ```
//!
//! Ensures: the side graph computes no hidden state of the backbone. So it may run while the backbone reads another batch, and
//! on taps that were kept, unless the sizes of masks are known only from hidden states.

use lstc_graph::{Attributes, Builder, DType, Dim, Graph, NodeId, Origin, Role, ValueId};

use crate::differentiate::after;
use crate::module::is_backbone;
use crate::sizes::measure;

/// The two graphs.
pub struct Parts {
    /// Its outputs are the taps that the side graph reads, in the order in which they were given.
    pub backbone: Graph,
    pub side: Graph,
    /// Why the side graph takes more of the backbone than taps: masks and bucket indices then depend on hidden states.
    pub entangled: Option<String>,
}

/// Takes a graph that [`crate::artifacts()`] made apart.
pub fn parts(graph: &Graph, taps: &[ValueId]) -> Parts {
    let mut measured = graph.clone();
    measure_inputs(&mut measured, taps);
    let (backbone, side) = measured.divide(taps);
    let Some(heavy) = heavy(&side) else { return Parts { backbone, side, entangled: None } };
    let reason = format!(
        "the model takes the sizes of its masks or position buckets from its hidden states, by `{}`",
        side.node(heavy).name
    );
    let (backbone, side) = graph.divide(&[taps, &read_besides(graph, taps)].concat());
    Parts { backbone, side, entangled: Some(reason) }
}

/// How taps lie in memory from the backbone to the last node of the side network that reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Narrow {
    /// Rounded to 11 bits of mantissa, and what is beyond 65504 to infinity.
    F16,
    /// Rounded to 255 steps, with a scale for each token:
    ///
    /// ```text
    /// scale = max |x| / 127,   q = round(x / scale),   x' = q scale
    /// ```
    I8,
}

impl Parts {
    /// Makes the side network take the rows whose labels count as an input, [`COUNTED_ROWS`]. A device that found them itself would have to
    /// report to the host how many there are, in the middle of a step. Rows that do not count may stand among them: no row twice.
    ///
    /// Nothing changes where the loss takes all rows, as that of distillation does.
    ///
    /// # Errors
    /// A graph that has a value of this name, or whose loss takes for granted that each of the rows counts.
    pub fn list_rows(&mut self) -> Result<(), String> {
        let side = &mut self.side;
        let finds = |id: &NodeId| side.node(*id).is("NonZero") && side.node(*id).origin == Origin::pass("loss");
        let Some(found) = side.node_ids().find(finds).and_then(|id| side.node(id).output(0)) else { return Ok(()) };
        let readers = side.uses().of(found).to_vec();
        for (reader, _) in readers {
            let Some(positions) = side.node(reader).output(0) else { continue };
            // The loss asks of each row whether it counts, or it takes for granted that all do.
            let asks = side.uses().of(positions).iter().any(|(id, slot)| {
                let gather = side.node(*id);
                let of = gather.input(0).filter(|_| gather.is("Gather") && *slot == 1);
                of.is_some_and(|of| side.value(of).dtype == Some(DType::Bool))
            });
            if !asks {
                return Err(
                    "these graphs were written by an earlier lstc, whose loss cannot run on a device".to_owned()
                );
            }
            let shape = side.shape(positions).unwrap_or_default();
            let rows = side.add_input(COUNTED_ROWS, DType::I64, &shape, Role::Frozen)?;
            side.redirect(positions, rows);
        }
        let outputs = side.outputs.clone();
        *side = side.slice(&outputs);
        Ok(())
    }

    /// Makes the taps cross over in fewer bits, by the same names; the scales of a tap, `[batch, length, 1]`, as one more input and
    /// output, `<tap>.scale`.
    ///
    /// The side network widens a tap where it reads it, and once more after what a node of the backward pass reads with it:
    /// a wide copy does not live from one to the other.
    ///
    /// # Errors
    /// Masks that cross over too, whose numbers have no place in so few bits.
    pub fn narrow(&mut self, to: Narrow) -> Result<(), String> {
        let Parts { backbone, side, entangled } = self;
        if let Some(reason) = entangled {
            return Err(reason.clone());
        }
        for at in 0..backbone.outputs.len() {
            let tap = backbone.outputs[at];
            let dims = backbone.shape(tap).unwrap_or_default();
            let Some(dtype) = backbone.value(tap).dtype.filter(|dtype| dtype.is_float()) else { continue };
            if dims.is_empty() || to == Narrow::F16 && dtype.size() <= DType::F16.size() {
                continue;
            }
            let name = backbone.value(tap).name.clone();
            let wide = backbone.fresh_name(&format!("{name}.wide"));
            backbone.rename(tap, &wide)?;
            let b = Builder::new(backbone, NARROW);
            let (narrow, scale) = match to {
                Narrow::F16 => (b.cast(tap, DType::F16), None),
                Narrow::I8 => {
                    let (steps, scale) = steps_of(&b, b.cast(tap, DType::F32));
                    (steps, Some(b.named(scale, &format!("{name}.scale"))))
                }
            };
            let narrow = b.named(narrow, &name);
            backbone.outputs[at] = narrow;
            backbone.outputs.extend(scale);
            let Some(read) = side.find(&name) else { continue };
            let scale = match scale {
                Some(scale) => {
                    let (scale, dims) = (backbone.value(scale).name.clone(), of_tokens(&dims));
                    Some(side.add_input(&scale, DType::F32, &dims, Role::Frozen)?)
                }
                None => None,
            };
            widen_where_read(side, read, (scale, dtype));
        }
        Ok(())
    }
}

/// The rows whose labels count, i64, in a side graph that has them listed by whoever feeds it.
pub const COUNTED_ROWS: &str = "counted_rows";

const NARROW: Origin = Origin::pass("narrow");

/// The steps of each token, and its scale. A scale that underflows stands for zeros.
fn steps_of(b: &Builder, x: ValueId) -> (ValueId, ValueId) {
    const STEPS: f32 = 127.0;
    let unary = |op: &str, x| b.op(op, &[x], Attributes::none());
    let largest = b.reduce_max(unary("Abs", x), &[-1], true);
    let scale = b.mul(largest, b.f32(STEPS.recip()));
    let scale = b.op("Max", &[scale, b.f32(f32::MIN_POSITIVE)], Attributes::none());
    (b.cast(unary("Round", b.div(x, scale)), DType::I8), scale)
}

/// The shape of a tap with one number for each token.
fn of_tokens(dims: &[Dim]) -> Vec<Dim> {
    dims.iter().take(dims.len().saturating_sub(1)).cloned().chain([Dim::Value(1)]).collect()
}

/// Makes a value one of fewer bits, which each reader gets in the type that it had.
fn widen_where_read(side: &mut Graph, value: ValueId, (scale, dtype): (Option<ValueId>, DType)) {
    let shape = side.shape(value).unwrap_or_default();
    side.set_dtype(value, if scale.is_some() { DType::I8 } else { DType::F16 });
    let mut early = None;
    for (reader, slot) in side.uses().of(value).to_vec() {
        let node = side.node(reader);
        if node.is("Shape") {
            continue;
        }
        // A view is not a copy: its readers are what counts.
        if let (true, Some(view)) = (node.is("Reshape") && slot == 0, node.output(0)) {
            let dims = side.shape(view).unwrap_or_default();
            let rows = |scale| {
                let b = Builder::new(side, NARROW);
                b.shaped(b.reshape(scale, &[-1, 1]), &of_tokens(&dims))
            };
            // A view that takes tokens apart has no scale for what it makes of them.
            if scale.is_none() || dims.len() == 2 && dims.last() == shape.last() {
                let scale = scale.map(rows);
                widen_where_read(side, view, (scale, dtype));
                continue;
            }
        }
        let node = side.node(reader);
        let is_computed = |v: &&ValueId| **v != value && side.producer_of(**v).is_some();
        let partner = node.inputs.iter().flatten().find(is_computed).copied();
        let waits = partner.filter(|_| node.origin == Origin::pass("differentiate"));
        let b = Builder::new(side, NARROW);
        let wide = |value: ValueId| match scale {
            Some(scale) => b.cast(b.mul(b.cast(value, DType::F32), scale), dtype),
            None => b.cast(value, dtype),
        };
        let wide = match waits {
            Some(partner) => wide(after(&b, value, &shape, partner)),
            None => *early.get_or_insert_with(|| wide(value)),
        };
        side.reconnect(reader, slot, wide);
    }
}

/// What new nodes read of the backbone besides the taps.
fn read_besides(graph: &Graph, taps: &[ValueId]) -> Vec<ValueId> {
    let is_new = |id: &NodeId| !is_backbone(&graph.node(*id).origin);
    let of_backbone = |v: &ValueId| graph.producer_of(*v).is_some_and(|(id, _)| is_backbone(&graph.node(id).origin));
    let read = graph.node_ids().filter(is_new).flat_map(|id| graph.node(id).inputs.iter().flatten().copied());
    let mut besides: Vec<ValueId> = read.filter(|v| of_backbone(v) && !taps.contains(v)).collect();
    besides.sort_unstable();
    besides.dedup();
    besides
}

/// A node of the backbone that multiplies with weights or looks into a table.
fn heavy(side: &Graph) -> Option<NodeId> {
    let is_heavy = |id| {
        let node = side.node(id);
        let is_matrix = |v: &ValueId| side.weight(*v).is_some_and(|w| w.dims().iter().filter(|d| **d > 1).count() > 1);
        let reads_weights = ["MatMul", "Gemm", "MatMulInteger", "MatMulNBits"].iter().any(|op| node.op == *op)
            || node.is("Gather") && node.inputs.first().copied().flatten().is_some_and(|v| is_matrix(&v));
        is_backbone(&node.origin) && reads_weights
    };
    side.node_ids().find(|id| is_heavy(*id))
}

/// Sizes of masks and position buckets are those of inputs, wherever the exporter takes them from. A single size of a tap is as near.
fn measure_inputs(graph: &mut Graph, taps: &[ValueId]) {
    let side = graph.ancestors_until(graph.outputs.clone(), |v| taps.contains(&v));
    let is_size = |id: &NodeId| {
        let (node, attributes) = (graph.node(*id), &graph.node(*id).attributes);
        let is_whole = attributes.get_int("start").is_none() && attributes.get_int("end").is_none();
        let is_of_input = node.input(0).is_some_and(|measured| graph.inputs.contains(&measured));
        node.is("Shape") && is_backbone(&node.origin) && is_whole && !is_of_input
    };
    let mut shapes: Vec<NodeId> = side.into_iter().filter(is_size).collect();
    shapes.sort_unstable();
    let sizes: Vec<ValueId> = shapes.iter().filter_map(|id| graph.node(*id).output(0)).collect();
    let inputs = graph.inputs.clone();
    measure(graph, &sizes, &inputs, &Origin::pass("parts"));
}
