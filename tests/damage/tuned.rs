//! A rewritten case beside data of token ids, and the command line on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lstc::rewrite::{Request, rewrite};
use lstc_tuned::config::Config;

use crate::common;

pub struct Tuned {
    folder: tempfile::TempDir,
}

pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}", said(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Exit code 2, and an error that says these things.
pub fn refused(output: &Output, with: &[&str]) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for part in with {
        assert!(said.contains(part), "`{part}` is not in: {said}");
    }
}

/// A file with one bit turned over.
pub fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut flipped = bytes.to_vec();
    flipped[bit / 8] ^= 1 << (bit % 8);
    flipped
}

impl Tuned {
    pub fn new() -> Tuned {
        common::runtime(); // installs the library that the commands need
        let folder = tempfile::tempdir().expect("a temporary folder");
        let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/relu_torchscript");
        fs::copy(case.join("model.onnx"), folder.path().join("model.onnx")).expect("a temporary folder");
        let tuned = Tuned { folder };
        tuned.write("train.jsonl", 24);
        tuned.write("eval.jsonl", 9);
        let config = Config::read(&case.join("lst.yaml")).expect("the case's options");
        tuned.rewrite("tuned", &config);
        tuned
    }

    pub fn rewrite(&self, output: &str, config: &Config) {
        let (model, output) = (self.path("model.onnx"), self.path(output));
        let (options, training) = (config.options(), config.training());
        let request = Request { model: (&model).into(), options, training, output: &output, force: false };
        rewrite(request, |_, _| ()).unwrap_or_else(|e| panic!("{e:?}"));
    }

    /// A tokeniser-free data file: rows whose label follows from their first token.
    fn write(&self, name: &str, rows: usize) {
        let row = |row: usize| {
            let length = 2 + row * 7 % 5;
            let ids: Vec<usize> = (0..length).map(|at| 2 + (row * 31 + at * 17) % 28).chain([1]).collect();
            let label = ["5, 1", "6, 1", "7, 9, 1"][ids[0] % 3];
            format!("{{\"input_ids\": {ids:?}, \"labels\": [{label}]}}\n")
        };
        fs::write(self.path(name), (0..rows).map(row).collect::<String>()).expect("a temporary folder");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub fn put(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
    }

    /// Runs a command in the folder.
    pub fn lstc(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lstc"));
        command.current_dir(self.folder.path()).args(arguments).output().expect("lstc runs")
    }

    /// Trains in a folder, two epochs of six steps.
    pub fn train(&self, out: &str, flags: &[&str]) -> Output {
        let fixed = ["train", "tuned", "--out", out, "--train", "train.jsonl", "--eval", "eval.jsonl"];
        let sizes = ["--batch-size", "4", "--epochs", "2", "--threads", "2", "--save-every", "1"];
        self.lstc(&[&fixed[..], &sizes[..], flags].concat())
    }

    pub fn resume(&self, out: &str) -> Output {
        self.lstc(&["train", "tuned", "--out", out, "--resume"])
    }
}
