//! Which products stay in the source's precision, so that no tap's error exceeds a limit.
//!
//! Blocks are walked in the order of computation, each from what the blocks before it give by now. Where the error of a
//! block's output exceeds the limit, the product is kept whose keeping alone lowers it most, then the next, until the limit
//! holds or no product helps. What a block inherits none of its own products can lower: where the limit does not hold in the end,
//! the walk begins anew with a lower one for each block.

use std::path::Path;

use lstc_graph::{Attributes, Builder, Graph, Origin, ValueId};
use lstc_passes::Module;
use lstc_passes::quantise::{Product, by_block};

use super::measure::{Bench, Squares};
use super::sample::Feeds;
use crate::runtime::{Runtime, Tensor};
use crate::verify::{give, run};

/// A product is kept where that lowers the error by at least this share of it.
const WORTH: f64 = 0.01;

/// How often the walk is made, and how much lower the limit of each is than that of the one before.
const WALKS: i32 = 5;
const LOWER: f64 = 0.7;

/// The names of the products to keep of a module whose backbone is quantised as a whole: the first that hold the limit, or
/// those that come closest.
///
/// # Errors
/// A graph that does not run; from the file system.
pub fn keep(
    runtime: &'static Runtime,
    module: &Module,
    feeds: &Feeds,
    limit: f64,
    scratch: &Path,
) -> anyhow::Result<Vec<String>> {
    let Some(quantised) = &module.quantised else { return Ok(Vec::new()) };
    let taken: Vec<Product> = quantised.products.iter().map(|p| p.source.clone()).collect();
    let bench = Bench::new(runtime, scratch, &[module.source(), &module.graph])?;
    let wanted = source(module, &bench, feeds)?;
    let mut best: Option<(f64, Vec<ValueId>)> = None;
    for attempt in 0..WALKS {
        let mut walk = Walk { module, bench: &bench, state: feeds.clone(), cut: Vec::new() };
        let (worst, kept) = walk.through(&taken, &wanted, limit * LOWER.powi(attempt))?;
        if best.as_ref().is_none_or(|(least, _)| worst < *least) {
            best = Some((worst, kept));
        }
        if worst <= limit {
            break;
        }
    }
    let (_, kept) = best.unwrap_or_default();
    Ok(kept.into_iter().map(|y| module.graph.value(y).name.clone()).collect())
}

/// Every block's output in the source, for each batch.
fn source(module: &Module, bench: &Bench, feeds: &Feeds) -> anyhow::Result<Vec<Vec<Tensor>>> {
    let mut graph = module.source().clone();
    let outputs: Vec<ValueId> = module.anatomy.towers.iter().flat_map(|t| t.blocks.iter().map(|b| b.output)).collect();
    let names = give(&mut graph, &outputs);
    let mut session = bench.session(&graph.slice(&graph.outputs), true)?;
    feeds.iter().map(|feed| run(&mut session, feed, &names)).collect()
}

/// Where the walk is: what is known of the values behind it.
struct Walk<'m> {
    module: &'m Module,
    bench: &'m Bench<'m>,
    /// For each batch the model's inputs, and the values of the cut.
    state: Feeds,
    /// Values that are given instead of computed.
    cut: Vec<ValueId>,
}

impl Walk<'_> {
    /// Walks all blocks; the largest error, and the products to keep.
    fn through(
        &mut self,
        taken: &[Product],
        wanted: &[Vec<Tensor>],
        limit: f64,
    ) -> anyhow::Result<(f64, Vec<ValueId>)> {
        let places = by_block(self.module.source(), &self.module.anatomy, taken);
        let (mut worst, mut kept, mut at) = (0.0_f64, Vec::new(), 0);
        for (tower, blocks) in self.module.anatomy.towers.iter().zip(&places) {
            for (block, own) in tower.blocks.iter().zip(blocks) {
                let reference: Vec<&Tensor> = wanted.iter().map(|w| &w[at]).collect();
                at += 1;
                let own: Vec<&Product> = own.iter().map(|i| &taken[*i]).collect();
                let (error, keep) = self.block(block.output, &own, &reference, limit)?;
                worst = worst.max(error);
                kept.extend(keep);
            }
            self.step(tower.output, &[])?;
        }
        Ok((worst, kept))
    }

    /// A block's error, and the products of it to keep; the walk goes on behind it.
    fn block(
        &mut self,
        output: ValueId,
        own: &[&Product],
        wanted: &[&Tensor],
        limit: f64,
    ) -> anyhow::Result<(f64, Vec<ValueId>)> {
        let mut kept: Vec<&Product> = Vec::new();
        let mut error = self.error(output, &kept, wanted)?;
        if error > limit {
            for product in self.ranked(output, own, wanted, error)? {
                kept.push(product);
                error = self.error(output, &kept, wanted)?;
                if error <= limit {
                    break;
                }
            }
        }
        self.step(output, &kept)?;
        Ok((error, kept.into_iter().map(|p| p.y).collect()))
    }

    /// The products of a block whose keeping lowers its error, the one that does so most first.
    fn ranked<'p>(
        &self,
        output: ValueId,
        own: &[&'p Product],
        wanted: &[&Tensor],
        error: f64,
    ) -> anyhow::Result<Vec<&'p Product>> {
        let without = |product: &'p Product| Ok((self.error(output, &[product], wanted)?, product));
        let mut ranked: Vec<(f64, &Product)> = own.iter().map(|p| without(p)).collect::<anyhow::Result<_>>()?;
        // What is infinite may take more than one product.
        ranked.retain(|(left, _)| error.is_infinite() || *left < error * (1.0 - WORTH));
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
        Ok(ranked.into_iter().map(|(_, product)| product).collect())
    }

    fn error(&self, output: ValueId, kept: &[&Product], wanted: &[&Tensor]) -> anyhow::Result<f64> {
        let mut squares = Squares::default();
        for (found, wanted) in self.values(output, kept, true)?.iter().zip(wanted) {
            squares.add(found, wanted);
        }
        Ok(squares.relative())
    }

    /// Computes a value, from which the walk goes on.
    fn step(&mut self, output: ValueId, kept: &[&Product]) -> anyhow::Result<()> {
        let values = self.values(output, kept, false)?;
        let name = &self.module.graph.value(output).name;
        for (state, value) in self.state.iter_mut().zip(values) {
            state.push((name.clone(), value));
        }
        self.cut.push(output);
        Ok(())
    }

    /// A value for each batch, in f32 where it is to be compared.
    fn values(&self, output: ValueId, kept: &[&Product], compared: bool) -> anyhow::Result<Vec<Tensor>> {
        let mut graph = self.module.graph.clone();
        for product in kept {
            keep_one(&mut graph, self.module.source(), product);
        }
        for value in &self.cut {
            graph.give(*value);
        }
        let names = match compared {
            true => give(&mut graph, &[output]),
            false => {
                graph.outputs = vec![output];
                vec![graph.value(output).name.clone()]
            }
        };
        let mut session = self.bench.session(&graph.slice(&graph.outputs), false)?;
        self.state.iter().map(|state| Ok(run(&mut session, state, &names)?.swap_remove(0))).collect()
    }
}

/// Who reads a product reads the source's own.
fn keep_one(graph: &mut Graph, source: &Graph, product: &Product) {
    let operands: Vec<ValueId> = source.node(product.node).inputs.iter().flatten().copied().collect();
    let b = Builder::new(graph, Origin::SOURCE);
    let value = b.op("MatMul", &operands, Attributes::none());
    graph.redirect(product.y, value);
}
