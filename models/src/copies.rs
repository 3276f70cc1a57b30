//! What passes its operand on: copies, quantisation that is undone at once, guards against overflow.

use lstc_graph::{DType, Dim, Node, NodeId, ValueId, Weight, fenced};

use crate::matcher::{MAX_ARITHMETIC, Matcher};

/// Nodes in a row that move or copy a value, before which its maker is looked for.
const MAX_MOVES: usize = 16;

/// Guards against overflow in a row that are looked through: more than any exporter writes.
const MAX_GUARDS: usize = 8;

/// The side of zero on which a bound lies.
#[derive(Clone, Copy)]
enum Side {
    Below,
    Above,
}

impl Side {
    fn opposite(self) -> Side {
        match self {
            Side::Below => Side::Above,
            Side::Above => Side::Below,
        }
    }
}

/// One step from a copy to what it is a copy of.
pub struct Copied {
    pub from: ValueId,
    pub by: NodeId,
    /// The node before it, where the two quantise and dequantise.
    pub quantised_by: Option<NodeId>,
}

impl Matcher<'_> {
    /// The value that `value` is a copy of: before Identity, Dropout, reshapes that change nothing, casts between float
    /// types, quantisation that is undone at once, and guards against overflow.
    pub fn resolve(&self, value: ValueId) -> ValueId {
        let mut value = self.settle(value);
        for _ in 0..MAX_GUARDS {
            let Some((nodes, inner)) = self.guarded(value) else { break };
            nodes.into_iter().for_each(|node| self.claim(node));
            value = self.settle(inner);
        }
        value
    }

    /// As [`Matcher::resolve`], but no further than a guard: what it lets through is finite.
    pub fn settle(&self, value: ValueId) -> ValueId {
        self.settle_with(value, |copy| self.claim(copy))
    }

    /// As [`Matcher::settle`], with something done to each copying node.
    pub fn settle_with(&self, value: ValueId, copied: impl Fn(NodeId)) -> ValueId {
        let mut value = value;
        while let Some(Copied { from, by, quantised_by }) = self.copied(value) {
            copied(by);
            quantised_by.into_iter().for_each(&copied);
            value = from;
        }
        value
    }

    /// Of a value that is a copy of another, that other and the nodes between them.
    pub fn copied(&self, value: ValueId) -> Option<Copied> {
        let (by, 0) = self.graph.producer_of(value)? else { return None };
        let node = self.graph.node(by);
        let from = node.input(0)?;
        if self.copies(node, value) {
            return Some(Copied { from, by, quantised_by: None });
        }
        let (quantise, _) = self.graph.producer_of(node.is("DequantizeLinear").then_some(from)?)?;
        let quantiser = self.graph.node(quantise);
        let from = quantiser.input(0).filter(|_| self.undoes(node, quantiser))?;
        Some(Copied { from, by, quantised_by: Some(quantise) })
    }

    /// True for a node that gives its first operand as its output `value`.
    fn copies(&self, node: &Node, value: ValueId) -> bool {
        let dtype = |v: ValueId| self.graph.value(v).dtype;
        let same_type = || {
            let is_float = |v: ValueId| dtype(v).is_some_and(DType::is_float);
            node.input(0).is_some_and(|x| dtype(x) == dtype(value) || is_float(x) && is_float(value))
        };
        // Without its third input, `training_mode`, Dropout copies.
        let same_shape = || {
            let shape = self.graph.shape(value);
            shape.is_some() && node.input(0).and_then(|x| self.graph.shape(x)) == shape
        };
        node.is("Identity")
            || node.is("Dropout") && node.input(2).is_none()
            || (node.is("Cast") || node.is("CastLike")) && same_type()
            || (node.is("Reshape") || node.is("Expand") || node.is("Flatten")) && same_shape()
            || node.is("Concat") && node.inputs.len() == 1
            || node.is("Slice") && self.keeps_all(node)
    }

    /// True for a dequantisation by the scale and the zero point of the quantisation before it, between which no sign is
    /// lost: a zero point at the end of its type makes a ReLU of the two.
    fn undoes(&self, dequantise: &Node, quantise: &Node) -> bool {
        let constant = |node: &Node, slot: usize| {
            let mut value = node.input(slot)?;
            while let Some((id, 0)) = self.graph.producer_of(value)
                && self.graph.node(id).is("Identity")
            {
                value = self.graph.node(id).input(0)?;
            }
            self.graph.weight(value)
        };
        let both = |slot: usize| (constant(dequantise, slot), constant(quantise, slot));
        let is_zero = |zero: Option<&Weight>| zero.is_none_or(|w| w.bytes().iter().all(|b| *b == 0));
        let same_scale = matches!(both(1), (Some(a), Some(b)) if a == b);
        let same_zero = match both(2) {
            (Some(a), Some(b)) => a == b,
            (a, b) => {
                dequantise.input(2).is_some() == a.is_some()
                    && quantise.input(2).is_some() == b.is_some()
                    && is_zero(a)
                    && is_zero(b)
            }
        };
        let along = |name: &str| dequantise.attributes.get_int(name) == quantise.attributes.get_int(name);
        let of_one_scale = || constant(quantise, 1).is_some_and(|scale| scale.elements() == 1);
        let two_sided = || constant(quantise, 2).is_some_and(|zero| !reaches_an_end(zero));
        quantise.is("QuantizeLinear")
            && same_scale
            && same_zero
            && (two_sided() || quantise.input(0).is_some_and(|x| self.is_no_negative(x)))
            && (of_one_scale() || along("axis") && along("block_size"))
    }

    /// True for a value whose maker never gives a negative number, before what moves or copies it.
    fn is_no_negative(&self, value: ValueId) -> bool {
        const PASSES: [&str; 8] =
            ["Identity", "Cast", "Dropout", "Reshape", "Transpose", "Squeeze", "DequantizeLinear", "QuantizeLinear"];
        let mut value = value;
        for _ in 0..MAX_MOVES {
            let Some((id, 0)) = self.graph.producer_of(value) else { return false };
            let node = self.graph.node(id);
            match node.input(0) {
                Some(x) if PASSES.iter().any(|op| node.is(op)) => value = x,
                _ => return ["Relu", "Softmax", "Sigmoid"].iter().any(|op| node.is(op)),
            }
        }
        false
    }

    /// True for a slice from the first element to the last, one axis or several.
    fn keeps_all(&self, node: &Node) -> bool {
        // `Some(None)` for an omitted operand, `None` for an unknown one.
        let contents = |slot: usize, name: &str| match node.input(slot) {
            Some(operand) => self.graph.value(operand).contents().map(Some),
            None => Some(node.attributes.get_ints(name).map(|v| v.iter().map(|v| saturated(*v)).collect())),
        };
        let shape = node.input(0).and_then(|x| self.graph.shape(x));
        let (Some(shape), Some(Some(starts)), Some(Some(ends)), Some(axes), Some(steps)) =
            (shape, contents(1, "starts"), contents(2, "ends"), contents(3, "axes"), contents(4, "steps"))
        else {
            return false;
        };
        let axes: Vec<Dim> = axes.unwrap_or_else(|| (0..starts.len() as i32).map(Dim::Value).collect());
        let steps = steps.unwrap_or_default();
        let size = |axis: &Dim| match axis {
            Dim::Value(axis) => {
                let rank = shape.len() as i32;
                shape.get(usize::try_from(if *axis < 0 { axis.checked_add(rank)? } else { *axis }).ok()?)
            }
            _ => None,
        };
        let whole = |((start, end), axis): ((&Dim, &Dim), &Dim)| {
            size(axis).is_some_and(|size| {
                let from_end = || fenced(|| (start.clone() + size.clone()).simplify());
                let from_first = *start == Dim::Value(0) || from_end() == Some(Dim::Value(0));
                from_first && (*end == Dim::Value(i32::MAX) || end == size)
            })
        };
        steps.iter().all(|s| *s == Dim::Value(1))
            && starts.len() == ends.len()
            && starts.len() == axes.len()
            && starts.iter().zip(&ends).zip(&axes).all(whole)
    }

    /// `clamp(x, -c, c)` with a bound that only an overflow of f16 reaches, as transformers guards its residual streams:
    /// the nodes of the guard, and x.
    fn guarded(&self, value: ValueId) -> Option<(Vec<NodeId>, ValueId)> {
        let (id, _) = self.graph.producer_of(value)?;
        let node = self.graph.node(id);
        let bounds: Vec<(ValueId, Side)> = match node.op.as_str() {
            "Clip" if node.is("Clip") => vec![(node.input(1)?, Side::Below), (node.input(2)?, Side::Above)],
            "Min" if node.is("Min") && node.inputs.len() == 2 => vec![(node.input(1)?, Side::Above)],
            "Max" if node.is("Max") && node.inputs.len() == 2 => vec![(node.input(1)?, Side::Below)],
            _ => return None,
        };
        if !bounds.iter().all(|(bound, side)| self.is_far(*bound, *side, MAX_ARITHMETIC)) {
            return None;
        }
        let bounds = bounds.into_iter().map(|(bound, _)| bound);
        // The bound itself may depend on whether x is infinite.
        let x = node.input(0)?;
        let stop = self.settle_with(x, |_| ());
        let mut nodes: Vec<NodeId> = self.graph.ancestors_until(bounds, |v| v == x || v == stop).into_iter().collect();
        if !nodes.is_empty() {
            let made_before = self.graph.ancestors([stop]);
            nodes.retain(|n| !made_before.contains(n));
        }
        nodes.push(id);
        Some((nodes, x))
    }

    /// True for a scalar further from zero, on this side, than any activation that is not close to overflowing f16.
    fn is_far(&self, bound: ValueId, side: Side, depth: usize) -> bool {
        const FAR: f64 = 6e4;
        if let Some(weight) = self.graph.weight(bound) {
            return weight.as_scalar().is_some_and(|v| match side {
                Side::Below => v <= -FAR,
                Side::Above => v >= FAR,
            });
        }
        let Some((id, _)) = self.graph.producer_of(bound).filter(|_| depth > 0) else { return false };
        let node = self.graph.node(id);
        let far = |slot: usize, side: Side| node.input(slot).is_some_and(|v| self.is_far(v, side, depth - 1));
        let is_float = self.graph.value(bound).dtype.is_some_and(DType::is_float);
        match node.op.as_str() {
            _ if !node.is_default_domain() || !is_float => false,
            "Cast" | "CastLike" | "Identity" => far(0, side),
            "Neg" => far(0, side.opposite()),
            "Where" => far(1, side) && far(2, side),
            _ => false,
        }
    }
}

/// An integer as inference knows it.
fn saturated(value: i64) -> Dim {
    Dim::Value(value.clamp(i32::MIN.into(), i32::MAX.into()) as i32)
}

/// True where any zero point is the least or the greatest number of its type.
fn reaches_an_end(zeros: &Weight) -> bool {
    let ends = match zeros.dtype() {
        DType::I8 => [i64::from(i8::MIN), i64::from(i8::MAX)],
        DType::U8 => [0, u8::MAX.into()],
        DType::I16 => [i16::MIN.into(), i16::MAX.into()],
        DType::U16 => [0, u16::MAX.into()],
        _ => return false,
    };
    zeros.to_i64().is_none_or(|zeros| zeros.iter().any(|zero| ends.contains(zero)))
}
