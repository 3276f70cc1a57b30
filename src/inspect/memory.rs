//! The predicted memory of training a model, compared with full fine-tuning.

use std::fmt;

use lstc_base::report::{self, Bytes};
use lstc_graph::{Dim, ValueId};
use lstc_passes::{Artifacts, Module, parts};
use lstc_train::memory::{self, Cost, Extras, Numbers, Sizes, Step, Taps};
use serde::Serialize;

use crate::rewrite::frozen_elements;

/// A prediction for Ladder Side-Tuning and for full fine-tuning.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    pub reduction: usize,
    /// The sizes asked for, except those that the model fixes.
    pub sizes: Sizes,
    pub lst: Cost,
    /// The same in a CUDA device's memory.
    pub cuda: Cost,
    pub full: Cost,
}

impl Memory {
    pub fn predict(module: &Module, artifacts: &Artifacts, sizes: Sizes) -> Memory {
        let numbers = numbers(module, sizes);
        let trainable = module.parameters.iter().map(|p| p.dims.iter().product::<usize>()).sum();
        let gradients = module.parameters.iter().filter_map(|p| p.gradient);
        let taps: Vec<ValueId> = module.taps.iter().map(|t| t.value).collect();
        let parts = &parts(&artifacts.train, &taps);
        let elsewhere = parts.side.outputs.iter().copied().chain(gradients).collect();
        let backbone = frozen_elements(module);
        let full = module.unquantised().slice(&[module.anatomy.head.logits]);
        let logits = numbers.bytes(&full, module.anatomy.head.logits);
        let kept = memory::total([numbers.sum_of_floats(&full), logits, logits]);
        let runtime = memory::runtime(artifacts.train.node_ids().count());
        let step = Step { parts, elsewhere, trainable, source: Taps::Computed, mapped: false };
        Memory {
            reduction: module.options.method.reduction,
            sizes: bound(&numbers, module),
            lst: step.cost(&numbers),
            cuda: step.cost_on_device(&numbers, Extras { captured: true, evaluated: false }),
            full: Cost::new(backbone, backbone as u64 * 4, kept, runtime),
        }
    }
}

fn numbers(module: &Module, sizes: Sizes) -> Numbers {
    let mut numbers = Numbers::new(sizes.batch.saturating_mul(sizes.target_length));
    let towers = &module.anatomy.towers;
    for (index, tower) in towers.iter().enumerate() {
        let length = if index + 1 == towers.len() { sizes.target_length } else { sizes.source_length };
        numbers.set(&tower.batch, sizes.batch);
        numbers.set(&tower.length, length);
    }
    numbers
}

/// The sizes of the inputs, whether asked for or fixed by the model.
fn bound(numbers: &Numbers, module: &Module) -> Sizes {
    let size = |dim: &Dim| usize::try_from(numbers.number(dim)).unwrap_or(1);
    let (first, last) = (&module.anatomy.towers[0], module.anatomy.last());
    Sizes { batch: size(&first.batch), source_length: size(&first.length), target_length: size(&last.length) }
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
            row("the same, in CUDA device memory".to_owned(), &self.cuda),
            row("full fine-tuning".to_owned(), &self.full),
        ];
        let header = ["", "trainable", "weights", "kept activations", "gradients and moments", "runtime", "total"];
        writeln!(f, "{}", report::table(header, rows))
    }
}
