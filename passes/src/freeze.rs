//! Freezes the backbone: what the source computes stays, and only that.
//!
//! Requires: a recognised model. Ensures: an opset that knows what the passes emit, one batch dimension for all inputs,
//! and no backbone value under a name that the written graphs give to something else.

use lstc_graph::Dim;
use lstc_models::model_inputs;

use crate::module::Module;
use crate::optimizer::{FIRST_MOMENT, SECOND_MOMENT};
use crate::pipeline::Pass;

pub struct Freeze;

/// The name of the backbone's own logits.
pub const BACKBONE_LOGITS: &str = "backbone.logits";

/// Begins the name of a backbone value whose own name the interface of the written graphs wants.
const BACKBONE: &str = "backbone.";

impl Pass for Freeze {
    fn name(&self) -> &'static str {
        "freeze"
    }

    fn run(&self, module: &mut Module) -> Result<(), Vec<String>> {
        let logits = module.anatomy.head.logits;
        module.graph.rename(logits, BACKBONE_LOGITS).map_err(|e| vec![e])?;
        module.graph.outputs = vec![logits];
        raise_opset(module)?;
        clear_names(module)?;
        unify(module).map_err(|e| vec![e])
    }
}

/// The opset whose Dropout takes its rate and mode as operands.
const DROPOUT_OPSET: i64 = 12;

/// Raises the opset where the side network needs it: between 11 and 12 no operator that a model without dropout is made of
/// has another meaning.
fn raise_opset(module: &mut Module) -> Result<(), Vec<String>> {
    if module.options.method.dropout == 0.0 || module.graph.opset() >= DROPOUT_OPSET {
        return Ok(());
    }
    let old = module.graph.node_ids().find(|id| module.graph.node(*id).is("Dropout"));
    if let Some(id) = old {
        let (opset, name) = (module.graph.opset(), &module.graph.node(id).name);
        return Err(vec![format!(
            "dropout needs opset {DROPOUT_OPSET}, and the Dropout `{name}` of the model is written in opset {opset}: export \
             the model again"
        )]);
    }
    module.graph.set_opset(DROPOUT_OPSET);
    Ok(())
}

/// Names of the interface go to what passes make: a backbone value that has one gets another.
///
/// # Errors
/// An input of the model that has one: renaming it would change what callers give.
fn clear_names(module: &mut Module) -> Result<(), Vec<String>> {
    let mut wanted: Vec<String> = ["logits", "labels", "loss", "lr", "step", "grad_norm"].map(str::to_owned).to_vec();
    for planned in &module.plan.parameters {
        let name = &planned.name;
        wanted.extend([name.clone(), format!("{name}.grad"), format!("{name}.next")]);
    }
    // There are no more groups than parameters.
    for number in 0..module.plan.parameters.len() {
        for moment in [FIRST_MOMENT, SECOND_MOMENT] {
            wanted.extend([format!("{moment}{number}"), format!("{moment}{number}.next")]);
        }
    }
    let mut problems = Vec::new();
    for name in wanted {
        let Some(value) = module.graph.find(&name) else { continue };
        if module.graph.inputs.contains(&value) {
            problems.push(format!("the model has an input named `{name}`, a name of the training graphs: rename it"));
        } else {
            let free = module.graph.fresh_name(&format!("{BACKBONE}{name}"));
            module.graph.rename(value, &free).map_err(|e| vec![e])?;
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// Inputs whose dimensions must be equal may carry different symbols: they get one. Attention makes the batch of all
/// towers one, and a mask as long as the tokens whose keys it masks.
fn unify(module: &mut Module) -> Result<(), String> {
    let (graph, anatomy) = (&module.graph, &module.anatomy);
    let batch = anatomy.towers[0].batch.clone();
    let mut renamed: Vec<(Dim, Dim)> = anatomy.towers.iter().map(|t| (t.batch.clone(), batch.clone())).collect();
    for input in model_inputs(graph, anatomy) {
        if let Some([b, length]) = graph.shape(input.value).and_then(|s| <[Dim; 2]>::try_from(s).ok()) {
            renamed.push((b, batch.clone()));
            renamed.push((length, anatomy.towers[input.tower].length.clone()));
        }
    }
    renamed.retain(|(from, to)| matches!(from, Dim::Var(_)) && from != to);
    if renamed.is_empty() {
        return Ok(());
    }
    let replace = |dim: &Dim| renamed.iter().find(|(from, _)| from == dim).map_or_else(|| dim.clone(), |r| r.1.clone());
    module.resize(replace);
    module.graph.infer().map_err(|(node, reason)| format!("`{}`: {reason}", module.graph.node(node).name))
}
