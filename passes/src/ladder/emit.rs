//! Emits the side stacks: down-projected taps, mixed by gates into the side state, rung by rung.
//!
//! ```text
//! s_0  = W_first e + b_first
//! s'_i = g_i s_{i-1} + (1 - g_i) (W_i h_i + b_i),   g_i = sigmoid(alpha_i / T)
//! s_i  = block_i(s'_i)
//! out  = norm(s_L)
//! ```
//!
//! A tap may also be mixed in behind the block (`merge`), not at all (`gate: one`), or be pooled instead of projected (`down`).
//! Side blocks behind the last rung have no tap.
//!
//! The cross-attention of a side block reads the side stack's output of the tower that the backbone's reads. The first
//! side block owns the relative-position table; the later ones share it.

use std::collections::HashMap;

use lstc_graph::{Attributes, Builder, Dim, Origin, ValueId, Weight};
use lstc_models::{Anatomy, Attention, Linear, Names, Norm, Relative, Slot, SublayerId, TowerId};

use crate::block::{Dropout, MatrixValue, Rows, Streams, Weights, block, linear, norm};
use crate::ladder::key::{At, Key, Leaf, Rung, final_norm_name, sublayer_name};
use crate::ladder::plan::{SideBlock, SideTower, family};
use crate::module::{Module, Point};
use crate::options::{Down, Gate, Merge, Method};
use crate::pipeline::Pass;
use crate::problem::Problem;

pub struct Ladder;

/// Heads whose scores are computed together: of all heads, the scores would leave the caches between two operators.
const HEADS_TOGETHER: usize = 4;

impl Pass for Ladder {
    fn name(&self) -> &'static str {
        "ladder"
    }

    fn run(&self, module: &mut Module) -> Result<(), Vec<Problem>> {
        let names = family(&module.anatomy).names;
        for side in module.plan.towers.clone() {
            let out = tower(module, &side, &names);
            module.side_outputs.push(out);
        }
        Ok(())
    }
}

/// What the emission of one tower reads.
struct Side<'m> {
    anatomy: &'m Anatomy,
    side: &'m SideTower,
    method: &'m Method,
    names: &'m Names,
    parameters: &'m HashMap<Key, ValueId>,
    /// By block.
    taps: HashMap<usize, ValueId>,
    rows: Rows,
    /// The side states of the towers before, with their rows: what cross-attention reads.
    before: Vec<(TowerId, ValueId, Rows)>,
    dropout: Dropout,
}

fn rows(module: &Module, tower: TowerId) -> Rows {
    let anatomy = module.anatomy.tower(tower);
    Rows { batch: anatomy.batch.clone(), length: anatomy.length.clone(), like: module.tap(tower, Point::Embedding) }
}

fn tower(module: &mut Module, side: &SideTower, names: &Names) -> ValueId {
    let tapped = side.blocks.iter().filter(|block| block.is_tapped).map(|block| block.number);
    let taps = tapped.map(|block| (block, module.tap(side.tower, Point::Block(block)))).collect();
    let embedding = module.tap(side.tower, Point::Embedding);
    let parameters: HashMap<Key, ValueId> = module.parameters.iter().map(|p| (p.key, p.value)).collect();
    let outputs = module.plan.towers.iter().zip(&module.side_outputs);
    let before = outputs.map(|(side, value)| (side.tower, *value, rows(module, side.tower))).collect();
    let method = module.options.method.clone();
    let emit = Side {
        anatomy: &module.anatomy,
        side,
        method: &method,
        names,
        parameters: &parameters,
        taps,
        rows: rows(module, side.tower),
        before,
        dropout: Dropout { rate: method.dropout, seed: method.seed },
    };
    let b = Builder::new(&mut module.graph, Origin::pass("ladder"));
    emit.stack(&b, embedding)
}

impl Weights for Side<'_> {
    fn linear(&self, _: &Builder, at: Slot, _: &Linear) -> MatrixValue {
        MatrixValue::out_in(self.parameters[&Key::Side(at)])
    }

    fn norm(&self, _: &Builder, at: Slot, _: &Norm) -> ValueId {
        self.parameters[&Key::Side(at)]
    }

    /// The table of the first side block that shares it.
    fn table(&self, _: &Builder, at: Slot, _: &Relative) -> ValueId {
        let tower = self.anatomy.tower(at.tower);
        let owner = at.block.map(|block| self.side.table_owner(tower, block));
        self.parameters[&Key::Side(Slot { block: owner, ..at })]
    }

    fn width(&self) -> usize {
        self.side.width
    }

    fn head_width(&self, _: &Attention) -> usize {
        self.side.head_width
    }

    fn scope(&self, place: SublayerId) -> Option<String> {
        Some(sublayer_name(self.anatomy, self.names, place))
    }
}

impl Side<'_> {
    fn scope(&self, b: &Builder, rung: Rung) {
        b.scope(&rung.name(self.anatomy));
    }

    fn parameter(&self, rung: Rung, leaf: Leaf) -> ValueId {
        self.parameters[&Key::Rung(rung, leaf)]
    }

    /// A tap at the side network's width, as rows.
    fn down(&self, b: &Builder, at: At, tap: ValueId) -> ValueId {
        let rung = Rung::Down(self.side.tower, at);
        self.scope(b, rung);
        let width = self.anatomy.tower(self.side.tower).width;
        let rows = self.rows.flatten(b, tap, width);
        let matrix = |leaf| MatrixValue::out_in(self.parameter(rung, leaf));
        let bias = |leaf| self.method.bias.then(|| self.parameter(rung, leaf));
        match self.method.down {
            Down::Pool if at != At::Embedding => self.pooled(b, rows, width),
            Down::LowRank(_) if at != At::Embedding => {
                let inner = linear(b, rows, matrix(Leaf::Inner), None);
                linear(b, inner, matrix(Leaf::Outer), bias(Leaf::OuterBias))
            }
            _ => linear(b, rows, matrix(Leaf::Weight), bias(Leaf::Bias)),
        }
    }

    /// The means of neighbouring features: of span i of w, those from `floor(i d / w)` to `ceil((i + 1) d / w)`.
    fn pooled(&self, b: &Builder, rows: ValueId, width: usize) -> ValueId {
        let side = self.side.width;
        if width.is_multiple_of(side) {
            let span = width / side;
            let spans = b.reshape(rows, &[-1, side as i64, span as i64]);
            let dims = [self.rows.count(), Dim::Value(side as i32), Dim::Value(span as i32)];
            return b.mul(b.reduce_sum(b.shaped(spans, &dims), &[-1], false), b.f32((span as f32).recip()));
        }
        let mut means = vec![0.0; side * width];
        for row in 0..side {
            let (first, end) = (row * width / side, ((row + 1) * width).div_ceil(side));
            means[row * width + first..row * width + end].fill(((end - first) as f32).recip());
        }
        let means = b.constant(Weight::from_f32(&[side, width], &means));
        linear(b, rows, MatrixValue::out_in(means), None)
    }

    /// The side state and a block's tap.
    fn mixed(&self, b: &Builder, number: usize, state: ValueId) -> ValueId {
        let tap = self.down(b, At::Block(number), self.taps[&number]);
        let gated = Rung::Gate(self.side.tower, number);
        self.scope(b, gated);
        let temperature = self.method.temperature;
        let g = match self.method.gate {
            Gate::Learnable => gate(b, self.parameter(gated, Leaf::Number), temperature),
            Gate::Fixed => b.f32(sigmoid(self.method.alpha / temperature)),
            Gate::ScheduleLinear | Gate::ScheduleHyperbolic => self.parameter(Rung::Schedule, Leaf::Number),
            Gate::None => return b.add(state, tap),
            Gate::One => return state,
        };
        mix(b, g, state, tap)
    }

    fn stack(&self, b: &Builder, embedding: ValueId) -> ValueId {
        let tower = self.side.tower;
        let mut state = self.down(b, At::Embedding, embedding);
        for side in &self.side.blocks {
            if side.is_tapped && self.method.merge == Merge::Before {
                state = self.mixed(b, side.number, state);
            }
            state = self.block(b, side, state);
            if side.is_tapped && self.method.merge == Merge::After {
                state = self.mixed(b, side.number, state);
            }
        }
        b.scope(&final_norm_name(self.anatomy.tower(tower).kind));
        let weight = self.parameters[&Key::Side(Slot::final_norm(tower))];
        let epsilon = self.anatomy.tower(tower).final_norm.epsilon;
        self.dropout.apply(b, norm(b, state, weight, epsilon, self.side.width))
    }

    fn block(&self, b: &Builder, side: &SideBlock, state: ValueId) -> ValueId {
        let tower = self.side.tower;
        let like = &self.anatomy.tower(tower).blocks[side.of];
        let attended = like.sublayers.iter().find_map(|layer| self.anatomy.attends_to(layer));
        let context = attended.and_then(|tower| self.before.iter().find(|(id, ..)| *id == tower));
        let streams = Streams {
            rows: &self.rows,
            context: context.map(|(_, value, rows)| (*value, rows)),
            dropout: self.dropout,
            // A tower that attends to another's output reads targets, which are short.
            together: attended.is_none().then_some(HEADS_TOGETHER),
        };
        block(b, like, (tower, side.number), self, &streams, state)
    }
}

/// `sigmoid(alpha / T)`
pub(crate) fn gate(b: &Builder, alpha: ValueId, temperature: f32) -> ValueId {
    b.op("Sigmoid", &[b.mul(alpha, b.f32(temperature.recip()))], Attributes::none())
}

/// `g x + (1 - g) y`, as `y + g (x - y)`.
pub(crate) fn mix(b: &Builder, g: ValueId, x: ValueId, y: ValueId) -> ValueId {
    b.add(y, b.mul(g, b.sub(x, y)))
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
