//! `lstc inspect`: what is in a model, or in a rewritten directory.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};
use lstc_base::report::{self, Exit, Format, Hinted};
use lstc_graph::{dot, load};
use lstc_train::memory::Sizes;
use lstc_tuned::intact;
use lstc_tuned::manifest::is_rewritten;
use serde::Serialize;

use super::arguments::at_least;
use crate::inspect::{ModelReport, RewrittenReport, RunReport, WhyReport, html, is_run};
use crate::rewrite::SourceModel;

/// Show what is in a model, where the taps go, and what training will cost
#[derive(Debug, clap::Args)]
#[command(
    long_about = "\
For an ONNX model: opset, exporter, weights, towers and blocks, where the side network would tap it, and the memory \
that training would take, compared with full fine-tuning. A model that lstc does not understand is described as far as \
possible, with every reason; the exit code is then 1.

For a directory that `lstc rewrite` wrote: trainable parameters by group, nodes by the pass that made them, the cut (every \
value of the backbone that the side network reads), how far the gates are open, and, if the source is still there, the \
memory that training takes. The gates are those of --side, else those that training left in the directory, else the \
initial ones.

For a training run's folder (`tuned/run`): its epochs, the best evaluation, and when the gates opened.

--format html writes all of it as one self-contained page, with a drawing of the ladder, or the run's curves.

--why shows what recognition tried on a model, what matched, and what did not and why: at a block (`decoder.1`), a \
sublayer (`decoder.1.feed-forward`, or by its number), a tower, the `head`, or a node or value by its name. Without a \
place it summarises everything.",
    after_long_help = "\
Examples:
  lstc inspect t5.onnx
  lstc inspect t5.onnx --batch 32 --source-length 512
  lstc inspect tuned/ --format json
  lstc inspect tuned/ --format html > ladder.html
  lstc inspect tuned/run --format html > run.html
  lstc inspect t5.onnx --why decoder.1.cross-attention
  lstc inspect t5.onnx --why '/model/decoder/block.1/layer.2/DenseReluDense/act/Mul'
  lstc inspect t5.onnx --format dot | dot -Tsvg > t5.svg"
)]
pub struct Inspect {
    /// An ONNX model (a file, an encoder's and a decoder's file, or a folder that holds them), or a directory that
    /// `lstc rewrite` wrote
    #[arg(required = true)]
    path: Vec<PathBuf>,

    /// Examples in a batch, for the prediction
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = at_least::<u32>(1))]
    batch: u32,

    /// Tokens in, for the prediction
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = at_least::<u32>(1))]
    source_length: u32,

    /// Tokens out, for the prediction
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = at_least::<u32>(1))]
    target_length: u32,

    /// Side parameters whose gates to show, for a rewritten directory
    #[arg(long, value_name = "FILE")]
    side: Option<PathBuf>,

    /// What recognition tried at a place in a model, and why it matched or did not; everywhere if no place is given
    #[arg(long, value_name = "PLACE", num_args = 0..=1, default_missing_value = "")]
    why: Option<String>,

    /// Format of the report; html is a page with a drawing, dot the graph in Graphviz's language
    #[arg(long, value_enum, default_value_t)]
    format: InspectFormat,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum InspectFormat {
    #[default]
    Text,
    Json,
    Html,
    Dot,
}

impl Inspect {
    pub fn run(self) -> anyhow::Result<Exit> {
        if let Some(asked) = &self.why {
            return self.why(asked);
        }
        if self.format == InspectFormat::Dot {
            return self.dot();
        }
        let sizes = Sizes {
            batch: self.batch as usize,
            source_length: self.source_length as usize,
            target_length: self.target_length as usize,
        };
        if let Some(directory) = self.rewritten() {
            let rewritten = RewrittenReport::new(directory, sizes, self.side.as_deref())?;
            self.give(&rewritten, html::rewritten)?;
            return Ok(Exit::Done);
        }
        if let [folder] = &self.path[..]
            && is_run(folder)
        {
            self.give(&RunReport::new(folder)?, html::run)?;
            return Ok(Exit::Done);
        }
        if self.side.is_some() {
            bail!("--side needs a directory that `lstc rewrite` wrote, and `{}` is not one", self.path[0].display());
        }
        let model = ModelReport::new(&SourceModel::find(&self.path)?, sizes)?;
        model.warnings.iter().for_each(report::warning);
        self.give(&model, html::model)?;
        if let Some(hint) = &model.hint {
            report::note(format!("hint: {hint}"));
        }
        Ok(if model.is_understood() { Exit::Done } else { Exit::No })
    }

    fn give<R: fmt::Display + Serialize>(&self, report: &R, page: impl Fn(&R) -> String) -> anyhow::Result<()> {
        match self.format {
            InspectFormat::Json => report::data(report, Format::Json),
            InspectFormat::Html => report::text(&page(report)),
            InspectFormat::Text | InspectFormat::Dot => report::data(report, Format::Text),
        }
    }

    fn why(&self, asked: &str) -> anyhow::Result<Exit> {
        let format = match self.format {
            InspectFormat::Text => Format::Text,
            InspectFormat::Json => Format::Json,
            InspectFormat::Html | InspectFormat::Dot => {
                bail!("--why writes text or JSON: pass `--format text` or json")
            }
        };
        if let Some(directory) = self.rewritten() {
            let error = anyhow!("--why needs a model, and `{}` is a rewritten one", directory.display());
            return Err(Hinted::new(error, "name the model that it was made from").into());
        }
        let why = WhyReport::new(&SourceModel::find(&self.path)?, asked)?;
        report::data(&why, format)?;
        Ok(if why.understood { Exit::Done } else { Exit::No })
    }

    fn dot(&self) -> anyhow::Result<Exit> {
        let graph = match self.rewritten() {
            Some(directory) => {
                intact::record(directory)?;
                load(&directory.join("train.onnx"))?
            }
            None => SourceModel::find(&self.path)?.read()?,
        };
        report::text(&dot(&graph))?;
        Ok(Exit::Done)
    }

    /// The rewritten directory that is inspected, if it is one.
    fn rewritten(&self) -> Option<&Path> {
        match &self.path[..] {
            [path] => Some(path.as_path()).filter(|p| is_rewritten(p)),
            _ => None,
        }
    }
}
