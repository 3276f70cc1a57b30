//! Whether a graph's outputs may be written where some of its inputs lie.

use std::collections::HashSet;

use lstc_graph::{Graph, NodeId, ValueId};

/// Operators whose output may be their first operand's memory.
const VIEWS: [&str; 6] = ["Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"];

/// Operators that write an element only after they have read the same element of each operand.
const ELEMENTWISE: [&str; 4] = ["Add", "Div", "Mul", "Sub"];

/// Checks that each output may overwrite its input as it is computed: whatever else reads the input is computed before,
/// since the output depends on it; and the last node itself goes element by element.
///
/// `before` is a value that every output depends on: where most of the graph comes before it, that part is walked once.
///
/// # Errors
/// The first node that may read an input too late.
pub fn written_in_place(graph: &Graph, pairs: &[(ValueId, ValueId)], before: ValueId) -> Result<(), String> {
    let settled = graph.ancestors([before]);
    let uses = graph.uses();
    pairs.iter().try_for_each(|(input, output)| check(graph, &uses, *input, *output, before, &settled))
}

fn check(
    graph: &Graph,
    uses: &lstc_graph::Uses,
    input: ValueId,
    output: ValueId,
    before: ValueId,
    settled: &HashSet<NodeId>,
) -> Result<(), String> {
    let name = |id: NodeId| graph.node(id).name.clone();
    let Some((last, _)) = graph.producer_of(output) else {
        return Err(format!("no node computes `{}`", graph.value(output).name));
    };
    // Nodes that run before the last one: the settled ones where it depends on `before`, and its own chain.
    let chain = graph
        .ancestors_until([output], |v| v == before || graph.producer_of(v).is_some_and(|(n, _)| settled.contains(&n)));
    let waits = chain.iter().any(|n| graph.node(*n).inputs.contains(&Some(before)));
    let mut open = vec![input];
    while let Some(value) = open.pop() {
        for (reader, _) in uses.of(value) {
            let node = graph.node(*reader);
            if *reader == last {
                if value != input || !ELEMENTWISE.iter().any(|op| node.is(op)) {
                    return Err(format!("`{}` may write before it has read", name(last)));
                }
                continue;
            }
            if !(chain.contains(reader) || waits && settled.contains(reader)) {
                return Err(format!("`{}` may read `{}` too late", name(*reader), graph.value(input).name));
            }
            if VIEWS.iter().any(|op| node.is(op)) {
                open.extend(node.outputs.iter().flatten());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(text: &str) -> Result<(), String> {
        let graph = lstc_graph::parse(text, 17).expect("the test's graph is well-formed");
        let find = |name: &str| graph.find(name).expect("the test names its values so");
        written_in_place(&graph, &[(find("p"), find("next"))], find("norm"))
    }

    const STEP: &str = "norm = ReduceSum(g)
            d = Mul(g, norm)
            next = Sub(p, d)";

    #[test]
    fn a_step_that_waits_for_every_reader_is_safe() {
        let text = format!("(x: f32[4], p: f32[4]) {{ g = Mul(x, p)\n {STEP} }}");
        assert_eq!(outcome(&text), Ok(()));
    }

    #[test]
    fn a_reader_that_nothing_waits_for_is_found() {
        let text = format!("(x: f32[4], p: f32[4]) {{ g = Mul(x, x)\n {STEP}\n late = Exp(p) }}");
        assert!(outcome(&text).is_err_and(|e| e.contains("too late")));
    }

    #[test]
    fn a_reader_behind_a_view_is_found() {
        let text = format!("(x: f32[4], p: f32[4]) {{ g = Mul(x, x)\n {STEP}\n v = Identity(p)\n late = Exp(v) }}");
        assert!(outcome(&text).is_err_and(|e| e.contains("too late")));
    }

    #[test]
    fn an_output_that_is_not_made_element_by_element_is_refused() {
        let text = "(p: f32[4, 4]) { norm = ReduceSum(p)\n q = Mul(p, norm)\n next = MatMul(p, q) }";
        assert!(outcome(text).is_err_and(|e| e.contains("before it has read")));
    }
}
