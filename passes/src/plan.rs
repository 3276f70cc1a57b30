//! The side network's shape: widths, kept blocks, and its parameters by name.

use lstc_graph::Graph;
use lstc_models::{Anatomy, AttentionKind, Family, Names, Site, Slot, Sublayer, SublayerId, Tower, TowerId, families};

use crate::kept::{Choice, choose};
use crate::key::{At, Key, Leaf, Rung};
use crate::options::{Gate, Method, Options};

/// What part of the side network a parameter belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    Downsample,
    Gate,
    Attention,
    FeedForward,
    Norm,
    PositionTable,
    Upsample,
}

impl Group {
    pub fn name(self) -> &'static str {
        match self {
            Group::Downsample => "downsample",
            Group::Gate => "gate",
            Group::Attention => "attention",
            Group::FeedForward => "feed-forward",
            Group::Norm => "norm",
            Group::PositionTable => "position table",
            Group::Upsample => "upsample",
        }
    }
}

/// Where the initial value of a parameter comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Start {
    Constant(f32),
    /// Of a projection between a residual stream and the side network.
    Projection(Rung),
    /// Cut from what the backbone has there.
    Cut(Slot),
}

/// A trainable tensor to be.
#[derive(Clone, Debug)]
pub struct PlannedParameter {
    pub key: Key,
    /// In the reference's state dict.
    pub name: String,
    pub dims: Vec<usize>,
    pub group: Group,
    pub start: Start,
}

/// The side stack of one tower.
#[derive(Clone, Debug)]
pub struct SideTower {
    pub tower: TowerId,
    /// Kept blocks, ascending.
    pub kept: Vec<usize>,
    pub width: usize,
    pub heads: usize,
    pub head_width: usize,
    pub ff_width: usize,
}

/// The side network's shape.
#[derive(Clone, Debug)]
pub struct Plan {
    pub towers: Vec<SideTower>,
    pub parameters: Vec<PlannedParameter>,
    /// The towers whose kept blocks were chosen by importance.
    pub choices: Vec<Choice>,
}

/// The family of a recognised model.
pub(crate) fn family(anatomy: &Anatomy) -> Family {
    families().into_iter().find(|f| f.name == anatomy.family).expect("a recognised model has a family")
}

/// The kept block under whose name stands the position table that a kept block reads: the first that reads it.
pub(crate) fn table_owner(tower: &Tower, kept: &[usize], block: usize) -> usize {
    let table = |b: usize| Some(&tower.blocks[b].attention(AttentionKind::SelfAttention)?.relative()?.table);
    kept.iter().copied().find(|b| table(*b) == table(block)).unwrap_or(block)
}

impl Plan {
    /// Plans the side network of a model. Reads weights only where blocks are chosen by importance.
    ///
    /// # Errors
    /// Every option that does not fit the model.
    pub fn new(graph: &Graph, anatomy: &Anatomy, options: &Options) -> Result<Plan, Vec<String>> {
        let mut problems = options.problems();
        for (key, name) in options.method.named_towers() {
            if !anatomy.towers.iter().any(|t| name == t.kind.into()) {
                problems.push(format!("method.{key} names a tower that the model does not have: {name}"));
            }
        }
        for tower in &anatomy.towers {
            if options.method.kept(tower.kind).is_some() && options.method.count(tower.kind).is_some() {
                let kind = tower.kind;
                problems.push(format!("method.blocks lists the kept blocks of the {kind}, and method.keep_blocks counts them: give only one"));
            }
        }
        let choices = if problems.is_empty() { choose(graph, anatomy, &options.method) } else { Vec::new() };
        let mut towers = Vec::new();
        for (index, tower) in anatomy.by_id() {
            let chosen = choices.iter().find(|c| c.tower == index).map(|c| c.kept.as_slice());
            match side_tower(index, tower, options, chosen) {
                Ok(side) => towers.push(side),
                Err(more) => problems.extend(more),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let parameters = parameters(anatomy, &towers, options);
        Ok(Plan { towers, parameters, choices })
    }

    /// Number of trainable elements.
    pub fn elements(&self) -> usize {
        self.parameters.iter().map(|p| p.dims.iter().product::<usize>()).sum()
    }
}

fn side_tower(
    index: TowerId,
    tower: &Tower,
    options: &Options,
    chosen: Option<&[usize]>,
) -> Result<SideTower, Vec<String>> {
    let r = options.method.reduction.max(1);
    let count = tower.blocks.len();
    let kept =
        chosen.or(options.method.kept(tower.kind)).map_or_else(|| (0..count).collect::<Vec<_>>(), <[usize]>::to_vec);
    let mut problems = Vec::new();
    if kept.is_empty() {
        problems.push(format!("no block of the {} is kept: at least one is needed", tower.kind));
    }
    if !kept.is_sorted_by(|a, b| a < b) {
        problems.push(format!("the kept blocks of the {} must be in ascending order, each once: {kept:?}", tower.kind));
    }
    if let Some(bad) = kept.iter().find(|b| **b >= count) {
        problems.push(format!("block {bad} of the {} cannot be kept: it has blocks 0 to {}", tower.kind, count - 1));
    }
    let block = &tower.blocks[0];
    let attention = block.attention(AttentionKind::SelfAttention).expect("the family's blocks have self-attention");
    let ff = block.feed_forward().expect("the family's blocks have a feed-forward layer");
    let mut divided = |name: &str, width: usize| {
        if width / r == 0 {
            problems.push(format!("reduction {r} leaves nothing of the {}'s {name} of {width}", tower.kind));
        }
        width / r
    };
    let side = SideTower {
        tower: index,
        kept,
        width: divided("width", tower.width),
        heads: attention.heads,
        head_width: divided("head width", attention.head_width),
        ff_width: divided("feed-forward width", ff.width()),
    };
    if problems.is_empty() { Ok(side) } else { Err(problems) }
}

fn parameters(anatomy: &Anatomy, towers: &[SideTower], options: &Options) -> Vec<PlannedParameter> {
    let names = &family(anatomy).names;
    let mut list = List { anatomy, names, method: &options.method, parameters: Vec::new() };
    towers.iter().for_each(|side| list.tower(side));
    let last = towers.last().expect("a model has towers");
    list.projection(Rung::Up, [anatomy.last().width, last.width]);
    // The reference's merge has a gate of its own, whatever the ladder's.
    if options.method.merge_last {
        list.gate(Rung::MergeGate);
    }
    list.parameters
}

/// The parameters so far.
struct List<'l> {
    anatomy: &'l Anatomy,
    names: &'l Names,
    method: &'l Method,
    parameters: Vec<PlannedParameter>,
}

impl List<'_> {
    fn push(&mut self, key: Key, dims: Vec<usize>, group: Group, start: Start) {
        self.parameters.push(PlannedParameter { key, name: key.name(self.anatomy, self.names), dims, group, start });
    }

    fn projection(&mut self, rung: Rung, [out, inputs]: [usize; 2]) {
        let group = if rung == Rung::Up { Group::Upsample } else { Group::Downsample };
        self.push(Key::Rung(rung, Leaf::Weight), vec![out, inputs], group, Start::Projection(rung));
        if self.method.bias {
            self.push(Key::Rung(rung, Leaf::Bias), vec![out], group, Start::Constant(0.0));
        }
    }

    fn gate(&mut self, rung: Rung) {
        self.push(Key::Rung(rung, Leaf::Alpha), vec![1], Group::Gate, Start::Constant(self.method.alpha));
    }

    fn tower(&mut self, side: &SideTower) {
        let tower = self.anatomy.tower(side.tower);
        self.projection(Rung::Down(side.tower, At::Embedding), [side.width, tower.width]);
        for &block in &side.kept {
            self.projection(Rung::Down(side.tower, At::Block(block)), [side.width, tower.width]);
            if self.method.gate == Gate::Learnable {
                self.gate(Rung::Gate(side.tower, block));
            }
            for (sublayer, layer) in tower.blocks[block].sublayers.iter().enumerate() {
                self.sublayer(side, SublayerId { tower: side.tower, block, sublayer }, layer);
            }
        }
        self.side(Slot::final_norm(side.tower), vec![side.width], Group::Norm);
    }

    /// A part of the side network that the backbone has too.
    fn side(&mut self, slot: Slot, dims: Vec<usize>, group: Group) {
        self.push(Key::Side(slot), dims, group, Start::Cut(slot));
    }

    fn sublayer(&mut self, side: &SideTower, place: SublayerId, layer: &Sublayer) {
        let (w, inner) = (side.width, side.heads * side.head_width);
        for (site, _) in layer.norms() {
            self.side(place.slot(site), vec![w], Group::Norm);
        }
        for (site, _) in layer.linears() {
            let (dims, group) = match site {
                // The width of what keys and values are made of: the side state of the tower attended to.
                Site::Q | Site::K | Site::V => ([inner, w], Group::Attention),
                Site::O => ([w, inner], Group::Attention),
                Site::Outer => ([w, side.ff_width], Group::FeedForward),
                _ => ([side.ff_width, w], Group::FeedForward),
            };
            self.side(place.slot(site), dims.to_vec(), group);
        }
        if let Some(relative) = layer.relative()
            && table_owner(self.anatomy.tower(side.tower), &side.kept, place.block) == place.block
        {
            self.side(place.slot(Site::PositionTable), vec![relative.rows, side.heads], Group::PositionTable);
        }
    }
}
