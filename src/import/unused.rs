//! What a state dict holds besides the parameters that were imported.

use std::collections::HashSet;

use safetensors::SafeTensors;
use serde::Serialize;

/// What a tensor that was not used is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Backbone,
    /// Gates that the rewritten model does not train: of blocks that it drops, or all where they are fixed.
    Gate,
    /// Side blocks and down-projections of blocks that the rewritten model drops.
    DroppedBlock,
    /// Another part of a side network, such as a bias that the rewritten model does not have.
    OtherSide,
    Optimizer,
    Other,
}

impl Kind {
    /// The name in a report.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Backbone => "the backbone",
            Kind::Gate => "gates of blocks that are not kept, or that are fixed",
            Kind::DroppedBlock => "side blocks of blocks that are not kept",
            Kind::OtherSide => "other parts of a side network",
            Kind::Optimizer => "optimizer state",
            Kind::Other => "others",
        }
    }

    /// True for what the network in the file computes with, but the rewritten model does not.
    pub fn is_loss(self) -> bool {
        matches!(self, Kind::DroppedBlock | Kind::OtherSide)
    }

    /// The kind of a tensor, by its name in the reference's state dict.
    fn of(name: &str) -> Kind {
        const BACKBONE: [&str; 4] = ["block.", "embed_tokens.", "final_layer_norm.", "dropout."];
        let inner = name.strip_prefix("encoder.").or_else(|| name.strip_prefix("decoder."));
        let of_stack = |parts: &[&str]| inner.is_some_and(|inner| parts.iter().any(|p| inner.starts_with(p)));
        if name.starts_with("adam.") {
            Kind::Optimizer
        } else if name.starts_with("shared.") || name.starts_with("lm_head.") || of_stack(&BACKBONE) {
            Kind::Backbone
        } else if name.contains("side_gate") {
            Kind::Gate
        } else if of_stack(&["side_block.", "side_downsamples."]) {
            Kind::DroppedBlock
        } else if name.contains("side") {
            Kind::OtherSide
        } else {
            Kind::Other
        }
    }
}

/// Tensors of one kind.
#[derive(Debug, Serialize)]
pub struct Unused {
    pub kind: Kind,
    pub tensors: usize,
    pub elements: usize,
    /// Some of their names.
    pub examples: Vec<String>,
}

/// The number of names that a kind lists.
const MAX_EXAMPLES: usize = 3;

/// The tensors of a file that were not read, by kind.
pub fn by_group(tensors: &SafeTensors, prefix: &str, read: &HashSet<String>) -> Vec<Unused> {
    let mut names = tensors.names();
    names.sort_unstable();
    let mut kinds: Vec<Unused> = Vec::new();
    for name in names.into_iter().filter(|name| !read.contains(*name)) {
        let kind = Kind::of(name.strip_prefix(prefix).unwrap_or(name));
        let elements = tensors.tensor(name).map_or(0, |view| view.shape().iter().product());
        let at = kinds.iter().position(|k| k.kind == kind).unwrap_or_else(|| {
            kinds.push(Unused { kind, tensors: 0, elements: 0, examples: Vec::new() });
            kinds.len() - 1
        });
        let group = &mut kinds[at];
        group.tensors += 1;
        group.elements += elements;
        if group.examples.len() < MAX_EXAMPLES {
            group.examples.push(name.to_owned());
        }
    }
    kinds.sort_by_key(|k| k.kind);
    kinds
}

#[cfg(test)]
mod tests {
    use super::Kind;

    #[test]
    fn tensors_are_told_apart_by_the_names_of_the_reference() {
        let kinds = [
            ("shared.weight", Kind::Backbone),
            ("encoder.block.0.layer.0.SelfAttention.q.weight", Kind::Backbone),
            ("decoder.final_layer_norm.weight", Kind::Backbone),
            ("encoder.side_gate_params.4", Kind::Gate),
            ("decoder.side_block.4.layer.0.layer_norm.weight", Kind::DroppedBlock),
            ("decoder.side_downsamples.4.bias", Kind::DroppedBlock),
            ("side_final_upsample.bias", Kind::OtherSide),
            ("adam.m/side_final_upsample.bias", Kind::Optimizer),
            ("classifier.weight", Kind::Other),
        ];
        for (name, kind) in kinds {
            assert_eq!(Kind::of(name), kind, "{name}");
        }
    }
}
