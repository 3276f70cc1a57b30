//! What is in a rewritten directory.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use lstc_base::report;
use lstc_graph::{Graph, load};
use lstc_passes::artifacts;
use lstc_passes::{Point, is_backbone};
use lstc_train::memory::Sizes;
use lstc_tuned::config::Config;
use lstc_tuned::gates::{Alphas, State};
use lstc_tuned::manifest::{ChoiceSummary, ModelSummary, PortSummary};
use lstc_tuned::side::Seal;
use lstc_tuned::tokens::Settled;
use lstc_tuned::{GRAPHS, MANIFEST, intact, manifest};
use serde::Serialize;

use super::ladder::Ladder;
use super::{Memory, Weights, by_group, port};
use crate::rewrite::SourceModel;
use crate::rewrite::{nodes_by_pass, sketch};

/// What is in a rewritten directory.
#[derive(Debug, Serialize)]
pub struct RewrittenReport {
    pub directory: PathBuf,
    pub source: PathBuf,
    pub model: ModelSummary,
    /// The special tokens and their sources; none in a directory that does not record it.
    pub tokens: Option<Settled>,
    /// Trainable tensors and elements by group.
    pub parameters: BTreeMap<String, Weights>,
    /// Nodes by the pass that made them, for each graph.
    pub graphs: Vec<GraphReport>,
    /// Every backbone value that a new node of train.onnx reads, and its readers.
    pub cut: Vec<CutReport>,
    pub ladder: Ladder,
    /// The file that the gates' values come from; none where they are the initial ones.
    pub side: Option<PathBuf>,
    /// Whether that file's values were checked against a checksum.
    pub seal: Option<Seal>,
    /// Predicted memory of training.
    pub memory: Prediction,
}

/// Predicted memory, if the source can be read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// Why there is no prediction.
    LeftOut(String),
    #[serde(untagged)]
    Made(Memory),
}

#[derive(Debug, Serialize)]
pub struct GraphReport {
    pub file: String,
    pub nodes: usize,
    pub by_pass: Vec<(String, usize)>,
}

#[derive(Debug, Serialize)]
pub struct CutReport {
    pub value: PortSummary,
    /// A tap, or what else the backbone has there.
    pub role: String,
    /// Passes whose nodes read it, with their number.
    pub readers: Vec<(String, usize)>,
}

impl RewrittenReport {
    /// Inspects a rewritten directory, with the gates of `side` if one is given.
    ///
    /// # Errors
    /// Not a rewritten directory, a graph that cannot be read, a side network that does not fit.
    pub fn new(directory: &Path, sizes: Sizes, side: Option<&Path>) -> anyhow::Result<RewrittenReport> {
        let recorded = intact::record(directory)?;
        let config = manifest::read(directory)?;
        let model = recorded.model.clone();
        let parameters = by_group(recorded.parameters.iter().map(|p| (p.group, p.shape.as_slice())));
        let shapes = recorded.parameters.iter().map(|p| (p.name.clone(), p.shape.clone())).collect();
        let options = config.options();
        let method = &options.method;
        let alphas = Alphas::initial(method.alpha, method.temperature).of(directory, side, &shapes)?;
        let ladder = Ladder::new(&model, &options, &shapes, &recorded.taps, &alphas)
            .with_context(|| format!("`{}` is inconsistent", directory.join(MANIFEST).display()))?;
        let mut graphs = Vec::new();
        let mut cut = Vec::new();
        for file in GRAPHS {
            let graph = load(&directory.join(file))?;
            if file == "train.onnx" {
                cut = frontier(&graph, &recorded);
            }
            let by_pass = nodes_by_pass(&graph);
            graphs.push(GraphReport { file: file.to_owned(), nodes: graph.node_ids().count(), by_pass });
        }
        let source = recorded.source.first().map(|s| s.file.clone()).unwrap_or_default();
        let memory = predict(&config, &recorded, sizes);
        let directory = directory.to_owned();
        let (side, seal) = (alphas.file, alphas.seal);
        let tokens = recorded.tokens_from.map(|from| Settled { ids: recorded.tokens, from });
        Ok(RewrittenReport { directory, source, model, tokens, parameters, graphs, cut, ladder, side, seal, memory })
    }

    /// Elements of all trainable tensors.
    pub fn trainable(&self) -> usize {
        self.parameters.values().fold(0, |n, w| n.saturating_add(w.elements))
    }
}

/// The prediction for the source, compiled again. No weight is read: the initial values are random, and blocks that were
/// chosen by importance are not chosen again.
fn predict(config: &Config, recorded: &manifest::Record, sizes: Sizes) -> Prediction {
    let source = match SourceModel::recorded(&config.source) {
        Ok(source) => source,
        Err(error) => return Prediction::LeftOut(format!("{error:#}")),
    };
    for file in &config.source {
        match std::fs::metadata(&file.file) {
            Ok(metadata) if metadata.len() == file.bytes => {}
            Ok(_) => return Prediction::LeftOut(format!("the source `{}` has changed", file.file.display())),
            Err(error) => {
                return Prediction::LeftOut(format!("cannot read the source `{}`: {error}", file.file.display()));
            }
        }
    }
    let mut options = config.options();
    options.method = options.method.by_shape();
    if options.method.keep_blocks.take().is_some() {
        let kept = |choice: &ChoiceSummary| (choice.tower.into(), choice.kept.clone());
        options.method.blocks.extend(recorded.chosen_blocks.iter().map(kept));
    }
    match sketch(source, options) {
        Ok(module) => Prediction::Made(Memory::predict(&module, &artifacts(&module), sizes)),
        Err(error) => Prediction::LeftOut(format!("{error:#}")),
    }
}

/// The backbone's values that the manifest allows and that nodes of a pass read.
fn frontier(graph: &Graph, recorded: &manifest::Record) -> Vec<CutReport> {
    let uses = graph.uses();
    let is_new = |id| !is_backbone(&graph.node(id).origin);
    let mut cut = Vec::new();
    for value in recorded.cut.iter().filter_map(|name| graph.find(name)) {
        let mut readers: Vec<(String, usize)> = Vec::new();
        for (id, _) in uses.of(value).iter().filter(|(id, _)| is_new(*id)) {
            let pass = graph.node(*id).origin.name();
            match readers.iter_mut().find(|(name, _)| name == pass) {
                Some((_, count)) => *count += 1,
                None => readers.push((pass.to_owned(), 1)),
            }
        }
        if !readers.is_empty() {
            let summary = PortSummary::new(graph, value);
            let tap = recorded.taps.iter().find(|t| t.value == summary.name);
            let read_by = |pass| readers.iter().any(|(name, _)| name == pass);
            let role = match tap {
                Some(t) if t.point == Point::Output => "final output".to_owned(),
                Some(t) if t.point == Point::Logits => "logits".to_owned(),
                Some(t) => format!("tap {} {}", t.tower, t.point),
                // Constants that the ladder reads are masks that the exporter folded.
                None if graph.weight(value).is_some() && !read_by("ladder") => "LM head".to_owned(),
                None => "mask or buckets".to_owned(),
            };
            cut.push(CutReport { value: summary, role, readers });
        }
    }
    let place = |c: &CutReport| recorded.taps.iter().position(|t| t.value == c.value.name).unwrap_or(usize::MAX);
    cut.sort_by_key(place);
    cut
}

impl fmt::Display for RewrittenReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, rewritten from {}\n", self.directory.display(), self.source.display())?;
        if let Some(tokens) = &self.tokens {
            writeln!(f, "special tokens: {tokens}\n")?;
        }
        let total = self.trainable();
        let share = |w: &Weights| format!("{:.1} %", 100.0 * w.elements as f64 / total.max(1) as f64);
        let rows = self
            .parameters
            .iter()
            .map(|(group, w)| [group.clone(), w.tensors.to_string(), w.elements.to_string(), share(w)]);
        writeln!(f, "{}", report::table(["trainable", "tensors", "elements", "share"], rows))?;
        writeln!(f, "{total} trainable elements in total")?;
        match (&self.side, &self.seal) {
            (Some(file), Some(Seal::Holds { blake3 })) => {
                writeln!(f, "{}: checksum verified, BLAKE3 {blake3}\n", file.display())?;
            }
            (Some(file), Some(seal)) => writeln!(f, "{}\n", seal.note(file).unwrap_or_default())?,
            _ => writeln!(f)?,
        }
        let passes =
            |g: &GraphReport| g.by_pass.iter().map(|(pass, n)| format!("{pass} {n}")).collect::<Vec<_>>().join(", ");
        let rows = self.graphs.iter().map(|g| [g.file.clone(), g.nodes.to_string(), passes(g)]);
        writeln!(f, "{}\n", report::table(["graph", "nodes", "by pass"], rows))?;
        let readers = |c: &CutReport| c.readers.iter().map(|(p, n)| format!("{p} {n}")).collect::<Vec<_>>().join(", ");
        let rows = self.cut.iter().map(|c| [c.role.clone(), port(&c.value), readers(c)]);
        writeln!(f, "{}\n", report::table(["the cut", "backbone value", "nodes that read it"], rows))?;
        self.fmt_gates(f)?;
        match &self.memory {
            Prediction::Made(memory) => write!(f, "{memory}"),
            Prediction::LeftOut(reason) => writeln!(f, "predicted memory of training: left out, because {reason}"),
        }
    }
}

impl RewrittenReport {
    fn fmt_gates(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.ladder.gates().next() else { return Ok(()) };
        let of = |file: &PathBuf| format!(", {}", file.display());
        let file = self.side.as_ref().filter(|_| first.state != State::Fixed).map_or_else(String::new, of);
        writeln!(f, "gates, {}{file}: the share of the side state; the rest is the tap's", first.state.name())?;
        for stack in &self.ladder.stacks {
            let gates = stack.rungs.iter().enumerate().filter_map(|(block, rung)| {
                let gate = rung.as_ref()?.gate.as_ref()?;
                Some(format!("{block}: {:.3}", gate.value))
            });
            let gates: Vec<String> = gates.collect();
            if !gates.is_empty() {
                writeln!(f, "  {}  {}", stack.tower, gates.join("  "))?;
            }
        }
        if let Some(gate) = &self.ladder.head.merge {
            writeln!(f, "  merge_last  {:.3} ({})", gate.value, gate.state.name())?;
        }
        writeln!(f)
    }
}
