//! ONNX Runtime's `RelativePositionBias` as T5's buckets and the rows of a table.

use lstc_graph::{Attributes, Builder, DType, Dim, Node, ValueId, Weight};

use super::{Made, operand};

/// `[1, heads, queries, keys]` from a table whose numbers lie head by head, and two lengths.
pub(super) fn bias(b: &Builder, node: &Node) -> Made {
    let [table, queries, keys] = [operand(node, 0)?, operand(node, 1)?, operand(node, 2)?];
    // The operator declares [buckets, heads], and reads [heads, buckets].
    let values = b.read(|graph| {
        let weight = graph.weight(table)?;
        let [rows, heads] = *weight.dims() else { return None };
        Some((rows, heads, weight.to_f32()?))
    });
    let (rows, heads, values) = values.ok_or("its table is no constant of two axes")?;
    let by_row: Vec<f32> = (0..rows * heads).map(|i| values[i % heads * rows + i / heads]).collect();
    let table = b.constant(Weight::from_f32(&[rows, heads], &by_row));
    let both = node.attributes.get_int("is_bidirectional").unwrap_or(0) != 0;
    let max_distance =
        node.attributes.get_int("max_distance").filter(|d| *d > 0).ok_or("it has no largest distance")?;
    let buckets = buckets(b, [queries, keys], rows as i64, max_distance, both);
    let buckets = buckets.ok_or("it has too few buckets for its largest distance")?;
    let picked = b.op("Gather", &[table, buckets], Attributes::none().int("axis", 0));
    let by_head = b.transpose(picked, &[2, 0, 1]);
    let axes = Attributes::none();
    let bias = if b.opset() >= 13 {
        b.unshared("Unsqueeze", &[by_head, b.i64s(&[0])], axes, 1)[0]
    } else {
        b.unshared("Unsqueeze", &[by_head], axes.ints("axes", &[0]), 1)[0]
    };
    Ok(vec![(0, bias)])
}

/// Bucket indices, i64 `[queries, keys]`: exact up to half of the buckets of a direction, logarithmic from there to
/// `max_distance` (Raffel et al., 2020).
fn buckets(b: &Builder, lengths: [ValueId; 2], count: i64, max_distance: i64, both: bool) -> Option<ValueId> {
    let unary = |op: &str, x| b.op(op, &[x], Attributes::none());
    let binary = |op: &str, x, y| b.op(op, &[x, y], Attributes::none());
    let [queries, keys] = lengths.map(|length| {
        let length = b.reshape(b.cast(length, DType::I64), &[]);
        let range = b.op("Range", &[b.i64(0), length, b.i64(1)], Attributes::none());
        let name = b.read(|g| g.value(length).name.clone());
        b.shaped(range, &[Dim::pos_var(&name)])
    });
    let relative = b.sub(b.unsqueeze(keys, 0), b.unsqueeze(queries, 1));
    let (count, first, distance) = if both {
        let half = count / 2;
        let later = b.cast(binary("Greater", relative, b.i64(0)), DType::I64);
        (half, Some(b.mul(later, b.i64(half))), unary("Abs", relative))
    } else {
        let later = binary("Greater", relative, b.i64(0));
        (count, None, b.neg(b.select(later, b.i64(0), relative)))
    };
    let exact = count / 2;
    if exact < 1 || max_distance <= exact {
        return None;
    }
    let is_exact = binary("Less", distance, b.i64(exact));
    // The logarithm of distance 0 is not taken: it is selected away, but would not be finite.
    let far = b.select(is_exact, b.i64(exact), distance);
    let ratio = b.div(b.cast(far, DType::F32), b.f32(exact as f32));
    let slope = (count - exact) as f32 / (max_distance as f32 / exact as f32).ln();
    let log = b.cast(b.mul(unary("Log", ratio), b.f32(slope)), DType::I64);
    let far = b.add(log, b.i64(exact));
    let far = b.select(binary("Less", far, b.i64(count - 1)), far, b.i64(count - 1));
    let bucket = b.select(is_exact, distance, far);
    Some(first.map_or(bucket, |first| b.add(bucket, first)))
}
