//! Exported models in tract: another implementation, with other kernels, gives the same logits.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use lstc::export::{Request, Weights, export};
use lstc::rewrite::{Request as Rewrite, rewrite};
use lstc_runtime::install::{self, install};
use lstc_runtime::{Device, Error, Flavour, Runtime, Tensor, find};
use lstc_tuned::config::Config;
use ndarray::{ArrayD, IxDyn};
use safetensors::SafeTensors;

/// Largest difference, relative to the largest logit.
const BOUND: f64 = 1e-3;

/// Of these exports tract cannot infer the shape of a Reshape, which is the source model's own.
const REFUSED: [&str; 2] = ["unoptimised_dynamo", "unoptimised_sdpa"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<&Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        if let Err(Error::NotFound { .. }) = find(Device::Cpu) {
            install(&install::Request::new(Flavour::Cpu), &mut |_| {}).expect("ONNX Runtime can be installed");
        }
        let library = find(Device::Cpu).expect("there is an ONNX Runtime library");
        Runtime::load(&library).expect("ONNX Runtime loads")
    })
}

/// An export of a model with a side network: the one beside it, or the initial one.
fn exported(folder: &Path, model: &Path, config: &Config) -> PathBuf {
    let (directory, output) = (folder.join("tuned"), folder.join("out.onnx"));
    let (options, training) = (config.options(), config.training());
    let request = Rewrite { model: model.into(), options, training, output: &directory, force: false };
    rewrite(request, |_, _| ()).unwrap_or_else(|e| panic!("{}: {e:?}", model.display()));
    let own = model.with_file_name("side.safetensors");
    let side = if own.exists() { own } else { directory.join("side.safetensors") };
    let (side, weights) = (Some(side.as_path()), Weights::default());
    let request =
        Request { directory: &directory, side, output: &output, weights, force: false, runtime: Some(runtime()) };
    let export = export(request).unwrap_or_else(|e| panic!("{}: {e:?}", model.display()));
    assert!(export.is_written());
    output
}

/// The logits in ONNX Runtime.
fn wanted(file: &Path, inputs: &[(String, Tensor)]) -> ArrayD<f32> {
    let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut session = runtime().session().open(file).expect("it opens");
    session.run(&given, &["logits"]).expect("it runs")[0].as_f32().expect("f32").to_owned()
}

/// The logits in tract, with the shapes of the given inputs.
fn found(file: &Path, inputs: &[(String, Tensor)]) -> tract_onnx::prelude::TractResult<ArrayD<f32>> {
    use tract_onnx::prelude::*;
    let mut model = tract_onnx::onnx().model_for_path(file)?;
    let mut values = TVec::new();
    for index in 0..model.input_outlets()?.len() {
        let name = model.node(model.input_outlets()?[index].node).name.clone();
        let (_, value) = inputs.iter().find(|(n, _)| *n == name).expect("the inputs are the source model's");
        let value = value.as_i64()?;
        model.set_input_fact(index, i64::fact(value.shape()).into())?;
        let elements: Vec<i64> = value.iter().copied().collect();
        values.push(tract_onnx::prelude::Tensor::from_shape(value.shape(), &elements)?.into());
    }
    let outputs = model.into_optimized()?.into_runnable()?.run(values)?;
    let logits = outputs[0].to_plain_array_view::<f32>()?;
    let shape = logits.shape().to_vec();
    Ok(ArrayD::from_shape_vec(IxDyn(&shape), logits.iter().copied().collect())?)
}

fn agrees(name: &str, file: &Path, inputs: &[(String, Tensor)]) {
    let refused = REFUSED.contains(&name);
    match found(file, inputs) {
        Err(error) => assert!(refused, "{name}: {error:?}"),
        Ok(found) => {
            let wanted = wanted(file, inputs);
            assert_eq!(found.shape(), wanted.shape(), "{name}");
            let largest = wanted.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            let apart = found.iter().zip(&wanted).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
            let error = f64::from(apart) / f64::from(largest);
            println!("{name}: {error:.1e}");
            assert!(error <= BOUND && !refused, "{name}: {error:e}");
        }
    }
}

/// The batch of a case.
fn batch(case: &Path) -> Vec<(String, Tensor)> {
    let bytes = fs::read(case.join("expected.safetensors")).expect("the case is committed");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let read = |name: &str| {
        let view = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let values = view.data().chunks_exact(8).map(|c| i64::from_le_bytes(c.try_into().expect("8 bytes"))).collect();
        let array = ArrayD::from_shape_vec(IxDyn(view.shape()), values).expect("the shape fits");
        (name.to_owned(), array.into())
    };
    ["input_ids", "attention_mask", "decoder_input_ids"].map(read).into()
}

#[test]
fn tract_agrees_on_the_cases() {
    let entries = fs::read_dir(root().join("tests/cases")).expect("the cases are committed");
    let mut cases: Vec<PathBuf> = entries.map(|e| e.expect("a readable folder").path()).collect();
    cases.retain(|case| case.join("expected.safetensors").exists());
    assert!(cases.len() >= 15, "only {} cases", cases.len());
    for case in cases {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = Config::read(&case.join("lst.yaml")).expect("the case's options");
        let file = exported(folder.path(), &case.join("model.onnx"), &config);
        agrees(&case.file_name().expect("a name").to_string_lossy(), &file, &batch(&case));
    }
}

#[test]
fn tract_agrees_on_t5_nano() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = exported(folder.path(), &root().join("models/t5-nano/model.onnx"), &Config::default());
    let ids = |rows: usize, columns: usize, stride: usize| {
        let id = |(row, column): (usize, usize)| (3 + (row * 977 + column * stride) % 4000) as i64;
        Tensor::from(ndarray::Array2::from_shape_fn((rows, columns), id))
    };
    let mask = ndarray::Array2::from_shape_fn((3, 21), |(row, column)| i64::from(column < 21 - 5 * row));
    let inputs =
        [("input_ids", ids(3, 21, 131)), ("attention_mask", mask.into()), ("decoder_input_ids", ids(3, 6, 59))];
    agrees("t5-nano", &file, &inputs.map(|(name, tensor)| (name.to_owned(), tensor)));
}
