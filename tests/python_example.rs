//! examples/train.py on stock Python packages, against the same steps in lstc's own runtime.

mod common;
#[path = "common/moments.rs"]
mod moments;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use lstc::rewrite::{Request, rewrite};
use lstc_runtime::{Dim, Optimisation, Port, Session, Tensor};
use lstc_tuned::config::Config;
use ndarray::{ArrayD, IxDyn};

/// Of a loss, relative: two builds of one library, which may share the work out differently.
const LOSS: f64 = 1e-6;

/// Steps whose losses are compared; later ones differ by more, because each step starts from the last one's roundings.
const COMPARED: usize = 5;
const STEPS: usize = 20;

/// Runs Python in a folder, with the packages of its folder `packages`.
fn python(folder: &Path, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> String {
    let mut command = Command::new("python3");
    command.args(arguments).current_dir(folder).env("PYTHONPATH", folder.join("packages"));
    let ran = command.output().expect("python3 is there");
    let stdout = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(ran.status.success(), "{stdout}{}", String::from_utf8_lossy(&ran.stderr));
    stdout
}

/// Installs what the script needs into the folder `packages`: a virtual environment would need more than pip.
fn install(folder: &Path) {
    let pip =
        ["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "--no-warn-script-location"];
    let what = ["--only-binary", ":all:", "onnxruntime==1.32.0", "numpy", "safetensors", "--target", "packages"];
    python(folder, pip.iter().chain(&what));
}

/// The script's batch: ids from 2 to 31, labels one place ahead.
fn tensor(port: &Port) -> Tensor {
    let size = |(dim, default): (&Dim, usize)| match dim {
        Dim::Known(size) => *size,
        Dim::Symbol(_) | Dim::Unknown => default,
    };
    let shape: Vec<usize> = port.dims.iter().zip([4, 8]).map(size).collect();
    let ahead = i64::from(port.name == "labels");
    let id = |place: usize| if port.name.contains("mask") { 1 } else { 2 + 7 * (place as i64 + ahead) % 30 };
    let ids = (0..shape.iter().product()).map(id).collect();
    ArrayD::from_shape_vec(IxDyn(&shape), ids).expect("as many ids as places").into()
}

/// Losses of the first steps in lstc's own runtime.
fn losses(tuned: &Path) -> Vec<f64> {
    let builder = common::runtime().session().optimisation(Optimisation::All).threads(1);
    let mut session: Session = builder.open(&tuned.join("train.onnx")).unwrap_or_else(|e| panic!("{e:?}"));
    let side = lstc_tuned::side::load(&tuned.join("side.safetensors")).expect("the initial side network");
    let mut state: BTreeMap<String, Tensor> = BTreeMap::new();
    state.extend(side.into_iter().map(|(name, value)| (name, value.into())));
    state.extend(moments::moments(&session).into_iter().map(|(name, value)| (name, value.into())));
    let data = |p: &&Port| !state.contains_key(&p.name) && p.name != "lr" && p.name != "step";
    let batch: BTreeMap<String, Tensor> =
        session.inputs().iter().filter(data).map(|p| (p.name.clone(), tensor(p))).collect();
    let next: Vec<String> = state.keys().map(|name| format!("{name}.next")).collect();
    let outputs: Vec<&str> = std::iter::once("loss").chain(next.iter().map(String::as_str)).collect();
    let lr: Tensor = ArrayD::from_elem(IxDyn(&[]), 3e-3_f32).into();
    let mut losses = Vec::new();
    for step in 1..=COMPARED {
        let step: Tensor = ArrayD::from_elem(IxDyn(&[]), step as i64).into();
        let mut inputs: Vec<(&str, &Tensor)> = vec![("lr", &lr), ("step", &step)];
        inputs.extend(batch.iter().chain(&state).map(|(name, value)| (name.as_str(), value)));
        let results = session.run(&inputs, &outputs).unwrap_or_else(|e| panic!("{e:?}"));
        losses.push(f64::from(*results[0].as_f32().expect("f32").first().expect("one element")));
        for (value, result) in state.values_mut().zip(&results[1..]) {
            *value = result.clone();
        }
    }
    losses
}

#[test]
fn the_example_trains_as_lstc_does() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tuned = folder.path().join("tuned");
    let case = root.join("tests/cases/relu_torchscript");
    let config = Config::read(&case.join("lst.yaml")).unwrap_or_else(|e| panic!("{e:?}"));
    let request = Request {
        model: case.join("model.onnx").into(),
        options: config.options(),
        training: config.training(),
        output: &tuned,
        force: false,
    };
    rewrite(request, |_, _| ()).unwrap_or_else(|e| panic!("{e:?}"));

    install(folder.path());
    let script = root.join("examples/train.py");
    let steps = STEPS.to_string();
    let printed = python(folder.path(), [script.as_os_str(), tuned.as_os_str(), OsStr::new(&steps)]);
    println!("{printed}");

    let loss = |line: &str| line.rsplit_once(' ').and_then(|(_, loss)| loss.parse::<f64>().ok());
    let found: Vec<f64> = printed.lines().map(|line| loss(line).unwrap_or_else(|| panic!("`{line}`"))).collect();
    assert_eq!(found.len(), STEPS);
    assert!(found.iter().all(|l| l.is_finite()) && found[STEPS - 1] < 0.95 * found[0], "the loss falls: {found:?}");
    for (found, expected) in found.iter().zip(losses(&tuned)) {
        let error = (found - expected).abs() / expected;
        assert!(error <= LOSS, "Python printed {found}, lstc gives {expected}");
    }

    let shapes = |file: &str| -> BTreeMap<String, Vec<usize>> {
        let side = lstc_tuned::side::load(&folder.path().join(file)).unwrap_or_else(|e| panic!("{e:?}"));
        side.into_iter().map(|(name, value)| (name, value.shape().to_vec())).collect()
    };
    assert_eq!(shapes("trained.safetensors"), shapes("tuned/side.safetensors"));
}
