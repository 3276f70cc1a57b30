//! What lies beside a model: its tokenizer, and the configuration that names its special tokens.

use std::fs;
use std::path::Path;

use anyhow::Context;
use lstc_models::{SpecialTokens, families};
use serde::Deserialize;

/// The tokenizer's file, beside a model and in a rewritten directory.
pub const TOKENIZER: &str = "tokenizer.json";

/// The model's configuration, as Hugging Face transformers writes it.
const CONFIGURATION: &str = "config.json";

/// The ids that a configuration gives to the special tokens.
#[derive(Debug, Deserialize)]
struct Configuration {
    pad_token_id: Option<i64>,
    eos_token_id: Option<OneOrMore>,
    decoder_start_token_id: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(i64),
    More(Vec<i64>),
}

impl OneOrMore {
    fn first(&self) -> Option<i64> {
        match self {
            OneOrMore::One(id) => Some(*id),
            OneOrMore::More(ids) => ids.first().copied(),
        }
    }
}

/// The special tokens of a model: what `config.json` beside it says, else what its family has.
///
/// # Errors
/// A `config.json` that is none.
pub fn special_tokens(model: &Path, family: &str) -> anyhow::Result<SpecialTokens> {
    let known = families().into_iter().find(|f| f.name == family).expect("a recognised model has a family").tokens;
    let path = model.with_file_name(CONFIGURATION);
    let Ok(text) = fs::read_to_string(&path) else { return Ok(known) };
    let read: Configuration =
        serde_json::from_str(&text).with_context(|| format!("`{}` is no configuration of a model", path.display()))?;
    Ok(SpecialTokens {
        pad: read.pad_token_id.unwrap_or(known.pad),
        end: read.eos_token_id.and_then(|e| e.first()).unwrap_or(known.end),
        start: read.decoder_start_token_id.or(read.pad_token_id).unwrap_or(known.start),
    })
}

/// Copies the tokenizer that lies beside the model, if one does.
///
/// # Errors
/// From the file system.
pub fn copy_tokenizer(model: &Path, folder: &Path) -> anyhow::Result<()> {
    let source = model.with_file_name(TOKENIZER);
    if source.is_file() {
        let copied = crate::files::copy(&source, &folder.join(TOKENIZER));
        copied.with_context(|| format!("cannot copy `{}`", source.display()))?;
    }
    Ok(())
}
