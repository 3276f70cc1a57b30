//! Folding: what sizes decide becomes a constant; what weights, contents or the unknown decide stays; hostile constants
//! cost nothing.

use lstc_graph::{Budget, DType, Graph, parse, verify};

const BUDGET: Budget = Budget { one: 1 << 12, all: 1 << 16 };

/// The graph after folding, and the folded values that something reads, as `name = dtype[shape] values`.
fn folded(text: &str) -> (Graph, Vec<String>) {
    let mut graph = parse(text, 17).unwrap_or_else(|e| panic!("{e}"));
    let values = graph.fold(BUDGET).unwrap_or_else(|(_, reason)| panic!("{reason}"));
    let uses = graph.uses();
    let told = values.iter().filter(|v| !uses.of(**v).is_empty()).map(|v| {
        let weight = graph.weight(*v).expect("a folded value is a constant");
        let values = match weight.dtype() {
            DType::F32 => format!("{:?}", weight.to_f32().expect("floats")),
            _ => format!("{:?}", weight.to_i64().expect("integers")),
        };
        format!("{} = {}{:?} {values}", graph.value(*v).name, weight.dtype(), weight.dims())
    });
    let told = told.collect();
    (graph, told)
}

/// The value `v` of a graph that adds it to something that is never folded.
fn value(body: &str) -> Option<String> {
    let text = format!("(x: f32[2, 3], i: i64[1], b: bool[1], f: f32[1]) {{\n{body}\n}}");
    folded(&text).1.into_iter().find_map(|line| line.strip_prefix("v = ").map(str::to_owned))
}

#[test]
fn shape_arithmetic_is_folded() {
    let (graph, told) = folded(
        "(x: f32[2, 3, 8]) {
             zero = const i64[] {0}
             axes = const i64[1] {0}
             rest = const i64[2] {-1, 4}
             shape = Shape(x)
             batch = Gather<axis=0>(shape, zero)
             row = Unsqueeze(batch, axes)
             wanted = Concat<axis=0>(row, rest)
             y = Reshape(x, wanted)
         }",
    );
    assert_eq!(verify(&graph), []);
    assert_eq!(told, ["wanted = i64[3] [2, -1, 4]"]);
    let ops: Vec<&str> = graph.node_ids().map(|id| graph.node(id).op.as_str()).collect();
    assert_eq!(ops, ["Reshape"]);
}

#[test]
fn part_of_a_shape_may_be_symbolic() {
    let (_, folded) = folded(
        "(x: f32[B, 3], i: i64[1]) {
             one = const i64[] {1}
             zero = const i64[] {0}
             shape = Shape(x)
             length = Gather<axis=0>(shape, one)
             batch = Gather<axis=0>(shape, zero)
             y = Add(i, length)
             z = Add(i, batch)
         }",
    );
    assert_eq!(folded, ["length = i64[] [3]"]);
}

#[test]
fn operators_compute_what_onnx_says() {
    let cases = [
        (
            "a = const i64[] {4000000000}\nd = const i64[] {2147483640}\nv = Sub(a, d)\ny = Add(i, v)",
            "i64[] [1852516360]",
        ),
        ("n = Shape<start=1>(x)\nv = Neg(n)\ny = Add(i, v)", "i64[1] [-3]"),
        ("v = Size(x)\ny = Add(i, v)", "i64[] [6]"),
        (
            "a = const i64[] {7}\nb1 = const i64[] {1}\nc = const i64[] {-2}\nv = Range(a, b1, c)\ny = Add(i, v)",
            "i64[3] [7, 5, 3]",
        ),
        ("a = const i64[2] {7, -7}\nd = const i64[] {2}\nv = Div(a, d)\ny = Add(i, v)", "i64[2] [3, -3]"),
        ("a = const i64[2] {7, -7}\nd = const i64[] {2}\nv = Max(a, d)\ny = Add(i, v)", "i64[2] [7, 2]"),
        (
            "a = const i64[2, 1] {1, 2}\nd = const i64[2] {1, 3}\nv = LessOrEqual(a, d)\ny = And(b, v)",
            "bool[2, 2] [1, 1, 0, 1]",
        ),
        ("a = const bool[2] {1, 0}\nd = const bool[1] {1}\nv = Xor(a, d)\ny = And(b, v)", "bool[2] [0, 1]"),
        ("a = const bool[2] {1, 0}\nv = Not(a)\ny = And(b, v)", "bool[2] [0, 1]"),
        (
            "a = const bool[2] {1, 0}\nd = const i64[] {5}\ne = const i64[2, 1] {8, 9}\nv = Where(a, d, e)\ny = Add(i, v)",
            "i64[2, 2] [5, 8, 5, 9]",
        ),
        ("s = const i64[2] {2, 1}\nv = ConstantOfShape(s)\ny = Add(f, v)", "f32[2, 1] [0.0, 0.0]"),
        ("a = const i64[3] {0, 1, 4}\nv = Cast<to=1>(a)\ny = Add(f, v)", "f32[3] [0.0, 1.0, 4.0]"),
        ("a = const i64[3] {0, 1, 4}\nv = CastLike(a, f)\ny = Add(f, v)", "f32[3] [0.0, 1.0, 4.0]"),
        ("a = const f32[] {-2.7}\nv = Cast<to=7>(a)\ny = Add(i, v)", "i64[] [-2]"),
        ("a = const f32[] {9}\nv = Sqrt(a)\ny = Add(f, v)", "f32[] [3.0]"),
        ("a = const i64[2, 2] {1, 2, 3, 4}\nv = Transpose(a)\ny = Add(i, v)", "i64[2, 2] [1, 3, 2, 4]"),
        (
            "a = const i64[2, 2] {1, 2, 3, 4}\nj = const i64[1, 1] {-1}\nv = Gather<axis=1>(a, j)\ny = Add(i, v)",
            "i64[2, 1, 1] [2, 4]",
        ),
        (
            "a = const i64[4] {1, 2, 3, 4}\nm = const i64[1] {-3}\nn = const i64[1] {9223372036854775807}\nv = Slice(a, m, n)\ny = Add(i, v)",
            "i64[3] [2, 3, 4]",
        ),
        ("a = const i64[2, 2] {1, 2, 3, 4}\nv = Flatten<axis=0>(a)\ny = Add(i, v)", "i64[1, 4] [1, 2, 3, 4]"),
        ("a = const i64[2, 1] {1, 2}\nv = Squeeze(a)\ny = Add(i, v)", "i64[2] [1, 2]"),
        (
            "a = const i64[2, 1] {1, 2}\ns = const i64[2] {1, 3}\nv = Expand(a, s)\ny = Add(i, v)",
            "i64[2, 3] [1, 1, 1, 2, 2, 2]",
        ),
        (
            "a = const i64[4] {1, 2, 3, 4}\ns = const i64[2] {2, -1}\nv = Reshape(a, s)\ny = Add(i, v)",
            "i64[2, 2] [1, 2, 3, 4]",
        ),
    ];
    for (body, wanted) in cases {
        assert_eq!(value(body).as_deref(), Some(wanted), "{body}");
    }
}

#[test]
fn what_a_machine_decides_is_left_to_it() {
    let cases = [
        // Beyond the integers.
        "a = const i64[2] {9223372036854775807, 1}\nd = const i64[] {2}\nv = Mul(a, d)\ny = Add(i, v)",
        "a = const i64[] {1}\nd = const i64[2] {0, 0}\nv = Div(a, d)\ny = Add(i, v)",
        "a = const i64[2] {4000000000, 1}\nd = const i64[] {2147483640}\ne = Cast<to=6>(a)\nv = Cast<to=7>(e)\ny = Add(i, v)",
        "a = const i64[2] {-9223372036854775808, 1}\nd = const i64[] {-1}\nv = Div(a, d)\ny = Add(i, v)",
        "a = const f32[] {1e20}\nv = Cast<to=7>(a)\ny = Add(i, v)",
        "a = const f32[] {nan}\nv = Cast<to=7>(a)\ny = Add(i, v)",
        "a = const i64[2] {3000000000, 1}\nv = Cast<to=6>(a)\nw = Cast<to=7>(v)\ny = Add(i, w)",
        // Functions whose last bit is the library's.
        "a = const f32[] {2}\nv = Exp(a)\ny = Add(f, v)",
        "a = const f32[] {2}\nv = Pow(a, a)\ny = Add(f, v)",
    ];
    for body in cases {
        assert_eq!(value(body), None, "{body}");
    }
}

#[test]
fn weights_and_contents_are_not_folded() {
    let (graph, folded) = folded(
        "(tokens: i64[2, 3]) {
             table = const f32[2, 2] {1, 2, 3, 4}
             turned = Transpose(table)
             index = const i64[1] {1}
             row = Gather(turned, index)
             more = Add(tokens, index)
         }",
    );
    assert_eq!(folded, Vec::<String>::new());
    assert_eq!(graph.node_ids().count(), 3);
}

#[test]
fn outputs_stay_computed() {
    let (graph, folded) = folded("(x: f32[2, 3]) {\n shape = Shape(x)\n}");
    assert!(folded.is_empty() && graph.node_ids().count() == 1);
}

#[test]
fn hostile_constants_allocate_nothing_and_panic_nowhere() {
    let huge = "const i64[] {9223372036854775807}";
    let cases = [
        format!("a = const i64[] {{0}}\ne = {huge}\ns = const i64[] {{1}}\nv = Range(a, e, s)\ny = Add(i, v)"),
        "a = const i64[] {0}\ns = const i64[] {0}\nv = Range(a, a, s)\ny = Add(i, v)".to_owned(),
        "s = const i64[2] {1000000, 1000000}\nv = ConstantOfShape(s)\ny = Add(f, v)".to_owned(),
        "a = const i64[] {1}\ns = const i64[3] {4294967296, 4294967296, -1}\nv = Reshape(a, s)\ny = Add(i, v)".to_owned(),
        "a = const i64[] {1}\ns = const i64[3] {2000, 2000, 2000}\nv = Expand(a, s)\ny = Add(i, v)".to_owned(),
        "a = const i64[4] {1, 2, 3, 4}\nm = const i64[1] {-9223372036854775808}\nn = const i64[1] {9223372036854775807}\nt = const i64[1] {-1}\nz = const i64[1] {0}\nv = Slice(a, m, n, z, t)\ny = Add(i, v)".to_owned(),
    ];
    for body in cases {
        let text = format!("(x: f32[2, 3], i: i64[1], f: f32[1]) {{\n{body}\n}}");
        // What shape inference refuses is refused; what it takes is left alone.
        let Ok(mut graph) = parse(&text, 17) else { continue };
        let count = graph.node_ids().count();
        if graph.fold(BUDGET).is_ok() {
            assert_eq!(graph.node_ids().count(), count, "{body}");
        }
    }
}

#[test]
fn all_constants_together_are_bounded() {
    let mut text =
        "(x: f32[2], i: i64[1]) {\nzero = const i64[] {0}\nend = const i64[] {300}\none = const i64[] {1}\n".to_owned();
    for n in 0..60 {
        text += &format!("r{n} = Range(zero, end, one)\ns{n} = Add(r{n}, one)\ny{n} = Add(i, s{n})\n");
    }
    let (graph, folded) = folded(&(text + "}"));
    let bytes: usize = folded.len() * 300 * 8;
    assert!(!folded.is_empty() && bytes <= BUDGET.all, "{bytes}");
    assert!(graph.node_ids().any(|id| graph.node(id).is("Range")), "the rest is computed");
}
