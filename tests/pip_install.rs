//! `pip install .` into a fresh virtual environment: the binary, and ONNX Runtime from the package that it depends on.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a command, and gives what it prints.
#[track_caller]
fn printed(command: &mut Command) -> String {
    let ran = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(ran.status.success(), "{command:?}\n{text}{}", String::from_utf8_lossy(&ran.stderr));
    text
}

/// A virtual environment without pip of its own, which Debian leaves out: the system's works on it.
fn environment(folder: &Path) -> PathBuf {
    let environment = folder.join("venv");
    printed(Command::new("python3").args(["-m", "venv", "--without-pip"]).arg(&environment));
    environment
}

#[test]
fn pip_installs_lstc_and_the_library_that_it_runs_on() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let environment = environment(folder.path());
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "--python"]).arg(environment.join("bin/python"));
    pip.args(["install", "--quiet", "--no-input", "--disable-pip-version-check"]).arg(env!("CARGO_MANIFEST_DIR"));
    // What the tests were built from, unoptimised: the release build would take minutes.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target folder");
    pip.env("CARGO_TARGET_DIR", target).env("MATURIN_PEP517_ARGS", "--profile dev --strip false");
    printed(&mut pip);

    let home = folder.path().join("cache");
    let lstc = |arguments: &[&str]| {
        let mut command = Command::new(environment.join("bin/lstc"));
        command.args(arguments).env("XDG_CACHE_HOME", &home).current_dir(folder.path());
        for variable in ["ORT_DYLIB_PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH"] {
            command.env_remove(variable);
        }
        printed(&mut command)
    };
    assert!(lstc(&["--version"]).contains(env!("CARGO_PKG_VERSION")));
    let shown: serde_json::Value = serde_json::from_str(&lstc(&["runtime", "show", "--format", "json"])).expect("JSON");
    let library = shown["library"]["path"].as_str().unwrap_or_else(|| panic!("no library: {shown}"));
    assert!(Path::new(library).starts_with(environment.canonicalize().expect("it is there")), "{library}");
    assert_eq!(shown["library"]["origin"], "Python package");

    // It computes: a model is rewritten and held against itself.
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/t5-nano/model.onnx");
    lstc(&["rewrite", model.to_str().expect("UTF-8"), "-o", "tuned"]);
    assert!(lstc(&["verify", "tuned"]).contains("hold"));
}
