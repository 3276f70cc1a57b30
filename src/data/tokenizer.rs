//! Text to token ids and back, by any Hugging Face `tokenizer.json`.

use std::path::Path;

use anyhow::{Context, anyhow};

use super::SpecialTokens;
use crate::report::Hinted;

/// A tokenizer and the token that ends its texts.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    end: u32,
}

/// The token ids of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// With the end token, which is the last one.
    pub ids: Vec<u32>,
    /// Whether the text had more tokens than the limit.
    pub truncated: bool,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`. Padding and truncation that it configures are left out: both are the caller's.
    ///
    /// # Errors
    /// A file that cannot be read or is no tokenizer, or one that lacks the end token.
    pub fn open(path: &Path, special: SpecialTokens) -> anyhow::Result<Tokenizer> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|cause| {
            let error = anyhow!(cause).context(format!("`{}` is no tokenizer", path.display()));
            Hinted::new(error, "lstc reads the `tokenizer.json` of Hugging Face's tokenizers")
        })?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| anyhow!(error))?;
        let end = u32::try_from(special.end).ok().filter(|end| inner.id_to_token(*end).is_some());
        let end = end.with_context(|| {
            format!("`{}` has no token {}, with which the model ends its texts", path.display(), special.end)
        })?;
        Ok(Tokenizer { inner, end })
    }

    /// The tokens of a text: what the file's own post-processor makes of it, cut to `limit` tokens from the front, with the
    /// end token once at the end, whether or not the post-processor or the text itself put it there.
    ///
    /// # Errors
    /// A text that the tokenizer has no tokens for.
    pub fn encode(&self, text: &str, limit: usize) -> anyhow::Result<Encoded> {
        let encoding = self.inner.encode_fast(text, true).map_err(|error| anyhow!(error))?;
        Ok(self.finished(encoding.get_ids(), limit))
    }

    /// [`Tokenizer::encode`] of each text, in order, on as many threads as there are cores.
    ///
    /// # Errors
    /// Where one of the texts has none.
    pub fn encode_all(&self, texts: Vec<String>, limit: usize) -> anyhow::Result<Vec<Encoded>> {
        let encodings = self.inner.encode_batch_fast(texts, true).map_err(|error| anyhow!(error))?;
        Ok(encodings.iter().map(|encoding| self.finished(encoding.get_ids(), limit)).collect())
    }

    fn finished(&self, ids: &[u32], limit: usize) -> Encoded {
        let content = ids.iter().rposition(|id| *id != self.end).map_or(0, |last| last + 1);
        let kept = content.min(limit.saturating_sub(1));
        let mut finished = Vec::with_capacity(kept + 1);
        finished.extend_from_slice(&ids[..kept]);
        finished.push(self.end);
        Encoded { ids: finished, truncated: kept < content }
    }

    /// The text of token ids, without special tokens.
    ///
    /// # Errors
    /// From the tokenizer's decoder.
    pub fn decode(&self, ids: &[u32]) -> anyhow::Result<String> {
        self.inner.decode(ids, true).map_err(|error| anyhow!(error))
    }
}
