//! Checkpoints and side networks: a checksum of their own, and every tensor by name, type and shape.

use std::collections::BTreeMap;

use lstc_tuned::side::{self, Side};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::tuned::{Tuned, flipped, refused, said, succeeded};

/// Tensors as another program writes them.
fn elsewhere(side: &Side, metadata: &[(&str, &str)]) -> Vec<u8> {
    let bytes = |values: &ndarray::ArrayD<f32>| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let tensors: Vec<_> = side.iter().map(|(name, values)| (name, values.shape(), bytes(values))).collect();
    let view = |shape: &[usize], bytes| TensorView::new(Dtype::F32, shape.to_vec(), bytes).expect("a view");
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    safetensors::serialize(tensors.iter().map(|(name, shape, bytes)| (name, view(shape, bytes))), Some(metadata))
        .expect("bytes")
}

/// What a file of lstc's says besides its tensors.
fn metadata(bytes: &[u8]) -> BTreeMap<String, String> {
    let (_, header) = SafeTensors::read_metadata(bytes).expect("a header");
    header.metadata().clone().unwrap_or_default().into_iter().collect()
}

#[test]
fn every_bit_of_a_checkpoint_counts() {
    let tuned = Tuned::new();
    succeeded(&tuned.train("run", &[]));
    let whole = tuned.read("run/checkpoint.safetensors");
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().expect("eight bytes")) as usize;
    let path = tuned.path("flipped.safetensors");
    // The header and the tensors, in steps that meet every bit of a byte.
    let places = (0..header * 8).step_by(5).chain((header * 8..whole.len() * 8).step_by(9973));
    let mut noticed = 0;
    for bit in places {
        std::fs::write(&path, flipped(&whole, bit)).expect("a temporary folder");
        assert!(side::load_with(&path).is_err(), "bit {} of byte {} is not noticed", bit % 8, bit / 8);
        noticed += 1;
    }
    println!("{noticed} single bits, each of them noticed");
    // On the command line, with what to do.
    for bit in [header * 8 + 30, whole.len() * 8 - 1, 100 * 8] {
        tuned.put("run/checkpoint.safetensors", flipped(&whole, bit));
        refused(&tuned.resume("run"), &["cannot be resumed", "checkpoint.safetensors", "best.safetensors", "damaged"]);
    }
    tuned.put("run/checkpoint.safetensors", &whole);
    succeeded(&tuned.resume("run"));
}

#[test]
fn a_checkpoint_has_every_tensor_of_the_model_and_no_other() {
    let tuned = Tuned::new();
    succeeded(&tuned.train("run", &[]));
    let path = tuned.path("run/checkpoint.safetensors");
    let (whole, progress, _) = side::load_with(&path).expect("a checkpoint");
    let moment = whole.keys().find(|name| name.starts_with("adam.m/")).expect("a moment").clone();
    let weight = whole.keys().find(|name| name.ends_with(".weight")).expect("a parameter").clone();
    let progress = [("lstc.progress", progress["lstc.progress"].as_str())];
    let without_checksum = elsewhere(&whole, &progress);
    tuned.put("run/checkpoint.safetensors", &without_checksum);
    refused(&tuned.resume("run"), &["it has no checksum"]);

    // With a checksum that holds, as by a program that knows how to make one.
    let written = |side: &Side| {
        side::save_with(&path, side, &progress.map(|(key, value)| (key, value.to_owned()))).expect("a checkpoint");
        tuned.resume("run")
    };
    let mut missing = whole.clone();
    missing.remove(&moment);
    refused(&written(&missing), &[&format!("`{moment}` is missing")]);
    let mut renamed = missing.clone();
    renamed.insert("adam.m/other".to_owned(), whole[&moment].clone());
    refused(&written(&renamed), &[&format!("`{moment}` is missing"), "`adam.m/other` is neither a parameter nor"]);
    let mut reshaped = whole.clone();
    reshaped.insert(weight.clone(), ndarray::ArrayD::zeros(vec![3]));
    refused(&written(&reshaped), &[&format!("`{weight}` is [3] in the checkpoint")]);
    let mut strange = whole.clone();
    strange.get_mut(&moment).expect("a moment").fill(f32::NAN);
    refused(&written(&strange), &[&format!("`{moment}` holds numbers that are not finite")]);
    succeeded(&written(&whole));
}

#[test]
fn what_a_resumed_run_was_begun_with_is_not_edited() {
    let tuned = Tuned::new();
    succeeded(&tuned.train("run", &[]));
    let record = String::from_utf8(tuned.read("run/train.yaml")).expect("text");
    tuned.put("run/train.yaml", record.replace("tap_dtype: fp32", "tap_dtype: int8"));
    refused(&tuned.resume("run"), &["train.yaml` has changed since the run began", "hint:"]);
    tuned.put("run/train.yaml", &record);
    succeeded(&tuned.resume("run"));
}

#[test]
fn a_log_that_is_damaged_is_not_gone_on_with() {
    let tuned = Tuned::new();
    succeeded(&tuned.train("run", &[]));
    let log = String::from_utf8(tuned.read("run/metrics.jsonl")).expect("text");
    tuned.put("run/metrics.jsonl", log.replacen("\"loss\"", "\"los", 1));
    refused(&tuned.resume("run"), &["metrics.jsonl", "line 1", "hint:"]);
    // The end of a line that a killed process wrote is no damage.
    tuned.put("run/metrics.jsonl", format!("{log}{{\"step\": 13, \"ep"));
    succeeded(&tuned.resume("run"));
    assert_eq!(String::from_utf8(tuned.read("run/metrics.jsonl")).expect("text"), log);
}

#[test]
fn a_side_network_that_is_damaged_is_noticed_by_every_reader() {
    let tuned = Tuned::new();
    succeeded(&tuned.train("tuned/run", &[]));
    let best = tuned.read("tuned/run/best.safetensors");
    let last = (best.len() - 2) * 8;
    tuned.put("tuned/run/best.safetensors", flipped(&best, last));
    let damaged = ["best.safetensors` is damaged", "its checksum does not match", "hint:"];
    refused(&tuned.lstc(&["eval", "tuned", "--data", "eval.jsonl"]), &damaged);
    refused(&tuned.lstc(&["export", "tuned", "-o", "out.onnx"]), &damaged);
    refused(&tuned.lstc(&["inspect", "tuned"]), &damaged);
    refused(&tuned.lstc(&["import", "tuned", "--side", "tuned/run/best.safetensors", "--force"]), &damaged);
    assert!(!tuned.path("out.onnx").exists());
    tuned.put("tuned/run/best.safetensors", &best);

    let initial = tuned.read("tuned/side.safetensors");
    tuned.put("tuned/side.safetensors", flipped(&initial, (initial.len() - 2) * 8));
    refused(&tuned.train("another", &[]), &["side.safetensors` is damaged"]);
    let verified = tuned.lstc(&["verify", "tuned"]);
    assert_eq!(verified.status.code(), Some(1), "{}", said(&verified));
    assert!(String::from_utf8_lossy(&verified.stdout).contains("side.safetensors` is damaged"));
    tuned.put("tuned/side.safetensors", &initial);
    let shown = succeeded(&tuned.lstc(&["inspect", "tuned"]));
    let checksum = metadata(&best)["lstc.blake3"].clone();
    assert!(shown.contains(&checksum[..16]), "{checksum} is not in: {shown}");
}

#[test]
fn a_file_of_lstcs_does_not_lose_its_checksum() {
    let tuned = Tuned::new();
    let initial = tuned.read("tuned/side.safetensors");
    let side = side::load(&tuned.path("tuned/side.safetensors")).expect("a side network");
    let all = metadata(&initial);
    assert_eq!(
        all.keys().map(String::as_str).collect::<Vec<_>>(),
        ["format", "lstc.blake3", "lstc.format", "lstc.made_for"]
    );
    let eval = || tuned.lstc(&["eval", "tuned", "--data", "eval.jsonl", "--side", "other.safetensors"]);

    // As another tool writes it again, metadata and all.
    let entries: Vec<(&str, &str)> = all.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    tuned.put("other.safetensors", elsewhere(&side, &entries));
    let output = eval();
    succeeded(&output);
    assert!(!said(&output).contains("was not written by lstc"));

    for key in ["lstc.blake3", "lstc.format", "lstc.made_for"] {
        let kept: Vec<_> = entries.iter().copied().filter(|(name, _)| *name != key).collect();
        tuned.put("other.safetensors", elsewhere(&side, &kept));
        refused(&eval(), &["other.safetensors` is damaged"]);
    }
    // PyTorch's has none, which is said once.
    tuned.put("other.safetensors", elsewhere(&side, &[("format", "pt")]));
    let output = eval();
    succeeded(&output);
    assert_eq!(said(&output).matches("other.safetensors` was not written by lstc").count(), 1, "{}", said(&output));
    let imported = tuned.lstc(&["import", "tuned", "--side", "other.safetensors"]);
    assert!(succeeded(&imported).contains("no checksum"), "it says whether the values could be checked");
}

#[test]
fn the_same_run_writes_the_same_bytes() {
    let tuned = Tuned::new();
    let config = lstc_tuned::config::Config::read(&tuned.path("tuned/lst.yaml")).expect("a manifest");
    tuned.rewrite("again", &config);
    let mut names: Vec<_> =
        std::fs::read_dir(tuned.path("tuned")).expect("a folder").flatten().map(|e| e.file_name()).collect();
    names.sort();
    // When the files were last looked at.
    names.retain(|name| name != ".seen.json");
    assert!(names.len() >= 8, "{names:?}");
    for name in names.iter().map(|name| name.to_str().expect("UTF-8")) {
        assert!(tuned.read(&format!("tuned/{name}")) == tuned.read(&format!("again/{name}")), "{name} differs");
    }
    for out in ["one", "two"] {
        succeeded(&tuned.train(out, &[]));
        let (model, side) = (format!("{out}.onnx"), format!("{out}/best.safetensors"));
        succeeded(&tuned.lstc(&["export", "tuned", "--side", &side, "-o", &model]));
    }
    for name in ["/best.safetensors", "/checkpoint.safetensors", ".onnx"] {
        assert!(tuned.read(&format!("one{name}")) == tuned.read(&format!("two{name}")), "{name} differs");
    }
}
