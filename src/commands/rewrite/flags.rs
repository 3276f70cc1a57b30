//! The flags of `lstc rewrite` that set its options.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use lstc_data::Reading;
use lstc_passes::Options;
use lstc_passes::options::{
    BackboneOptions, BlockCounts, Down, Gate, Init, Int8Weights, Merge, Precision, Projections, Sizes, TowerName,
};
use lstc_passes::single;
use lstc_runtime::Device;
use lstc_tuned::config::Config;

use crate::commands::arguments::at_least;
use crate::commands::set;
use crate::rewrite::{Choice, Measuring};

/// The options as flags. A flag that is not given leaves the configuration's value.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Method")]
pub struct MethodFlags {
    /// Reduction factor: the side network's widths are the backbone's divided by it [default: 8]
    #[arg(short, long, value_name = "R", value_parser = at_least::<usize>(1))]
    reduction: Option<usize>,

    /// Blocks of the encoder to keep, from 0, as in 1,2,3 [default: all]
    #[arg(long, value_name = "BLOCKS", value_delimiter = ',', value_parser = at_least::<usize>(0))]
    encoder_blocks: Option<Vec<usize>>,

    /// Blocks of the decoder to keep [default: all]
    #[arg(long, value_name = "BLOCKS", value_delimiter = ',', value_parser = at_least::<usize>(0))]
    decoder_blocks: Option<Vec<usize>>,

    /// How many blocks each tower keeps, the most important by their weights, as in 9 or encoder=9,decoder=6
    #[arg(
        long,
        value_name = "COUNT",
        value_parser = block_counts::<1>,
        conflicts_with_all = ["encoder_blocks", "decoder_blocks"]
    )]
    keep_blocks: Option<BlockCounts>,

    /// Side blocks behind the last rung, without a tap: N, or by tower, as in encoder=1,decoder=2 [default: 0]
    ///
    /// They make the side network deeper, and take no tap. They start as the backbone's next blocks would, or as its last one.
    #[arg(long, value_name = "N", value_parser = block_counts::<0>)]
    free_blocks: Option<BlockCounts>,

    /// How the taps of blocks are brought to the side network's width: linear, pool or low-rank:K [default: linear]
    ///
    /// pool takes means of neighbouring features, without parameters. low-rank:K multiplies with two matrices of rank K. The tap
    /// of the embedding always goes through a matrix.
    #[arg(long, value_name = "HOW")]
    down: Option<Down>,

    /// How taps are mixed in: learnable, fixed, one, schedule-linear, schedule-hyperbolic or none [default: learnable]
    ///
    /// The share of the side state is sigmoid(alpha / temperature), with alpha learnable or fixed; or one: the blocks' taps are not
    /// read; or what a schedule says: from 0.1 in the first epoch to 0.9 in the last, or 1 / (1 + epoch) within these bounds. none
    /// adds the two.
    #[arg(long, value_parser = yaml::<Gate>)]
    gate: Option<Gate>,

    /// Whether a tap is mixed in before or after the side block [default: before]
    #[arg(long, value_parser = yaml::<Merge>)]
    merge: Option<Merge>,

    /// Temperature of the gates [default: 0.1]
    #[arg(long, value_name = "T", value_parser = single::parse)]
    temperature: Option<f32>,

    /// Initial alpha of the gates [default: 0]
    #[arg(long, value_parser = single::parse)]
    alpha: Option<f32>,

    /// Mix the backbone's final output in before the LM head [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    merge_last: Option<bool>,

    /// Biases on the down- and up-projections [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    bias: Option<bool>,

    /// Dropout rate inside the side network, in training only [default: 0]
    #[arg(long, value_name = "RATE", value_parser = single::parse)]
    dropout: Option<f32>,

    /// Initial weights: magnitude, magnitude-consistent or random [default: magnitude]
    #[arg(long, value_parser = yaml::<Init>)]
    init: Option<Init>,

    /// How the down- and up-projections start: aligned, uniform, normal:S, or one for each, as in normal:0.01,uniform
    /// [default: aligned with magnitude-consistent, uniform with the others]
    ///
    /// aligned: a down-projection selects the features of the residual stream that the blocks were cut for, and the
    /// up-projection puts them back. uniform: U(-1/sqrt(n), 1/sqrt(n)) of n inputs. normal:0.01 is how the reference
    /// implementation starts; a short run may end before it learns.
    #[arg(long, value_name = "START")]
    init_projections: Option<Projections>,

    /// Seed of the initial values and of dropout, and the default of `lstc train --seed` [default: 0]
    #[arg(long, value_parser = at_least::<u64>(0))]
    seed: Option<u64>,

    #[command(flatten)]
    shapes: ShapeFlags,

    #[command(flatten)]
    backbone: BackboneFlags,

    #[command(flatten)]
    memory: MemoryFlags,

    #[command(flatten)]
    step: StepFlags,

    #[command(flatten)]
    tokens: TokenFlags,
}

/// Special tokens, if the files beside the model do not name them, or name others.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Special tokens")]
struct TokenFlags {
    /// The padding token [default: what the files beside the model say]
    #[arg(long, value_name = "ID")]
    pad_token_id: Option<u32>,

    /// The token that ends every text [default: what the files beside the model say]
    #[arg(long, value_name = "ID")]
    eos_token_id: Option<u32>,

    /// The token that the decoder begins with [default: what the files beside the model say]
    #[arg(long, value_name = "ID")]
    decoder_start_token_id: Option<u32>,
}

/// Sizes that are fixed.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Static shapes")]
struct ShapeFlags {
    /// Fix the number of examples in a batch [default: free]
    #[arg(long, value_name = "EXAMPLES", value_parser = at_least::<usize>(1))]
    batch: Option<usize>,

    /// Fix the number of tokens of an input; shorter inputs are padded [default: free]
    #[arg(long, value_name = "TOKENS", value_parser = at_least::<usize>(1))]
    source_length: Option<usize>,

    /// Fix the number of tokens of a target [default: free]
    #[arg(long, value_name = "TOKENS", value_parser = at_least::<usize>(1))]
    target_length: Option<usize>,
}

/// What the backbone is computed in.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Backbone")]
struct BackboneFlags {
    /// What the backbone's products with constant matrices are computed in: source, fp32, fp16, bf16, int8, int4, or auto,
    /// the fastest on --device [default: source; with --device cuda, bf16 for an fp32 model on Ampere or later]
    ///
    /// No gradient enters the backbone, so any of them trains. What it costs is measured on --sample, and reported: the
    /// relative error at every tap, and the change of the backbone's own logits.
    ///
    /// int8: on a CPU; the fastest there with VNNI, and a quarter of the memory for weights. Activations are quantised as the
    /// graph runs, over the range of a whole batch, so results depend slightly on what else is in the batch.
    /// int4: for when memory is short: an eighth of it, or a quarter for products that need 8 bits, and slower than int8.
    /// fp16, bf16: on CUDA; in T5, fp16 may overflow where bf16 does not. On a CPU both compute in f32.
    /// fp32: for a model that was exported in fp16, on a CPU.
    #[arg(long, value_name = "TYPE")]
    backbone: Option<Wanted>,

    /// Use more bits for products if the relative error of a tap would exceed this, as in 0.05; which products is measured
    /// and recorded [default: 0.03 for int4, 1 for others]
    ///
    /// More bits are 8 in an int4 backbone, and the source's own type in others and wherever 8 are not enough. 1 or more sets
    /// no limit: no products are chosen.
    #[arg(long, value_name = "ERROR")]
    max_tap_error: Option<f64>,

    /// How the integers of int8 are written: signed, or unsigned for x86 without VNNI, where ONNX Runtime's kernels for
    /// signed ones saturate; rewrite on the kind of machine that trains, or set this [default: by this machine]
    #[arg(long, value_name = "FORM", value_parser = yaml::<Int8Weights>)]
    int8_weights: Option<Int8Weights>,

    /// Examples on which the precision's errors are measured, as `lstc train` reads them [default: random tokens]
    #[arg(long, value_name = "FILE")]
    sample: Option<PathBuf>,

    /// Keep the frozen LM head in 8 bits, in the product and in its gradient, which trades time for memory: for a T5-base at
    /// batch 8 and 8 target tokens on a CPU, 130 MB less, and twice as long for these two products [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    quantise_head: Option<bool>,

    /// The device to train on: cpu, cuda or cuda:1. Only --backbone auto needs it on this machine
    #[arg(long, value_name = "DEVICE", default_value_t)]
    device: Device,
}

/// What a step keeps.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Memory")]
struct MemoryFlags {
    /// Recompute the side network's attention in the backward pass instead of keeping its probabilities: what a step keeps
    /// then grows with the length of the texts, not with its square. Not with dropout [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    recompute_attention: Option<bool>,
}

/// What is minimised, and how.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Loss and optimizer")]
struct StepFlags {
    /// Weight of the cross-entropy with the labels [default: 1]
    #[arg(long, value_name = "WEIGHT", value_parser = single::parse)]
    label: Option<f32>,

    /// Weight of the distillation from the backbone's own logits [default: 0]
    #[arg(long, value_name = "WEIGHT", value_parser = single::parse)]
    distill: Option<f32>,

    /// Decay of AdamW's first moment [default: 0.9]
    #[arg(long, value_parser = single::parse)]
    beta1: Option<f32>,

    /// Decay of AdamW's second moment [default: 0.999]
    #[arg(long, value_parser = single::parse)]
    beta2: Option<f32>,

    /// Added to the root of AdamW's second moment [default: 1e-8]
    #[arg(long, value_parser = single::parse)]
    epsilon: Option<f32>,

    /// Decoupled weight decay, on matrices only [default: 0]
    #[arg(long, value_name = "RATE", value_parser = single::parse)]
    weight_decay: Option<f32>,

    /// Largest global norm of the gradients; 0 turns clipping off [default: 1]
    #[arg(long, value_name = "NORM", value_parser = single::parse)]
    clip: Option<f32>,
}

/// The precision that is asked for; `auto` is the one measured to be the fastest.
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
fn block_counts<const LEAST: u32>(text: &str) -> Result<BlockCounts, String> {
    const FORM: &str = "expected a number, as in 9, or one for each tower, as in encoder=9,decoder=6";
    if text.parse::<i128>().is_ok() {
        return at_least(LEAST)(text).map(BlockCounts::Each);
    }
    let mut counts = BTreeMap::new();
    for part in text.split(',') {
        let (tower, count) = part.split_once('=').ok_or(FORM)?;
        let tower = yaml::<TowerName>(tower.trim())?;
        let count = at_least(LEAST)(count.trim())?;
        if counts.insert(tower, count).is_some() {
            return Err(format!("{tower} is given twice"));
        }
    }
    Ok(BlockCounts::ByTower(counts))
}

impl MethodFlags {
    pub fn apply(&self, options: &mut Options) {
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
        m.free_blocks = self.free_blocks.clone().or(m.free_blocks.take());
        set(&mut m.down, &self.down);
        set(&mut m.gate, &self.gate);
        set(&mut m.merge, &self.merge);
        set(&mut m.temperature, &self.temperature);
        set(&mut m.alpha, &self.alpha);
        set(&mut m.merge_last, &self.merge_last);
        set(&mut m.bias, &self.bias);
        set(&mut m.dropout, &self.dropout);
        set(&mut m.init, &self.init);
        // The configuration's projections belong to its initialisation.
        let others = m.init_projections.filter(|_| self.init.is_none());
        m.init_projections = self.init_projections.or(others);
        set(&mut m.seed, &self.seed);
        self.shapes.apply(&mut options.sizes);
        self.backbone.apply(&mut options.backbone);
        set(&mut options.backward.recompute_attention, &self.memory.recompute_attention);
        self.step.apply(options);
    }

    /// Sets the special tokens.
    pub fn apply_tokens(&self, reading: &mut Reading) {
        let TokenFlags { pad_token_id, eos_token_id, decoder_start_token_id } = self.tokens;
        let flags = [
            (&mut reading.pad_token_id, pad_token_id),
            (&mut reading.eos_token_id, eos_token_id),
            (&mut reading.decoder_start_token_id, decoder_start_token_id),
        ];
        flags.into_iter().for_each(|(id, flag)| *id = flag.map(i64::from).or(*id));
    }

    /// `is_recorded` says that the options come from a file, which names a precision.
    pub fn measuring<'r>(
        &'r self,
        earlier: &'r Config,
        is_recorded: bool,
        progress: &'r dyn Fn(usize, usize),
    ) -> Measuring<'r> {
        let BackboneFlags { backbone, sample, device, .. } = &self.backbone;
        let precision = match backbone {
            Some(Wanted::Auto) => Choice::Fastest,
            Some(Wanted::Known(_)) => Choice::Said,
            None if is_recorded => Choice::Said,
            None => Choice::Open,
        };
        let (sample, earlier) = (sample.as_deref(), Some(earlier));
        Measuring { sample, earlier, device: *device, precision, progress: Some(progress) }
    }
}

impl ShapeFlags {
    fn apply(&self, sizes: &mut Sizes) {
        let flags = [
            (&mut sizes.batch, self.batch),
            (&mut sizes.source_length, self.source_length),
            (&mut sizes.target_length, self.target_length),
        ];
        flags.into_iter().for_each(|(size, flag)| *size = flag.or(*size));
    }
}

impl BackboneFlags {
    /// Which products are kept was measured for other choices, if a flag makes one.
    fn apply(&self, options: &mut BackboneOptions) {
        let before = options.clone();
        if let Some(Wanted::Known(precision)) = self.backbone {
            options.precision = precision;
        }
        if options.precision != before.precision || self.backbone == Some(Wanted::Auto) {
            (options.max_tap_error, options.int8_weights) = (None, None);
        }
        options.quantise_head = self.quantise_head.unwrap_or(options.quantise_head);
        options.int8_weights = self.int8_weights.or(options.int8_weights);
        options.max_tap_error = self.max_tap_error.or(options.max_tap_error);
        if *options != before || self.sample.is_some() {
            options.forget();
        }
    }
}

impl StepFlags {
    fn apply(&self, options: &mut Options) {
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
