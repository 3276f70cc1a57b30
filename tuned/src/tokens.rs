//! The special tokens that a rewrite settled on.

use std::fmt;

use lstc_models::SpecialTokens;
use serde::{Deserialize, Serialize};

/// Where each special token comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origins {
    pub pad: String,
    pub end: String,
    pub start: String,
}

/// A model's special tokens, and where they come from.
#[derive(Clone, Debug, Serialize)]
pub struct Settled {
    pub ids: SpecialTokens,
    pub from: Origins,
}

impl fmt::Display for Settled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SpecialTokens { pad, end, start } = self.ids;
        let from = &self.from;
        if from.pad == from.end && from.end == from.start {
            return write!(f, "padding {pad}, end {end}, decoder start {start} ({})", from.pad);
        }
        write!(f, "padding {pad} ({}), end {end} ({}), decoder start {start} ({})", from.pad, from.end, from.start)
    }
}
