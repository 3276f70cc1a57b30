//! What lstc wrote: every change that counts is noticed.

use std::path::{Path, PathBuf};

use lstc::inspect::{RunReport, html};
use lstc_tuned::config::Config;
use lstc_tuned::opened::Opened;
use lstc_tuned::side;
use lstc_tuned::{DATA, GRAPHS, SEEN};
use serde_json::Value;

use super::chance::Chance;
use super::{MUTANTS, bytes, each, jsons, names, sweep};
use crate::tuned::{Tuned, flipped, succeeded};

#[test]
fn mutants_of_checkpoints_and_side_networks_are_noticed() {
    let tuned = Tuned::new();
    succeeded(&tuned.train("run", &[]));
    for name in ["run/checkpoint.safetensors", "run/best.safetensors", "tuned/side.safetensors"] {
        let path = tuned.path(name);
        sweep(&tuned, name, || side::load_with(&path));
    }
}

#[test]
fn mutants_of_manifests_are_noticed() {
    let tuned = Tuned::new();
    let directory = tuned.path("tuned");
    sweep(&tuned, "tuned/lst.yaml", || {
        let mut record = Opened::new(&directory)?.record;
        // The files were checked. Where the source lies, and how the model is trained, may change.
        record.files.clear();
        record.source.iter_mut().for_each(|source| source.file = PathBuf::new());
        let options = Config::read(&directory.join("lst.yaml"))?.options();
        Ok((format!("{record:?}"), format!("{options:?}")))
    });
}

#[test]
fn mutants_of_graphs_and_weights_are_noticed() {
    let tuned = Tuned::new();
    let directory = tuned.path("tuned");
    for name in GRAPHS.iter().chain([&DATA]) {
        sweep(&tuned, &format!("tuned/{name}"), || Ok(format!("{:?}", Opened::new(&directory)?.record)));
    }
}

#[test]
fn mutants_of_what_was_seen_hide_nothing() {
    let tuned = Tuned::new();
    let (directory, seen) = (tuned.path("tuned"), format!("tuned/{SEEN}"));
    let data = format!("tuned/{DATA}");
    sweep(&tuned, &seen, || Ok(format!("{:?}", Opened::new(&directory)?.record)));
    let (sound, weights) = (tuned.read(&seen), tuned.read(&data));
    tuned.put(&data, flipped(&weights, weights.len() * 4));
    each("what was seen of weights that have changed", MUTANTS, |seed| {
        tuned.put(&seen, bytes::mutant(&sound, seed));
        let error = Opened::new(&directory).err().expect("the weights have changed");
        names(&error, DATA);
        "noticed"
    });
}

#[test]
fn mutants_of_logs_are_read_as_far_as_they_can_be() {
    let tuned = Tuned::new();
    succeeded(&tuned.train("run", &[]));
    let (run, sound) = (tuned.path("run"), tuned.read("run/metrics.jsonl"));
    each("run/metrics.jsonl", MUTANTS, |seed| {
        tuned.put("run/metrics.jsonl", bytes::mutant(&sound, seed));
        shown(&run)
    });
    let lines: Vec<Value> = String::from_utf8_lossy(&sound).lines().flat_map(serde_json::from_str).collect();
    each("run/metrics.jsonl, by fields", MUTANTS, |seed| {
        let lines = jsons::mutant(&Value::Array(lines.clone()), &mut Chance::new(seed));
        let text: String = lines.as_array().into_iter().flatten().map(|line| format!("{line}\n")).collect();
        tuned.put("run/metrics.jsonl", text);
        shown(&run)
    });
}

/// What becomes of a run's log that is shown, as text and as a page.
fn shown(run: &Path) -> &'static str {
    match RunReport::new(run) {
        Err(error) => {
            names(&error, "metrics.jsonl");
            "refused"
        }
        Ok(report) => {
            assert!(!report.to_string().is_empty() && !html::run(&report).is_empty());
            if report.damaged > 0 { "read, but for damaged lines" } else { "read" }
        }
    }
}
