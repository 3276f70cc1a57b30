//! The most memory that steps of training have in use at once, by the count of ONNX Runtime's allocator: a change that adds a
//! tenth to it fails here, whatever the machine does meanwhile.
//!
//! One test: the sessions of a process share one arena, whose peak is counted from the process's beginning.

#[path = "common/cli.rs"]
mod cli;
mod common;
#[path = "common/steps.rs"]
mod steps;

/// Bytes at the peak of T5-nano's steps, 16 examples of 128 tokens in and 8 out, int8: measured, ONNX Runtime 1.32 on x86-64.
const RECORDED: u64 = 29_060_407;

#[test]
fn a_step_needs_no_more_than_it_did() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tuned = folder.path().join("tuned");
    steps::rewrite(&tuned, &["--backbone", "int8", "--int8-weights", "signed"]);
    let (_, peak) = steps::steps(&tuned, [16, 128, 8]);
    println!("{peak} bytes at the peak, {RECORDED} recorded");
    let ratio = peak as f64 / RECORDED as f64;
    assert!(ratio < 1.1, "{peak} bytes at the peak are {ratio:.2} of what is recorded");
    assert!(ratio > 0.9, "{peak} bytes at the peak are less than what is recorded: record them");
}
