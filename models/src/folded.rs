//! Position biases and masks that an exporter folded.
//!
//! With static lengths, PyTorch's exporters and ONNX Runtime's optimiser compute `table[buckets]` themselves, and with it what a
//! mask of constants makes of it: a causal mask, or a mask of padding that hides nothing. They store one constant `[1, heads, queries,
//! keys]`, or one for each example of the batch. What hides keys is a mask. The rest is a relative bias if it depends on the
//! distance of key and query alone: distances with equal biases are one bucket, and table and bucket indices can be read off
//! it. The partition comes from the data; only the buckets' numbers come from T5's formula, so that the table's rows are in
//! their usual places.
//!
//! **Invariant:** table, buckets and mask give the constant back, element for element, but for the biases of hidden keys.

use std::collections::HashMap;

use lstc_graph::Weight;

/// Buckets and largest distance of every released T5.
const BUCKETS: usize = 32;
const MAX_DISTANCE: f32 = 128.0;

/// A bias this low hides a key.
const SHUT: f32 = -1e4;

const DIFFERS: &str = "differs between the examples of the batch, as it does where a mask of padding was folded into it: export \
                       the model with its attention mask as an input";

/// What a folded bias holds.
#[derive(Debug)]
pub struct Unfolded {
    /// `[rows, heads]`
    pub table: Weight,
    pub rows: usize,
    /// Bucket indices `[queries, keys]`.
    pub buckets: Weight,
    /// `[1, 1, queries, keys]`, where any key is hidden.
    pub mask: Option<Weight>,
}

/// True for a constant of zeros and of numbers that no softmax lets through.
pub fn masks(weight: &Weight) -> bool {
    weight.to_f32().is_some_and(|values| values.iter().all(|v| *v == 0.0 || *v <= SHUT))
}

/// Reads table, buckets and mask off a folded bias.
///
/// # Errors
/// Why it is not a position bias with a mask.
pub fn unfold(bias: &Weight) -> Result<Unfolded, &'static str> {
    let scores = Scores::new(bias)?;
    let vectors = scores.by_distance()?;
    let [heads, queries, keys] = scores.dims;
    // From 1 - queries to keys - 1.
    let distance = |place: usize| place as i64 + 1 - queries as i64;
    let mut members: HashMap<&[u32], Vec<i64>> = HashMap::new();
    for (place, vector) in vectors.iter().enumerate() {
        if let Some(vector) = vector {
            members.entry(vector).or_default().push(distance(place));
        }
    }
    let mut groups: Vec<(Vec<i64>, &[u32])> = members.into_iter().map(|(v, d)| (d, v)).collect();
    groups.sort();
    // Where later keys are hidden, a bias of both directions and one of the past look alike, and a decoder's is of the past.
    let sees_later = groups.iter().any(|(distances, _)| distances.iter().any(|d| *d > 0));
    let usual = [sees_later, !sees_later].into_iter().find_map(|both| Some((usual_numbers(&groups, both)?, both)));
    let (rows, numbers, both) = match usual {
        Some((numbers, both)) => (BUCKETS, numbers, Some(both)),
        None => (groups.len(), (0..groups.len()).collect(), None),
    };

    let mut table = vec![0.0; rows * heads];
    // The bucket of a distance at which all keys are hidden adds nothing.
    let mut bucket_of: Vec<i64> =
        (0..vectors.len()).map(|place| both.map_or(0, |both| usual_number(distance(place), both) as i64)).collect();
    for ((distances, vector), number) in groups.iter().zip(numbers) {
        for (head, bits) in vector.iter().enumerate() {
            table[number * heads + head] = f32::from_bits(*bits);
        }
        for d in distances {
            bucket_of[(d + queries as i64 - 1) as usize] = number as i64;
        }
    }
    let buckets: Vec<i64> = (0..queries * keys).map(|at| bucket_of[at % keys + queries - 1 - at / keys]).collect();
    Ok(Unfolded {
        table: Weight::from_f32(&[rows, heads], &table),
        rows,
        buckets: Weight::from_i64(&[queries, keys], &buckets),
        mask: scores.mask(),
    })
}

/// Biases on the scores of each example.
struct Scores {
    /// Heads, queries, keys.
    dims: [usize; 3],
    values: Vec<f32>,
}

impl Scores {
    fn new(bias: &Weight) -> Result<Scores, &'static str> {
        let (&[_, heads, queries, keys], Some(mut values)) = (bias.dims(), bias.to_f32()) else {
            return Err("is not [batch, heads, queries, keys]");
        };
        let of_example = heads * queries * keys;
        if values.is_empty() {
            return Err("has no elements");
        }
        let mut examples = bias.bytes().chunks_exact(of_example * bias.dtype().size());
        let first = examples.next();
        if examples.any(|example| Some(example) != first) {
            return Err(DIFFERS);
        }
        values.truncate(of_example);
        Ok(Scores { dims: [heads, queries, keys], values })
    }

    /// The biases of all heads on one score.
    fn at(&self, query: usize, key: usize) -> impl Iterator<Item = f32> {
        let [heads, queries, keys] = self.dims;
        (0..heads).map(move |head| self.values[(head * queries + query) * keys + key])
    }

    /// The biases at each distance of key and query, from 1 - queries to keys - 1: the bits of one a head; `None` where every key at
    /// this distance is hidden.
    fn by_distance(&self) -> Result<Vec<Option<Vec<u32>>>, &'static str> {
        let [heads, queries, keys] = self.dims;
        let mut vectors: Vec<Option<Vec<u32>>> = vec![None; queries + keys - 1];
        for query in 0..queries {
            let mut sees_any = false;
            for key in 0..keys {
                match self.at(query, key).filter(|v| *v <= SHUT).count() {
                    0 => sees_any = true,
                    hidden if hidden == heads => continue,
                    _ => return Err("hides a key from some heads and shows it to others"),
                }
                if !self.at(query, key).all(f32::is_finite) {
                    return Err("holds numbers that are not finite, where it does not hide keys");
                }
                let found: Vec<u32> = self.at(query, key).map(f32::to_bits).collect();
                let vector = vectors[key + queries - 1 - query].get_or_insert_with(|| found.clone());
                if *vector != found {
                    return Err("does not depend on distance alone");
                }
            }
            if !sees_any {
                return Err("hides every key from a query");
            }
        }
        Ok(vectors)
    }

    /// What hides keys, with the numbers of the first head: a softmax that sees any key lets none of these through.
    fn mask(&self) -> Option<Weight> {
        let [_, queries, keys] = self.dims;
        let first = &self.values[..queries * keys];
        let hides = |v: &f32| *v <= SHUT;
        let mask: Vec<f32> = first.iter().map(|v| if hides(v) { *v } else { 0.0 }).collect();
        first.iter().any(hides).then(|| Weight::from_f32(&[1, 1, queries, keys], &mask))
    }
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
                let Unfolded { table: found, rows, buckets, mask } =
                    unfold(&folded).expect("it depends on distance alone");
                assert!(mask.is_none());
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

    /// A causal bias `[batch, heads, length, length]`, whose hidden keys have one number.
    fn causal(table: &[f32], [batch, heads, length]: [usize; 3], hidden: f32) -> Vec<f32> {
        let values = fold(table, heads, length, length, false).to_f32().expect("f32");
        let at = |(place, value): (usize, f32)| {
            if place % length > place / length % length { hidden } else { value }
        };
        let example: Vec<f32> = values.into_iter().enumerate().map(at).collect();
        example.repeat(batch)
    }

    #[test]
    fn a_causal_mask_is_told_from_the_bias() {
        let table: Vec<f32> = (0..BUCKETS * 3).map(|v| (v as f32).sin()).collect();
        for (batch, length, hidden) in [(1, 6, f32::MIN), (3, 40, f32::NEG_INFINITY), (2, 2, -1e9), (2, 9, -65504.0)] {
            let values = causal(&table, [batch, 3, length], hidden);
            let folded = Weight::from_f32(&[batch, 3, length, length], &values);
            let Unfolded { table: found, rows, buckets, mask } = unfold(&folded).expect("a bias and a mask");
            assert_eq!(rows, BUCKETS);
            let (found, buckets) = (found.to_f32().expect("f32"), buckets.to_i64().expect("i64"));
            let mask = mask.expect("later keys are hidden").to_f32().expect("f32");
            assert!(found.iter().all(|v| *v > SHUT));
            for (at, value) in values.into_iter().enumerate() {
                let (head, place) = (at / (length * length) % 3, at % (length * length));
                assert!((0..BUCKETS as i64).contains(&buckets[place]));
                assert_eq!(mask[place], if value == hidden { hidden } else { 0.0 });
                assert!(value == hidden || found[buckets[place] as usize * 3 + head] == value);
            }
            // As T5 numbers the buckets of the past.
            let wanted = |q: usize, k: usize| usual_number(k as i64 - q as i64, false) as i64;
            assert!((0..length * length).all(|at| buckets[at] == wanted(at / length, at % length)));
        }
    }

    /// Why a causal bias in which one number is another is refused, if it is.
    fn refusal(change: [usize; 4], value: f32) -> Option<&'static str> {
        let table: Vec<f32> = (0..BUCKETS * 2).map(|v| (v as f32).sin()).collect();
        let mut values = causal(&table, [2, 2, 4], f32::MIN);
        let [example, head, query, key] = change;
        values[((example * 2 + head) * 4 + query) * 4 + key] = value;
        if example == 0 {
            values.copy_within(..32, 32);
        }
        unfold(&Weight::from_f32(&[2, 2, 4, 4], &values)).err()
    }

    #[test]
    fn what_is_not_a_bias_and_a_mask_is_refused() {
        assert_eq!(refusal([0, 0, 0, 1], f32::MIN), None);
        assert_eq!(refusal([1, 0, 2, 1], 0.5).map(|r| &r[..7]), Some("differs"));
        assert_eq!(refusal([1, 0, 2, 1], f32::MIN).map(|r| &r[..7]), Some("differs"));
        assert_eq!(refusal([0, 1, 2, 1], f32::MIN), Some("hides a key from some heads and shows it to others"));
        assert_eq!(refusal([0, 1, 2, 3], 0.5), Some("hides a key from some heads and shows it to others"));
        assert_eq!(refusal([0, 1, 2, 1], 0.5), Some("does not depend on distance alone"));
        assert_eq!(refusal([0, 1, 0, 0], f32::MIN), Some("hides a key from some heads and shows it to others"));
        let all_hidden = Weight::from_f32(&[1, 1, 2, 2], &[-1e9, -1e9, -1e9, 0.5]);
        assert_eq!(unfold(&all_hidden).err(), Some("hides every key from a query"));
        for number in [f32::NAN, f32::INFINITY] {
            let reason = "holds numbers that are not finite, where it does not hide keys";
            assert_eq!(refusal([0, 1, 2, 1], number), Some(reason));
        }
    }

    #[test]
    fn what_does_not_depend_on_distance_alone_is_not() {
        let mut values = vec![0.5; 2 * 3 * 3];
        values[4] = 1.0;
        assert!(unfold(&Weight::from_f32(&[1, 2, 3, 3], &values)).is_err());
    }
}
