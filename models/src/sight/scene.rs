//! A model with inputs of a few tokens, and what its masks hold for them.

use std::collections::HashMap;

use lstc_graph::{DType, Dim, Graph, Numbers, Sized, ValueId, Weight};

use crate::anatomy::{Anatomy, MASKED_TOKEN};
use crate::inputs::{InputRole, ModelInput, inputs_behind, model_inputs};
use crate::refusal::Refusal;

/// A batch and the shortest of the lengths, where the model does not fix them. Each tower has another length.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub batch: usize,
    pub length: usize,
}

/// What fills the model's inputs, one after another: padding at the end, holes, and each the other way around. A mask whose ones
/// mark padding finds padding at the end in the second.
const ROUNDS: usize = 4;
pub(super) const PADDED: [usize; 2] = [0, 1];

/// A model with inputs of a few tokens.
pub(super) struct Scene<'g> {
    pub graph: &'g Graph,
    sized: Sized,
    pub inputs: Vec<ModelInput>,
    pub batch: usize,
    /// Of each tower.
    pub lengths: Vec<usize>,
}

/// What the biases' values hold in one round.
pub(super) type Round = HashMap<ValueId, Result<Numbers, ValueId>>;

impl<'g> Scene<'g> {
    pub fn new(graph: &'g Graph, anatomy: &Anatomy, size: Size) -> Result<Scene<'g>, Refusal> {
        let inputs = model_inputs(graph, anatomy);
        let of_inputs = |tower: Option<usize>, axis: usize| {
            let of_tower = inputs.iter().filter(|input| tower.is_none_or(|tower| input.tower == tower));
            of_tower.filter_map(|input| fixed(graph.shape(input.value)?.get(axis)?)).next()
        };
        let batch = of_inputs(None, 0).unwrap_or(size.batch);
        let towers = anatomy.towers.len();
        let lengths: Vec<usize> =
            (0..towers).map(|tower| of_inputs(Some(tower), 1).unwrap_or(size.length + towers - 1 - tower)).collect();
        let mut named: HashMap<String, usize> = HashMap::new();
        for input in &inputs {
            for (dim, size) in graph.shape(input.value).into_iter().flatten().zip([batch, lengths[input.tower]]) {
                if let Dim::Var(symbol) = dim {
                    named.entry(symbol.name.clone()).or_insert(size);
                }
            }
        }
        // Of an input that nothing reads but for its sizes, these are what they are called.
        let size = |(axis, dim): (usize, Dim)| match dim {
            Dim::Var(symbol) => *named.get(&symbol.name).unwrap_or(&[batch, lengths[0]][axis.min(1)]),
            dim => fixed(&dim).unwrap_or(1),
        };
        let sizes = |value: &ValueId| match inputs.iter().find(|input| input.value == *value) {
            Some(input) => vec![batch, lengths[input.tower]],
            None => graph.shape(*value).unwrap_or_default().into_iter().enumerate().map(size).collect(),
        };
        let sizes: Vec<(ValueId, Vec<usize>)> = graph.inputs.iter().map(|v| (*v, sizes(v))).collect();
        let sized = Sized::new(graph, &sizes).map_err(|(node, reason)| {
            Refusal {
                place: crate::place::Place::Model,
                node: graph.node(node).name.clone(),
                reason: format!(
                    "does not accept a batch of {batch} with lengths of {}: it {reason}; export the model with batch, source \
                     length and target length as three dynamic axes",
                    text_of(&lengths)
                ),
            }
        })?;
        Ok(Scene { graph, sized, inputs, batch, lengths })
    }

    /// The towers' lengths, as text.
    pub fn lengths_text(&self) -> String {
        text_of(&self.lengths)
    }

    /// What an input of this place among the inputs holds at a position, in a round.
    pub fn marked(&self, input: usize, round: usize, (row, position): (usize, usize)) -> bool {
        let length = self.lengths[self.inputs[input].tower];
        let shift = row + input;
        let in_first_half = match round / 2 {
            0 => position < length.saturating_sub(1 + shift % 2).max(1),
            _ => !(position * position + shift).is_multiple_of(3),
        };
        in_first_half == round.is_multiple_of(2)
    }

    /// What an input holds in a round.
    fn given(&self, input: usize, round: usize) -> Vec<i64> {
        let length = self.lengths[self.inputs[input].tower];
        let at = |place: usize| {
            let marked = self.marked(input, round, (place / length, place % length));
            match self.inputs[input].role {
                InputRole::Tokens if marked => 2 + place as i64,
                InputRole::Tokens => MASKED_TOKEN,
                InputRole::Mask | InputRole::Padding => i64::from(marked),
            }
        };
        (0..self.batch * length).map(at).collect()
    }

    pub fn rounds(&self, values: &[ValueId]) -> Vec<Round> {
        let mut values = values.to_vec();
        values.sort_unstable();
        values.dedup();
        let reads_inputs = !inputs_behind(self.graph, &values).is_empty();
        let run = |round: usize| {
            let given = (0..self.inputs.len()).filter_map(|input| {
                let value = self.inputs[input].value;
                let dims = [self.batch, self.lengths[self.inputs[input].tower]];
                let dtype = self.graph.value(value).dtype?;
                let dtype = if dtype.is_float() { DType::F32 } else { dtype };
                Some((value, Weight::from_integers(dtype, &dims, &self.given(input, round))?))
            });
            let found = self.sized.values(&values, &given.collect::<Vec<_>>());
            values.iter().copied().zip(found).collect()
        };
        (0..if reads_inputs { ROUNDS } else { 1 }).map(run).collect()
    }
}

fn text_of(lengths: &[usize]) -> String {
    let lengths: Vec<String> = lengths.iter().map(usize::to_string).collect();
    lengths.join(" and ")
}

/// The size of an axis that the file fixes.
fn fixed(dim: &Dim) -> Option<usize> {
    match dim {
        Dim::Value(size) => usize::try_from(*size).ok().filter(|size| *size > 0),
        _ => None,
    }
}
