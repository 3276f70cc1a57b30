//! Joined graphs: names of nodes, values and sizes are each graph's own; what wires say is one.

use std::time::{Duration, Instant};

use lstc_graph::{DType, Graph, join, parse, shape_text, verify};

fn graph(text: &str) -> Graph {
    parse(text, 17).unwrap_or_else(|e| panic!("{e}"))
}

/// The second graph after the first: its input `h` is the first's output.
fn joined(first: &str, second: &str) -> Graph {
    let (first, second) = (graph(first), graph(second));
    let wire = (second.find("h").expect("it has an input h"), first.outputs[0]);
    join(first, &second, &[wire]).unwrap_or_else(|e| panic!("{e}"))
}

fn shape(graph: &Graph, name: &str) -> String {
    let value = graph.find(name).unwrap_or_else(|| panic!("no {name}"));
    shape_text(&graph.shape(value).expect("its shape is known"))
}

#[test]
fn sizes_of_one_name_are_one_only_where_a_wire_says_so() {
    let both = joined(
        "(x: f32[batch, length]) {
             e = Relu(x)
         } -> e",
        "(y: f32[batch, length], h: f32[batch, before], mask: f32[batch, before]) {
             d = Relu(y)
             m = Add(h, mask)
             l = Neg(d)
         } -> l, m",
    );
    assert_eq!(verify(&both), []);
    assert_eq!(shape(&both, "x"), "[batch, length]");
    assert_eq!(shape(&both, "mask"), "[batch, length]");
    assert_eq!(shape(&both, "y"), "[batch, length_1]");
    assert_eq!(shape(&both, "l"), "[batch, length_1]");
}

#[test]
fn a_size_that_a_wire_fixes_is_fixed() {
    let both = joined("(x: f32[2, 5]) {\n e = Relu(x)\n} -> e", "(y: f32[b, 3], h: f32[b, n]) {\n z = Neg(y)\n} -> z");
    assert_eq!(shape(&both, "z"), "[2, 3]");
}

#[test]
fn many_nodes_of_one_name_cost_little() {
    const COUNT: usize = 20_000;
    let (mut first, mut second) = (graph("(x: f32[2]) {\n e = Relu(x)\n} -> e"), {
        let steps: String = (0..COUNT)
            .map(|i| format!(" v{i} = Relu({})\n", if i == 0 { "h".to_owned() } else { format!("v{}", i - 1) }))
            .collect();
        graph(&format!("(h: f32[2]) {{\n{steps}}} -> v{}", COUNT - 1))
    });
    first.rename_nodes(|_| "n".to_owned());
    second.rename_nodes(|_| "n".to_owned());
    let wire = (second.find("h").expect("it has an input h"), first.outputs[0]);
    let start = Instant::now();
    let both = join(first, &second, &[wire]).unwrap_or_else(|e| panic!("{e}"));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    let names: std::collections::HashSet<&str> = both.node_ids().map(|id| both.node(id).name.as_str()).collect();
    assert_eq!(names.len(), COUNT + 1);
}

#[test]
fn a_wire_between_types_is_a_cast() {
    let both = joined("(x: f32[b, 3]) {\n e = Relu(x)\n} -> e", "(h: f16[b, 3]) {\n z = Neg(h)\n} -> z");
    assert_eq!(verify(&both), []);
    let z = both.find("z").expect("it is the output");
    assert_eq!(both.value(z).dtype, Some(DType::F16));
    let casts = both.node_ids().filter(|id| both.node(*id).is("Cast")).count();
    assert_eq!(casts, 1);
    for [ours, theirs] in [["i64", "i32"], ["i64", "bool"], ["bool", "i64"], ["i32", "f32"]] {
        let first = format!("(x: {ours}[b, 3]) {{\n e = Identity(x)\n}} -> e");
        joined(&first, &format!("(h: {theirs}[b, 3]) {{\n z = Identity(h)\n}} -> z"));
    }
}

#[test]
fn a_float_does_not_become_an_integer() {
    let first = graph("(x: f32[b, 3]) {\n e = Relu(x)\n} -> e");
    let second = graph("(h: i64[b, 3]) {\n z = Identity(h)\n} -> z");
    let wire = (second.find("h").expect("it has an input h"), first.outputs[0]);
    let problem = join(first, &second, &[wire]).err();
    assert_eq!(problem.as_deref(), Some("do not fit: `h` takes i64, but gets f32"));
}
