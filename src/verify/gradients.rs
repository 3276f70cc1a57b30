//! Gradients of grad.onnx against directional finite differences of eval.onnx's loss, for each group of parameters.
//!
//! Both graphs run in double precision after the cut (see [`super::wide`]), so that what is measured is the graph, not
//! f32's rounding of it. The direction is the gradient's own, mixed with a random one: along it a wrong component
//! shows, and so does a wrong size.

use std::collections::BTreeMap;

use lstc_graph::{Graph, Role, Source, Weight};
use lstc_passes::Group;
use lstc_runtime::{Optimisation, Session, Tensor};
use ndarray::ArrayD;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::wide::{is_exact, widen};
use super::{Check, Subject};
use crate::probe::{run, sample};

/// Half the distance between the two points of a central difference, and the relative error allowed.
struct Step {
    h: f64,
    relative: f64,
}

/// Short enough that few ReLUs have their kink in between; what those few leave is within the relative error.
const EXACT: Step = Step { h: 1e-7, relative: 5e-4 };
/// For graphs with an f32 Erf, whose rounding a short step would measure.
const ROUNDED: Step = Step { h: 1e-3, relative: 2e-2 };
/// Error relative to the loss that rounding may leave.
const ABSOLUTE: f64 = 1e-7;

type Point = Vec<(String, ArrayD<f64>)>;

pub(super) fn check(subject: &Subject) -> anyhow::Result<Vec<Check>> {
    let open = |file: &str| -> anyhow::Result<(Graph, Session)> {
        let mut graph = quiet(subject.load(file)?);
        for parameter in &subject.module.parameters {
            if let Some(input) = graph.find(&parameter.name) {
                graph.set_role(input, Role::Trainable);
            }
        }
        let session = subject.session(&widen(&graph), Optimisation::All)?;
        Ok((graph, session))
    };
    let (graph, grad) = open("grad.onnx")?;
    let (_, eval) = open("eval.onnx")?;
    let step = if is_exact(&graph) { EXACT } else { ROUNDED };
    let side = sample::side(&subject.module, subject.seed);
    let point: Point = side.into_iter().map(|(name, value)| (name, value.mapv(f64::from))).collect();
    Probe { inputs: sample::inputs(&subject.module, subject.seed)?, grad, eval, step }.measure(subject, &point)
}

/// The two graphs that are compared.
struct Probe {
    inputs: Vec<(String, Tensor)>,
    grad: Session,
    eval: Session,
    step: Step,
}

impl Probe {
    fn measure(&mut self, subject: &Subject, point: &Point) -> anyhow::Result<Vec<Check>> {
        let outputs: Vec<String> = point.iter().map(|(n, _)| format!("{n}.grad")).collect();
        let gradients = run(&mut self.grad, &with(&self.inputs, point), &outputs)?;
        let gradients: Vec<ArrayD<f64>> =
            gradients.iter().map(|g| Ok(g.as_f64()?.to_owned())).collect::<anyhow::Result<_>>()?;
        let at_rest = self.loss(point)?;
        let mut groups: BTreeMap<&'static str, Vec<usize>> = BTreeMap::new();
        let (trained, scheduled): (Vec<_>, Vec<_>) =
            subject.module.parameters.iter().enumerate().partition(|(_, p)| p.group != Group::Schedule);
        for (index, parameter) in trained {
            groups.entry(parameter.group.name()).or_default().push(index);
        }
        let mut rng = ChaCha8Rng::seed_from_u64(subject.seed ^ 0xd1ff);
        let mut checks = Vec::new();
        if !scheduled.is_empty() {
            let moved = scheduled.iter().filter(|(index, _)| gradients[*index].iter().any(|v| *v != 0.0));
            let breaches: Vec<String> = moved.map(|(_, p)| format!("`{}` has a gradient", p.name)).collect();
            checks.push(Check::holds("what a schedule sets is not trained", "no gradient", &breaches));
        }
        for (group, members) in groups {
            let direction = direction(&gradients, &members, &mut rng);
            let slope: f64 = members.iter().map(|i| (&gradients[*i] * &direction[i]).sum()).sum();
            let h = self.step.h;
            let ahead = self.loss(&moved(point, &direction, h))?;
            let behind = self.loss(&moved(point, &direction, -h))?;
            let error = ((ahead - behind) / (2.0 * h) - slope).abs();
            let bound = self.step.relative * slope.abs() + ABSOLUTE * at_rest.abs();
            checks.push(Check {
                name: format!("gradient of {} {group} parameters", members.len()),
                measured: format!("{error:.1e} of {slope:.3e}"),
                bound: format!("{bound:.1e}"),
                holds: error <= bound && slope.is_finite(),
            });
        }
        Ok(checks)
    }

    fn loss(&mut self, point: &Point) -> anyhow::Result<f64> {
        let results = run(&mut self.eval, &with(&self.inputs, point), &["loss".to_owned()])?;
        Ok(results[0].as_f64()?.sum())
    }
}

/// The graph with its dropout rates set to 0.
fn quiet(mut graph: Graph) -> Graph {
    let rates: Vec<_> = graph
        .node_ids()
        .map(|id| graph.node(id))
        .filter(|n| n.is("Dropout") && n.origin != lstc_graph::Origin::SOURCE)
        .filter_map(|n| n.input(1))
        .collect();
    for rate in rates {
        if matches!(graph.value(rate).source, Source::Weight(_)) {
            graph.replace_weight(rate, Weight::scalar_f32(0.0));
        }
    }
    graph
}

/// A unit direction: the gradient's, with half as much of a random one, over the members of a group.
fn direction(gradients: &[ArrayD<f64>], members: &[usize], rng: &mut ChaCha8Rng) -> BTreeMap<usize, ArrayD<f64>> {
    let unit = |arrays: BTreeMap<usize, ArrayD<f64>>| {
        let norm = arrays.values().map(|a| a.mapv(|v| v * v).sum()).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
        arrays.into_iter().map(|(i, a)| (i, a / norm)).collect::<BTreeMap<_, _>>()
    };
    let along = unit(members.iter().map(|i| (*i, gradients[*i].clone())).collect());
    let mut draw = || if rng.next_u64() & 1 == 0 { 0.5 } else { -0.5 };
    let across = unit(members.iter().map(|i| (*i, gradients[*i].mapv(|_| draw()))).collect());
    unit(along.into_iter().map(|(i, a)| (i, a + 0.5 * &across[&i])).collect())
}

fn moved(point: &Point, direction: &BTreeMap<usize, ArrayD<f64>>, h: f64) -> Point {
    let step = |(i, (name, value)): (usize, &(String, ArrayD<f64>))| {
        let value = direction.get(&i).map_or_else(|| value.clone(), |d| value + &(d * h));
        (name.clone(), value)
    };
    point.iter().enumerate().map(step).collect()
}

fn with(inputs: &[(String, Tensor)], point: &Point) -> Vec<(String, Tensor)> {
    let side = point.iter().map(|(name, value)| (name.clone(), Tensor::from(value.clone())));
    inputs.iter().cloned().chain(side).collect()
}
