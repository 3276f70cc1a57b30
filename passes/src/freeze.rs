//! Freezes the backbone: what the source computes stays, and only that.
//!
//! Requires: a recognised model. Ensures: an opset that knows what the passes emit, and no backbone value under a name that the written graphs give to something else.

use crate::module::Module;
use crate::optimizer::{FIRST_MOMENT, SECOND_MOMENT};
use crate::pipeline::Pass;
use crate::problem::Problem;

pub struct Freeze;

/// The name of the backbone's own logits.
pub const BACKBONE_LOGITS: &str = "backbone.logits";

/// Begins the name of a backbone value whose own name the interface of the written graphs wants.
const BACKBONE: &str = "backbone.";

impl Pass for Freeze {
    fn name(&self) -> &'static str {
        "freeze"
    }

    fn run(&self, module: &mut Module) -> Result<(), Vec<Problem>> {
        let logits = module.anatomy.head.logits;
        module.graph.rename(logits, BACKBONE_LOGITS).map_err(|e| vec![Problem::model(e)])?;
        module.graph.outputs = vec![logits];
        raise_opset(module)?;
        clear_names(module)
    }
}

/// The opset whose Dropout takes its rate and mode as operands.
const DROPOUT_OPSET: i64 = 12;

/// Raises the opset where the side network needs it: between 11 and 12 no operator that a model without dropout is made of
/// has another meaning.
fn raise_opset(module: &mut Module) -> Result<(), Vec<Problem>> {
    if module.options.method.dropout == 0.0 || module.graph.opset() >= DROPOUT_OPSET {
        return Ok(());
    }
    let old = module.graph.node_ids().find(|id| module.graph.node(*id).is("Dropout"));
    if let Some(id) = old {
        let (opset, name) = (module.graph.opset(), &module.graph.node(id).name);
        let what = format!(
            "needs opset {DROPOUT_OPSET}, and the Dropout `{name}` of the model is written in opset {opset}: export the model \
             again"
        );
        return Err(vec![Problem::option("method.dropout", what)]);
    }
    module.graph.set_opset(DROPOUT_OPSET);
    Ok(())
}

/// Names of the interface go to what passes make: a backbone value that has one gets another.
///
/// # Errors
/// An input of the model that has one: renaming it would change what callers give.
fn clear_names(module: &mut Module) -> Result<(), Vec<Problem>> {
    let mut wanted: Vec<String> = ["logits", "labels", "loss", "lr", "step", "grad_norm"].map(str::to_owned).to_vec();
    for planned in &module.plan.parameters {
        let name = &planned.name;
        wanted.extend([name.clone(), format!("{name}.grad"), format!("{name}.next")]);
    }
    // There are at most as many groups as parameters.
    for number in 0..module.plan.parameters.len() {
        for moment in [FIRST_MOMENT, SECOND_MOMENT] {
            wanted.extend([format!("{moment}{number}"), format!("{moment}{number}.next")]);
        }
    }
    let mut problems = Vec::new();
    for name in wanted {
        let Some(value) = module.graph.find(&name) else { continue };
        if module.graph.inputs.contains(&value) {
            problems.push(Problem::value(name, "an input of the model has a name of the training graphs: rename it"));
        } else {
            let free = module.graph.fresh_name(&format!("{BACKBONE}{name}"));
            module.graph.rename(value, &free).map_err(|e| vec![Problem::model(e)])?;
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}
