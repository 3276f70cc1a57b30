//! Emission of new nodes: typed, shaped and shared as they are made.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use rten_shape_inference::SymTensor;

use crate::attribute::{Attribute, Attributes};
use crate::dtype::DType;
use crate::infer::Dim;
use crate::ir::{Graph, MICROSOFT, Node, NodeId, Origin, Source, ValueId};
use crate::weight::Weight;

/// Emits nodes into a graph. Methods take `&self`, so that calls nest as the formula does:
/// `b.mul(x, b.sub(y, z))`.
///
/// A call with the same operator, operands and attributes as an earlier one of this builder returns the earlier value
/// (common subexpressions are shared); [`Builder::unshared`] is for operators that draw random numbers.
///
/// Emission never fails: an operand that does not fit leaves the value without a shape, which the verifier reports.
pub struct Builder<'g> {
    graph: RefCell<&'g mut Graph>,
    origin: Origin,
    scope: RefCell<String>,
    shared: RefCell<HashMap<String, Vec<ValueId>>>,
    constants: RefCell<HashMap<ConstantKey, Vec<ValueId>>>,
}

/// Type, shape, and a hash of the bytes.
type ConstantKey = (DType, Vec<usize>, u64);

impl<'g> Builder<'g> {
    pub fn new(graph: &'g mut Graph, origin: Origin) -> Builder<'g> {
        Builder {
            graph: RefCell::new(graph),
            origin,
            scope: RefCell::default(),
            shared: RefCell::default(),
            constants: RefCell::default(),
        }
    }

    /// Names of the values that follow begin with `scope/`.
    pub fn scope(&self, scope: &str) {
        *self.scope.borrow_mut() = scope.to_owned();
    }

    /// Reads the graph.
    pub fn read<T>(&self, f: impl FnOnce(&Graph) -> T) -> T {
        f(&self.graph.borrow())
    }

    /// Changes the graph.
    pub fn edit<T>(&self, f: impl FnOnce(&mut Graph) -> T) -> T {
        f(&mut self.graph.borrow_mut())
    }

    pub fn opset(&self) -> i64 {
        self.read(Graph::opset)
    }

    pub fn shape(&self, value: ValueId) -> Option<Vec<Dim>> {
        self.read(|g| g.shape(value))
    }

    pub fn dtype(&self, value: ValueId) -> Option<DType> {
        self.read(|g| g.value(value).dtype)
    }

    /// One node with one output.
    pub fn op(&self, op: &str, inputs: &[ValueId], attributes: Attributes) -> ValueId {
        self.op_n(op, inputs, attributes, 1)[0]
    }

    /// One node with `outputs` outputs, shared with an equal earlier one.
    pub fn op_n(&self, op: &str, inputs: &[ValueId], attributes: Attributes, outputs: usize) -> Vec<ValueId> {
        let key = format!("{op} {inputs:?} {attributes:?} {outputs}");
        if let Some(earlier) = self.shared.borrow().get(&key) {
            return earlier.clone();
        }
        let values = self.unshared(op, inputs, attributes, outputs);
        self.shared.borrow_mut().insert(key, values.clone());
        values
    }

    /// One node that is never shared.
    pub fn unshared(&self, op: &str, inputs: &[ValueId], attributes: Attributes, outputs: usize) -> Vec<ValueId> {
        let scope = self.scope.borrow();
        let name = if scope.is_empty() { op.to_owned() } else { format!("{scope}/{op}") };
        let mut graph = self.graph.borrow_mut();
        let node = graph.add_node(&name, op, inputs, attributes, outputs, self.origin.clone());
        // The verifier reports a value that inference could not shape.
        let _ = graph.infer_node(node);
        graph.node(node).outputs.iter().flatten().copied().collect()
    }

    /// One node of an operator of ONNX Runtime's own, with one output, never shared.
    pub fn microsoft(&self, op: &str, inputs: &[ValueId], attributes: Attributes) -> ValueId {
        let scope = self.scope.borrow();
        let name = if scope.is_empty() { op.to_owned() } else { format!("{scope}/{op}") };
        let mut graph = self.graph.borrow_mut();
        let node = graph.add_node(&name, op, inputs, attributes, 1, self.origin.clone());
        graph.nodes[node.index()].as_mut().expect("it was just added").domain = MICROSOFT.to_owned();
        if !graph.opsets.iter().any(|(domain, _)| domain == MICROSOFT) {
            graph.opsets.push((MICROSOFT.to_owned(), 1));
        }
        // As for any other node.
        let _ = graph.infer_node(node);
        graph.node(node).output(0).expect("it has one output")
    }

    /// Sets the shape of a value where inference does not find it.
    pub fn shaped(&self, value: ValueId, shape: &[Dim]) -> ValueId {
        self.graph.borrow_mut().refine(value, shape);
        value
    }

    /// Gives a value, and the node that makes it, its final name. The name must be free; an interface's names are checked before emission.
    pub fn named(&self, value: ValueId, name: &str) -> ValueId {
        let mut graph = self.graph.borrow_mut();
        let name = graph.fresh_name(name);
        graph.rename(value, &name).expect("a fresh name is free");
        if let Some((node, _)) = graph.producer_of(value) {
            graph.rename_node(node, &name);
        }
        value
    }

    /// A constant, shared with an equal earlier one of this builder.
    pub fn constant(&self, weight: Weight) -> ValueId {
        let mut hasher = DefaultHasher::new();
        weight.bytes().hash(&mut hasher);
        let key = (weight.dtype(), weight.dims().to_vec(), hasher.finish());
        let mut constants = self.constants.borrow_mut();
        let alike = constants.entry(key).or_default();
        let is_equal = |id: &&ValueId| self.read(|graph| graph.weight(**id) == Some(&weight));
        if let Some(earlier) = alike.iter().find(is_equal) {
            return *earlier;
        }
        let id = self.graph.borrow_mut().add_weight(&format!("{}/const", self.origin), weight);
        alike.push(id);
        id
    }

    pub fn f32(&self, value: f32) -> ValueId {
        self.constant(Weight::scalar_f32(value))
    }

    pub fn i64(&self, value: i64) -> ValueId {
        self.constant(Weight::scalar_i64(value))
    }

    pub fn i64s(&self, values: &[i64]) -> ValueId {
        self.constant(Weight::from_i64(&[values.len()], values))
    }

    pub fn add(&self, a: ValueId, b: ValueId) -> ValueId {
        self.op("Add", &[a, b], Attributes::none())
    }

    pub fn sub(&self, a: ValueId, b: ValueId) -> ValueId {
        self.op("Sub", &[a, b], Attributes::none())
    }

    pub fn mul(&self, a: ValueId, b: ValueId) -> ValueId {
        self.op("Mul", &[a, b], Attributes::none())
    }

    pub fn div(&self, a: ValueId, b: ValueId) -> ValueId {
        self.op("Div", &[a, b], Attributes::none())
    }

    pub fn neg(&self, x: ValueId) -> ValueId {
        self.op("Neg", &[x], Attributes::none())
    }

    pub fn exp(&self, x: ValueId) -> ValueId {
        self.op("Exp", &[x], Attributes::none())
    }

    pub fn sqrt(&self, x: ValueId) -> ValueId {
        self.op("Sqrt", &[x], Attributes::none())
    }

    pub fn matmul(&self, a: ValueId, b: ValueId) -> ValueId {
        self.op("MatMul", &[a, b], Attributes::none())
    }

    pub fn select(&self, condition: ValueId, a: ValueId, b: ValueId) -> ValueId {
        self.op("Where", &[condition, a, b], Attributes::none())
    }

    pub fn cast(&self, x: ValueId, to: DType) -> ValueId {
        if self.dtype(x) == Some(to) {
            return x;
        }
        self.op("Cast", &[x], Attributes::none().int("to", to.onnx().into()))
    }

    /// `alpha? a' b' + c`, with `a` and `b` of rank 2, each transposed where asked.
    pub fn gemm(&self, a: ValueId, b: ValueId, c: Option<ValueId>, trans_a: bool, trans_b: bool) -> ValueId {
        let mut attributes = Attributes::none();
        if trans_a {
            attributes = attributes.int("transA", 1);
        }
        if trans_b {
            attributes = attributes.int("transB", 1);
        }
        let inputs: Vec<ValueId> = [Some(a), Some(b), c].into_iter().flatten().collect();
        self.op("Gemm", &inputs, attributes)
    }

    /// The largest over `axes`, which may be negative. No axes: over all.
    pub fn reduce_max(&self, x: ValueId, axes: &[i64], keep: bool) -> ValueId {
        self.reduce("ReduceMax", x, axes, keep, 18)
    }

    /// Sum over `axes`, which may be negative. No axes: over all.
    pub fn reduce_sum(&self, x: ValueId, axes: &[i64], keep: bool) -> ValueId {
        self.reduce("ReduceSum", x, axes, keep, 13)
    }

    /// A reduction whose axes are an attribute before opset `moved` and an input from it on.
    fn reduce(&self, op: &str, x: ValueId, axes: &[i64], keep: bool, moved: i64) -> ValueId {
        let attributes = Attributes::none().int("keepdims", keep.into());
        if axes.is_empty() {
            self.op(op, &[x], attributes)
        } else if self.opset() >= moved {
            self.op(op, &[x, self.i64s(axes)], attributes)
        } else {
            self.op(op, &[x], attributes.ints("axes", axes))
        }
    }

    pub fn transpose(&self, x: ValueId, perm: &[i64]) -> ValueId {
        self.op("Transpose", &[x], Attributes::none().ints("perm", perm))
    }

    /// A new axis of size 1.
    pub fn unsqueeze(&self, x: ValueId, axis: i64) -> ValueId {
        if self.opset() >= 13 {
            return self.op("Unsqueeze", &[x, self.i64s(&[axis])], Attributes::none());
        }
        self.op("Unsqueeze", &[x], Attributes::none().ints("axes", &[axis]))
    }

    /// Reshape to a constant shape in ONNX's notation (`-1` infers, `0` copies).
    pub fn reshape(&self, x: ValueId, shape: &[i64]) -> ValueId {
        self.op("Reshape", &[x, self.i64s(shape)], Attributes::none())
    }

    /// Reshape to a shape computed at run time, with its symbolic value.
    pub fn reshape_to(&self, x: ValueId, shape: ValueId, dims: &[Dim]) -> ValueId {
        let y = self.op("Reshape", &[x, shape], Attributes::none());
        self.shaped(y, dims)
    }

    /// A value's shape as an i64 vector: a constant where it is one.
    pub fn shape_of(&self, x: ValueId) -> ValueId {
        let size = |dim: &Dim| if let Dim::Value(size) = dim { Some(i64::from(*size)) } else { None };
        match self.shape(x).and_then(|dims| dims.iter().map(size).collect::<Option<Vec<i64>>>()) {
            Some(dims) => self.i64s(&dims),
            None => self.op("Shape", &[x], Attributes::none()),
        }
    }

    /// The dimensions `start..end` of a value's shape, as an i64 vector.
    pub fn shape_slice(&self, x: ValueId, start: i64, end: i64) -> ValueId {
        if self.opset() >= 15 {
            return self.op("Shape", &[x], Attributes::none().int("start", start).int("end", end));
        }
        let shape = self.op("Shape", &[x], Attributes::none());
        self.op("Slice", &[shape, self.i64s(&[start]), self.i64s(&[end])], Attributes::none())
    }

    pub fn concat(&self, parts: &[ValueId], axis: i64) -> ValueId {
        self.op("Concat", parts, Attributes::none().int("axis", axis))
    }

    /// The parts of these sizes along an axis.
    pub fn split(&self, x: ValueId, sizes: &[i64], axis: i64) -> Vec<ValueId> {
        let attributes = Attributes::none().int("axis", axis);
        if self.opset() >= 13 {
            self.op_n("Split", &[x, self.i64s(sizes)], attributes, sizes.len())
        } else {
            self.op_n("Split", &[x], attributes.ints("split", sizes), sizes.len())
        }
    }

    pub fn softmax(&self, x: ValueId) -> ValueId {
        self.op("Softmax", &[x], Attributes::none().int("axis", -1))
    }

    /// One-hot vectors: an axis of `depth` is inserted into the indices' shape, -1 after them.
    pub fn one_hot(&self, indices: ValueId, depth: i64, axis: i64) -> ValueId {
        let values = self.constant(Weight::from_f32(&[2], &[0.0, 1.0]));
        self.op("OneHot", &[indices, self.i64(depth), values], Attributes::none().int("axis", axis))
    }
}

impl Graph {
    /// Adds a node with fresh outputs named after it.
    pub(crate) fn add_node(
        &mut self,
        name: &str,
        op: &str,
        inputs: &[ValueId],
        attributes: Attributes,
        outputs: usize,
        origin: Origin,
    ) -> NodeId {
        let id = NodeId(self.nodes.len() as u32);
        let outputs: Vec<Option<ValueId>> = (0..outputs)
            .map(|slot| {
                let unknown = SymTensor::unknown("not inferred");
                Some(self.add_value(name, Source::Node(id, slot), None, unknown))
            })
            .collect();
        self.nodes.push(Some(Node {
            name: outputs.first().and_then(|v| v.map(|v| self.value(v).name.clone())).unwrap_or_default(),
            op: op.to_owned(),
            domain: String::new(),
            inputs: inputs.iter().copied().map(Some).collect(),
            outputs,
            attributes,
            origin,
        }));
        id
    }

    /// Replaces an attribute of a node.
    pub fn set_attribute(&mut self, node: NodeId, name: &str, value: Attribute) {
        if let Some(node) = &mut self.nodes[node.index()] {
            node.attributes.insert(name, value);
        }
    }
}
