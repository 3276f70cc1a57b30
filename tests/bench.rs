//! `lstc bench` on a small model: every row is measured, of a model and of a rewritten directory.

#[path = "common/cases.rs"]
mod cases;
#[path = "common/cli.rs"]
mod cli;
mod common;

use cli::{lstc, stderr, stdout, text};

#[test]
fn every_row_is_measured() {
    common::runtime(); // installs the library that the command needs
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = cases::with("model.onnx", 15)
        .into_iter()
        .find(|c| c.ends_with("gated_dynamo"))
        .expect("a case")
        .join("model.onnx");
    let bench = |arguments: &[&str]| {
        let sizes = ["--batch", "3", "--source-length", "9", "--target-length", "5", "--runs", "2", "--format", "json"];
        let done = lstc(&[&["bench"], arguments, &sizes].concat());
        assert!(done.status.success(), "{}", stderr(&done));
        serde_json::from_str::<serde_json::Value>(&stdout(&done)).expect("JSON on stdout")
    };
    let table = bench(&[text(&model)]);
    let rows = table["rows"].as_array().expect("rows");
    let what: Vec<String> = rows.iter().map(|r| format!("{} {}", r["backbone"], r["part"]).replace('"', "")).collect();
    assert_eq!(what, ["source forward", "source step", "source cached", "int8 forward", "int8 step", "int8 cached"]);
    for row in rows {
        let number = |name: &str| row[name].as_f64().expect("a number");
        assert!(number("best") > 0.0 && number("best") <= number("seconds"), "{row}");
        assert!(number("peak_memory") > 1e6, "{row}");
        let tokens = number("tokens_per_second") * number("seconds");
        assert!((tokens - 3.0 * 14.0).abs() < 1e-6, "{row}");
    }
    let tuned = folder.path().join("tuned");
    let done = lstc(&["rewrite", text(&model), "--backbone", "int4", "-o", text(&tuned)]);
    assert!(done.status.success(), "{}", stderr(&done));
    let table = bench(&[text(&tuned), "--only", "cached"]);
    assert_eq!((&table["rows"][0]["backbone"], table["rows"].as_array().map(Vec::len)), (&"int4".into(), Some(1)));
    // What is rewritten has its backbone, and may have its sizes.
    let done = lstc(&["bench", text(&tuned), "--backbone", "int8"]);
    assert!(!done.status.success() && stderr(&done).contains("measured as it is"), "{}", stderr(&done));
    let fixed = ["--batch", "2", "--source-length", "6", "--target-length", "3", "--force"];
    let done = lstc(&[&["rewrite", text(&model), "-o", text(&tuned)], &fixed[..]].concat());
    assert!(done.status.success(), "{}", stderr(&done));
    let table = bench(&[text(&tuned), "--only", "step"]);
    let sizes = ["batch", "source_length", "target_length"].map(|size| table[size].as_u64());
    assert_eq!(sizes, [2, 6, 3].map(Some), "{table}");
    let done = lstc(&["bench", "nowhere.onnx"]);
    assert!(!done.status.success() && stderr(&done).contains("nowhere.onnx"), "{}", stderr(&done));
}
