//! Taps in 16 and in 8 bits: a half and a quarter of their memory between forward and backward pass, and nearly the same losses.
//!
//! One test: the sessions of a process share one arena, whose peak is counted from the process's beginning.

#[path = "common/cli.rs"]
mod cli;
mod common;
#[path = "common/steps.rs"]
mod steps;

use lstc_passes::Narrow;

/// Bytes of T5-nano's taps in fp32, for 16 examples of 128 tokens in and 8 out: of an embedding and two blocks in each tower,
/// 128 wide.
const TAPS: u64 = 16 * (128 + 8) * 3 * 128 * 4;

#[test]
fn narrow_taps_take_less_and_change_little() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tuned = folder.path().join("tuned");
    steps::rewrite(&tuned, &[]);
    let sizes = [16, 128, 8];
    let narrow = |to| steps::steps_of(&tuned, sizes, |parts| parts.narrow(to).expect("taps alone cross over"));
    // The lowest peak first.
    let [(steps, least), (halves, less)] = [Narrow::I8, Narrow::F16].map(narrow);
    let (wide, most) = steps::steps(&tuned, sizes);
    let apart = |losses: &[f64]| losses.iter().zip(&wide).map(|(n, w)| (n - w).abs() / w).fold(0.0, f64::max);
    let apart = [&steps, &halves].map(|losses| apart(losses));
    println!(
        "losses of int8 and fp16 are {apart:?} from {wide:?}; {least}, {less} and {most} bytes, of {TAPS} for taps"
    );
    assert!(apart.iter().all(|apart| *apart > 0.0) && apart[0] < 2e-3 && apart[1] < 1e-4, "{apart:?}");
    // One of the few taps is wide at the peak, where it is at work.
    assert!(most - less > TAPS / 4 && less - least > TAPS / 8, "{most} - {less} - {least}");
}
