//! Freezes the backbone: what the source computes stays, and only that.
//!
//! Requires: a recognised model. Ensures: one batch dimension for all inputs, and the backbone's logits under a name
//! that leaves `logits` to the tuned model's.

use lstc_graph::Dim;

use crate::module::Module;
use crate::pipeline::Pass;

pub struct Freeze;

/// The name of the backbone's own logits.
pub const BACKBONE_LOGITS: &str = "backbone.logits";

impl Pass for Freeze {
    fn name(&self) -> &'static str {
        "freeze"
    }

    fn run(&self, module: &mut Module) -> Result<(), Vec<String>> {
        let graph = &mut module.graph;
        let logits = module.anatomy.head.logits;
        graph.rename(logits, BACKBONE_LOGITS).map_err(|e| vec![e])?;
        graph.outputs = vec![logits];
        unify(module).map_err(|e| vec![e])
    }
}

/// Inputs whose dimensions must be equal may carry different symbols: they get one. Attention makes the batch of all
/// towers one, and the attention mask as long as the tokens that it masks.
fn unify(module: &mut Module) -> Result<(), String> {
    let batch = module.anatomy.towers[0].batch.clone();
    let mut renamed: Vec<(Dim, Dim)> = Vec::new();
    for tower in &module.anatomy.towers {
        if tower.batch != batch {
            renamed.push((tower.batch.clone(), batch.clone()));
        }
    }
    let tokens: Vec<_> = module.anatomy.towers.iter().map(|t| t.tokens).collect();
    let first = &module.anatomy.towers[0];
    for input in module.graph.inputs.iter().filter(|v| !tokens.contains(v)) {
        let Some([b, length]) = module.graph.shape(*input).and_then(|s| <[Dim; 2]>::try_from(s).ok()) else { continue };
        if b != batch {
            renamed.push((b, batch.clone()));
        }
        let known = module.anatomy.towers.iter().any(|t| t.length == length);
        if !known {
            renamed.push((length, first.length.clone()));
        }
    }
    renamed.retain(|(from, _)| matches!(from, Dim::Var(_)));
    if renamed.is_empty() {
        return Ok(());
    }
    let replace = |dim: &Dim| renamed.iter().find(|(from, _)| from == dim).map_or_else(|| dim.clone(), |r| r.1.clone());
    for input in module.graph.inputs.clone() {
        if let Some(shape) = module.graph.shape(input) {
            let shape: Vec<Dim> = shape.iter().map(replace).collect();
            module.graph.refine(input, &shape);
        }
    }
    for tower in &mut module.anatomy.towers {
        tower.batch = replace(&tower.batch);
        tower.length = replace(&tower.length);
    }
    module.graph.infer().map_err(|(node, reason)| format!("`{}`: {reason}", module.graph.node(node).name))
}
