//! AdamW in the graph, with clipping by the global norm.
//!
//! ```text
//! norm = sqrt(sum |g|^2);  c = min(1, clip / (norm + 1e-6))
//! m <- beta1 m + (1 - beta1) c g;  v <- beta2 v + (1 - beta2) c^2 g^2
//! p <- p - lr decay p - lr r / (1 - beta1^t) m / (sqrt(v) + r epsilon),  r = sqrt(1 - beta2^t)
//! ```
//!
//! Kingma and Ba, 2015; Loshchilov and Hutter, 2019; as in PyTorch. Only matrices decay: not biases, norms, gates and
//! position tables. The hyper-parameters are scalar initializers under their names; a decay of 0 has none.
//!
//! Parameters of one width are updated together, their gradients one below the other, as many as a core's cache holds:
//! hundreds of parameters, one by one, would be thousands of nodes.

use lstc_graph::{Attributes, Builder, DType, Dim, Graph, Origin, Role, ValueId, Weight};

use crate::ladder::plan;
use crate::module::{Module, Parameter, StepValues};
use crate::options::OptimizerOptions;
use crate::pipeline::Pass;
use crate::problem::Problem;

pub struct Optimizer;

impl Pass for Optimizer {
    fn name(&self) -> &'static str {
        "optimizer"
    }

    fn run(&self, module: &mut Module) -> Result<(), Vec<Problem>> {
        let gradient = |p: &Parameter| p.gradient.expect("the graph was differentiated");
        let targets: Vec<Target> = module.parameters.iter().map(|p| Target::new(p, p.value, gradient(p))).collect();
        module.step = Some(adamw(&mut module.graph, &targets, &module.options.optimizer)?);
        Ok(())
    }
}

/// A parameter that the optimizer changes.
pub struct Target {
    pub name: String,
    pub dims: Vec<usize>,
    pub value: ValueId,
    pub gradient: ValueId,
    pub decays: bool,
}

/// Elements of the parameters that are updated together: what is read and written of them, six tensors of f32, stays in a
/// core's second-level cache.
const MOST_ELEMENTS: usize = 1 << 17;

/// Parameters of a group: shape inference follows lists of integers up to this length.
const MOST_MEMBERS: usize = 64;

/// Parameters that share a tensor of each moment: their rows one below the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The tensors are `adam.m/<name>` and `adam.v/<name>`.
    pub name: String,
    pub dims: Vec<usize>,
    /// Positions in the list of parameters.
    pub members: Vec<usize>,
}

/// The groups of a list of parameters, by their shapes and by whether they decay.
fn groups<'d>(parameters: impl IntoIterator<Item = (&'d [usize], bool)>) -> Vec<Group> {
    let mut groups: Vec<(Group, bool)> = Vec::new();
    for (place, (dims, decays)) in parameters.into_iter().enumerate() {
        let elements = |dims: &[usize]| dims.iter().product::<usize>();
        let fits = |(group, decay): &&mut (Group, bool)| {
            let alike = group.dims.get(1..) == dims.get(1..) && !dims.is_empty() && *decay == decays;
            alike && group.members.len() < MOST_MEMBERS && elements(&group.dims) + elements(dims) <= MOST_ELEMENTS
        };
        match groups.iter_mut().find(fits) {
            Some((group, _)) => {
                group.dims[0] += dims[0];
                group.members.push(place);
            }
            None => {
                let name = groups.len().to_string();
                groups.push((Group { name, dims: dims.to_vec(), members: vec![place] }, decays));
            }
        }
    }
    groups.into_iter().map(|(group, _)| group).collect()
}

impl Group {
    /// The names of the tensors of both moments.
    pub fn moments(&self) -> [String; 2] {
        [FIRST_MOMENT, SECOND_MOMENT].map(|prefix| format!("{prefix}{}", self.name))
    }
}

impl Target {
    /// A parameter, as the graph's values for it and its gradient.
    pub fn new(parameter: &Parameter, value: ValueId, gradient: ValueId) -> Target {
        Target {
            name: parameter.name.clone(),
            dims: parameter.dims.clone(),
            value,
            gradient,
            decays: decays(parameter),
        }
    }
}

/// Weight decay is for matrices.
fn decays(parameter: &Parameter) -> bool {
    parameter.dims.len() == 2 && parameter.group != plan::Group::PositionTable
}

/// How the moments of parameters are grouped.
pub fn moments(parameters: &[Parameter]) -> Vec<Group> {
    groups(parameters.iter().map(|p| (p.dims.as_slice(), decays(p))))
}

/// Prefixes of the optimizer state's names.
pub const FIRST_MOMENT: &str = "adam.m/";
pub const SECOND_MOMENT: &str = "adam.v/";

/// What is added to the norm that a clip divides by, as in PyTorch's `clip_grad_norm_`.
const CLIP_EPSILON: f32 = 1e-6;

/// Scalars that one step computes once.
struct Scalars {
    beta1: ValueId,
    beta2: ValueId,
    /// (1 - beta1) c
    first: ValueId,
    /// (1 - beta2) c^2
    second: ValueId,
    /// r epsilon
    epsilon: ValueId,
    /// lr r / (1 - beta1^t)
    rate: ValueId,
    /// 1 - lr decay
    shrink: Option<ValueId>,
}

/// Emits one step into a graph, with the inputs `lr`, `step` and the state, and the outputs' final names.
///
/// # Errors
/// Names of the interface that the graph has already given to something else.
pub fn adamw(graph: &mut Graph, targets: &[Target], options: &OptimizerOptions) -> Result<StepValues, Vec<Problem>> {
    let mut taken = Vec::new();
    let mut input = |graph: &mut Graph, name: &str, dtype, dims: &[usize]| {
        let shape: Vec<Dim> = dims.iter().map(|d| Dim::Value(*d as i32)).collect();
        graph.add_input(name, dtype, &shape, Role::Frozen).map_err(|e| taken.push(Problem::model(e))).ok()
    };
    let lr = input(graph, "lr", DType::F32, &[]);
    let step = input(graph, "step", DType::I64, &[]);
    let groups = groups(targets.iter().map(|t| (t.dims.as_slice(), t.decays)));
    let states: Vec<[Option<ValueId>; 2]> =
        groups.iter().map(|g| g.moments().map(|name| input(graph, &name, DType::F32, &g.dims))).collect();
    let (Some(lr), Some(step), true) = (lr, step, taken.is_empty()) else { return Err(taken) };

    let b = Builder::new(graph, Origin::pass("optimizer"));
    b.scope("adamw");
    let gradients: Vec<ValueId> = groups.iter().map(|group| stacked(&b, group, targets)).collect();
    let grad_norm = global_norm(&b, &gradients);
    let scalars = scalars(&b, options, grad_norm, lr, step);
    let grad_norm = b.named(grad_norm, "grad_norm");
    let mut next = StepValues { grad_norm, next: vec![grad_norm; targets.len()], moments: Vec::new() };
    for ((group, gradient), state) in groups.iter().zip(gradients).zip(states) {
        b.scope(&format!("adamw/{}", group.name));
        let state = state.map(|s| s.expect("taken names were reported"));
        update(&b, group, targets, gradient, state, &scalars, &mut next);
    }
    Ok(next)
}

/// The gradients of a group, one below the other.
fn stacked(b: &Builder, group: &Group, targets: &[Target]) -> ValueId {
    let gradients: Vec<ValueId> = group.members.iter().map(|place| targets[*place].gradient).collect();
    match gradients[..] {
        [one] => one,
        _ => b.concat(&gradients, 0),
    }
}

fn global_norm(b: &Builder, gradients: &[ValueId]) -> ValueId {
    let square = |g: &ValueId| b.op("ReduceSumSquare", &[*g], Attributes::none().int("keepdims", 0));
    let squares: Vec<ValueId> = gradients.iter().map(square).collect();
    let total = match squares[..] {
        [one] => one,
        _ => b.op("Sum", &squares, Attributes::none()),
    };
    b.sqrt(total)
}

fn scalars(b: &Builder, options: &OptimizerOptions, norm: ValueId, lr: ValueId, step: ValueId) -> Scalars {
    let hyper = |name: &str, value: f32| {
        b.edit(|graph| {
            let name = graph.fresh_name(name);
            graph.add_weight(&name, Weight::scalar_f32(value))
        })
    };
    let one = b.f32(1.0);
    let (beta1, beta2) = (hyper("beta1", options.beta1), hyper("beta2", options.beta2));
    let t = b.cast(step, DType::F32);
    let correction = |beta| b.sub(one, b.op("Pow", &[beta, t], Attributes::none()));
    // No clipping is a limit that nothing reaches.
    let limit = hyper("clip", if options.clip > 0.0 { options.clip } else { f32::MAX });
    let ratio = b.div(limit, b.add(norm, b.f32(CLIP_EPSILON)));
    let clip = b.op("Min", &[ratio, one], Attributes::none());
    let root = b.sqrt(correction(beta2));
    let decays = options.weight_decay != 0.0;
    Scalars {
        first: b.mul(b.sub(one, beta1), clip),
        second: b.mul(b.sub(one, beta2), b.mul(clip, clip)),
        epsilon: b.mul(hyper("epsilon", options.epsilon), root),
        rate: b.div(b.mul(lr, root), correction(beta1)),
        shrink: decays.then(|| b.sub(one, b.mul(lr, hyper("weight_decay", options.weight_decay)))),
        beta1,
        beta2,
    }
}

fn update(
    b: &Builder,
    group: &Group,
    targets: &[Target],
    g: ValueId,
    [m, v]: [ValueId; 2],
    s: &Scalars,
    next: &mut StepValues,
) {
    let m = b.add(b.mul(m, s.beta1), b.mul(g, s.first));
    let v = b.add(b.mul(v, s.beta2), b.mul(b.mul(g, g), s.second));
    let moved = b.mul(b.div(m, b.add(b.sqrt(v), s.epsilon)), s.rate);
    let moved = match group.members[..] {
        [_] => vec![moved],
        _ => b.split(moved, &group.members.iter().map(|place| targets[*place].dims[0] as i64).collect::<Vec<_>>(), 0),
    };
    for (place, moved) in group.members.iter().zip(moved) {
        let target = &targets[*place];
        let p = match s.shrink {
            Some(shrink) if target.decays => b.mul(target.value, shrink),
            _ => target.value,
        };
        next.next[*place] = b.named(b.sub(p, moved), &format!("{}.next", target.name));
    }
    let [first, second] = group.moments();
    next.moments.push([b.named(m, &format!("{first}.next")), b.named(v, &format!("{second}.next"))]);
}
