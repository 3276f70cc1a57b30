//! From a recognised model to a training step: the side network, its loss, its gradient and its optimizer.
//!
//! Begin with [`ladder::ladder_side_tuning`]: it reads as the table of contents.
//!
//! **Invariant:** this crate knows nothing of files, devices or the command line.

pub mod artifacts;
pub mod block;
pub mod contract;
pub mod differentiate;
mod fold;
mod freeze;
mod in_place;
mod initial;
pub mod ladder;
pub mod loss;
mod mask;
mod matrix;
pub mod module;
pub mod optimizer;
pub mod options;
mod parts;
pub mod pipeline;
mod point;
pub mod problem;
mod provider;
pub mod quantise;
pub mod scoring;
mod side_stack;
pub mod single;
mod sizes;

pub use artifacts::{Artifacts, artifacts};
pub use fold::Folded;
pub use freeze::BACKBONE_LOGITS;
pub use in_place::written_in_place;
pub use initial::Initial;
pub use ladder::kept::Choice;
pub use ladder::key::{Key, Rung};
pub use ladder::ladder_side_tuning;
pub use ladder::plan::{Group, Plan};
pub use module::{Module, Parameter, Point, Tap, is_backbone};
pub use options::Options;
pub use parts::{COUNTED_ROWS, Narrow, Parts, parts};
pub use pipeline::{Pass, PassError, Pipeline, Timing};
pub use problem::Problem;
pub use provider::{for_cuda, integer_products};
pub use quantise::Store;
