//! The tap cache: the same numbers with it as without; what is kept, what is dropped, and what is refused.

mod common;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lstc::rewrite::{Request, rewrite};
use lstc_passes::Options;
use lstc_tuned::config::Config;

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

fn lstc(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lstc"));
    command.args(arguments);
    command
}

fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", said(output));
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> serde_json::Value {
    succeeded(output);
    serde_json::from_slice(&output.stdout).expect("JSON on stdout")
}

fn refused(output: &Output, with: &[&str]) {
    assert_eq!(output.status.code(), Some(2), "{}", said(output));
    for part in with {
        assert!(said(output).contains(part), "`{part}` is not in: {}", said(output));
    }
}

/// Rewritten cases beside data of token ids.
struct Work {
    folder: tempfile::TempDir,
}

/// How long the rows of a file are.
#[derive(Clone, Copy)]
enum Lengths {
    Equal,
    Various,
}

const ROWS: usize = 70;

impl Work {
    fn new(case: &str) -> Work {
        common::runtime(); // installs the library that the commands need
        let work = Work { folder: tempfile::tempdir().expect("a temporary folder") };
        work.rewrite("tuned", case, |_| ());
        work.write("train.jsonl", ROWS, Lengths::Various);
        work
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn rewrite(&self, name: &str, case: &str, change: impl FnOnce(&mut Options)) {
        let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(case);
        let config = Config::read(&case.join("lst.yaml")).expect("the case's options");
        let mut options = config.options();
        change(&mut options);
        let (model, output) = (case.join("model.onnx"), self.path(name));
        let request =
            Request { model: (&model).into(), options, training: config.training(), output: &output, force: false };
        rewrite(request, |_, _| ()).unwrap_or_else(|e| panic!("{name}: {e:?}"));
    }

    /// Rows whose label follows from their first token.
    fn write(&self, name: &str, rows: usize, lengths: Lengths) {
        let row = |row: usize| {
            let length = match lengths {
                Lengths::Equal => 5,
                Lengths::Various => 2 + row * 7 % 5,
            };
            let ids: Vec<usize> = (0..length).map(|at| 2 + (row * 31 + at * 17) % 28).chain([1]).collect();
            let label = match lengths {
                Lengths::Equal => ["5, 1", "6, 1", "7, 1"][ids[0] % 3],
                Lengths::Various => ["5, 1", "6, 1", "7, 9, 1"][ids[0] % 3],
            };
            format!("{{\"input_ids\": {ids:?}, \"labels\": [{label}]}}\n")
        };
        fs::write(self.path(name), (0..rows).map(row).collect::<String>()).expect("a temporary folder");
    }

    fn train_of(&self, model: &str, out: &str, flags: &[&str]) -> Command {
        let mut command = lstc(&["train", text(&self.path(model)), "--out", text(&self.path(out))]);
        command.args(["--train", text(&self.path("train.jsonl")), "--threads", "2", "--format", "json"]).args(flags);
        command
    }

    /// 120 steps.
    fn train(&self, out: &str, flags: &[&str]) -> Output {
        let steps = ["--batch-size", "3", "--epochs", "5"];
        self.train_of("tuned", out, &[&steps[..], flags].concat()).output().expect("lstc runs")
    }

    /// 27 steps, three epochs.
    fn train_briefly(&self, out: &str, flags: &[&str]) -> Output {
        let steps = ["--batch-size", "8", "--epochs", "3"];
        self.train_of("tuned", out, &[&steps[..], flags].concat()).output().expect("lstc runs")
    }

    fn build(&self, cache: &str, flags: &[&str]) -> Command {
        let (model, data, cache) = (self.path("tuned"), self.path("train.jsonl"), self.path(cache));
        let mut command = lstc(&["cache", "build", text(&model), "--data", text(&data), "--cache", text(&cache)]);
        command.args(["--threads", "1", "--format", "json"]).args(flags);
        command
    }

    fn show(&self, cache: &str) -> Output {
        let cache = self.path(cache);
        lstc(&["cache", "show", text(&cache), "--check", "--format", "json"]).output().expect("lstc runs")
    }

    fn losses(&self, out: &str) -> Vec<f64> {
        let lines = fs::read_to_string(self.path(out).join("metrics.jsonl")).expect("a log");
        let loss = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
            line["loss"].as_f64().expect("a loss")
        };
        lines.lines().map(loss).collect()
    }

    /// The files of a cache with this extension, by their numbers.
    fn files(&self, cache: &str, extension: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path(cache)).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = entries.map(|e| e.path()).collect();
        files.retain(|path| path.extension().is_some_and(|e| e == extension));
        files.sort();
        files
    }
}

/// The largest difference of two curves, as a share of the loss.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs() / a.abs().max(1.0)).fold(0.0, f64::max)
}

#[test]
fn training_on_kept_taps_gives_the_losses_of_training_without() {
    for case in ["gated_dynamo", "distillation", "no_gate_merge_distill"] {
        let work = Work::new(case);
        let cache = work.path("taps");
        let flags = ["--cache", text(&cache)];
        succeeded(&work.train("without", &[]));
        let trained = json(&work.train("with", &flags));
        assert_eq!((trained["cache"]["kept"].as_u64(), trained["cache"]["rows"].as_u64()), (Some(70), Some(70)));
        let (without, with) = (work.losses("without"), work.losses("with"));
        assert_eq!(without[..24], with[..24], "{case}: the first epoch's taps are the backbone's own");
        let apart = apart(&without, &with);
        println!("{case}: {} steps, {apart:e} apart", with.len());
        assert!(with.len() == 120 && apart < 1e-5, "{case}: {apart:e}");
    }
}

#[test]
fn with_the_same_padding_losses_are_the_same_bit_for_bit() {
    let work = Work::new("relu_torchscript");
    work.rewrite("dropped", "relu_torchscript", |o| o.method.dropout = 0.1);
    work.write("train.jsonl", ROWS, Lengths::Equal);
    let cache = work.path("taps");
    for (model, accumulate) in [("tuned", "1"), ("dropped", "1"), ("tuned", "3")] {
        let run = |out: &str, more: &[&str]| {
            let flags = ["--batch-size", "4", "--epochs", "3", "--accumulate", accumulate];
            succeeded(&work.train_of(model, out, &[&flags[..], more].concat()).output().expect("lstc runs"));
            work.losses(out)
        };
        let out = |name: &str| format!("{name}-{model}-{accumulate}");
        let without = run(&out("without"), &[]);
        assert_eq!(without, run(&out("with"), &["--cache", text(&cache)]), "{model}, accumulating {accumulate}");
    }
}

#[test]
fn fewer_bytes_cost_little() {
    let work = Work::new("gated_dynamo");
    succeeded(&work.train_briefly("without", &[]));
    let without = work.losses("without");
    let mut bytes = Vec::new();
    // The share of the loss by which the first step and the whole run may be off.
    for (dtype, first, whole) in [("fp32", 0.0, 1e-5), ("fp16", 2e-5, 1e-2), ("int8", 2e-4, 1e-1)] {
        let cache = work.path(dtype);
        let out = format!("run-{dtype}");
        let trained = json(&work.train_briefly(&out, &["--cache", text(&cache), "--cache-dtype", dtype]));
        assert_eq!(trained["cache"]["dtype"].as_str(), Some(dtype));
        bytes.push(trained["cache"]["bytes"].as_u64().expect("a number"));
        let with = work.losses(&out);
        let (one, all) = (apart(&without[..1], &with[..1]), apart(&without, &with));
        println!("{dtype}: {one:e} apart in the first step, {all:e} in {} steps", with.len());
        assert!(one <= first && all < whole, "{dtype}: {one:e}, {all:e}");
    }
    assert!(bytes[0] > bytes[1] && bytes[1] > bytes[2], "{bytes:?}");
    let cache = work.path("int8");
    refused(
        &work.train_briefly("other", &["--cache", text(&cache), "--cache-dtype", "fp16"]),
        &["stored as int8, not fp16"],
    );
    refused(&work.train_briefly("half", &["--cache", text(&cache), "--tap-dtype", "fp16"]), &["train.cache_dtype"]);
    // Without a type, the cache's own.
    let own = json(&work.train_briefly("own", &["--cache", text(&cache)]));
    assert_eq!(own["cache"]["dtype"].as_str(), Some("int8"));
    assert_eq!(work.losses("own"), work.losses("run-int8"), "rows are what the cache gives from the first step on");
}

#[test]
fn processes_fill_a_cache_together() {
    let work = Work::new("gated_dynamo");
    let spawn = |share: &str| {
        let mut command = work.build("taps", &["--shard", share]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("lstc runs")
    };
    let both = [spawn("1/2"), spawn("2/2")];
    for child in both {
        let built = json(&child.wait_with_output().expect("a child"));
        assert_eq!((built["share"].as_u64(), built["added"].as_u64()), (Some(35), Some(35)), "{built}");
    }
    let shown = json(&work.show("taps"));
    assert_eq!((shown["kept"].as_u64(), shown["shards"].as_u64()), (Some(70), Some(2)), "{shown}");
    let again = json(&work.build("taps", &[]).output().expect("lstc runs"));
    assert_eq!(
        (again["before"].as_u64(), again["added"].as_u64(), again["tokens"].as_u64()),
        (Some(70), Some(0), Some(0))
    );

    succeeded(&work.train_briefly("without", &[]));
    let cache = work.path("taps");
    let trained = work.train_briefly("with", &["--cache", text(&cache)]);
    succeeded(&trained);
    assert!(said(&trained).contains("taps of 70 of 70 rows"), "{}", said(&trained));
    let apart = apart(&work.losses("without"), &work.losses("with"));
    assert!(apart < 1e-5, "{apart:e}");
}

fn wait_for(path: impl Fn() -> Option<PathBuf>, bytes: u64, child: &mut Child) -> bool {
    let begun = Instant::now();
    loop {
        if path().and_then(|path| fs::metadata(path).ok()).is_some_and(|m| m.len() >= bytes) {
            return true;
        }
        if child.try_wait().expect("a child").is_some() {
            return false;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not get on");
        sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_kill_loses_at_most_what_was_not_recorded() {
    let work = Work::new("gated_dynamo");
    let whole = json(&work.build("whole", &[]).output().expect("lstc runs"));
    assert_eq!(whole["added"].as_u64(), Some(70));
    let mut killed = 0;
    for round in 1..=4 {
        let mut child = work
            .build("taps", &["--batch-size", "2"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("lstc runs");
        let index = || work.files("taps", "index").get(round - 1).cloned();
        if wait_for(index, 40 * 9, &mut child) {
            killed += usize::from(child.kill().is_ok());
        }
        child.wait().expect("a child");
    }
    let shown = json(&work.show("taps"));
    println!("{killed} kills, {} rows kept before the last build", shown["kept"]);
    assert_eq!(shown["damaged_records"].as_u64(), Some(0), "{shown}");
    json(&work.build("taps", &[]).output().expect("lstc runs"));
    let shown = json(&work.show("taps"));
    assert_eq!((shown["kept"].as_u64(), shown["damaged_records"].as_u64()), (Some(70), Some(0)), "{shown}");
}

#[test]
fn a_killed_run_goes_on_with_its_cache_bit_for_bit() {
    let work = Work::new("gated_dynamo");
    let run = |out: &str, cache: &Path, overlap: &str| {
        let flags = ["--batch-size", "4", "--epochs", "5", "--save-every", "4", "--overlap", overlap];
        let flags = [&flags[..], &["--cache", text(cache)]].concat();
        let mut command = work.train_of("tuned", out, &flags);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("lstc runs")
    };
    assert!(run("whole", &work.path("whole-taps"), "off").wait().expect("a child").success());
    let mut child = run("parts", &work.path("parts-taps"), "on");
    // Amid the first epoch.
    let log = || Some(work.path("parts/metrics.jsonl"));
    assert!(wait_for(log, 1700, &mut child), "the run ended before it could be killed");
    child.kill().expect("it runs");
    child.wait().expect("a child");
    assert!(work.losses("parts").len() < 90);
    let resumed = lstc(&["train", text(&work.path("tuned")), "--out", text(&work.path("parts")), "--resume"]);
    let mut resumed = resumed;
    succeeded(&resumed.output().expect("lstc runs"));
    assert_eq!(work.losses("whole"), work.losses("parts"));
}

#[test]
fn a_cache_keeps_to_its_budget() {
    let work = Work::new("gated_dynamo");
    let cache = work.path("taps");
    let whole = json(&work.build("whole", &[]).output().expect("lstc runs"));
    let budget = whole["cache"]["bytes"].as_u64().expect("a number") / 3;
    let trained = work.train_briefly("run", &["--cache", text(&cache), "--cache-budget", &format!("{budget}B")]);
    let told = said(&trained);
    assert_eq!(told.matches("is full with").count(), 1, "{told}");
    let trained = json(&trained);
    let kept = trained["cache"]["kept"].as_u64().expect("a number");
    assert!((15..35).contains(&kept), "{kept}");
    let files = [work.files("taps", "taps"), work.files("taps", "index")].concat();
    let bytes: u64 = files.iter().map(|path| fs::metadata(path).expect("a file").len()).sum();
    assert!(bytes <= budget + 40 * files.len() as u64, "{bytes} of {budget}");
    succeeded(&work.train_briefly("without", &[]));
    let apart = apart(&work.losses("without"), &work.losses("run"));
    assert!(apart < 1e-5, "{apart:e}");
    // It is counted alike when the cache is opened again.
    let again = json(&work.train_briefly("again", &["--cache", text(&cache), "--cache-budget", &format!("{budget}B")]));
    let counted = |run: &serde_json::Value| (run["cache"]["kept"].as_u64(), run["cache"]["bytes"].as_u64());
    assert_eq!(counted(&again), counted(&trained));
    let alone = work.train_briefly("alone", &["--cache-budget", "1MB"]);
    refused(&alone, &["name its folder with --cache DIR"]);
    let wrong = work.train_briefly("wrong", &["--cache", text(&cache), "--cache-budget", "much"]);
    refused(&wrong, &["`much` is not a size", "20GB"]);
}

#[test]
fn a_cache_that_is_being_filled_is_sound() {
    let work = Work::new("gated_dynamo");
    work.write("train.jsonl", 3000, Lengths::Various);
    let mut build = work.build("taps", &["--batch-size", "4"]);
    let mut child = build.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("lstc runs");
    let mut kept = Vec::new();
    while child.try_wait().expect("a child").is_none() {
        if work.path("taps/000001.index").exists() {
            let shown = work.show("taps");
            assert_eq!(shown.status.code(), Some(0), "{}", said(&shown));
            kept.push(json(&shown)["kept"].as_u64().expect("a number"));
        }
    }
    assert!(kept.iter().any(|kept| *kept < 3000), "it was looked at while it was filled: {kept:?}");
}

#[test]
fn a_directory_says_how_its_taps_are_kept() {
    let work = Work::new("gated_dynamo");
    let manifest = work.path("tuned/lst.yaml");
    let said = fs::read_to_string(&manifest).expect("a manifest");
    let (taps, data) = (work.path("taps"), work.path("train.jsonl"));
    let cached = format!("  cache: {}\n  cache_dtype: int8\n  cache_budget: 40KB\n", text(&taps));
    let told = said.replace("  data: null\n", &format!("  data: {}\n{cached}", text(&data)));
    assert_ne!(told, said);
    fs::write(&manifest, told).expect("it can be written");
    let built = lstc(&["cache", "build", text(&work.path("tuned")), "--format", "json"]).output().expect("lstc runs");
    let built = json(&built)["cache"].clone();
    assert_eq!(built["dtype"].as_str(), Some("int8"), "{built}");
    assert!(built["bytes"].as_u64().is_some_and(|bytes| bytes <= 40_000), "{built}");
    let mode = fs::metadata(taps.join("cache.yaml")).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o644, "who may read the folder may read what it is of");
    fs::write(&manifest, said).expect("it can be written");
    let nowhere =
        lstc(&["cache", "build", text(&work.path("tuned")), "--data", text(&data)]).output().expect("lstc runs");
    refused(&nowhere, &["no folder is given for the cache"]);
}

#[test]
fn a_run_goes_on_with_taps_as_it_began() {
    let work = Work::new("gated_dynamo");
    let cache = work.path("taps");
    json(&work.build("taps", &["--cache-dtype", "int8"]).output().expect("lstc runs"));
    let flags = ["--batch-size", "4", "--epochs", "5", "--save-every", "4", "--cache", text(&cache)];
    let whole = work.train_of("tuned", "whole", &flags).output().expect("lstc runs");
    succeeded(&whole);
    let mut command = work.train_of("tuned", "parts", &flags);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("lstc runs");
    let log = || Some(work.path("parts/metrics.jsonl"));
    assert!(wait_for(log, 1700, &mut child), "the run ended before it could be killed");
    child.kill().expect("it runs");
    child.wait().expect("a child");
    // Made again, the cache is as before.
    fs::remove_dir_all(&cache).expect("it is removed");
    let resume = || lstc(&["train", text(&work.path("tuned")), "--out", text(&work.path("parts")), "--resume"]);
    succeeded(&resume().output().expect("lstc runs"));
    assert_eq!(work.losses("whole"), work.losses("parts"));
    // Another in its place is refused.
    fs::remove_dir_all(&cache).expect("it is removed");
    json(&work.build("taps", &["--cache-dtype", "fp16"]).output().expect("lstc runs"));
    refused(&resume().output().expect("lstc runs"), &["stored as fp16, not int8"]);
    fs::write(work.path("parts/train.yaml"), "").expect("it can be written");
    refused(&resume().output().expect("lstc runs"), &["train.yaml` is damaged: it is empty"]);
}

/// A command of which no file grows beyond 500 KiB, as if there were no more space: what the cache is, and nothing else.
fn limited(command: &Command) -> Output {
    let script = "trap '' XFSZ; ulimit -f 500; exec \"$0\" \"$@\"";
    let mut limited = Command::new("bash");
    limited.args(["-c", script, text(Path::new(command.get_program()))]).args(command.get_args());
    limited.output().expect("a shell")
}

#[test]
fn a_full_disk_stops_the_cache_and_not_the_run() {
    let work = Work::new("gated_dynamo");
    work.write("train.jsonl", 300, Lengths::Various);
    let flags = ["--batch-size", "16", "--epochs", "2"];
    succeeded(&work.train_of("tuned", "without", &flags).output().expect("lstc runs"));
    let cache = work.path("taps");
    let train = work.train_of("tuned", "run", &[&flags[..], &["--cache", text(&cache)]].concat());
    let output = limited(&train);
    let told = said(&output);
    assert_eq!(told.matches("cannot write to the cache").count(), 1, "{told}");
    let kept = json(&output)["cache"]["kept"].as_u64().expect("a number");
    assert!((50..250).contains(&kept), "{kept}");
    let apart = apart(&work.losses("without"), &work.losses("run"));
    assert!(apart < 1e-5, "{apart:e}");
    assert_eq!(json(&work.show("taps"))["kept"].as_u64(), Some(kept));
    refused(&limited(&work.build("built", &["--batch-size", "16"])), &["cannot write to the cache"]);
    assert_eq!(json(&work.show("built"))["damaged_entries"].as_u64(), Some(0));
}

#[test]
fn what_is_damaged_is_computed_again() {
    let work = Work::new("gated_dynamo");
    let cache = work.path("taps");
    succeeded(&work.train_briefly("without", &[]));
    json(&work.build("taps", &[]).output().expect("lstc runs"));
    let (records, index) = (work.files("taps", "taps").remove(0), work.files("taps", "index").remove(0));
    let flip = |path: &Path, at: u64| {
        let file = OpenOptions::new().read(true).write(true).open(path).expect("a file");
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("a byte");
        file.write_all_at(&[byte[0] ^ 4], at).expect("a byte");
    };
    flip(&records, 777);
    flip(&index, 40 * 30 + 2);
    let length = fs::metadata(&records).expect("a file").len();
    OpenOptions::new().write(true).open(&records).expect("a file").set_len(length - 100).expect("it is cut");
    let shown = work.show("taps");
    assert_eq!(shown.status.code(), Some(1), "{}", said(&shown));
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).expect("JSON on stdout");
    assert_eq!((shown["kept"].as_u64(), shown["damaged_entries"].as_u64()), (Some(67), Some(2)), "{shown}");
    assert_eq!(shown["damaged_records"].as_u64(), Some(1));

    let trained = work.train_briefly("with", &["--cache", text(&cache)]);
    let told = said(&trained);
    assert!(told.contains("2 damaged entries") && told.contains("records of the cache"), "{told}");
    assert_eq!(json(&trained)["cache"]["kept"].as_u64(), Some(70));
    let apart = apart(&work.losses("without"), &work.losses("with"));
    assert!(apart < 1e-5, "{apart:e}");
    // What was computed again is not damage any more.
    assert_eq!(json(&work.show("taps"))["damaged_entries"].as_u64(), Some(0));
    let again = work.train_briefly("again", &["--cache", text(&cache)]);
    assert!(!said(&again).contains("damaged"), "{}", said(&again));
    assert_eq!(work.losses("again"), work.losses("with"));
    // A record is read where somebody asks for it.
    flip(&work.files("taps", "taps")[1], 99);
    assert_eq!(work.show("taps").status.code(), Some(1));
    let unread = json(&work.build("taps", &[]).output().expect("lstc runs"));
    assert_eq!(unread["added"].as_u64(), Some(0), "{unread}");
    // What takes its place has room in a budget that is used up.
    let full = format!("{}B", unread["cache"]["bytes"]);
    let read = json(&work.build("taps", &["--check", "--cache-budget", &full]).output().expect("lstc runs"));
    assert_eq!(read["added"].as_u64(), Some(1), "{read}");
    assert_eq!(work.show("taps").status.code(), Some(0));

    // An index that begins otherwise is of another cache; a description that is damaged describes none.
    flip(&index, 9);
    refused(&work.train_briefly("foreign", &["--cache", text(&cache)]), &["000001.index", "belongs to another cache"]);
    fs::write(cache.join("cache.yaml"), "format: 1\nrows: what\n").expect("a file");
    refused(&work.train_briefly("torn", &["--cache", text(&cache)]), &["cache.yaml` is damaged"]);
    fs::write(cache.join("cache.yaml"), "format: 9\n").expect("a file");
    refused(&work.train_briefly("old", &["--cache", text(&cache)]), &["has format 9", "another version of lstc"]);
}

#[test]
fn a_cache_of_something_else_is_refused_by_name() {
    let work = Work::new("gated_dynamo");
    let cache = work.path("taps");
    let short = ["--batch-size", "8", "--epochs", "1", "--cache", text(&cache)];
    let run = |model: &str, out: &str, more: &[&str]| {
        work.train_of(model, out, &[&short[..], more].concat()).output().expect("lstc runs")
    };
    succeeded(&run("tuned", "first", &[]));
    // Other side networks that read the same taps share it.
    work.rewrite("other", "gated_dynamo", |o| {
        o.method.reduction = 2;
        o.method.seed += 1;
        o.optimizer.weight_decay = 0.5;
    });
    let shared = run("other", "other-run", &["--lr", "1e-4", "--seed", "4"]);
    succeeded(&shared);
    assert!(said(&shared).contains("taps of 70 of 70 rows"), "{}", said(&shared));

    work.rewrite("fewer", "gated_dynamo", |o| o.method.blocks.clear());
    let fewer = run("fewer", "fewer-run", &[]);
    let all = said(&fewer).contains("taps of 70 of 70 rows");
    assert!(all || said(&fewer).contains("it holds the taps"), "{}", said(&fewer));
    work.rewrite("model", "relu_torchscript", |_| ());
    refused(
        &run("model", "model-run", &[]),
        &["was made for something else", "another source model", "hint: give --cache another folder"],
    );
    refused(&run("tuned", "cut", &["--max-source-length", "3"]), &["the data, the tokenizer or the length limits"]);
    work.write("train.jsonl", ROWS + 1, Lengths::Various);
    refused(&run("tuned", "more", &[]), &["it is for 70 rows, but there are 71"]);
    let work_folder = work.folder.path();
    let elsewhere = ["--batch-size", "8", "--cache", text(work_folder)];
    let other = work.train_of("tuned", "elsewhere", &elsewhere).output().expect("lstc runs");
    refused(&other, &["holds other files, and is not a cache"]);
    let none = lstc(&["cache", "show", text(&work.path("tuned"))]).output().expect("lstc runs");
    refused(&none, &["is not a cache", "lstc cache build"]);
}

#[test]
fn a_cache_may_be_built_of_what_is_not_held_out() {
    let work = Work::new("relu_torchscript");
    let built = json(&work.build("taps", &["--eval-fraction", "0.2", "--seed", "3"]).output().expect("lstc runs"));
    let cache = work.path("taps");
    let flags = |share| ["--eval", share, "--seed", "3", "--cache", text(&cache)];
    let trained = work.train_briefly("with", &flags("0.2"));
    assert_eq!(built["cache"]["kept"].as_u64(), Some(ROWS as u64 - (ROWS as f64 * 0.2).round() as u64), "{built}");
    assert_eq!(json(&trained)["cache"]["kept"], built["cache"]["kept"]);
    refused(&work.train_briefly("other", &flags("0.3")), &["the data, the tokenizer or the length limits have"]);
}
