//! Sets the taps: the backbone values that the side network may read, and no others.
//!
//! Ensures: the embedding output and each kept block's output are taps of shape `[batch, length, d]`, cast to f32 where
//! the backbone is of another type; `module.cut` holds them, the masks and bucket indices of the kept blocks, the head's weight, and what the options add.

use crate::module::{Module, Point, Tap};
use crate::pipeline::Pass;
use lstc_graph::{Builder, DType, Dim, Origin};
use lstc_models::SublayerKind;

pub struct Taps;

impl Pass for Taps {
    fn name(&self) -> &'static str {
        "tap"
    }

    fn run(&self, module: &mut Module) -> Result<(), Vec<String>> {
        for side in &module.plan.towers {
            let tower = &module.anatomy.towers[side.tower];
            let shape = [tower.batch.clone(), tower.length.clone(), Dim::Value(tower.width as i32)];
            let blocks = side.kept.iter().map(|b| (Point::Block(*b), tower.blocks[*b].output));
            for (point, value) in std::iter::once((Point::Embedding, tower.embedding)).chain(blocks) {
                module.graph.refine(value, &shape);
                let b = Builder::new(&mut module.graph, Origin::pass("tap"));
                b.scope("tap");
                let read = b.shaped(b.cast(value, DType::F32), &shape);
                module.taps.push(Tap { tower: side.tower, point, value, read });
                module.cut.insert(value);
            }
            for block in side.kept.iter().map(|b| &tower.blocks[*b]) {
                for sublayer in &block.sublayers {
                    if let SublayerKind::Attention(attention) = &sublayer.kind
                        && let Some(bias) = &attention.bias
                    {
                        module.cut.extend(bias.values());
                    }
                }
            }
        }
        module.cut.extend(module.anatomy.head.linear.weight.value());
        let options = &module.options;
        let last = module.anatomy.last();
        if options.method.merge_last {
            let shape = [last.batch.clone(), last.length.clone(), Dim::Value(last.width as i32)];
            module.graph.refine(last.output, &shape);
            module.cut.insert(last.output);
        }
        if options.loss.distill > 0.0 {
            module.cut.insert(module.anatomy.head.logits);
        }
        Ok(())
    }
}
