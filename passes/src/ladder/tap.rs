//! Sets the taps: the backbone values that the side network may read, and no others.
//!
//! Ensures: the embedding output and the output of each block with a rung are taps of shape `[batch, length, d]`, cast to f32 where
//! the backbone is of another type; so are the final output and the logits where the options have a use for them.
//! `module.cut` holds the taps, the masks and bucket indices of the kept blocks, and the head's weight.

use crate::module::{Module, Point, Tap};
use crate::pipeline::Pass;
use crate::problem::Problem;
use lstc_graph::{Builder, DType, Dim, Origin, ValueId};
use lstc_models::{SublayerKind, TowerId};

pub struct Taps;

impl Pass for Taps {
    fn name(&self) -> &'static str {
        "tap"
    }

    fn run(&self, module: &mut Module) -> Result<(), Vec<Problem>> {
        for side in module.plan.towers.clone() {
            let tower = module.anatomy.tower(side.tower).clone();
            tap(module, side.tower, Point::Embedding, (tower.embedding, tower.width));
            for block in side.blocks.iter().filter(|block| block.is_tapped) {
                let output = tower.blocks[block.number].output;
                tap(module, side.tower, Point::Block(block.number), (output, tower.width));
            }
            for block in side.blocks.iter().map(|b| &tower.blocks[b.of]) {
                for sublayer in &block.sublayers {
                    if let SublayerKind::Attention(attention) = &sublayer.kind
                        && let Some(bias) = &attention.bias
                    {
                        module.cut.extend(bias.values());
                    }
                }
            }
        }
        module.cut.extend(crate::ladder::head::matrix(&module.anatomy).weight.value());
        let tower = module.plan.towers.last().expect("a model has towers").tower;
        let (last, head) = (module.anatomy.last(), &module.anatomy.head);
        let [output, logits] = [(last.output, last.width), (head.logits, head.linear.outputs)];
        if module.options.method.merge_last {
            tap(module, tower, Point::Output, output);
        }
        if module.options.loss.distill > 0.0 {
            tap(module, tower, Point::Logits, logits);
        }
        Ok(())
    }
}

/// Taps a value, `[batch, length, width]`.
fn tap(module: &mut Module, tower: TowerId, point: Point, (value, width): (ValueId, usize)) {
    let of = module.anatomy.tower(tower);
    let shape = [of.batch.clone(), of.length.clone(), Dim::Value(width as i32)];
    module.graph.refine(value, &shape);
    let b = Builder::new(&mut module.graph, Origin::pass("tap"));
    b.scope("tap");
    let read = b.shaped(b.cast(value, DType::F32), &shape);
    module.taps.push(Tap { tower, point, value, read });
    module.cut.insert(value);
}
