//! The configuration file: the options, as a user writes them and as a manifest records them.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use lstc_passes::Options;
use lstc_passes::options::{LossOptions, Method, OptimizerOptions};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::manifest::SourceFile;

/// What `--config` reads. A manifest is a configuration too: its record of what was made is passed over.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The model: its own file first, then its data files.
    pub source: Vec<SourceFile>,
    pub method: Method,
    pub loss: LossOptions,
    pub optimizer: OptimizerOptions,
    /// The version of lstc that wrote a manifest.
    lstc: Option<String>,
    #[serde(rename = "model")]
    _model: Option<IgnoredAny>,
    #[serde(rename = "inputs")]
    _inputs: Option<IgnoredAny>,
    #[serde(rename = "tokens")]
    _tokens: Option<IgnoredAny>,
    #[serde(rename = "graphs")]
    _graphs: Option<IgnoredAny>,
    #[serde(rename = "parameters")]
    _parameters: Option<IgnoredAny>,
    #[serde(rename = "taps")]
    _taps: Option<IgnoredAny>,
    #[serde(rename = "cut")]
    _cut: Option<IgnoredAny>,
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// A file that cannot be read, or the line and column at which it is no configuration.
    pub fn read(path: &Path) -> anyhow::Result<Config> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        serde_yaml::from_str(&text).with_context(|| format!("`{}` is no configuration", path.display()))
    }

    /// The version of lstc that wrote this as a manifest.
    pub fn written_by(&self) -> Option<&str> {
        self.lstc.as_deref()
    }

    pub fn options(&self) -> Options {
        Options { method: self.method.clone(), loss: self.loss.clone(), optimizer: self.optimizer.clone() }
    }
}

/// The complete configuration with a comment on every key: what `--print-config` prints.
pub fn annotated(options: &Options) -> String {
    let Options { method: m, loss: l, optimizer: o } = options;
    let mut text = String::new();
    let mut line = |key: &str, value: String, comment: &str| {
        let _ = writeln!(text, "{:<28} # {comment}", format!("{key}: {value}"));
    };
    line("method", String::new(), "Ladder Side-Tuning");
    line("  reduction", m.reduction.to_string(), "the side network's widths are the backbone's divided by this");
    let blocks: Vec<String> =
        m.blocks.iter().map(|(k, v)| format!("{}: {v:?}", format!("{k:?}").to_lowercase())).collect();
    line(
        "  blocks",
        format!("{{{}}}", blocks.join(", ")),
        "kept blocks by tower, e.g. {encoder: [1, 3]}; others keep all",
    );
    line("  gate", m.gate.to_string(), "learnable | fixed | none: how taps are mixed in");
    line("  temperature", number(m.temperature), "T of the gates, sigmoid(alpha / T)");
    line("  alpha", number(m.alpha), "initial alpha of the gates; what a fixed gate keeps");
    line("  merge_last", m.merge_last.to_string(), "mix the backbone's final output in before the LM head");
    line("  bias", m.bias.to_string(), "biases on the down- and up-projections");
    line("  dropout", number(m.dropout), "dropout rate inside the side network, in training only");
    line("  init", m.init.to_string(), "magnitude | magnitude-consistent | random");
    line("  seed", m.seed.to_string(), "of the initial values and of dropout");
    line("loss", String::new(), "label * cross-entropy + distill * KL from the backbone's own logits");
    line("  label", number(l.label), "weight of the cross-entropy with the labels");
    line("  distill", number(l.distill), "weight of the distillation; 0 leaves it out");
    line("optimizer", String::new(), "AdamW");
    line("  beta1", number(o.beta1), "decay of the first moment");
    line("  beta2", number(o.beta2), "decay of the second moment");
    line("  epsilon", number(o.epsilon), "added to the root of the second moment");
    line("  weight_decay", number(o.weight_decay), "decoupled; on matrices only");
    line("  clip", number(o.clip), "largest global norm of the gradients; 0 does not clip");
    text
}

/// A float that reads back as a float of the same value.
fn number(value: f32) -> String {
    format!("{value:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_reads_back() {
        let mut options = Options::default();
        options.method.alpha = 0.05;
        options.method.blocks.insert(lstc_passes::options::TowerName::Encoder, vec![1, 2]);
        options.optimizer.epsilon = 1e-8;
        let read: Config = serde_yaml::from_str(&annotated(&options)).expect("it is a configuration");
        assert_eq!(read.options(), options);
    }

    #[test]
    fn a_slip_is_named_with_its_line() {
        let error = serde_yaml::from_str::<Config>("method:\n  reductoin: 8\n").expect_err("a slip").to_string();
        assert!(error.contains("reductoin") && error.contains("line 2"), "{error}");
    }
}
