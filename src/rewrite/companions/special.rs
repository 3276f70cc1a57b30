//! The ids of a model's special tokens, and where each comes from.
//!
//! Everything beside the model that names one is read, and all must agree; what the user says overrides them. If nothing names
//! one, the family's own is taken if all that is known fits the family; otherwise the model is refused: a decoder that begins
//! with a token other than the one it was trained with still computes something, and nothing shows that it is wrong.

use anyhow::{anyhow, bail};
use lstc_base::report::Hinted;
use lstc_data::Reading;
use lstc_models::{SpecialTokens, families};
use lstc_tuned::tokens::{Origins, Settled};
use serde::Deserialize;

use super::Companions;

const GENERATION: &str = "generation_config.json";
/// Where the names of special tokens are, as Hugging Face transformers writes them.
const NAMES: [&str; 2] = [super::TOKENIZER_CONFIGURATION, "special_tokens_map.json"];

/// The ids that a configuration gives to the special tokens.
#[derive(Deserialize)]
struct Configuration {
    pad_token_id: Option<OneOrMore>,
    eos_token_id: Option<OneOrMore>,
    decoder_start_token_id: Option<OneOrMore>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a token id must be an integer, or a list of integers")]
enum OneOrMore {
    One(i64),
    More(Vec<i64>),
}

#[derive(Deserialize)]
struct TokenNames {
    pad_token: Option<TokenName>,
    eos_token: Option<TokenName>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TokenName {
    Plain(String),
    Added { content: String },
}

/// The ids that one source says a token may have.
struct Said {
    ids: Vec<i64>,
    by: String,
}

/// What is known about a token.
struct Known {
    what: &'static str,
    flag: &'static str,
    given: Option<i64>,
    said: Vec<Said>,
}

impl Known {
    fn new(what: &'static str, flag: &'static str, given: Option<i64>) -> Known {
        Known { what, flag, given, said: Vec::new() }
    }

    fn says(&mut self, ids: Option<OneOrMore>, by: &str) {
        let ids = match ids {
            Some(OneOrMore::One(id)) => vec![id],
            Some(OneOrMore::More(ids)) => ids,
            None => Vec::new(),
        };
        if !ids.is_empty() {
            self.said.push(Said { ids, by: by.to_owned() });
        }
    }

    /// The id, and where it comes from.
    ///
    /// # Errors
    /// Two sources that give different ids.
    fn settled(&self) -> Result<Option<(i64, String)>, String> {
        if let Some(id) = self.given {
            return Ok(Some((id, self.flag.to_owned())));
        }
        let Some((first, others)) = self.said.split_first() else { return Ok(None) };
        let agreed = first.ids.iter().find(|id| others.iter().all(|other| other.ids.contains(id)));
        let list = |said: &Said| said.ids.iter().map(i64::to_string).collect::<Vec<_>>().join(" or ");
        match agreed {
            Some(id) => {
                let by: Vec<&str> = self.said.iter().map(|said| said.by.as_str()).collect();
                Ok(Some((*id, by.join(", "))))
            }
            None => {
                let all: Vec<String> = self.said.iter().map(|said| format!("{} in {}", list(said), said.by)).collect();
                Err(format!("the {} is {}", self.what, all.join(", and ")))
            }
        }
    }
}

/// The special tokens of a model with a head of `vocabulary` rows, and where they come from.
///
/// # Errors
/// A file that cannot be read; two that contradict each other; a token that nothing names, if the family's own
/// does not fit; an id that the model does not have.
pub fn special_tokens(
    companions: &Companions,
    family: &str,
    vocabulary: usize,
    reading: &Reading,
) -> anyhow::Result<Settled> {
    let known = all_known(companions, reading)?;
    let settled: Vec<_> = known.iter().map(Known::settled).collect();
    let flags = known.iter().map(|k| k.flag).collect::<Vec<_>>().join(", ");
    let problems: Vec<String> = settled.iter().filter_map(|s| s.clone().err()).collect();
    if !problems.is_empty() {
        let error = anyhow!("the files beside the model contradict each other: {}", problems.join("; "));
        return Err(Hinted::new(error, format!("correct the one that is wrong, or set it with {flags}")).into());
    }
    let mut settled = settled.into_iter().map(Result::unwrap_or_default);
    let (pad, end, start) = (settled.next().flatten(), settled.next().flatten(), settled.next().flatten());
    let own = families().into_iter().find(|f| f.name == family).expect("a recognised model has a family").tokens;
    let fits = |found: &Option<(i64, String)>, id: i64| found.as_ref().is_none_or(|(found, _)| *found == id);
    let fits = fits(&pad, own.pad) && fits(&end, own.end);
    let own_ids = [own.pad, own.end, own.start];
    let settled = [pad, end, start];
    let open: Vec<&Known> = known.iter().zip(&settled).filter(|(_, found)| found.is_none()).map(|(k, _)| k).collect();
    if !fits && !open.is_empty() {
        let list = |part: fn(&Known) -> &'static str| open.iter().map(|k| part(k)).collect::<Vec<_>>();
        let error = anyhow!(
            "nothing beside the model names its {}, and its other special tokens are not those of {}",
            list(|k| k.what).join(" and its "),
            family.to_uppercase()
        );
        let flags = list(|k| k.flag).join(" ID and ");
        return Err(
            Hinted::new(error, format!("set it with {flags} ID, or put the model's config.json beside it")).into()
        );
    }
    let by_convention = || format!("{}'s default: no file beside the model names it", family.to_uppercase());
    let mut settled =
        settled.into_iter().zip(own_ids).map(|(found, own)| found.unwrap_or_else(|| (own, by_convention())));
    let [pad, end, start] = std::array::from_fn(|_| settled.next().expect("there are three"));
    for ((id, by), known) in [&pad, &end, &start].into_iter().zip(&known) {
        if usize::try_from(*id).map_or(true, |id| id >= vocabulary) {
            bail!("the {} is {id} ({by}), but the model's LM head has {vocabulary} tokens", known.what);
        }
    }
    let ids = SpecialTokens { pad: pad.0, end: end.0, start: start.0 };
    Ok(Settled { ids, from: Origins { pad: pad.1, end: end.1, start: start.1 } })
}

/// What everything beside the model says.
fn all_known(companions: &Companions, reading: &Reading) -> anyhow::Result<[Known; 3]> {
    let mut pad = Known::new("padding token", "--pad-token-id", reading.pad_token_id);
    let mut end = Known::new("end token", "--eos-token-id", reading.eos_token_id);
    let mut start = Known::new("decoder's start token", "--decoder-start-token-id", reading.decoder_start_token_id);
    for file in [super::CONFIGURATION, GENERATION] {
        if let Some((read, name)) = companions.read::<Configuration>(file)? {
            pad.says(read.pad_token_id, &name);
            end.says(read.eos_token_id, &name);
            start.says(read.decoder_start_token_id, &name);
        }
    }
    if let Some((vocabulary, name)) = companions.vocabulary()? {
        pad.says(vocabulary.pad.map(|id| OneOrMore::One(i64::from(id))), &format!("the padding of {name}"));
        end.says(vocabulary.end.map(|id| OneOrMore::One(i64::from(id))), &format!("the post-processor of {name}"));
        let mut has_name = false;
        for file in NAMES {
            let Some((names, name)) = companions.read::<TokenNames>(file)? else { continue };
            has_name |= names.pad_token.is_some();
            let id = |token: Option<TokenName>| {
                let id = vocabulary.id(token?.name())?;
                Some(OneOrMore::One(i64::from(id)))
            };
            pad.says(id(names.pad_token), &name);
            end.says(id(names.eos_token), &name);
        }
        // If nothing names the padding token, the one with its usual name.
        let called = ["<pad>", "[PAD]"].into_iter().find_map(|token| Some((vocabulary.id(token)?, token)));
        if let (Some((id, token)), true) = (called, vocabulary.pad.is_none() && !has_name) {
            pad.says(Some(OneOrMore::One(i64::from(id))), &format!("`{token}` of {name}"));
        }
    }
    Ok([pad, end, start])
}

impl TokenName {
    fn name(&self) -> &str {
        match self {
            TokenName::Plain(name) | TokenName::Added { content: name } => name,
        }
    }
}
