//! `lstc rewrite`: the trainable graphs.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use lstc_graph::{Means, Saved, listing};
use lstc_passes::options::{Gate, Init, TowerName};
use lstc_passes::{Module, Options, Timing};
use serde::Serialize;

use super::set;
use crate::report::{self, Exit, Format, Hinted};
use crate::rewrite::config::{Config, annotated};
use crate::rewrite::{Backbone, Request, Written, compile, rewrite_with};

/// Compile a model into trainable graphs
#[derive(Debug, clap::Args)]
#[command(
    long_about = "\
Compiles a T5 that was exported to ONNX into the graphs that train a ladder side network beside it. The model itself \
is read, never changed; its data files are hard-linked where they can be, and weights are copied once where not.

What is written to the output directory:
  train.onnx        one optimizer step: forward, backward, clipping, AdamW
  grad.onnx         loss and gradients
  apply.onnx        AdamW from given gradients
  eval.onnx         loss and logits
  infer.onnx        logits
  backbone.data     the frozen weights
  side.safetensors  the trainable parameters, as initialised
  lst.yaml          the manifest: what was made of what, and how",
    after_long_help = "\
Examples:
  lstc rewrite t5.onnx -o tuned/
  lstc rewrite t5.onnx -o tuned/ --encoder-blocks 1,3,5 --decoder-blocks 1,3,5
  lstc rewrite --print-config > lst.yaml     every option with its default, to edit
  lstc rewrite t5.onnx --config lst.yaml -o tuned/
  lstc rewrite t5.onnx -o small/ -r 16 --share tuned/    another side network on the same weights
  lstc rewrite --config tuned/lst.yaml -o again/     the same once more, from a manifest"
)]
pub struct Rewrite {
    /// The ONNX model; with --config of a manifest, the manifest's own where none is given
    model: Option<PathBuf>,

    /// Directory to write
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,

    /// Options from a YAML file, or from the lst.yaml of an earlier rewrite; flags go before it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Print the complete configuration with a comment on every key, and stop
    #[arg(long)]
    print_config: bool,

    /// Replace an earlier rewrite in the output's place, and all that lies in its directory
    #[arg(long)]
    force: bool,

    /// Copy the frozen weights, also where the model's own data files could be linked; Python's onnx package reads no hard
    /// links
    #[arg(long, conflicts_with = "share")]
    copy: bool,

    /// Link weights that would be copied to those of an earlier rewrite of the same model
    #[arg(long, value_name = "DIR")]
    share: Option<PathBuf>,

    /// Print how long each pass took
    #[arg(long, help_heading = "Looking into the compiler")]
    timings: bool,

    /// Stop after a pass, and write no model; a wrong name lists the passes
    #[arg(
        long,
        value_name = "PASS",
        help_heading = "Looking into the compiler",
        value_parser = pass_name,
        conflicts_with = "output"
    )]
    stop_after: Option<String>,

    /// Write a listing of the graph after each pass to a directory
    #[arg(long, value_name = "DIR", help_heading = "Looking into the compiler")]
    emit: Option<PathBuf>,

    /// Form of the report on stdout
    #[arg(long, value_enum, default_value_t, help_heading = "Options")]
    format: Format,

    #[command(flatten)]
    method: MethodFlags,
}

/// The options as flags. One that is not given leaves the configuration's value.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Method")]
struct MethodFlags {
    /// Reduction factor: the side network's widths are the backbone's divided by it [default: 8]
    #[arg(short, long, value_name = "R")]
    reduction: Option<usize>,

    /// Blocks of the encoder to keep, from 0, as in 1,2,3 [default: all]
    #[arg(long, value_name = "BLOCKS", value_delimiter = ',')]
    encoder_blocks: Option<Vec<usize>>,

    /// Blocks of the decoder to keep [default: all]
    #[arg(long, value_name = "BLOCKS", value_delimiter = ',')]
    decoder_blocks: Option<Vec<usize>>,

    /// How taps are mixed in: learnable, fixed or none [default: learnable]
    #[arg(long, value_parser = yaml::<Gate>)]
    gate: Option<Gate>,

    /// Temperature of the gates [default: 0.1]
    #[arg(long, allow_negative_numbers = true, value_name = "T")]
    temperature: Option<f32>,

    /// Initial alpha of the gates [default: 0]
    #[arg(long, allow_negative_numbers = true)]
    alpha: Option<f32>,

    /// Mix the backbone's final output in before the LM head [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    merge_last: Option<bool>,

    /// Biases on the down- and up-projections [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    bias: Option<bool>,

    /// Dropout rate inside the side network, in training only [default: 0]
    #[arg(long, allow_negative_numbers = true, value_name = "RATE")]
    dropout: Option<f32>,

    /// Initial weights: magnitude, magnitude-consistent or random [default: magnitude]
    #[arg(long, value_parser = yaml::<Init>)]
    init: Option<Init>,

    /// Seed of the initial values and of dropout [default: 0]
    #[arg(long)]
    seed: Option<u64>,

    /// Weight of the cross-entropy with the labels [default: 1]
    #[arg(long, allow_negative_numbers = true, value_name = "WEIGHT", help_heading = "Loss and optimizer")]
    label: Option<f32>,

    /// Weight of the distillation from the backbone's own logits [default: 0]
    #[arg(long, allow_negative_numbers = true, value_name = "WEIGHT", help_heading = "Loss and optimizer")]
    distill: Option<f32>,

    /// Decay of AdamW's first moment [default: 0.9]
    #[arg(long, allow_negative_numbers = true, help_heading = "Loss and optimizer")]
    beta1: Option<f32>,

    /// Decay of AdamW's second moment [default: 0.999]
    #[arg(long, allow_negative_numbers = true, help_heading = "Loss and optimizer")]
    beta2: Option<f32>,

    /// Added to the root of AdamW's second moment [default: 1e-8]
    #[arg(long, allow_negative_numbers = true, help_heading = "Loss and optimizer")]
    epsilon: Option<f32>,

    /// Decoupled weight decay, on matrices only [default: 0]
    #[arg(long, allow_negative_numbers = true, value_name = "RATE", help_heading = "Loss and optimizer")]
    weight_decay: Option<f32>,

    /// Largest global norm of the gradients; 0 does not clip [default: 1]
    #[arg(long, allow_negative_numbers = true, value_name = "NORM", help_heading = "Loss and optimizer")]
    clip: Option<f32>,
}

/// A value by its name in the configuration file.
fn yaml<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_yaml::from_str(text).map_err(|e| {
        let reason = e.to_string();
        let start = reason.find("expected").unwrap_or_default();
        reason[start..].lines().next().unwrap_or_default().to_owned()
    })
}

fn pass_name(text: &str) -> Result<String, String> {
    let names = lstc_passes::ladder_side_tuning().names();
    if names.contains(&text) { Ok(text.to_owned()) } else { Err(format!("the passes are {}", names.join(", "))) }
}

impl MethodFlags {
    fn apply(&self, options: &mut Options) {
        let m = &mut options.method;
        set(&mut m.reduction, &self.reduction);
        for (tower, blocks) in [(TowerName::Encoder, &self.encoder_blocks), (TowerName::Decoder, &self.decoder_blocks)]
        {
            if let Some(blocks) = blocks {
                m.blocks.insert(tower, blocks.clone());
            }
        }
        set(&mut m.gate, &self.gate);
        set(&mut m.temperature, &self.temperature);
        set(&mut m.alpha, &self.alpha);
        set(&mut m.merge_last, &self.merge_last);
        set(&mut m.bias, &self.bias);
        set(&mut m.dropout, &self.dropout);
        set(&mut m.init, &self.init);
        set(&mut m.seed, &self.seed);
        let (l, o) = (&mut options.loss, &mut options.optimizer);
        set(&mut l.label, &self.label);
        set(&mut l.distill, &self.distill);
        set(&mut o.beta1, &self.beta1);
        set(&mut o.beta2, &self.beta2);
        set(&mut o.epsilon, &self.epsilon);
        set(&mut o.weight_decay, &self.weight_decay);
        set(&mut o.clip, &self.clip);
    }
}

impl Rewrite {
    fn backbone(&self) -> Backbone<'_> {
        match &self.share {
            Some(directory) => Backbone::Shared(directory),
            None if self.copy => Backbone::Copied,
            None => Backbone::Linked,
        }
    }

    pub fn run(self) -> anyhow::Result<Exit> {
        let config = self.config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
        let mut options = config.options();
        self.method.apply(&mut options);
        if self.print_config {
            report::text(&annotated(&options, &config.training()))?;
            return Ok(Exit::Done);
        }
        let model = self
            .model
            .clone()
            .or_else(|| config.source.first().map(|s| s.file.clone()))
            .ok_or_else(|| Hinted::new(anyhow!("no model is given"), "`lstc rewrite model.onnx -o tuned/`"))?;
        let emit = self.emit.as_deref().map(Emit::new).transpose()?;
        let mut failed = None;
        let show = |pass: &'static str, module: &Module| {
            if let Some(emit) = &emit
                && let Err(error) = emit.pass(pass, module)
            {
                failed.get_or_insert(error);
            }
        };
        let timings = match &self.stop_after {
            Some(stop) => {
                let (module, timings) = compile(&model, options, Some(stop), show)?;
                if emit.is_none() {
                    report::text(&listing(&module.graph))?;
                }
                timings
            }
            None => {
                let output = self.output.clone().ok_or_else(|| {
                    Hinted::new(anyhow!("no output directory is given"), "add -o DIR, as in -o tuned/")
                })?;
                let request =
                    Request { model: &model, options, training: config.training(), output: &output, force: self.force };
                let written = rewrite_with(request, self.backbone(), show)?;
                report::data(&Summary::new(&output, &written), self.format)?;
                written.warnings.iter().for_each(report::warning);
                let recorded = config.source.iter().filter(|_| self.model.is_none());
                for changed in recorded.filter(|recorded| !written.manifest.source.contains(recorded)) {
                    let name = changed.file.display();
                    report::warning(format!("`{name}` has changed since the configuration was recorded"));
                }
                written.timings
            }
        };
        if let Some(error) = failed {
            return Err(error);
        }
        if self.timings {
            report::note(timing_table(&timings));
        }
        Ok(Exit::Done)
    }
}

/// Writes a listing after each pass.
struct Emit<'d> {
    folder: &'d Path,
}

impl<'d> Emit<'d> {
    fn new(folder: &'d Path) -> anyhow::Result<Emit<'d>> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
        Ok(Emit { folder })
    }

    fn pass(&self, pass: &str, module: &Module) -> anyhow::Result<()> {
        let place = lstc_passes::ladder_side_tuning().names().iter().position(|n| *n == pass).unwrap_or_default();
        let path = self.folder.join(format!("{}-{pass}.txt", place + 1));
        fs::write(&path, listing(&module.graph)).with_context(|| format!("cannot write `{}`", path.display()))
    }
}

fn timing_table(timings: &[Timing]) -> comfy_table::Table {
    let ms = |d: Duration| format!("{:.1} ms", d.as_secs_f64() * 1e3);
    report::table(
        ["pass", "run", "check", "nodes after"],
        timings.iter().map(|t| [t.pass.to_owned(), ms(t.run), ms(t.check), t.nodes.to_string()]),
    )
}

/// What was written, for the report.
#[derive(Serialize)]
struct Summary {
    output: PathBuf,
    family: String,
    blocks: Vec<String>,
    trainable: usize,
    frozen: usize,
    /// The files of the frozen weights.
    backbone: Vec<DataSummary>,
    nodes: Vec<(&'static str, usize)>,
}

impl Summary {
    fn new(output: &Path, written: &Written) -> Summary {
        let manifest = &written.manifest;
        let kept = |kind| manifest.taps.iter().filter(|t| t.tower == kind && t.point != "embedding").count();
        Summary {
            output: output.to_owned(),
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
        }
    }
}

/// A file of frozen weights, and how it came to be.
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
        writeln!(f, "  trainable {} parameters, {share:.3} % of the backbone's {}", self.trainable, self.frozen)?;
        self.backbone.iter().try_for_each(|file| writeln!(f, "  backbone weights {file}"))?;
        let nodes: Vec<String> = self.nodes.iter().map(|(file, nodes)| format!("{file} {nodes}")).collect();
        writeln!(f, "  nodes {}", nodes.join(", "))
    }
}
