//! Attention operators as heads, scores, masks, softmax and mix.

use lstc_graph::{Attributes, Builder, DType, Dim, Node, ValueId, Weight};

use super::{Made, UNKNOWN_SHAPE, constant_like, operand};

const CACHE: &str = "it reads or returns a cache of keys and values, or returns its scores";

/// What the attention operators have in common.
struct Core {
    /// `[batch, heads, queries, width]`
    q: ValueId,
    /// `[batch, heads, keys, width]`
    k: ValueId,
    v: ValueId,
    scale: f32,
    /// What is added to the scores.
    biases: Vec<ValueId>,
    causal: bool,
    /// Heads are merged into `[batch, queries, heads * width]`.
    merge: bool,
}

/// `Attention` of opset 23 without a cache.
pub(super) fn attention(b: &Builder, node: &Node) -> Made {
    let absent = |slot: usize| node.input(slot).is_none();
    let int = |name: &str| node.attributes.get_int(name).unwrap_or(0);
    let softcap = node.attributes.get_float("softcap").unwrap_or(0.0);
    let single = node.outputs.iter().skip(1).all(Option::is_none);
    if !absent(4) || !absent(5) || !absent(6) || !single {
        return Err(CACHE);
    }
    if softcap != 0.0 {
        return Err("it applies a soft cap to the scores");
    }
    let [q, k, v] = [operand(node, 0)?, operand(node, 1)?, operand(node, 2)?];
    let merge = b.shape(q).ok_or(UNKNOWN_SHAPE)?.len() == 3;
    let (q_heads, kv_heads) = (int("q_num_heads"), int("kv_num_heads"));
    if merge && (q_heads <= 0 || q_heads != kv_heads) {
        return Err("its queries share keys and values in groups, or the number of heads is missing");
    }
    let split = |x: ValueId| if merge { split_heads(b, x, q_heads) } else { x };
    let [q, k, v] = [split(q), split(k), split(v)];
    let width = head_width(b, q)?;
    let scale = node.attributes.get_float("scale").unwrap_or(width.sqrt().recip());
    let biases = node.input(3).map(|mask| additive(b, mask, q)).into_iter().collect();
    let core = Core { q, k, v, scale, biases, causal: int("is_causal") != 0, merge };
    Ok(vec![(0, emit(b, &core)?)])
}

/// ONNX Runtime's `MultiHeadAttention` on separate queries, keys and values, without a cache.
pub(super) fn multi_head(b: &Builder, node: &Node) -> Made {
    let absent = |slot: usize| node.input(slot).is_none();
    let single = node.outputs.iter().skip(1).all(Option::is_none);
    if !absent(3) {
        return Err("it adds a bias to queries, keys and values");
    }
    if !(6..10).all(absent) || !single {
        return Err(CACHE);
    }
    let heads = node.attributes.get_int("num_heads").filter(|h| *h > 0).ok_or("the number of heads is missing")?;
    let packed = "queries, keys and values are not separate";
    let [q, k, v] = [operand(node, 0)?, node.input(1).ok_or(packed)?, node.input(2).ok_or(packed)?];
    let split = |x: ValueId| match b.shape(x).ok_or(UNKNOWN_SHAPE)?.len() {
        3 => Ok(split_heads(b, x, heads)),
        4 => Ok(x),
        _ => Err(packed),
    };
    let [q, k, v] = [split(q)?, split(k)?, split(v)?];
    let width = head_width(b, q)?;
    // A scale of 0 means the default.
    let scale = node.attributes.get_float("scale").filter(|s| *s != 0.0).unwrap_or(width.sqrt().recip());
    let mut biases: Vec<ValueId> = node.input(5).into_iter().collect();
    if let Some(padding) = node.input(4) {
        let fill = node.attributes.get_float("mask_filter_value").unwrap_or(-10_000.0);
        biases.push(padding_bias(b, padding, fill, q)?);
    }
    let causal = node.attributes.get_int("unidirectional").unwrap_or(0) != 0;
    let length = |x: ValueId| b.shape(x).and_then(|s| s.get(2).cloned());
    if causal && length(q) != length(k) {
        // The operator does not say which positions of queries and keys are the same.
        return Err("it is causal, with different numbers of queries and keys");
    }
    Ok(vec![(0, emit(b, &Core { q, k, v, scale, biases, causal, merge: true })?)])
}

/// The last size of queries split into heads.
fn head_width(b: &Builder, q: ValueId) -> Result<f32, &'static str> {
    match b.shape(q).ok_or(UNKNOWN_SHAPE)?.last() {
        Some(Dim::Value(width)) if *width > 0 => Ok(*width as f32),
        _ => Err("the width of a head is not constant"),
    }
}

/// `[batch, length, heads * width]` as `[batch, heads, length, width]`.
fn split_heads(b: &Builder, x: ValueId, heads: i64) -> ValueId {
    let split = b.reshape(x, &[0, 0, heads, -1]);
    let sizes = b.shape(x).and_then(|s| <[Dim; 3]>::try_from(s).ok());
    if let Some([batch, length, Dim::Value(width)]) = sizes
        && let Ok(heads) = i32::try_from(heads)
        && width % heads == 0
    {
        b.shaped(split, &[batch, length, Dim::Value(heads), Dim::Value(width / heads)]);
    }
    b.transpose(split, &[0, 2, 1, 3])
}

/// A mask in additive form: as it is, or 0 where a boolean one holds and the lowest number elsewhere.
fn additive(b: &Builder, mask: ValueId, like: ValueId) -> ValueId {
    if b.dtype(mask) != Some(DType::Bool) {
        return mask;
    }
    b.select(mask, constant_like(b, 0.0, like), constant_like(b, f32::MIN, like))
}

/// `[batch, keys]`, 0 for padding, as an additive `[batch, 1, 1, keys]`.
fn padding_bias(b: &Builder, padding: ValueId, fill: f32, like: ValueId) -> Result<ValueId, &'static str> {
    let shape = b.shape(padding).ok_or(UNKNOWN_SHAPE)?;
    let [batch, keys] = <[Dim; 2]>::try_from(shape).map_err(|_| "its padding mask is not [batch, keys]")?;
    let kept = b.shaped(b.unsqueeze(b.unsqueeze(padding, 1), 1), &[batch, Dim::Value(1), Dim::Value(1), keys]);
    Ok(additive_fill(b, b.cast(kept, DType::Bool), fill, like))
}

fn additive_fill(b: &Builder, mask: ValueId, fill: f32, like: ValueId) -> ValueId {
    b.select(mask, constant_like(b, 0.0, like), constant_like(b, fill, like))
}

/// `[queries, keys]`: 0 up to the query's own position, the lowest number after it.
fn causal_bias(b: &Builder, q: ValueId, k: ValueId) -> ValueId {
    let positions = |x: ValueId| {
        let length = b.reshape(b.shape_slice(x, 2, 3), &[]);
        let range = b.op("Range", &[b.i64(0), length, b.i64(1)], Attributes::none());
        match b.shape(x).as_deref() {
            Some([_, _, length, _]) => b.shaped(range, std::slice::from_ref(length)),
            _ => range,
        }
    };
    let later = b.op("Greater", &[b.unsqueeze(positions(k), 0), b.unsqueeze(positions(q), 1)], Attributes::none());
    let visible = b.op("Not", &[later], Attributes::none());
    additive_fill(b, visible, f32::MIN, q)
}

/// The operator's output.
fn emit(b: &Builder, core: &Core) -> Result<ValueId, &'static str> {
    let k = b.transpose(core.k, &[0, 1, 3, 2]);
    let mut scores = b.unshared("MatMul", &[core.q, k], Attributes::none(), 1)[0];
    if core.scale != 1.0 {
        scores = b.mul(scores, constant_like(b, core.scale, core.q));
    }
    let causal = core.causal.then(|| causal_bias(b, core.q, core.k));
    for bias in core.biases.iter().copied().chain(causal) {
        scores = b.add(scores, bias);
    }
    let probabilities = b.unshared("Softmax", &[scores], Attributes::none().int("axis", -1), 1)[0];
    let mixed = b.unshared("MatMul", &[probabilities, core.v], Attributes::none(), 1)[0];
    if !core.merge {
        return Ok(mixed);
    }
    let merged = b.transpose(mixed, &[0, 2, 1, 3]);
    let [batch, heads, length, width] =
        <[Dim; 4]>::try_from(b.shape(core.q).ok_or(UNKNOWN_SHAPE)?).map_err(|_| UNKNOWN_SHAPE)?;
    let shape = b.constant(Weight::from_i64(&[3], &[0, 0, -1]));
    let flat = b.unshared("Reshape", &[merged, shape], Attributes::none(), 1)[0];
    Ok(b.shaped(flat, &[batch, length, (heads * width).simplify()]))
}
