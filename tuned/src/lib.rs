//! A rewritten directory: the names of its files and of what training adds, its manifest, the options in it, and how it is opened.

pub mod cache;
pub mod config;
pub mod directory;
pub mod gates;
mod held;
pub mod intact;
pub mod made_for;
pub mod manifest;
pub mod opened;
pub mod options;
pub mod origin;
pub mod output;
mod placement;
pub mod quantised;
pub mod run;
pub mod side;
pub mod tokens;

pub use held::about;
pub use intact::SEEN;

/// The frozen weights' file. If one is not enough, `backbone.1.data` and so on are beside it.
pub const DATA: &str = "backbone.data";
/// The initial side network's file.
pub const SIDE: &str = "side.safetensors";
/// The folder of a training run, if no other is given.
pub const RUN: &str = "run";
/// The graphs' files.
pub const GRAPHS: [&str; 5] = ["train.onnx", "grad.onnx", "apply.onnx", "eval.onnx", "infer.onnx"];
/// The manifest's file.
pub const MANIFEST: &str = "lst.yaml";
/// The tokenizer's file, beside a model and in a rewritten directory.
pub const TOKENIZER: &str = "tokenizer.json";

/// True for the name of a file that a rewrite writes.
pub fn is_own(name: &str) -> bool {
    let is_data = || {
        let number = name.strip_prefix("backbone.").and_then(|rest| rest.strip_suffix(".data"));
        name == DATA || number.is_some_and(|number| number.parse::<u32>().is_ok())
    };
    GRAPHS.contains(&name) || [MANIFEST, SIDE, TOKENIZER, SEEN].contains(&name) || is_data()
}

/// The warning for a model of integers on CUDA.
pub const INTEGERS_ON_CUDA: &str = "the model uses integer products, for which there are no CUDA kernels: on CUDA its weights are \
                                    dequantised once and multiplied in bf16 (in f32 before Ampere)";
