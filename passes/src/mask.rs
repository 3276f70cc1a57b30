//! Masks that are the same for all queries, although they have an axis for queries.
//!
//! PyTorch's exporter writes the mask of padding as `[batch, 1, queries, keys]`, the result of a comparison of query positions
//! that always holds. That it does, and that nothing else distinguishes one query from another, is proven from the nodes that make the mask: a
//! row of it then stands for all. Added to scores, such a mask would be as large as they are.

use lstc_graph::{Attributes, Builder, DType, Dim, Graph, Node, ValueId};

/// Nodes that a proof visits: a mask has a few dozen.
const MOST_NODES: usize = 512;

/// The mask as `[batch, 1, 1, keys]`, where it is the same for all heads and queries of scores `[batch, heads, queries, keys]`.
pub(crate) fn of_keys(b: &Builder, mask: ValueId, scores: &[Dim; 4]) -> Option<ValueId> {
    let [batch, _, queries, keys] = scores;
    let row = [batch.clone(), Dim::Value(1), Dim::Value(1), keys.clone()];
    let shape = b.shape(mask)?;
    if shape == row {
        return Some(mask);
    }
    const QUERIES: usize = 1; // from the last axis
    let all = [batch.clone(), Dim::Value(1), queries.clone(), keys.clone()];
    if shape != all || !b.read(|graph| Proof { graph, left: MOST_NODES }.is_uniform(mask, QUERIES)) {
        return None;
    }
    let [starts, ends, axes] = [0, 1, 2].map(|number| b.i64s(&[number]));
    Some(b.shaped(b.op("Slice", &[mask, starts, ends, axes], Attributes::none()), &row))
}

/// Operators each of whose elements is made of the elements at its place.
const OF_ELEMENTS: [&str; 17] = [
    "Add",
    "And",
    "Cast",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Identity",
    "Less",
    "LessOrEqual",
    "Max",
    "Min",
    "Mul",
    "Not",
    "Or",
    "Sub",
    "Where",
];

/// Operators whose elements are their first operand's, in another place or another type.
const OF_PLACES: [&str; 6] = ["Cast", "Expand", "Identity", "Reshape", "Squeeze", "Unsqueeze"];

struct Proof<'g> {
    graph: &'g Graph,
    /// Nodes that may still be looked at.
    left: usize,
}

impl<'g> Proof<'g> {
    /// True where a value is the same all along an axis, which is counted from the last.
    fn is_uniform(&mut self, value: ValueId, axis: usize) -> bool {
        let Some(shape) = self.graph.shape(value) else { return false };
        if axis >= shape.len() || shape[shape.len() - 1 - axis] == Dim::Value(1) {
            return true;
        }
        let Some(node) = self.maker(value) else { return false };
        match node.op.as_str() {
            op if OF_ELEMENTS.contains(&op) => {
                self.always_holds(node) || node.inputs.iter().flatten().all(|operand| self.is_uniform(*operand, axis))
            }
            "Expand" => node.input(0).is_some_and(|operand| self.is_uniform(operand, axis)),
            _ => false,
        }
    }

    /// True for a comparison `a >= b` where a is never negative and b never positive.
    fn always_holds(&mut self, node: &Node) -> bool {
        let (Some(a), Some(b)) = (node.input(0), node.input(1)) else { return false };
        node.is("GreaterOrEqual")
            && self.is_never_negative(a)
            && self.constants(b).is_some_and(|b| b.iter().all(|x| *x <= 0))
    }

    /// True for integers from 0 on: positions, as they are or in other places.
    fn is_never_negative(&mut self, value: ValueId) -> bool {
        // What is beyond i32 would wrap in a Cast.
        if let Some(numbers) = self.constants(value) {
            return numbers.iter().all(|x| (0..=i64::from(i32::MAX)).contains(x));
        }
        // A narrower type would wrap.
        let is_position = matches!(self.graph.value(value).dtype, Some(DType::I64 | DType::I32));
        let Some(node) = self.maker(value).filter(|_| is_position) else { return false };
        match (node.op.as_str(), node.input(0)) {
            ("Range", Some(start)) => {
                let rises =
                    node.input(2).and_then(|step| self.constants(step)).is_some_and(|step| step.iter().all(|x| *x > 0));
                rises && self.is_never_negative(start)
            }
            (op, Some(operand)) if OF_PLACES.contains(&op) => self.is_never_negative(operand),
            _ => false,
        }
    }

    /// The numbers of a small constant.
    fn constants(&self, value: ValueId) -> Option<Vec<i64>> {
        const MOST: usize = 64;
        let weight = self.graph.weight(value)?;
        (weight.dims().iter().product::<usize>() <= MOST).then(|| weight.to_i64())?
    }

    /// The node whose first output a value is.
    fn maker(&mut self, value: ValueId) -> Option<&'g Node> {
        self.left = self.left.checked_sub(1)?;
        let (id, output) = self.graph.producer_of(value)?;
        let node = self.graph.node(id);
        (output == 0 && node.is_default_domain()).then_some(node)
    }
}

#[cfg(test)]
mod tests {
    use lstc_graph::{Origin, parse};

    use super::*;

    /// Whether the mask that some nodes make of `keep: bool[B, 1, 1, S]` has one row for all queries.
    fn has_one_row(nodes: &str) -> bool {
        let text = format!(
            "(tokens: i64[B, S], keep: bool[B, 1, 1, S], spread: i64[4]) {{
                size = Shape<start=1, end=2>(tokens)  first = const i64[1] {{0}}  length = Squeeze(size, first)
                zero = const i64[] {{0}}  one = const i64[] {{1}}
                places = Range(zero, length, one)
                columns = const i64[3] {{0, 1, 3}}  rows = const i64[3] {{0, 1, 2}}
                query = Unsqueeze(places, columns)  key = Unsqueeze(places, rows)
                {nodes}
                nothing = const f32[] {{0}}  lowest = const f32[] {{-1e9}}
                mask = Where(seen, nothing, lowest)
            }} -> mask"
        );
        let mut graph = parse(&text, 17).expect("the test's graph is well-formed");
        let find = |name: &str| graph.find(name).expect("the test names its values so");
        let (mask, tokens) = (find("mask"), find("tokens"));
        let [batch, length] = &graph.shape(tokens).expect("inputs are declared")[..] else { panic!("two axes") };
        let scores = [batch.clone(), Dim::Value(2), length.clone(), length.clone()];
        let b = Builder::new(&mut graph, Origin::pass("test"));
        of_keys(&b, mask, &scores).is_some()
    }

    #[test]
    fn a_row_stands_for_all_where_nothing_tells_queries_apart() {
        assert!(has_one_row("seen = Identity(keep)"));
        assert!(has_one_row("here = GreaterOrEqual(query, zero)  seen = And(here, keep)"));
        assert!(has_one_row(
            "narrow = Cast<to=6>(query)  none = const i32[] {-1}  here = GreaterOrEqual(narrow, none)  seen = And(keep, here)"
        ));
        assert!(has_one_row(
            "here = GreaterOrEqual(query, zero)  all = And(here, keep)  not = Not(all)  seen = Not(not)"
        ));
    }

    #[test]
    fn queries_that_see_other_keys_have_rows_of_their_own() {
        assert!(!has_one_row("before = LessOrEqual(key, query)  seen = And(before, keep)"));
        assert!(!has_one_row("here = GreaterOrEqual(query, one)  seen = And(here, keep)"));
        assert!(!has_one_row("here = GreaterOrEqual(zero, query)  seen = And(here, keep)"));
        assert!(!has_one_row("moved = Sub(query, one)  here = GreaterOrEqual(moved, zero)  seen = And(here, keep)"));
        assert!(!has_one_row(
            "byte = Cast<to=3>(query)  none = const i8[] {0}  here = GreaterOrEqual(byte, none)  seen = And(here, keep)"
        ));
        assert!(!has_one_row(
            "here = GreaterOrEqual(spread, zero)  any = Reshape(here, spread)  seen = And(any, keep)"
        ));
    }
}
