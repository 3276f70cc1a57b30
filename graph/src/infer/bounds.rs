//! Minima and maxima of sizes that differ by a known number, which the library does not simplify.

use super::Dim;

/// An expression whose minima and maxima are decided where the sizes themselves decide them: `min(n, n + 1)` is n.
pub(super) fn decided(dim: &Dim) -> Dim {
    let pair = |a: &Dim, b: &Dim| (decided(a), decided(b));
    match dim {
        Dim::Value(_) | Dim::Var(_) => dim.clone(),
        Dim::Neg(x) => (-decided(x)).simplify(),
        Dim::Add(a, b) => (decided(a) + decided(b)).simplify(),
        Dim::Sub(a, b) => (decided(a) - decided(b)).simplify(),
        Dim::Mul(a, b) => (decided(a) * decided(b)).simplify(),
        Dim::Div(a, b) => (decided(a) / decided(b)).simplify(),
        Dim::DivCeil(a, b) => decided(a).div_ceil(&decided(b)).simplify(),
        Dim::Broadcast(a, b) => decided(a).broadcast(&decided(b)).simplify(),
        Dim::Min(a, b) => {
            let (a, b) = pair(a, b);
            match is_at_most(&a, &b) {
                Some(true) => a,
                Some(false) => b,
                None => a.min(&b),
            }
        }
        Dim::Max(a, b) => {
            let (a, b) = pair(a, b);
            match is_at_most(&a, &b) {
                Some(true) => b,
                Some(false) => a,
                None => a.max(&b),
            }
        }
    }
}

/// Whether a is at most b, where that is so for all sizes.
fn is_at_most(a: &Dim, b: &Dim) -> Option<bool> {
    if let Dim::Value(apart) = (b.clone() - a.clone()).simplify() {
        return Some(apart >= 0);
    }
    match (a, b) {
        (Dim::Value(..=0), b) if b.is_positive() => Some(true),
        (a, Dim::Value(..=0)) if a.is_positive() => Some(false),
        _ => None,
    }
}
