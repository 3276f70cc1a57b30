//! Steps that all patterns are built from.

use std::cell::RefCell;
use std::collections::HashSet;

use lstc_graph::{DType, Graph, Node, NodeId, ValueId, Weight, an};

use crate::anatomy::Norm;
use crate::trace::{Found, Record, Remark};

/// Nodes of the largest product tree that is looked through.
const MAX_PRODUCT: usize = 32;

/// Why a pattern does not match, and at which node.
#[derive(Clone, Debug)]
pub struct Mismatch {
    /// The node's name.
    pub node: String,
    pub reason: String,
    pub remark: Option<Remark>,
}

impl Mismatch {
    /// At a node or value of this name.
    pub fn at(node: impl Into<String>, reason: impl Into<String>) -> Mismatch {
        Mismatch { node: node.into(), reason: reason.into(), remark: None }
    }

    /// The reason and the remark.
    pub fn text(&self) -> String {
        match self.remark {
            Some(remark) => format!("{}: {remark}", self.reason),
            None => self.reason.clone(),
        }
    }
}

/// Nesting of arithmetic on constants that is followed.
pub(crate) const MAX_ARITHMETIC: usize = 6;

pub type Match<T> = Result<T, Mismatch>;

/// Looks at a graph, and remembers the nodes of the patterns that matched.
pub struct Matcher<'g> {
    pub graph: &'g Graph,
    /// Nodes, each with the attempt that claimed it, where attempts are recorded.
    trail: RefCell<Vec<(NodeId, Option<u32>)>>,
    record: Option<Record>,
    /// The relative error that a constant may have.
    precision: f64,
}

impl<'g> Matcher<'g> {
    pub fn new(graph: &'g Graph) -> Matcher<'g> {
        Matcher { graph, trail: RefCell::default(), record: None, precision: precision(graph) }
    }

    /// As [`Matcher::new`], and records what is tried.
    pub fn recording(graph: &'g Graph) -> Matcher<'g> {
        Matcher { record: Some(Record::default()), ..Matcher::new(graph) }
    }

    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    pub fn into_record(self) -> Option<Record> {
        self.record
    }

    /// Tries a pattern by name at `value`; the outcome is recorded if asked for.
    pub fn trying<T: Found>(&self, pattern: &'static str, value: ValueId, look: impl FnOnce() -> Match<T>) -> Match<T> {
        let Some(record) = &self.record else { return look() };
        let node = self.peek(|| self.node(value)).map(|(id, _)| id);
        let Some(begun) = record.begin(pattern, value, node) else { return look() };
        let mark = self.trail.borrow().len();
        let result = look();
        let trail = self.trail.borrow();
        let own = |(id, by): &(NodeId, Option<u32>)| (by.map(|by| by as usize) == Some(begun.index)).then_some(*id);
        let took = trail.get(mark..).unwrap_or_default().iter().filter_map(own).collect();
        let outcome = result.as_ref().map(|found| found.words(self.graph)).map_err(Mismatch::clone);
        record.end(begun, outcome, took);
        result
    }

    /// Equal to the precision in which the model's exporter wrote constants.
    pub fn close(&self, a: f64, b: f64) -> bool {
        (a - b).abs() <= self.precision * b.abs().max(1e-12)
    }

    /// The nodes of every pattern that matched.
    pub fn claimed(&self) -> HashSet<NodeId> {
        self.trail.borrow().iter().map(|(id, _)| *id).collect()
    }

    /// The nodes that were claimed outside of every recorded pattern, in order.
    pub fn claimed_by_none(&self) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> =
            self.trail.borrow().iter().filter(|(_, by)| by.is_none()).map(|(id, _)| *id).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// Tries a pattern; the nodes of one that does not match are forgotten.
    pub fn attempt<T>(&self, pattern: impl FnOnce() -> Match<T>) -> Match<T> {
        let mark = self.trail.borrow().len();
        let result = pattern();
        if result.is_err() {
            self.trail.borrow_mut().truncate(mark);
        }
        result
    }

    /// Looks at values that are not part of a pattern: the nodes on the way are forgotten.
    pub fn peek<T>(&self, look: impl FnOnce() -> T) -> T {
        let mark = self.trail.borrow().len();
        let seen = look();
        self.trail.borrow_mut().truncate(mark);
        seen
    }

    pub fn claim(&self, node: NodeId) {
        let by = self.record.as_ref().and_then(Record::open);
        self.trail.borrow_mut().push((node, by));
    }

    /// The node that makes `value`, before whatever passes its operand on.
    pub fn node(&self, value: ValueId) -> Option<(NodeId, &'g Node)> {
        let (id, _) = self.graph.producer_of(self.resolve(value))?;
        Some((id, self.graph.node(id)))
    }

    /// The node that makes `value`, which must be one of these operators.
    pub fn expect(&self, value: ValueId, ops: &[&str]) -> Match<&'g Node> {
        match self.node(value) {
            Some((id, node)) if ops.iter().any(|op| node.is(op)) => {
                self.claim(id);
                Ok(node)
            }
            Some((_, node)) if node.is("Dropout") => {
                Err(self.mismatch(node, "is a Dropout in training mode: the model was exported without `.eval()`"))
            }
            Some((_, node)) => {
                let reason = format!("is {}, where {} was expected", an(&node.kind()), any_of(ops));
                Err(self.mismatch(node, reason))
            }
            None => {
                let reason = format!("is {}, where {} was expected", self.source_of(value), any_of(ops));
                Err(Mismatch::at(&self.graph.value(value).name, reason))
            }
        }
    }

    /// The source of a value that no node makes.
    pub fn source_of(&self, value: ValueId) -> &'static str {
        if self.graph.weight(value).is_some() { "a constant" } else { "a graph input" }
    }

    pub fn operand(&self, node: &Node, index: usize) -> Match<ValueId> {
        node.input(index).ok_or_else(|| self.mismatch(node, format!("has no operand {index}")))
    }

    pub fn mismatch(&self, node: &Node, reason: impl Into<String>) -> Mismatch {
        Mismatch::at(&node.name, reason)
    }

    /// The two orders of a commutative node's operands.
    pub fn orders(&self, node: &Node) -> Match<[(ValueId, ValueId); 2]> {
        let (a, b) = (self.operand(node, 0)?, self.operand(node, 1)?);
        Ok([(a, b), (b, a)])
    }

    /// The constant that `value` is, behind copies and casts that keep its numbers.
    pub fn constant(&self, value: ValueId) -> Option<&'g Weight> {
        let mut value = self.resolve(value);
        let mut integers: Vec<DType> = Vec::new();
        while let Some((_, node)) = self.node(value)
            && (node.is("Cast") || node.is("CastLike"))
        {
            let input = node.input(0)?;
            let to = self.graph.value(value).dtype?;
            if !to.is_float() {
                if self.graph.value(input).dtype?.is_float() {
                    return None;
                }
                if !integers.contains(&to) {
                    integers.push(to);
                }
            }
            value = self.resolve(input);
        }
        let weight = self.graph.weight(value)?;
        let keeps = |v: &i64| integers.iter().all(|to| holds(*to, *v));
        (integers.is_empty() || weight.to_i64()?.iter().all(keeps)).then_some(weight)
    }

    /// The number that `value` is: a constant, or arithmetic on constants that the exporter did not fold.
    pub fn scalar(&self, value: ValueId) -> Option<f64> {
        self.peek(|| self.folded_scalar(value, MAX_ARITHMETIC))
    }

    fn folded_scalar(&self, value: ValueId, depth: usize) -> Option<f64> {
        if let Some(constant) = self.constant(value) {
            return constant.as_scalar();
        }
        let (_, node) = self.node(value).filter(|_| depth > 0)?;
        let operand = |i| self.folded_scalar(node.input(i)?, depth - 1);
        // Integers divide, and floats become integers, by other rules.
        let is_float = |v: ValueId| self.graph.value(v).dtype.is_some_and(DType::is_float);
        if !node.is_default_domain() || !node.output(0).is_some_and(is_float) {
            return None;
        }
        Some(match node.op.as_str() {
            "Sqrt" => operand(0)?.sqrt(),
            "Reciprocal" => operand(0)?.recip(),
            "Neg" => -operand(0)?,
            "Cast" | "CastLike" => operand(0)?,
            "Add" => operand(0)? + operand(1)?,
            "Sub" => operand(0)? - operand(1)?,
            "Mul" => operand(0)? * operand(1)?,
            "Div" => operand(0)? / operand(1)?,
            "Pow" => operand(0)?.powf(operand(1)?),
            _ => return None,
        })
    }

    pub fn is_scalar(&self, value: ValueId, wanted: f64) -> bool {
        self.scalar(value).is_some_and(|v| self.close(v, wanted))
    }

    /// Integer contents of a constant, or of a shape vector that inference knows.
    pub fn ints(&self, value: ValueId) -> Option<Vec<i64>> {
        self.constant(value)?.to_i64()
    }

    /// The rank of a value, where inference knows it.
    pub fn rank(&self, value: ValueId) -> Option<usize> {
        self.graph.shape(value).map(|s| s.len())
    }

    /// A root-mean-square norm over the last axis: the norm and x.
    pub fn norm(&self, value: ValueId) -> Match<(Norm, ValueId)> {
        self.trying("norm", value, || self.norm_at(value))
    }

    fn norm_at(&self, value: ValueId) -> Match<(Norm, ValueId)> {
        let fused = |n: &Node| n.is("RMSNormalization") || n.is("SimplifiedLayerNormalization");
        if let Some((id, node)) = self.node(value).filter(|(_, n)| fused(n)) {
            self.claim(id);
            return self.normalization(node);
        }
        let node = self.expect(value, &["Mul"])?;
        let is_vector = |v: ValueId| self.constant(v).is_some_and(|w| w.dims().len() == 1 && w.dtype().is_float());
        let Some((weight, scaled)) = self.orders(node)?.into_iter().find(|(w, _)| is_vector(*w)) else {
            return Err(self.mismatch(node, "expected a norm: a product with a constant vector"));
        };
        let weight = self.resolve(weight);
        let (x, mean_square) = self.normalised(scaled)?;
        let (epsilon, mean) = self.plus_constant(mean_square)?;
        let mean = self.expect(mean, &["ReduceMean"])?;
        let axes = mean.attributes.get_ints("axes").map(<[i64]>::to_vec);
        let axes = axes.or_else(|| mean.input(1).and_then(|v| self.ints(v)));
        let last = self.rank(x).map_or(-1, |r| r as i64 - 1);
        let keeps_axis = mean.attributes.get_int("keepdims").unwrap_or(1) != 0;
        if !keeps_axis || !axes.is_some_and(|a| a == [-1] || a == [last]) {
            return Err(self.mismatch(mean, "expected a mean over the last axis alone"));
        }
        let square = self.operand(mean, 0)?;
        let node = self.expect(square, &["Pow", "Mul"])?;
        let (a, b) = (self.operand(node, 0)?, self.operand(node, 1)?);
        let squares = if node.is("Pow") { self.is_scalar(b, 2.0) } else { self.resolve(b) == x };
        if !squares || self.resolve(a) != x {
            return Err(self.mismatch(node, "expected the square of the norm's own input (a root-mean-square norm)"));
        }
        Ok((Norm { weight, epsilon: epsilon as f32 }, x))
    }

    /// The operator of opset 23, or ONNX Runtime's of the same meaning.
    fn normalization(&self, node: &Node) -> Match<(Norm, ValueId)> {
        let (x, scale) = (self.resolve(self.operand(node, 0)?), self.resolve(self.operand(node, 1)?));
        let last = self.rank(x).map_or(-1, |r| r as i64 - 1);
        let axis = node.attributes.get_int("axis").unwrap_or(-1);
        let is_vector = self.graph.weight(scale).is_some_and(|w| w.dims().len() == 1 && w.dtype().is_float());
        if !is_vector || (axis != -1 && axis != last) {
            return Err(self.mismatch(node, "expected a norm over the last axis with a constant weight"));
        }
        Ok((Norm { weight: scale, epsilon: node.attributes.get_float("epsilon").unwrap_or(1e-5) }, x))
    }

    /// `x / sqrt(v)` in its spellings: x and v.
    fn normalised(&self, value: ValueId) -> Match<(ValueId, ValueId)> {
        let node = self.expect(value, &["Mul", "Div"])?;
        if node.is("Div") {
            let v = self.attempt(|| self.root(self.operand(node, 1)?))?;
            return Ok((self.resolve(self.operand(node, 0)?), v));
        }
        let mut error = None;
        for (x, factor) in self.orders(node)? {
            match self.attempt(|| self.reciprocal_root(factor)) {
                Ok(v) => return Ok((self.resolve(x), v)),
                Err(e) => error = Some(e),
            }
        }
        Err(error.unwrap_or_else(|| self.mismatch(node, "expected a norm")))
    }

    /// `1 / sqrt(v)`: v.
    fn reciprocal_root(&self, value: ValueId) -> Match<ValueId> {
        let node = self.expect(value, &["Reciprocal", "Div", "Pow", "Sqrt"])?;
        match node.op.as_str() {
            "Sqrt" => {
                let inner = self.expect(self.operand(node, 0)?, &["Reciprocal", "Div"])?;
                match inner.op.as_str() {
                    "Reciprocal" => self.operand(inner, 0),
                    _ if self.is_scalar(self.operand(inner, 0)?, 1.0) => self.operand(inner, 1),
                    _ => Err(self.mismatch(inner, "expected a reciprocal under a square root")),
                }
            }
            "Reciprocal" => self.root(self.operand(node, 0)?),
            "Div" if self.is_scalar(self.operand(node, 0)?, 1.0) => self.root(self.operand(node, 1)?),
            "Pow" if self.is_scalar(self.operand(node, 1)?, -0.5) => self.operand(node, 0),
            _ => Err(self.mismatch(node, "expected the reciprocal of a square root")),
        }
    }

    /// `sqrt(v)`: v.
    fn root(&self, value: ValueId) -> Match<ValueId> {
        let node = self.expect(value, &["Sqrt", "Pow"])?;
        if node.is("Pow") && !self.is_scalar(self.operand(node, 1)?, 0.5) {
            return Err(self.mismatch(node, "expected a square root"));
        }
        self.operand(node, 0)
    }

    /// `c + v`: c and v.
    pub fn plus_constant(&self, value: ValueId) -> Match<(f64, ValueId)> {
        let node = self.expect(value, &["Add"])?;
        let found = self.orders(node)?.into_iter().find_map(|(c, v)| Some((self.scalar(c)?, v)));
        found.ok_or_else(|| self.mismatch(node, "expected the sum of a value and a constant"))
    }

    /// The factors of a product tree: the values, and the product of the constants. In a tree larger than any that
    /// spells something, the rest counts as factors.
    pub fn product(&self, value: ValueId) -> (Vec<ValueId>, f64) {
        let mut constant = 1.0;
        let mut values = Vec::new();
        let mut splits = 0;
        // Whether the value divides, which only constants do.
        let mut open = vec![(value, false)];
        while let Some((value, divides)) = open.pop() {
            if let Some(c) = self.scalar(value) {
                constant = if divides { constant / c } else { constant * c };
                continue;
            }
            let found = self.node(value).filter(|_| splits < MAX_PRODUCT);
            let operands = found.and_then(|(id, n)| Some((id, n, n.input(0)?, n.input(1)?)));
            match operands {
                Some((id, node, a, b)) if node.is("Mul") || node.is("Div") && self.scalar(b).is_some() => {
                    self.claim(id);
                    splits += 1;
                    open.extend([(b, node.is("Div")), (a, false)]);
                }
                _ => values.push(self.resolve(value)),
            }
        }
        (values, constant)
    }
}

/// Operators, any of which will do.
fn any_of(ops: &[&str]) -> String {
    match ops {
        [] => "nothing".to_owned(),
        [one] => an(one),
        [most @ .., last] => {
            let most: Vec<String> = most.iter().map(|op| an(op)).collect();
            format!("{} or {}", most.join(", "), an(last))
        }
    }
}

/// True where a cast of an integer to the type keeps its value.
fn holds(dtype: DType, value: i64) -> bool {
    match dtype {
        DType::Bool => matches!(value, 0 | 1),
        DType::I8 => i8::try_from(value).is_ok(),
        DType::U8 => u8::try_from(value).is_ok(),
        DType::I16 => i16::try_from(value).is_ok(),
        DType::U16 => u16::try_from(value).is_ok(),
        DType::I32 => i32::try_from(value).is_ok(),
        DType::U32 => u32::try_from(value).is_ok(),
        DType::U64 => value >= 0,
        DType::I64 | DType::F16 | DType::BF16 | DType::F32 | DType::F64 => true,
    }
}

/// The precision in which exporters write constants: that of the narrowest float type of the matrices.
fn precision(graph: &Graph) -> f64 {
    let uses = graph.uses();
    let used = graph.value_ids().filter(|v| !uses.of(*v).is_empty()).filter_map(|v| graph.weight(v));
    let matrices = used.filter(|w| w.dims().len() == 2).map(Weight::dtype);
    matrices.fold(1e-5, |precision: f64, dtype| match dtype {
        DType::BF16 => precision.max(1e-2),
        DType::F16 => precision.max(1e-3),
        _ => precision,
    })
}
