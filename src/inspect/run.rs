//! The course of a training run, from the log in its folder.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use lstc_base::report;
use lstc_data::{Line, Source};
use lstc_graph::count;
use lstc_train::Best;
use lstc_train::evaluate::percent;
use lstc_tuned::run::{METRICS, STARTED, Started};
use serde::{Deserialize, Serialize};

/// A gate has opened once it is this far from its initial value.
const OPENED: f64 = 0.05;

/// A training run.
#[derive(Debug, Serialize)]
pub struct RunReport {
    pub folder: PathBuf,
    /// How it was started, as far as its folder says.
    pub started: Option<Started>,
    pub epochs: Vec<Epoch>,
    /// The best evaluation, if there was one.
    pub best: Option<Best>,
    pub gates: Vec<GateCourse>,
    /// Lines of the log that cannot be read.
    pub damaged: usize,
    /// The loss of each step.
    #[serde(skip)]
    pub losses: Vec<(u64, f64)>,
}

/// One epoch.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Epoch {
    pub epoch: u64,
    /// The last step.
    pub step: u64,
    pub steps: u64,
    /// Mean of its steps.
    pub loss: f64,
    pub eval_loss: Option<f64>,
    pub eval_accuracy: Option<f64>,
}

/// The course of a gate.
#[derive(Clone, Debug, Serialize)]
pub struct GateCourse {
    pub name: String,
    /// The first step at which it is 0.05 or more from its initial value.
    pub opened: Option<u64>,
    /// The share of the side state, by step.
    pub values: Vec<(u64, f64)>,
}

/// A line of the log: a step or an evaluation.
#[derive(Deserialize)]
struct Logged {
    step: u64,
    epoch: u64,
    loss: Option<f64>,
    eval_loss: Option<f64>,
    eval_accuracy: Option<f64>,
    gates: Option<BTreeMap<String, f64>>,
}

/// Whether a folder holds a run.
pub fn is_run(folder: &Path) -> bool {
    folder.join(METRICS).is_file()
}

impl RunReport {
    /// Reads the log of a run.
    ///
    /// # Errors
    /// A log that cannot be read, or that has no steps; a record of how the run was started that is damaged.
    pub fn new(folder: &Path) -> anyhow::Result<RunReport> {
        let path = folder.join(METRICS);
        let context = || format!("cannot read `{}`", path.display());
        let mut log = Source::open(&path).with_context(context)?;
        let is_recorded = fs::symlink_metadata(folder.join(STARTED)).is_ok();
        let mut run = RunReport {
            folder: folder.to_owned(),
            started: is_recorded.then(|| Started::read(folder)).transpose()?,
            epochs: Vec::new(),
            best: None,
            gates: Vec::new(),
            damaged: 0,
            losses: Vec::new(),
        };
        let mut line = Vec::new();
        loop {
            match log.line(&mut line).with_context(context)? {
                Line::End => break,
                Line::TooLong => run.damaged += 1,
                Line::Whole => match serde_json::from_slice::<Logged>(&line) {
                    Ok(line) => run.add(line),
                    Err(_) => run.damaged += 1,
                },
            }
        }
        if run.losses.is_empty() {
            bail!("`{}` has no steps yet", path.display());
        }
        for gate in &mut run.gates {
            let begun = gate.values.first().map(|(_, value)| *value).unwrap_or_default();
            gate.opened = gate.values.iter().find(|(_, value)| (value - begun).abs() >= OPENED).map(|(step, _)| *step);
        }
        Ok(run)
    }

    fn add(&mut self, line: Logged) {
        let Logged { step, epoch, loss, eval_loss, eval_accuracy, gates } = line;
        if self.epochs.last().is_none_or(|last| last.epoch != epoch) {
            self.epochs.push(Epoch { epoch, ..Epoch::default() });
        }
        let Some(last) = self.epochs.last_mut() else { return };
        last.step = step;
        if let Some(loss) = loss {
            self.losses.push((step, loss));
            last.steps += 1;
            last.loss += (loss - last.loss) / last.steps as f64;
        }
        for (name, value) in gates.into_iter().flatten() {
            match self.gates.iter_mut().find(|gate| gate.name == name) {
                Some(gate) => gate.values.push((step, value)),
                None => self.gates.push(GateCourse { name, opened: None, values: vec![(step, value)] }),
            }
        }
        if let Some(loss) = eval_loss {
            (last.eval_loss, last.eval_accuracy) = (eval_loss, eval_accuracy);
            let here = Best { step, epoch, loss, accuracy: eval_accuracy };
            if self.best.is_none_or(|best| here.beats(&best)) {
                self.best = Some(here);
            }
        }
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.losses.last().map_or(0, |(step, _)| *step)
    }

    /// The run's options, in words.
    pub fn asked(&self) -> Option<String> {
        let train = &self.started.as_ref()?.train;
        let (epochs, batch) = (count(train.epochs, "epoch"), train.batch_size);
        let seed = train.seed.map_or_else(String::new, |seed| format!(", seed {seed}"));
        Some(format!("{epochs}, batch {batch}, learning rate {}{seed}", train.lr))
    }

    /// The best evaluation, in words.
    pub fn best_in_words(&self) -> Option<String> {
        let best = self.best?;
        let accuracy = best.accuracy.map_or_else(String::new, |a| format!(", accuracy {}", percent(a)));
        Some(format!("epoch {}, step {}: loss {:.4}{accuracy}", best.epoch, best.step, best.loss))
    }
}

impl GateCourse {
    pub fn first(&self) -> f64 {
        self.values.first().map_or(0.0, |(_, value)| *value)
    }

    pub fn last(&self) -> f64 {
        self.values.last().map_or(0.0, |(_, value)| *value)
    }

    /// When it opened, in words.
    pub fn opened_in_words(&self) -> String {
        self.opened.map_or_else(|| "not yet".to_owned(), |step| format!("step {step}"))
    }
}

impl fmt::Display for RunReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (steps, epochs) = (count(self.steps(), "step"), count(self.epochs.len(), "epoch"));
        writeln!(f, "{}: a training run, {steps} in {epochs}", self.folder.display())?;
        if let Some(asked) = self.asked() {
            writeln!(f, "  options    {asked}")?;
        }
        if let (Some((_, first)), Some((_, last))) = (self.losses.first(), self.losses.last()) {
            writeln!(f, "  loss       {first:.4} at the first step, {last:.4} at the last")?;
        }
        if let Some(best) = self.best_in_words() {
            writeln!(f, "  best       {best}")?;
        }
        if self.damaged > 0 {
            writeln!(f, "  skipped    {} of the log", count(self.damaged, "damaged line"))?;
        }
        let optional = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let rows = self.epochs.iter().map(|e| {
            let (loss, accuracy) = (e.eval_loss.map(|loss| format!("{loss:.4}")), e.eval_accuracy.map(percent));
            [e.epoch.to_string(), e.step.to_string(), format!("{:.4}", e.loss), optional(loss), optional(accuracy)]
        });
        writeln!(f, "\n{}", report::table(["epoch", "last step", "mean loss", "evaluated", "accuracy"], rows))?;
        if self.gates.is_empty() {
            return Ok(());
        }
        writeln!(f, "\ngates: the share of the side state; opened: {OPENED} or more from the initial value")?;
        let rows = self.gates.iter().map(|gate| {
            let (first, last) = (format!("{:.3}", gate.first()), format!("{:.3}", gate.last()));
            [gate.name.clone(), first, last, gate.opened_in_words()]
        });
        writeln!(f, "{}", report::table(["gate", "first", "last", "opened"], rows))
    }
}
