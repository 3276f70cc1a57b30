//! The tuned model's logits: the side network's output, up-projected, through the backbone's own frozen LM head.
//!
//! ```text
//! y = W_up out + b_up;   merge_last: y <- g y + (1 - g) backbone's final output;   logits = scale y W
//! ```
//!
//! Ensures: `module.logits`, f32 `[batch, length, vocabulary]`, named `logits`.

use lstc_graph::{Builder, Origin};

use crate::block::{MatrixValue, Rows, linear};
use crate::ladder::{gate, mix};
use crate::module::{Module, Point};
use crate::pipeline::Pass;

pub struct Head;

impl Pass for Head {
    fn name(&self) -> &'static str {
        "head"
    }

    fn run(&self, module: &mut Module) -> Result<(), Vec<String>> {
        let tower = module.plan.towers.last().expect("a model has towers").tower;
        let last = module.anatomy.last();
        let rows =
            Rows { batch: last.batch.clone(), length: last.length.clone(), like: module.tap(tower, Point::Embedding) };
        let width = last.width;
        let backbone = module.options.method.merge_last.then(|| module.tap(tower, Point::Output));
        let weight = module.parameter("side_final_upsample.weight");
        let method = &module.options.method;
        let bias = method.bias.then(|| module.parameter("side_final_upsample.bias"));
        let alpha = method.merge_last.then(|| module.parameter("side_gate_params_merge_last"));
        let out = *module.side_outputs.last().expect("the ladder was emitted");
        let head = module.anatomy.head.clone();

        let b = Builder::new(&mut module.graph, Origin::pass("head"));
        b.scope("side_final_upsample");
        let mut y = linear(&b, out, MatrixValue::out_in(weight), bias);
        if let (Some(alpha), Some(backbone)) = (alpha, backbone) {
            b.scope("side_gate_params_merge_last");
            let g = gate(&b, alpha, method.temperature);
            y = mix(&b, g, y, rows.flatten(&b, backbone, width));
        }
        b.scope("lm_head");
        if head.scale != 1.0 {
            y = b.mul(y, b.f32(head.scale));
        }
        let matrix = MatrixValue::frozen(&b, &head.linear);
        let logits = rows.unflatten(&b, linear(&b, y, matrix, None), &[head.linear.outputs]);
        module.logits = Some(b.named(logits, "logits"));
        Ok(())
    }
}
