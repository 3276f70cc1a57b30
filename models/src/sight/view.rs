//! What one attention sees.

use lstc_graph::{Numbers, ValueId};

use super::Place;
use super::scene::{PADDED, Round, Scene};
use crate::anatomy::{AttentionKind, Bias, Marks, Mask};
use crate::inputs::inputs_behind;

/// A bias this far below the largest of its row shuts a key out: no score makes up for it.
const SHUT: f32 = 1e4;

/// What a bias might be for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meaning {
    /// The input that hides keys, by its place among the inputs.
    pub mask: Option<(usize, Marks)>,
    pub causal: bool,
}

/// The keys that a query sees.
enum Seen {
    /// For each key, whether it is seen.
    Keys(Vec<bool>),
    /// Its softmax is not a number.
    Nothing,
}

/// One attention, seen in every round.
pub(super) struct View<'s, 'g> {
    pub scene: &'s Scene<'g>,
    pub place: Place,
    pub bias: Option<&'s Bias>,
    /// The mask that was read off a folded bias.
    pub unfolded: Option<Numbers>,
    pub heads: usize,
    pub rounds: &'s [Round],
}

impl View<'_, '_> {
    fn queries(&self) -> usize {
        self.scene.lengths[self.place.tower]
    }

    fn keys(&self) -> usize {
        self.scene.lengths[self.place.keys()]
    }

    /// Refuses a bias of which a value could not be computed.
    pub fn complete(&self) -> Result<(), String> {
        let graph = self.scene.graph;
        for value in self.bias.iter().flat_map(|bias| bias.masks()) {
            if let Some(Err(first)) = self.rounds.iter().find_map(|round| round.get(&value).filter(|v| v.is_err())) {
                let maker = graph.producer_of(*first).map(|(node, _)| graph.node(node));
                return Err(match maker {
                    Some(node) => format!(
                        "is computed by the {} `{}` in a way that lstc does not understand: the positions that it hides are not known",
                        node.kind(),
                        node.name
                    ),
                    None => format!("is computed from `{}`, whose contents are not known", graph.value(*first).name),
                });
            }
        }
        Ok(())
    }

    /// The bias on one score. Learned biases count as zero.
    fn at(&self, round: &Round, bias: &Bias, [row, head, query, key]: [usize; 4]) -> f32 {
        let at = [row, head, query, key];
        let read = |value: &ValueId| match round.get(value) {
            Some(Ok(numbers)) => element(numbers, at),
            _ => f32::NAN,
        };
        match bias {
            Bias::Mask(Mask::Value(value)) => read(value),
            Bias::Mask(Mask::Unfolded(_)) => self.unfolded.as_ref().map_or(f32::NAN, |mask| element(mask, at)),
            Bias::Relative(_) => 0.0,
            Bias::Sum(terms) => terms.iter().map(|term| self.at(round, term, at)).sum(),
            Bias::Where { keep, inner, .. } if read(keep) != 0.0 => self.at(round, inner, at),
            Bias::Where { fill, .. } => read(fill),
        }
    }

    /// The keys that a query sees.
    fn seen(&self, round: &Round, row: usize, head: usize, query: usize) -> Seen {
        let Some(bias) = self.bias else { return Seen::Keys(vec![true; self.keys()]) };
        let biases: Vec<f32> = (0..self.keys()).map(|key| self.at(round, bias, [row, head, query, key])).collect();
        let largest = biases.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if biases.iter().any(|b| b.is_nan() || *b == f32::INFINITY) || largest == f32::NEG_INFINITY {
            return Seen::Nothing;
        }
        Seen::Keys(biases.iter().map(|bias| largest - bias < SHUT).collect())
    }

    /// How many heads are looked at: one, where all have the same.
    fn distinct_heads(&self) -> usize {
        let by_head = |value: ValueId| match self.rounds.first().and_then(|round| round.get(&value)) {
            Some(Ok(numbers)) => numbers.dims.len() == 4 && numbers.dims[1] > 1,
            _ => false,
        };
        let differ = self.bias.iter().flat_map(|bias| bias.masks()).any(by_head);
        if differ { self.heads } else { 1 }
    }

    /// True where what the inputs hold changes nothing.
    fn is_constant(&self) -> bool {
        let first = |value: &ValueId| self.rounds.first().and_then(|round| round.get(value));
        let values: Vec<ValueId> = self.bias.iter().flat_map(|bias| bias.masks()).collect();
        self.rounds.iter().all(|round| values.iter().all(|value| round.get(value) == first(value)))
    }

    /// Every query of every round: the round's number, the example, and what is seen.
    fn all(&self) -> impl Iterator<Item = (usize, usize, usize, Seen)> {
        let (rows, queries, heads) = (self.scene.batch, self.queries(), self.distinct_heads());
        let each = move |place: usize| (place / (queries * heads), place / heads % queries, place % heads);
        self.rounds.iter().enumerate().flat_map(move |(number, round)| {
            (0..rows * queries * heads)
                .map(each)
                .map(move |(row, query, head)| (number, row, query, self.seen(round, row, head, query)))
        })
    }

    /// True where a position is not hidden by a mask.
    fn open(&self, mask: Option<(usize, Marks)>, round: usize, at: (usize, usize)) -> bool {
        mask.is_none_or(|(input, marks)| {
            let fits = self.scene.inputs[input].tower == self.place.keys();
            fits && self.scene.marked(input, round, at) == (marks == Marks::Tokens)
        })
    }

    /// True where the bias shows each query those keys that a meaning says. What padding sees does not matter, nor what is
    /// seen where there is nothing to see.
    pub fn is(&self, meaning: Meaning) -> bool {
        if meaning.mask.is_none() && !self.is_constant() {
            return false;
        }
        self.all().all(|(round, row, query, seen)| {
            let is_open = |key: usize| self.open(meaning.mask, round, (row, key)) && (!meaning.causal || key <= query);
            let wanted: Vec<bool> = (0..self.keys()).map(is_open).collect();
            let is_padding =
                self.place.kind == AttentionKind::SelfAttention && !self.open(meaning.mask, round, (row, query));
            is_padding || wanted.iter().all(|open| !open) || matches!(seen, Seen::Keys(keys) if keys == wanted)
        })
    }

    /// True where a query that a mask shows keys up to its own position sees one beyond.
    pub fn sees_later(&self, mask: Option<(usize, Marks)>) -> bool {
        self.all().any(|(round, row, query, seen)| {
            let sees_any = (0..=query.min(self.keys() - 1)).any(|key| self.open(mask, round, (row, key)));
            sees_any && matches!(seen, Seen::Keys(keys) if keys.iter().skip(query + 1).any(|key| *key))
        })
    }

    /// Refuses a softmax over nothing, with padding at the end: even what padding sees must be a number, for a gradient is summed
    /// over all rows.
    pub fn is_a_number(&self, meaning: Meaning) -> Result<(), String> {
        let padded = match meaning.mask {
            Some((_, Marks::Padding)) => PADDED[1],
            _ => PADDED[0],
        };
        let nothing =
            |(round, _, _, seen): (usize, usize, usize, Seen)| round == padded && matches!(seen, Seen::Nothing);
        if self.all().any(nothing) {
            return Err(
                "hides every key from a position that is padding, with minus infinity: its softmax is not a number. \
                        Export the mask with the least number of its type instead"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// What is wrong with a bias whose meaning is not known.
    pub fn oddness(&self) -> String {
        let graph = self.scene.graph;
        let inputs = inputs_behind(graph, &self.bias.iter().flat_map(|bias| bias.masks()).collect::<Vec<_>>());
        let names: Vec<String> = inputs.iter().map(|v| format!("`{}`", graph.value(*v).name)).collect();
        let names = names.join(" and ");
        let sees_all = |(_, _, _, seen): (usize, usize, usize, Seen)| match seen {
            Seen::Keys(keys) => keys.iter().all(|key| *key),
            Seen::Nothing => true,
        };
        if inputs.is_empty() {
            return "hides keys by their positions, and not just those that come later".to_owned();
        }
        if !self.all().all(sees_all) {
            return format!("hides keys other than the padding marked in {names}");
        }
        let is_low = |round: &Round| {
            let rows = (0..self.scene.batch).flat_map(|row| (0..self.queries()).map(move |query| (row, query)));
            let bias =
                |(row, query): (usize, usize)| self.bias.map_or(0.0, |bias| self.at(round, bias, [row, 0, query, 0]));
            rows.map(bias).any(|bias| bias <= -SHUT)
        };
        if self.rounds.iter().any(is_low) {
            return format!(
                "hides the queries that are padding according to {names}, and shows the keys that are to every query"
            );
        }
        format!("hides nothing where {names} holds ones and zeros, which is what lstc fills a mask with")
    }
}

/// An element of a tensor that broadcasts to scores.
fn element(numbers: &Numbers, at: [usize; 4]) -> f32 {
    let rank = numbers.dims.len();
    let mut place = 0;
    for (axis, size) in numbers.dims.iter().enumerate() {
        let index = (axis + 4).checked_sub(rank).map_or(0, |axis| at[axis]);
        if index >= *size && *size != 1 {
            return f32::NAN;
        }
        place = place * size + if *size == 1 { 0 } else { index };
    }
    numbers.elements.get(place).copied().unwrap_or(f32::NAN)
}
