//! The known labels: the targets of some data, those that the user names, or those that a side network was trained on.

use std::path::Path;

use anyhow::{Context, anyhow, bail};
use lstc_base::report::Hinted;
use lstc_data::{Corpus, Tokenizer};
use lstc_tuned::side;

use super::text;

/// Targets are labels, of which each example has one, if there are at most this many.
pub const MOST_LABELS: usize = 100;

/// So few different targets are labels, however few examples there are.
const FEW_LABELS: usize = 10;

/// The key of a side network's metadata that has the labels it was trained on.
const KEY: &str = "lstc.labels";

/// A label: its token ids, and its text.
pub type Label = (Vec<u32>, String);

/// The labels of corpora, if their targets are labels: few, or with two examples each.
///
/// # Errors
/// A label that the tokenizer cannot turn into text.
pub fn labels(corpora: &[&Corpus], tokenizer: Option<&Tokenizer>) -> anyhow::Result<Vec<Label>> {
    let mut all: Vec<Vec<u32>> = Vec::new();
    for corpus in corpora {
        let Some(targets) = corpus.targets(MOST_LABELS) else { return Ok(Vec::new()) };
        all.extend(targets);
    }
    all.sort_unstable();
    all.dedup();
    let examples: usize = corpora.iter().map(|c| c.len()).sum();
    let are_few = all.len() <= FEW_LABELS || all.len() * 2 <= examples;
    if all.len() > MOST_LABELS || !are_few {
        return Ok(Vec::new());
    }
    all.into_iter().map(|ids| Ok((ids.clone(), text(&ids, tokenizer)?))).collect()
}

/// The labels that the user names, each once, cut to `limit` tokens.
///
/// # Errors
/// No tokenizer; an empty label, or one that is named twice.
pub fn named_labels(given: &[String], tokenizer: Option<&Tokenizer>, limit: usize) -> anyhow::Result<Vec<Label>> {
    let needed = || Hinted::new(anyhow!("--labels needs a tokenizer"), "--tokenizer FILE");
    let tokenizer = tokenizer.ok_or_else(needed)?;
    let mut labels: Vec<Label> = Vec::new();
    for label in given {
        if label.trim().is_empty() {
            bail!("--labels names an empty label");
        }
        let ids = tokenizer.encode(label, limit)?.ids;
        if labels.iter().any(|(other, _)| *other == ids) {
            bail!("--labels names `{label}` twice");
        }
        labels.push((ids, label.clone()));
    }
    Ok(labels)
}

/// How a side network's file records the labels that it was trained on; nothing if targets were not labels.
///
/// # Errors
/// Never caused by the labels themselves.
pub fn record(labels: &[Label]) -> anyhow::Result<Option<(&'static str, String)>> {
    let text = || Ok((KEY, serde_json::to_string(labels)?));
    (!labels.is_empty()).then(text).transpose()
}

/// The labels that a side network was trained on; none if its file does not say.
///
/// # Errors
/// A file that cannot be read or is damaged; labels that are not tokens of the vocabulary.
pub fn recorded_labels(side: &Path, vocabulary: u64) -> anyhow::Result<Vec<Label>> {
    let metadata = side::metadata(side)?;
    let Some(text) = metadata.get(KEY) else { return Ok(Vec::new()) };
    let context = || format!("the labels that `{}` records are damaged", side.display());
    let labels: Vec<Label> = serde_json::from_str(text).with_context(context)?;
    let is_sound = |(ids, _): &Label| !ids.is_empty() && ids.iter().all(|id| u64::from(*id) < vocabulary);
    if !labels.iter().all(is_sound) {
        return Err(anyhow!("they are not in the model's vocabulary").context(context()));
    }
    Ok(labels)
}
