//! A graph of a narrow float type as the same graph in f32.

use crate::attribute::Attribute;
use crate::dtype::DType;
use crate::emit::Builder;
use crate::ir::{Graph, Origin, Source, ValueId};
use crate::weight::Weight;

/// Larger weights stay as they are in the file, and are cast when the graph runs.
const MAX_CONVERTED: usize = 1024;

/// Everything of type `narrow` computes in f32. Large weights stay narrow, under their names, with a cast after them.
///
/// Nothing is rounded that was not before: every value of a narrow float type is an f32.
pub fn widen(graph: &mut Graph, narrow: DType) {
    let of_type = |graph: &Graph, v: ValueId| graph.value(v).dtype == Some(narrow);
    if !graph.value_ids().any(|v| of_type(graph, v)) {
        return;
    }
    let uses = graph.uses();
    let values: Vec<ValueId> = graph.value_ids().filter(|v| of_type(graph, *v)).collect();
    for value in values {
        match &graph.value(value).source {
            Source::Weight(weight) if weight.elements() <= MAX_CONVERTED => {
                let converted = Weight::from_f32(weight.dims(), &weight.to_f32().unwrap_or_default());
                graph.convert_weight(value, converted);
            }
            Source::Weight(_) if uses.of(value).is_empty() => {}
            Source::Weight(_) => {
                let b = Builder::new(graph, Origin::SOURCE);
                b.scope(&b.read(|g| g.value(value).name.clone()));
                let wide = b.cast(value, DType::F32);
                graph.redirect(value, wide);
            }
            Source::Input(_) | Source::Node(..) => graph.set_dtype(value, DType::F32),
        }
    }
    let (from, to) = (i64::from(narrow.onnx()), i64::from(DType::F32.onnx()));
    let mut idle = Vec::new();
    for id in graph.node_ids().collect::<Vec<_>>() {
        let node = graph.node(id);
        if node.is("Cast") && [from, to].iter().any(|t| node.attributes.get_int("to") == Some(*t)) {
            if let (Some(x), Some(y)) = (node.input(0), node.output(0))
                && graph.value(x).dtype == Some(DType::F32)
                && !graph.outputs.contains(&y)
            {
                idle.push((x, y));
            }
            graph.set_attribute(id, "to", Attribute::Int(to));
        } else if let Some(Attribute::Tensor(weight)) = node.attributes.get("value")
            && weight.dtype() == narrow
        {
            let converted = Weight::from_f32(weight.dims(), &weight.to_f32().unwrap_or_default());
            graph.set_attribute(id, "value", Attribute::Tensor(converted));
        }
    }
    // A cast to the type that its operand has by now. ONNX Runtime's fusions stumble over those.
    for (x, y) in idle {
        graph.redirect(y, x);
    }
}
