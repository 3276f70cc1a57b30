//! `lstc`: a compiler from an ONNX transformer to a ladder side-tuning training step.

use std::process::ExitCode;

fn main() -> ExitCode {
    lstc::commands::main().into()
}
