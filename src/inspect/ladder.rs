//! The ladder of a model as plain data: where each part is, how large it is, and how far its gates are open.

use anyhow::{Context, bail};
use lstc_models::TowerKind;
use lstc_passes::ladder::key::{At, Rung as Named, block_name, final_norm_name};
use lstc_passes::options::{Gate as Mixing, Merge};
use lstc_passes::{Options, Point};
use lstc_tuned::gates::{Alphas, Gate, Shapes};
use lstc_tuned::manifest::{ModelSummary, TapSummary, TowerSummary};
use serde::Serialize;

/// A side network beside its backbone.
#[derive(Clone, Debug, Serialize)]
pub struct Ladder {
    pub reduction: usize,
    /// In the order of computation; a stack with cross-attention attends to the one before it.
    pub stacks: Vec<Stack>,
    pub head: Head,
}

/// One tower and its side stack. Counts are of trainable elements.
#[derive(Clone, Debug, Serialize)]
pub struct Stack {
    pub tower: TowerKind,
    /// The graph input of token indices.
    pub tokens: String,
    /// Of the backbone.
    pub width: usize,
    pub side_width: usize,
    pub first: Tap,
    /// One for each block of the backbone; none where it is dropped.
    pub rungs: Vec<Option<Rung>>,
    /// Elements of the side blocks behind the last, which have no tap.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub free: Vec<usize>,
    /// Whether taps are mixed in before or behind the side blocks.
    pub merge: Merge,
    pub norm: usize,
    /// All of the stack's trainable elements.
    pub elements: usize,
    pub cross_attention: bool,
}

/// A hidden state on its way to the side stack.
#[derive(Clone, Debug, Serialize)]
pub struct Tap {
    /// The backbone's value.
    pub value: String,
    /// Elements of the down-projection.
    pub elements: usize,
}

#[derive(Clone, Debug, Serialize)]
pub struct Rung {
    /// None for a side block that mixes no tap in.
    pub tap: Option<Tap>,
    /// None where tap and side state are added, or there is no tap.
    pub gate: Option<Gate>,
    /// Of the side block.
    pub elements: usize,
}

/// What follows the last side stack.
#[derive(Clone, Debug, Serialize)]
pub struct Head {
    /// Of the up-projection.
    pub elements: usize,
    /// Mixes the backbone's final output in.
    pub merge: Option<Gate>,
    /// The loss includes the backbone's own logits.
    pub distilled: bool,
    pub vocabulary: usize,
}

/// The most blocks of a tower that a manifest can describe.
const MOST_BLOCKS: usize = 10_000;

/// Elements of a tensor. The numbers in a manifest are not trusted.
pub fn elements(shape: &[usize]) -> usize {
    shape.iter().fold(1, |n, d| n.saturating_mul(*d))
}

/// Elements of the tensors whose names begin with a prefix.
fn elements_of(shapes: &Shapes, prefix: &str) -> usize {
    let tensors = shapes.iter().filter(|(name, _)| name.starts_with(prefix));
    tensors.fold(0, |n, (_, shape)| n.saturating_add(elements(shape)))
}

impl Ladder {
    /// # Errors
    /// A manifest whose parameters and taps are not those of one side network.
    pub fn new(
        backbone: &ModelSummary,
        options: &Options,
        shapes: &Shapes,
        taps: &[TapSummary],
        alphas: &Alphas,
    ) -> anyhow::Result<Ladder> {
        let source = Source { options, shapes, taps, alphas };
        let stacks = backbone.towers.iter().map(|t| source.stack(t)).collect::<anyhow::Result<_>>()?;
        let method = &options.method;
        let merge =
            if method.merge_last { Some(alphas.trained(&Named::<TowerKind>::MergeGate.to_string())?) } else { None };
        let head = Head {
            elements: elements_of(shapes, &format!("{}.", Named::<TowerKind>::Up)),
            merge,
            distilled: options.loss.distill > 0.0,
            vocabulary: backbone.vocabulary,
        };
        Ok(Ladder { reduction: method.reduction, stacks, head })
    }

    /// Every gate that has a value.
    pub fn gates(&self) -> impl Iterator<Item = &Gate> {
        let rungs = self.stacks.iter().flat_map(|s| s.rungs.iter().flatten()).filter_map(|r| r.gate.as_ref());
        rungs.chain(&self.head.merge)
    }
}

/// What a ladder is read from.
struct Source<'s> {
    options: &'s Options,
    shapes: &'s Shapes,
    taps: &'s [TapSummary],
    alphas: &'s Alphas,
}

impl Source<'_> {
    fn stack(&self, tower: &TowerSummary) -> anyhow::Result<Stack> {
        let kind = tower.kind;
        if tower.blocks > MOST_BLOCKS {
            bail!("the manifest gives the {kind} {} blocks", tower.blocks);
        }
        let first = Named::Down(kind, At::Embedding);
        let weight = format!("{first}.weight");
        let side_width = self.shapes.get(&weight).and_then(|shape| shape.first());
        let beyond = |t: &&TapSummary| t.tower == kind && t.point.block().is_some_and(|block| block >= tower.blocks);
        if let Some(tap) = self.taps.iter().find(beyond) {
            bail!("there is a tap at `{}` of the {kind}, which has {} blocks", tap.point, tower.blocks);
        }
        let rungs = (0..tower.blocks).map(|block| self.rung(kind, block)).collect::<anyhow::Result<_>>()?;
        let behind = tower.blocks..tower.blocks + MOST_BLOCKS;
        let free = behind.map(|block| self.block(kind, block)).take_while(|elements| *elements > 0).collect();
        Ok(Stack {
            tower: kind,
            tokens: tower.tokens.clone(),
            width: tower.width,
            side_width: *side_width.with_context(|| format!("there is no parameter `{weight}`"))?,
            first: Tap {
                value: self
                    .tapped(kind, Point::Embedding)
                    .with_context(|| format!("the {kind}'s embedding has no tap"))?,
                elements: elements_of(self.shapes, &format!("{first}.")),
            },
            rungs,
            free,
            merge: self.options.method.merge,
            norm: elements_of(self.shapes, &format!("{}.", final_norm_name(kind))),
            elements: elements_of(self.shapes, &format!("{kind}.")),
            cross_attention: tower.cross_attention,
        })
    }

    fn tapped(&self, tower: TowerKind, point: Point) -> Option<String> {
        self.taps.iter().find(|t| t.tower == tower && t.point == point).map(|t| t.value.clone())
    }

    /// Elements of a side block; 0 if there is none.
    fn block(&self, kind: TowerKind, block: usize) -> usize {
        elements_of(self.shapes, &format!("{}.", block_name(kind, block)))
    }

    fn rung(&self, kind: TowerKind, block: usize) -> anyhow::Result<Option<Rung>> {
        let elements = self.block(kind, block);
        let Some(value) = self.tapped(kind, Point::Block(block)) else {
            return Ok((elements > 0).then_some(Rung { tap: None, gate: None, elements }));
        };
        let method = &self.options.method;
        let gate = match method.gate {
            Mixing::Learnable => Some(self.alphas.trained(&Named::Gate(kind, block).to_string())?),
            Mixing::Fixed => Some(Gate::fixed(method.alpha, method.temperature)),
            Mixing::ScheduleLinear | Mixing::ScheduleHyperbolic => {
                Some(self.alphas.scheduled(&Named::<TowerKind>::Schedule.to_string(), method.gate.scheduled(0, 1))?)
            }
            Mixing::One | Mixing::None => None,
        };
        let down = elements_of(self.shapes, &format!("{}.", Named::Down(kind, At::Block(block))));
        Ok(Some(Rung { tap: Some(Tap { value, elements: down }), gate, elements }))
    }
}
