//! The fastest precision on a device, by measurement: the first block at the sizes of training.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, anyhow};
use lstc_graph::{DType, Dim, Graph, data_to_run, encode};
use lstc_models::Anatomy;
use lstc_passes::options::{BackboneOptions, Precision, Sizes};
use lstc_passes::problem::listed;
use lstc_passes::quantise::{Quantise, by_block, products};
use lstc_passes::{Module, Options, Pipeline};
use lstc_runtime::{Device, Runtime, Session, Tensor};
use lstc_tuned::opened::runnable;
use ndarray::{ArrayD, IxDyn};
use serde::Serialize;

use super::decided;

/// Sizes if none are fixed.
const BATCH: usize = 8;
const BATCH_ON_CUDA: usize = 32;
const LENGTH: usize = 128;

/// Runs of a candidate, and the seconds after which no more are made.
const RUNS: usize = 9;
const ENOUGH: f64 = 1.0;

/// A precision, and how long the first block takes in it.
#[derive(Clone, Debug, Serialize)]
pub struct Candidate {
    #[serde(rename = "type")]
    pub precision: Precision,
    /// The median; `None` if it does not run.
    pub seconds: Option<f64>,
    /// Why it does not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

fn candidates(runtime: &Runtime, device: Device) -> anyhow::Result<Vec<Precision>> {
    let mut candidates = match device {
        Device::Cpu => vec![Precision::Source, Precision::Fp32, Precision::Int8, Precision::Int4],
        Device::Cuda(_) => vec![Precision::Source, Precision::Fp16, Precision::Bf16, Precision::Int4],
    };
    if let Device::Cuda(index) = device
        && !runtime.cuda(index)?.has_bf16()?
    {
        candidates.retain(|precision| *precision != Precision::Bf16);
    }
    Ok(candidates)
}

/// Measures the candidates of a device; the fastest first.
///
/// # Errors
/// None of them runs, the source's own precision included; from the file system.
pub fn fastest(
    runtime: &'static Runtime,
    device: Device,
    graph: &Graph,
    anatomy: &Anatomy,
    options: &Options,
    scratch: &Path,
) -> anyhow::Result<Vec<Candidate>> {
    let mut measured = Vec::new();
    for precision in candidates(runtime, device)? {
        let bench = Bench { runtime, device, options, precision, scratch };
        match bench.seconds(graph, anatomy) {
            Ok(Some(seconds)) => measured.push(Candidate { precision, seconds: Some(seconds), reason: None }),
            Ok(None) => {}
            Err(error) if precision == Precision::Source => {
                return Err(error.context("the model's first block does not run"));
            }
            Err(error) => {
                measured.push(Candidate { precision, seconds: None, reason: Some(format!("{error:#}")) });
            }
        }
    }
    measured.sort_by(|a, b| a.seconds.unwrap_or(f64::INFINITY).total_cmp(&b.seconds.unwrap_or(f64::INFINITY)));
    Ok(measured)
}

struct Bench<'b> {
    runtime: &'static Runtime,
    device: Device,
    options: &'b Options,
    precision: Precision,
    scratch: &'b Path,
}

impl Bench<'_> {
    /// The median time of the first block; `None` if the precision changes nothing in it.
    fn seconds(&self, graph: &Graph, anatomy: &Anatomy) -> anyhow::Result<Option<f64>> {
        let found = products(graph, anatomy, false).plain;
        let own = by_block(graph, anatomy, &found).swap_remove(0).swap_remove(0);
        let others = found.iter().enumerate().filter(|(i, _)| !own.contains(i));
        let kept = others.map(|(_, p)| graph.value(p.y).name.clone()).collect();
        let backbone = BackboneOptions {
            precision: self.precision,
            int8_weights: self.options.backbone.int8_weights,
            quantise_head: false,
            max_tap_error: Some(BackboneOptions::NO_LIMIT),
            kept: Some(kept),
            in_8_bits: None,
        };
        let options = Options { backbone: decided(backbone), ..self.options.clone() };
        let mut module =
            Module::new(graph.clone(), anatomy.clone(), options).map_err(|p| anyhow!("\n{}", listed(&p)))?;
        Pipeline::default().then(Quantise).run(&mut module, None, |_, _| ())?;
        if module.quantised.as_ref().is_some_and(|q| q.products.is_empty()) {
            return Ok(None);
        }
        let tower = &anatomy.towers[0];
        let (input, output) = (tower.blocks[0].input, tower.blocks[0].output);
        let mut block = module.graph;
        block.give(input);
        block.outputs = vec![output];
        let block = runnable(&block.slice(&[output]), self.runtime, self.device)?.into_owned();
        let scratch = tempfile::tempdir_in(self.scratch)?;
        let (data, folder) = data_to_run(&[&block], scratch.path())?;
        let mut session = self.runtime.session().device(self.device).load(&encode(&block, &data), Some(&folder))?;
        let batch = if self.device == Device::Cpu { BATCH } else { BATCH_ON_CUDA };
        let feeds = feeds(&block, &self.options.sizes, batch)?;
        let output = block.value(output).name.clone();
        median(&mut session, &feeds, &output).map(Some)
    }
}

/// The median of runs on inputs that are where the session reads them, with an output that stays there.
fn median(session: &mut Session, feeds: &[(String, Tensor)], output: &str) -> anyhow::Result<f64> {
    let places = session.places();
    let mut run = || {
        let mut binding = session.binding(&places)?;
        feeds.iter().try_for_each(|(name, tensor)| binding.feed(name, tensor))?;
        session.outputs().iter().filter(|port| port.name == output).try_for_each(|port| binding.keep(port))?;
        session.wait()?;
        let start = Instant::now();
        session.run_keeping(binding)?;
        session.wait()?;
        anyhow::Ok(start.elapsed().as_secs_f64())
    };
    run()?;
    let begin = Instant::now();
    let mut times = Vec::new();
    while times.len() < RUNS && (times.len() < 3 || begin.elapsed().as_secs_f64() < ENOUGH) {
        times.push(run()?);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Hidden states, tokens and masks at the sizes of training.
fn feeds(graph: &Graph, sizes: &Sizes, batch: usize) -> anyhow::Result<Vec<(String, Tensor)>> {
    let mut feeds = Vec::new();
    for input in &graph.inputs {
        let value = graph.value(*input);
        let dims = value.shape().with_context(|| format!("`{}` has no shape", value.name))?;
        let size = |(axis, dim): (usize, &Dim)| match (dim, axis) {
            (Dim::Value(size), _) => usize::try_from(*size).unwrap_or(1),
            (_, 0) => sizes.batch.unwrap_or(batch),
            _ => sizes.source_length.unwrap_or(LENGTH),
        };
        let shape: Vec<usize> = dims.iter().enumerate().map(size).collect();
        let mut index = 0_u32;
        let mut wave = || {
            index = index.wrapping_add(1);
            (f64::from(index) * 0.7).sin() as f32
        };
        let shape = IxDyn(&shape);
        let tensor = match value.dtype {
            Some(DType::F32) => ArrayD::from_shape_simple_fn(shape, &mut wave).into(),
            Some(DType::F16) => ArrayD::from_shape_simple_fn(shape, || half::f16::from_f32(wave())).into(),
            Some(DType::I64) => ArrayD::<i64>::ones(shape).into(),
            Some(DType::I32) => ArrayD::<i32>::ones(shape).into(),
            Some(DType::Bool) => ArrayD::from_elem(shape, true).into(),
            other => anyhow::bail!("`{}` is of type {other:?}, for which there are no samples", value.name),
        };
        feeds.push((value.name.clone(), tensor));
    }
    Ok(feeds)
}
