//! Side networks in safetensors files, under the reference's state-dict names.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, bail};
use ndarray::{ArrayD, IxDyn};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// Trainable tensors by name.
pub type Side = BTreeMap<String, ArrayD<f32>>;

/// Writes a side network.
///
/// # Errors
/// From the file system.
pub fn save(path: &Path, side: &Side) -> anyhow::Result<()> {
    let bytes: BTreeMap<&str, Vec<u8>> =
        side.iter().map(|(name, a)| (name.as_str(), a.iter().flat_map(|v| v.to_le_bytes()).collect())).collect();
    let views = side
        .iter()
        .map(|(name, a)| {
            let view = TensorView::new(Dtype::F32, a.shape().to_vec(), &bytes[name.as_str()]);
            Ok((name.clone(), view?))
        })
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let file = safetensors::serialize(views, Some(metadata))?;
    std::fs::write(path, file).with_context(|| format!("cannot write `{}`", path.display()))
}

/// Reads a side network.
///
/// # Errors
/// A file that is none, or a tensor that is not f32, with its name.
pub fn load(path: &Path) -> anyhow::Result<Side> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let tensors =
        SafeTensors::deserialize(&bytes).with_context(|| format!("`{}` is no safetensors file", path.display()))?;
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
    Ok(side)
}
