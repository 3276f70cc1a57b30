//! The backbone inside the rewritten graphs against the source model.
//!
//! What the side network reads of the backbone is compared in infer.onnx as it lies on disk, with the weights of the
//! directory; the backbone's own logits, which no written graph computes unless it distils, in the graph from which the
//! written ones were sliced.

use lstc_graph::{Graph, ValueId, encode, write_data};

use super::precision::Arithmetic;
use super::{Check, Subject, difference, give, run, sample};
use crate::runtime::{Optimisation, Tensor};

/// With graph optimisation on: fusions see other consumers.
const FUSED: f64 = 1e-5;

pub(super) fn check(subject: &Subject) -> anyhow::Result<Vec<Check>> {
    let module = &subject.module;
    let disk = subject.load("infer.onnx")?;
    // Values that a node of the backbone makes: constants and inputs are compared elsewhere, or given.
    let computed = |v: &&ValueId| module.graph.producer_of(**v).is_some();
    let cut: Vec<ValueId> = module.cut.iter().filter(computed).copied().collect();
    let on_disk = |v: &ValueId| disk.find(&module.graph.value(*v).name);
    let cut: Vec<ValueId> = cut.into_iter().filter(|v| on_disk(v).is_some()).collect();
    let logits = module.anatomy.head.logits;

    // Ids are kept: a value of the module's that is no pass's is the source's of the same id.
    let mut source = source_of(subject)?;
    let originals: Vec<ValueId> = cut.iter().chain([&logits]).copied().collect();
    let names = give(&mut source, &originals);
    let mut tuned = module.graph.clone();
    let tuned_logits = give(&mut tuned, &[logits]);
    tuned.outputs.push(module.logits.expect("the head was emitted"));
    let [source, tuned] = [source, tuned].map(|graph| graph.slice(&graph.outputs));
    let folder = tempfile::tempdir()?;
    let (data, _) = write_data(&[&source, &tuned], folder.path(), "source.data")?;

    let inputs = sample::inputs(module, subject.seed)?;
    let side = sample::side(module, subject.seed);
    let mut all = inputs.clone();
    all.extend(side.into_iter().map(|(name, value)| (name, Tensor::from(value))));
    let arithmetic = Arithmetic::of(module);
    let mut checks = Vec::new();
    for optimisation in [Optimisation::Off, Optimisation::All] {
        let open = |graph: &Graph| {
            let session = subject.runtime.session().optimisation(optimisation);
            session.load(&encode(graph, &data), Some(folder.path()))
        };
        let expected = run(&mut open(&source)?, &inputs, &names)?;
        let found_logits = run(&mut open(&tuned)?, &all, &tuned_logits)?;

        let mut graph = disk.clone();
        let values: Vec<ValueId> = cut.iter().filter_map(on_disk).collect();
        let here = give(&mut graph, &values);
        let found = run(&mut subject.session(&graph, optimisation)?, &all, &here)?;

        let taps = format!("{} backbone values in infer.onnx", cut.len());
        checks.push(compare(taps, arithmetic, optimisation, found.iter().zip(&expected)));
        let logits = "the backbone's logits".to_owned();
        checks.push(compare(logits, arithmetic, optimisation, found_logits.iter().zip(&expected[cut.len()..])));
    }
    Ok(checks)
}

pub(super) fn source_of(subject: &Subject) -> anyhow::Result<Graph> {
    let config = crate::rewrite::manifest::read(subject.directory)?;
    Ok(crate::rewrite::open(&crate::rewrite::manifest::model_of(&config.source)?)?.0)
}

fn compare<'t>(
    name: String,
    arithmetic: Arithmetic,
    optimisation: Optimisation,
    pairs: impl Iterator<Item = (&'t Tensor, &'t Tensor)>,
) -> Check {
    let pairs: Vec<_> = pairs.collect();
    let off = optimisation == Optimisation::Off;
    if off && arithmetic.is_repeatable() {
        let unequal = pairs.iter().filter(|(a, b)| !same_bits(a, b)).count();
        let breaches: Vec<String> =
            (unequal > 0).then(|| format!("{unequal} of {} differ", pairs.len())).into_iter().collect();
        return Check::holds(format!("{name}, optimisation off"), "bit for bit", &breaches);
    }
    let worst = pairs
        .iter()
        .map(|(a, b)| if same_bits(a, b) { 0.0 } else { relative(a, b) })
        .fold(0.0, |worst: f64, e| if e.is_nan() { f64::INFINITY } else { worst.max(e) });
    Check::at_most(format!("{name}, optimisation {}", if off { "off" } else { "on" }), worst, arithmetic.bound(FUSED))
}

fn relative(a: &Tensor, b: &Tensor) -> f64 {
    let (apart, largest) = difference(a, b);
    apart / largest.max(f64::MIN_POSITIVE)
}

pub(super) fn same_bits(a: &Tensor, b: &Tensor) -> bool {
    match (a, b) {
        (Tensor::F32(a), Tensor::F32(b)) => {
            a.shape() == b.shape() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
        }
        (Tensor::I64(a), Tensor::I64(b)) => a == b,
        (Tensor::I32(a), Tensor::I32(b)) => a == b,
        (Tensor::Bool(a), Tensor::Bool(b)) => a == b,
        _ => false,
    }
}
