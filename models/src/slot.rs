//! Places of a model's weights.

use std::fmt;

use crate::anatomy::{Anatomy, Linear, Norm, Relative, Sublayer, SublayerKind, Tower};

/// A tower of a model: its place in the anatomy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TowerId(usize);

impl TowerId {
    pub fn new(index: usize) -> TowerId {
        TowerId(index)
    }

    /// In [`Anatomy::towers`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// The place of a matrix, a norm's weight or a position table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    pub tower: TowerId,
    /// None for what comes after the last block.
    pub block: Option<usize>,
    /// In the block; 0 outside of one.
    pub sublayer: usize,
    pub site: Site,
}

/// What a weight is to its sublayer, or to its tower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    Norm,
    Q,
    K,
    V,
    O,
    /// The biases of relative positions.
    PositionTable,
    /// The first of a gated layer is under the activation.
    Inner(usize),
    Outer,
    FinalNorm,
}

/// A sublayer of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SublayerId {
    pub tower: TowerId,
    pub block: usize,
    pub sublayer: usize,
}

impl SublayerId {
    pub fn slot(self, site: Site) -> Slot {
        Slot { tower: self.tower, block: Some(self.block), sublayer: self.sublayer, site }
    }
}

impl fmt::Display for TowerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tower {}", self.0)
    }
}

impl Slot {
    pub fn final_norm(tower: TowerId) -> Slot {
        Slot { tower, block: None, sublayer: 0, site: Site::FinalNorm }
    }
}

impl Sublayer {
    /// Its matrices, in the order of computation.
    pub fn linears(&self) -> Vec<(Site, &Linear)> {
        match &self.kind {
            SublayerKind::Attention(a) => vec![(Site::Q, &a.q), (Site::K, &a.k), (Site::V, &a.v), (Site::O, &a.o)],
            SublayerKind::FeedForward(f) => {
                let inner = f.inner.iter().enumerate().map(|(index, linear)| (Site::Inner(index), linear));
                inner.chain([(Site::Outer, &f.outer)]).collect()
            }
        }
    }

    /// Its norms.
    pub fn norms(&self) -> [(Site, &Norm); 1] {
        [(Site::Norm, &self.norm)]
    }

    /// The biases of relative positions that it adds to its scores.
    pub fn relative(&self) -> Option<&Relative> {
        match &self.kind {
            SublayerKind::Attention(a) => a.relative(),
            SublayerKind::FeedForward(_) => None,
        }
    }
}

impl Anatomy {
    pub fn tower(&self, id: TowerId) -> &Tower {
        &self.towers[id.0]
    }

    /// Each tower with its place, in the order of computation.
    pub fn by_id(&self) -> impl Iterator<Item = (TowerId, &Tower)> {
        self.towers.iter().enumerate().map(|(index, tower)| (TowerId(index), tower))
    }

    /// Each sublayer with its place, in the order of computation.
    pub fn sublayers(&self) -> impl Iterator<Item = (SublayerId, &Sublayer)> {
        self.by_id().flat_map(|(tower, anatomy)| {
            anatomy.blocks.iter().enumerate().flat_map(move |(block, layers)| {
                let place = move |(sublayer, layer)| (SublayerId { tower, block, sublayer }, layer);
                layers.sublayers.iter().enumerate().map(place)
            })
        })
    }

    /// The matrices of all blocks, in the order of computation.
    pub fn linears(&self) -> impl Iterator<Item = (Slot, &Linear)> {
        self.sublayers().flat_map(|(place, layer)| {
            layer.linears().into_iter().map(move |(site, linear)| (place.slot(site), linear))
        })
    }

    /// The tower whose output a sublayer's keys and values are made of; none if they are made of its own input.
    pub fn attends_to(&self, layer: &Sublayer) -> Option<TowerId> {
        let SublayerKind::Attention(attention) = &layer.kind else { return None };
        let context = attention.context?;
        self.by_id().find(|(_, tower)| tower.output == context).map(|(id, _)| id)
    }
}
