//! The models that people have, against PyTorch: `tests/matrix/make.py` wrote them and what must come out.
//!
//! Each model is scrambled (names of values, nodes and weights say nothing), rewritten, verified, and run; logits, loss and
//! the gradient of every parameter are held against PyTorch's in double precision, relative to the largest expected
//! element. The hidden states that a quantised model is held against are its own, from ONNX Runtime: rounding activations
//! is a part of what it computes.
//!
//! A few models that differ in all that matters run by default. `MATRIX=all` in the environment runs every model, and
//! `MATRIX=word` those whose name has that word.

#[path = "matrix/archive.rs"]
mod archive;
mod common;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use lstc::rewrite::{Request, SourceModel, rewrite};
use lstc::verify::verify;
use lstc_passes::Options;
use lstc_passes::options::Init;
use lstc_runtime::{Optimisation, Session, Tensor};
use lstc_tuned::run::Started;
use ndarray::ArrayD;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Arithmetic {
    F32,
    F16,
    Bf16,
    Quantised,
}

impl Arithmetic {
    /// Of logits, loss and gradients. The norms and gates of a side network amplify what the hidden states are off by.
    fn bounds(self) -> [f64; 3] {
        match self {
            Arithmetic::F32 => [1e-5, 1e-6, 1e-4],
            // 11 and 8 bits of each hidden state; bf16 weights compute in f32, as the CPU has no kernels for bf16.
            Arithmetic::F16 | Arithmetic::Bf16 => [5e-3, 1e-3, 2e-2],
            // f32's on one machine. Elsewhere a sum in another order may round an activation to the next of 255 steps.
            Arithmetic::Quantised => [5e-3, 1e-3, 2e-2],
        }
    }
}

/// An entry of matrix.json.
#[derive(Deserialize)]
struct Entry {
    name: String,
    arithmetic: Arithmetic,
    #[serde(default)]
    backbone: String,
    #[serde(default)]
    expected: String,
    /// What the refusal must name, of a model that must be refused.
    #[serde(default)]
    refused: String,
}

/// Of each exporter, family, type and tool one: what runs unless others are asked for.
const SMOKE: [&str; 32] = [
    "ts_relu_tied_f32_unequal",
    "dy_gated_untied_f32_equal",
    "2f_relu_tied_f16_equal",
    "dy_umt5",
    "ts_byt5",
    "2f_mt5",
    "ts_silu",
    "dy_gelu_erf_opset_20",
    "ts_one_head",
    "ts_padded_vocab",
    "ts_opset_11",
    "dy_opset_23",
    "ts_bf16",
    "2f_static",
    "dy_unfolded",
    "dy_static_sdpa",
    "dy_sdpa_opset_23",
    "ts_fixed_masks_basic",
    "2f_present_outputs",
    "optimum_merged_tied",
    "optimum_dynamic",
    "dy_gated_tied_unequal_basic",
    "2f_gated_tied_equal_extended",
    "ts_relu_untied_equal_onnxsim",
    "dy_dynamic_quint8_channel",
    "ts_qdq_extended",
    "2f_qoperator",
    "ts_nbits_4_block_32_zero",
    "dy_f16_converted",
    "ts_external_files",
    "dy_transformers_optimised",
    "reported_states_given_back",
];

/// The models of the list that are asked for.
fn entries(chosen: impl Fn(&Entry) -> bool) -> Vec<Entry> {
    let text = fs::read_to_string(archive::root().join("matrix.json")).expect("the list is committed");
    let mut entries: Vec<Entry> = serde_json::from_str(&text).expect("a list of models");
    assert!(SMOKE.iter().all(|name| entries.iter().any(|e| e.name == *name)), "a model is not in the list");
    let word = std::env::var("MATRIX").unwrap_or_default();
    let is_asked_for = |e: &Entry| match word.as_str() {
        "" => SMOKE.contains(&e.name.as_str()) || !e.refused.is_empty(),
        "all" => true,
        word => e.name.contains(word),
    };
    entries.retain(|e| is_asked_for(e) && chosen(e));
    entries
}

/// Tensors by name.
type Tensors = BTreeMap<String, Tensor>;

fn read(name: &str) -> Tensors {
    let path = archive::root().join(format!("expected/{name}.safetensors"));
    let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let tensor = |view: &safetensors::tensor::TensorView| -> Tensor {
        let (shape, data) = (view.shape(), view.data());
        match view.dtype() {
            Dtype::F32 => array(shape, data, f32::from_le_bytes).into(),
            Dtype::I64 => array(shape, data, i64::from_le_bytes).into(),
            other => panic!("{other:?}"),
        }
    };
    file.iter().map(|(name, view)| (name.to_owned(), tensor(&view))).collect()
}

fn array<T, const N: usize>(shape: &[usize], data: &[u8], of: fn([u8; N]) -> T) -> ArrayD<T> {
    let elements = data.chunks_exact(N).map(|c| of(c.try_into().expect("N bytes"))).collect();
    ArrayD::from_shape_vec(shape, elements).expect("as many elements as the shape has")
}

/// Largest difference, relative to the largest expected element; infinite where one is no number.
fn error(found: &Tensor, expected: &Tensor) -> f64 {
    let (found, expected) = (found.as_f32().expect("f32"), expected.as_f32().expect("f32"));
    assert_eq!(found.shape(), expected.shape());
    let largest = expected.iter().fold(1e-12_f64, |m, v| m.max(f64::from(v.abs())));
    found.iter().zip(expected).fold(0.0_f64, |m, (a, b)| {
        let apart = (f64::from(*a) - f64::from(*b)).abs();
        if apart.is_nan() { f64::INFINITY } else { m.max(apart / largest) }
    })
}

/// What a model's rewrite measured.
struct Measured {
    /// Of logits, loss and the worst gradient.
    errors: [f64; 3],
    worst: String,
    failed_checks: Vec<String>,
}

fn rewritten(model: &Path, tuned: &Path) -> anyhow::Result<()> {
    let mut options = Options::default();
    options.method.reduction = 4;
    options.method.init = Init::Random;
    let model = SourceModel::find(&[model.to_owned()])?;
    let request = Request { model, options, training: Started::default(), output: tuned, force: false };
    rewrite(request, |_, _| ())?;
    Ok(())
}

/// Runs a graph on the batch and the side network.
fn run(tuned: &Path, graph: &str, given: &Tensors, outputs: &[String]) -> anyhow::Result<Vec<Tensor>> {
    let session = common::runtime().session().optimisation(Optimisation::All).threads(1);
    let mut session: Session = session.open(&tuned.join(graph))?;
    let names: Vec<String> = session.inputs().iter().map(|port| port.name.clone()).collect();
    let inputs = names.iter().map(|name| {
        let tensor = given.get(name).or_else(|| given.get(&format!("side.{name}")));
        (name.as_str(), tensor.unwrap_or_else(|| panic!("{graph} has an input `{name}`")))
    });
    let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
    Ok(session.run(&inputs.collect::<Vec<_>>(), &outputs)?)
}

fn measure(entry: &Entry) -> anyhow::Result<Measured> {
    let folder = tempfile::tempdir()?;
    let (model, tuned) = (folder.path().join("model"), folder.path().join("tuned"));
    fs::create_dir(&model)?;
    archive::unpack(&entry.name, &model);
    rewritten(&model, &tuned)?;
    let verdict = verify(&tuned, common::runtime(), 0, |_| ())?;
    let failed = verdict.checks.iter().filter(|c| !c.holds);

    let mut given = read(&entry.backbone);
    let mask = ArrayD::from_elem(given["decoder_input_ids"].shape(), 1_i64);
    given.insert("decoder_attention_mask".to_owned(), mask.into());
    let mut expected = given.clone();
    expected.extend(read(&entry.expected));
    let parameters: Vec<&str> = given.keys().filter_map(|n| n.strip_prefix("side.")).collect();

    let outputs = ["logits", "loss"].map(str::to_owned);
    let eval = run(&tuned, "eval.onnx", &given, &outputs)?;
    let infer = run(&tuned, "infer.onnx", &given, &outputs[..1])?;
    let names: Vec<String> = parameters.iter().map(|name| format!("{name}.grad")).collect();
    let gradients = run(&tuned, "grad.onnx", &given, &names)?;
    let logits = error(&infer[0], &expected["logits"]).max(error(&eval[0], &expected["logits"]));
    let errors = parameters.iter().zip(&gradients).map(|(n, g)| (error(g, &expected[&format!("grad.{n}")]), *n));
    let (gradient, worst) = errors.fold((0.0, ""), |worst, here| if here.0 >= worst.0 { here } else { worst });
    Ok(Measured {
        errors: [logits, error(&eval[1], &expected["loss"]), gradient],
        worst: worst.to_owned(),
        failed_checks: failed.map(|c| format!("{}: {} (at most {})", c.name, c.measured, c.bound)).collect(),
    })
}

/// The model's row of the table, and what is wrong with it.
fn judge(entry: &Entry) -> (String, Option<String>) {
    let started = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| measure(entry)));
    let seconds = started.elapsed().as_secs_f32();
    let measured = match outcome {
        Ok(Ok(measured)) => measured,
        Ok(Err(error)) => return (format!("{:<40} not rewritten", entry.name), Some(format!("{error:#}"))),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic".to_owned());
            return (format!("{:<40} panicked", entry.name), Some(text));
        }
    };
    let [logits, loss, gradient] = measured.errors;
    let row =
        format!("{:<40} {logits:>9.1e} {loss:>9.1e} {gradient:>9.1e} {seconds:>5.1} s  {}", entry.name, measured.worst);
    let mut wrong = measured.failed_checks;
    for ((what, found), bound) in
        ["logits", "loss", "gradient"].iter().zip(measured.errors).zip(entry.arithmetic.bounds())
    {
        if found > bound {
            wrong.push(format!("{what} off by {found:.1e} (at most {bound:.0e})"));
        }
    }
    (row, (!wrong.is_empty()).then(|| wrong.join("\n")))
}

/// Judges the models two at a time, and prints the rows in the list's order.
fn judge_all(entries: &[Entry], judge: impl Fn(&Entry) -> (String, Option<String>) + Sync) {
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(entry) = entries.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = judge(entry);
                    outcomes.lock().expect("no thread panics while it holds this").insert(&entry.name, outcome);
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().expect("no thread panics while it holds this");
    let (mut wrong, mut count) = (String::new(), 0);
    for entry in entries {
        let (row, problem) = &outcomes[&entry.name];
        println!("{row}");
        if let Some(problem) = problem {
            count += 1;
            let _ = writeln!(wrong, "{}\n  {}", entry.name, problem.replace('\n', "\n  "));
        }
    }
    assert!(count == 0, "{count} of {} models\n{wrong}", entries.len());
}

#[test]
fn every_model_gives_what_pytorch_gives() {
    let entries = entries(|e| e.refused.is_empty());
    println!("{:<40} {:>9} {:>9} {:>9} {:>7}  worst gradient", "model", "logits", "loss", "gradient", "time");
    judge_all(&entries, judge);
}

#[test]
fn what_cannot_be_seen_through_is_refused_by_name() {
    let entries = entries(|e| !e.refused.is_empty());
    judge_all(&entries, |entry| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        archive::unpack(&entry.name, folder.path());
        match rewritten(folder.path(), &folder.path().join("tuned")) {
            Ok(()) => (format!("{}: rewritten", entry.name), Some("it must be refused".to_owned())),
            Err(error) => {
                let text = format!("{error:#}");
                let named =
                    text.contains(&format!("`{}`", entry.refused)) || text.contains(&format!("{} ", entry.refused));
                (
                    format!("{}: {error}", entry.name),
                    (!named).then(|| format!("`{}` is not named: {text}", entry.refused)),
                )
            }
        }
    });
}
