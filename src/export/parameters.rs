//! A side network's tensors as the constants of a graph.

use anyhow::{anyhow, bail};
use lstc_graph::{Attributes, Builder, Dim, Graph, Origin, ValueId, Weight};
use lstc_tuned::side::Side;

/// A side network's tensors as weights.
pub(super) fn weights(side: &Side) -> Vec<(String, Weight)> {
    let weight = |values: &ndarray::ArrayD<f32>| {
        let values = values.as_standard_layout();
        Weight::from_f32(values.shape(), values.as_slice().expect("it is in standard layout"))
    };
    side.iter().map(|(name, values)| (name.clone(), weight(values))).collect()
}

/// Replaces inputs of a graph by constants of the same names.
///
/// # Errors
/// A name that is not an input of the graph, or is one of another type or shape.
pub(super) fn bind(graph: &mut Graph, values: &[(String, Weight)]) -> anyhow::Result<()> {
    for (name, weight) in values {
        let input = graph.find(name).filter(|v| graph.inputs.contains(v));
        let Some(input) = input.filter(|v| takes(graph, *v, weight)) else {
            bail!("it has no input `{name}` of f32 {:?}", weight.dims());
        };
        let aside = graph.fresh_name(name);
        graph.rename(input, &aside).map_err(|e| anyhow!(e))?;
        let constant = graph.add_weight(name, weight.clone());
        // Kernels rearrange a constant matrix, and then sum in another order than for infer.onnx, where it is an
        // input. After an Identity they do so only if graph optimisation, which removes it, is on.
        let seen = match weight.dims().len() {
            2 => Builder::new(graph, Origin::SOURCE).op("Identity", &[constant], Attributes::none()),
            _ => constant,
        };
        graph.redirect(input, seen);
        graph.inputs.retain(|v| *v != input);
    }
    Ok(())
}

fn takes(graph: &Graph, input: ValueId, weight: &Weight) -> bool {
    let dims: Vec<Dim> = weight.dims().iter().map(|&d| i32::try_from(d).map_or(Dim::Value(-1), Dim::Value)).collect();
    graph.value(input).dtype == Some(weight.dtype()) && graph.shape(input) == Some(dims)
}
