//! Reverse-mode differentiation over the graph.
//!
//! Only nodes on a path from a trainable parameter to the loss get a gradient (activity analysis). Each operator has
//! one rule, in [`RULES`]. Operators without a rule are reported all at once.
//!
//! Ensures: every parameter that the loss depends on has its gradient; one that it does not depend on has zeros.

mod attention;
mod norm;
mod rules;

use std::collections::{BTreeSet, HashMap};

use lstc_graph::{Attributes, Builder, DType, Dim, Graph, Node, NodeId, Origin, ValueId, Weight, dim_text, shape_text};

pub use rules::RULES;

use crate::ladder::plan::Group;
use crate::module::{Module, Parameter, is_backbone};
use crate::options::BackwardOptions;
use crate::pipeline::Pass;
use crate::problem::Problem;

pub struct Differentiate;

impl Pass for Differentiate {
    fn name(&self) -> &'static str {
        "differentiate"
    }

    fn run(&self, module: &mut Module) -> Result<(), Vec<Problem>> {
        let seed = module.seed.expect("the loss was emitted");
        // What a schedule sets is not trained: its gradient is zeros, and the optimizer leaves it as it is.
        let is_trained = |p: &&Parameter| p.group != Group::Schedule;
        let wanted: Vec<ValueId> = module.parameters.iter().filter(is_trained).map(|p| p.value).collect();
        let options = module.options.backward;
        let gradients = gradients(&mut module.graph, seed, &wanted, (options, Origin::pass("differentiate")))?;
        let b = Builder::new(&mut module.graph, Origin::pass("differentiate"));
        let mut found: HashMap<ValueId, ValueId> =
            wanted.into_iter().zip(gradients).filter_map(|(parameter, found)| Some((parameter, found?))).collect();
        for parameter in &mut module.parameters {
            let gradient = found.remove(&parameter.value).unwrap_or_else(|| {
                let zeros = vec![0.0; parameter.dims.iter().product()];
                b.constant(Weight::from_f32(&parameter.dims, &zeros))
            });
            // One value may be the gradient of several parameters; an interface name is one value's.
            let own = b.unshared("Identity", &[gradient], Attributes::none(), 1)[0];
            parameter.gradient = Some(b.named(own, &format!("{}.grad", parameter.name)));
        }
        Ok(())
    }
}

/// Emits the gradients of a scalar with respect to some values, given a value on the way to it and its gradient there; `None`
/// for one that the value does not depend on.
///
/// # Errors
/// Every operator without a rule, and every operand whose gradient's shape cannot be decided.
pub fn gradients(
    graph: &mut Graph,
    (seed, at_seed): (ValueId, ValueId),
    wanted: &[ValueId],
    (options, origin): (BackwardOptions, Origin),
) -> Result<Vec<Option<ValueId>>, Vec<Problem>> {
    let order = graph.order().map_err(|id| vec![Problem::node(&graph.node(id).name, "is part of a cycle")])?;
    let active = active(graph, &order, wanted);
    let behind = graph.ancestors([seed]);
    let on_path =
        |id: &NodeId| behind.contains(id) && graph.node(*id).outputs.iter().flatten().any(|v| active[v.index()]);
    let path: Vec<NodeId> = order.into_iter().filter(on_path).collect();

    let missing: BTreeSet<Problem> = path
        .iter()
        .map(|id| graph.node(*id))
        .filter(|n| !n.is_default_domain() || rules::rule(&n.op).is_none() && n.op != "Split")
        .map(|n| Problem::node(&n.name, format!("{} has no gradient rule", n.op)))
        .collect();
    if !missing.is_empty() {
        return Err(missing.into_iter().collect());
    }

    let (shapes, sizes, uses) = (computed_shapes(graph), measured_sizes(graph), graph.uses());
    let b = Builder::new(graph, origin);
    let mut g = Backward { b: &b, options, shapes, sizes, ones: HashMap::new(), problems: Vec::new() };
    let mut contributions: HashMap<ValueId, Vec<ValueId>> = HashMap::new();
    contributions.insert(seed, vec![at_seed]);
    for id in path.into_iter().rev() {
        let node = b.read(|graph| graph.node(id).clone());
        b.scope(&format!("grad/{}", node.name));
        if node.is("Split") {
            if let Some((x, gradient)) = g.joined(&mut contributions, &node) {
                contributions.entry(x).or_default().push(gradient);
            }
            continue;
        }
        let Some(dy) = node.output(0).and_then(|y| g.total(&mut contributions, y)) else { continue };
        let whole = attention::mixed(&mut g, &node, dy, &uses, (&active, wanted))
            .or_else(|| norm::normed(&mut g, &node, dy, &uses, (&active, wanted)));
        if let Some(gradients) = whole {
            for (value, gradient) in gradients {
                contributions.entry(value).or_default().push(gradient);
            }
            continue;
        }
        let rule = rules::rule(&node.op).expect("missing rules were reported");
        let dy =
            if rules::BROADCASTS.contains(&node.op.as_str()) { dy } else { g.fit(dy, node.output(0).unwrap_or(dy)) };
        let gradients = rule(&mut g, &node, dy, &active);
        let gradients = node.inputs.iter().zip(gradients).filter_map(|(x, gradient)| Some(((*x)?, gradient?)));
        let gradients = gradients.filter(|(x, _)| active[x.index()]);
        let mut gradients: Vec<_> = gradients.map(|(x, dx)| g.settled(x, dx, (&active, wanted))).collect();
        // Where an operand has a part of dy summed up, as a bias of attention has, the sum comes first: dy is not kept for it.
        if let [(_, a), (_, b)] = &mut gradients[..]
            && node.is("Add")
        {
            match (*a == dy, *b == dy) {
                (true, false) => *a = g.after(dy, *b),
                (false, true) => *b = g.after(dy, *a),
                _ => {}
            }
        }
        for (x, dx) in gradients {
            contributions.entry(x).or_default().push(dx);
        }
    }
    let gradients = wanted.iter().map(|v| g.total(&mut contributions, *v).map(|total| g.fit(total, *v))).collect();
    if g.problems.is_empty() { Ok(gradients) } else { Err(g.problems) }
}

/// The values that the wanted ones move, themselves included. Shapes, indices and conditions do not move.
fn active(graph: &Graph, order: &[NodeId], wanted: &[ValueId]) -> Vec<bool> {
    let mut active = vec![false; graph.values()];
    wanted.iter().for_each(|v| active[v.index()] = true);
    for node in order.iter().map(|id| graph.node(*id)) {
        if node.inputs.iter().flatten().any(|v| active[v.index()]) {
            for v in node.outputs.iter().flatten() {
                active[v.index()] = graph.value(*v).dtype.is_none_or(DType::is_float);
            }
        }
    }
    active
}

/// Shape operands that the graph computes at run time, by the shape that they spell. Those that are constants may have sizes
/// that only a Reshape can determine.
fn computed_shapes(graph: &Graph) -> HashMap<String, ValueId> {
    let reshapes = graph.node_ids().map(|id| graph.node(id)).filter(|n| n.is("Reshape") && n.origin != Origin::SOURCE);
    let entry = |n: &Node| Some((shape_text(&graph.shape(n.output(0)?)?), n.input(1)?));
    reshapes.filter_map(entry).filter(|(_, shape)| graph.weight(*shape).is_none()).collect()
}

/// Values whose shape the graph reads at run time, by the symbolic sizes that they have, with the axis.
fn measured_sizes(graph: &Graph) -> HashMap<String, (ValueId, usize)> {
    let mut sizes = HashMap::new();
    let shapes = graph.node_ids().map(|id| graph.node(id)).filter(|n| n.is("Shape") && !is_backbone(&n.origin));
    for value in shapes.filter_map(|node| node.input(0)) {
        for (axis, dim) in graph.shape(value).unwrap_or_default().iter().enumerate() {
            if !matches!(dim, Dim::Value(_)) {
                sizes.entry(dim_text(dim)).or_insert((value, axis));
            }
        }
    }
    sizes
}

/// As [`Backward::after`], for a value of this shape.
pub fn after(b: &Builder, value: ValueId, shape: &[Dim], done: ValueId) -> ValueId {
    let zero = b.i64s(&[0]);
    let size = b.reshape(b.op("Size", &[done], Attributes::none()), &[1]);
    let none = b.shaped(b.op("Slice", &[size, zero, zero], Attributes::none()), &[Dim::Value(0)]);
    let as_it_is = b.i64s(&vec![0; shape.len()]);
    b.reshape_to(value, b.concat(&[as_it_is, none], 0), shape)
}

/// What a node made by [`after`] passes on: the value, and what it waits for.
pub fn waits(graph: &Graph, node: &Node) -> Option<(ValueId, ValueId)> {
    let made = |value: ValueId, op: &str| Some(graph.node(graph.producer_of(value)?.0)).filter(|node| node.is(op));
    let value = node.input(0).filter(|_| node.is("Reshape"))?;
    let shape = made(node.input(1)?, "Concat")?;
    let [Some(_), Some(none)] = shape.inputs[..] else { return None };
    let size = made(made(made(none, "Slice")?.input(0)?, "Reshape")?.input(0)?, "Size")?;
    Some((value, size.input(0)?))
}

/// What a rule returns: a gradient for each operand; `None` for one that has none or is not active.
pub type Contributions = Vec<Option<ValueId>>;

/// True for sizes whose product, as far as they are known, is the size of an axis.
fn row_fits(shape: &[Dim]) -> bool {
    let known = shape.iter().filter_map(|dim| if let Dim::Value(size) = dim { Some(*size) } else { None });
    known.into_iter().try_fold(1_i32, i32::checked_mul).is_some()
}

/// The size of an axis: 1, or that of an axis of another value.
#[derive(Clone, Copy, Debug)]
enum Side {
    One,
    Of(usize),
}

impl Side {
    fn dim(self, of: &[Dim]) -> Dim {
        match self {
            Side::One => Dim::Value(1),
            Side::Of(axis) => of.get(axis).cloned().unwrap_or(Dim::Value(1)),
        }
    }
}

/// What rules work with.
pub struct Backward<'b, 'g> {
    pub b: &'b Builder<'g>,
    options: BackwardOptions,
    shapes: HashMap<String, ValueId>,
    sizes: HashMap<String, (ValueId, usize)>,
    /// Tensors of ones, by their shape.
    ones: HashMap<String, ValueId>,
    problems: Vec<Problem>,
}

impl Backward<'_, '_> {
    /// The sum of what has come in for a value, so far and final.
    fn total(&self, contributions: &mut HashMap<ValueId, Vec<ValueId>>, value: ValueId) -> Option<ValueId> {
        let parts = contributions.remove(&value)?;
        let total = parts.into_iter().reduce(|sum, part| self.plus(sum, part))?;
        contributions.insert(value, vec![total]);
        Some(total)
    }

    /// Where a gradient belongs: of a sum of which one term alone is active, and smaller, to that term. Of the gradients of a
    /// sum that many nodes read, each is summed to the term's shape, and the large ones are never added up.
    fn settled(
        &mut self,
        value: ValueId,
        gradient: ValueId,
        (active, wanted): (&[bool], &[ValueId]),
    ) -> (ValueId, ValueId) {
        let term = self.b.read(|graph| {
            let node = graph.node(graph.producer_of(value)?.0);
            let mut terms =
                node.inputs.iter().flatten().filter(|v| active.get(v.index()).is_some_and(|active| *active));
            let (term, others) = (terms.next()?, terms.next());
            (node.is("Add") && others.is_none() && graph.shape(*term) != graph.shape(value)).then_some(*term)
        });
        match term {
            Some(term) if !wanted.contains(&value) && self.shape(gradient) == self.shape(value) => {
                (term, self.fit(gradient, term))
            }
            _ => (value, gradient),
        }
    }

    /// `a + b`; where one is the negative of something, the difference.
    fn plus(&self, a: ValueId, b: ValueId) -> ValueId {
        let negated = |value| {
            self.b.read(|graph| {
                let node = graph.node(graph.producer_of(value)?.0);
                node.is("Neg").then(|| node.input(0))?
            })
        };
        match (negated(a), negated(b)) {
            (_, Some(b)) => self.b.sub(a, b),
            (Some(a), None) => self.b.sub(b, a),
            (None, None) => self.b.add(a, b),
        }
    }

    // y_1, y_2, ... = x in parts      dx = dy_1, dy_2, ... side by side
    /// The one rule for a node of which several outputs have gradients: the operand of a Split, and its gradient.
    fn joined(
        &mut self,
        contributions: &mut HashMap<ValueId, Vec<ValueId>>,
        split: &Node,
    ) -> Option<(ValueId, ValueId)> {
        let gradients: Vec<(ValueId, Option<ValueId>)> =
            split.outputs.iter().flatten().map(|y| (*y, self.total(contributions, *y))).collect();
        if gradients.iter().all(|(_, gradient)| gradient.is_none()) {
            return None;
        }
        let whole = |(y, gradient): (ValueId, Option<ValueId>)| match gradient {
            Some(gradient) => self.fit(gradient, y),
            None => {
                let zero = self.b.f32(0.0);
                self.fit(zero, y)
            }
        };
        let parts: Vec<ValueId> = gradients.into_iter().map(whole).collect();
        let x = split.input(0)?;
        let shape = self.shape(x);
        let axis = split.attributes.get_int("axis").unwrap_or(0);
        Some((x, self.b.shaped(self.b.concat(&parts, axis), &shape)))
    }

    /// Adds a problem, once.
    fn report(&mut self, problem: Problem) {
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    pub fn shape(&mut self, value: ValueId) -> Vec<Dim> {
        match self.b.shape(value) {
            Some(shape) => shape,
            None => {
                let name = self.b.read(|g| g.value(value).name.clone());
                self.report(Problem::value(name, "it has no shape"));
                Vec::new()
            }
        }
    }

    /// A gradient in its operand's shape: summed over the axes along which the operand was repeated, repeated along
    /// those of which a sum was taken.
    ///
    /// Which axes those are is decided from symbolic shapes, not at run time.
    pub fn fit(&mut self, gradient: ValueId, operand: ValueId) -> ValueId {
        let (from, to) = (self.shape(gradient), self.shape(operand));
        let one = Dim::Value(1);
        let extra = from.len().saturating_sub(to.len());
        let missing = to.len().saturating_sub(from.len());
        let leading: Vec<i64> = (0..extra as i64).collect();
        let mut axes = Vec::new();
        let mut repeat = missing > 0;
        for (axis, (f, t)) in from[extra..].iter().zip(&to[missing..]).enumerate() {
            if f == t {
                continue;
            }
            if *t == one {
                axes.push(axis as i64);
            } else if *f == one {
                repeat = true;
            } else {
                let name = self.b.read(|g| g.value(operand).name.clone());
                let what = format!(
                    "whether it is repeated along axis {axis} cannot be decided: {} against {}",
                    dim_text(t),
                    dim_text(f)
                );
                self.report(Problem::value(name, what));
                return gradient;
            }
        }
        let of_first = matches!((&leading[..], &axes[..]), ([0], []) | ([], [0]));
        let can_multiply = from.len() > 1 && row_fits(&from[1..]) && self.b.dtype(gradient) == Some(DType::F32);
        if of_first && !repeat && can_multiply {
            let summed = self.summed_first(gradient, &from);
            return if from.len() == 2 && extra == 0 { summed } else { self.reshape_like(summed, operand) };
        }
        let mut summed = if extra == 0 { gradient } else { self.b.reduce_sum(gradient, &leading, false) };
        if !axes.is_empty() {
            summed = self.b.reduce_sum(summed, &axes, true);
        }
        if repeat {
            let shape = self.shape_at_run_time(operand);
            summed = self.b.op("Expand", &[summed, shape], Attributes::none());
        }
        self.b.shaped(summed, &to)
    }

    /// The sum over the first axis, `[1, rest]`, as a product with ones: ONNX Runtime's ReduceSum along the first axis takes
    /// ten times as long.
    fn summed_first(&mut self, x: ValueId, shape: &[Dim]) -> ValueId {
        let rest = shape[1..].iter().cloned().reduce(|a, b| a * b).unwrap_or(Dim::Value(1)).simplify();
        let rows = match shape {
            [_, _] => x,
            _ => self.b.shaped(self.b.reshape(x, &[0, -1]), &[shape[0].clone(), rest.clone()]),
        };
        let ones = self.ones(x, &[Side::One, Side::Of(0)]);
        self.b.shaped(self.b.gemm(ones, rows, None, false, false), &[Dim::Value(1), rest])
    }

    /// Ones in f32, each axis of size 1 or as long as one of `like`.
    fn ones(&mut self, like: ValueId, sides: &[Side]) -> ValueId {
        let dims = self.shape(like);
        let shape: Vec<Dim> = sides.iter().map(|side| side.dim(&dims)).collect();
        let key = shape_text(&shape);
        if let Some(ones) = self.ones.get(&key) {
            return *ones;
        }
        let size = |side: &Side| match (side.dim(&dims), side) {
            (Dim::Value(size), _) => self.b.i64s(&[size.into()]),
            (_, Side::Of(axis)) => self.b.shape_slice(like, *axis as i64, *axis as i64 + 1),
            (_, Side::One) => self.b.i64s(&[1]),
        };
        let sizes: Vec<ValueId> = sides.iter().map(size).collect();
        let ones = self.b.op("Expand", &[self.b.f32(1.0), self.b.concat(&sizes, 0)], Attributes::none());
        self.ones.insert(key, self.b.shaped(ones, &shape));
        ones
    }

    /// `value`, which nodes cannot read before `done` is made: its shape is built with none of the numbers of `done`.
    ///
    /// ONNX Runtime runs nodes in an order of its own, and a node that nothing waits for last; what it reads stays in memory.
    pub fn after(&mut self, value: ValueId, done: ValueId) -> ValueId {
        let shape = self.shape(value);
        after(self.b, value, &shape, done)
    }

    /// `gradient` with the shape of `like`, which has as many elements.
    pub fn reshape_like(&mut self, gradient: ValueId, like: ValueId) -> ValueId {
        let dims = self.shape(like);
        let symbols = dims.iter().filter(|d| !matches!(d, Dim::Value(_))).count();
        let shape = match symbols {
            0 | 1 => {
                let size = |d: &Dim| if let Dim::Value(v) = d { i64::from(*v) } else { -1 };
                self.b.i64s(&dims.iter().map(size).collect::<Vec<_>>())
            }
            _ => self.shape_at_run_time(like),
        };
        self.b.reshape_to(gradient, shape, &dims)
    }

    /// The shape of a value, which is not read for it where its sizes are another's too: it would be kept for nothing else.
    fn shape_at_run_time(&mut self, like: ValueId) -> ValueId {
        let dims = self.shape(like);
        if let Some(shape) = self.shapes.get(&shape_text(&dims)) {
            return *shape;
        }
        let size = |dim: &Dim| match dim {
            Dim::Value(size) => Some(self.b.i64s(&[(*size).into()])),
            _ => {
                let (value, axis) = *self.sizes.get(&dim_text(dim))?;
                Some(self.b.shape_slice(value, axis as i64, axis as i64 + 1))
            }
        };
        let symbolic = dims.iter().any(|dim| !matches!(dim, Dim::Value(_)));
        let shape = match dims.iter().map(size).collect::<Option<Vec<ValueId>>>() {
            Some(sizes) if symbolic => self.b.concat(&sizes, 0),
            _ => return self.b.shape_of(like),
        };
        self.shapes.insert(shape_text(&dims), shape);
        shape
    }
}
