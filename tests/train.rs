//! Training: the same numbers however it is run, stopped and resumed; what is kept, and what is refused.

mod common;
#[path = "common/moments.rs"]
mod moments;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lstc::rewrite::{Request, rewrite};
use lstc_data::{Batch, Corpus, Fixed, Reading};
use lstc_passes::Options;
use lstc_passes::options::Gate;
use lstc_runtime::Tensor;
use lstc_train::{Pending, Stepper};
use lstc_tuned::config::Config;
use lstc_tuned::opened::{Execution, Opened};
use lstc_tuned::options::TrainOptions;
use lstc_tuned::side::Side;

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(name)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// A rewritten case beside data of token ids.
struct Tuned {
    folder: tempfile::TempDir,
}

impl Tuned {
    fn new(name: &str, change: impl FnOnce(&mut Options)) -> Tuned {
        common::runtime(); // installs the library that the commands need
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = Config::read(&case(name).join("lst.yaml")).expect("the case's options");
        let mut options = config.options();
        change(&mut options);
        let output = folder.path().join("tuned");
        let model = case(name).join("model.onnx");
        let request =
            Request { model: (&model).into(), options, training: config.training(), output: &output, force: false };
        rewrite(request, |_, _| ()).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        let tuned = Tuned { folder };
        tuned.write("train.jsonl", 90);
        tuned.write("eval.jsonl", 30);
        tuned
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn directory(&self) -> PathBuf {
        self.path("tuned")
    }

    /// Rows whose label follows from their first token: one of three, with two tokens or three.
    fn write(&self, name: &str, rows: usize) {
        let row = |row: usize| {
            let length = 2 + row * 7 % 5;
            let ids: Vec<usize> = (0..length).map(|at| 2 + (row * 31 + at * 17) % 28).chain([1]).collect();
            let label = ["5, 1", "6, 1", "7, 9, 1"][ids[0] % 3];
            format!("{{\"input_ids\": {ids:?}, \"labels\": [{label}]}}\n")
        };
        fs::write(self.path(name), (0..rows).map(row).collect::<String>()).expect("a temporary folder");
    }

    fn command(&self, out: &str, flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lstc"));
        command.args(["train", text(&self.directory()), "--out", text(&self.path(out))]).args(flags);
        command
    }

    fn train(&self, out: &str, flags: &[&str]) -> Output {
        let data =
            ["--train", text(&self.path("train.jsonl")), "--batch-size", "4", "--threads", "2"].map(str::to_owned);
        self.command(out, flags).args(data).output().expect("lstc runs")
    }

    fn resume(&self, out: &str) -> Output {
        self.command(out, &["--resume"]).output().expect("lstc runs")
    }

    /// Numbers of each step that do not depend on the time.
    fn losses(&self, out: &str) -> Vec<String> {
        let lines = fs::read_to_string(self.path(out).join("metrics.jsonl")).expect("a log");
        let numbers = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
            ["step", "epoch", "loss", "lr", "grad_norm", "tokens", "eval_loss", "eval_accuracy"]
                .map(|key| line[key].to_string())
                .join(" ")
        };
        lines.lines().map(numbers).collect()
    }

    fn corpus(&self) -> Corpus {
        let special = lstc_data::SpecialTokens { pad: 0, end: 1, start: 0 };
        let (file, scratch) = (self.path("train.jsonl"), self.folder.path());
        Corpus::read(&file, &Reading::default(), None, special, scratch, 32, &mut |_, _| ()).expect("it is data")
    }
}

fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn refused(output: &Output, with: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for part in with {
        assert!(said.contains(part), "`{part}` is not in: {said}");
    }
}

/// Waits until a run has logged so many lines.
fn wait_for(log: &Path, lines: usize, child: &mut Child) {
    let begun = Instant::now();
    while fs::read_to_string(log).unwrap_or_default().lines().count() < lines {
        assert!(child.try_wait().expect("a child").is_none(), "the run ended before it could be stopped");
        assert!(begun.elapsed() < Duration::from_secs(120), "the run does not get on");
        sleep(Duration::from_millis(2));
    }
}

/// A run that a signal stops after some lines of its log, and its exit code.
fn stopped(tuned: &Tuned, out: &str, flags: &[&str], lines: usize, signal: &str) -> Option<i32> {
    let data = ["--train", text(&tuned.path("train.jsonl")), "--batch-size", "4", "--threads", "2"].map(str::to_owned);
    let mut command = tuned.command(out, flags);
    let mut child = command.args(data).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("lstc runs");
    wait_for(&tuned.path(out).join("metrics.jsonl"), lines, &mut child);
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill runs");
    assert!(sent.success());
    child.wait().expect("a child").code()
}

#[test]
fn a_killed_run_goes_on_bit_for_bit() {
    let eval = |tuned: &Tuned| text(&tuned.path("eval.jsonl")).to_owned();
    let dropout = Tuned::new("gated_dynamo", |o| o.method.dropout = 0.1);
    let plain = Tuned::new("relu_torchscript", |_| ());
    for (tuned, accumulate, taps, killed_after) in
        [(&plain, "1", "fp32", 40), (&plain, "1", "fp16", 40), (&dropout, "1", "fp32", 31), (&dropout, "3", "fp16", 13)]
    {
        let eval = eval(tuned);
        let flags = ["--epochs", "6", "--save-every", "5", "--eval", &eval, "--accumulate", accumulate];
        let flags = [&flags[..], &["--tap-dtype", taps]].concat();
        let (whole, parts) = (format!("whole-{accumulate}-{taps}"), format!("parts-{accumulate}-{taps}"));
        succeeded(&tuned.train(&whole, &[&flags[..], &["--overlap", "off"]].concat()));
        // Whether the backbone reads ahead changes nothing either.
        let ahead = [&flags[..], &["--overlap", "on"]].concat();
        assert_eq!(stopped(tuned, &parts, &ahead, killed_after, "-KILL"), None);
        let before = tuned.losses(&parts).len();
        succeeded(&tuned.resume(&parts));
        let (whole, parts) = (tuned.losses(&whole), tuned.losses(&parts));
        assert!(before < whole.len(), "the run was killed before its end");
        assert_eq!(whole, parts, "accumulating {accumulate}, taps in {taps}");
    }
}

#[test]
fn a_signal_saves_and_tells_how_to_go_on() {
    let tuned = Tuned::new("relu_torchscript", |_| ());
    let flags = ["--epochs", "40", "--save-every", "100000", "--overlap", "on"];
    succeeded(&tuned.train("whole", &flags));
    // The last is what a process gets whose terminal is closed.
    for signal in ["-INT", "-TERM", "-HUP"] {
        assert_eq!(stopped(&tuned, signal, &flags, 30, signal), Some(130));
        let stopped_at = tuned.losses(signal).len();
        assert!((30..920).contains(&stopped_at));
        let done = tuned.resume(signal);
        succeeded(&done);
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(said.contains(&format!("continuing after step {stopped_at}")), "{said}");
        assert_eq!(tuned.losses("whole"), tuned.losses(signal));
    }
}

#[test]
fn an_evaluation_that_was_stopped_is_made_again() {
    let tuned = Tuned::new("relu_torchscript", |_| ());
    tuned.write("eval.jsonl", 4000); // long enough to be stopped
    let eval = tuned.path("eval.jsonl");
    let flags = ["--epochs", "2", "--eval", text(&eval)];
    succeeded(&tuned.train("whole", &flags));
    assert_eq!(stopped(&tuned, "parts", &flags, 23, "-INT"), Some(130));
    assert_eq!(tuned.losses("parts").len(), 23, "the run was stopped behind the last step of its first epoch");
    succeeded(&tuned.resume("parts"));
    assert_eq!(tuned.losses("whole"), tuned.losses("parts"));
    let best = |out: &str| lstc_tuned::side::load(&tuned.path(out).join("best.safetensors")).expect("a side network");
    assert_eq!(best("whole"), best("parts"));
}

#[test]
fn too_large_a_batch_is_told_with_what_takes_less() {
    let tuned = Tuned::new("relu_torchscript", |_| ());
    // Two short batches fit, one of 16 x 3000 tokens does not: its scores alone are 4 GB.
    let row = |length: usize| format!("{{\"input_ids\": {:?}, \"labels\": [5, 1]}}\n", vec![2; length]);
    let rows: String = [vec![row(4); 32], vec![row(3000); 16]].concat().concat();
    fs::write(tuned.path("long.jsonl"), rows).expect("a temporary folder");
    let script = "ulimit -v 3000000; exec \"$0\" \"$@\"";
    let data = tuned.path("long.jsonl");
    let output = Command::new("bash")
        .args(["-c", script, env!("CARGO_BIN_EXE_lstc"), "train", text(&tuned.directory())])
        .args(["--out", text(&tuned.path("run")), "--train", text(&data), "--max-source-length", "3000"])
        .args(["--batch-size", "16", "--threads", "2", "--epochs", "1"])
        .output()
        .expect("a shell");
    refused(
        &output,
        &[
            "a batch of 16 examples, 3000 tokens in, 2 out, does not fit into memory",
            "`--batch-size 8 --accumulate 2 --out DIR`",
            "`--max-source-length 1500`",
            "--recompute-attention",
        ],
    );
    assert!(tuned.path("run/checkpoint.safetensors").exists(), "what was learned before is kept");
}

#[test]
fn a_kill_leaves_nothing_behind_that_stays() {
    let tuned = Tuned::new("relu_torchscript", |_| ());
    let flags = ["--epochs", "3", "--save-every", "1"];
    assert_eq!(stopped(&tuned, "run", &flags, 9, "-KILL"), None);
    fs::create_dir_all(tuned.path("run/.lstc-1-left/half")).expect("a folder");
    fs::write(tuned.path("run/.lstc-1-left/.temporary"), "").expect("a file");
    succeeded(&tuned.resume("run"));
    let entries = fs::read_dir(tuned.path("run")).expect("a folder").flatten();
    let mut files: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    files.sort();
    assert_eq!(files, ["best.safetensors", "checkpoint.safetensors", "metrics.jsonl", "train.yaml"]);
}

#[test]
fn two_processes_do_not_train_in_one_folder() {
    let tuned = Tuned::new("relu_torchscript", |_| ());
    let data = ["--train", text(&tuned.path("train.jsonl")), "--epochs", "500"].map(str::to_owned);
    let mut command = tuned.command("run", &[]);
    let mut first = command.args(data).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("lstc runs");
    wait_for(&tuned.path("run/metrics.jsonl"), 1, &mut first);
    let second = tuned.resume("run");
    first.kill().expect("it runs");
    first.wait().expect("a child");
    refused(&second, &["another process is training in"]);
}

#[test]
fn a_run_learns_and_keeps_the_best() {
    let tuned = Tuned::new("gated_dynamo", |_| ());
    let eval = tuned.path("eval.jsonl");
    let done = tuned.train("run", &["--epochs", "12", "--lr", "1e-2", "--eval", text(&eval), "--format", "json"]);
    succeeded(&done);
    let summary: serde_json::Value = serde_json::from_slice(&done.stdout).expect("JSON on stdout");
    assert_eq!((summary["steps"].as_u64(), summary["epochs"].as_u64()), (Some(276), Some(12)));
    assert!(summary["best"]["accuracy"].as_f64() > Some(0.9), "{summary}");
    assert!(summary["peak_memory"].as_u64() > Some(10 << 20), "{summary}");
    let evals: Vec<f64> = fs::read_to_string(tuned.path("run/metrics.jsonl"))
        .expect("a log")
        .lines()
        .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).expect("JSON")["eval_accuracy"].as_f64())
        .collect();
    assert_eq!(evals.len(), 12);
    let best = evals.iter().copied().fold(0.0, f64::max);
    assert_eq!(summary["best"]["accuracy"].as_f64(), Some(best));

    let eval = |side: &str, flags: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lstc"));
        command.args(["eval", text(&tuned.directory()), "--data", text(&eval), "--side", text(&tuned.path(side))]);
        let done = command.args(["--format", "json"]).args(flags).output().expect("lstc runs");
        succeeded(&done);
        serde_json::from_slice::<serde_json::Value>(&done.stdout).expect("JSON on stdout")
    };
    let predictions = tuned.path("predictions.jsonl");
    let after = eval("run", &["--predictions", text(&predictions)]);
    assert_eq!(after["accuracy"].as_f64(), Some(best));
    assert_eq!(after["classes"].as_array().map(Vec::len), Some(3));
    let before = eval("tuned/side.safetensors", &["--no-generation"]);
    assert!(before["accuracy"].as_f64() < Some(0.7) && before["generated"].is_null(), "{before}");
    let lines = fs::read_to_string(predictions).expect("predictions");
    let hits = lines.lines().filter(|line| {
        let p: serde_json::Value = serde_json::from_str(line).expect("JSON");
        p["predicted"] == p["target"]
    });
    assert_eq!((lines.lines().count(), hits.count() as f64 / 30.0), (30, best));
}

/// Steps with everything on the host, as a program without bindings would make them.
fn plain_steps(opened: &Opened, batches: &[Batch], execution: &Execution) -> (Vec<f32>, Side) {
    let graph = opened.graph("train.onnx").expect("a graph");
    let mut session = opened.session(&graph, execution).expect("a session");
    let outputs: Vec<String> = session.outputs().iter().map(|p| p.name.clone()).collect();
    let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
    let mut state = opened.initial().expect("a side network");
    state.extend(moments::moments(&session));
    let mut losses = Vec::new();
    for (index, batch) in batches.iter().enumerate() {
        let mut inputs: Vec<(String, Tensor)> =
            opened.feeds(batch).into_iter().map(|(name, t)| (name.to_owned(), t)).collect();
        inputs.push(("labels".to_owned(), batch.labels.clone().into()));
        inputs.push(("lr".to_owned(), ndarray::arr0(1e-2_f32).into()));
        inputs.push(("step".to_owned(), ndarray::arr0(index as i64 + 1).into()));
        inputs.extend(state.iter().map(|(name, values)| (name.clone(), values.clone().into())));
        let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (name.as_str(), t)).collect();
        let results = session.run(&given, &outputs).expect("a step");
        for (name, result) in outputs.iter().zip(results) {
            let array = result.as_f32().expect("f32").to_owned();
            match name.strip_suffix(".next") {
                Some(name) => drop(state.insert(name.to_owned(), array)),
                None if *name == "loss" => losses.push(array.first().copied().expect("a number")),
                None => {}
            }
        }
    }
    (losses, state)
}

fn execution() -> Execution {
    Execution::cpu(common::runtime(), 2)
}

#[test]
fn steps_in_place_are_the_graphs_own() {
    for name in ["gated_dynamo", "merge_last", "relu_torchscript", "no_gate_merge_distill"] {
        let tuned = Tuned::new(name, |_| ());
        let opened = Opened::new(&tuned.directory()).expect("a rewritten model");
        let corpus = tuned.corpus();
        let batches: Vec<Batch> = (0..8)
            .map(|at| Batch::new(&corpus, &[at, at + 9, at + 30], opened.record.tokens, &Fixed::default()))
            .collect::<Result<_, _>>()
            .expect("batches");
        let (losses, state) = plain_steps(&opened, &batches, &execution());
        let (mut stepper, mut backbone) =
            Stepper::open(&opened, &execution(), &opened.initial().expect("a side network"), false, 0).expect("opens");
        for (index, batch) in batches.iter().enumerate() {
            let outcome = stepper
                .step(std::slice::from_ref(batch), |batch| backbone.taps(batch), index as u64 + 1, 1e-2)
                .and_then(Pending::get)
                .expect("a step");
            assert_eq!(outcome.loss as f32, losses[index], "{name}, step {index}");
        }
        assert_eq!(stepper.state().expect("a state"), state, "{name}");
    }
}

#[test]
fn accumulated_batches_are_worth_one() {
    let tuned = Tuned::new("gated_dynamo", |_| ());
    let opened = Opened::new(&tuned.directory()).expect("a rewritten model");
    let corpus = tuned.corpus();
    let batch = |rows: &[u32]| Batch::new(&corpus, rows, opened.record.tokens, &Fixed::default()).expect("a batch");
    let initial = opened.initial().expect("a side network");
    let (mut whole, mut backbone) = Stepper::open(&opened, &execution(), &initial, false, 0).expect("opens");
    let (mut parts, _) = Stepper::open(&opened, &execution(), &initial, true, 0).expect("opens");
    let mut taps = |batch: &Batch| backbone.taps(batch);
    for step in 1..=12_u64 {
        let rows: Vec<u32> = (0..7).map(|at| (step as u32 * 7 + at * 3) % 90).collect();
        let one = whole.step(&[batch(&rows)], &mut taps, step, 3e-3).and_then(Pending::get).expect("a step");
        let three = [batch(&rows[..2]), batch(&rows[2..6]), batch(&rows[6..])];
        let two = parts.step(&three, &mut taps, step, 3e-3).and_then(Pending::get).expect("a step");
        assert!((one.loss - two.loss).abs() < 1e-5 * one.loss, "step {step}: {one:?} {two:?}");
        assert!((one.grad_norm - two.grad_norm).abs() < 1e-4 * one.grad_norm, "step {step}: {one:?} {two:?}");
    }
    let (one, two) = (whole.state().expect("a state"), parts.state().expect("a state"));
    for (name, values) in one.iter().filter(|(name, _)| !name.starts_with("adam.")) {
        let apart = values.iter().zip(&two[name]).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
        // AdamW divides by the root of the second moment: where that is tiny, rounding moves a whole step.
        assert!(apart < 3e-3, "{name}: {apart}");
    }
}

#[test]
fn a_model_of_fixed_sizes_trains() {
    let tuned = Tuned::new("fixed_gate_static", |_| ());
    let eval = tuned.path("eval.jsonl");
    let data = ["--train", text(&tuned.path("train.jsonl")), "--eval", text(&eval), "--epochs", "1"].map(str::to_owned);
    let done = tuned.command("run", &[]).args(data).output().expect("lstc runs");
    succeeded(&done);
    let done = tuned.command("other", &["--batch-size", "5", "--train", text(&eval)]).output().expect("lstc runs");
    refused(&done, &["the model's batch is fixed at"]);
}

#[test]
fn a_loss_that_is_no_number_stops_the_run() {
    let tuned = Tuned::new("gated_dynamo", |o| o.optimizer.clip = 0.0);
    succeeded(&tuned.train("run", &["--epochs", "1"]));
    let checkpoint = tuned.path("run/checkpoint.safetensors");
    let before = fs::read(&checkpoint).expect("a checkpoint");
    let flags = ["--epochs", "1", "--lr", "1e30", "--warmup-steps", "0", "--schedule", "constant", "--save-every", "1"];
    let done = tuned.train("mad", &flags);
    refused(&done, &["step ", "epoch 1, batch ", "lines ", "train.jsonl", "--lr"]);
    assert_eq!(fs::read(&checkpoint).expect("a checkpoint"), before);
    if let Ok(saved) = lstc_tuned::side::load(&tuned.path("mad/checkpoint.safetensors")) {
        assert!(saved.values().flatten().all(|v| v.is_finite()), "a state that is not finite was saved");
    }
}

#[test]
fn what_cannot_be_done_is_told() {
    let tuned = Tuned::new("relu_torchscript", |_| ());
    refused(&tuned.command("run", &[]).output().expect("lstc runs"), &["no training data", "--train"]);
    refused(&tuned.command("run", &["--train", "gone.jsonl"]).output().expect("lstc runs"), &["gone.jsonl"]);
    refused(&tuned.resume("run"), &["there is no run in"]);
    fs::write(tuned.path("lst.yaml"), "train: {epochs: 0}\n").expect("a file");
    let flags = ["--config", text(&tuned.path("lst.yaml")), "--lr", "-1"].map(str::to_owned);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    refused(&tuned.train("run", &flags), &["train.epochs is 0", "train.lr is -1"]);

    succeeded(&tuned.train("run", &["--epochs", "1"]));
    refused(&tuned.train("run", &["--epochs", "1"]), &["there is a run in", "--resume"]);
    let other = tuned.command("run", &["--resume", "--lr", "0.5", "--seed", "3"]).output().expect("lstc runs");
    refused(&other, &["lr was 0.003 and is now 0.5", "seed was 12 and is now 3"]);
    tuned.write("train.jsonl", 91);
    refused(&tuned.resume("run"), &["the training data, the tokenizer or how they are read has changed"]);

    fs::write(tuned.path("run/checkpoint.safetensors"), b"half").expect("a file");
    tuned.write("train.jsonl", 90);
    refused(&tuned.resume("run"), &["checkpoint.safetensors"]);
}

#[test]
fn a_run_is_not_lost_to_another_rewrite() {
    let tuned = Tuned::new("relu_torchscript", |_| ());
    let data = tuned.path("train.jsonl");
    let run =
        |arguments: &[&str]| Command::new(env!("CARGO_BIN_EXE_lstc")).args(arguments).output().expect("lstc runs");
    let directory = tuned.directory();
    succeeded(&run(&["train", text(&directory), "--train", text(&data), "--epochs", "1"]));
    let model = case("relu_torchscript").join("model.onnx");
    let again = run(&["rewrite", text(&model), "-o", text(&directory), "--force"]);
    refused(
        &again,
        &["holds files that `lstc rewrite` did not write", "`run`, a training run", "or write to another directory"],
    );
    assert!(directory.join("run/best.safetensors").exists());
}

#[test]
fn a_run_that_is_done_may_be_resumed() {
    let tuned = Tuned::new("relu_torchscript", |_| ());
    succeeded(&tuned.train("run", &["--epochs", "1"]));
    let before = tuned.losses("run");
    succeeded(&tuned.resume("run"));
    assert_eq!(tuned.losses("run"), before);
}

/// Peaks of one step of training, and what was predicted, in bytes.
fn memory(batch: usize, source: usize, target: usize) -> (f64, f64) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name);
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/t5-nano/model.onnx");
    let run = |arguments: &[&str]| {
        let done = Command::new(env!("CARGO_BIN_EXE_lstc")).args(arguments).output().expect("lstc runs");
        succeeded(&done);
        serde_json::from_slice::<serde_json::Value>(&done.stdout).expect("JSON on stdout")
    };
    common::runtime(); // installs the library that the commands need
    let (tuned, data) = (path("tuned"), path("train.jsonl"));
    run(&["rewrite", text(&model), "-o", text(&tuned), "--format", "json"]);
    let ids = |count: usize, row: usize| (0..count).map(|at| 3 + (row * 977 + at * 131) % 4000).collect::<Vec<_>>();
    let row = |row| format!("{{\"input_ids\": {:?}, \"labels\": {:?}}}\n", ids(source, row), ids(target, row + 1));
    fs::write(&data, (0..2 * batch).map(row).collect::<String>()).expect("a temporary folder");
    let [batch, source, target] = [batch, source, target].map(|n| n.to_string());
    let sizes = ["--max-source-length", &source, "--max-target-length", &target, "--batch-size", &batch];
    let train = ["train", text(&tuned), "--train", text(&data), "--epochs", "1", "--threads", "2", "--format", "json"];
    let trained = run(&[&train[..], &sizes].concat());
    let sizes = ["--batch", &batch, "--source-length", &source, "--target-length", &target];
    let told = run(&[&["inspect", text(&model), "--format", "json"][..], &sizes].concat());
    let number = |value: &serde_json::Value| value.as_f64().expect("a number");
    let (run, model) = (number(&trained["predicted"]["bytes"]), number(&told["memory"]["lst"]["total"]));
    // The run counts the nodes of its two sessions, the model those of train.onnx.
    assert!((run / model - 1.0).abs() < 0.05, "{run} for the run, {model} for the model");
    (number(&trained["peak_memory"]), model)
}

#[test]
fn predicted_memory_is_what_training_takes() {
    for (batch, source, target) in [(16, 32, 4), (64, 128, 8), (256, 64, 16)] {
        let (measured, predicted) = memory(batch, source, target);
        let mb = |bytes: f64| bytes / 1e6;
        println!(
            "{batch} x {source} in, {target} out: predicted {:.0} MB, measured {:.0}",
            mb(predicted),
            mb(measured)
        );
        assert!((predicted / measured - 1.0).abs() <= 0.2, "{batch} x {source} x {target}");
    }
}

/// The peak of a run of T5-nano on sources of these lengths, in batches of 32.
fn peak_of_lengths(folder: &Path, name: &str, lengths: impl Iterator<Item = usize>) -> f64 {
    let path = |name: &str| folder.join(name);
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/t5-nano/model.onnx");
    let run = |arguments: &[&str]| {
        let done = Command::new(env!("CARGO_BIN_EXE_lstc")).args(arguments).output().expect("lstc runs");
        succeeded(&done);
        done.stdout
    };
    let tuned = path("tuned");
    if !tuned.exists() {
        run(&["rewrite", text(&model), "-o", text(&tuned)]);
    }
    let ids = |count: usize, row: usize| (0..count).map(|at| 3 + (row * 977 + at * 131) % 4000).collect::<Vec<_>>();
    let row = |(row, length)| format!("{{\"input_ids\": {:?}, \"labels\": {:?}}}\n", ids(length, row), ids(4, row + 1));
    let data = path(&format!("{name}.jsonl"));
    fs::write(&data, lengths.enumerate().map(row).collect::<String>()).expect("a temporary folder");
    let sizes = ["--batch-size", "32", "--epochs", "1", "--threads", "2", "--format", "json"];
    let out = path(name);
    let trained = run(&[&["train", text(&tuned), "--train", text(&data), "--out", text(&out)][..], &sizes].concat());
    let trained: serde_json::Value = serde_json::from_slice(&trained).expect("JSON on stdout");
    trained["peak_memory"].as_f64().expect("a number")
}

#[test]
fn batches_of_many_lengths_need_no_more_than_the_longest() {
    common::runtime(); // installs the library that the commands need
    let folder = tempfile::tempdir().expect("a temporary folder");
    let alike = peak_of_lengths(folder.path(), "alike", (0..32 * 24).map(|_| 128));
    let varied = peak_of_lengths(folder.path(), "varied", (0..32 * 24).map(|row| 128 - row % 24 * 5));
    println!("{:.0} MB with many lengths, {:.0} with one", varied / 1e6, alike / 1e6);
    assert!(varied < 1.05 * alike, "{varied} with many lengths, {alike} with one");
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    let tuned = Tuned::new("relu_torchscript", |_| ());
    let library = common::runtime().library().path.clone();
    let data = tuned.path("train.jsonl");
    let mut command = tuned.command("run", &["--train", text(&data), "--device", "cuda"]);
    let done = command.env("ORT_DYLIB_PATH", library).output().expect("lstc runs");
    assert!(!done.status.success() && !tuned.path("run/metrics.jsonl").exists());
    assert!(String::from_utf8_lossy(&done.stderr).contains("CUDA"), "{}", String::from_utf8_lossy(&done.stderr));
    let done = tuned.command("tf32", &["--train", text(&data), "--tf32"]).output().expect("lstc runs");
    assert!(!done.status.success() && !tuned.path("tf32").exists());
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(told.contains("train.tf32 needs CUDA"), "{told}");
}

#[test]
fn options_may_stand_in_the_file() {
    let tuned = Tuned::new("relu_torchscript", |_| ());
    let config = tuned.path("lst.yaml");
    let train = TrainOptions { epochs: 2, batch_size: 9, ..TrainOptions::default() };
    let yaml = format!(
        "train: {{data: {}, epochs: {}, batch_size: {}, warmup_steps: 3}}\n",
        text(&tuned.path("train.jsonl")),
        train.epochs,
        train.batch_size
    );
    fs::write(&config, yaml).expect("a file");
    let done = tuned.command("run", &["--config", text(&config), "--epochs", "1"]).output().expect("lstc runs");
    succeeded(&done);
    assert_eq!(tuned.losses("run").len(), 10, "a flag goes before the file, the file before the default");
}

/// The label of each row of a file of [`Tuned::write`], by its line from 1.
fn labels(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).expect("data");
    text.lines().map(|l| l.split("\"labels\": ").nth(1).unwrap_or_default().to_owned()).collect()
}

/// What `lstc eval` says of each row that a run held out.
fn held_out(tuned: &Tuned, run: &str) -> Vec<u64> {
    let file = tuned.path("held-out.jsonl");
    let mut command = Command::new(env!("CARGO_BIN_EXE_lstc"));
    command.args(["eval", text(&tuned.directory()), "--side", text(&tuned.path(run)), "--no-generation"]);
    let done = command.args(["--predictions", text(&file)]).output().expect("lstc runs");
    succeeded(&done);
    assert!(String::from_utf8_lossy(&done.stdout).contains("held out of training"));
    let rows = fs::read_to_string(&file).expect("predictions");
    fs::remove_file(&file).expect("a file");
    let row = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["row"].as_u64();
    rows.lines().filter_map(row).collect()
}

#[test]
fn a_share_of_each_label_is_held_out() {
    let tuned = Tuned::new("relu_torchscript", |_| ());
    let done = tuned.train("run", &["--epochs", "2", "--eval", "0.2", "--seed", "3"]);
    succeeded(&done);
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(said.contains("72 examples, 18 to evaluate on, held out of the training data, 3 labels"), "{said}");
    let rows = held_out(&tuned, "run");
    assert_eq!(rows.len(), 18);
    let all = labels(&tuned.path("train.jsonl"));
    let mut counts = std::collections::BTreeMap::<&str, (usize, usize)>::new();
    for (at, label) in all.iter().enumerate() {
        let count = counts.entry(label).or_default();
        count.0 += 1;
        count.1 += usize::from(rows.contains(&(at as u64 + 1)));
    }
    for (label, (all, held)) in counts {
        assert!((held as f64 - 0.2 * all as f64).abs() < 1.0, "{label}: {held} of {all}");
    }
    // No row that was evaluated was trained on: every step names its rows when it fails, and 72 rows make 18 batches.
    assert_eq!(tuned.losses("run").len(), 2 * (72 / 4 + 1));

    // The same share by the same seed, however it is said; another by another.
    succeeded(&tuned.train("again", &["--epochs", "2", "--eval-fraction", "0.2", "--seed", "3"]));
    assert_eq!(held_out(&tuned, "again"), rows);
    assert_eq!(tuned.losses("again"), tuned.losses("run"));
    succeeded(&tuned.train("other", &["--epochs", "1", "--eval", "0.2", "--seed", "4"]));
    assert_ne!(held_out(&tuned, "other"), rows);

    // A run that was stopped continues with the same share.
    let flags = ["--epochs", "2", "--eval", "0.2", "--seed", "3", "--save-every", "3"];
    assert_eq!(stopped(&tuned, "parts", &flags, 8, "-KILL"), None);
    succeeded(&tuned.resume("parts"));
    assert_eq!(tuned.losses("parts"), tuned.losses("run"));
    let other = tuned.command("parts", &["--resume", "--eval", "0.3"]).output().expect("lstc runs");
    refused(&other, &["eval_fraction was 0.2 and is now 0.3"]);
    for (share, told) in [("1.5", "between 0 and 1"), ("0", "between 0 and 1"), ("-0.1", "between 0 and 1")] {
        refused(&tuned.train("bad", &["--eval", share]), &[told]);
        refused(&tuned.train("bad", &["--eval-fraction", share]), &[told]);
    }
}

#[test]
fn a_run_stops_when_it_is_out_of_patience() {
    let tuned = Tuned::new("relu_torchscript", |_| ());
    let eval = tuned.path("eval.jsonl");
    // A rate at which nothing moves: only the first evaluation is a better one.
    let flags = ["--epochs", "9", "--eval", text(&eval), "--lr", "1e-30", "--schedule", "constant", "--patience", "2"];
    let done = tuned.train("run", &[&flags[..], &["--format", "json"]].concat());
    succeeded(&done);
    let summary: serde_json::Value = serde_json::from_slice(&done.stdout).expect("JSON on stdout");
    assert_eq!((summary["epochs"].as_u64(), summary["best"]["epoch"].as_u64()), (Some(3), Some(1)));
    assert_eq!(summary["out_of_patience"].as_u64(), Some(2));
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(said.contains("stopped: 2 evaluations without an improvement"), "{said}");
    // It stays stopped, and goes on with more patience.
    let before = tuned.losses("run");
    succeeded(&tuned.resume("run"));
    assert_eq!(tuned.losses("run"), before);
    let on = tuned.command("run", &["--resume", "--patience", "4", "--format", "json"]).output().expect("lstc runs");
    succeeded(&on);
    let summary: serde_json::Value = serde_json::from_slice(&on.stdout).expect("JSON on stdout");
    assert_eq!(summary["epochs"].as_u64(), Some(5));
    // Killed and resumed, it stops where it would have.
    assert_eq!(stopped(&tuned, "parts", &flags, 30, "-KILL"), None);
    succeeded(&tuned.resume("parts"));
    assert_eq!(tuned.losses("parts"), before);
    refused(&tuned.train("bad", &["--patience", "2"]), &["train.patience counts evaluations"]);
    refused(&tuned.train("bad", &["--patience", "0", "--eval", "0.1"]), &["must be at least 1"]);
}

#[test]
fn training_goes_on_from_a_finished_run() {
    let tuned = Tuned::new("gated_dynamo", |_| ());
    let eval = tuned.path("eval.jsonl");
    succeeded(&tuned.train("run", &["--epochs", "4", "--lr", "1e-2", "--eval", text(&eval), "--seed", "5"]));
    let losses = |run: &str| -> Vec<f64> {
        let lines = fs::read_to_string(tuned.path(run).join("metrics.jsonl")).expect("a log");
        let loss = |l: &str| serde_json::from_str::<serde_json::Value>(l).expect("JSON")["loss"].as_f64();
        lines.lines().filter_map(loss).collect()
    };
    let run = tuned.path("run");
    let further = |out: &str, from: &Path| {
        let done = tuned.command(out, &["--from", text(from), "--epochs", "2"]).output().expect("lstc runs");
        succeeded(&done);
        fs::read_to_string(tuned.path(out).join("train.yaml")).expect("a record")
    };
    let record = further("on", &run);
    for kept in ["seed: 5", "lr: 0.01", "batch_size: 4", "epochs: 2", "eval.jsonl", "from: "] {
        assert!(record.contains(kept), "{kept}: {record}");
    }
    let (first, on) = (losses("run"), losses("on"));
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    assert_eq!(on.len(), 2 * 23);
    assert!(mean(&on[..23]) < 0.8 * mean(&first[..23]), "{} {}", mean(&on[..23]), mean(&first[..23]));
    // The same from the file of the same side network.
    further("file", &run.join("best.safetensors"));
    assert_eq!(losses("file"), on);

    let more = tuned.command("run", &["--resume", "--epochs", "6"]).output().expect("lstc runs");
    refused(&more, &["epochs was 4 and is now 6", "the run is finished", "--from", "--epochs N --out DIR"]);
    let same = tuned.command("run", &["--from", text(&run), "--epochs", "2"]).output().expect("lstc runs");
    refused(&same, &["there is a run in", "--out DIR"]);
    let mut nothing = tuned.command("none", &["--from", text(&tuned.path("nowhere")), "--train", text(&eval)]);
    refused(&nothing.output().expect("lstc runs"), &["nowhere"]);
}

#[test]
fn one_seed_serves_the_rewrite_and_the_run() {
    let tuned = Tuned::new("relu_torchscript", |o| o.method.seed = 7);
    succeeded(&tuned.train("run", &["--epochs", "1"]));
    succeeded(&tuned.train("seven", &["--epochs", "1", "--seed", "7"]));
    succeeded(&tuned.train("other", &["--epochs", "1", "--seed", "0"]));
    assert!(fs::read_to_string(tuned.path("run/train.yaml")).expect("a record").contains("seed: 7"));
    assert_eq!(tuned.losses("run"), tuned.losses("seven"));
    assert_ne!(tuned.losses("run"), tuned.losses("other"));
}

#[test]
fn training_says_what_a_guess_reaches() {
    let tuned = Tuned::new("relu_torchscript", |_| ());
    // Two labels, as frequent as one another, that nothing in the input tells apart.
    let row = |row: usize| format!("{{\"input_ids\": [4, 1], \"labels\": [{}, 1]}}\n", 5 + row % 2);
    fs::write(tuned.path("train.jsonl"), (0..40).map(row).collect::<String>()).expect("a temporary folder");
    let data = tuned.path("train.jsonl");
    let done = tuned.train("run", &["--epochs", "20", "--lr", "1e-2", "--eval", text(&data)]);
    succeeded(&done);
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(said.contains("without the input: majority 50.0 %, loss of a guess 0.3466"), "{said}");
    let last = said.lines().rfind(|l| l.starts_with("epoch 20/20")).unwrap_or_default();
    assert!(last.contains("no better than the majority (50.0 %), nor than the loss of a guess (0.3466)"), "{said}");
    // What learns is not told so.
    let learnt = Tuned::new("gated_dynamo", |_| ());
    let eval = learnt.path("eval.jsonl");
    let done = learnt.train("run", &["--epochs", "12", "--lr", "1e-2", "--eval", text(&eval)]);
    let said = String::from_utf8_lossy(&done.stderr);
    let last = said.lines().rfind(|l| l.starts_with("epoch 12/12")).unwrap_or_default();
    assert!(!last.is_empty() && !last.contains("no better"), "{said}");
}

/// The gate that a file of a run holds.
fn scheduled(tuned: &Tuned, file: &str) -> f32 {
    lstc_tuned::side::load(&tuned.path(file)).expect("a side network")["side_gate"][[0]]
}

#[test]
fn a_schedule_sets_the_gates_for_each_epoch() {
    for (gate, epochs, expected) in [
        (Gate::ScheduleLinear, 5, [0.1, 0.3, 0.5, 0.7, 0.9]),
        (Gate::ScheduleHyperbolic, 5, [0.9, 0.5, 1.0 / 3.0, 0.25, 0.2]),
    ] {
        let values: Vec<f32> = (0..epochs).map(|epoch| gate.scheduled(epoch, epochs).expect("a value")).collect();
        assert!(values.iter().zip(expected).all(|(a, b)| (a - b as f32).abs() < 1e-7), "{values:?}");
        assert_eq!(gate.scheduled(40, 50).map(|v| v >= 0.1), Some(true));
    }
    let tuned = Tuned::new("pooled_schedule", |_| ());
    succeeded(&tuned.train("whole", &["--epochs", "3"]));
    assert_eq!(scheduled(&tuned, "whole/checkpoint.safetensors"), 0.9);
    // Stopped in the second epoch, and resumed: the same run.
    assert_eq!(stopped(&tuned, "run", &["--epochs", "3", "--save-every", "1"], 30, "-KILL"), None);
    assert_eq!(scheduled(&tuned, "run/checkpoint.safetensors"), 0.5);
    succeeded(&tuned.resume("run"));
    assert_eq!(tuned.losses("run"), tuned.losses("whole"));
    let best = |run: &str| lstc_tuned::side::load(&tuned.path(run).join("best.safetensors")).expect("a side network");
    assert_eq!(best("run"), best("whole"));
    // The moments of what is not trained stay zero.
    let state = lstc_tuned::side::load(&tuned.path("run/checkpoint.safetensors")).expect("a checkpoint");
    assert!(state.keys().any(|name| name == "side_gate"));
}
