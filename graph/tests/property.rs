//! Random graphs survive each way out and in again: text, ONNX, ONNX with a data file.

use std::cell::Cell;
use std::fmt::Write;

use lstc_graph::{
    DataFiles, DataWriter, Graph, Links, Means, Saved, copy_data, encode, load, load_bytes, parse, print, verify,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// One statement, as choices: of the kind, of operands, and of whatever numbers and texts it wants.
#[derive(Clone, Debug)]
struct Choice {
    kind: usize,
    operands: [usize; 3],
    int: i64,
    ints: Vec<i64>,
    floats: Vec<f32>,
    text: String,
    texts: Vec<String>,
}

fn choice() -> impl Strategy<Value = Choice> {
    let text = || prop_oneof!["[a-z]{0,6}", "\\PC{0,8}", Just("a \"b\"\\\n\t\r\0'".to_owned())];
    let any_ints = prop::collection::vec(any::<i64>(), 0..5);
    let any_floats = prop::collection::vec(prop_oneof![any::<f32>(), Just(f32::NAN), Just(-0.0), Just(1e-45)], 0..5);
    let texts = prop::collection::vec(text(), 0..4);
    (0..KINDS, any::<[u16; 3]>(), any::<i64>(), any_ints, any_floats, text(), texts).prop_map(
        |(kind, operands, int, ints, floats, text, texts)| Choice {
            kind,
            operands: operands.map(usize::from),
            int,
            ints,
            floats,
            text,
            texts,
        },
    )
}

const KINDS: usize = 26;
const DTYPES: [&str; 13] = ["f32", "f64", "f16", "bf16", "i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64", "bool"];

/// The text of a graph in the making. Values that go together are kept together, so that what is random fits.
struct Making {
    body: String,
    count: usize,
    /// f32 `[B, 4]`, or longer.
    rows: Vec<String>,
    /// f32 `[4, 4]`
    squares: Vec<String>,
    /// bool, of the shape of rows.
    masks: Vec<String>,
    /// Read by nothing more.
    ends: Vec<String>,
}

impl Making {
    /// An unused name, now and then one that needs quotes.
    fn name(&mut self, c: &Choice) -> String {
        self.count += 1;
        let name = format!("v{}{}", self.count, if c.int % 3 == 0 { c.text.as_str() } else { "" });
        format!("{name:?}")
    }

    fn line(&mut self, outputs: &[&str], call: &str) {
        let _ = writeln!(self.body, "    {} = {call}", outputs.join(", "));
    }

    fn statement(&mut self, c: &Choice) {
        let y = self.name(c);
        let (x, x2) = (pick(&self.rows, c.operands[0]), pick(&self.rows, c.operands[1]));
        let (m, mask) = (pick(&self.squares, c.operands[1]), pick(&self.masks, c.operands[2]));
        let list = |items: Vec<String>| format!("[{}]", items.join(", "));
        let ints = list(c.ints.iter().map(i64::to_string).collect());
        let floats = if c.floats.is_empty() { "floats []".to_owned() } else { format!("{:?}", c.floats) };
        let texts = if c.texts.is_empty() { "strings []".to_owned() } else { format!("{:?}", c.texts) };
        let float = c.floats.first().copied().unwrap_or(0.5);
        let spare = self.name(c);
        match c.kind {
            0..=2 => {
                let op = ["Add", "Mul", "Sub"][c.kind];
                self.line(&[&y], &format!("{op}({x}, {x2})"));
                self.rows.push(y);
            }
            3..=5 => {
                let op = ["Relu", "Sigmoid", "Identity"][c.kind - 3];
                self.line(&[&y], &format!("{op}({x})"));
                self.rows.push(y);
            }
            6 => {
                self.line(&[&y], &format!("Softmax<axis={}>({x})", c.int % 2));
                self.rows.push(y);
            }
            7 => {
                self.line(&[&y], &format!("MatMul({x}, {m})"));
                self.rows.push(y);
            }
            8 => {
                self.line(&[&y], &format!("Transpose<perm=[1, 0]>({m})"));
                self.squares.push(y);
            }
            9 => {
                self.line(&[&spare], "const i64[2] {0, 4}");
                self.line(&[&y], &format!("Reshape<allowzero=0>({x}, {spare})"));
                self.rows.push(y);
            }
            10 => {
                self.line(&[&spare], "const i64[1] {-1}");
                self.line(&[&y], &format!("ReduceSum<keepdims={}>({x}, {spare})", c.int & 1));
                self.ends.push(y);
            }
            11 => {
                self.line(&[&y], &format!("Concat<axis=0>({x}, {x2})"));
                self.rows.push(y);
            }
            12 => {
                self.line(&[&spare], &format!("const i64[2] {{{}, {}}}", c.int % 4, 0));
                self.line(&[&y], &format!("Gather<axis=1>({x}, {spare})"));
                self.ends.push(y);
            }
            13 => {
                self.line(&[&y], &format!("Where({mask}, {x}, {x})"));
                self.ends.push(y);
            }
            14 => {
                self.line(&[&y], &format!("Cast<to=9>({x})"));
                self.masks.push(y);
            }
            15 => {
                self.line(&[&y], &format!("Cast<to={}>({x})", [1, 7, 10, 11, 16][c.operands[2] % 5]));
                self.ends.push(y);
            }
            16 => {
                self.line(&[&spare], &format!("const f32[] {{{float:?}}}"));
                self.line(&[&y], &format!("Clip({x}, _, {spare})"));
                self.rows.push(y);
            }
            17 => {
                self.line(&[&y, &spare], &format!("Dropout<seed={}>({x})", c.int));
                self.rows.push(y);
                self.masks.push(spare);
            }
            18 => {
                self.line(&["_", &y], &format!("Split<axis=1>({x})"));
                self.ends.push(y);
            }
            19 => {
                let call = format!(
                    "{:?}::{:?}<a={}, b={float:?}, c={:?}, d={ints}, e={floats}, f={texts}>({x}, _, {x2})",
                    "com.example", "Fancy", c.int, c.text
                );
                self.line(&[&y, "_", &spare], &call);
                self.ends.extend([y, spare]);
            }
            20 => {
                let tensor = constant(DTYPES[c.operands[0] % DTYPES.len()], c);
                self.line(&[&y], &format!("com.example::Table<table={tensor}>()"));
                self.ends.push(y);
            }
            21 => {
                let tensor = constant(DTYPES[c.operands[0] % DTYPES.len()], c);
                self.line(&[&spare], &tensor);
                self.line(&[&y], &format!("Identity({spare})"));
                self.ends.push(y);
            }
            22 => {
                let numbers: Vec<String> = (0..16).map(|i| format!("{:?}", float * i as f32)).collect();
                self.line(&[&y], &format!("const f32[4, 4] {{{}}}", numbers.join(", ")));
                self.squares.push(y);
            }
            23 => {
                let numbers: Vec<String> = (0..400).map(|i| format!("{:?}", float + i as f32)).collect();
                self.line(&[&spare], &format!("const f32[4, 100] {{{}}}", numbers.join(", ")));
                self.line(&[&y], &format!("MatMul({x}, {spare})"));
                self.ends.push(y);
            }
            24 => {
                let numbers: Vec<String> = (0..200).map(|i: i64| (c.int ^ i).to_string()).collect();
                self.line(&[&spare], &format!("const i64[200] {{{}}}", numbers.join(", ")));
                self.line(&[&y], &format!("Abs({spare})"));
                self.ends.push(y);
            }
            _ => {
                self.line(&[&y], &format!("Shape<start=0>({x})"));
                self.ends.push(y);
            }
        }
    }
}

fn pick(names: &[String], choice: usize) -> String {
    names[choice % names.len()].clone()
}

/// A constant of any type, with as many numbers as the choice has.
fn constant(dtype: &str, c: &Choice) -> String {
    let int = |v: &i64| match dtype {
        "i8" => (*v as i8).to_string(),
        "i16" => (*v as i16).to_string(),
        "i32" => (*v as i32).to_string(),
        "u8" => (*v as u8).to_string(),
        "u16" => (*v as u16).to_string(),
        "u32" => (*v as u32).to_string(),
        "u64" => (*v as u64).to_string(),
        "bool" => (v & 1).to_string(),
        _ => v.to_string(),
    };
    let numbers: Vec<String> = match dtype {
        "f64" => c.ints.iter().map(|v| format!("{:?}", f64::from_bits(*v as u64))).collect(),
        "f32" | "f16" | "bf16" => c.floats.iter().map(|v| format!("{v:?}")).collect(),
        _ => c.ints.iter().map(int).collect(),
    };
    format!("const {dtype}[{}, 1] {{{}}}", numbers.len(), numbers.join(", "))
}

/// A graph of these statements: plain and trainable inputs, and as outputs what no statement reads.
fn graph(choices: &[Choice]) -> Graph {
    let quoted = |names: &[&str]| names.iter().map(|n| format!("{n:?}")).collect::<Vec<_>>();
    let mut making = Making {
        body: String::new(),
        count: 0,
        rows: quoted(&["x", "second input"]),
        squares: quoted(&["w", "trainable"]),
        masks: quoted(&["keep"]),
        ends: Vec::new(),
    };
    for c in choices {
        making.statement(c);
    }
    let mut outputs = making.ends.clone();
    outputs.extend(making.rows[2..].last().cloned());
    if outputs.is_empty() {
        making.line(&["last"], "Relu(x)");
        outputs.push("last".to_owned());
    }
    let text = format!(
        "(x: f32[B, 4], \"second input\": f32[\"B\", 4], keep: bool[B, 4], trainable w: f32[4, 4], \
         trainable \"trainable\": f32[4, 4], unread: i64[\"a * b\", \"7\"]) {{\n{}}} -> {}",
        making.body,
        outputs.join(", ")
    );
    parse(&text, 17).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// The text without what ONNX has no place for: which inputs are trained.
fn frozen(graph: &Graph) -> String {
    let text = print(graph);
    let (inputs, rest) = text.split_once('\n').expect("a graph is more than a line");
    format!("{}\n{rest}", inputs.replace("trainable w", "w").replace("trainable \"trainable\"", "\"trainable\""))
}

/// Runs a property on the same random graphs each time; the nodes of all of them.
fn on_graphs(cases: u32, property: impl Fn(Graph) -> Result<(), TestCaseError>) -> usize {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let nodes = Cell::new(0);
    let result = runner.run(&prop::collection::vec(choice(), 0..24), |choices| {
        let graph = graph(&choices);
        nodes.set(nodes.get() + graph.node_ids().count());
        property(graph)
    });
    result.unwrap_or_else(|e| panic!("{e}"));
    nodes.get()
}

#[test]
fn text_is_stable() {
    let nodes = on_graphs(400, |graph| {
        let text = print(&graph);
        let again = parse(&text, 17).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
        prop_assert_eq!(&text, &print(&again));
        prop_assert_eq!(verify(&graph), verify(&again));
        Ok(())
    });
    println!("400 graphs of {nodes} nodes: print, parse, print");
}

#[test]
fn onnx_holds_it_all() {
    let nodes = on_graphs(400, |graph| {
        let bytes = encode(&graph, &DataFiles::default());
        let again = load_bytes(bytes.into(), "memory.onnx".as_ref()).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(frozen(&graph), print(&again));
        prop_assert_eq!(verify(&graph), verify(&again));
        prop_assert_eq!(again.opset(), 17);
        Ok(())
    });
    println!("400 graphs of {nodes} nodes: encode, load");
}

#[test]
fn data_files_hold_the_weights() {
    let (written, linked) = (Cell::new(0), Cell::new(0));
    let nodes = on_graphs(100, |graph| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = |name: &str| folder.path().join(name);
        let (data, bytes) = copy_data(&[&graph], folder.path(), "w.data").expect("a writable folder");
        written.set(written.get() + bytes);
        std::fs::write(file("model.onnx"), encode(&graph, &data)).expect("a writable folder");
        let again = load(&file("model.onnx")).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(frozen(&graph), print(&again));
        prop_assert_eq!(verify(&graph), verify(&again));

        // From the file into another folder: a link to the same bytes.
        let other = file("other");
        std::fs::create_dir(&other).expect("a writable folder");
        let graphs = [&again];
        let mut writer = DataWriter::new(&graphs, &other, "w.data");
        writer.link(Links::HardLinks).expect("a writable folder");
        let (data, saved) = writer.copy(&mut |_| ()).expect("a writable folder");
        if bytes > 0 {
            prop_assert!(matches!(&saved[..], [Saved { means: Means::Linked(_), .. }]), "{:?}", saved);
            linked.set(linked.get() + 1);
        }
        std::fs::write(other.join("model.onnx"), encode(&again, &data)).expect("a writable folder");
        let third = load(&other.join("model.onnx")).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(print(&again), print(&third));
        Ok(())
    });
    let (written, linked) = (written.get(), linked.get());
    println!("100 graphs of {nodes} nodes: {written} bytes of data files, {linked} linked");
    assert!(written > 10_000 && linked > 10);
}
