//! What a model's inputs are for, as far as that can be seen.

use std::collections::HashSet;
use std::fmt;

use lstc_graph::{DType, NodeId, ValueId};
use serde::Serialize;

use crate::survey::Survey;

/// Nodes that are looked at after an input.
const NEAR: usize = 256;

/// What an input is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Use {
    /// Indices of a table's rows.
    Tokens,
    /// The graph computes such indices from it.
    Computed,
    /// It enters a residual stream as it is.
    Embedded,
    /// It enters one through a product with a matrix.
    Features,
    /// It enters one through a convolution over two axes.
    Pictures,
    /// It enters one through a convolution over one axis.
    Sound,
    /// Cross-attention reads it: the output of an encoder.
    Context,
    /// Keys and values of an attention.
    Cache,
    Mask,
    /// Nothing that is known is computed from its contents.
    Unknown,
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Use::Tokens => "token indices",
            Use::Computed => "token indices are computed from it in the graph",
            Use::Embedded => "embeddings: it enters the residual stream as it is",
            Use::Features => "features: it enters the residual stream through a product with a matrix",
            Use::Pictures => "pictures: a convolution over two axes reads it",
            Use::Sound => "sound, or another series: a convolution over one axis reads it",
            Use::Context => "the output of an encoder: cross-attention reads it",
            Use::Cache => "a cache: keys or values of an attention",
            Use::Mask => "a mask: it goes into attention scores alone",
            Use::Unknown => "not known",
        })
    }
}

/// What an input is for.
pub fn of(survey: &Survey, input: ValueId) -> Use {
    let graph = survey.graph;
    let is_float = graph.value(input).dtype.is_some_and(DType::is_float);
    let rank = graph.shape(input).map(|s| s.len());
    if is_float {
        let cached = survey.attentions.iter().any(|a| {
            let from = |v: ValueId| survey.sources(v).inputs.contains(&input);
            from(a.keys) || a.values.is_some_and(from)
        });
        if cached && rank == Some(4) {
            return Use::Cache;
        }
        let is_context = |a: &&crate::survey::Sighting| survey.sources(a.keys).projected.contains(&input);
        if rank == Some(3) && survey.attentions.iter().filter(|a| a.crosses).any(|a| is_context(&a)) {
            return Use::Context;
        }
    }
    let behind = Behind::new(survey, input);
    if behind.looked_up {
        Use::Tokens
    } else if let Some(axes) = behind.convolved {
        if axes == 2 { Use::Pictures } else { Use::Sound }
    } else if is_float && rank.is_some_and(|r| r >= 3) && (behind.on_stream || behind.projected) {
        if behind.on_stream { Use::Embedded } else { Use::Features }
    } else if behind.computed {
        Use::Computed
    } else if survey
        .attentions
        .iter()
        .any(|a| a.terms.iter().any(|v| survey.contents(*v) & survey.contents(input) != 0))
    {
        Use::Mask
    } else {
        Use::Unknown
    }
}

/// What first reads an input, after what moves it.
#[derive(Default)]
struct Behind {
    /// A table is read at it, or at what is a copy of it.
    looked_up: bool,
    /// A table is read at what is computed from it.
    computed: bool,
    convolved: Option<usize>,
    projected: bool,
    /// It is normed, or a residual add reads it.
    on_stream: bool,
}

impl Behind {
    fn new(survey: &Survey, input: ValueId) -> Behind {
        const MOVES: [&str; 12] = [
            "Identity",
            "Cast",
            "Dropout",
            "Reshape",
            "Unsqueeze",
            "Squeeze",
            "Flatten",
            "Transpose",
            "Slice",
            "Expand",
            "Pad",
            "Clip",
        ];
        let graph = survey.graph;
        let mut found = Behind::default();
        let mut seen = HashSet::new();
        // A table of position biases is read at distances.
        let terms = survey.attentions.iter().flat_map(|attention| attention.terms.iter().copied());
        let on_scores = graph.makers_until(terms, |_| false);
        // Whether a value still holds the input's numbers, and no others.
        let mut open = vec![(input, true)];
        while let Some((value, moved)) = open.pop() {
            for (id, slot) in survey.uses.of(value) {
                if seen.len() > NEAR || !seen.insert(*id) {
                    continue;
                }
                let node = graph.node(*id);
                let constant = |slot: usize| node.input(slot).is_some_and(|v| survey.contents(v) == 0);
                let is_integer = graph.value(value).dtype.is_some_and(|d| !d.is_float());
                match node.op.as_str() {
                    _ if !node.reads_numbers(*slot) => {}
                    "CumSum" | "Softmax" => {}
                    "Gather" if on_scores.contains(id) => {}
                    "Gather" if *slot == 1 && constant(0) && is_table(survey, node.input(0)) => {
                        let copies = moved && !steps_over(survey, value);
                        found.looked_up |= copies;
                        found.computed |= !copies;
                    }
                    "Conv" if *slot == 0 => {
                        let weight = node.input(1).and_then(|w| graph.shape(w));
                        found.convolved.get_or_insert(weight.map_or(2, |w| w.len().saturating_sub(2)));
                    }
                    _ if survey.linear(node) == Some(value) => found.projected = true,
                    "Pow"
                    | "ReduceMean"
                    | "LayerNormalization"
                    | "RMSNormalization"
                    | "SimplifiedLayerNormalization"
                        if !is_integer =>
                    {
                        found.on_stream = true;
                    }
                    "Add" if !is_integer && graph.shape(value).is_some_and(|s| s.len() == 3) => found.on_stream = true,
                    op if MOVES.contains(&op) => open.extend(node.outputs.iter().flatten().map(|v| (*v, moved))),
                    // Indices are still indices after a selection or a shift, and numbers after a scale.
                    _ => open.extend(node.outputs.iter().flatten().map(|v| (*v, false))),
                }
            }
        }
        found
    }
}

/// A constant table of floats.
fn is_table(survey: &Survey, value: Option<ValueId>) -> bool {
    let Some(value) = value else { return false };
    let float = survey.graph.value(value).dtype.is_some_and(DType::is_float);
    let integers = || survey.graph.weight(value).is_some_and(|w| w.elements() > 1);
    survey.graph.shape(value).is_some_and(|s| s.len() == 2) && (float || integers())
}

/// True for indices from which some are left out, as a shift by one position does.
fn steps_over(survey: &Survey, value: ValueId) -> bool {
    survey.graph.producer_of(survey.copied(value)).is_some_and(|(id, _)| survey.graph.node(id).is("Slice"))
}

/// True for a table that is read at positions that are counted from a mask.
pub fn counts_positions(survey: &Survey, id: NodeId) -> bool {
    let node = survey.graph.node(id);
    let counted = |v: ValueId| {
        let mut value = v;
        for _ in 0..16 {
            let Some((id, _)) = survey.graph.producer_of(survey.copied(value)) else { return false };
            let node = survey.graph.node(id);
            if node.is("CumSum") {
                return true;
            }
            let Some(next) = node.inputs.iter().flatten().copied().find(|v| survey.contents(*v) != 0) else {
                return false;
            };
            value = next;
        }
        false
    };
    node.is("Gather") && is_table(survey, node.input(0)) && node.input(1).is_some_and(counted)
}
