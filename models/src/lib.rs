//! The anatomy of a transformer, and how it is recognised in an ONNX graph.
//!
//! Recognition goes by structure: the residual stream is walked back from the LM head, and every sublayer on it is
//! matched against what attention and feed-forward layers compute. Names play no part.
//!
//! **Invariant:** what is not understood is refused, with the node and the reason. This crate knows nothing of
//! training.

mod activation;
mod anatomy;
mod attention;
mod axes;
mod copies;
mod families;
mod feed_forward;
mod folded;
mod frozen;
mod inputs;
mod likeness;
mod matcher;
mod norms;
mod place;
mod product;
mod quantised;
mod recognise;
mod refusal;
mod restate;
mod sight;
mod slot;
mod survey;
mod tied;
mod trace;

pub use anatomy::{
    Activation, Anatomy, Attention, AttentionKind, Bias, Block, Buckets, FeedForward, Frozen, Head, Linear,
    MASKED_TOKEN, Marks, Mask, Norm, Orientation, PaddingMask, Relative, Sublayer, SublayerKind, Tower, TowerKind,
};
pub use families::{Family, Names, SpecialTokens, families};
pub use frozen::Part;
pub use inputs::{InputRole, ModelInput, model_inputs, unread_inputs};
pub use likeness::{Build, Likeness, Norms, Placement, Positions, Use};
pub use norms::{FoundNorm, norms};
pub use place::{Place, as_path};
pub use quantised::Quantised;
pub use recognise::{explain, recognise};
pub use refusal::{Refusal, Refused};
pub use restate::{RESTATED, restate_for_device};
pub use slot::{Site, Slot, SublayerId, TowerId};
pub use tied::same_matrix;
pub use trace::{
    Attempt, BlockTrace, FusedTrace, Known, Meeting, Nearest, NodeRef, NodeTrace, Operand, Outcome, Reason, Remark,
    SublayerGuess, SublayerTrace, TowerTrace, Trace,
};
