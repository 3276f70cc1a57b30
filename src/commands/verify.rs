//! `lstc verify`: proof that a rewrite is right.

use std::path::PathBuf;

use lstc_base::report::{self, Exit, Format, ProgressLine};
use lstc_runtime::{Device, Runtime, find};

use super::arguments::at_least;
use crate::verify::verify;

/// Prove that a rewritten model is right
#[derive(Debug, clap::Args)]
#[command(
    long_about = "\
Proves that a rewritten directory is right, by measurement: every block of the model, emitted in lstc's own form at \
full width, against the model itself; the backbone in the written graphs against the source, bit for bit; gradients \
against finite differences; and the invariants of a rewrite in every graph on disk.

The exit code is 1 if a check fails.",
    after_long_help = "Examples:\n  lstc verify tuned/\n  lstc verify tuned/ --format json"
)]
pub struct Verify {
    /// Directory that `lstc rewrite` wrote
    directory: PathBuf,

    /// Seed of the sample inputs and directions
    #[arg(long, default_value_t = 0, value_parser = at_least::<u64>(0))]
    seed: u64,

    /// Format of the table on stdout
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Verify {
    pub fn run(self) -> anyhow::Result<Exit> {
        let runtime = Runtime::load(&find(Device::Cpu)?)?;
        let mut line = ProgressLine::default();
        let verdict = verify(&self.directory, runtime, self.seed, |what| line.show(format!("checking {what} ...")))?;
        line.clear();
        report::data(&verdict, self.format)?;
        Ok(if verdict.holds { Exit::Done } else { Exit::No })
    }
}
