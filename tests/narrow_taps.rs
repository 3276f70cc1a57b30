//! Taps in 16 bits: half their memory between forward and backward pass, and nearly the same losses.
//!
//! One test: the sessions of a process share one arena, whose peak is counted from the process's beginning.

#[path = "common/cli.rs"]
mod cli;
mod common;
#[path = "common/steps.rs"]
mod steps;

/// Bytes of T5-nano's taps in fp32, for 16 examples of 128 tokens in and 8 out: of an embedding and two blocks in each tower,
/// 128 wide.
const TAPS: u64 = 16 * (128 + 8) * 3 * 128 * 4;

#[test]
fn narrow_taps_take_half_and_change_little() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tuned = folder.path().join("tuned");
    steps::rewrite(&tuned, &[]);
    let sizes = [16, 128, 8];
    // The lower peak first.
    let (narrow, least) = steps::steps_of(&tuned, sizes, |parts| parts.narrow().expect("taps alone cross over"));
    let (wide, most) = steps::steps(&tuned, sizes);
    println!("{narrow:?} and {least} bytes with taps in fp16, {wide:?} and {most} bytes in fp32, of {TAPS} for taps");
    let apart = narrow.iter().zip(&wide).map(|(n, w)| (n - w).abs() / w).fold(0.0, f64::max);
    assert!(apart > 0.0 && apart < 1e-4, "{apart:e}");
    // One of the few taps is wide at the peak, where it is at work.
    assert!(most - least > TAPS / 4, "{most} - {least}");
}
