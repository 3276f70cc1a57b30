//! The backbone in another precision: which one, what stays in the source's, and the measured loss.
//!
//! A tap's error is that of the whole sample: the root of the sum of squared differences from the source's own values,
//! over that of the squares of these.

mod auto;
mod measure;
mod more_bits;
mod sample;

use lstc_graph::{DType, Graph, ValueId};
use lstc_models::Anatomy;
use lstc_passes::options::{BackboneOptions, Int8Weights, Precision};
use lstc_passes::quantise::products;

pub use auto::{Candidate, fastest};
pub use measure::measure;
pub use more_bits::more_bits;
pub use sample::{Given, feeds, sample_of};

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
