//! Which products take more bits than the precision has, so that no tap's error exceeds a limit.
//!
//! Blocks are walked in the order of computation, each starting from what the blocks before it now give. If the error of a
//! block's output exceeds the limit, the product whose extra bits alone lower the error most takes more bits, then the next, until
//! the limit holds or no product helps. A block's own products cannot lower an error that it inherits: if the limit does not hold
//! in the end, the walk begins again with a lower one for each block.
//!
//! More bits are the source's own type. In an int4 backbone they are 8; if these are not enough, walks are made in which
//! what 8 bits do not bring below the limit takes the source's type. Some products lower an error only together. If the limit
//! still does not hold, walks are made in which all products of a block take more bits, and give them back one by one while it does.

use std::collections::HashMap;
use std::path::Path;

use anyhow::anyhow;
use lstc_graph::{Builder, Graph, Origin, ValueId};
use lstc_passes::Module;
use lstc_passes::options::Precision;
use lstc_passes::quantise::{Product, by_block, in_8_bits};
use lstc_runtime::{Runtime, Tensor};

use super::measure::{Bench, Squares, check_source, final_output};
use super::sample::Feeds;
use crate::probe::{give, run};

/// A product takes more bits if that lowers the error by at least this share of it.
const WORTH: f64 = 0.01;

/// The limits of walks, as shares of the one that is asked for.
const ONE_BY_ONE: &[f64] = &[1.0, 0.7, 0.49, 0.343, 0.24];
/// In the end, all products of a block that anything depends on are as in the source.
const TOGETHER: &[f64] = &[1.0, 0.7, 0.49, 0.343, 0.24, 0.17, 0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-6];

/// Products by the names of what they make.
#[derive(Clone, Debug, Default)]
pub struct MoreBits {
    /// Those that stay as in the source.
    pub kept: Vec<String>,
    /// Those in 8 bits, of an int4 backbone.
    pub in_8_bits: Option<Vec<String>>,
}

/// The products that take more bits in a module whose backbone is quantised as a whole: the first choice that holds the limit,
/// or the one that comes closest. `progress` gets the blocks that a walk has finished, and how many there are.
///
/// # Errors
/// A graph that does not run; from the file system.
pub fn more_bits(
    runtime: &'static Runtime,
    module: &Module,
    feeds: &Feeds,
    limit: f64,
    scratch: &Path,
    progress: Option<&dyn Fn(usize, usize)>,
) -> anyhow::Result<MoreBits> {
    let Some(quantised) = &module.quantised else { return Ok(MoreBits::default()) };
    let taken: Vec<Product> = quantised.products.iter().map(|p| p.source.clone()).collect();
    let mut graph = module.graph.clone();
    let mut eights = HashMap::new();
    let is_int4 = module.options.backbone.precision == Precision::Int4;
    if is_int4 {
        let values = in_8_bits(&mut graph, &module.store, &taken).map_err(|problem| anyhow!(problem))?;
        eights.extend(taken.iter().zip(values).filter_map(|(product, value)| Some((product.y, value?))));
    }
    let bench = Bench::new(runtime, scratch, &[module.source(), &graph])?;
    let wanted = source(module, &bench, feeds)?;
    let both = [Level::Eight, Level::Source];
    let levels = if is_int4 { &both[..] } else { &both[1..] };
    let tries = [(&both[..1], ONE_BY_ONE, false), (levels, ONE_BY_ONE, false), (levels, TOGETHER, true)];
    let mut best = (f64::INFINITY, Chosen::new());
    'tries: for &(levels, shares, together) in &tries[usize::from(!is_int4)..] {
        // The largest error that held a limit before.
        let mut held = f64::INFINITY;
        for share in shares {
            // One by one, blocks that hold a limit at all choose the same for every limit that their errors hold.
            if !together && limit * share >= held {
                continue;
            }
            let state = feeds.clone();
            let mut walk = Walk {
                module,
                graph: &graph,
                eights: &eights,
                levels,
                together,
                bench: &bench,
                state,
                cut: Vec::new(),
                progress,
            };
            let walked = walk.through(&taken, &wanted, limit * share)?;
            held = walked.held;
            let (worst, chosen) = (walked.worst, walked.chosen);
            let is_most = |(_, level): &(&Product, Level)| levels.last() == Some(level);
            let all = chosen.len() == taken.len() && chosen.iter().all(is_most);
            if worst < best.0 {
                best = (worst, chosen);
            }
            if worst <= limit {
                break 'tries;
            }
            if all {
                break;
            }
        }
    }
    let (_, chosen) = best;
    let names = |level: Level| {
        let of_level = chosen.iter().filter(|(_, at)| *at == level);
        of_level.map(|(product, _)| module.graph.value(product.y).name.clone()).collect()
    };
    Ok(MoreBits { kept: names(Level::Source), in_8_bits: is_int4.then(|| names(Level::Eight)) })
}

/// The type that more bits mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Eight,
    Source,
}

/// Products with more bits, each once.
type Chosen<'p> = Vec<(&'p Product, Level)>;

/// With one of them at another level.
fn with<'p>(chosen: &Chosen<'p>, product: &'p Product, level: Level) -> Chosen<'p> {
    let others = chosen.iter().filter(|(other, _)| other.y != product.y);
    others.copied().chain([(product, level)]).collect()
}

/// The logits, where distillation reads them.
fn distilled(module: &Module) -> Option<ValueId> {
    (module.options.loss.distill > 0.0).then_some(module.anatomy.head.logits)
}

/// Every block's output in the source, for each batch, and what else the side network reads: the final output, and the logits.
fn source(module: &Module, bench: &Bench, feeds: &Feeds) -> anyhow::Result<Vec<Vec<Tensor>>> {
    let mut graph = module.source().clone();
    let blocks = module.anatomy.towers.iter().flat_map(|t| t.blocks.iter().map(|b| b.output));
    let outputs: Vec<ValueId> = blocks.chain(final_output(module)).chain(distilled(module)).collect();
    let names = give(&mut graph, &outputs);
    let mut session = bench.session(&graph.slice(&graph.outputs), true)?;
    let wanted: Vec<Vec<Tensor>> =
        feeds.iter().map(|feed| run(&mut session, feed, &names)).collect::<anyhow::Result<_>>()?;
    check_source(module, &wanted)?;
    Ok(wanted)
}

/// Where the walk is: what is known about the values already computed.
struct Walk<'m> {
    module: &'m Module,
    /// The module's, with the products in 8 bits beside those in 4.
    graph: &'m Graph,
    /// What a product makes in 8 bits, by what it makes.
    eights: &'m HashMap<ValueId, ValueId>,
    levels: &'m [Level],
    /// If products one by one do not hold the limit, all of a block take more bits, and give them back.
    together: bool,
    bench: &'m Bench,
    /// For each batch the model's inputs, and the values of the cut.
    state: Feeds,
    /// Values that are given instead of computed.
    cut: Vec<ValueId>,
    progress: Option<&'m dyn Fn(usize, usize)>,
}

/// The result of a walk.
struct Walked<'p> {
    /// The largest error.
    worst: f64,
    /// The largest error of a block that is within the walk's limit; 0 if none is.
    held: f64,
    /// The products with more bits.
    chosen: Chosen<'p>,
}

impl Walk<'_> {
    /// Walks all blocks.
    fn through<'p>(&mut self, taken: &'p [Product], wanted: &[Vec<Tensor>], limit: f64) -> anyhow::Result<Walked<'p>> {
        let places = by_block(self.module.source(), &self.module.anatomy, taken);
        let (mut worst, mut held, mut chosen, mut at) = (0.0_f64, 0.0_f64, Vec::new(), 0);
        for (tower, blocks) in self.module.anatomy.towers.iter().zip(&places) {
            for (block, own) in tower.blocks.iter().zip(blocks) {
                let reference: Vec<&Tensor> = wanted.iter().map(|w| &w[at]).collect();
                at += 1;
                let own: Vec<&Product> = own.iter().map(|i| &taken[*i]).collect();
                let (error, of_block) = self.block(block.output, &own, &reference, limit)?;
                worst = worst.max(error);
                if error <= limit {
                    held = held.max(error);
                }
                chosen.extend(of_block);
                if let Some(progress) = self.progress {
                    progress(at, places.iter().flatten().count());
                }
            }
            if final_output(self.module) == Some(tower.output) {
                let reference: Vec<&Tensor> = wanted.iter().map(|w| &w[at]).collect();
                at += 1;
                worst = worst.max(self.error(tower.output, &Vec::new(), &reference)?);
            }
            self.step(tower.output, &Vec::new())?;
        }
        if let Some(logits) = distilled(self.module) {
            let reference: Vec<&Tensor> = wanted.iter().map(|w| &w[at]).collect();
            worst = worst.max(self.error(logits, &Vec::new(), &reference)?);
        }
        Ok(Walked { worst, held, chosen })
    }

    /// A block's error, and its products with more bits; the walk continues after it.
    fn block<'p>(
        &mut self,
        output: ValueId,
        own: &[&'p Product],
        wanted: &[&Tensor],
        limit: f64,
    ) -> anyhow::Result<(f64, Chosen<'p>)> {
        let mut chosen = Vec::new();
        let mut error = self.error(output, &chosen, wanted)?;
        for level in self.levels {
            if error <= limit {
                break;
            }
            for product in self.ranked(output, own, (&chosen, *level), wanted, error)? {
                chosen = with(&chosen, product, *level);
                error = self.error(output, &chosen, wanted)?;
                if error <= limit {
                    break;
                }
            }
            if self.together && error > limit {
                let all = own.iter().fold(chosen.clone(), |all, product| with(&all, product, *level));
                let error_of_all = self.error(output, &all, wanted)?;
                if error_of_all < error {
                    (error, chosen) = self.given_back(output, (error_of_all, all), &chosen, wanted, limit)?;
                }
            }
        }
        self.step(output, &chosen)?;
        Ok((error, chosen))
    }

    /// Of all products with more bits, as many as are needed to hold the limit: the others are as they were `before`.
    fn given_back<'p>(
        &self,
        output: ValueId,
        (mut error, mut all): (f64, Chosen<'p>),
        before: &Chosen<'p>,
        wanted: &[&Tensor],
        limit: f64,
    ) -> anyhow::Result<(f64, Chosen<'p>)> {
        // An inherited error remains, and is not a reason to keep products that add nothing to it.
        let limit = limit.max(error * (1.0 + WORTH));
        let as_before = |all: &Chosen<'p>, product: &Product| -> Chosen<'p> {
            let others = all.iter().filter(|(other, _)| other.y != product.y);
            others.chain(before.iter().filter(|(other, _)| other.y == product.y)).copied().collect()
        };
        let mut order = Vec::new();
        for (product, _) in &all {
            order.push((self.error(output, &as_before(&all, product), wanted)?, *product));
        }
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (_, product) in order {
            let fewer = as_before(&all, product);
            let left = self.error(output, &fewer, wanted)?;
            if left <= limit {
                (error, all) = (left, fewer);
            }
        }
        Ok((error, all))
    }

    /// The products of a block that lower its error at a level, the one that does so most first.
    fn ranked<'p>(
        &self,
        output: ValueId,
        own: &[&'p Product],
        (chosen, level): (&Chosen<'p>, Level),
        wanted: &[&Tensor],
        error: f64,
    ) -> anyhow::Result<Vec<&'p Product>> {
        let changed = |product: &'p Product| Ok((self.error(output, &with(chosen, product, level), wanted)?, product));
        let mut ranked: Vec<(f64, &Product)> = own.iter().map(|p| changed(p)).collect::<anyhow::Result<_>>()?;
        // An infinite error may take more than one product.
        ranked.retain(|(left, _)| error.is_infinite() || *left < error * (1.0 - WORTH));
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
        Ok(ranked.into_iter().map(|(_, product)| product).collect())
    }

    fn error(&self, output: ValueId, chosen: &Chosen, wanted: &[&Tensor]) -> anyhow::Result<f64> {
        let mut squares = Squares::default();
        for (found, wanted) in self.values(output, chosen, true)?.iter().zip(wanted) {
            squares.add(found, wanted);
        }
        Ok(squares.relative())
    }

    /// Computes a value, from which the walk continues.
    fn step(&mut self, output: ValueId, chosen: &Chosen) -> anyhow::Result<()> {
        let values = self.values(output, chosen, false)?;
        let name = &self.module.graph.value(output).name;
        for (state, value) in self.state.iter_mut().zip(values) {
            state.push((name.clone(), value));
        }
        self.cut.push(output);
        Ok(())
    }

    /// A value for each batch, in f32 if it is to be compared.
    fn values(&self, output: ValueId, chosen: &Chosen, compared: bool) -> anyhow::Result<Vec<Tensor>> {
        let mut graph = self.graph.clone();
        for (product, level) in chosen {
            match (level, self.eights.get(&product.y)) {
                (Level::Eight, Some(value)) => graph.redirect(product.y, *value),
                (Level::Eight, None) => {}
                (Level::Source, _) => read_source(&mut graph, self.module, product),
            }
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

/// Readers of a product's replacement read the source's product instead. The pass `quantise` leaves the source's product of heads, and
/// its Reshape, in the graph, where nothing reads them.
fn read_source(graph: &mut Graph, module: &Module, product: &Product) {
    let of_product = module.quantised.iter().flat_map(|q| &q.products).filter(|p| p.source.y == product.y);
    for remade in of_product.flat_map(|p| &p.remade) {
        let node = module.source().node(remade.source);
        let operands: Vec<ValueId> = node.inputs.iter().flatten().copied().collect();
        let b = Builder::new(graph, Origin::SOURCE);
        let value = b.op(&node.op, &operands, node.attributes.clone());
        graph.redirect(remade.value, value);
    }
}
