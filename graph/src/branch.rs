//! Two graphs in one: a decoder's step with and without a cache of keys and values, behind an `If` on an input.
//!
//! Exporters merge a decoder in this way to share its weights. Only the branch without a cache computes a whole sequence, which is
//! what training needs: it replaces the `If`. Every other `If` stays, and is refused as control flow.

use std::borrow::Cow;
use std::collections::HashSet;

use crate::dtype::DType;
use crate::onnx::proto::{GraphProto, NodeProto, ValueInfoProto, type_proto};

/// The graph with such an `If` resolved; inputs that only the other branch reads go too.
pub fn without_cache(graph: &GraphProto) -> Cow<'_, GraphProto> {
    let caches: HashSet<&str> = graph.input.iter().filter(|i| is_cache(i)).map(ValueInfoProto::name).collect();
    let inputs: HashSet<&str> = graph.input.iter().map(ValueInfoProto::name).collect();
    let chosen = |node: &NodeProto| {
        let on_input = node.op_type() == "If" && node.domain().is_empty();
        let on_input = on_input && node.input.first().is_some_and(|c| inputs.contains(c.as_str()));
        let branches: Vec<&GraphProto> = node.attribute.iter().filter_map(|a| a.g.as_ref()).collect();
        let [a, b] = branches[..] else { return None };
        let reads =
            |branch: &GraphProto| branch.node.iter().flat_map(|n| &n.input).any(|i| caches.contains(i.as_str()));
        match (on_input, reads(a), reads(b)) {
            (true, true, false) => Some(b.clone()),
            (true, false, true) => Some(a.clone()),
            _ => None,
        }
    };
    if !graph.node.iter().any(|n| chosen(n).is_some()) {
        return Cow::Borrowed(graph);
    }
    let mut flat = GraphProto { node: Vec::new(), ..graph.clone() };
    for node in &graph.node {
        match chosen(node) {
            None => flat.node.push(node.clone()),
            Some(branch) => {
                flat.initializer.extend(branch.initializer);
                flat.value_info.extend(branch.value_info);
                flat.node.extend(branch.node);
                for (inner, outer) in branch.output.iter().zip(&node.output) {
                    if inner.name() != outer && !outer.is_empty() {
                        flat.node.push(NodeProto {
                            op_type: Some("Identity".to_owned()),
                            name: Some(outer.clone()),
                            input: vec![inner.name().to_owned()],
                            output: vec![outer.clone()],
                            ..NodeProto::default()
                        });
                    }
                }
            }
        }
    }
    let read: HashSet<&str> = flat.node.iter().flat_map(|n| &n.input).map(String::as_str).collect();
    let unread: HashSet<String> =
        inputs.iter().filter(|name| !read.contains(*name)).map(|name| (*name).to_owned()).collect();
    flat.input.retain(|i| !unread.contains(i.name()));
    Cow::Owned(flat)
}

/// Keys and values of earlier steps are floats of four axes, unlike any other input of a language model.
fn is_cache(input: &ValueInfoProto) -> bool {
    match input.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        Some(type_proto::Value::TensorType(tensor)) => {
            let is_float = DType::from_onnx(tensor.elem_type()).is_some_and(DType::is_float);
            is_float && tensor.shape.as_ref().is_some_and(|s| s.dim.len() == 4)
        }
        _ => false,
    }
}
