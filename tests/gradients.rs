//! The gradient rules, each against three references: central differences in ONNX Runtime, the gradient written out in
//! plain f64 (`gradients/table.rs`), and what torch.autograd computed in double precision (`gradients/make.py`).

#[path = "common/cases.rs"]
mod cases;
mod common;
#[path = "gradients/table.rs"]
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lstc::rewrite::compile;
use lstc_graph::{Attributes, Builder, DataFiles, Graph, Origin, ValueId, encode, parse, print, shape_text, verify};
use lstc_passes::differentiate::{RULES, gradients};
use lstc_passes::options::{BackwardOptions, Gate, Options};
use lstc_passes::{Artifacts, Problem, artifacts};
use lstc_runtime::{Optimisation, Session, Tensor};
use lstc_tuned::config::Config;
use ndarray::{ArrayD, IxDyn};
use safetensors::{Dtype, SafeTensors};

use table::{Case, Differences, Point, cases, sizes};

/// Of f32 gradients, relative to the largest element: a rounding is 6e-8, and an element goes through at most a few
/// dozen of them.
const EXACT: f64 = 2e-6;

/// Differences in f64 with this step are off by h^4/30 of the fifth derivative, and by a rounding over h: 1e-12.
const F64_STEP: f64 = 1e-3;

/// In f32 a rounding of the loss, about 1e-6 of some 10, over h is 2e-5, and h^4/30 of erf's fifth derivative, at most
/// 14, is 7e-6. A smaller step is worse by the one, a larger by the other.
const F32_STEP: f64 = 0.0625;
const F32_DIFFERENCES: f64 = 2e-4;

/// The tensors of the fixture.
struct Fixture(BTreeMap<String, Tensor>);

impl Fixture {
    fn read() -> Fixture {
        fn elements<T, const N: usize>(bytes: &[u8], f: fn([u8; N]) -> T) -> Vec<T> {
            bytes.chunks_exact(N).map(|c| f(c.try_into().expect("chunks of N bytes"))).collect()
        }
        fn array<T>(shape: &[usize], values: Vec<T>) -> ArrayD<T> {
            ArrayD::from_shape_vec(IxDyn(shape), values).expect("the shape fits")
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gradients/expected.safetensors");
        let bytes = std::fs::read(path).expect("the fixture is committed");
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let tensors = file.iter().map(|(name, view)| {
            let (shape, data) = (view.shape(), view.data());
            let tensor = match view.dtype() {
                Dtype::F32 => array(shape, elements(data, f32::from_le_bytes)).into(),
                Dtype::F64 => array(shape, elements(data, f64::from_le_bytes)).into(),
                Dtype::I64 => array(shape, elements(data, i64::from_le_bytes)).into(),
                Dtype::I32 => array(shape, elements(data, i32::from_le_bytes)).into(),
                Dtype::BOOL => array(shape, data.iter().map(|b| *b != 0).collect()).into(),
                other => panic!("{name} is {other:?}"),
            };
            (name.to_owned(), tensor)
        });
        Fixture(tensors.collect())
    }

    fn get(&self, case: &Case, what: &str) -> &Tensor {
        let name = format!("{}/{what}", case.name());
        self.0.get(&name).unwrap_or_else(|| panic!("the fixture has no `{name}`: make.py writes it"))
    }
}

/// The elements as f64, whatever they are.
fn doubles(tensor: &Tensor) -> ArrayD<f64> {
    match tensor {
        Tensor::F32(a) => a.mapv(f64::from),
        Tensor::F64(a) => a.clone(),
        Tensor::I32(a) => a.mapv(f64::from),
        Tensor::I64(a) => a.mapv(|v| v as f64),
        Tensor::Bool(a) => a.mapv(|v| f64::from(u8::from(v))),
        Tensor::F16(_) => panic!("no operand is f16"),
    }
}

fn reshaped(tensor: &Tensor, shape: &[usize]) -> Tensor {
    fn array<T: Clone>(a: &ArrayD<T>, shape: &[usize]) -> ArrayD<T> {
        a.to_shape(IxDyn(shape)).expect("as many elements").to_owned()
    }
    match tensor {
        Tensor::F32(a) => array(a, shape).into(),
        Tensor::F64(a) => array(a, shape).into(),
        Tensor::F16(a) => array(a, shape).into(),
        Tensor::I32(a) => array(a, shape).into(),
        Tensor::I64(a) => array(a, shape).into(),
        Tensor::Bool(a) => array(a, shape).into(),
    }
}

fn session(graph: &Graph, optimisation: Optimisation) -> Session {
    let bytes = encode(graph, &DataFiles::default());
    let session = common::runtime().session().optimisation(optimisation).threads(1);
    session.load(&bytes, None).unwrap_or_else(|e| panic!("{e:?}\n{}", print(graph)))
}

fn run(session: &mut Session, inputs: &[(String, Tensor)], outputs: &[&str]) -> Vec<Tensor> {
    let taken: Vec<(&str, &Tensor)> = inputs
        .iter()
        .filter(|(k, _)| session.inputs().iter().any(|p| p.name == *k))
        .map(|(k, v)| (k.as_str(), v))
        .collect();
    session.run(&taken, outputs).unwrap_or_else(|e| panic!("{e:?}"))
}

fn trainable(graph: &Graph) -> Vec<ValueId> {
    graph.inputs.iter().copied().filter(|v| graph.value(*v).is_trainable()).collect()
}

fn name(graph: &Graph, value: ValueId) -> String {
    graph.value(value).name.clone()
}

/// The declared shape of an operand, with the sizes of its symbols.
fn declared(graph: &Graph, operand: ValueId) -> Vec<usize> {
    sizes(shape_text(&graph.shape(operand).expect("operands are declared")).trim_matches(['[', ']']))
}

/// The gradient of a scalar at itself.
fn one(graph: &mut Graph) -> ValueId {
    Builder::new(graph, Origin::pass("differentiate")).f32(1.0)
}

/// The ways to differentiate.
const WAYS: [BackwardOptions; 2] =
    [BackwardOptions { recompute_attention: false }, BackwardOptions { recompute_attention: true }];

/// Adds the gradient of each trainable operand as the output `<operand>.grad`.
fn differentiated(mut graph: Graph, options: BackwardOptions) -> Result<Graph, Vec<Problem>> {
    let wanted = trainable(&graph);
    let loss = graph.find("loss").expect("the graph has a loss");
    let one = one(&mut graph);
    let gradients = gradients(&mut graph, (loss, one), &wanted, (options, Origin::pass("differentiate")))?;
    let mut outputs = Vec::new();
    for (operand, gradient) in wanted.into_iter().zip(gradients) {
        let gradient = gradient.expect("the loss depends on every trainable operand");
        assert_eq!(
            graph.shape(gradient).map(|s| shape_text(&s)),
            graph.shape(operand).map(|s| shape_text(&s)),
            "a gradient has its operand's shape"
        );
        let name = format!("{}.grad", name(&graph, operand));
        let b = Builder::new(&mut graph, Origin::pass("differentiate"));
        let own = b.unshared("Identity", &[gradient], Attributes::none(), 1)[0];
        outputs.push(b.named(own, &name));
    }
    graph.outputs.extend(outputs);
    Ok(graph)
}

/// Largest difference, relative to the largest expected element; to 1 where a gradient is 0 everywhere.
fn error(found: &ArrayD<f64>, expected: &ArrayD<f64>) -> f64 {
    assert_eq!(found.shape(), expected.shape());
    let largest = expected.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    let difference = found.iter().zip(expected).fold(0.0_f64, |m, (a, b)| {
        assert!(a.is_finite(), "{a} is not finite");
        m.max((a - b).abs())
    });
    difference / if largest > 1e-6 { largest } else { 1.0 }
}

/// A graph with its operands, ready to be differentiated.
struct Subject {
    case: Case,
    graph: Graph,
    inputs: Vec<(String, Tensor)>,
}

impl Subject {
    fn new(case: Case, fixture: &Fixture) -> Subject {
        let mut graph = parse(&case.text(), case.opset).unwrap_or_else(|e| panic!("{}: {e}", case.name()));
        // As what lstc emits, and no backbone.
        graph.assign(&Origin::pass("test"));
        let inputs = graph
            .inputs
            .iter()
            .map(|v| {
                let name = name(&graph, *v);
                let tensor = reshaped(fixture.get(&case, &name), &declared(&graph, *v));
                (name, tensor)
            })
            .collect();
        Subject { case, graph, inputs }
    }

    fn operands(&self) -> Vec<String> {
        trainable(&self.graph).into_iter().map(|v| name(&self.graph, v)).collect()
    }

    /// The loss and the gradients by the rules.
    fn gradients(&self, optimisation: Optimisation, options: BackwardOptions) -> Vec<ArrayD<f64>> {
        let graph =
            differentiated(self.graph.clone(), options).unwrap_or_else(|e| panic!("{}: {e:?}", self.case.name()));
        assert_eq!(verify(&graph), [], "{}", self.case.name());
        let names: Vec<String> = graph.outputs.iter().map(|v| name(&graph, *v)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        run(&mut session(&graph, optimisation), &self.inputs, &names).iter().map(doubles).collect()
    }

    /// Five-point central differences of the loss: `(8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12 h`.
    fn differences(&self) -> Option<Vec<ArrayD<f64>>> {
        let (graph, step) = match self.case.differences {
            Differences::No => return None,
            Differences::F32 => (self.graph.clone(), F32_STEP),
            Differences::F64 => {
                let text = self.case.text().replace("f32[", "f64[").replace("Cast<to=1>", "Cast<to=11>");
                (parse(&text, self.case.opset).unwrap_or_else(|e| panic!("{}: {e}", self.case.name())), F64_STEP)
            }
        };
        let double = self.case.differences == Differences::F64;
        let mut session = session(&graph, Optimisation::All);
        let mut inputs = self.inputs.clone();
        for (_, tensor) in &mut inputs {
            if let (Tensor::F32(a), true) = (&*tensor, double) {
                *tensor = a.mapv(f64::from).into();
            }
        }
        let mut loss_at = |slot: usize, element: usize, shift: f64| {
            let kept = inputs[slot].1.clone();
            match &mut inputs[slot].1 {
                Tensor::F32(a) => a.as_slice_mut().expect("row-major")[element] += shift as f32,
                Tensor::F64(a) => a.as_slice_mut().expect("row-major")[element] += shift,
                other => panic!("{other:?} is not differentiated"),
            }
            let loss = run(&mut session, &inputs, &["loss"]);
            inputs[slot].1 = kept;
            doubles(&loss[0]).sum()
        };
        let operands = self.operands();
        let mut found = Vec::new();
        for (slot, (_, tensor)) in self.inputs.iter().enumerate().filter(|(_, (n, _))| operands.contains(n)) {
            let mut difference = |element: usize| {
                let mut apart = |h: f64| loss_at(slot, element, h) - loss_at(slot, element, -h);
                (8.0 * apart(step) - apart(2.0 * step)) / (12.0 * step)
            };
            let count = tensor.shape().iter().product();
            let values = (0..count).map(&mut difference).collect();
            found.push(ArrayD::from_shape_vec(IxDyn(tensor.shape()), values).expect("one for each element"));
        }
        Some(found)
    }

    /// The gradient written out.
    fn analytic(&self) -> Option<Vec<ArrayD<f64>>> {
        let shape = sizes(self.case.shape);
        let dy = self.inputs.iter().find(|(n, _)| n == "c").map(|(_, c)| doubles(c));
        let x = self.inputs.iter().filter(|(n, _)| n != "c").map(|(_, v)| doubles(v)).collect();
        let gradients = self.case.analytic?(&Point { x, dy: dy.unwrap_or_else(|| ArrayD::ones(IxDyn(&shape))) });
        let operands = self.operands();
        let of_trainable = self.inputs.iter().zip(gradients).filter(|((n, _), _)| operands.contains(n));
        Some(of_trainable.map(|(_, gradient)| gradient).collect())
    }
}

#[test]
fn every_rule_has_a_graph_and_every_graph_its_fixture() {
    let tested: BTreeSet<&str> = cases().iter().map(|c| c.rule).collect();
    let untested: Vec<&str> = RULES.iter().map(|(rule, _)| *rule).filter(|r| !tested.contains(r)).collect();
    assert!(untested.is_empty(), "add a graph to tests/gradients/table.rs for {untested:?}");
    assert!(RULES.is_sorted_by_key(|(rule, _)| *rule), "the rules are in alphabetical order");

    let listed: BTreeSet<String> = cases().iter().map(Case::name).collect();
    assert_eq!(listed.len(), cases().len(), "a name stands for one graph");
    let fixture = Fixture::read();
    let made: BTreeSet<String> =
        fixture.0.keys().map(|k| k.rsplit_once('/').expect("<graph>/<tensor>").0.to_owned()).collect();
    assert_eq!(listed, made, "tests/gradients/table.rs and make.py list the same graphs");
}

#[test]
fn gradients_agree_with_three_references() {
    let fixture = Fixture::read();
    let worst = |found: &[ArrayD<f64>], expected: &[ArrayD<f64>]| {
        assert_eq!(found.len(), expected.len());
        found.iter().zip(expected).map(|(f, e)| error(f, e)).fold(0.0, f64::max)
    };
    let mut failures = Vec::new();
    println!("{:<15} {:<24} {:>12} {:>9} {:>9}", "rule", "variant", "differences", "analytic", "PyTorch");
    for case in cases() {
        let subject = Subject::new(case, &fixture);
        let case = &subject.case;
        let torch = trainable(&subject.graph).into_iter().map(|v| {
            let gradient = fixture.get(case, &format!("{}.grad", name(&subject.graph, v)));
            doubles(&reshaped(gradient, &declared(&subject.graph, v)))
        });
        let torch = Some(torch.collect::<Vec<_>>());
        let (differences, analytic) = (subject.differences(), subject.analytic());
        let mut errors = [Some(0.0_f64), Some(0.0), Some(0.0)];
        for (optimisation, way) in
            [Optimisation::Off, Optimisation::All].into_iter().flat_map(|o| WAYS.map(|way| (o, way)))
        {
            let found = subject.gradients(optimisation, way);
            let loss = error(&found[0], &doubles(fixture.get(case, "loss")));
            assert!(loss <= 1e-5, "{}: make.py computes something else, the loss differs by {loss}", case.name());
            for (error, expected) in errors.iter_mut().zip([&differences, &analytic, &torch]) {
                *error = error.zip(expected.as_ref()).map(|(e, expected)| e.max(worst(&found[1..], expected)));
            }
        }
        let text = |e: Option<f64>| e.map_or_else(|| "-".to_owned(), |e| format!("{e:.1e}"));
        let [d, a, t] = errors.map(text);
        println!("{:<15} {:<24} {d:>12} {a:>9} {t:>9}", case.rule, case.variant);
        let of_differences = if case.differences == Differences::F32 { F32_DIFFERENCES } else { EXACT };
        for (error, bound) in errors.into_iter().zip([of_differences, EXACT, EXACT]) {
            if error.is_some_and(|e| e > bound) {
                failures.push(format!("{}: {errors:?}", case.name()));
                break;
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn attention_is_seen_in_both_layouts_and_made_anew_where_that_is_asked_for() {
    let fixture = Fixture::read();
    let attention = |case: &Case| ["attention", "attention, queries last"].contains(&case.variant);
    let seen = cases().into_iter().filter(attention).map(|case| {
        let subject = Subject::new(case, &fixture);
        let emitted = WAYS.map(|way| {
            let graph = differentiated(subject.graph.clone(), way).expect("the rules are there");
            let count = |op: &str| {
                let nodes = graph.node_ids().map(|id| graph.node(id));
                nodes.filter(|n| n.is(op) && n.origin == Origin::pass("differentiate")).count()
            };
            // The softmax's own rule subtracts the mean slope from what is as large as the probabilities.
            (count("Softmax"), count("Sub"))
        });
        assert_eq!(emitted, [(0, 0), (1, 0)], "{}", subject.case.name());
    });
    assert_eq!(seen.count(), 2);
}

#[test]
fn a_norm_is_seen_where_its_operators_have_no_other_reader() {
    let fixture = Fixture::read();
    let emitted = |variant: &str| {
        let case = cases().into_iter().find(|case| case.rule == "together" && case.variant == variant);
        let subject = Subject::new(case.expect("a case of the table"), &fixture);
        let graph = differentiated(subject.graph, WAYS[0]).expect("the rules are there");
        let nodes = graph.node_ids().map(|id| graph.node(id));
        nodes.filter(|n| n.is("ReduceSum") && n.origin == Origin::pass("differentiate")).count()
    };
    // The operators' own rules sum along rows; the norm's multiplies.
    assert_eq!(["norm by division", "norm by division, of a residual stream"].map(emitted), [0, 0]);
    assert!(
        ["norm by division, read twice", "norm by division, one weight for all"].map(emitted).iter().all(|n| *n > 0)
    );
}

/// The mask is drawn anew in each run, so the gradient is compared with the y of the same run.
#[test]
fn the_gradient_of_dropout_passes_where_the_value_did() {
    let text = "(trainable x: f32[64, 64], c: f32[64, 64]) {
        rate = const f32[] {0.25}
        training = const bool[] {1}
        y, mask = Dropout(x, rate, training)
        weighted = Mul(y, c)
        loss = ReduceSum<keepdims=0>(weighted)
    } -> loss, y";
    let graph =
        differentiated(parse(text, 17).expect("a graph"), BackwardOptions::default()).expect("the rules are there");
    let x: ArrayD<f32> = ArrayD::from_shape_fn(IxDyn(&[64, 64]), |i| 1.0 + (i[0] * 64 + i[1]) as f32 / 64.0);
    let c = x.mapv(|v| (v * 3.0).sin() + 2.0);
    let inputs = [("x".to_owned(), x.clone().into()), ("c".to_owned(), c.clone().into())];
    for optimisation in [Optimisation::Off, Optimisation::All] {
        let found = run(&mut session(&graph, optimisation), &inputs, &["y", "x.grad"]);
        let (y, dx) = (found[0].as_f32().expect("f32"), found[1].as_f32().expect("f32"));
        let kept = y.iter().filter(|v| **v != 0.0).count();
        // 4096 draws at 0.75: the deviation is 28.
        assert!((2900..=3244).contains(&kept), "{kept} of 4096 were kept");
        for ((y, dx), (x, c)) in y.iter().zip(dx).zip(x.iter().zip(&c)) {
            let expected = c * y / x;
            assert!((dx - expected).abs() <= 1e-6 * expected.abs(), "{dx} is not {expected}");
        }
    }
}

fn refusal(text: &str) -> Vec<String> {
    let graph = parse(text, 17).unwrap_or_else(|e| panic!("{e}"));
    let refused = differentiated(graph, BackwardOptions::default()).err();
    let refused = refused.unwrap_or_else(|| panic!("{text} was differentiated"));
    refused.iter().map(ToString::to_string).collect()
}

#[test]
fn missing_rules_are_reported_at_once() {
    let text = "(trainable x: f32[4], a: f32[4]) {
        before = Floor(a)
        wave = Sin(x)
        other = Cos(wave)
        strange = com.example::Tanh(other)
        sum = Add(strange, before)
        loss = ReduceSum<keepdims=0>(sum)
    } -> loss";
    let mut graph = parse(text, 17).expect("a graph");
    let wanted = trainable(&graph);
    let loss = graph.find("loss").expect("a loss");
    let one = one(&mut graph);
    let before = print(&graph);
    let error =
        gradients(&mut graph, (loss, one), &wanted, (BackwardOptions::default(), Origin::pass("differentiate")))
            .expect_err("three rules are missing");
    assert_eq!(
        error.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "`other`: Cos has no gradient rule",
            "`strange`: Tanh has no gradient rule",
            "`wave`: Sin has no gradient rule",
        ]
    );
    assert_eq!(print(&graph), before, "nothing was emitted");
}

#[test]
fn off_the_path_no_rule_is_needed() {
    let text = "(trainable x: f32[4], a: f32[4]) {
        frozen = Sin(a)
        y = Mul(x, frozen)
        beside = Cos(y)
        loss = ReduceSum<keepdims=0>(y)
    } -> loss, beside";
    let graph =
        differentiated(parse(text, 17).expect("a graph"), BackwardOptions::default()).expect("every rule is there");
    let ones: Tensor = ArrayD::from_elem(IxDyn(&[4]), 1.0_f32).into();
    let inputs = [("x".to_owned(), ones.clone()), ("a".to_owned(), ones)];
    let found = run(&mut session(&graph, Optimisation::Off), &inputs, &["x.grad"]);
    let expected = ArrayD::from_elem(IxDyn(&[4]), f64::from(1.0_f32.sin()));
    assert!(error(&doubles(&found[0]), &expected) <= EXACT);
}

#[test]
fn a_frozen_branch_gets_no_gradient() {
    let text = "(trainable w: f32[4, 2], x: f32[B, 4], v: f32[2, 3], b: f32[B, 3]) {
        warm = Tanh(x)
        hidden = Gemm(warm, w)
        turned = Exp(v)
        y = MatMul(hidden, turned)
        shifted = Sigmoid(b)
        sum = Add(y, shifted)
        loss = ReduceSum<keepdims=0>(sum)
    } -> loss";
    let graph =
        differentiated(parse(text, 17).expect("a graph"), BackwardOptions::default()).expect("every rule is there");
    let emitted: Vec<String> = graph
        .node_ids()
        .map(|id| graph.node(id))
        .filter(|n| n.origin != Origin::SOURCE)
        .map(|n| format!("{} {}", n.op, n.name))
        .collect();
    let frozen = ["warm", "turned", "shifted"].map(|n| format!("grad/{n}/"));
    for node in &emitted {
        assert!(!frozen.iter().any(|f| node.contains(f.as_str())), "`{node}` is of a frozen branch");
    }
    // The one product is w's: neither x nor v has a gradient, and the sum passes what comes in.
    let products = emitted.iter().filter(|n| n.starts_with("MatMul") || n.starts_with("Gemm")).count();
    assert_eq!(products, 2, "hidden's gradient and w's: {emitted:?}");
}

#[test]
fn a_parameter_that_the_loss_does_not_reach_has_no_gradient() {
    let text = "(trainable x: f32[4], trainable y: f32[4]) {
        beside = Exp(y)
        loss = ReduceSum<keepdims=0>(x)
    } -> loss, beside";
    let mut graph = parse(text, 17).expect("a graph");
    let wanted = trainable(&graph);
    let loss = graph.find("loss").expect("a loss");
    let one = one(&mut graph);
    let found =
        gradients(&mut graph, (loss, one), &wanted, (BackwardOptions::default(), Origin::pass("differentiate")))
            .expect("every rule is there");
    assert!(found[0].is_some() && found[1].is_none());
}

#[test]
fn integers_carry_no_gradient() {
    let text = "(trainable x: f32[4]) {
        whole = Cast<to=7>(x)
        back = Cast<to=1>(whole)
        sizes = Shape(x)
        count = Cast<to=1>(sizes)
        y = Mul(back, count)
        loss = ReduceSum<keepdims=0>(y)
    } -> loss";
    let mut graph = parse(text, 17).expect("a graph");
    let wanted = trainable(&graph);
    let loss = graph.find("loss").expect("a loss");
    let one = one(&mut graph);
    let found =
        gradients(&mut graph, (loss, one), &wanted, (BackwardOptions::default(), Origin::pass("differentiate")))
            .expect("no rule is needed");
    assert_eq!(found, [None]);
}

#[test]
fn forms_without_a_rule_are_refused_by_name() {
    let check = |text: &str, expected: &[&str]| assert_eq!(refusal(text), expected, "{text}");
    check(
        "(trainable a: f32[3, 4], b: f32[4, 2]) { y = Gemm<alpha=0.5>(a, b) loss = ReduceSum<keepdims=0>(y) }",
        &["`y`: Gemm has a gradient rule only for a factor alpha of 1"],
    );
    check(
        "(trainable a: f32[3, 4], b: f32[4]) { y = MatMul(a, b) loss = ReduceSum<keepdims=0>(y) }",
        &[
            "`loss`: it has no shape",
            "`y`: it has no shape",
            "`y`: MatMul has a gradient rule only for operands of rank 2 and more",
        ],
    );
    check(
        "(trainable a: f32[4], b: f32[4, 2]) { y = MatMul(a, b) loss = ReduceSum<keepdims=0>(y) }",
        &[
            "`loss`: it has no shape",
            "`y`: it has no shape",
            "`y`: MatMul has a gradient rule only for operands of rank 2 and more",
        ],
    );
    check(
        "(trainable t: f32[4, 3], i: i64[2]) { y = Gather<axis=1>(t, i) loss = ReduceSum<keepdims=0>(y) }",
        &["`y`: Gather has a gradient rule only for rows, axis 0"],
    );
    check(
        "(trainable t: f32[N, 3], i: i64[2]) { y = Gather(t, i) loss = ReduceSum<keepdims=0>(y) }",
        &["`y`: Gather has a gradient rule only for matrices of constant size"],
    );
    check(
        "(trainable x: f32[3, 4], i: i64[3, 2]) { y = GatherElements<axis=1>(x, i) loss = ReduceSum<keepdims=0>(y) }",
        &["`y`: GatherElements has a gradient rule only for one element of each row of a matrix"],
    );
    check(
        "(trainable x: f32[3, 4], i: i64[2, 1]) { y = GatherElements<axis=1>(x, i) loss = ReduceSum<keepdims=0>(y) }",
        &["`y`: GatherElements has a gradient rule only for one element of each row of a matrix"],
    );
    check(
        "(trainable x: f32[3, 4], axes: i64[1]) { y = ReduceSum(x, axes) loss = ReduceSum<keepdims=0>(y) }",
        &[
            "`y`: ReduceSum has a gradient rule only for constant axes",
            "`x`: whether it is repeated along axis 0 cannot be decided: 3 against ?1_1",
        ],
    );
    check(
        "(trainable a: f32[N], trainable b: f32[M]) { y = Add(a, b) loss = ReduceSum<keepdims=0>(y) }",
        &[
            "`a`: whether it is repeated along axis 0 cannot be decided: N against broadcast(M, N)",
            "`b`: whether it is repeated along axis 0 cannot be decided: M against broadcast(M, N)",
        ],
    );
}

/// Operators that the compiler emits, and the element types that it needs of them. Each has a kernel for the CPU, which
/// the test below asks ONNX Runtime for. For CUDA the list is from ONNX Runtime's documentation: no device has run it.
const EMITTED: &[(&str, &str)] = &[
    ("Add", "f32 and i64 sizes"),
    ("Cast", "i64 and bool to f32"),
    ("Concat", "f32 and i64 shapes"),
    ("Div", "f32 and i64 sizes"),
    ("Dropout", "f32, with its mask"),
    ("Equal", "i64"),
    ("Erf", "f32"),
    ("Exp", "f32"),
    ("Expand", "f32"),
    ("Gather", "f32 and i64 by i64"),
    ("GatherElements", "f32 by i64"),
    ("Gemm", "f32"),
    ("Greater", "f32 and i64 sizes"),
    ("Identity", "f32"),
    ("LogSoftmax", "f32"),
    ("MatMul", "f32"),
    ("Max", "f32"),
    ("Min", "f32"),
    ("Mul", "f32 and i64 sizes"),
    ("Neg", "f32"),
    ("NonZero", "bool"),
    ("Not", "bool"),
    ("OneHot", "f32 by i64, depth i64: CUDA has no i32 indices with an i64 depth"),
    ("Pow", "f32"),
    ("Reciprocal", "f32"),
    ("ReduceSum", "f32"),
    ("ReduceSumSquare", "f32"),
    ("Relu", "f32"),
    ("Reshape", "any"),
    ("ScatterElements", "f32 by i64, one of each row"),
    ("ScatterND", "f32 by i64, each row once"),
    ("Shape", "f32 and i64, from opset 15 with start and end"),
    ("Sigmoid", "f32"),
    ("Size", "i64"),
    ("Slice", "f32 and i64"),
    ("Softmax", "f32"),
    ("Split", "f32"),
    ("Sqrt", "f32"),
    ("Sub", "f32"),
    ("Sum", "f32"),
    ("Tanh", "f32"),
    ("Transpose", "f32"),
    ("Unsqueeze", "f32"),
    ("Where", "f32 and i64"),
];

/// The case's own options, and options that together turn on everything that changes the graph.
fn variations(own: &Options) -> Vec<(&'static str, Options)> {
    let with = |change: fn(&mut Options)| {
        let mut options = own.clone();
        change(&mut options);
        options
    };
    vec![
        ("as committed", own.clone()),
        (
            "learnable, dropout",
            with(|o| {
                o.method.gate = Gate::Learnable;
                o.method.dropout = 0.1;
                o.method.bias = true;
            }),
        ),
        (
            "fixed, distilled, merged",
            with(|o| {
                o.method.gate = Gate::Fixed;
                o.method.merge_last = true;
                o.method.bias = false;
                o.loss.distill = 0.5;
            }),
        ),
        (
            "none, only distilled, no clip",
            with(|o| {
                o.method.gate = Gate::None;
                o.method.merge_last = false;
                o.method.bias = false;
                o.method.dropout = 0.1;
                (o.loss.label, o.loss.distill) = (0.0, 1.0);
                o.optimizer.clip = 0.0;
            }),
        ),
    ]
}

/// Operators of the nodes that passes made, by name, each with a node that it was seen in.
fn collect(graph: &Graph, seen: &mut BTreeMap<String, String>) {
    for node in graph.node_ids().map(|id| graph.node(id)).filter(|n| n.origin != Origin::SOURCE) {
        assert!(node.is_default_domain(), "`{}` is {}::{}", node.name, node.domain, node.op);
        seen.entry(node.op.clone()).or_insert_with(|| format!("`{}` of pass {}", node.name, node.origin));
    }
}

#[test]
fn every_emitted_operator_has_a_kernel() {
    let listed: BTreeSet<&str> = EMITTED.iter().map(|(op, _)| *op).collect();
    let mut seen = BTreeMap::new();
    for folder in cases::with("lst.yaml", 15) {
        let own = Config::read(&folder.join("lst.yaml")).expect("a configuration").options();
        for (variation, options) in variations(&own) {
            let place = format!("{}, {variation}", folder.display());
            let (module, _) = compile(folder.join("model.onnx"), options, None, |_, _| ())
                .unwrap_or_else(|e| panic!("{place}: {e:?}"));
            let made: Artifacts = artifacts(&module);
            collect(&module.graph, &mut seen);
            for (file, graph) in made.files() {
                collect(graph, &mut seen);
                // ONNX Runtime refuses a graph with a node that it has no kernel for.
                let bytes = encode(graph, &DataFiles::default());
                let opened = common::runtime().session().optimisation(Optimisation::Off).threads(1).load(&bytes, None);
                opened.unwrap_or_else(|e| panic!("{place}, {file}: {e:?}"));
            }
        }
    }
    // What no committed case needs, a rule may emit, or take where another model does: the graphs of the rules' own test
    // run all of these.
    for (rule, _) in RULES {
        seen.entry((*rule).to_owned()).or_insert_with(|| "the rules' table".to_owned());
    }
    for case in cases() {
        let graph = differentiated(parse(&case.text(), case.opset).expect("a graph"), BackwardOptions::default())
            .expect("every rule is there");
        collect(&graph, &mut seen);
    }
    let unknown: Vec<_> = seen.iter().filter(|(op, _)| !listed.contains(op.as_str())).collect();
    assert!(unknown.is_empty(), "no kernel is known for {unknown:?}");
    let never: Vec<_> = listed.iter().filter(|op| !seen.contains_key(**op)).collect();
    assert!(never.is_empty(), "nothing emits {never:?}");
    assert!(EMITTED.is_sorted_by_key(|(op, _)| *op));
}
