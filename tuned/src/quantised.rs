//! What a backbone in another precision lost by it: a part of the manifest.

use std::fmt;
use std::path::PathBuf;

use lstc_base::report::Bytes;
use lstc_models::TowerKind;
use lstc_passes::Module;
use lstc_passes::options::BackboneOptions;
use serde::{Deserialize, Serialize};

/// What became of the backbone's products, and what it cost: a part of the manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantised {
    /// Products that are computed in the other precision, and of how many.
    pub taken: usize,
    pub of: usize,
    /// Products whose matrix the type cannot hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unfit: Vec<String>,
    /// Products that are fused or quantised in the source, or already of the type.
    pub others: usize,
    /// Bytes of the matrices of those that were taken, in the source and now.
    pub bytes_before: u64,
    pub bytes_after: u64,
    pub sample: Sample,
    /// Whether every tap's error is within the limit, if there is one; the final output's and the logits' too, if they are taps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within_limit: Option<bool>,
    #[serde(flatten)]
    pub measured: Measured,
}

impl Quantised {
    /// What is recorded of a module whose backbone is in another precision; none if it is not.
    pub fn new(module: &Module, sample: Sample, measured: Measured) -> Option<Quantised> {
        let quantised = module.quantised.as_ref()?;
        let limit = module.options.backbone.limit();
        // Distillation reads the logits.
        let logits = (module.options.loss.distill > 0.0).then_some(measured.logits);
        let others = measured.output.into_iter().chain(logits);
        let within = |limit: f64| measured.taps.iter().map(|tap| tap.error).chain(others).all(|error| error <= limit);
        Some(Quantised {
            taken: quantised.products.len(),
            of: quantised.of(),
            unfit: quantised.unfit.iter().map(|y| module.graph.value(*y).name.clone()).collect(),
            others: quantised.others,
            bytes_before: quantised.bytes_before,
            bytes_after: quantised.bytes_after,
            sample,
            within_limit: limit.map(within),
            measured,
        })
    }
}

/// The error of a tap, or of what would be one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TapError {
    pub tower: TowerKind,
    pub block: usize,
    pub error: f64,
}

/// What a precision loses on a sample.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub taps: Vec<TapError>,
    /// The error of the final output, if `merge_last` makes it a tap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<f64>,
    /// The relative error of the backbone's own logits.
    pub logits: f64,
    /// The share of positions at which another token is the likeliest.
    pub argmax_changed: f64,
}

/// Where sample tokens come from, as a manifest records it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Sample {
    /// Drawn at random.
    Drawn { seed: u64 },
    /// The first examples of a file.
    File { file: PathBuf, blake3: String, examples: usize },
}

impl Default for Sample {
    fn default() -> Sample {
        Sample::Drawn { seed: 0 }
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sample::Drawn { .. } => write!(f, "random tokens"),
            Sample::File { file, examples, .. } => write!(f, "{examples} examples of `{}`", file.display()),
        }
    }
}

/// The largest error of the taps, and the median.
pub fn spread(taps: &[TapError]) -> (f64, f64) {
    let mut errors: Vec<f64> = taps.iter().map(|t| t.error).collect();
    errors.sort_by(f64::total_cmp);
    (errors.last().copied().unwrap_or(0.0), errors.get(errors.len() / 2).copied().unwrap_or(0.0))
}

/// The first of some names, and how many more there are: `lst.yaml` has them all.
fn some(names: &[String]) -> String {
    const MOST: usize = 4;
    match names.get(MOST..) {
        None | Some([]) => names.join(", "),
        Some(more) => format!("{} and {} more", names[..MOST].join(", "), more.len()),
    }
}

/// The lines of a report.
pub struct Lines<'q> {
    pub backbone: &'q BackboneOptions,
    pub quantised: &'q Quantised,
}

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Lines { backbone, quantised: q } = self;
        let form = backbone.int8_weights.map_or_else(String::new, |form| format!(", {form} weights"));
        writeln!(
            f,
            "  backbone {}{form}: {} of {} products, their matrices {}, {} before",
            backbone.precision,
            q.taken,
            q.of,
            Bytes(q.bytes_after),
            Bytes(q.bytes_before)
        )?;
        for (names, how) in [(&backbone.in_8_bits, "of them in 8 bits"), (&backbone.kept, "kept as they are")] {
            let names = names.as_deref().unwrap_or_default();
            if !names.is_empty() {
                writeln!(f, "  {} {how}: {}", names.len(), some(names))?;
            }
        }
        if !q.unfit.is_empty() {
            writeln!(f, "  {} that {} cannot hold: {}", q.unfit.len(), backbone.precision, q.unfit.join(", "))?;
        }
        let (most, median) = spread(&q.measured.taps);
        let output = q.measured.output.map_or_else(String::new, |e| format!("; final output {:.2} %", 100.0 * e));
        writeln!(
            f,
            "  error {:.2} % at a tap (median), {:.2} % at most{output}; logits {:.2} %, a different likeliest token at {:.1} % of \
             the positions, on {}",
            100.0 * median,
            100.0 * most,
            100.0 * q.measured.logits,
            100.0 * q.measured.argmax_changed,
            q.sample
        )
    }
}
