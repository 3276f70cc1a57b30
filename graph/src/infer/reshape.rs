//! Reshapes that cannot be: a shape with another number of elements than what is reshaped.

use rten_shape_inference::SymTensor;

use super::{Dim, dim_text, shape_text};

/// Why a tensor cannot have the shape that is written, where the two decide it.
pub(super) fn refusal(inputs: &[Option<SymTensor>], zero_copies: bool) -> Option<String> {
    let written = inputs.get(1)?.as_ref()?.as_vector()?;
    let is = |dim: &Dim, wanted: i32| matches!(dim, Dim::Value(v) if *v == wanted);
    let text = || format!("[{}]", written.iter().map(dim_text).collect::<Vec<_>>().join(", "));
    if written.iter().any(|dim| matches!(dim, Dim::Value(..=-2))) {
        return Some(format!("is reshaped to {}, which has a negative size", text()));
    }
    let inferred = written.iter().filter(|dim| is(dim, -1)).count();
    if inferred > 1 {
        return Some(format!("is reshaped to {}, which leaves more than one size to be inferred", text()));
    }
    let shape: Vec<Dim> = inputs.first()?.as_ref()?.shape()?.collect();
    let mut left: Vec<Option<&Dim>> = shape.iter().map(Some).collect();
    let mut elements: i64 = 1;
    for (axis, dim) in written.iter().enumerate() {
        match dim {
            Dim::Value(-1) => {}
            // An axis that is copied, which counts on both sides.
            Dim::Value(0) if zero_copies => *left.get_mut(axis)? = None,
            Dim::Value(size) => elements = elements.checked_mul(i64::from(*size))?,
            other => *left.iter_mut().find(|dim| **dim == Some(other))? = None,
        }
    }
    let sizes = left.into_iter().flatten().map(|dim| match dim {
        Dim::Value(size) => Some(i64::from(*size)),
        _ => None,
    });
    let given = sizes.collect::<Option<Vec<i64>>>()?.into_iter().try_fold(1_i64, |all, size| all.checked_mul(size))?;
    let fits = if inferred == 0 { given == elements } else { elements > 0 && given % elements == 0 };
    (!fits).then(|| format!("is reshaped from {} to {}, which does not fit", shape_text(&shape), text()))
}

#[cfg(test)]
mod tests {
    use crate::text::parse;

    /// Why `x` of `[batch, length, 6]` cannot be reshaped so; empty where it can.
    fn refused(shape: &str) -> String {
        let text = format!("(x: f32[batch, length, 6]) {{ s = const i64{shape}  y = Reshape(x, s) }} -> y");
        parse(&text, 17).err().map_or_else(String::new, |e| e.to_string())
    }

    #[test]
    fn a_shape_that_does_not_fit_is_refused() {
        assert!(refused("[4] {0, 0, 2, 4}").contains("does not fit"), "{}", refused("[4] {0, 0, 2, 4}"));
        assert!(refused("[3] {0, -1, -1}").contains("more than one size"));
        assert!(refused("[3] {0, -2, 6}").contains("a negative size"));
    }

    #[test]
    fn a_shape_that_fits_or_may_fit_is_not() {
        for shape in ["[4] {0, 0, 2, 3}", "[2] {-1, 6}", "[4] {0, -1, 2, 3}", "[3] {2, 5, 6}", "[2] {-1, 5}"] {
            assert_eq!(refused(shape), "", "{shape}");
        }
    }
}
