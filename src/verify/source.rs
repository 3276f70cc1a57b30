//! The source's own files, as ONNX Runtime reads them, compared with what lstc reads from them.
//!
//! Every other check begins with the graph that lstc read. If its reader and ONNX Runtime's read a file differently, all of them
//! would hold, and the backbone would be another model's.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use lstc_base::scratch::Scratch;
use lstc_graph::{DType, data_to_run, encode, load};
use lstc_runtime::{Dim, ElementType, Optimisation, Port, Session, Tensor};
use lstc_tuned::manifest;
use lstc_tuned::opened::on_cpu;
use ndarray::{ArrayD, IxDyn};

use super::backbone::relative;
use super::precision::Arithmetic;
use super::{Check, Subject};
use crate::probe::{give, run, sample};
use crate::rewrite::SourceModel;

const NAME: &str = "the source's files, as ONNX Runtime reads them: logits";

/// Relative to the largest logit. The nodes are the same, and so are the kernels.
const SAME: f64 = 1e-5;

/// Precedes the name of a decoder's input that an encoder also has.
const OF_DECODER: &str = "decoder_";

pub(super) fn check(subject: &Subject) -> anyhow::Result<Check> {
    let module = &subject.module;
    let files = SourceModel::recorded(&manifest::read(subject.directory)?.source)?.files().to_vec();
    let inputs = sample::square(module, subject.seed)?;

    let mut graph = super::backbone::source_of(subject)?;
    let names = give(&mut graph, &[module.anatomy.head.logits]);
    let graph = graph.slice(&graph.outputs);
    let scratch = Scratch::new()?;
    let (data, folder) = data_to_run(&[&graph], scratch.path())?;
    let session = subject.runtime.session().optimisation(Optimisation::Off);
    let mut session = session.load(&encode(&on_cpu(&graph), &data), Some(&folder))?;
    let wanted = run(&mut session, &inputs, &names)?;

    let vocabulary = module.anatomy.head.linear.outputs;
    Ok(match logits(subject, &files, inputs, vocabulary)? {
        Outcome::Logits { found, is_half } => {
            let error = wanted.first().map_or(f64::INFINITY, |wanted| relative(&found, wanted));
            // A backbone that was widened is compared with files that are not.
            let files = if is_half { Arithmetic::Half.bound(SAME) } else { SAME };
            Check::at_most(NAME, error, Arithmetic::of(module).bound(SAME).max(files))
        }
        Outcome::NotRun(reason) => Check::holds(NAME, format!("not run: {reason}"), &[]),
        Outcome::Refused(reason) => Check::holds(NAME, "", &[reason]),
    })
}

enum Outcome {
    /// The logits, and whether the files have values of f16.
    Logits {
        found: Tensor,
        is_half: bool,
    },
    /// Nothing that ONNX Runtime could read differently.
    NotRun(String),
    Refused(String),
}

/// The outputs of the files, one after the other, with graph optimisation off.
fn logits(
    subject: &Subject,
    files: &[PathBuf],
    mut known: Vec<(String, Tensor)>,
    vocabulary: usize,
) -> anyhow::Result<Outcome> {
    let mut hidden: Option<Tensor> = None;
    let (mut found, mut is_half) = (None, false);
    for file in files {
        let types = types(file)?;
        is_half |= types.contains(&DType::F16);
        if types.contains(&DType::BF16) {
            return Ok(Outcome::NotRun("ONNX Runtime has no kernels for bf16 on the CPU".to_owned()));
        }
        let mut session = subject.runtime.session().optimisation(Optimisation::Off).open(file)?;
        if is_step(&session) {
            continue;
        }
        let mut feeds = Vec::new();
        for port in session.inputs() {
            match fed(port, &known, hidden.as_ref()) {
                Some(tensor) => feeds.push((port.name.clone(), tensor)),
                None => return Ok(Outcome::Refused(format!("lstc has no value for its input `{}`", port.name))),
            }
        }
        let outputs: Vec<String> =
            session.outputs().iter().filter(|p| p.dims.len() == 3).map(|p| p.name.clone()).collect();
        for value in run(&mut session, &feeds, &outputs)? {
            let value = wide(value);
            if value.shape().last() == Some(&vocabulary) && found.is_none() && (hidden.is_some() || files.len() == 1) {
                found = Some(value);
            } else if hidden.is_none() {
                hidden = Some(value);
            }
        }
        known.extend(feeds);
    }
    let lacking = || Outcome::Refused(format!("the files have no output of {vocabulary} logits"));
    Ok(found.map_or_else(lacking, |found| Outcome::Logits { found, is_half }))
}

/// The element types of a file's values.
fn types(file: &Path) -> anyhow::Result<HashSet<DType>> {
    let graph = load(file)?;
    Ok(graph.value_ids().filter_map(|v| graph.value(v).dtype).collect())
}

/// A decoder step that only reads a cache plays no part in a whole pass.
fn is_step(session: &Session) -> bool {
    let caches = session.inputs().iter().any(|port| port.dims.len() == 4);
    caches && !session.inputs().iter().any(|port| port.element_type == ElementType::Bool)
}

/// The value for an input: the tensor of its name, the encoder's output, or an empty cache.
fn fed(port: &Port, known: &[(String, Tensor)], hidden: Option<&Tensor>) -> Option<Tensor> {
    let find = |name: &str| known.iter().find(|(known, _)| known == name).map(|(_, tensor)| tensor.clone());
    let is_float = matches!(port.element_type, ElementType::Float32 | ElementType::Float16);
    let size = |dim: &Dim| match dim {
        Dim::Known(size) => *size,
        Dim::Symbol(_) | Dim::Unknown => 1,
    };
    let shape = || IxDyn(&port.dims.iter().map(size).collect::<Vec<_>>());
    let own = hidden.and_then(|_| find(&format!("{OF_DECODER}{}", port.name)));
    own.or_else(|| find(&port.name))
        .or_else(|| match (port.dims.len(), port.element_type) {
            (3, _) if is_float => hidden.cloned(),
            (4, _) if is_float => Some(ArrayD::<f32>::zeros(shape()).into()),
            (_, ElementType::Bool) => Some(ArrayD::from_elem(shape(), false).into()),
            // The mask of the encoder's output.
            _ => hidden.and_then(|_| find(port.name.strip_prefix("encoder_")?)),
        })
        .map(|tensor| narrow(tensor, port.element_type))
}

fn wide(tensor: Tensor) -> Tensor {
    match tensor {
        Tensor::F16(values) => values.mapv(f32::from).into(),
        other => other,
    }
}

fn narrow(tensor: Tensor, wanted: ElementType) -> Tensor {
    match (tensor, wanted) {
        (Tensor::F32(values), ElementType::Float16) => values.mapv(half::f16::from_f32).into(),
        (tensor, _) => tensor,
    }
}
