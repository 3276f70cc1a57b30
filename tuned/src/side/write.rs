//! Writing safetensors files: the same tensors and metadata make the same bytes, and their checksum is among these.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::anyhow;
use lstc_passes::Initial;
use lstc_runtime::DeviceTensor;
use ndarray::ArrayD;
use serde_json::{Map, Value, json};

use super::seal::{CHECKSUM, Checksum, DIGITS, FORMAT, Metadata, VERSION};

/// All tensors are f32.
const DTYPE: &str = "F32";

/// The header's length is a multiple of this.
const ALIGNMENT: usize = 8;

/// An f32 tensor that is turned into bytes only when it is written.
pub(super) trait Source {
    fn dims(&self) -> &[usize];

    /// # Errors
    /// From the device that it lies on.
    fn bytes(&self) -> anyhow::Result<Vec<u8>>;
}

impl Source for &ArrayD<f32> {
    fn dims(&self) -> &[usize] {
        self.shape()
    }

    fn bytes(&self) -> anyhow::Result<Vec<u8>> {
        Ok(bytes(self))
    }
}

/// An initial value is drawn.
impl Source for &Initial {
    fn dims(&self) -> &[usize] {
        Initial::dims(self)
    }

    fn bytes(&self) -> anyhow::Result<Vec<u8>> {
        Ok(bytes(&self.value()))
    }
}

impl Source for &DeviceTensor {
    fn dims(&self) -> &[usize] {
        DeviceTensor::dims(self)
    }

    fn bytes(&self) -> anyhow::Result<Vec<u8>> {
        Ok(bytes(&self.read()?))
    }
}

fn bytes(array: &ArrayD<f32>) -> Vec<u8> {
    array.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Writes tensors by their names, one after the other, with metadata and the checksum of it all. The file appears whole.
///
/// # Errors
/// From the file system, or a device; a file that was there is then as it was.
pub(super) fn write<S: Source>(path: &Path, tensors: &BTreeMap<&str, S>, own: &[(&str, String)]) -> anyhow::Result<()> {
    lstc_base::files::replace(path, |file| fill(file.path(), tensors, own))
}

/// As [`write`], to a file that exists and that nothing else reads yet.
///
/// # Errors
/// As [`write`].
pub(super) fn fill<S: Source>(path: &Path, tensors: &BTreeMap<&str, S>, own: &[(&str, String)]) -> anyhow::Result<()> {
    let mut metadata: Metadata = own.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    metadata.insert("format".to_owned(), "pt".to_owned());
    metadata.insert(FORMAT.to_owned(), VERSION.to_owned());
    metadata.insert(CHECKSUM.to_owned(), "0".repeat(DIGITS));
    let header = header(tensors, &metadata)?;
    let key = format!("\"{CHECKSUM}\":\"");
    let place = header.find(&key).ok_or_else(|| anyhow!("the header has no checksum"))? + key.len();
    let mut file = BufWriter::new(File::options().write(true).open(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let mut sum = Checksum::new(&metadata);
    for (name, tensor) in tensors {
        let bytes = tensor.bytes()?;
        sum.tensor(name, DTYPE, tensor.dims(), &bytes);
        file.write_all(&bytes)?;
    }
    file.seek(SeekFrom::Start((size_of::<u64>() + place) as u64))?;
    file.write_all(sum.finish().as_bytes())?;
    Ok(file.flush()?)
}

/// The header: metadata, then each tensor's type, shape and place, by name.
fn header<S: Source>(tensors: &BTreeMap<&str, S>, metadata: &Metadata) -> anyhow::Result<String> {
    let mut all = Map::new();
    all.insert("__metadata__".to_owned(), json!(metadata));
    let mut end = 0;
    for (name, tensor) in tensors {
        let begin = end;
        end += tensor.dims().iter().product::<usize>() * size_of::<f32>();
        let place = json!({ "dtype": DTYPE, "shape": tensor.dims(), "data_offsets": [begin, end] });
        all.insert((*name).to_owned(), place);
    }
    let mut text = Value::Object(all).to_string();
    text.push_str(&" ".repeat(text.len().next_multiple_of(ALIGNMENT) - text.len()));
    Ok(text)
}
