//! `lstc train`: progress, checkpoints, metrics.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail};
use lstc_base::files::keep_private;
use lstc_base::interrupt;
use lstc_base::report::{self, Bytes, Clock, Exit, Format, ProgressLine};
use lstc_graph::count;
use lstc_runtime::{Device, Runtime, find};
use lstc_train::evaluate::{Guess, percent};
use lstc_train::memory::Sizes;
use lstc_train::{Event, Forecast, Plan, Request, Settings, Summary, train};
use lstc_tuned::cache::{Element, Size};
use lstc_tuned::config::Config;
use lstc_tuned::opened::Opened;
use lstc_tuned::opened::side_file;
use lstc_tuned::options::{CudaGraphs, Overlap, Schedule, TapDtype, TrainOptions};
use lstc_tuned::run::Started;
use lstc_tuned::{RUN, manifest};
use serde::Serialize;

use super::arguments::{at_least, share};
use super::data_flags::DataFlags;
use super::set;

/// Train the side network of a rewritten model
#[derive(Debug, clap::Args)]
#[command(
    long_about = "\
Trains the side network of a directory that `lstc rewrite` wrote, on labelled text: JSONL, CSV or TSV with an input and \
a target in each row, or JSONL of token ids (`input_ids`, `labels`). The backbone stays as it is.

What is written to the run's folder, `run` in the directory unless --out says otherwise:
  best.safetensors        the side network of the best evaluation, for `lstc eval` and `lstc export`
  checkpoint.safetensors  where the run stands; --resume continues from it
  metrics.jsonl           a line per step (loss, speed, memory and more) and per evaluation
  train.yaml              how the run was started

The best evaluation is the one with the highest accuracy if the targets are labels (at most 100 different ones), else the \
one with the lowest loss. Without --eval it is the last.

--eval 0.1 holds out a tenth of the training data to evaluate on, so that no other file is needed to select the best. If the \
targets are labels, each label keeps its share in both parts. --seed decides which examples are held out.

If the targets are labels, training reports what can be reached by guessing from the labels' frequencies alone: the accuracy \
of always giving the most frequent one (the majority), and the lowest loss. An evaluation that is no better says so.

--from RUN starts another run, from the best side network of RUN or from a side network file, with RUN's options unless flags \
override them. AdamW's moments start at zero, and the schedule starts again: the learning rate warms up to --lr and falls until \
the end of --epochs. With --patience the schedule still spans all --epochs.

With --cache the taps of each example, which are the same in every epoch, are computed once and kept on disk: \
`lstc cache --help` says when that pays.

Ctrl-C finishes the step and saves. On the CPU a run that was stopped or killed, and resumed, gives the same losses, bit \
for bit, as one that was not.",
    after_long_help = "\
Examples:
  lstc train tuned/ --train train.jsonl --eval 0.1      a tenth of the rows evaluates
  lstc train tuned/ --train train.jsonl --eval validation.jsonl --epochs 20 --patience 3
  lstc train tuned/ --from tuned/run --epochs 3 --lr 1e-3 --out tuned/run-2     train on from a finished run
  lstc train tuned/ --train sst2.tsv --input-field sentence --prefix \"sst2 sentence: \"
  lstc train tuned/ --train a.jsonl --batch-size 8 --accumulate 4     steps of 32 examples
  lstc train tuned/ --resume     go on where a run was stopped
  lstc train tuned/ --train a.jsonl --cache taps/      later epochs run the side network alone
  lstc train tuned/ --train a.jsonl --device cuda"
)]
pub struct Train {
    /// Directory that `lstc rewrite` wrote
    directory: PathBuf,

    /// Labelled text to train on
    #[arg(long, value_name = "FILE")]
    train: Option<PathBuf>,

    /// What to evaluate on after each epoch: a file of labelled text, or a share of the training data to hold out, as in 0.1
    #[arg(long, value_name = "FILE|SHARE")]
    eval: Option<EvaluateOn>,

    /// The share of the training data to hold out and evaluate on, as in 0.1: the same as --eval with a number
    #[arg(long, value_name = "SHARE", conflicts_with = "eval", value_parser = share)]
    eval_fraction: Option<f64>,

    /// Folder of the run [default: run in the directory]
    #[arg(short, long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Continue the run from its checkpoint, as it was started
    #[arg(long)]
    resume: bool,

    /// Start a new run from the best side network of this one, with its options, or from a side network file
    #[arg(long, value_name = "RUN", conflicts_with = "resume")]
    from: Option<PathBuf>,

    /// Options from a YAML file; flags override it [default: the directory's lst.yaml]
    #[arg(long, value_name = "FILE", conflicts_with = "resume")]
    config: Option<PathBuf>,

    /// Format of the summary on stdout
    #[arg(long, value_enum, default_value_t)]
    format: Format,

    #[command(flatten)]
    data: DataFlags,

    #[command(flatten)]
    flags: TrainFlags,
}

/// The options as flags. A flag that is not given leaves the configuration's value.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Training")]
struct TrainFlags {
    /// Number of passes over the training data [default: 5]
    #[arg(long, value_name = "N", value_parser = at_least::<u64>(1))]
    epochs: Option<u64>,

    /// Examples in a batch [default: 16]
    #[arg(long, value_name = "N", value_parser = at_least::<usize>(1))]
    batch_size: Option<usize>,

    /// Batches whose gradients are combined into one step [default: 1]
    #[arg(long, value_name = "N", value_parser = at_least::<usize>(1))]
    accumulate: Option<usize>,

    /// The highest learning rate [default: 3e-3]
    #[arg(long, value_name = "X")]
    lr: Option<f64>,

    /// How the learning rate falls after the warm-up [default: linear]
    #[arg(long, value_enum)]
    schedule: Option<Schedule>,

    /// Steps over which the learning rate rises [default: a tenth of all, at most 500]
    #[arg(long, value_name = "N", value_parser = at_least::<u64>(0))]
    warmup_steps: Option<u64>,

    /// Stop after N evaluations without an improvement [default: never]
    #[arg(long, value_name = "N", value_parser = at_least::<u64>(1))]
    patience: Option<u64>,

    /// Seed of the order of the examples, and of what --eval holds out [default: that of `lstc rewrite`]
    #[arg(long, value_name = "N", value_parser = at_least::<u64>(0))]
    seed: Option<u64>,

    /// Threads per operator [default: one per core]
    #[arg(long, value_name = "N", value_parser = at_least::<usize>(1))]
    threads: Option<usize>,

    /// cpu, cuda or cuda:1 [default: cpu]
    #[arg(long)]
    device: Option<Device>,

    /// On CUDA, compute the backbone's products in TF32: faster, with 10 bits of the operands' mantissas [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    tf32: Option<bool>,

    /// Read weights from their mapped file: less memory, but slower, above all with small batches [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    map_weights: Option<bool>,

    /// On the CPU, whether the backbone reads the next batch while the side network learns from the previous one, which takes
    /// memory for the taps of one more batch; auto overlaps if there are twice as many cores as --threads [default: auto]
    #[arg(long, value_enum)]
    overlap: Option<Overlap>,

    /// How taps are held in memory from the forward pass to the backward pass: fp16 takes half as much and int8 a quarter, each
    /// at some loss of precision. Not with --cache, which has --cache-dtype [default: fp32]
    #[arg(long, value_enum, value_name = "TYPE")]
    tap_dtype: Option<TapDtype>,

    /// On CUDA, whether to capture steps as CUDA graphs, one per batch size, and replay them: auto captures what it can and reports
    /// the rest [default: auto]
    #[arg(long, value_enum, value_name = "WHEN")]
    cuda_graphs: Option<CudaGraphs>,

    /// On CUDA, read losses and show progress every N steps, while the device keeps running [default: 10]
    #[arg(long, value_name = "N", value_parser = at_least::<u64>(1))]
    log_every: Option<u64>,

    /// Steps between checkpoints; each epoch also ends with one [default: 500]
    #[arg(long, value_name = "N", value_parser = at_least::<u64>(1))]
    save_every: Option<u64>,

    /// Keep the backbone's taps in this folder: from the second epoch on only the side network runs
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,

    /// How much disk space the cache may take, as in 20GB [default: all that is free but 10 GiB, at least half of it]
    #[arg(long, value_name = "SIZE")]
    cache_budget: Option<Size>,

    /// Type in which taps are kept [default: the cache's own, else fp32]
    #[arg(long, value_enum, value_name = "TYPE")]
    cache_dtype: Option<Element>,
}

impl Train {
    pub fn run(self) -> anyhow::Result<Exit> {
        let started = self.started()?;
        let from = started.train.from.as_deref().map(|from| side_file(&self.directory, Some(from))).transpose()?;
        keep_private([&started.train.data, &started.train.eval, &from].into_iter().flatten());
        Opened::new(&self.directory)?.check_batch_size(self.flags.batch_size)?;
        let runtime = Runtime::load(&find(started.train.device)?)?;
        let request = Request {
            directory: &self.directory,
            train: started.train,
            reading: started.data,
            runtime,
            resume: self.resume,
        };
        let mut talk = Talk::default();
        let summary = train(&request, |event| {
            // Until then, there is nothing to save.
            if matches!(event, Event::Begins(_)) {
                interrupt::listen();
            }
            talk.show(&event);
        })?;
        talk.line.clear();
        report::data(&Outcome { directory: &self.directory, summary: &summary }, self.format)?;
        let is_own = summary.out == self.directory.join(RUN);
        if let Some(waited) = summary.out_of_patience {
            report::note(format!("stopped: {} without an improvement", count(waited, "evaluation")));
        }
        if summary.interrupted {
            let path = |path: &Path| report::word(&path.to_string_lossy());
            let out = if is_own { String::new() } else { format!(" --out {}", path(&summary.out)) };
            let directory = path(&self.directory);
            report::note(format!("stopped and saved; `lstc train {directory}{out} --resume` continues it"));
            return Ok(Exit::Interrupted);
        }
        if is_own {
            let directory = report::word(&self.directory.to_string_lossy());
            report::note(format!("`lstc export {directory} -o tuned.onnx` writes it as one model"));
        }
        Ok(Exit::Done)
    }

    /// The run's options, from the flags and, for what they leave open, from its own record or the configuration.
    fn started(&self) -> anyhow::Result<Started> {
        let config = match &self.config {
            Some(path) => {
                let config = Config::read(path)?;
                manifest::check_options(&self.directory, path)?;
                config
            }
            None => manifest::read(&self.directory)?,
        };
        let mut started = config.training();
        let out = self.out.clone().or_else(|| started.train.out.clone());
        if let Some(from) = &self.from {
            if !from.exists() {
                bail!("there is no run in `{}`", from.display());
            }
            started = Settings::of(&side_file(&self.directory, Some(from))?, started)?.started;
            started.train.seed = started.train.seed.or(Some(config.method.seed));
        }
        if self.resume {
            started = Started::read(&out.clone().unwrap_or_else(|| self.directory.join(RUN)))?;
        }
        started.train.out = out;
        let recorded = started.train.clone();
        self.flags.apply(&mut started);
        if self.resume && !runs_alike(&recorded, &started.train) {
            report::warning(
                "with other threads, weights, device, taps or cache, results will not match the run's bit for bit",
            );
        }
        let of_a_cache = self.flags.cache_budget.is_some() || self.flags.cache_dtype.is_some();
        if of_a_cache && self.flags.cache.is_none() && started.train.cache.is_none() {
            bail!("--cache-budget and --cache-dtype need a cache: name its folder with --cache DIR");
        }
        self.data.apply(&mut started.data);
        let train = &mut started.train;
        let (eval, share) = match &self.eval {
            Some(EvaluateOn::File(file)) => (Some(file.clone()), None),
            Some(EvaluateOn::Share(share)) => (None, Some(*share)),
            None => (None, self.eval_fraction),
        };
        // One replaces the other.
        if eval.is_some() {
            train.eval_fraction = None;
        } else if share.is_some() {
            (train.eval, train.eval_fraction) = (None, share);
        }
        for (target, flag) in [
            (&mut train.data, &self.train),
            (&mut train.eval, &eval),
            (&mut train.from, &self.from),
            (&mut train.tokenizer, &self.data.tokenizer),
            (&mut train.cache, &self.flags.cache),
        ] {
            if let Some(path) = flag {
                *target = Some(path.clone());
            }
            // A run may be resumed from another folder.
            if let Some(path) = target {
                *path = std::path::absolute(&*path).with_context(|| format!("cannot find `{}`", path.display()))?;
            }
        }
        Ok(started)
    }
}

/// What a run evaluates on.
#[derive(Clone, Debug)]
enum EvaluateOn {
    File(PathBuf),
    /// A share of the training data.
    Share(f64),
}

impl FromStr for EvaluateOn {
    type Err = String;

    fn from_str(text: &str) -> Result<EvaluateOn, String> {
        match text.parse::<f64>() {
            Ok(_) => share(text).map(EvaluateOn::Share).map_err(|e| format!("{e}; a file of this name is `./{text}`")),
            Err(_) => Ok(EvaluateOn::File(text.into())),
        }
    }
}

/// Whether two runs use the same kernels in the same way.
fn runs_alike(a: &TrainOptions, b: &TrainOptions) -> bool {
    let alike = |o: &TrainOptions| (o.threads, o.device, o.tf32, o.map_weights, o.tap_dtype);
    let cached = |o: &TrainOptions| (o.cache.clone(), o.cache_dtype);
    alike(a) == alike(b) && cached(a) == cached(b)
}

impl TrainFlags {
    fn apply(&self, started: &mut Started) {
        let train = &mut started.train;
        set(&mut train.epochs, &self.epochs);
        set(&mut train.batch_size, &self.batch_size);
        set(&mut train.accumulate, &self.accumulate);
        set(&mut train.lr, &self.lr);
        set(&mut train.schedule, &self.schedule);
        train.seed = self.seed.or(train.seed);
        train.patience = self.patience.or(train.patience);
        set(&mut train.device, &self.device);
        set(&mut train.tf32, &self.tf32);
        set(&mut train.map_weights, &self.map_weights);
        set(&mut train.overlap, &self.overlap);
        set(&mut train.tap_dtype, &self.tap_dtype);
        set(&mut train.cuda_graphs, &self.cuda_graphs);
        set(&mut train.log_every, &self.log_every);
        set(&mut train.save_every, &self.save_every);
        train.warmup_steps = self.warmup_steps.or(train.warmup_steps);
        train.threads = self.threads.or(train.threads);
        train.cache_budget = self.cache_budget.or(train.cache_budget);
        train.cache_dtype = self.cache_dtype.or(train.cache_dtype);
    }
}

/// Reports a run's events on stderr.
#[derive(Default)]
pub struct Talk {
    pub line: ProgressLine,
    epochs: u64,
}

impl Talk {
    pub fn show(&mut self, event: &Event) {
        match event {
            Event::Reading { file, done, of } => {
                let name = file.file_name().map(|n| n.to_string_lossy()).unwrap_or_default();
                self.line.bar(format!("reading {name}"), *done, *of, "");
            }
            Event::Begins(plan) => {
                self.line.clear();
                self.epochs = plan.epochs;
                report_plan(plan);
            }
            Event::Step { line, of, left } => {
                let text = format!(
                    "{}/{of}  loss {:.4}  {} tokens/s  {} left",
                    line.step,
                    line.loss,
                    thousands(line.tokens_per_second),
                    Clock(*left)
                );
                self.line.bar(format!("epoch {}/{}", line.epoch, self.epochs), line.step, *of, text);
            }
            Event::Evaluating { done, of } => {
                self.line.bar("evaluating", *done as u64, *of as u64, format!("{done}/{of}"));
            }
            Event::Evaluated { line, is_best, guess } => {
                self.line.clear();
                let accuracy = line.eval_accuracy.map_or_else(String::new, |a| format!(", accuracy {}", percent(a)));
                let best = if *is_best { "  best so far" } else { "" };
                let short =
                    guess.map_or_else(String::new, |guess| guess.falls_short(line.eval_loss, line.eval_accuracy));
                let (epoch, loss) = (line.epoch, line.eval_loss);
                report::note(format!("epoch {epoch}/{}: loss {loss:.4}{accuracy}{best}{short}", self.epochs));
            }
            Event::Warning(text) => {
                self.line.clear();
                report::warning(text);
            }
        }
    }
}

fn report_plan(plan: &Plan) {
    let held_out = if plan.holds_out { ", held out of the training data" } else { "" };
    let eval = plan.eval_examples.map_or_else(String::new, |n| format!(", {n} to evaluate on{held_out}"));
    let labels = match plan.labels {
        0 => String::new(),
        labels => format!(", {}", count(labels, "label")),
    };
    let done = if plan.done > 0 { format!(", continuing after step {}", plan.done) } else { String::new() };
    let (examples, steps) = (count(plan.examples, "example"), count(plan.steps, "step"));
    report::note(format!("{examples}{eval}{labels}; {steps}{done}"));
    if plan.labels == 0 && plan.eval_examples.is_some() {
        report::note(
            "the targets are not labels (over 100 different ones, or too few rows of each): evaluated by loss",
        );
    }
    if let Some(Guess { majority, loss }) = plan.guess {
        report::note(format!("without the input: majority {}, loss of a guess {loss:.4}", percent(majority)));
    }
    if let Some(Forecast { sizes: Sizes { batch, source_length, target_length }, bytes, .. }) = &plan.forecast {
        let (examples, tokens) = (count(*batch, "example"), count(*source_length, "token"));
        let sizes = format!("{examples}, {tokens} in, {target_length} out");
        report::note(format!("predicted memory {} ({sizes})", Bytes(*bytes)));
    }
    if let Some(cache) = &plan.cache {
        let rows = count(cache.rows, "row");
        report::note(format!("taps of {} of {rows} are in `{}`", cache.kept, cache.folder.display()));
    }
    if plan.skipped > 0 {
        let rows = count(plan.skipped, "bad row");
        report::warning(format!("left out {rows}\n  {}", plan.skipped_first.join("\n  ")));
    }
    if plan.truncated != (0, 0) {
        let (sources, targets) = plan.truncated;
        report::note(format!("cut to the length limits: {}, {}", count(sources, "input"), count(targets, "target")));
    }
}

/// A rate in about three digits.
pub fn thousands(rate: f64) -> String {
    if rate >= 10_000.0 { format!("{:.1}k", rate / 1000.0) } else { format!("{rate:.0}") }
}

/// The outcome of a run, for the report.
#[derive(Serialize)]
struct Outcome<'o> {
    directory: &'o Path,
    #[serde(flatten)]
    summary: &'o Summary,
}

impl fmt::Display for Outcome<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.summary;
        let (steps, epochs) = (count(s.steps, "step"), count(s.epochs, "epoch"));
        writeln!(f, "{}: {steps}, {epochs}", s.out.display())?;
        if let Some(best) = &s.best {
            let accuracy = best.accuracy.map_or_else(String::new, |a| format!(", accuracy {}", percent(a)));
            writeln!(f, "  best   epoch {}: loss {:.4}{accuracy}", best.epoch, best.loss)?;
        }
        if let (None, Some(loss)) = (&s.best, s.loss) {
            writeln!(f, "  loss   {loss:.4} in the last step, on the training data")?;
        }
        if s.step_seconds > 0.0 {
            let (ms, rate) = (1e3 * s.step_seconds, thousands(s.tokens_per_second));
            writeln!(f, "  speed  {ms:.1} ms a step, {rate} tokens/s, {:.1} s in all", s.seconds)?;
        }
        let predicted = s.predicted.map_or_else(String::new, |p| format!("; {} predicted for a step", Bytes(p.bytes)));
        writeln!(f, "  memory {} at most{predicted}", Bytes(s.peak_memory))?;
        if let Some(cache) = &s.cache {
            let (kept, rows, bytes) = (cache.kept, count(cache.rows, "row"), Bytes(cache.bytes));
            writeln!(f, "  cache  {kept} of {rows}, {bytes} in {}", cache.folder.display())?;
        }
        Ok(())
    }
}
