//! What is computed of flattened tokens or heads, restated on the tokens and heads themselves.
//!
//! ```text
//! reshape(f(reshape(x, [batch * length, width])), [batch, length, ..])    f works row by row       ->  f(x)
//! reshape(reshape(a, [batch * heads, ..]) reshape(b, ..), [batch, heads, ..])                      ->  a b
//! ```
//!
//! A reshape moves no element, so one that keeps the last axis only renumbers rows, and one that keeps the last two renumbers
//! matrices. What works on each row, or on each matrix, alone gives the same before and after: a value computed of
//! flattened operands is *lifted*, restated on what was flattened, up to the reshape that ends it.
//!
//! **Invariant:** axes are kept where inference proves them equal, never by name or position alone.

use std::collections::{HashMap, HashSet};

use lstc_graph::{Attribute, Attributes, Builder, DType, Dim, Graph, MICROSOFT, Node, NodeId, ValueId};

use super::{Fused, RESTATED, values};

const RULE: &str = "the same before tokens or heads are flattened";

/// How a flattened value is restated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// It is this value, flattened.
    Flat(ValueId),
    /// Its node's operator on its operands before they were flattened, along the last axis where it has one.
    Same,
    /// Its node swaps the last two axes.
    Swap,
}

/// A value that is computed of flattened operands.
struct Lift {
    how: How,
    node: NodeId,
    /// The shape before anything was flattened.
    shape: Vec<Dim>,
    /// How many of the last axes are as they were.
    kept: usize,
}

/// The lifted values of a graph, and the reshapes that end them.
#[derive(Default)]
pub(super) struct Lifts {
    values: HashMap<ValueId, Lift>,
    /// In the order of the graph.
    order: Vec<ValueId>,
    ends: Vec<NodeId>,
}

/// Everything in a graph that can be lifted.
pub(super) fn lifts(graph: &Graph) -> Lifts {
    let mut lifts = Lifts::default();
    for id in graph.order().unwrap_or_default() {
        let node = graph.node(id);
        let Some(output) = node.output(0).filter(|_| node.outputs.len() == 1) else { continue };
        if let Some((how, shape, kept)) = lifts.lifted(graph, node, output) {
            lifts.values.insert(output, Lift { how, node: id, shape, kept });
            lifts.order.push(output);
        } else if lifts.ends_at(graph, node) {
            lifts.ends.push(id);
        }
    }
    lifts
}

impl Lifts {
    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    fn get(&self, value: Option<ValueId>) -> Option<&Lift> {
        self.values.get(&value?)
    }

    /// How the output of a node can be lifted, its shape before anything was flattened, and how many axes are as they were.
    fn lifted(&self, graph: &Graph, node: &Node, output: ValueId) -> Option<(How, Vec<Dim>, usize)> {
        let (x, flat) = (node.input(0)?, graph.shape(output)?);
        let lift = self.get(Some(x));
        if is_reshape(node) {
            let whole = lift.map_or_else(|| graph.shape(x), |lift| Some(lift.shape.clone()))?;
            let is_float = graph.value(x).dtype.is_some_and(DType::is_float);
            let kept = kept(&flat, &whole);
            // A lifted value in as many axes as before ends what was flattened.
            let axes = whole.len() - usize::from(lift.is_some());
            let flattens = is_float && whole.len() >= 3 && flat.len() <= axes && flat != whole && kept > 0;
            return flattens.then_some((How::Flat(x), whole, kept));
        }
        let rank = flat.len() as i64;
        let axis_is_last = |default: i64| {
            let axis = node.attributes.get_int("axis").unwrap_or(default);
            axis == -1 || axis == rank - 1
        };
        if node.domain == MICROSOFT && node.op == "MatMulNBits" {
            return Some((How::Same, with_last(lift?, &flat), lift?.kept));
        }
        if !node.is_default_domain() {
            return None;
        }
        match node.op.as_str() {
            "MatMul" => self.product(graph, node, &flat),
            "Transpose" => {
                let mut swapped: Vec<i64> = (0..rank).collect();
                let lift = lift.filter(|lift| rank >= 2 && lift.kept >= 2)?;
                swapped.swap(flat.len() - 1, flat.len() - 2);
                let mut shape = lift.shape.clone();
                let last = shape.len() - 1;
                shape.swap(last, last - 1);
                (node.attributes.get_ints("perm") == Some(&swapped)).then_some((How::Swap, shape, 2))
            }
            "Softmax" | "LogSoftmax" if axis_is_last(if graph.opset() < 13 { 1 } else { -1 }) => self.same(lift?),
            "SimplifiedLayerNormalization" | "RMSNormalization" if axis_is_last(-1) => self.same(lift?),
            "ReduceMean" | "ReduceSum" | "ReduceMax" => {
                let axes = node.attributes.get_ints("axes").map(<[i64]>::to_vec);
                let axes = axes.or_else(|| graph.weight(node.input(1)?)?.to_i64())?;
                let keeps = node.attributes.get_int("keepdims").unwrap_or(1) != 0;
                let lift = lift.filter(|_| keeps && axes == [-1])?;
                Some((How::Same, with_last(lift, &flat), lift.kept))
            }
            "QuantizeLinear" | "DequantizeLinear" => {
                let one_scale = graph.weight(node.input(1)?).is_some_and(|scale| scale.elements() == 1);
                self.same(lift.filter(|_| one_scale)?)
            }
            "Dropout" if node.input(2).is_none() => self.same(lift?),
            "Abs" | "Cast" | "Erf" | "Exp" | "Gelu" | "Identity" | "Neg" | "Reciprocal" | "Relu" | "Sigmoid"
            | "Sqrt" | "Tanh" => self.same(lift?),
            "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Min" | "Max" if node.inputs.len() == 2 => {
                self.by_elements(graph, node, &flat)
            }
            _ => None,
        }
    }

    fn same(&self, lift: &Lift) -> Option<(How, Vec<Dim>, usize)> {
        Some((How::Same, lift.shape.clone(), lift.kept))
    }

    /// A product of each row with a constant matrix, or of matrices whose batch axes were flattened alike.
    fn product(&self, graph: &Graph, node: &Node, flat: &[Dim]) -> Option<(How, Vec<Dim>, usize)> {
        let (a, y) = (self.get(node.input(0))?, node.input(1)?);
        let Some(b) = self.get(Some(y)) else {
            let is_matrix = graph.shape(y).is_some_and(|shape| shape.len() == 2);
            return (is_matrix && flat.len() >= 2).then(|| (How::Same, with_last(a, flat), 1));
        };
        let (batch_a, batch_b) = (&a.shape[..a.shape.len() - 2], &b.shape[..b.shape.len() - 2]);
        let ranks = [node.input(0)?, y].map(|v| graph.shape(v).map(|s| s.len()));
        let alike = batch_a == batch_b && ranks[0] == ranks[1] && ranks[0].is_some_and(|rank| rank >= 3);
        (alike && a.kept >= 2 && b.kept >= 2).then(|| (How::Same, with_last(a, flat), 2))
    }

    /// An operator on each pair of elements: of operands that were flattened alike, or one of them with constants that are the
    /// same for all rows.
    fn by_elements(&self, graph: &Graph, node: &Node, flat: &[Dim]) -> Option<(How, Vec<Dim>, usize)> {
        let (a, b) = (node.input(0)?, node.input(1)?);
        let same_for_all = |v: ValueId| {
            graph.weight(v).is_some_and(|w| w.elements() == 1 || w.dims().len() == 1)
                || graph.shape(v).is_some_and(|shape| shape.is_empty())
        };
        let lift = match (self.get(Some(a)), self.get(Some(b))) {
            (Some(lift), None) if same_for_all(b) => lift,
            (None, Some(lift)) if same_for_all(a) => lift,
            (Some(one), Some(other)) => {
                let rows = |lift: &Lift| lift.shape[..lift.shape.len() - 1].to_vec();
                let flat_rows = |v: ValueId| graph.shape(v).map(|mut shape| (shape.pop(), shape).1);
                let alike = rows(one) == rows(other) && flat_rows(a).is_some() && flat_rows(a) == flat_rows(b);
                alike.then_some(if one.kept <= other.kept { one } else { other })?
            }
            _ => return None,
        };
        Some((How::Same, with_last(lift, flat), lift.kept))
    }

    /// True for a reshape of a lifted value that gives each element a place which does not depend on what was flattened.
    fn ends_at(&self, graph: &Graph, node: &Node) -> bool {
        if !is_reshape(node) || self.get(node.input(0)).is_none() {
            return false;
        }
        if !node.is("Reshape") {
            return self.is_whole(graph, node);
        }
        // A 0 copies an axis of what is reshaped.
        let written = node.input(1).and_then(|shape| graph.value(shape).contents());
        let copies_none = written.is_some_and(|sizes| !sizes.contains(&Dim::Value(0)));
        copies_none || self.is_whole(graph, node)
    }

    /// True where a node's output has the shape from before anything was flattened.
    fn is_whole(&self, graph: &Graph, node: &Node) -> bool {
        let shape = node.output(0).and_then(|v| graph.shape(v));
        self.get(node.input(0)).is_some_and(|lift| shape.is_some_and(|shape| shape == lift.shape))
    }

    /// Restates what the ends need, and reports what became of each end.
    pub(super) fn apply(&self, view: &mut Graph) -> Vec<Fused> {
        let mut needed: HashSet<ValueId> = self.ends.iter().filter_map(|id| view.node(*id).input(0)).collect();
        for value in self.order.iter().rev().filter(|v| self.values.contains_key(v)) {
            if needed.contains(value) {
                needed.extend(view.node(self.values[value].node).inputs.iter().flatten());
            }
        }
        let mut places: HashMap<ValueId, ValueId> = HashMap::new();
        for value in self.order.iter().filter(|v| needed.contains(v)) {
            let place = self.restated(view, &self.values[value], &places);
            places.insert(*value, place);
        }
        self.ends.iter().map(|id| self.ended(view, *id, &places)).collect()
    }

    fn restated(&self, view: &mut Graph, lift: &Lift, places: &HashMap<ValueId, ValueId>) -> ValueId {
        if let How::Flat(x) = lift.how {
            return places.get(&x).copied().unwrap_or(x);
        }
        let node = view.node(lift.node).clone();
        let operands: Vec<ValueId> =
            node.inputs.iter().flatten().map(|v| places.get(v).copied().unwrap_or(*v)).collect();
        let b = Builder::new(view, RESTATED);
        b.scope(&node.name);
        if lift.how == How::Swap {
            let mut perm: Vec<i64> = (0..lift.shape.len() as i64).collect();
            perm.swap(lift.shape.len() - 1, lift.shape.len() - 2);
            return b.transpose(operands[0], &perm);
        }
        let mut attributes: Attributes = node.attributes.clone();
        if attributes.get_int("axis").is_some() || node.is("Softmax") || node.is("LogSoftmax") {
            attributes.insert("axis", Attribute::Int(-1));
        }
        let made = match node.domain.as_str() {
            MICROSOFT => b.microsoft(&node.op, &operands, attributes),
            _ => b.unshared(&node.op, &operands, attributes, 1)[0],
        };
        if b.shape(made).is_none() { b.shaped(made, &lift.shape) } else { made }
    }

    /// Makes the output of an end from what was lifted.
    fn ended(&self, view: &mut Graph, end: NodeId, places: &HashMap<ValueId, ValueId>) -> Fused {
        let node = view.node(end).clone();
        let first = values(view);
        let whole = self.is_whole(view, &node);
        let b = Builder::new(view, RESTATED);
        b.scope(&node.name);
        let (x, old) = (node.input(0), node.output(0));
        if let (Some(x), Some(old)) = (x.and_then(|x| places.get(&x).copied()), old) {
            let operands: Vec<ValueId> = match node.input(1).filter(|_| !whole) {
                Some(shape) => vec![x, shape],
                None => vec![x],
            };
            let (op, attributes) =
                if whole { ("Identity", Attributes::none()) } else { ("Reshape", node.attributes.clone()) };
            let made = b.unshared(op, &operands, attributes, 1)[0];
            if let Some((by, _)) = view.producer_of(made) {
                view.remake(old, by);
            }
        }
        let all = values(view);
        Fused { node, rule: RULE, values: Ok(first..all) }
    }
}

fn is_reshape(node: &Node) -> bool {
    node.is("Reshape") || node.is("Flatten")
}

/// How many of the last axes of a shape are those of another, of at most all but the first.
fn kept(flat: &[Dim], whole: &[Dim]) -> usize {
    let same = flat.iter().rev().zip(whole.iter().rev()).take_while(|(a, b)| a == b).count();
    same.min(flat.len().saturating_sub(1))
}

/// The lifted shape with the last size of a flat one.
fn with_last(lift: &Lift, flat: &[Dim]) -> Vec<Dim> {
    let mut shape = lift.shape.clone();
    if let (Some(last), Some(new)) = (shape.last_mut(), flat.last()) {
        last.clone_from(new);
    }
    shape
}

#[cfg(test)]
mod tests {
    use lstc_graph::parse;

    use super::*;

    /// The operators that `y` is computed by, once what can be lifted is.
    fn lifted(inputs: &str, nodes: &str) -> Vec<String> {
        let text = format!("({inputs}) {{ {nodes} }} -> y");
        let mut graph = parse(&text, 18).unwrap_or_else(|e| panic!("{text}: {e:?}"));
        lifts(&graph).apply(&mut graph);
        graph.remove_dead();
        graph.order().expect("no cycle").iter().map(|id| graph.node(*id).op.clone()).collect()
    }

    const X: &str = "x: f32[batch, length, 4], w: f32[4, 6]";
    const FLAT: &str = "rows = const i64[2] {-1, 4}  flat = Reshape(x, rows)";
    const WHOLE: &str = "sizes = Shape<end=2>(x)  last = const i64[1] {6}  shape = Concat<axis=0>(sizes, last)";

    #[test]
    fn a_product_of_flattened_tokens_is_one_of_the_tokens() {
        let nodes = format!("{FLAT}  {WHOLE}  p = MatMul(flat, w)  y = Reshape(p, shape)");
        assert_eq!(lifted(X, &nodes), ["MatMul", "Identity"]);
    }

    #[test]
    fn what_works_on_each_row_alone_may_stand_between() {
        let nodes = format!("{FLAT}  {WHOLE}  p = MatMul(flat, w)  r = Relu(p)  s = Softmax(r)  y = Reshape(s, shape)");
        assert_eq!(lifted(X, &nodes), ["MatMul", "Relu", "Softmax", "Identity"]);
    }

    #[test]
    fn heads_may_be_split_off_flattened_tokens() {
        let heads = "tail = const i64[2] {2, 3}  split = Concat<axis=0>(sizes, tail)";
        let nodes = format!("{FLAT}  {WHOLE}  {heads}  p = MatMul(flat, w)  y = Reshape(p, split)");
        assert_eq!(lifted(X, &nodes), ["Shape", "Concat", "MatMul", "Reshape"]);
    }

    #[test]
    fn products_of_flattened_heads_are_products_of_heads() {
        let inputs = "a: f32[batch, 2, length, 3], b: f32[batch, 2, length, 3]";
        let shapes = "n = Shape<start=2, end=3>(a)  less = const i64[1] {-1}  three = const i64[1] {3}  \
                      flat = Concat<axis=0>(less, n, three)  ab = Shape<end=3>(a)  whole = Concat<axis=0>(ab, n)";
        let nodes = "p = Reshape(a, flat)  q = Reshape(b, flat)  t = Transpose<perm=[0, 2, 1]>(q)  \
                     s = MatMul(p, t)  y = Reshape(s, whole)";
        assert_eq!(lifted(inputs, &format!("{shapes}  {nodes}")), ["Transpose", "MatMul", "Identity"]);
    }

    #[test]
    fn rows_that_are_mixed_stay_flat() {
        let flat = "rows = const i64[2] {-1, 2}  flat = Reshape(x, rows)";
        let nodes = format!("{flat}  {WHOLE}  p = MatMul(flat, w)  y = Reshape(p, shape)");
        let found = lifted("x: f32[batch, length, 4], w: f32[2, 6]", &nodes);
        assert!(found.contains(&"Reshape".to_owned()) && !found.contains(&"Identity".to_owned()), "{found:?}");
    }

    #[test]
    fn what_works_across_rows_stays_flat() {
        for across in ["Softmax<axis=0>(p)", "CumSum(p, zero)", "Transpose<perm=[1, 0]>(p)"] {
            let nodes = format!(
                "{FLAT}  {WHOLE}  zero = const i64[] {{0}}  p = MatMul(flat, w)  s = {across}  y = Reshape(s, shape)"
            );
            let found = lifted(X, &nodes);
            assert!(!found.contains(&"Identity".to_owned()), "{across}: {found:?}");
        }
    }

    #[test]
    fn products_of_matrices_that_were_flattened_differently_stay_flat() {
        let inputs = "a: f32[batch, 2, length, 3], b: f32[2, batch, 3, length]";
        let shapes = "n = Shape<start=2, end=3>(a)  less = const i64[1] {-1}  three = const i64[1] {3}  \
                      p = Concat<axis=0>(less, n, three)  q = Concat<axis=0>(less, three, n)  ab = Shape<end=3>(a)  \
                      whole = Concat<axis=0>(ab, n)";
        let nodes = "u = Reshape(a, p)  v = Reshape(b, q)  s = MatMul(u, v)  y = Reshape(s, whole)";
        let found = lifted(inputs, &format!("{shapes}  {nodes}"));
        assert!(!found.contains(&"Identity".to_owned()), "{found:?}");
    }
}
