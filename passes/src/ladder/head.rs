//! The tuned model's logits: the side network's output, up-projected, through the backbone's own frozen LM head.
//!
//! ```text
//! y = scale (W_up out + b_up);   merge_last: y <- scale (g y + (1 - g) backbone's final output);   logits = y W
//! ```
//!
//! Ensures: `module.head_input`, y as rows; `module.head_matrix`, W; `module.logits`, f32 `[batch, length, vocabulary]`, named `logits`.

use lstc_graph::{Builder, Origin, ValueId};
use lstc_models::{Anatomy, Linear, Orientation};

use crate::block::{MatrixValue, Rows, linear};
use crate::ladder::emit::{gate, mix};
use crate::ladder::key::{Key, Leaf, Rung};
use crate::module::{Module, Point};
use crate::pipeline::Pass;
use crate::problem::Problem;

pub struct Head;

impl Pass for Head {
    fn name(&self) -> &'static str {
        "head"
    }

    fn run(&self, module: &mut Module) -> Result<(), Vec<Problem>> {
        let tower = module.plan.towers.last().expect("a model has towers").tower;
        let last = module.anatomy.last();
        let rows =
            Rows { batch: last.batch.clone(), length: last.length.clone(), like: module.tap(tower, Point::Embedding) };
        let width = last.width;
        let backbone = module.options.method.merge_last.then(|| module.tap(tower, Point::Output));
        let weight = module.parameter(Key::Rung(Rung::Up, Leaf::Weight));
        let method = &module.options.method;
        let bias = method.bias.then(|| module.parameter(Key::Rung(Rung::Up, Leaf::Bias)));
        let alpha = method.merge_last.then(|| module.parameter(Key::Rung(Rung::MergeGate, Leaf::Number)));
        let out = *module.side_outputs.last().expect("the ladder was emitted");
        let scale = module.anatomy.head.scale;
        let matrix = matrix(&module.anatomy);

        let [up, merge] = [Rung::Up, Rung::MergeGate].map(|rung| rung.name(&module.anatomy));
        let b = Builder::new(&mut module.graph, Origin::pass("head"));
        b.scope(&up);
        let mut y = linear(&b, out, MatrixValue::out_in(weight), bias);
        if let (Some(alpha), Some(backbone)) = (alpha, backbone) {
            b.scope(&merge);
            let g = gate(&b, alpha, method.temperature);
            y = mix(&b, g, y, rows.flatten(&b, backbone, width));
        }
        b.scope("lm_head");
        if scale != 1.0 {
            y = b.mul(y, b.f32(scale));
        }
        let head = HeadMatrix::new(&b, &matrix);
        let logits = rows.unflatten(&b, head.logits(&b, y), &[matrix.outputs]);
        module.logits = Some(b.named(logits, "logits"));
        module.head_input = Some(y);
        module.head_matrix = Some(head.0);
        Ok(())
    }
}

/// The head's matrix as the side network reads it: of a tied head the embedding table, of which each row is a token's,
/// rather than an exporter's transposed copy of it.
pub(crate) fn matrix(anatomy: &Anatomy) -> Linear {
    let (head, table) = (&anatomy.head, &anatomy.last().table);
    match table.value() {
        Some(_) if head.tied && head.linear.orientation == Orientation::InOut => {
            Linear { weight: table.clone(), orientation: Orientation::OutIn, ..head.linear.clone() }
        }
        _ => head.linear.clone(),
    }
}

/// The frozen matrix W in a graph: products with it forward and backward.
pub(crate) struct HeadMatrix(MatrixValue);

impl HeadMatrix {
    pub(crate) fn new(b: &Builder, linear: &Linear) -> HeadMatrix {
        HeadMatrix(MatrixValue::frozen(b, linear))
    }

    /// `y W` of rows y.
    pub(crate) fn logits(&self, b: &Builder, y: ValueId) -> ValueId {
        linear(b, y, self.0, None)
    }

    /// `g W^T` of rows g, `[rows, vocabulary]`.
    pub(crate) fn back(&self, b: &Builder, g: ValueId) -> ValueId {
        b.gemm(g, self.0.value, None, false, self.0.orientation == Orientation::InOut)
    }
}
