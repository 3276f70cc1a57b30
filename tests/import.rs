//! A side network from elsewhere: found by name, converted, checked, written, recorded, verified.

#[path = "common/cli.rs"]
mod cli;
mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use half::{bf16, f16};
use lstc_tuned::side::{self, Side};
use ndarray::{ArrayD, IxDyn};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use cli::{lstc, stderr, stdout, text};

/// A rewritten model of two encoder blocks, of which one is kept, and three decoder blocks, of which two are.
struct Tuned {
    folder: tempfile::TempDir,
}

impl Tuned {
    fn new() -> Tuned {
        Tuned::of(&["--encoder-blocks", "1", "--decoder-blocks", "0,2", "-r", "4"])
    }

    fn of(flags: &[&str]) -> Tuned {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let tuned = Tuned { folder };
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/two_and_three_blocks/model.onnx");
        let done = lstc(&[&["rewrite", text(&model), "-o", text(&tuned.path("tuned"))], flags].concat());
        assert!(done.status.success(), "{}", stderr(&done));
        tuned
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn side(&self) -> Side {
        side::load(&self.path("tuned/side.safetensors")).expect("a side network")
    }

    /// What a training elsewhere made of the initial side network: numbers that f16 and bf16 hold.
    fn trained(&self) -> Side {
        let mut side = self.side();
        let values = side.values_mut().flat_map(|array| array.iter_mut());
        values.enumerate().for_each(|(i, v)| *v = (i % 255) as f32 / 128.0 - 1.0);
        side
    }

    fn import(&self, flags: &[&str]) -> Output {
        let (tuned, file) = (self.path("tuned"), self.path("ref.safetensors"));
        lstc(&[&["import", text(&tuned), "--side", text(&file)], flags].concat())
    }

    fn verify(&self) -> Output {
        common::runtime(); // installs the library that verify needs
        lstc(&["verify", text(&self.path("tuned"))])
    }
}

/// A tensor of a state dict.
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    fn new(dtype: Dtype, array: &ArrayD<f32>) -> Tensor {
        let bytes = match dtype {
            Dtype::F16 => array.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            Dtype::BF16 => array.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            Dtype::F64 => array.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect(),
            Dtype::I64 => array.iter().flat_map(|v| (*v as i64).to_le_bytes()).collect(),
            _ => array.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        Tensor { dtype, shape: array.shape().to_vec(), bytes }
    }
}

type StateDict = BTreeMap<String, Tensor>;

fn write(path: &Path, state: &StateDict) {
    let views = state
        .iter()
        .map(|(name, t)| (name.as_str(), TensorView::new(t.dtype, t.shape.clone(), &t.bytes).expect("a sound tensor")));
    fs::write(path, safetensors::serialize(views, None).expect("it can be written")).expect("it is written");
}

fn state_dict(side: &Side, name: impl Fn(&str) -> String, dtype: impl Fn(usize) -> Dtype) -> StateDict {
    let tensors = side.iter().enumerate().map(|(i, (k, v))| (name(k), Tensor::new(dtype(i), v)));
    tensors.collect()
}

/// The state dict that the reference would save: the backbone is in it, and gates of dropped blocks are.
fn reference(side: &Side, prefix: &str) -> StateDict {
    const DTYPES: [Dtype; 4] = [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64];
    let mut state = state_dict(side, |name| format!("{prefix}{name}"), |i| DTYPES[i % 4]);
    let zeros = |shape: &[usize]| Tensor::new(Dtype::F32, &ArrayD::zeros(IxDyn(shape)));
    for name in ["shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight", "lm_head.weight"] {
        state.insert(format!("{prefix}{name}"), zeros(&[4, 4]));
    }
    for name in ["encoder.side_gate_params.0", "decoder.side_gate_params.1"] {
        state.insert(format!("{prefix}{name}"), zeros(&[1]));
    }
    state
}

#[test]
fn a_state_dict_of_the_reference_is_imported_and_verified() {
    for prefix in ["", "module.", "model.net."] {
        let tuned = Tuned::new();
        let trained = tuned.trained();
        // f16 and bf16 hold the first 255 multiples of 1/128.
        write(&tuned.path("ref.safetensors"), &reference(&trained, prefix));
        let done = tuned.import(&[]);
        assert!(done.status.success(), "{}", stderr(&done));
        assert_eq!(stderr(&done), "");
        assert_eq!(tuned.side(), trained);
        let told = stdout(&done);
        assert!(told.contains("tensors converted to f32"), "{told}");
        assert!(told.contains("not used: the backbone, 3 tensors"), "{told}");
        assert!(told.contains("gates of blocks that are not kept, or that are fixed, 2 tensors"), "{told}");
        assert_eq!(told.contains("without the prefix"), !prefix.is_empty(), "{told}");

        let manifest = fs::read_to_string(tuned.path("tuned/lst.yaml")).expect("the manifest");
        assert!(manifest.contains("\nside:\n  imported: ") && manifest.contains("ref.safetensors"), "{manifest}");
        let verdict = tuned.verify();
        assert!(verdict.status.success(), "{}", stdout(&verdict));
        assert!(stdout(&verdict).contains("the side network that was imported"), "{}", stdout(&verdict));
    }
}

#[test]
fn what_was_changed_after_an_import_is_found() {
    let tuned = Tuned::new();
    let mut trained = tuned.trained();
    write(&tuned.path("ref.safetensors"), &reference(&trained, ""));
    assert!(tuned.import(&[]).status.success());
    trained.values_mut().for_each(|v| *v += 0.5);
    side::save(&tuned.path("tuned/side.safetensors"), &trained).expect("it is written");
    let verdict = tuned.verify();
    assert_eq!(verdict.status.code(), Some(1));
    assert!(stdout(&verdict).contains("it is not what was imported"), "{}", stdout(&verdict));
    // A second import takes the place of the first, in the manifest too.
    assert!(tuned.import(&[]).status.success());
    assert!(tuned.verify().status.success());
    let manifest = fs::read_to_string(tuned.path("tuned/lst.yaml")).expect("the manifest");
    assert_eq!(manifest.matches("\nside:").count(), 1);
}

#[test]
fn a_position_table_is_found_where_the_file_has_its_only_one() {
    let tuned = Tuned::new();
    let trained = tuned.trained();
    let table = "encoder.side_block.1.layer.0.SelfAttention.relative_attention_bias.weight";
    let moved = table.replace("side_block.1", "side_block.0");
    let rename = |name: &str| if name == table { moved.clone() } else { name.to_owned() };
    let mut state = state_dict(&trained, rename, |_| Dtype::F32);
    write(&tuned.path("ref.safetensors"), &state);
    let done = tuned.import(&[]);
    assert!(done.status.success(), "{}", stderr(&done));
    assert!(stdout(&done).contains(&format!("`{table}` was `{moved}`")), "{}", stdout(&done));
    assert_eq!(tuned.side(), trained);
    // Of several it is not clear which.
    state.insert(
        table.replace("side_block.1", "side_block.3"),
        Tensor::new(Dtype::F32, &ArrayD::zeros(IxDyn(trained[table].shape()))),
    );
    write(&tuned.path("ref.safetensors"), &state);
    let done = tuned.import(&[]);
    assert_eq!(done.status.code(), Some(2));
    assert!(stderr(&done).contains(&format!("`{table}` is missing")), "{}", stderr(&done));
}

#[test]
fn all_that_does_not_fit_is_told_at_once_and_nothing_is_written() {
    let tuned = Tuned::new();
    let before = tuned.side();
    let manifest = fs::read(tuned.path("tuned/lst.yaml")).expect("the manifest");
    let mut state = reference(&tuned.trained(), "module.");
    let names: Vec<String> = before.keys().map(|name| format!("module.{name}")).collect();
    state.remove(&names[0]);
    let matrix = names.iter().find(|n| n.ends_with("first_downsample.weight")).expect("a matrix");
    state.insert(matrix.clone(), Tensor::new(Dtype::F32, &ArrayD::zeros(IxDyn(&[2, 3]))));
    let bias = names.iter().find(|n| n.ends_with("final_upsample.bias")).expect("a bias");
    let shape = before["side_final_upsample.bias"].shape().to_vec();
    state.insert(bias.clone(), Tensor::new(Dtype::F32, &ArrayD::from_elem(IxDyn(&shape), f32::NAN)));
    let ints = Tensor::new(Dtype::I64, &before[&names[1]["module.".len()..]]);
    state.insert(names[1].clone(), ints);
    write(&tuned.path("ref.safetensors"), &state);
    let done = tuned.import(&[]);
    assert_eq!(done.status.code(), Some(2));
    let told = stderr(&done);
    for reason in [
        format!("`{}` is missing; its shape is", names[0]),
        format!("`{}` is I64", names[1]),
        format!("`{matrix}` is [2, 3] in the file, and"),
        format!("`{bias}` holds NaN, which is not finite"),
    ] {
        assert!(told.contains(&reason), "{reason}\n{told}");
    }
    assert!(told.contains("hint: rewrite the model as that network was made"), "{told}");
    assert_eq!(tuned.side(), before);
    assert_eq!(fs::read(tuned.path("tuned/lst.yaml")).expect("the manifest"), manifest);
}

#[test]
fn a_network_that_was_made_otherwise_is_told_in_two_lines_with_the_flags_that_make_it() {
    let (tuned, other) =
        (Tuned::new(), Tuned::of(&["--encoder-blocks", "0,1", "-r", "8", "--bias=false", "--merge-last=true"]));
    write(&tuned.path("ref.safetensors"), &state_dict(&other.side(), |n| format!("net.{n}"), |_| Dtype::F32));
    let done = tuned.import(&[]);
    assert_eq!(done.status.code(), Some(2));
    let told = stderr(&done);
    assert!(told.lines().count() <= 9, "{told}");
    let file =
        "the file: r = 8 of a backbone of width 48, decoder blocks 0,1,2, encoder blocks 0,1, no biases, merge_last";
    let directory = "the directory: r = 4 of a backbone of width 48, decoder blocks 0,2, encoder blocks 1, biases";
    assert!(told.contains(file) && told.contains(directory), "{told}");
    let flags = told.split_once("-o AGAIN ").and_then(|(_, rest)| rest.split_once('`')).expect("flags").0.to_owned();
    let (from, again) = (tuned.path("tuned"), tuned.path("again"));
    let flags: Vec<&str> = flags.split(' ').collect();
    let done = lstc(&[&["rewrite", "--from", text(&from), "-o", text(&again)], &flags[..]].concat());
    assert!(done.status.success(), "{}", stderr(&done));
    let done = lstc(&["import", text(&again), "--side", text(&tuned.path("ref.safetensors"))]);
    assert!(done.status.success(), "{}", stderr(&done));
}

#[test]
fn parts_that_the_rewrite_drops_are_told() {
    let tuned = Tuned::new();
    let mut state = reference(&tuned.trained(), "");
    let norm = Tensor::new(Dtype::F32, &ArrayD::zeros(IxDyn(&[12])));
    state.insert("decoder.side_block.1.layer.0.layer_norm.weight".to_owned(), norm);
    write(&tuned.path("ref.safetensors"), &state);
    let done = tuned.import(&[]);
    assert!(done.status.success());
    assert!(stdout(&done).contains("side blocks of blocks that are not kept, 1 tensor"), "{}", stdout(&done));
    assert!(stderr(&done).contains("warning: the network in the file has parts"), "{}", stderr(&done));
}

#[test]
fn a_run_is_in_the_way_and_another_file_is_not() {
    let tuned = Tuned::new();
    let (before, trained) = (tuned.side(), tuned.trained());
    write(&tuned.path("ref.safetensors"), &reference(&trained, ""));
    // What a run that came to nothing left is in nobody's way.
    fs::create_dir(tuned.path("tuned/run")).expect("a folder");
    let initial = tuned.path("tuned/side.safetensors");
    let unchanged = tuned.path("unchanged.safetensors");
    fs::copy(&initial, &unchanged).expect("a copy");
    let done = lstc(&["import", text(&tuned.path("tuned")), "--side", text(&unchanged)]);
    assert!(done.status.success(), "{}", stderr(&done));
    fs::write(tuned.path("tuned/run/metrics.jsonl"), "").expect("a file");
    let no = tuned.import(&[]);
    assert_eq!(no.status.code(), Some(2));
    assert!(stderr(&no).contains("began from another side network") && stderr(&no).contains("--force"));
    assert_eq!(tuned.side(), before);

    let elsewhere = tuned.path("start.safetensors");
    let done = tuned.import(&["-o", text(&elsewhere)]);
    assert!(done.status.success(), "{}", stderr(&done));
    assert_eq!(side::load(&elsewhere).expect("a side network"), trained);
    assert_eq!(tuned.side(), before);
    assert!(!fs::read_to_string(tuned.path("tuned/lst.yaml")).expect("the manifest").contains("ref.safetensors"));
    let again = tuned.import(&["-o", text(&elsewhere)]);
    assert!(stderr(&again).contains("already exists"), "{}", stderr(&again));
    let own = tuned.import(&["-o", text(&tuned.path("tuned/side.safetensors")), "--force"]);
    assert!(stderr(&own).contains("omit -o"), "{}", stderr(&own));

    assert!(tuned.import(&["--force"]).status.success());
    assert_eq!(tuned.side(), trained);
}

#[test]
fn a_pickle_is_refused_with_the_way_to_convert_it() {
    let tuned = Tuned::new();
    let convert = |name: &str, bytes: &[u8]| {
        let file = tuned.path(name);
        fs::write(&file, bytes).expect("it is written");
        stderr(&lstc(&["import", text(&tuned.path("tuned")), "--side", text(&file)]))
    };
    let zip = convert("it's pytorch_model.bin", b"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0archive/data.pklFB");
    assert!(zip.contains("is a PyTorch pickle") && zip.contains("python -c \"import sys, torch"), "{zip}");
    assert!(zip.contains("it'\\''s pytorch_model.safetensors'"), "{zip}");
    let bare = convert("old.pt", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M");
    assert!(bare.contains("is a PyTorch pickle"), "{bare}");
    for damaged in [&b"PK\x03\x04 a zip archive of something else"[..], b"\x80\x02\0\0\0\0\0\0{\"a\":", b"", b"text"] {
        let told = convert("damaged.safetensors", damaged);
        assert!(told.contains("is not a safetensors file") && !told.contains("pickle"), "{told}");
    }
    let nothing = stderr(&lstc(&["import", text(&tuned.path("tuned")), "--side", "nowhere.safetensors"]));
    assert!(nothing.contains("cannot read the side network `nowhere.safetensors`"), "{nothing}");
}

#[test]
fn a_file_of_something_else_says_what_names_are_wanted() {
    let tuned = Tuned::new();
    let zeros = Tensor::new(Dtype::F32, &ArrayD::zeros(IxDyn(&[2])));
    write(&tuned.path("ref.safetensors"), &StateDict::from([("classifier.weight".to_owned(), zeros)]));
    let done = tuned.import(&[]);
    assert_eq!(done.status.code(), Some(2));
    assert!(stderr(&done).contains("hint: name the tensors as in the reference's state dict"), "{}", stderr(&done));
}

#[test]
fn training_starts_from_what_was_imported() {
    let tuned = Tuned::new();
    let trained = tuned.trained();
    write(&tuned.path("ref.safetensors"), &reference(&trained, ""));
    assert!(tuned.import(&[]).status.success());
    let data = tuned.path("ids.jsonl");
    fs::write(&data, "{\"input_ids\": [3, 4, 5], \"labels\": [6, 1]}\n").expect("it is written");
    let (directory, data) = (tuned.path("tuned"), text(&data).to_owned());
    let done =
        lstc(&["train", text(&directory), "--train", &data, "--epochs", "1", "--lr", "1e-9", "--batch-size", "1"]);
    assert!(done.status.success(), "{}", stderr(&done));
    let best = side::load(&tuned.path("tuned/run/best.safetensors")).expect("a side network");
    for (name, value) in &trained {
        let moved = best[name].iter().zip(value).map(|(a, b)| (a - b).abs()).fold(0.0_f32, f32::max);
        assert!(moved <= 1e-6, "{name} moved by {moved}");
    }
}
