//! The text form and the ONNX form are two spellings of one graph.

use lstc_graph::{DataFiles, encode, load_bytes, parse, print, verify};

fn same_after_onnx(text: &str) {
    let graph = parse(text, 17).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(verify(&graph), [], "{text}");
    let bytes = encode(&graph, &DataFiles::default());
    let back = load_bytes(bytes.into(), "memory.onnx".as_ref()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(print(&graph), print(&back));
}

#[test]
fn round_trip() {
    same_after_onnx(
        "(x: f32[B, 4]) {
            w = const f32[4, 2] {1.0, 2.0, -3.5, 4.0, 5.0, 6.0, 7.0, 8.0}
            axes = const i64[1] {-1}
            y = MatMul(x, w)
            s = Softmax<axis=-1>(y)
            loss = ReduceSum<keepdims=0>(s, axes)
         } -> loss, s",
    );
}

#[test]
fn what_is_no_graph_says_where() {
    let error = |text: &str| parse(text, 17).err().expect("it must fail").to_string();
    assert_eq!(error("(x: f32[2]) {\n y = Relu(z)\n}"), "line 2: nothing is named `z`");
    assert_eq!(error("(x: f33[2]) {}"), "line 1: `f33` is not an element type");
    assert_eq!(error("(x: f32[2]) {\n y = Relu(x)\n y = Relu(x)\n}"), "line 3: `y` is defined twice");
}
