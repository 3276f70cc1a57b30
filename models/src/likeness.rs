//! What a model that lstc does not read looks like: for people, so that a refusal shows the forest before the trees.
//!
//! **Invariant:** judged by what a graph computes: names and sizes play no part, and only messages depend on the judgement.

use std::collections::HashSet;
use std::fmt;

use lstc_graph::{DType, Graph, NodeId, ValueId};
use serde::Serialize;

use crate::restate::restate;
use crate::survey::{Sighting, Survey};

mod input;

pub use input::Use;

/// What was found in a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Likeness {
    pub build: Build,
    pub self_attentions: usize,
    pub cross_attentions: usize,
    /// Of the self-attentions, those that let no position see a later one.
    pub causal: usize,
    pub norm: Option<Norms>,
    pub placement: Option<Placement>,
    pub positions: Vec<Positions>,
    /// Products with an added term of low rank.
    pub low_rank: usize,
    /// Sums, softmaxes and other nodes than products that read quantised activations.
    pub quantised_elsewhere: usize,
    /// What each input is for, by name.
    pub inputs: Vec<(String, Use)>,
}

/// How a model is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Build {
    /// No attention was found.
    Convolutions,
    Recurrent,
    NoAttention,
    Encoder,
    DecoderOnly,
    /// A decoder that reads an encoder's output, without the encoder.
    DecoderHalf,
    /// A decoder that reads keys and values of earlier tokens.
    CachedStep,
    EncoderDecoder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Norms {
    Rms,
    Layer,
}

/// Where norms are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// On the branches, before each sublayer.
    Before,
    /// On the residual stream, after each sublayer.
    After,
}

/// How a model tells positions apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Positions {
    /// Queries and keys are turned.
    Rotary,
    /// Biases on the scores.
    Relative,
    /// Added to the embedding.
    Absolute,
}

impl Likeness {
    /// Looks at a graph.
    pub fn of(graph: &Graph) -> Likeness {
        match restate(graph) {
            Some(view) => Likeness::plain(&view.graph),
            None => Likeness::plain(graph),
        }
    }

    /// Looks at a graph of plain operators.
    pub(crate) fn plain(graph: &Graph) -> Likeness {
        let survey = Survey::new(graph);
        let crosses: Vec<&Sighting> = survey.attentions.iter().filter(|a| a.crosses).collect();
        let selves: Vec<&Sighting> = survey.attentions.iter().filter(|a| !a.crosses).collect();
        let causal = selves.iter().filter(|a| survey.is_causal(a)).count();
        let uses: Vec<(ValueId, Use)> = graph.inputs.iter().map(|v| (*v, input::of(&survey, *v))).collect();
        let is = |wanted: Use| uses.iter().any(|(_, found)| *found == wanted);
        let has = |op: &str| graph.node_ids().any(|id| graph.node(id).is(op));
        let build = if survey.attentions.is_empty() {
            match () {
                () if has("LSTM") || has("GRU") || has("RNN") => Build::Recurrent,
                () if has("Conv") => Build::Convolutions,
                () => Build::NoAttention,
            }
        } else if is(Use::Cache) {
            Build::CachedStep
        } else if is(Use::Context) {
            Build::DecoderHalf
        } else if !crosses.is_empty() {
            Build::EncoderDecoder
        } else if causal > 0 && !are_apart(&survey, &uses) {
            Build::DecoderOnly
        } else {
            Build::Encoder
        };
        let (norm, placement) = norms(&survey);
        Likeness {
            build,
            self_attentions: selves.len(),
            cross_attentions: crosses.len(),
            causal,
            norm,
            placement,
            positions: positions(&survey),
            low_rank: survey.low_rank().len(),
            quantised_elsewhere: survey.quantised_elsewhere(),
            inputs: uses.into_iter().map(|(v, used)| (graph.value(v).name.clone(), used)).collect(),
        }
    }

    /// True for a model that looks as lstc expects, except for details.
    pub fn is_t5(&self) -> bool {
        let given = |used: &Use| matches!(used, Use::Tokens | Use::Mask | Use::Unknown);
        self.build == Build::EncoderDecoder && self.is_like_t5() && self.inputs.iter().all(|(_, used)| given(used))
    }

    fn is_like_t5(&self) -> bool {
        self.norm == Some(Norms::Rms)
            && self.placement != Some(Placement::After)
            && !self.positions.iter().any(|p| *p != Positions::Relative)
    }

    /// The inputs of a use, by name.
    fn named(&self, wanted: Use) -> String {
        const LISTED: usize = 2;
        let all: Vec<&str> =
            self.inputs.iter().filter(|(_, used)| *used == wanted).map(|(name, _)| name.as_str()).collect();
        let names: Vec<String> = all.iter().take(LISTED).map(|name| format!("`{name}`")).collect();
        match all.len().saturating_sub(LISTED) {
            0 => listed(&names),
            more => format!("{} and {more} more", names.join(", ")),
        }
    }

    fn is(&self, wanted: Use) -> bool {
        self.inputs.iter().any(|(_, used)| *used == wanted)
    }

    /// `layer norm after each sublayer and absolute positions`
    fn make(&self) -> Option<String> {
        let norm = self.norm.map(|norm| {
            let name = match norm {
                Norms::Rms => "RMS norm",
                Norms::Layer => "layer norm",
            };
            match self.placement {
                Some(Placement::After) => format!("{name} after each sublayer"),
                Some(Placement::Before) | None => name.to_owned(),
            }
        });
        let positions = self.positions.iter().map(|p| match p {
            Positions::Rotary => "rotary positions",
            Positions::Relative => "relative positions",
            Positions::Absolute => "absolute positions",
        });
        let parts: Vec<String> = norm.into_iter().chain(positions.map(str::to_owned)).collect();
        (!parts.is_empty()).then(|| listed(&parts))
    }

    /// A well-known model of that kind.
    fn known(&self) -> Option<&'static str> {
        let at = |positions: Positions| self.positions.contains(&positions);
        let (rms, layer) = (self.norm == Some(Norms::Rms), self.norm == Some(Norms::Layer));
        match self.build {
            Build::Encoder if self.is(Use::Pictures) && self.is(Use::Tokens) => Some("CLIP"),
            Build::Encoder if self.is(Use::Pictures) => Some("ViT"),
            _ if self.is(Use::Sound) => Some("Whisper"),
            Build::DecoderOnly if rms && at(Positions::Rotary) => Some("LLaMA"),
            Build::DecoderOnly if layer && at(Positions::Rotary) => Some("GPT-NeoX"),
            Build::DecoderOnly if layer && at(Positions::Absolute) => Some("GPT-2"),
            Build::Encoder if layer && self.placement == Some(Placement::After) => Some("BERT"),
            Build::EncoderDecoder if layer && at(Positions::Absolute) => Some("BART"),
            Build::EncoderDecoder if self.is(Use::Features) && rms => Some("Pix2Struct"),
            _ => None,
        }
    }

    /// What the model is, without the details.
    fn noun(&self) -> String {
        let is = |used: Use| self.is(used);
        let named = |used: Use| self.named(used);
        let t5 = self.is_like_t5();
        let whole = if t5 { "a T5" } else { "an encoder-decoder model" };
        match self.build {
            Build::Convolutions => "a convolutional network without attention".to_owned(),
            Build::Recurrent => "a recurrent network without attention".to_owned(),
            Build::NoAttention => "a network without attention".to_owned(),
            Build::Encoder if is(Use::Pictures) && is(Use::Tokens) => {
                format!("a model of pictures, {}, and texts", named(Use::Pictures))
            }
            Build::Encoder if is(Use::Pictures) => {
                format!("a vision encoder that cuts pictures, {}, into patches", named(Use::Pictures))
            }
            Build::Encoder if is(Use::Sound) => format!("an encoder of speech or sound, {}", named(Use::Sound)),
            Build::Encoder if is(Use::Embedded) => {
                format!(
                    "an encoder-only model that takes embeddings, {}, instead of token indices",
                    named(Use::Embedded)
                )
            }
            Build::Encoder if self.is_t5_encoder() => "the encoder of a T5 without its decoder".to_owned(),
            Build::Encoder => "an encoder-only model".to_owned(),
            Build::DecoderOnly if is(Use::Pictures) => {
                format!("a decoder-only model of pictures, {}", named(Use::Pictures))
            }
            Build::DecoderOnly => "a decoder-only language model".to_owned(),
            Build::DecoderHalf => {
                let subject = if t5 { "the decoder of a T5" } else { "a decoder" };
                format!("{subject} without its encoder, whose output it takes as {}", named(Use::Context))
            }
            Build::CachedStep => {
                format!("a step of a decoder that reads a cache of keys and values, {}", named(Use::Cache))
            }
            Build::EncoderDecoder if is(Use::Pictures) => {
                format!("a vision encoder of pictures, {}, with a decoder of text", named(Use::Pictures))
            }
            Build::EncoderDecoder if is(Use::Sound) => {
                format!("a model that turns speech or sound into text, {}", named(Use::Sound))
            }
            Build::EncoderDecoder if is(Use::Features) => {
                format!(
                    "an encoder-decoder model that takes features, {}, instead of token indices",
                    named(Use::Features)
                )
            }
            Build::EncoderDecoder if is(Use::Embedded) => {
                format!("{whole} that takes embeddings, {}, instead of token indices", named(Use::Embedded))
            }
            Build::EncoderDecoder if is(Use::Computed) => {
                format!("{whole} whose decoder's tokens are computed in the graph, from {}", named(Use::Computed))
            }
            Build::EncoderDecoder => whole.to_owned(),
        }
    }

    fn is_t5_encoder(&self) -> bool {
        self.build == Build::Encoder && self.is_like_t5() && self.positions == [Positions::Relative]
    }

    /// What to do about it.
    pub fn advice(&self) -> Option<String> {
        if self.low_rank > 0 {
            return Some("merge the LoRA before the export: `model = model.merge_and_unload()`".to_owned());
        }
        if self.quantised_elsewhere > 0 {
            return Some(
                "quantise the products alone, not the sums and softmaxes between them: \
                 `quantize_static(..., op_types_to_quantize=[\"MatMul\"])`"
                    .to_owned(),
            );
        }
        Some(match self.build {
            Build::CachedStep => {
                "training needs the decoder without a cache: decoder_model.onnx of an Optimum export, or an export with \
                 `use_cache=False`"
                    .to_owned()
            }
            Build::DecoderHalf if self.is_like_t5() => {
                "pass the encoder's and the decoder's file, or the folder that holds both".to_owned()
            }
            Build::Encoder if self.is_t5_encoder() => {
                "pass the decoder's file too, or the folder that holds both; an encoder alone is not supported"
                    .to_owned()
            }
            Build::EncoderDecoder if self.is_like_t5() && self.is(Use::Computed) => format!(
                "export it with `decoder_input_ids` as an input instead of {}: \
                 `torch.onnx.export(model, (input_ids, attention_mask, decoder_input_ids), ...)`; lstc computes the loss itself",
                self.named(Use::Computed)
            ),
            Build::EncoderDecoder if self.is_like_t5() && self.is(Use::Embedded) => {
                format!("export it with `input_ids` as an input instead of {}", self.named(Use::Embedded))
            }
            Build::EncoderDecoder if self.is_like_t5() && self.is(Use::Unknown) => {
                "export the logits alone: `torch.onnx.export(model, (input_ids, attention_mask, decoder_input_ids), ...)`; lstc \
                 computes the loss itself"
                    .to_owned()
            }
            _ => return None,
        })
    }

    /// What the model looks like, and what lstc reads.
    pub fn verdict(&self) -> String {
        match self.is_t5() {
            true => format!("looks like {self}, with parts that lstc does not understand"),
            false => format!("looks like {self}; lstc reads encoder-decoder models of the T5 family"),
        }
    }

    /// What was found, a line each.
    pub fn seen(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let counts = format!("{} self-attention, {} cross-attention", self.self_attentions, self.cross_attentions);
        lines.push(match self.causal {
            0 => counts,
            causal => format!("{counts}; {causal} causal"),
        });
        lines.extend(self.make());
        lines.extend(self.inputs.iter().map(|(name, used)| format!("`{name}`: {used}")));
        lines
    }
}

impl fmt::Display for Likeness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noun = self.noun();
        f.write_str(&noun)?;
        let known = self.known();
        let says_all = known.is_none() && self.is_like_t5() && self.build != Build::DecoderOnly;
        if let Some(make) = self.make().filter(|_| !says_all) {
            let comma = if noun.contains(", ") { "," } else { "" };
            write!(f, "{comma} with {make}")?;
        }
        if let Some(known) = known {
            write!(f, " ({known}-like)")?;
        }
        match self.low_rank {
            0 => Ok(()),
            1 => f.write_str(", with an unmerged LoRA at one matrix"),
            many => write!(f, ", with an unmerged LoRA at {many} matrices"),
        }
    }
}

/// `a, b and c`
fn listed(parts: &[String]) -> String {
    match parts {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

/// True for pictures and texts that no attention brings together.
fn are_apart(survey: &Survey, uses: &[(ValueId, Use)]) -> bool {
    let of = |wanted: Use| {
        let inputs = uses.iter().filter(|(_, used)| *used == wanted);
        inputs.fold(0, |all, (input, _)| all | survey.contents(*input))
    };
    let (pictures, tokens) = (of(Use::Pictures), of(Use::Tokens));
    let joins = |a: &Sighting| survey.contents(a.queries) & pictures != 0 && survey.contents(a.queries) & tokens != 0;
    pictures != 0 && tokens != 0 && !survey.attentions.iter().any(joins)
}

/// What most norms are, and where most of them stand.
fn norms(survey: &Survey) -> (Option<Norms>, Option<Placement>) {
    let graph = survey.graph;
    let (mut rms, mut layer, mut after, mut before) = (0, 0, 0, 0);
    for id in graph.node_ids() {
        let node = graph.node(id);
        let (norm, made) = match node.op.as_str() {
            "LayerNormalization" => (Norms::Layer, node.output(0)),
            "RMSNormalization" | "SimplifiedLayerNormalization" => (Norms::Rms, node.output(0)),
            "ReduceMean" => match spelled(survey, node.input(0)) {
                Some(norm) => (norm, None),
                None => continue,
            },
            // The last node of a norm that is spelled out.
            "Mul" | "Add" if node.output(0).is_some_and(|v| ends_norm(survey, v)) => {
                match is_on_stream(survey, node.output(0)) {
                    true => after += 1,
                    false => before += 1,
                }
                continue;
            }
            _ => continue,
        };
        match norm {
            Norms::Rms => rms += 1,
            Norms::Layer => layer += 1,
        }
        if made.is_some() {
            match is_on_stream(survey, made) {
                true => after += 1,
                false => before += 1,
            }
        }
    }
    let norm = match (rms, layer) {
        (0, 0) => None,
        _ => Some(if rms > layer { Norms::Rms } else { Norms::Layer }),
    };
    // The first norm after the embedding may be on the stream of a model whose others stand before its sublayers, and the last of one
    // whose others stand after is on none.
    let placement = match (before, after) {
        (0, 0) => None,
        _ => Some(if after >= before.max(2) { Placement::After } else { Placement::Before }),
    };
    (norm, placement)
}

/// The norm whose mean of squares this is the operand of.
fn spelled(survey: &Survey, squared: Option<ValueId>) -> Option<Norms> {
    let graph = survey.graph;
    let square = graph.node(graph.producer_of(survey.copied(squared?))?.0);
    let of_itself = square.is("Mul") && square.input(0) == square.input(1);
    if !(square.is("Pow") || of_itself) || square.input(0).is_none_or(|x| survey.contents(x) == 0) {
        return None;
    }
    let of = survey.copied(square.input(0)?);
    let centred = graph.producer_of(of).is_some_and(|(id, _)| graph.node(id).is("Sub"));
    Some(if centred { Norms::Layer } else { Norms::Rms })
}

/// True for the result of a norm that is spelled out, its gain and shift applied.
fn ends_norm(survey: &Survey, value: ValueId) -> bool {
    let shifts = |v: ValueId| {
        survey.uses.of(v).iter().any(|(id, _)| {
            let node = survey.graph.node(*id);
            let by_constant = || node.inputs.iter().flatten().any(|v| survey.contents(*v) == 0);
            (node.is("Add") || node.is("Mul")) && by_constant()
        })
    };
    survey.normed(value).is_some() && !shifts(value)
}

/// True for a value that is added to another computed one.
fn is_on_stream(survey: &Survey, value: Option<ValueId>) -> bool {
    let Some(value) = value else { return false };
    survey.uses.of(value).iter().any(|(id, _)| {
        let node = survey.graph.node(*id);
        node.is("Add") && node.inputs.iter().flatten().all(|v| survey.contents(*v) != 0)
    })
}

/// How a model tells positions apart, as far as that is seen.
fn positions(survey: &Survey) -> Vec<Positions> {
    let graph = survey.graph;
    let selves: Vec<&Sighting> = survey.attentions.iter().filter(|a| !a.crosses).collect();
    let mut on_scores: HashSet<NodeId> = HashSet::new();
    let mut relative = false;
    for attention in &survey.attentions {
        let terms = graph.makers_until(attention.terms.iter().copied(), |_| false);
        let folded = || attention.terms.iter().any(|v| is_rows(graph, *v)) && !survey.is_causal(attention);
        relative |= !attention.crosses && (folded() || terms.iter().any(|id| reads_by_place(survey, *id)));
        on_scores.extend(terms.iter().chain(&attention.scored));
    }
    let beside = |id: &NodeId| !on_scores.contains(id);
    let absolute = graph.node_ids().filter(beside).any(|id| adds_by_place(survey, id));
    let rotary = selves.iter().any(|a| survey.sources(a.queries).rotates);
    [(rotary, Positions::Rotary), (relative, Positions::Relative), (absolute, Positions::Absolute)]
        .into_iter()
        .filter_map(|(seen, positions)| seen.then_some(positions))
        .collect()
}

/// True for a constant of floats with several rows and columns, not all alike.
fn is_rows(graph: &Graph, value: ValueId) -> bool {
    graph.weight(value).is_some_and(|w| {
        let last = |from_end: usize| w.dims().len().checked_sub(from_end).map_or(0, |i| w.dims()[i]);
        let mut elements = w.bytes().chunks_exact(w.dtype().size());
        let first = elements.next();
        w.dtype().is_float() && last(1) > 1 && last(2) > 1 && !elements.all(|element| Some(element) == first)
    })
}

/// True for a table of learned numbers that is read at places which no content decides.
fn reads_by_place(survey: &Survey, id: NodeId) -> bool {
    let (graph, node) = (survey.graph, survey.graph.node(id));
    let at_places = || node.input(1).is_some_and(|v| survey.contents(v) == 0);
    node.is("Gather") && node.input(0).is_some_and(|v| is_rows(graph, v)) && at_places()
}

/// True for a sum with rows by their places.
fn adds_by_place(survey: &Survey, id: NodeId) -> bool {
    let (graph, node) = (survey.graph, survey.graph.node(id));
    let cut = |v: ValueId| {
        graph.producer_of(survey.copied(v)).is_some_and(|(id, _)| {
            let made = ["Gather", "Slice", "Expand"].iter().any(|op| graph.node(id).is(op));
            made && survey.contents(v) == 0 && graph.value(v).dtype.is_some_and(DType::is_float)
        })
    };
    node.is("Add") && node.inputs.iter().flatten().any(|v| is_rows(graph, *v) || cut(*v))
        || input::counts_positions(survey, id)
}
