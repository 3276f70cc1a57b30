//! `lstc inspect`: what is in a model, or in a rewritten directory.

use std::path::{Path, PathBuf};

use lstc_graph::{dot, load};

use crate::inspect::{ModelReport, RewrittenReport, Sizes};
use crate::report::{self, Exit, Format};
use crate::rewrite::manifest::is_rewritten;

/// Tell what is in a model, where the taps go, and what training will cost
#[derive(Debug, clap::Args)]
#[command(
    long_about = "\
Of an ONNX model: opset, exporter, weights, towers and blocks, where the side network would tap it, and the memory \
that training would take, beside full fine-tuning. A model that lstc does not understand is described as far as it \
goes, with every reason; the exit code is then 1.

Of a directory that `lstc rewrite` wrote: trainable parameters by group, nodes by the pass that made them, and the \
cut: every value of the backbone that the side network reads.",
    after_long_help = "\
Examples:
  lstc inspect t5.onnx
  lstc inspect t5.onnx --batch 32 --source-length 512
  lstc inspect tuned/ --format json
  lstc inspect t5.onnx --format dot | dot -Tsvg > t5.svg"
)]
pub struct Inspect {
    /// An ONNX model, or a directory that `lstc rewrite` wrote
    path: PathBuf,

    /// Examples in a batch, for the prediction
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,

    /// Tokens in, for the prediction
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    source_length: u32,

    /// Tokens out, for the prediction
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    target_length: u32,

    /// Form of the report; dot is the graph in Graphviz's language
    #[arg(long, value_enum, default_value_t)]
    format: InspectFormat,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum InspectFormat {
    #[default]
    Text,
    Json,
    Dot,
}

impl Inspect {
    pub fn run(self) -> anyhow::Result<Exit> {
        let format = match self.format {
            InspectFormat::Text => Format::Text,
            InspectFormat::Json => Format::Json,
            InspectFormat::Dot => return self.dot(),
        };
        if is_rewritten(&self.path) {
            report::data(&RewrittenReport::new(&self.path)?, format)?;
            return Ok(Exit::Done);
        }
        let sizes = Sizes {
            batch: self.batch as usize,
            source_length: self.source_length as usize,
            target_length: self.target_length as usize,
        };
        let model = ModelReport::new(&self.path, sizes)?;
        report::data(&model, format)?;
        Ok(if model.is_understood() { Exit::Done } else { Exit::No })
    }

    fn dot(&self) -> anyhow::Result<Exit> {
        let file: &Path = &if is_rewritten(&self.path) { self.path.join("train.onnx") } else { self.path.clone() };
        report::text(&dot(&load(file)?))?;
        Ok(Exit::Done)
    }
}
