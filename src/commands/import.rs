//! `lstc import`: a side network from elsewhere.

use std::fmt;
use std::path::PathBuf;

use lstc_base::files::keep_private;
use lstc_base::report::{self, Exit, Format};
use lstc_graph::count;
use serde::Serialize;

use crate::import::{Imported, Request, import};

/// Start from a side network that was trained elsewhere
#[derive(Debug, clap::Args)]
#[command(
    long_about = "\
Takes a side network out of a safetensors file and makes it the initial side network of a rewritten directory: the one \
that `lstc train` starts from, and that `lstc export --side DIR/side.safetensors` bakes in.

The file is a state dict in the names of the reference implementation of Ladder Side-Tuning, such as \
encoder.side_block.3.layer.0.SelfAttention.q.weight: its own checkpoints, or a side network of lstc's. A prefix that \
all names share is removed. Tensors may be f32, f16, bf16 or f64; they are converted to f32. Whatever else the file holds, \
such as the backbone, is reported by group.

Every parameter of the rewritten model must be there in its shape, so the rewrite must have the same reduction, kept \
blocks, gates and biases. Everything missing or misshapen is reported together, and then nothing is written. The backbone is \
the rewrite's own, and so are the gates' temperature and everything else that is not a parameter.

The import's origin is recorded in DIR/lst.yaml, and `lstc verify` compares side.safetensors with it.",
    after_long_help = "\
Examples:
  lstc import tuned/ --side ref.safetensors
  lstc import tuned/ --side ref.safetensors -o start.safetensors     leave the directory as it is
  lstc import tuned/ --side other/run/best.safetensors               what another directory's training made

A pytorch_model.bin is a pickle, and is refused with the line of Python that converts it."
)]
pub struct Import {
    /// Directory that `lstc rewrite` wrote
    directory: PathBuf,

    /// The side network (safetensors)
    #[arg(long, value_name = "FILE")]
    side: PathBuf,

    /// Write this file, and leave the directory unchanged [default: DIR/side.safetensors]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Import even if the directory has a training run, which began from another side network; replace the output
    #[arg(long)]
    force: bool,

    /// Format of the report on stdout
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Import {
    pub fn run(self) -> anyhow::Result<Exit> {
        keep_private([&self.side]);
        let imported = import(&Request {
            directory: &self.directory,
            side: &self.side,
            output: self.output.as_deref(),
            force: self.force,
        })?;
        report::data(&Report(&imported), self.format)?;
        imported.other.iter().for_each(report::warning);
        if imported.unused.iter().any(|u| u.kind.is_loss()) {
            report::warning(
                "the network in the file has parts that the rewritten model drops: it computes something else",
            );
        }
        Ok(Exit::Done)
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct Report<'i>(&'i Imported);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let i = self.0;
        let (elements, tensors) = (count(i.elements, "parameter"), count(i.tensors, "tensor"));
        writeln!(f, "{}: {elements} in {tensors}", i.output.display())?;
        writeln!(f, "  from `{}`", i.source.display())?;
        if let Some(note) = i.seal.note(&i.source) {
            writeln!(f, "  {note}")?;
        }
        if !i.prefix.is_empty() {
            writeln!(f, "  without the prefix `{}`", i.prefix)?;
        }
        if i.converted > 0 {
            writeln!(f, "  {} converted to f32", count(i.converted, "tensor"))?;
        }
        for (parameter, name) in &i.moved {
            writeln!(f, "  `{parameter}` was `{name}`")?;
        }
        for unused in &i.unused {
            let more = if unused.tensors > unused.examples.len() { ", ..." } else { "" };
            let examples = unused.examples.join(", ");
            let tensors = count(unused.tensors, "tensor");
            writeln!(f, "  not used: {}, {tensors} ({examples}{more})", unused.kind.name())?;
        }
        Ok(())
    }
}
