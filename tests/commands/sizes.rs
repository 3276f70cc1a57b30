//! Sizes that a model fixes, and tokens that it does not have, are told before anything runs.

use std::fs;

use lstc_graph::onnx::proto::ModelProto;
use lstc_graph::onnx::proto::tensor_shape_proto::dimension::Value;
use lstc_graph::onnx::proto::type_proto;
use prost::Message;

use super::{Tuned, archive, case, code, lstc, stderr, text};

/// Fixes the length of the decoder's input of a model.
fn with_target_length(length: i64) -> Vec<u8> {
    let bytes = fs::read(case("relu_torchscript/model.onnx")).expect("the case is committed");
    let mut model = ModelProto::decode(&bytes[..]).expect("the case is a model");
    let graph = model.graph.as_mut().expect("the case is a model");
    let input = graph.input.iter_mut().find(|i| i.name() == "decoder_input_ids").expect("the decoder's tokens");
    let Some(type_proto::Value::TensorType(tensor)) = input.r#type.as_mut().and_then(|t| t.value.as_mut()) else {
        panic!("tokens are a tensor")
    };
    let dims = &mut tensor.shape.as_mut().expect("the exporter declares it").dim;
    dims[1].value = Some(Value::DimValue(length));
    model.encode_to_vec()
}

#[test]
fn a_target_of_one_token_cannot_be_trained() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (model, output) = (folder.path().join("model.onnx"), folder.path().join("tuned"));
    let rewrite = |flags: &[&str]| lstc(&[&["rewrite", text(&model), "-o", text(&output)], flags].concat());
    fs::write(&model, with_target_length(1)).expect("the folder is new");
    let no = rewrite(&[]);
    assert!(code(&no) != 0 && !output.exists());
    let told = stderr(&no);
    assert!(told.contains("is fixed at 1 token"), "{told}");
    fs::copy(case("relu_torchscript/model.onnx"), &model).expect("a copy");
    for flag in ["--target-length", "--source-length"] {
        let no = rewrite(&[flag, "1", "--force"]);
        assert!(code(&no) != 0 && stderr(&no).contains("is fixed at 1 token"), "{}", stderr(&no));
        let yes = rewrite(&[flag, "2", "--force"]);
        assert_eq!(code(&yes), 0, "{}", stderr(&yes));
    }
}

#[test]
fn a_batch_that_the_model_fixes_is_not_another() {
    let tuned = Tuned::new("relu_torchscript", &["--batch", "1"]);
    let (directory, data) = (tuned.path("tuned"), tuned.path("data.jsonl"));
    fs::write(&data, "{\"input_ids\": [5, 6, 1], \"labels\": [7, 1]}\n").expect("the folder is there");
    let side = directory.join("side.safetensors");
    let train = ["train", text(&directory), "--train", text(&data), "--epochs", "1"];
    let eval = ["eval", text(&directory), "--data", text(&data), "--side", text(&side)];
    for command in [&train[..], &eval] {
        let no = lstc(&[command, &["--batch-size", "16"]].concat());
        let told = stderr(&no);
        assert!(
            code(&no) == 2 && told.contains("the model's batch is fixed at 1: --batch-size cannot be 16"),
            "{told}"
        );
        assert!(!directory.join("run").exists());
    }
    for command in [&train[..], &eval] {
        let yes = lstc(&[command, &["--batch-size", "1"]].concat());
        assert_eq!(code(&yes), 0, "{}", stderr(&yes));
    }
}

#[test]
fn tokens_that_the_model_does_not_have_leave_no_run() {
    let tuned = Tuned::new("relu_torchscript", &[]);
    let (directory, data) = (tuned.path("tuned"), tuned.path("data.jsonl"));
    fs::write(&data, "{\"input_ids\": [5, 96, 1], \"labels\": [7, 1]}\n").expect("the folder is there");
    let no = lstc(&["train", text(&directory), "--train", text(&data)]);
    let told = stderr(&no);
    assert!(told.contains("field `input_ids` has token 96, but the model has embeddings for 96 tokens"), "{told}");
    assert!(code(&no) == 2 && !directory.join("run").exists());
    let model = tuned.path("model.onnx");
    let again = lstc(&["rewrite", text(&model), "-o", text(&directory), "--force"]);
    assert_eq!(code(&again), 0, "{}", stderr(&again));
}

/// A head that is padded to more tokens than the embedding has: those beyond cannot be read, and the others train.
#[test]
fn a_token_without_an_embedding_is_refused_before_anything_runs() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    archive::unpack("ts_padded_vocab", folder.path());
    let (directory, data) = (folder.path().join("tuned"), folder.path().join("data.jsonl"));
    let yes = lstc(&["rewrite", text(&folder.path().join("model.onnx")), "-o", text(&directory)]);
    assert_eq!(code(&yes), 0, "{}", stderr(&yes));
    let train = |row: &str| {
        fs::write(&data, row).expect("the folder is there");
        lstc(&["train", text(&directory), "--train", text(&data), "--epochs", "1"])
    };
    for row in ["{\"input_ids\": [5, 64, 1], \"labels\": [7, 1]}\n", "{\"input_ids\": [5, 1], \"labels\": [70, 1]}\n"] {
        let no = train(row);
        assert!(
            code(&no) == 2 && stderr(&no).contains("but the model has embeddings for 64 tokens"),
            "{}",
            stderr(&no)
        );
        assert!(!directory.join("run").exists());
    }
    let yes = train("{\"input_ids\": [5, 63, 1], \"labels\": [7, 1]}\n");
    assert_eq!(code(&yes), 0, "{}", stderr(&yes));
}
