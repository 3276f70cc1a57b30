//! Graphs are run on drawn inputs, and what they give is compared.

pub mod sample;

use lstc_graph::{Builder, DType, Graph, Origin, ValueId};
use lstc_runtime::{Session, Tensor};

/// Makes values a graph's outputs, as f32 if they are of another float type; returns their names.
pub fn give(graph: &mut Graph, values: &[ValueId]) -> Vec<String> {
    let wide = |graph: &mut Graph, v: ValueId| match graph.value(v).dtype {
        Some(dtype) if dtype.is_float() => Builder::new(graph, Origin::pass("verify")).cast(v, DType::F32),
        _ => v,
    };
    graph.outputs = values.iter().map(|v| wide(graph, *v)).collect();
    graph.outputs.iter().map(|v| graph.value(*v).name.clone()).collect()
}

/// Runs a session on the named inputs that it has.
pub fn run(session: &mut Session, inputs: &[(String, Tensor)], outputs: &[String]) -> anyhow::Result<Vec<Tensor>> {
    let taken: Vec<(&str, &Tensor)> = inputs
        .iter()
        .filter(|(name, _)| session.inputs().iter().any(|port| port.name == *name))
        .map(|(name, tensor)| (name.as_str(), tensor))
        .collect();
    let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
    Ok(session.run(&taken, &outputs)?)
}

/// Largest difference between two tensors, and the largest element of the second. Infinite if they cannot be compared,
/// as when one is NaN: that proves nothing.
pub fn difference(a: &Tensor, b: &Tensor) -> (f64, f64) {
    let (Ok(x), Ok(y)) = (a.as_f32(), b.as_f32()) else { return (f64::INFINITY, 1.0) };
    if x.shape() != y.shape() {
        return (f64::INFINITY, 1.0);
    }
    let largest = y.iter().fold(0.0_f64, |m, v| m.max(f64::from(v.abs())));
    let apart = x.iter().zip(&y).fold(0.0_f64, |m, (x, y)| {
        let d = (f64::from(*x) - f64::from(*y)).abs();
        if d.is_nan() { f64::INFINITY } else { m.max(d) }
    });
    (apart, largest)
}
