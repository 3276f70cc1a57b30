//! The loss, and its gradient where the side network ends: mean cross-entropy over the labels that are not -100, and
//! optionally distillation from the backbone.
//!
//! ```text
//! loss = label * CE + distill * KL(softmax(backbone logits / 0.1) || softmax(logits)) / batch
//! ```
//!
//! As in the reference, only the teacher's logits are divided by 0.1, and the divergence is summed over all positions.
//! A batch whose labels are all -100 has a cross-entropy of 0.
//!
//! The head W is frozen, so that what it computes forward is needed for only one more thing: the gradient of its input y.
//!
//! ```text
//! p = softmax(y W);   dCE/dy = (p - onehot(label)) W^T / labels that count;   dKL/dy = (p - teacher) W^T
//! ```
//!
//! Without distillation, the rows of y whose labels count are gathered first, and logits exist for some rows at a time
//! alone: never for padding, and never for all tokens of a large batch.
//!
//! Ensures: the input `labels`, i64 `[batch, length]`; `module.loss`, f32 `[]`, named `loss`; `module.seed`, y with the
//! gradient of the loss.

use lstc_graph::{Attributes, Builder, DType, Dim, Origin, Role, ValueId, Weight};

use crate::block::Rows;
use crate::ladder::head::{HeadMatrix, matrix};
use crate::module::{Module, Point};
use crate::pipeline::Pass;
use crate::problem::Problem;

pub struct Loss;

/// The label that does not count.
pub(crate) const IGNORED: i64 = -100;

/// What the teacher's logits are divided by.
const TEACHER_TEMPERATURE: f32 = 0.1;

/// Parts into which the rows of a large batch are cut.
const PARTS: i64 = 8;

/// Rows that a part has at least: fewer would read the head's matrix for little.
const FEWEST_ROWS: i64 = 256;

/// The sizes that only labels decide, by their symbols, for so many rows that all count: the rows, and those of each part.
pub fn counted(rows: i64) -> impl Iterator<Item = (String, i64)> {
    let size = (rows.saturating_add(PARTS - 1) / PARTS).max(FEWEST_ROWS);
    let parts = (0..PARTS).map(move |part| (part_symbol(part), (rows - part * size).clamp(0, size)));
    std::iter::once((COUNTED.to_owned(), rows)).chain(parts)
}

const COUNTED: &str = "counted_labels";

fn part_symbol(part: i64) -> String {
    format!("{COUNTED}_{part}")
}

impl Pass for Loss {
    fn name(&self) -> &'static str {
        "loss"
    }

    fn run(&self, module: &mut Module) -> Result<(), Vec<Problem>> {
        let last = module.anatomy.last();
        let shape = [last.batch.clone(), last.length.clone()];
        let tower = module.plan.towers.last().expect("a model has towers").tower;
        let rows =
            Rows { batch: shape[0].clone(), length: shape[1].clone(), like: module.tap(tower, Point::Embedding) };
        let labels =
            module.graph.add_input("labels", DType::I64, &shape, Role::Frozen).map_err(|e| vec![Problem::model(e)])?;
        let matrix = matrix(&module.anatomy);
        let y = module.head_input.expect("the head was emitted");
        let options = module.options.loss.clone();
        // A head that each product makes from 8 bits is made once.
        let whole = module.options.backbone.quantise_head;
        let teacher = (options.distill > 0.0).then(|| module.tap(tower, Point::Logits));

        let b = Builder::new(&mut module.graph, Origin::pass("loss"));
        b.scope("loss");
        let head = HeadMatrix::new(&b, &matrix);
        let labels_of_rows = b.shaped(b.reshape(labels, &[-1]), &[rows.count()]);
        let ignored = b.op("Equal", &[labels_of_rows, b.i64(IGNORED)], Attributes::none());
        let counts = b.op("Not", &[ignored], Attributes::none());
        let (loss, gradient) = match teacher {
            None => {
                let (loss, gradient) = cross_entropy(&b, &head, y, (labels_of_rows, counts), whole);
                (weighted(&b, loss, options.label), weighted(&b, gradient, options.label))
            }
            Some(teacher) => {
                let teacher = rows.flatten(&b, teacher, matrix.outputs);
                let share = b.div(b.f32(options.distill), number_of_examples(&b, labels));
                distilled(&b, &head, y, (labels_of_rows, counts), (teacher, share), options.label)
            }
        };
        let gradient = b.shaped(gradient, &[rows.count(), Dim::Value(matrix.inputs as i32)]);
        module.loss = Some(b.named(loss, "loss"));
        module.seed = Some((y, gradient));
        module.labels = Some(labels);
        Ok(())
    }
}

fn weighted(b: &Builder, term: ValueId, weight: f32) -> ValueId {
    if weight == 1.0 { term } else { b.mul(term, b.f32(weight)) }
}

fn log_softmax(b: &Builder, x: ValueId) -> ValueId {
    b.op("LogSoftmax", &[x], Attributes::none().int("axis", -1))
}

/// How many labels count, at least 1, in f32.
fn number_of(b: &Builder, counts: ValueId) -> ValueId {
    b.op("Max", &[b.reduce_sum(b.cast(counts, DType::F32), &[], false), b.f32(1.0)], Attributes::none())
}

/// The size of the batch, in f32, made where floats are made: the size itself is the host's, and would have to be copied to a device.
fn number_of_examples(b: &Builder, labels: ValueId) -> ValueId {
    let ones = b.op("Expand", &[b.f32(1.0), b.shape_slice(labels, 0, 1)], Attributes::none());
    b.reduce_sum(ones, &[], false)
}

/// `log p[label]` of each row, `[rows, 1]`.
fn picked(b: &Builder, log_probabilities: ValueId, labels: ValueId) -> ValueId {
    let column = b.unsqueeze(labels, 1);
    b.op("GatherElements", &[log_probabilities, column], Attributes::none().int("axis", 1))
}

/// `p - onehot(label)` of each row: p with one element of each row replaced, where it lies.
fn missed(b: &Builder, log_probabilities: ValueId, labels: ValueId) -> ValueId {
    let p = b.exp(log_probabilities);
    let missing = b.sub(b.exp(picked(b, log_probabilities, labels)), b.f32(1.0));
    b.op("ScatterElements", &[p, b.unsqueeze(labels, 1), missing], Attributes::none().int("axis", 1))
}

/// The mean of `-log p[label]` over the rows whose label counts, and its gradient for all rows of y. The rows are taken part
/// by part, or `whole`.
///
/// Positions are those of the labels that count. They may be any set that holds these, each once: what a row of it whose label does
/// not count gives is divided by infinity.
fn cross_entropy(
    b: &Builder,
    head: &HeadMatrix,
    y: ValueId,
    (labels, counts): (ValueId, ValueId),
    whole: bool,
) -> (ValueId, ValueId) {
    let positions = b.reshape(b.op("NonZero", &[counts], Attributes::none()), &[-1]);
    let positions = b.shaped(positions, &[Dim::pos_var(COUNTED)]);
    let gather = |x| b.op("Gather", &[x, positions], Attributes::none().int("axis", 0));
    let (kept, kept_counts) = (gather(y), gather(counts));
    let kept_labels = b.select(kept_counts, gather(labels), b.i64(0));
    let divisor = b.unsqueeze(b.select(kept_counts, number_of(b, counts), b.f32(f32::INFINITY)), 1);
    let (mut chosen, mut gradients) = (Vec::new(), Vec::new());
    let parts = if whole { vec![(kept, kept_labels)] } else { parts(b, positions, kept, kept_labels) };
    for (kept, labels) in parts {
        let log_probabilities = log_softmax(b, head.logits(b, kept));
        chosen.push(picked(b, log_probabilities, labels));
        gradients.push(head.back(b, missed(b, log_probabilities, labels)));
    }
    // CUDA has no sum over an axis that is empty, as there is where no label counts.
    let zero = b.constant(Weight::from_f32(&[1, 1], &[0.0]));
    let terms = b.concat(&[b.div(b.concat(&chosen, 0), divisor), zero], 0);
    let loss = b.neg(b.reduce_sum(terms, &[], false));
    let gradient = b.div(b.concat(&gradients, 0), divisor);
    // The rows that do not count have a gradient of zero.
    let zeros = b.op("Expand", &[b.f32(0.0), b.shape_of(y)], Attributes::none());
    let index = b.unsqueeze(positions, 1);
    (loss, b.op("ScatterND", &[zeros, index, gradient], Attributes::none()))
}

/// The rows in [`PARTS`] parts of at least [`FEWEST_ROWS`]; the last may be empty.
fn parts(b: &Builder, positions: ValueId, kept: ValueId, labels: ValueId) -> Vec<(ValueId, ValueId)> {
    let number = b.shape_slice(positions, 0, 1);
    let share = b.div(b.add(number, b.i64s(&[PARTS - 1])), b.i64s(&[PARTS]));
    let size = b.select(greater(b, share, FEWEST_ROWS), share, b.i64s(&[FEWEST_ROWS]));
    let bound = |part| b.mul(size, b.i64s(&[part]));
    let slice = |x, part| b.op("Slice", &[x, bound(part), bound(part + 1), b.i64s(&[0])], Attributes::none());
    let width = b.shape(kept).and_then(|shape| shape.last().cloned()).expect("rows were emitted with their shape");
    (0..PARTS)
        .map(|part| {
            let size = Dim::pos_var(&part_symbol(part));
            (b.shaped(slice(kept, part), &[size.clone(), width.clone()]), b.shaped(slice(labels, part), &[size]))
        })
        .collect()
}

fn greater(b: &Builder, x: ValueId, than: i64) -> ValueId {
    b.op("Greater", &[x, b.i64(than)], Attributes::none())
}

/// `label * CE + share * sum KL(teacher / 0.1 || p)` and its gradient.
fn distilled(
    b: &Builder,
    head: &HeadMatrix,
    y: ValueId,
    (labels, counts): (ValueId, ValueId),
    (teacher, share): (ValueId, ValueId),
    label: f32,
) -> (ValueId, ValueId) {
    let student = log_softmax(b, head.logits(b, y));
    let teacher = log_softmax(b, b.mul(teacher, b.f32(TEACHER_TEMPERATURE.recip())));
    let target = b.exp(teacher);
    let divergence = b.reduce_sum(b.mul(target, b.sub(teacher, student)), &[], false);
    let mut loss = b.mul(divergence, share);
    let mut gradient = b.mul(b.sub(b.exp(student), target), share);
    if label > 0.0 {
        let known = b.select(counts, labels, b.i64(0));
        // The share of each row in the mean: 0 where its label does not count.
        let part = b.unsqueeze(b.div(b.mul(b.cast(counts, DType::F32), b.f32(label)), number_of(b, counts)), 1);
        loss = b.sub(loss, b.reduce_sum(b.mul(picked(b, student, known), part), &[], false));
        gradient = b.add(gradient, b.mul(missed(b, student, known), part));
    }
    (loss, head.back(b, gradient))
}
