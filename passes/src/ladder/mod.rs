//! Ladder Side-Tuning: a small network beside the frozen model, which reads its hidden states (Sung, Cho, Bansal, 2022,
//! <https://arxiv.org/abs/2206.06522>).
//!
//! [`ladder_side_tuning`] is the table of contents. [`plan`] decides the side network's shape and parameters, `emit` its nodes.

pub(crate) mod emit;
pub(crate) mod head;
pub mod importance;
pub mod kept;
pub mod key;
pub mod plan;
pub mod projections;
pub mod prune;
pub(crate) mod tap;

use crate::differentiate::Differentiate;
use crate::fold::Fold;
use crate::freeze::Freeze;
use crate::loss::Loss;
use crate::optimizer::Optimizer;
use crate::pipeline::Pipeline;
use crate::quantise::{Quantise, QuantiseHead};
use crate::side_stack::SideStack;
use emit::Ladder;
use head::Head;
use prune::Prune;
use tap::Taps;

/// From a recognised model to a training step. Order matters where a comment says so.
pub fn ladder_side_tuning() -> Pipeline {
    Pipeline::default()
        .then(Freeze)
        .then(Fold) // before values are tapped
        .then(Taps)
        .then(Prune) // reads frozen weights: before anything changes them
        .then(SideStack) // declares what the ladder reads
        .then(Ladder)
        .then(Head)
        .then(Loss)
        .then(Differentiate) // sees the whole forward graph
        .then(Optimizer)
        .then(Quantise) // changes the backbone's weights, which have no gradient: after all that reads them
        .then(QuantiseHead) // one form for the product and for its gradient: after both were made
}
