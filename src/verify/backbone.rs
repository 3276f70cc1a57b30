//! The backbone inside the rewritten graphs compared with the source model.
//!
//! What the side network reads of the backbone is compared in infer.onnx as it lies on disk, with the weights of the
//! directory; the backbone's own logits, which no written graph computes unless it distils, in the graph from which the
//! written ones were sliced. Values that are computed from products in another precision are compared with those of the graph
//! that the compiler makes again; [`super::quantised`] compares these with the source's.

use lstc_base::scratch::Scratch;
use lstc_graph::{Graph, ValueId, data_to_run, encode};
use lstc_passes::Module;
use lstc_passes::options::Precision;
use lstc_runtime::{Optimisation, Session, Tensor};
use lstc_tuned::opened::on_cpu;

use super::precision::Arithmetic;
use super::{Check, Subject};
use crate::probe::{difference, give, run, sample};

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
    let (own, other) = behind_products(subject, &cut);
    let logits = module.anatomy.head.logits;

    // Ids are kept: a value of the module that no pass made is the source's of the same id.
    let source = source_of(subject)?;
    let mut sides = vec![Side { reference: source, values: own, of: "the source's" }];
    if module.quantised.is_some() {
        sides.push(Side { reference: module.graph.clone(), values: other, of: "the compiler's" });
    }
    let (tuned, tuned_logits) = {
        let mut tuned = module.graph.clone();
        let names = give(&mut tuned, &[logits]);
        tuned.outputs.push(module.logits.expect("the head was emitted"));
        (tuned.slice(&tuned.outputs), names)
    };
    let side = sample::side(module, subject.seed);
    let side = || side.iter().map(|(name, value)| (name.clone(), Tensor::from(value.clone())));
    let at_sizes = sample::sizes(module, subject.seed)?.into_iter();
    let at_sizes: Vec<Vec<(String, Tensor)>> =
        at_sizes.map(|inputs| inputs.into_iter().chain(side()).collect()).collect();
    let mut checks = Vec::new();
    for Side { reference, values, of } in sides {
        let arithmetic = arithmetic(module, of == "the compiler's");
        // The nodes around the products compute as in the source.
        let repeats = arithmetic.is_repeatable() && Arithmetic::of(module).is_repeatable();
        let is_last = module.quantised.is_none() || of == "the compiler's";
        let mut reference = reference;
        let originals: Vec<ValueId> = values.iter().chain([&logits]).copied().collect();
        let names = give(&mut reference, &originals);
        let reference = reference.slice(&reference.outputs);
        let scratch = Scratch::new()?;
        let (data, folder) = data_to_run(&[&reference, &tuned], scratch.path())?;
        for optimisation in [Optimisation::Off, Optimisation::All] {
            let open = |graph: &Graph| {
                let session = subject.runtime.session().optimisation(optimisation);
                session.load(&encode(&on_cpu(graph), &data), Some(&folder))
            };
            let expected = run_all(open(&reference)?, &at_sizes, &names)?;
            let mut graph = disk.clone();
            let here: Vec<ValueId> = values.iter().filter_map(on_disk).collect();
            let here = give(&mut graph, &here);
            let found = run_all(subject.session(&graph, optimisation)?, &at_sizes, &here)?;
            let taps = match module.quantised {
                None => format!("{} backbone values in infer.onnx", values.len()),
                Some(_) => format!("{} backbone values in infer.onnx are {of}", values.len()),
            };
            let pairs = || found.iter().zip(&expected).flat_map(|(found, expected)| found.iter().zip(expected));
            checks.push(compare(taps, (arithmetic, repeats), optimisation, pairs()));
            if is_last {
                let found = run_all(open(&tuned)?, &at_sizes, &tuned_logits)?;
                let logits = "the backbone's logits".to_owned();
                let expected = expected.iter().map(|at_size| &at_size[values.len()..]);
                let pairs = found.iter().zip(expected).flat_map(|(found, expected)| found.iter().zip(expected));
                checks.push(compare(logits, (arithmetic, repeats), optimisation, pairs));
            }
        }
    }
    Ok(checks)
}

/// The outputs at all sizes.
fn run_all(
    mut session: Session,
    at_sizes: &[Vec<(String, Tensor)>],
    outputs: &[String],
) -> anyhow::Result<Vec<Vec<Tensor>>> {
    at_sizes.iter().map(|inputs| run(&mut session, inputs, outputs)).collect()
}

/// Values, and the graph that they must agree with.
struct Side {
    reference: Graph,
    values: Vec<ValueId>,
    of: &'static str,
}

/// Values that do not depend on a product in another precision, and the others.
fn behind_products(subject: &Subject, values: &[ValueId]) -> (Vec<ValueId>, Vec<ValueId>) {
    let module = &subject.module;
    let products = module.quantised.iter().flat_map(|q| q.remade().map(|r| r.value));
    let downstream = module.graph.dependents(products);
    values.iter().partition(|v| !downstream[v.index()])
}

/// The arithmetic of the backbone, as it is written or as it was.
fn arithmetic(module: &Module, quantised: bool) -> Arithmetic {
    match module.options.backbone.precision {
        Precision::Int8 | Precision::Int4 if quantised => Arithmetic::Quantised,
        Precision::Fp16 if quantised => Arithmetic::Half,
        _ => Arithmetic::of(module),
    }
}

pub(super) fn source_of(subject: &Subject) -> anyhow::Result<Graph> {
    let config = lstc_tuned::manifest::read(subject.directory)?;
    let (mut source, _) = crate::rewrite::open(&crate::rewrite::SourceModel::recorded(&config.source)?)?;
    crate::rewrite::computed_in(&mut source, config.options().backbone.precision);
    Ok(source)
}

fn compare<'t>(
    name: String,
    (arithmetic, repeats): (Arithmetic, bool),
    optimisation: Optimisation,
    pairs: impl Iterator<Item = (&'t Tensor, &'t Tensor)>,
) -> Check {
    let pairs: Vec<_> = pairs.collect();
    let off = optimisation == Optimisation::Off;
    if off && repeats {
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

pub(super) fn relative(a: &Tensor, b: &Tensor) -> f64 {
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
