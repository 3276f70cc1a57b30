//! Position biases that an exporter folded.
//!
//! With static lengths, PyTorch's dynamo exporter computes `table[buckets]` itself and stores a constant
//! `[1, heads, queries, keys]`. A relative bias depends on the distance of key and query alone: if the constant does,
//! distances with equal biases are one bucket, and table and bucket indices can be read off it. The partition comes from the
//! data; only the buckets' numbers come from T5's formula, so that the table's rows are in their usual places.

use std::collections::HashMap;

use lstc_graph::Weight;

/// Buckets and largest distance of every released T5.
const BUCKETS: usize = 32;
const MAX_DISTANCE: f32 = 128.0;

/// A table `[rows, heads]` and the bucket indices `[queries, keys]` that give the constant back.
pub struct Unfolded {
    pub table: Weight,
    pub rows: usize,
    pub buckets: Weight,
}

/// Reads table and buckets off a folded bias; `None` where it does not depend on distance alone.
pub fn unfold(bias: &Weight) -> Option<Unfolded> {
    let [1, heads, queries, keys] = *bias.dims() else { return None };
    let values = bias.to_f32()?;
    if heads == 0 || queries == 0 || keys == 0 {
        return None;
    }
    let at = |head: usize, i: usize, j: usize| values[(head * queries + i) * keys + j].to_bits();
    // The biases of distance j - i, from 1 - queries to keys - 1, a vector of one a head.
    let distances = queries + keys - 1;
    let place = |d: usize| if d < queries { (queries - 1 - d, 0) } else { (0, d + 1 - queries) };
    let vector = |d: usize| (0..heads).map(|h| at(h, place(d).0, place(d).1)).collect::<Vec<u32>>();
    let vectors: Vec<Vec<u32>> = (0..distances).map(vector).collect();
    let depends_on_distance =
        (0..queries).all(|i| (0..keys).all(|j| (0..heads).all(|h| at(h, i, j) == vectors[j + queries - 1 - i][h])));
    if !depends_on_distance {
        return None;
    }
    let mut members: HashMap<&[u32], Vec<i64>> = HashMap::new();
    for (d, vector) in vectors.iter().enumerate() {
        members.entry(vector).or_default().push(d as i64 + 1 - queries as i64);
    }
    let mut groups: Vec<(Vec<i64>, &[u32])> = members.into_iter().map(|(v, d)| (d, v)).collect();
    groups.sort();
    let numbers = usual_numbers(&groups, true).or_else(|| usual_numbers(&groups, false));
    let rows = if numbers.is_some() { BUCKETS } else { groups.len() };
    let numbers = numbers.unwrap_or_else(|| (0..groups.len()).collect());

    let mut table = vec![0.0; rows * heads];
    let mut bucket_of = vec![0_i64; distances];
    for ((distances, vector), number) in groups.iter().zip(numbers) {
        for (head, bits) in vector.iter().enumerate() {
            table[number * heads + head] = f32::from_bits(*bits);
        }
        for d in distances {
            bucket_of[(d + queries as i64 - 1) as usize] = number as i64;
        }
    }
    let buckets: Vec<i64> = (0..queries * keys).map(|at| bucket_of[at % keys + queries - 1 - at / keys]).collect();
    Some(Unfolded {
        table: Weight::from_f32(&[rows, heads], &table),
        rows,
        buckets: Weight::from_i64(&[queries, keys], &buckets),
    })
}

/// T5's numbers of the groups' buckets; `None` where a group is not one of T5's buckets, or two would be the same.
fn usual_numbers(groups: &[(Vec<i64>, &[u32])], both_directions: bool) -> Option<Vec<usize>> {
    let mut seen = [false; BUCKETS];
    let mut number = |distances: &[i64]| {
        let number = usual_number(distances[distances.len() / 2], both_directions);
        // The formula's logarithm may round to the other side of a bucket's end: by one, at the ends.
        let fits = distances.iter().all(|d| usual_number(*d, both_directions).abs_diff(number) <= 1);
        let (first, last) = (distances[0], distances[distances.len() - 1]);
        let one_side = !both_directions || first > 0 || last < 0 || first == last;
        (fits && one_side && !std::mem::replace(&mut seen[number], true)).then_some(number)
    };
    groups.iter().map(|(distances, _)| number(distances)).collect()
}

/// The bucket of a distance of key from query, as T5 computes it.
fn usual_number(distance: i64, both_directions: bool) -> usize {
    let (count, first, n) = if both_directions {
        (BUCKETS / 2, if distance > 0 { BUCKETS / 2 } else { 0 }, distance.unsigned_abs() as usize)
    } else {
        (BUCKETS, 0, (-distance.min(0)) as usize)
    };
    let exact = count / 2;
    if n < exact {
        return first + n;
    }
    let scale = (n as f32 / exact as f32).ln() / (MAX_DISTANCE / exact as f32).ln();
    first + (exact + (scale * (count - exact) as f32) as usize).min(count - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fold(table: &[f32], heads: usize, queries: usize, keys: usize, both: bool) -> Weight {
        let mut values = Vec::new();
        for head in 0..heads {
            for i in 0..queries {
                for j in 0..keys {
                    values.push(table[usual_number(j as i64 - i as i64, both) * heads + head]);
                }
            }
        }
        Weight::from_f32(&[1, heads, queries, keys], &values)
    }

    #[test]
    fn what_was_folded_is_unfolded() {
        let table: Vec<f32> = (0..BUCKETS * 3).map(|v| (v as f32).sin()).collect();
        for both in [true, false] {
            for (queries, keys) in [(1, 1), (5, 5), (40, 40), (200, 200), (7, 12)] {
                let folded = fold(&table, 3, queries, keys, both);
                let Unfolded { table: found, rows, buckets } = unfold(&folded).expect("it depends on distance alone");
                if queries > 1 {
                    // Every row that is read is where it was.
                    let wanted = |at: usize| table[at] == found.to_f32().expect("f32")[at];
                    let read = buckets.to_i64().expect("i64");
                    assert!(read.iter().all(|b| (0..3).all(|h| wanted(*b as usize * 3 + h))));
                }
                let (found, buckets) = (found.to_f32().expect("f32"), buckets.to_i64().expect("i64"));
                assert_eq!(rows, BUCKETS, "{both} {queries} x {keys}");
                for (at, value) in folded.to_f32().expect("f32").into_iter().enumerate() {
                    let (head, place) = (at / (queries * keys), at % (queries * keys));
                    assert_eq!(found[buckets[place] as usize * 3 + head], value);
                }
            }
        }
    }

    #[test]
    fn what_does_not_depend_on_distance_alone_is_not() {
        let mut values = vec![0.5; 2 * 3 * 3];
        values[4] = 1.0;
        assert!(unfold(&Weight::from_f32(&[1, 2, 3, 3], &values)).is_none());
    }
}
