//! What a step of a run is predicted to need, before anything of it is allocated.

use lstc_passes::Parts;
use serde::Serialize;

use super::options::TrainOptions;
use crate::data::Corpus;
use crate::memory::{Numbers, Sizes, Step, Taps};
use crate::report::Bytes;
use crate::rewrite::opened::Opened;
use crate::runtime::available_memory;

/// The memory of a step on the largest batch that a run may meet.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Forecast {
    #[serde(flatten)]
    pub sizes: Sizes,
    /// Bytes that are resident at its peak.
    pub bytes: u64,
    /// Bytes of the arena that are asked for in one piece.
    #[serde(skip)]
    pub reserved: u64,
    /// Bytes that the machine has left for it, where the system tells.
    pub available: Option<u64>,
}

impl Forecast {
    /// For the graph that steps are made by, in two. `is_whole` says that a cache has the taps of all examples.
    pub(super) fn new(
        opened: &Opened,
        parts: &Parts,
        options: &TrainOptions,
        corpus: &Corpus,
        is_whole: bool,
    ) -> Forecast {
        let fixed = opened.fixed();
        let (source, target) = corpus.longest();
        let sizes = Sizes {
            batch: fixed.batch.unwrap_or(options.batch_size.min(corpus.len())),
            source_length: fixed.source.unwrap_or(source),
            target_length: fixed.target.unwrap_or(target),
        };
        let names = |suffix: &'static str| opened.record.parameters.iter().map(move |p| format!("{}{suffix}", p.name));
        let taps = match is_whole {
            true => Taps::Kept,
            false if options.overlaps() => Taps::Ahead,
            false => Taps::Computed,
        };
        let elsewhere = names(".grad").filter_map(|name| parts.side.find(&name)).chain(parts.side.outputs.clone());
        let (trainable, mapped) = (opened.trainable(), options.map_weights);
        let step = Step { parts, elsewhere: elsewhere.collect(), trainable, taps, mapped };
        let cost = step.cost(&numbers(opened, parts, sizes));
        // Address space is free, and what a batch needs beyond it would lie in pieces of its own.
        let reserved = cost.activations.saturating_add(cost.activations / 4);
        Forecast { sizes, bytes: cost.total, reserved, available: available_memory() }
    }

    /// A warning, where the machine has less.
    pub fn warning(&self) -> Option<String> {
        let Forecast { sizes: Sizes { batch, source_length, target_length }, bytes, available, .. } = *self;
        let available = available.filter(|available| *available < bytes)?;
        let [bytes, available] = [bytes, available].map(Bytes);
        Some(format!(
            "a step of {batch} examples, {source_length} tokens in and {target_length} out, is predicted to take {bytes}, and \
             {available} are left on this machine"
        ))
    }
}

fn numbers(opened: &Opened, parts: &Parts, sizes: Sizes) -> Numbers {
    let late = opened.late();
    let mut numbers = Numbers::new(sizes.batch.saturating_mul(sizes.target_length));
    for graph in [&parts.backbone, &parts.side] {
        for input in &graph.inputs {
            let name = graph.value(*input).name.as_str();
            let is_late = name == "labels" || late.contains(&name);
            let is_read = is_late || opened.record.inputs.iter().any(|input| input.name == name);
            if is_read && let Some([batch, length]) = graph.shape(*input).as_deref() {
                numbers.set(batch, sizes.batch);
                numbers.set(length, if is_late { sizes.target_length } else { sizes.source_length });
            }
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_with_less_is_warned_of() {
        let sizes = Sizes { batch: 8, source_length: 512, target_length: 4 };
        let warning = |available| Forecast { sizes, bytes: 3 << 30, reserved: 0, available }.warning();
        assert_eq!([warning(None), warning(Some(3 << 30))], [None, None]);
        let warning = warning(Some(2 << 30)).expect("a warning");
        let told = ["8 examples, 512 tokens in and 4 out", "3.0 GiB", "2.0 GiB are left"];
        assert!(told.iter().all(|part| warning.contains(part)), "{warning}");
    }
}
