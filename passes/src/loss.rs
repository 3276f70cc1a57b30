//! The loss: mean cross-entropy over the labels that are not -100, and optionally distillation from the backbone.
//!
//! ```text
//! loss = label * CE + distill * KL(softmax(backbone logits / 0.1) || softmax(logits)) / batch
//! ```
//!
//! As in the reference, only the teacher's logits are divided by 0.1, and the divergence is summed over all positions.
//! A batch whose labels are all -100 has a cross-entropy of 0.
//!
//! Ensures: the input `labels`, i64 `[batch, length]`; `module.loss`, f32 `[]`, named `loss`.

use lstc_graph::{Attributes, Builder, DType, Dim, Origin, Role, ValueId};

use crate::block::Rows;
use crate::module::{Module, Point};
use crate::pipeline::Pass;

pub struct Loss;

/// The label that does not count.
pub(crate) const IGNORED: i64 = -100;

/// What the teacher's logits are divided by.
const TEACHER_TEMPERATURE: f32 = 0.1;

impl Pass for Loss {
    fn name(&self) -> &'static str {
        "loss"
    }

    fn run(&self, module: &mut Module) -> Result<(), Vec<String>> {
        let last = module.anatomy.last();
        let shape = [last.batch.clone(), last.length.clone()];
        let tower = module.plan.towers.last().expect("a model has towers").tower;
        let rows =
            Rows { batch: shape[0].clone(), length: shape[1].clone(), like: module.tap(tower, Point::Embedding) };
        let labels = module.graph.add_input("labels", DType::I64, &shape, Role::Frozen).map_err(|e| vec![e])?;
        let vocabulary = module.anatomy.head.linear.outputs;
        let logits = module.logits.expect("the head was emitted");
        let options = module.options.loss.clone();
        let teacher = (options.distill > 0.0).then(|| module.tap(tower, Point::Logits));

        let b = Builder::new(&mut module.graph, Origin::pass("loss"));
        b.scope("loss");
        let log_softmax = |x| b.op("LogSoftmax", &[x], Attributes::none().int("axis", -1));
        let logits = rows.flatten(&b, logits, vocabulary);
        let student = log_softmax(logits);
        let mut loss = None;
        if options.label > 0.0 {
            loss = Some(weighted(&b, cross_entropy(&b, student, labels, &rows), options.label));
        }
        if let Some(teacher) = teacher {
            let teacher = b.mul(rows.flatten(&b, teacher, vocabulary), b.f32(TEACHER_TEMPERATURE.recip()));
            let teacher = log_softmax(teacher);
            let divergence = b.reduce_sum(b.mul(b.exp(teacher), b.sub(teacher, student)), &[], false);
            let batch = b.cast(b.reshape(b.shape_slice(labels, 0, 1), &[]), DType::F32);
            let term = weighted(&b, b.div(divergence, batch), options.distill);
            loss = Some(loss.map_or(term, |loss| b.add(loss, term)));
        }
        let loss = loss.expect("one of the two weights is positive");
        module.loss = Some(b.named(loss, "loss"));
        module.labels = Some(labels);
        Ok(())
    }
}

fn weighted(b: &Builder, term: ValueId, weight: f32) -> ValueId {
    if weight == 1.0 { term } else { b.mul(term, b.f32(weight)) }
}

/// Mean of `-log p[label]` over the rows whose label counts.
fn cross_entropy(b: &Builder, log_probabilities: ValueId, labels: ValueId, rows: &Rows) -> ValueId {
    let column = [rows.count(), Dim::Value(1)];
    let labels = b.shaped(b.reshape(labels, &[-1, 1]), &column);
    let ignored = b.op("Equal", &[labels, b.i64(IGNORED)], Attributes::none());
    let counts = b.op("Not", &[ignored], Attributes::none());
    let index = b.select(counts, labels, b.i64(0));
    let picked = b.op("GatherElements", &[log_probabilities, index], Attributes::none().int("axis", 1));
    let counted = b.select(counts, picked, b.f32(0.0));
    let number = b.reduce_sum(b.cast(counts, DType::F32), &[], false);
    let number = b.op("Max", &[number, b.f32(1.0)], Attributes::none());
    b.neg(b.div(b.reduce_sum(counted, &[], false), number))
}
