//! What `lstc rewrite` reports of what it wrote.

use std::fmt;
use std::path::{Path, PathBuf};

use lstc_base::report;
use lstc_graph::{Means, Saved};
use lstc_passes::options::{BackboneOptions, Sizes};
use lstc_tuned::manifest::{ChoiceSummary, FilePart, FoldedSummary};
use lstc_tuned::quantised::{Lines, Quantised};
use lstc_tuned::tokens::Settled;
use serde::Serialize;

use crate::rewrite::Written;
use crate::rewrite::precision::Candidate;

/// What was written, for the report.
#[derive(Serialize)]
pub struct Summary {
    output: PathBuf,
    /// The files of the model.
    model: Vec<PathBuf>,
    family: String,
    blocks: Vec<String>,
    trainable: usize,
    frozen: usize,
    /// The files of the frozen weights.
    backbone: Vec<DataSummary>,
    nodes: Vec<(&'static str, usize)>,
    chosen_blocks: Vec<ChoiceSummary>,
    tokens: Settled,
    sizes: Sizes,
    folded: Option<FoldedSummary>,
    precision: BackboneOptions,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantised: Option<Quantised>,
    /// Bytes of the LM head's matrix before and after it was quantised.
    #[serde(skip_serializing_if = "Option::is_none")]
    head: Option<(u64, u64)>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    candidates: Vec<Candidate>,
}

impl Summary {
    pub fn new(output: &Path, written: &Written) -> Summary {
        let manifest = &written.manifest;
        let kept = |kind| manifest.taps.iter().filter(|t| t.tower == kind && t.point.block().is_some()).count();
        Summary {
            output: output.to_owned(),
            model: manifest.source.iter().filter(|f| f.part == FilePart::Model).map(|f| f.file.clone()).collect(),
            family: manifest.model.family.clone(),
            blocks: manifest
                .model
                .towers
                .iter()
                .map(|t| format!("{} of {} {} blocks", kept(t.kind), t.blocks, t.kind))
                .collect(),
            trainable: manifest.parameters.iter().map(|p| p.shape.iter().product::<usize>()).sum(),
            frozen: written.frozen,
            backbone: written.data.iter().map(DataSummary::new).collect(),
            nodes: manifest.graphs.iter().map(|g| (g.file, g.nodes)).collect(),
            chosen_blocks: manifest.chosen_blocks.clone(),
            sizes: manifest.sizes,
            folded: manifest.folded,
            precision: manifest.backbone.clone(),
            quantised: manifest.quantised.clone(),
            tokens: Settled { ids: manifest.tokens, from: manifest.tokens_from.clone() },
            head: written.head,
            candidates: written.candidates.clone(),
        }
    }
}

/// A file of frozen weights, and how it was made.
#[derive(Serialize)]
struct DataSummary {
    file: String,
    bytes: u64,
    /// `linked`, `reflinked` or `copied`.
    how: &'static str,
    /// The file that a link leads to.
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<PathBuf>,
}

impl DataSummary {
    fn new(saved: &Saved) -> DataSummary {
        let (how, to) = match &saved.means {
            Means::Linked(to) => ("linked", Some(to.clone())),
            Means::Reflinked(to) => ("reflinked", Some(to.clone())),
            Means::Copied => ("copied", None),
        };
        DataSummary { file: saved.name.clone(), bytes: saved.bytes, how, to }
    }
}

impl fmt::Display for DataSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.file, report::Bytes(self.bytes), self.how)?;
        self.to.as_ref().map_or(Ok(()), |to| write!(f, " to `{}`", to.display()))
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = 100.0 * self.trainable as f64 / self.frozen.max(1) as f64;
        writeln!(f, "{}: {}, {}", self.output.display(), self.family, self.blocks.join(", "))?;
        let model: Vec<String> = self.model.iter().map(|file| file.display().to_string()).collect();
        writeln!(f, "  from {}", model.join(" + "))?;
        writeln!(f, "  trainable {} parameters, {share:.3} % of the backbone's {}", self.trainable, self.frozen)?;
        for choice in &self.chosen_blocks {
            writeln!(f, "  {}", chosen(choice))?;
        }
        for candidate in &self.candidates {
            let Candidate { precision, seconds, reason } = candidate;
            let outcome = seconds.map_or_else(
                || reason.clone().unwrap_or_default(),
                |seconds| format!("{:.1} ms for the first block", seconds * 1e3),
            );
            writeln!(f, "  measured {precision}: {outcome}")?;
        }
        if let Some(quantised) = &self.quantised {
            write!(f, "{}", Lines { backbone: &self.precision, quantised })?;
        }
        if let Some((before, after)) = self.head {
            let [before, after] = [before, after].map(report::Bytes);
            writeln!(f, "  LM head in 8 bits: its matrix {after}, {before} before")?;
        }
        writeln!(f, "  special tokens: {}", self.tokens)?;
        self.backbone.iter().try_for_each(|file| writeln!(f, "  backbone weights {file}"))?;
        let nodes: Vec<String> = self.nodes.iter().map(|(file, nodes)| format!("{file} {nodes}")).collect();
        writeln!(f, "  nodes {}", nodes.join(", "))?;
        if let Some(folded) = &self.folded {
            let fixed = self.sizes.named().into_iter().filter_map(|(name, size)| Some((name, size?)));
            let fixed: Vec<String> = fixed.map(|(name, size)| format!("{} {size}", name.replace('_', " "))).collect();
            let FoldedSummary { nodes_before, nodes_after } = folded;
            writeln!(f, "  fixed {}: the backbone has {nodes_after} nodes, {nodes_before} before", fixed.join(", "))?;
        }
        Ok(())
    }
}

/// The kept blocks of a tower, with the importance of all.
fn chosen(choice: &ChoiceSummary) -> String {
    let ChoiceSummary { tower, asked, of, kept, importance } = choice;
    if importance.is_empty() {
        return format!("{tower} keeps all of its {of} blocks: {asked} were asked for");
    }
    let list = |blocks: &mut dyn Iterator<Item = String>| blocks.collect::<Vec<_>>().join(", ");
    let kept = list(&mut kept.iter().map(usize::to_string));
    let scores = list(&mut importance.iter().enumerate().map(|(block, score)| format!("{block}: {score:.3}")));
    format!("{tower} keeps {kept}; importance {scores}")
}
