//! A run: from its beginning, or its checkpoint, through the epochs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};

use super::ahead::Upcoming;
use super::checkpoint::{self, Best, CHECKPOINT, Identity, Progress};
use super::forecast::Forecast;
use super::log::{EvalLine, Log, METRICS, StepLine};
use super::options::{LearningRate, TapDtype, TrainOptions};
use super::source::TapSource;
use super::stepper::{Outcome, Stepper};
use super::{BEST, Event, Plan, Request, Started, Summary, interrupt, read_corpus};
use crate::cache::{self, Cache};
use crate::data::{Batch, Batches, Corpus, epoch_batches};
use crate::evaluate::{self, Metrics, Scorer};
use crate::hash::sha256;
use crate::report::Hinted;
use crate::rewrite::opened::{Execution, Opened};
use crate::runtime::{self, Device, Resident};
use crate::side::{self, Side};

/// Data, model and schedule of a run.
pub(super) struct Run<'r> {
    request: &'r Request<'r>,
    opened: &'r Opened,
    execution: Execution,
    out: PathBuf,
    corpus: Corpus,
    eval: Option<Corpus>,
    labels: Vec<(Vec<u32>, String)>,
    identity: Identity,
    rate: LearningRate,
    steps_an_epoch: u64,
    total: u64,
}

impl<'r> Run<'r> {
    pub(super) fn new(
        request: &'r Request,
        opened: &'r Opened,
        out: PathBuf,
        tell: &mut impl FnMut(Event),
    ) -> anyhow::Result<Run<'r>> {
        let options = &request.train;
        let data = options.data.as_deref().ok_or_else(|| {
            Hinted::new(anyhow!("no training data is given"), "--train FILE, or `train: {data: FILE}` in lst.yaml")
        })?;
        let tokenizer = opened.tokenizer(options.tokenizer.as_deref())?;
        let mut read = |file: &Path| read_corpus(opened, &request.reading, tokenizer.as_ref(), file, &out, tell);
        let corpus = read(data)?;
        let eval = options.eval.as_deref().map(&mut read).transpose()?;
        let corpora: Vec<&Corpus> = [Some(&corpus), eval.as_ref()].into_iter().flatten().collect();
        let labels = match eval {
            Some(_) => evaluate::labels(&corpora, tokenizer.as_ref())?,
            None => Vec::new(),
        };
        let batch_size = opened.fixed().batch.unwrap_or(options.batch_size);
        if batch_size != options.batch_size && options.batch_size != TrainOptions::default().batch_size {
            bail!("the model's batch is fixed at {batch_size}: --batch-size cannot be {}", options.batch_size);
        }
        let steps_an_epoch = corpus.len().div_ceil(batch_size).div_ceil(options.accumulate) as u64;
        let total = steps_an_epoch.checked_mul(options.epochs).ok_or_else(|| anyhow!("too many steps"))?;
        let graph = Stepper::graph(options.accumulate > 1);
        let mut model = File::open(opened.directory.join(graph)).with_context(|| format!("cannot read `{graph}`"))?;
        let identity = Identity {
            model: sha256(&mut model)?,
            data: corpus.sha256().to_owned(),
            eval: eval.as_ref().map(|e| e.sha256().to_owned()),
            epochs: options.epochs,
            batch_size,
            accumulate: options.accumulate,
            lr: options.lr,
            schedule: options.schedule,
            warmup_steps: options.warmup_steps,
            seed: options.seed,
        };
        let execution = options.execution(request.runtime);
        let rate = LearningRate::new(options, total);
        Ok(Run { request, opened, execution, out, corpus, eval, labels, identity, rate, steps_an_epoch, total })
    }

    /// The state to begin with: the checkpoint's, or the side network as the rewrite initialised it. A run that begins records
    /// with what its figures come about: the threads, and how its cache keeps taps.
    pub(super) fn begin(&self, cache: Option<&Cache>) -> anyhow::Result<(Side, Progress)> {
        let path = self.out.join(CHECKPOINT);
        if self.request.resume {
            if !path.exists() {
                bail!("there is no checkpoint in `{}` to go on from", self.out.display());
            }
            let (state, progress) = checkpoint::load(&path)?;
            let differences = progress.identity.differences(&self.identity);
            if !differences.is_empty() {
                let error = anyhow!("the run in `{}` was another\n  {}", self.out.display(), differences.join("\n  "));
                return Err(Hinted::new(error, "give no flags but --resume to go on with it as it was begun").into());
            }
            return Ok((state, progress));
        }
        let (threads, cache_dtype) = (Some(self.execution.threads), cache.map(Cache::element));
        let train = TrainOptions { threads, cache_dtype, ..self.request.train.clone() };
        Started { train, data: self.request.reading.clone() }.write(&self.out)?;
        // Of a run that came to nothing.
        for stale in [BEST, METRICS].map(|name| self.out.join(name)).iter().filter(|path| path.exists()) {
            fs::remove_file(stale).with_context(|| format!("cannot remove `{}`", stale.display()))?;
        }
        let progress = Progress { step: 0, epochs: 0, best: None, identity: self.identity.clone() };
        Ok((self.opened.initial()?, progress))
    }

    /// The cache of the run's taps, where it has one.
    pub(super) fn cache(&self) -> anyhow::Result<Option<Cache>> {
        let options = &self.request.train;
        let Some(folder) = &options.cache else { return Ok(None) };
        let backbone = self.opened.tapped(Stepper::graph(options.accumulate > 1))?;
        let identity = cache::Identity::new(self.opened, &backbone, &self.corpus)?;
        let request = cache::Request {
            folder,
            element: options.cache_dtype,
            budget: options.cache_budget,
            threads: self.execution.threads,
        };
        Cache::open(&request, self.opened, identity, &self.corpus).map(Some)
    }

    pub(super) fn go(
        &self,
        state: Side,
        mut progress: Progress,
        cache: Option<Cache>,
        mut tell: impl FnMut(Event),
    ) -> anyhow::Result<Summary> {
        let options = &self.request.train;
        let (accumulates, overlaps) = (options.accumulate > 1, options.overlaps());
        let runs = self.runs(progress.step);
        let mut parts = self.opened.parts(Stepper::graph(accumulates))?;
        if let Some(narrow) = options.tap_dtype.narrow() {
            let refused = |reason| anyhow!("the taps of this model cannot lie in fewer bits: {reason}");
            parts.narrow(narrow).map_err(refused)?;
        }
        let is_whole = cache.as_ref().is_some_and(Cache::is_whole);
        let predict = || Forecast::new(self.opened, &parts, options, &self.corpus, is_whole);
        let forecast = (options.device == Device::Cpu).then(predict);
        if let Some(warning) = forecast.as_ref().and_then(Forecast::warning) {
            tell(Event::Warning(&warning));
        }
        let (mut stepper, backbone) = Stepper::of(self.opened, parts, &self.execution, &state, accumulates, runs)?;
        // Where there is no room in one piece, the arena grows as it must.
        forecast.iter().for_each(|forecast| drop(stepper.reserve(forecast.reserved)));
        drop(state);
        if !self.request.resume {
            self.save(&stepper, &progress)?;
        }
        let mut source = TapSource::new(self.opened, backbone, cache, stepper.host_memory()?)?;
        tell(Event::Begins(&Plan { forecast, cache: source.holding(), ..self.plan(progress.step) }));
        let mut log = Log::open(&self.out, progress.step, progress.epochs)?;
        let mut clock = Clock::default();
        let mut loss = None;
        let mut interrupted = false;
        let mut largest = None;
        for epoch in progress.epochs..options.epochs {
            let batches = epoch_batches(&self.corpus, self.identity.batch_size, options.seed, epoch);
            let end = (epoch + 1) * self.steps_an_epoch;
            let first = (progress.step % self.steps_an_epoch) as usize * self.identity.accumulate;
            let lent = &mut source;
            let steps = thread::scope(|scope| {
                let mut taps = if overlaps && progress.step < end {
                    let upcoming = (&batches, first..batches.len());
                    Upcoming::ahead(scope, lent, (self.opened, &self.corpus), upcoming)?
                } else {
                    Upcoming::Here(lent)
                };
                while progress.step < end && !interrupted {
                    let line =
                        self.step((&mut stepper, &mut taps, &mut largest), &batches, epoch, progress.step + 1)?;
                    progress.step += 1;
                    loss = Some(line.loss);
                    clock.add(&line);
                    log.write(&line)?;
                    let left = clock.left(self.total - progress.step, options.epochs - progress.epochs);
                    tell(Event::Step { line: &line, of: self.total, left });
                    taps.news().iter().for_each(|news| tell(Event::Warning(news)));
                    interrupted = interrupt::asked();
                    // The last step of an epoch is saved with its evaluation.
                    if interrupted || (progress.step.is_multiple_of(options.save_every) && progress.step < end) {
                        self.save(&stepper, &progress)?;
                    }
                }
                anyhow::Ok(())
            });
            source.news().iter().for_each(|news| tell(Event::Warning(news)));
            steps?;
            if interrupted {
                break;
            }
            let begun = Instant::now();
            self.close_epoch(&stepper, &mut progress, epoch, &mut log, &mut tell)?;
            clock.evaluation = begun.elapsed().as_secs_f64();
            interrupted = interrupt::asked() && progress.epochs < options.epochs;
            if interrupted {
                break;
            }
        }
        Ok(Summary {
            out: self.out.clone(),
            steps: progress.step,
            epochs: progress.epochs,
            loss,
            best: progress.best,
            step_seconds: clock.median(),
            tokens_per_second: clock.tokens_per_second(),
            seconds: clock.begun.elapsed().as_secs_f64(),
            peak_memory: Resident::read().peak,
            predicted: forecast,
            cache: source.holding(),
            interrupted,
        })
    }

    /// Batches that were run before a step of the run.
    fn runs(&self, step: u64) -> u64 {
        let batches = self.corpus.len().div_ceil(self.identity.batch_size) as u64;
        let within = (step % self.steps_an_epoch) * self.identity.accumulate as u64;
        step / self.steps_an_epoch * batches + within
    }

    fn plan(&self, done: u64) -> Plan {
        let skipped = self.corpus.skipped();
        Plan {
            examples: self.corpus.len(),
            eval_examples: self.eval.as_ref().map(Corpus::len),
            skipped: skipped.count,
            skipped_first: skipped.first.clone(),
            truncated: self.corpus.truncated(),
            labels: self.labels.len(),
            epochs: self.request.train.epochs,
            steps: self.total,
            done,
            forecast: None,
            cache: None,
        }
    }

    /// Makes one step, and checks that it may be built on.
    fn step(
        &self,
        (stepper, upcoming, largest): (&mut Stepper, &mut Upcoming, &mut Option<[usize; 3]>),
        batches: &Batches,
        epoch: u64,
        step: u64,
    ) -> anyhow::Result<StepLine> {
        let begun = Instant::now();
        let first = ((step - 1) % self.steps_an_epoch) as usize * self.identity.accumulate;
        let last = batches.len().min(first + self.identity.accumulate);
        let made: Vec<Batch> = (first..last)
            .map(|at| Batch::new(&self.corpus, batches.get(at), self.opened.record.tokens, &self.opened.fixed()))
            .collect::<anyhow::Result<_>>()?;
        let next = last..batches.len().min(last + self.identity.accumulate);
        next.for_each(|at| upcoming.expect(&self.corpus, batches.get(at)));
        let lr = self.rate.at(step);
        let mut rows = (first..).map(|at| batches.get(at));
        let taps = |batch: &Batch| {
            let rows = rows.next().unwrap_or_default();
            upcoming.next(&self.corpus, rows, batch)
        };
        let outcome = stepper.step(&made, taps, step, lr);
        let Outcome { loss, grad_norm } = outcome.map_err(|error| self.explained(error, step, &made, *largest))?;
        *largest = made.iter().map(sizes).chain(*largest).max_by_key(|[rows, source, _]| rows * source);
        if !loss.is_finite() || !grad_norm.is_finite() {
            return Err(self.diverged(step, epoch, (first, batches.len()), &made, loss, grad_norm));
        }
        let seconds = begun.elapsed().as_secs_f64();
        let tokens = made.iter().map(|b| b.tokens).sum();
        let Resident { now: memory, peak: peak_memory } = Resident::read();
        let tokens_per_second = tokens as f64 / seconds.max(1e-9);
        let epoch = epoch + 1;
        Ok(StepLine { step, epoch, loss, lr, grad_norm, seconds, tokens, tokens_per_second, memory, peak_memory })
    }

    /// Of a step that failed for want of memory: what it was about, and what takes less. `largest` is what fitted before.
    fn explained(&self, error: anyhow::Error, step: u64, made: &[Batch], largest: Option<[usize; 3]>) -> anyhow::Error {
        if !matches!(error.downcast_ref(), Some(runtime::Error::OutOfMemory { .. })) {
            return error;
        }
        let [rows, source, target] =
            made.iter().map(sizes).max_by_key(|[rows, source, _]| rows * source).unwrap_or([0; 3]);
        let mut hints = Vec::new();
        if let Some([rows, source, target]) = largest {
            hints.push(format!("the largest batch that fitted had {rows} x {source} tokens in, {target} out"));
        }
        if self.request.train.overlaps() {
            hints.push("`--resume --overlap off` goes on with the taps of one batch less".to_owned());
        }
        let (fixed, size) = (self.opened.fixed(), self.identity.batch_size);
        if fixed.batch.is_none() && size > 1 && size.is_multiple_of(2) {
            let accumulate = 2 * self.identity.accumulate;
            let smaller = format!("`--batch-size {} --accumulate {accumulate} --out DIR`", size / 2);
            hints.push(format!("{smaller} begins a run whose steps have as many examples"));
        }
        if fixed.source.is_none() {
            hints.push(format!("`--max-source-length {}` cuts the texts", source.div_ceil(2)));
        }
        hints.push(
            "`lstc rewrite` with --backbone int8, or without dropout --recompute-attention, needs less".to_owned(),
        );
        let hint = hints.join("; ");
        let what = format!("step {step}: {rows} examples of {source} tokens in, {target} out, do not fit into memory");
        Hinted::new(error.context(what), hint).into()
    }

    fn diverged(
        &self,
        step: u64,
        epoch: u64,
        (batch, of): (usize, usize),
        made: &[Batch],
        loss: f64,
        grad_norm: f64,
    ) -> anyhow::Error {
        const MAX_LISTED: usize = 16;
        let rows: Vec<String> = made.iter().flat_map(|b| &b.rows).take(MAX_LISTED).map(u64::to_string).collect();
        let more = made.iter().map(|b| b.rows.len()).sum::<usize>() - rows.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let what = if loss.is_finite() { format!("gradient norm is {grad_norm}") } else { format!("loss is {loss}") };
        let data = self.request.train.data.as_deref().unwrap_or(Path::new("")).display();
        let error = anyhow!(
            "step {step}: the {what} (epoch {}, batch {} of {of}; lines {}{more} of `{data}`)",
            epoch + 1,
            batch + 1,
            rows.join(", "),
        );
        let kept = self.out.join(CHECKPOINT);
        let hint = match self.request.train.tap_dtype {
            TapDtype::Fp32 | TapDtype::Int8 => {
                "a lower --lr, more --warmup-steps or a lower clip often helps, in another run: --out DIR"
            }
            TapDtype::Fp16 => {
                "taps beyond 65504 are infinite in fp16: --tap-dtype fp32 helps, in another run: --out DIR"
            }
        };
        Hinted::new(error, format!("the last checkpoint, `{}`, is as it was; {hint}", kept.display())).into()
    }

    /// Evaluates after an epoch, keeps the best, and saves. An evaluation that the user stops is made again when the run is
    /// resumed.
    fn close_epoch(
        &self,
        stepper: &Stepper,
        progress: &mut Progress,
        epoch: u64,
        log: &mut Log,
        tell: &mut impl FnMut(Event),
    ) -> anyhow::Result<()> {
        let (step, number) = (progress.step, epoch + 1);
        match &self.eval {
            Some(eval) => {
                let begun = Instant::now();
                let Some(metrics) = self.evaluate(stepper, eval, tell)? else {
                    return self.save(stepper, progress);
                };
                let (loss, accuracy) = (metrics.loss, metrics.accuracy);
                let here = Best { step, epoch: number, loss, accuracy };
                let is_best = progress.best.is_none_or(|best| here.beats(&best));
                let seconds = begun.elapsed().as_secs_f64();
                let line = EvalLine { step, epoch: number, eval_loss: loss, eval_accuracy: accuracy, seconds };
                log.write(&line)?;
                if is_best {
                    progress.best = Some(here);
                    self.save_best(stepper, step)?;
                }
                tell(Event::Evaluated { line: &line, is_best });
            }
            None => self.save_best(stepper, step)?,
        }
        progress.epochs = number;
        self.save(stepper, progress)
    }

    fn evaluate(
        &self,
        stepper: &Stepper,
        eval: &Corpus,
        tell: &mut impl FnMut(Event),
    ) -> anyhow::Result<Option<Metrics>> {
        // Another copy of the weights beside the training graph's would be the most memory of all.
        let mut scorer = Scorer::open(self.opened, &Execution { mapped: true, ..self.execution })?;
        let batch_size = self.identity.batch_size;
        let request = evaluate::Request { labels: self.labels.clone(), generate: None, batch_size };
        let of = eval.len();
        let progress = |done| {
            tell(Event::Evaluating { done, of });
            !interrupt::asked()
        };
        let scored = evaluate::score(self.opened, &mut scorer, stepper.parameters(), eval, &request, progress)?;
        Ok(scored.map(|scored| Metrics::of(&scored, &self.labels)))
    }

    fn save(&self, stepper: &Stepper, progress: &Progress) -> anyhow::Result<()> {
        checkpoint::save(&self.out.join(CHECKPOINT), stepper.all(), progress)
    }

    /// Writes the side network alone.
    fn save_best(&self, stepper: &Stepper, step: u64) -> anyhow::Result<()> {
        side::save_on_device(&self.out.join(BEST), stepper.parameters(), &[("lstc.step", step.to_string())])
    }
}

/// Examples, and tokens of each source and target.
fn sizes(batch: &Batch) -> [usize; 3] {
    let (rows, source) = batch.source.dim();
    [rows, source, batch.target_in.dim().1]
}

/// How fast a run goes.
struct Clock {
    begun: Instant,
    /// Seconds of the last evaluation.
    evaluation: f64,
    seconds: Vec<f32>,
    tokens: usize,
}

impl Default for Clock {
    fn default() -> Clock {
        Clock { begun: Instant::now(), evaluation: 0.0, seconds: Vec::new(), tokens: 0 }
    }
}

impl Clock {
    fn add(&mut self, line: &StepLine) {
        self.seconds.push(line.seconds as f32);
        self.tokens += line.tokens;
    }

    fn total(&self) -> f64 {
        self.seconds.iter().map(|s| f64::from(*s)).sum()
    }

    /// What so many more steps and evaluations take.
    fn left(&self, steps: u64, evaluations: u64) -> Duration {
        let step = self.total() / self.seconds.len().max(1) as f64;
        Duration::from_secs_f64(step * steps as f64 + self.evaluation * evaluations as f64)
    }

    fn median(&self) -> f64 {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f32::total_cmp);
        sorted.get(sorted.len() / 2).map_or(0.0, |s| f64::from(*s))
    }

    fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.total().max(1e-9)
    }
}
