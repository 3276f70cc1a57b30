//! What recognition tried on a graph, what held, and what did not and why: data to show to someone whose model is refused.
//!
//! An [`Attempt`] is one pattern at one value, with the patterns that it tried in turn. Attempts are kept by place: the
//! LM head, and tower by tower each sublayer of each block. Everything is by name, so that a trace outlives its graph.
//!
//! **Invariant:** a trace is bounded, however large or hostile the graph: [`Trace::cut`] says whether something was left out.

mod assemble;
mod found;
mod node;
mod record;

use std::fmt;

use serde::Serialize;

pub(crate) use assemble::{BlockPlace, Places, SublayerPlace, TowerPlace, assemble};
pub(crate) use found::Found;
pub use node::{Known, Meeting, Nearest, NodeTrace};
pub(crate) use record::Record;

use crate::anatomy::TowerKind;
use crate::refusal::Refusal;

/// Everything that a recognition tried.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Trace {
    /// On each output that may be the logits.
    pub head: Vec<Attempt>,
    /// In the order of computation.
    pub towers: Vec<TowerTrace>,
    /// Fused operators, in the graph's order.
    pub fused: Vec<FusedTrace>,
    /// Nodes outside of sublayers that pass the residual streams on: residual adds and copies.
    pub stream: Vec<NodeRef>,
    /// More was tried than was kept.
    pub cut: bool,
}

/// The walk back along one residual stream.
#[derive(Clone, Debug, Serialize)]
pub struct TowerTrace {
    pub kind: TowerKind,
    /// The value in which the tower ends.
    pub output: String,
    pub final_norm: Vec<Attempt>,
    /// In the order of computation. Numbers count from the block where the walk ended.
    pub blocks: Vec<BlockTrace>,
    /// What was tried where the walk ended: the embedding, if all went well.
    pub embedding: Vec<Attempt>,
    /// Where and why the walk ended before it reached an embedding.
    pub ended: Option<Refusal>,
    /// What else is wrong with the tower.
    pub refusals: Vec<Refusal>,
}

#[derive(Clone, Debug, Serialize)]
pub struct BlockTrace {
    pub index: usize,
    /// The value of the residual stream that enters.
    pub input: String,
    /// The value of the residual stream that leaves.
    pub output: String,
    pub sublayers: Vec<SublayerTrace>,
    /// What is wrong with the block as a whole.
    pub refusals: Vec<Refusal>,
}

/// What was added to the residual stream between two of its points.
#[derive(Clone, Debug, Serialize)]
pub struct SublayerTrace {
    pub kind: SublayerGuess,
    /// The node that makes the point of the stream after it: mostly a residual add.
    pub add: NodeRef,
    pub outcome: Outcome,
    pub tried: Vec<Attempt>,
}

/// What a branch of the residual stream looks like at a distance; the patterns that are tried on it follow from that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SublayerGuess {
    SelfAttention,
    #[serde(rename = "cross-attention")]
    Cross,
    FeedForward,
    /// No matrix product at its end: no sublayer at all.
    Other,
}

impl SublayerGuess {
    pub fn name(self) -> &'static str {
        match self {
            SublayerGuess::SelfAttention => "self-attention",
            SublayerGuess::Cross => "cross-attention",
            SublayerGuess::FeedForward => "feed-forward",
            SublayerGuess::Other => "something else",
        }
    }

    /// Why it is taken for this.
    pub fn sign(self) -> &'static str {
        match self {
            SublayerGuess::SelfAttention => "the branch has one Softmax",
            SublayerGuess::Cross => "the branch has several Softmax nodes: its own, and those of another tower",
            SublayerGuess::FeedForward => "the branch has no Softmax",
            SublayerGuess::Other => "the branch does not end in a matrix product",
        }
    }
}

/// One pattern tried at one value.
#[derive(Clone, Debug, Serialize)]
pub struct Attempt {
    pub pattern: &'static str,
    pub at: NodeRef,
    pub outcome: Outcome,
    /// The nodes that it took itself, without those of the patterns that it tried.
    pub took: Vec<NodeRef>,
    pub tried: Vec<Attempt>,
}

impl Attempt {
    /// True where none of the patterns that it tried failed for the same reason.
    pub fn is_innermost(&self) -> bool {
        !self.tried.iter().any(|inner| self.outcome.is_because_of(&inner.outcome))
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum Outcome {
    Matched {
        /// In a few words.
        found: String,
    },
    No(Reason),
}

impl Outcome {
    pub fn is_match(&self) -> bool {
        matches!(self, Outcome::Matched { .. })
    }

    /// True for a mismatch that another one led to: at the same node, for the same reason, with a remark or without.
    pub fn is_because_of(&self, inner: &Outcome) -> bool {
        match (self, inner) {
            (Outcome::No(outer), Outcome::No(inner)) => outer.node == inner.node && outer.reason == inner.reason,
            _ => false,
        }
    }
}

/// Why a pattern does not hold: that of the innermost one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reason {
    pub node: NodeRef,
    pub reason: String,
    /// What else adds to it.
    pub remark: Option<Remark>,
    /// What the node reads.
    pub reads: Vec<Operand>,
}

/// What else is said of a mismatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remark {
    /// The branch of the residual stream is not a sublayer at all.
    NoSublayer,
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Remark::NoSublayer => "it is added to the residual stream, but is neither attention nor feed-forward",
        })
    }
}

/// A node, or a value that no node makes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct NodeRef {
    pub name: String,
    /// The operator; `input` or `constant` where no node makes the value.
    pub operator: String,
}

impl fmt::Display for NodeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` ({})", self.name, self.operator)
    }
}

/// What a node reads in one slot.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Operand {
    pub value: String,
    /// Element type and shape, as far as they are known: `f32[batch, 7, 64]`.
    pub shape: String,
    /// The operator that makes it; `input` or `constant` where none does.
    pub operator: String,
}

/// A fused operator, and what recognition put in its place.
#[derive(Clone, Debug, Serialize)]
pub struct FusedTrace {
    pub node: NodeRef,
    /// What the operator computes, in words.
    pub rule: &'static str,
    /// The plain nodes in its place.
    pub restated: Vec<NodeRef>,
    /// Why it was left unchanged.
    pub left: Option<&'static str>,
}
