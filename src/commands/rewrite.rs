//! `lstc rewrite`: the trainable graphs.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, anyhow};
use lstc_graph::{Means, Saved, listing};
use lstc_passes::options::{BackboneOptions, Gate, Init, Int8Weights, KeepBlocks, Precision, Sizes, TowerName};
use lstc_passes::{Module, Options, Timing};
use serde::Serialize;

use super::set;
use crate::report::{self, Exit, Format, Hinted};
use crate::rewrite::config::{Config, annotated};
use crate::rewrite::manifest::{self, ChoiceSummary, FoldedSummary, SourceFile, model_of};
use crate::rewrite::precision::{Candidate, Quantised, Told};
use crate::rewrite::{Backbone, Measuring, Request, SourceModel, Written, compile, rewrite_with, source_file};
use crate::runtime::Device;

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
  lstc rewrite flan-t5-onnx/ -o tuned/       a folder as Hugging Face Optimum writes it
  lstc rewrite encoder_model.onnx decoder_model.onnx -o tuned/
  lstc rewrite t5.onnx -o tuned/ --encoder-blocks 1,3,5 --decoder-blocks 1,3,5
  lstc rewrite t5.onnx -o tuned/ --keep-blocks 9         the nine most important of each tower
  lstc rewrite t5.onnx -o tuned/ --batch 8 --source-length 128 --target-length 8     static shapes
  lstc rewrite t5.onnx -o tuned/ --backbone int8         the backbone in 8 bits, with what that costs
  lstc rewrite t5.onnx -o tuned/ --backbone int8 --max-tap-error 0.05 --sample train.jsonl
  lstc rewrite --print-config > lst.yaml     every option with its default, to edit
  lstc rewrite t5.onnx --config lst.yaml -o tuned/
  lstc rewrite --from tuned/ -o again/                   the same once more
  lstc rewrite --from tuned/ -o again/ -r 4 --seed 1     the same but for what flags say
  lstc rewrite t5.onnx -o small/ -r 16 --share tuned/    another side network on the same weights"
)]
pub struct Rewrite {
    /// The ONNX model: a file, an encoder's and a decoder's file, or a folder that holds them; with --config of a manifest,
    /// the manifest's own where none is given
    model: Vec<PathBuf>,

    /// Rewrite again what this rewritten directory was made of, which must be unchanged; flags go before its options
    #[arg(long, value_name = "DIR", conflicts_with_all = ["model", "config"])]
    from: Option<PathBuf>,

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

    /// How many blocks each tower keeps, the most important by their weights, as in 9 or encoder=9,decoder=6
    #[arg(
        long,
        value_name = "COUNT",
        value_parser = keep_blocks,
        conflicts_with_all = ["encoder_blocks", "decoder_blocks"]
    )]
    keep_blocks: Option<KeepBlocks>,

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

    /// Fix the number of examples that are run at once [default: free]
    #[arg(long, value_name = "EXAMPLES", help_heading = "Static shapes")]
    batch: Option<usize>,

    /// Fix the number of tokens of an input, to which shorter ones are padded [default: free]
    #[arg(long, value_name = "TOKENS", help_heading = "Static shapes")]
    source_length: Option<usize>,

    /// Fix the number of tokens of a target [default: free]
    #[arg(long, value_name = "TOKENS", help_heading = "Static shapes")]
    target_length: Option<usize>,

    /// What the backbone's products with constant matrices are computed in: source, fp32, fp16, bf16, int8, int4, or auto,
    /// the fastest on --device [default: source]
    ///
    /// No gradient enters the backbone, so any of them trains. What it costs is measured on --sample, and told: the relative
    /// error at every tap, the change of the backbone's own logits.
    ///
    /// int8: on a CPU; the fastest there with VNNI, and a quarter of the memory for weights. Activations are quantised as the
    /// graph runs, over the range of a whole batch, so results depend a little on what else is in the batch.
    /// int4: where memory is short: an eighth of it, slower than int8, and several times its error.
    /// fp16, bf16: on CUDA; of T5, fp16 may overflow where bf16 does not. On a CPU both compute in f32.
    /// fp32: where the model was exported in fp16 and the device is a CPU.
    #[arg(long, value_name = "TYPE", help_heading = "Backbone")]
    backbone: Option<Wanted>,

    /// Keep products as they are in the source where the relative error of a tap would exceed this, as in 0.05; which ones
    /// is measured, and recorded [default: keep none]
    #[arg(long, value_name = "ERROR", allow_negative_numbers = true, help_heading = "Backbone")]
    max_tap_error: Option<f64>,

    /// How the integers of int8 are written: signed, or unsigned for x86 without VNNI, where ONNX Runtime's kernels for
    /// signed ones saturate; make it on the kind of machine that trains, or say so [default: by this machine]
    #[arg(long, value_name = "FORM", value_parser = yaml::<Int8Weights>, help_heading = "Backbone")]
    int8_weights: Option<Int8Weights>,

    /// Examples on which the precision's errors are measured, as `lstc train` reads them [default: random tokens]
    #[arg(long, value_name = "FILE", help_heading = "Backbone")]
    sample: Option<PathBuf>,

    /// The frozen LM head in 8 bits, in the product and in its gradient: memory for time. Of a T5-base at batch 8 and 8 target
    /// tokens on a CPU it takes 130 MB less, and these two products take twice as long [default: false]
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        help_heading = "Backbone"
    )]
    quantise_head: Option<bool>,

    /// The device that --backbone auto is to be the fastest on: cpu, cuda or cuda:1
    #[arg(long, value_name = "DEVICE", default_value_t, help_heading = "Backbone")]
    device: Device,

    /// Recompute the side network's attention in the backward pass, instead of keeping its probabilities: what a step keeps
    /// then grows with the texts' length, and not with its square. Goes without dropout [default: false]
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        help_heading = "Memory"
    )]
    recompute_attention: Option<bool>,

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

/// The precision that is asked for; `auto` is the one that is measured to be the fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Known(Precision),
    Auto,
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Wanted, String> {
        if text == "auto" {
            return Ok(Wanted::Auto);
        }
        text.parse().map(Wanted::Known).map_err(|reason| format!("{reason}, auto"))
    }
}

/// A value by its name in the configuration file.
fn yaml<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_yaml::from_str(text).map_err(|e| {
        let reason = e.to_string();
        let start = reason.find("expected").unwrap_or_default();
        reason[start..].lines().next().unwrap_or_default().to_owned()
    })
}

/// `9`, or `encoder=9,decoder=6`.
fn keep_blocks(text: &str) -> Result<KeepBlocks, String> {
    const FORM: &str = "expected a number, as in 9, or one for each tower, as in encoder=9,decoder=6";
    if let Ok(count) = text.parse() {
        return Ok(KeepBlocks::Each(count));
    }
    let mut counts = BTreeMap::new();
    for part in text.split(',') {
        let (tower, count) = part.split_once('=').ok_or(FORM)?;
        let tower = yaml::<TowerName>(tower.trim())?;
        let count = count.trim().parse().map_err(|_| FORM)?;
        if counts.insert(tower, count).is_some() {
            return Err(format!("{tower} is there twice"));
        }
    }
    Ok(KeepBlocks::ByTower(counts))
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
                m.keep_blocks = m.keep_blocks.take().and_then(|keep| keep.without(tower));
            }
        }
        if let Some(keep) = &self.keep_blocks {
            m.blocks.retain(|tower, _| keep.of(*tower).is_none());
            m.keep_blocks = Some(keep.clone());
        }
        set(&mut m.gate, &self.gate);
        set(&mut m.temperature, &self.temperature);
        set(&mut m.alpha, &self.alpha);
        set(&mut m.merge_last, &self.merge_last);
        set(&mut m.bias, &self.bias);
        set(&mut m.dropout, &self.dropout);
        set(&mut m.init, &self.init);
        set(&mut m.seed, &self.seed);
        let sizes = [
            (&mut options.sizes.batch, self.batch),
            (&mut options.sizes.source_length, self.source_length),
            (&mut options.sizes.target_length, self.target_length),
        ];
        sizes.into_iter().for_each(|(size, flag)| *size = flag.or(*size));
        self.apply_precision(&mut options.backbone);
        set(&mut options.backward.recompute_attention, &self.recompute_attention);
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

impl MethodFlags {
    /// Which products are kept was measured for other choices, where a flag makes one.
    fn apply_precision(&self, backbone: &mut BackboneOptions) {
        let before = backbone.clone();
        if let Some(Wanted::Known(precision)) = self.backbone {
            backbone.precision = precision;
        }
        if backbone.precision != before.precision || self.backbone == Some(Wanted::Auto) {
            (backbone.max_tap_error, backbone.int8_weights) = (None, None);
        }
        backbone.quantise_head = self.quantise_head.unwrap_or(backbone.quantise_head);
        backbone.int8_weights = self.int8_weights.or(backbone.int8_weights);
        backbone.max_tap_error = self.max_tap_error.or(backbone.max_tap_error);
        if *backbone != before || self.sample.is_some() {
            backbone.kept = None;
        }
    }

    fn measuring<'r>(&'r self, earlier: &'r Config) -> Measuring<'r> {
        let fastest_on = (self.backbone == Some(Wanted::Auto)).then_some(self.device);
        Measuring { sample: self.sample.as_deref(), earlier: Some(earlier), fastest_on }
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
        let config = self.base()?;
        let mut options = config.options();
        self.method.apply(&mut options);
        if self.print_config {
            report::text(&annotated(&options, &config.training()))?;
            return Ok(Exit::Done);
        }
        let model = match (&self.model[..], &config.source[..]) {
            ([], []) => {
                return Err(Hinted::new(anyhow!("no model is given"), "`lstc rewrite model.onnx -o tuned/`").into());
            }
            ([], recorded) => model_of(recorded)?,
            (given, _) => SourceModel::find(given)?,
        };
        if self.stop_after.is_none() {
            self.place()?;
        }
        if self.model.is_empty() {
            self.check_source(&config.source)?;
        }
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
                let (module, timings) = compile(model, options, Some(stop), show)?;
                if emit.is_none() {
                    report::text(&listing(&module.graph))?;
                }
                timings
            }
            None => {
                let output = self.place()?;
                let request = Request { model, options, training: config.training(), output, force: self.force };
                let measuring = self.method.measuring(&config);
                let written = rewrite_with(request, self.backbone(), measuring, show)?;
                report::data(&Summary::new(output, &written), self.format)?;
                written.warnings.iter().for_each(report::warning);
                self.warn_of_import(&config);
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

impl Rewrite {
    /// The options that flags go before.
    fn base(&self) -> anyhow::Result<Config> {
        match (&self.from, &self.config) {
            (Some(directory), _) => manifest::read(directory),
            (None, Some(file)) => Config::read(file),
            (None, None) => Ok(Config::default()),
        }
    }

    /// Whether the recorded source is what it was: --from depends on it, and for a configuration it is good to know.
    fn check_source(&self, source: &[SourceFile]) -> anyhow::Result<()> {
        for recorded in source {
            let name = recorded.file.display();
            if self.from.is_some() && !recorded.file.exists() {
                let error = anyhow!("the source `{name}` is not there any more");
                let hint = "put it back, or give where it is now: `lstc rewrite MODEL --config DIR/lst.yaml -o AGAIN`";
                return Err(Hinted::new(error, hint).into());
            }
            if source_file(&recorded.file, recorded.part)?.blake3 == recorded.blake3 {
                continue;
            }
            if self.from.is_some() {
                let error = anyhow!("the source `{name}` has changed since it was rewritten");
                let hint =
                    "to rewrite the model that is there now: `lstc rewrite MODEL --config DIR/lst.yaml -o AGAIN`";
                return Err(Hinted::new(error, hint).into());
            }
            report::warning(format!("`{name}` has changed since the configuration was recorded"));
        }
        Ok(())
    }

    /// Where to write. What is rewritten again stays.
    fn place(&self) -> anyhow::Result<&Path> {
        let Some(output) = &self.output else {
            return Err(Hinted::new(anyhow!("no output directory is given"), "add -o DIR, as in -o tuned/").into());
        };
        if let Some(from) = &self.from
            && let (Ok(there), Ok(here)) = (from.canonicalize(), output.canonicalize())
            && there == here
        {
            let error = anyhow!("`{}` is what is rewritten again, and stays", from.display());
            return Err(Hinted::new(error, "write to another directory: -o DIR").into());
        }
        Ok(output)
    }

    /// A rewrite initialises its side network, whatever that of the directory before was.
    fn warn_of_import(&self, config: &Config) {
        if let (Some(from), Some(side)) = (&self.from, &config.side) {
            report::warning(format!(
                "the side network of `{}` was imported, and the new one is not: `lstc import` with --side `{}` does it",
                from.display(),
                side.imported.display()
            ));
        }
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
    chosen_blocks: Vec<ChoiceSummary>,
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
    fn new(output: &Path, written: &Written) -> Summary {
        let manifest = &written.manifest;
        let kept = |kind| manifest.taps.iter().filter(|t| t.tower == kind && t.point.parse::<usize>().is_ok()).count();
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
            chosen_blocks: manifest.chosen_blocks.clone(),
            sizes: manifest.sizes,
            folded: manifest.folded,
            precision: manifest.backbone.clone(),
            quantised: manifest.quantised.clone(),
            head: written.head,
            candidates: written.candidates.clone(),
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
        for choice in &self.chosen_blocks {
            writeln!(f, "  {}", chosen(choice))?;
        }
        for candidate in &self.candidates {
            let Candidate { precision, seconds, reason } = candidate;
            let told = seconds.map_or_else(
                || reason.clone().unwrap_or_default(),
                |seconds| format!("{:.1} ms for the first block", seconds * 1e3),
            );
            writeln!(f, "  measured {precision}: {told}")?;
        }
        if let Some(quantised) = &self.quantised {
            write!(f, "{}", Told { backbone: &self.precision, quantised })?;
        }
        if let Some((before, after)) = self.head {
            let [before, after] = [before, after].map(report::Bytes);
            writeln!(f, "  LM head in 8 bits: its matrix {after}, {before} before")?;
        }
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
