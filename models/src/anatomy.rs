//! A plain description of a transformer: towers of blocks of sublayers, with the weights of each.
//!
//! Every [`ValueId`] is a value of the graph that was recognised.

use std::fmt;

use lstc_graph::{Dim, ValueId, Weight};
use serde::{Deserialize, Serialize};

pub use crate::frozen::Frozen;
use crate::quantised::Quantised;

/// A recognised model.
#[derive(Clone, Debug)]
pub struct Anatomy {
    /// Name of the family whose constraints the model meets, e.g. `t5`.
    pub family: &'static str,
    /// In the order of computation: a tower comes after those it attends to.
    pub towers: Vec<Tower>,
    pub head: Head,
}

impl Anatomy {
    /// Matrices and tables that are integers in the file, each once.
    pub fn quantised(&self) -> Vec<&Quantised> {
        let matrices = self.linears().map(|(_, linear)| &linear.weight);
        let tables = self.towers.iter().map(|t| &t.table).chain([&self.head.linear.weight]);
        let mut found: Vec<&Quantised> = Vec::new();
        for quantised in matrices.chain(tables).filter_map(Frozen::quantised) {
            if !found.iter().any(|f| f.is_same(quantised)) {
                found.push(quantised);
            }
        }
        found
    }

    /// The attentions over a source that read its padding: the tower, the kind, and the blocks.
    pub fn reads_padding(&self) -> Vec<(TowerKind, AttentionKind, Vec<usize>)> {
        let last = self.towers.len().saturating_sub(1);
        let over_source = |tower: usize, kind: AttentionKind| tower < last || kind == AttentionKind::Cross;
        let mut found = Vec::new();
        for (index, tower) in self.towers.iter().enumerate() {
            for kind in [AttentionKind::SelfAttention, AttentionKind::Cross] {
                let reads = |block: &usize| tower.blocks[*block].attention(kind).is_some_and(|a| a.mask.is_none());
                let blocks: Vec<usize> = (0..tower.blocks.len()).filter(reads).collect();
                if over_source(index, kind) && !blocks.is_empty() {
                    found.push((tower.kind, kind, blocks));
                }
            }
        }
        found
    }

    /// True where an attention knows padding by its token, [`MASKED_TOKEN`].
    pub fn masks_by_tokens(&self) -> bool {
        let tokens = |input: ValueId| self.towers.iter().any(|tower| tower.tokens == input);
        let blocks = || self.towers.iter().flat_map(|tower| &tower.blocks);
        let masks = |kind| blocks().filter_map(move |block| block.attention(kind)?.mask);
        [AttentionKind::SelfAttention, AttentionKind::Cross].into_iter().flat_map(masks).any(|mask| tokens(mask.input))
    }

    /// Every value of the graph that is mentioned.
    pub fn values(&self) -> Vec<ValueId> {
        let mut values = vec![self.head.logits];
        values.extend(self.head.linear.weight.constant());
        for tower in &self.towers {
            values.extend([tower.tokens, tower.embedding, tower.final_norm.weight, tower.output]);
            values.extend(tower.table.constant());
            for block in &tower.blocks {
                values.extend([block.input, block.output]);
                for layer in &block.sublayers {
                    values.extend(layer.norms().map(|(_, norm)| norm.weight));
                    values.extend(layer.linears().into_iter().filter_map(|(_, linear)| linear.weight.constant()));
                    values.extend(layer.relative().and_then(|relative| relative.table.constant()));
                    if let SublayerKind::Attention(a) = &layer.kind {
                        values.extend(a.bias.iter().flat_map(Bias::values).chain(a.context).chain([a.softmax]));
                        values.extend(a.mask.map(|mask| mask.input));
                    }
                }
            }
        }
        values
    }

    /// The tower whose output the LM head reads.
    pub fn last(&self) -> &Tower {
        self.towers.last().expect("a recognised model has a tower")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TowerKind {
    Encoder,
    Decoder,
}

impl TowerKind {
    pub fn name(self) -> &'static str {
        match self {
            TowerKind::Encoder => "encoder",
            TowerKind::Decoder => "decoder",
        }
    }
}

impl fmt::Display for TowerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A stack of blocks over one residual stream.
#[derive(Clone, Debug)]
pub struct Tower {
    pub kind: TowerKind,
    /// Width d of the residual stream.
    pub width: usize,
    /// Token indices, a graph input: i64 `[batch, length]`.
    pub tokens: ValueId,
    /// Embedding table `[vocabulary, d]`.
    pub table: Frozen,
    /// The embedding output e, which enters block 0: `[batch, length, d]`.
    pub embedding: ValueId,
    pub blocks: Vec<Block>,
    pub final_norm: Norm,
    /// What the final norm computes from the last block's output.
    pub output: ValueId,
    pub batch: Dim,
    pub length: Dim,
}

/// One block: the sublayers between two taps.
#[derive(Clone, Debug)]
pub struct Block {
    /// h of the block before, or the embedding output.
    pub input: ValueId,
    /// h of this block: the output of its last residual add.
    pub output: ValueId,
    pub sublayers: Vec<Sublayer>,
}

impl Block {
    pub fn attention(&self, kind: AttentionKind) -> Option<&Attention> {
        self.sublayers.iter().find_map(|s| match &s.kind {
            SublayerKind::Attention(a) if a.kind == kind => Some(a.as_ref()),
            _ => None,
        })
    }

    /// As [`Block::attention`], to be changed.
    pub(crate) fn attention_mut(&mut self, kind: AttentionKind) -> Option<&mut Attention> {
        self.sublayers.iter_mut().find_map(|s| match &mut s.kind {
            SublayerKind::Attention(a) if a.kind == kind => Some(a.as_mut()),
            _ => None,
        })
    }

    pub fn feed_forward(&self) -> Option<&FeedForward> {
        self.sublayers.iter().find_map(|s| match &s.kind {
            SublayerKind::FeedForward(f) => Some(f),
            SublayerKind::Attention(_) => None,
        })
    }
}

/// `x + f(norm(x))`
#[derive(Clone, Debug)]
pub struct Sublayer {
    pub norm: Norm,
    pub kind: SublayerKind,
}

#[derive(Clone, Debug)]
pub enum SublayerKind {
    Attention(Box<Attention>),
    FeedForward(FeedForward),
}

/// `y = weight * x / sqrt(mean(x^2) + epsilon)`, over the last axis.
#[derive(Clone, Debug)]
pub struct Norm {
    /// `[d]`, a constant of any float type.
    pub weight: ValueId,
    pub epsilon: f32,
}

/// How a matrix lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orientation {
    /// `[in, out]`: `y = x W`
    InOut,
    /// `[out, in]`: `y = x W^T`, as PyTorch stores it.
    OutIn,
}

/// A matrix product with a constant.
#[derive(Clone, Debug)]
pub struct Linear {
    pub weight: Frozen,
    pub orientation: Orientation,
    /// Number of input features.
    pub inputs: usize,
    /// Number of output features.
    pub outputs: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttentionKind {
    /// Keys and values come from the sublayer's own input.
    SelfAttention,
    /// Keys and values come from another tower's output.
    Cross,
}

#[derive(Clone, Debug)]
pub struct Attention {
    pub kind: AttentionKind,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    pub heads: usize,
    /// Width d_kv of a head.
    pub head_width: usize,
    /// Factor on the scores, before the bias.
    pub scale: f32,
    /// What is added to the scores.
    pub bias: Option<Bias>,
    /// What hides the keys that are padding; `None` where nothing does.
    pub mask: Option<PaddingMask>,
    /// For cross-attention: the other tower's output.
    pub context: Option<ValueId>,
    /// What its softmax makes.
    pub softmax: ValueId,
}

/// The token that is padding to a model that makes its own mask of tokens.
pub const MASKED_TOKEN: i64 = 0;

/// An input of the model that hides padding from an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PaddingMask {
    /// A mask, or the keys' own tokens, of which [`MASKED_TOKEN`] is padding.
    pub input: ValueId,
    pub marks: Marks,
}

/// What the ones of a mask mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marks {
    Tokens,
    Padding,
}

impl Attention {
    /// The relative-position part of the bias.
    pub fn relative(&self) -> Option<&Relative> {
        self.bias.as_ref().and_then(Bias::relative)
    }
}

/// An additive bias on attention scores, which broadcasts to `[batch, heads, queries, keys]`.
#[derive(Clone, Debug)]
pub enum Bias {
    Relative(Relative),
    Mask(Mask),
    Sum(Vec<Bias>),
    /// `where(keep, inner, fill)`: `keep` a boolean value, `fill` a scalar.
    Where {
        keep: ValueId,
        inner: Box<Bias>,
        fill: ValueId,
    },
}

impl Bias {
    pub fn relative(&self) -> Option<&Relative> {
        match self {
            Bias::Relative(r) => Some(r),
            Bias::Mask(_) => None,
            Bias::Sum(terms) => terms.iter().find_map(Bias::relative),
            Bias::Where { inner, .. } => inner.relative(),
        }
    }

    /// The backbone's own values that the bias is computed from: masks and bucket indices.
    pub fn values(&self) -> Vec<ValueId> {
        self.masks().into_iter().chain(self.buckets()).collect()
    }

    /// Those of them that are bucket indices.
    pub fn buckets(&self) -> Vec<ValueId> {
        match self {
            Bias::Relative(Relative { buckets: Buckets::Value(buckets), .. }) => vec![*buckets],
            Bias::Relative(_) | Bias::Mask(_) => Vec::new(),
            Bias::Sum(terms) => terms.iter().flat_map(Bias::buckets).collect(),
            Bias::Where { inner, .. } => inner.buckets(),
        }
    }

    /// Those of them that are masks.
    pub fn masks(&self) -> Vec<ValueId> {
        match self {
            Bias::Mask(Mask::Value(v)) => vec![*v],
            Bias::Relative(_) | Bias::Mask(Mask::Unfolded(_)) => Vec::new(),
            Bias::Sum(terms) => terms.iter().flat_map(Bias::masks).collect(),
            Bias::Where { keep, inner, fill } => [*keep, *fill].into_iter().chain(inner.masks()).collect(),
        }
    }

    /// The mask that was read off a folded bias.
    pub fn unfolded_mask(&self) -> Option<&Weight> {
        match self {
            Bias::Mask(Mask::Unfolded(mask)) => Some(mask),
            Bias::Relative(_) | Bias::Mask(Mask::Value(_)) => None,
            Bias::Sum(terms) => terms.iter().find_map(Bias::unfolded_mask),
            Bias::Where { inner, .. } => inner.unfolded_mask(),
        }
    }
}

/// A mask, added as it is.
#[derive(Clone, Debug, PartialEq)]
pub enum Mask {
    /// The backbone's own value, computed from the model's inputs alone.
    Value(ValueId),
    /// Read off a folded bias: `[1, 1, queries, keys]`.
    Unfolded(Weight),
}

/// A learned bias for each bucket of relative distance and each head.
#[derive(Clone, Debug)]
pub struct Relative {
    /// `[rows, heads]`
    pub table: Frozen,
    pub rows: usize,
    pub buckets: Buckets,
}

/// Bucket indices, i64 `[queries, keys]`.
#[derive(Clone, Debug, PartialEq)]
pub enum Buckets {
    /// The backbone's own value.
    Value(ValueId),
    /// Read off a folded bias.
    Unfolded(Weight),
}

#[derive(Clone, Debug)]
pub struct FeedForward {
    /// One matrix; for a gated layer two: the one under the activation first.
    pub inner: Vec<Linear>,
    pub activation: Activation,
    pub outer: Linear,
}

impl FeedForward {
    /// Width d_ff.
    pub fn width(&self) -> usize {
        self.outer.inputs
    }

    pub fn is_gated(&self) -> bool {
        self.inner.len() == 2
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    Relu,
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`
    GeluTanh,
    /// `0.5 x (1 + erf(x / sqrt(2)))`
    GeluErf,
    /// `x sigmoid(x)`
    Silu,
}

impl Activation {
    pub fn name(self) -> &'static str {
        match self {
            Activation::Relu => "relu",
            Activation::GeluTanh => "gelu-tanh",
            Activation::GeluErf => "gelu-erf",
            Activation::Silu => "silu",
        }
    }
}

/// Logits from the last tower's output: `scale * output * W`.
#[derive(Clone, Debug)]
pub struct Head {
    pub linear: Linear,
    pub scale: f32,
    /// `[batch, length, vocabulary]` of a float type, a graph output.
    pub logits: ValueId,
    /// The head's matrix holds the same numbers as the last tower's embedding table.
    pub tied: bool,
}
