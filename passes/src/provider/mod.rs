//! A graph in the operators that ONNX Runtime's CUDA provider computes with kernels of its own.
//!
//! Under deterministic compute the provider hands most reductions to cuDNN, a library of a gigabyte that a training step needs for
//! nothing else. Its sums, norms and selections are its own, and give the same bits in every run. So:
//!
//! ```text
//! x / sqrt(mean(x^2) + epsilon) * w    SimplifiedLayerNormalization(x, w)
//! ReduceMean(x)                        ReduceSum(x) / n
//! ReduceSumSquare(x)                   ReduceSum(x x)
//! ReduceL2(x)                          Sqrt(ReduceSum(x x))
//! ReduceMax(x), ReduceMin(x)           TopK(x, 1), along the last axes
//! ```
//!
//! What makes a node wait for another goes: the provider runs what it is given on one stream, and a size that holds a node back would
//! hold back the host. Sessions must not merge equal nodes then, which are there twice so that one result need not be kept.
//!
//! The graphs in files keep to the default domain, and run anywhere: this is for a graph on its way into a session.
//!
//! Ensures: the same values under the same names, as far as others read them. A reduction over sizes that are unknown, or over
//! other axes, stays.

mod narrow;
mod wide;

use std::collections::HashMap;

use lstc_graph::{Attributes, Builder, DType, Dim, Graph, Node, NodeId, Origin, ValueId};
use lstc_models::{norms, restate_for_device};

use crate::differentiate::waits;
use crate::sizes::number;

const PROVIDER: Origin = Origin::pass("provider");

/// Restates what the provider has no kernel of its own for. Quantised products of a backbone multiply in bf16 on a device that
/// `has_bf16`, else in f32.
pub fn for_cuda(graph: &mut Graph, has_bf16: bool) {
    dequantise(graph);
    drop_waits(graph);
    number(graph, &PROVIDER);
    if has_bf16 {
        narrow::products(graph);
    }
    fuse_norms(graph);
    narrow::casts(graph);
    restate_reductions(graph);
    wide::in_steps(graph);
    graph.remove_dead();
}

/// Products of integers as the source has them, of which the provider has no kernel, and attention that needs cuDNN. A backbone that lstc
/// quantised is refused instead: its user chose the precision.
fn dequantise(graph: &mut Graph) {
    if let Some(plain) = restate_for_device(graph, |node| node.origin == Origin::SOURCE) {
        *graph = plain;
    }
}

/// How many products of integers the source has, which [`for_cuda`] makes products of floats of.
pub fn integer_products(graph: &Graph) -> usize {
    const PRODUCTS: [&str; 4] = ["MatMulInteger", "QLinearMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"];
    let is_one = |id: &NodeId| {
        let node = graph.node(*id);
        node.origin == Origin::SOURCE && PRODUCTS.contains(&node.op.as_str())
    };
    graph.node_ids().filter(is_one).count()
}

/// Removes what makes one node wait for another by a size of its result: the host would wait for the device there.
fn drop_waits(graph: &mut Graph) {
    for id in graph.node_ids().collect::<Vec<_>>() {
        if let (Some((value, _)), Some(waiting)) = (waits(graph, graph.node(id)), graph.node(id).output(0))
            && !graph.outputs.contains(&waiting)
        {
            graph.redirect(waiting, value);
        }
    }
}

/// Makes one node of each norm whose operands and result are of one type: the provider has a kernel for that.
fn fuse_norms(graph: &mut Graph) {
    let found: Vec<_> = norms(graph)
        .into_iter()
        .filter(|found| {
            let [x, weight, y] = [found.x, found.norm.weight, found.y].map(|v| graph.value(v).dtype);
            x == y && x == weight && matches!(x, Some(DType::F32 | DType::F16 | DType::BF16))
        })
        .collect();
    let b = Builder::new(graph, PROVIDER);
    let fuse = |found: lstc_models::FoundNorm| {
        name_after(&b, found.y);
        let attributes = Attributes::none().int("axis", -1).float("epsilon", found.norm.epsilon);
        let operands = [found.x, found.norm.weight];
        (found.y, b.unshared("SimplifiedLayerNormalization", &operands, attributes, 1)[0])
    };
    let fused: Vec<_> = found.into_iter().map(fuse).collect();
    replace(&b, fused);
}

fn restate_reductions(graph: &mut Graph) {
    let reductions: Vec<(NodeId, Reduction)> =
        graph.node_ids().filter_map(|id| Some((id, Reduction::of(graph, graph.node(id))?))).collect();
    let b = Builder::new(graph, PROVIDER);
    let restate = |(id, reduction): (NodeId, Reduction)| {
        let node = b.read(|graph| graph.node(id).clone());
        let y = node.output(0)?;
        name_after(&b, y);
        Some((y, reduction.restated(&b, node.op.as_str())?))
    };
    let restated: Vec<_> = reductions.into_iter().filter_map(restate).collect();
    replace(&b, restated);
}

/// The nodes that follow are named after what they make.
fn name_after(b: &Builder, value: ValueId) {
    b.scope(&b.read(|graph| graph.value(value).name.clone()));
}

/// Each new value takes the place and the name of its counterpart.
fn replace(b: &Builder, made: Vec<(ValueId, ValueId)>) {
    b.edit(|graph| {
        let mut moved = HashMap::new();
        for (old, new) in made {
            let Some((by, 0)) = graph.producer_of(new) else { continue };
            graph.refine_like(new, old);
            graph.remake(old, by);
            moved.insert(new, old);
        }
        graph.redirect_all(&moved);
    });
}

/// A reduction of floats over axes that are known.
struct Reduction {
    x: ValueId,
    /// Counted from the front.
    axes: Vec<usize>,
    shape: Vec<Dim>,
    keeps: bool,
}

impl Reduction {
    fn of(graph: &Graph, node: &Node) -> Option<Reduction> {
        const RESTATED: [&str; 5] = ["ReduceMean", "ReduceSumSquare", "ReduceL2", "ReduceMax", "ReduceMin"];
        if !RESTATED.iter().any(|op| node.is(op)) {
            return None;
        }
        let selects = node.is("ReduceMax") || node.is("ReduceMin");
        let x = node.input(0).filter(|x| selects || graph.value(*x).dtype.is_some_and(DType::is_float))?;
        let shape = graph.shape(x)?;
        let given = node.attributes.get_ints("axes").map(<[i64]>::to_vec);
        let axes = match (given, node.input(1)) {
            (Some(axes), _) => axes,
            (None, Some(axes)) => graph.weight(axes)?.to_i64()?,
            (None, None) => Vec::new(),
        };
        // No axes are all of them, or none.
        if axes.is_empty() && node.attributes.get_int("noop_with_empty_axes").unwrap_or(0) != 0 {
            return None;
        }
        let rank = shape.len() as i64;
        let from_front = |axis: &i64| usize::try_from(if *axis < 0 { axis + rank } else { *axis }).ok();
        let mut axes: Vec<usize> = axes.iter().map(from_front).collect::<Option<_>>()?;
        if axes.is_empty() {
            axes = (0..shape.len()).collect();
        }
        let keeps = node.attributes.get_int("keepdims").unwrap_or(1) != 0;
        axes.iter().all(|axis| *axis < shape.len()).then_some(Reduction { x, axes, shape, keeps })
    }

    fn restated(&self, b: &Builder, op: &str) -> Option<ValueId> {
        // A sum may be beyond fp16 where a mean is not.
        let dtype = b.dtype(self.x)?;
        let x = b.cast(self.x, DType::F32);
        let made = match op {
            "ReduceMean" => last(b, "Mul", &[self.sum(b, x), b.f32((self.size()? as f32).recip())]),
            "ReduceSumSquare" => self.sum(b, b.mul(x, x)),
            "ReduceL2" => last(b, "Sqrt", &[self.sum(b, b.mul(x, x))]),
            _ => return self.selected(b, op == "ReduceMax"),
        };
        Some(b.cast(made, dtype))
    }

    fn sum(&self, b: &Builder, x: ValueId) -> ValueId {
        let axes: Vec<i64> = self.axes.iter().map(|axis| *axis as i64).collect();
        let attributes = Attributes::none().int("keepdims", self.keeps.into());
        if b.opset() >= 13 {
            return b.unshared("ReduceSum", &[x, b.i64s(&axes)], attributes, 1)[0];
        }
        b.unshared("ReduceSum", &[x], attributes.ints("axes", &axes), 1)[0]
    }

    /// How many numbers make one.
    fn size(&self) -> Option<usize> {
        let known =
            |axis: &usize| if let Dim::Value(size) = self.shape[*axis] { usize::try_from(size).ok() } else { None };
        self.axes.iter().map(known).try_fold(1_usize, |product, size| product.checked_mul(size?)).filter(|n| *n > 0)
    }

    /// The largest or the smallest along the last axes, or all.
    fn selected(&self, b: &Builder, largest: bool) -> Option<ValueId> {
        let kept = self.shape.len() - self.axes.len();
        let are_last = (kept..self.shape.len()).all(|axis| self.axes.contains(&axis));
        if !are_last || b.opset() < 11 {
            return None;
        }
        let copied = |rest: &[i64]| b.i64s(&[&vec![0; kept], rest].concat());
        let row = last(b, "Reshape", &[self.x, copied(&[-1])]);
        let attributes = Attributes::none().int("axis", -1).int("largest", largest.into()).int("sorted", 0);
        let one = b.unshared("TopK", &[row, b.i64s(&[1])], attributes, 2)[0];
        let ones = if self.keeps { vec![1; self.axes.len()] } else { Vec::new() };
        Some(last(b, "Reshape", &[one, copied(&ones)]))
    }
}

fn last(b: &Builder, op: &str, operands: &[ValueId]) -> ValueId {
    b.unshared(op, operands, Attributes::none(), 1)[0]
}

#[cfg(test)]
mod tests {
    use lstc_graph::{parse, print};

    use super::*;

    /// The operators of a graph for CUDA, in order; `y` keeps its name.
    fn restated(body: &str) -> Vec<String> {
        let text = format!("(x: f32[B, 3, 4], z: f32[B, 3, 4]) {{\n{body}\n}} -> y");
        let mut graph = parse(&text, 18).expect("the test's graph is well-formed");
        for_cuda(&mut graph, false);
        assert_eq!(graph.value(graph.outputs[0]).name, "y");
        assert!(graph.shape(graph.outputs[0]).is_some(), "{}", print(&graph));
        graph.order().expect("no cycle").iter().map(|id| graph.node(*id).op.clone()).collect()
    }

    const LAST: &str = "last = const i64[1] {-1}";

    #[test]
    fn a_norm_is_one_node_in_each_spelling() {
        let constants = "two = const f32[] {2}  e = const f32[] {1e-6}  w = const f32[4] {1, 2, 3, 4}";
        let root = "mean = ReduceMean<keepdims=1>(square, last)  sum = Add(mean, e)  root = Sqrt(sum)";
        let quotient = "r = Reciprocal(root)  scaled = Mul(x, r)  y = Mul(w, scaled)";
        for square in ["square = Pow(x, two)", "square = Mul(x, x)"] {
            let text = format!("{LAST}  {constants}  {square}  {root}  {quotient}");
            assert_eq!(restated(&text), ["SimplifiedLayerNormalization"]);
        }
        let other = restated(&format!("{LAST}  {constants}  square = Mul(x, z)  {root}  {quotient}"));
        assert!(!other.contains(&"SimplifiedLayerNormalization".to_owned()), "not the square of its operand");
    }

    #[test]
    fn reductions_are_sums() {
        let reduce = |op: &str| restated(&format!("{LAST}  y = {op}<keepdims=1>(x, last)"));
        assert_eq!(reduce("ReduceMean"), ["ReduceSum", "Mul"]);
        assert_eq!(reduce("ReduceSumSquare"), ["Mul", "ReduceSum"]);
        assert_eq!(reduce("ReduceL2"), ["Mul", "ReduceSum", "Sqrt"]);
        assert_eq!(reduce("ReduceMax"), ["Reshape", "TopK", "Reshape"]);
        assert_eq!(restated("y = ReduceMin<keepdims=0>(x)"), ["Reshape", "TopK", "Reshape"]);
        assert_eq!(restated("y = ReduceMean<keepdims=0>(x)"), ["ReduceMean"], "the size of the batch is unknown");
        let half = restated(&format!("{LAST}  h = Cast<to=10>(x)  y = ReduceMean<keepdims=1>(h, last)"));
        assert_eq!(half, ["Cast", "Cast", "ReduceSum", "Mul", "Cast"], "fp16 is summed in f32");
    }

    #[test]
    fn what_is_selected_along_another_axis_stays() {
        assert_eq!(restated("axis = const i64[1] {1}  y = ReduceMax<keepdims=1>(x, axis)"), ["ReduceMax"]);
    }
}
