//! Writing ONNX files whose weights lie in one data file that several graphs share.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

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
    let mut weights: Vec<&Weight> = Vec::new();
    let mut data = DataFile { name: name.to_owned(), offsets: HashMap::new() };
    for graph in graphs {
        for value in used_weights(graph) {
            let weight = graph.weight(value).expect("only weights are listed");
            if weight.bytes().len() >= MIN_EXTERNAL && data.offsets.insert(identity(weight.bytes()), 0).is_none() {
                weights.push(weight);
            }
        }
    }
    let target = folder.join(name);
    if let Some(source) = single_data_file(&weights)
        // The file itself, where a name is a link to it.
        && source.canonicalize().and_then(|source| std::fs::hard_link(source, &target)).is_ok()
    {
        for weight in weights {
            let offset = weight.place().expect("every weight lies in the data file").offset;
            data.offsets.insert(identity(weight.bytes()), offset);
        }
        return Ok((data, Saved::Linked));
    }
    // Never through a name that is there: it may be a link to a model's own weights.
    let mut out = File::create_new(&target)?;
    let mut at = 0_u64;
    let mut sources: HashMap<PathBuf, File> = HashMap::new();
    for weight in weights {
        let align = if weight.bytes().len() as u64 >= PAGE { PAGE } else { 64 };
        at = at.next_multiple_of(align);
        out.seek(SeekFrom::Start(at))?;
        copy(weight, &mut out, &mut sources)?;
        data.offsets.insert(identity(weight.bytes()), at);
        at += weight.bytes().len() as u64;
    }
    out.sync_data()?;
    Ok((data, Saved::Copied(at)))
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

/// The graph as an ONNX model. Weights in `data` are references to it, the others are embedded.
pub fn encode(graph: &Graph, data: &DataFile) -> Vec<u8> {
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
    let model = ModelProto {
        ir_version: Some(graph.ir_version),
        producer_name: Some("lstc".to_owned()),
        producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        opset_import: graph
            .opsets
            .iter()
            .map(|(domain, version)| OperatorSetIdProto { domain: Some(domain.clone()), version: Some(*version) })
            .collect(),
        functions: graph.functions.clone(),
        graph: Some(GraphProto {
            name: Some(graph.name.clone()),
            node: order.into_iter().map(node).collect(),
            initializer: used_weights(graph)
                .into_iter()
                .map(|v| {
                    let value = graph.value(v);
                    tensor(&value.name, graph.weight(v).expect("only weights are listed"), data)
                })
                .collect(),
            input: graph.inputs.iter().map(|v| info(graph, *v)).collect(),
            output: graph.outputs.iter().map(|v| info(graph, *v)).collect(),
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    };
    model.encode_to_vec()
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

fn tensor(name: &str, weight: &Weight, data: &DataFile) -> TensorProto {
    let mut proto = TensorProto {
        dims: weight.dims().iter().map(|&d| d as i64).collect(),
        data_type: Some(weight.dtype().onnx()),
        name: Some(name.to_owned()),
        ..TensorProto::default()
    };
    match data.offsets.get(&identity(weight.bytes())) {
        Some(offset) => {
            let entry = |k: &str, v: String| StringStringEntryProto { key: Some(k.to_owned()), value: Some(v) };
            proto.data_location = Some(DataLocation::External.into());
            proto.external_data = vec![
                entry("location", data.name.clone()),
                entry("offset", offset.to_string()),
                entry("length", weight.bytes().len().to_string()),
            ];
        }
        None => proto.raw_data = Some(weight.bytes().clone()),
    }
    proto
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
            proto.t = Some(tensor("", v, &DataFile::default()));
            AttributeType::Tensor
        }
        Attribute::Opaque(v) => return v.as_ref().clone(),
    };
    proto.r#type = Some(kind.into());
    proto
}
