//! The most memory that steps of training have in use at once, by the count of ONNX Runtime's allocator: a change that adds a
//! tenth to it fails here, whatever the machine does meanwhile.
//!
//! One test: the sessions of a process share one arena, whose peak is counted from the process's beginning.

#[path = "common/cli.rs"]
mod cli;
mod common;

use std::path::Path;

use cli::{lstc, stderr, stdout, text};
use lstc::data::Batch;
use lstc::rewrite::opened::{Execution, Opened};
use lstc::runtime::Device;
use lstc::train::Stepper;
use ndarray::Array2;

/// Bytes at the peak of T5-nano's steps, 16 examples of 128 tokens in and 8 out, int8: measured, ONNX Runtime 1.32 on x86-64.
const RECORDED: u64 = 29_060_407;

#[test]
fn a_step_needs_no_more_than_it_did() {
    let runtime = common::runtime();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tuned = folder.path().join("tuned");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/t5-nano/model.onnx");
    let done = lstc(&["rewrite", text(&model), "--backbone", "int8", "--int8-weights", "signed", "-o", text(&tuned)]);
    assert!(done.status.success(), "{}{}", stdout(&done), stderr(&done));
    let opened = Opened::new(&tuned).expect("a rewritten model");
    let execution = Execution { runtime, device: Device::Cpu, threads: 2, mapped: false };
    let initial = opened.initial().expect("a side network");
    let (mut stepper, mut backbone) = Stepper::open(&opened, &execution, &initial, false, 0).expect("opens");
    let tokens =
        |length: usize| Array2::from_shape_fn((16, length), |(row, at)| 3 + (row * 977 + at * 131) as i64 % 4000);
    let batch = Batch {
        rows: (1..=16).collect(),
        source: tokens(128),
        source_mask: Array2::ones((16, 128)),
        target_in: tokens(8),
        target_mask: Array2::ones((16, 8)),
        labels: tokens(8),
        counted: 16 * 8,
        tokens: 16 * 136,
    };
    for step in 1..=3 {
        stepper.step(std::slice::from_ref(&batch), |batch| backbone.taps(batch), step, 1e-3).expect("a step");
    }
    let peak = stepper.arena().expect("the allocator counts").peak;
    println!("{peak} bytes at the peak, {RECORDED} recorded");
    let ratio = peak as f64 / RECORDED as f64;
    assert!(ratio < 1.1, "{peak} bytes at the peak are {ratio:.2} of what is recorded");
    assert!(ratio > 0.9, "{peak} bytes at the peak are less than what is recorded: record them");
}
