//! The command line: one file a command, each with its arguments and its `run`.

mod arguments;
mod bench;
mod cache;
mod data_flags;
mod eval;
mod export;
mod import;
mod inspect;
mod predict;
mod rewrite;
mod running_flags;
mod runtime;
pub mod train;
mod verify;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use lstc_base::interrupt;
use lstc_base::report::{self, Exit, Hinted, Known, known};
use lstc_runtime::install::InstallError;

use crate::rewrite::NotUnderstood;

/// Train a small side network beside a frozen ONNX transformer, on stock ONNX Runtime.
#[derive(Debug, Parser)]
#[command(
    version,
    propagate_version = true,
    long_about = "\
lstc is a compiler. It reads a transformer that was exported to ONNX, freezes it, grows a small ladder side network \
beside it, derives the side network's backward pass and optimizer as plain ONNX nodes, and trains the result through \
stock ONNX Runtime.",
    after_long_help = "\
Examples:
  lstc inspect t5.onnx                 what is in it, where the taps go, what training will cost
  lstc rewrite t5.onnx -o tuned/       the trainable graphs
  lstc train tuned/ --train a.jsonl    progress, checkpoints, metrics
  lstc cache build tuned/ --data a.jsonl --cache taps/
                                       the backbone's part of training, once for all epochs
  lstc eval tuned/ --data b.jsonl      loss, accuracy, a table by label
  lstc predict tuned/ --data c.jsonl   labels, or text, for rows without a target
  lstc export tuned/ -o tuned.onnx     one inference model for any ONNX Runtime
  lstc import tuned/ --side FILE       start from a side network that was trained elsewhere
  lstc verify tuned/                   proof that the rewrite is right
  lstc bench t5.onnx                   what training costs on this machine
  lstc runtime install                 fetch the ONNX Runtime library, once
  lstc runtime show                    which library is used, and why
  lstc runtime remove                  remove what was fetched

A flag that is on or off may have a value: `--bias`, `--bias false`, `--bias=false` and `--no-bias` all work.

Data goes to stdout and everything else to stderr. The exit code is 0 when done, 1 when the answer is no, 2 when \
lstc or its environment failed, and 130 when training was stopped and saved."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

// In the order in which a user meets them, which is also the order in `--help`.
#[derive(Debug, Subcommand)]
enum Command {
    Inspect(inspect::Inspect),
    Rewrite(Box<rewrite::Rewrite>),
    Train(Box<train::Train>),
    Cache(cache::CacheCommand),
    Eval(Box<eval::Eval>),
    Predict(Box<predict::Predict>),
    Export(export::Export),
    Import(import::Import),
    Verify(verify::Verify),
    Bench(bench::Bench),
    Runtime(runtime::Runtime),
    /// Print a shell's completions
    #[command(after_long_help = "Example:\n  lstc completions bash > ~/.local/share/bash-completion/completions/lstc")]
    Completions {
        shell: Shell,
    },
}

/// Reads the command line, does what it says, and reports how it ended.
pub fn main() -> Exit {
    let command = parsed().command;
    interrupt::handle();
    let outcome = match command {
        Command::Inspect(inspect) => inspect.run(),
        Command::Rewrite(rewrite) => rewrite.run(),
        Command::Train(train) => train.run(),
        Command::Cache(cache) => cache.run(),
        Command::Eval(eval) => eval.run(),
        Command::Predict(predict) => predict.run(),
        Command::Export(export) => export.run(),
        Command::Import(import) => import.run(),
        Command::Verify(verify) => verify.run(),
        Command::Bench(bench) => bench.run(),
        Command::Runtime(runtime) => runtime.run(),
        Command::Completions { shell } => completions(shell),
    };
    outcome.unwrap_or_else(|error| failure(&error))
}

/// The errors that know what to do about them.
const ADVISING: [Known; 4] =
    [known::<Hinted>, known::<lstc_runtime::Error>, known::<InstallError>, known::<NotUnderstood>];

/// Reports why a command failed, and returns its exit code.
pub fn failure(error: &anyhow::Error) -> Exit {
    report::failure(error, &ADVISING)
}

/// Parses the command line; if it is not valid, ends the process with clap's message.
fn parsed() -> Cli {
    let mut command = Cli::command();
    let words = arguments::settled(&command, std::env::args_os());
    let matches = command.try_get_matches_from_mut(words).unwrap_or_else(|error| error.exit());
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut command).exit())
}

/// A flag that is given overrides the configuration.
fn set<T: Clone>(target: &mut T, flag: &Option<T>) {
    if let Some(value) = flag {
        target.clone_from(value);
    }
}

fn completions(shell: Shell) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "lstc", &mut script);
    report::text(&String::from_utf8(script)?)?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
