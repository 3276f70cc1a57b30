//! The manifest against the graphs: each graph carries the record of the rewrite that made it, and every command that opens the
//! directory refuses a manifest that says something else.
//!
//! The record is the manifest itself, without what may change after a rewrite, so a new field is covered automatically.

use std::path::Path;

use anyhow::{Context, anyhow};
use lstc_base::report::{Hinted, word};
use lstc_graph::{About, metadata};
use lstc_passes::Options;
use serde_json::{Map, Value};

use crate::config::Config;
use crate::{GRAPHS, MANIFEST, manifest};

/// The key of a graph's metadata under which the record is, as JSON.
const KEY: &str = "lstc.rewrite";

/// Sections of a manifest that no graph depends on: how it is trained, what the files are now, and where its side network came from.
const FREE: [&str; 4] = ["train", "data", "files", "side"];

/// Sections of a configuration that become part of the graphs.
const OPTIONS: [&str; 6] = ["method", "sizes", "backbone", "loss", "backward", "optimizer"];

/// What is recorded of a file of the source. Its place may change.
const OF_SOURCE: [&str; 3] = ["part", "blake3", "bytes"];

/// Differences that an error spells out; the rest are counted.
const MAX_LISTED: usize = 10;

/// Characters of a value that an error shows.
const MAX_SHOWN: usize = 60;

/// What the graphs of a rewrite record about themselves: its manifest, as text.
///
/// # Errors
/// A text that is not a manifest.
pub fn about(manifest: &str) -> anyhow::Result<About> {
    let record = Value::Object(record(manifest)?).to_string();
    Ok(About { doc: String::new(), metadata: vec![(KEY.to_owned(), record)] })
}

/// Compares a manifest with the graphs beside it.
///
/// # Errors
/// Every field that differs from what a graph was made with; a graph that cannot be read.
pub fn check(directory: &Path, manifest: &str) -> anyhow::Result<()> {
    let differences = differences(directory, manifest)?;
    if differences.is_empty() {
        return Ok(());
    }
    let more = differences.len().saturating_sub(MAX_LISTED);
    let mut listed = differences[..differences.len() - more].join("\n  ");
    if more > 0 {
        listed += &format!("\n  and {more} more");
    }
    let error = anyhow!("`{}` is not what the graphs were made with\n  {listed}", directory.join(MANIFEST).display());
    let hint = format!(
        "put it back, or rewrite the model with it: `lstc rewrite --from {} -o AGAIN`",
        word(&directory.to_string_lossy())
    );
    Err(Hinted::new(error, hint).into())
}

/// Each field of a manifest that differs from what a graph beside it was made with, in words. What several graphs have in common is
/// reported for the first.
///
/// # Errors
/// A graph that cannot be read; a manifest that is not one.
pub fn differences(directory: &Path, manifest: &str) -> anyhow::Result<Vec<String>> {
    let here = Value::Object(record(manifest)?);
    let mut checked: Vec<String> = Vec::new();
    let mut differences = Vec::new();
    for file in GRAPHS {
        let context = || format!("`{}` is damaged; rewrite the model again", directory.display());
        let Some(text) = metadata(&directory.join(file)).with_context(context)?.remove(KEY) else {
            differences.push(format!("{file} does not say what it was made with: an earlier version of lstc wrote it"));
            continue;
        };
        if checked.contains(&text) {
            continue;
        }
        let made: Value = serde_json::from_str(&text).with_context(context)?;
        compare(String::new(), Some(&here), Some(&made), &mut |place, here, made| {
            differences.push(format!("{place} is {here}, and {file} was made with {made}"));
        });
        checked.push(text);
    }
    Ok(differences)
}

/// Whether the options of a configuration that the graphs of a directory fix are those that they were made with. Others, and what the
/// configuration leaves open, do not count.
///
/// # Errors
/// Every option that differs; a file that cannot be read.
pub fn check_options(directory: &Path, file: &Path) -> anyhow::Result<()> {
    let options = |text: &str| -> anyhow::Result<Map<String, Value>> {
        let mut all: Map<String, Value> = serde_yaml::from_str(text)?;
        all.retain(|section, value| OPTIONS.contains(&section.as_str()) && value.is_object());
        Ok(all)
    };
    let made = options(&manifest::text(directory)?)?;
    let given = options(&Config::text(file)?)?;
    let mut asked = made.clone();
    for (section, given) in &given {
        let Some(Value::Object(asked)) = asked.get_mut(section) else { continue };
        let given = given.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
        asked.extend(given.map(|(name, value)| (name.clone(), value.clone())));
    }
    // As they are read: 1 is 1.0, for one.
    let read = |options: &Map<String, Value>| -> anyhow::Result<Value> {
        let config: Config = serde_yaml::from_str(&serde_yaml::to_string(options)?)?;
        let Options { method, sizes, backbone, loss, backward, optimizer } = config.options();
        let sections = serde_yaml::to_string(&(method, sizes, backbone, loss, backward, optimizer))?;
        Ok(serde_yaml::from_str(&sections)?)
    };
    let (made, asked) = (named(read(&made)?), named(read(&asked)?));
    let mut differences = Vec::new();
    compare(String::new(), Some(&asked), Some(&made), &mut |place, asked, made| {
        differences.push(format!("{place} is {asked}, and the graphs were made with {made}"));
    });
    if differences.is_empty() {
        return Ok(());
    }
    let error =
        anyhow!("`{}` has options that only a rewrite can change\n  {}", file.display(), differences.join("\n  "));
    let hint = "leave them out, or rewrite the model with them: `lstc rewrite MODEL --config FILE -o AGAIN`";
    Err(Hinted::new(error, hint).into())
}

/// Sections by their names.
fn named(options: Value) -> Value {
    let Value::Array(sections) = options else { return options };
    Value::Object(OPTIONS.map(str::to_owned).into_iter().zip(sections).collect())
}

/// The part of a manifest that graphs depend on.
fn record(manifest: &str) -> anyhow::Result<Map<String, Value>> {
    let mut all: Map<String, Value> = serde_yaml::from_str(manifest)?;
    all.retain(|section, _| !FREE.contains(&section.as_str()));
    if let Some(Value::Array(files)) = all.get_mut("source") {
        files.iter_mut().filter_map(Value::as_object_mut).for_each(|file| {
            file.retain(|field, _| OF_SOURCE.contains(&field.as_str()));
        });
    }
    Ok(all)
}

/// Finds the fields in which two values differ.
fn compare(place: String, a: Option<&Value>, b: Option<&Value>, found: &mut impl FnMut(&str, String, String)) {
    match (a, b) {
        (a, b) if a == b => {}
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            let only_theirs = b.keys().filter(|key| !a.contains_key(*key));
            for key in a.keys().chain(only_theirs) {
                let place = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
                compare(place, a.get(key), b.get(key), found);
            }
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) if a.len() == b.len() => {
            for (at, (a, b)) in a.iter().zip(b).enumerate() {
                compare(format!("{place}[{at}]"), Some(a), Some(b), found);
            }
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => {
            found(&place, format!("a list of {}", a.len()), format!("a list of {}", b.len()));
        }
        (a, b) => found(&place, shown(a), shown(b)),
    }
}

fn shown(value: Option<&Value>) -> String {
    let Some(value) = value else { return "missing".to_owned() };
    let text = value.to_string();
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn differences(a: &str, b: &str) -> Vec<String> {
        let value = |text| Value::Object(record(text).expect("a manifest"));
        let mut all = Vec::new();
        compare(String::new(), Some(&value(a)), Some(&value(b)), &mut |place, a, b| {
            all.push(format!("{place}: {a} {b}"))
        });
        all
    }

    #[test]
    fn each_field_is_named_with_both_values() {
        let a = "optimizer:\n  beta1: 0.8\n  clip: 1.0\ntaps:\n- value: a\n- value: b\ncut: [x]\ntrain:\n  lr: 1\n";
        let b = "optimizer:\n  beta1: 0.9\ntaps:\n- value: a\n- value: c\ncut: [x, y]\ntrain:\n  lr: 2\n";
        let expected = [
            "cut: a list of 1 a list of 2",
            "optimizer.beta1: 0.8 0.9",
            "optimizer.clip: 1.0 missing",
            "taps[1].value: \"b\" \"c\"",
        ];
        assert_eq!(differences(a, b), expected);
        assert_eq!(differences(a, a), [""; 0]);
    }

    #[test]
    fn where_a_source_lies_may_change_and_what_it_is_may_not() {
        let of =
            |file: &str, hash: &str| format!("source:\n- file: {file}\n  part: model\n  blake3: {hash}\n  bytes: 3\n");
        assert_eq!(differences(&of("a", "ff"), &of("b", "ff")), [""; 0]);
        assert_eq!(differences(&of("a", "ff"), &of("a", "fe")), ["source[0].blake3: \"ff\" \"fe\""]);
    }

    #[test]
    fn a_key_that_is_given_twice_is_refused() {
        for text in ["a: 1\na: 2\n", "a:\n  b: 1\n  b: 2\n", "{a: 1, a: 1}\n"] {
            let error = record(text).expect_err("a key that is given twice").to_string();
            assert!(error.contains("duplicate"), "{error}");
        }
    }
}
