//! Parity with PyTorch: what `tests/cases/make.py` computed in double precision on its own Ladder Side-Tuning.
//!
//! Bounds are those of fp32 arithmetic: logits 1e-5 and loss 1e-6 relative to their largest, gradients 1e-4 relative to
//! the parameter's largest, the loss curve of 20 AdamW steps 1e-4.

#[path = "common/cases.rs"]
mod cases;
mod common;
#[path = "common/moments.rs"]
mod moments;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use lstc::rewrite::{Request, rewrite};
use lstc_runtime::{Optimisation, Session, Tensor};
use lstc_tuned::config::Config;
use lstc_tuned::side::Side;
use ndarray::{ArrayD, ArrayViewD, IxDyn};
use safetensors::{Dtype, SafeTensors};

const LOGITS: f64 = 1e-5;
const LOSS: f64 = 1e-6;
const GRADIENT: f64 = 1e-4;
const CURVE: f64 = 1e-4;
const FINAL: f64 = 1e-4;

/// Tensors and metadata of a safetensors file.
struct Expected {
    tensors: BTreeMap<String, Tensor>,
    metadata: HashMap<String, String>,
}

impl Expected {
    fn read(path: &Path) -> Expected {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("a safetensors file");
        let metadata = header.metadata().clone().unwrap_or_default();
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let tensors = file.iter().map(|(name, view)| {
            let shape = IxDyn(view.shape());
            let tensor: Tensor = match view.dtype() {
                Dtype::F32 => {
                    let v = view.data().chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().expect("4 bytes")));
                    ArrayD::from_shape_vec(shape, v.collect()).expect("the shape fits").into()
                }
                Dtype::I64 => {
                    let v = view.data().chunks_exact(8).map(|c| i64::from_le_bytes(c.try_into().expect("8 bytes")));
                    ArrayD::from_shape_vec(shape, v.collect()).expect("the shape fits").into()
                }
                other => panic!("{name} is {other:?}"),
            };
            (name.to_owned(), tensor)
        });
        Expected { tensors: tensors.collect(), metadata }
    }

    fn get(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("no `{name}` was expected"))
    }

    fn f32(&self, name: &str) -> ArrayViewD<'_, f32> {
        self.get(name).as_f32().expect("f32")
    }

    fn number(&self, name: &str) -> f32 {
        self.metadata[name].parse().expect("a number")
    }
}

/// Largest difference, relative to the largest expected element.
fn error(found: &ArrayViewD<f32>, expected: &ArrayViewD<f32>) -> f64 {
    assert_eq!(found.shape(), expected.shape());
    let largest = expected.iter().fold(0.0_f64, |m, v| m.max(f64::from(v.abs())));
    let difference = found.iter().zip(expected).fold(0.0_f64, |m, (a, b)| {
        assert!(a.is_finite(), "{a} is not finite");
        m.max((f64::from(*a) - f64::from(*b)).abs())
    });
    difference / largest.max(1e-12)
}

fn scalar(tensor: &Tensor) -> f32 {
    *tensor.as_f32().expect("f32").first().expect("one element")
}

struct Rewritten {
    folder: tempfile::TempDir,
    case: PathBuf,
    expected: Expected,
    side: Side,
}

impl Rewritten {
    fn new(case: &Path) -> Rewritten {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = Config::read(&case.join("lst.yaml")).unwrap_or_else(|e| panic!("{e:?}"));
        let request = Request {
            model: case.join("model.onnx").into(),
            options: config.options(),
            training: config.training(),
            output: &folder.path().join("tuned"),
            force: false,
        };
        rewrite(request, |_, _| ()).unwrap_or_else(|e| panic!("{}: {e:?}", case.display()));
        let side = lstc_tuned::side::load(&case.join("side.safetensors")).expect("the case's side network");
        let initial =
            lstc_tuned::side::load(&folder.path().join("tuned/side.safetensors")).expect("the initial side network");
        let shapes = |s: &Side| s.iter().map(|(k, v)| (k.clone(), v.shape().to_vec())).collect::<Vec<_>>();
        assert_eq!(shapes(&side), shapes(&initial), "the state dicts have the same names and shapes");
        Rewritten { folder, case: case.to_owned(), expected: Expected::read(&case.join("expected.safetensors")), side }
    }

    fn name(&self) -> &str {
        self.case.file_name().and_then(|n| n.to_str()).expect("a name")
    }

    fn session(&self, graph: &str) -> Session {
        let session = common::runtime().session().optimisation(Optimisation::All).threads(1);
        session.open(&self.folder.path().join("tuned").join(graph)).unwrap_or_else(|e| panic!("{}: {e:?}", self.name()))
    }

    /// The model's inputs and labels that a graph takes.
    fn data(&self, session: &Session) -> Vec<(String, Tensor)> {
        ["input_ids", "attention_mask", "decoder_input_ids", "labels"]
            .into_iter()
            .filter(|n| session.inputs().iter().any(|p| p.name == *n))
            .map(|n| (n.to_owned(), self.expected.get(n).clone()))
            .collect()
    }

    fn run(&self, session: &mut Session, outputs: &[&str]) -> Vec<Tensor> {
        let mut inputs = self.data(session);
        inputs.extend(self.side.iter().map(|(k, v)| (k.clone(), Tensor::from(v.clone()))));
        run(session, &inputs, outputs)
    }
}

fn run(session: &mut Session, inputs: &[(String, Tensor)], outputs: &[&str]) -> Vec<Tensor> {
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(k, v)| (k.as_str(), v)).collect();
    session.run(&inputs, outputs).unwrap_or_else(|e| panic!("{e:?}"))
}

#[test]
fn logits_loss_and_gradients() {
    let mut worst = [0.0_f64; 3];
    println!("{:<24} {:>9} {:>9} {:>9}  worst gradient", "case", "logits", "loss", "gradient");
    for case in cases::with("expected.safetensors", 15) {
        let case = Rewritten::new(&case);
        let expected = &case.expected;
        let infer = case.run(&mut case.session("infer.onnx"), &["logits"]);
        let eval = case.run(&mut case.session("eval.onnx"), &["logits", "loss"]);
        assert_eq!(infer[0].as_f32().expect("f32"), eval[0].as_f32().expect("f32"), "{}", case.name());
        let logits = error(&infer[0].as_f32().expect("f32"), &expected.f32("logits"));

        let names: Vec<String> = case.side.keys().map(|n| format!("{n}.grad")).collect();
        let mut outputs = vec!["loss"];
        outputs.extend(names.iter().map(String::as_str));
        let grads = case.run(&mut case.session("grad.onnx"), &outputs);
        let wanted = f64::from(scalar(expected.get("loss")));
        let loss = [&eval[1], &grads[0]]
            .map(|l| (f64::from(scalar(l)) - wanted).abs() / wanted.abs())
            .into_iter()
            .fold(0.0, f64::max);
        let (gradient, name) = case
            .side
            .keys()
            .zip(&grads[1..])
            .map(|(n, g)| (error(&g.as_f32().expect("f32"), &expected.f32(&format!("grad.{n}"))), n))
            .fold((0.0, ""), |worst, (e, n)| if e >= worst.0 { (e, n.as_str()) } else { worst });
        println!("{:<24} {logits:>9.1e} {loss:>9.1e} {gradient:>9.1e}  {name}", case.name());
        for (worst, here) in worst.iter_mut().zip([logits, loss, gradient]) {
            *worst = worst.max(here);
        }
    }
    assert!(worst[0] <= LOGITS && worst[1] <= LOSS && worst[2] <= GRADIENT, "{worst:?}");
}

#[test]
fn twenty_steps_of_adamw() {
    let mut worst = 0.0_f64;
    println!("{:<24} {:>9} {:>9} {:>9}", "case", "curve", "norm", "final");
    for case in cases::with("expected.safetensors", 15) {
        let case = Rewritten::new(&case);
        let expected = &case.expected;
        let mut session = case.session("train.onnx");
        let mut state: BTreeMap<String, Tensor> = BTreeMap::new();
        state.extend(case.side.iter().map(|(name, value)| (name.clone(), value.clone().into())));
        state.extend(moments::moments(&session).into_iter().map(|(name, value)| (name, value.into())));
        let next: Vec<String> = state.keys().map(|n| format!("{n}.next")).collect();
        let mut outputs = vec!["loss", "grad_norm"];
        outputs.extend(next.iter().map(String::as_str));
        let lr: Tensor = ArrayD::from_elem(IxDyn(&[]), expected.number("lr")).into();
        let (mut curve, mut norm) = (0.0_f64, 0.0_f64);
        for step in 0..20 {
            let mut inputs = case.data(&session);
            inputs.push(("lr".to_owned(), lr.clone()));
            inputs.push(("step".to_owned(), ArrayD::from_elem(IxDyn(&[]), step as i64 + 1).into()));
            inputs.extend(state.iter().map(|(k, v)| (k.clone(), v.clone())));
            let results = run(&mut session, &inputs, &outputs);
            let relative = |found: &Tensor, wanted: f32| {
                (f64::from(scalar(found)) - f64::from(wanted)).abs() / f64::from(wanted).abs()
            };
            curve = curve.max(relative(&results[0], expected.f32("curve")[step]));
            norm = norm.max(relative(&results[1], expected.f32("grad_norm")[step]));
            for (value, result) in state.values_mut().zip(&results[2..]) {
                *value = result.clone();
            }
        }
        let last = case
            .side
            .keys()
            .map(|n| error(&state[n].as_f32().expect("f32"), &expected.f32(&format!("final.{n}"))))
            .fold(0.0, f64::max);
        println!("{:<24} {curve:>9.1e} {norm:>9.1e} {last:>9.1e}", case.name());
        worst = worst.max(curve);
        assert!(last <= FINAL, "{}: final parameters differ by {last}", case.name());
    }
    assert!(worst <= CURVE, "{worst}");
}
