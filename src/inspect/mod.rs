//! What is in a model, and what a rewrite made of it: figures as text, as JSON, and as a page with a drawing.

mod chart;
mod drawing;
pub mod html;
mod ladder;
pub mod layout;
mod memory;
mod model;
mod rewritten;
mod run;
mod tables;
mod text;
pub mod why;

use std::collections::BTreeMap;

use lstc_passes::Group;
use lstc_tuned::manifest::PortSummary;
use serde::Serialize;

pub use ladder::{Head, Ladder, Rung, Stack, Tap};
pub use memory::Memory;
pub use model::ModelReport;
pub use rewritten::{Prediction, RewrittenReport};
pub use run::{RunReport, is_run};
pub use why::WhyReport;

/// Tensors of one kind.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Weights {
    pub tensors: usize,
    pub elements: usize,
    pub bytes: usize,
}

/// Trainable tensors by group.
fn by_group<'p>(parameters: impl Iterator<Item = (Group, &'p [usize])>) -> BTreeMap<String, Weights> {
    let mut groups: BTreeMap<String, Weights> = BTreeMap::new();
    for (group, shape) in parameters {
        let entry = groups.entry(group.name().to_owned()).or_default();
        let elements = ladder::elements(shape);
        entry.tensors += 1;
        entry.elements = entry.elements.saturating_add(elements);
        entry.bytes = entry.bytes.saturating_add(elements.saturating_mul(4));
    }
    groups
}

fn port(p: &PortSummary) -> String {
    format!("{} {}[{}]", p.name, p.dtype, p.shape.join(", "))
}
