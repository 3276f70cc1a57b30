//! What is in a model, and what a rewrite made of it.

mod memory;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use lstc_graph::{Graph, Origin, ValueId, load};
use lstc_models::recognise;
use lstc_passes::options::Init;
use lstc_passes::{Module, Options, artifacts, ladder_side_tuning};
use serde::Serialize;

pub use memory::{Memory, Sizes};

use crate::report::{self, Bytes};
use crate::rewrite::manifest::{ModelSummary, PortSummary, TapSummary, TowerSummary, taps};
use crate::rewrite::{manifest, nodes_by_pass};

/// What is in a model file.
#[derive(Debug, Serialize)]
pub struct ModelReport {
    pub file: PathBuf,
    pub exporter: String,
    pub opset: i64,
    pub ir_version: i64,
    pub nodes: usize,
    pub inputs: Vec<PortSummary>,
    pub outputs: Vec<PortSummary>,
    /// Elements and bytes of the weights by element type.
    pub weights: BTreeMap<String, Weights>,
    /// What was recognised; none where the model is refused.
    pub model: Option<ModelSummary>,
    pub taps: Vec<TapSummary>,
    /// Predicted memory of training.
    pub memory: Option<Memory>,
    /// Why the model is refused.
    pub refusals: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Weights {
    pub tensors: usize,
    pub elements: usize,
    pub bytes: usize,
}

/// Reduction factors for the prediction: the first that leaves something of every width.
const REDUCTIONS: [usize; 4] = [8, 4, 2, 1];

impl ModelReport {
    /// Looks into a model file.
    ///
    /// # Errors
    /// What is wrong with the file. A model that is refused is no error.
    pub fn new(path: &Path, sizes: Sizes) -> anyhow::Result<ModelReport> {
        let graph = load(path)?;
        let ports = |values: &[ValueId]| values.iter().map(|v| PortSummary::new(&graph, *v)).collect();
        let mut report = ModelReport {
            file: path.to_owned(),
            exporter: graph.producer.clone(),
            opset: graph.opset(),
            ir_version: graph.ir_version,
            nodes: graph.node_ids().count(),
            inputs: ports(&graph.inputs),
            outputs: ports(&graph.outputs),
            weights: weights(&graph),
            model: None,
            taps: Vec::new(),
            memory: None,
            refusals: Vec::new(),
        };
        match recognise(&graph) {
            Ok(anatomy) => {
                report.model = Some(ModelSummary::new(&graph, &anatomy));
                let compiled = REDUCTIONS.iter().find_map(|r| {
                    let mut options = Options::default();
                    options.method.reduction = *r;
                    options.method.init = Init::Random; // reads no weight
                    Module::new(graph.clone(), anatomy.clone(), options).ok()
                });
                if let Some(mut module) = compiled {
                    ladder_side_tuning().run(&mut module, None, |_, _| ())?;
                    report.taps = taps(&module);
                    report.memory = Some(Memory::predict(&module, &artifacts(&module), sizes));
                }
            }
            Err(refused) => report.refusals = refused.0.iter().map(ToString::to_string).collect(),
        }
        Ok(report)
    }

    pub fn is_understood(&self) -> bool {
        self.model.is_some()
    }
}

fn weights(graph: &Graph) -> BTreeMap<String, Weights> {
    let mut by_type: BTreeMap<String, Weights> = BTreeMap::new();
    let uses = graph.uses();
    for weight in graph.value_ids().filter(|v| !uses.of(*v).is_empty()).filter_map(|v| graph.weight(v)) {
        let entry = by_type.entry(weight.dtype().to_string()).or_default();
        entry.tensors += 1;
        entry.elements += weight.elements();
        entry.bytes += weight.bytes().len();
    }
    by_type
}

fn port(p: &PortSummary) -> String {
    format!("{} {}[{}]", p.name, p.dtype, p.shape.join(", "))
}

fn tower(t: &TowerSummary) -> String {
    let cross = if t.cross_attention { ", cross-attention" } else { "" };
    let gated = if t.gated { "gated " } else { "" };
    let buckets = t.buckets.map_or_else(String::new, |b| format!(", {b} position buckets"));
    format!(
        "{}: {} blocks, width {}, {} heads of {}, feed-forward {} {gated}{}{cross}{buckets}, epsilon {:e}",
        t.kind,
        t.blocks,
        t.width,
        t.heads,
        t.head_width,
        t.feed_forward,
        t.activation.name(),
        t.epsilon
    )
}

impl fmt::Display for ModelReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.file.display())?;
        writeln!(f, "  exported by {}, opset {}, {} nodes", self.exporter, self.opset, self.nodes)?;
        writeln!(f, "  inputs   {}", self.inputs.iter().map(port).collect::<Vec<_>>().join("\n           "))?;
        writeln!(f, "  outputs  {}", self.outputs.iter().map(port).collect::<Vec<_>>().join("\n           "))?;
        for (dtype, w) in &self.weights {
            writeln!(f, "  weights  {dtype}: {} in {} tensors, {}", w.elements, w.tensors, Bytes(w.bytes as u64))?;
        }
        let Some(model) = &self.model else {
            writeln!(f, "\nnot understood:")?;
            return self.refusals.iter().try_for_each(|r| writeln!(f, "  {r}"));
        };
        writeln!(f, "\n{}", model.family)?;
        for t in &model.towers {
            writeln!(f, "  {}", tower(t))?;
        }
        let tied = if model.tied { "tied to the embedding" } else { "untied" };
        writeln!(f, "  LM head: vocabulary {}, scale {:.6}, {tied}", model.vocabulary, model.head_scale)?;
        writeln!(f, "\ntaps")?;
        for t in &self.taps {
            writeln!(f, "  {} {:<9} {}", t.tower, t.point, t.value)?;
        }
        if let Some(memory) = &self.memory {
            write!(f, "\n{memory}")?;
        }
        Ok(())
    }
}

/// What is in a rewritten directory.
#[derive(Debug, Serialize)]
pub struct RewrittenReport {
    pub directory: PathBuf,
    pub source: PathBuf,
    /// Trainable tensors and elements by group.
    pub parameters: BTreeMap<String, Weights>,
    /// Nodes by the pass that made them, for each graph.
    pub graphs: Vec<GraphReport>,
    /// Every backbone value that a new node of train.onnx reads, and what reads it.
    pub cut: Vec<CutReport>,
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
    /// What it is: a tap, or else what the backbone has there.
    pub role: String,
    /// Passes whose nodes read it, with their number.
    pub readers: Vec<(String, usize)>,
}

impl RewrittenReport {
    /// Looks into a rewritten directory.
    ///
    /// # Errors
    /// A directory that is none, or a graph in it that cannot be read.
    pub fn new(directory: &Path) -> anyhow::Result<RewrittenReport> {
        let recorded = manifest::record(directory)?;
        let mut parameters: BTreeMap<String, Weights> = BTreeMap::new();
        for p in &recorded.parameters {
            let entry = parameters.entry(p.group.name().to_owned()).or_default();
            let elements: usize = p.shape.iter().product();
            entry.tensors += 1;
            entry.elements += elements;
            entry.bytes += elements * 4;
        }
        let mut graphs = Vec::new();
        let mut cut = Vec::new();
        for file in ["train.onnx", "grad.onnx", "apply.onnx", "eval.onnx", "infer.onnx"] {
            let graph = load(&directory.join(file))?;
            if file == "train.onnx" {
                cut = frontier(&graph, &recorded);
            }
            let by_pass = nodes_by_pass(&graph);
            graphs.push(GraphReport { file: file.to_owned(), nodes: graph.node_ids().count(), by_pass });
        }
        let source = recorded.source.first().map(|s| s.file.clone()).unwrap_or_default();
        Ok(RewrittenReport { directory: directory.to_owned(), source, parameters, graphs, cut })
    }
}

/// The backbone's values that the manifest allows, and that nodes of a pass read.
fn frontier(graph: &Graph, recorded: &manifest::Record) -> Vec<CutReport> {
    let uses = graph.uses();
    let is_new = |id| graph.node(id).origin != Origin::SOURCE;
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
            let role = match tap {
                Some(t) => format!("tap {} {}", t.tower, t.point),
                None if graph.weight(value).is_some() => "frozen weight".to_owned(),
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
        let total: usize = self.parameters.values().map(|w| w.elements).sum();
        let share = |w: &Weights| format!("{:.1} %", 100.0 * w.elements as f64 / total.max(1) as f64);
        let rows = self
            .parameters
            .iter()
            .map(|(group, w)| [group.clone(), w.tensors.to_string(), w.elements.to_string(), share(w)]);
        writeln!(f, "{}", report::table(["trainable", "tensors", "elements", "share"], rows))?;
        writeln!(f, "in all {total} trainable elements\n")?;
        let passes =
            |g: &GraphReport| g.by_pass.iter().map(|(pass, n)| format!("{pass} {n}")).collect::<Vec<_>>().join(", ");
        let rows = self.graphs.iter().map(|g| [g.file.clone(), g.nodes.to_string(), passes(g)]);
        writeln!(f, "{}\n", report::table(["graph", "nodes", "by pass"], rows))?;
        let readers = |c: &CutReport| c.readers.iter().map(|(p, n)| format!("{p} {n}")).collect::<Vec<_>>().join(", ");
        let rows = self.cut.iter().map(|c| [c.role.clone(), port(&c.value), readers(c)]);
        writeln!(f, "{}", report::table(["the cut", "backbone value", "nodes that read it"], rows))
    }
}
