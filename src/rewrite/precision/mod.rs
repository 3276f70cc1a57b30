//! The backbone in another precision: which one, what stays in the source's, and the measured loss.
//!
//! A tap's error is that of the whole sample: the root of the sum of squared differences from the source's own values,
//! over that of the squares of these.

mod auto;
mod measure;
mod more_bits;
mod sample;

use std::fmt;

use lstc_graph::{DType, Graph, ValueId};
use lstc_models::{Anatomy, TowerKind};
use lstc_passes::Module;
use lstc_passes::options::{BackboneOptions, Int8Weights, Precision};
use lstc_passes::quantise::products;
use serde::{Deserialize, Serialize};

use crate::report::Bytes;
pub use auto::{Candidate, fastest};
pub use measure::{Measured, measure};
pub use more_bits::more_bits;
pub use sample::{Given, Sample};

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
    pub(super) fn new(module: &Module, sample: Sample, measured: Measured) -> Option<Quantised> {
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

/// How this machine computes best with matrices in 8 bits.
pub fn int8_weights() -> Int8Weights {
    #[cfg(target_arch = "x86_64")]
    {
        // Without these, the kernels for i8 add pairs of products in 16 bits, which saturate.
        let exact = is_x86_feature_detected!("avx512vnni") || is_x86_feature_detected!("avxvnni");
        if !exact {
            return Int8Weights::Unsigned;
        }
    }
    Int8Weights::Signed
}

/// The options with what is left open decided, by this machine and by the precision.
pub(super) fn decided(backbone: BackboneOptions) -> BackboneOptions {
    let int8_weights = match backbone.precision {
        Precision::Int8 => backbone.int8_weights.or_else(|| Some(int8_weights())),
        _ => None,
    };
    let max_tap_error = match backbone.precision {
        Precision::Int4 => backbone.max_tap_error.or(Some(BackboneOptions::INT4_ERROR)),
        _ => backbone.max_tap_error,
    };
    BackboneOptions { int8_weights, max_tap_error, ..backbone }
}

/// Whether the backbone's products with constant matrices are of f32.
pub(super) fn is_f32(graph: &Graph, anatomy: &Anatomy) -> bool {
    let products = products(graph, anatomy, false).plain;
    let is_wide = |y: ValueId| graph.value(y).dtype == Some(DType::F32);
    !products.is_empty() && products.iter().all(|product| is_wide(product.y))
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
