//! A transformer block in canonical form, on tokens laid out as rows: `[batch * length, width]`.
//!
//! Matrix products with weights are Gemm on those rows; only attention sees four axes. One walk emits every block, with
//! weights from a provider ([`Weights`]): a side block at width d/r from parameters, and, for the proof that the anatomy is
//! right, the backbone's own block at full width from its constants.

use lstc_graph::{Attributes, Builder, DType, Dim, ValueId, Weight};
use lstc_models::{
    Activation, Attention, AttentionKind, Bias, Block, Buckets, FeedForward, Linear, Mask, Norm, Orientation, Relative,
    Site, Slot, SublayerId, SublayerKind, TowerId,
};

use crate::mask;

/// A matrix that rows are multiplied with.
#[derive(Clone, Copy, Debug)]
pub struct MatrixValue {
    pub value: ValueId,
    pub orientation: Orientation,
}

impl MatrixValue {
    /// `[out, in]`, as parameters are.
    pub fn out_in(value: ValueId) -> MatrixValue {
        MatrixValue { value, orientation: Orientation::OutIn }
    }

    /// A matrix of the backbone, in f32.
    pub fn frozen(b: &Builder, linear: &Linear) -> MatrixValue {
        MatrixValue { value: linear.weight.emit(b), orientation: linear.orientation }
    }
}

/// The rows of one residual stream.
#[derive(Clone, Debug)]
pub struct Rows {
    pub batch: Dim,
    pub length: Dim,
    /// A backbone value `[batch, length, ...]`, from which the run-time sizes are read.
    pub like: ValueId,
}

impl Rows {
    pub fn count(&self) -> Dim {
        (self.batch.clone() * self.length.clone()).simplify()
    }

    /// `[batch, length, width]` as rows.
    pub fn flatten(&self, b: &Builder, x: ValueId, width: usize) -> ValueId {
        let rows = b.reshape(x, &[-1, width as i64]);
        b.shaped(rows, &[self.count(), Dim::Value(width as i32)])
    }

    /// Rows as `[batch, length, axes...]`.
    pub fn unflatten(&self, b: &Builder, x: ValueId, axes: &[usize]) -> ValueId {
        let mut dims = vec![self.batch.clone(), self.length.clone()];
        dims.extend(axes.iter().map(|&a| Dim::Value(a as i32)));
        let tail: Vec<i64> = axes.iter().map(|&a| a as i64).collect();
        let shape = match (&self.batch, &self.length) {
            (Dim::Value(batch), _) => b.i64s(&[&[i64::from(*batch), -1], &tail[..]].concat()),
            (_, Dim::Value(length)) => b.i64s(&[&[-1, i64::from(*length)], &tail[..]].concat()),
            _ => b.concat(&[b.shape_slice(self.like, 0, 2), b.i64s(&tail)], 0),
        };
        b.reshape_to(x, shape, &dims)
    }
}

/// Dropout in training; a rate of 0 adds nothing to the graph.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    pub rate: f32,
    pub seed: u64,
}

impl Dropout {
    pub const NONE: Dropout = Dropout { rate: 0.0, seed: 0 };

    pub fn apply(self, b: &Builder, x: ValueId) -> ValueId {
        if self.rate == 0.0 {
            return x;
        }
        // ONNX Runtime counts a node's seed up from run to run: those of two nodes must be far apart.
        let seed = scattered(self.seed ^ (x.index() as u64) << 32) & 0x7fff_ffff;
        let training =
            b.constant(Weight::new(DType::Bool, vec![], vec![1_u8].into(), None).expect("one byte is one bool"));
        // A constant of its own: setting the rate to 0 changes no other number.
        let rate = b.edit(|graph| graph.add_weight("dropout_rate", Weight::scalar_f32(self.rate)));
        let attributes = Attributes::none().int("seed", seed as i64);
        b.unshared("Dropout", &[x, rate, training], attributes, 2)[0]
    }
}

/// A number unlike that of any other node (the finaliser of SplitMix64).
fn scattered(x: u64) -> u64 {
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// `weight * x / sqrt(mean(x^2) + epsilon)` on rows of `width`.
pub fn norm(b: &Builder, x: ValueId, weight: ValueId, epsilon: f32, width: usize) -> ValueId {
    let sum = b.reduce_sum(b.mul(x, x), &[-1], true);
    let mean_square = b.mul(sum, b.f32(1.0 / width as f32));
    let root = b.sqrt(b.add(mean_square, b.f32(epsilon)));
    b.mul(b.div(x, root), weight)
}

/// `x W^T (+ bias)` on rows.
pub fn linear(b: &Builder, x: ValueId, matrix: MatrixValue, bias: Option<ValueId>) -> ValueId {
    b.gemm(x, matrix.value, bias, false, matrix.orientation == Orientation::OutIn)
}

/// Where a block's weights come from, and how wide it is with them.
pub trait Weights {
    fn linear(&self, b: &Builder, at: Slot, of: &Linear) -> MatrixValue;

    /// `[width]`
    fn norm(&self, b: &Builder, at: Slot, of: &Norm) -> ValueId;

    /// `[buckets, heads]`
    fn table(&self, b: &Builder, at: Slot, of: &Relative) -> ValueId;

    /// Of the residual stream.
    fn width(&self) -> usize;

    fn head_width(&self, of: &Attention) -> usize;

    /// What the nodes of a sublayer are named after, where they are not named after the whole.
    fn scope(&self, _: SublayerId) -> Option<String> {
        None
    }
}

/// What a block reads besides its weights.
pub struct Streams<'s> {
    pub rows: &'s Rows,
    /// The rows that cross-attention reads.
    pub context: Option<(ValueId, &'s Rows)>,
    pub dropout: Dropout,
    /// Heads whose scores are computed together, at most; all if none is given.
    pub together: Option<usize>,
}

/// The residual stream behind a block made like one of the backbone, from that before it, as rows. `number` is the block's own.
pub fn block(
    b: &Builder,
    anatomy: &Block,
    (tower, number): (TowerId, usize),
    weights: &dyn Weights,
    streams: &Streams,
    before: ValueId,
) -> ValueId {
    let mut state = before;
    for (sublayer, layer) in anatomy.sublayers.iter().enumerate() {
        let place = SublayerId { tower, block: number, sublayer };
        if let Some(scope) = weights.scope(place) {
            b.scope(&scope);
        }
        let gain = weights.norm(b, place.slot(Site::Norm), &layer.norm);
        let x = norm(b, state, gain, layer.norm.epsilon, weights.width());
        let matrix = |site, linear| weights.linear(b, place.slot(site), linear);
        let branch = match &layer.kind {
            SublayerKind::Attention(a) => {
                let table = a.relative().map(|r| weights.table(b, place.slot(Site::PositionTable), r));
                let [q, k, v, o] = [(Site::Q, &a.q), (Site::K, &a.k), (Site::V, &a.v), (Site::O, &a.o)];
                let [q, k, v, o] = [q, k, v, o].map(|(site, linear)| matrix(site, linear));
                let head_width = weights.head_width(a);
                let together = streams.together.unwrap_or(a.heads);
                let weights = AttentionWeights { q, k, v, o, table, head_width, together };
                let context = streams.context.filter(|_| a.kind == AttentionKind::Cross);
                attention(b, a, &weights, (x, streams.rows), context, streams.dropout)
            }
            SublayerKind::FeedForward(f) => {
                let inner = f.inner.iter().enumerate().map(|(number, linear)| matrix(Site::Inner(number), linear));
                let weights = FeedForwardWeights { inner: inner.collect(), outer: matrix(Site::Outer, &f.outer) };
                feed_forward(b, f, &weights, x, streams.dropout)
            }
        };
        state = b.add(state, streams.dropout.apply(b, branch));
    }
    state
}

/// The backbone's own weights, at full width.
pub struct FrozenWeights {
    pub width: usize,
}

impl Weights for FrozenWeights {
    fn linear(&self, b: &Builder, _: Slot, of: &Linear) -> MatrixValue {
        MatrixValue::frozen(b, of)
    }

    fn norm(&self, b: &Builder, _: Slot, of: &Norm) -> ValueId {
        b.cast(of.weight, DType::F32)
    }

    fn table(&self, b: &Builder, _: Slot, of: &Relative) -> ValueId {
        of.table.emit(b)
    }

    fn width(&self) -> usize {
        self.width
    }

    fn head_width(&self, of: &Attention) -> usize {
        of.head_width
    }
}

/// The weights of an attention layer.
struct AttentionWeights {
    q: MatrixValue,
    k: MatrixValue,
    v: MatrixValue,
    o: MatrixValue,
    /// `[buckets, heads]`, where the bias has a relative part.
    table: Option<ValueId>,
    head_width: usize,
    /// Heads whose scores are computed together, at most.
    together: usize,
}

/// `o(softmax(scale q k^T + bias) v)` on normed rows `x`; keys and values of `context`, or of `x`.
///
/// Heads are taken [`AttentionWeights::together`], from their scores to what they mix.
fn attention(
    b: &Builder,
    anatomy: &Attention,
    weights: &AttentionWeights,
    (x, rows): (ValueId, &Rows),
    context: Option<(ValueId, &Rows)>,
    dropout: Dropout,
) -> ValueId {
    let keys = context.map_or(rows, |(_, keys)| keys);
    let [heads, width] = [anatomy.heads, weights.head_width];
    let shape = |heads: usize| [rows.batch.clone(), Dim::Value(heads as i32), rows.length.clone(), keys.length.clone()];
    let bias = ScoreBias::new(b, anatomy, weights.table, &shape(heads));
    let groups = if bias.divides() { groups(heads, weights.together) } else { vec![heads] };
    let [q, k, v] = match context {
        None => projections(b, x, rows, [weights.q, weights.k, weights.v], (&groups, width)),
        Some((context, keys)) => {
            let [q] = projections(b, x, rows, [weights.q], (&groups, width));
            let [k, v] = projections(b, context, keys, [weights.k, weights.v], (&groups, width));
            [q, k, v]
        }
    };
    let mut mixed = Vec::new();
    for (at, (heads, bias)) in groups.iter().zip(bias.of_groups(b, &groups)).enumerate() {
        let q = if anatomy.scale == 1.0 { q[at] } else { b.mul(q[at], b.f32(anatomy.scale)) };
        let (q, k) = match bias.of_keys {
            Some(mask) => masked(b, (q, k[at]), mask, (rows, *heads)),
            None => (q, k[at]),
        };
        let shape = shape(*heads);
        let scores = b.shaped(b.matmul(b.transpose(q, &[0, 1, 3, 2]), k), &shape);
        let probabilities = dropout.apply(b, b.softmax(bias.added(b, scores, &shape)));
        let mixes = b.matmul(v[at], b.transpose(probabilities, &[0, 1, 3, 2]));
        let [batch, heads, length, _] = shape;
        mixed.push(b.shaped(mixes, &[batch, heads, Dim::Value(width as i32), length]));
    }
    let mixed = if let [one] = mixed[..] { one } else { b.concat(&mixed, 1) };
    let merged = b.reshape(mixed, &[0, (heads * width) as i64, -1]);
    let [batch, _, length, _] = shape(heads);
    let merged = b.shaped(merged, &[batch, Dim::Value((heads * width) as i32), length]);
    linear(b, rows.flatten(b, b.transpose(merged, &[0, 2, 1]), heads * width), weights.o, None)
}

/// Heads in groups of at most so many, as even as possible.
fn groups(heads: usize, together: usize) -> Vec<usize> {
    let number = heads.div_ceil(together.max(1)).max(1);
    (0..number).map(|group| heads * (group + 1) / number - heads * group / number).collect()
}

/// What is added to the scores `[batch, heads, queries, keys]` of some heads.
struct ScoreBias {
    /// A mask that is the same for all heads and queries, `[batch, 1, 1, keys]`.
    of_keys: Option<ValueId>,
    /// Each of whose axes is as long as the scores', or 1.
    parts: Vec<ValueId>,
    /// Whose shape is not known to be a part of the scores'.
    others: Vec<ValueId>,
}

impl ScoreBias {
    fn new(b: &Builder, anatomy: &Attention, table: Option<ValueId>, shape: &[Dim; 4]) -> ScoreBias {
        let terms = match &anatomy.bias {
            Some(Bias::Sum(terms)) => &terms[..],
            Some(one) => std::slice::from_ref(one),
            None => &[],
        };
        let mask_of_keys = |(at, term): (usize, &Bias)| match term {
            Bias::Mask(Mask::Value(mask)) => Some((at, mask::of_keys(b, *mask, shape)?)),
            _ => None,
        };
        let of_keys = terms.iter().enumerate().find_map(mask_of_keys);
        let rest = terms.iter().enumerate().filter(|(at, _)| of_keys.is_none_or(|(place, _)| *at != place));
        let values: Vec<ValueId> = rest.map(|(_, term)| bias_value(b, term, table, shape)).collect();
        let (parts, others) = values.into_iter().partition(|bias| is_part(b, *bias, shape));
        ScoreBias { of_keys: of_keys.map(|(_, mask)| mask), parts, others }
    }

    /// True where each term's part for some of the heads can be found.
    fn divides(&self) -> bool {
        self.others.is_empty()
    }

    /// For each group of heads.
    fn of_groups(self, b: &Builder, groups: &[usize]) -> Vec<ScoreBias> {
        if groups.len() == 1 {
            return vec![self];
        }
        let sizes: Vec<i64> = groups.iter().map(|heads| *heads as i64).collect();
        let of_groups = |part: &ValueId| match axis(b, *part, 1) {
            Some(Dim::Value(1)) => vec![*part; groups.len()],
            _ => b.split(*part, &sizes, 1),
        };
        let parts: Vec<Vec<ValueId>> = self.parts.iter().map(of_groups).collect();
        let group = |at: usize| {
            let parts = parts.iter().map(|of_groups| of_groups[at]).collect();
            ScoreBias { of_keys: self.of_keys, parts, others: Vec::new() }
        };
        (0..groups.len()).map(group).collect()
    }

    /// Terms are summed before the scores are added to: layers share that sum, and each passes over its scores once. One
    /// whose shape is not known to be a part of the scores' has no gradient to be summed to it, and is added alone.
    fn added(self, b: &Builder, scores: ValueId, shape: &[Dim; 4]) -> ValueId {
        let sum = self.parts.into_iter().reduce(|sum, bias| b.add(sum, bias));
        let terms = sum.into_iter().chain(self.others);
        terms.fold(scores, |scores, bias| b.shaped(b.add(scores, bias), shape))
    }
}

/// Products of rows with several matrices, as one: `[batch, heads, width, length]` of each.
///
/// With the length last, the products of attention run along it, and not along the few numbers of a head.
fn projections<const N: usize>(
    b: &Builder,
    x: ValueId,
    rows: &Rows,
    matrices: [MatrixValue; N],
    (groups, width): (&[usize], usize),
) -> [Vec<ValueId>; N] {
    let heads: usize = groups.iter().sum();
    let orientation = matrices[0].orientation;
    let whole = match matrices[..] {
        [one] => one,
        _ => {
            // A file may hold some of them transposed.
            let alike =
                |m: MatrixValue| if m.orientation == orientation { m.value } else { b.transpose(m.value, &[1, 0]) };
            let axis = if orientation == Orientation::OutIn { 0 } else { 1 };
            let value = b.concat(&matrices.map(alike), axis);
            MatrixValue { value, orientation }
        }
    };
    let all = rows.unflatten(b, linear(b, x, whole, None), &[N * heads * width]);
    let by_head = b.reshape(b.transpose(all, &[0, 2, 1]), &[0, (N * heads) as i64, width as i64, -1]);
    let dims = |heads: usize| {
        let [heads, width] = [heads, width].map(|n| Dim::Value(n as i32));
        [rows.batch.clone(), heads, width, rows.length.clone()]
    };
    let by_head = b.shaped(by_head, &dims(N * heads));
    let sizes: Vec<i64> = std::iter::repeat_n(groups, N).flatten().map(|heads| *heads as i64).collect();
    let parts = if sizes.len() == 1 { vec![by_head] } else { b.split(by_head, &sizes, 1) };
    let mut parts = parts.into_iter().zip(sizes).map(|(part, heads)| b.shaped(part, &dims(heads as usize)));
    [(); N].map(|()| parts.by_ref().take(groups.len()).collect())
}

/// The size of an axis, where it is known or has a symbol.
fn axis(b: &Builder, value: ValueId, axis: usize) -> Option<Dim> {
    b.shape(value)?.get(axis).cloned()
}

/// Queries and keys of `[batch, heads, width + 1, length]`, whose product has the mask added: `[q, 1] [k, mask]^T`. So the
/// scores, which are large, are written once and not twice.
fn masked(b: &Builder, (q, k): (ValueId, ValueId), mask: ValueId, (rows, heads): (&Rows, usize)) -> (ValueId, ValueId) {
    let heads = heads as i64;
    let size = |dim: &Dim, axis| match dim {
        Dim::Value(size) => b.i64s(&[(*size).into()]),
        _ => b.shape_slice(rows.like, axis, axis + 1),
    };
    let sizes = [size(&rows.batch, 0), b.i64s(&[heads, 1]), size(&rows.length, 1)];
    let [one_row, heads_dim] = [1, heads as i32].map(Dim::Value);
    let ones = b.op("Expand", &[b.f32(1.0), b.concat(&sizes, 0)], Attributes::none());
    let ones = b.shaped(ones, &[rows.batch.clone(), heads_dim, one_row, rows.length.clone()]);
    let mask = b.op("Expand", &[b.cast(mask, DType::F32), b.i64s(&[1, heads, 1, 1])], Attributes::none());
    (b.concat(&[q, ones], 2), b.concat(&[k, mask], 2))
}

/// True for a bias each of whose axes is as long as the scores', or 1.
fn is_part(b: &Builder, bias: ValueId, scores: &[Dim; 4]) -> bool {
    let is_part = |(size, of_scores): (&Dim, &Dim)| size == of_scores || *size == Dim::Value(1);
    b.shape(bias).is_some_and(|shape| shape.len() == 4 && shape.iter().zip(scores).all(is_part))
}

/// A bias that broadcasts to the scores' shape.
fn bias_value(b: &Builder, bias: &Bias, table: Option<ValueId>, shape: &[Dim; 4]) -> ValueId {
    match bias {
        Bias::Mask(Mask::Value(value)) => b.cast(*value, DType::F32),
        Bias::Mask(Mask::Unfolded(mask)) => b.constant(mask.clone()),
        Bias::Relative(relative) => {
            let table = table.expect("a layer with a relative bias has a table");
            let buckets = match &relative.buckets {
                Buckets::Value(value) => *value,
                Buckets::Unfolded(weight) => b.constant(weight.clone()),
            };
            let rows = b.op("Gather", &[table, buckets], Attributes::none().int("axis", 0));
            let rows = b.shaped(rows, &[shape[2].clone(), shape[3].clone(), shape[1].clone()]);
            let by_head = b.transpose(rows, &[2, 0, 1]);
            let value = b.unsqueeze(by_head, 0);
            b.shaped(value, &[Dim::Value(1), shape[1].clone(), shape[2].clone(), shape[3].clone()])
        }
        Bias::Sum(terms) => {
            let values: Vec<ValueId> = terms.iter().map(|t| bias_value(b, t, table, shape)).collect();
            values.into_iter().reduce(|x, y| b.add(x, y)).expect("a sum has terms")
        }
        Bias::Where { keep, inner, fill } => {
            let selected = b.select(*keep, bias_value(b, inner, table, shape), b.cast(*fill, DType::F32));
            b.shaped(selected, shape)
        }
    }
}

/// The weights of a feed-forward layer.
struct FeedForwardWeights {
    inner: Vec<MatrixValue>,
    outer: MatrixValue,
}

/// `outer(f(inner x))`, or `outer(f(gate x) * inner x)`, on normed rows.
fn feed_forward(
    b: &Builder,
    anatomy: &FeedForward,
    weights: &FeedForwardWeights,
    x: ValueId,
    dropout: Dropout,
) -> ValueId {
    let hidden = activate(b, anatomy.activation, linear(b, x, weights.inner[0], None));
    let hidden = match weights.inner.get(1) {
        Some(matrix) => b.mul(hidden, linear(b, x, *matrix, None)),
        None => hidden,
    };
    linear(b, dropout.apply(b, hidden), weights.outer, None)
}

fn activate(b: &Builder, activation: Activation, x: ValueId) -> ValueId {
    let unary = |op: &str, x| b.op(op, &[x], Attributes::none());
    match activation {
        Activation::Relu => unary("Relu", x),
        Activation::Silu => b.mul(x, unary("Sigmoid", x)),
        Activation::GeluErf => {
            let curve = unary("Erf", b.mul(x, b.f32(std::f32::consts::FRAC_1_SQRT_2)));
            b.mul(b.mul(x, b.f32(0.5)), b.add(curve, b.f32(1.0)))
        }
        Activation::GeluTanh => {
            // sqrt(2/pi) (x + 0.044715 x^3) = x (c + 0.044715 c x^2), c = sqrt(2/pi)
            let c = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2;
            let slope = b.add(b.mul(b.mul(x, x), b.f32(0.044_715 * c)), b.f32(c));
            let curve = unary("Tanh", b.mul(x, slope));
            b.mul(b.mul(x, b.f32(0.5)), b.add(curve, b.f32(1.0)))
        }
    }
}
