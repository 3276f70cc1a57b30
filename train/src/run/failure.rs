//! What a run says about a failure, with what helps.

use std::path::Path;

use anyhow::anyhow;
use lstc_base::report::Hinted;
use lstc_data::Batch;
use lstc_graph::count;
use lstc_runtime::Device;
use lstc_tuned::opened::Execution;
use lstc_tuned::options::TapDtype;
use lstc_tuned::run::CHECKPOINT;

use super::{Run, sizes};
use crate::backbone::Backbone;
use crate::stepper::Stepper;

impl Run<'_> {
    /// For a step that ran out of memory: what it was about, and what takes less. `largest` is what fitted before.
    pub(super) fn explained(
        &self,
        error: anyhow::Error,
        step: u64,
        made: &[Batch],
        largest: Option<[usize; 3]>,
    ) -> anyhow::Error {
        if !matches!(error.downcast_ref(), Some(lstc_runtime::Error::OutOfMemory { .. })) {
            return error;
        }
        let [rows, source, target] =
            made.iter().map(sizes).max_by_key(|[rows, source, _]| rows * source).unwrap_or([0; 3]);
        let mut hints = Vec::new();
        if let Some([rows, source, target]) = largest {
            hints.push(format!("the largest batch that fitted had {rows} x {source} tokens in, {target} out"));
        }
        if self.request.train.overlaps() {
            hints.push("`--resume --overlap off` continues with the taps of one batch less".to_owned());
        }
        let (fixed, size) = (self.opened.fixed(), self.identity.batch_size);
        if fixed.batch.is_none() && size > 1 && size.is_multiple_of(2) {
            let accumulate = 2 * self.identity.accumulate;
            let smaller = format!("`--batch-size {} --accumulate {accumulate} --out DIR`", size / 2);
            hints.push(format!("{smaller} starts a run whose steps have as many examples"));
        }
        if fixed.source.is_none() {
            hints.push(format!("`--max-source-length {}` cuts the texts", source.div_ceil(2)));
        }
        let smallest = if self.execution.device == Device::Cpu { "int8" } else { "int4" };
        hints.push(format!(
            "`lstc rewrite` with --backbone {smallest}, or without dropout --recompute-attention, needs less"
        ));
        let hint = hints.join("; ");
        let examples = count(rows, "example");
        let what =
            format!("step {step}: a batch of {examples}, {source} tokens in, {target} out, does not fit into memory");
        Hinted::new(error.context(what), hint).into()
    }

    /// For an evaluation that ran out of memory.
    pub(super) fn explained_evaluation(&self, error: anyhow::Error) -> anyhow::Error {
        if !matches!(error.downcast_ref(), Some(lstc_runtime::Error::OutOfMemory { .. })) {
            return error;
        }
        let hint = "the epoch is saved, and `--resume` evaluates it again; a run without --eval, or an int4 backbone, needs less";
        Hinted::new(error.context("the evaluation does not fit into memory beside the run"), hint).into()
    }

    /// The first tap that is infinite or not a number for these lines.
    fn overflow(&self, lines: &[u64]) -> anyhow::Result<Option<String>> {
        let opened = self.opened;
        let graph = opened.parts(Stepper::graph(self.identity.accumulate > 1))?.backbone;
        let names: Vec<String> = graph.outputs.iter().map(|v| graph.value(*v).name.clone()).collect();
        let mut backbone = Backbone::new(opened, graph, &Execution { captures: false, ..self.execution });
        let rows = 0..u32::try_from(self.corpus.len())?;
        let rows: Vec<u32> = rows.filter(|row| lines.contains(&self.corpus.example(*row as usize).row)).collect();
        for rows in rows.chunks(self.identity.batch_size) {
            let batch = Batch::new(&self.corpus, rows, opened.record.tokens, &opened.fixed())?;
            for (name, tap) in names.iter().zip(backbone.taps_on_host(&batch)?) {
                let known = opened.record.taps.iter().find(|known| known.value == *name);
                if let Some(known) = known.filter(|_| !tap.is_finite()) {
                    return Ok(Some(known.to_string()));
                }
            }
        }
        Ok(None)
    }

    pub(super) fn diverged(
        &self,
        step: u64,
        epoch: u64,
        (batch, of): (usize, usize),
        lines: &[u64],
        loss: f64,
        grad_norm: f64,
    ) -> anyhow::Error {
        const MAX_LISTED: usize = 16;
        let all = lines.len();
        let rows: Vec<String> = lines.iter().take(MAX_LISTED).map(u64::to_string).collect();
        let more = all - rows.len();
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
        let overflow = self.overflow(lines).ok().flatten();
        let hint = match (overflow, self.request.train.tap_dtype) {
            (Some(tap), _) => format!(
                "{tap} is not finite in the backbone's own type: `lstc rewrite` with --backbone fp32 computes it in f32"
            ),
            (None, TapDtype::Fp32 | TapDtype::Int8) => {
                "a lower --lr, more --warmup-steps or a lower clip often helps, in another run: --out DIR".to_owned()
            }
            (None, TapDtype::Fp16) => {
                "taps beyond 65504 are infinite in fp16: --tap-dtype fp32 helps, in another run: --out DIR".to_owned()
            }
        };
        Hinted::new(error, format!("the last checkpoint, `{}`, is unchanged; {hint}", kept.display())).into()
    }
}
