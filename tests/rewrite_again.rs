//! `lstc rewrite --from`: the same model once more, with other options or the same.

#[path = "common/cli.rs"]
mod cli;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use cli::{lstc, stderr, stdout, text};

/// A copy of a model of two encoder and three decoder blocks, and what was made of it with some flags.
struct Tuned {
    folder: tempfile::TempDir,
}

impl Tuned {
    fn new(flags: &[&str]) -> Tuned {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let tuned = Tuned { folder };
        let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/two_and_three_blocks/model.onnx");
        fs::copy(case, tuned.path("model.onnx")).expect("a copy");
        let (model, output) = (tuned.path("model.onnx"), tuned.path("tuned"));
        let done = lstc(&[&["rewrite", text(&model), "-o", text(&output), "-r", "4"], flags].concat());
        assert!(done.status.success(), "{}", stderr(&done));
        tuned
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn again(&self, flags: &[&str]) -> Output {
        lstc(&[&["rewrite", "--from", text(&self.path("tuned"))], flags].concat())
    }

    fn manifest(&self, folder: &str) -> String {
        fs::read_to_string(self.path(folder).join("lst.yaml")).expect("a manifest")
    }
}

#[test]
fn without_flags_it_is_the_same_and_with_flags_they_go_first() {
    let tuned = Tuned::new(&["--keep-blocks", "1", "--batch", "2", "--gate", "fixed"]);
    let again = tuned.path("again");
    let done = tuned.again(&["-o", text(&again)]);
    assert!(done.status.success(), "{}", stderr(&done));
    // What was seen of the files on the disk is of these files.
    let written = |entry: &fs::DirEntry| entry.file_name() != ".seen.json";
    for entry in fs::read_dir(tuned.path("tuned")).expect("a folder").flatten().filter(written) {
        let same = fs::read(entry.path()).ok() == fs::read(again.join(entry.file_name())).ok();
        assert!(same, "{:?} differs", entry.file_name());
    }
    let other = tuned.path("other");
    let done = tuned.again(&["-o", text(&other), "--encoder-blocks", "0,1", "--source-length", "7"]);
    assert!(done.status.success(), "{}", stderr(&done));
    let manifest = tuned.manifest("other");
    for kept in ["gate: fixed", "batch: 2", "source_length: 7", "keep_blocks:\n    decoder: 1"] {
        assert!(manifest.contains(kept), "{kept}\n{manifest}");
    }
}

#[test]
fn a_report_tells_which_blocks_were_kept_and_what_folding_made() {
    let tuned = Tuned::new(&[]);
    let done = tuned.again(&["-o", text(&tuned.path("again")), "--keep-blocks", "2", "--batch", "2"]);
    assert!(done.status.success(), "{}", stderr(&done));
    let told = stdout(&done);
    assert!(told.contains("encoder keeps all of its 2 blocks: 2 were asked for"), "{told}");
    assert!(told.contains("decoder keeps ") && told.contains("; importance 0: 0."), "{told}");
    assert!(told.contains("fixed batch 2: the backbone has "), "{told}");
    let manifest = tuned.manifest("again");
    assert!(manifest.contains("chosen_blocks:") && manifest.contains("importance:"), "{manifest}");
    let inspected = stdout(&lstc(&["inspect", text(&tuned.path("again"))]));
    assert!(inspected.contains("predicted memory of training, batch 2"), "{inspected}");
    assert!(inspected.contains("mask or buckets"), "{inspected}");
    let json = tuned.again(&["-o", text(&tuned.path("json")), "--keep-blocks", "2", "--format", "json"]);
    let json: serde_json::Value = serde_json::from_str(&stdout(&json)).expect("it is JSON");
    let kept = json["chosen_blocks"][1]["kept"].as_array().map(Vec::len);
    assert_eq!((kept, json["chosen_blocks"][1]["importance"].as_array().map(Vec::len)), (Some(2), Some(3)));
}

#[test]
fn a_source_that_is_another_or_gone_is_an_error() {
    let tuned = Tuned::new(&[]);
    let (model, again) = (tuned.path("model.onnx"), tuned.path("again"));
    let moved = tuned.path("moved.onnx");
    fs::rename(&model, &moved).expect("it is moved");
    let gone = tuned.again(&["-o", text(&again)]);
    assert_eq!(gone.status.code(), Some(2));
    let told = stderr(&gone);
    assert!(told.contains("is no longer there") && told.contains("--config"), "{told}");
    // What the hint says works.
    let config = tuned.path("tuned/lst.yaml");
    let done = lstc(&["rewrite", text(&moved), "--config", text(&config), "-o", text(&tuned.path("hinted"))]);
    assert!(done.status.success(), "{}", stderr(&done));

    let mut bytes = fs::read(&moved).expect("the model");
    bytes.extend_from_slice(b"\x5a\x00");
    fs::write(&model, bytes).expect("it is written");
    let changed = tuned.again(&["-o", text(&again)]);
    assert_eq!(changed.status.code(), Some(2));
    assert!(stderr(&changed).contains("has changed since it was rewritten"), "{}", stderr(&changed));
    assert!(!again.exists());
}

#[test]
fn nothing_is_rewritten_in_place() {
    let tuned = Tuned::new(&[]);
    let before = tuned.manifest("tuned");
    let directory = tuned.path("tuned");
    let none = tuned.again(&["--seed", "1"]);
    assert_eq!(none.status.code(), Some(2));
    assert!(stderr(&none).contains("no output directory is given"), "{}", stderr(&none));
    let around = tuned.path("tuned/../tuned");
    for place in [&directory, &around] {
        let same = tuned.again(&["-o", text(place), "--force", "--seed", "1"]);
        assert_eq!(same.status.code(), Some(2));
        assert!(stderr(&same).contains("is the directory to rewrite again, and is not replaced"), "{}", stderr(&same));
    }
    assert_eq!(tuned.manifest("tuned"), before);
    let nowhere = lstc(&["rewrite", "--from", text(&tuned.path("nowhere")), "-o", "x"]);
    assert!(stderr(&nowhere).contains("is not a rewritten model"), "{}", stderr(&nowhere));
    let both = tuned.again(&["-o", "x", "--config", "lst.yaml"]);
    assert!(stderr(&both).contains("cannot be used with"), "{}", stderr(&both));
}

#[test]
fn counts_of_blocks_are_read_and_slips_are_told() {
    let tuned = Tuned::new(&[]);
    let print = |flags: &[&str]| tuned.again(&[&["--print-config"], flags].concat());
    let told = stdout(&print(&["--keep-blocks", "encoder=1,decoder=2"]));
    assert!(told.contains("keep_blocks: {encoder: 1, decoder: 2}"), "{told}");
    for (mistake, reason) in [
        ("9,5", "expected a number, as in 9"),
        ("encodr=3", "expected one of encoder, decoder"),
        ("encoder=1,encoder=2", "encoder is given twice"),
    ] {
        let told = stderr(&print(&["--keep-blocks", mistake]));
        assert!(told.contains(reason), "{told}");
    }
    let both = stderr(&print(&["--keep-blocks", "1", "--encoder-blocks", "0"]));
    assert!(both.contains("cannot be used with"), "{both}");
}
