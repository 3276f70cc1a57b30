//! `--recompute-attention` computes the same, and needs less memory.
//!
//! One test: the sessions of a process share one arena, whose peak is counted from the process's beginning. So what needs
//! least comes first.

#[path = "common/cli.rs"]
mod cli;
mod common;
#[path = "common/steps.rs"]
mod steps;

#[test]
fn attention_that_is_made_anew_is_not_kept() {
    const SIZES: [usize; 3] = [8, 256, 256];
    let folder = tempfile::tempdir().expect("a temporary folder");
    let steps = |name: &str, flags: &[&str]| {
        let tuned = folder.path().join(name);
        steps::rewrite(&tuned, flags);
        steps::steps(&tuned, SIZES)
    };
    let fixed = ["--batch", "8", "--source-length", "256", "--target-length", "256"];
    let (losses_free, free) = steps("free", &["--recompute-attention"]);
    let (losses_fixed, fixed) = steps("fixed", &[&fixed[..], &["--recompute-attention"]].concat());
    let (losses, kept) = steps("kept", &[]);
    println!("{free} bytes at the peak, {fixed} with fixed sizes, {kept} where attention is kept");
    assert_eq!(losses_free, losses, "the same operands in the same order");
    assert_eq!(losses_fixed, losses);
    // Of two blocks a tower, little more is kept than a block works with: deeper towers are in tests/scale.rs.
    assert!(free * 10 < kept * 9, "{free} of {kept}");
    assert!(fixed < kept, "{fixed} of {kept}");
}
