//! What is in a model file.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use lstc_base::report::Bytes;
use lstc_data::Reading;
use lstc_graph::{Graph, ValueId, count};
use lstc_models::{Likeness, recognise};
use lstc_passes::{Module, Options, artifacts, ladder_side_tuning};
use lstc_train::memory::Sizes;
use lstc_tuned::gates::Alphas;
use lstc_tuned::manifest::{ModelSummary, PortSummary, TapSummary, TowerSummary, taps};
use lstc_tuned::tokens::Settled;
use serde::Serialize;

use super::ladder::Ladder;
use super::{Memory, Weights, by_group, port};
use crate::query;
use crate::rewrite::{SourceModel, odd_inputs, tokens};

/// What is in a model file.
#[derive(Debug, Serialize)]
pub struct ModelReport {
    /// One file, or the encoder's and the decoder's.
    pub files: Vec<PathBuf>,
    pub exporter: String,
    pub opset: i64,
    pub ir_version: i64,
    pub nodes: usize,
    pub inputs: Vec<PortSummary>,
    pub outputs: Vec<PortSummary>,
    /// Elements and bytes of the weights by element type.
    pub weights: BTreeMap<String, Weights>,
    /// What was recognised; none if the model is refused.
    pub model: Option<ModelSummary>,
    /// The special tokens and their sources; none if they are unknown or disputed.
    pub tokens: Option<Settled>,
    pub taps: Vec<TapSummary>,
    /// Trainable tensors and elements by group.
    pub parameters: BTreeMap<String, Weights>,
    /// The side network as it would be with all options at their defaults.
    pub ladder: Option<Ladder>,
    /// Predicted memory of training.
    pub memory: Option<Memory>,
    /// Oddities of the model.
    pub warnings: Vec<String>,
    /// What the model looks like, if it is refused.
    pub likeness: Option<Likeness>,
    /// Why the model is refused.
    pub refusals: Vec<String>,
    /// How to see more of the first refusal.
    #[serde(skip)]
    pub hint: Option<String>,
}

/// Reduction factors for the prediction: the first that reduces no width to zero is used.
const REDUCTIONS: [usize; 4] = [8, 4, 2, 1];

impl ModelReport {
    /// Inspects a model file.
    ///
    /// # Errors
    /// A file that cannot be read. A refused model is not an error.
    pub fn new(model: &SourceModel, sizes: Sizes) -> anyhow::Result<ModelReport> {
        let mut graph = model.read()?;
        let ports = |values: &[ValueId]| values.iter().map(|v| PortSummary::new(&graph, *v)).collect();
        let mut report = ModelReport {
            files: model.files().to_vec(),
            exporter: graph.producer.clone(),
            opset: graph.opset(),
            ir_version: graph.ir_version,
            nodes: graph.node_ids().count(),
            inputs: ports(&graph.inputs),
            outputs: ports(&graph.outputs),
            weights: weights(&graph),
            model: None,
            tokens: None,
            taps: Vec::new(),
            parameters: BTreeMap::new(),
            ladder: None,
            memory: None,
            warnings: Vec::new(),
            likeness: None,
            refusals: Vec::new(),
            hint: None,
        };
        match recognise(&mut graph) {
            Ok(anatomy) => {
                let summary = ModelSummary::new(&graph, &anatomy);
                report.warnings = odd_inputs(&graph, &anatomy);
                match tokens(model, &anatomy, &Reading::default()) {
                    Ok(settled) => report.tokens = Some(settled),
                    Err(error) => report.warnings.push(format!("{error:#}")),
                }
                let compiled = REDUCTIONS.iter().find_map(|r| {
                    let mut options = Options::default();
                    options.method.reduction = *r;
                    options.method = options.method.by_shape();
                    Module::new(graph.clone(), anatomy.clone(), options).ok()
                });
                if let Some(mut module) = compiled {
                    ladder_side_tuning().run(&mut module, None, |_, _| ())?;
                    report.taps = taps(&module);
                    report.parameters = by_group(module.parameters.iter().map(|p| (p.group, p.dims.as_slice())));
                    report.ladder = Some(ladder(&module, &summary, &report.taps)?);
                    report.memory = Some(Memory::predict(&module, &artifacts(&module), sizes));
                }
                report.model = Some(summary);
            }
            Err(refused) => {
                report.refusals = refused.refusals.iter().map(ToString::to_string).collect();
                let hints = refused.likeness.advice().into_iter().chain(query::hint(model.files(), &refused));
                report.hint = Some(hints.collect::<Vec<_>>().join("; ")).filter(|hint| !hint.is_empty());
                report.likeness = Some(refused.likeness);
            }
        }
        Ok(report)
    }

    /// The names of the model's files.
    pub fn names(&self) -> String {
        self.files.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" + ")
    }

    pub fn is_understood(&self) -> bool {
        self.model.is_some()
    }
}

/// The ladder that a compiled module has, before training.
fn ladder(module: &Module, summary: &ModelSummary, taps: &[TapSummary]) -> anyhow::Result<Ladder> {
    let method = &module.options.method;
    let shapes = module.parameters.iter().map(|p| (p.name.clone(), p.dims.clone())).collect();
    let alphas = Alphas::initial(method.alpha, method.temperature);
    Ladder::new(summary, &module.options, &shapes, taps, &alphas)
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

fn tower(t: &TowerSummary) -> String {
    let cross = if t.cross_attention { ", cross-attention" } else { "" };
    let gated = if t.gated { "gated " } else { "" };
    let buckets = t.buckets.map_or_else(String::new, |b| format!(", {b} position buckets"));
    format!(
        "{}: {}, width {}, {} of {}, feed-forward {} {gated}{}{cross}{buckets}, epsilon {:e}",
        t.kind,
        count(t.blocks, "block"),
        t.width,
        count(t.heads, "head"),
        t.head_width,
        t.feed_forward,
        t.activation.name(),
        t.epsilon
    )
}

impl fmt::Display for ModelReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.names())?;
        writeln!(f, "  exported by {}, opset {}, {} nodes", self.exporter, self.opset, self.nodes)?;
        writeln!(f, "  inputs   {}", self.inputs.iter().map(port).collect::<Vec<_>>().join("\n           "))?;
        writeln!(f, "  outputs  {}", self.outputs.iter().map(port).collect::<Vec<_>>().join("\n           "))?;
        for (dtype, w) in &self.weights {
            let tensors = count(w.tensors, "tensor");
            writeln!(f, "  weights  {dtype}: {} in {tensors}, {}", w.elements, Bytes(w.bytes as u64))?;
        }
        let Some(model) = &self.model else {
            if let Some(likeness) = &self.likeness {
                writeln!(f, "\n{}", likeness.verdict())?;
                likeness.seen().iter().try_for_each(|seen| writeln!(f, "  {seen}"))?;
            }
            writeln!(f, "\nnot understood:")?;
            return self.refusals.iter().try_for_each(|r| writeln!(f, "  {r}"));
        };
        writeln!(f, "\n{}", model.family)?;
        for t in &model.towers {
            writeln!(f, "  {}", tower(t))?;
        }
        let tied = if model.tied { "tied to the embedding" } else { "untied" };
        writeln!(f, "  LM head: vocabulary {}, scale {:.6}, {tied}", model.vocabulary, model.head_scale)?;
        if let Some(tokens) = &self.tokens {
            writeln!(f, "  special tokens: {tokens}")?;
        }
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
