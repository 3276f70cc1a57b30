//! Families of models: what a recognised model must be to belong to one, and what its parts are called there.

mod t5;

use serde::{Deserialize, Serialize};

use crate::anatomy::{Anatomy, AttentionKind, Sublayer, SublayerKind};
use crate::refusal::Refusal;
use crate::slot::Site;

/// What a family calls the parts of a block, in the state dict of its reference implementation.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Names {
    /// Before the number of a sublayer.
    sublayer: String,
    self_attention: String,
    cross_attention: String,
    feed_forward: String,
    relative: String,
    norm: String,
    q: String,
    k: String,
    v: String,
    o: String,
    /// The inner matrix of a plain feed-forward layer.
    inner: String,
    /// The inner matrices of a gated one, the activated first.
    gated: [String; 2],
    outer: String,
}

impl Names {
    /// A sublayer of a block, by the block's name.
    pub fn sublayer(&self, block: &str, sublayer: usize) -> String {
        format!("{block}.{}.{sublayer}", self.sublayer)
    }

    /// A part of a sublayer.
    ///
    /// # Panics
    /// If the sublayer has no such part.
    pub fn part(&self, layer: &Sublayer, site: Site) -> String {
        let module = match &layer.kind {
            SublayerKind::Attention(attention) => match attention.kind {
                AttentionKind::SelfAttention => &self.self_attention,
                AttentionKind::Cross => &self.cross_attention,
            },
            SublayerKind::FeedForward(_) => &self.feed_forward,
        };
        let leaf = match (site, &layer.kind) {
            (Site::Norm, _) => return self.norm.clone(),
            (Site::Q, _) => &self.q,
            (Site::K, _) => &self.k,
            (Site::V, _) => &self.v,
            (Site::O, _) => &self.o,
            (Site::PositionTable, _) => &self.relative,
            (Site::Inner(index), SublayerKind::FeedForward(f)) if f.is_gated() => &self.gated[index],
            (Site::Inner(_), _) => &self.inner,
            (Site::Outer, _) => &self.outer,
            (Site::FinalNorm, _) => panic!("a tower's final norm is in no sublayer"),
        };
        format!("{module}.{leaf}")
    }
}

/// Ids of the tokens that have a part of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpecialTokens {
    /// What pads a row.
    pub pad: i64,
    /// What ends every text.
    pub end: i64,
    /// What the decoder starts with.
    pub start: i64,
}

/// What is known of a family in advance.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Facts {
    names: Names,
    tokens: SpecialTokens,
}

/// A family of models.
pub struct Family {
    pub name: &'static str,
    pub names: Names,
    pub tokens: SpecialTokens,
    check: fn(&Anatomy) -> Vec<Refusal>,
}

impl Family {
    fn new(name: &'static str, facts: &str, check: fn(&Anatomy) -> Vec<Refusal>) -> Family {
        let Facts { names, tokens } = serde_yaml::from_str(facts).expect("the family's facts are well-formed");
        Family { name, names, tokens, check }
    }

    /// Whether a model meets the family's constraints.
    ///
    /// # Errors
    /// Each constraint that it does not meet.
    pub fn check(&self, anatomy: &Anatomy) -> Result<(), Vec<Refusal>> {
        let refusals = (self.check)(anatomy);
        if refusals.is_empty() { Ok(()) } else { Err(refusals) }
    }
}

/// Every family that lstc knows.
pub fn families() -> Vec<Family> {
    vec![t5::family()]
}
