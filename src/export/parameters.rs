//! A side network's tensors as the constants of a graph.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use lstc_graph::{DType, Dim, Graph, ValueId, Weight};
use memmap2::Mmap;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::hash::sha256;
use crate::report::Hinted;
use crate::rewrite::manifest::ParameterSummary;

/// Misfits that an error spells out; the rest are counted.
const MAX_LISTED: usize = 10;

/// A safetensors file, mapped: a checkpoint may hold much that an export does not read.
pub(super) struct SideFile {
    pub path: PathBuf,
    pub sha256: String,
    map: Mmap,
}

impl SideFile {
    /// # Errors
    /// A file that cannot be read.
    pub fn open(path: &Path) -> anyhow::Result<SideFile> {
        let context = || format!("cannot read the side network `{}`", path.display());
        let mut file = File::open(path).with_context(context)?;
        if !file.metadata().with_context(context)?.is_file() {
            return Err(anyhow!("it is not a regular file").context(context()));
        }
        let sha256 = sha256(&mut file).with_context(context)?;
        // SAFETY: the map is read-only. A file that another process truncates meanwhile ends this process with SIGBUS.
        let map = unsafe { Mmap::map(&file) }.with_context(context)?;
        Ok(SideFile { path: path.to_owned(), sha256, map })
    }

    /// The parameters of a rewrite by name, in its order. Other tensors of the file are not looked at.
    ///
    /// # Errors
    /// A file that is no safetensors file; every parameter that is missing, of another shape or type, or not finite.
    pub fn parameters(&self, wanted: &[ParameterSummary]) -> anyhow::Result<Vec<(String, Weight)>> {
        let path = self.path.display();
        let tensors =
            SafeTensors::deserialize(&self.map).with_context(|| format!("`{path}` is no safetensors file"))?;
        let mut values = Vec::with_capacity(wanted.len());
        let mut misfits = Vec::new();
        let mut missing = 0;
        for parameter in wanted {
            let name = &parameter.name;
            let found = match tensors.tensor(name) {
                Ok(view) => read(&view, &parameter.shape),
                Err(_) => {
                    missing += 1;
                    Err(format!("is missing; its shape is {:?}", parameter.shape))
                }
            };
            match found {
                Ok(weight) => values.push((name.clone(), weight)),
                Err(misfit) => misfits.push(format!("\n  `{name}` {misfit}")),
            }
        }
        if misfits.is_empty() {
            return Ok(values);
        }
        let more = misfits.len().saturating_sub(MAX_LISTED);
        let mut listed = misfits[..misfits.len() - more].concat();
        if more > 0 {
            listed += &format!("\n  and {more} more");
        }
        let error = anyhow!("the side network `{path}` does not fit the rewritten model{listed}");
        if missing == wanted.len() {
            let hint = "a side network's file holds its parameters under the names of the directory's lst.yaml";
            return Err(Hinted::new(error, hint).into());
        }
        Err(error)
    }
}

/// A tensor of the wanted shape, or why it is none.
fn read(view: &TensorView, wanted: &[usize]) -> Result<Weight, String> {
    if view.dtype() != Dtype::F32 {
        return Err(format!("is {:?}, not f32", view.dtype()));
    }
    if view.shape() != wanted {
        return Err(format!("is {:?} in the file, and {wanted:?} in the rewritten model", view.shape()));
    }
    let value = |c: &[u8]| f32::from_le_bytes([c[0], c[1], c[2], c[3]]);
    let unusable = |v: &f32| !v.is_finite();
    let mut strange = view.data().chunks_exact(4).map(value).filter(unusable);
    if let Some(first) = strange.next() {
        return Err(format!("holds {} values that are not finite, the first is {first}", 1 + strange.count()));
    }
    Weight::new(DType::F32, wanted.to_vec(), view.data().to_vec().into(), None).ok_or_else(|| "is damaged".to_owned())
}

/// Puts constants of the same names in the place of a graph's inputs.
///
/// # Errors
/// A name that is no input of the graph, or one of another type or shape.
pub(super) fn bind(graph: &mut Graph, values: &[(String, Weight)]) -> anyhow::Result<()> {
    for (name, weight) in values {
        let input = graph.find(name).filter(|v| graph.inputs.contains(v));
        let Some(input) = input.filter(|v| takes(graph, *v, weight)) else {
            bail!("it has no input `{name}` of f32 {:?}", weight.dims());
        };
        let aside = graph.fresh_name(name);
        graph.rename(input, &aside).map_err(|e| anyhow!(e))?;
        let constant = graph.add_weight(name, weight.clone());
        graph.redirect(input, constant);
        graph.inputs.retain(|v| *v != input);
    }
    Ok(())
}

fn takes(graph: &Graph, input: ValueId, weight: &Weight) -> bool {
    let dims: Vec<Dim> = weight.dims().iter().map(|&d| i32::try_from(d).map_or(Dim::Value(-1), Dim::Value)).collect();
    graph.value(input).dtype == Some(weight.dtype()) && graph.shape(input) == Some(dims)
}
