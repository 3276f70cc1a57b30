//! `lstc eval`: how well a side network does.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use lstc_base::files::keep_private;
use lstc_base::report::{self, Exit, Format, Hinted};
use lstc_data::Targets;
use lstc_runtime::{Runtime, find};
use lstc_train::evaluate::{self, Metrics, Request, named_labels, percent, write_predictions};
use lstc_train::{Data, Event, Settings, read_corpus};
use lstc_tuned::manifest;
use lstc_tuned::opened::{Opened, side_file};
use lstc_tuned::output::{Inputs, Output};
use lstc_tuned::run::Started;
use serde::Serialize;

use super::data_flags::DataFlags;
use super::running_flags::RunningFlags;
use super::train::Talk;

/// Evaluate a side network on labelled text
#[derive(Debug, clap::Args)]
#[command(
    long_about = "\
Evaluates a side network on labelled text: the loss of a target token, and two accuracies.

By likelihood: the share of rows whose target is the likeliest of all labels. The labels are those that --labels names, or \
else the different targets of the file, if there are at most 10, or at most 100 with two rows each on average. A row \
whose target is not one of them counts as wrong.
By generation: the share of rows for which the model, always taking the likeliest next token, writes the target itself.",
    after_long_help = "\
Examples:
  lstc eval tuned/ --data test.jsonl
  lstc eval tuned/ --data test.jsonl --side tuned/side.safetensors     before training
  lstc eval tuned/ --data test.jsonl --predictions out.jsonl --format json"
)]
pub struct Eval {
    /// Directory that `lstc rewrite` wrote
    directory: PathBuf,

    /// Labelled text to evaluate on [default: what the run evaluated on, held out or from a file]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,

    /// Side network, or the folder of a run [default: best.safetensors of the directory's run]
    #[arg(long, value_name = "FILE")]
    side: Option<PathBuf>,

    /// Write what was predicted for each row, as JSONL
    #[arg(long, value_name = "FILE")]
    predictions: Option<PathBuf>,

    /// Replace the file that --predictions names
    #[arg(long, requires = "predictions")]
    force: bool,

    /// The labels, separated by commas [default: the different targets of the file]
    #[arg(long, value_name = "LABELS", value_delimiter = ',')]
    labels: Vec<String>,

    /// Skip generation, which is slow
    #[arg(long)]
    no_generation: bool,

    /// Format of the report on stdout
    #[arg(long, value_enum, default_value_t)]
    format: Format,

    #[command(flatten)]
    running: RunningFlags,

    #[command(flatten)]
    reading: DataFlags,
}

impl Eval {
    pub fn run(self) -> anyhow::Result<Exit> {
        let opened = Opened::new(&self.directory)?;
        self.running.check(&opened)?;
        let side = side_file(&self.directory, self.side.as_deref())?;
        let mut settings = Settings::of(&side, manifest::read(&self.directory)?.training())?;
        self.reading.apply(&mut settings.started.data);
        self.running.apply(&mut settings.started.train);
        let started = &settings.started;
        let output = self.output(&side, started)?;
        let options = &started.train;
        let runtime = Runtime::load(&find(options.device)?)?;
        let tokenizer = self.reading.tokenizer.as_deref().or(options.tokenizer.as_deref());
        let tokenizer = opened.tokenizer(tokenizer)?;
        let other = settings.check_tokenizer(&side, tokenizer.as_ref(), self.reading.tokenizer.is_some())?;
        other.iter().for_each(report::warning);
        let mut talk = Talk::default();
        let scratch = std::env::temp_dir();
        let mut notify = |event: Event| talk.show(&event);
        let held_out = options.eval_fraction.filter(|_| self.data.is_none());
        let data =
            self.data.as_ref().or(options.eval.as_ref()).or(options.data.as_ref().filter(|_| held_out.is_some()));
        let data = data.ok_or_else(|| {
            Hinted::new(anyhow!("no data is given"), "--data FILE, with an input and a target in each row")
        })?;
        let corpus = match held_out {
            Some(_) => Data::read(&opened, started, tokenizer.as_ref(), &scratch, &mut notify)?.eval,
            None => Some(read_corpus(&opened, &started.data, tokenizer.as_ref(), data, &scratch, &mut notify)?),
        };
        let corpus = corpus.context("a share of the data is held out")?;
        if self.data.is_none() && other.is_none() {
            settings.check_evaluated(&corpus)?;
        }

        let labels = match &self.labels[..] {
            [] => evaluate::labels(&[&corpus], tokenizer.as_ref())?,
            given => named_labels(given, tokenizer.as_ref(), started.data.max_target_length)?,
        };
        let execution = options.execution(runtime);
        let generate = (!self.no_generation).then_some(started.data.max_target_length);
        let request = Request { labels, generate, batch_size: options.batch_size, targets: Targets::Read };
        let of = corpus.len();
        let progress = |done| notify(Event::Evaluating { done, of });
        let (network, notes) = opened.side(&side)?;
        notes.iter().for_each(report::warning);
        keep_private([data, &side]);
        let scored = evaluate::score_side(&opened, &execution, &network, &corpus, &request, progress)?;
        talk.line.clear();
        if let Some(output) = &output {
            write_predictions(output, &scored, &request.labels, tokenizer.as_ref())?;
        }
        let skipped = corpus.skipped().count;
        let metrics = Metrics::of(&scored, &request.labels);
        report::data(&Evaluation { side: &side, data, held_out, skipped, metrics }, self.format)?;
        Ok(Exit::Done)
    }

    /// Where the predictions go.
    fn output(&self, side: &Path, started: &Started) -> anyhow::Result<Option<Output>> {
        let options = &started.train;
        let read = [&self.data, &options.data, &options.eval, &options.tokenizer, &self.reading.tokenizer];
        let inputs =
            Inputs::of(read.into_iter().flatten().map(PathBuf::as_path).chain([side, self.directory.as_path()]));
        self.predictions.as_deref().map(|path| Output::new(path, &inputs, self.force)).transpose()
    }
}

/// An evaluation, for the report.
#[derive(Serialize)]
struct Evaluation<'e> {
    side: &'e Path,
    data: &'e Path,
    /// The share of the data that was evaluated, if it was held out of training.
    #[serde(skip_serializing_if = "Option::is_none")]
    held_out: Option<f64>,
    /// Bad rows that were left out.
    skipped: usize,
    #[serde(flatten)]
    metrics: Metrics,
}

impl fmt::Display for Evaluation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held_out =
            self.held_out.map_or_else(String::new, |share| format!(", the {} held out of training", percent(share)));
        writeln!(f, "{} on {}{held_out}", self.side.display(), self.data.display())?;
        if self.skipped > 0 {
            writeln!(f, "bad rows left out    {}", self.skipped)?;
        }
        write!(f, "{}", self.metrics)
    }
}
