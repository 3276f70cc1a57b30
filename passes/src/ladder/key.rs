//! The parameters of a side network: what each is, and how the reference's state dict calls it.
//!
//! **Invariant:** inside the compiler a parameter is known by its [`Key`]. Names are made here and nowhere else.

use std::fmt;

use lstc_models::{Anatomy, Names, Slot, SublayerId, TowerId, TowerKind};

/// A trainable tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// Of a side block or a side tower's final norm: what the backbone has there too.
    Side(Slot),
    /// Of the ladder between backbone and side network.
    Rung(Rung, Leaf),
}

/// What connects backbone and side network. Files know a tower by its kind alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rung<T = TowerId> {
    /// The projection of a tap of a tower.
    Down(T, At),
    /// The gate of the tap of a kept block.
    Gate(T, usize),
    /// The projection of the last tower's side output.
    Up,
    /// The gate of the backbone's final output.
    MergeGate,
    /// The value of all gates of the blocks' taps, which the run's schedule sets.
    Schedule,
}

/// Where in a tower a tap enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum At {
    Embedding,
    /// Before the side block of this block.
    Block(usize),
}

/// A tensor of a rung.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Leaf {
    Weight,
    Bias,
    /// The matrix of a projection of low rank that reads the tap, and what follows it.
    Inner,
    Outer,
    OuterBias,
    /// The rung's only number.
    Number,
}

impl Key {
    /// In the reference's state dict.
    pub fn name(self, anatomy: &Anatomy, names: &Names) -> String {
        match self {
            Key::Rung(rung, leaf) => {
                let name = rung.name(anatomy);
                match leaf {
                    Leaf::Weight => format!("{name}.weight"),
                    Leaf::Bias => format!("{name}.bias"),
                    Leaf::Inner => format!("{name}.0.weight"),
                    Leaf::Outer => format!("{name}.1.weight"),
                    Leaf::OuterBias => format!("{name}.1.bias"),
                    Leaf::Number => name,
                }
            }
            Key::Side(slot) => {
                let tower = anatomy.tower(slot.tower);
                let Some(block) = slot.block else { return format!("{}.weight", final_norm_name(tower.kind)) };
                // Side blocks behind the last are made like it.
                let of = block.min(tower.blocks.len() - 1);
                let layer = &tower.blocks[of].sublayers[slot.sublayer];
                let part = names.part(layer, slot.site);
                format!("{}.{part}.weight", names.sublayer(&block_name(tower.kind, block), slot.sublayer))
            }
        }
    }
}

impl Rung {
    /// The name of its module in the reference's state dict.
    pub fn name(self, anatomy: &Anatomy) -> String {
        let kind = |tower: TowerId| anatomy.tower(tower).kind;
        let of_kind = match self {
            Rung::Down(tower, at) => Rung::Down(kind(tower), at),
            Rung::Gate(tower, block) => Rung::Gate(kind(tower), block),
            Rung::Up => Rung::Up,
            Rung::MergeGate => Rung::MergeGate,
            Rung::Schedule => Rung::Schedule,
        };
        of_kind.to_string()
    }
}

/// Its name in the reference's state dict.
impl fmt::Display for Rung<TowerKind> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rung::Down(kind, At::Embedding) => write!(f, "{kind}.side_first_downsample"),
            Rung::Down(kind, At::Block(block)) => write!(f, "{kind}.side_downsamples.{block}"),
            Rung::Gate(kind, block) => write!(f, "{kind}.side_gate_params.{block}"),
            Rung::Up => f.write_str("side_final_upsample"),
            Rung::MergeGate => f.write_str("side_gate_params_merge_last"),
            Rung::Schedule => f.write_str("side_gate"),
        }
    }
}

/// The name of a sublayer of a side block.
pub fn sublayer_name(anatomy: &Anatomy, names: &Names, place: SublayerId) -> String {
    names.sublayer(&block_name(anatomy.tower(place.tower).kind, place.block), place.sublayer)
}

/// The name of a side block.
pub fn block_name(kind: TowerKind, block: usize) -> String {
    format!("{kind}{BLOCK}{block}")
}

/// What precedes the number of a side block, after its tower.
pub const BLOCK: &str = ".side_block.";

/// The name of a side tower's final norm.
pub fn final_norm_name(kind: TowerKind) -> String {
    format!("{kind}.final_side_layer_norm")
}
