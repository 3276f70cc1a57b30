//! Labelled text, from files to batches of token ids.
//!
//! ```text
//! file -> rows -> Corpus (token ids in a mapped file) -> order -> Batch (padded arrays)
//! ```
//!
//! **Invariant:** nothing here depends on a model. Special tokens, the size of the vocabulary and fixed shapes come in as values.
//!
//! **Invariant:** memory does not grow with the data: rows stream, their tokens are in an unlinked file, and no row is
//! longer than [`LONGEST_ROW`].
//!
//! **Invariant:** the same file, seed and epoch give the same batches on every machine.

mod batch;
mod corpus;
mod fields;
mod inputs;
mod intake;
mod json_lines;
mod kind;
mod order;
mod reading;
mod records;
mod rows;
mod source;
mod split;
mod table;
mod template;
mod tokenised;
mod tokenizer;
mod words;

pub use lstc_models::SpecialTokens;

pub use batch::{Batch, Fixed, IGNORED};
pub use corpus::{Corpus, Example, Skipped};
pub use inputs::{Input, Inputs};
pub use order::{Batches, Order, epoch_batches, sequential_batches};
pub use reading::{DataFormat, OnBadRow, Quoting, Reading, Targets};
pub use source::{LONGEST_ROW, Line, Source};
pub use template::Template;
pub use tokenizer::{Encoded, Tokenizer, Vocabulary};
