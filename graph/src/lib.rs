//! ONNX in and out: an intermediate representation with memory-mapped weights and symbolic shapes, a verifier, and a
//! text form for tests.
//!
//! **Invariant:** this crate knows graphs and tensors. It knows nothing of transformers, training or the command line.

mod attribute;
mod branch;
mod compare;
mod constant;
mod data_files;
mod dot;
mod dtype;
mod emit;
mod evaluate;
mod fold;
mod infer;
mod ir;
mod join;
mod load;
mod metadata;
pub mod onnx;
pub mod regular;
mod save;
mod schema;
mod spill;
mod text;
mod traverse;
mod verify;
pub mod visit;
mod weight;
mod widen;
mod words;

pub use attribute::{Attribute, Attributes};
pub use compare::Comparer;
pub use data_files::{DataFiles, DataWriter, Links, Means, Saved, copy_data, data_to_run};
pub use dot::dot;
pub use dtype::DType;
pub use emit::Builder;
pub use evaluate::{Numbers, Sized};
pub use fold::Budget;
pub use infer::{Dim, dim_text, fenced, shape_text};
pub use ir::{Graph, MICROSOFT, Node, NodeId, Origin, Role, Source, Uses, Value, ValueId};
pub use join::join;
pub use load::{LoadError, Problem, load, load_bytes};
pub use metadata::metadata;
pub use save::{About, Encoding, encode};
pub use schema::misuses;
pub use spill::Spill;
pub use text::{ParseError, listing, parse, print};
pub use verify::{Flaw, verify};
pub use weight::{FileRange, Weight};
pub use widen::widen;
pub use words::{an, count};
