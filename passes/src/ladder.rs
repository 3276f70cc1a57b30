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

use lstc_graph::{Attributes, Builder, Origin, ValueId};
use lstc_models::{Anatomy, AttentionKind, Family, SublayerKind};

use crate::block::{
    AttentionWeights, Dropout, FeedForwardWeights, MatrixValue, Rows, attention, feed_forward, linear, norm,
};
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
        let family = family(&module.anatomy);
        for index in 0..module.plan.towers.len() {
            let out = tower(module, index, &family);
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
    family: &'m Family,
    /// A parameter by name.
    parameter: &'m dyn Fn(&str) -> ValueId,
    rows: Rows,
    /// The side state that cross-attention reads, and its rows.
    context: Option<(ValueId, Rows)>,
    dropout: Dropout,
}

fn rows(module: &Module, tower: usize) -> Rows {
    let anatomy = &module.anatomy.towers[tower];
    Rows { batch: anatomy.batch.clone(), length: anatomy.length.clone(), like: module.tap(tower, Point::Embedding) }
}

fn tower(module: &mut Module, index: usize, family: &Family) -> ValueId {
    let side = module.plan.towers[index].clone();
    let taps: Vec<ValueId> = side.kept.iter().map(|b| module.tap(side.tower, Point::Block(*b))).collect();
    let embedding = module.tap(side.tower, Point::Embedding);
    let names: std::collections::HashMap<String, ValueId> =
        module.parameters.iter().map(|p| (p.name.clone(), p.value)).collect();
    let parameter = |name: &str| names[name];
    let context = index
        .checked_sub(1)
        .map(|before| (module.side_outputs[before], rows(module, module.plan.towers[before].tower)));
    let method = module.options.method.clone();
    let emit = Side {
        anatomy: &module.anatomy,
        side: &side,
        method: &method,
        family,
        parameter: &parameter,
        rows: rows(module, side.tower),
        context,
        dropout: Dropout { rate: method.dropout, seed: method.seed },
    };
    let b = Builder::new(&mut module.graph, Origin::pass("ladder"));
    emit.stack(&b, embedding, &taps)
}

impl Side<'_> {
    fn kind(&self) -> &'static str {
        self.anatomy.towers[self.side.tower].kind.name()
    }

    /// `W x + b` of a named projection, on a tap.
    fn down(&self, b: &Builder, name: &str, tap: ValueId) -> ValueId {
        let rows = self.rows.flatten(b, tap, self.anatomy.towers[self.side.tower].width);
        let bias = self.method.bias.then(|| (self.parameter)(&format!("{name}.bias")));
        linear(b, rows, MatrixValue::out_in((self.parameter)(&format!("{name}.weight"))), bias)
    }

    fn stack(&self, b: &Builder, embedding: ValueId, taps: &[ValueId]) -> ValueId {
        let kind = self.kind();
        let first = format!("{kind}.side_first_downsample");
        b.scope(&first);
        let mut state = self.down(b, &first, embedding);
        for (&block, &tap) in self.side.kept.iter().zip(taps) {
            let name = format!("{kind}.side_downsamples.{block}");
            b.scope(&name);
            let rung = self.down(b, &name, tap);
            b.scope(&format!("{kind}.side_gate_params.{block}"));
            let alpha = || (self.parameter)(&format!("{kind}.side_gate_params.{block}"));
            state = match self.method.gate {
                Gate::Learnable => mix(b, gate(b, alpha(), self.method.temperature), state, rung),
                Gate::Fixed => mix(b, b.f32(sigmoid(self.method.alpha / self.method.temperature)), state, rung),
                Gate::None => b.add(state, rung),
            };
            state = self.block(b, block, state);
        }
        b.scope(&format!("{kind}.final_side_layer_norm"));
        let weight = (self.parameter)(&format!("{kind}.final_side_layer_norm.weight"));
        let epsilon = self.anatomy.towers[self.side.tower].final_norm.epsilon;
        self.dropout.apply(b, norm(b, state, weight, epsilon, self.side.width))
    }

    fn block(&self, b: &Builder, block: usize, state: ValueId) -> ValueId {
        let kind = self.kind();
        let names = &self.family.names;
        let mut state = state;
        for (sublayer, layer) in self.anatomy.towers[self.side.tower].blocks[block].sublayers.iter().enumerate() {
            let path = format!("{kind}.side_block.{block}.layer.{sublayer}");
            b.scope(&path);
            let matrix = |name: String| MatrixValue::out_in((self.parameter)(&name));
            let weight = (self.parameter)(&format!("{path}.{}.weight", names.norm));
            let x = norm(b, state, weight, layer.norm.epsilon, self.side.width);
            let branch = match &layer.kind {
                SublayerKind::Attention(a) => {
                    let path = format!("{path}.{}", names.attention(a.kind));
                    let owner = table_owner(&self.anatomy.towers[self.side.tower], &self.side.kept, block);
                    let table = a.relative().map(|_| {
                        let here = names.attention(a.kind);
                        let path = format!("{kind}.side_block.{owner}.layer.{sublayer}.{here}");
                        (self.parameter)(&format!("{path}.{}.weight", names.relative))
                    });
                    let weights = AttentionWeights {
                        q: matrix(format!("{path}.{}.weight", names.q)),
                        k: matrix(format!("{path}.{}.weight", names.k)),
                        v: matrix(format!("{path}.{}.weight", names.v)),
                        o: matrix(format!("{path}.{}.weight", names.o)),
                        table,
                        head_width: self.side.head_width,
                        // A tower that attends to another's output reads targets, which are short.
                        together: if self.context.is_none() { HEADS_TOGETHER } else { a.heads },
                    };
                    let context = match a.kind {
                        AttentionKind::SelfAttention => None,
                        AttentionKind::Cross => self.context.as_ref().map(|(value, rows)| (*value, rows)),
                    };
                    attention(b, a, &weights, (x, &self.rows), context, self.dropout)
                }
                SublayerKind::FeedForward(f) => {
                    let path = format!("{path}.{}", names.feed_forward);
                    let inner = names.inner_of(f).into_iter().map(|n| matrix(format!("{path}.{n}.weight"))).collect();
                    let outer = matrix(format!("{path}.{}.weight", names.outer));
                    feed_forward(b, f, &FeedForwardWeights { inner, outer }, x, self.dropout)
                }
            };
            state = b.add(state, self.dropout.apply(b, branch));
        }
        state
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
