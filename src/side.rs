//! Side networks in safetensors files, under the reference's state-dict names.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, bail};
use ndarray::{ArrayD, IxDyn};
use safetensors::{Dtype, SafeTensors, View};

/// Trainable tensors by name.
pub type Side = BTreeMap<String, ArrayD<f32>>;

/// What a file says besides its tensors.
pub type Metadata = HashMap<String, String>;

/// Writes a side network.
///
/// # Errors
/// From the file system.
pub fn save(path: &Path, side: &Side) -> anyhow::Result<()> {
    save_with(path, side, &[])
}

/// Writes a side network with metadata. The file appears whole.
///
/// # Errors
/// From the file system; a file that was there is then as it was.
pub fn save_with(path: &Path, side: &Side, metadata: &[(&str, String)]) -> anyhow::Result<()> {
    let mut all = Metadata::from([("format".to_owned(), "pt".to_owned())]);
    all.extend(metadata.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    let views: Vec<(&str, Streamed)> = side.iter().map(|(name, array)| (name.as_str(), Streamed(array))).collect();
    crate::files::replace(path, |file| Ok(safetensors::serialize_to_file(views, Some(all), file.path())?))
}

/// An array that is turned into bytes when its turn to be written comes.
struct Streamed<'a>(&'a ArrayD<f32>);

impl View for Streamed<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.0.shape()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.0.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into()
    }

    fn data_len(&self) -> usize {
        self.0.len() * 4
    }
}

/// Reads a side network.
///
/// # Errors
/// A file that is none, or a tensor that is not f32, with its name.
pub fn load(path: &Path) -> anyhow::Result<Side> {
    Ok(load_with(path)?.0)
}

/// Reads a side network with its metadata.
///
/// # Errors
/// As [`load`].
pub fn load_with(path: &Path) -> anyhow::Result<(Side, Metadata)> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let context = || format!("`{}` is no safetensors file", path.display());
    let tensors = SafeTensors::deserialize(&bytes).with_context(context)?;
    let (_, header) = SafeTensors::read_metadata(&bytes).with_context(context)?;
    let mut side = Side::new();
    for (name, view) in tensors.iter() {
        if view.dtype() != Dtype::F32 {
            bail!("`{}`: tensor `{name}` is {:?}, not f32", path.display(), view.dtype());
        }
        let values = view.data().chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
        let array = ArrayD::from_shape_vec(IxDyn(view.shape()), values)
            .with_context(|| format!("`{}`: tensor `{name}` is damaged", path.display()))?;
        side.insert(name.to_owned(), array);
    }
    Ok((side, header.metadata().clone().unwrap_or_default()))
}
