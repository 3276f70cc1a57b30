//! Gradients of grad.onnx against directional finite differences of eval.onnx's loss, for each group of parameters.
//!
//! The direction is the gradient's own, mixed with a random one: along it a wrong component shows, and so does a wrong
//! size. Central differences at h and h/2 are extrapolated to h = 0 (Richardson), which leaves rounding: the loss is an
//! f32, so a difference below some of its last bits says nothing, and is allowed for.

use std::collections::BTreeMap;

use lstc_graph::{Graph, Source, Weight};
use ndarray::ArrayD;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::{Check, Subject, run, sample};
use crate::runtime::{Optimisation, Session, Tensor};

/// Relative error that truncation may leave, kinks of ReLU within a step included.
const RELATIVE: f64 = 1e-2;
/// Rounding of a loss, relative to it: a few units in the last place of f32.
const ROUNDING: f64 = 1e-6;
/// Wanted changes of the loss, relative to it, from end to end. ReLU has kinks and rounding has steps: a step that is
/// right for one group is too long or too short for another. The first that agrees counts, with the bound that belongs
/// to its length; a wrong gradient agrees with none.
const CHANGES: [f64; 4] = [3e-3, 1e-2, 1e-3, 3e-4];

type Point = Vec<(String, ArrayD<f32>)>;

/// Points at which a group may be measured: one that lies on a kink is no evidence, and a wrong gradient is wrong at
/// every point.
const POINTS: u64 = 3;

pub(super) fn check(subject: &Subject) -> anyhow::Result<Vec<Check>> {
    let mut probe = Probe {
        inputs: sample::inputs(&subject.module, subject.seed)?,
        grad: subject.session(&quiet(subject.load("grad.onnx")?), Optimisation::All)?,
        eval: subject.session(&subject.load("eval.onnx")?, Optimisation::All)?,
    };
    let mut groups: BTreeMap<&'static str, Vec<usize>> = BTreeMap::new();
    for (index, parameter) in subject.module.parameters.iter().enumerate() {
        groups.entry(parameter.group.name()).or_default().push(index);
    }
    let mut checks: BTreeMap<&'static str, Check> = BTreeMap::new();
    for seed in subject.seed..subject.seed.saturating_add(POINTS) {
        groups.retain(|group, _| !checks.get(group).is_some_and(|c| c.holds));
        if !groups.is_empty() {
            checks.extend(probe.measure(sample::side(&subject.module, seed), seed, &groups)?);
        }
    }
    Ok(checks.into_values().collect())
}

/// The two graphs that are held against each other.
struct Probe {
    inputs: Vec<(String, Tensor)>,
    grad: Session,
    eval: Session,
}

impl Probe {
    /// Measures groups of parameters at one point.
    fn measure(
        &mut self,
        point: Point,
        seed: u64,
        groups: &BTreeMap<&'static str, Vec<usize>>,
    ) -> anyhow::Result<Vec<(&'static str, Check)>> {
        let outputs: Vec<String> = point.iter().map(|(n, _)| format!("{n}.grad")).collect();
        let gradients = run(&mut self.grad, &with(&self.inputs, &point), &outputs)?;
        let gradients: Vec<ArrayD<f32>> =
            gradients.iter().map(|g| Ok(g.as_f32()?.to_owned())).collect::<anyhow::Result<_>>()?;
        let at_rest = self.loss(&point)?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xd1ff);
        let mut checks = Vec::new();
        for (group, members) in groups {
            let direction = direction(&gradients, members, &mut rng);
            let slope: f64 = members.iter().map(|i| dot(&gradients[*i], &direction[i])).sum();
            let mut tries = Vec::new();
            for change in CHANGES {
                let h = (change * at_rest.abs() / (2.0 * slope.abs().max(1e-9))).clamp(1e-4, 0.3);
                let (coarse, fine) = (self.central(&point, &direction, h)?, self.central(&point, &direction, h / 2.0)?);
                let error = ((4.0 * fine - coarse) / 3.0 - slope).abs();
                let bound = RELATIVE * slope.abs() + ROUNDING * at_rest.abs() / h;
                tries.push((error, bound));
                if error <= bound {
                    break;
                }
            }
            tries.sort_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
            let (error, bound) = tries[0];
            let check = Check {
                name: format!("gradient of {} {group} parameters", members.len()),
                measured: format!("{error:.1e} of {slope:.3e}"),
                bound: format!("{bound:.1e}"),
                holds: error <= bound && slope.is_finite() && slope != 0.0,
            };
            checks.push((*group, check));
        }
        Ok(checks)
    }

    /// `(loss(point + h direction) - loss(point - h direction)) / 2h`
    fn central(&mut self, point: &Point, direction: &BTreeMap<usize, ArrayD<f32>>, h: f64) -> anyhow::Result<f64> {
        let ahead = self.loss(&moved(point, direction, h))?;
        let behind = self.loss(&moved(point, direction, -h))?;
        Ok((ahead - behind) / (2.0 * h))
    }

    fn loss(&mut self, point: &Point) -> anyhow::Result<f64> {
        let results = run(&mut self.eval, &with(&self.inputs, point), &["loss".to_owned()])?;
        Ok(results[0].as_f32()?.iter().map(|v| f64::from(*v)).sum())
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

/// A unit direction: half the gradient's, half random, over the members of a group.
fn direction(gradients: &[ArrayD<f32>], members: &[usize], rng: &mut ChaCha8Rng) -> BTreeMap<usize, ArrayD<f32>> {
    let norm = |arrays: &BTreeMap<usize, ArrayD<f32>>| -> f32 {
        arrays.values().map(|a| a.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>()).sum::<f64>().sqrt() as f32
    };
    let unit = |arrays: BTreeMap<usize, ArrayD<f32>>| {
        let n = norm(&arrays).max(f32::MIN_POSITIVE);
        arrays.into_iter().map(|(i, a)| (i, a / n)).collect::<BTreeMap<_, _>>()
    };
    let along = unit(members.iter().map(|i| (*i, gradients[*i].clone())).collect());
    let mut draw = || if rng.next_u64() & 1 == 0 { 0.5 } else { -0.5 };
    let across = unit(members.iter().map(|i| (*i, gradients[*i].mapv(|_| draw()))).collect());
    unit(along.into_iter().map(|(i, a)| (i, a + 0.5 * &across[&i])).collect())
}

fn dot(a: &ArrayD<f32>, b: &ArrayD<f32>) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn moved(point: &Point, direction: &BTreeMap<usize, ArrayD<f32>>, h: f64) -> Point {
    let step = |(i, (name, value)): (usize, &(String, ArrayD<f32>))| {
        let value = match direction.get(&i) {
            Some(d) => value + &(d * h as f32),
            None => value.clone(),
        };
        (name.clone(), value)
    };
    point.iter().enumerate().map(step).collect()
}

fn with(inputs: &[(String, Tensor)], point: &Point) -> Vec<(String, Tensor)> {
    let side = point.iter().map(|(name, value)| (name.clone(), Tensor::from(value.clone())));
    inputs.iter().cloned().chain(side).collect()
}
