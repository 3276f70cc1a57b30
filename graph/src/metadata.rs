//! What a model file says of itself apart from its graph: keys and values for programs.

use std::collections::BTreeMap;
use std::path::Path;

use prost::Message;

use crate::load::{LoadError, Problem, map, plain};
use crate::onnx::proto::StringStringEntryProto;
use crate::regular;

/// A model of which only the metadata is decoded: other fields are skipped.
#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, repeated, tag = "14")]
    metadata_props: Vec<StringStringEntryProto>,
}

/// The metadata of a model file. Its graph is not read.
///
/// # Errors
/// A file that cannot be read, or is not an ONNX model; a key that is given twice.
pub fn metadata(path: &Path) -> Result<BTreeMap<String, String>, LoadError> {
    let fail =
        |reason: String| LoadError { path: path.to_owned(), problems: vec![Problem { place: String::new(), reason }] };
    let bytes = regular::open(path).and_then(|file| map(&file)).map_err(|e| fail(plain(&e)))?;
    let model = Model::decode(bytes).map_err(|e| fail(format!("is not an ONNX model, or is damaged ({e})")))?;
    let mut metadata = BTreeMap::new();
    for entry in model.metadata_props {
        let (key, value) = (entry.key.unwrap_or_default(), entry.value.unwrap_or_default());
        if metadata.contains_key(&key) {
            return Err(fail(format!("its metadata give `{key}` twice")));
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}
