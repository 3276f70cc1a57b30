//! What a side network was made for, as its own file records it. One of another rewrite may have the same shapes.

use std::path::Path;

use anyhow::Context;
use lstc_models::TowerKind;
use lstc_passes::Point;
use lstc_passes::options::{Gate, Merge, Method};
use serde::{Deserialize, Serialize};

use crate::manifest::{SourceFile, TapSummary};
use crate::side::Metadata;

/// The key of the metadata.
const KEY: &str = "lstc.made_for";

/// What the outputs of a side network depend on besides its parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MadeFor {
    /// BLAKE3 of the model's files.
    source: Vec<String>,
    gate: Gate,
    temperature: f32,
    /// Of fixed gates.
    alpha: Option<f32>,
    merge_last: bool,
    #[serde(default)]
    merge: Merge,
    taps: Vec<(TowerKind, Point)>,
}

impl MadeFor {
    pub fn new(source: &[SourceFile], method: &Method, taps: &[TapSummary]) -> MadeFor {
        MadeFor {
            source: source.iter().map(|file| file.blake3.clone()).collect(),
            gate: method.gate,
            temperature: method.temperature,
            alpha: (method.gate == Gate::Fixed).then_some(method.alpha),
            merge_last: method.merge_last,
            merge: method.merge,
            // The logits are for the loss alone.
            taps: taps.iter().filter(|tap| tap.point != Point::Logits).map(|tap| (tap.tower, tap.point)).collect(),
        }
    }

    /// An entry of the metadata.
    ///
    /// # Errors
    /// Never caused by what it says.
    pub fn entry(&self) -> anyhow::Result<(&'static str, String)> {
        Ok((KEY, serde_json::to_string(self)?))
    }

    /// How a side network, by its metadata, differs from one that was made for this rewrite, in words; none if it does not, or does
    /// not say.
    ///
    /// # Errors
    /// Metadata that are damaged.
    pub fn difference(&self, path: &Path, metadata: &Metadata) -> anyhow::Result<Option<String>> {
        let Some(text) = metadata.get(KEY) else { return Ok(None) };
        let name = path.display();
        let found: MadeFor = serde_json::from_str(text)
            .with_context(|| format!("`{name}` does not say what it was made for in a form that this version reads"))?;
        let mut differences = Vec::new();
        if found.source != self.source {
            differences.push("another model".to_owned());
        }
        if found.taps != self.taps {
            differences.push("other taps".to_owned());
        }
        if found.gate != self.gate
            || found.alpha != self.alpha
            || found.merge_last != self.merge_last
            || found.merge != self.merge
        {
            differences.push("other gates".to_owned());
        }
        if found.temperature != self.temperature {
            differences.push(format!("temperature {}, not {}", found.temperature, self.temperature));
        }
        Ok((!differences.is_empty()).then(|| format!("`{name}` was made for {}", differences.join(", "))))
    }
}
