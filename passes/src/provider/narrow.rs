//! Products in bf16 where a device multiplies such numbers several times faster, and casts that change nothing.
//!
//! ```text
//! x W, W dequantised from the source's integers    cast(cast(x) cast(W))
//! MatMulNBits(x, Q, s)                             cast(MatMulNBits(cast(x), Q, cast(s)))
//! cast(Relu(cast(x)))                              Relu(x)
//! cast(norm(x, w))                                 norm(x, cast(w)), to fp16
//! ```
//!
//! For more than a few rows the provider dequantises a matrix of 4 or 8 bits in every run, to the type of the activations: to bf16 that is
//! half the memory, and tensor cores multiply it. bf16 has the range of f32, and loses no more than 8 bits leave.

use lstc_graph::{Attributes, Builder, DType, Graph, NodeId, ValueId};
use lstc_models::RESTATED;

use super::{PROVIDER, name_after, replace};
use crate::module::is_backbone;

/// Makes the backbone's quantised products multiply in bf16.
pub(super) fn products(graph: &mut Graph) {
    let is_f32 = |graph: &Graph, v: Option<ValueId>| v.is_some_and(|v| graph.value(v).dtype == Some(DType::F32));
    let taken: Vec<NodeId> = graph
        .node_ids()
        .filter(|id| {
            let node = graph.node(*id);
            let dequantised = |slot: usize| {
                let made = node.input(slot).and_then(|v| graph.producer_of(v)).map(|(id, _)| graph.node(id));
                made.is_some_and(|made| {
                    made.is("DequantizeLinear") && made.input(0).is_some_and(|v| graph.weight(v).is_some())
                })
            };
            let quantised = node.is("MatMul") && node.origin == RESTATED && dequantised(1);
            let blocks = node.op == "MatMulNBits" && node.input(4).is_none() && node.input(5).is_none();
            (quantised || blocks && is_backbone(&node.origin))
                && is_f32(graph, node.input(0))
                && is_f32(graph, node.output(0))
        })
        .collect();
    let b = Builder::new(graph, PROVIDER);
    let mut made = Vec::new();
    for id in taken {
        let node = b.read(|graph| graph.node(id).clone());
        let Some(y) = node.output(0) else { continue };
        name_after(&b, y);
        let narrow = |value: ValueId| match b.dtype(value) {
            Some(DType::F32) => b.cast(value, DType::BF16),
            _ => value,
        };
        let operands: Vec<ValueId> = node.inputs.iter().flatten().map(|v| narrow(*v)).collect();
        let product = match node.is_default_domain() {
            true => b.unshared(&node.op, &operands, node.attributes.clone(), 1)[0],
            false => b.microsoft(&node.op, &operands, node.attributes.clone()),
        };
        b.edit(|graph| graph.set_dtype(product, DType::BF16));
        made.push((y, b.unshared("Cast", &[product], to(DType::F32), 1)[0]));
    }
    replace(&b, made);
}

fn to(dtype: DType) -> Attributes {
    Attributes::none().int("to", dtype.onnx().into())
}

/// Removes casts between a narrow type and f32 that change no number, and makes norms give fp16 where nothing else is read.
pub(super) fn casts(graph: &mut Graph) {
    let uses = graph.uses();
    let only_reader = |value: ValueId| match uses.of(value) {
        [(reader, _)] if !graph.outputs.contains(&value) => Some(graph.node(*reader)),
        _ => None,
    };
    let narrows = |node: &lstc_graph::Node| {
        let dtype = node.output(0).filter(|_| node.is("Cast")).and_then(|v| graph.value(v).dtype);
        dtype.filter(|dtype| matches!(dtype, DType::F16 | DType::BF16))
    };
    let mut rectified = Vec::new();
    let mut normed = Vec::new();
    for id in graph.node_ids() {
        let node = graph.node(id);
        let (Some(x), Some(y)) = (node.input(0), node.output(0)) else { continue };
        if node.is("Relu")
            && let Some(reader) = only_reader(y)
            && let (Some(narrow), Some(end)) = (narrows(reader), reader.output(0))
            && let Some((wide, _)) = graph.producer_of(x)
            && graph.node(wide).is("Cast")
            && let Some(start) = graph.node(wide).input(0).filter(|v| graph.value(*v).dtype == Some(narrow))
        {
            rectified.push((start, end));
        }
        let readers = || uses.of(y).iter().map(|(reader, _)| narrows(graph.node(*reader)));
        if node.is("SimplifiedLayerNormalization")
            && node.origin == PROVIDER
            && !graph.outputs.contains(&y)
            && !uses.of(y).is_empty()
            && readers().all(|narrow| narrow == Some(DType::F16))
        {
            normed.push((
                id,
                uses.of(y).iter().filter_map(|(reader, _)| graph.node(*reader).output(0)).collect::<Vec<_>>(),
            ));
        }
    }
    let b = Builder::new(graph, PROVIDER);
    let mut made = Vec::new();
    for (start, end) in rectified {
        name_after(&b, end);
        made.push((end, b.unshared("Relu", &[start], Attributes::none(), 1)[0]));
    }
    for (id, ends) in normed {
        let node = b.read(|graph| graph.node(id).clone());
        let (Some(x), Some(weight)) = (node.input(0), node.input(1)) else { continue };
        for end in ends {
            name_after(&b, end);
            let norm = b.unshared(&node.op, &[x, b.cast(weight, DType::F16)], node.attributes.clone(), 1)[0];
            b.edit(|graph| graph.set_dtype(norm, DType::F16));
            made.push((end, norm));
        }
    }
    replace(&b, made);
}

#[cfg(test)]
mod tests {
    use lstc_graph::parse;

    use super::*;

    fn operators(graph: &Graph) -> Vec<String> {
        graph.order().expect("no cycle").iter().map(|id| graph.node(*id).op.clone()).collect()
    }

    fn without_casts(body: &str) -> Vec<String> {
        let text = format!("(x: bf16[B, 4]) {{ {body} }} -> y");
        let mut graph = parse(&text, 18).expect("the test's graph is well-formed");
        casts(&mut graph);
        graph.remove_dead();
        assert_eq!(graph.value(graph.outputs[0]).name, "y");
        operators(&graph)
    }

    #[test]
    fn a_relu_between_casts_rectifies_what_was_cast() {
        assert_eq!(without_casts("a = Cast<to=1>(x)  b = Relu(a)  y = Cast<to=16>(b)"), ["Relu"]);
    }

    #[test]
    fn what_another_reads_wide_and_what_is_no_relu_stays() {
        let other = "a = Cast<to=1>(x)  b = Relu(a)  c = Cast<to=16>(b)  d = Cast<to=16>(b)  y = Add(c, d)";
        assert_eq!(without_casts(other), ["Cast", "Relu", "Cast", "Cast", "Add"]);
        let other = "a = Cast<to=1>(x)  b = Exp(a)  y = Cast<to=16>(b)";
        assert_eq!(without_casts(other), ["Cast", "Exp", "Cast"]);
        let half = "a = Cast<to=1>(x)  b = Relu(a)  y = Cast<to=10>(b)";
        assert_eq!(without_casts(half), ["Cast", "Relu", "Cast"]);
    }

    #[test]
    fn blocks_are_multiplied_in_bf16() {
        let text = "(x: f32[B, 32]) {
            q = const u8[2, 1, 16] {0}
            s = const f32[2] {1, 1}
            y = com.microsoft::MatMulNBits<K=32, N=2, bits=4, block_size=32>(x, q, s)
        } -> y";
        let text = text.replace("{0}", &format!("{{{}}}", vec!["0"; 32].join(", ")));
        let mut graph = parse(&text, 18).expect("the test's graph is well-formed");
        products(&mut graph);
        graph.remove_dead();
        assert_eq!(operators(&graph), ["Cast", "Cast", "MatMulNBits", "Cast"]);
        assert_eq!(graph.value(graph.outputs[0]).dtype, Some(DType::F32));
    }
}
