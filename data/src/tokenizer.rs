//! Text to token ids and back, by any Hugging Face `tokenizer.json`.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use lstc_base::json;
use lstc_base::report::Hinted;
use lstc_graph::regular;

use super::SpecialTokens;

/// In bytes. Tokenizers need about a hundred bytes of memory per byte of text; longer texts are not tokenised whole.
const LONG_TEXT: usize = 64 << 10;

/// A tokenizer and the token that ends its texts.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    end: u32,
    path: PathBuf,
    hash: String,
}

/// Bytes of the largest `tokenizer.json` that is read: several times the largest known ones.
const LARGEST: u64 = 1 << 30;

/// What a tokenizer's file says about its tokens.
#[derive(Debug)]
pub struct Vocabulary {
    inner: tokenizers::Tokenizer,
    /// What the post-processor puts after every text.
    pub end: Option<u32>,
    /// The token of its own padding.
    pub pad: Option<u32>,
}

impl Vocabulary {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// As [`Tokenizer::open`].
    pub fn open(path: &Path) -> anyhow::Result<Vocabulary> {
        let mut inner = read(path)?.0;
        let pad = inner.get_padding().map(|padding| padding.pad_id);
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| anyhow!(error))?;
        let ids = |special: bool| inner.encode_fast("a", special).map(|e| e.get_ids().to_vec()).unwrap_or_default();
        let (plain, whole) = (ids(false), ids(true));
        // What follows the text's own tokens.
        let after = (0..=whole.len()).rev().find(|end| whole[..*end].ends_with(&plain)).unwrap_or(0);
        let end = whole[after..].last().copied();
        Ok(Vocabulary { inner, end, pad })
    }

    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }
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
    /// Reads a `tokenizer.json`. Its padding and truncation settings are ignored: both are up to the caller.
    ///
    /// # Errors
    /// A file that cannot be read or is not a tokenizer, or one that lacks the end token.
    pub fn open(path: &Path, special: SpecialTokens) -> anyhow::Result<Tokenizer> {
        let (mut inner, hash) = read(path)?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| anyhow!(error))?;
        let end = u32::try_from(special.end).ok().filter(|end| inner.id_to_token(*end).is_some());
        let end = end.with_context(|| {
            format!("`{}` has no token {}, with which the model ends its texts", path.display(), special.end)
        })?;
        Ok(Tokenizer { inner, end, path: path.to_owned(), hash })
    }

    /// BLAKE3 of its file.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tokens of a text: what the file's own post-processor makes of it, cut to `limit` tokens from the front, with the
    /// end token once at the end, whether or not the post-processor or the text itself put it there.
    ///
    /// Of a text that is far too long, only as much is tokenised as the limit needs, up to a blank.
    ///
    /// # Errors
    /// A text that the tokenizer has no tokens for.
    pub fn encode(&self, text: &str, limit: usize) -> anyhow::Result<Encoded> {
        let mut length = LONG_TEXT.max(limit.saturating_mul(64));
        let enough = limit.saturating_mul(2).saturating_add(64);
        while length < text.len() {
            let encoding = self.inner.encode_fast(opening(text, length), true).map_err(|error| anyhow!(error))?;
            if self.content(encoding.get_ids()).len() >= enough {
                return Ok(self.finished(encoding.get_ids(), limit));
            }
            length = length.saturating_mul(8);
        }
        let encoding = self.inner.encode_fast(text, true).map_err(|error| anyhow!(error))?;
        Ok(self.finished(encoding.get_ids(), limit))
    }

    /// [`Tokenizer::encode`] of each text, in order, on as many threads as there are cores.
    ///
    /// # Errors
    /// If one of the texts has none.
    pub fn encode_all(&self, texts: Vec<String>, limit: usize) -> anyhow::Result<Vec<Encoded>> {
        if texts.iter().any(|text| text.len() > LONG_TEXT) {
            return texts.iter().map(|text| self.encode(text, limit)).collect();
        }
        let encodings = self.inner.encode_batch_fast(texts, true).map_err(|error| anyhow!(error))?;
        Ok(encodings.iter().map(|encoding| self.finished(encoding.get_ids(), limit)).collect())
    }

    /// Tokens before the end tokens.
    fn content<'a>(&self, ids: &'a [u32]) -> &'a [u32] {
        let end = ids.iter().rposition(|id| *id != self.end).map_or(0, |last| last + 1);
        &ids[..end]
    }

    fn finished(&self, ids: &[u32], limit: usize) -> Encoded {
        let content = self.content(ids);
        let kept = content.len().min(limit.saturating_sub(1));
        let mut finished = Vec::with_capacity(kept + 1);
        finished.extend_from_slice(&content[..kept]);
        finished.push(self.end);
        Encoded { ids: finished, truncated: kept < content.len() }
    }

    /// The text of token ids, without special tokens.
    ///
    /// # Errors
    /// From the tokenizer's decoder.
    pub fn decode(&self, ids: &[u32]) -> anyhow::Result<String> {
        self.inner.decode(ids, true).map_err(|error| anyhow!(error))
    }
}

/// A tokenizer, and the BLAKE3 of its file.
fn read(path: &Path) -> anyhow::Result<(tokenizers::Tokenizer, String)> {
    let bytes = regular::read(path, LARGEST).with_context(|| format!("cannot read `{}`", path.display()))?;
    let read = parsed(&bytes).map_err(|cause| {
        let error = cause.context(format!("`{}` is not a tokenizer", path.display()));
        let hint = "lstc reads the `tokenizer.json` of Hugging Face tokenizers; for others, such as spiece.model, \
                    `AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)` in Python writes one";
        Hinted::new(error, hint)
    });
    Ok((read?, blake3::hash(&bytes).to_hex().to_string()))
}

/// A tokenizer from its file. The library panics on some damaged files, so it is fenced, and tried with a text; JSON
/// errors are found before it reads them.
fn parsed(bytes: &[u8]) -> anyhow::Result<tokenizers::Tokenizer> {
    json::check(bytes)?;
    let parsed = lstc_graph::fenced(|| {
        let tokenizer = tokenizers::Tokenizer::from_bytes(bytes)?;
        // No tokens at all is a problem of the text, not of the file.
        let _ = tokenizer.encode_fast("a", true);
        Ok(tokenizer)
    });
    parsed.context("it is damaged")?.map_err(|error: tokenizers::Error| anyhow!(error))
}

/// The start of a text, about so many bytes, up to a blank if one is near.
fn opening(text: &str, length: usize) -> &str {
    let opening = &text[..text.floor_char_boundary(length)];
    let blank = opening.rfind(char::is_whitespace).filter(|blank| *blank > length / 2);
    &opening[..blank.unwrap_or(opening.len())]
}
