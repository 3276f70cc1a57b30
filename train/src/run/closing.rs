//! The end of an epoch: what is evaluated, and what is kept.

use std::time::Instant;

use lstc_base::interrupt;
use lstc_data::{Corpus, Targets};
use lstc_tuned::opened::Execution;
use lstc_tuned::run::BEST;
use lstc_tuned::run::CHECKPOINT;
use lstc_tuned::side;

use super::Run;
use crate::checkpoint::{self, Best, Progress};
use crate::evaluate::{self, Metrics, Scorer};
use crate::log::{EvalLine, Log};
use crate::stepper::Stepper;
use crate::{Event, Trained};

impl Run<'_> {
    /// Evaluates after an epoch, keeps the best, and saves. A resumed run repeats an evaluation that the user
    /// stopped.
    pub(super) fn close_epoch(
        &self,
        stepper: &Stepper,
        progress: &mut Progress,
        epoch: u64,
        log: &mut Log,
        notify: &mut impl FnMut(Event),
    ) -> anyhow::Result<()> {
        let (step, number) = (progress.step, epoch + 1);
        if self.execution.mapped {
            self.opened.check()?;
        }
        match &self.eval {
            Some(eval) => {
                // An evaluation that fails does not lose what the epoch has learnt: a resumed run evaluates again.
                self.save(stepper, progress)?;
                let begun = Instant::now();
                let Some(metrics) = self.evaluate(stepper, eval, notify)? else {
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
                    self.save_best(stepper, progress)?;
                }
                notify(Event::Evaluated { line: &line, is_best, guess: metrics.guess });
            }
            None => self.save_best(stepper, progress)?,
        }
        progress.epochs = number;
        self.save(stepper, progress)
    }

    fn evaluate(
        &self,
        stepper: &Stepper,
        eval: &Corpus,
        notify: &mut impl FnMut(Event),
    ) -> anyhow::Result<Option<Metrics>> {
        // A second copy of the weights beside the training graph's would take the most memory of all.
        let mut scorer = Scorer::open(self.opened, &Execution { mapped: true, ..self.execution })
            .map_err(|error| self.explained_evaluation(error))?;
        let batch_size = self.identity.batch_size;
        let request =
            evaluate::Request { labels: self.labels.clone(), generate: None, batch_size, targets: Targets::Read };
        let of = eval.len();
        let progress = |done| {
            notify(Event::Evaluating { done, of });
            !interrupt::asked()
        };
        let scored = evaluate::score(self.opened, &mut scorer, stepper.parameters(), eval, &request, progress)
            .map_err(|error| self.explained_evaluation(error))?;
        Ok(scored.map(|scored| Metrics::of(&scored, &self.labels)))
    }

    pub(super) fn save(&self, stepper: &Stepper, progress: &Progress) -> anyhow::Result<()> {
        checkpoint::save(&self.out.join(CHECKPOINT), stepper.all(), progress, self.origin(progress)?)
    }

    /// What a file of the run records: how it was trained, and what it was made for.
    fn origin(&self, progress: &Progress) -> anyhow::Result<[(&'static str, String); 2]> {
        let trained = Trained {
            started: progress.started.clone(),
            reading: self.request.reading.clone(),
            tokenizer: self.tokenizer.clone(),
            eval: self.identity.eval.clone(),
        };
        Ok([trained.entry()?, self.opened.record.made_for().entry()?])
    }

    /// Writes the side network alone, with how it was trained and on which labels.
    fn save_best(&self, stepper: &Stepper, progress: &Progress) -> anyhow::Result<()> {
        let mut metadata = vec![("lstc.step", progress.step.to_string())];
        metadata.extend(self.origin(progress)?);
        metadata.extend(evaluate::record(&self.labels)?);
        side::save_on_device(&self.out.join(BEST), stepper.parameters(), &metadata)
    }
}
