//! Side networks in safetensors files, under the reference's state-dict names.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use lstc_passes::Initial;
use memmap2::Mmap;
use ndarray::{ArrayD, IxDyn};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, View};

use crate::report::Hinted;
use crate::runtime::{DeviceTensor, Error};

/// Trainable tensors by name.
pub type Side = BTreeMap<String, ArrayD<f32>>;

/// What a file says besides its tensors.
pub type Metadata = HashMap<String, String>;

/// Writes a side network. The file appears whole.
///
/// # Errors
/// From the file system.
pub fn save(path: &Path, side: &Side) -> anyhow::Result<()> {
    crate::files::replace(path, |file| write(file.path(), side))
}

/// Writes a side network to a file that nobody else looks at yet.
///
/// # Errors
/// From the file system.
pub(crate) fn write(path: &Path, side: &Side) -> anyhow::Result<()> {
    let views: Vec<(&str, Streamed)> = side.iter().map(|(name, array)| (name.as_str(), Streamed(array))).collect();
    Ok(safetensors::serialize_to_file(views, Some(format()), path)?)
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
    let failure = RefCell::new(None);
    let views: Vec<(&str, Lying)> =
        tensors.iter().map(|(name, tensor)| (name.as_str(), Lying { tensor, failure: &failure })).collect();
    let mut all = format();
    all.extend(metadata.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    crate::files::replace(path, |file| {
        safetensors::serialize_to_file(views, Some(all), file.path())?;
        failure.take().map_or(Ok(()), |error: Error| Err(error.into()))
    })
}

/// Writes initial values, each of which is drawn when its turn comes.
///
/// # Errors
/// From the file system.
pub fn save_initial<'i>(path: &Path, initial: impl IntoIterator<Item = (&'i str, &'i Initial)>) -> anyhow::Result<()> {
    let views: Vec<(&str, Drawn)> = initial.into_iter().map(|(name, value)| (name, Drawn(value))).collect();
    crate::files::replace(path, |file| Ok(safetensors::serialize_to_file(views, Some(format()), file.path())?))
}

fn format() -> Metadata {
    Metadata::from([("format".to_owned(), "pt".to_owned())])
}

/// An initial value.
struct Drawn<'a>(&'a Initial);

impl View for Drawn<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.0.dims()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.0.value().iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into()
    }

    fn data_len(&self) -> usize {
        self.0.dims().iter().product::<usize>() * 4
    }
}

/// A tensor on a device, which is read when its turn comes.
struct Lying<'a> {
    tensor: &'a DeviceTensor,
    /// Why a tensor could not be read.
    failure: &'a RefCell<Option<Error>>,
}

impl View for Lying<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.tensor.dims()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self.tensor.read() {
            Ok(array) => array.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into(),
            Err(error) => {
                self.failure.replace(Some(error));
                vec![0; self.data_len()].into()
            }
        }
    }

    fn data_len(&self) -> usize {
        self.tensor.dims().iter().product::<usize>() * 4
    }
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

/// Reads all tensors of a file, with its metadata.
///
/// # Errors
/// A file that is none, or a tensor that is not f32, with its name.
pub fn load_with(path: &Path) -> anyhow::Result<(Side, Metadata)> {
    let map = map(path)?;
    let tensors = tensors(path, &map)?;
    let (_, header) = SafeTensors::read_metadata(&map)?;
    let mut side = Side::new();
    for (name, view) in tensors.iter() {
        if view.dtype() != Dtype::F32 {
            bail!("`{}`: tensor `{name}` is {:?}, not f32", path.display(), view.dtype());
        }
        let array = array(&view).with_context(|| format!("`{}`: tensor `{name}` is damaged", path.display()))?;
        side.insert(name.to_owned(), array);
    }
    Ok((side, header.metadata().clone().unwrap_or_default()))
}

/// Reads all tensors of a file.
///
/// # Errors
/// As [`load_with`].
pub fn load(path: &Path) -> anyhow::Result<Side> {
    Ok(load_with(path)?.0)
}

/// Misfits that an error spells out; the rest are counted.
const MAX_LISTED: usize = 10;

/// Reads the parameters of a rewritten model, by their names and shapes. Other tensors of the file, such as a checkpoint's
/// moments, are not looked at.
///
/// # Errors
/// A file that is no safetensors file; every parameter that is missing, of another shape or type, or not finite.
pub fn load_parameters<'w>(
    path: &Path,
    wanted: impl IntoIterator<Item = (&'w str, &'w [usize])>,
) -> anyhow::Result<Side> {
    let map = map(path)?;
    let tensors = tensors(path, &map)?;
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
        return Ok(side);
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

/// Maps a side network's file.
///
/// # Errors
/// A file that cannot be read, or is no regular file.
pub(crate) fn map(path: &Path) -> anyhow::Result<Mmap> {
    let context = || format!("cannot read the side network `{}`", path.display());
    let file = File::open(path).with_context(context)?;
    if !file.metadata().with_context(context)?.is_file() {
        return Err(anyhow!("it is not a regular file").context(context()));
    }
    // SAFETY: the map is read-only. A file that another process truncates meanwhile ends this process with SIGBUS.
    unsafe { Mmap::map(&file) }.with_context(context)
}

fn tensors<'m>(path: &Path, map: &'m Mmap) -> anyhow::Result<SafeTensors<'m>> {
    SafeTensors::deserialize(map).with_context(|| format!("`{}` is no safetensors file", path.display()))
}

/// The tensor with the wanted shape, or why it is none.
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
