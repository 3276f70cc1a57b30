//! Side networks in safetensors files, under the reference's state-dict names.
//!
//! **Invariant:** what lstc wrote carries a checksum, and is read only if the checksum matches ([`Seal`]).

mod seal;
mod write;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use lstc_base::json;
use lstc_base::report::Hinted;
use lstc_graph::regular;
use lstc_passes::Initial;
use lstc_runtime::DeviceTensor;
use memmap2::Mmap;
use ndarray::{ArrayD, IxDyn};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError, SafeTensors};

pub use seal::{Metadata, Seal};

/// Trainable tensors by name.
pub type Side = BTreeMap<String, ArrayD<f32>>;

/// Writes a side network. The file appears whole.
///
/// # Errors
/// From the file system.
pub fn save(path: &Path, side: &Side) -> anyhow::Result<()> {
    save_with(path, side, &[])
}

/// Writes tensors with metadata. The file appears whole.
///
/// # Errors
/// From the file system.
pub fn save_with(path: &Path, side: &Side, metadata: &[(&str, String)]) -> anyhow::Result<()> {
    write::write(path, &side.iter().map(|(name, array)| (name.as_str(), array)).collect(), metadata)
}

/// Writes a side network, with metadata, to a file that nothing else reads yet.
///
/// # Errors
/// From the file system.
pub fn fill(path: &Path, side: &Side, metadata: &[(&str, String)]) -> anyhow::Result<()> {
    write::fill(path, &side.iter().map(|(name, array)| (name.as_str(), array)).collect(), metadata)
}

/// Writes tensors that lie on a device, one after the other, with metadata. The file appears whole.
///
/// # Errors
/// From the file system, or the device; a file that was there is then as it was.
pub fn save_on_device(
    path: &Path,
    tensors: &[(String, DeviceTensor)],
    metadata: &[(&str, String)],
) -> anyhow::Result<()> {
    write::write(path, &tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect(), metadata)
}

/// Writes initial values, each of which is drawn when its turn comes, with metadata.
///
/// # Errors
/// From the file system.
pub fn save_initial<'i>(
    path: &Path,
    initial: impl IntoIterator<Item = (&'i str, &'i Initial)>,
    metadata: &[(&str, String)],
) -> anyhow::Result<()> {
    write::write(path, &initial.into_iter().collect(), metadata)
}

/// A file that is mapped.
pub struct Mapped(Mmap);

/// What a mapped file holds, and who wrote it.
pub struct Contents<'m> {
    pub tensors: SafeTensors<'m>,
    pub metadata: Metadata,
    pub seal: Seal,
}

impl Mapped {
    /// Maps a side network's file.
    ///
    /// # Errors
    /// A file that cannot be read, or is not a regular file.
    pub fn open(path: &Path) -> anyhow::Result<Mapped> {
        let context = || format!("cannot read the side network `{}`", path.display());
        let file = regular::open(path).with_context(context)?;
        // SAFETY: the map is read-only. A file that another process truncates meanwhile ends this process with SIGBUS.
        unsafe { Mmap::map(&file) }.map(Mapped).with_context(context)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// What the file holds, checked against its checksum.
    ///
    /// # Errors
    /// Bytes that are not a safetensors file's; a file of lstc's that is damaged.
    pub fn contents(&self, path: &Path) -> anyhow::Result<Contents<'_>> {
        let not_safetensors = |error: SafeTensorError| {
            anyhow::Error::from(error)
                .context(format!("`{}` is not a safetensors file, or a damaged one", path.display()))
        };
        let tensors = SafeTensors::deserialize(&self.0).map_err(not_safetensors)?;
        let (length, header) = SafeTensors::read_metadata(&self.0).map_err(not_safetensors)?;
        let text = &self.0[size_of::<u64>()..][..length];
        json::check(text).with_context(|| format!("`{}` is damaged", path.display()))?;
        let metadata: Metadata = header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        match seal::check(&tensors, &metadata) {
            Ok(seal) => Ok(Contents { tensors, metadata, seal }),
            Err(broken) => {
                let error = anyhow::Error::from(broken).context(format!("`{}` is damaged", path.display()));
                Err(Hinted::new(error, "restore it from another copy, or create it again").into())
            }
        }
    }
}

/// Reads all tensors of a file, with its metadata.
///
/// # Errors
/// A file that is not a safetensors file, or is damaged; a tensor that is not f32, with its name.
pub fn load_with(path: &Path) -> anyhow::Result<(Side, Metadata, Seal)> {
    let mapped = Mapped::open(path)?;
    let Contents { tensors, metadata, seal } = mapped.contents(path)?;
    let mut side = Side::new();
    for (name, view) in tensors.iter() {
        if view.dtype() != Dtype::F32 {
            bail!("`{}`: tensor `{name}` is {:?}, not f32", path.display(), view.dtype());
        }
        let array = array(&view).with_context(|| format!("`{}`: tensor `{name}` is damaged", path.display()))?;
        side.insert(name.to_owned(), array);
    }
    Ok((side, metadata, seal))
}

/// What the metadata of a file says.
///
/// # Errors
/// A file that is not a safetensors file, or is damaged.
pub fn metadata(path: &Path) -> anyhow::Result<Metadata> {
    Ok(Mapped::open(path)?.contents(path)?.metadata)
}

/// Reads all tensors of a file.
///
/// # Errors
/// As [`load_with`].
pub fn load(path: &Path) -> anyhow::Result<Side> {
    Ok(load_with(path)?.0)
}

/// The number of misfits that an error lists; the rest are counted.
const MAX_LISTED: usize = 10;

/// The parameters of a rewritten model, and what their file says of itself.
pub struct Loaded {
    pub side: Side,
    pub seal: Seal,
    pub metadata: Metadata,
}

/// Reads the parameters of a rewritten model, by their names and shapes. Other tensors of the file, such as a checkpoint's
/// moments, are read only for the checksum.
///
/// # Errors
/// A file that is not a safetensors file, or is damaged; every parameter that is missing, of another shape or type, or not finite.
pub fn load_parameters<'w>(
    path: &Path,
    wanted: impl IntoIterator<Item = (&'w str, &'w [usize])>,
) -> anyhow::Result<Loaded> {
    let mapped = Mapped::open(path)?;
    let Contents { tensors, seal, metadata } = mapped.contents(path)?;
    let mut side = Side::new();
    let mut misfits = Vec::new();
    let mut missing = 0;
    for (name, dims) in wanted {
        let found = match tensors.tensor(name) {
            Ok(view) => fitting(&view, dims),
            Err(_) => {
                missing += 1;
                Err(format!("is missing; its shape is {dims:?}"))
            }
        };
        match found {
            Ok(array) => drop(side.insert(name.to_owned(), array)),
            Err(misfit) => misfits.push(format!("\n  `{name}` {misfit}")),
        }
    }
    if misfits.is_empty() {
        return Ok(Loaded { side, seal, metadata });
    }
    let more = misfits.len().saturating_sub(MAX_LISTED);
    let mut listed = misfits[..misfits.len() - more].concat();
    if more > 0 {
        listed += &format!("\n  and {more} more");
    }
    let error = anyhow!("the side network `{}` does not fit the rewritten model{listed}", path.display());
    if side.is_empty() && missing == misfits.len() {
        let hint = "a side network's file holds its parameters under the names of the directory's lst.yaml";
        return Err(Hinted::new(error, hint).into());
    }
    Err(error)
}

/// The tensor with the wanted shape, or why it does not fit.
fn fitting(view: &TensorView, wanted: &[usize]) -> Result<ArrayD<f32>, String> {
    if view.dtype() != Dtype::F32 {
        return Err(format!("is {:?}, not f32", view.dtype()));
    }
    if view.shape() != wanted {
        return Err(format!("is {:?} in the file, and {wanted:?} in the rewritten model", view.shape()));
    }
    let array = array(view).ok_or("is damaged")?;
    let mut strange = array.iter().filter(|v| !v.is_finite());
    if let Some(first) = strange.next() {
        return Err(format!("holds {} values that are not finite, the first is {first}", 1 + strange.count()));
    }
    Ok(array)
}

fn array(view: &TensorView) -> Option<ArrayD<f32>> {
    let values = view.data().chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
    ArrayD::from_shape_vec(IxDyn(view.shape()), values).ok()
}
