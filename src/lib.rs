//! `lstc`: a compiler from an ONNX transformer to a ladder side-tuning training step.

pub mod bench;
pub mod commands;
pub mod export;
pub mod import;
pub mod inspect;
mod probe;
mod query;
pub mod rewrite;
pub mod verify;
