//! Finding the side network's parameters in a state dict of the reference's.
//!
//! Names are the manifest's own, after a prefix that all of them share, such as the `module.` of a wrapped model. The
//! reference keeps the position table of a tower in its first kept block alone; a single table in another block
//! is that tower's too.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use anyhow::anyhow;
use half::{bf16, f16};
use lstc_base::report::Hinted;
use lstc_passes::Group;
use lstc_passes::ladder::key::BLOCK;
use lstc_tuned::manifest::ParameterSummary;
use lstc_tuned::side::Side;
use ndarray::{ArrayD, IxDyn};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::made::Made;

/// What was found.
pub struct Found {
    pub side: Side,
    /// The prefix of the names in the file.
    pub prefix: String,
    /// The names in the file that were read.
    pub names: HashSet<String>,
    /// Tensors that were not f32.
    pub converted: usize,
    /// Position tables that were in another block: the parameter, and the name in the file.
    pub moved: Vec<(String, String)>,
}

/// Takes the parameters out of a file.
///
/// # Errors
/// Every parameter that is missing, misshapen, not a float or not finite.
pub fn gather(path: &Path, tensors: &SafeTensors, parameters: &[ParameterSummary]) -> anyhow::Result<Found> {
    let prefix = prefix(tensors, parameters);
    let mut found = Found { side: Side::new(), prefix, names: HashSet::new(), converted: 0, moved: Vec::new() };
    let mut misfits = Vec::new();
    for parameter in parameters {
        let mut name = format!("{}{}", found.prefix, parameter.name);
        if tensors.tensor(&name).is_err()
            && let Some(other) = only_table(tensors, &found.prefix, parameter)
        {
            found.moved.push((parameter.name.clone(), other.clone()));
            name = other;
        }
        let array = match tensors.tensor(&name) {
            Ok(view) => converted(&view, &parameter.shape).inspect(|_| {
                found.converted += usize::from(view.dtype() != Dtype::F32);
            }),
            Err(_) => Err(format!("is missing; its shape is {:?}", parameter.shape)),
        };
        match array {
            Ok(array) => {
                found.side.insert(parameter.name.clone(), array);
                found.names.insert(name);
            }
            Err(misfit) => misfits.push(format!("\n  `{name}` {misfit}")),
        }
    }
    if misfits.is_empty() {
        return Ok(found);
    }
    Err(misfit(path, tensors, parameters, &found, &misfits))
}

/// The error for a file that does not fit: how it was made and how the directory was, if these differ.
fn misfit(
    path: &Path,
    tensors: &SafeTensors,
    parameters: &[ParameterSummary],
    found: &Found,
    misfits: &[String],
) -> anyhow::Error {
    let views = tensors.tensors();
    let of_file = views.iter().filter_map(|(name, view)| Some((name.strip_prefix(&found.prefix)?, view.shape())));
    let file = Made::of(&of_file.collect());
    let directory = Made::of(&parameters.iter().map(|p| (p.name.as_str(), p.shape.as_slice())).collect());
    let is_side = !found.names.is_empty();
    let differ = is_side && file.is_whole() && file != directory;
    let shown = if differ && misfits.len() > MOST_MISFITS { FEW_MISFITS } else { MOST_MISFITS };
    let mut list = misfits[..misfits.len().min(shown)].concat();
    if misfits.len() > shown {
        list += &format!("\n  and {} more", misfits.len() - shown);
    }
    let made = match differ {
        true => format!("\n  the file: {}\n  the directory: {}", file.describe(), directory.describe()),
        false => String::new(),
    };
    let error = anyhow!("the side network `{}` does not fit the rewritten model{made}{list}", path.display());
    let hint = match file.flags(&directory).filter(|flags| differ && !flags.is_empty()) {
        Some(flags) => format!("rewrite the model as that network was made: `lstc rewrite --from DIR -o AGAIN {flags}`"),
        None if is_side => "rewrite the model as that network was made: reduction, kept blocks, gates, biases and merge_last \
                            decide its parameters; `lstc rewrite --from DIR -o AGAIN ...`"
            .to_owned(),
        None => "name the tensors as in the reference's state dict, e.g. encoder.side_first_downsample.weight, with or without a \
                 prefix that all of them share"
            .to_owned(),
    };
    Hinted::new(error, hint).into()
}

/// The number of misfits listed: only a few if the way the network was made explains them.
const FEW_MISFITS: usize = 3;
const MOST_MISFITS: usize = 12;

/// The prefix of most of the parameters' names; among equals the shortest.
fn prefix(tensors: &SafeTensors, parameters: &[ParameterSummary]) -> String {
    let wanted: HashSet<&str> = parameters.iter().map(|p| p.name.as_str()).collect();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for name in tensors.names() {
        let starts = std::iter::once(0).chain(name.match_indices('.').map(|(i, _)| i + 1));
        for start in starts.filter(|start| wanted.contains(&name[*start..])) {
            *counts.entry(&name[..start]).or_default() += 1;
        }
    }
    let best = counts.iter().max_by_key(|(prefix, count)| (**count, std::cmp::Reverse(prefix.len())));
    best.map_or_else(String::new, |(prefix, _)| (*prefix).to_owned())
}

/// The one position table that the file has for the tower of a table that is missing.
fn only_table(tensors: &SafeTensors, prefix: &str, parameter: &ParameterSummary) -> Option<String> {
    if parameter.group != Group::PositionTable {
        return None;
    }
    let (tower, rest) = parameter.name.split_once(BLOCK)?;
    let (_, place) = rest.split_once('.')?;
    let stack = format!("{prefix}{tower}{BLOCK}");
    let is_table = |name: &&str| {
        let block = name.strip_prefix(&stack).and_then(|rest| rest.strip_suffix(place)?.strip_suffix('.'));
        block.is_some_and(|block| block.parse::<usize>().is_ok())
    };
    let names = tensors.names();
    let mut tables = names.into_iter().filter(is_table);
    let table = tables.next()?;
    tables.next().is_none().then(|| table.to_owned())
}

/// A float tensor as f32, or why it does not fit.
fn converted(view: &TensorView, wanted: &[usize]) -> Result<ArrayD<f32>, String> {
    let is_scalar_gate = wanted == [1] && view.shape().is_empty();
    if view.shape() != wanted && !is_scalar_gate {
        return Err(format!("is {:?} in the file, and {wanted:?} in the rewritten model", view.shape()));
    }
    let bytes = view.data();
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => bytes.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect(),
        Dtype::F16 => bytes.chunks_exact(2).map(|c| f16::from_le_bytes([c[0], c[1]]).to_f32()).collect(),
        Dtype::BF16 => bytes.chunks_exact(2).map(|c| bf16::from_le_bytes([c[0], c[1]]).to_f32()).collect(),
        Dtype::F64 => {
            let double = |c: &[u8]| f64::from_le_bytes([c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]]);
            bytes.chunks_exact(8).map(|c| double(c) as f32).collect()
        }
        other => return Err(format!("is {other:?}; f32, f16, bf16 and f64 are supported")),
    };
    if let Some(strange) = values.iter().find(|v| !v.is_finite()) {
        return Err(format!("holds {strange}, which is not finite"));
    }
    ArrayD::from_shape_vec(IxDyn(wanted), values).map_err(|_| "is damaged".to_owned())
}
