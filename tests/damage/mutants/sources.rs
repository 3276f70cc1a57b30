//! Models as users give them, with their data: nothing says that they are as they were. A mutant that is rewritten is a model that
//! ONNX Runtime runs too, and `verify` proves of it what it proves of any other, or ONNX Runtime does not run the mutant itself.

use std::fs;
use std::path::{Path, PathBuf};

use lstc::rewrite::{Request, rewrite};
use lstc::verify::{Verdict, verify};
use lstc_graph::onnx::proto::ModelProto;
use lstc_runtime::Optimisation;
use lstc_tuned::GRAPHS;
use lstc_tuned::config::Config;
use prost::Message;

use super::{FEW, bytes, each, graphs, names};
use crate::common;

/// A case, to be rewritten again and again.
struct Source {
    folder: tempfile::TempDir,
    config: Config,
}

impl Source {
    fn new(case: &str) -> Source {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(case);
        for file in ["model.onnx", "model.onnx.data"].iter().filter(|file| case.join(file).exists()) {
            fs::copy(case.join(file), folder.path().join(file)).expect("a temporary folder");
        }
        Source { folder, config: Config::read(&case.join("lst.yaml")).expect("the case's options") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).expect("the case is committed")
    }

    /// Judges a mutant of one of the source's files.
    fn judge(&self, file: &str, mutant: impl AsRef<[u8]>) -> &'static str {
        fs::write(self.path(file), mutant).expect("a temporary folder");
        let (model, tuned) = (self.path("model.onnx"), self.path("tuned"));
        let (options, training) = (self.config.options(), self.config.training());
        let request = Request { model: (&model).into(), options, training, output: &tuned, force: true };
        if let Err(error) = rewrite(request, |_, _| ()) {
            names(&error, "model.onnx");
            return "refused";
        }
        let session = |file: &Path| common::runtime().session().optimisation(Optimisation::Off).threads(1).open(file);
        let opened = GRAPHS.iter().try_for_each(|graph| session(&tuned.join(graph)).map(drop));
        let proved = opened.map_err(anyhow::Error::from).and_then(|()| verify(&tuned, common::runtime(), 0, |_| ()));
        match proved {
            Ok(verdict) if verdict.holds => "rewritten and proved",
            _ if session(&model).is_err() => "rewritten, and refused by ONNX Runtime",
            // It holds numbers that overflow, and says so.
            Ok(verdict) if overflows(&verdict) => "rewritten, and not finite",
            Ok(verdict) => panic!("it is rewritten, and then\n{verdict}"),
            Err(error) => panic!("it is rewritten, and then: {error:?}"),
        }
    }
}

/// Whether the backbone's own numbers are not finite: no check of them can then hold, and the verdict says why.
fn overflows(verdict: &Verdict) -> bool {
    let taps = verdict.checks.iter().find(|check| check.name.starts_with("the taps are finite"));
    taps.is_some_and(|check| !check.holds && check.measured.contains("is not finite"))
}

#[test]
fn mutants_of_models_are_refused_or_proved() {
    for case in ["relu_torchscript", "external_weights"] {
        let source = Source::new(case);
        let sound = source.read("model.onnx");
        let model = ModelProto::decode(&sound[..]).expect("the case is a model");
        each(&format!("the model of {case}, by bytes"), FEW, |seed| {
            source.judge("model.onnx", bytes::mutant(&sound, seed))
        });
        each(&format!("the model of {case}, by structure"), FEW, |seed| {
            source.judge("model.onnx", graphs::mutant(&model, seed).encode_to_vec())
        });
    }
}

#[test]
fn mutants_of_external_data_are_refused_or_proved() {
    let source = Source::new("external_weights");
    let sound = source.read("model.onnx.data");
    each("external data", FEW, |seed| source.judge("model.onnx.data", bytes::mutant(&sound, seed)));
}
