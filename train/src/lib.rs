//! Training: epochs of batches through the training graph, with a checkpoint to continue from at any time.
//!
//! The folder of a run holds `checkpoint.safetensors` (where it stands), `best.safetensors` (the side network of the best
//! evaluation), `metrics.jsonl`, and `train.yaml` (how it was started).
//!
//! **Invariant:** on the CPU a run that was stopped, or killed, and resumed gives the same losses, bit for bit, as one that
//! was not. The order of the examples depends on seed and epoch alone, and kernels are the deterministic ones.
//!
//! **Invariant:** a state with a number that is not finite is never saved.

mod ahead;
mod backbone;
mod buckets;
pub mod cache;
mod captures;
mod checkpoint;
pub mod evaluate;
mod forecast;
mod log;
pub mod memory;
mod rate;
mod run;
mod source;
mod stepper;
mod trained;

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use lstc_base::report::Hinted;
use lstc_base::scratch;
use lstc_data::{Corpus, Reading, Tokenizer};
use lstc_runtime::Runtime;
use lstc_tuned::RUN;
use lstc_tuned::opened::Opened;
use lstc_tuned::options::TrainOptions;
use lstc_tuned::run::{BEST, CHECKPOINT, METRICS, STARTED, Started, is_left};
use serde::Serialize;

use crate::cache::Holding;
use crate::evaluate::{Guess, Label};
pub use backbone::{Backbone, Taps};
pub use buckets::Buckets;
pub use checkpoint::{Best, Identity, Progress};
pub use forecast::Forecast;
pub use log::{EvalLine, StepLine};
pub use rate::LearningRate;
use run::Run;
pub use stepper::{Outcome, Pending, Stepper};
pub use trained::{Settings, Trained};

/// Whether a run may begin in a folder.
///
/// # Errors
/// A run, or a file that a run would replace.
fn check_vacant(out: &Path) -> anyhow::Result<()> {
    if out.join(CHECKPOINT).exists() {
        let error = anyhow!("there is a run in `{}` already", out.display());
        let hint = "--resume continues it; --out DIR starts a new run there, and --from starts it from this one";
        return Err(Hinted::new(error, hint).into());
    }
    let is_there = |name: &&str| fs::symlink_metadata(out.join(name)).is_ok() && !is_left(out, OsStr::new(name));
    let Some(name) = [CHECKPOINT, BEST, METRICS, STARTED].into_iter().find(|name| is_there(name)) else {
        return Ok(());
    };
    let error = anyhow!("a new run would replace `{}`", out.join(name).display());
    Err(Hinted::new(error, "move it elsewhere, or begin the run in another folder with --out DIR").into())
}

/// What to train, and how.
pub struct Request<'r> {
    pub directory: &'r Path,
    pub train: TrainOptions,
    pub reading: Reading,
    pub runtime: &'static Runtime,
    /// Continue from the run's checkpoint.
    pub resume: bool,
}

impl Request<'_> {
    /// The run's folder.
    pub fn out(&self) -> PathBuf {
        self.train.out.clone().unwrap_or_else(|| self.directory.join(RUN))
    }
}

/// What a run reports on its way.
pub enum Event<'e> {
    /// A file is being read: bytes so far, and of how many.
    Reading {
        file: &'e Path,
        done: u64,
        of: u64,
    },
    /// Everything is loaded.
    Begins(&'e Plan),
    Step {
        line: &'e StepLine,
        of: u64,
        left: Duration,
    },
    /// Examples of an evaluation that are done.
    Evaluating {
        done: usize,
        of: usize,
    },
    Evaluated {
        line: &'e EvalLine,
        is_best: bool,
        /// What a guess without the input reaches on the same examples, if targets are labels.
        guess: Option<Guess>,
    },
    /// Something that the user should know, but that does not stop the run.
    Warning(&'e str),
}

/// What a run is about to do.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    pub examples: usize,
    pub eval_examples: Option<usize>,
    /// Whether these were held out of the training data.
    pub holds_out: bool,
    /// Bad rows that are left out, with the reasons for the first few.
    pub skipped: usize,
    pub skipped_first: Vec<String>,
    /// Inputs and targets that are longer than their limits.
    pub truncated: (usize, usize),
    /// Known labels, if targets are labels.
    pub labels: usize,
    /// What a guess without the input reaches on the training data, if targets are labels.
    pub guess: Option<Guess>,
    pub epochs: u64,
    pub steps: u64,
    /// Steps made before.
    pub done: u64,
    /// The memory of a step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forecast: Option<Forecast>,
    /// What the cache holds before the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<Holding>,
}

/// The outcome of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub out: PathBuf,
    pub steps: u64,
    pub epochs: u64,
    /// Of the last step.
    pub loss: Option<f64>,
    pub best: Option<Best>,
    /// Median of a step, in seconds, and tokens per second over all steps of this process.
    pub step_seconds: f64,
    pub tokens_per_second: f64,
    pub seconds: f64,
    /// The most memory that was resident at once, in bytes; on a device, the most of its memory that was in use.
    pub peak_memory: u64,
    /// The memory that a step was predicted to take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicted: Option<Forecast>,
    /// What the cache holds after the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<Holding>,
    /// The user asked to stop before the end.
    pub interrupted: bool,
    /// So many evaluations without an improvement ended the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out_of_patience: Option<u64>,
}

/// Trains the side network of a rewritten directory.
///
/// # Errors
/// Options, data or a checkpoint that do not fit; a loss or gradient that is not finite, with the step and the rows; a
/// device that cannot be used.
pub fn train(request: &Request, mut notify: impl FnMut(Event)) -> anyhow::Result<Summary> {
    let problems = request.train.problems();
    if !problems.is_empty() {
        bail!("invalid training options\n  {}", problems.join("\n  "));
    }
    let opened = Opened::new(request.directory)?;
    let out = request.out();
    if !request.resume {
        check_vacant(&out)?;
    }
    // If the run leaves it empty, it is removed again.
    let _made = scratch::make(&out).with_context(|| format!("cannot create `{}`", out.display()))?;
    let lock = lock(&out)?;
    scratch::sweep(&out);
    if let Some(reading) = opened.reads_padding() {
        notify(Event::Warning(&format!(
            "{reading}: losses depend on which examples share a batch; to avoid this, export the model with the \
             source's attention_mask in every attention over it"
        )));
    }
    let run = Run::new(request, &opened, out, &mut notify)?;
    let cache = run.cache()?;
    let (state, progress) = run.begin(&mut notify)?;
    let summary = run.go(state, progress, cache, notify);
    drop(lock);
    summary
}

/// Reserves a run's folder for this process, as long as the returned lock lives.
fn lock(out: &Path) -> anyhow::Result<File> {
    let context = || format!("cannot lock `{}`", out.display());
    let folder = File::open(out).with_context(context)?;
    match folder.try_lock() {
        Ok(()) => Ok(folder),
        Err(TryLockError::WouldBlock) => bail!("another process is training in `{}`", out.display()),
        Err(TryLockError::Error(error)) => Err(error).with_context(context),
    }
}

/// The data of a run: what it trains on, and what it evaluates on, from a file of its own or held out of the other.
pub struct Data {
    pub train: Corpus,
    pub eval: Option<Corpus>,
    /// The known labels; empty if targets are not labels.
    pub labels: Vec<Label>,
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let file = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    file(one).is_some() && file(one) == file(other)
}

impl Data {
    /// Reads what a run is started with.
    ///
    /// # Errors
    /// No training data; as [`Corpus::read`] and [`Corpus::split`].
    pub fn read(
        opened: &Opened,
        started: &Started,
        tokenizer: Option<&Tokenizer>,
        scratch: &Path,
        notify: &mut impl FnMut(Event),
    ) -> anyhow::Result<Data> {
        let options = &started.train;
        let data = options.data.as_deref().ok_or_else(|| {
            Hinted::new(anyhow!("no training data is given"), "--train FILE, or `train: {data: FILE}` in lst.yaml")
        })?;
        if options.eval.as_deref().is_some_and(|eval| is_same_file(eval, data)) {
            notify(Event::Warning("evaluating on the training data: --eval 0.1 holds out a tenth of it instead"));
        }
        let mut read = |file: &Path| read_corpus(opened, &started.data, tokenizer, file, scratch, notify);
        let train = read(data)?;
        let eval = options.eval.as_deref().map(&mut read).transpose()?;
        let corpora: Vec<&Corpus> = [Some(&train), eval.as_ref()].into_iter().flatten().collect();
        let labels = evaluate::labels(&corpora, tokenizer)?;
        let Some(share) = options.eval_fraction else { return Ok(Data { train, eval, labels }) };
        let seed = options.seed.unwrap_or(opened.record.method.seed);
        let (train, held_out) = train.split(share, seed, !labels.is_empty(), scratch)?;
        Ok(Data { train, eval: Some(held_out), labels })
    }
}

/// Reads a data file for a model, whose fixed sizes are limits too.
///
/// # Errors
/// As [`Corpus::read`]; tokens that are hidden from a model that would see them.
pub fn read_corpus(
    opened: &Opened,
    reading: &Reading,
    tokenizer: Option<&Tokenizer>,
    file: &Path,
    scratch: &Path,
    notify: &mut impl FnMut(Event),
) -> anyhow::Result<Corpus> {
    opened.check_tokens(reading)?;
    let vocabulary = u32::try_from(opened.record.model.tokens()).unwrap_or(u32::MAX);
    let mut progress = |done, of| notify(Event::Reading { file, done, of });
    let reading = reading.within(&opened.fixed());
    let corpus = Corpus::read(file, &reading, tokenizer, opened.record.tokens, scratch, vocabulary, &mut progress)?;
    if let Some(reading) = opened.reads_padding().filter(|_| corpus.hides_source()) {
        let error = anyhow!("`{}` hides tokens between others in `attention_mask`, but {reading}", file.display());
        let hint = "export the model with the source's attention_mask in every attention over it";
        return Err(Hinted::new(error, hint).into());
    }
    if let Some(note) = corpus.note() {
        notify(Event::Warning(&format!("`{}`: {note}", file.display())));
    }
    Ok(corpus)
}
