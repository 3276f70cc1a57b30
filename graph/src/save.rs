//! Writing ONNX files: weights embedded, or in data files that several graphs may share.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::iter;

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};

use crate::attribute::Attribute;
use crate::data_files::{DataFiles, Place};
use crate::infer::{Dim, dim_text};
use crate::ir::{Graph, NodeId, Origin, ValueId};
use crate::onnx::proto::attribute_proto::AttributeType;
use crate::onnx::proto::tensor_proto::DataLocation;
use crate::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use crate::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use crate::weight::Weight;

/// The weights that nodes or outputs read, by id.
pub(crate) fn used_weights(graph: &Graph) -> Vec<ValueId> {
    let uses = graph.uses();
    let used = |v: &ValueId| !uses.of(*v).is_empty() || graph.outputs.contains(v);
    graph.value_ids().filter(|v| graph.weight(*v).is_some()).filter(used).collect()
}

/// What a model file says of itself apart from its graph.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// Text for people.
    pub doc: String,
    /// Keys and values for programs.
    pub metadata: Vec<(String, String)>,
}

/// The graph as an ONNX model. Weights in `data` are references to it, the others are embedded.
pub fn encode(graph: &Graph, data: &DataFiles) -> Vec<u8> {
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
    pub fn new(graph: &'g Graph, data: &DataFiles, about: &About) -> Encoding<'g> {
        let initializer = |v: ValueId| {
            let weight = graph.weight(v)?;
            let mut tensor = tensor_header(&graph.value(v).name, weight);
            let embedded = match data.place(weight) {
                Some(place) => {
                    refer(&mut tensor, weight, place);
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
///
/// Only inputs and outputs get shapes. By the shapes of values within, ONNX Runtime would plan which values share a buffer, and keep
/// it from the first to the last: a step took a fifth more memory, and no less time.
fn graph_fields(graph: &Graph) -> GraphProto {
    let order = graph.order().unwrap_or_else(|_| graph.node_ids().collect());
    let name = |v: &Option<ValueId>| v.map_or_else(String::new, |v| graph.value(v).name.clone());
    let mut names = node_names(graph, &order);
    let node = |id| {
        let node = graph.node(id);
        NodeProto {
            input: node.inputs.iter().map(name).collect(),
            output: node.outputs.iter().map(name).collect(),
            name: names.remove(&id),
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

/// The names of nodes, each once, as ONNX Runtime demands. What passes make gives way to what the source has.
fn node_names(graph: &Graph, order: &[NodeId]) -> HashMap<NodeId, String> {
    let (of_source, made): (Vec<NodeId>, Vec<NodeId>) =
        order.iter().partition(|id| graph.node(**id).origin == Origin::SOURCE);
    let mut taken: HashSet<String> = HashSet::new();
    let mut names = HashMap::new();
    for id in of_source.into_iter().chain(made) {
        let wanted = &graph.node(id).name;
        let numbered = (1_usize..).map(|number| format!("{wanted}_{number}"));
        let mut tries = iter::once(wanted.clone()).chain(numbered);
        let name = tries.find(|name| !taken.contains(name)).expect("there are more numbers than nodes");
        taken.insert(name.clone());
        names.insert(id, name);
    }
    names
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

/// Says where in a data file a tensor's bytes lie.
fn refer(tensor: &mut TensorProto, weight: &Weight, place: &Place) {
    tensor.data_location = Some(DataLocation::External.into());
    tensor.external_data = vec![
        entry("location", place.file.to_string()),
        entry("offset", place.offset.to_string()),
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
