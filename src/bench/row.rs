//! One row, measured in this process.

use std::time::Instant;

use anyhow::bail;
use lstc_data::Batch;
use lstc_graph::Dim;
use lstc_runtime::{Device, Kept, Resident, Runtime, find};
use lstc_train::{Backbone, Stepper, Taps};
use lstc_tuned::manifest;
use lstc_tuned::opened::{Execution, Opened};
use lstc_tuned::options::CudaGraphs;
use ndarray::{Array2, Array3, ArrayD};

use super::{Part, Row, Settings};

/// Runs before those that count.
const WARM_UP: usize = 2;

/// A learning rate that changes nothing much.
const RATE: f64 = 1e-4;

/// Measures a part of a rewritten directory.
///
/// # Errors
/// Not a rewritten directory; sizes that its graphs do not take; from ONNX Runtime.
pub fn measure(directory: &std::path::Path, part: Part, settings: &Settings) -> anyhow::Result<Row> {
    let opened = Opened::new(directory)?;
    let backbone = manifest::read(directory)?.options().backbone.precision;
    let runtime = Runtime::load(&find(settings.device)?)?;
    let execution = Execution {
        runtime,
        device: settings.device,
        threads: settings.threads,
        mapped: false,
        tf32: false,
        captures: settings.device != Device::Cpu && settings.cuda_graphs != CudaGraphs::Off,
    };
    let batch = batch(&opened, settings)?;
    let mut timed: Box<dyn FnMut(u64) -> anyhow::Result<Run>> = match part {
        Part::Forward => {
            let mut backbone = Backbone::new(&opened, opened.parts("train.onnx")?.backbone, &execution);
            let batch = &batch;
            Box::new(move |_| {
                let seconds = clocked(|| {
                    drop(backbone.taps(batch)?);
                    backbone.wait()
                })?;
                Ok(Run { seconds, memory: backbone.memory()?, plain: backbone.plain().map(str::to_owned) })
            })
        }
        Part::Step => {
            let (mut stepper, mut backbone) = Stepper::open(&opened, &execution, &opened.initial()?, false, 0)?;
            let batches = std::slice::from_ref(&batch);
            Box::new(move |run| {
                let taps = |batch: &Batch| backbone.taps(batch);
                let seconds = clocked(|| stepper.step(batches, taps, run, RATE)?.get().map(drop))?;
                let plain = stepper.plain().or_else(|| backbone.plain()).map(str::to_owned);
                Ok(Run { seconds, memory: stepper.memory()?, plain })
            })
        }
        Part::Cached => {
            let (mut stepper, _) = Stepper::open(&opened, &execution, &opened.initial()?, false, 0)?;
            let (taps, batches) = (taps(&opened, &batch)?, std::slice::from_ref(&batch));
            let memory = stepper.host_memory()?;
            // A copy for each step, as with a cache.
            let kept = move |_: &Batch| {
                let copy = |(name, numbers): &(String, ArrayD<f32>)| {
                    let mut tensor = memory.tensor(numbers.shape())?;
                    tensor.write(numbers)?;
                    Ok(Kept::new(name, tensor))
                };
                taps.iter().map(copy).collect::<anyhow::Result<_>>().map(Taps)
            };
            Box::new(move |run| {
                let seconds = clocked(|| stepper.step(batches, &kept, run, RATE)?.get().map(drop))?;
                Ok(Run { seconds, memory: stepper.memory()?, plain: stepper.plain().map(str::to_owned) })
            })
        }
    };
    let (mut seconds, mut peak_memory, mut plain) = (Vec::new(), 0, None);
    for run in 1..=WARM_UP + settings.runs {
        let made = timed(run as u64)?;
        (peak_memory, plain) = (made.memory.peak, made.plain);
        if run > WARM_UP {
            seconds.push(made.seconds);
        }
    }
    if let (Some(reason), CudaGraphs::On) = (&plain, settings.cuda_graphs) {
        bail!("the run cannot be captured as CUDA graphs: {reason}");
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    Ok(Row {
        backbone,
        part,
        seconds: median,
        best: seconds[0],
        tokens_per_second: batch.tokens as f64 / median.max(1e-9),
        peak_memory,
        captured: (settings.device != Device::Cpu).then_some(execution.captures && plain.is_none()),
    })
}

/// One run.
struct Run {
    seconds: f64,
    memory: Resident,
    /// Why not all of it was captured, although that was requested.
    plain: Option<String>,
}

/// Seconds that something takes.
fn clocked(run: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let begun = Instant::now();
    run()?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Token ids within the vocabulary, none of them special.
fn batch(opened: &Opened, settings: &Settings) -> anyhow::Result<Batch> {
    let fixed = opened.fixed();
    let rows = fixed.batch.unwrap_or(settings.batch);
    let source = fixed.source.unwrap_or(settings.source_length);
    let target = fixed.target.unwrap_or(settings.target_length);
    let vocabulary = opened.record.model.tokens() as i64;
    if vocabulary <= 8 {
        bail!("a vocabulary of {vocabulary} tokens is too small for a benchmark");
    }
    let tokens = |length: usize, step: i64| {
        Array2::from_shape_fn((rows, length), |(row, at)| 3 + (row as i64 * 7919 + at as i64 * step) % (vocabulary - 3))
    };
    Ok(Batch {
        rows: (1..=rows as u64).collect(),
        source: tokens(source, 104_729),
        source_mask: Array2::ones((rows, source)),
        target_in: tokens(target, 1299),
        target_mask: Array2::ones((rows, target)),
        labels: tokens(target, 15_485),
        counted: rows * target,
        tokens: rows * (source + target),
    })
}

/// Numbers in place of the backbone's output.
fn taps(opened: &Opened, batch: &Batch) -> anyhow::Result<Vec<(String, ArrayD<f32>)>> {
    let graph = opened.tapped("train.onnx")?;
    let last = opened.record.taps.last().map(|tap| tap.tower);
    let tap = |value: &lstc_graph::ValueId| {
        let name = &graph.value(*value).name;
        let tower = opened.record.taps.iter().find(|tap| tap.value == *name).map(|tap| tap.tower);
        let width = match graph.shape(*value).and_then(|shape| shape.last().cloned()) {
            Some(Dim::Value(width)) => usize::try_from(width)?,
            _ => bail!("the tap `{name}` has no fixed width"),
        };
        let (rows, length) = if tower == last { batch.target_in.dim() } else { batch.source.dim() };
        let numbers = |(row, at, column)| (((row * 31 + at * 17 + column * 7) % 201) as f32 - 100.0) / 50.0;
        Ok((name.clone(), Array3::from_shape_fn((rows, length, width), numbers).into_dyn()))
    };
    graph.outputs.iter().map(tap).collect()
}
