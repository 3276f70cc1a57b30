//! The committed models, as `archives.py` packs them: unpacked, weights back in their place, every name scrambled.

use std::collections::HashMap;
use std::fs;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use lstc_graph::onnx::proto::tensor_proto::DataLocation;
use lstc_graph::onnx::proto::{GraphProto, ModelProto, TensorProto};
use prost::Message;
use zip::ZipArchive;

/// The folder of the fixtures.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/matrix")
}

/// The files of an archive, by name.
fn files(path: &Path) -> Vec<(String, Vec<u8>)> {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut archive = ZipArchive::new(Cursor::new(bytes)).expect("a zip archive");
    (0..archive.len())
        .map(|index| {
            let mut file = archive.by_index(index).expect("an entry");
            let mut data = Vec::new();
            file.read_to_end(&mut data).expect("what was packed can be unpacked");
            (file.name().expect("a name in UTF-8").into_owned(), data)
        })
        .collect()
}

/// Writes a model's files into a folder, with names that say nothing.
pub fn unpack(name: &str, folder: &Path) {
    for (file, data) in files(&root().join(format!("models/{name}.zip"))) {
        let data = if file.ends_with(".onnx") { scrambled(&data) } else { data };
        fs::write(folder.join(file), data).expect("a writable folder");
    }
}

fn scrambled(data: &[u8]) -> Vec<u8> {
    let mut model = ModelProto::decode(data).expect("an ONNX model");
    let graph = model.graph.as_mut().expect("a graph");
    let mut pool = Pool::default();
    for tensor in &mut graph.initializer {
        pool.fill(tensor);
    }
    let mut names = Names::kept_by(graph);
    names.scramble(graph);
    model.encode_to_vec()
}

/// The weights that a model shares with others; read when the first is asked for.
#[derive(Default)]
struct Pool(Vec<u8>);

impl Pool {
    /// Puts a weight that lies here back into the model.
    fn fill(&mut self, tensor: &mut TensorProto) {
        let entry = |key: &str| {
            let found = tensor.external_data.iter().find(|e| e.key.as_deref() == Some(key));
            found.and_then(|e| e.value.clone()).unwrap_or_default()
        };
        let location = entry("location");
        if !location.starts_with("weights/") {
            return;
        }
        if self.0.is_empty() {
            let (_, bytes) = files(&root().join(format!("{location}.zip"))).remove(0);
            self.0 = bytes;
        }
        let [offset, length] = ["offset", "length"].map(|key| entry(key).parse::<usize>().expect("a number"));
        tensor.raw_data = Some(self.0[offset..offset + length].to_vec().into());
        tensor.external_data.clear();
        tensor.data_location = Some(DataLocation::Default.into());
    }
}

/// New names of values and nodes; the model's own inputs and outputs keep theirs.
struct Names {
    values: HashMap<String, String>,
    nodes: usize,
}

impl Names {
    fn kept_by(graph: &GraphProto) -> Names {
        let weights: Vec<&str> = graph.initializer.iter().filter_map(|w| w.name.as_deref()).collect();
        let ends = graph.input.iter().chain(&graph.output).filter_map(|v| v.name.as_deref());
        let kept = ends.filter(|name| !weights.contains(name));
        let none = (String::new(), String::new());
        Names { values: kept.map(|n| (n.to_owned(), n.to_owned())).chain([none]).collect(), nodes: 0 }
    }

    fn value(&mut self, name: &mut String) {
        let next = (self.values.len() * 7919) % 1_000_003;
        *name = self.values.entry(name.clone()).or_insert_with(|| format!("v{next}")).clone();
    }

    fn optional(&mut self, name: &mut Option<String>) {
        if let Some(name) = name {
            self.value(name);
        }
    }

    /// Inner graphs read the values of the graph around them: one map serves all.
    fn scramble(&mut self, graph: &mut GraphProto) {
        for value in graph.input.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info) {
            self.optional(&mut value.name);
        }
        for tensor in &mut graph.initializer {
            self.optional(&mut tensor.name);
        }
        graph.quantization_annotation.clear();
        for node in &mut graph.node {
            self.nodes += 1;
            node.name = Some(format!("n{}", (self.nodes * 104_729) % 1_000_003));
            for name in node.input.iter_mut().chain(&mut node.output) {
                self.value(name);
            }
            for attribute in &mut node.attribute {
                for inner in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                    self.scramble(inner);
                }
            }
        }
    }
}
