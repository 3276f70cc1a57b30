//! Freezes the backbone: what the source computes stays, and only that.
//!
//! Requires: a recognised model. Ensures: an opset that knows what the passes emit, one batch dimension for all inputs, a length
//! of its own for each tower, and no backbone value under a name that the written graphs give to something else.

use lstc_graph::{Dim, Graph, dim_text};
use lstc_models::{Anatomy, Tower, model_inputs};

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
        own_axes(module).map_err(|e| vec![e])
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
            problems.push(format!("the model has an input named `{name}`, a name of the training graphs: rename it"));
        } else {
            let free = module.graph.fresh_name(&format!("{BACKBONE}{name}"));
            module.graph.rename(value, &free).map_err(|e| vec![e])?;
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// Gives the batch, and the length of each tower, a size of its own, whatever the file calls the axes of its inputs: what an axis
/// is follows from what its input is for. Two that are called the same need not be as long.
///
/// # Errors
/// Inputs that fix one size at two numbers; sizes at which a node's operands do not fit.
fn own_axes(module: &mut Module) -> Result<(), String> {
    let axes = Axes::new(&module.graph, &module.anatomy)?;
    let shape = |tower: usize| [axes.batch.clone(), axes.lengths[tower].clone()];
    let mut changed = false;
    for input in model_inputs(&module.graph, &module.anatomy) {
        let wanted = shape(input.tower);
        if module.graph.shape(input.value).is_some_and(|found| found.len() == 2 && found != wanted) {
            module.graph.refine(input.value, &wanted);
            changed = true;
        }
    }
    for (index, tower) in module.anatomy.towers.iter_mut().enumerate() {
        [tower.batch, tower.length] = shape(index);
    }
    if !changed {
        return Ok(());
    }
    module.graph.infer().map_err(|(node, reason)| format!("`{}`: {reason}", module.graph.node(node).name))
}

/// The sizes of a model's inputs.
struct Axes {
    batch: Dim,
    /// Of each tower.
    lengths: Vec<Dim>,
}

impl Axes {
    fn new(graph: &Graph, anatomy: &Anatomy) -> Result<Axes, String> {
        let inputs = model_inputs(graph, anatomy);
        let called: Vec<String> =
            graph.inputs.iter().flat_map(|v| graph.shape(*v).unwrap_or_default()).filter_map(name).collect();
        let mut taken: Vec<String> = Vec::new();
        let mut own = |what: &str, tower: Option<usize>, axis: usize| {
            let of_tower = inputs.iter().filter(|input| tower.is_none_or(|tower| input.tower == tower));
            let found: Vec<Dim> = of_tower.filter_map(|input| graph.shape(input.value)?.get(axis).cloned()).collect();
            let mut fixed = found.iter().filter(|dim| matches!(dim, Dim::Value(_)));
            if let Some(size) = fixed.next() {
                return match fixed.find(|other| *other != size) {
                    Some(other) => Err(format!(
                        "the model's inputs fix its {what} at {} and at {}: export it again with one size, or a dynamic axis",
                        dim_text(size),
                        dim_text(other)
                    )),
                    None => Ok(size.clone()),
                };
            }
            let declared = anatomy.towers.get(tower.unwrap_or(0)).map(|t| if axis == 0 { &t.batch } else { &t.length });
            let free = declared.cloned().and_then(name).filter(|name| !taken.contains(name));
            let plain = what.replace(' ', "_");
            let numbered = |number: usize| format!("{plain}_{number}");
            let unused = |name: &String| !called.contains(name) && !taken.contains(name);
            let own = free.unwrap_or_else(|| {
                let mut names = std::iter::once(plain.clone()).chain((1..).map(numbered));
                names.find(unused).expect("some number is free")
            });
            taken.push(own.clone());
            Ok(Dim::pos_var(&own))
        };
        let batch = own("batch", None, 0)?;
        let length = |(index, tower): (usize, &Tower)| own(&format!("{} length", tower.kind), Some(index), 1);
        let lengths = anatomy.towers.iter().enumerate().map(length).collect::<Result<Vec<_>, _>>()?;
        Ok(Axes { batch, lengths })
    }
}

fn name(dim: Dim) -> Option<String> {
    match dim {
        Dim::Var(symbol) => Some(symbol.name.clone()),
        _ => None,
    }
}
