//! Properties of every side network that the options can describe, on the committed cases: it compiles, its graphs run,
//! its gradients are those of its loss, and a training step is a gradient and its application.

#[path = "common/cases.rs"]
mod cases;
mod common;
#[path = "common/moments.rs"]
mod moments;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lstc::rewrite::{Request, compile, open, rewrite};
use lstc_graph::{DataFiles, Graph, Weight, encode};
use lstc_passes::options::{BlockCounts, Down, Gate, Init, LossOptions, Merge, Method, Options, TowerName};
use lstc_passes::{Module, artifacts};
use lstc_runtime::{Optimisation, Session, Tensor};
use lstc_tuned::config::Config;
use lstc_tuned::run::Started;
use lstc_tuned::side::{self, Side};
use ndarray::{ArrayD, IxDyn};
use proptest::prelude::*;
use proptest::test_runner::{Config as ProptestConfig, RngAlgorithm, TestRng, TestRunner};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use safetensors::{Dtype, SafeTensors};

/// Side networks that are drawn.
const DRAWN: u32 = 12;

fn case(name: &str) -> PathBuf {
    cases::with("expected.safetensors", 15).into_iter().find(|p| p.ends_with(name)).expect("the case is committed")
}

/// The batch that a case comes with.
fn batch(case: &Path) -> Vec<(String, Tensor)> {
    let bytes = std::fs::read(case.join("expected.safetensors")).expect("the case is committed");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    ["input_ids", "attention_mask", "decoder_input_ids", "labels"]
        .map(|name| {
            let view = file.tensor(name).expect("the case has a batch");
            assert_eq!(view.dtype(), Dtype::I64);
            let values = view.data().chunks_exact(8).map(|c| i64::from_le_bytes(c.try_into().expect("8 bytes")));
            let array = ArrayD::from_shape_vec(IxDyn(view.shape()), values.collect()).expect("the shape fits");
            (name.to_owned(), array.into())
        })
        .into()
}

fn run(session: &mut Session, inputs: &[(String, Tensor)], outputs: &[String]) -> Vec<Tensor> {
    let taken: Vec<(&str, &Tensor)> = inputs
        .iter()
        .filter(|(k, _)| session.inputs().iter().any(|p| p.name == *k))
        .map(|(k, v)| (k.as_str(), v))
        .collect();
    let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
    session.run(&taken, &outputs).unwrap_or_else(|e| panic!("{e:?}"))
}

fn scalar(tensor: &Tensor) -> f64 {
    f64::from(*tensor.as_f32().expect("f32").first().expect("one element"))
}

fn with_side(batch: &[(String, Tensor)], side: &Side) -> Vec<(String, Tensor)> {
    let side = side.iter().map(|(k, v)| (k.clone(), Tensor::from(v.clone())));
    batch.iter().cloned().chain(side).collect()
}

fn dot(a: &[ArrayD<f32>], b: &[ArrayD<f32>]) -> f64 {
    let pairs = a.iter().zip(b).flat_map(|(a, b)| a.iter().zip(b));
    pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Uniform in [-1, 1).
fn noise(rng: &mut ChaCha8Rng, like: &ArrayD<f32>) -> ArrayD<f32> {
    like.mapv(|_| (rng.next_u32() as f64 / f64::from(u32::MAX) * 2.0 - 1.0) as f32)
}

/// A side network as it is drawn: what does not depend on the model.
#[derive(Clone, Debug)]
struct Drawn {
    case: usize,
    /// Bits of the kept blocks, of the encoder and of the decoder.
    kept: [usize; 2],
    method: Method,
    loss: LossOptions,
}

fn drawn() -> impl Strategy<Value = Drawn> {
    let gate = proptest::sample::select(Gate::ALL.to_vec());
    let init = prop_oneof![Just(Init::Magnitude), Just(Init::MagnitudeConsistent), Just(Init::Random)];
    let start = prop_oneof![Just("aligned"), Just("uniform"), Just("normal:0.01"), Just("aligned,normal:0.1")];
    let start = start.prop_map(|text| text.parse().expect("a start for projections"));
    let loss = prop_oneof![Just((1.0_f32, 0.0_f32)), Just((0.7, 0.2)), Just((0.0, 1.0))];
    let place = (0..cases::with("expected.safetensors", 15).len(), any::<[u8; 2]>(), any::<u64>());
    let merge = prop_oneof![Just(Merge::Before), Just(Merge::After)];
    let down = prop_oneof![4 => Just(Down::Linear), 2 => Just(Down::Pool), 2 => Just(Down::LowRank(1))];
    let free = proptest::option::of((0_usize..3).prop_map(BlockCounts::Each));
    let mixing = (gate, 0.05_f32..2.0, -0.2_f32..0.2, any::<bool>(), (merge, down, free));
    (place, mixing, (1_usize..=8, any::<bool>(), init, proptest::option::of(start)), loss).prop_map(
        |(place, mixing, rest, loss)| {
            let (case, kept, seed) = place;
            let (gate, temperature, alpha, merge_last, (merge, down, free_blocks)) = mixing;
            let (reduction, bias, init, init_projections) = rest;
            let blocks = BTreeMap::new();
            Drawn {
                case,
                kept: kept.map(usize::from),
                method: Method {
                    reduction,
                    blocks,
                    keep_blocks: None,
                    free_blocks,
                    down,
                    gate,
                    merge,
                    temperature,
                    alpha,
                    merge_last,
                    bias,
                    dropout: 0.0,
                    init,
                    init_projections,
                    seed,
                },
                loss: LossOptions { label: loss.0, distill: loss.1 },
            }
        },
    )
}

impl Drawn {
    fn options(&self, model: &Path) -> Options {
        let (_, anatomy) = open(&model.into()).expect("the committed cases are recognised");
        let mut method = self.method.clone();
        for (tower, bits) in anatomy.towers.iter().zip(self.kept) {
            let count = tower.blocks.len();
            // Any choice but the empty one.
            let bits = bits % ((1 << count) - 1) + 1;
            method.blocks.insert(tower.kind.into(), (0..count).filter(|b| bits >> b & 1 == 1).collect());
        }
        Options { method, loss: self.loss.clone(), ..Options::default() }
    }
}

#[test]
fn every_side_network_is_sound() {
    let config =
        ProptestConfig { cases: DRAWN, max_shrink_iters: 32, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]));
    println!("{:<24} {:>2} {:<18} {:>9} {:>10} {:>9}", "case", "r", "kept", "loss", "gradient", "step");
    let sound = |drawn| {
        check(&drawn);
        Ok(())
    };
    runner.run(&drawn(), sound).unwrap_or_else(|e| panic!("{e}"));
}

fn check(drawn: &Drawn) {
    let case = &cases::with("expected.safetensors", 15)[drawn.case];
    let model = case.join("model.onnx");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tuned = folder.path().join("tuned");
    let options = drawn.options(&model);
    let request = Request {
        model: (&model).into(),
        options: options.clone(),
        training: Started::default(),
        output: &tuned,
        force: false,
    };
    // The driver checks the invariants after each pass; here once more, on what came out.
    rewrite(request, |pass, module| assert_eq!(module.check(), Ok(()), "after {pass}"))
        .unwrap_or_else(|e| panic!("{e:?}"));

    let mut rng = ChaCha8Rng::seed_from_u64(drawn.method.seed);
    let mut point = side::load(&tuned.join("side.safetensors")).expect("the initial side network");
    for (name, value) in &mut point {
        // The projections begin near 0, where gradients of what lies behind them are small.
        let amount = if name.contains("gate") { 0.05 } else { 0.1 };
        *value += &(noise(&mut rng, value) * amount);
    }
    let session = |graph: &str| {
        let session = common::runtime().session().optimisation(Optimisation::Off).threads(1);
        session.open(&tuned.join(graph)).unwrap_or_else(|e| panic!("{graph}: {e:?}"))
    };
    let inputs = with_side(&batch(case), &point);
    let mut eval = session("eval.onnx");
    let outputs = run(&mut eval, &inputs, &["loss".to_owned(), "logits".to_owned()]);
    let loss = scalar(&outputs[0]);
    assert!(loss.is_finite() && outputs[1].as_f32().expect("f32").iter().all(|v| v.is_finite()));
    let infer = run(&mut session("infer.onnx"), &inputs, &["logits".to_owned()]);
    assert_eq!(infer[0], outputs[1], "infer.onnx and eval.onnx have the same logits");

    let names: Vec<String> =
        std::iter::once("loss".to_owned()).chain(point.keys().map(|n| format!("{n}.grad"))).collect();
    let found = run(&mut session("grad.onnx"), &inputs, &names);
    assert_eq!(scalar(&found[0]), loss, "grad.onnx and eval.onnx have the same loss");
    let gradients: Vec<ArrayD<f32>> = found[1..].iter().map(|g| g.as_f32().expect("f32").to_owned()).collect();
    let slope = slope_error(&mut eval, &batch(case), &point, &gradients, loss, &mut rng);
    let step = step_error(&session, &batch(case), &point, &found, &mut rng);
    println!(
        "{:<24} {:>2} {:<18} {loss:>9.4} {slope:>10.1e} {step:>9.1e}",
        case.file_name().unwrap_or_default().to_string_lossy(),
        drawn.method.reduction,
        format!("{:?}", options.method.blocks.values().collect::<Vec<_>>()),
    );
    // Along the gradient the differences agree to 1e-4 where the loss is smooth; a kink of ReLU inside of the step, in
    // one of thousands of rows, is worth some 1e-3. A wrong rule is off by tenths.
    assert!(slope <= 1e-2, "the gradient is off by {slope}");
    assert!(step <= 1e-6, "a step of train.onnx differs from grad.onnx and apply.onnx by {step}");
    let verdict = lstc::verify::verify(&tuned, common::runtime(), drawn.method.seed, |_| ());
    let verdict = verdict.unwrap_or_else(|e| panic!("{e:?}"));
    assert!(verdict.holds, "{verdict}");
}

/// Relative difference between the gradient along a direction and central differences of eval.onnx's loss.
///
/// The direction is half the gradient's, so that the loss changes enough to be seen in f32, and half random, so that
/// every component counts. The loss is an f32 of relative precision 1e-6, and has kinks: a step that is too short drowns in
/// the one, one that is too long crosses the others. The step that agrees best counts; a wrong gradient agrees with none.
fn slope_error(
    eval: &mut Session,
    batch: &[(String, Tensor)],
    point: &Side,
    gradients: &[ArrayD<f32>],
    loss: f64,
    rng: &mut ChaCha8Rng,
) -> f64 {
    // What a schedule sets moves the loss, but is not trained.
    let draw = |(name, g): (&String, &ArrayD<f32>)| if name == "side_gate" { g.clone() } else { noise(rng, g) };
    let random: Vec<ArrayD<f32>> = point.keys().zip(gradients).map(draw).collect();
    let (norm, of_random) = (dot(gradients, gradients).sqrt(), dot(&random, &random).sqrt());
    let direction: Vec<ArrayD<f32>> =
        gradients.iter().zip(&random).map(|(g, r)| g * (1.0 / norm) as f32 + r * (1.0 / of_random) as f32).collect();
    let slope = dot(gradients, &direction);
    let mut at = |h: f64| {
        let moved: Side = point.iter().zip(&direction).map(|((k, v), d)| (k.clone(), v + &(d * h as f32))).collect();
        scalar(&run(eval, &with_side(batch, &moved), &["loss".to_owned()])[0])
    };
    let mut best = f64::INFINITY;
    for change in [1e-2, 3e-3, 1e-3, 3e-4] {
        let h = change * loss.abs() / (2.0 * slope.abs());
        let apart = |h: f64, at: &mut dyn FnMut(f64) -> f64| at(h) - at(-h);
        // Five points: off by h^4.
        let difference = (8.0 * apart(h, &mut at) - apart(2.0 * h, &mut at)) / (12.0 * h);
        best = best.min((difference - slope).abs() / slope.abs());
    }
    best
}

/// Largest difference between a step of train.onnx and its gradients put through apply.onnx.
fn step_error(
    session: &dyn Fn(&str) -> Session,
    batch: &[(String, Tensor)],
    point: &Side,
    gradients: &[Tensor],
    rng: &mut ChaCha8Rng,
) -> f64 {
    let mut inputs = with_side(batch, point);
    inputs.push(("lr".to_owned(), ArrayD::from_elem(IxDyn(&[]), 0.01_f32).into()));
    inputs.push(("step".to_owned(), ArrayD::from_elem(IxDyn(&[]), 3_i64).into()));
    let mut train = session("train.onnx");
    let moments = moments::moments(&train);
    for (name, value) in &moments {
        let noise = noise(rng, value);
        let is_second = name.starts_with("adam.v/");
        inputs.push((name.clone(), noise.mapv(|v| if is_second { 1e-4 * v * v } else { 0.01 * v }).into()));
    }
    let next = point.keys().chain(moments.keys()).map(|name| format!("{name}.next"));
    let outputs: Vec<String> = std::iter::once("grad_norm".to_owned()).chain(next).collect();
    let whole = run(&mut train, &inputs, &outputs);
    inputs.extend(point.keys().map(|n| format!("{n}.grad")).zip(gradients[1..].iter().cloned()));
    let parts = run(&mut session("apply.onnx"), &inputs, &outputs);
    let apart = |a: &Tensor, b: &Tensor| {
        let (a, b) = (a.as_f32().expect("f32"), b.as_f32().expect("f32"));
        assert_eq!(a.shape(), b.shape());
        a.iter().zip(&b).map(|(a, b)| f64::from((a - b).abs()) / f64::from(b.abs()).max(1.0)).fold(0.0, f64::max)
    };
    whole.iter().zip(&parts).map(|(a, b)| apart(a, b)).fold(0.0, f64::max)
}

/// A case compiled with a dropout rate, at the side network that it comes with.
struct Training {
    module: Module,
    inputs: Vec<(String, Tensor)>,
    outputs: Vec<String>,
}

impl Training {
    fn new(name: &str, dropout: f32) -> Training {
        let case = case(name);
        let mut options = Config::read(&case.join("lst.yaml")).expect("a configuration").options();
        options.method.dropout = dropout;
        let (module, _) =
            compile(case.join("model.onnx"), options, None, |_, _| ()).unwrap_or_else(|e| panic!("{e:?}"));
        let point = side::load(&case.join("side.safetensors")).expect("the case's side network");
        let gradients = point.keys().map(|n| format!("{n}.grad"));
        let outputs = std::iter::once("loss".to_owned()).chain(gradients).collect();
        Training { module, inputs: with_side(&batch(&case), &point), outputs }
    }

    fn grad(&self) -> Graph {
        artifacts(&self.module).grad
    }

    fn eval(&self) -> f64 {
        scalar(&run(&mut opened(&artifacts(&self.module).eval), &self.inputs, &["loss".to_owned()])[0])
    }

    fn run(&self, session: &mut Session) -> (f64, Vec<ArrayD<f32>>) {
        let found = run(session, &self.inputs, &self.outputs);
        (scalar(&found[0]), found[1..].iter().map(|g| g.as_f32().expect("f32").to_owned()).collect())
    }
}

fn opened(graph: &Graph) -> Session {
    let session = common::runtime().session().threads(1);
    session.load(&encode(graph, &DataFiles::default()), None).unwrap_or_else(|e| panic!("{e:?}"))
}

const WITH_DROPOUT: [&str; 3] = ["relu_torchscript", "two_and_three_blocks", "no_gate_merge_distill"];

#[test]
fn dropout_draws_anew_in_training_only() {
    for name in WITH_DROPOUT {
        let training = Training::new(name, 0.1);
        assert_eq!(training.eval(), Training::new(name, 0.0).eval(), "{name}: eval.onnx has no dropout");
        assert_eq!(training.eval(), training.eval(), "{name}");
        let (mut session, mut again) = (opened(&training.grad()), opened(&training.grad()));
        let (first, second) = (training.run(&mut session), training.run(&mut session));
        assert_ne!(first.0, second.0, "{name}: the second run draws another mask");
        assert_eq!(first, training.run(&mut again), "{name}: a session draws the same masks as another from its start");
    }
}

#[test]
fn dropout_of_rate_0_is_no_dropout() {
    for name in WITH_DROPOUT {
        let training = Training::new(name, 0.1);
        let mut graph = training.grad();
        let rates: Vec<_> = graph
            .node_ids()
            .map(|id| graph.node(id))
            .filter(|n| n.is("Dropout"))
            .map(|n| n.input(1).expect("dropout is emitted with its rate"))
            .collect();
        assert!(rates.len() >= 10, "{name}: only {} dropouts", rates.len());
        rates.into_iter().for_each(|rate| graph.replace_weight(rate, Weight::scalar_f32(0.0)));
        let (loss, gradients) = training.run(&mut opened(&graph));
        let plain = Training::new(name, 0.0);
        let (expected, of_plain) = plain.run(&mut opened(&plain.grad()));
        assert!((loss - expected).abs() <= 1e-6 * expected, "{name}: {loss} against {expected}");
        for ((found, wanted), output) in gradients.iter().zip(&of_plain).zip(&training.outputs[1..]) {
            let largest = wanted.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            let apart = (found - wanted).iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            // Roundings in another order; see tests/parity.rs.
            assert!(apart <= 1e-5 * largest.max(1e-6), "{name}: {output} differs by {apart} of {largest}");
        }
    }
}

#[test]
fn dropout_keeps_the_mean_of_loss_and_gradient() {
    const RUNS: usize = 64;
    println!("{:<24} {:>8} {:>8} {:>8}", "case", "eval", "mean", "cosine");
    for name in WITH_DROPOUT {
        let training = Training::new(name, 0.1);
        let plain = Training::new(name, 0.0);
        let (expected, of_plain) = plain.run(&mut opened(&plain.grad()));
        let mut session = opened(&training.grad());
        let runs: Vec<(f64, Vec<ArrayD<f32>>)> = (0..RUNS).map(|_| training.run(&mut session)).collect();
        let mean = runs.iter().map(|r| r.0).sum::<f64>() / RUNS as f64;
        let mut gradient: Vec<ArrayD<f32>> = of_plain.iter().map(|g| ArrayD::zeros(g.raw_dim())).collect();
        for (_, found) in &runs {
            gradient.iter_mut().zip(found).for_each(|(sum, g)| *sum += g);
        }
        let cosine = dot(&gradient, &of_plain) / (dot(&gradient, &gradient) * dot(&of_plain, &of_plain)).sqrt();
        println!("{name:<24} {expected:>8.4} {mean:>8.4} {cosine:>8.4}");
        // Masks keep every mean but not that of the loss, which is convex in the logits.
        assert!((mean - expected).abs() <= 0.05 * expected, "{name}: {mean} against {expected}");
        assert!(cosine >= 0.9, "{name}: the mean gradient points elsewhere, {cosine}");
    }
}

/// What a case says to changed options.
fn problems(name: &str, change: impl FnOnce(&mut Options)) -> Vec<String> {
    let (graph, anatomy) = open(&case(name).join("model.onnx").into()).expect("the committed cases are recognised");
    let mut options = Options::default();
    change(&mut options);
    let problems = Module::new(graph, anatomy, options).err().expect("the options do not fit");
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn options_out_of_range_are_all_named() {
    let found = problems("two_and_three_blocks", |o| {
        o.method.reduction = 0;
        o.method.temperature = 0.0;
        o.method.alpha = f32::NAN;
        o.method.dropout = 1.0;
        o.loss = LossOptions { label: -1.0, distill: f32::INFINITY };
        o.optimizer.beta1 = 1.0;
        o.optimizer.beta2 = -0.1;
        o.optimizer.epsilon = 0.0;
        o.optimizer.weight_decay = -1.0;
        o.optimizer.clip = f32::NAN;
    });
    assert_eq!(
        found,
        [
            "method.reduction is 0, but must be at least 1",
            "method.temperature is 0, but must be positive",
            "method.alpha is NaN",
            "method.dropout is 1, but must be in [0, 1)",
            "loss.label is -1, but must not be negative",
            "loss.distill is inf, but must not be negative",
            "optimizer.beta1 is 1, but must be in [0, 1)",
            "optimizer.beta2 is -0.1, but must be in [0, 1)",
            "optimizer.epsilon is 0, but must be positive",
            "optimizer.weight_decay is -1, but must not be negative",
            "optimizer.clip is NaN, but must not be negative",
        ]
    );
    let found = problems("two_and_three_blocks", |o| o.loss = LossOptions { label: 0.0, distill: 0.0 });
    assert_eq!(found, ["loss.label and loss.distill are both 0: nothing to train"]);
}

#[test]
fn blocks_that_are_not_there_are_named() {
    let keep = |encoder: &[usize], decoder: &[usize]| {
        problems("two_and_three_blocks", |o| {
            o.method.blocks.insert(TowerName::Encoder, encoder.to_vec());
            o.method.blocks.insert(TowerName::Decoder, decoder.to_vec());
        })
    };
    assert_eq!(
        keep(&[0, 2], &[7]),
        [
            "the encoder has blocks 0 to 1: block 2 cannot be kept",
            "the decoder has blocks 0 to 2: block 7 cannot be kept",
        ]
    );
    assert_eq!(
        keep(&[], &[2, 0]),
        [
            "the encoder keeps no block: at least one is needed",
            "the decoder keeps blocks that must be in ascending order, each once: [2, 0]",
        ]
    );
    assert_eq!(keep(&[1, 1], &[0]), ["the encoder keeps blocks that must be in ascending order, each once: [1, 1]"]);
}

#[test]
fn a_reduction_that_leaves_nothing_is_refused() {
    assert_eq!(
        problems("two_and_three_blocks", |o| o.method.reduction = 50),
        [
            "method.reduction is 50, which leaves nothing of the encoder's width of 48",
            "method.reduction is 50, which leaves nothing of the encoder's head width of 10",
            "method.reduction is 50, which leaves nothing of the decoder's width of 48",
            "method.reduction is 50, which leaves nothing of the decoder's head width of 10",
        ]
    );
    let file = case("two_and_three_blocks").join("model.onnx");
    let mut options = Options::default();
    options.method.reduction = 11;
    let error = compile(&file, options, None, |_, _| ()).err().expect("the options do not fit");
    assert_eq!(
        error.to_string(),
        format!(
            "the options do not fit `{}`\n  method.reduction is 11, which leaves nothing of the encoder's head width of 10\n  method.reduction \
             is 11, which leaves nothing of the decoder's head width of 10",
            file.display()
        )
    );
}
