//! The options. Reduction, gates and their temperature are the paper's by default. This is also the layout of the configuration file.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use lstc_models::TowerKind;
use serde::{Deserialize, Serialize};

use crate::problem::Problem;
use crate::single;

pub use crate::ladder::projections::{Projection, Projections};

/// Everything that decides what the compiler makes of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    pub method: Method,
    pub sizes: Sizes,
    pub backbone: BackboneOptions,
    pub loss: LossOptions,
    pub backward: BackwardOptions,
    pub optimizer: OptimizerOptions,
}

/// Ladder Side-Tuning (Sung, Cho, Bansal, 2022, <https://arxiv.org/abs/2206.06522>).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Method {
    /// Reduction factor r: widths of the side network are the backbone's divided by it, rounded down.
    pub reduction: usize,
    /// Kept blocks by tower, counted from 0; a tower that is not named keeps all of its blocks.
    pub blocks: BTreeMap<TowerName, Vec<usize>>,
    /// How many blocks a tower keeps, chosen by importance ([`crate::ladder::kept`]); `None` keeps what `blocks` says. A tower that is not
    /// named keeps all.
    pub keep_blocks: Option<BlockCounts>,
    /// Side blocks behind the last rung, by tower: without a tap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_blocks: Option<BlockCounts>,
    /// How the taps of blocks are brought to the side network's width. That of the embedding always goes through a matrix.
    pub down: Down,
    pub gate: Gate,
    /// Whether taps are mixed in before or behind the side block.
    pub merge: Merge,
    /// Temperature T of the gates, `sigmoid(alpha / T)`.
    #[serde(deserialize_with = "single::deserialize")]
    pub temperature: f32,
    /// Initial alpha of the gates; what a fixed gate keeps.
    #[serde(deserialize_with = "single::deserialize")]
    pub alpha: f32,
    /// Mix the backbone's final output into the side network's before the LM head, by a learnable gate.
    pub merge_last: bool,
    /// Biases on the down- and up-projections.
    pub bias: bool,
    /// Dropout rate in the side network, in training only.
    #[serde(deserialize_with = "single::deserialize")]
    pub dropout: f32,
    pub init: Init,
    /// How the down- and up-projections start; [`Projections::default_of`] the initialisation by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_projections: Option<Projections>,
    /// Seed of the initial values and of dropout.
    pub seed: u64,
}

impl Default for Method {
    fn default() -> Self {
        Method {
            reduction: 8,
            blocks: BTreeMap::new(),
            keep_blocks: None,
            free_blocks: None,
            down: Down::Linear,
            gate: Gate::Learnable,
            merge: Merge::Before,
            temperature: 0.1,
            alpha: 0.0,
            merge_last: false,
            bias: true,
            dropout: 0.0,
            init: Init::Magnitude,
            init_projections: None,
            seed: 0,
        }
    }
}

impl Method {
    pub fn projections(&self) -> Projections {
        self.init_projections.unwrap_or(Projections::default_of(self.init))
    }

    /// The method with initial values for which no weight is read: for uses that need only shapes.
    #[must_use]
    pub fn by_shape(self) -> Method {
        Method { init: Init::Random, init_projections: None, ..self }
    }

    pub fn kept(&self, tower: TowerKind) -> Option<&[usize]> {
        self.blocks.get(&TowerName::from(tower)).map(Vec::as_slice)
    }

    /// How many blocks of a tower are to be chosen.
    pub fn count(&self, tower: TowerKind) -> Option<usize> {
        self.keep_blocks.as_ref()?.of(tower.into())
    }

    /// Side blocks of a tower that have no tap, behind the others.
    pub fn free(&self, tower: TowerKind) -> usize {
        self.free_blocks.as_ref().and_then(|counts| counts.of(tower.into())).unwrap_or(0)
    }

    /// The towers that the choice of blocks names.
    pub fn named_towers(&self) -> Vec<(&'static str, TowerName)> {
        let mut named: Vec<(&str, TowerName)> = self.blocks.keys().map(|tower| ("blocks", *tower)).collect();
        for (key, counts) in [("keep_blocks", &self.keep_blocks), ("free_blocks", &self.free_blocks)] {
            if let Some(BlockCounts::ByTower(counts)) = counts {
                named.extend(counts.keys().map(|tower| (key, *tower)));
            }
        }
        named
    }
}

/// How many blocks: of every tower as many, or of each by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum BlockCounts {
    Each(usize),
    ByTower(BTreeMap<TowerName, usize>),
}

impl BlockCounts {
    pub fn of(&self, tower: TowerName) -> Option<usize> {
        match self {
            BlockCounts::Each(count) => Some(*count),
            BlockCounts::ByTower(counts) => counts.get(&tower).copied(),
        }
    }

    /// The same for the other tower alone.
    #[must_use]
    pub fn without(self, tower: TowerName) -> Option<BlockCounts> {
        let mut counts = match self {
            BlockCounts::Each(count) => TowerName::ALL.map(|tower| (tower, count)).into(),
            BlockCounts::ByTower(counts) => counts,
        };
        counts.remove(&tower);
        (!counts.is_empty()).then_some(BlockCounts::ByTower(counts))
    }

    fn counts(&self) -> impl Iterator<Item = usize> {
        let (each, by_tower) = match self {
            BlockCounts::Each(count) => (Some(*count), None),
            BlockCounts::ByTower(counts) => (None, Some(counts.values().copied())),
        };
        each.into_iter().chain(by_tower.into_iter().flatten())
    }
}

/// As `9`, or as `{encoder: 9, decoder: 6}`.
impl fmt::Display for BlockCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BlockCounts::Each(count) => write!(f, "{count}"),
            BlockCounts::ByTower(counts) => {
                let counts: Vec<String> = counts.iter().map(|(tower, count)| format!("{tower}: {count}")).collect();
                write!(f, "{{{}}}", counts.join(", "))
            }
        }
    }
}

/// Sizes that are fixed in the graphs; `None` leaves one symbolic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sizes {
    /// Examples that are run at once.
    pub batch: Option<usize>,
    /// Tokens of the first tower.
    pub source_length: Option<usize>,
    /// Tokens of the last tower.
    pub target_length: Option<usize>,
}

impl Sizes {
    /// The sizes with their names.
    pub fn named(&self) -> [(&'static str, Option<usize>); 3] {
        [("batch", self.batch), ("source_length", self.source_length), ("target_length", self.target_length)]
    }

    pub fn is_none(&self) -> bool {
        *self == Sizes::default()
    }
}

/// What the backbone's products with constant matrices are computed in. No gradient enters them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BackboneOptions {
    #[serde(rename = "type")]
    pub precision: Precision,
    /// How the integers of `int8` are written; by default, as this machine computes best.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub int8_weights: Option<Int8Weights>,
    /// The frozen LM head of the side network, and the backbone's own where that is in the graph, in 8 bits.
    #[serde(skip_serializing_if = "is_false")]
    pub quantise_head: bool,
    /// The relative error of a tap beyond which products of its block are computed in more bits: of an int4 backbone in 8, and
    /// where that is not enough, or there are 8 already, as they are in the source. [`BackboneOptions::INT4_ERROR`] for int4
    /// unless set; 1 and above means no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tap_error: Option<f64>,
    /// The products that stay as they are in the source, by the names of what they make; `None` until it was measured
    /// which.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<Vec<String>>,
    /// The products of an int4 backbone that are in 8 bits, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_8_bits: Option<Vec<String>>,
}

impl BackboneOptions {
    /// The default limit for the relative error of a tap of an int4 backbone: of the small models of the
    /// accuracy benchmark, some lose points beyond it.
    pub const INT4_ERROR: f64 = 0.03;

    /// An error as large as the tap.
    pub const NO_LIMIT: f64 = 1.0;

    /// The limit of a tap's error, where there is one.
    pub fn limit(&self) -> Option<f64> {
        self.max_tap_error.filter(|limit| *limit < Self::NO_LIMIT && self.precision != Precision::Source)
    }

    /// Which products need more bits has to be measured again.
    pub fn forget(&mut self) {
        (self.kept, self.in_8_bits) = (None, None);
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// The type of a product's matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// As the model was exported.
    #[default]
    Source,
    Fp32,
    Fp16,
    Bf16,
    /// Integers with a scale for each output feature; activations are quantised when the graph runs.
    Int8,
    /// Integers with a scale for each 32 input features of an output feature; 8 bits for the products that are said to need them.
    Int4,
}

impl Precision {
    pub const ALL: [Precision; 6] =
        [Precision::Source, Precision::Fp32, Precision::Fp16, Precision::Bf16, Precision::Int8, Precision::Int4];
}

/// As it is displayed.
impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Precision, String> {
        let found = Precision::ALL.into_iter().find(|precision| precision.to_string() == text);
        found.ok_or_else(|| format!("expected one of {}", Precision::ALL.map(|p| p.to_string()).join(", ")))
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Precision::Source => "source",
            Precision::Fp32 => "fp32",
            Precision::Fp16 => "fp16",
            Precision::Bf16 => "bf16",
            Precision::Int8 => "int8",
            Precision::Int4 => "int4",
        })
    }
}

/// How the integers of a matrix in 8 bits are written. They stand for the same numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Int8Weights {
    /// i8. ONNX Runtime's kernels for x86 without VNNI add pairs of their products in 16 bits, which saturate.
    #[default]
    Signed,
    /// u8 around 128, whose kernels saturate nowhere.
    Unsigned,
}

impl fmt::Display for Int8Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Int8Weights::Signed => "signed",
            Int8Weights::Unsigned => "unsigned",
        })
    }
}

/// A tower, as named in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TowerName {
    Encoder,
    Decoder,
}

impl TowerName {
    pub const ALL: [TowerName; 2] = [TowerName::Encoder, TowerName::Decoder];
}

impl fmt::Display for TowerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TowerName::Encoder => "encoder",
            TowerName::Decoder => "decoder",
        })
    }
}

impl From<TowerKind> for TowerName {
    fn from(kind: TowerKind) -> Self {
        match kind {
            TowerKind::Encoder => TowerName::Encoder,
            TowerKind::Decoder => TowerName::Decoder,
        }
    }
}

/// How a tap is mixed into the side state s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gate {
    /// `g s + (1 - g) tap`, `g = sigmoid(alpha / T)`, alpha trained.
    Learnable,
    /// The same with alpha constant.
    Fixed,
    /// `s`: the blocks' taps are not read.
    One,
    /// `g s + (1 - g) tap` with one g for all gates, which rises from 0.1 in the first epoch of a run to 0.9 in the last.
    ScheduleLinear,
    /// The same with `g = 1 / (1 + epoch)`, epochs counted from 0, but between 0.1 and 0.9.
    ScheduleHyperbolic,
    /// `s + tap`
    None,
}

/// The least and the largest value of a gate with a schedule.
const SCHEDULED: (f64, f64) = (0.1, 0.9);

impl Gate {
    pub const ALL: [Gate; 6] =
        [Gate::Learnable, Gate::Fixed, Gate::One, Gate::ScheduleLinear, Gate::ScheduleHyperbolic, Gate::None];

    /// The value in an epoch of a run, counted from 0, of so many; none for gates that no schedule moves.
    pub fn scheduled(self, epoch: u64, epochs: u64) -> Option<f32> {
        let (least, largest) = SCHEDULED;
        let value = match self {
            Gate::ScheduleLinear => {
                let share = epoch as f64 / epochs.saturating_sub(1).max(1) as f64;
                least + (largest - least) * share.min(1.0)
            }
            Gate::ScheduleHyperbolic => (1.0 / (1.0 + epoch as f64)).clamp(least, largest),
            Gate::Learnable | Gate::Fixed | Gate::One | Gate::None => return None,
        };
        Some(value as f32)
    }

    pub fn is_scheduled(self) -> bool {
        self.scheduled(0, 1).is_some()
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Gate::Learnable => "learnable",
            Gate::Fixed => "fixed",
            Gate::One => "one",
            Gate::ScheduleLinear => "schedule-linear",
            Gate::ScheduleHyperbolic => "schedule-hyperbolic",
            Gate::None => "none",
        })
    }
}

/// Where a tap is mixed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Merge {
    /// The side block reads the mixture.
    #[default]
    Before,
    /// The next side block does.
    After,
}

impl fmt::Display for Merge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Merge::Before { "before" } else { "after" })
    }
}

/// How a tap of width d is brought to the side network's width w.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Down {
    /// By a matrix `[w, d]`.
    #[default]
    Linear,
    /// By two, `[w, k]` and `[k, d]`.
    LowRank(usize),
    /// By the means of w neighbouring spans of features, without parameters: `torch.nn.AdaptiveAvgPool1d`.
    Pool,
}

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Down::Linear => f.write_str("linear"),
            Down::LowRank(rank) => write!(f, "low-rank:{rank}"),
            Down::Pool => f.write_str("pool"),
        }
    }
}

impl FromStr for Down {
    type Err = String;

    fn from_str(text: &str) -> Result<Down, String> {
        let rank = || text.strip_prefix("low-rank:")?.parse().ok().filter(|rank| *rank > 0);
        match text {
            "linear" => Ok(Down::Linear),
            "pool" => Ok(Down::Pool),
            _ => rank().map(Down::LowRank).ok_or_else(|| {
                format!("`{text}` is not a down-projection: expected linear, pool or low-rank:K, as in low-rank:8")
            }),
        }
    }
}

impl TryFrom<String> for Down {
    type Error = String;

    fn try_from(text: String) -> Result<Down, String> {
        text.parse()
    }
}

impl From<Down> for String {
    fn from(down: Down) -> String {
        down.to_string()
    }
}

/// Where the side network's initial weights come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// The rows and columns of the backbone's weights that are largest, chained as the reference does.
    Magnitude,
    /// The largest, with one set of columns for a residual stream and an equal share of every head.
    MagnitudeConsistent,
    /// Normal(0, 1/sqrt(fan in)).
    Random,
}

impl fmt::Display for Init {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Init::Magnitude => "magnitude",
            Init::MagnitudeConsistent => "magnitude-consistent",
            Init::Random => "random",
        })
    }
}

/// `label * cross-entropy + distill * KL(backbone / 0.1 || side)`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossOptions {
    /// Weight of the cross-entropy with the labels.
    #[serde(deserialize_with = "single::deserialize")]
    pub label: f32,
    /// Weight of the distillation from the backbone's own logits; 0 leaves the backbone's head out of the graph.
    #[serde(deserialize_with = "single::deserialize")]
    pub distill: f32,
}

impl Default for LossOptions {
    fn default() -> Self {
        LossOptions { label: 1.0, distill: 0.0 }
    }
}

/// How gradients are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BackwardOptions {
    /// Recompute the probabilities of the side network's attention in the backward pass, instead of keeping them.
    pub recompute_attention: bool,
}

/// AdamW (Loshchilov, Hutter, 2019, <https://arxiv.org/abs/1711.05101>).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerOptions {
    #[serde(deserialize_with = "single::deserialize")]
    pub beta1: f32,
    #[serde(deserialize_with = "single::deserialize")]
    pub beta2: f32,
    #[serde(deserialize_with = "single::deserialize")]
    pub epsilon: f32,
    /// Decoupled weight decay, on matrices only: not on biases, norms, gates and position tables.
    #[serde(deserialize_with = "single::deserialize")]
    pub weight_decay: f32,
    /// Largest global norm of the gradients; 0 does not clip.
    #[serde(deserialize_with = "single::deserialize")]
    pub clip: f32,
}

impl Default for OptimizerOptions {
    fn default() -> Self {
        OptimizerOptions { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, clip: 1.0 }
    }
}

impl Options {
    /// Whether the side network reads the backbone's final output, and its logits.
    pub fn reads_ends(&self) -> [bool; 2] {
        [self.method.merge_last, self.loss.distill > 0.0]
    }

    /// Every option out of range.
    pub fn problems(&self) -> Vec<Problem> {
        let (m, l, o) = (&self.method, &self.loss, &self.optimizer);
        let mut problems = Vec::new();
        let mut check = |ok: bool, key: &'static str, what: String| {
            if !ok {
                problems.push(Problem::option(key, what));
            }
        };
        check(m.reduction >= 1, "method.reduction", format!("is {}, but must be at least 1", m.reduction));
        check(
            m.temperature > 0.0 && m.temperature.is_finite() && m.temperature.recip().is_finite(),
            "method.temperature",
            format!("is {}, but must be positive", m.temperature),
        );
        check(
            m.keep_blocks.as_ref().is_none_or(|keep| keep.counts().all(|count| count > 0)),
            "method.keep_blocks",
            "holds a 0: a tower keeps at least one block".to_owned(),
        );
        for (name, size) in self.sizes.named() {
            let key = match name {
                "batch" => "sizes.batch",
                "source_length" => "sizes.source_length",
                _ => "sizes.target_length",
            };
            let fits = size.is_none_or(|size| (1..=i32::MAX as usize).contains(&size));
            check(fits, key, format!("is {}, but must be between 1 and {}", size.unwrap_or_default(), i32::MAX));
        }
        let b = &self.backbone;
        check(
            b.max_tap_error.is_none_or(|error| error > 0.0 && error.is_finite()),
            "backbone.max_tap_error",
            format!("is {}, but must be positive", b.max_tap_error.unwrap_or_default()),
        );
        check(
            b.precision == Precision::Int4 || b.in_8_bits.as_ref().is_none_or(Vec::is_empty),
            "backbone.in_8_bits",
            format!("needs an int4 backbone, and this one is {}", b.precision),
        );
        let projections = m.init_projections.and_then(|projections| projections.problem());
        check(projections.is_none(), "method.init_projections", projections.unwrap_or_default());
        check(m.alpha.is_finite(), "method.alpha", format!("is {}", m.alpha));
        check((0.0..1.0).contains(&m.dropout), "method.dropout", format!("is {}, but must be in [0, 1)", m.dropout));
        check(
            !self.backward.recompute_attention || m.dropout == 0.0,
            "backward.recompute_attention",
            format!("needs method.dropout to be 0, not {}", m.dropout),
        );
        for (key, weight) in [("loss.label", l.label), ("loss.distill", l.distill)] {
            check(weight >= 0.0 && weight.is_finite(), key, format!("is {weight}, but must not be negative"));
        }
        check(
            l.label > 0.0 || l.distill > 0.0,
            "loss.label",
            "and loss.distill are both 0: nothing to train".to_owned(),
        );
        for (key, beta) in [("optimizer.beta1", o.beta1), ("optimizer.beta2", o.beta2)] {
            check((0.0..1.0).contains(&beta), key, format!("is {beta}, but must be in [0, 1)"));
        }
        check(
            o.epsilon > 0.0 && o.epsilon.is_finite(),
            "optimizer.epsilon",
            format!("is {}, but must be positive", o.epsilon),
        );
        for (key, v) in [("optimizer.weight_decay", o.weight_decay), ("optimizer.clip", o.clip)] {
            check(v >= 0.0 && v.is_finite(), key, format!("is {v}, but must not be negative"));
        }
        problems
    }
}
