//! What every part of lstc stands on.

pub mod files;
pub mod hash;
pub mod interrupt;
pub mod json;
pub mod report;
pub mod scratch;
