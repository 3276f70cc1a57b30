//! Element types and symbolic shapes, operator by operator, on `rten-shape-inference`.
//!
//! The library's arithmetic is unchecked i32 over whatever the model's constants say, so a call that panics on a
//! hostile constant counts as "shape unknown": see [`fenced`]. It also makes as many dimensions or elements as a
//! constant asks for, and expressions as deep as a graph is, so what goes in and comes out is bounded: see [`bounded`].

mod bounds;
mod contents;
mod fused;
mod reshape;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use rten_shape_inference::{
    BinaryOp, InferShapes, InferShapesContext, InferShapesError, ReductionOp, SymTensor, SymbolGen, UnaryOp,
    VariadicOp, ops,
};

use crate::attribute::Attribute;
use crate::dtype::DType;
use crate::ir::{Graph, Node, NodeId, Source, ValueId};
use crate::weight::Weight;

/// A symbolic dimension: a number, a named symbol, or an expression of them.
pub use rten_shape_inference::SymExpr as Dim;

/// Integer tensors up to this many elements keep their contents as a fact: shapes, axes, indices.
const MAX_KNOWN_ELEMENTS: usize = 64;

/// Dimensions of the largest tensor whose shape is looked at.
pub(crate) const MAX_RANK: usize = 64;

/// Nesting of a symbolic expression beyond which it is replaced by a fresh symbol.
const MAX_DEPTH: u32 = 12;

/// Terms and operators of one symbolic expression, and of all those of one value, beyond which they are replaced by
/// fresh symbols. Comparing two expressions takes the product of their sizes.
const MAX_EXPRESSION: usize = 64;
const MAX_EXPRESSIONS: usize = 512;

/// A dimension as ONNX writes it: `3`, `batch`, `batch * enc_seq`.
pub fn dim_text(dim: &Dim) -> String {
    match dim {
        Dim::Value(v) => v.to_string(),
        Dim::Var(symbol) => symbol.name.clone(),
        other => other.simplify().to_string(),
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

/// Runs a call into a library that panics on hostile input; a panic yields no answer, and prints nothing on this thread.
pub fn fenced<T>(call: impl FnOnce() -> T) -> Option<T> {
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
    let before = QUIET.replace(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    QUIET.set(before);
    result.ok()
}

/// A fact that is cheap and safe to use: of bounded size, and fully simplified, so that reading it
/// does no arithmetic that could overflow outside the fence.
fn bounded(fact: SymTensor, symbols: &mut SymbolGen) -> SymTensor {
    let Some(rank) = fact.ndim() else { return fact };
    if rank > MAX_RANK {
        return SymTensor::unknown("too many dimensions");
    }
    if let Some(values) = fact.as_vector()
        && values.len() > MAX_KNOWN_ELEMENTS
    {
        return SymTensor::from_shape(vec![saturate(values.len() as i64)]);
    }
    let mut left = MAX_EXPRESSIONS;
    let mut settle = |expression: Dim, positive: bool| {
        if matches!(expression, Dim::Value(_) | Dim::Var(_)) {
            return expression;
        }
        let mut simple = expression.simplify();
        if simple.iter().any(|part| matches!(part, Dim::Min(..) | Dim::Max(..))) && !simple.exceeds_depth(MAX_DEPTH) {
            simple = bounds::decided(&simple);
        }
        for _ in 0..4 {
            let again = simple.simplify();
            if again == simple {
                break;
            }
            simple = again;
        }
        let limit = left.min(MAX_EXPRESSION);
        let size = simple.iter().take(limit + 1).count();
        if size > limit || simple.exceeds_depth(MAX_DEPTH) {
            return if positive { symbols.gen_positive() } else { symbols.generate() };
        }
        left -= size;
        simple
    };
    if let Some(value) = fact.as_scalar() {
        SymTensor::from_scalar(settle(value.clone(), false))
    } else if let Some(values) = fact.as_vector() {
        SymTensor::from_vec(values.iter().map(|v| settle(v.clone(), false)).collect())
    } else {
        SymTensor::from_shape(fact.shape().into_iter().flatten().map(|d| settle(d, true)).collect())
    }
}

impl Graph {
    /// Infers the type and shape of every value, from the inputs on.
    ///
    /// What a node's operator does not determine is left as it was: a declared type, shape or size, else unknown.
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
        let known: Vec<Option<SymTensor>> = node.inputs.iter().map(|v| v.map(|v| self.value(v).fact.clone())).collect();
        let mut symbols = self.symbols();
        let facts = fenced(|| {
            let facts = output_facts(self, &node, &known, &mut symbols)?;
            Some(facts.map(|facts| facts.into_iter().map(|f| bounded(f, &mut symbols)).collect::<Vec<_>>()))
        });
        let Some(facts) = facts.flatten() else { return Ok(()) };
        let facts = facts?;
        if let Some(v) = facts.iter().find_map(negative_dimension) {
            return Err(format!("makes a tensor with a dimension of {v}"));
        }
        for (slot, output) in node.outputs.iter().enumerate() {
            let Some(output) = *output else { continue };
            let dtype = output_dtype(self, &node, slot);
            let value = &mut self.values[output.index()];
            debug_assert!(matches!(value.source, Source::Node(n, s) if n == id && s == slot));
            if dtype.is_some() {
                value.dtype = dtype;
            }
            if let Some(fact) = facts.get(slot)
                && fact.shape().is_some()
            {
                let fact = self.with_what_was_known(fact, output);
                self.values[output.index()].fact = fact;
            }
        }
        Ok(())
    }
}

impl Graph {
    /// A fact, with the sizes that inference does not know from what was known of the value before, or declared: numbers and
    /// sizes of the graph's inputs. What inference knows is never given up for a declaration.
    fn with_what_was_known(&self, fact: &SymTensor, value: ValueId) -> SymTensor {
        let is_new = |dim: &Dim| matches!(dim, Dim::Var(symbol) if symbol.synthetic);
        let shape: Vec<Dim> = fact.shape().into_iter().flatten().collect();
        if fact.values().is_some() || !shape.iter().any(is_new) {
            return fact.clone();
        }
        let Some(before) = self.shape(value).filter(|before| before.len() == shape.len()) else { return fact.clone() };
        let of_input = |dim: &Dim| self.inputs.iter().any(|input| self.shape(*input).is_some_and(|s| s.contains(dim)));
        let is_known = |dim: &Dim| matches!(dim, Dim::Value(_)) || matches!(dim, Dim::Var(_)) && of_input(dim);
        let merged = shape.into_iter().zip(before);
        let merged = merged.map(|(new, old)| if is_new(&new) && is_known(&old) { old } else { new });
        SymTensor::from_shape(merged.collect())
    }
}

/// A dimension that no tensor can have.
fn negative_dimension(fact: &SymTensor) -> Option<i32> {
    fact.shape().into_iter().flatten().find_map(|d| match d {
        Dim::Value(v) if v < 0 => Some(v),
        _ => None,
    })
}

/// An operator of many operands, two at a time: the library's expressions grow with their number.
fn folded(
    inputs: &[Option<SymTensor>],
    symbols: &mut SymbolGen,
    op: &dyn InferShapes,
) -> Result<Vec<SymTensor>, InferShapesError> {
    let Some((first, rest)) = inputs.split_first().filter(|(_, rest)| rest.len() > 1) else {
        return op.infer_shapes(InferShapesContext::new(inputs), symbols);
    };
    let first = first.clone().ok_or(InferShapesError::IncorrectInputCount)?;
    let fold = |sum: SymTensor, next: &Option<SymTensor>| {
        let mut sum = op.infer_shapes(InferShapesContext::new(&[Some(sum), next.clone()]), symbols)?;
        Ok(bounded(sum.swap_remove(0), symbols))
    };
    rest.iter().try_fold(first, fold).map(|sum| vec![sum])
}

/// The parts of a split into so many outputs, as even as possible.
fn even_split(data: Option<&SymTensor>, axis: i64, outputs: usize, symbols: &mut SymbolGen) -> Option<Vec<SymTensor>> {
    let dims: Vec<Dim> = data?.shape()?.collect();
    let axis = usize::try_from(if axis < 0 { axis + dims.len() as i64 } else { axis }).ok()?;
    let parts = i32::try_from(outputs).ok()?;
    let size = |part: i32, symbols: &mut SymbolGen| match dims.get(axis)? {
        Dim::Value(whole) => {
            let even = (whole + parts - 1) / parts;
            Some(Dim::Value(if part == parts - 1 { whole - even * part } else { even }))
        }
        _ => Some(symbols.gen_positive()),
    };
    let part = |part| {
        let mut dims = dims.clone();
        dims[axis] = size(part, symbols)?;
        Some(SymTensor::from_shape(dims))
    };
    (0..parts).map(part).collect()
}

/// Facts of a node's outputs: `None` where the operator is not known, an error where the operands cannot fit.
fn output_facts(
    graph: &Graph,
    node: &Node,
    inputs: &[Option<SymTensor>],
    symbols: &mut SymbolGen,
) -> Option<Result<Vec<SymTensor>, String>> {
    let describe = |e: InferShapesError| {
        let shapes: Vec<String> =
            node.inputs.iter().flatten().map(|v| graph.shape(*v).map_or("?".to_owned(), |s| shape_text(&s))).collect();
        format!("{e}: {}", shapes.join(" and "))
    };
    if let Some(facts) = fused::facts(node, inputs, symbols) {
        return Some(facts.map_err(describe));
    }
    if !node.is_default_domain() {
        return None;
    }
    let a = &node.attributes;
    let int = |name: &str, default: i64| a.get_int(name).unwrap_or(default);
    let axis = |default: i64| int("axis", default).clamp(i32::MIN.into(), i32::MAX.into()) as i32;
    let context = || InferShapesContext::new(inputs);
    let as_i32 = |v: &[i64]| v.iter().map(|&v| v.clamp(i32::MIN.into(), i32::MAX.into()) as i32).collect::<Vec<_>>();

    // Operands that moved from attribute to input between opsets, in their input form.
    let with_attributes = |names: &[&str]| {
        let mut inputs = inputs.to_vec();
        if names.iter().any(|name| a.get_ints(name).is_some()) {
            inputs.resize(1, None);
            let operand = |v: &[i64]| SymTensor::from_vec(v.iter().map(|&v| saturate(v)).collect());
            inputs.extend(names.iter().map(|name| a.get_ints(name).map(operand)));
        }
        inputs
    };
    let with_axes = || with_attributes(&["axes"]);

    // What makes as many dimensions as an operand has elements.
    let shape_operand = match node.op.as_str() {
        "Reshape" | "Expand" => inputs.get(1),
        "ConstantOfShape" => inputs.first(),
        _ => None,
    };
    if let Some(Some(operand)) = shape_operand
        && let Some(Dim::Value(rank)) = operand.size(0)
        && rank > MAX_RANK as i32
    {
        return Some(Err(format!("makes a tensor of {rank} dimensions")));
    }

    if node.is("Reshape")
        && let Some(reason) = reshape::refusal(inputs, int("allowzero", 0) == 0)
    {
        return Some(Err(reason));
    }
    if let Some(fact) = contents::known(graph, node, inputs, output_dtype(graph, node, 0)) {
        return Some(Ok(vec![fact]));
    }
    let result = match node.op.as_str() {
        "Add" => ops::Add.infer_shapes(context(), symbols),
        "Sub" => ops::Sub.infer_shapes(context(), symbols),
        "Mul" => ops::Mul.infer_shapes(context(), symbols),
        "Div" => ops::Div.infer_shapes(context(), symbols),
        "Equal" => ops::Equal.infer_shapes(context(), symbols),
        "Where" => ops::Where.infer_shapes(context(), symbols),
        "Pow" | "Mod" | "And" | "Or" | "Xor" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" | "PRelu"
        | "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" | "BitShift" => BinaryOp.infer_shapes(context(), symbols),
        "Min" | "Max" | "Sum" | "Mean" => folded(inputs, symbols, &VariadicOp),
        "Abs" | "Ceil" | "Celu" | "Clip" | "Cos" | "CumSum" | "Elu" | "Erf" | "Exp" | "Floor" | "Gelu"
        | "HardSigmoid" | "HardSwish" | "IsInf" | "IsNaN" | "LayerNormalization" | "LeakyRelu" | "Log"
        | "LogSoftmax" | "Mish" | "Not" | "Reciprocal" | "Relu" | "RMSNormalization" | "Round" | "Selu" | "Sigmoid"
        | "Sign" | "Sin" | "Softmax" | "Softplus" | "Softsign" | "Sqrt" | "Swish" | "Tanh" | "ThresholdedRelu"
        | "Trilu" | "ScatterElements" | "ScatterND" | "DequantizeLinear" | "QuantizeLinear" | "RandomNormalLike"
        | "RandomUniformLike" | "Bernoulli" => UnaryOp.infer_shapes(context(), symbols),
        "Identity" => ops::Identity.infer_shapes(context(), symbols),
        "Neg" => ops::Neg.infer_shapes(context(), symbols),
        "CastLike" => match node.input(1).and_then(|v| graph.value(v).dtype) {
            Some(to) if !to.is_float() && to != DType::Bool => ops::Identity.infer_shapes(context(), symbols),
            _ => UnaryOp.infer_shapes(context(), symbols),
        },
        // A cast keeps the contents of an integer shape vector, and only the shape of anything else.
        "Cast" => match a.get_int("to").and_then(DType::from_onnx) {
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
            let mut inputs = with_axes();
            let no_axes = |axes: &Option<SymTensor>| axes.as_ref().is_none_or(|v| v.as_vector() == Some(&[]));
            if inputs.get(1).is_none_or(no_axes) {
                inputs.truncate(1);
            }
            if int("noop_with_empty_axes", 0) == 1 && inputs.len() == 1 {
                UnaryOp.infer_shapes(context(), symbols)
            } else {
                ReductionOp { axes: None, keep_dims: int("keepdims", 1) != 0 }
                    .infer_shapes(InferShapesContext::new(&inputs), symbols)
            }
        }
        "ArgMax" | "ArgMin" => {
            let axes = [axis(0)];
            ReductionOp { axes: Some(&axes), keep_dims: int("keepdims", 1) != 0 }.infer_shapes(context(), symbols)
        }
        "MatMul" | "MatMulInteger" => match inner_dimensions(inputs) {
            Some((Dim::Value(k), Dim::Value(rows))) if k != rows => Err(InferShapesError::IncompatibleShapes),
            _ => ops::MatMul.infer_shapes(context(), symbols),
        },
        "Gemm" => ops::Gemm { transpose_a: int("transA", 0) != 0, transpose_b: int("transB", 0) != 0 }
            .infer_shapes(context(), symbols),
        "Reshape" => ops::Reshape { allow_zero: int("allowzero", 0) != 0 }.infer_shapes(context(), symbols),
        "Flatten" => ops::Flatten { axis: axis(1) }.infer_shapes(context(), symbols),
        "Transpose" => {
            let rank = inputs.first().and_then(|x| x.as_ref()?.ndim());
            let perm: Option<Vec<usize>> = match a.get_ints("perm") {
                Some(perm) if !is_permutation(perm, rank) => {
                    return Some(Err(match rank {
                        Some(rank) => format!("is not a permutation of {rank} axes"),
                        None => "is not a permutation".to_owned(),
                    }));
                }
                Some(perm) => Some(perm.iter().map(|&p| p as usize).collect()),
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
        "GatherND" => {
            ops::GatherND { batch_dims: usize::try_from(int("batch_dims", 0)).ok()? }.infer_shapes(context(), symbols)
        }
        "Concat" => folded(inputs, symbols, &ops::Concat { axis: axis(0) }),
        "Tile" => ops::Tile.infer_shapes(context(), symbols),
        "Slice" => {
            let inputs = with_attributes(&["starts", "ends", "axes"]);
            ops::Slice.infer_shapes(InferShapesContext::new(&inputs), symbols)
        }
        "Split" => {
            let inputs = with_attributes(&["split"]);
            match inputs.get(1) {
                Some(Some(sizes)) if sizes.as_vector().is_none() => return None,
                Some(Some(_)) => ops::Split { axis: axis(0), num_outputs: None }
                    .infer_shapes(InferShapesContext::new(&inputs), symbols),
                _ => Ok(even_split(inputs.first()?.as_ref(), int("axis", 0), node.outputs.len(), symbols)?),
            }
        }
        "Range" => ops::Range.infer_shapes(context(), symbols),
        "OneHot" => ops::OneHot { axis: axis(-1) }.infer_shapes(context(), symbols),
        "ConstantOfShape" => {
            let value = match a.get("value") {
                Some(Attribute::Tensor(t)) => t.to_i64().and_then(|v| v.first().copied()),
                _ => None,
            };
            let length = inputs.first().and_then(|shape| shape.as_ref()?.values()?.first().cloned());
            let known = !matches!(length, Some(Dim::Value(n)) if n > MAX_KNOWN_ELEMENTS as i32);
            let value = value.filter(|_| known);
            ops::ConstantOfShape { value: value.map(|v| as_i32(&[v])[0]) }.infer_shapes(context(), symbols)
        }
        "TopK" if node.input(1).is_none() => return None,
        "TopK" => ops::TopK { axis: a.get_int("axis").map(|v| as_i32(&[v])[0]) }.infer_shapes(context(), symbols),
        "NonZero" => ops::NonZero.infer_shapes(context(), symbols),
        "DynamicQuantizeLinear" => ops::DynamicQuantizeLinear.infer_shapes(context(), symbols),
        _ => return None,
    };
    Some(result.map_err(describe))
}

/// The two dimensions that a matrix product sums over.
fn inner_dimensions(inputs: &[Option<SymTensor>]) -> Option<(Dim, Dim)> {
    let dims = |index: usize| Some(inputs.get(index)?.as_ref()?.shape()?.collect::<Vec<_>>());
    match (&dims(0)?[..], &dims(1)?[..]) {
        ([.., _, k], [.., rows, _]) => Some((k.clone(), rows.clone())),
        _ => None,
    }
}

/// True where every axis of a tensor of so many dimensions occurs once.
fn is_permutation(perm: &[i64], rank: Option<usize>) -> bool {
    let mut sorted = perm.to_vec();
    sorted.sort_unstable();
    sorted.iter().copied().eq(0..perm.len() as i64) && rank.is_none_or(|rank| rank == perm.len())
}

/// The element type of one output, where the operator determines it.
fn output_dtype(graph: &Graph, node: &Node, slot: usize) -> Option<DType> {
    let of = |index: usize| node.input(index).and_then(|v| graph.value(v).dtype);
    if !node.is_default_domain() {
        return fused::dtype(node, slot, of);
    }
    Some(match (node.op.as_str(), slot) {
        (
            "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" | "And" | "Or" | "Xor" | "Not" | "IsNaN"
            | "IsInf",
            0,
        )
        | ("Dropout", 1) => DType::Bool,
        ("Shape" | "Size" | "ArgMax" | "ArgMin" | "NonZero", 0) | ("TopK", 1) => DType::I64,
        ("Cast", 0) => DType::from_onnx(node.attributes.get_int("to")?)?,
        ("ConstantOfShape", 0) => match node.attributes.get("value") {
            Some(Attribute::Tensor(t)) => t.dtype(),
            _ => DType::F32,
        },
        ("Where" | "CastLike", 0) => of(1)?,
        ("OneHot", 0) => of(2)?,
        ("MatMulInteger" | "ConvInteger", 0) => DType::I32,
        ("DynamicQuantizeLinear", 0 | 2) => DType::U8,
        ("DequantizeLinear", 0) => of(1)?,
        ("QLinearMatMul", 0) => of(7)?,
        ("QuantizeLinear", 0) => of(2).unwrap_or(DType::U8),
        ("LayerNormalization", 1 | 2) | ("DynamicQuantizeLinear", 1) => DType::F32,
        _ if node.attributes.has_opaque() => return None,
        _ => of(0)?,
    })
}
