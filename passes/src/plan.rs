//! The side network's shape: widths, kept blocks, and its parameters by name.

use lstc_graph::Graph;
use lstc_models::{Anatomy, AttentionKind, Family, SublayerKind, Tower, families};

use crate::kept::{Choice, choose};
use crate::options::{Gate, Options};

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
    /// Of a projection between the residual stream at a place and the side network.
    Projection(Stream),
    /// Cut from the backbone.
    Cut(Cut),
}

/// A part of the backbone: tower, block, sublayer and matrix by place. A tower's final norm has no block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cut {
    pub tower: usize,
    pub part: Part,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    Norm { block: usize, sublayer: usize },
    Q { block: usize, sublayer: usize },
    K { block: usize, sublayer: usize },
    V { block: usize, sublayer: usize },
    O { block: usize, sublayer: usize },
    Inner { block: usize, sublayer: usize, index: usize },
    Outer { block: usize, sublayer: usize },
    PositionTable { block: usize },
    FinalNorm,
}

/// A tower's residual stream at a place: where a projection begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    pub tower: usize,
    pub at: At,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Embedding,
    /// Where a side block begins.
    Block(usize),
    /// Where the up-projection puts the side network's output.
    Output,
}

/// A trainable tensor to be.
#[derive(Clone, Debug)]
pub struct PlannedParameter {
    /// In the reference's state dict.
    pub name: String,
    pub dims: Vec<usize>,
    pub group: Group,
    pub start: Start,
}

/// The side stack of one tower.
#[derive(Clone, Debug)]
pub struct SideTower {
    /// Index of the tower in the anatomy.
    pub tower: usize,
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
        for (index, tower) in anatomy.towers.iter().enumerate() {
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
    index: usize,
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
    let family = family(anatomy);
    let method = &options.method;
    let mut list = Vec::new();
    for side in towers {
        tower_parameters(&mut list, anatomy, side, &family, options);
    }
    let last = towers.last().expect("a model has towers");
    let d = anatomy.last().width;
    let end = Stream { tower: last.tower, at: At::Output };
    projection(&mut list, "side_final_upsample", [d, last.width], end, method.bias);
    // The reference's merge has a gate of its own, whatever the ladder's.
    if method.merge_last {
        list.push(PlannedParameter {
            name: "side_gate_params_merge_last".to_owned(),
            dims: vec![1],
            group: Group::Gate,
            start: Start::Constant(method.alpha),
        });
    }
    list
}

fn projection(list: &mut Vec<PlannedParameter>, name: &str, [out, inputs]: [usize; 2], stream: Stream, bias: bool) {
    let group = if stream.at == At::Output { Group::Upsample } else { Group::Downsample };
    list.push(PlannedParameter {
        name: format!("{name}.weight"),
        dims: vec![out, inputs],
        group,
        start: Start::Projection(stream),
    });
    if bias {
        list.push(PlannedParameter {
            name: format!("{name}.bias"),
            dims: vec![out],
            group,
            start: Start::Constant(0.0),
        });
    }
}

fn tower_parameters(
    list: &mut Vec<PlannedParameter>,
    anatomy: &Anatomy,
    side: &SideTower,
    family: &Family,
    options: &Options,
) {
    let tower = &anatomy.towers[side.tower];
    let (method, kind, names) = (&options.method, tower.kind, &family.names);
    let (w, inner) = (side.width, side.heads * side.head_width);
    let down = |list: &mut Vec<PlannedParameter>, name: String, at: At| {
        projection(list, &name, [w, tower.width], Stream { tower: side.tower, at }, method.bias);
    };
    down(list, format!("{kind}.side_first_downsample"), At::Embedding);
    for &block in &side.kept {
        down(list, format!("{kind}.side_downsamples.{block}"), At::Block(block));
        if method.gate == Gate::Learnable {
            list.push(PlannedParameter {
                name: format!("{kind}.side_gate_params.{block}"),
                dims: vec![1],
                group: Group::Gate,
                start: Start::Constant(method.alpha),
            });
        }
        for (sublayer, layer) in tower.blocks[block].sublayers.iter().enumerate() {
            let path = format!("{kind}.side_block.{block}.layer.{sublayer}");
            let mut push = |name: String, dims: Vec<usize>, group, part| {
                list.push(PlannedParameter { name, dims, group, start: Start::Cut(Cut { tower: side.tower, part }) });
            };
            let norm = Part::Norm { block, sublayer };
            push(format!("{path}.{}.weight", names.norm), vec![w], Group::Norm, norm);
            match &layer.kind {
                SublayerKind::Attention(attention) => {
                    let path = format!("{path}.{}", names.attention(attention.kind));
                    // The width of what keys and values are made of: the side state of the tower attended to.
                    for (name, part) in [
                        (&names.q, Part::Q { block, sublayer }),
                        (&names.k, Part::K { block, sublayer }),
                        (&names.v, Part::V { block, sublayer }),
                    ] {
                        push(format!("{path}.{name}.weight"), vec![inner, w], Group::Attention, part);
                    }
                    let o = Part::O { block, sublayer };
                    push(format!("{path}.{}.weight", names.o), vec![w, inner], Group::Attention, o);
                    if let Some(relative) = attention.relative()
                        && table_owner(tower, &side.kept, block) == block
                    {
                        let rows = relative.rows;
                        let name = format!("{path}.{}.weight", names.relative);
                        push(name, vec![rows, side.heads], Group::PositionTable, Part::PositionTable { block });
                    }
                }
                SublayerKind::FeedForward(layer) => {
                    let path = format!("{path}.{}", names.feed_forward);
                    for (index, name) in names.inner_of(layer).into_iter().enumerate() {
                        let part = Part::Inner { block, sublayer, index };
                        push(format!("{path}.{name}.weight"), vec![side.ff_width, w], Group::FeedForward, part);
                    }
                    let outer = Part::Outer { block, sublayer };
                    push(format!("{path}.{}.weight", names.outer), vec![w, side.ff_width], Group::FeedForward, outer);
                }
            }
        }
    }
    list.push(PlannedParameter {
        name: format!("{kind}.final_side_layer_norm.weight"),
        dims: vec![w],
        group: Group::Norm,
        start: Start::Cut(Cut { tower: side.tower, part: Part::FinalNorm }),
    });
}
