//! Fixed sizes: the graphs that shape arithmetic is folded out of compute what the symbolic ones do at those sizes.

mod common;

use std::path::{Path, PathBuf};

use lstc::rewrite::{Request, Written, compile, rewrite};
use lstc::verify::{prove, verify};
use lstc_graph::{Graph, NodeId, Origin, ValueId, Weight, load};
use lstc_passes::Options;
use lstc_passes::options::Sizes;
use lstc_runtime::{Optimisation, Session, Tensor};
use lstc_tuned::opened::Opened;
use lstc_tuned::run::Started;
use lstc_tuned::side::{self, Side};
use ndarray::{Array2, ArrayD};

/// Exports with symbolic sizes, of either exporter.
const CASES: [&str; 7] = [
    "relu_torchscript",
    "gated_dynamo",
    "unoptimised_dynamo",
    "unfolded_sdpa",
    "opset_23",
    "distillation",
    "external_weights",
];

const SIZES: Sizes = Sizes { batch: Some(3), source_length: Some(13), target_length: Some(6) };

/// Of the largest element, where ONNX Runtime fuses what it finds: both graphs offer it other patterns.
const FUSED: f64 = 1e-6;

fn model(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(case).join("model.onnx")
}

fn options(sizes: Sizes) -> Options {
    let mut options = Options { sizes, ..Options::default() };
    options.method.reduction = 4;
    options
}

fn rewritten(case: &str, sizes: Sizes, output: &Path) -> Written {
    let model = model(case);
    let request =
        Request { model: (&model).into(), options: options(sizes), training: Started::default(), output, force: false };
    let written = rewrite(request, |pass, module| assert_eq!(module.check(), Ok(()), "{case}, after {pass}"));
    written.unwrap_or_else(|e| panic!("{case}: {e:?}"))
}

/// Why a model cannot be rewritten with these sizes.
fn refusal(case: &str, sizes: Sizes) -> String {
    match compile(model(case), options(sizes), None, |_, _| ()) {
        Ok(_) => panic!("{case} is rewritten"),
        Err(error) => format!("{error:#}"),
    }
}

/// A batch of the fixed sizes, whose later rows are padded.
fn batch() -> Vec<(String, Tensor)> {
    let [rows, source, target] = [SIZES.batch, SIZES.source_length, SIZES.target_length].map(Option::unwrap_or_default);
    let token = |seed: usize| move |(row, column): (usize, usize)| ((row * 7 + column * 3 + seed) % 11 + 1) as i64;
    let mask = |(row, column): (usize, usize)| i64::from(column + 2 * row < source);
    let labels = |(row, column): (usize, usize)| if column + row < target { token(5)((row, column)) } else { -100 };
    [
        ("input_ids", Array2::from_shape_fn((rows, source), token(0))),
        ("attention_mask", Array2::from_shape_fn((rows, source), mask)),
        ("decoder_input_ids", Array2::from_shape_fn((rows, target), token(2))),
        ("labels", Array2::from_shape_fn((rows, target), labels)),
    ]
    .map(|(name, array)| (name.to_owned(), array.into()))
    .into()
}

/// The initial side network, moved to where gates and projections matter.
fn point(directory: &Path) -> Side {
    let mut side = side::load(&directory.join("side.safetensors")).expect("the initial side network");
    for (index, value) in side.values_mut().flat_map(|array| array.iter_mut()).enumerate() {
        *value += ((index * 37 % 101) as f32 / 101.0 - 0.5) * 0.2;
    }
    side
}

fn run(directory: &Path, file: &str, side: &Side, optimisation: Optimisation) -> Vec<(String, ArrayD<f32>)> {
    let session = common::runtime().session().optimisation(optimisation).threads(1);
    let mut session: Session = session.open(&directory.join(file)).unwrap_or_else(|e| panic!("{file}: {e:?}"));
    let side = side.iter().map(|(name, value)| (name.clone(), Tensor::from(value.clone())));
    let inputs: Vec<(String, Tensor)> = batch().into_iter().chain(side).collect();
    let taken: Vec<(&str, &Tensor)> = inputs
        .iter()
        .filter(|(name, _)| session.inputs().iter().any(|port| port.name == *name))
        .map(|(name, value)| (name.as_str(), value))
        .collect();
    let names: Vec<String> = session.outputs().iter().map(|port| port.name.clone()).collect();
    let outputs: Vec<&str> = names.iter().map(String::as_str).collect();
    let results = session.run(&taken, &outputs).unwrap_or_else(|e| panic!("{file}: {e:?}"));
    let results = results.iter().map(|r| r.as_f32().expect("f32").to_owned());
    names.iter().cloned().zip(results).collect()
}

/// Largest difference, relative to the largest element.
fn apart(a: &ArrayD<f32>, b: &ArrayD<f32>) -> f64 {
    assert_eq!(a.shape(), b.shape());
    let largest = b.iter().fold(0.0_f64, |m, v| m.max(f64::from(v.abs())));
    let difference = a.iter().zip(b).fold(0.0_f64, |m, (a, b)| m.max((f64::from(*a) - f64::from(*b)).abs()));
    assert!(difference.is_finite());
    difference / largest.max(1e-12)
}

fn nodes(directory: &Path, file: &str) -> Graph {
    load(&directory.join(file)).expect("a graph that was just written")
}

#[test]
fn results_stay_and_shape_arithmetic_goes() {
    println!("{:<20} {:>9} {:>9} {:>12} {:>12}", "case", "symbolic", "fixed", "infer", "grad");
    for case in CASES {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (symbolic, fixed) = (folder.path().join("symbolic"), folder.path().join("fixed"));
        rewritten(case, Sizes::default(), &symbolic);
        let written = rewritten(case, SIZES, &fixed);
        let side = point(&symbolic);
        let mut worst = [0.0_f64; 2];
        for (place, file) in ["infer.onnx", "grad.onnx"].into_iter().enumerate() {
            for optimisation in [Optimisation::Off, Optimisation::All] {
                let expected = run(&symbolic, file, &side, optimisation);
                let found = run(&fixed, file, &side, optimisation);
                for ((name, found), (_, expected)) in found.iter().zip(&expected) {
                    if optimisation == Optimisation::Off {
                        assert!(found == expected, "{case}, {file}: `{name}` is not bit for bit the same");
                    }
                    worst[place] = worst[place].max(apart(found, expected));
                }
            }
        }
        let [before, after] = [&symbolic, &fixed].map(|d| nodes(d, "infer.onnx").node_ids().count());
        println!("{case:<20} {before:>9} {after:>9} {:>12.1e} {:>12.1e}", worst[0], worst[1]);
        assert!(worst.iter().all(|w| *w <= FUSED), "{case}: {worst:?}");
        assert!(after * 10 < before * 9, "{case}: {after} nodes of {before}");
        let graph = nodes(&fixed, "train.onnx");
        // How many labels count is the one size that a batch decides.
        let of_labels = |id: NodeId| graph.node(id).origin == Origin::pass("loss");
        let is_size = |id: &NodeId| ["Shape", "Range"].iter().any(|op| graph.node(*id).is(op)) && !of_labels(*id);
        let left = graph.node_ids().filter(is_size).count();
        assert_eq!(left, 0, "{case}: sizes are still computed");
        let folded = written.manifest.folded.expect("sizes are fixed");
        assert!(folded.nodes_after < folded.nodes_before);
        let verdict = verify(&fixed, common::runtime(), 1, |_| ()).unwrap_or_else(|e| panic!("{case}: {e:?}"));
        assert!(verdict.holds, "{case}: {verdict}");
        assert!(verdict.checks.iter().any(|c| c.name.contains("fixed sizes decide")), "{verdict}");
    }
}

/// Beyond 181 tokens a matrix of bucket indices is over the budget, so these are all the distances that are ever folded.
#[test]
fn buckets_of_every_distance_that_is_folded_are_the_runtimes() {
    let sizes = Sizes { batch: Some(1), source_length: Some(181), target_length: Some(181) };
    for case in ["relu_torchscript", "gated_dynamo"] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let tuned = folder.path().join("tuned");
        rewritten(case, sizes, &tuned);
        let graph = nodes(&tuned, "infer.onnx");
        assert!(!graph.node_ids().any(|id| graph.node(id).is("Log")), "{case}: buckets are computed");
        let verdict = verify(&tuned, common::runtime(), 0, |_| ()).unwrap_or_else(|e| panic!("{case}: {e:?}"));
        assert!(verdict.holds, "{case}: {verdict}");
    }
}

#[test]
fn a_constant_that_is_not_what_the_source_computes_is_found() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tuned = folder.path().join("tuned");
    rewritten("relu_torchscript", SIZES, &tuned);
    let compiled = compile(model("relu_torchscript"), options(SIZES), None, |_, _| ());
    let (mut module, _) = compiled.unwrap_or_else(|e| panic!("{e:?}"));
    let is_index = |v: &ValueId| module.graph.weight(*v).is_some_and(|w| w.dims() == [13, 13] && !w.dtype().is_float());
    let buckets = module.cut.iter().copied().find(is_index).expect("the encoder's buckets are folded");
    let mut values = module.graph.weight(buckets).and_then(Weight::to_i64).expect("integers");
    values[1] += 1;
    module.graph.replace_weight(buckets, Weight::from_i64(&[13, 13], &values));
    let version = Some(env!("CARGO_PKG_VERSION"));
    let checks = prove(&tuned, module, version, common::runtime(), 0, |_| ()).unwrap_or_else(|e| panic!("{e:?}"));
    let check = checks.iter().find(|c| c.name.contains("fixed sizes decide")).expect("it was checked");
    assert!(!check.holds && check.measured.contains("is not what the source computes"), "{}", check.measured);
}

#[test]
fn what_is_over_the_budget_is_computed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tuned = folder.path().join("tuned");
    rewritten("relu_torchscript", Sizes { source_length: Some(182), ..SIZES }, &tuned);
    let graph = nodes(&tuned, "infer.onnx");
    assert!(graph.node_ids().any(|id| graph.node(id).is("Log")), "the encoder's buckets are computed");
    let largest = |v| graph.weight(v).filter(|w| !w.dtype().is_float()).map_or(0, |w| w.bytes().len());
    assert!(graph.value_ids().map(largest).max() <= Some(1 << 18));
}

#[test]
fn some_sizes_may_stay_free() {
    let only = [
        Sizes { batch: Some(3), ..Sizes::default() },
        Sizes { source_length: Some(13), ..Sizes::default() },
        Sizes { target_length: Some(6), ..Sizes::default() },
    ];
    for case in ["relu_torchscript", "gated_dynamo"] {
        for sizes in only {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let (symbolic, fixed) = (folder.path().join("symbolic"), folder.path().join("fixed"));
            rewritten(case, Sizes::default(), &symbolic);
            rewritten(case, sizes, &fixed);
            let side = point(&symbolic);
            let expected = run(&symbolic, "grad.onnx", &side, Optimisation::Off);
            assert!(run(&fixed, "grad.onnx", &side, Optimisation::Off) == expected, "{case}, {sizes:?}");
            let opened = Opened::new(&fixed).expect("a rewritten directory");
            let found = opened.fixed();
            assert_eq!(
                (found.batch, found.source, found.target),
                (sizes.batch, sizes.source_length, sizes.target_length),
                "{case}"
            );
            let verdict = verify(&fixed, common::runtime(), 0, |_| ()).unwrap_or_else(|e| panic!("{case}: {e:?}"));
            assert!(verdict.holds, "{case}, {sizes:?}: {verdict}");
        }
    }
}

#[test]
fn sizes_that_a_model_has_are_fine_and_others_are_refused() {
    let same = Sizes { batch: Some(3), source_length: Some(11), target_length: Some(6) };
    let folder = tempfile::tempdir().expect("a temporary folder");
    rewritten("folded_position_bias", same, &folder.path().join("tuned"));
    let refused = refusal("folded_position_bias", Sizes { batch: Some(8), source_length: Some(12), ..same });
    assert!(refused.contains("the model's batch is 3, and cannot be 8"), "{refused}");
    assert!(refused.contains("the model's source length is 11, and cannot be 12"), "{refused}");
    let huge = Some(i32::MAX as usize);
    for case in ["relu_torchscript", "gated_dynamo"] {
        for sizes in [
            Sizes { batch: huge, source_length: huge, target_length: huge },
            Sizes { source_length: huge, ..Sizes::default() },
            Sizes { target_length: Some(1_000_000), ..Sizes::default() },
        ] {
            let refused = refusal(case, sizes);
            assert!(refused.contains("would need a tensor of"), "{case}: {refused}");
        }
    }
    let nothing = refusal("relu_torchscript", Sizes { batch: Some(0), target_length: Some(usize::MAX), ..same });
    assert!(nothing.contains("sizes.batch is 0") && nothing.contains("sizes.target_length is"), "{nothing}");
}
