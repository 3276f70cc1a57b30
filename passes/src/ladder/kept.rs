//! Which blocks of a tower get a side block, where the options say only how many: the most important ones.
//!
//! The importance of a block is what its weights write into the residual stream, beside what the other blocks' do.
//! What enters a sublayer has left a norm, so that feature j has the size g_j, the norm's weight. For a sublayer whose
//! hidden feature k is read by the rows `in_i[k, :]` (v of an attention; the inner matrices of a feed-forward layer) and
//! written by the column `out[:, k]` (of o, or of the outer matrix):
//!
//! ```text
//! u(b, s) = sum over k of |out[:, k]|^2 * product over i of |in_i[k, :] * g|^2
//! score(b) = mean over s of u(b, s) / sum over b' of u(b', s)
//! ```
//!
//! * u is the expected square of what the sublayer adds, for features that are independent; what all blocks share, such
//!   as the activation's factor, cancels in the share. Scale that is moved between a norm and a matrix, or between a
//!   matrix that reads and the one that writes, changes nothing.
//! * Each kind of sublayer counts alike, so that the scores of a tower sum to 1.
//! * A block that adds little leaves the stream almost as it was: its tap repeats the tap before.
//!
//! The blocks with the largest scores are kept, in ascending order; among equal scores the later block. The reference has
//! no measure of its own: its scripts list the blocks, evenly spaced, such as 1, 2, 3, 5, 6, 7, 9, 10, 11 of T5-base's 12.
//!
//! Weights are read where they lie, one matrix at a time, and only those of towers that lose a block.

use lstc_graph::{Graph, ValueId};
use lstc_models::{Anatomy, Linear, Site, Sublayer, Tower, TowerId};
use ndarray::{Array1, Axis};

use crate::ladder::prune::largest;
use crate::matrix::{Matrix, vector};
use crate::options::Method;

/// The blocks of a tower that were chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Index of the tower in the anatomy.
    pub tower: TowerId,
    /// How many were asked for; a tower that has fewer keeps all.
    pub asked: usize,
    /// Ascending.
    pub kept: Vec<usize>,
    /// The score of each block; empty where all are kept.
    pub scores: Vec<f64>,
}

/// Chooses the blocks of each tower for which the method says how many.
pub fn choose(graph: &Graph, anatomy: &Anatomy, method: &Method) -> Vec<Choice> {
    let chosen = |(index, tower): (TowerId, &Tower)| {
        let asked = method.count(tower.kind)?;
        let count = tower.blocks.len();
        if asked >= count {
            return Some(Choice { tower: index, asked, kept: (0..count).collect(), scores: Vec::new() });
        }
        let scores = scores(graph, anatomy, tower);
        Some(Choice { tower: index, asked, kept: largest(&scores, asked), scores })
    };
    anatomy.by_id().filter_map(chosen).collect()
}

/// The score of each block of a tower.
fn scores(graph: &Graph, anatomy: &Anatomy, tower: &Tower) -> Vec<f64> {
    let written: Vec<Vec<f64>> =
        tower.blocks.iter().map(|b| b.sublayers.iter().map(|s| written(graph, anatomy, s)).collect()).collect();
    let kinds = written.iter().map(Vec::len).max().unwrap_or(0);
    let mut scores = vec![0.0; written.len()];
    for kind in 0..kinds {
        let total: f64 = written.iter().filter_map(|block| block.get(kind)).sum();
        for (score, block) in scores.iter_mut().zip(&written) {
            let share = block.get(kind).map_or(0.0, |u| u / total.max(f64::MIN_POSITIVE));
            *score += share / kinds as f64;
        }
    }
    scores
}

/// u of a sublayer.
fn written(graph: &Graph, anatomy: &Anatomy, layer: &Sublayer) -> f64 {
    // Of an attention, what it mixes: its values have left the norm of the tower that they come from.
    let linears = layer.linears();
    let is_read = |site| matches!(site, Site::V | Site::Inner(_));
    let (_, outer) = linears.iter().find(|(site, _)| matches!(site, Site::O | Site::Outer)).expect("it has an output");
    let norm = anatomy.attends_to(layer).map_or(&layer.norm, |tower| &anatomy.tower(tower).final_norm);
    let gains = squares(graph, norm.weight);
    let mut features = energies(graph, outer, &Array1::ones(outer.outputs), Axis(0));
    for (_, linear) in linears.iter().filter(|(site, _)| is_read(*site)) {
        features *= &energies(graph, linear, &gains, Axis(1));
    }
    features.sum()
}

fn squares(graph: &Graph, weight: ValueId) -> Array1<f64> {
    let weight = graph.weight(weight).expect("a norm's weight is a constant");
    let all: Vec<usize> = (0..weight.elements()).collect();
    vector(weight, &all).iter().map(|v| f64::from(*v).powi(2)).collect()
}

/// The squares of a matrix's elements, weighed and summed over an axis of `[out, in]`.
fn energies(graph: &Graph, linear: &Linear, weights: &Array1<f64>, over: Axis) -> Array1<f64> {
    let weight = linear.weight.weight(graph);
    let matrix = Matrix::new(&weight, linear.orientation).expect("the anatomy's matrices are of floats");
    let columns: Vec<usize> = (0..matrix.columns).collect();
    let by_row = over == Axis(1);
    let mut sums = Array1::zeros(if by_row { matrix.rows } else { matrix.columns });
    matrix.visit(&columns, |row, column| {
        let square = f64::from(matrix.at(row, column)).powi(2);
        let (kept, summed) = if by_row { (row, column) } else { (column, row) };
        sums[kept] += square * weights[summed];
    });
    weight.release();
    sums
}
