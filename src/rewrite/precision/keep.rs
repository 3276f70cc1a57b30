//! Which products stay in the source's precision, so that no tap's error exceeds a limit.
//!
//! Blocks are walked in the order of computation, each from what the blocks before it give by now. Where the error of a
//! block's output exceeds the limit, the product whose keeping lowers it most is kept, and the next, until the limit holds
//! or no product helps.

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

/// The names of the products to keep of a module whose backbone is quantised as a whole.
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
    let places = by_block(module.source(), &module.anatomy, &taken);
    let bench = Bench::new(runtime, scratch, &[module.source(), &module.graph])?;
    let mut walk = Walk { module, bench, state: feeds.clone(), cut: Vec::new() };
    let wanted = walk.source(feeds)?;
    let mut kept = Vec::new();
    let mut at = 0;
    for (tower, blocks) in module.anatomy.towers.iter().zip(&places) {
        for (block, own) in tower.blocks.iter().zip(blocks) {
            let reference: Vec<&Tensor> = wanted.iter().map(|w| &w[at]).collect();
            at += 1;
            let own: Vec<&Product> = own.iter().map(|i| &taken[*i]).collect();
            kept.extend(walk.block(block.output, &own, &reference, limit)?);
        }
        walk.step(tower.output, &[])?;
    }
    Ok(kept.into_iter().map(|y| module.graph.value(y).name.clone()).collect())
}

/// Where the walk is: what is known of the values behind it.
struct Walk<'m> {
    module: &'m Module,
    bench: Bench<'m>,
    /// For each batch the model's inputs, and the values of the cut.
    state: Feeds,
    /// Values that are given instead of computed.
    cut: Vec<ValueId>,
}

impl Walk<'_> {
    /// Every block's output in the source, for each batch.
    fn source(&self, feeds: &Feeds) -> anyhow::Result<Vec<Vec<Tensor>>> {
        let mut graph = self.module.source().clone();
        let outputs: Vec<ValueId> =
            self.module.anatomy.towers.iter().flat_map(|t| t.blocks.iter().map(|b| b.output)).collect();
        let names = give(&mut graph, &outputs);
        let mut session = self.bench.session(&graph.slice(&graph.outputs), true)?;
        feeds.iter().map(|feed| run(&mut session, feed, &names)).collect()
    }

    /// The products of a block to keep; the walk goes on behind it.
    fn block(
        &mut self,
        output: ValueId,
        own: &[&Product],
        wanted: &[&Tensor],
        limit: f64,
    ) -> anyhow::Result<Vec<ValueId>> {
        let mut kept: Vec<&Product> = Vec::new();
        let mut error = self.error(output, &kept, wanted)?;
        while error > limit {
            let mut best: Option<(f64, &Product)> = None;
            for product in own.iter().filter(|p| !kept.iter().any(|k| k.y == p.y)) {
                let error = self.error(output, &[kept.as_slice(), &[product]].concat(), wanted)?;
                if best.is_none_or(|(least, _)| error < least) {
                    best = Some((error, product));
                }
            }
            let Some((least, product)) = best else { break };
            // What is infinite may take more than one product.
            if error.is_finite() && least > error * (1.0 - WORTH) {
                break;
            }
            kept.push(product);
            error = least;
        }
        self.step(output, &kept)?;
        Ok(kept.into_iter().map(|p| p.y).collect())
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
