//! One inference model from a rewritten directory: what is in it, what it computes, and what is never overwritten.

#[path = "common/cases.rs"]
mod cases;
mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lstc::export::{Agreement, Exported, Request, Weights, export};
use lstc::rewrite::{Request as Rewrite, rewrite};
use lstc_graph::{Origin, load};
use lstc_runtime::{Optimisation, Tensor};
use lstc_tuned::config::Config;
use lstc_tuned::side::{self, Side};
use ndarray::{ArrayD, ArrayViewD, IxDyn};
use safetensors::SafeTensors;

/// Of the largest logit: what single precision leaves of PyTorch's values in double precision.
const PARITY: f64 = 1e-5;

/// A rewritten copy of a case, with the case's side network as that of a run.
struct Tuned {
    folder: tempfile::TempDir,
    case: PathBuf,
}

impl Tuned {
    fn new(case: &Path) -> Tuned {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let tuned = Tuned { folder, case: case.to_owned() };
        for file in ["model.onnx", "model.onnx.data"].into_iter().filter(|file| case.join(file).exists()) {
            fs::copy(case.join(file), tuned.path(file)).expect("a copy");
        }
        let config = Config::read(&case.join("lst.yaml")).unwrap_or_else(|e| panic!("{e:?}"));
        let options = config.options();
        let (model, output) = (tuned.path("model.onnx"), tuned.directory());
        rewrite(
            Rewrite { model: (&model).into(), options, training: config.training(), output: &output, force: false },
            |_, _| (),
        )
        .unwrap_or_else(|e| panic!("{e:?}"));
        fs::create_dir(output.join("run")).expect("a folder");
        fs::copy(case.join("side.safetensors"), output.join("run/best.safetensors")).expect("a copy");
        tuned
    }

    fn named(name: &str) -> Tuned {
        Tuned::new(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(name))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn directory(&self) -> PathBuf {
        self.path("tuned")
    }

    fn export(&self, output: &str, weights: Weights) -> anyhow::Result<Exported> {
        export(Request {
            directory: &self.directory(),
            side: None,
            output: &self.path(output),
            weights,
            force: false,
            runtime: Some(common::runtime()),
        })
    }

    fn exported(&self) -> PathBuf {
        self.export("out.onnx", Weights::default()).unwrap_or_else(|e| panic!("{}: {e:?}", self.case.display()));
        self.path("out.onnx")
    }

    fn side(&self) -> Side {
        side::load(&self.case.join("side.safetensors")).expect("the case's side network")
    }

    /// The command line on this directory, to `out.onnx`.
    fn lstc(&self, flags: &[&str]) -> Output {
        let output = self.path("out.onnx");
        lstc(&[&["export", text(&self.directory()), "-o", text(&output)], flags].concat())
    }

    /// With another side network, which must be refused: what is said.
    #[track_caller]
    fn refused(&self, side: &Side) -> String {
        let file = self.path("other.safetensors");
        side::save(&file, side).expect("it can be written");
        let no = self.lstc(&["--side", text(&file)]);
        assert_eq!(no.status.code(), Some(2), "{}", stderr(&no));
        assert!(!self.path("out.onnx").exists());
        stderr(&no)
    }

    /// Nothing in the folder but what was there and `files`.
    #[track_caller]
    fn holds_only(&self, files: &[&str]) {
        let known = ["model.onnx", "model.onnx.data", "tuned", "other.safetensors"];
        let entries = fs::read_dir(self.folder.path()).expect("a folder").flatten();
        let mut found: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        found.retain(|name| !known.contains(&name.as_str()));
        found.sort();
        assert_eq!(found, files);
    }
}

fn lstc(arguments: &[&str]) -> Output {
    common::runtime(); // installs the library that the check needs
    Command::new(env!("CARGO_BIN_EXE_lstc")).args(arguments).output().expect("lstc runs")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The batch of a case and PyTorch's logits for it.
fn expected(case: &Path) -> (Vec<(String, Tensor)>, ArrayD<f32>) {
    let bytes = fs::read(case.join("expected.safetensors")).expect("the case is committed");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let view = |name: &str| file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    let inputs = ["input_ids", "attention_mask", "decoder_input_ids"].map(|name| {
        let view = view(name);
        let values = view.data().chunks_exact(8).map(|c| i64::from_le_bytes(c.try_into().expect("8 bytes"))).collect();
        let array = ArrayD::from_shape_vec(IxDyn(view.shape()), values).expect("the shape fits");
        (name.to_owned(), array.into())
    });
    let logits = view("logits");
    let values = logits.data().chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().expect("4 bytes"))).collect();
    (inputs.to_vec(), ArrayD::from_shape_vec(IxDyn(logits.shape()), values).expect("the shape fits"))
}

fn logits(file: &Path, inputs: &[(String, Tensor)], optimisation: Optimisation) -> ArrayD<f32> {
    let session = common::runtime().session().optimisation(optimisation).open(file);
    let mut session = session.unwrap_or_else(|e| panic!("{}: {e:?}", file.display()));
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();
    let outputs = session.run(&inputs, &["logits"]).unwrap_or_else(|e| panic!("{}: {e:?}", file.display()));
    outputs[0].as_f32().expect("f32").to_owned()
}

/// Largest difference, relative to the largest expected element.
fn apart(found: ArrayViewD<f32>, wanted: ArrayViewD<f32>) -> f64 {
    assert_eq!(found.shape(), wanted.shape());
    let largest = wanted.iter().fold(0.0_f64, |m, v| m.max(f64::from(v.abs())));
    let differences = found.iter().zip(&wanted).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
    differences.fold(0.0, |m: f64, d| if d.is_nan() { f64::INFINITY } else { m.max(d) }) / largest
}

#[test]
fn every_case_computes_what_pytorch_does_and_what_infer_does() {
    for case in cases::with("expected.safetensors", 15) {
        let tuned = Tuned::new(&case);
        let done = tuned.export("out.onnx", Weights::default()).unwrap_or_else(|e| panic!("{}: {e:?}", case.display()));
        let Some(Agreement { bit_for_bit, optimised_difference, .. }) = done.agreement else {
            panic!("{} was not checked", case.display())
        };
        assert!(bit_for_bit && done.is_written(), "{}: {done}", case.display());

        let (inputs, pytorch) = expected(&case);
        let (infer, exported) = (tuned.directory().join("infer.onnx"), tuned.path("out.onnx"));
        let mut with_side = inputs.clone();
        with_side.extend(tuned.side().into_iter().map(|(name, value)| (name, value.into())));
        let wanted = logits(&infer, &with_side, Optimisation::Off);
        let found = logits(&exported, &inputs, Optimisation::Off);
        assert!(found.iter().zip(&wanted).all(|(a, b)| a.to_bits() == b.to_bits()), "{}", case.display());
        let optimised = logits(&exported, &inputs, Optimisation::All);
        let (off, parity) = (apart(optimised.view(), wanted.view()), apart(optimised.view(), pytorch.view()));
        println!("{}: {optimised_difference:.1e}, {off:.1e}, PyTorch {parity:.1e}", case.display());
        assert!(off <= PARITY && parity <= PARITY, "{}: {off:e}, {parity:e}", case.display());
    }
}

#[test]
fn the_model_is_whole_and_has_no_trace_of_training() {
    let tuned = Tuned::named("gated_dynamo");
    let source = load(&tuned.path("model.onnx")).unwrap_or_else(|e| panic!("{e}"));
    let file = tuned.exported();
    let graph = load(&file).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(lstc_graph::verify(&graph), []);
    let ports = |g: &lstc_graph::Graph| -> BTreeMap<String, String> {
        let port = |v: &lstc_graph::ValueId| {
            let value = g.value(*v);
            (value.name.clone(), format!("{:?}", value.dtype))
        };
        g.inputs.iter().map(port).collect()
    };
    assert_eq!(ports(&graph), ports(&source));
    let outputs: Vec<&str> = graph.outputs.iter().map(|v| graph.value(*v).name.as_str()).collect();
    assert_eq!(outputs, ["logits"]);
    let symbolic = |v: &lstc_graph::ValueId| graph.shape(*v).is_some_and(|s| s[0].to_string().parse::<i64>().is_err());
    assert!(graph.inputs.iter().all(symbolic), "shapes stay dynamic");
    let uses = graph.uses();
    assert!(graph.value_ids().all(|v| graph.weight(v).is_none() || !uses.of(v).is_empty()), "no unused initializers");
    assert!(graph.node_ids().all(|id| graph.node(id).op != "Dropout" && graph.node(id).origin == Origin::SOURCE));
    for (name, value) in tuned.side() {
        let weight = graph.find(&name).and_then(|v| graph.weight(v)).unwrap_or_else(|| panic!("no `{name}`"));
        assert_eq!(weight.dims(), value.shape(), "{name}");
        assert!(weight.to_f32().is_some_and(|w| w.iter().eq(value.iter())), "{name}");
    }
    assert_eq!(graph.producer, concat!("lstc ", env!("CARGO_PKG_VERSION")));
    let bytes = fs::read(&file).expect("it was written");
    let says = |words: &str| bytes.windows(words.len()).any(|w| w == words.as_bytes());
    let manifest = fs::read_to_string(tuned.directory().join("lst.yaml")).expect("the manifest");
    let blake3 = manifest.lines().find_map(|l| l.trim().strip_prefix("blake3: ")).expect("the source's");
    for words in ["lstc.family", "lstc.source.blake3", blake3, "lstc.side.sha256", "`model.onnx`"] {
        assert!(says(words), "{words}");
    }
    assert!(!says("labels") && !says("lstc pass"));
    tuned.holds_only(&["out.onnx"]);
}

#[test]
fn external_data_stands_alone() {
    for name in ["relu_torchscript", "external_weights"] {
        let tuned = Tuned::named(name);
        let done = tuned.export("out.onnx", Weights::External).unwrap_or_else(|e| panic!("{e:?}"));
        tuned.holds_only(&["out.data", "out.onnx"]);
        let data = fs::symlink_metadata(tuned.path("out.data")).expect("the data file");
        assert_eq!(done.data.map(|d| d.bytes), Some(data.len()));
        assert!(data.is_file() && data.nlink() == 1, "a file of its own");
        // Moved, without the directory that it was made from.
        let elsewhere = tempfile::tempdir().expect("a temporary folder");
        for file in ["out.onnx", "out.data"] {
            fs::rename(tuned.path(file), elsewhere.path().join(file)).expect("a rename");
        }
        fs::remove_dir_all(tuned.directory()).expect("it is there");
        let (inputs, pytorch) = expected(&tuned.case);
        let found = logits(&elsewhere.path().join("out.onnx"), &inputs, Optimisation::All);
        assert!(apart(found.view(), pytorch.view()) <= PARITY);
    }
}

#[test]
fn a_checkpoint_may_hold_more_than_the_parameters() {
    let tuned = Tuned::named("relu_torchscript");
    let mut checkpoint = tuned.side();
    for (name, value) in tuned.side() {
        checkpoint.insert(format!("adam.m/{name}"), value.mapv(|_| f32::NAN));
    }
    fs::create_dir(tuned.path("run-2")).expect("a folder");
    side::save(&tuned.path("run-2/best.safetensors"), &checkpoint).expect("it can be written");
    let done = tuned.lstc(&["--side", text(&tuned.path("run-2")), "--format", "json"]);
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    let report: serde_json::Value = serde_json::from_slice(&done.stdout).expect("JSON");
    assert_eq!(report["agreement"]["bit_for_bit"], true);
    assert_eq!(report["side"]["tensors"].as_u64(), Some(tuned.side().len() as u64));
    assert!(report["agreement"]["optimised_difference"].as_f64().is_some_and(|d| d <= 1e-5), "{report}");
}

#[test]
fn a_side_network_that_does_not_fit_is_told_tensor_by_tensor() {
    let tuned = Tuned::named("relu_torchscript");
    let whole = tuned.side();
    let [first, second, third] =
        ["decoder.final_side_layer_norm.weight", "encoder.side_first_downsample.weight", "side_final_upsample.bias"];

    let mut side = whole.clone();
    side.remove(first);
    let shape = side[second].shape().to_vec();
    side.insert(second.to_owned(), ArrayD::zeros(IxDyn(&[3, 5])));
    side.get_mut(third).expect("a parameter")[[0]] = f32::NAN;
    let talk = tuned.refused(&side);
    for line in [
        format!("`{first}` is missing"),
        format!("`{second}` is [3, 5] in the file, and {shape:?} in the rewritten model"),
        format!("`{third}` holds 1 values that are not finite, the first is NaN"),
    ] {
        assert!(talk.contains(&line), "{line}:\n{talk}");
    }
    assert_eq!(talk.lines().filter(|l| l.starts_with("  `")).count(), 3, "{talk}");

    let mut side = whole.clone();
    side.get_mut(first).expect("a parameter")[[0]] = f32::NEG_INFINITY;
    assert!(tuned.refused(&side).contains("the first is -inf"));
    let nothing = tuned.refused(&Side::from([("weight".to_owned(), ArrayD::zeros(IxDyn(&[2])))]));
    assert!(nothing.contains("more") && nothing.contains("hint:"), "{nothing}");
    tuned.holds_only(&[]);
}

#[test]
fn a_side_network_of_another_rewrite_is_refused() {
    let (tuned, other) = (Tuned::named("relu_torchscript"), Tuned::named("gated_dynamo"));
    let talk = tuned.refused(&other.side());
    assert!(talk.contains("does not fit the rewritten model") && talk.contains("in the rewritten model"), "{talk}");
}

#[test]
fn what_is_no_side_network_is_told() {
    let tuned = Tuned::named("relu_torchscript");
    let said = |flags: &[&str]| {
        let no = tuned.lstc(flags);
        assert_eq!(no.status.code(), Some(2), "{}", stderr(&no));
        stderr(&no)
    };
    assert!(said(&["--side", text(&tuned.path("model.onnx"))]).contains("is not a safetensors file"));
    assert!(said(&["--side", text(&tuned.path("nowhere"))]).contains("cannot read the side network"));
    assert!(said(&["--side", text(tuned.folder.path())]).contains("does not hold best.safetensors"));
    fs::write(tuned.path("other.safetensors"), "").expect("an empty file");
    assert!(said(&["--side", text(&tuned.path("other.safetensors"))]).contains("is not a safetensors file"));
    fs::remove_dir_all(tuned.directory().join("run")).expect("it is there");
    let untrained = said(&[]);
    assert!(untrained.contains("there is no trained side network at"), "{untrained}");
    assert!(untrained.contains("hint: train it first, or pass `--side"), "{untrained}");
    let directory = lstc(&["export", text(tuned.folder.path()), "-o", text(&tuned.path("out.onnx"))]);
    assert!(stderr(&directory).contains("is not a rewritten model"), "{}", stderr(&directory));
    tuned.holds_only(&[]);
    let initial = tuned.directory().join("side.safetensors");
    let done = tuned.lstc(&["--side", text(&initial)]);
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
}

#[test]
fn an_output_is_replaced_only_when_asked() {
    let tuned = Tuned::named("relu_torchscript");
    let (model, data) = (tuned.path("out.onnx"), tuned.path("out.data"));
    fs::write(&model, "an earlier model").expect("a file");
    let no = tuned.lstc(&[]);
    assert!(no.status.code() == Some(2) && stderr(&no).contains("hint: --force replaces it"), "{}", stderr(&no));
    assert_eq!(fs::read(&model).expect("it is there"), b"an earlier model");
    let done = |flags: &[&str]| {
        let done = tuned.lstc(flags);
        assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    };
    done(&["--force"]);
    // A data file of nobody's is not taken for an earlier export's.
    fs::write(&data, "a thesis").expect("a file");
    let no = tuned.lstc(&["--force", "--external-data"]);
    assert!(stderr(&no).contains("is not the data of"), "{}", stderr(&no));
    assert_eq!(fs::read(&data).expect("it is there"), b"a thesis");
    done(&["--force"]);
    assert_eq!(fs::read(&data).expect("it is there"), b"a thesis");
    fs::remove_file(&data).expect("it is there");

    done(&["--force", "--external-data"]);
    tuned.holds_only(&["out.data", "out.onnx"]);
    let no = tuned.lstc(&["--external-data"]);
    assert!(stderr(&no).contains("already exists"), "{}", stderr(&no));
    done(&["--force", "--external-data"]);
    // The pair goes together.
    done(&["--force"]);
    tuned.holds_only(&["out.onnx"]);
    load(&model).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn what_is_exported_is_never_overwritten() {
    let tuned = Tuned::named("external_weights");
    fs::copy(tuned.directory().join("run/best.safetensors"), tuned.directory().join("best.onnx")).expect("a copy");
    std::os::unix::fs::symlink(tuned.directory(), tuned.path("link")).expect("a link");
    let before = |name: &str| fs::read(tuned.path(name)).expect("it is there");
    fs::hard_link(tuned.path("model.onnx"), tuned.path("other.onnx")).expect("a link");
    let (read, own) = ("is a file that this command reads", "belongs to the rewritten model");
    for (output, flags, reason) in [
        ("model.onnx", &[][..], read),
        ("other.onnx", &[], read),
        ("tuned/infer.onnx", &[], own),
        ("link/train.onnx", &[], own),
        ("tuned/backbone.onnx", &["--external-data"], own),
        ("tuned/best.onnx", &["--side", text(&tuned.directory().join("best.onnx"))], read),
    ] {
        let kept = ["model.onnx", "model.onnx.data", "tuned/infer.onnx", "tuned/train.onnx", "tuned/backbone.data"];
        let all: Vec<Vec<u8>> = kept.iter().map(|name| before(name)).collect();
        let (directory, path) = (tuned.directory(), tuned.path(output));
        let arguments = [&["export", text(&directory), "-o", text(&path), "--force"], flags].concat();
        let no = lstc(&arguments);
        assert_eq!(no.status.code(), Some(2), "{output}");
        assert!(stderr(&no).contains(reason), "{output}: {}", stderr(&no));
        assert!(kept.iter().zip(all).all(|(name, bytes)| before(name) == bytes), "{output}");
    }
    for output in ["tuned/run/best.safetensors", "out", "out.onnx/", "tuned"] {
        let no = lstc(&["export", text(&tuned.directory()), "-o", text(&tuned.path(output)), "--force"]);
        assert_eq!(no.status.code(), Some(2), "{output}: {}", stderr(&no));
    }
}

#[test]
fn what_cannot_be_written_leaves_nothing_behind() {
    let tuned = Tuned::named("relu_torchscript");
    let earlier = b"an earlier model";
    for (flags, present) in [("", false), ("--force", true), ("--external-data", false)] {
        if present {
            fs::write(tuned.path("out.onnx"), earlier).expect("a file");
        }
        // A file-size limit stands for a full disk: writes fail in the middle.
        let script = format!(
            "trap '' XFSZ; ulimit -f 100; exec {} export {} -o {} --no-check {flags}",
            env!("CARGO_BIN_EXE_lstc"),
            text(&tuned.directory()),
            text(&tuned.path("out.onnx"))
        );
        let no = Command::new("bash").args(["-c", &script]).output().expect("bash runs");
        assert_eq!(no.status.code(), Some(2), "{}", stderr(&no));
        assert!(stderr(&no).contains("cannot write") && stderr(&no).contains("Caused by"), "{}", stderr(&no));
        if present {
            assert_eq!(fs::read(tuned.path("out.onnx")).expect("it is there"), earlier);
            fs::remove_file(tuned.path("out.onnx")).expect("it is there");
        }
        tuned.holds_only(&[]);
    }
}

#[test]
fn an_export_that_does_not_agree_is_not_written() {
    // Logits that are no numbers prove nothing.
    let tuned = Tuned::named("relu_torchscript");
    let mut side = tuned.side();
    side.get_mut("side_final_upsample.weight").expect("a parameter").fill(f32::MAX);
    side::save(&tuned.directory().join("run/best.safetensors"), &side).expect("it can be written");
    let no = tuned.lstc(&[]);
    assert_eq!(no.status.code(), Some(1), "{}", stderr(&no));
    assert!(stderr(&no).contains("does not agree with infer.onnx"), "{}", stderr(&no));
    tuned.holds_only(&[]);
    let unchecked = tuned.lstc(&["--no-check"]);
    assert_eq!(unchecked.status.code(), Some(0), "{}", stderr(&unchecked));
}

#[test]
fn without_a_runtime_the_export_is_written_unchecked_and_says_so() {
    let tuned = Tuned::named("relu_torchscript");
    let nowhere = tuned.path("other.safetensors");
    let done = Command::new(env!("CARGO_BIN_EXE_lstc"))
        .args(["export", text(&tuned.directory()), "-o", text(&tuned.path("out.onnx")), "--format", "json"])
        .env("XDG_CACHE_HOME", &nowhere)
        .env("HOME", &nowhere)
        .env_remove("ORT_DYLIB_PATH")
        .output()
        .expect("lstc runs");
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    let report: serde_json::Value = serde_json::from_slice(&done.stdout).expect("JSON");
    let said = stderr(&done).contains("the export is not checked");
    // A library of the system's own is found all the same.
    assert!(said == report["agreement"].is_null(), "{report} {}", stderr(&done));
}

#[test]
fn an_export_can_be_looked_into_and_is_refused_as_a_backbone() {
    for name in ["gated_dynamo", "relu_torchscript"] {
        let tuned = Tuned::named(name);
        let exported = tuned.exported();
        let look = lstc(&["inspect", text(&exported)]);
        println!("{}{}", String::from_utf8_lossy(&look.stdout), stderr(&look));
        assert_eq!(look.status.code(), Some(1), "{}", stderr(&look));
        let again = lstc(&["rewrite", text(&exported), "-o", text(&tuned.path("again"))]);
        println!("{}", stderr(&again));
        assert_eq!(again.status.code(), Some(1), "{}", stderr(&again));
        assert!(stderr(&again).starts_with("error: cannot rewrite"), "{}", stderr(&again));
    }
}
