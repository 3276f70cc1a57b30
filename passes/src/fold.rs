//! Fixes the sizes that the options give, and folds what they decide: shapes, ranges, bucket indices, causal masks.
//!
//! Ensures: the inputs and the towers have the sizes that were asked for; a
//! backbone value that these decide alone is a constant, whose nodes are gone; every other node and weight of the
//! backbone is as it was. Without sizes it does nothing.

use std::collections::HashSet;

use lstc_graph::{Budget, Dim, Graph, ValueId};
use lstc_models::{Anatomy, SublayerKind, Tower};

use crate::module::Module;
use crate::pipeline::Pass;
use crate::problem::{At, Problem};

pub struct Fold;

/// The largest constants that are worth their place are bucket indices, 8 bytes for a query and a key; beyond 128 by 256
/// they are computed, as before.
const BUDGET: Budget = Budget { one: 1 << 18, all: 1 << 24 };

/// Shape arithmetic is in i32.
const MAX_ELEMENTS: u128 = i32::MAX as u128;

/// What folding made of the backbone.
#[derive(Clone, Debug, Default)]
pub struct Folded {
    /// Values of the source that are constants now.
    pub values: HashSet<ValueId>,
    /// Nodes that the backbone's logits were computed from.
    pub nodes_before: usize,
    /// Nodes that they are computed from.
    pub nodes_after: usize,
}

impl Pass for Fold {
    fn name(&self) -> &'static str {
        "fold"
    }

    fn run(&self, module: &mut Module) -> Result<(), Vec<Problem>> {
        if module.options.sizes.is_none() {
            return Ok(());
        }
        fix(module)?;
        let live = |graph: &Graph| graph.ancestors(graph.outputs.iter().copied()).len();
        let nodes_before = live(&module.graph);
        let folded = module.graph.fold(BUDGET);
        let values = folded.map_err(|(node, reason)| {
            vec![Problem::node(
                &module.graph.node(node).name,
                format!("the model cannot have these sizes: it {reason}"),
            )]
        })?;
        let nodes_after = live(&module.graph);
        module.folded = Some(Folded { values: values.into_iter().collect(), nodes_before, nodes_after });
        Ok(())
    }
}

/// Gives the inputs and the towers the sizes that the options say.
fn fix(module: &mut Module) -> Result<(), Vec<Problem>> {
    let anatomy = &module.anatomy;
    let [first, .., last] = &anatomy.towers[..] else {
        return Err(vec![Problem::option("sizes", "apply to models with a source and a target")]);
    };
    let sizes = module.options.sizes;
    let wanted = [
        ("batch", &first.batch, sizes.batch),
        ("source length", &first.length, sizes.source_length),
        ("target length", &last.length, sizes.target_length),
    ];
    let mut problems = Vec::new();
    let mut fixed: Vec<(Dim, Dim)> = Vec::new();
    for (name, dim, size) in wanted {
        let Some(size) = size else { continue };
        let fixed_at = |what| Problem { at: At::Part(format!("the model's {name}")), what };
        let size = i32::try_from(size).expect("the options' sizes were checked");
        match dim {
            Dim::Value(value) if *value == size => {}
            Dim::Value(value) => problems.push(fixed_at(format!("is {value}, and cannot be {size}"))),
            symbol => match fixed.iter().find(|(from, _)| from == symbol) {
                Some((_, Dim::Value(other))) if *other != size => {
                    problems.push(fixed_at(format!("is a size already set to {other}, and cannot be {size}")));
                }
                _ => fixed.push((symbol.clone(), Dim::Value(size))),
            },
        }
    }
    let replace = |dim: &Dim| fixed.iter().find(|(from, _)| from == dim).map_or_else(|| dim.clone(), |f| f.1.clone());
    let most = most_elements(anatomy, |dim| match replace(dim) {
        Dim::Value(size) => u128::try_from(size).unwrap_or(0),
        _ => 1,
    });
    if most > MAX_ELEMENTS {
        let what = format!("would need a tensor of {most} elements, more than {MAX_ELEMENTS}");
        problems.push(Problem::option("sizes", what));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    module.resize(replace);
    Ok(())
}

/// Elements of the largest tensor of a training step: scores of an attention or one-hot buckets, hidden features, logits.
fn most_elements(anatomy: &Anatomy, size: impl Fn(&Dim) -> u128) -> u128 {
    let longest = anatomy.towers.iter().map(|t| size(&t.length)).max().unwrap_or(1);
    let of_tower = |tower: &Tower| {
        let (rows, length) = (size(&tower.batch), size(&tower.length));
        let of_layer = |kind: &SublayerKind| match kind {
            SublayerKind::Attention(a) => {
                let buckets = a.relative().map_or(0, |r| r.rows as u128);
                length * longest * buckets.max(rows * a.heads as u128)
            }
            SublayerKind::FeedForward(f) => rows * length * f.width() as u128,
        };
        let layers = tower.blocks.iter().flat_map(|b| &b.sublayers).map(|s| of_layer(&s.kind)).max();
        layers.unwrap_or(0).max(rows * length * tower.width as u128)
    };
    let last = anatomy.last();
    let logits = size(&last.batch) * size(&last.length) * anatomy.head.linear.outputs as u128;
    anatomy.towers.iter().map(of_tower).max().unwrap_or(0).max(logits)
}
