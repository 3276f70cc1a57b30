//! Real sizes: parameter counts of the paper's backbones, and what a rewrite of T5-base and of T5-3B costs.
//!
//! The graphs of `tests/cases/shapes` are PyTorch's exports at those sizes without their weights, which these tests
//! make: sparse where only shapes matter, pseudo-random where they are read.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lstc::inspect::Memory;
use lstc::rewrite::compile;
use lstc_passes::options::{BackwardOptions, Init, TowerName};
use lstc_passes::{Options, artifacts};
use lstc_train::memory::Sizes;

/// The data file that the shapes' graphs refer to.
const WEIGHTS: &str = "weights.bin";

/// A folder for big scratch files, under the target folder.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a scratch folder")
}

/// A shape's graph in `folder`, and the size that its weights must have.
fn shape(name: &str, folder: &Path) -> (PathBuf, u64) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/shapes").join(format!("{name}.onnx"));
    let model = folder.join("model.onnx");
    fs::copy(source, &model).expect("the shape is committed");
    let size = match name {
        "t5_base" => 990_380_032,
        "t5_large" => 2_950_676_480,
        _ => 11_406_393_344,
    };
    (model, size)
}

/// A shape's graph in `folder`, with weights that take no space on the disk: zeros.
fn sparse(name: &str, folder: &Path) -> PathBuf {
    let (model, size) = shape(name, folder);
    File::create(folder.join(WEIGHTS)).and_then(|f| f.set_len(size)).expect("a sparse file");
    model
}

fn odd(count: usize) -> Vec<usize> {
    (0..count).filter(|b| b % 2 == 1).collect()
}

#[test]
fn trainable_parameters_are_the_papers() {
    const BASE: [usize; 9] = [1, 2, 3, 5, 6, 7, 9, 10, 11];
    // Name, kept blocks of each tower, the reference's count, its gates of dropped blocks, which we do not have.
    let cases = [
        ("t5_base", BASE.to_vec(), 3_878_712, 6),
        ("t5_base", (0..12).collect(), 5_097_240, 0),
        ("t5_large", odd(24), 9_057_328, 24),
        ("t5_3b", vec![23], 2_494_896, 46),
    ];
    for (name, blocks, reference, unused_gates) in cases {
        let folder = scratch();
        let model = sparse(name, folder.path());
        let mut options = Options::default();
        options.method.init = Init::Random;
        options.method.blocks = [TowerName::Encoder, TowerName::Decoder].map(|t| (t, blocks.clone())).into();
        let (module, _) = compile(&model, options, Some("side-stack"), |_, _| ()).unwrap_or_else(|e| panic!("{e:?}"));
        let count: usize = module.parameters.iter().map(|p| p.dims.iter().product::<usize>()).sum();
        println!("{name}, {} of each tower's blocks: {count} trainable, reference {reference}", blocks.len());
        assert_eq!(count + unused_gates, reference, "{name}");
    }
}

/// What `lstc inspect` predicts for T5-base, which tests/train.rs holds against what is measured.
#[test]
fn attention_that_is_made_anew_saves_most_of_what_long_texts_keep() {
    let folder = scratch();
    let model = sparse("t5_base", folder.path());
    let activations = |recompute_attention| {
        let mut options = Options { backward: BackwardOptions { recompute_attention }, ..Options::default() };
        options.method.init = Init::Random;
        let (module, _) = compile(&model, options, None, |_, _| ()).unwrap_or_else(|e| panic!("{e:?}"));
        let sizes = Sizes { batch: 8, source_length: 512, target_length: 8 };
        Memory::predict(&module, &artifacts(&module), sizes).lst.activations
    };
    let [kept, anew] = [false, true].map(activations);
    println!("T5-base, 8 x 512 in, 8 out: {kept} bytes of activations, {anew} with attention made anew");
    assert!(anew * 10 < kept * 6, "{anew} of {kept}");
}

/// Fills a file with small pseudo-random floats, a block at a time.
fn fill(path: &Path, size: u64) {
    let mut file = File::create(path).expect("a file");
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut written = 0;
    while written < size {
        let block: Vec<u8> = (0..1 << 18)
            .flat_map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (((state >> 40) as f32 / (1_u64 << 24) as f32) - 0.5).to_le_bytes()
            })
            .collect();
        let part = (size - written).min(block.len() as u64);
        file.write_all(&block[..part as usize]).expect("room for 1 GB");
        written += part;
    }
}

/// A figure of `/proc/<pid>/status` in bytes.
fn status(pid: u32, field: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Runs a rewrite; the wall time, and the peak of a figure of `/proc/<pid>/status`.
fn rewrite(model: &Path, output: &Path, flags: &[&str], figure: &str) -> (Duration, u64) {
    let start = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_lstc"))
        .arg("rewrite")
        .arg(model)
        .arg("-o")
        .arg(output)
        .arg("--force")
        .args(flags)
        .stdout(Stdio::null())
        .spawn()
        .expect("lstc runs");
    let mut peak = 0;
    loop {
        peak = peak.max(status(child.id(), figure).unwrap_or(0));
        match child.try_wait().expect("lstc can be waited for") {
            Some(status) => {
                assert!(status.success());
                return (start.elapsed(), peak);
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Held by a test that measures time: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn rewriting_t5_base_is_quick_and_small() {
    let _alone = alone();
    // This test's own binary is optimised where the work is: the bound is the one for a release.
    const SECONDS: f64 = 5.0;
    const BYTES: u64 = 300 << 20;
    let folder = scratch();
    let (model, size) = shape("t5_base", folder.path());
    fill(&folder.path().join(WEIGHTS), size);
    let output = folder.path().join("tuned");
    // What is not a view of a file; how long a copy takes is the disk's affair.
    let run = || rewrite(&model, &output, &["--link"], "RssAnon");
    run(); // once to warm the page cache
    let runs: Vec<(Duration, u64)> = (0..3).map(|_| run()).collect();
    let seconds = runs.iter().map(|r| r.0.as_secs_f64()).fold(f64::INFINITY, f64::min);
    let bytes = runs.iter().map(|r| r.1).max().expect("three runs");
    println!(
        "T5-base, {:.2} GB, magnitude initialisation: {seconds:.2} s (best of 3), {:.0} MB resident beyond the page cache",
        size as f64 / 1e9,
        bytes as f64 / 1e6
    );
    assert!(seconds < SECONDS, "{seconds} s");
    assert!(bytes < BYTES, "{bytes} bytes");
}

#[test]
fn rewriting_t5_3b_links_or_copies_its_weights_and_holds_few_of_them() {
    // For a machine of two slow cores and a build that is not optimised; `benches/large.py` has the goals of a release.
    const SECONDS: f64 = 240.0;
    let _alone = alone();
    let folder = scratch();
    let model = sparse("t5_3b", folder.path());
    let output = folder.path().join("tuned");
    let cases = [
        ("random", Some("--link"), 300_u64 << 20),
        ("magnitude", Some("--link"), 600 << 20),
        ("random", None, 300 << 20),
    ];
    for (init, link, limit) in cases {
        // With the pages of files that are mapped.
        let flags: Vec<&str> = ["--init", init].into_iter().chain(link).collect();
        let (time, bytes) = rewrite(&model, &output, &flags, "VmHWM");
        println!("T5-3B, 11.4 GB, {init}: {:.1} s, {:.0} MB resident at most", time.as_secs_f64(), bytes as f64 / 1e6);
        let [written, source] = [output.join("backbone.data"), folder.path().join(WEIGHTS)]
            .map(|path| fs::metadata(path).expect("it is there"));
        assert_eq!(written.ino() == source.ino(), link.is_some(), "{init}");
        assert!(written.blocks() * 512 < 1 << 30, "{init}: what is a hole in the source takes no room");
        assert!(bytes < limit, "{init}: {bytes} bytes");
        assert!(time.as_secs_f64() < SECONDS, "{init}: {time:?}");
    }
}
