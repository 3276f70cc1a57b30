//! Emits the side stacks: down-projected taps, mixed by gates into the side state, rung by rung.
//!
//! ```text
//! s_0  = W_first e + b_first
//! s'_i = g_i s_{i-1} + (1 - g_i) (W_i h_i + b_i),   g_i = sigmoid(alpha_i / T)
//! s_i  = block_i(s'_i)
//! out  = norm(s_L)
//! ```
//!
//! The cross-attention of a side block reads the side stack's output of the tower that the backbone's reads. The first
//! kept block owns the relative-position table; the later ones share it.

use std::collections::HashMap;

use lstc_graph::{Attributes, Builder, Origin, ValueId};
use lstc_models::{Anatomy, Attention, Linear, Names, Norm, Relative, Slot, SublayerId, TowerId};

use crate::block::{Dropout, MatrixValue, Rows, Streams, Weights, block, linear, norm};
use crate::key::{At, Key, Leaf, Rung, final_norm_name, sublayer_name};
use crate::module::{Module, Point};
use crate::options::{Gate, Method};
use crate::pipeline::Pass;
use crate::plan::{SideTower, family, table_owner};

pub struct Ladder;

/// Heads whose scores are computed together: of all heads, the scores would leave the caches between two operators.
const HEADS_TOGETHER: usize = 4;

impl Pass for Ladder {
    fn name(&self) -> &'static str {
        "ladder"
    }

    fn run(&self, module: &mut Module) -> Result<(), Vec<String>> {
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
    let taps: Vec<ValueId> = side.kept.iter().map(|b| module.tap(side.tower, Point::Block(*b))).collect();
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
        rows: rows(module, side.tower),
        before,
        dropout: Dropout { rate: method.dropout, seed: method.seed },
    };
    let b = Builder::new(&mut module.graph, Origin::pass("ladder"));
    emit.stack(&b, embedding, &taps)
}

impl Weights for Side<'_> {
    fn linear(&self, _: &Builder, at: Slot, _: &Linear) -> MatrixValue {
        MatrixValue::out_in(self.parameters[&Key::Side(at)])
    }

    fn norm(&self, _: &Builder, at: Slot, _: &Norm) -> ValueId {
        self.parameters[&Key::Side(at)]
    }

    /// The table of the first kept block that shares it.
    fn table(&self, _: &Builder, at: Slot, _: &Relative) -> ValueId {
        let tower = self.anatomy.tower(at.tower);
        let owner = at.block.map(|block| table_owner(tower, &self.side.kept, block));
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

    /// `W x + b` of a tap.
    fn down(&self, b: &Builder, at: At, tap: ValueId) -> ValueId {
        let rung = Rung::Down(self.side.tower, at);
        self.scope(b, rung);
        let rows = self.rows.flatten(b, tap, self.anatomy.tower(self.side.tower).width);
        let bias = self.method.bias.then(|| self.parameters[&Key::Rung(rung, Leaf::Bias)]);
        linear(b, rows, MatrixValue::out_in(self.parameters[&Key::Rung(rung, Leaf::Weight)]), bias)
    }

    fn stack(&self, b: &Builder, embedding: ValueId, taps: &[ValueId]) -> ValueId {
        let tower = self.side.tower;
        let mut state = self.down(b, At::Embedding, embedding);
        for (&block, &tap) in self.side.kept.iter().zip(taps) {
            let rung = self.down(b, At::Block(block), tap);
            let gated = Rung::Gate(tower, block);
            self.scope(b, gated);
            let alpha = || self.parameters[&Key::Rung(gated, Leaf::Alpha)];
            state = match self.method.gate {
                Gate::Learnable => mix(b, gate(b, alpha(), self.method.temperature), state, rung),
                Gate::Fixed => mix(b, b.f32(sigmoid(self.method.alpha / self.method.temperature)), state, rung),
                Gate::None => b.add(state, rung),
            };
            state = self.block(b, block, state);
        }
        b.scope(&final_norm_name(self.anatomy.tower(tower).kind));
        let weight = self.parameters[&Key::Side(Slot::final_norm(tower))];
        let epsilon = self.anatomy.tower(tower).final_norm.epsilon;
        self.dropout.apply(b, norm(b, state, weight, epsilon, self.side.width))
    }

    fn block(&self, b: &Builder, index: usize, state: ValueId) -> ValueId {
        let tower = self.side.tower;
        let mut layers = self.anatomy.tower(tower).blocks[index].sublayers.iter();
        let attended = layers.find_map(|layer| self.anatomy.attends_to(layer));
        let context = attended.and_then(|tower| self.before.iter().find(|(id, ..)| *id == tower));
        let streams = Streams {
            rows: &self.rows,
            context: context.map(|(_, value, rows)| (*value, rows)),
            dropout: self.dropout,
            // A tower that attends to another's output reads targets, which are short.
            together: attended.is_none().then_some(HEADS_TOGETHER),
        };
        block(b, self.anatomy, (tower, index), self, &streams, state)
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
