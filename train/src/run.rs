//! A run: from its beginning, or its checkpoint, through the epochs.

mod closing;
mod failure;
mod pace;

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use lstc_base::hash::sha256;
use lstc_base::interrupt;
use lstc_base::report::{self, Hinted};
use lstc_data::{Batch, Batches, Corpus, epoch_batches};
use lstc_passes::{Group, integer_products};
use lstc_runtime::{Device, Resident};
use lstc_tuned::INTEGERS_ON_CUDA;
use lstc_tuned::gates::{Gate, State};
use lstc_tuned::manifest::Record;
use lstc_tuned::opened::{Execution, Opened, side_file};
use lstc_tuned::options::{CudaGraphs, TrainOptions};
use lstc_tuned::run::CHECKPOINT;
use lstc_tuned::run::{STARTED, Started};
use lstc_tuned::side::Side;

use super::ahead::Upcoming;
use super::buckets::Buckets;
use super::checkpoint::{self, Identity, Progress};
use super::forecast::Forecast;
use super::log::{Log, StepLine};
use super::rate::LearningRate;
use super::source::TapSource;
use super::stepper::{Outcome, Pending, Stepper};
use super::{Data, Event, Plan, Request, Summary};
use crate::cache::{self, Cache};
use crate::evaluate::{Guess, Label};
use pace::Clock;

/// How often per epoch the log says how far the gates are open, if that takes no waiting.
const GATES_AN_EPOCH: u64 = 20;

/// Data, model and schedule of a run.
pub(super) struct Run<'r> {
    request: &'r Request<'r>,
    opened: &'r Opened,
    execution: Execution,
    out: PathBuf,
    corpus: Corpus,
    eval: Option<Corpus>,
    labels: Vec<Label>,
    /// BLAKE3 of the tokenizer, if there is one.
    tokenizer: Option<String>,
    identity: Identity,
    rate: LearningRate,
    buckets: Buckets,
    steps_an_epoch: u64,
    total: u64,
}

impl<'r> Run<'r> {
    pub(super) fn new(
        request: &'r Request,
        opened: &'r Opened,
        out: PathBuf,
        notify: &mut impl FnMut(Event),
    ) -> anyhow::Result<Run<'r>> {
        let options = &request.train;
        let tokenizer = opened.tokenizer(options.tokenizer.as_deref())?;
        let started = Started { train: options.clone(), data: request.reading.clone() };
        let data = Data::read(opened, &started, tokenizer.as_ref(), &out, notify)?;
        let Data { train: corpus, eval, labels } = data;
        let batch_size = opened.fixed().batch.unwrap_or(options.batch_size);
        let asked = Some(options.batch_size).filter(|asked| *asked != TrainOptions::default().batch_size);
        opened.check_batch_size(asked)?;
        let steps_an_epoch = corpus.len().div_ceil(batch_size).div_ceil(options.accumulate) as u64;
        let total = steps_an_epoch.checked_mul(options.epochs).ok_or_else(|| anyhow!("too many steps"))?;
        let graph = Stepper::graph(options.accumulate > 1);
        let mut model = File::open(opened.directory.join(graph)).with_context(|| format!("cannot read `{graph}`"))?;
        let identity = Identity {
            model: sha256(&mut model)?,
            data: corpus.sha256().to_owned(),
            eval: eval.as_ref().map(|e| e.sha256().to_owned()),
            eval_fraction: options.eval_fraction,
            epochs: options.epochs,
            batch_size,
            accumulate: options.accumulate,
            lr: options.lr,
            schedule: options.schedule,
            warmup_steps: options.warmup_steps,
            seed: options.seed.unwrap_or(opened.record.method.seed),
        };
        let execution = options.execution(request.runtime);
        let rate = LearningRate::new(options, total);
        let buckets = match execution.captures {
            true => Buckets::new(opened, &corpus, batch_size),
            false => Buckets::none(opened),
        };
        Ok(Run {
            request,
            opened,
            execution,
            out,
            corpus,
            eval,
            labels,
            tokenizer: tokenizer.map(|t| t.hash().to_owned()),
            identity,
            rate,
            buckets,
            steps_an_epoch,
            total,
        })
    }

    /// The state to begin with: the checkpoint's, or the side network as the rewrite initialised it.
    pub(super) fn begin(&self, notify: &mut impl FnMut(Event)) -> anyhow::Result<(Side, Progress)> {
        let path = self.out.join(CHECKPOINT);
        if self.request.resume {
            if !path.exists() {
                bail!("there is no checkpoint in `{}` to continue from", self.out.display());
            }
            let (state, progress) = checkpoint::load(&path, &self.opened.record)?;
            if progress.started != Started::hash(&self.out)? {
                let error = anyhow!("`{}` has changed since the run began", self.out.join(STARTED).display());
                let hint = "put back what was there; to change something, such as --train, pass flags with --resume";
                return Err(Hinted::new(error, hint).into());
            }
            let differences = progress.identity.differences(&self.identity);
            if !differences.is_empty() {
                let out = self.out.display();
                let error = anyhow!("--resume cannot change the run in `{out}`\n  {}", differences.join("\n  "));
                let hint = match progress.epochs >= progress.identity.epochs {
                    true => self.further(),
                    false => "--resume without other flags continues it as it was started".to_owned(),
                };
                return Err(Hinted::new(error, hint).into());
            }
            return Ok((state, progress));
        }
        let (started, identity) = (String::new(), self.identity.clone());
        let progress = Progress { step: 0, epochs: 0, best: None, started, identity };
        let Some(from) = &self.request.train.from else { return Ok((self.opened.initial()?, progress)) };
        let file = side_file(&self.opened.directory, Some(from))?;
        let (begins, notes) = self.opened.side(&file)?;
        notes.iter().for_each(|note| notify(Event::Warning(note)));
        Ok((begins, progress))
    }

    /// Records how the run was started, with all that its figures depend on (the threads, the seed, how its cache keeps taps), and
    /// the state that it begins with: both, or neither.
    fn record(&self, stepper: &Stepper, progress: &mut Progress, cache: Option<&Cache>) -> anyhow::Result<()> {
        let (threads, cache_dtype) = (Some(self.execution.threads), cache.map(Cache::element));
        let seed = Some(self.identity.seed);
        let train = TrainOptions { threads, cache_dtype, seed, ..self.request.train.clone() };
        Started { train, data: self.request.reading.clone() }.write(&self.out)?;
        progress.started = Started::hash(&self.out)?;
        self.save(stepper, progress).inspect_err(|_| drop(fs::remove_file(self.out.join(STARTED))))
    }

    /// How to train further after a run has ended.
    fn further(&self) -> String {
        let path = |path: &Path| report::word(&path.to_string_lossy());
        let (directory, run) = (path(&self.opened.directory), path(&self.out));
        format!(
            "the run is finished. To train further from its best side network, start a new run: `lstc train {directory} --from {run} --epochs N --out DIR`"
        )
    }

    /// So many evaluations without an improvement, if the run's patience is exhausted.
    fn out_of_patience(&self, progress: &Progress) -> Option<u64> {
        let patience = self.request.train.patience?;
        let waited = progress.epochs.saturating_sub(progress.best?.epoch);
        (waited >= patience).then_some(waited)
    }

    /// The cache of the run's taps, if it has one.
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
        mut notify: impl FnMut(Event),
    ) -> anyhow::Result<Summary> {
        let options = &self.request.train;
        let (accumulates, overlaps) = (options.accumulate > 1, options.overlaps());
        let runs = self.runs(progress.step);
        let mut parts = self.opened.parts(Stepper::graph(accumulates))?;
        if let Some(narrow) = options.tap_dtype.narrow() {
            let refused = |reason| anyhow!("the taps of this model cannot be held in fewer bits: {reason}");
            parts.narrow(narrow).map_err(refused)?;
        }
        let is_whole = cache.as_ref().is_some_and(Cache::is_whole);
        let runtime = self.execution.runtime;
        let forecast = Forecast::new(self.opened, &parts, options, &self.corpus, is_whole, &self.buckets, runtime);
        if let Some(warning) = forecast.warning() {
            notify(Event::Warning(&warning));
        }
        if options.device != Device::Cpu && integer_products(&parts.backbone) > 0 {
            notify(Event::Warning(INTEGERS_ON_CUDA));
        }
        let (mut stepper, backbone) = Stepper::of(self.opened, parts, &self.execution, &state, accumulates, runs)?;
        if options.device != Device::Cpu {
            let reserved = backbone.reserve(forecast.sizes).and_then(|()| stepper.reserve_places(forecast.sizes));
            reserved.map_err(|error| self.explained(error, progress.step + 1, &[], None))?;
        }
        // If there is no room in one piece, the arena grows as it must.
        drop(stepper.reserve(forecast.first_piece()));
        drop(state);
        if !self.request.resume {
            self.record(&stepper, &mut progress, cache.as_ref())?;
        }
        let mut source = TapSource::new(self.opened, backbone, cache, stepper.host_memory()?)?;
        notify(Event::Begins(&Plan { forecast: Some(forecast), cache: source.holding(), ..self.plan(progress.step) }));
        let mut log = Log::open(&self.out, progress.step, progress.epochs)?;
        let mut interrupted = false;
        let mut begun =
            Begun { clock: Clock::default(), started: 0, steps: VecDeque::new(), loss: None, largest: None };
        let mut is_reported = !self.execution.captures;
        if self.request.resume && progress.epochs >= options.epochs {
            notify(Event::Warning(&self.further()));
        }
        for epoch in progress.epochs..options.epochs {
            if self.out_of_patience(&progress).is_some() {
                break;
            }
            self.set_gates(&mut stepper, epoch)?;
            let batches = epoch_batches(&self.corpus, self.identity.batch_size, self.identity.seed, epoch);
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
                    self.step((&mut stepper, &mut taps, &mut begun), &batches, epoch, progress.step + 1)?;
                    progress.step += 1;
                    if !is_reported {
                        is_reported = self.warn_uncaptured(stepper.plain().or_else(|| taps.plain()), &mut notify)?;
                    }
                    taps.take_warnings().iter().for_each(|warning| notify(Event::Warning(warning)));
                    interrupted = interrupt::asked();
                    // The last step of an epoch is saved with its evaluation.
                    let saves =
                        interrupted || (progress.step.is_multiple_of(options.save_every) && progress.step < end);
                    let waits = saves || progress.step == end;
                    for line in self.settled(&stepper, &mut begun, waits)? {
                        log.write(&line)?;
                        let left = begun.clock.left(self.total - line.step, options.epochs - progress.epochs);
                        notify(Event::Step { line: &line, of: self.total, left });
                    }
                    if saves {
                        self.save(&stepper, &progress)?;
                        // A step's seconds are its own.
                        begun.clock.mark = Instant::now();
                    }
                }
                anyhow::Ok(())
            });
            source.take_warnings().iter().for_each(|warning| notify(Event::Warning(warning)));
            steps?;
            if interrupted {
                break;
            }
            let closing = Instant::now();
            self.close_epoch(&stepper, &mut progress, epoch, &mut log, &mut notify)?;
            begun.clock.evaluation = closing.elapsed().as_secs_f64();
            begun.clock.mark = Instant::now();
            interrupted = interrupt::asked() && progress.epochs < options.epochs;
            if interrupted {
                break;
            }
        }
        Ok(Summary {
            out: self.out.clone(),
            steps: progress.step,
            epochs: progress.epochs,
            loss: begun.loss,
            best: progress.best,
            step_seconds: begun.clock.median(),
            tokens_per_second: begun.clock.tokens_per_second(),
            seconds: begun.clock.begun.elapsed().as_secs_f64(),
            peak_memory: stepper.memory()?.peak,
            predicted: Some(forecast),
            cache: source.holding(),
            interrupted,
            out_of_patience: self.out_of_patience(&progress).filter(|_| progress.epochs < options.epochs),
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
            holds_out: self.identity.eval_fraction.is_some(),
            skipped: skipped.count,
            skipped_first: skipped.first.clone(),
            truncated: self.corpus.truncated(),
            labels: self.labels.len(),
            guess: (!self.labels.is_empty()).then(|| Guess::of(self.corpus.all_targets())),
            epochs: self.request.train.epochs,
            steps: self.total,
            done,
            forecast: None,
            cache: None,
        }
    }

    /// Starts one step.
    fn step(
        &self,
        (stepper, upcoming, begun): (&mut Stepper, &mut Upcoming, &mut Begun),
        batches: &Batches,
        epoch: u64,
        step: u64,
    ) -> anyhow::Result<()> {
        let first = ((step - 1) % self.steps_an_epoch) as usize * self.identity.accumulate;
        let last = batches.len().min(first.saturating_add(self.identity.accumulate));
        let made: Vec<Batch> = (first..last)
            .map(|at| {
                let rows = batches.get(at);
                let sizes = self.buckets.sizes(&self.corpus, rows);
                Batch::new(&self.corpus, rows, self.opened.record.tokens, &sizes)
            })
            .collect::<anyhow::Result<_>>()?;
        let next = last..batches.len().min(last.saturating_add(self.identity.accumulate));
        next.for_each(|at| upcoming.expect(&self.corpus, batches.get(at)));
        let lr = self.rate.at(step);
        let mut rows = (first..).map(|at| batches.get(at));
        let taps = |batch: &Batch| {
            let rows = rows.next().unwrap_or_default();
            upcoming.next(&self.corpus, rows, batch)
        };
        let pending = stepper.step(&made, taps, step, lr);
        let pending = pending.map_err(|error| self.explained(error, step, &made, begun.largest))?;
        begun.largest = made.iter().map(sizes).chain(begun.largest).max_by_key(|[rows, source, _]| rows * source);
        let tokens = made.iter().map(|b| b.tokens).sum();
        let rows = made.into_iter().flat_map(|batch| batch.rows).collect();
        begun.started += 1;
        begun.steps.push_back(Step { step, epoch, lr, tokens, rows, place: (first, batches.len()), pending });
        Ok(())
    }

    /// What the started steps have measured, each checked to be finite: all on the CPU, or if the caller `waits` for them;
    /// on a device every `log_every` steps, except for the last half of these, which are still running.
    fn settled(&self, stepper: &Stepper, begun: &mut Begun, waits: bool) -> anyhow::Result<Vec<StepLine>> {
        let (every, on_device) = (self.request.train.log_every, self.execution.device != Device::Cpu);
        let are_due = begun.steps.back().is_some_and(|last| last.step.is_multiple_of(every));
        let open = match (on_device && !waits, are_due) {
            (false, _) => 0,
            // The device keeps working while the earlier lines are written.
            (true, true) => usize::try_from(every / 2).unwrap_or(0),
            (true, false) => return Ok(Vec::new()),
        };
        let count = begun.steps.len().saturating_sub(open);
        let mut measured = Vec::new();
        for step in begun.steps.drain(..count) {
            let Step { step, epoch, lr, tokens, rows, place, pending } = step;
            let Outcome { loss, grad_norm } = pending.get()?;
            if !loss.is_finite() || !grad_norm.is_finite() {
                return Err(self.diverged(step, epoch, place, &rows, loss, grad_norm));
            }
            measured.push((step, epoch + 1, lr, tokens, loss, grad_norm));
        }
        let Some((_, _, _, _, loss, _)) = measured.last() else { return Ok(Vec::new()) };
        begun.loss = Some(*loss);
        let step = measured.last().map_or(0, |(step, ..)| *step);
        let is_due = step == 1 || step.is_multiple_of((self.steps_an_epoch / GATES_AN_EPOCH).max(1));
        let mut gates = BTreeMap::new();
        if waits || (is_due && !on_device) {
            gates = self.gates(stepper)?;
        }
        let last = measured.len();
        let seconds = begun.clock.lap() / std::mem::take(&mut begun.started).max(1) as f64;
        let Resident { now: memory, peak: peak_memory } = stepper.memory()?;
        let lines = measured.into_iter().zip(1..).map(|((step, epoch, lr, tokens, loss, grad_norm), place)| {
            let tokens_per_second = tokens as f64 / seconds.max(1e-9);
            let gates = if place == last { std::mem::take(&mut gates) } else { BTreeMap::new() };
            StepLine {
                step,
                epoch,
                loss,
                lr,
                grad_norm,
                seconds,
                tokens,
                tokens_per_second,
                memory,
                peak_memory,
                gates,
            }
        });
        let lines: Vec<StepLine> = lines.collect();
        lines.iter().for_each(|line| begun.clock.add(line));
        Ok(lines)
    }

    /// Gives gates with a schedule their value in an epoch.
    fn set_gates(&self, stepper: &mut Stepper, epoch: u64) -> anyhow::Result<()> {
        let Record { parameters, method, .. } = &self.opened.record;
        let Some(value) = method.gate.scheduled(epoch, self.request.train.epochs) else { return Ok(()) };
        let scheduled = parameters.iter().filter(|p| p.group == Group::Schedule);
        scheduled.map(|p| &p.name).try_for_each(|name| stepper.set(name, value))
    }

    /// How far each gate is open, by its parameter.
    fn gates(&self, stepper: &Stepper) -> anyhow::Result<BTreeMap<String, f64>> {
        let Record { parameters, method, .. } = &self.opened.record;
        let is_gate = |name: &str| parameters.iter().any(|p| p.group == Group::Gate && p.name == name);
        let gates = stepper.parameters().iter().filter(|(name, _)| is_gate(name));
        gates
            .map(|(name, tensor)| {
                let alpha = tensor.read()?.first().copied().unwrap_or(method.alpha);
                Ok((name.clone(), Gate::new(alpha, method.temperature, State::Trained).value))
            })
            .collect()
    }

    /// Reports why steps are not captured, if there is a reason; that is an error if captures were asked for.
    fn warn_uncaptured(&self, reason: Option<&str>, notify: &mut impl FnMut(Event)) -> anyhow::Result<bool> {
        let Some(reason) = reason else { return Ok(false) };
        if self.request.train.cuda_graphs == CudaGraphs::On {
            let error = anyhow!("the steps of this model cannot be captured as CUDA graphs: {reason}");
            return Err(Hinted::new(error, "--cuda-graphs auto captures what can be captured").into());
        }
        notify(Event::Warning(&format!("not every part of a step is captured as a CUDA graph: {reason}")));
        Ok(true)
    }
}

/// Examples, and tokens of each source and target.
fn sizes(batch: &Batch) -> [usize; 3] {
    let (rows, source) = batch.source.dim();
    [rows, source, batch.target_in.dim().1]
}

/// What a run has started.
struct Begun {
    clock: Clock,
    /// Steps that were started since the last figures were known.
    started: usize,
    /// Steps whose figures are not known yet.
    steps: VecDeque<Step>,
    /// Of the last step whose figures are known.
    loss: Option<f64>,
    /// The largest batch that fitted into memory.
    largest: Option<[usize; 3]>,
}

/// A step that was started.
struct Step {
    step: u64,
    epoch: u64,
    lr: f64,
    tokens: usize,
    /// Lines of the data.
    rows: Vec<u64>,
    /// Its first batch, and how many an epoch has.
    place: (usize, usize),
    pending: Pending,
}
