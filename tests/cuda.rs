//! Training on CUDA, as far as it can be held without a GPU: the stock CUDA provider on the stand-in device of `tests/standin`.
//!
//! Real are where nodes run, what is launched, copied and waited for, what is refused and captured. No kernel computes anything, so
//! that losses mean nothing here.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

#[path = "matrix/archive.rs"]
mod archive;
#[path = "cuda/standin.rs"]
mod standin;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use standin::{Log, StandIn, assert_done, output, stand_in};
use tempfile::TempDir;

const NANO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/t5-nano/model.onnx");

/// Examples of a batch.
const BATCH: usize = 8;

/// A rewritten model, and data of one length, so that all batches have the same sizes.
struct Tuned {
    device: &'static StandIn,
    folder: TempDir,
}

impl Tuned {
    fn new(device: &'static StandIn, model: &Path, flags: &[&str]) -> Tuned {
        let tuned = Tuned { device, folder: tempfile::tempdir().expect("a temporary folder") };
        let directory = tuned.path("tuned");
        let arguments = [&["rewrite", text(model), "-o", &directory, "-r", "4"], flags].concat();
        assert_done(&output(&mut device.lstc(&arguments)), &format!("{} is rewritten", model.display()));
        for steps in [4, 8] {
            let mut rows = String::new();
            for row in 0..steps * BATCH {
                let ids: Vec<String> = (0..7).map(|at| (3 + (row + at) % 16).to_string()).collect();
                let _ = writeln!(rows, "{{\"input_ids\": [{}, 1], \"labels\": [5, 1]}}", ids.join(", "));
            }
            fs::write(tuned.path(&format!("{steps}.jsonl")), rows).expect("a writable folder");
        }
        tuned
    }

    fn path(&self, name: &str) -> String {
        text(&self.folder.path().join(name)).to_owned()
    }

    /// Trains for 4 or 8 steps.
    fn train(&self, steps: usize, flags: &[&str], variables: &[(&str, &str)]) -> Result<Log, String> {
        let run = tempfile::tempdir_in(self.folder.path()).expect("a temporary folder");
        let (directory, data, out) = (self.path("tuned"), self.path(&format!("{steps}.jsonl")), run.path().join("run"));
        let batch = BATCH.to_string();
        let mut arguments = vec!["train", &directory, "--train", &data, "--out", text(&out), "--epochs", "1"];
        arguments.extend(["--log-every", "1000"]);
        for (flag, value) in [("--device", "cuda"), ("--batch-size", batch.as_str())] {
            if !flags.contains(&flag) {
                arguments.extend([flag, value]);
            }
        }
        arguments.extend(flags);
        self.device.run(&arguments, variables)
    }

    /// What a step launches, and what of it the host sees: the difference of two runs.
    fn step(&self, flags: &[&str]) -> Step {
        let flags = [&["--cuda-graphs", "off"], flags].concat();
        let run = |steps| self.train(steps, &flags, &[]).unwrap_or_else(|error| panic!("{flags:?}: {error}")).kinds();
        let (few, many) = (run(4), run(8));
        let mut step = Step::default();
        for (kind, count) in many {
            let more = (count - few.get(&kind).copied().unwrap_or(0).min(count)) as f64 / 4.0;
            match kind.split(' ').collect::<Vec<_>>()[..] {
                ["KERNEL" | "GEMM" | "CUDNN"] => step.launches += more,
                ["WAIT", _] => step.waits += more,
                ["COPY", "D2H", _, bytes] => step.read += more * bytes.parse::<f64>().expect("a number of bytes"),
                ["COPY", _, "pageable", _] => step.pageable += more,
                ["ALLOC" | "FREE"] => step.allocations += more,
                _ => {}
            }
        }
        step
    }
}

/// What a step does, on average.
#[derive(Debug, Default, PartialEq)]
struct Step {
    launches: f64,
    waits: f64,
    /// Bytes that come back to the host.
    read: f64,
    /// Copies from memory for which the driver waits.
    pageable: f64,
    allocations: f64,
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// Runs `check` on the stand-in, where there is one.
fn on_device(check: impl FnOnce(&'static StandIn)) {
    if let Some(device) = stand_in() {
        check(device);
    }
}

/// The host waits for nothing in a step, and reads the loss and the norm of the gradient alone.
#[track_caller]
fn assert_flows(name: &str, step: &Step, losses: usize) {
    let read = 4.0 * (losses + 1) as f64;
    assert_eq!((step.waits, step.read, step.pageable), (0.0, read, 0.0), "{name}: {step:?}");
}

/// Launches of a step of T5-nano. More by a twentieth fail: a step on a GPU takes as long as its launches.
const LAUNCHES: [(&str, &[&str], &[&str], f64); 12] = [
    ("f32", &[], &[], 940.0),
    ("bf16", &["--backbone", "bf16"], &[], 985.0),
    ("fp16", &["--backbone", "fp16"], &[], 974.0),
    ("int4", &["--backbone", "int4"], &[], 1009.0),
    ("dropout", &["--dropout", "0.1"], &[], 986.0),
    ("merge and distillation", &["--merge-last", "--distill", "0.5"], &[], 961.0),
    ("recomputed attention", &["--recompute-attention"], &[], 956.0),
    ("fixed sizes", &["--batch", "8", "--source-length", "8", "--target-length", "2"], &[], 818.0),
    ("accumulated", &[], &["--accumulate", "2", "--batch-size", "4"], 2123.0),
    ("taps in fp16", &[], &["--tap-dtype", "fp16"], 958.0),
    ("taps in int8", &[], &["--tap-dtype", "int8"], 1006.0),
    ("LM head in 8 bits", &["--quantise-head"], &[], 948.0),
];

#[test]
fn a_step_waits_for_nothing_and_launches_no_more_than_it_did() {
    on_device(|device| {
        let mut worse = Vec::new();
        for (name, rewrite, train, most) in LAUNCHES {
            let step = Tuned::new(device, Path::new(NANO), rewrite).step(train);
            println!("{name:24} {:5.0} launches, of {most}", step.launches);
            assert_flows(name, &step, if name == "accumulated" { 2 } else { 1 });
            if step.launches > most * 1.05 {
                worse.push((name, step.launches, most));
            }
        }
        assert!(worse.is_empty(), "more launches than before: {worse:?}");
    });
}

#[test]
fn every_export_trains_without_a_wait() {
    const MODELS: [&str; 20] = [
        "ts_dynamic_qint8",
        "optimum_dynamic",
        "ts_qoperator",
        "ts_dynamic_extended",
        "ts_qdq",
        "ts_nbits_8",
        "dy_nbits_4_block_32_zero",
        "dy_attention_causal",
        "dy_multi_head_attention",
        "dy_fused_by_hand",
        "ts_transformers_optimised",
        "ts_f16_ort",
        "dy_f16_extended",
        "ts_bf16",
        "dy_gelu_erf",
        "ts_sdpa",
        "optimum_merged",
        "dy_opset_23",
        "ts_opset_11",
        "dy_wide",
    ];
    on_device(|device| {
        for name in MODELS {
            let model = unpacked(name);
            let tuned = Tuned::new(device, &model_of(model.path()), &[]);
            let step = tuned.step(&[]);
            println!("{name:28} {:5.0} launches", step.launches);
            assert_flows(name, &step, 1);
            let captured = tuned.train(4, &["--cuda-graphs", "on"], &[]);
            let log = captured.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!((log.count("REFUSED"), log.count("CAPTURE end"), log.count("CUDNN")), (0, 2, 0), "{name}");
        }
    });
}

#[test]
fn precisions_and_options_hold_for_exports_of_each_kind() {
    const OPTIONS: [(&[&str], &[&str]); 5] = [
        (&["--backbone", "bf16", "--dropout", "0.1"], &[]),
        (&["--backbone", "int4", "--recompute-attention"], &[]),
        (&["--backbone", "fp16", "--merge-last"], &["--tap-dtype", "int8"]),
        (&["--distill", "0.5"], &["--tap-dtype", "fp16"]),
        (&["--batch", "8", "--source-length", "8", "--target-length", "2"], &[]),
    ];
    on_device(|device| {
        for name in ["dy_relu_tied_f32_equal", "ts_gated_untied_f32_unequal", "ts_unfolded", "dy_umt5", "2f_mt5"] {
            let model = unpacked(name);
            for (rewrite, train) in OPTIONS {
                let step = Tuned::new(device, &model_of(model.path()), rewrite).step(train);
                assert_flows(&format!("{name}, {rewrite:?}, {train:?}"), &step, 1);
            }
        }
    });
}

fn unpacked(name: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    archive::unpack(name, folder.path());
    folder
}

/// The model in a folder: its one file, or the folder where there are several.
fn model_of(folder: &Path) -> PathBuf {
    let files = fs::read_dir(folder).expect("a readable folder").flatten().map(|entry| entry.path());
    let models: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "onnx")).collect();
    if let [one] = &models[..] { one.clone() } else { folder.to_owned() }
}

#[test]
fn a_step_is_captured_once_for_each_size_and_made_once_each_time() {
    on_device(|device| {
        let fixed: &[&str] = &["--batch", "8", "--source-length", "8", "--target-length", "2"];
        for (name, rewrite, train, graphs) in [
            ("free", &[][..], &[][..], 2),
            ("fixed", fixed, &[], 2),
            ("bf16", &["--backbone", "bf16"], &[], 2),
            ("accumulated", &[], &["--accumulate", "2", "--batch-size", "4"], 4),
        ] {
            let tuned = Tuned::new(device, Path::new(NANO), rewrite);
            let log = tuned.train(8, &[&["--cuda-graphs", "on"], train].concat(), &[]).expect("it trains");
            assert_eq!(log.count("REFUSED"), 0, "{name}");
            let captured: Vec<&str> = log.lines("CAPTURE end").collect();
            assert!(
                captured.len() == graphs && captured.iter().all(|line| line.contains(" ok ")),
                "{name}: {captured:?}"
            );
            // The run that captures a graph launches it once; where it writes in place, that run does not count.
            let replays = |graph: usize| log.count(&format!("REPLAY {graph}"));
            let replays: Vec<usize> = (1..=graphs).map(replays).collect();
            let (reads, writes) = (8, 9);
            match graphs {
                2 => {
                    assert_eq!(replays, [reads, writes], "{name}: backbone and step");
                    assert!(log.restores(2), "{name}: what the capture wrote is put back before the step is made");
                }
                _ => {
                    // Batches of half the size: two a step. The backbone, gradients, their sum, and the step.
                    assert_eq!(replays, [2 * reads, 2 * reads + 1, 2 * reads + 1, writes], "{name}");
                }
            }
        }
    });
}

#[test]
fn dropout_is_not_captured_and_the_reason_is_told() {
    on_device(|device| {
        let tuned = Tuned::new(device, Path::new(NANO), &["--dropout", "0.1"]);
        let log = tuned.train(4, &[], &[]).expect("it trains");
        assert_eq!(log.count("CAPTURE end"), 1, "the backbone alone has no dropout");
        let refused = tuned.train(4, &["--cuda-graphs", "on"], &[]).err().expect("a refusal");
        assert!(refused.contains("cannot be captured") && refused.contains("dropout"), "{refused}");
    });
}

#[test]
fn what_a_device_would_leave_to_the_cpu_is_refused() {
    on_device(|device| {
        let int8 = Tuned::new(device, Path::new(NANO), &["--backbone", "int8"]);
        let refused = int8.train(4, &[], &[]).err().expect("a refusal");
        for word in ["no kernel on cuda:0", "DynamicQuantizeLinear", "MatMulInteger", "--backbone bf16"] {
            assert!(refused.contains(word), "`{word}` is not in\n{refused}");
        }
    });
}

#[test]
fn a_device_that_cannot_serve_is_told_by_its_reason() {
    on_device(|device| {
        let tuned = Tuned::new(device, Path::new(NANO), &[]);
        let refused = |flags: &[&str], variables: &[(&str, &str)], words: &[&str]| {
            let refused = tuned.train(4, flags, variables).err().expect("a refusal");
            for word in words {
                assert!(refused.contains(word), "`{word}` is not in\n{refused}");
            }
        };
        refused(&["--device", "cuda:1"], &[], &["no CUDA device 1", "this machine has 1"]);
        refused(&[], &[("STANDIN_MEMORY", "12000000")], &["memory"]);
        refused(&["--overlap", "on"], &[], &["overlap", "one stream"]);
        let (folder, model) = (tempfile::tempdir().expect("a temporary folder"), ["rewrite", NANO, "--device", "cuda"]);
        let directory = folder.path().join("tuned");
        let int8 = ["-o", text(&directory), "--backbone", "int8"];
        let said = output(&mut device.lstc(&[&model[..], &int8].concat()));
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.contains("int8 backbone runs only on the CPU") && said.contains("--backbone bf16"), "{said}");
    });
}

#[test]
fn a_library_that_is_missing_is_named_with_what_brings_it() {
    on_device(|device| {
        let tuned = Tuned::new(device, Path::new(NANO), &[]);
        let lacking = tempfile::tempdir_in(device.libraries.parent().expect("a folder")).expect("a temporary folder");
        for file in fs::read_dir(&device.libraries).expect("a readable folder").flatten() {
            let name = file.file_name();
            if name != "libcublasLt.so.13" {
                fs::hard_link(file.path(), lacking.path().join(name)).expect("the same file system");
            }
        }
        let other = StandIn { libraries: lacking.path().to_owned(), cudnn: device.cudnn.clone() };
        let (directory, data) = (tuned.path("tuned"), tuned.path("4.jsonl"));
        let failed =
            other.run(&["train", &directory, "--train", &data, "--device", "cuda"], &[]).err().expect("an error");
        for word in ["libcublasLt.so.13", "nvidia-cublas", "lstc runtime install --cuda"] {
            assert!(failed.contains(word), "`{word}` is not in\n{failed}");
        }
    });
}

#[test]
fn attention_that_is_recomputed_is_not_kept_on_the_device() {
    on_device(|device| {
        let peak = |rewrite: &[&str]| {
            let tuned = Tuned::new(device, Path::new(NANO), rewrite);
            let sizes = ["--batch", "16", "--source-length", "512", "--target-length", "128", "--runs", "2"];
            let arguments = ["bench", &tuned.path("tuned"), "--device", "cuda", "--only", "step", "--format", "json"];
            let measured = output(&mut device.lstc(&[&arguments[..], &sizes].concat()));
            assert_done(&measured, "it is measured");
            let table: serde_json::Value = serde_json::from_slice(&measured.stdout).expect("JSON on stdout");
            table["rows"][0]["peak_memory"].as_u64().expect("bytes")
        };
        let (kept, recomputed) = (peak(&[]), peak(&["--recompute-attention"]));
        println!("{kept} bytes, {recomputed} where attention is recomputed");
        assert!(recomputed * 10 < kept * 9, "{recomputed} of {kept}");
    });
}

#[test]
fn a_chip_without_bf16_has_another_default() {
    on_device(|device| {
        let rewritten = |chip: &str| {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let directory = folder.path().join("tuned");
            let arguments = ["rewrite", NANO, "-o", text(&directory), "--device", "cuda"];
            assert_done(&output(device.lstc(&arguments).env("STANDIN_CHIP", chip)), "it is rewritten");
            fs::read_to_string(directory.join("lst.yaml")).expect("a manifest")
        };
        let precision = |manifest: &str| {
            let behind = manifest.split_once("\nbackbone:\n").expect("the manifest has the backbone's options").1;
            let line = behind.lines().find_map(|line| line.trim().strip_prefix("type: ").map(str::to_owned));
            line.expect("the manifest says the precision")
        };
        assert_eq!(["90", "80", "75"].map(|chip| precision(&rewritten(chip))), ["bf16", "bf16", "source"]);
        // What multiplies in bf16 elsewhere does so in f32.
        let int4 = Tuned::new(device, Path::new(NANO), &["--backbone", "int4"]);
        let log = int4.train(4, &[], &[("STANDIN_CHIP", "75")]).expect("it trains");
        let bf16 = Tuned::new(device, Path::new(NANO), &["--backbone", "bf16"]);
        let refused = bf16.train(4, &[], &[("STANDIN_CHIP", "75")]).err().expect("a refusal");
        assert!(refused.contains("does not support bf16"), "{refused}");
        assert!(!log.lines("KERNEL").any(|line| line.contains("BFloat16")), "no kernel is of bf16");
    });
}

#[test]
fn batches_of_many_lengths_and_an_uneven_last_one_are_filled_up() {
    on_device(|device| {
        for (rewrite, train) in [
            (&[][..], &[][..]),
            (&[], &["--accumulate", "3"]),
            (&["--distill", "0.5", "--merge-last"], &[]),
            (&["--distill", "0.5"], &["--accumulate", "3"]),
        ] {
            let tuned = Tuned::new(device, Path::new(NANO), rewrite);
            let (directory, data, cache) = (tuned.path("tuned"), tuned.path("uneven.jsonl"), tuned.path("taps"));
            let row = |row: usize| {
                let ids = |count: usize| (0..count).map(|at| (3 + at).to_string()).collect::<Vec<_>>().join(", ");
                format!("{{\"input_ids\": [{}], \"labels\": [{}]}}\n", ids(1 + row * 7 % 90), ids(1 + row % 5))
            };
            fs::write(&data, (0..43).map(row).collect::<String>()).expect("a writable folder");
            let flags =
                ["train", &directory, "--train", &data, "--device", "cuda", "--batch-size", "8", "--epochs", "2"];
            for cached in [&[][..], &["--cache", &cache]] {
                let out = tuned.path(if cached.is_empty() { "run" } else { "run-cached" });
                let log = device.run(&[&flags[..], train, cached, &["--out", &out]].concat(), &[]).expect("it trains");
                let captured: Vec<&str> = log.lines("CAPTURE end").collect();
                assert!(captured.iter().all(|line| line.contains(" ok ")), "{rewrite:?} {train:?} {cached:?}");
                assert!(captured.len() <= 3 * 16, "{} captures", captured.len());
                assert_eq!(log.count("CUDNN"), 0);
                // The sum of gradients is captured once, with the first batch of a step, and made once for each batch.
                if !train.is_empty() {
                    let sums: Vec<usize> =
                        (1..=captured.len()).map(|graph| log.count(&format!("REPLAY {graph}"))).collect();
                    assert!(sums.contains(&(2 * 6 + 1)), "once for each of 12 batches, and for the capture: {sums:?}");
                }
                let metrics = fs::read_to_string(Path::new(&out).join("metrics.jsonl")).expect("a log");
                let steps = if train.is_empty() { 12 } else { 4 };
                assert_eq!(metrics.lines().count(), steps, "a line a step");
            }
        }
    });
}

#[test]
fn evaluation_and_cached_taps_run_on_the_device() {
    on_device(|device| {
        let tuned = Tuned::new(device, Path::new(NANO), &[]);
        let (directory, data, cache) = (tuned.path("tuned"), tuned.path("4.jsonl"), tuned.path("taps"));
        let flags = ["train", &directory, "--train", &data, "--eval", &data, "--device", "cuda"];
        let log = device.run(&[&flags[..], &["--epochs", "2", "--cache", &cache]].concat(), &[]).expect("it trains");
        assert_eq!((log.count("REFUSED"), log.count("CUDNN")), (0, 0));
        let side = tuned.path("tuned/side.safetensors");
        let flags = ["eval", &directory, "--data", &data, "--side", &side, "--device", "cuda"];
        let log = device.run(&flags, &[]).expect("it evaluates");
        assert_eq!(log.count("CUDNN"), 0);
        assert!(log.count("GEMM") > 0);
    });
}
