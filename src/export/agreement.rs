//! An export's logits compared with those of infer.onnx, given the same side network.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use lstc_graph::{DataFiles, Graph, Weight, encode, load};
use lstc_runtime::{Optimisation, Runtime, Session, Tensor};
use lstc_tuned::opened::on_cpu;
use ndarray::{ArrayD, IxDyn};
use serde::Serialize;

use crate::probe::{difference, sample};

/// With graph optimisation on: constants are folded, and other nodes are fused.
const OPTIMISED: f64 = 1e-5;

const SEED: u64 = 0;

/// How far an export's logits are from infer.onnx's, on one batch of sample inputs. Differences are the largest of an
/// element, relative to the largest logit.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Agreement {
    /// With graph optimisation off every bit is the same.
    pub bit_for_bit: bool,
    pub unoptimised_difference: f64,
    pub optimised_difference: f64,
    /// The largest optimised difference allowed.
    pub bound: f64,
    pub holds: bool,
}

/// Runs both graphs, one after the other: two sessions over a large model would take twice its memory.
///
/// # Errors
/// A graph that does not run.
pub(super) fn measure(
    runtime: &'static Runtime,
    infer: &Path,
    exported: &Path,
    graph: &Graph,
    parameters: &[(String, Weight)],
) -> anyhow::Result<Agreement> {
    let inputs = sample::inputs_of_graph(graph, SEED)?;
    let outputs: Vec<&str> = graph.outputs.iter().map(|v| graph.value(*v).name.as_str()).collect();
    let side = parameters.iter().map(|(name, weight)| Ok((name.clone(), tensor(weight)?)));
    let side = side.collect::<anyhow::Result<Vec<_>>>()?;
    let run = |optimisation, file: &Path, given: &[&[(String, Tensor)]]| -> anyhow::Result<Vec<Tensor>> {
        let given: Vec<(&str, &Tensor)> = given.iter().copied().flatten().map(|(n, t)| (n.as_str(), t)).collect();
        let mut session = open(runtime, optimisation, file)?;
        Ok(session.run(&given, &outputs)?)
    };
    let compare = |optimisation| -> anyhow::Result<(bool, f64)> {
        let wanted = run(optimisation, infer, &[&inputs, &side])?;
        let found = run(optimisation, exported, &[&inputs])?;
        let equal = found.iter().zip(&wanted).all(|(a, b)| same_bits(a, b));
        let relative = found.iter().zip(&wanted).map(|(a, b)| {
            let (apart, largest) = difference(a, b);
            apart / largest.max(f64::MIN_POSITIVE)
        });
        Ok((equal, relative.fold(0.0, f64::max)))
    };
    let (bit_for_bit, unoptimised_difference) = compare(Optimisation::Off)?;
    let (_, optimised_difference) = compare(Optimisation::All)?;
    let holds = bit_for_bit && optimised_difference <= OPTIMISED;
    Ok(Agreement { bit_for_bit, unoptimised_difference, optimised_difference, bound: OPTIMISED, holds })
}

/// A session over a file; if the CPU has no kernels for its type, over the same graph in a type for which it has them.
fn open(runtime: &'static Runtime, optimisation: Optimisation, file: &Path) -> anyhow::Result<Session> {
    let builder = runtime.session().optimisation(optimisation);
    let graph = load(file)?;
    match on_cpu(&graph) {
        Cow::Borrowed(_) => Ok(builder.open(file)?),
        Cow::Owned(wide) => {
            let folder = file.parent().unwrap_or(Path::new("."));
            Ok(builder.load(&encode(&wide, &DataFiles::of(&wide, folder)), Some(folder))?)
        }
    }
}

fn tensor(weight: &Weight) -> anyhow::Result<Tensor> {
    let values = weight.to_f32().unwrap_or_default();
    Ok(ArrayD::from_shape_vec(IxDyn(weight.dims()), values)?.into())
}

fn same_bits(a: &Tensor, b: &Tensor) -> bool {
    let (Ok(a), Ok(b)) = (a.as_f32(), b.as_f32()) else { return false };
    a.shape() == b.shape() && a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits())
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bit_for_bit {
            true => write!(f, "bit for bit with graph optimisation off")?,
            false => write!(f, "{:.1e} apart with graph optimisation off", self.unoptimised_difference)?,
        }
        write!(f, ", {:.1e} apart with it on (at most {:.0e})", self.optimised_difference, self.bound)
    }
}
