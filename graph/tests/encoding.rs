//! What is written is what was announced: size, metadata, weights.

use std::fs::{self, File};
use std::io::{self, Write};

use lstc_graph::onnx::proto::{ModelProto, NodeProto};
use lstc_graph::{About, DType, DataFiles, Encoding, Graph, Weight, copy_data, encode, load, parse, print};
use prost::Message;

/// A graph with an embedded weight of 4 kB and one of 16 bytes.
fn graph() -> Graph {
    let mut graph = parse("(x: f32[B, 4]) {\n w = const f32[4] {1.0, 2.0, 3.0, 4.0}\n y = Mul(x, w)\n}", 17)
        .unwrap_or_else(|e| panic!("{e}"));
    let values: Vec<f32> = (0..1024).map(|v| v as f32).collect();
    let large = graph.add_weight("large", Weight::from_f32(&[4, 256], &values));
    graph.outputs.push(large);
    graph
}

fn about() -> About {
    let metadata = vec![("lstc.family".to_owned(), "t5".to_owned()), ("empty".to_owned(), String::new())];
    About { doc: "what it is".to_owned(), metadata }
}

#[test]
fn a_model_has_the_size_that_was_told_and_says_what_it_is() {
    let graph = graph();
    let encoding = Encoding::new(&graph, &DataFiles::default(), &about());
    let mut bytes = Vec::new();
    encoding.write(&mut bytes).expect("memory takes every write");
    assert_eq!(bytes.len(), encoding.size());
    let model = ModelProto::decode(bytes.as_slice()).expect("an ONNX model");
    assert_eq!(model.doc_string(), "what it is");
    let metadata: Vec<(&str, &str)> = model.metadata_props.iter().map(|p| (p.key(), p.value())).collect();
    assert_eq!(metadata, [("lstc.family", "t5"), ("empty", "")]);
    assert_eq!(model.producer_name(), "lstc");
    // A reader that writes it again writes as much.
    assert_eq!(model.encoded_len(), bytes.len());
}

#[test]
fn no_doc_and_no_metadata_leave_nothing() {
    let bytes = encode(&graph(), &DataFiles::default());
    let model = ModelProto::decode(bytes.as_slice()).expect("an ONNX model");
    assert!(model.doc_string.is_none() && model.metadata_props.is_empty());
}

#[test]
fn no_two_nodes_have_one_name() {
    let mut graph = parse("(x: f32[2]) {\n y = Relu(x)\n z = Abs(y)\n w = Neg(z)\n}", 17).expect("a graph");
    graph.rename_nodes(|index| if index == 1 { "n_1".to_owned() } else { "n".to_owned() });
    let model = ModelProto::decode(encode(&graph, &DataFiles::default()).as_slice()).expect("an ONNX model");
    let nodes = model.graph.expect("a graph").node;
    assert_eq!(nodes.iter().map(NodeProto::name).collect::<Vec<_>>(), ["n", "n_1", "n_2"]);
}

#[test]
fn copied_data_is_a_file_of_its_own_with_the_used_weights() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut first = graph();
    first.add_weight("unused", Weight::from_f32(&[1024], &[0.5; 1024]));
    let (data, bytes) = copy_data(&[&first], folder.path(), "a.data").expect("it can be written");
    assert_eq!(bytes, 4096);
    fs::write(folder.path().join("a.onnx"), encode(&first, &data)).expect("it can be written");

    // All of its large weights lie in one data file, which a rewrite would link.
    let second = load(&folder.path().join("a.onnx")).unwrap_or_else(|e| panic!("{e}"));
    let (data, bytes) = copy_data(&[&second], folder.path(), "b.data").expect("it can be written");
    assert_eq!(bytes, 4096);
    fs::write(folder.path().join("b.onnx"), encode(&second, &data)).expect("it can be written");
    fs::remove_file(folder.path().join("a.data")).expect("it is there");
    let third = load(&folder.path().join("b.onnx")).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(print(&third), print(&graph()));
    assert!(copy_data(&[&third], folder.path(), "b.data").is_err(), "a name that is there is not written through");
}

/// Counts what it is given.
#[derive(Default)]
struct Counter(usize);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn sizes_beyond_protobufs_limit_are_told_too() {
    const ELEMENTS: usize = 600 << 20;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let sparse = |name: &str, bytes: usize| {
        File::create(folder.path().join(name)).and_then(|f| f.set_len(bytes as u64)).expect("a sparse file")
    };
    let mut small = graph();
    let weight = Weight::new(DType::F32, vec![1024], vec![0; 4096].into(), None).expect("the shape fits");
    let huge = small.add_weight("huge", weight);
    small.outputs.push(huge);
    let (data, _) = copy_data(&[&small], folder.path(), "w.data").expect("it can be written");
    let mut model = ModelProto::decode(encode(&small, &data).as_slice()).expect("an ONNX model");
    for tensor in &mut model.graph.as_mut().expect("a graph").initializer {
        if tensor.name() == "huge" {
            tensor.dims = vec![ELEMENTS as i64];
            for entry in &mut tensor.external_data {
                if entry.key() == "length" {
                    entry.value = Some((ELEMENTS * 4).to_string());
                }
            }
        }
    }
    fs::write(folder.path().join("m.onnx"), model.encode_to_vec()).expect("it can be written");
    sparse("w.data", ELEMENTS * 4 + 8192);
    let graph = load(&folder.path().join("m.onnx")).unwrap_or_else(|e| panic!("{e}"));
    let encoding = Encoding::new(&graph, &DataFiles::default(), &About::default());
    assert!(encoding.size() > ELEMENTS * 4, "{}", encoding.size());
    let mut counter = Counter::default();
    encoding.write(&mut counter).expect("nothing can fail");
    assert_eq!(counter.0, encoding.size());
}
