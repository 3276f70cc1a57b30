//! Writing ONNX files: weights embedded, or in one data file that several graphs may share.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};

use crate::attribute::Attribute;
use crate::infer::{Dim, dim_text};
use crate::ir::{Graph, Origin, ValueId};
use crate::onnx::proto::attribute_proto::AttributeType;
use crate::onnx::proto::tensor_proto::DataLocation;
use crate::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use crate::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use crate::weight::Weight;

/// Weights below this size are embedded in each graph; the others go to the data file.
const MIN_EXTERNAL: usize = 1024;

/// Weights of at least this size start on a page of their own, so that a runtime can map them.
const PAGE: u64 = 4096;

/// The data file beside the graphs: where each weight's bytes lie in it.
#[derive(Clone, Debug, Default)]
pub struct DataFile {
    /// Its name, relative to the graphs' folder.
    pub name: String,
    offsets: HashMap<(usize, usize), u64>,
}

impl DataFile {
    /// The data file that a graph's weights were read from, under its name: for writing the graph again beside it.
    pub fn of(graph: &Graph, name: &str) -> DataFile {
        let in_file = |v: ValueId| {
            let weight = graph.weight(v)?;
            let place = weight.place().filter(|p| p.file.file_name().is_some_and(|n| n == name))?;
            Some((identity(weight.bytes()), place.offset))
        };
        DataFile { name: name.to_owned(), offsets: graph.value_ids().filter_map(in_file).collect() }
    }
}

/// How a data file came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saved {
    /// A hard link to the source's own data file.
    Linked,
    /// A copy of the weights, of so many bytes.
    Copied(u64),
}

/// Bytes in memory are known by where they are: a clone of a weight is the same weight.
fn identity(bytes: &Bytes) -> (usize, usize) {
    (bytes.as_ptr() as usize, bytes.len())
}

/// Writes the large weights of `graphs` to `folder/name`, each once, or links the source's data file where all of
/// them lie in one that is not the model itself.
///
/// # Errors
/// From the file system, e.g. no space, or a file of that name.
pub fn write_data(graphs: &[&Graph], folder: &Path, name: &str) -> io::Result<(DataFile, Saved)> {
    let weights = large_weights(graphs);
    if let Some(source) = single_data_file(&weights)
        // The file itself, where a name is a link to it.
        && source.canonicalize().and_then(|source| std::fs::hard_link(source, folder.join(name))).is_ok()
    {
        let offset = |w: &&Weight| {
            let offset = w.place().expect("every weight lies in the data file").offset;
            (identity(w.bytes()), offset)
        };
        let data = DataFile { name: name.to_owned(), offsets: weights.iter().map(offset).collect() };
        return Ok((data, Saved::Linked));
    }
    let (data, bytes) = copy_data(graphs, folder, name)?;
    Ok((data, Saved::Copied(bytes)))
}

/// As [`write_data`], but always a file of its own, with these weights alone; the number of its bytes.
///
/// # Errors
/// As [`write_data`].
pub fn copy_data(graphs: &[&Graph], folder: &Path, name: &str) -> io::Result<(DataFile, u64)> {
    let mut data = DataFile { name: name.to_owned(), offsets: HashMap::new() };
    // Never through a name that is there: it may be a link to a model's own weights.
    let mut out = File::create_new(folder.join(name))?;
    let mut at = 0_u64;
    let mut sources: HashMap<PathBuf, File> = HashMap::new();
    for weight in large_weights(graphs) {
        let align = if weight.bytes().len() as u64 >= PAGE { PAGE } else { 64 };
        at = at.next_multiple_of(align);
        out.seek(SeekFrom::Start(at))?;
        copy(weight, &mut out, &mut sources)?;
        data.offsets.insert(identity(weight.bytes()), at);
        at += weight.bytes().len() as u64;
    }
    out.sync_data()?;
    Ok((data, at))
}

/// The weights that go to a data file, each once.
fn large_weights<'g>(graphs: &[&'g Graph]) -> Vec<&'g Weight> {
    let mut seen = HashSet::new();
    let mut weights = Vec::new();
    for graph in graphs {
        let used = used_weights(graph).into_iter().filter_map(|v| graph.weight(v));
        weights.extend(used.filter(|w| w.bytes().len() >= MIN_EXTERNAL && seen.insert(identity(w.bytes()))));
    }
    weights
}

/// Copies a weight, file to file where it lies in one: the kernel moves the bytes.
fn copy(weight: &Weight, out: &mut File, sources: &mut HashMap<PathBuf, File>) -> io::Result<()> {
    let Some(place) = weight.place() else { return out.write_all(weight.bytes()) };
    if !sources.contains_key(place.file.as_path()) {
        sources.insert(place.file.to_path_buf(), File::open(place.file.as_path())?);
    }
    let source = sources.get_mut(place.file.as_path()).expect("it was just opened");
    source.seek(SeekFrom::Start(place.offset))?;
    let wanted = weight.bytes().len() as u64;
    let copied = io::copy(&mut source.take(wanted), out)?;
    if copied != wanted {
        let text = format!("`{}` ended {} bytes early", place.file.display(), wanted - copied);
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
    }
    Ok(())
}

/// The external data file that holds all of the weights, if one does. The model's own file does not serve: its
/// offsets are not aligned, and a name that ends in `.onnx` would lie about what it is.
fn single_data_file(weights: &[&Weight]) -> Option<Arc<PathBuf>> {
    let first = &weights.first()?.place()?.file;
    let external = first.extension().is_none_or(|e| e != "onnx");
    let same = weights.iter().all(|w| w.place().is_some_and(|p| p.file == *first));
    (external && same).then(|| first.clone())
}

/// The weights that nodes or outputs read, by id.
fn used_weights(graph: &Graph) -> Vec<ValueId> {
    let uses = graph.uses();
    let used = |v: &ValueId| !uses.of(*v).is_empty() || graph.outputs.contains(v);
    graph.value_ids().filter(|v| graph.weight(*v).is_some()).filter(used).collect()
}

/// What a model file tells of itself beside its graph.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// Text for people.
    pub doc: String,
    /// Keys and values for programs.
    pub metadata: Vec<(String, String)>,
}

/// The graph as an ONNX model. Weights in `data` are references to it, the others are embedded.
pub fn encode(graph: &Graph, data: &DataFile) -> Vec<u8> {
    let mut model = Vec::new();
    Encoding::new(graph, data, &About::default()).write(&mut model).expect("memory takes every write");
    model
}

/// A graph as an ONNX model that is yet to be written. It holds everything but the bytes of the embedded weights, which
/// go from where they lie to the file.
pub struct Encoding<'g> {
    /// The model up to the first initializer.
    head: Vec<u8>,
    /// Each initializer up to its bytes, where these are embedded.
    initializers: Vec<(Vec<u8>, Option<&'g Weight>)>,
}

/// Numbers of the fields that are written by hand, after all others of their messages: a protobuf reader takes them
/// in any order.
mod field {
    pub const MODEL_GRAPH: u32 = 7;
    pub const GRAPH_INITIALIZER: u32 = 5;
    pub const TENSOR_RAW_DATA: u32 = 9;
}

impl<'g> Encoding<'g> {
    /// Weights in `data` are references to it, the others are embedded.
    pub fn new(graph: &'g Graph, data: &DataFile, about: &About) -> Encoding<'g> {
        let initializer = |v: ValueId| {
            let weight = graph.weight(v)?;
            let mut tensor = tensor_header(&graph.value(v).name, weight);
            let embedded = match data.offsets.get(&identity(weight.bytes())) {
                Some(offset) => {
                    refer(&mut tensor, weight, data, *offset);
                    None
                }
                None => Some(weight),
            };
            let mut fields = tensor.encode_to_vec();
            let mut length = fields.len();
            if let Some(weight) = embedded {
                begin_bytes(field::TENSOR_RAW_DATA, weight.bytes().len(), &mut fields);
                length = fields.len() + weight.bytes().len();
            }
            let mut bytes = Vec::new();
            begin_bytes(field::GRAPH_INITIALIZER, length, &mut bytes);
            bytes.extend(fields);
            Some((bytes, embedded))
        };
        let initializers: Vec<_> = used_weights(graph).into_iter().filter_map(initializer).collect();
        let fields = graph_fields(graph).encode_to_vec();
        let mut head = model_fields(graph, about).encode_to_vec();
        let length = fields.len() + initializers.iter().map(initializer_len).sum::<usize>();
        begin_bytes(field::MODEL_GRAPH, length, &mut head);
        head.extend(fields);
        Encoding { head, initializers }
    }

    /// Bytes of the whole file.
    pub fn size(&self) -> usize {
        self.head.len() + self.initializers.iter().map(initializer_len).sum::<usize>()
    }

    /// Writes the model. Nothing is held but the encoding itself: `out` gets each weight in one piece.
    ///
    /// # Errors
    /// From `out`.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(&self.head)?;
        for (fields, embedded) in &self.initializers {
            out.write_all(fields)?;
            if let Some(weight) = embedded {
                out.write_all(weight.bytes())?;
            }
        }
        Ok(())
    }
}

fn initializer_len((fields, embedded): &(Vec<u8>, Option<&Weight>)) -> usize {
    fields.len() + embedded.map_or(0, |w| w.bytes().len())
}

/// Begins a field of so many bytes.
fn begin_bytes(field: u32, length: usize, out: &mut Vec<u8>) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(length as u64, out);
}

/// Everything of a model but its graph.
fn model_fields(graph: &Graph, about: &About) -> ModelProto {
    let opset = |(domain, version): &(String, i64)| OperatorSetIdProto {
        domain: Some(domain.clone()),
        version: Some(*version),
    };
    ModelProto {
        ir_version: Some(graph.ir_version),
        producer_name: Some("lstc".to_owned()),
        producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        doc_string: (!about.doc.is_empty()).then(|| about.doc.clone()),
        opset_import: graph.opsets.iter().map(opset).collect(),
        functions: graph.functions.clone(),
        metadata_props: about.metadata.iter().map(|(k, v)| entry(k, v.clone())).collect(),
        ..ModelProto::default()
    }
}

/// Everything of a graph but its initializers.
fn graph_fields(graph: &Graph) -> GraphProto {
    let order = graph.order().unwrap_or_else(|_| graph.node_ids().collect());
    let name = |v: &Option<ValueId>| v.map_or_else(String::new, |v| graph.value(v).name.clone());
    let node = |id| {
        let node = graph.node(id);
        NodeProto {
            input: node.inputs.iter().map(name).collect(),
            output: node.outputs.iter().map(name).collect(),
            name: Some(node.name.clone()),
            op_type: Some(node.op.clone()),
            domain: (!node.domain.is_empty()).then(|| node.domain.clone()),
            attribute: node.attributes.iter().map(|(k, v)| attribute(k, v)).collect(),
            doc_string: (node.origin != Origin::SOURCE).then(|| format!("{PASS_PREFIX}{}", node.origin)),
            ..NodeProto::default()
        }
    };
    GraphProto {
        name: Some(graph.name.clone()),
        node: order.into_iter().map(node).collect(),
        input: graph.inputs.iter().map(|v| info(graph, *v)).collect(),
        output: graph.outputs.iter().map(|v| info(graph, *v)).collect(),
        ..GraphProto::default()
    }
}

/// Begins the `doc_string` of a node that a pass made; the pass's name follows.
pub const PASS_PREFIX: &str = "lstc pass: ";

fn info(graph: &Graph, id: ValueId) -> ValueInfoProto {
    let value = graph.value(id);
    let dim = |d: Dim| {
        let value = match d {
            Dim::Value(v) => dimension::Value::DimValue(v.into()),
            other => dimension::Value::DimParam(dim_text(&other)),
        };
        Dimension { value: Some(value), ..Dimension::default() }
    };
    let tensor = type_proto::Tensor {
        elem_type: value.dtype.map(|d| d.onnx()),
        shape: value.shape().map(|s| TensorShapeProto { dim: s.into_iter().map(dim).collect() }),
    };
    ValueInfoProto {
        name: Some(value.name.clone()),
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() }),
        ..ValueInfoProto::default()
    }
}

/// A tensor without its bytes.
fn tensor_header(name: &str, weight: &Weight) -> TensorProto {
    TensorProto {
        dims: weight.dims().iter().map(|&d| d as i64).collect(),
        data_type: Some(weight.dtype().onnx()),
        name: Some(name.to_owned()),
        ..TensorProto::default()
    }
}

/// Says where in the data file a tensor's bytes lie.
fn refer(tensor: &mut TensorProto, weight: &Weight, data: &DataFile, offset: u64) {
    tensor.data_location = Some(DataLocation::External.into());
    tensor.external_data = vec![
        entry("location", data.name.clone()),
        entry("offset", offset.to_string()),
        entry("length", weight.bytes().len().to_string()),
    ];
}

fn entry(key: &str, value: String) -> StringStringEntryProto {
    StringStringEntryProto { key: Some(key.to_owned()), value: Some(value) }
}

fn attribute(name: &str, value: &Attribute) -> AttributeProto {
    let mut proto = AttributeProto { name: Some(name.to_owned()), ..AttributeProto::default() };
    let kind = match value {
        Attribute::Int(v) => {
            proto.i = Some(*v);
            AttributeType::Int
        }
        Attribute::Float(v) => {
            proto.f = Some(*v);
            AttributeType::Float
        }
        Attribute::String(v) => {
            proto.s = Some(v.clone().into());
            AttributeType::String
        }
        Attribute::Ints(v) => {
            proto.ints = v.clone();
            AttributeType::Ints
        }
        Attribute::Floats(v) => {
            proto.floats = v.clone();
            AttributeType::Floats
        }
        Attribute::Strings(v) => {
            proto.strings = v.iter().map(|s| s.clone().into()).collect();
            AttributeType::Strings
        }
        Attribute::Tensor(v) => {
            proto.t = Some(TensorProto { raw_data: Some(v.bytes().clone()), ..tensor_header("", v) });
            AttributeType::Tensor
        }
        Attribute::Opaque(v) => return v.as_ref().clone(),
    };
    proto.r#type = Some(kind.into());
    proto
}
