//! What a step of a run is predicted to need, before any of it is allocated.

use lstc_base::report::Bytes;
use lstc_data::Corpus;
use lstc_graph::count;
use lstc_passes::Parts;
use lstc_runtime::{Cuda, Device, Runtime, available_memory};
use lstc_tuned::opened::Opened;
use lstc_tuned::options::{CudaGraphs, TrainOptions};
use serde::Serialize;

use super::buckets::Buckets;
use crate::memory::{Extras, Numbers, Sizes, Step, Taps};

/// The least that a device's arena begins with: with small pieces, a capture, during which none can be added, may run short.
const LEAST: u64 = 16 << 20;

/// The memory of a step on the largest batch of a run.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Forecast {
    #[serde(flatten)]
    pub sizes: Sizes,
    /// Where a step runs.
    pub device: Device,
    /// Bytes that are resident at its peak, or that it takes of the device's memory.
    pub bytes: u64,
    /// Bytes of the arena that are asked for in one piece.
    #[serde(skip)]
    pub reserved: u64,
    /// Bytes that the machine or the device has left for it, if that is known.
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
        buckets: &Buckets,
        runtime: &Runtime,
    ) -> Forecast {
        let sizes = buckets.largest(corpus, options.batch_size);
        let names = |suffix: &'static str| opened.record.parameters.iter().map(move |p| format!("{}{suffix}", p.name));
        let source = match is_whole {
            true => Taps::Kept,
            false if options.overlaps() => Taps::Ahead,
            false => Taps::Computed,
        };
        let elsewhere = names(".grad").filter_map(|name| parts.side.find(&name)).chain(parts.side.outputs.clone());
        let (trainable, mapped) = (opened.trainable(), options.map_weights);
        let step = Step { parts, elsewhere: elsewhere.collect(), trainable, source, mapped };
        let numbers = Numbers::of(opened, [&parts.backbone, &parts.side], sizes);
        let device = options.device;
        let (cost, available) = match device {
            Device::Cpu => (step.cost(&numbers), available_memory()),
            Device::Cuda(index) => {
                let free = runtime.cuda(index).and_then(Cuda::memory).map(|(free, _)| free);
                let extras =
                    Extras { captured: options.cuda_graphs != CudaGraphs::Off, evaluated: options.eval.is_some() };
                (step.cost_on_device(&numbers, extras), free.ok())
            }
        };
        // Address space is free, and what a batch needs beyond it would take further pieces. On a device, taps have places of their own.
        let placed = if device == Device::Cpu { 0 } else { step.taps(&numbers) };
        let values = cost.activations.saturating_sub(placed);
        let reserved = values.saturating_add(values / 4);
        Forecast { sizes, device, bytes: cost.total, reserved, available }
    }

    /// What the arena is asked for first, in one piece: on a device at most nine tenths of what it has left.
    pub(super) fn first_piece(&self) -> u64 {
        match (self.device, self.available) {
            (Device::Cuda(_), free) => self.reserved.max(LEAST).min(free.unwrap_or(u64::MAX) / 10 * 9),
            (Device::Cpu, _) => self.reserved,
        }
    }

    /// A warning, if the machine has less.
    pub fn warning(&self) -> Option<String> {
        let Forecast { sizes: Sizes { batch, source_length, target_length }, device, bytes, available, .. } = *self;
        let available = available.filter(|available| *available < bytes)?;
        let [bytes, available] = [bytes, available].map(Bytes);
        let examples = count(batch, "example");
        Some(format!(
            "a step of {examples}, {source_length} tokens in and {target_length} out, is predicted to take {bytes}, and only \
             {available} is free on {}",
            if device == Device::Cpu { "this machine".to_owned() } else { device.to_string() }
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_with_less_is_warned_of() {
        let sizes = Sizes { batch: 8, source_length: 512, target_length: 4 };
        let warning =
            |available| Forecast { sizes, device: Device::Cpu, bytes: 3 << 30, reserved: 0, available }.warning();
        assert_eq!([warning(None), warning(Some(3 << 30))], [None, None]);
        let warning = warning(Some(2 << 30)).expect("a warning");
        let parts = ["8 examples, 512 tokens in and 4 out", "3.0 GiB", "only 2.0 GiB is free"];
        assert!(parts.iter().all(|part| warning.contains(part)), "{warning}");
    }
}
