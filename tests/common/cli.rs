//! What the tests of the command line share: running it, and reading what it says.

use std::path::Path;
use std::process::{Command, Output};

/// Runs the binary.
pub fn lstc(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lstc")).args(arguments).output().expect("lstc runs")
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}
