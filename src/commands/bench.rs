//! `lstc bench`: what training costs on this machine.

use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use lstc_base::report::{self, Exit, Format, Hinted, ProgressLine};
use lstc_passes::options::Precision;
use lstc_runtime::Device;
use lstc_tuned::manifest;
use lstc_tuned::options::CudaGraphs;

use super::arguments::at_least;
use crate::bench::{Part, Settings, bench, measure};

/// Measure what training costs on this machine: seconds and memory of a step
#[derive(Debug, Args)]
#[command(
    long_about = "\
Measures what training costs on this machine: the backbone's forward pass, a training step, and a step on cached taps, with the \
backbone as it was exported and quantised.

The model is rewritten into the system's temporary folder for each precision; a rewritten directory is measured as it is. Each row \
is measured in a process of its own, whose peak memory is the row's. The batch is of random tokens, without padding; sizes that \
the model fixes override the flags. Measure on an idle machine: times are medians, beside the fastest.",
    after_long_help = "\
Examples:
  lstc bench t5.onnx                              exported and int8, 8 x 128 tokens in, 8 out
  lstc bench t5.onnx --backbone int8 --backbone int4 --batch 32
  lstc bench tuned/ --source-length 512           a rewritten directory, as it is"
)]
pub struct Bench {
    /// Model: an .onnx file, an encoder's and a decoder's, or the folder that holds them; or a rewritten directory
    #[arg(required = true, value_name = "MODEL")]
    model: Vec<PathBuf>,

    /// Precision of the backbone; may be given several times [default: source, int8; on CUDA source, bf16]
    #[arg(long, value_name = "TYPE")]
    backbone: Vec<Precision>,

    /// What to measure; may be given several times [default: all]
    #[arg(long, value_enum, value_name = "PART")]
    only: Vec<Part>,

    /// Examples in a batch
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least::<u32>(1))]
    batch: u32,

    /// Tokens of each source
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = at_least::<u32>(1))]
    source_length: u32,

    /// Tokens of each target
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least::<u32>(1))]
    target_length: u32,

    /// Measured runs of each row
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,

    /// Threads per operator [default: one per core]
    #[arg(long, value_name = "N", value_parser = at_least::<u32>(1))]
    threads: Option<u32>,

    /// cpu, cuda or cuda:1
    #[arg(long, default_value_t)]
    device: Device,

    /// On CUDA, whether to capture runs as CUDA graphs, and replay them
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    cuda_graphs: CudaGraphs,

    #[arg(long, value_enum, default_value_t)]
    format: Format,

    /// Measure one row of a rewritten directory, in this process
    #[arg(long, value_enum, hide = true)]
    row: Option<Part>,
}

impl Bench {
    pub fn run(self) -> anyhow::Result<Exit> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let settings = Settings {
            batch: self.batch as usize,
            source_length: self.source_length as usize,
            target_length: self.target_length as usize,
            runs: self.runs as usize,
            threads: self.threads.map_or_else(cores, |n| n as usize),
            device: self.device,
            cuda_graphs: self.cuda_graphs,
        };
        if let (Some(part), [directory]) = (self.row, &self.model[..]) {
            report::text(&serde_json::to_string(&measure(directory, part, &settings)?)?)?;
            return Ok(Exit::Done);
        }
        if let [one] = &self.model[..]
            && manifest::is_rewritten(one)
            && !self.backbone.is_empty()
        {
            let error = anyhow!("`{}` is already rewritten: its backbone is measured as it is", one.display());
            return Err(Hinted::new(error, "--backbone needs a model that is not rewritten").into());
        }
        let quick = if self.device == Device::Cpu { Precision::Int8 } else { Precision::Bf16 };
        let precisions = if self.backbone.is_empty() { vec![Precision::Source, quick] } else { self.backbone };
        let parts = if self.only.is_empty() { Part::ALL.to_vec() } else { self.only };
        let mut line = ProgressLine::default();
        let table = bench(&self.model, &precisions, &parts, &settings, |what| line.show(what));
        line.clear();
        report::data(&table?, self.format)?;
        Ok(Exit::Done)
    }
}
