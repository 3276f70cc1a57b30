//! What the axes of a model's inputs are.

use lstc_graph::{Dim, Graph, dim_text};

use crate::anatomy::{Anatomy, Tower};
use crate::inputs::model_inputs;
use crate::place::Place;
use crate::refusal::Refusal;

/// Gives the batch, and the length of each tower, a size of its own, whatever the file calls the axes of its inputs: what an axis
/// is follows from what its input is for. Two that are called the same need not be as long.
///
/// # Errors
/// Inputs that fix one size at two numbers; sizes at which a node's operands do not fit. The graph is then as it was.
pub(crate) fn own_axes(graph: &mut Graph, anatomy: &mut Anatomy) -> Result<(), Refusal> {
    let axes = Axes::new(graph, anatomy).map_err(|reason| Refusal::whole(Place::Model, reason))?;
    let mut sized = graph.clone();
    let shape = |tower: usize| [axes.batch.clone(), axes.lengths[tower].clone()];
    let mut changed = false;
    for input in model_inputs(graph, anatomy) {
        let wanted = shape(input.tower);
        if graph.shape(input.value).is_some_and(|found| found.len() == 2 && found != wanted) {
            sized.refine(input.value, &wanted);
            changed = true;
        }
    }
    for (index, tower) in anatomy.towers.iter_mut().enumerate() {
        [tower.batch, tower.length] = shape(index);
    }
    if !changed {
        return Ok(());
    }
    sized.infer().map_err(|(node, reason)| {
        let node = graph.node(node).name.clone();
        Refusal { place: Place::Model, node, reason }
    })?;
    *graph = sized;
    Ok(())
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
