//! Steps of training on made-up tokens.

use std::path::Path;

use lstc_data::Batch;
use lstc_passes::Parts;
use lstc_train::Stepper;
use lstc_tuned::opened::{Execution, Opened};
use ndarray::Array2;

use crate::cli::{lstc, stderr, stdout, text};
use crate::common;

/// Rewrites T5-nano into `out`.
pub fn rewrite(out: &Path, flags: &[&str]) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/t5-nano/model.onnx");
    let done = lstc(&[&["rewrite", text(&model), "-o", text(out)], flags].concat());
    assert!(done.status.success(), "{}{}", stdout(&done), stderr(&done));
}

/// The losses of three steps on `rows` examples of `source` tokens in and `target` out, and the most that ONNX Runtime's
/// allocator had given out by then, since the process began.
pub fn steps(tuned: &Path, sizes: [usize; 3]) -> (Vec<f64>, u64) {
    steps_of(tuned, sizes, |_| ())
}

/// As [`steps`], with the graphs as `change` makes them.
pub fn steps_of(tuned: &Path, [rows, source, target]: [usize; 3], change: impl FnOnce(&mut Parts)) -> (Vec<f64>, u64) {
    let opened = Opened::new(tuned).expect("a rewritten model");
    let execution = Execution::cpu(common::runtime(), 2);
    let initial = opened.initial().expect("a side network");
    let mut parts = opened.parts(Stepper::graph(false)).expect("a rewritten model");
    change(&mut parts);
    let (mut stepper, mut backbone) = Stepper::of(&opened, parts, &execution, &initial, false, 0).expect("opens");
    let tokens =
        |length: usize| Array2::from_shape_fn((rows, length), |(row, at)| 3 + (row * 977 + at * 131) as i64 % 4000);
    let batch = Batch {
        rows: (1..=rows as u64).collect(),
        source: tokens(source),
        source_mask: Array2::ones((rows, source)),
        target_in: tokens(target),
        target_mask: Array2::ones((rows, target)),
        labels: tokens(target),
        counted: rows * target,
        tokens: rows * (source + target),
    };
    let mut step = |number| {
        stepper
            .step(std::slice::from_ref(&batch), |batch| backbone.taps(batch), number, 1e-3)
            .expect("a step")
            .get()
            .expect("a step")
            .loss
    };
    let losses = (1..=3).map(&mut step).collect();
    (losses, stepper.arena().expect("the allocator counts").peak)
}
