//! `lstc export`: one inference model.

use std::path::PathBuf;

use lstc_base::report::{self, Exit, Format};
use lstc_runtime::{Device, Error, Runtime, find};

use crate::export::{Request, Weights, export};

/// Bake a trained side network into one inference model
#[derive(Debug, clap::Args)]
#[command(
    long_about = "\
Writes one ONNX file that any ONNX Runtime runs: the backbone and a trained side network together. Its inputs are the \
original model's own, its output is `logits`; the trained parameters are initializers under their names. Nothing of \
training is left in it: no labels, no dropout, no optimizer.

The side network is DIR/run/best.safetensors, which training writes, or the one that --side names; anything else in the \
file, such as the optimizer's state, is ignored. Weights are embedded. A model of more than 2 GB, or one exported with \
--external-data, has them in a data file beside it, as in tuned.onnx and tuned.data: keep the two together.

Before the file gets its name, its logits are compared with those of infer.onnx on sample inputs: they must be the same bit \
for bit with graph optimisation off, and within 1e-5 of the largest logit with it on. If they are not, nothing is \
written and the exit code is 1.",
    after_long_help = "\
Examples:
  lstc export tuned/ -o tuned.onnx
  lstc export tuned/ -o tuned.onnx --side tuned/run-2/            another run's best
  lstc export tuned/ -o untrained.onnx --side tuned/side.safetensors
  lstc export tuned/ -o tuned.onnx --external-data --force        tuned.onnx and tuned.data, again
  lstc export tuned/ -o tuned.onnx --format json                  with hashes and differences"
)]
pub struct Export {
    /// Directory that `lstc rewrite` wrote
    directory: PathBuf,

    /// ONNX file to write; the name ends in .onnx
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// Side network (safetensors), or the folder of a run that holds best.safetensors [default: DIR/run]
    #[arg(long, value_name = "FILE")]
    side: Option<PathBuf>,

    /// Write the weights to a data file beside the model, whatever their size
    #[arg(long)]
    external_data: bool,

    /// Replace an earlier export at the output path
    #[arg(long)]
    force: bool,

    /// Skip the comparison with infer.onnx, which holds the model in memory
    #[arg(long)]
    no_check: bool,

    /// Format of the report on stdout
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Export {
    pub fn run(self) -> anyhow::Result<Exit> {
        let runtime = if self.no_check { None } else { runtime()? };
        let exported = export(Request {
            directory: &self.directory,
            side: self.side.as_deref(),
            output: &self.output,
            weights: if self.external_data { Weights::External } else { Weights::default() },
            force: self.force,
            runtime,
        })?;
        exported.side.notes.iter().for_each(report::warning);
        report::data(&exported, self.format)?;
        if exported.is_written() {
            return Ok(Exit::Done);
        }
        report::warning(format!("`{}` is not written: it does not agree with infer.onnx", self.output.display()));
        Ok(Exit::No)
    }
}

/// ONNX Runtime, or none if there is no library.
fn runtime() -> anyhow::Result<Option<&'static Runtime>> {
    match find(Device::Cpu) {
        Ok(library) => Ok(Some(Runtime::load(&library)?)),
        Err(Error::NotFound { .. }) => {
            report::note(
                "the export is not checked: there is no ONNX Runtime library; `lstc runtime install` fetches one",
            );
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}
