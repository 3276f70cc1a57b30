//! Which model a folder holds, by names and by structure, and models that are not ONNX.

use std::fs;
use std::path::Path;

use lstc::rewrite::SourceModel;

use super::{archive, case, code, lstc, stderr, text};

/// What a part of a model is called where it was exported.
const EXPORTED: [(&str, &str); 4] = [
    ("encoder", "encoder_model.onnx"),
    ("decoder", "decoder_model.onnx"),
    ("step", "decoder_with_past_model.onnx"),
    ("merged", "decoder_model_merged.onnx"),
];

/// A file's name, and which part of a model it is.
type File = (&'static str, &'static str);

/// A folder with parts of a model under other names.
fn folder(files: &[File]) -> tempfile::TempDir {
    let (exported, folder) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    archive::unpack("optimum_gated_untied_equal", exported.path());
    for (name, part) in files {
        let file = EXPORTED.iter().find(|(known, _)| known == part).map(|(_, file)| exported.path().join(file));
        let file = file.unwrap_or_else(|| case("relu_torchscript/model.onnx"));
        fs::copy(file, folder.path().join(name)).expect("a copy");
    }
    folder
}

/// The names of the files that are taken, or the refusal with its hint.
fn found(folder: &Path) -> Result<Vec<String>, String> {
    let name = |path: &std::path::PathBuf| path.file_name().expect("a file").to_string_lossy().into_owned();
    match SourceModel::find(&[folder.to_owned()]) {
        Ok(model) => Ok(model.files().iter().map(name).collect()),
        Err(error) => {
            let hint = error
                .downcast_ref::<lstc_base::report::Hinted>()
                .map_or("", lstc_base::report::Hinted::hint)
                .to_owned();
            Err(format!("{error:#}\nhint: {hint}").replace(&format!("{}", folder.display()), "FOLDER"))
        }
    }
}

#[test]
fn the_parts_of_a_model_are_told_apart_by_what_they_compute() {
    let taken: [(&[File], &[&str]); 7] = [
        (
            &[("encoder_model_optimized.onnx", "encoder"), ("decoder_model_optimized.onnx", "decoder")],
            &["encoder_model_optimized.onnx", "decoder_model_optimized.onnx"],
        ),
        (
            &[
                ("encoder_model_quantized.onnx", "encoder"),
                ("decoder_model_quantized.onnx", "decoder"),
                ("decoder_with_past_model_quantized.onnx", "step"),
                ("decoder_model_merged_quantized.onnx", "merged"),
            ],
            &["encoder_model_quantized.onnx", "decoder_model_quantized.onnx"],
        ),
        (
            &[("t5-encoder.onnx", "encoder"), ("t5-decoder.onnx", "step"), ("t5-init-decoder.onnx", "decoder")],
            &["t5-encoder.onnx", "t5-init-decoder.onnx"],
        ),
        (&[("b.onnx", "encoder"), ("a_merged.onnx", "merged")], &["b.onnx", "a_merged.onnx"]),
        (&[("whole.onnx", "whole"), ("step.onnx", "step")], &["whole.onnx"]),
        (&[("a.onnx", "decoder"), ("b.onnx", "encoder")], &["b.onnx", "a.onnx"]),
        // The names that Optimum gives count before others.
        (
            &[
                ("encoder_model.onnx", "encoder"),
                ("decoder_model.onnx", "decoder"),
                ("encoder_model_quantized.onnx", "encoder"),
                ("decoder_model_quantized.onnx", "decoder"),
            ],
            &["encoder_model.onnx", "decoder_model.onnx"],
        ),
    ];
    for (files, names) in taken {
        let found = found(folder(files).path()).unwrap_or_else(|error| panic!("{files:?}: {error}"));
        assert_eq!(found, names, "{files:?}");
    }
    let quantised = folder(taken[1].0);
    let tuned = quantised.path().join("tuned");
    let done = lstc(&["rewrite", text(quantised.path()), "-o", text(&tuned)]);
    assert_eq!(code(&done), 0, "{}", stderr(&done));
    assert!(super::stdout(&done).contains("encoder_model_quantized.onnx"), "{}", super::stdout(&done));
}

#[test]
fn several_models_in_a_folder_are_listed() {
    let refused: [&[File]; 4] = [
        &[
            ("encoder_model_fp16.onnx", "encoder"),
            ("decoder_model_fp16.onnx", "decoder"),
            ("encoder_model_int8.onnx", "encoder"),
            ("decoder_model_int8.onnx", "decoder"),
        ],
        &[("a.onnx", "whole"), ("b.onnx", "whole")],
        &[("a.onnx", "encoder"), ("b.onnx", "encoder")],
        &[("model.onnx", "whole"), ("encoder_model.onnx", "encoder"), ("decoder_model.onnx", "decoder")],
    ];
    let told = |files: &&[File]| format!("{}\n", found(folder(files).path()).expect_err("which one?"));
    insta::assert_snapshot!(refused.iter().map(told).collect::<String>(), @r"
    `FOLDER` holds several files, and it is not clear which of them are the model
      decoder_model_fp16.onnx: a decoder
      decoder_model_int8.onnx: a decoder
      encoder_model_fp16.onnx: an encoder
      encoder_model_int8.onnx: an encoder
    hint: name the file of the model, or its encoder's and its decoder's, as in `FOLDER/encoder_model_fp16.onnx FOLDER/decoder_model_fp16.onnx`
    `FOLDER` holds several files, and it is not clear which of them are the model
      a.onnx: a whole model, or not a model
      b.onnx: a whole model, or not a model
    hint: name the file of the model, or its encoder's and its decoder's, as in `FOLDER/a.onnx`
    `FOLDER` holds several files, and it is not clear which of them are the model
      a.onnx: an encoder
      b.onnx: an encoder
    hint: name the file of the model, or its encoder's and its decoder's
    `FOLDER` holds model.onnx, and encoder_model.onnx with decoder_model.onnx
    hint: name the files: `FOLDER/encoder_model.onnx FOLDER/decoder_model.onnx`
    ");
}

#[test]
fn models_that_are_not_onnx_are_named_with_the_way_to_export_them() {
    let files: [(&str, &[u8], &str, &str); 9] = [
        (
            "model.safetensors",
            b"\x10\0\0\0\0\0\0\0{\"a\":{}}",
            "safetensors format, without a graph",
            "optimum-cli export onnx",
        ),
        ("weights", b"\x10\0\0\0\0\0\0\0{\"a\":{}}", "safetensors format, without a graph", "text2text-generation"),
        ("pytorch_model.bin", b"PK\x03\x04", "weights of PyTorch, without a graph", "optimum-cli export onnx"),
        ("model.pt", b"PK\x03\x04", "weights of PyTorch, without a graph", "optimum-cli export onnx"),
        ("tf_model.h5", b"\x89HDF\r\n", "HDF5", "optimum-cli export onnx"),
        ("flax_model.msgpack", b"\x81", "weights of Flax", "optimum-cli export onnx"),
        ("saved_model.pb", b"\x08\x01", "a SavedModel of TensorFlow", "tf2onnx.convert --saved-model"),
        ("t5.gguf", b"GGUF\x03", "a GGUF model", "the model that it was made from"),
        ("t5.tflite", b"\x1c\0\0\0TFL3", "a TensorFlow Lite model", "the model that it was made from"),
    ];
    for (name, bytes, what, way) in files {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, tuned) = (folder.path().join(name), folder.path().join("tuned"));
        fs::write(&file, bytes).expect("the folder is new");
        fs::write(folder.path().join("config.json"), "{}").expect("the folder is new");
        let models = if name == "weights" { vec![file.as_path()] } else { vec![file.as_path(), folder.path()] };
        for model in models {
            let no = lstc(&["rewrite", text(model), "-o", text(&tuned)]);
            let talk = stderr(&no);
            assert!(code(&no) != 0 && talk.contains(what) && talk.contains(way), "{name}: {talk}");
            assert!(!tuned.exists());
        }
    }
    let empty = tempfile::tempdir().expect("a folder");
    assert!(found(empty.path()).is_err_and(|e| e.contains("does not hold an ONNX model\n")));
}
