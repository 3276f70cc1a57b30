//! The flags that say how graphs are run, the same for every command that reads data through them once.

use lstc_runtime::Device;
use lstc_tuned::opened::Opened;
use lstc_tuned::options::TrainOptions;

use super::arguments::at_least;
use super::set;

/// How graphs are run, as flags. A flag that is not given leaves the configuration's value.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Running")]
pub struct RunningFlags {
    /// Examples in a batch [default: 16]
    #[arg(long, value_name = "N", value_parser = at_least::<u32>(1))]
    batch_size: Option<u32>,

    /// Threads per operator [default: one per core]
    #[arg(long, value_name = "N", value_parser = at_least::<u32>(1))]
    threads: Option<u32>,

    /// cpu, cuda or cuda:1 [default: cpu]
    #[arg(long)]
    device: Option<Device>,
}

impl RunningFlags {
    /// # Errors
    /// A batch that the model does not take.
    pub fn check(&self, opened: &Opened) -> anyhow::Result<()> {
        opened.check_batch_size(self.batch_size.map(|n| n as usize))
    }

    pub fn apply(&self, options: &mut TrainOptions) {
        options.threads = self.threads.map(|n| n as usize).or(options.threads);
        set(&mut options.batch_size, &self.batch_size.map(|n| n as usize));
        set(&mut options.device, &self.device);
    }
}
