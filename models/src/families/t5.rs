//! T5: an encoder and a decoder with root-mean-square norms before each sublayer, and relative-position biases in the
//! self-attention (Raffel et al., 2020, <https://arxiv.org/abs/1910.10683>). One table serves a tower; in umT5 each block has its
//! own (Chung et al., 2023, <https://arxiv.org/abs/2304.09151>).

use super::Family;
use crate::anatomy::{Anatomy, AttentionKind, SublayerKind, Tower, TowerKind};
use crate::place::Place;
use crate::refusal::Refusal;

pub fn family() -> Family {
    Family::new("t5", include_str!("t5.yaml"), check)
}

fn check(anatomy: &Anatomy) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let kinds: Vec<TowerKind> = anatomy.towers.iter().map(|t| t.kind).collect();
    if kinds != [TowerKind::Encoder, TowerKind::Decoder] {
        let found: Vec<&str> = kinds.iter().map(|k| k.name()).collect();
        let reason = format!(
            "has {} and no cross-attention between them: a T5 has an encoder and a decoder that attends to it",
            found.join(" and ")
        );
        refusals.push(Refusal::whole(Place::Model, reason));
        return refusals;
    }
    let width = anatomy.towers[0].width;
    for tower in &anatomy.towers {
        blocks(tower, &mut refusals);
        if tower.width != width {
            let reason = format!("is {} wide, but the encoder is {width} wide", tower.width);
            refusals.push(Refusal::whole(Place::Tower(tower.kind), reason));
        }
    }
    refusals
}

/// Blocks that are alike, whose self-attentions have a position table.
fn blocks(tower: &Tower, refusals: &mut Vec<Refusal>) {
    let make = |b: &crate::anatomy::Block| {
        let heads = [AttentionKind::SelfAttention, AttentionKind::Cross]
            .map(|kind| b.attention(kind).map(|a| (a.heads, a.head_width)));
        (heads, b.feed_forward().map(|f| (f.width(), f.activation, f.is_gated())))
    };
    for (index, block) in tower.blocks.iter().enumerate() {
        let mut refuse = |reason: &str| refusals.push(Refusal::whole(Place::Block(tower.kind, index), reason));
        if block.attention(AttentionKind::SelfAttention).is_some_and(|a| a.relative().is_none()) {
            refuse("its self-attention has no relative-position bias");
        }
        if make(block) != make(&tower.blocks[0]) {
            refuse("its heads, widths or activation differ from those of block 0");
        }
        for sublayer in &block.sublayers {
            let SublayerKind::Attention(attention) = &sublayer.kind else { continue };
            let own = block.attention(AttentionKind::SelfAttention).map(|a| (a.heads, a.head_width));
            if own.is_some_and(|own| own != (attention.heads, attention.head_width)) {
                refuse("the heads of its cross-attention and its self-attention differ");
            }
            if attention.kind == AttentionKind::Cross && attention.relative().is_some() {
                refuse("its cross-attention has a relative-position bias");
            }
        }
    }
}
