//! Sizes measured where they are known first.
//!
//! Exporters take the size of a mask, of position buckets or of a batch from whatever has it: the keys of the first attention, the
//! decoder's tokens. What is computed from such a size waits for that value, although an input that comes earlier has the same
//! size.
//!
//! ```text
//! exported   shape = Shape(keys)[0:1], 1, 1, Shape(keys)[1:2]
//! here       shape = Shape(input_ids)[0:1], 1, 1, Shape(input_ids)[1:2]
//! ```

use lstc_graph::{Attributes, Builder, DType, Dim, Graph, NodeId, Origin, ValueId};

/// Makes the readers of each of `values`, integers of which each is a constant or the size of an axis of one of `inputs`, read the same
/// numbers from there. What is known of a value only in part stays.
pub(crate) fn measure(graph: &mut Graph, values: &[ValueId], inputs: &[ValueId], origin: &Origin) {
    for old in values {
        let Some(sizes) = sizes(graph, *old, inputs) else { continue };
        let rank = graph.shape(*old).map_or(1, |shape| shape.len());
        let b = Builder::new(graph, origin.clone());
        let parts: Vec<ValueId> = sizes
            .into_iter()
            .map(|size| match size {
                Size::Fixed(size) => b.i64s(&[size]),
                Size::Of(input, axis) => b.shape_slice(input, axis, axis + 1),
            })
            .collect();
        let new = if let [one] = parts[..] { one } else { b.concat(&parts, 0) };
        let new = if rank == 0 { b.reshape(new, &[]) } else { new };
        graph.redirect(*old, new);
    }
}

/// Where a size can be read.
enum Size {
    Fixed(i64),
    /// An axis of a graph input.
    Of(ValueId, i64),
}

fn sizes(graph: &Graph, value: ValueId, inputs: &[ValueId]) -> Option<Vec<Size>> {
    let is_integer = graph.value(value).dtype == Some(DType::I64);
    let contents = graph.value(value).contents().filter(|contents| is_integer && !contents.is_empty())?;
    contents.iter().map(|dim| size_of(graph, dim, inputs)).collect()
}

fn size_of(graph: &Graph, dim: &Dim, inputs: &[ValueId]) -> Option<Size> {
    if let Dim::Value(size) = dim {
        return Some(Size::Fixed(i64::from(*size)));
    }
    let axis = |input: &ValueId| graph.shape(*input)?.iter().position(|d| d == dim);
    // An exporter may have given one name to the lengths of two texts. Then the name does not say which is meant.
    let means_another = |input: &ValueId| !inputs.contains(input) && axis(input).is_some_and(|axis| axis > 0);
    if graph.inputs.iter().any(means_another) {
        return None;
    }
    inputs.iter().find_map(|input| Some(Size::Of(*input, axis(input)? as i64)))
}

/// Operators that work number by number, be they of sizes or not.
const ELEMENTWISE: [&str; 13] = [
    "Add",
    "Cast",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Min",
    "Mod",
    "Mul",
    "Sub",
];

/// Makes sizes that are numbers among others, as in `row * length`, where those are. A size is the host's, which would copy it to
/// a device in every run, and no run with such a copy can be captured.
///
/// ```text
/// exported   Mul(rows, Shape(ids)[1])
/// here       Mul(rows, Cast(ReduceSum(Expand(1.0, Shape(ids)[1:2]))))
/// ```
///
/// A size is a number of f32 up to 2^24, and no axis of a batch is as long.
pub(crate) fn number(graph: &mut Graph, origin: &Origin) {
    let inputs = graph.inputs.clone();
    let among_others: Vec<(NodeId, usize, ValueId, ValueId, i64)> = graph
        .node_ids()
        .filter(|id| ELEMENTWISE.iter().any(|op| graph.node(*id).is(op)))
        .flat_map(|id| {
            let sizes = graph.node(id).inputs.iter().enumerate().filter_map(|(slot, value)| Some((slot, (*value)?)));
            sizes.map(move |(slot, value)| (id, slot, value)).collect::<Vec<_>>()
        })
        .filter_map(|(id, slot, value)| {
            let [Size::Of(input, axis)] = sizes(graph, value, &inputs)?[..] else { return None };
            is_number(graph, id, value).then_some((id, slot, value, input, axis))
        })
        .collect();
    for (id, slot, size, input, axis) in among_others {
        let rank = graph.shape(size).map_or(1, |shape| shape.len());
        let b = Builder::new(graph, origin.clone());
        let ones = b.op("Expand", &[b.f32(1.0), b.shape_slice(input, axis, axis + 1)], Attributes::none());
        let sum = b.cast(b.reduce_sum(ones, &[0], rank > 0), DType::I64);
        graph.reconnect(id, slot, sum);
    }
}

/// True where a node computes with a size and something other than sizes, or makes a number of it.
fn is_number(graph: &Graph, id: NodeId, size: ValueId) -> bool {
    let node = graph.node(id);
    let is_float = |v: ValueId| graph.value(v).dtype.is_some_and(DType::is_float);
    if node.is("Cast") {
        return node.output(0).is_some_and(is_float);
    }
    let mut others = node.inputs.iter().flatten().filter(|v| **v != size);
    others.any(|v| graph.weight(*v).is_none() && graph.value(*v).contents().is_none())
}

#[cfg(test)]
mod tests {
    use lstc_graph::parse;

    use super::*;

    /// The nodes that `out` is computed from once `size` is measured at `ids`.
    fn measured(nodes: &str) -> Vec<String> {
        let text = format!(
            "(ids: i64[batch, length], late: i64[batch, target], x: f32[batch, length]) {{ {nodes}  \
             out = Reshape(x, size) }} -> out"
        );
        let mut graph = parse(&text, 17).expect("the test's graph is well-formed");
        let (ids, size) = (graph.find("ids").expect("named so"), graph.find("size").expect("named so"));
        measure(&mut graph, &[size], &[ids], &Origin::pass("test"));
        graph.remove_dead();
        let mut read: Vec<String> = graph
            .node_ids()
            .flat_map(|id| graph.node(id).inputs.iter().flatten())
            .filter(|v| graph.producer_of(**v).is_none() && graph.weight(**v).is_none())
            .map(|v| graph.value(*v).name.clone())
            .collect();
        read.sort();
        read.dedup();
        read
    }

    #[test]
    fn a_size_is_measured_at_the_input_that_has_it() {
        let batch = "zero = const i64[] {0}  batch = Gather(shape, zero)";
        let size = "axis = const i64[1] {0}  rest = const i64[1] {-1}  one = Unsqueeze(batch, axis)";
        let nodes = format!("shape = Shape(late)  {batch}  {size}  size = Concat<axis=0>(one, rest)");
        assert_eq!(measured(&nodes), ["ids", "x"]);
    }

    /// The operators of `y` once the sizes that are numbers are made where numbers are.
    fn numbered(nodes: &str) -> Vec<String> {
        let text = format!("(ids: i64[batch, length], n: i64[batch]) {{ {nodes} }} -> y");
        let mut graph = parse(&text, 17).expect("the test's graph is well-formed");
        number(&mut graph, &Origin::pass("test"));
        graph.remove_dead();
        graph.order().expect("no cycle").iter().map(|id| graph.node(*id).op.clone()).collect()
    }

    #[test]
    fn a_size_among_numbers_is_a_number() {
        let made = ["Shape", "Expand", "ReduceSum", "Cast"];
        assert_eq!(numbered("size = Shape<start=1, end=2>(ids)  y = Mul(n, size)"), [&made[..], &["Mul"]].concat());
        assert_eq!(
            numbered("size = Shape<start=1, end=2>(ids)  y = Cast<to=1>(size)"),
            [&made[..], &["Cast"]].concat()
        );
    }

    #[test]
    fn sizes_among_themselves_stay() {
        let nodes = "size = Shape<start=1, end=2>(ids)  two = const i64[1] {2}  y = Mul(size, two)";
        assert_eq!(numbered(nodes), ["Shape", "Mul"]);
    }

    #[test]
    fn a_size_that_two_texts_share_stays() {
        let text =
            "(ids: i64[batch, sequence], late: i64[batch, sequence]) { size = Shape<start=1, end=2>(late) } -> size";
        let mut graph = parse(text, 17).expect("the test's graph is well-formed");
        let (ids, size) = (graph.find("ids").expect("named so"), graph.find("size").expect("named so"));
        measure(&mut graph, &[size], &[ids], &Origin::pass("test"));
        assert_eq!(graph.outputs, [size], "it is the late text's");
    }

    #[test]
    fn a_size_that_the_input_lacks_stays() {
        assert_eq!(measured("size = Shape(late)"), ["late", "x"]);
    }
}
