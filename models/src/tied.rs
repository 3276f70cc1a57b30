//! Whether two matrices hold the same numbers, in whatever order each is stored.
//!
//! Every element is compared: a head that differs from its embedding in a single row, as after tokens were added, is not tied to it.
//!
//! **Invariant:** of two mapped matrices no more than a stripe of each is in memory.

use std::ops::Range;

use lstc_graph::{Graph, Weight};

use crate::anatomy::{Frozen, Linear, Orientation};

/// Bytes of a stripe.
const STRIPE: usize = 8 << 20;

/// Rows of a tile, whose part of a row-major matrix and of a transposed one both stay in a cache.
const TILE: usize = 64;

/// True where an embedding table `[vocabulary, d]` and a head's matrix hold the same numbers. Quantised ones are the same
/// where their integers, scales and zero points are.
pub fn is_tied(graph: &Graph, table: &Frozen, head: &Linear) -> bool {
    match (table, &head.weight) {
        (Frozen::Quantised(table), Frozen::Quantised(matrix)) => {
            head.orientation == Orientation::OutIn && table == matrix
        }
        (Frozen::Value(table), Frozen::Value(matrix)) => match (graph.weight(*table), graph.weight(*matrix)) {
            (Some(table), Some(matrix)) => same_matrix((table, Orientation::OutIn), (matrix, head.orientation)),
            _ => false,
        },
        _ => false,
    }
}

/// True where two matrices of one type are the same map, bit for bit, whichever way each lies.
pub fn same_matrix((a, first): (&Weight, Orientation), (b, second): (&Weight, Orientation)) -> bool {
    let (&[rows, columns], &[n, m]) = (a.dims(), b.dims()) else { return false };
    if first == second {
        return a.is_same(b);
    }
    if a.dtype() != b.dtype() || [n, m] != [columns, rows] {
        return false;
    }
    let size = a.dtype().size();
    let per_stripe = (STRIPE / (columns * size).max(1)).max(1);
    (0..rows).step_by(per_stripe).all(|from| {
        let (sizes, stripe) = ([rows, columns], from..rows.min(from + per_stripe));
        let same = match size {
            1 => is_transposed::<1>(a.bytes(), b.bytes(), sizes, stripe),
            2 => is_transposed::<2>(a.bytes(), b.bytes(), sizes, stripe),
            4 => is_transposed::<4>(a.bytes(), b.bytes(), sizes, stripe),
            _ => is_transposed::<8>(a.bytes(), b.bytes(), sizes, stripe),
        };
        a.release();
        b.release();
        same
    })
}

/// True where these rows of a matrix are the same columns of another. An element has `SIZE` bytes.
fn is_transposed<const SIZE: usize>(
    matrix: &[u8],
    transposed: &[u8],
    [rows, columns]: [usize; 2],
    stripe: Range<usize>,
) -> bool {
    let (matrix, transposed) = (matrix.as_chunks::<SIZE>().0, transposed.as_chunks::<SIZE>().0);
    stripe.clone().step_by(TILE).all(|from| {
        let to = stripe.end.min(from + TILE);
        (0..columns).all(|column| {
            let run = &transposed[column * rows + from..column * rows + to];
            run.iter().enumerate().all(|(row, element)| *element == matrix[(from + row) * columns + column])
        })
    })
}

#[cfg(test)]
mod tests {
    use lstc_graph::DType;

    use super::*;

    /// A matrix of distinct numbers, and its transpose.
    fn pair(dtype: DType, [rows, columns]: [usize; 2]) -> [Vec<u8>; 2] {
        let number = |i: usize| (i as u64 + 1).to_le_bytes()[..dtype.size()].to_vec();
        let plain = (0..rows * columns).flat_map(number).collect();
        let turned = (0..rows * columns).flat_map(|i| number(i % rows * columns + i / rows)).collect();
        [plain, turned]
    }

    fn weight(dtype: DType, dims: [usize; 2], bytes: &[u8]) -> Weight {
        Weight::new(dtype, dims.to_vec(), bytes.to_vec().into(), None).expect("the bytes fit")
    }

    #[test]
    fn every_element_counts() {
        // Wider than a tile, of a length that is not a multiple of one; the second of several stripes.
        for (dtype, dims, mutants) in
            [(DType::F32, [150, 7], 200), (DType::F16, [65, 3], 200), (DType::F64, [3, 1 << 19], 1)]
        {
            let [plain, turned] = pair(dtype, dims);
            let table = weight(dtype, dims, &plain);
            let count = dims[0] * dims[1];
            let places = [count / 2, count - 1].into_iter().chain((0..count).step_by(count.div_ceil(mutants)));
            for (orientation, dims, bytes) in
                [(Orientation::OutIn, dims, plain), (Orientation::InOut, [dims[1], dims[0]], turned)]
            {
                let same = |bytes: &[u8]| {
                    same_matrix((&table, Orientation::OutIn), (&weight(dtype, dims, bytes), orientation))
                };
                assert!(same(&bytes));
                for at in places.clone() {
                    let mut other = bytes.clone();
                    other[at * dtype.size()] ^= 1;
                    assert!(!same(&other), "element {at} of {dims:?}");
                }
            }
        }
    }

    #[test]
    fn shapes_and_types_must_fit() {
        let [plain, _] = pair(DType::F32, [4, 4]);
        let square = weight(DType::F32, [4, 4], &plain);
        let same = |other: &Weight, orientation| same_matrix((&square, Orientation::OutIn), (other, orientation));
        assert!(same(&square, Orientation::OutIn));
        assert!(!same(&square, Orientation::InOut), "a square matrix is not its transpose");
        assert!(!same(&weight(DType::I32, [4, 4], &plain), Orientation::OutIn));
        assert!(!same(&weight(DType::F32, [2, 8], &plain), Orientation::OutIn));
    }
}
