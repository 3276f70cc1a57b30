//! Contents of small integer tensors that the library loses: sizes on their way into a shape.

use rten_shape_inference::SymTensor;

use super::{Dim, MAX_KNOWN_ELEMENTS, saturate};
use crate::dtype::DType;
use crate::ir::{Graph, Node};

/// The fact of an output whose contents follow from those of the operands; `None` where they do not.
pub(super) fn known(graph: &Graph, node: &Node, inputs: &[Option<SymTensor>], to: Option<DType>) -> Option<SymTensor> {
    let fact = |slot: usize| inputs.get(slot)?.as_ref();
    let values = || fact(0)?.values().filter(|values| values.len() <= MAX_KNOWN_ELEMENTS);
    match node.op.as_str() {
        // Between a scalar and a vector of one element.
        "Reshape" => match (fact(1)?.as_vector()?, values()?) {
            ([], [only]) => Some(SymTensor::from_scalar(only.clone())),
            ([Dim::Value(-1)], values) => Some(SymTensor::from_vec(values.to_vec())),
            ([Dim::Value(1)], [only]) => Some(SymTensor::from_vec(vec![only.clone()])),
            _ => None,
        },
        "Abs" => {
            let absolute = values()?.iter().map(|value| match value {
                Dim::Value(value) => value.checked_abs().map(Dim::Value),
                // A size is its own.
                other => other.is_positive().then(|| other.clone()),
            });
            let absolute = absolute.collect::<Option<Vec<Dim>>>()?;
            Some(match fact(0)?.as_scalar() {
                Some(_) => SymTensor::from_scalar(absolute.first()?.clone()),
                None => SymTensor::from_vec(absolute),
            })
        }
        // A whole number that is written as a float.
        "Cast" | "CastLike" if to.is_some_and(|to| !to.is_float() && to != DType::Bool) => {
            let number = graph.weight(node.input(0)?).filter(|w| w.dims().is_empty() && w.dtype().is_float())?;
            let number = number.as_scalar().filter(|v| v.fract() == 0.0 && v.abs() < f64::from(i32::MAX))?;
            Some(SymTensor::from_scalar(saturate(number as i64)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::text::parse;
    use crate::{dim_text, shape_text};

    fn contents(nodes: &str) -> Option<String> {
        let text = format!("(ids: i64[batch, length], x: i64[2]) {{ {nodes} }} -> y");
        let graph = parse(&text, 18).unwrap_or_else(|e| panic!("{text}: {e:?}"));
        let value = graph.value(graph.outputs[0]);
        value.contents().map(|sizes| sizes.iter().map(dim_text).collect::<Vec<_>>().join(" "))
    }

    const SIZE: &str = "n = Shape<start=1, end=2>(ids)  zero = const i64[1] {0}  size = Squeeze(n, zero)";

    #[test]
    fn a_size_that_becomes_a_vector_is_still_known() {
        for shape in ["i64[1] {-1}", "i64[1] {1}"] {
            assert_eq!(
                contents(&format!("{SIZE}  s = const {shape}  y = Reshape(size, s)")).as_deref(),
                Some("length")
            );
        }
        assert_eq!(contents(&format!("{SIZE}  y = Abs(n)")).as_deref(), Some("length"));
        assert_eq!(contents("c = const i64[2] {-1, 3}  y = Abs(c)").as_deref(), Some("1 3"));
        assert_eq!(contents("c = const f32[] {2}  y = Cast<to=7>(c)").as_deref(), Some("2"));
    }

    #[test]
    fn what_is_not_known_stays_so() {
        assert_eq!(contents("y = Abs(x)"), None);
        assert_eq!(contents(&format!("{SIZE}  m = Neg(n)  y = Abs(m)")), None);
        assert_eq!(contents("c = const f32[] {2.5}  y = Cast<to=7>(c)"), None);
    }

    #[test]
    fn minima_of_sizes_are_decided() {
        let sizes = "one = const i64[1] {1}  n = Shape<start=1, end=2>(ids)  more = Add(n, one)";
        let text = format!(
            "(ids: i64[batch, length]) {{ {sizes}  long = Expand(one, more)  zero = const i64[1] {{0}}  \
                            y = Slice(long, zero, n, zero, one) }} -> y"
        );
        let graph = parse(&text, 18).unwrap_or_else(|e| panic!("{text}: {e:?}"));
        assert_eq!(graph.shape(graph.outputs[0]).map(|shape| shape_text(&shape)).as_deref(), Some("[length]"));
    }
}
