//! Whether the taps are finite in the graph that training runs: the backbone that ends at them.
//!
//! When the whole model runs, kernels may keep the residual stream of an f16 model in f32 from block to block. Cut at the taps, it is
//! f16 there, and values beyond 65504 are infinite.

use anyhow::anyhow;
use lstc_graph::ValueId;
use lstc_passes::parts;
use lstc_runtime::Optimisation;
use lstc_tuned::manifest::{TapSummary, taps};

use super::{Check, Subject};
use crate::probe::{run, sample};

pub(super) fn check(subject: &Subject) -> anyhow::Result<Check> {
    let graph = subject.load("train.onnx")?;
    let summaries = taps(&subject.module);
    let find = |tap: &TapSummary| graph.find(&tap.value).ok_or_else(|| anyhow!("train.onnx has no `{}`", tap.value));
    let values = summaries.iter().map(find).collect::<anyhow::Result<Vec<ValueId>>>()?;
    let backbone = parts(&graph, &values).backbone;
    // In their own type: after a cast to f32, kernels would return their f32 values.
    let names: Vec<String> = backbone.outputs.iter().map(|v| backbone.value(*v).name.clone()).collect();
    let mut session = subject.session(&backbone, Optimisation::All)?;
    let mut breaches = Vec::new();
    for inputs in sample::sizes(&subject.module, subject.seed)? {
        let found = run(&mut session, &inputs, &names)?;
        for (name, tensor) in names.iter().zip(&found) {
            let Some(tap) = summaries.iter().find(|tap| tap.value == *name) else { continue };
            let breach = format!("{tap} is not finite: rewrite with --backbone fp32");
            if !tensor.is_finite() && !breaches.contains(&breach) {
                breaches.push(breach);
            }
        }
    }
    Ok(Check::holds("the taps are finite, as training reads them", format!("{} taps", names.len()), &breaches))
}
