//! lst.yaml: what was rewritten, how, and with what result.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use lstc_base::report::Hinted;
use lstc_data::Reading;
use lstc_graph::{Graph, ValueId, dim_text, regular};
use lstc_models::{Activation, Anatomy, AttentionKind, InputRole, SpecialTokens, TowerKind, model_inputs};
use lstc_passes::optimizer::{FIRST_MOMENT, SECOND_MOMENT, moments};
use lstc_passes::options::{BackboneOptions, BackwardOptions, LossOptions, Method, OptimizerOptions, Sizes};
use lstc_passes::{Artifacts, Choice, Folded, Group, Module, Point};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::intact::WrittenFile;
use crate::made_for::MadeFor;
use crate::options::TrainOptions;
use crate::quantised::Quantised;
use crate::run::{Started, is_run};
use crate::side::Loaded;
use crate::tokens::{Origins, Settled};
use crate::{MANIFEST, held};

/// What a file of the source model holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FilePart {
    /// A graph.
    Model,
    /// Weights of a graph.
    Data,
}

/// A file of the source model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RecordedFile")]
pub struct SourceFile {
    pub file: PathBuf,
    pub part: FilePart,
    pub blake3: String,
    pub bytes: u64,
}

/// A file of the source model as a manifest names it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordedFile {
    file: PathBuf,
    part: Option<FilePart>,
    blake3: Option<String>,
    /// What manifests of other versions hold instead.
    sha256: Option<IgnoredAny>,
    bytes: u64,
}

impl TryFrom<RecordedFile> for SourceFile {
    type Error = String;

    fn try_from(recorded: RecordedFile) -> Result<SourceFile, String> {
        let RecordedFile { file, part, blake3, sha256, bytes } = recorded;
        match (blake3, sha256) {
            (Some(blake3), None) => {
                let part = part.ok_or_else(|| format!("`{}` is recorded without its part", file.display()))?;
                Ok(SourceFile { file, part, blake3, bytes })
            }
            (None, Some(_)) => Err(format!(
                "`{}` is recorded with its SHA-256, not its BLAKE3: rewrite the model again",
                file.display()
            )),
            _ => Err(format!("`{}` is recorded without its BLAKE3", file.display())),
        }
    }
}

/// The manifest of a rewritten model.
#[derive(Debug, Serialize)]
pub struct Manifest {
    /// Version of the compiler.
    pub lstc: &'static str,
    pub source: Vec<SourceFile>,
    pub method: Method,
    pub sizes: Sizes,
    pub backbone: BackboneOptions,
    pub loss: LossOptions,
    pub backward: BackwardOptions,
    pub optimizer: OptimizerOptions,
    /// How `lstc train` trains unless its flags override it.
    pub train: TrainOptions,
    pub data: Reading,
    pub model: ModelSummary,
    /// What the model's inputs are for.
    pub inputs: Vec<InputSummary>,
    /// The attentions over the source that read its padding.
    pub reads_padding: Vec<ReadsPadding>,
    pub tokens: SpecialTokens,
    /// Where these come from.
    pub tokens_from: Origins,
    /// Towers whose kept blocks were chosen by importance.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub chosen_blocks: Vec<ChoiceSummary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folded: Option<FoldedSummary>,
    /// What the backbone lost by its precision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantised: Option<Quantised>,
    /// The graphs and the data files, as they were written; empty until they are.
    pub files: Vec<WrittenFile>,
    pub graphs: Vec<GraphSummary>,
    pub parameters: Vec<ParameterSummary>,
    pub moments: Vec<MomentSummary>,
    pub taps: Vec<TapSummary>,
    /// Every backbone value that the side network and its gradient may read.
    pub cut: Vec<String>,
}

/// The blocks of a tower that were chosen by importance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChoiceSummary {
    pub tower: TowerKind,
    /// How many were asked for, and how many there are.
    pub asked: usize,
    pub of: usize,
    pub kept: Vec<usize>,
    /// The importance of each block; they sum to 1. Empty if all are kept.
    pub importance: Vec<f64>,
}

impl ChoiceSummary {
    fn new(choice: &Choice, anatomy: &Anatomy) -> ChoiceSummary {
        let tower = anatomy.tower(choice.tower);
        ChoiceSummary {
            tower: tower.kind,
            asked: choice.asked,
            of: tower.blocks.len(),
            kept: choice.kept.clone(),
            importance: choice.scores.clone(),
        }
    }
}

/// The effect of fixed sizes on the backbone.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct FoldedSummary {
    /// Nodes of the backbone with sizes symbolic, and fixed.
    pub nodes_before: usize,
    pub nodes_after: usize,
}

impl FoldedSummary {
    fn new(folded: &Folded) -> FoldedSummary {
        FoldedSummary { nodes_before: folded.nodes_before, nodes_after: folded.nodes_after }
    }
}

/// The anatomy in a few lines.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelSummary {
    pub family: String,
    pub exporter: String,
    pub opset: i64,
    pub towers: Vec<TowerSummary>,
    /// Tokens that the LM head scores.
    pub vocabulary: usize,
    /// Tokens that every tower has an embedding of, where these are fewer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedded: Option<usize>,
    pub head_scale: f32,
    pub tied: bool,
}

impl ModelSummary {
    /// The tokens that may be read: ids below this.
    pub fn tokens(&self) -> usize {
        self.embedded.unwrap_or(self.vocabulary)
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TowerSummary {
    pub kind: TowerKind,
    pub blocks: usize,
    pub width: usize,
    pub heads: usize,
    pub head_width: usize,
    pub feed_forward: usize,
    pub activation: Activation,
    pub gated: bool,
    pub epsilon: f32,
    pub buckets: Option<usize>,
    pub cross_attention: bool,
    /// The graph input of token indices.
    pub tokens: String,
}

impl ModelSummary {
    pub fn new(graph: &Graph, anatomy: &Anatomy) -> ModelSummary {
        let towers = anatomy.towers.iter().filter_map(|tower| {
            let block = tower.blocks.first()?;
            let attention = block.attention(AttentionKind::SelfAttention)?;
            let ff = block.feed_forward()?;
            Some(TowerSummary {
                kind: tower.kind,
                blocks: tower.blocks.len(),
                width: tower.width,
                heads: attention.heads,
                head_width: attention.head_width,
                feed_forward: ff.width(),
                activation: ff.activation,
                gated: ff.is_gated(),
                epsilon: tower.final_norm.epsilon,
                buckets: attention.relative().map(|r| r.rows),
                cross_attention: block.attention(AttentionKind::Cross).is_some(),
                tokens: graph.value(tower.tokens).name.clone(),
            })
        });
        let vocabulary = anatomy.head.linear.outputs;
        let embedded = anatomy.towers.iter().map(|tower| tower.table.dims(graph)[0]).min();
        ModelSummary {
            family: anatomy.family.to_owned(),
            exporter: graph.producer.clone(),
            opset: graph.opset(),
            towers: towers.collect(),
            vocabulary,
            embedded: embedded.filter(|embedded| *embedded < vocabulary),
            head_scale: anatomy.head.scale,
            tied: anatomy.head.tied,
        }
    }
}

/// A graph's interface; parameters and moments are not listed again.
#[derive(Clone, Debug, Serialize)]
pub struct GraphSummary {
    pub file: &'static str,
    pub nodes: usize,
    pub inputs: Vec<PortSummary>,
    pub outputs: Vec<PortSummary>,
    /// For each parameter besides: what comes before and after its name.
    pub for_each_parameter: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct PortSummary {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<String>,
}

impl PortSummary {
    pub fn new(graph: &Graph, value: ValueId) -> PortSummary {
        let value = graph.value(value);
        PortSummary {
            name: value.name.clone(),
            dtype: value.dtype.map_or_else(String::new, |d| d.to_string()),
            shape: value.shape().unwrap_or_default().iter().map(dim_text).collect(),
        }
    }
}

impl GraphSummary {
    fn new(file: &'static str, graph: &Graph, module: &Module) -> GraphSummary {
        let example = &module.parameters[0].name;
        let about = |v: &&ValueId| {
            let name = &graph.value(**v).name;
            let is_moment = [FIRST_MOMENT, SECOND_MOMENT].iter().any(|prefix| name.starts_with(prefix));
            is_moment || module.parameters.iter().any(|p| name.contains(p.name.as_str()))
        };
        let ports = |values: &[ValueId]| {
            values.iter().filter(|v| !about(v)).map(|v| PortSummary::new(graph, *v)).collect::<Vec<_>>()
        };
        let patterns = graph
            .inputs
            .iter()
            .chain(&graph.outputs)
            .map(|v| graph.value(*v).name.as_str())
            .filter(|name| name.contains(example.as_str()))
            .map(|name| name.replace(example.as_str(), "<name>"));
        GraphSummary {
            file,
            nodes: graph.node_ids().count(),
            inputs: ports(&graph.inputs),
            outputs: ports(&graph.outputs),
            for_each_parameter: patterns.collect(),
        }
    }
}

/// An input of the model, and its part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputSummary {
    pub name: String,
    pub tower: TowerKind,
    pub role: InputRole,
}

/// Attentions of a tower that nothing hides padding from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadsPadding {
    pub tower: TowerKind,
    pub attention: AttentionKind,
    pub blocks: Vec<usize>,
}

impl From<(TowerKind, AttentionKind, Vec<usize>)> for ReadsPadding {
    fn from((tower, attention, blocks): (TowerKind, AttentionKind, Vec<usize>)) -> ReadsPadding {
        ReadsPadding { tower, attention, blocks }
    }
}

impl fmt::Display for ReadsPadding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let attention = match self.attention {
            AttentionKind::SelfAttention => "self-attention",
            AttentionKind::Cross => "cross-attention",
        };
        write!(f, "the {}'s {attention}", self.tower)
    }
}

fn inputs(module: &Module) -> Vec<InputSummary> {
    let (graph, anatomy) = (&module.graph, &module.anatomy);
    let summary = |input: lstc_models::ModelInput| InputSummary {
        name: graph.value(input.value).name.clone(),
        tower: anatomy.towers[input.tower].kind,
        role: input.role,
    };
    model_inputs(graph, anatomy).into_iter().map(summary).collect()
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ParameterSummary {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: String,
    pub group: Group,
}

/// A tensor of each of AdamW's moments, `adam.m/<name>` and `adam.v/<name>`, f32: those of some parameters, one below the other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MomentSummary {
    pub name: String,
    pub shape: Vec<usize>,
    pub parameters: Vec<String>,
}

impl MomentSummary {
    /// The names of the tensors.
    pub fn tensors(&self) -> [String; 2] {
        [FIRST_MOMENT, SECOND_MOMENT].map(|prefix| format!("{prefix}{}", self.name))
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TapSummary {
    pub tower: TowerKind,
    pub point: Point,
    /// The backbone's value.
    pub value: String,
}

impl fmt::Display for TapSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.point {
            Point::Block(block) => write!(f, "what block {block} of the {} makes", self.tower),
            Point::Embedding => write!(f, "the {}'s embedding", self.tower),
            Point::Output => write!(f, "the {}'s output", self.tower),
            Point::Logits => write!(f, "the backbone's logits"),
        }
    }
}

impl Manifest {
    pub fn new(
        module: &Module,
        artifacts: &Artifacts,
        source: Vec<SourceFile>,
        tokens: Settled,
        training: Started,
        quantised: Option<Quantised>,
    ) -> Manifest {
        let options = module.options.clone();
        let mut cut: Vec<String> = module.cut.iter().map(|v| module.graph.value(*v).name.clone()).collect();
        cut.sort_unstable();
        Manifest {
            cut,
            lstc: env!("CARGO_PKG_VERSION"),
            source,
            method: Method { init_projections: Some(options.method.projections()), ..options.method },
            sizes: options.sizes,
            backbone: options.backbone,
            loss: options.loss,
            backward: options.backward,
            optimizer: options.optimizer,
            train: training.train,
            data: training.data,
            model: ModelSummary::new(&module.graph, &module.anatomy),
            inputs: inputs(module),
            reads_padding: module.anatomy.reads_padding().into_iter().map(ReadsPadding::from).collect(),
            tokens: tokens.ids,
            tokens_from: tokens.from,
            chosen_blocks: module.plan.choices.iter().map(|c| ChoiceSummary::new(c, &module.anatomy)).collect(),
            folded: module.folded.as_ref().map(FoldedSummary::new),
            quantised,
            files: Vec::new(),
            graphs: artifacts.files().into_iter().map(|(file, g)| GraphSummary::new(file, g, module)).collect(),
            parameters: module
                .parameters
                .iter()
                .map(|p| ParameterSummary {
                    name: p.name.clone(),
                    shape: p.dims.clone(),
                    dtype: "f32".to_owned(),
                    group: p.group,
                })
                .collect(),
            moments: moments(&module.parameters)
                .into_iter()
                .map(|group| MomentSummary {
                    parameters: group.members.iter().map(|place| module.parameters[*place].name.clone()).collect(),
                    name: group.name,
                    shape: group.dims,
                })
                .collect(),
            taps: taps(module),
        }
    }

    pub fn to_yaml(&self) -> anyhow::Result<String> {
        Ok(serde_yaml::to_string(self)?)
    }
}

/// The taps, in the order of the rungs.
pub fn taps(module: &Module) -> Vec<TapSummary> {
    module
        .taps
        .iter()
        .map(|t| TapSummary {
            tower: module.anatomy.tower(t.tower).kind,
            point: t.point,
            value: module.graph.value(t.value).name.clone(),
        })
        .collect()
}

/// True for a path that holds a rewritten model.
pub fn is_rewritten(path: &Path) -> bool {
    path.join(MANIFEST).is_file()
}

/// What a manifest records of the rewrite, as far as commands read it back.
#[derive(Debug, Deserialize)]
pub struct Record {
    pub source: Vec<SourceFile>,
    /// None if an earlier version wrote them.
    #[serde(default)]
    pub files: Vec<WrittenFile>,
    pub model: ModelSummary,
    pub inputs: Vec<InputSummary>,
    /// `None` in a manifest of an earlier version.
    pub reads_padding: Option<Vec<ReadsPadding>>,
    pub tokens: SpecialTokens,
    pub tokens_from: Option<Origins>,
    pub parameters: Vec<ParameterSummary>,
    pub moments: Vec<MomentSummary>,
    pub taps: Vec<TapSummary>,
    pub cut: Vec<String>,
    pub quantised: Option<Quantised>,
    /// The blocks that were chosen by importance.
    #[serde(default)]
    pub chosen_blocks: Vec<ChoiceSummary>,
    /// The method's options that concern a run.
    pub method: Method,
}

impl Record {
    /// What a side network of this rewrite is made for.
    pub fn made_for(&self) -> MadeFor {
        MadeFor::new(&self.source, &self.method, &self.taps)
    }

    /// What to say about a side network that was read for this rewrite.
    ///
    /// # Errors
    /// Metadata that are damaged.
    pub fn notes(&self, path: &Path, loaded: &Loaded) -> anyhow::Result<Vec<String>> {
        let difference = self.made_for().difference(path, &loaded.metadata)?;
        Ok(loaded.seal.note(path).into_iter().chain(difference).collect())
    }

    /// Whether the side network learns from the backbone's own logits too.
    pub fn distills(&self) -> bool {
        self.taps.iter().any(|tap| tap.point == Point::Logits)
    }

    /// Names and shapes of the parameters.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.parameters.iter().map(|p| (p.name.as_str(), p.shape.as_slice()))
    }
}

/// What the manifest of a rewritten directory records.
///
/// # Errors
/// A directory without a readable manifest, or whose graphs were made with something else.
pub fn record(directory: &Path) -> anyhow::Result<Record> {
    let text = text(directory)?;
    let record = parse(directory, &text)?;
    held::check(directory, &text)?;
    Ok(record)
}

/// As [`record`], whatever the graphs say: for callers that report everything that is wrong with a directory.
///
/// # Errors
/// A directory without a readable manifest.
pub fn unchecked_record(directory: &Path) -> anyhow::Result<Record> {
    parse(directory, &text(directory)?)
}

/// How the manifest of a directory differs from its graphs, in words.
///
/// # Errors
/// A directory without a readable manifest, or with a graph that cannot be read.
pub fn differences(directory: &Path) -> anyhow::Result<Vec<String>> {
    held::differences(directory, &text(directory)?)
}

fn parse(directory: &Path, text: &str) -> anyhow::Result<Record> {
    serde_yaml::from_str(text).with_context(|| format!("`{}` is not a rewritten model", directory.display()))
}

/// The manifest of a rewritten directory, as text.
///
/// # Errors
/// A directory without one that can be read.
pub fn text(directory: &Path) -> anyhow::Result<String> {
    let context = || format!("`{}` is not a rewritten model", directory.display());
    match regular::read_text(&directory.join(MANIFEST), Config::LIMIT) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let error = anyhow!("it does not hold {MANIFEST}").context(context());
            let hint = match directory.parent().filter(|above| is_run(directory) && above.join(MANIFEST).is_file()) {
                Some(above) => format!("it is a run of `{}`: pass that, and the run with --side", above.display()),
                None => "`lstc rewrite model.onnx -o tuned/` makes one".to_owned(),
            };
            Err(Hinted::new(error, hint).into())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            let error = anyhow!("it is a file").context(context());
            Err(Hinted::new(error, "pass the directory that `lstc rewrite` wrote").into())
        }
        read => read.with_context(context),
    }
}

/// Whether a configuration fits a directory: what only a rewrite can change is as it was.
///
/// # Errors
/// Every option that differs; a directory or a file that cannot be read.
pub fn check_options(directory: &Path, file: &Path) -> anyhow::Result<()> {
    held::check_options(directory, file)
}

/// The configuration that a rewritten directory was made with, and its source.
///
/// # Errors
/// A directory without a readable manifest.
pub fn read(directory: &Path) -> anyhow::Result<Config> {
    Config::read(&directory.join(MANIFEST))
        .with_context(|| format!("`{}` is not a rewritten model", directory.display()))
}
