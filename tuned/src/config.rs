//! The configuration file: the options, as a user writes them and as a manifest records them.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use lstc_data::Reading;
use lstc_graph::regular;
use lstc_passes::Options;
use lstc_passes::options::{
    BackboneOptions, BackwardOptions, LossOptions, Method, OptimizerOptions, Projections, Sizes,
};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::manifest::SourceFile;
use crate::options::TrainOptions;
use crate::quantised::Quantised;
use crate::run::Started;

/// What `--config` reads. A manifest is a configuration too: its record of what was made is ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The model: its own file first, then its data files.
    pub source: Vec<SourceFile>,
    pub method: Method,
    pub sizes: Sizes,
    pub backbone: BackboneOptions,
    pub loss: LossOptions,
    pub backward: BackwardOptions,
    pub optimizer: OptimizerOptions,
    /// How a rewritten model is trained, unless a command overrides it.
    pub train: TrainOptions,
    /// How data files are read.
    pub data: Reading,
    /// The version of lstc that wrote a manifest.
    lstc: Option<String>,
    /// Where the side network came from, if not from this rewrite.
    pub side: Option<crate::origin::Origin>,
    model: Option<IgnoredAny>,
    inputs: Option<IgnoredAny>,
    reads_padding: Option<IgnoredAny>,
    tokens: Option<IgnoredAny>,
    files: Option<IgnoredAny>,
    tokens_from: Option<IgnoredAny>,
    graphs: Option<IgnoredAny>,
    chosen_blocks: Option<IgnoredAny>,
    folded: Option<IgnoredAny>,
    /// What a manifest's backbone lost by its precision.
    pub quantised: Option<Quantised>,
    parameters: Option<IgnoredAny>,
    taps: Option<IgnoredAny>,
    moments: Option<IgnoredAny>,
    cut: Option<IgnoredAny>,
}

impl Config {
    /// Bytes of the longest configuration or manifest that is read: more than the largest models' take.
    pub const LIMIT: u64 = 64 << 20;

    /// Reads a configuration file.
    ///
    /// # Errors
    /// A file that cannot be read, or the line and column at which it is not a configuration.
    pub fn read(path: &Path) -> anyhow::Result<Config> {
        let context = || format!("`{}` is not a configuration", path.display());
        let config: Config = serde_yaml::from_str(&Config::text(path)?).with_context(context)?;
        match config.recorded() {
            Some(section) if config.lstc.is_none() => Err(anyhow!(
                "`{section}` is what a rewrite records, and not an option; the special tokens are data.pad_token_id, \
                 data.eos_token_id and data.decoder_start_token_id"
            ))
            .with_context(context),
            _ => Ok(config),
        }
    }

    /// A configuration file, as text.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn text(path: &Path) -> anyhow::Result<String> {
        regular::read_text(path, Config::LIMIT).with_context(|| format!("cannot read `{}`", path.display()))
    }

    /// A section that is here and that only a manifest has.
    fn recorded(&self) -> Option<&'static str> {
        let sections = [
            ("model", &self.model),
            ("inputs", &self.inputs),
            ("reads_padding", &self.reads_padding),
            ("tokens", &self.tokens),
            ("files", &self.files),
            ("tokens_from", &self.tokens_from),
            ("graphs", &self.graphs),
            ("chosen_blocks", &self.chosen_blocks),
            ("folded", &self.folded),
            ("parameters", &self.parameters),
            ("taps", &self.taps),
            ("moments", &self.moments),
            ("cut", &self.cut),
        ];
        sections.into_iter().find(|(_, section)| section.is_some()).map(|(name, _)| name)
    }

    /// The version of lstc that wrote this as a manifest.
    pub fn written_by(&self) -> Option<&str> {
        self.lstc.as_deref()
    }

    /// A manifest older than `init_projections` describes a side network that started like the reference's.
    fn method(&self) -> Method {
        let recorded = self.lstc.is_some() && self.method.init_projections.is_none();
        Method {
            init_projections: recorded.then_some(Projections::REFERENCE).or(self.method.init_projections),
            ..self.method.clone()
        }
    }

    pub fn training(&self) -> Started {
        Started { train: self.train.clone(), data: self.data.clone() }
    }

    pub fn options(&self) -> Options {
        Options {
            method: self.method(),
            sizes: self.sizes,
            backbone: self.backbone.clone(),
            loss: self.loss.clone(),
            backward: self.backward,
            optimizer: self.optimizer.clone(),
        }
    }
}

/// The complete configuration with a comment on every key: what `--print-config` prints.
pub fn annotated(options: &Options, training: &Started) -> String {
    let Options { method: m, sizes, backbone, loss: l, backward, optimizer: o } = options;
    let optional = |n: Option<String>| n.unwrap_or_else(|| "null".to_owned());
    let mut text = String::new();
    let mut line = |key: &str, value: String, comment: &str| {
        let _ = writeln!(text, "{:<28} # {comment}", format!("{key}: {value}"));
    };
    line("method", String::new(), "Ladder Side-Tuning");
    line("  reduction", m.reduction.to_string(), "the side network's widths are the backbone's divided by this");
    let blocks: Vec<String> =
        m.blocks.iter().map(|(k, v)| format!("{}: {v:?}", format!("{k:?}").to_lowercase())).collect();
    line(
        "  blocks",
        format!("{{{}}}", blocks.join(", ")),
        "kept blocks by tower, e.g. {encoder: [1, 3]}; others keep all",
    );
    line(
        "  keep_blocks",
        optional(m.keep_blocks.as_ref().map(ToString::to_string)),
        "how many a tower keeps, the most important, e.g. 9 or {encoder: 9}; null keeps those in blocks",
    );
    line(
        "  free_blocks",
        optional(m.free_blocks.as_ref().map(ToString::to_string)),
        "side blocks behind the last rung, without a tap, e.g. 2 or {decoder: 2}; null is none",
    );
    line(
        "  down",
        quoted(&m.down.to_string()),
        "linear | pool | low-rank:K: how blocks' taps are brought to the side network's width",
    );
    line(
        "  gate",
        m.gate.to_string(),
        "learnable | fixed | one | schedule-linear | schedule-hyperbolic | none: how taps are mixed in",
    );
    line("  merge", m.merge.to_string(), "before | after: whether taps are mixed in before or after the side block");
    line("  temperature", number(m.temperature), "T of the gates, sigmoid(alpha / T)");
    line("  alpha", number(m.alpha), "initial alpha of the gates; what a fixed gate keeps");
    line("  merge_last", m.merge_last.to_string(), "mix the backbone's final output in before the LM head");
    line("  bias", m.bias.to_string(), "biases on the down- and up-projections");
    line("  dropout", number(m.dropout), "dropout rate inside the side network, in training only");
    line("  init", m.init.to_string(), "magnitude | magnitude-consistent | random");
    line(
        "  init_projections",
        optional(m.init_projections.map(|p| quoted(&p.to_string()))),
        "aligned | uniform | normal:S, or two, down and up; null is what learns best with init",
    );
    line("  seed", m.seed.to_string(), "for the initial values, dropout, and training unless it has a seed of its own");
    line("sizes", String::new(), "what is fixed in the graphs, whose shape arithmetic is then folded");
    for ((name, size), comment) in sizes.named().into_iter().zip([
        "examples in a batch; null leaves it free",
        "tokens of an input",
        "tokens of a target",
    ]) {
        line(&format!("  {name}"), optional(size.map(|n| n.to_string())), comment);
    }
    line("backbone", String::new(), "what the backbone's products with constant matrices are computed in");
    line("  type", backbone.precision.to_string(), "source | fp32 | fp16 | bf16 | int8 | int4");
    line(
        "  int8_weights",
        optional(backbone.int8_weights.map(|form| form.to_string())),
        "signed | unsigned; null is what this machine computes best",
    );
    line("  quantise_head", backbone.quantise_head.to_string(), "the frozen LM head in 8 bits: less memory, slower");
    line(
        "  max_tap_error",
        optional(backbone.max_tap_error.map(|error| format!("{error:?}"))),
        "use more bits for products if a tap's relative error exceeds this; null is 0.03 for int4, 1 for others",
    );
    let names = |names: &Option<Vec<String>>| {
        optional(names.as_ref().map(|names| serde_json::Value::from(names.clone()).to_string()))
    };
    line(
        "  kept",
        names(&backbone.kept),
        "the products that stay as in the source, by their outputs; null measures which",
    );
    line("  in_8_bits", names(&backbone.in_8_bits), "the products of int4 that are in 8 bits, likewise");
    line("loss", String::new(), "label * cross-entropy + distill * KL from the backbone's own logits");
    line("  label", number(l.label), "weight of the cross-entropy with the labels");
    line("  distill", number(l.distill), "weight of the distillation; 0 leaves it out");
    line("backward", String::new(), "how gradients are computed");
    line(
        "  recompute_attention",
        backward.recompute_attention.to_string(),
        "recompute the side network's attention in the backward pass: less memory, a little slower",
    );
    line("optimizer", String::new(), "AdamW");
    line("  beta1", number(o.beta1), "decay of the first moment");
    line("  beta2", number(o.beta2), "decay of the second moment");
    line("  epsilon", number(o.epsilon), "added to the root of the second moment");
    line("  weight_decay", number(o.weight_decay), "decoupled; on matrices only");
    line("  clip", number(o.clip), "largest global norm of the gradients; 0 turns clipping off");
    let Started { train: t, data: d } = training;
    let path =
        |path: &Option<PathBuf>| path.as_ref().map_or_else(|| "null".to_owned(), |p| quoted(&p.to_string_lossy()));
    line("train", String::new(), "what `lstc train` does unless its flags override it");
    line("  data", path(&t.data), "labelled text to train on");
    line("  eval", path(&t.eval), "labelled text to evaluate on after each epoch");
    line(
        "  eval_fraction",
        optional(t.eval_fraction.map(|x| format!("{x:?}"))),
        "instead of a file: the share of the training data to hold out, e.g. 0.1",
    );
    line(
        "  patience",
        optional(t.patience.map(|n| n.to_string())),
        "stop after so many evaluations without an improvement; null never does",
    );
    line("  from", path(&t.from), "a run, or a side network file, to begin with; null is the rewrite's own");
    line("  tokenizer", path(&t.tokenizer), "tokenizer.json; null takes the one that was beside the model");
    line("  epochs", t.epochs.to_string(), "number of passes over the training data");
    line("  batch_size", t.batch_size.to_string(), "examples in a batch");
    line("  accumulate", t.accumulate.to_string(), "batches whose gradients are combined into one step");
    line("  lr", format!("{:?}", t.lr), "the highest learning rate");
    line("  schedule", word(&t.schedule), "linear | cosine | constant: how it falls after the warm-up");
    line("  warmup_steps", optional(t.warmup_steps.map(|n| n.to_string())), "null is a tenth of all, at most 500");
    line(
        "  seed",
        optional(t.seed.map(|n| n.to_string())),
        "for the order of the examples, and for what is held out; null is the method's seed",
    );
    line("  threads", optional(t.threads.map(|n| n.to_string())), "per operator; null takes one per core");
    line("  device", t.device.to_string(), "cpu | cuda | cuda:1");
    line("  tf32", t.tf32.to_string(), "on CUDA, the backbone's products in TF32: faster, with 10 bits of mantissa");
    line("  map_weights", t.map_weights.to_string(), "read weights from their mapped file: less memory, slower");
    line("  overlap", word(&t.overlap), "auto | on | off: whether the backbone reads the next batch meanwhile");
    line("  tap_dtype", word(&t.tap_dtype), "fp32 | fp16 | int8: how taps are held in memory until the backward pass");
    line("  cuda_graphs", word(&t.cuda_graphs), "auto | on | off: whether steps on CUDA are captured and replayed");
    line("  log_every", t.log_every.to_string(), "on CUDA, steps between reads of the losses");
    line("  save_every", t.save_every.to_string(), "steps between checkpoints");
    line("  out", path(&t.out), "folder of the run; null is `run` in the rewritten directory");
    line("  cache", path(&t.cache), "folder in which taps are kept; null keeps none");
    line(
        "  cache_budget",
        optional(t.cache_budget.map(|s| s.0.to_string())),
        "e.g. 20GB; null is what the disk has free",
    );
    line(
        "  cache_dtype",
        optional(t.cache_dtype.map(|e| word(&e))),
        "fp32 | fp16 | int8; null is the cache's own, else fp32",
    );
    line("data", String::new(), "how data files are read");
    line("  format", optional(d.format.map(|f| word(&f))), "jsonl | csv | tsv; null uses the file's extension");
    line(
        "  quoting",
        optional(d.quoting.map(|q| word(&q))),
        "none | rfc4180: how quotes in tables are read; null is rfc4180 in CSV and none in TSV",
    );
    line("  input_field", quoted(&d.input_field), "the field, or column, of the input; `a,b` is `a: ... b: ...`");
    line(
        "  template",
        optional(d.template.as_deref().map(quoted)),
        "the input as text with fields, e.g. \"mrpc sentence1: {sentence1} sentence2: {sentence2}\"; null uses input_field",
    );
    line("  target_field", quoted(&d.target_field), "the field, or column, of the target");
    line("  prefix", quoted(&d.prefix), "put before every input");
    line("  max_source_length", d.max_source_length.to_string(), "tokens; longer inputs are cut");
    line("  max_target_length", d.max_target_length.to_string(), "tokens; longer targets are cut");
    line("  on_bad_row", word(&d.on_bad_row), "fail | skip");
    let id = |id: Option<i64>| optional(id.map(|id| id.to_string()));
    line("  pad_token_id", id(d.pad_token_id), "the padding token; null is what the files beside the model say");
    line("  eos_token_id", id(d.eos_token_id), "what ends every text; null likewise");
    line("  decoder_start_token_id", id(d.decoder_start_token_id), "what the decoder begins with; null likewise");
    text
}

/// A string that reads back as the same string.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The name of a choice.
fn word(choice: &impl serde::Serialize) -> String {
    serde_json::to_value(choice).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

/// A float that reads back as a float of the same value.
fn number(value: f32) -> String {
    format!("{value:?}")
}

#[cfg(test)]
mod tests {
    use lstc_passes::options::{BlockCounts, TowerName};

    use super::*;

    #[test]
    fn what_is_printed_reads_back() {
        let mut options = Options::default();
        options.method.alpha = 0.05;
        options.method.init_projections = Some("normal:0.01,uniform".parse().expect("projections"));
        options.method.blocks.insert(TowerName::Encoder, vec![1, 2]);
        options.method.keep_blocks = Some(BlockCounts::ByTower([(TowerName::Decoder, 3)].into()));
        options.method.free_blocks = Some(BlockCounts::Each(2));
        options.method.down = "low-rank:4".parse().expect("a down-projection");
        options.method.gate = lstc_passes::options::Gate::ScheduleHyperbolic;
        options.method.merge = lstc_passes::options::Merge::After;
        options.sizes.source_length = Some(128);
        options.backbone.precision = lstc_passes::options::Precision::Int8;
        options.backbone.max_tap_error = Some(0.02);
        options.backbone.quantise_head = true;
        options.backbone.kept = Some(vec!["/wo: \"y\"".to_owned()]);
        options.backbone.in_8_bits = Some(vec!["#".to_owned(), "o".to_owned()]);
        options.backward.recompute_attention = true;
        options.optimizer.epsilon = 1e-8;
        let mut training = Started::default();
        training.train.data = Some("a #: \"b\".jsonl".into());
        training.train.schedule = crate::options::Schedule::Cosine;
        training.train.eval_fraction = Some(0.1);
        (training.train.patience, training.train.seed) = (Some(3), Some(7));
        training.train.from = Some("tuned/run".into());
        training.data.prefix = "gloss: ".to_owned();
        training.data.template = Some("a: {b} {{\"#".to_owned());
        training.data.format = Some(lstc_data::DataFormat::Tsv);
        training.data.decoder_start_token_id = Some(2);
        training.data.quoting = Some(lstc_data::Quoting::None);
        let read: Config = serde_yaml::from_str(&annotated(&options, &training)).expect("it is a configuration");
        assert_eq!((read.options(), read.training()), (options, training));
    }

    #[test]
    fn a_manifest_without_projections_started_as_the_reference() {
        let read = |text: &str| serde_yaml::from_str::<Config>(text).expect("a configuration").options().method;
        assert_eq!(read("lstc: 0.1.0\nmethod: {init: random}\n").projections(), Projections::REFERENCE);
        assert_eq!(read("method: {init: random}\n").init_projections, None);
    }

    #[test]
    fn a_slip_is_named_with_its_line() {
        let error = serde_yaml::from_str::<Config>("method:\n  reductoin: 8\n").expect_err("a mistake").to_string();
        assert!(error.contains("reductoin") && error.contains("line 2"), "{error}");
    }
}
