//! Rows that hold token ids, as Hugging Face tokenizers write them.
//!
//! What a row says is honoured, or the row is refused; nothing is ignored:
//!
//! * padding in `input_ids`, which `attention_mask` shows, or without a mask the padding token at the end, is left
//!   out; what the mask hides between tokens that count is kept, hidden;
//! * `labels` may be -100 anywhere, and such labels do not count;
//! * `decoder_input_ids` must be the start token and then the labels; where labels do not count, it gives the tokens;
//! * `decoder_attention_mask` and `token_type_ids` must say what a model of this kind does by itself.

use super::fields::{Field, Fields};
use super::reading::Targets;
use super::{IGNORED, SpecialTokens};

pub const INPUT_IDS: &str = "input_ids";
pub const LABELS: &str = "labels";
const ATTENTION_MASK: &str = "attention_mask";
const DECODER_INPUT_IDS: &str = "decoder_input_ids";
const DECODER_ATTENTION_MASK: &str = "decoder_attention_mask";
const TOKEN_TYPE_IDS: &str = "token_type_ids";

/// The fields that are honoured.
pub const FIELDS: [&str; 6] =
    [INPUT_IDS, LABELS, ATTENTION_MASK, DECODER_INPUT_IDS, DECODER_ATTENTION_MASK, TOKEN_TYPE_IDS];

/// Fields that other models read, and that change what a row means.
pub const UNSUPPORTED: [&str; 8] = [
    "position_ids",
    "decoder_position_ids",
    "inputs_embeds",
    "decoder_inputs_embeds",
    "head_mask",
    "decoder_head_mask",
    "cross_attn_head_mask",
    "loss_mask",
];

/// Set in a token that is kept but does not count: in a source one that attention does not see, in a target one whose
/// label is not learned.
pub const HIDDEN: u32 = 1 << 31;

/// A row's ids as the file has them, unchecked.
pub struct Tokenised {
    input: Vec<i64>,
    labels: Vec<i64>,
    mask: Option<Vec<i64>>,
    decoder_input: Option<Vec<i64>>,
    decoder_mask: Option<Vec<i64>>,
    token_types: Option<Vec<i64>>,
}

impl Tokenised {
    /// # Errors
    /// A field that is missing, not an array of integers, or not supported.
    pub fn of(fields: &Fields, targets: Targets) -> Result<Tokenised, String> {
        let is_given = |name: &&&str| !matches!(fields.get(name), None | Some(Field::Null));
        if let Some(name) = UNSUPPORTED.iter().find(is_given) {
            return Err(format!("field `{name}` is not supported"));
        }
        let optional = |name: &str| is_given(&&name).then(|| fields.ids(name)).transpose();
        let of_target = |name: &str| match (targets, name) {
            (Targets::Absent, _) => Ok(None),
            (Targets::Read, LABELS) => fields.ids(name).map(Some),
            (Targets::Read, _) => optional(name),
        };
        Ok(Tokenised {
            input: fields.ids(INPUT_IDS)?,
            labels: of_target(LABELS)?.unwrap_or_default(),
            mask: optional(ATTENTION_MASK)?,
            decoder_input: of_target(DECODER_INPUT_IDS)?,
            decoder_mask: of_target(DECODER_ATTENTION_MASK)?,
            token_types: optional(TOKEN_TYPE_IDS)?,
        })
    }

    /// The ids of the input, as the file has them.
    pub fn into_input(self) -> Vec<i64> {
        self.input
    }

    /// How many ids there are.
    pub fn len(&self) -> usize {
        self.input.len() + self.labels.len()
    }

    /// The tokens of the source, without padding.
    ///
    /// # Errors
    /// Ids that are not tokens; a mask that does not fit them.
    pub fn source(&self, special: SpecialTokens) -> Result<Vec<u32>, String> {
        if let Some(at) = self.token_types.as_ref().and_then(|types| types.iter().position(|t| *t != 0)) {
            return Err(format!("field `{TOKEN_TYPE_IDS}` is not 0 at index {at}, and the model has no token types"));
        }
        let Some(mask) = &self.mask else {
            let padding = if special.pad == special.end { None } else { Some(special.pad) };
            let kept = self.input.iter().rposition(|id| Some(*id) != padding).map_or(0, |last| last + 1);
            return tokens(INPUT_IDS, &self.input[..kept]);
        };
        let shown = shown(ATTENTION_MASK, mask)?;
        if shown.len() != self.input.len() {
            let (ids, mask) = (self.input.len(), shown.len());
            return Err(format!("field `{ATTENTION_MASK}` has {mask} elements, and `{INPUT_IDS}` has {ids}"));
        }
        let (Some(first), Some(last)) = (shown.iter().position(|s| *s), shown.iter().rposition(|s| *s)) else {
            return Err(format!("field `{ATTENTION_MASK}` hides every token"));
        };
        let mut ids = tokens(INPUT_IDS, &self.input)?;
        ids.iter_mut().zip(&shown).filter(|(_, shown)| !**shown).for_each(|(id, _)| *id |= HIDDEN);
        Ok(ids[first..=last].to_vec())
    }

    /// The tokens of the target, without padding; those whose labels do not count are hidden.
    ///
    /// # Errors
    /// Labels that are not tokens; other fields of the decoder that do not fit them.
    pub fn target(&self, special: SpecialTokens) -> Result<Vec<u32>, String> {
        let length = self.labels.iter().rposition(|id| *id != IGNORED).map_or(0, |last| last + 1);
        let labels = &self.labels[..length];
        if labels.is_empty() && !self.labels.is_empty() {
            return Err(format!("field `{LABELS}` has no label that counts"));
        }
        if let Some(mask) = &self.decoder_mask {
            let shown = shown(DECODER_ATTENTION_MASK, mask)?;
            if let Some(at) = (0..length).find(|at| shown.get(*at) != Some(&true)) {
                return Err(format!(
                    "field `{DECODER_ATTENTION_MASK}` hides index {at}, and lstc lets the decoder see every token up to the \
                     last label that counts"
                ));
            }
        }
        let mut given = labels.to_vec();
        if let Some(input) = &self.decoder_input {
            given = self.behind_start(input, labels, special)?;
        }
        given.iter_mut().filter(|id| **id == IGNORED).for_each(|id| *id = special.pad);
        let mut ids = tokens(LABELS, &given)?;
        ids.iter_mut().zip(labels).filter(|(_, label)| **label == IGNORED).for_each(|(id, _)| *id |= HIDDEN);
        Ok(ids)
    }

    /// The labels, with the decoder's own tokens for those that do not count.
    fn behind_start(&self, input: &[i64], labels: &[i64], special: SpecialTokens) -> Result<Vec<i64>, String> {
        let name = DECODER_INPUT_IDS;
        match input.first() {
            Some(first) if *first == special.start => {}
            Some(first) => {
                return Err(format!(
                    "field `{name}` begins with token {first}, and the model's decoder with {}",
                    special.start
                ));
            }
            None => return Err(format!("field `{name}` is empty")),
        }
        if input.len() < labels.len() {
            return Err(format!("field `{name}` has {} tokens, and {} labels count", input.len(), labels.len()));
        }
        let mut tokens = labels.to_vec();
        for (index, id) in input.iter().enumerate().skip(1).take(labels.len().saturating_sub(1)) {
            match &mut tokens[index - 1] {
                label if *label == IGNORED => *label = *id,
                label if label == id => {}
                label => {
                    return Err(format!(
                        "field `{name}` has token {id} at index {index}, and `{LABELS}` has {label} before it: lstc gives \
                         the decoder the start token, then the labels"
                    ));
                }
            }
        }
        Ok(tokens)
    }
}

/// A mask as what it shows.
fn shown(name: &str, mask: &[i64]) -> Result<Vec<bool>, String> {
    let one = |(index, value): (usize, &i64)| match value {
        0 | 1 => Ok(*value == 1),
        other => Err(format!("field `{name}` has {other} at index {index}, but 0 or 1 is expected")),
    };
    mask.iter().enumerate().map(one).collect()
}

fn tokens(name: &str, ids: &[i64]) -> Result<Vec<u32>, String> {
    if ids.is_empty() {
        return Err(format!("field `{name}` is empty"));
    }
    let token = |(index, id): (usize, &i64)| {
        let token = u32::try_from(*id).ok().filter(|id| *id < HIDDEN);
        token.ok_or_else(|| format!("field `{name}` has {id} at index {index}, which is not a token id"))
    };
    ids.iter().enumerate().map(token).collect()
}
