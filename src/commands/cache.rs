//! `lstc cache`: the taps of a data set, computed before training; what a cache holds.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use lstc_base::interrupt;
use lstc_base::report::{self, Bytes, Exit, Format, Hinted, ProgressLine};
use lstc_graph::count;
use lstc_runtime::{Runtime, find};
use lstc_train::cache::{self, Cache, Identity, Share, Survey};
use lstc_train::{Backbone, Data, Event};
use lstc_tuned::cache::{Element, Size};
use lstc_tuned::manifest;
use lstc_tuned::opened::{Execution, Opened};
use serde::Serialize;

use super::arguments::{at_least, share};
use super::data_flags::DataFlags;
use super::running_flags::RunningFlags;
use super::train::{Talk, thousands};

/// Keep the backbone's taps of a data set, so that training runs the side network alone
#[derive(Debug, Args)]
#[command(
    long_about = "\
Keeps the backbone's taps of a data set, so that training runs the side network alone.

The backbone is frozen and has no dropout: what the side network reads from it, the taps, is the same for an example in every \
epoch. `lstc train --cache DIR` writes the taps in the first epoch and reads them in the others; `lstc cache build` computes them \
beforehand, in as many processes as you like. That pays from the second epoch on, and for every further run on the same data: \
other learning rates, other seeds, and other side networks that read the same taps.

A token has a vector of the backbone's width at each tap, with 4 bytes per number in fp32, 2 in fp16, and 1 in int8 plus 4 for \
the scale: a T5-base with all its blocks, 13 taps per tower, takes 40 KB per token in fp32. fp32 gives the same losses as no \
cache, except for rounding where padding differs. A row with numbers beyond 65504 is not kept in fp16, but computed every epoch.

A cache belongs to one source model, backbone precision, tokenizer and data set, with its length limits; for any other it is \
refused. It is filled up to its budget and nothing is ever evicted: remove its folder when you no longer need it.",
    after_long_help = "\
Examples:
  lstc train tuned/ --train a.jsonl --cache taps/
  lstc train tuned/ --train a.jsonl --cache taps/ --cache-dtype fp16 --cache-budget 20GB
  lstc cache build tuned/ --data a.jsonl --cache taps/
  lstc cache build tuned/ --data a.jsonl --eval-fraction 0.1 --cache taps/      for lstc train --eval 0.1
  lstc cache show taps/"
)]
pub struct CacheCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Build(Box<Build>),
    Show(Show),
}

impl CacheCommand {
    pub fn run(self) -> anyhow::Result<Exit> {
        match self.command {
            Command::Build(build) => build.run(),
            Command::Show(show) => show.run(),
        }
    }
}

/// Compute the taps of a data set that are not kept yet
#[derive(Debug, Args)]
#[command(
    long_about = "\
Computes the taps of a data set that are not kept yet, and keeps them. A build that was stopped or killed continues where it was.

With --shard i/n it computes a share of the rows: i, i + n, i + 2n and so on. Any number of processes may fill one folder at \
once, even from several machines. Each counts towards its budget what was there when it started and what it adds.",
    after_long_help = "\
Examples:
  lstc cache build tuned/ --data a.jsonl --cache taps/
  lstc cache build tuned/ --data a.jsonl --cache taps/ --cache-dtype int8 --batch-size 64
  lstc cache build tuned/ --data a.jsonl --cache taps/ --check      what was damaged is computed again
  for i in 1 2 3 4; do lstc cache build tuned/ --data a.jsonl --cache taps/ --threads 8 --shard $i/4 & done; wait"
)]
struct Build {
    /// Directory that `lstc rewrite` wrote
    directory: PathBuf,

    /// Labelled text to compute the taps of [default: what the directory trains on]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,

    /// The share of the data that `lstc train --eval-fraction` holds out, and does not train on
    #[arg(long, value_name = "SHARE", value_parser = share)]
    eval_fraction: Option<f64>,

    /// The seed of what is held out, as for `lstc train` [default: that of `lstc rewrite`]
    #[arg(long, value_name = "N", value_parser = at_least::<u64>(0))]
    seed: Option<u64>,

    /// Folder of the cache [default: where the directory's training keeps its taps]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,

    /// Read what is kept, and recompute what is damaged
    #[arg(long)]
    check: bool,

    /// A share of the rows, as in 1/4 [default: all]
    #[arg(long, value_name = "I/N")]
    shard: Option<Share>,

    /// The size to which this process may fill the cache, as in 20GB [default: all that is free but 10 GiB, at least half of it]
    #[arg(long, value_name = "SIZE")]
    cache_budget: Option<Size>,

    /// Type in which taps are kept [default: the cache's own, else fp32]
    #[arg(long, value_enum, value_name = "TYPE")]
    cache_dtype: Option<Element>,

    /// Format of the report on stdout
    #[arg(long, value_enum, default_value_t)]
    format: Format,

    #[command(flatten)]
    running: RunningFlags,

    #[command(flatten)]
    reading: DataFlags,
}

impl Build {
    fn run(self) -> anyhow::Result<Exit> {
        let opened = Opened::new(&self.directory)?;
        self.running.check(&opened)?;
        let mut started = manifest::read(&self.directory)?.training();
        self.reading.apply(&mut started.data);
        self.running.apply(&mut started.train);
        let options = &mut started.train;
        let recorded = options.eval_fraction.filter(|_| self.data.is_none());
        options.data = self.data.clone().or(options.data.take());
        (options.eval, options.eval_fraction) = (None, self.eval_fraction.or(recorded));
        options.seed = self.seed.or(options.seed);
        if options.data.is_none() {
            let hint = "--data FILE, with an input and a target in each row";
            return Err(Hinted::new(anyhow!("no data is given"), hint).into());
        }
        let options = &started.train;
        let folder = self.cache.clone().or(options.cache.clone());
        let folder = folder.ok_or_else(|| {
            Hinted::new(
                anyhow!("no folder is given for the cache"),
                "--cache DIR, or `train: {cache: DIR}` in lst.yaml",
            )
        })?;
        let runtime = Runtime::load(&find(options.device)?)?;
        let execution = Execution { captures: false, ..options.execution(runtime) };
        let tokenizer = self.reading.tokenizer.as_deref().or(options.tokenizer.as_deref());
        let tokenizer = opened.tokenizer(tokenizer)?;
        let mut talk = Talk::default();
        let scratch = std::env::temp_dir();
        let mut notify = |event: Event| talk.show(&event);
        let corpus = Data::read(&opened, &started, tokenizer.as_ref(), &scratch, &mut notify)?.train;
        talk.line.clear();

        let graph = opened.tapped("grad.onnx")?;
        let identity = Identity::new(&opened, &graph, &corpus)?;
        let element = self.cache_dtype.or(options.cache_dtype);
        let budget = self.cache_budget.or(options.cache_budget);
        let request = cache::Request { folder: &folder, element, budget, threads: execution.threads };
        let mut cache = Cache::open(&request, &opened, identity, &corpus)?;
        let mut backbone = Backbone::new(&opened, graph, &execution);
        interrupt::listen();
        let mut line = ProgressLine::default();
        let batch_size = opened.fixed().batch.unwrap_or(options.batch_size);
        for warning in cache.take_warnings() {
            report::warning(warning);
        }
        let work = (self.shard.unwrap_or(Share::ALL), batch_size, self.check);
        let compute = |batch: &_| backbone.taps_on_host(batch);
        let built = cache::build(&mut cache, &opened, &corpus, work, compute, |cache, going| {
            let rate = going.rate.map_or_else(String::new, |rate| format!("  {} tokens/s", thousands(rate)));
            let text = format!("{}/{}{rate}", going.done, count(going.of, "row"));
            line.bar(going.what, going.done as u64, going.of as u64, text);
            for warning in cache.take_warnings() {
                line.clear();
                report::warning(warning);
            }
            !interrupt::asked()
        })?;
        line.clear();
        let interrupted = built.interrupted;
        report::data(&BuildReport { skipped: corpus.skipped().count, built }, self.format)?;
        if interrupted {
            report::note("stopped; what was computed is kept, and the same command continues");
            return Ok(Exit::Interrupted);
        }
        Ok(Exit::Done)
    }
}

#[derive(Serialize)]
struct BuildReport {
    /// Bad rows that were left out.
    skipped: usize,
    #[serde(flatten)]
    built: cache::Built,
}

impl fmt::Display for BuildReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let built = &self.built;
        let holding = &built.cache;
        let (kept, rows, bytes) = (holding.kept, holding.rows, Bytes(holding.bytes));
        let rows = count(rows, "row");
        writeln!(f, "{}: {kept} of {rows} in {}, {bytes}", holding.folder.display(), holding.dtype.name())?;
        if self.skipped > 0 {
            writeln!(f, "  bad rows left out  {}", self.skipped)?;
        }
        let (added, before, share) = (built.added, built.before, built.share);
        write!(f, "  {} added; {} of {share} to keep are cached", count(added, "row"), before + added)?;
        if built.tokens > 0 {
            write!(f, ", {} tokens/s, {:.1} s", thousands(built.tokens_per_second), built.seconds)?;
        }
        writeln!(f)
    }
}

/// Show what a cache belongs to, and what it holds
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  lstc cache show taps/
  lstc cache show taps/ --check     read every record; the exit code is 1 if one is damaged")]
struct Show {
    /// Folder of the cache
    cache: PathBuf,

    /// Read every record, and verify its checksum
    #[arg(long)]
    check: bool,

    /// Format of the report on stdout
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Show {
    fn run(self) -> anyhow::Result<Exit> {
        let folder = std::path::absolute(&self.cache).context("cannot find the cache")?;
        let mut line = ProgressLine::default();
        let survey = cache::survey(&self.cache, self.check, |done, of| {
            line.bar("checking", done as u64, of as u64, format!("{done}/{}", count(of, "file")));
        })?;
        line.clear();
        let sound = survey.is_sound();
        report::data(&ShowReport { folder, survey }, self.format)?;
        Ok(if sound || !self.check { Exit::Done } else { Exit::No })
    }
}

#[derive(Serialize)]
struct ShowReport {
    folder: PathBuf,
    #[serde(flatten)]
    survey: Survey,
}

impl fmt::Display for ShowReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (s, of) = (&self.survey, &self.survey.identity);
        writeln!(f, "{}: taps in {}", self.folder.display(), of.dtype.name())?;
        writeln!(f, "  rows      {} of {}", s.kept, of.rows)?;
        let (source, target) = s.tokens;
        let (files, source) = (count(s.shards, "file"), count(source, "token"));
        writeln!(f, "  size      {} in {files}, {source} in and {target} out", Bytes(s.bytes))?;
        let (source, target) = s.token_bytes;
        writeln!(f, "  a token   {source} bytes in, {target} bytes out")?;
        let taps: Vec<String> = of.taps.iter().map(cache::TapIdentity::name).collect();
        writeln!(f, "  taps      {}", taps.join(", "))?;
        let products: Vec<String> = of.products.iter().map(|(op, count)| format!("{count} {op}")).collect();
        writeln!(f, "  backbone  {}", products.join(", "))?;
        writeln!(f, "  source    BLAKE3 {}", of.source.join(", "))?;
        writeln!(f, "  data      SHA-256 {} of the tokens", of.data)?;
        if s.damaged_entries > 0 {
            writeln!(f, "  damaged   {}, computed again when needed", count(s.damaged_entries, "entry"))?;
        }
        match s.damaged_records {
            Some(0) if s.damaged_entries == 0 => writeln!(f, "  checked   every record is as it was written")?,
            Some(0) => writeln!(f, "  checked   every other record is as it was written")?,
            Some(damaged) => {
                let again = "which training, or `lstc cache build --check`, recomputes";
                writeln!(f, "  damaged   {}, {again}", count(damaged, "record"))?;
            }
            None => {}
        }
        s.foreign
            .iter()
            .try_for_each(|path| writeln!(f, "  foreign   `{path}` belongs to another cache, or is damaged"))
    }
}
