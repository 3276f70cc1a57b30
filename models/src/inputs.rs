//! What a model's inputs are for: token indices of a tower, or a mask over its positions.

use lstc_graph::{Graph, ValueId};
use serde::{Deserialize, Serialize};

use crate::anatomy::{Anatomy, AttentionKind, Marks, PaddingMask, SublayerKind};

/// What a model is given through an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputRole {
    /// Token indices.
    Tokens,
    /// 1 for each position that may be attended to, 0 for padding.
    Mask,
    /// 1 for each position that is padding, 0 for the others.
    Padding,
}

/// An input of a recognised model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelInput {
    pub value: ValueId,
    /// Index of the tower in the anatomy.
    pub tower: usize,
    pub role: InputRole,
}

/// The inputs whose part is known, in the graph's order. A mask is what the bias of an attention is computed from; it
/// belongs to the tower whose positions are the keys.
pub fn model_inputs(graph: &Graph, anatomy: &Anatomy) -> Vec<ModelInput> {
    let mut found: Vec<ModelInput> = anatomy
        .towers
        .iter()
        .enumerate()
        .map(|(tower, t)| ModelInput { value: t.tokens, tower, role: InputRole::Tokens })
        .collect();
    for (index, tower) in anatomy.towers.iter().enumerate() {
        for layer in tower.blocks.iter().flat_map(|b| &b.sublayers) {
            let SublayerKind::Attention(attention) = &layer.kind else { continue };
            let keys = match attention.kind {
                AttentionKind::SelfAttention => index,
                AttentionKind::Cross => index.saturating_sub(1),
            };
            let masks: Vec<ValueId> = attention.bias.iter().flat_map(|b| b.values()).collect();
            let marks_padding = |value| attention.mask == Some(PaddingMask { input: value, marks: Marks::Padding });
            for value in inputs_behind(graph, &masks) {
                let role = if marks_padding(value) { InputRole::Padding } else { InputRole::Mask };
                if !found.iter().any(|f| f.value == value) {
                    found.push(ModelInput { value, tower: keys, role });
                }
            }
        }
    }
    found.sort_by_key(|f| graph.inputs.iter().position(|v| *v == f.value));
    found
}

/// The inputs whose contents nothing that is known reads, at most their sizes: an exporter that got one tensor for two
/// inputs leaves one of them unused.
pub fn unread_inputs(graph: &Graph, anatomy: &Anatomy) -> Vec<ValueId> {
    let read = model_inputs(graph, anatomy);
    graph.inputs.iter().copied().filter(|v| !read.iter().any(|r| r.value == *v)).collect()
}

/// The graph inputs whose contents, not only types and shapes, the values are computed from.
pub(crate) fn inputs_behind(graph: &Graph, values: &[ValueId]) -> Vec<ValueId> {
    let nodes = graph.makers_until(values.iter().copied(), |_| false);
    let read = nodes.iter().flat_map(|id| graph.node(*id).numbers()).chain(values.iter().copied());
    let mut inputs: Vec<ValueId> = read.filter(|v| graph.inputs.contains(v)).collect();
    inputs.sort_unstable();
    inputs.dedup();
    inputs
}
