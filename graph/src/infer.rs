//! Element types and symbolic shapes, operator by operator, on `rten-shape-inference`.
//!
//! The library's arithmetic is unchecked i32 over whatever the model's constants say, so a call that panics on a
//! hostile constant counts as "shape unknown": see [`fenced`].

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use rten_shape_inference::{
    BinaryOp, InferShapes, InferShapesContext, ReductionOp, SymTensor, SymbolGen, UnaryOp, VariadicOp, ops,
};

use crate::attribute::Attribute;
use crate::dtype::DType;
use crate::ir::{Graph, Node, NodeId, Source};
use crate::weight::Weight;

/// A symbolic dimension: a number, a named symbol, or an expression of them.
pub use rten_shape_inference::SymExpr as Dim;

/// Integer tensors up to this many elements keep their contents as a fact: shapes, axes, indices.
const MAX_KNOWN_ELEMENTS: usize = 64;

/// Nesting of a symbolic expression beyond which it is replaced by a fresh symbol.
const MAX_DEPTH: u32 = 12;

/// A dimension as ONNX writes it: `3`, `batch`, `batch * enc_seq`.
pub fn dim_text(dim: &Dim) -> String {
    match dim {
        Dim::Value(v) => v.to_string(),
        Dim::Var(symbol) => symbol.name.clone(),
        other => format!("{:?}", other.simplify()).replace('"', ""),
    }
}

/// A shape as text: `[batch, 7, 64]`.
pub fn shape_text(shape: &[Dim]) -> String {
    format!("[{}]", shape.iter().map(dim_text).collect::<Vec<_>>().join(", "))
}

fn saturate(value: i64) -> Dim {
    Dim::Value(value.clamp(i32::MIN.into(), i32::MAX.into()) as i32)
}

/// What is known of a constant: its shape, and its contents where it is a small integer vector or scalar.
pub(crate) fn weight_fact(weight: &Weight) -> SymTensor {
    let small = weight.dims().len() <= 1 && weight.elements() <= MAX_KNOWN_ELEMENTS;
    let values = if small { weight.to_i64() } else { None };
    match values {
        Some(v) if weight.dims().is_empty() => SymTensor::from_scalar(saturate(v[0])),
        Some(v) => SymTensor::from_vec(v.into_iter().map(saturate).collect()),
        None => SymTensor::from_shape(weight.dims().iter().map(|&d| saturate(d as i64)).collect()),
    }
}

/// Runs a call into the library; a panic is an unknown answer and prints nothing.
fn fenced<T>(call: impl FnOnce() -> T) -> Option<T> {
    thread_local!(static QUIET: Cell<bool> = const { Cell::new(false) });
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                previous(info);
            }
        }));
    });
    QUIET.set(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    QUIET.set(false);
    result.ok()
}

impl Graph {
    /// Infers the type and shape of every value, from the inputs on.
    ///
    /// What a node's operator does not tell is left as it was: a declared type and shape, else unknown.
    ///
    /// # Errors
    /// A node on a cycle, or a node whose operands cannot fit, with the reason.
    pub fn infer(&mut self) -> Result<(), (NodeId, String)> {
        let order = self.order().map_err(|node| (node, "is part of a cycle".to_owned()))?;
        for id in order {
            self.infer_node(id).map_err(|reason| (id, reason))?;
        }
        Ok(())
    }

    /// Infers the outputs of one node whose inputs are known.
    pub(crate) fn infer_node(&mut self, id: NodeId) -> Result<(), String> {
        let node = self.node(id).clone();
        let known: Vec<Option<SymTensor>> =
            node.inputs.iter().map(|v| v.map(|v| self.value(v).fact.clone())).collect();
        let mut symbols = self.symbols();
        let Some(facts) = fenced(|| output_facts(self, &node, &known, &mut symbols)).flatten() else {
            return Ok(());
        };
        let facts = facts?;
        for (slot, output) in node.outputs.iter().enumerate() {
            let Some(output) = *output else { continue };
            let dtype = output_dtype(self, &node, slot);
            let value = &mut self.values[output.index()];
            debug_assert!(matches!(value.source, Source::Node(n, s) if n == id && s == slot));
            if dtype.is_some() {
                value.dtype = dtype;
            }
            if let Some(mut fact) = facts.get(slot).cloned()
                && fact.shape().is_some()
            {
                fact.replace_complex_expressions(MAX_DEPTH, &mut symbols);
                let value = &mut self.values[output.index()];
                value.fact = fact;
            }
        }
        Ok(())
    }
}

/// Facts of a node's outputs: `None` where the operator is not known, an error where the operands cannot fit.
fn output_facts(
    graph: &Graph,
    node: &Node,
    inputs: &[Option<SymTensor>],
    symbols: &mut SymbolGen,
) -> Option<Result<Vec<SymTensor>, String>> {
    if !node.is_default_domain() {
        return None;
    }
    let a = &node.attributes;
    let int = |name: &str, default: i64| a.get_int(name).unwrap_or(default);
    let axis = |default: i64| int("axis", default).clamp(i32::MIN.into(), i32::MAX.into()) as i32;
    let context = || InferShapesContext::new(inputs);
    let as_i32 = |v: &[i64]| v.iter().map(|&v| v.clamp(i32::MIN.into(), i32::MAX.into()) as i32).collect::<Vec<_>>();

    // Operands that moved from attribute to input between opsets, in their input form.
    let with_axes = || {
        let mut inputs = inputs.to_vec();
        if let Some(axes) = a.get_ints("axes") {
            inputs.resize(1, None);
            inputs.push(Some(SymTensor::from_vec(axes.iter().map(|&v| saturate(v)).collect())));
        }
        inputs
    };

    let result = match node.op.as_str() {
        "Add" => ops::Add.infer_shapes(context(), symbols),
        "Sub" => ops::Sub.infer_shapes(context(), symbols),
        "Mul" => ops::Mul.infer_shapes(context(), symbols),
        "Div" => ops::Div.infer_shapes(context(), symbols),
        "Equal" => ops::Equal.infer_shapes(context(), symbols),
        "Where" => ops::Where.infer_shapes(context(), symbols),
        "Pow" | "Mod" | "And" | "Or" | "Xor" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" | "PRelu"
        | "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" | "BitShift" => BinaryOp.infer_shapes(context(), symbols),
        "Min" | "Max" | "Sum" | "Mean" => VariadicOp.infer_shapes(context(), symbols),
        "Abs" | "Ceil" | "Celu" | "Clip" | "Cos" | "CumSum" | "Elu" | "Erf" | "Exp" | "Floor" | "Gelu"
        | "HardSigmoid" | "HardSwish" | "IsInf" | "IsNaN" | "LayerNormalization" | "LeakyRelu" | "Log"
        | "LogSoftmax" | "Mish" | "Not" | "Reciprocal" | "Relu" | "RMSNormalization" | "Round"
        | "Selu" | "Sigmoid" | "Sign" | "Sin" | "Softmax" | "Softplus" | "Softsign" | "Sqrt" | "Swish" | "Tanh"
        | "ThresholdedRelu" | "Trilu" | "ScatterElements" | "ScatterND" | "DequantizeLinear" | "QuantizeLinear"
        | "RandomNormalLike" | "RandomUniformLike" | "Bernoulli" => UnaryOp.infer_shapes(context(), symbols),
        "Identity" => ops::Identity.infer_shapes(context(), symbols),
        "Neg" => ops::Neg.infer_shapes(context(), symbols),
        "CastLike" => match node.input(1).and_then(|v| graph.value(v).dtype) {
            Some(to) if !to.is_float() && to != DType::Bool => ops::Identity.infer_shapes(context(), symbols),
            _ => UnaryOp.infer_shapes(context(), symbols),
        },
        // A cast keeps the contents of an integer shape vector, and only the shape of anything else.
        "Cast" => match a.get_int("to").and_then(|to| DType::from_onnx(to as i32)) {
            Some(to) if !to.is_float() && to != DType::Bool => ops::Identity.infer_shapes(context(), symbols),
            _ => UnaryOp.infer_shapes(context(), symbols),
        },
        "Dropout" => {
            return Some(UnaryOp.infer_shapes(context(), symbols).map_err(|e| e.to_string()).map(|mut out| {
                out.push(out[0].clone());
                out
            }));
        }
        "ReduceSum" | "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceProd" | "ReduceL1" | "ReduceL2"
        | "ReduceSumSquare" | "ReduceLogSumExp" => {
            if int("noop_with_empty_axes", 0) == 1 && a.get_ints("axes").is_none() && inputs.get(1).is_none() {
                UnaryOp.infer_shapes(context(), symbols)
            } else {
                let inputs = with_axes();
                ReductionOp { axes: None, keep_dims: int("keepdims", 1) != 0 }
                    .infer_shapes(InferShapesContext::new(&inputs), symbols)
            }
        }
        "ArgMax" | "ArgMin" => {
            let axes = [axis(0)];
            ReductionOp { axes: Some(&axes), keep_dims: int("keepdims", 1) != 0 }.infer_shapes(context(), symbols)
        }
        "MatMul" | "MatMulInteger" => ops::MatMul.infer_shapes(context(), symbols),
        "Gemm" => ops::Gemm { transpose_a: int("transA", 0) != 0, transpose_b: int("transB", 0) != 0 }
            .infer_shapes(context(), symbols),
        "Reshape" => ops::Reshape { allow_zero: int("allowzero", 0) != 0 }.infer_shapes(context(), symbols),
        "Flatten" => ops::Flatten { axis: axis(1) }.infer_shapes(context(), symbols),
        "Transpose" => {
            let perm: Option<Vec<usize>> = match a.get_ints("perm") {
                Some(perm) => Some(perm.iter().map(|&p| usize::try_from(p).ok()).collect::<Option<_>>()?),
                None => None,
            };
            ops::Transpose { perm: perm.as_deref() }.infer_shapes(context(), symbols)
        }
        "Unsqueeze" => ops::Unsqueeze.infer_shapes(InferShapesContext::new(&with_axes()), symbols),
        "Squeeze" => ops::Squeeze.infer_shapes(InferShapesContext::new(&with_axes()), symbols),
        "Expand" => ops::Expand.infer_shapes(context(), symbols),
        "Shape" => ops::Shape {
            start: a.get_int("start").map(|v| as_i32(&[v])[0]),
            end: a.get_int("end").map(|v| as_i32(&[v])[0]),
        }
        .infer_shapes(context(), symbols),
        "Size" => ops::Size.infer_shapes(context(), symbols),
        "Gather" => ops::Gather { axis: axis(0) }.infer_shapes(context(), symbols),
        "GatherElements" => ops::GatherElements.infer_shapes(context(), symbols),
        "GatherND" => ops::GatherND { batch_dims: usize::try_from(int("batch_dims", 0)).ok()? }
            .infer_shapes(context(), symbols),
        "Concat" => ops::Concat { axis: axis(0) }.infer_shapes(context(), symbols),
        "Tile" => ops::Tile.infer_shapes(context(), symbols),
        "Slice" => ops::Slice.infer_shapes(context(), symbols),
        "Split" => ops::Split { axis: axis(0), num_outputs: Some(node.outputs.len() as u32) }
            .infer_shapes(context(), symbols),
        "Range" => ops::Range.infer_shapes(context(), symbols),
        "OneHot" => ops::OneHot { axis: axis(-1) }.infer_shapes(context(), symbols),
        "ConstantOfShape" => {
            let value = match a.get("value") {
                Some(Attribute::Tensor(t)) => t.to_i64().and_then(|v| v.first().copied()),
                _ => None,
            };
            ops::ConstantOfShape { value: value.map(|v| as_i32(&[v])[0]) }.infer_shapes(context(), symbols)
        }
        "TopK" => ops::TopK { axis: a.get_int("axis").map(|v| as_i32(&[v])[0]) }.infer_shapes(context(), symbols),
        "NonZero" => ops::NonZero.infer_shapes(context(), symbols),
        "DynamicQuantizeLinear" => ops::DynamicQuantizeLinear.infer_shapes(context(), symbols),
        _ => return None,
    };
    let describe = |e: rten_shape_inference::InferShapesError| {
        let shapes: Vec<String> = node
            .inputs
            .iter()
            .flatten()
            .map(|v| graph.shape(*v).map_or("?".to_owned(), |s| shape_text(&s)))
            .collect();
        format!("{e}: {}", shapes.join(" and "))
    };
    Some(result.map_err(describe))
}

/// The element type of one output, where the operator tells it.
fn output_dtype(graph: &Graph, node: &Node, slot: usize) -> Option<DType> {
    let of = |index: usize| node.input(index).and_then(|v| graph.value(v).dtype);
    if !node.is_default_domain() {
        return None;
    }
    Some(match (node.op.as_str(), slot) {
        ("Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" | "And" | "Or" | "Xor" | "Not" | "IsNaN"
        | "IsInf", 0)
        | ("Dropout", 1) => DType::Bool,
        ("Shape" | "Size" | "ArgMax" | "ArgMin" | "NonZero", 0) | ("TopK", 1) => DType::I64,
        ("Cast", 0) => DType::from_onnx(node.attributes.get_int("to")? as i32)?,
        ("ConstantOfShape", 0) => match node.attributes.get("value") {
            Some(Attribute::Tensor(t)) => t.dtype(),
            _ => DType::F32,
        },
        ("Where" | "CastLike", 0) => of(1)?,
        ("OneHot", 0) => of(2)?,
        ("MatMulInteger" | "ConvInteger", 0) => DType::I32,
        ("DynamicQuantizeLinear", 0 | 2) => DType::U8,
        ("DequantizeLinear", 0) => of(1)?,
        ("QuantizeLinear", 0) => of(2).unwrap_or(DType::U8),
        ("LayerNormalization", 1 | 2) | ("DynamicQuantizeLinear", 1) => DType::F32,
        _ if node.attributes.has_opaque() => return None,
        _ => of(0)?,
    })
}
