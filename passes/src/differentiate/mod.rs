//! Reverse-mode differentiation over the graph.
//!
//! Only nodes on a path from a trainable parameter to the loss get a gradient (activity analysis). Each operator has
//! one rule, in [`RULES`]. Operators without a rule are reported all at once.
//!
//! Ensures: every parameter that the loss depends on has its gradient; one that it does not depend on has zeros.

mod rules;

use std::collections::{BTreeSet, HashMap};

use lstc_graph::{Attributes, Builder, DType, Dim, Graph, Node, NodeId, Origin, ValueId, Weight, dim_text, shape_text};

pub use rules::RULES;

use crate::module::Module;
use crate::pipeline::Pass;

pub struct Differentiate;

impl Pass for Differentiate {
    fn name(&self) -> &'static str {
        "differentiate"
    }

    fn run(&self, module: &mut Module) -> Result<(), Vec<String>> {
        let seed = module.seed.expect("the loss was emitted");
        let wanted: Vec<ValueId> = module.parameters.iter().map(|p| p.value).collect();
        let gradients = gradients(&mut module.graph, seed, &wanted, Origin::pass("differentiate"))?;
        let b = Builder::new(&mut module.graph, Origin::pass("differentiate"));
        for (parameter, gradient) in module.parameters.iter_mut().zip(gradients) {
            let gradient = gradient.unwrap_or_else(|| {
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
    origin: Origin,
) -> Result<Vec<Option<ValueId>>, Vec<String>> {
    let order = graph.order().map_err(|id| vec![format!("`{}` is part of a cycle", graph.node(id).name)])?;
    let active = active(graph, &order, wanted);
    let behind = graph.ancestors([seed]);
    let on_path =
        |id: &NodeId| behind.contains(id) && graph.node(*id).outputs.iter().flatten().any(|v| active[v.index()]);
    let path: Vec<NodeId> = order.into_iter().filter(on_path).collect();

    let missing: BTreeSet<String> = path
        .iter()
        .map(|id| graph.node(*id))
        .filter(|n| !n.is_default_domain() || rules::rule(&n.op).is_none() && n.op != "Split")
        .map(|n| format!("`{}`: {} has no gradient rule", n.name, n.op))
        .collect();
    if !missing.is_empty() {
        return Err(missing.into_iter().collect());
    }

    let shapes = computed_shapes(graph);
    let b = Builder::new(graph, origin);
    let mut g = Backward { b: &b, shapes, problems: Vec::new() };
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
        let rule = rules::rule(&node.op).expect("missing rules were reported");
        let dy =
            if rules::BROADCASTS.contains(&node.op.as_str()) { dy } else { g.fit(dy, node.output(0).unwrap_or(dy)) };
        for (input, gradient) in node.inputs.iter().zip(rule(&mut g, &node, dy, &active)) {
            if let (Some(input), Some(gradient)) = (input, gradient)
                && active[input.index()]
            {
                contributions.entry(*input).or_default().push(gradient);
            }
        }
    }
    let gradients = wanted.iter().map(|v| g.total(&mut contributions, *v).map(|total| g.fit(total, *v))).collect();
    if g.problems.is_empty() { Ok(gradients) } else { Err(g.problems) }
}

/// The values that the wanted ones move, themselves included. Shapes, indices and conditions do not move.
fn active(graph: &Graph, order: &[NodeId], wanted: &[ValueId]) -> Vec<bool> {
    let mut active = vec![false; graph.value_ids().count()];
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

/// Shape operands that the graph computes at run time, by the shape that they spell.
fn computed_shapes(graph: &Graph) -> HashMap<String, ValueId> {
    let reshapes = graph.node_ids().map(|id| graph.node(id)).filter(|n| n.is("Reshape") && n.origin != Origin::SOURCE);
    let entry = |n: &Node| Some((shape_text(&graph.shape(n.output(0)?)?), n.input(1)?));
    reshapes.filter_map(entry).collect()
}

/// What a rule returns: a gradient for each operand; `None` for one that has none or is not active.
pub type Contributions = Vec<Option<ValueId>>;

/// What rules work with.
pub struct Backward<'b, 'g> {
    pub b: &'b Builder<'g>,
    shapes: HashMap<String, ValueId>,
    problems: Vec<String>,
}

impl Backward<'_, '_> {
    /// The sum of what has come in for a value, so far and for good.
    fn total(&self, contributions: &mut HashMap<ValueId, Vec<ValueId>>, value: ValueId) -> Option<ValueId> {
        let parts = contributions.remove(&value)?;
        let total = match parts[..] {
            [one] => one,
            [a, b] => self.b.add(a, b),
            _ => self.b.op("Sum", &parts, Attributes::none()),
        };
        contributions.insert(value, vec![total]);
        Some(total)
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
    fn report(&mut self, problem: String) {
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    pub fn shape(&mut self, value: ValueId) -> Vec<Dim> {
        match self.b.shape(value) {
            Some(shape) => shape,
            None => {
                let name = self.b.read(|g| g.value(value).name.clone());
                self.report(format!("`{name}` has no shape"));
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
        let mut summed = if extra == 0 { gradient } else { self.b.reduce_sum(gradient, &leading, false) };
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
                self.report(format!(
                    "whether `{name}` is repeated along axis {axis} cannot be decided: {} against {}",
                    dim_text(t),
                    dim_text(f)
                ));
                return gradient;
            }
        }
        if !axes.is_empty() {
            summed = self.b.reduce_sum(summed, &axes, true);
        }
        if repeat {
            let shape = self.b.shape_of(operand);
            summed = self.b.op("Expand", &[summed, shape], Attributes::none());
        }
        self.b.shaped(summed, &to)
    }

    /// `gradient` with the shape of `like`, which has as many elements.
    pub fn reshape_like(&mut self, gradient: ValueId, like: ValueId) -> ValueId {
        let dims = self.shape(like);
        let symbols = dims.iter().filter(|d| !matches!(d, Dim::Value(_))).count();
        let shape = match (symbols, self.shapes.get(&shape_text(&dims))) {
            (0 | 1, _) => {
                let size = |d: &Dim| if let Dim::Value(v) = d { i64::from(*v) } else { -1 };
                self.b.i64s(&dims.iter().map(size).collect::<Vec<_>>())
            }
            (_, Some(shape)) => *shape,
            (_, None) => self.b.shape_of(like),
        };
        self.b.reshape_to(gradient, shape, &dims)
    }
}
