//! Shapes and element types of what ONNX Runtime's optimiser and the newest opsets fuse.

use rten_shape_inference::{InferShapes, InferShapesContext, InferShapesError, SymTensor, SymbolGen, ops};

use super::Dim;
use crate::dtype::DType;
use crate::ir::{MICROSOFT, Node};

type Facts = Result<Vec<SymTensor>, InferShapesError>;

/// Facts of a fused operator's outputs; `None` for an operator that is not known, or operands of unknown shape.
pub(super) fn facts(node: &Node, inputs: &[Option<SymTensor>], symbols: &mut SymbolGen) -> Option<Facts> {
    let dims = |slot: usize| -> Option<Vec<Dim>> { Some(inputs.get(slot)?.as_ref()?.shape()?.collect()) };
    let shape = |dims: Vec<Dim>| Some(Ok(vec![SymTensor::from_shape(dims)]));
    let product = |a: Vec<Dim>, b: Vec<Dim>, symbols: &mut SymbolGen| {
        let operands = [a, b].map(|d| Some(SymTensor::from_shape(d)));
        Some(ops::MatMul.infer_shapes(InferShapesContext::new(&operands), symbols))
    };
    let int = |name: &str| node.attributes.get_int(name).unwrap_or(0);
    if node.is("SimplifiedLayerNormalization") {
        return shape(dims(0)?);
    }
    if node.is("Attention") {
        let (q, v) = (dims(0)?, dims(2)?);
        let heads = [int("q_num_heads"), int("kv_num_heads")].map(|h| i32::try_from(h).unwrap_or(0));
        return match (&q[..], &v[..]) {
            ([b, h, s, _], [.., width]) => shape(vec![b.clone(), h.clone(), s.clone(), width.clone()]),
            ([b, s, _], [.., Dim::Value(width)]) if heads[0] > 0 && heads[1] > 0 => {
                let width = (width / heads[1]).checked_mul(heads[0])?;
                shape(vec![b.clone(), s.clone(), Dim::Value(width)])
            }
            _ => None,
        };
    }
    if node.is("QLinearMatMul") {
        return product(dims(0)?, dims(3)?, symbols);
    }
    if node.domain != MICROSOFT {
        return None;
    }
    match node.op.as_str() {
        "Gelu" | "FastGelu" | "QuickGelu" | "BiasGelu" => shape(dims(0)?),
        "SkipSimplifiedLayerNormalization" => {
            // Norm, mean, inverse deviation, sum.
            let x = dims(0)?;
            let mut row = x.clone();
            *row.last_mut()? = Dim::Value(1);
            Some(Ok([&x, &row, &row, &x].map(|d| SymTensor::from_shape(d.clone())).into()))
        }
        "FusedMatMul" if int("transBatchA") == 0 && int("transBatchB") == 0 => {
            let (mut a, mut b) = (dims(0)?, dims(1)?);
            for (dims, flag) in [(&mut a, "transA"), (&mut b, "transB")] {
                if let (true, last @ 2..) = (int(flag) != 0, dims.len()) {
                    dims.swap(last - 1, last - 2);
                }
            }
            product(a, b, symbols)
        }
        "DynamicQuantizeMatMul" | "MatMulIntegerToFloat" => product(dims(0)?, dims(1)?, symbols),
        "MatMulNBits" => {
            let mut x = dims(0)?;
            *x.last_mut()? = Dim::Value(i32::try_from(int("N")).ok()?);
            shape(x)
        }
        "MultiHeadAttention" => {
            let (q, v) = (dims(0)?, dims(2)?);
            let width = match &v[..] {
                [_, _, width] => width.clone(),
                [_, heads, _, width] => (heads.clone() * width.clone()).simplify(),
                _ => return None,
            };
            let [batch, length, _] = <[Dim; 3]>::try_from(q).ok()?;
            shape(vec![batch, length, width])
        }
        _ => None,
    }
}

/// The element type of one output of an operator of ONNX Runtime's own, from those of its operands.
pub(super) fn dtype(node: &Node, slot: usize, of: impl Fn(usize) -> Option<DType>) -> Option<DType> {
    if node.domain != MICROSOFT {
        return None;
    }
    match (node.op.as_str(), slot) {
        ("SkipSimplifiedLayerNormalization", 1 | 2) => Some(DType::F32),
        ("MatMulIntegerToFloat", 0) => of(2),
        (
            "Gelu"
            | "FastGelu"
            | "QuickGelu"
            | "BiasGelu"
            | "SkipSimplifiedLayerNormalization"
            | "FusedMatMul"
            | "DynamicQuantizeMatMul"
            | "MatMulNBits"
            | "MultiHeadAttention",
            _,
        ) => of(0),
        _ => None,
    }
}
