//! The side network's shape: widths, kept blocks, and its parameters by name.

use lstc_graph::Graph;
use lstc_models::{
    Anatomy, AttentionKind, Family, Names, Place, Site, Slot, Sublayer, SublayerId, Tower, TowerId, families,
};

use crate::ladder::kept::{Choice, choose};
use crate::ladder::key::{At, Key, Leaf, Rung};
use crate::options::{Down, Gate, Method, Options};
use crate::problem::Problem;

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
    /// Set by a schedule, not trained.
    Schedule,
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
            Group::Schedule => "schedule",
        }
    }
}

/// Where the initial value of a parameter comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Start {
    Constant(f32),
    /// Of a projection between a residual stream and the side network.
    Projection(Rung),
    /// Of a matrix that has no counterpart in the backbone.
    Drawn,
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

/// A side block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SideBlock {
    /// Its number: that of the block it stands beside, or one behind the backbone's last.
    pub number: usize,
    /// The backbone's block that it is made like.
    pub of: usize,
    /// Whether the output of the block it stands beside is mixed in.
    pub is_tapped: bool,
}

/// The side stack of one tower.
#[derive(Clone, Debug)]
pub struct SideTower {
    pub tower: TowerId,
    /// In the order of computation.
    pub blocks: Vec<SideBlock>,
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

impl SideTower {
    /// The side block under whose name stands the position table that a side block reads: the first that reads it.
    pub(crate) fn table_owner(&self, tower: &Tower, number: usize) -> usize {
        let of = |block: &SideBlock| &tower.blocks[block.of];
        let table = |b: &SideBlock| Some(&of(b).attention(AttentionKind::SelfAttention)?.relative()?.table);
        let reader = self.blocks.iter().find(|b| b.number == number);
        let owner = reader.and_then(|reader| self.blocks.iter().find(|b| table(b) == table(reader)));
        owner.map_or(number, |owner| owner.number)
    }
}

impl Plan {
    /// Plans the side network of a model. Reads weights only where blocks are chosen by importance.
    ///
    /// # Errors
    /// Every option that does not fit the model.
    pub fn new(graph: &Graph, anatomy: &Anatomy, options: &Options) -> Result<Plan, Vec<Problem>> {
        let mut problems = options.problems();
        for (key, name) in options.method.named_towers() {
            if !anatomy.towers.iter().any(|t| name == t.kind.into()) {
                let what = format!("names a tower that the model does not have: {name}");
                problems.push(Problem::option(format!("method.{key}"), what));
            }
        }
        for tower in &anatomy.towers {
            if options.method.kept(tower.kind).is_some() && options.method.count(tower.kind).is_some() {
                let kind = tower.kind;
                let what =
                    format!("lists the kept blocks of the {kind}, and method.keep_blocks counts them: give only one");
                problems.push(Problem::option("method.blocks", what));
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
) -> Result<SideTower, Vec<Problem>> {
    let r = options.method.reduction.max(1);
    let count = tower.blocks.len();
    let kept =
        chosen.or(options.method.kept(tower.kind)).map_or_else(|| (0..count).collect::<Vec<_>>(), <[usize]>::to_vec);
    let mut problems = Vec::new();
    let at = |what: String| Problem::place(Place::Tower(tower.kind), what);
    if kept.is_empty() {
        problems.push(at("keeps no block: at least one is needed".to_owned()));
    }
    if !kept.is_sorted_by(|a, b| a < b) {
        problems.push(at(format!("keeps blocks that must be in ascending order, each once: {kept:?}")));
    }
    if let Some(bad) = kept.iter().find(|b| **b >= count) {
        problems.push(at(format!("has blocks 0 to {}: block {bad} cannot be kept", count - 1)));
    }
    if let Down::LowRank(rank) = options.method.down
        && rank > tower.width / r
    {
        let what = format!(
            "has the rank {rank}, but the side network of the {} is {} wide: linear takes no more parameters",
            tower.kind,
            tower.width / r
        );
        problems.push(Problem::option("method.down", what));
    }
    let is_tapped = options.method.gate != Gate::One;
    let beside = kept.iter().map(|block| SideBlock { number: *block, of: *block, is_tapped });
    // Made like the backbone's next blocks, as long as there are some.
    let next = kept.last().map_or(0, |last| last + 1);
    let behind =
        |place: usize| SideBlock { number: count + place, of: (next + place).min(count - 1), is_tapped: false };
    let blocks = beside.chain((0..options.method.free(tower.kind)).map(behind)).collect();
    let block = &tower.blocks[0];
    let attention = block.attention(AttentionKind::SelfAttention).expect("the family's blocks have self-attention");
    let ff = block.feed_forward().expect("the family's blocks have a feed-forward layer");
    let mut divided = |name: &str, width: usize| {
        if width / r == 0 {
            let what = format!("is {r}, which leaves nothing of the {}'s {name} of {width}", tower.kind);
            problems.push(Problem::option("method.reduction", what));
        }
        width / r
    };
    let side = SideTower {
        tower: index,
        blocks,
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
    if let Some(value) = options.method.gate.scheduled(0, 1) {
        list.push(Key::Rung(Rung::Schedule, Leaf::Number), vec![1], Group::Schedule, Start::Constant(value));
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
        self.push(Key::Rung(rung, Leaf::Number), vec![1], Group::Gate, Start::Constant(self.method.alpha));
    }

    /// What brings the tap of a block to the side network's width.
    fn down(&mut self, rung: Rung, [out, inputs]: [usize; 2]) {
        match self.method.down {
            Down::Linear => self.projection(rung, [out, inputs]),
            Down::Pool => {}
            Down::LowRank(rank) => {
                let group = Group::Downsample;
                self.push(Key::Rung(rung, Leaf::Inner), vec![rank, inputs], group, Start::Drawn);
                self.push(Key::Rung(rung, Leaf::Outer), vec![out, rank], group, Start::Drawn);
                if self.method.bias {
                    self.push(Key::Rung(rung, Leaf::OuterBias), vec![out], group, Start::Constant(0.0));
                }
            }
        }
    }

    fn tower(&mut self, side: &SideTower) {
        let tower = self.anatomy.tower(side.tower);
        self.projection(Rung::Down(side.tower, At::Embedding), [side.width, tower.width]);
        for block in &side.blocks {
            if block.is_tapped {
                self.down(Rung::Down(side.tower, At::Block(block.number)), [side.width, tower.width]);
            }
            if block.is_tapped && self.method.gate == Gate::Learnable {
                self.gate(Rung::Gate(side.tower, block.number));
            }
            for (sublayer, layer) in tower.blocks[block.of].sublayers.iter().enumerate() {
                let place = SublayerId { tower: side.tower, block: block.number, sublayer };
                self.sublayer(side, block, place, layer);
            }
        }
        let slot = Slot::final_norm(side.tower);
        self.side(slot, slot, vec![side.width], Group::Norm);
    }

    /// A part of the side network that is cut from one of the backbone.
    fn side(&mut self, slot: Slot, of: Slot, dims: Vec<usize>, group: Group) {
        self.push(Key::Side(slot), dims, group, Start::Cut(of));
    }

    fn sublayer(&mut self, side: &SideTower, block: &SideBlock, place: SublayerId, layer: &Sublayer) {
        let (w, inner) = (side.width, side.heads * side.head_width);
        let of = |site| SublayerId { block: block.of, ..place }.slot(site);
        for (site, _) in layer.norms() {
            self.side(place.slot(site), of(site), vec![w], Group::Norm);
        }
        for (site, _) in layer.linears() {
            let (dims, group) = match site {
                // The width of what keys and values are made of: the side state of the tower attended to.
                Site::Q | Site::K | Site::V => ([inner, w], Group::Attention),
                Site::O => ([w, inner], Group::Attention),
                Site::Outer => ([w, side.ff_width], Group::FeedForward),
                _ => ([side.ff_width, w], Group::FeedForward),
            };
            self.side(place.slot(site), of(site), dims.to_vec(), group);
        }
        if let Some(relative) = layer.relative()
            && side.table_owner(self.anatomy.tower(side.tower), block.number) == block.number
        {
            let (site, dims) = (Site::PositionTable, vec![relative.rows, side.heads]);
            self.side(place.slot(site), of(site), dims, Group::PositionTable);
        }
    }
}
