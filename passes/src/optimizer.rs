//! AdamW in the graph, with clipping by the global norm.
//!
//! ```text
//! norm = sqrt(sum |g|^2);  g <- g min(1, clip / (norm + 1e-6))
//! m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2
//! p <- p - lr decay p - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
//! ```
//!
//! Kingma and Ba, 2015; Loshchilov and Hutter, 2019; the order of operations is PyTorch's. Only matrices decay: not
//! biases, norms, gates and position tables. The hyper-parameters are scalar initializers under their names.

use lstc_graph::{Attributes, Builder, DType, Dim, Graph, Origin, Role, ValueId, Weight};

use crate::module::{Module, Parameter, StepValues};
use crate::options::OptimizerOptions;
use crate::pipeline::Pass;
use crate::plan::Group;

pub struct Optimizer;

impl Pass for Optimizer {
    fn name(&self) -> &'static str {
        "optimizer"
    }

    fn run(&self, module: &mut Module) -> Result<(), Vec<String>> {
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

impl Target {
    /// A parameter, as the graph's values for it and its gradient. Weight decay is for matrices.
    pub fn new(parameter: &Parameter, value: ValueId, gradient: ValueId) -> Target {
        Target {
            name: parameter.name.clone(),
            dims: parameter.dims.clone(),
            value,
            gradient,
            decays: parameter.dims.len() == 2 && parameter.group != Group::PositionTable,
        }
    }
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
    one_less_beta1: ValueId,
    one_less_beta2: ValueId,
    epsilon: ValueId,
    /// min(1, clip / norm)
    clip: ValueId,
    /// lr / (1 - beta1^t)
    rate: ValueId,
    /// sqrt(1 - beta2^t)
    correction: ValueId,
    /// 1 - lr decay
    shrink: ValueId,
}

/// Emits one step into a graph, with the inputs `lr`, `step` and the state, and the outputs' final names.
///
/// # Errors
/// Names of the interface that the graph has already given to something else.
pub fn adamw(graph: &mut Graph, targets: &[Target], options: &OptimizerOptions) -> Result<StepValues, Vec<String>> {
    let mut taken = Vec::new();
    let mut input = |graph: &mut Graph, name: &str, dtype, dims: &[usize]| {
        let shape: Vec<Dim> = dims.iter().map(|d| Dim::Value(*d as i32)).collect();
        graph.add_input(name, dtype, &shape, Role::Frozen).map_err(|e| taken.push(e)).ok()
    };
    let lr = input(graph, "lr", DType::F32, &[]);
    let step = input(graph, "step", DType::I64, &[]);
    let states: Vec<[Option<ValueId>; 2]> = targets
        .iter()
        .map(|t| [FIRST_MOMENT, SECOND_MOMENT].map(|p| input(graph, &format!("{p}{}", t.name), DType::F32, &t.dims)))
        .collect();
    let (Some(lr), Some(step), true) = (lr, step, taken.is_empty()) else { return Err(taken) };

    let b = Builder::new(graph, Origin::pass("optimizer"));
    b.scope("adamw");
    let grad_norm = global_norm(&b, targets);
    let scalars = scalars(&b, options, grad_norm, lr, step);
    let next = targets
        .iter()
        .zip(states)
        .map(|(target, state)| {
            b.scope(&format!("adamw/{}", target.name));
            let [m, v] = state.map(|s| s.expect("taken names were reported"));
            update(&b, target, m, v, &scalars)
        })
        .collect();
    Ok(StepValues { grad_norm: b.named(grad_norm, "grad_norm"), next })
}

fn global_norm(b: &Builder, targets: &[Target]) -> ValueId {
    let squares: Vec<ValueId> =
        targets.iter().map(|t| b.op("ReduceSumSquare", &[t.gradient], Attributes::none().int("keepdims", 0))).collect();
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
    // No clip is a clip that nothing reaches.
    let limit = hyper("clip", if options.clip > 0.0 { options.clip } else { f32::MAX });
    let ratio = b.div(limit, b.add(norm, b.f32(CLIP_EPSILON)));
    let decay = hyper("weight_decay", options.weight_decay);
    Scalars {
        one_less_beta1: b.sub(one, beta1),
        one_less_beta2: b.sub(one, beta2),
        epsilon: hyper("epsilon", options.epsilon),
        clip: b.op("Min", &[ratio, one], Attributes::none()),
        rate: b.div(lr, correction(beta1)),
        correction: b.sqrt(correction(beta2)),
        shrink: b.sub(one, b.mul(lr, decay)),
        beta1,
        beta2,
    }
}

fn update(b: &Builder, target: &Target, m: ValueId, v: ValueId, s: &Scalars) -> [ValueId; 3] {
    let g = b.mul(target.gradient, s.clip);
    let m = b.add(b.mul(m, s.beta1), b.mul(g, s.one_less_beta1));
    let v = b.add(b.mul(v, s.beta2), b.mul(b.mul(g, g), s.one_less_beta2));
    let root = b.add(b.div(b.sqrt(v), s.correction), s.epsilon);
    let p = if target.decays { b.mul(target.value, s.shrink) } else { target.value };
    let p = b.sub(p, b.mul(b.div(m, root), s.rate));
    let name = &target.name;
    [
        b.named(p, &format!("{name}.next")),
        b.named(m, &format!("{FIRST_MOMENT}{name}.next")),
        b.named(v, &format!("{SECOND_MOMENT}{name}.next")),
    ]
}
