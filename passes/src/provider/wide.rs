//! Nodes of many operands, in steps: while a stream is captured, the provider joins and splits at most [`MOST`] values at once.
//!
//! ```text
//! y = Concat(x_1, ..., x_n)            y = Concat(x_1, ..., x_31, Concat(x_32, ..., x_n))
//! y_1, ..., y_n = Split(x)             y_1, ..., y_31, rest = Split(x);   y_32, ..., y_n = Split(rest)
//! ```
//!
//! What is joined or split in the second step is copied twice.

use std::collections::HashMap;

use lstc_graph::{Attributes, Builder, Graph, Node, NodeId, ValueId};

use super::{PROVIDER, name_after, replace};

/// Operands of a Concat, or outputs of a Split.
const MOST: usize = 32;

/// Joins and splits more than [`MOST`] values in steps. A Split whose sizes are not constants stays.
pub(super) fn in_steps(graph: &mut Graph) {
    let is_wide = |id: &NodeId| {
        let node = graph.node(*id);
        node.is("Concat") && node.inputs.len() > MOST || node.is("Split") && node.outputs.len() > MOST
    };
    let wide: Vec<NodeId> = graph.node_ids().filter(is_wide).collect();
    let b = Builder::new(graph, PROVIDER);
    for id in wide {
        let node = b.read(|graph| graph.node(id).clone());
        if node.is("Concat") { join(&b, &node) } else { part(&b, &node) }
    }
}

fn join(b: &Builder, node: &Node) {
    let (Some(axis), Some(y)) = (node.attributes.get_int("axis"), node.output(0)) else { return };
    let mut operands: Vec<ValueId> = node.inputs.iter().flatten().copied().collect();
    name_after(b, y);
    let concat = |operands: &[ValueId]| b.unshared("Concat", operands, Attributes::none().int("axis", axis), 1)[0];
    while operands.len() > MOST {
        let rest = operands.split_off(operands.len() - MOST.min(operands.len() - MOST + 1));
        operands.push(concat(&rest));
    }
    replace(b, vec![(y, concat(&operands))]);
}

fn part(b: &Builder, node: &Node) {
    let given = node.attributes.get_ints("split").map(<[i64]>::to_vec);
    let constant = |v: ValueId| b.read(|graph| graph.weight(v).and_then(|w| w.to_i64()));
    let sizes = given.or_else(|| node.input(1).and_then(constant));
    let (Some(sizes), Some(x)) = (sizes, node.input(0)) else { return };
    if sizes.len() != node.outputs.len() {
        return;
    }
    let axis = node.attributes.get_int("axis").unwrap_or(0);
    let (mut x, mut sizes, mut outputs) = (x, &sizes[..], &node.outputs[..]);
    let mut moved = HashMap::new();
    while sizes.len() > MOST {
        let (first, rest) = sizes.split_at(MOST - 1);
        let (made, left) = outputs.split_at(MOST - 1);
        let parts = b.split(x, &[first, &[rest.iter().sum()]].concat(), axis);
        moved.extend(made.iter().copied().zip(&parts).filter_map(|(old, new)| Some((old?, *new))));
        (x, sizes, outputs) = (parts[MOST - 1], rest, left);
    }
    let parts = b.split(x, sizes, axis);
    moved.extend(outputs.iter().copied().zip(parts).filter_map(|(old, new)| Some((old?, new))));
    b.edit(|graph| {
        // A value that is given out keeps its name: it is made by a node of its own then.
        moved.retain(|old, _| !graph.outputs.contains(old));
        graph.redirect_all(&moved);
    });
}

#[cfg(test)]
mod tests {
    use lstc_graph::{Graph, parse};

    use super::*;

    fn widths(graph: &Graph, op: &str) -> Vec<usize> {
        let nodes = graph.order().expect("no cycle").into_iter().map(|id| graph.node(id).clone());
        let width = |node: Node| if op == "Concat" { node.inputs.len() } else { node.outputs.len() };
        nodes.filter(|node| node.is(op)).map(width).collect()
    }

    #[test]
    fn many_values_are_joined_in_steps_in_their_order() {
        for (count, expected) in [(32, vec![32]), (33, vec![2, 32]), (49, vec![18, 32]), (70, vec![32, 8, 32])] {
            let names: Vec<String> = (0..count).map(|at| format!("x{at}")).collect();
            let inputs: Vec<String> = names.iter().map(|name| format!("{name}: f32[1]")).collect();
            let text = format!("({}) {{ y = Concat<axis=0>({}) }} -> y", inputs.join(", "), names.join(", "));
            let mut graph = parse(&text, 17).expect("the test's graph is well-formed");
            in_steps(&mut graph);
            graph.remove_dead();
            assert_eq!(widths(&graph, "Concat"), expected);
            let shape = graph.shape(graph.outputs[0]).expect("it has a shape");
            assert_eq!(shape, [lstc_graph::Dim::Value(count)]);
            let mut order = Vec::new();
            let mut open = vec![graph.outputs[0]];
            while let Some(value) = open.pop() {
                match graph.producer_of(value) {
                    Some((id, _)) => open.extend(graph.node(id).inputs.iter().rev().flatten()),
                    None => order.push(graph.value(value).name.clone()),
                }
            }
            assert_eq!(order, names);
        }
    }

    #[test]
    fn many_parts_are_made_in_steps() {
        let names: Vec<String> = (0..40).map(|at| format!("y{at}")).collect();
        let sizes: Vec<String> = (1..=40).map(|size: i32| size.to_string()).collect();
        let text = format!(
            "(x: f32[820]) {{ sizes = const i64[40] {{{}}}  {} = Split<axis=0>(x, sizes)  z = Relu(y39) }} -> z",
            sizes.join(", "),
            names.join(", ")
        );
        let mut graph = parse(&text, 17).expect("the test's graph is well-formed");
        in_steps(&mut graph);
        graph.remove_dead();
        assert_eq!(widths(&graph, "Split"), [32, 9]);
        assert_eq!(graph.shape(graph.outputs[0]), Some(vec![lstc_graph::Dim::Value(40)]));
    }
}
