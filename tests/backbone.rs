//! The frozen weights of a rewrite: copied, linked, shared, and what the report and `verify` say of them.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(name)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).expect("it is there").ino()
}

/// The name of the data file in the cases that have one.
const DATA: &str = "model.onnx.data";
/// A name of the same length: it can take the other's place in a model's bytes.
const OTHER: &str = "model.onnx.more";

/// A folder with a model.
struct Model {
    folder: tempfile::TempDir,
}

impl Model {
    /// The files of a case.
    fn of(name: &str) -> Model {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for file in ["model.onnx", DATA] {
            let from = case(name).join(file);
            if from.is_file() {
                fs::copy(from, folder.path().join(file)).expect("a copy");
            }
        }
        Model { folder }
    }

    /// One whose weights lie in two data files by turns.
    fn in_two_files() -> Model {
        let model = Model::of("external_weights");
        let path = model.path("model.onnx");
        let mut bytes = fs::read(&path).expect("the model");
        let places: Vec<usize> = (0..bytes.len()).filter(|i| bytes[*i..].starts_with(DATA.as_bytes())).collect();
        assert!(places.len() > 10);
        for place in places.into_iter().step_by(2) {
            bytes[place..place + OTHER.len()].copy_from_slice(OTHER.as_bytes());
        }
        fs::write(path, bytes).expect("it can be written");
        fs::copy(model.path(DATA), model.path(OTHER)).expect("a copy");
        model
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn rewrite(&self, output: &str, flags: &[&str]) -> Output {
        let (model, output) = (self.path("model.onnx"), self.path(output));
        lstc(&[&["rewrite", text(&model), "-o", text(&output), "-r", "4"], flags].concat())
    }

    fn rewritten(&self, output: &str, flags: &[&str]) -> String {
        let done = self.rewrite(output, flags);
        assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
        stdout(&done)
    }

    fn verify(&self, output: &str) -> Output {
        lstc(&["verify", text(&self.path(output))])
    }

    fn holds(&self, output: &str) {
        let verdict = self.verify(output);
        assert_eq!(verdict.status.code(), Some(0), "{}{}", stdout(&verdict), stderr(&verdict));
    }
}

fn lstc(arguments: &[&str]) -> Output {
    common::runtime(); // installs the library that verify needs
    Command::new(env!("CARGO_BIN_EXE_lstc")).args(arguments).output().expect("lstc runs")
}

#[test]
fn with_link_every_data_file_is_linked_and_told() {
    let model = Model::in_two_files();
    let told = model.rewritten("tuned", &["--link"]);
    let links: Vec<PathBuf> = ["tuned/backbone.data", "tuned/backbone.1.data"].map(|n| model.path(n)).into();
    let mut linked: Vec<u64> = links.iter().map(|path| inode(path)).collect();
    let mut sources: Vec<u64> = [DATA, OTHER].iter().map(|name| inode(&model.path(name))).collect();
    linked.sort_unstable();
    sources.sort_unstable();
    assert_eq!(linked, sources);
    for words in ["backbone.data: ", "backbone.1.data: ", " linked to `", DATA, OTHER] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let manifest = fs::read_to_string(model.path("tuned/lst.yaml")).expect("a manifest");
    assert_eq!(
        manifest.matches("blake3: ").count(),
        3 + 5 + 2,
        "the model and two data files, and what was written of them"
    );
    model.holds("tuned");
}

#[test]
fn without_link_every_file_keeps_its_one_name() {
    let model = Model::in_two_files();
    let done = model.rewrite("tuned", &[]);
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    let told = stdout(&done);
    assert!(told.contains("backbone.data: ") && !told.contains(" linked"), "{told}");
    if told.contains(" copied") {
        let announced = stderr(&done);
        assert!(announced.contains("copying ") && announced.contains(" KiB of weights"), "{announced}");
        assert!(announced.contains("--link makes hard links"), "{announced}");
    }
    for file in fs::read_dir(model.path("tuned")).expect("a folder").flatten() {
        assert_eq!(file.metadata().expect("it is there").nlink(), 1, "{:?}", file.file_name());
    }
    for source in ["model.onnx", DATA, OTHER] {
        assert_eq!(fs::metadata(model.path(source)).expect("it is there").nlink(), 1, "{source}");
    }
    model.holds("tuned");
}

#[test]
fn side_networks_of_one_model_share_its_copied_weights() {
    let model = Model::of("relu_torchscript");
    let told = model.rewritten("a", &["--encoder-blocks", "1"]);
    assert!(told.contains(" copied"), "{told}");
    let told = model.rewritten("b", &["--link", "--share", text(&model.path("a")), "--init", "random"]);
    assert!(told.contains("linked to `") && told.contains("a/backbone.data`"), "{told}");
    assert_eq!(inode(&model.path("a/backbone.data")), inode(&model.path("b/backbone.data")));
    model.holds("b");

    // What a link to the model's own data file does needs nobody to share with.
    let external = Model::of("external_weights");
    external.rewritten("a", &[]);
    let told = external.rewritten("b", &["--link", "--share", text(&external.path("a"))]);
    assert!(told.contains(&format!("{DATA}`")), "{told}");
}

#[test]
fn weights_of_another_model_are_not_shared() {
    let (model, other) = (Model::of("relu_torchscript"), Model::of("merge_last"));
    other.rewritten("a", &[]);
    for (directory, reason) in [(other.path("a"), "is different"), (model.path("nowhere"), "is not a rewritten model")]
    {
        let refused = model.rewrite("b", &["--link", "--share", text(&directory)]);
        assert_eq!(refused.status.code(), Some(2), "{}", stdout(&refused));
        let told = stderr(&refused);
        assert!(told.contains("cannot be shared") && told.contains(reason), "{told}");
        assert!(!model.path("b").exists());
    }
}

#[test]
fn a_changed_byte_of_the_source_is_found() {
    let model = Model::of("external_weights");
    model.rewritten("tuned", &[]);
    let data = model.path(DATA);
    let mut bytes = fs::read(&data).expect("the weights");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&data, bytes).expect("it can be written");
    let verdict = model.verify("tuned");
    assert_eq!(verdict.status.code(), Some(1), "{}", stdout(&verdict));
    assert!(stdout(&verdict).contains(&format!("{DATA}` has changed since it was rewritten")), "{}", stdout(&verdict));
}

#[test]
fn a_manifest_of_another_version_says_what_to_do() {
    let model = Model::of("relu_torchscript");
    model.rewritten("tuned", &[]);
    let manifest = model.path("tuned/lst.yaml");
    let changed = fs::read_to_string(&manifest).expect("a manifest").replace("blake3: ", "sha256: ");
    fs::write(&manifest, changed).expect("it can be written");
    let refused = model.verify("tuned");
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("SHA-256") && stderr(&refused).contains("rewrite the model again"));
    let refused = lstc(&["rewrite", "--config", text(&manifest), "-o", text(&model.path("again"))]);
    assert!(stderr(&refused).contains("rewrite the model again"), "{}", stderr(&refused));
}
