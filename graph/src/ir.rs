//! The intermediate representation: nodes and values in arenas, by id.
//!
//! **Invariants** (checked by [`crate::verify`]): a value has one source; names are unique; the graph has no cycle.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use rten_shape_inference::{SymTensor, SymbolGen};

use crate::attribute::Attributes;
use crate::dtype::DType;
use crate::infer::Dim;
use crate::weight::Weight;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub(crate) u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(crate) u32);

impl ValueId {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl NodeId {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The pass that made a node; [`Origin::SOURCE`] for a node of the model that was read.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin(Cow<'static, str>);

impl Origin {
    pub const SOURCE: Origin = Origin(Cow::Borrowed("source"));

    /// A pass's name.
    pub const fn pass(name: &'static str) -> Origin {
        Origin(Cow::Borrowed(name))
    }

    /// A pass's name as a file has it.
    pub(crate) fn read(name: &str) -> Origin {
        Origin(Cow::Owned(name.to_owned()))
    }

    pub fn name(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether training changes a value that the graph is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Frozen,
    Trainable,
}

/// Where a value comes from.
#[derive(Clone, Debug)]
pub enum Source {
    Input(Role),
    Weight(Weight),
    /// Output `.1` of node `.0`.
    Node(NodeId, usize),
}

#[derive(Clone, Debug)]
pub struct Value {
    pub name: String,
    pub source: Source,
    pub dtype: Option<DType>,
    /// Symbolic shape and, for small integer tensors, symbolic contents.
    pub(crate) fact: SymTensor,
}

impl Value {
    /// The symbolic shape, where it is known.
    pub fn shape(&self) -> Option<Vec<Dim>> {
        self.fact.shape().map(|dims| dims.map(|d| d.simplify()).collect())
    }

    /// The elements of a small integer tensor, as far as they are known.
    pub fn contents(&self) -> Option<Vec<Dim>> {
        self.fact.values().map(|values| values.iter().map(|v| v.simplify()).collect())
    }

    pub fn weight(&self) -> Option<&Weight> {
        match &self.source {
            Source::Weight(w) => Some(w),
            _ => None,
        }
    }

    pub fn is_trainable(&self) -> bool {
        matches!(self.source, Source::Input(Role::Trainable))
    }
}

/// The domain of ONNX Runtime's own operators.
pub const MICROSOFT: &str = "com.microsoft";

/// One operator call. An absent optional input or output is `None`.
#[derive(Clone, Debug)]
pub struct Node {
    pub name: String,
    pub op: String,
    pub domain: String,
    pub inputs: Vec<Option<ValueId>>,
    pub outputs: Vec<Option<ValueId>>,
    pub attributes: Attributes,
    pub origin: Origin,
}

impl Node {
    /// True for operator `op` of the default ONNX domain.
    pub fn is(&self, op: &str) -> bool {
        self.op == op && self.is_default_domain()
    }

    /// The operator, with its domain where that is not the default one.
    pub fn kind(&self) -> String {
        if self.is_default_domain() { self.op.clone() } else { format!("{}.{}", self.domain, self.op) }
    }

    pub fn is_default_domain(&self) -> bool {
        self.domain.is_empty() || self.domain == "ai.onnx"
    }

    pub fn input(&self, index: usize) -> Option<ValueId> {
        self.inputs.get(index).copied().flatten()
    }

    pub fn output(&self, index: usize) -> Option<ValueId> {
        self.outputs.get(index).copied().flatten()
    }

    /// True where the node reads the numbers of an operand; of others it reads the type or the shape alone.
    pub fn reads_numbers(&self, slot: usize) -> bool {
        !(slot == 0 && (self.is("Shape") || self.is("Size")) || slot == 1 && self.is("CastLike"))
    }

    /// The operands whose numbers the node reads.
    pub fn numbers(&self) -> impl Iterator<Item = ValueId> {
        self.inputs.iter().enumerate().filter(|(slot, _)| self.reads_numbers(*slot)).filter_map(|(_, value)| *value)
    }
}

/// Who reads each value: `(node, input slot)`, in node order.
pub struct Uses(Vec<Vec<(NodeId, usize)>>);

impl Uses {
    pub fn of(&self, value: ValueId) -> &[(NodeId, usize)] {
        &self.0[value.index()]
    }
}

/// An ONNX graph with the opsets it is written in.
#[derive(Clone)]
pub struct Graph {
    pub name: String,
    /// `producer_name producer_version` of the model that was read.
    pub producer: String,
    pub ir_version: i64,
    /// Opset version by domain; the default domain is the empty string.
    pub opsets: Vec<(String, i64)>,
    pub inputs: Vec<ValueId>,
    pub outputs: Vec<ValueId>,
    pub(crate) nodes: Vec<Option<Node>>,
    pub(crate) values: Vec<Value>,
    pub(crate) by_name: HashMap<String, ValueId>,
    /// Model-local functions, carried through unread.
    pub(crate) functions: Vec<crate::onnx::proto::FunctionProto>,
    next_name: HashMap<String, usize>,
    pub(crate) next_symbol: usize,
}

impl Graph {
    pub fn new(name: &str, opset: i64) -> Graph {
        Graph {
            name: name.to_owned(),
            producer: String::new(),
            ir_version: 8,
            opsets: vec![(String::new(), opset)],
            inputs: Vec::new(),
            outputs: Vec::new(),
            nodes: Vec::new(),
            values: Vec::new(),
            by_name: HashMap::new(),
            functions: Vec::new(),
            next_name: HashMap::new(),
            next_symbol: 0,
        }
    }

    /// The opset version of the default domain.
    pub fn opset(&self) -> i64 {
        self.opsets.iter().find(|(d, _)| d.is_empty()).map_or(1, |o| o.1)
    }

    /// Sets another version of the default domain. Its operators must mean the same there.
    pub fn set_opset(&mut self, version: i64) {
        self.opsets.iter_mut().filter(|(d, _)| d.is_empty()).for_each(|o| o.1 = version);
    }

    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }

    pub fn node(&self, id: NodeId) -> &Node {
        self.nodes[id.index()].as_ref().expect("ids of removed nodes are not kept")
    }

    /// How many values there are: the ids of those that are added later are larger.
    pub fn values(&self) -> usize {
        self.values.len()
    }

    pub fn value_ids(&self) -> impl Iterator<Item = ValueId> + use<> {
        (0..self.values.len() as u32).map(ValueId)
    }

    pub fn node_ids(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.iter().enumerate().filter(|(_, n)| n.is_some()).map(|(i, _)| NodeId(i as u32))
    }

    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.by_name.get(name).copied()
    }

    pub fn weight(&self, id: ValueId) -> Option<&Weight> {
        self.value(id).weight()
    }

    /// The node that makes a value, and the output slot.
    pub fn producer_of(&self, id: ValueId) -> Option<(NodeId, usize)> {
        match self.value(id).source {
            Source::Node(node, slot) => Some((node, slot)),
            _ => None,
        }
    }

    pub fn shape(&self, id: ValueId) -> Option<Vec<Dim>> {
        self.value(id).shape()
    }

    pub fn uses(&self) -> Uses {
        let mut uses = vec![Vec::new(); self.values.len()];
        for id in self.node_ids() {
            for (slot, input) in self.node(id).inputs.iter().enumerate() {
                if let Some(value) = input {
                    uses[value.index()].push((id, slot));
                }
            }
        }
        Uses(uses)
    }

    /// A name that is not taken yet: `wanted`, else `wanted_1`, `wanted_2`, ...
    pub fn fresh_name(&mut self, wanted: &str) -> String {
        if !self.by_name.contains_key(wanted) {
            return wanted.to_owned();
        }
        let counter = self.next_name.entry(wanted.to_owned()).or_insert(0);
        loop {
            *counter += 1;
            let name = format!("{wanted}_{counter}");
            if !self.by_name.contains_key(&name) {
                return name;
            }
        }
    }

    pub(crate) fn symbols(&mut self) -> SymbolGen {
        self.next_symbol += 1;
        SymbolGen::with_prefix(format!("?{}", self.next_symbol).into())
    }

    /// Adds a value under a name that is not taken yet.
    pub(crate) fn add_value(&mut self, name: &str, source: Source, dtype: Option<DType>, fact: SymTensor) -> ValueId {
        let name = self.fresh_name(name);
        let id = ValueId(self.values.len() as u32);
        self.by_name.insert(name.clone(), id);
        self.values.push(Value { name, source, dtype, fact });
        id
    }

    /// Adds a graph input. The name must be free: inputs are an interface.
    pub fn add_input(&mut self, name: &str, dtype: DType, shape: &[Dim], role: Role) -> Result<ValueId, String> {
        if self.by_name.contains_key(name) {
            return Err(format!("the model already has a value named `{name}`"));
        }
        let id = self.add_value(name, Source::Input(role), Some(dtype), SymTensor::from_shape(shape.to_vec()));
        self.inputs.push(id);
        Ok(id)
    }

    pub fn add_weight(&mut self, name: &str, weight: Weight) -> ValueId {
        let fact = crate::infer::weight_fact(&weight);
        let dtype = weight.dtype();
        self.add_value(name, Source::Weight(weight), Some(dtype), fact)
    }

    /// Replaces a weight by a constant of the same type and shape.
    ///
    /// # Panics
    /// When `id` is not a weight or the types differ: a mistake of the caller.
    pub fn replace_weight(&mut self, id: ValueId, weight: Weight) {
        let old = self.weight(id).expect("a weight is replaced");
        assert!(old.dtype() == weight.dtype() && old.dims() == weight.dims(), "the interface of a weight stays");
        let value = &mut self.values[id.index()];
        value.fact = crate::infer::weight_fact(&weight);
        value.source = Source::Weight(weight);
    }

    /// Replaces a weight by a constant of another type. What reads it must agree.
    pub(crate) fn convert_weight(&mut self, id: ValueId, weight: Weight) {
        let value = &mut self.values[id.index()];
        value.fact = crate::infer::weight_fact(&weight);
        value.dtype = Some(weight.dtype());
        value.source = Source::Weight(weight);
    }

    /// Renames a value. The name must be free.
    pub fn rename(&mut self, id: ValueId, name: &str) -> Result<(), String> {
        if self.value(id).name == name {
            return Ok(());
        }
        if self.by_name.contains_key(name) {
            return Err(format!("the model already has a value named `{name}`"));
        }
        let old = std::mem::replace(&mut self.values[id.index()].name, name.to_owned());
        self.by_name.remove(&old);
        self.by_name.insert(name.to_owned(), id);
        Ok(())
    }

    /// Marks an input as changed by training.
    pub fn set_role(&mut self, id: ValueId, role: Role) {
        if let Source::Input(old) = &mut self.values[id.index()].source {
            *old = role;
        }
    }

    /// Makes a value an input, instead of computed. What was computed for it alone is removed by the next
    /// slice.
    pub fn give(&mut self, id: ValueId) {
        if let Some((node, slot)) = self.producer_of(id) {
            if let Some(node) = &mut self.nodes[node.index()] {
                node.outputs[slot] = None;
            }
            self.values[id.index()].source = Source::Input(Role::Frozen);
            self.inputs.push(id);
        }
    }

    /// Changes the operator of a node, on the same operands.
    pub fn replace_op(&mut self, id: NodeId, domain: &str, op: &str) {
        if let Some(node) = &mut self.nodes[id.index()] {
            domain.clone_into(&mut node.domain);
            op.clone_into(&mut node.op);
        }
    }

    /// Sets the origin of every node.
    pub fn assign(&mut self, origin: &Origin) {
        self.nodes.iter_mut().flatten().for_each(|node| node.origin = origin.clone());
    }

    pub(crate) fn rename_node(&mut self, id: NodeId, name: &str) {
        if let Some(node) = &mut self.nodes[id.index()] {
            name.clone_into(&mut node.name);
        }
    }

    /// Renames every node, from its place among them.
    pub fn rename_nodes(&mut self, name: impl Fn(usize) -> String) {
        for (index, node) in self.nodes.iter_mut().enumerate() {
            if let Some(node) = node {
                node.name = name(index);
            }
        }
    }

    /// Sets what is known of a shape that inference could not find.
    pub fn refine(&mut self, id: ValueId, shape: &[Dim]) {
        self.values[id.index()].fact = SymTensor::from_shape(shape.to_vec());
    }

    /// Forgets what a file declares, and what was inferred, of the shapes that nodes make: for inference from other inputs.
    pub fn forget_shapes(&mut self) {
        for value in self.values.iter_mut().filter(|value| matches!(value.source, Source::Node(..))) {
            value.fact = SymTensor::unknown("not inferred");
        }
    }

    /// Every reader of `old`, and the graph's outputs, read `new` instead; not the node that makes `new` of `old`.
    pub fn redirect(&mut self, old: ValueId, new: ValueId) {
        let maker = self.producer_of(new).map(|(node, _)| node.index());
        for (index, node) in self.nodes.iter_mut().enumerate() {
            if maker == Some(index) {
                continue;
            }
            for input in node.iter_mut().flat_map(|node| node.inputs.iter_mut().flatten()) {
                if *input == old {
                    *input = new;
                }
            }
        }
        for output in &mut self.outputs {
            if *output == old {
                *output = new;
            }
        }
    }

    /// As [`Graph::redirect`] for many at once, each value to its counterpart, which is not one of them itself.
    pub fn redirect_all(&mut self, moved: &HashMap<ValueId, ValueId>) {
        let read = self.nodes.iter_mut().flatten().flat_map(|node| node.inputs.iter_mut().flatten());
        for value in read.chain(&mut self.outputs) {
            if let Some(new) = moved.get(value) {
                *value = *new;
            }
        }
    }

    /// What is known of `from` is known of `to` where nothing is yet.
    pub fn refine_like(&mut self, from: ValueId, to: ValueId) {
        let known = self.values[from.index()].clone();
        let value = &mut self.values[to.index()];
        if value.fact.shape().is_none() {
            value.fact = known.fact;
        }
        value.dtype = value.dtype.or(known.dtype);
    }

    /// Makes another node the source of `value`, its only output; the old one is removed.
    pub fn remake(&mut self, value: ValueId, by: NodeId) {
        if let Some((old, slot)) = self.producer_of(value)
            && let Some(node) = &mut self.nodes[old.index()]
        {
            node.outputs[slot] = None;
            if node.outputs.iter().all(Option::is_none) {
                self.nodes[old.index()] = None;
            }
        }
        if let Some(node) = &mut self.nodes[by.index()] {
            node.outputs = vec![Some(value)];
            self.values[value.index()].source = Source::Node(by, 0);
        }
    }

    /// Copies from `view`, a copy of this graph with more in it, what it computes `values` from: its new values and the nodes
    /// that make them. A new node that makes a value of this graph is left out: the value is made here already.
    pub fn annex(&mut self, view: &Graph, values: &[ValueId]) {
        let own = self.values.len();
        if values.iter().all(|v| v.index() < own) {
            return;
        }
        let needed = view.ancestors_until(values.iter().copied(), |v| v.index() < own);
        for value in &view.values[own..] {
            self.by_name.insert(value.name.clone(), ValueId(self.values.len() as u32));
            self.values.push(value.clone());
        }
        let makes_new = |n: &Node| n.outputs.iter().flatten().all(|v| v.index() >= own);
        let added = (self.nodes.len()..view.nodes.len()).map(|index| {
            let node = view.nodes[index].as_ref().filter(|_| needed.contains(&NodeId(index as u32)));
            node.filter(|n| makes_new(n)).cloned()
        });
        let added: Vec<Option<Node>> = added.collect();
        self.nodes.extend(added);
    }

    /// Gives a value another element type. What makes and reads it must agree.
    pub fn set_dtype(&mut self, id: ValueId, dtype: DType) {
        self.values[id.index()].dtype = Some(dtype);
    }

    /// Connects one input of a node to another value.
    pub fn reconnect(&mut self, node: NodeId, slot: usize, value: ValueId) {
        if let Some(node) = &mut self.nodes[node.index()]
            && let Some(input) = node.inputs.get_mut(slot)
        {
            *input = Some(value);
        }
    }
}
