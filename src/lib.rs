//! `lstc`: a compiler from an ONNX transformer to a ladder side-tuning training step.

pub mod bench;
pub mod cache;
pub mod commands;
pub mod data;
pub mod evaluate;
pub mod export;
mod files;
mod hash;
pub mod import;
pub mod inspect;
pub mod interrupt;
mod json;
pub mod memory;
mod output;
pub mod report;
pub mod rewrite;
pub mod runtime;
mod scratch;
pub mod side;
pub mod train;
pub mod verify;
