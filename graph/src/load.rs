//! Reading ONNX files.
//!
//! The file and its external data are memory-mapped; decoding copies node and value names, but no weight. Nothing a
//! file declares is believed before it is checked: sizes against the bytes that are there, names for uniqueness,
//! external paths against the model's folder.
//!
//! `Constant` nodes become weights, so that the rest of the compiler meets one kind of constant.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use memmap2::Mmap;
use prost::Message;
use rten_shape_inference::SymTensor;

use crate::attribute::{Attribute, Attributes};
use crate::branch::without_cache;
use crate::dtype::DType;
use crate::infer::{Dim, MAX_RANK};
use crate::ir::{Graph, Node, NodeId, Origin, Role, Source, ValueId};
use crate::onnx::proto::attribute_proto::AttributeType;
use crate::onnx::proto::tensor_proto::DataLocation;
use crate::onnx::proto::tensor_shape_proto::dimension;
use crate::onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto};
use crate::onnx::proto::{tensor_shape_proto, type_proto};
use crate::regular;
use crate::save::PASS_PREFIX;
use crate::weight::{FileRange, Weight, byte_len};

/// One thing that is wrong with a file: the place in it and the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// A node, value or field; empty for the file as a whole.
    pub place: String,
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.place.is_empty() { f.write_str(&self.reason) } else { write!(f, "{}: {}", self.place, self.reason) }
    }
}

/// A file that cannot be read as an ONNX model, with all its problems.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot read `{}`{}", path.display(), list(problems))]
pub struct LoadError {
    pub path: PathBuf,
    pub problems: Vec<Problem>,
}

/// How many problems an error spells out; the rest are counted.
const MAX_LISTED: usize = 20;

fn list(problems: &[Problem]) -> String {
    let mut text: String = problems.iter().take(MAX_LISTED).map(|p| format!("\n  {p}")).collect();
    if problems.len() > MAX_LISTED {
        text += &format!("\n  and {} more", problems.len() - MAX_LISTED);
    }
    text
}

/// Reads a model from a file, with its external data beside it.
///
/// # Errors
/// Everything that is wrong with the file, each with its place.
pub fn load(path: &Path) -> Result<Graph, LoadError> {
    let fail =
        |reason: String| LoadError { path: path.to_owned(), problems: vec![Problem { place: String::new(), reason }] };
    let file = regular::open(path).map_err(|e| fail(plain(&e)))?;
    if file.metadata().map_err(|e| fail(plain(&e)))?.len() == 0 {
        return Err(fail("it is empty".to_owned()));
    }
    let bytes = map(&file).map_err(|e| fail(plain(&e)))?;
    read(bytes, path, Holder::File)
}

/// Reads a model from memory. `path` names it in errors; external data is looked for in its folder.
///
/// # Errors
/// As [`load`].
pub fn load_bytes(bytes: Bytes, path: &Path) -> Result<Graph, LoadError> {
    read(bytes, path, Holder::Memory)
}

/// Where the model's own bytes are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holder {
    File,
    Memory,
}

fn read(bytes: Bytes, path: &Path, holder: Holder) -> Result<Graph, LoadError> {
    let error = |problems| LoadError { path: path.to_owned(), problems };
    let one = |reason: String| error(vec![Problem { place: String::new(), reason }]);
    let model =
        ModelProto::decode(bytes.clone()).map_err(|e| one(format!("is not an ONNX model, or is damaged ({e})")))?;
    let ModelProto { graph: Some(graph), .. } = &model else {
        return Err(one("is not an ONNX model: it holds no graph".to_owned()));
    };
    let mut reader = Reader {
        out: Graph::new(graph.name(), 1),
        base: bytes,
        holder,
        path: Arc::new(path.to_owned()),
        external: HashMap::new(),
        refused: HashSet::new(),
        problems: Vec::new(),
    };
    reader.model(&model);
    reader.graph(&without_cache(graph));
    let Reader { mut out, mut problems, .. } = reader;
    if problems.is_empty()
        && let Err((node, reason)) = out.infer()
    {
        let node = out.node(node);
        problems.push(Problem { place: format!("{} `{}`", node.op, node.name), reason });
    }
    if problems.is_empty() { Ok(out) } else { Err(error(problems)) }
}

pub(crate) fn map(file: &File) -> std::io::Result<Bytes> {
    // SAFETY: the map is read-only. A file that another process truncates meanwhile ends this process with SIGBUS,
    // which is the price of never holding a model in memory.
    let map = unsafe { Mmap::map(file)? };
    Ok(Bytes::from_owner(map))
}

/// The system's message without its error number.
pub(crate) fn plain(e: &std::io::Error) -> String {
    let text = e.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

struct Reader {
    out: Graph,
    base: Bytes,
    holder: Holder,
    path: Arc<PathBuf>,
    external: HashMap<PathBuf, (Arc<PathBuf>, Bytes)>,
    /// Values of the file that were refused: its readers are not to blame.
    refused: HashSet<String>,
    problems: Vec<Problem>,
}

impl Reader {
    /// A value that cannot be read.
    fn refuse(&mut self, name: &str, place: impl Into<String>, reason: impl Into<String>) {
        self.refused.insert(name.to_owned());
        self.problem(place, reason);
    }

    fn problem(&mut self, place: impl Into<String>, reason: impl Into<String>) {
        self.problems.push(Problem { place: place.into(), reason: reason.into() });
    }

    fn model(&mut self, model: &ModelProto) {
        self.out.ir_version = model.ir_version();
        self.out.producer = format!("{} {}", model.producer_name(), model.producer_version()).trim().to_owned();
        self.out.functions = model.functions.clone();
        self.out.opsets = model.opset_import.iter().map(|o| (domain(o.domain()), o.version())).collect();
        let mut seen = HashSet::new();
        for (domain, _) in self.out.opsets.clone() {
            if !seen.insert(domain.clone()) {
                let shown = if domain.is_empty() { "ai.onnx" } else { domain.as_str() };
                self.problem("opset_import", format!("the model gives the version of {shown} twice"));
            }
        }
        if !self.out.opsets.iter().any(|(d, _)| d.is_empty()) {
            self.problem("opset_import", "the model gives no version of the default ONNX operator set");
        }
    }

    fn graph(&mut self, graph: &GraphProto) {
        if graph.node.is_empty() {
            self.problem("graph", "has no nodes");
        }
        for sparse in &graph.sparse_initializer {
            let name = sparse.values.as_ref().map_or("", |v| v.name());
            self.refuse(name, format!("initializer `{name}`"), "is sparse, which lstc cannot read");
        }
        for tensor in &graph.initializer {
            self.initializer(tensor);
        }
        for input in &graph.input {
            self.input(input);
        }
        let (constants, nodes): (Vec<_>, Vec<_>) = graph.node.iter().partition(|n| is_constant(n));
        for node in constants {
            self.constant(node);
        }
        // An output's own declaration counts where it is listed among the values within too.
        let mut declared: HashMap<&str, &ValueInfoProto> = HashMap::new();
        for info in &graph.value_info {
            if declared.insert(info.name(), info).is_some_and(|before| before.r#type != info.r#type) {
                self.problem(format!("value `{}`", info.name()), "is declared twice, with two types or shapes");
            }
        }
        declared.extend(graph.output.iter().map(|info| (info.name(), info)));
        let mut seen = HashSet::new();
        for node in nodes.iter().filter(|node| !node.name().is_empty() && !seen.insert(node.name())) {
            let place = format!("{} `{}`", node.op_type(), node.name());
            self.problem(place, "has the name of another node, and ONNX Runtime refuses such a model");
        }
        let outputs: Vec<Vec<Option<ValueId>>> =
            nodes.iter().enumerate().map(|(i, n)| self.outputs(n, NodeId(i as u32), &declared)).collect();
        for (node, outputs) in nodes.into_iter().zip(outputs) {
            self.node(node, outputs);
        }
        let mut seen = HashSet::new();
        for output in &graph.output {
            match self.out.find(output.name()) {
                Some(id) if seen.insert(id) => self.out.outputs.push(id),
                Some(_) => self.problem(format!("output `{}`", output.name()), "is listed twice"),
                None if self.refused.contains(output.name()) => {}
                None => self.problem(format!("output `{}`", output.name()), "no node makes it"),
            }
        }
        if graph.output.is_empty() {
            self.problem("graph", "has no outputs");
        }
    }

    fn new_value(&mut self, name: &str, source: Source, dtype: Option<DType>, fact: SymTensor) -> Option<ValueId> {
        if name.is_empty() {
            self.problem("graph", "a value has an empty name");
            return None;
        }
        if self.out.find(name).is_some() {
            self.problem(format!("value `{name}`"), "is defined twice");
            return None;
        }
        Some(self.out.add_value(name, source, dtype, fact))
    }

    fn initializer(&mut self, tensor: &TensorProto) {
        match self.tensor(tensor) {
            Ok(weight) => {
                let fact = crate::infer::weight_fact(&weight);
                self.new_value(tensor.name(), Source::Weight(weight.clone()), Some(weight.dtype()), fact);
            }
            Err(reason) => self.refuse(tensor.name(), format!("initializer `{}`", tensor.name()), reason),
        }
    }

    fn input(&mut self, input: &ValueInfoProto) {
        // Until IR version 3 every initializer was listed as an input too.
        if self.out.find(input.name()).is_some_and(|v| self.out.weight(v).is_some()) {
            return;
        }
        match tensor_type(input.r#type.as_ref()) {
            Ok((_, Some(shape))) if shape.len() > MAX_RANK => {
                let reason = format!("has {} dimensions, more than {MAX_RANK}", shape.len());
                self.refuse(input.name(), format!("input `{}`", input.name()), reason);
            }
            Ok((dtype, shape)) => {
                let fact = shape.map_or_else(
                    || SymTensor::unknown("not declared"),
                    |shape| SymTensor::from_shape(dims(shape, input.name())),
                );
                if let Some(id) = self.new_value(input.name(), Source::Input(Role::Frozen), Some(dtype), fact) {
                    self.out.inputs.push(id);
                }
            }
            Err(reason) => self.refuse(input.name(), format!("input `{}`", input.name()), reason),
        }
    }

    fn constant(&mut self, node: &NodeProto) {
        let [name] = node.output.as_slice() else {
            return self.problem(format!("Constant `{}`", node.name()), "must have one output");
        };
        match self.constant_value(node) {
            Ok(weight) => {
                let fact = crate::infer::weight_fact(&weight);
                self.new_value(name, Source::Weight(weight.clone()), Some(weight.dtype()), fact);
            }
            Err(reason) => self.refuse(name, format!("Constant `{name}`"), reason),
        }
    }

    fn constant_value(&mut self, node: &NodeProto) -> Result<Weight, String> {
        let [attribute] = node.attribute.as_slice() else { return Err("must have one attribute".to_owned()) };
        match (attribute.name(), self.attribute(attribute)?) {
            ("value", Attribute::Tensor(weight)) => Ok(weight),
            ("value_int", Attribute::Int(v)) => Ok(Weight::scalar_i64(v)),
            ("value_float", Attribute::Float(v)) => Ok(Weight::scalar_f32(v)),
            ("value_ints", Attribute::Ints(v)) => Ok(Weight::from_i64(&[v.len()], &v)),
            ("value_floats", Attribute::Floats(v)) => Ok(Weight::from_f32(&[v.len()], &v)),
            (name, _) => Err(format!("its attribute `{name}` is not a tensor of numbers")),
        }
    }

    /// Makes the values of a node's outputs, with the type and shape that the file declares for them: what stands
    /// where inference does not know the operator.
    fn outputs(
        &mut self,
        node: &NodeProto,
        id: NodeId,
        declared: &HashMap<&str, &ValueInfoProto>,
    ) -> Vec<Option<ValueId>> {
        let output = |(slot, name): (usize, &String)| {
            if name.is_empty() {
                return None;
            }
            let info = declared.get(name.as_str()).and_then(|info| tensor_type(info.r#type.as_ref()).ok());
            let (dtype, fact) = match info {
                Some((dtype, Some(shape))) if shape.len() <= MAX_RANK => {
                    (Some(dtype), SymTensor::from_shape(dims(shape, name)))
                }
                Some((dtype, _)) => (Some(dtype), SymTensor::unknown("not inferred")),
                None => (None, SymTensor::unknown("not inferred")),
            };
            self.new_value(name, Source::Node(id, slot), dtype, fact)
        };
        node.output.iter().enumerate().map(output).collect()
    }

    fn node(&mut self, node: &NodeProto, outputs: Vec<Option<ValueId>>) {
        let first = node.output.iter().find(|o| !o.is_empty()).cloned().unwrap_or_default();
        let name = if node.name().is_empty() { first } else { node.name().to_owned() };
        let place = format!("{} `{name}`", node.op_type());
        if node.op_type().is_empty() {
            self.problem(format!("node `{name}`"), "has no operator");
        }
        let mut attributes = Attributes::none();
        for attribute in &node.attribute {
            if attributes.get(attribute.name()).is_some() {
                self.problem(format!("{place}, attribute `{}`", attribute.name()), "is given twice");
            }
            match self.attribute(attribute) {
                Ok(value) => attributes.insert(attribute.name(), value),
                Err(reason) => self.problem(format!("{place}, attribute `{}`", attribute.name()), reason),
            }
        }
        if attributes.has_opaque() {
            self.problem(&place, "holds a subgraph or a type: lstc does not support control flow or sequences");
        }
        let mut inputs = Vec::with_capacity(node.input.len());
        for input in &node.input {
            let value = self.out.find(input);
            if value.is_none() && !input.is_empty() && !self.refused.contains(input) {
                self.problem(&place, format!("reads `{input}`, which is not defined"));
            }
            inputs.push(value);
        }
        self.out.nodes.push(Some(Node {
            name,
            op: node.op_type().to_owned(),
            domain: domain(node.domain()),
            inputs,
            outputs,
            attributes,
            origin: node.doc_string().strip_prefix(PASS_PREFIX).map_or(Origin::SOURCE, Origin::read),
        }));
    }

    fn attribute(&mut self, a: &AttributeProto) -> Result<Attribute, String> {
        let text = |b: &Bytes| String::from_utf8_lossy(b).into_owned();
        Ok(match a.r#type() {
            AttributeType::Int => Attribute::Int(a.i()),
            AttributeType::Float => Attribute::Float(a.f()),
            AttributeType::String => Attribute::String(text(a.s.as_ref().unwrap_or(&Bytes::new()))),
            AttributeType::Ints => Attribute::Ints(a.ints.clone()),
            AttributeType::Floats => Attribute::Floats(a.floats.clone()),
            AttributeType::Strings => Attribute::Strings(a.strings.iter().map(text).collect()),
            AttributeType::Tensor => match &a.t {
                Some(t) => Attribute::Tensor(self.tensor(t)?),
                None => return Err("holds no tensor".to_owned()),
            },
            AttributeType::Undefined => return Err("has no type".to_owned()),
            _ => Attribute::Opaque(Box::new(a.clone())),
        })
    }

    fn tensor(&mut self, t: &TensorProto) -> Result<Weight, String> {
        let dtype = DType::from_onnx(t.data_type()).ok_or_else(|| {
            format!("has element type {}, which lstc does not support", onnx_type_name(t.data_type()))
        })?;
        let dims: Vec<usize> = t
            .dims
            .iter()
            .map(|&d| usize::try_from(d).map_err(|_| format!("has a dimension of {d}")))
            .collect::<Result<_, _>>()?;
        if dims.len() > MAX_RANK {
            return Err(format!("has {} dimensions, more than {MAX_RANK}", dims.len()));
        }
        let declared = format!("{} {dims:?}", dtype.name());
        let wanted = byte_len(dtype, &dims).ok_or_else(|| format!("declares an absurd size: {declared}"))?;
        if dims.iter().any(|&d| d > i32::MAX as usize) {
            return Err(format!("declares an absurd size: {declared}"));
        }
        if holders(t) > 1 {
            return Err("has its numbers in more than one field".to_owned());
        }
        let (bytes, place) = if t.data_location() == DataLocation::External {
            let (bytes, place) = self.external(t, wanted)?;
            (bytes, Some(place))
        } else if let Some(raw) = &t.raw_data {
            let place = self.embedded_place(raw);
            (raw.clone(), place)
        } else {
            (typed_data(t, dtype)?, None)
        };
        let held = bytes.len();
        Weight::new(dtype, dims, bytes, place)
            .ok_or_else(|| format!("declares {declared}, which takes {wanted} bytes, but holds {held}"))
    }

    /// The place of embedded bytes in the model's own file, if it is one.
    fn embedded_place(&self, raw: &Bytes) -> Option<FileRange> {
        if self.holder == Holder::Memory {
            return None;
        }
        let offset = (raw.as_ptr() as usize).checked_sub(self.base.as_ptr() as usize)?;
        (offset + raw.len() <= self.base.len()).then(|| FileRange { file: self.path.clone(), offset: offset as u64 })
    }

    fn external(&mut self, t: &TensorProto, wanted: usize) -> Result<(Bytes, FileRange), String> {
        let mut seen = HashSet::new();
        if let Some(twice) = t.external_data.iter().find(|e| !seen.insert(e.key())) {
            return Err(format!(
                "has external data that repeat the key `{}`: readers differ on which one counts",
                twice.key()
            ));
        }
        let entry = |key: &str| t.external_data.iter().find(|e| e.key() == key).map(|e| e.value().to_owned());
        let number = |key: &str| -> Result<Option<usize>, String> {
            // A sign is not a digit.
            let plain = |v: &String| v.bytes().all(|b| b.is_ascii_digit()).then(|| v.parse().ok()).flatten();
            let parse =
                |v: String| plain(&v).ok_or_else(|| format!("has external data whose {key} is `{v}`, not a number"));
            entry(key).map(parse).transpose()
        };
        let location = entry("location").ok_or("has external data without a location")?;
        let inside = Path::new(&location).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        if location.is_empty() || !inside {
            return Err(format!("has external data at `{location}`, outside the model's folder: refused"));
        }
        let path = self.path.parent().unwrap_or(Path::new("")).join(&location);
        if !self.external.contains_key(&path) {
            let place =
                |e: &std::io::Error| format!("its external data `{}` cannot be read: {}", path.display(), plain(e));
            let file = regular::open(&path).map_err(|e| place(&e))?;
            let is_empty = file.metadata().map_err(|e| place(&e))?.len() == 0;
            let bytes = if is_empty { Bytes::new() } else { map(&file).map_err(|e| place(&e))? };
            self.external.insert(path.clone(), (Arc::new(path.clone()), bytes));
        }
        let (file, bytes) = &self.external[&path];
        let offset = number("offset")?.unwrap_or(0);
        let length = number("length")?.unwrap_or(wanted);
        if length != wanted {
            return Err(format!("takes {wanted} bytes, but its external data declares {length}"));
        }
        let end = offset.checked_add(length).filter(|&end| end <= bytes.len()).ok_or_else(|| {
            let path = path.display();
            format!(
                "its external data `{path}` is too short: {} bytes, but {offset} + {length} are needed",
                bytes.len()
            )
        })?;
        Ok((bytes.slice(offset..end), FileRange { file: file.clone(), offset: offset as u64 }))
    }
}

fn is_constant(node: &NodeProto) -> bool {
    node.op_type() == "Constant" && domain(node.domain()).is_empty()
}

/// A domain's name, with the default domain's long form in its short one.
fn domain(name: &str) -> String {
    if name == "ai.onnx" { String::new() } else { name.to_owned() }
}

fn onnx_type_name(code: i32) -> String {
    use crate::onnx::proto::tensor_proto::DataType;
    DataType::try_from(code).map_or_else(|_| format!("number {code}"), |t| t.as_str_name().to_owned())
}

/// The number of fields in which a tensor has numbers.
fn holders(t: &TensorProto) -> usize {
    let is_external = t.data_location() == DataLocation::External;
    let lists = [
        !t.float_data.is_empty(),
        !t.int32_data.is_empty(),
        !t.int64_data.is_empty(),
        !t.double_data.is_empty(),
        !t.uint64_data.is_empty(),
        !t.string_data.is_empty(),
    ];
    let embedded = [is_external, t.raw_data.as_ref().is_some_and(|raw| !raw.is_empty())];
    lists.into_iter().chain(embedded).filter(|held| *held).count()
}

/// Bytes of a tensor whose elements are protobuf numbers.
fn typed_data(t: &TensorProto, dtype: DType) -> Result<Bytes, String> {
    if !t.string_data.is_empty() {
        return Err("holds strings".to_owned());
    }
    let narrow =
        |size: usize| -> Bytes { t.int32_data.iter().flat_map(|v| v.to_le_bytes()[..size].to_vec()).collect() };
    Ok(match dtype {
        DType::F32 => t.float_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F64 => t.double_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::I64 => t.int64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::U64 => t.uint64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::U32 => t.uint64_data.iter().flat_map(|v| (*v as u32).to_le_bytes()).collect(),
        DType::I32 => narrow(4),
        DType::F16 | DType::BF16 | DType::I16 | DType::U16 => narrow(2),
        DType::I8 | DType::U8 | DType::Bool => narrow(1),
    })
}

/// Element type and declared dimensions of a tensor; an error for anything else.
fn tensor_type(declared: Option<&TypeProto>) -> Result<(DType, Option<&[tensor_shape_proto::Dimension]>), String> {
    let Some(type_proto::Value::TensorType(tensor)) = declared.and_then(|t| t.value.as_ref()) else {
        return Err("is not a dense tensor".to_owned());
    };
    let dtype = DType::from_onnx(tensor.elem_type()).ok_or_else(|| {
        format!("has element type {}, which lstc does not support", onnx_type_name(tensor.elem_type()))
    })?;
    Ok((dtype, tensor.shape.as_ref().map(|s| s.dim.as_slice())))
}

/// Symbolic dimensions; one without a name gets the value's.
fn dims(declared: &[tensor_shape_proto::Dimension], value: &str) -> Vec<Dim> {
    let dim = |(i, d): (usize, &tensor_shape_proto::Dimension)| match &d.value {
        Some(dimension::Value::DimValue(v)) if (1..=i64::from(i32::MAX)).contains(v) => Dim::Value(*v as i32),
        Some(dimension::Value::DimParam(name)) if !name.is_empty() => Dim::pos_var(name),
        _ => Dim::pos_var(&format!("{value}.{i}")),
    };
    declared.iter().enumerate().map(dim).collect()
}
