//! Families of models: what a recognised model must be to belong to one, and what its parts are called there.

mod t5;

use serde::{Deserialize, Serialize};

use crate::anatomy::{Anatomy, AttentionKind, FeedForward};
use crate::refusal::Refusal;

/// What a family calls the parts of a block, in the state dict of its reference implementation.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Names {
    pub self_attention: String,
    pub cross_attention: String,
    pub feed_forward: String,
    pub relative: String,
    pub norm: String,
    pub q: String,
    pub k: String,
    pub v: String,
    pub o: String,
    /// The inner matrix of a plain feed-forward layer.
    pub inner: String,
    /// The inner matrices of a gated one, the activated first.
    pub gated: [String; 2],
    pub outer: String,
}

impl Names {
    pub fn attention(&self, kind: AttentionKind) -> &str {
        match kind {
            AttentionKind::SelfAttention => &self.self_attention,
            AttentionKind::Cross => &self.cross_attention,
        }
    }

    /// Names of the inner matrices, in the order of [`FeedForward::inner`].
    pub fn inner_of(&self, layer: &FeedForward) -> Vec<&str> {
        if layer.is_gated() { self.gated.iter().map(String::as_str).collect() } else { vec![&self.inner] }
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
