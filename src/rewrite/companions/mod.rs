//! What is beside a model: its tokenizer, and the configuration that names its special tokens.
//!
//! A file is looked for in the model's folder. Repositories keep their exports in a folder of their own, `onnx/`, so the
//! folder above it counts too, if its configuration is this model's.

mod byte_tokenizer;
mod special;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use lstc_base::report::word;
use lstc_data::Vocabulary;
use lstc_graph::regular;
use lstc_tuned::TOKENIZER;
use lstc_tuned::config::Config;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use byte_tokenizer::byte_tokenizer;
pub use special::special_tokens;

/// The model's configuration, as Hugging Face transformers writes it.
const CONFIGURATION: &str = "config.json";

const TOKENIZER_CONFIGURATION: &str = "tokenizer_config.json";
/// The class of ByT5's tokenizer.
const BYTE_TOKENIZER: &str = "ByT5Tokenizer";
/// Models of SentencePiece.
const SENTENCE_PIECE: [&str; 3] = ["spiece.model", "sentencepiece.bpe.model", "tokenizer.model"];
const CONVERT: &str = "python -c \"import sys; from transformers import AutoTokenizer; \
                       AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])\"";

#[derive(Deserialize)]
struct Class {
    tokenizer_class: Option<String>,
}

/// The folders in which a model's files are looked for.
pub struct Companions {
    own: PathBuf,
    above: Option<PathBuf>,
}

/// A file that was found.
pub struct Companion {
    pub path: PathBuf,
    /// Relative to the model.
    pub name: String,
}

/// What identifies the model that a configuration belongs to.
#[derive(Deserialize)]
struct Identity {
    model_type: Option<String>,
    d_model: Option<usize>,
}

impl Companions {
    /// Those of a model with this width.
    pub fn of(model: &Path, width: usize) -> Companions {
        let own = model.parent().unwrap_or(Path::new("")).to_owned();
        let above = own.join("..");
        let is_its = |path: PathBuf| {
            let identity = regular::read(&path, Config::LIMIT)
                .ok()
                .and_then(|text| serde_json::from_slice::<Identity>(&text).ok());
            identity.is_some_and(|i| i.model_type.is_some() && i.d_model.is_none_or(|d_model| d_model == width))
        };
        let above = is_its(above.join(CONFIGURATION)).then_some(above);
        Companions { own, above }
    }

    /// A file of this name, the nearest.
    pub fn find(&self, name: &str) -> Option<Companion> {
        let own = Companion { path: self.own.join(name), name: name.to_owned() };
        let above = self.above.as_ref().map(|f| Companion { path: f.join(name), name: format!("../{name}") });
        // A link to nowhere is not the absence of a file.
        let is_there = |companion: &Companion| fs::symlink_metadata(&companion.path).is_ok();
        [Some(own), above].into_iter().flatten().find(is_there)
    }

    /// A JSON file of this name.
    ///
    /// # Errors
    /// A file that cannot be read, or holds something else.
    fn read<T: DeserializeOwned>(&self, name: &str) -> anyhow::Result<Option<(T, String)>> {
        let Some(Companion { path, name }) = self.find(name) else { return Ok(None) };
        let context = || format!("`{}` is not a configuration that lstc can read", path.display());
        let text = regular::read(&path, Config::LIMIT).with_context(context)?;
        Ok(Some((serde_json::from_slice(&text).with_context(context)?, name)))
    }

    /// What the tokenizer says about its tokens.
    ///
    /// # Errors
    /// A file that cannot be read, or is not a tokenizer.
    fn vocabulary(&self) -> anyhow::Result<Option<(Vocabulary, String)>> {
        let Some(Companion { path, name }) = self.find(TOKENIZER) else { return Ok(None) };
        Ok(Some((Vocabulary::open(&path)?, name)))
    }

    /// Writes the tokenizer, if there is one, into a folder.
    ///
    /// # Errors
    /// From the file system; a configuration that cannot be read.
    pub fn write_tokenizer(&self, folder: &Path) -> anyhow::Result<()> {
        let target = folder.join(TOKENIZER);
        if let Some(Companion { path, .. }) = self.find(TOKENIZER) {
            lstc_base::files::copy(&path, &target).with_context(|| format!("cannot copy `{}`", path.display()))?;
        } else if self.is_of_bytes()? {
            fs::write(&target, serde_json::to_vec(&byte_tokenizer())?)
                .with_context(|| format!("cannot write `{}`", target.display()))?;
        }
        Ok(())
    }

    /// Whether the model is a ByT5, whose tokens are bytes.
    fn is_of_bytes(&self) -> anyhow::Result<bool> {
        for file in [TOKENIZER_CONFIGURATION, CONFIGURATION] {
            if let Some((Class { tokenizer_class: Some(class) }, _)) = self.read(file)? {
                return Ok(class == BYTE_TOKENIZER);
            }
        }
        Ok(false)
    }

    /// What to say about a tokenizer in a format that lstc does not read.
    ///
    /// # Errors
    /// A configuration that cannot be read.
    pub fn unread_tokenizer(&self) -> anyhow::Result<Option<String>> {
        if self.find(TOKENIZER).is_some() || self.is_of_bytes()? {
            return Ok(None);
        }
        Ok(SENTENCE_PIECE.iter().find_map(|name| self.find(name)).map(|found| {
            let folder = found.path.parent().unwrap_or(Path::new(""));
            let folder = if folder == Path::new("") { Path::new(".") } else { folder };
            format!(
                "the model's tokenizer is `{}`, but lstc reads text only with `{TOKENIZER}`: write it with this, then rewrite again\n  \
                 {CONVERT} {}",
                found.path.display(),
                word(&folder.to_string_lossy())
            )
        }))
    }
}
