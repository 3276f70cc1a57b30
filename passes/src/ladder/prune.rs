//! The side network's initial weights: cut from the backbone's, or drawn.
//!
//! `magnitude` is the reference's "fisher-v2" with |w| for an importance. One chain runs through the first tower and
//! on into the next, carrying the kept set K of the residual stream's features:
//!
//! * K begins as the kept columns of the embedding table;
//! * q, k and v take the columns K and one common set of rows, scored by the elementwise product of their importances;
//!   o takes those rows as its columns, and its own best rows become the new K; the feed-forward matrices likewise;
//! * a norm's weight is indexed by K; blocks that are not kept still advance the chain;
//! * the relative-position table is copied whole.
//!
//! The score of a row is the sum of its importances, in f64: products underflow f32. The rows with the largest scores
//! are kept, in ascending order; among equal scores the later row. The reference keeps `n - round((1 - 1/r) n)` of n;
//! where that is not n/r rounded down, the width of the side network, the latter counts.
//!
//! The chain reads each matrix once, a sublayer's at a time, and releases it: no more of the backbone stays in memory than
//! its largest group of matrices.
//!
//! `magnitude-consistent` keeps one K for the whole of a tower's residual stream, and an equal share of each head.
//!
//! An aligned projection selects the K of the place where it reads the residual stream, or puts it back: of `magnitude` the K
//! with which a block begins, of `magnitude-consistent` the tower's. `random` blocks are not cut from anything; theirs select
//! the features that `magnitude-consistent` would keep.

use std::collections::HashMap;

use lstc_graph::{Graph, Weight};
use lstc_models::{
    Anatomy, Attention, AttentionKind, FeedForward, Linear, Orientation, Site, Slot, SublayerId, SublayerKind, Tower,
};
use ndarray::ArrayD;

use crate::initial::{Drawn, Initial};
use crate::ladder::importance::{Importance, Magnitude};
use crate::ladder::key::{At, Rung};
use crate::ladder::plan::{PlannedParameter, Start};
use crate::matrix::{Matrix, vector};
use crate::module::Module;
use crate::options::{Init, Projection, Projections};
use crate::pipeline::Pass;
use crate::problem::Problem;

pub struct Prune;

impl Pass for Prune {
    fn name(&self) -> &'static str {
        "prune"
    }

    fn run(&self, module: &mut Module) -> Result<(), Vec<Problem>> {
        let source = Source { graph: &module.graph, anatomy: &module.anatomy, importance: &Magnitude };
        let method = &module.options.method;
        let (reduction, projections) = (method.reduction, method.projections());
        let (cuts, streams) = match method.init {
            Init::Magnitude => source.chain(reduction),
            Init::MagnitudeConsistent => source.consistent(reduction),
            Init::Random if projections.select() => (Cuts::new(), source.streams(reduction)),
            Init::Random => (Cuts::new(), Vec::new()),
        };
        let starting = Starting { cuts, streams, projections, seed: method.seed };
        let initial: Vec<Initial> = module.planned().map(|p| starting.value(p)).collect();
        let misfit = |(planned, value): (&PlannedParameter, &Initial)| {
            let (found, wanted) = (value.dims(), &planned.dims);
            (found != wanted)
                .then(|| Problem::value(&planned.name, format!("would start as {found:?}, not {wanted:?}")))
        };
        let misfits: Vec<Problem> = module.plan.parameters.iter().zip(&initial).filter_map(misfit).collect();
        if !misfits.is_empty() {
            return Err(misfits);
        }
        module.initial = initial;
        Ok(())
    }
}

/// What initial values are taken from.
struct Starting {
    cuts: Cuts,
    /// By tower; empty where no projection selects.
    streams: Vec<KeptStream>,
    projections: Projections,
    seed: u64,
}

impl Starting {
    /// The initial value of one parameter.
    fn value(&self, planned: &PlannedParameter) -> Initial {
        let dims = || planned.dims.clone();
        match &planned.start {
            Start::Constant(value) => Initial::Constant { dims: dims(), value: *value },
            Start::Projection(rung) => self.projection(planned, *rung),
            Start::Drawn => self.drawn(planned, Drawn::Uniform { bound: fan_in(planned).recip() }),
            // Several side blocks may be made like one block.
            Start::Cut(slot) => match self.cuts.get(slot) {
                Some(value) => Initial::Given(value.clone()),
                None if planned.dims.len() == 2 => {
                    self.drawn(planned, Drawn::Normal { deviation: fan_in(planned).recip() })
                }
                None => Initial::Constant { dims: dims(), value: 1.0 },
            },
        }
    }

    fn projection(&self, planned: &PlannedParameter, rung: Rung) -> Initial {
        let up = rung == Rung::Up;
        match if up { self.projections.up } else { self.projections.down } {
            Projection::Normal(deviation) => self.drawn(planned, Drawn::Normal { deviation }),
            Projection::Uniform => self.drawn(planned, Drawn::Uniform { bound: fan_in(planned).recip() }),
            Projection::Aligned => {
                let kept = self.kept(rung).iter().enumerate();
                let ones = kept.map(|(side, full)| if up { [*full, side] } else { [side, *full] });
                Initial::Selection { dims: planned.dims.clone(), ones: ones.collect() }
            }
        }
    }

    /// The features of a residual stream that a projection selects, or puts back.
    fn kept(&self, rung: Rung) -> &[usize] {
        match rung {
            Rung::Down(tower, At::Embedding) => &self.streams[tower.index()].embedding,
            Rung::Down(tower, At::Block(block)) => self.streams[tower.index()].block(block),
            Rung::Up | Rung::MergeGate | Rung::Schedule | Rung::Gate(..) => {
                &self.streams.last().expect("a model has towers").output
            }
        }
    }

    /// From a stream of the parameter's own, whatever else is drawn.
    fn drawn(&self, planned: &PlannedParameter, from: Drawn) -> Initial {
        let bytes = planned.name.bytes();
        let name = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        Initial::Drawn { dims: planned.dims.clone(), from, stream: self.seed ^ name }
    }
}

/// The root of the number of inputs of a matrix `[out, in]`.
fn fan_in(planned: &PlannedParameter) -> f32 {
    planned.dims.last().map_or(1.0, |inputs| (*inputs as f32).sqrt())
}

/// The features of one tower's residual stream that are kept, ascending.
struct KeptStream {
    embedding: Vec<usize>,
    /// Where each block begins; empty where they are the same everywhere.
    blocks: Vec<Vec<usize>>,
    output: Vec<usize>,
}

impl KeptStream {
    fn same(kept: Vec<usize>) -> KeptStream {
        KeptStream { embedding: kept.clone(), blocks: Vec::new(), output: kept }
    }

    /// Where a block begins.
    fn block(&self, block: usize) -> &[usize] {
        self.blocks.get(block).unwrap_or(&self.embedding)
    }
}

/// The kept indices at one step of the chain; see [`kept_by_magnitude`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// `shared`, or `<tower>.<block>.<sublayer>.rows` (of q, k, v or the inner matrices), or `... .out` (of o or the
    /// outer matrix).
    pub place: String,
    pub indices: Vec<usize>,
}

/// The kept indices of `magnitude`, step by step, for all blocks.
pub fn kept_by_magnitude(graph: &Graph, anatomy: &Anatomy, reduction: usize) -> Vec<Kept> {
    let mut kept = Vec::new();
    Source { graph, anatomy, importance: &Magnitude }.walk(reduction, &mut HashMap::new(), |place, indices| {
        kept.push(Kept { place, indices: indices.to_vec() });
    });
    kept
}

/// A backbone to cut from.
struct Source<'s> {
    graph: &'s Graph,
    anatomy: &'s Anatomy,
    importance: &'s dyn Importance,
}

type Cuts = HashMap<Slot, ArrayD<f32>>;

impl<'s> Source<'s> {
    fn weight(&self, linear: &Linear) -> Weight {
        linear.weight.weight(self.graph)
    }

    fn matrix(&self, linear: &Linear) -> Matrix {
        Matrix::new(&self.weight(linear), linear.orientation).expect("the anatomy's matrices are of floats")
    }

    /// Matrices that were read for the last time, or the last before a second pass: their pages need not stay.
    fn release(&self, linears: &[&Linear]) {
        for weight in linears.iter().map(|l| self.weight(l)) {
            weight.release();
            self.importance.of(&weight).release();
        }
    }

    /// Scores of the rows of the elementwise product of several matrices, over some columns.
    fn row_scores(&self, linears: &[&Linear], columns: &[usize]) -> Vec<f64> {
        let weights: Vec<Weight> = linears.iter().map(|l| self.weight(l)).collect();
        let tensors = weights.iter().zip(linears).map(|(w, l)| (self.importance.of(w), l.orientation));
        let matrices: Vec<Matrix> =
            tensors.map(|(t, o)| Matrix::new(&t, o).expect("an importance has its weight's shape")).collect();
        let mut scores = vec![0.0; matrices[0].rows];
        matrices[0].visit(columns, |row, column| {
            scores[row] += matrices.iter().map(|m| f64::from(m.at(row, column)).abs()).product::<f64>();
        });
        scores
    }

    /// Scores of a matrix's columns, over all rows.
    fn column_scores(&self, weight: &Weight, orientation: Orientation) -> Vec<f64> {
        let tensor = self.importance.of(weight);
        let matrix = Matrix::new(&tensor, orientation).expect("the anatomy's matrices are of floats");
        let columns: Vec<usize> = (0..matrix.columns).collect();
        let mut scores = vec![0.0; matrix.columns];
        matrix.visit(&columns, |row, column| scores[column] += f64::from(matrix.at(row, column)).abs());
        scores
    }

    fn table_scores(&self, tower: &Tower) -> Vec<f64> {
        let table = tower.table.weight(self.graph);
        let scores = self.column_scores(&table, Orientation::OutIn);
        table.release();
        self.importance.of(&table).release();
        scores
    }

    fn chain(&self, reduction: usize) -> (Cuts, Vec<KeptStream>) {
        let mut cuts = Cuts::new();
        let streams = self.walk(reduction, &mut cuts, |_, _| ());
        (cuts, streams)
    }

    /// Runs the reference's chain, filling `cuts` and showing each kept set. Returns those of the residual streams, by tower.
    fn walk(&self, r: usize, cuts: &mut Cuts, mut show: impl FnMut(String, &[usize])) -> Vec<KeptStream> {
        let mut streams = Vec::new();
        let mut k = largest(&self.table_scores(&self.anatomy.towers[0]), self.anatomy.towers[0].width / r);
        show("shared".to_owned(), &k);
        for (index, tower) in self.anatomy.by_id() {
            let mut put = |slot: Slot, array| drop(cuts.insert(slot, array));
            let (embedding, mut blocks) = (k.clone(), Vec::new());
            for (block, layers) in tower.blocks.iter().enumerate() {
                blocks.push(k.clone());
                for (sublayer, layer) in layers.sublayers.iter().enumerate() {
                    let place = SublayerId { tower: index, block, sublayer };
                    let norm = self.graph.weight(layer.norm.weight).expect("a norm's weight is a constant");
                    put(place.slot(Site::Norm), vector(norm, &k));
                    let rows = match &layer.kind {
                        SublayerKind::Attention(a) => {
                            let scores = self.row_scores(&[&a.q, &a.k, &a.v], &k);
                            let rows = largest(&scores, a.heads * (a.head_width / r));
                            put(place.slot(Site::Q), self.matrix(&a.q).cut(&rows, &k));
                            put(place.slot(Site::K), self.matrix(&a.k).cut(&rows, &k));
                            put(place.slot(Site::V), self.matrix(&a.v).cut(&rows, &k));
                            self.release(&[&a.q, &a.k, &a.v]);
                            k = largest(&self.row_scores(&[&a.o], &rows), tower.width / r);
                            put(place.slot(Site::O), self.matrix(&a.o).cut(&k, &rows));
                            self.release(&[&a.o]);
                            self.position_table(a, place, &mut put);
                            rows
                        }
                        SublayerKind::FeedForward(f) => {
                            let all: Vec<&Linear> = f.inner.iter().collect();
                            let rows = largest(&self.row_scores(&all, &k), f.width() / r);
                            for (number, inner) in f.inner.iter().enumerate() {
                                put(place.slot(Site::Inner(number)), self.matrix(inner).cut(&rows, &k));
                            }
                            self.release(&all);
                            k = largest(&self.row_scores(&[&f.outer], &rows), tower.width / r);
                            put(place.slot(Site::Outer), self.matrix(&f.outer).cut(&k, &rows));
                            self.release(&[&f.outer]);
                            rows
                        }
                    };
                    show(format!("{}.{block}.{sublayer}.rows", tower.kind), &rows);
                    show(format!("{}.{block}.{sublayer}.out", tower.kind), &k);
                }
            }
            let norm = self.graph.weight(tower.final_norm.weight).expect("a norm's weight is a constant");
            put(Slot::final_norm(index), vector(norm, &k));
            streams.push(KeptStream { embedding, blocks, output: k.clone() });
        }
        streams
    }

    fn position_table(&self, attention: &Attention, place: SublayerId, put: &mut impl FnMut(Slot, ArrayD<f32>)) {
        let Some(relative) = attention.relative() else { return };
        let matrix = Matrix::new(&relative.table.weight(self.graph), Orientation::OutIn)
            .expect("a position table is a matrix of floats");
        let (rows, columns): (Vec<usize>, Vec<usize>) = ((0..matrix.rows).collect(), (0..matrix.columns).collect());
        put(place.slot(Site::PositionTable), matrix.cut(&rows, &columns));
    }

    /// Cuts that keep one set of features for each residual stream, and an equal share of every head.
    fn consistent(&self, r: usize) -> (Cuts, Vec<KeptStream>) {
        let mut cuts = Cuts::new();
        let streams = self.streams(r);
        for (index, tower) in self.anatomy.by_id() {
            let k = &streams[index.index()].embedding;
            let mut put = |slot: Slot, array| drop(cuts.insert(slot, array));
            for (block, layers) in tower.blocks.iter().enumerate() {
                for (sublayer, layer) in layers.sublayers.iter().enumerate() {
                    let place = SublayerId { tower: index, block, sublayer };
                    let norm = self.graph.weight(layer.norm.weight).expect("a norm's weight is a constant");
                    put(place.slot(Site::Norm), vector(norm, k));
                    match &layer.kind {
                        SublayerKind::Attention(a) => {
                            // Keys and values are made of the stream that is attended to.
                            let attended = self.anatomy.attends_to(layer);
                            let context = attended.map_or(k, |tower| &streams[tower.index()].embedding);
                            let (qk, vo) = self.head_shares(a, r, k, context);
                            put(place.slot(Site::Q), self.matrix(&a.q).cut(&qk, k));
                            put(place.slot(Site::K), self.matrix(&a.k).cut(&qk, context));
                            put(place.slot(Site::V), self.matrix(&a.v).cut(&vo, context));
                            put(place.slot(Site::O), self.matrix(&a.o).cut(k, &vo));
                            self.release(&[&a.q, &a.k, &a.v, &a.o]);
                            self.position_table(a, place, &mut put);
                        }
                        SublayerKind::FeedForward(f) => {
                            let rows = largest(&self.hidden_scores(f, k), f.width() / r);
                            for (number, inner) in f.inner.iter().enumerate() {
                                put(place.slot(Site::Inner(number)), self.matrix(inner).cut(&rows, k));
                            }
                            put(place.slot(Site::Outer), self.matrix(&f.outer).cut(k, &rows));
                            self.release(&f.inner.iter().chain([&f.outer]).collect::<Vec<_>>());
                        }
                    }
                }
            }
            let norm = self.graph.weight(tower.final_norm.weight).expect("a norm's weight is a constant");
            put(Slot::final_norm(index), vector(norm, k));
        }
        (cuts, streams)
    }

    /// One set of features for each tower's residual stream.
    fn streams(&self, r: usize) -> Vec<KeptStream> {
        let kept = |tower: &Tower| largest(&self.stream_scores(tower), tower.width / r);
        self.anatomy.towers.iter().map(kept).map(KeptStream::same).collect()
    }

    /// Scores of a residual stream's features: the shares that they have of every matrix which reads or writes it.
    fn stream_scores(&self, tower: &Tower) -> Vec<f64> {
        let mut total = vec![0.0; tower.width];
        let mut add = |scores: Vec<f64>| {
            let sum: f64 = scores.iter().sum::<f64>().max(f64::MIN_POSITIVE);
            total.iter_mut().zip(scores).for_each(|(t, s)| *t += s / sum);
        };
        add(self.table_scores(tower));
        let reads = |l: &Linear| self.column_scores(&self.weight(l), l.orientation);
        let writes = |l: &Linear| self.row_scores(&[l], &(0..l.inputs).collect::<Vec<_>>());
        for layer in tower.blocks.iter().flat_map(|b| &b.sublayers) {
            match &layer.kind {
                SublayerKind::Attention(a) => {
                    add(reads(&a.q));
                    if a.kind == AttentionKind::SelfAttention {
                        add(reads(&a.k));
                        add(reads(&a.v));
                    }
                    add(writes(&a.o));
                    self.release(&[&a.q, &a.k, &a.v, &a.o]);
                }
                SublayerKind::FeedForward(f) => {
                    f.inner.iter().for_each(|inner| add(reads(inner)));
                    add(writes(&f.outer));
                    self.release(&f.inner.iter().chain([&f.outer]).collect::<Vec<_>>());
                }
            }
        }
        total
    }

    /// The rows of q and k, and those of v (columns of o), that are kept: as many of every head.
    fn head_shares(&self, a: &Attention, r: usize, k: &[usize], context: &[usize]) -> (Vec<usize>, Vec<usize>) {
        let product = |x: Vec<f64>, y: Vec<f64>| x.iter().zip(y).map(|(x, y)| x * y).collect::<Vec<f64>>();
        let qk = product(self.row_scores(&[&a.q], k), self.row_scores(&[&a.k], context));
        let vo = product(self.row_scores(&[&a.v], context), self.column_scores(&self.weight(&a.o), a.o.orientation));
        let share = |scores: Vec<f64>| -> Vec<usize> {
            let head = |h: usize| {
                let first = h * a.head_width;
                largest(&scores[first..first + a.head_width], a.head_width / r).into_iter().map(move |i| first + i)
            };
            (0..a.heads).flat_map(head).collect()
        };
        (share(qk), share(vo))
    }

    /// Scores of a feed-forward layer's hidden features: what comes in times what goes out.
    fn hidden_scores(&self, f: &FeedForward, k: &[usize]) -> Vec<f64> {
        let mut scores = self.column_scores(&self.weight(&f.outer), f.outer.orientation);
        for inner in &f.inner {
            scores.iter_mut().zip(self.row_scores(&[inner], k)).for_each(|(s, more)| *s *= more);
        }
        scores
    }
}

/// Indices of the `count` largest scores, ascending. Of equal scores the later index is kept.
pub(crate) fn largest(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]).then(a.cmp(b)));
    let mut kept = order.split_off(scores.len().saturating_sub(count));
    kept.sort_unstable();
    kept
}

#[cfg(test)]
mod tests {
    use super::largest;

    #[test]
    fn the_largest_are_kept_in_order_and_later_ones_win_ties() {
        assert_eq!(largest(&[3.0, 1.0, 2.0, 5.0], 2), [0, 3]);
        assert_eq!(largest(&[1.0, 1.0, 1.0], 2), [1, 2]);
        assert_eq!(largest(&[1.0], 3), [0]);
    }
}
