//! What a device is given computes what the files do: the graphs as they are stated for ONNX Runtime's CUDA provider, run on the CPU, on
//! batches that are filled up as on a device.

#[path = "matrix/archive.rs"]
mod archive;
#[path = "common/cases.rs"]
mod cases;
mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use lstc::rewrite::{Request, SourceModel, rewrite};
use lstc_data::{Batch, Corpus, Fixed, Reading};
use lstc_graph::{DType, Graph, widen};
use lstc_passes::{COUNTED_ROWS, Options, for_cuda};
use lstc_runtime::Tensor;
use lstc_train::Buckets;
use lstc_tuned::config::Config;
use lstc_tuned::opened::{Execution, Opened};
use lstc_tuned::run::Started;
use tempfile::TempDir;

/// Rows of different lengths.
const ROWS: &str = "{\"input_ids\": [4, 9, 3, 1], \"labels\": [5, 8, 1]}
{\"input_ids\": [12, 1], \"labels\": [6, 1]}
{\"input_ids\": [2, 7, 7, 20, 11, 1], \"labels\": [9, 3, 1]}
{\"input_ids\": [5, 1], \"labels\": [7, 1]}
{\"input_ids\": [6, 8, 1], \"labels\": [4, 1]}
";

fn execution() -> Execution {
    Execution { mapped: true, ..Execution::cpu(common::runtime(), 1) }
}

/// Losses and gradients by name.
type Results = BTreeMap<String, Tensor>;

/// What a batch, and the side network as it begins, give graphs that come one after the other: the last one's results.
fn run(opened: &Opened, graphs: &[&Graph], batch: &Batch) -> Results {
    let mut feeds: BTreeMap<String, Tensor> =
        opened.feeds(batch).into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
    feeds.insert("labels".to_owned(), batch.labels.clone().into());
    feeds.insert(COUNTED_ROWS.to_owned(), batch.counted_rows(batch.labels.len()).into());
    let initial = opened.initial().expect("a side network");
    feeds.extend(initial.into_iter().map(|(name, values)| (name, values.into())));
    let mut results = Results::new();
    for graph in graphs {
        let mut session = opened.session(graph, &execution()).expect("a session");
        let given = feeds.iter().filter(|(name, _)| session.takes(name));
        let given: Vec<(&str, &Tensor)> = given.map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let names: Vec<String> = session.outputs().iter().map(|port| port.name.clone()).collect();
        let asked: Vec<&str> = names.iter().map(String::as_str).collect();
        let made = session.run(&given, &asked).expect("a run");
        results = names.into_iter().zip(made).collect();
        feeds.extend(results.clone());
    }
    results
}

/// The largest difference, relative to the largest element.
fn apart(a: &Results, b: &Results) -> f64 {
    assert!(a.keys().eq(b.keys()) && !a.is_empty());
    let of = |name: &String| {
        let (a, b) = (a[name].as_f32().expect("f32"), b[name].as_f32().expect("f32"));
        assert_eq!(a.shape(), b.shape(), "{name}");
        let largest = b.iter().fold(1e-6_f64, |m, v| m.max(f64::from(v.abs())));
        a.iter().zip(b).fold(0.0_f64, |m, (a, b)| m.max((f64::from(*a) - f64::from(*b)).abs() / largest))
    };
    a.keys().map(of).fold(0.0, f64::max)
}

/// The largest error of a tensor: the root of the sum of squared differences, over that of the squares.
fn error(a: &Results, b: &Results) -> f64 {
    assert!(a.keys().eq(b.keys()) && !a.is_empty());
    let of = |name: &String| {
        let (a, b) = (a[name].as_f32().expect("f32"), b[name].as_f32().expect("f32"));
        assert_eq!(a.shape(), b.shape(), "{name}");
        let squares = |of: &dyn Fn(f64, f64) -> f64| -> f64 {
            a.iter().zip(b.iter()).map(|(a, b)| of(f64::from(*a), f64::from(*b)).powi(2)).sum()
        };
        (squares(&|a, b| a - b) / squares(&|_, b| b).max(1e-30)).sqrt()
    };
    a.keys().map(of).fold(0.0, f64::max)
}

struct Tuned {
    folder: TempDir,
    opened: Opened,
}

impl Tuned {
    fn new(model: SourceModel, options: Options, training: Started) -> Tuned {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let output = folder.path().join("tuned");
        rewrite(Request { model, options, training, output: &output, force: false }, |_, _| ()).expect("a rewrite");
        let opened = Opened::new(&output).expect("a rewritten model");
        Tuned { folder, opened }
    }

    /// A batch as the files take it, and as it is filled up on a device.
    fn batches(&self) -> [Batch; 2] {
        let opened = &self.opened;
        let data = self.folder.path().join("rows.jsonl");
        fs::write(&data, ROWS).expect("a file");
        let fixed = opened.fixed();
        let reading = Reading {
            max_source_length: fixed.source.unwrap_or(8),
            max_target_length: fixed.target.unwrap_or(8),
            ..Reading::default()
        };
        let tokens = opened.record.tokens;
        let corpus =
            Corpus::read(&data, &reading, None, tokens, self.folder.path(), 32, &mut |_, _| ()).expect("it is data");
        let count = fixed.batch.map_or(3, |batch| batch.min(3));
        let rows: Vec<u32> = (0..count as u32).collect();
        let filled = Buckets::new(opened, &corpus, 5).sizes(&corpus, &rows);
        let is_free = fixed.batch.is_none() && !opened.record.distills();
        assert!(!is_free || filled.batch == Some(5), "the batch is filled up");
        [fixed, filled].map(|shape: Fixed| Batch::new(&corpus, &rows, tokens, &shape).expect("a batch"))
    }

    /// The backbone and the side network of a file, as they are and as they are stated for a device.
    fn graphs(&self, has_bf16: bool) -> [[Graph; 2]; 2] {
        let parts = || self.opened.parts("grad.onnx").expect("a graph");
        let (plain, mut stated) = (parts(), parts());
        stated.list_rows().expect("the name is free");
        for graph in [&mut stated.backbone, &mut stated.side] {
            for_cuda(graph, has_bf16);
            // The CPU has no kernels for bf16.
            widen(graph, DType::BF16);
        }
        [[plain.backbone, plain.side], [stated.backbone, stated.side]]
    }

    /// How far loss and gradients are from the files'.
    fn apart(&self) -> f64 {
        let ([batch, filled], [plain, stated]) = (self.batches(), self.graphs(false));
        let run = |graphs: &[Graph; 2], batch| run(&self.opened, &graphs.each_ref(), batch);
        apart(&run(&stated, &filled), &run(&plain, &batch))
    }

    /// How far the taps are from the files'.
    fn error(&self, has_bf16: bool) -> f64 {
        let ([batch, _], [plain, stated]) = (self.batches(), self.graphs(has_bf16));
        let run = |graphs: &[Graph; 2]| run(&self.opened, &[&graphs[0]], &batch);
        error(&run(&stated), &run(&plain))
    }
}

#[test]
fn a_step_stated_for_a_device_is_the_same_step() {
    for case in cases::with("lst.yaml", 12) {
        let config = Config::read(&case.join("lst.yaml")).expect("the case's options");
        let model = case.join("model.onnx");
        let tuned = Tuned::new((&model).into(), config.options(), config.training());
        let apart = tuned.apart();
        println!("{:<28} {apart:.1e}", case.file_name().unwrap_or_default().to_string_lossy());
        // Norms and sums in another order.
        assert!(apart <= 2e-5, "{}: {apart:e}", case.display());
    }
}

#[test]
fn integers_are_dequantised_to_what_they_stand_for() {
    // What is left is that the source rounds its activations to 8 bits, too.
    const ROUNDED: f64 = 0.05;
    // f32 in another order.
    const SAME: f64 = 1e-5;
    for (name, most) in [
        ("ts_dynamic_qint8", ROUNDED),
        ("dy_dynamic_quint8_channel", ROUNDED),
        ("ts_dynamic_extended", ROUNDED),
        ("ts_qoperator", ROUNDED),
        ("ts_qdq_extended", ROUNDED),
        ("dy_multi_head_attention", SAME),
        ("dy_nbits_4_block_32_zero", SAME),
        ("ts_nbits_8", SAME),
    ] {
        let tuned = of_matrix(name);
        let error = tuned.error(false);
        println!("{name:<28} {error:.1e}");
        assert!(error <= most, "{name}: {error:e}");
    }
}

fn of_matrix(name: &str) -> Tuned {
    let folder = tempfile::tempdir().expect("a temporary folder");
    archive::unpack(name, folder.path());
    let model = SourceModel::find(&[folder.path().join("model.onnx")]).expect("a model");
    Tuned::new(model, Options::default(), Started::default())
}

#[test]
fn a_narrow_backbone_keeps_its_numbers() {
    // In f32 a ReLU between casts, and what is multiplied in bf16, are the same; a norm that gives fp16 rounds once where two nodes did.
    for (precision, most) in [("bf16", 1e-5), ("int4", 1e-5), ("fp16", 2e-3)] {
        let mut options = Options::default();
        options.backbone.precision = precision.parse().expect("a precision");
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/relu_torchscript/model.onnx");
        let tuned = Tuned::new((&model).into(), options, Started::default());
        let error = tuned.error(precision != "fp16");
        println!("{precision:<28} {error:.1e}");
        assert!(error <= most, "{precision}: {error:e}");
    }
}
