//! Which keys the queries of an attention see: what its bias computes, evaluated at small sizes on a few masks.
//!
//! A bias is nodes that an exporter wrote, which say nothing of its purpose. So it is computed, for two examples of a few tokens,
//! with ones and zeros in the model's mask, and what it lets through is compared with what a mask can mean: all keys, those that are
//! not padding, those that do not come later. What means none of these is refused. It is computed again at lengths that people
//! train with, and must mean the same there: a mask that is the first rows of a table may end where the table does.
//!
//! **Invariant:** nothing is taken from names: neither which input is a mask, nor whether its ones mark tokens or padding.

mod scene;
mod view;

use std::collections::HashMap;

use lstc_graph::{Graph, Numbers, ValueId, Weight};

use crate::anatomy::{Anatomy, Attention, AttentionKind, Bias, Marks, PaddingMask, SublayerKind, TowerKind};
use crate::inputs::{InputRole, inputs_behind};
use crate::refusal::Refusal;
use scene::{Round, Scene, Size};
use view::{Meaning, View};

/// Enough to tell the meanings apart.
const FEW: Size = Size { batch: 2, length: 4 };
/// Longer than most answers. The work grows with the square of the length.
const MANY: Size = Size { batch: 1, length: 64 };

/// Finds what hides padding from each attention of a model, and writes it there.
///
/// Returns what is refused: a decoder that sees later positions, an encoder that does not, and biases that hide anything but
/// padding.
pub(crate) fn look(graph: &Graph, anatomy: &mut Anatomy) -> Vec<Refusal> {
    let few = match Scene::new(graph, anatomy, FEW) {
        Ok(scene) => scene,
        Err(refusal) => return vec![refusal],
    };
    let found = few.judge_all(anatomy);
    for (place, block, mask) in &found.masks {
        if let Some(attention) = anatomy.towers[place.tower].blocks[*block].attention_mut(place.kind) {
            attention.mask = *mask;
        }
    }
    let mut refusals = found.refusals;
    refusals.extend(contradictions(graph, anatomy));
    if refusals.is_empty() {
        // At lengths that the model does not accept, it hides nothing from anybody.
        let many = Scene::new(graph, anatomy, MANY).ok().filter(|many| many.lengths != few.lengths);
        refusals.extend(many.iter().flat_map(|many| many.differences(anatomy)));
    }
    refusals
}

/// What was found of all attentions.
struct Judged {
    masks: Vec<(Place, usize, Option<PaddingMask>)>,
    refusals: Vec<Refusal>,
}

/// An input whose ones mark tokens for one attention and padding for another.
fn contradictions(graph: &Graph, anatomy: &Anatomy) -> Vec<Refusal> {
    let masks: Vec<PaddingMask> = attentions(anatomy).filter_map(|(_, a)| a.mask).collect();
    let both = |input: &&ValueId| {
        let marks = |marks| masks.iter().any(|m| m.input == **input && m.marks == marks);
        marks(Marks::Tokens) && marks(Marks::Padding)
    };
    let refuse = |input: &ValueId| Refusal {
        place: crate::place::Place::Model,
        node: graph.value(*input).name.clone(),
        reason: "marks tokens for some attentions, and padding for others".to_owned(),
    };
    graph.inputs.iter().filter(both).map(refuse).collect()
}

/// The attention of one kind in each block of a tower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Place {
    tower: usize,
    kind: AttentionKind,
}

impl Place {
    /// The tower whose positions are the keys.
    fn keys(self) -> usize {
        match self.kind {
            AttentionKind::SelfAttention => self.tower,
            AttentionKind::Cross => self.tower.saturating_sub(1),
        }
    }
}

fn attentions(anatomy: &Anatomy) -> impl Iterator<Item = (usize, &Attention)> {
    let sublayers = anatomy.towers.iter().enumerate().flat_map(|(i, t)| t.blocks.iter().map(move |b| (i, b)));
    sublayers.flat_map(|(index, block)| {
        block.sublayers.iter().filter_map(move |sublayer| match &sublayer.kind {
            SublayerKind::Attention(attention) => Some((index, attention.as_ref())),
            SublayerKind::FeedForward(_) => None,
        })
    })
}

/// Every attention, by its place and its block.
fn places(anatomy: &Anatomy) -> Vec<(Place, usize)> {
    let mut places = Vec::new();
    for (tower, found) in anatomy.towers.iter().enumerate() {
        for block in 0..found.blocks.len() {
            for kind in [AttentionKind::SelfAttention, AttentionKind::Cross] {
                places.push((Place { tower, kind }, block));
            }
        }
    }
    places
}

fn numbers(weight: &Weight) -> Option<Numbers> {
    Some(Numbers { dims: weight.dims().to_vec(), elements: weight.to_f32()? })
}

impl Scene<'_> {
    /// What hides padding from each attention, and what is refused.
    fn judge_all(&self, anatomy: &Anatomy) -> Judged {
        let values: Vec<ValueId> = attentions(anatomy).flat_map(|(_, a)| a.bias.iter().flat_map(Bias::masks)).collect();
        let rounds = self.rounds(&values);
        let mut judged: HashMap<(Place, Vec<ValueId>), Result<Option<PaddingMask>, String>> = HashMap::new();
        let mut masks = Vec::new();
        let mut refusals: Vec<(Place, Refusal, usize)> = Vec::new();
        for (place, block) in places(anatomy) {
            let tower = &anatomy.towers[place.tower];
            let Some(attention) = tower.blocks[block].attention(place.kind) else { continue };
            let key = (place, attention.bias.iter().flat_map(Bias::values).collect::<Vec<_>>());
            // A mask that was read off a folded bias has no value to know it by.
            let is_known = attention.bias.as_ref().and_then(Bias::unfolded_mask).is_none();
            let found = match judged.get(&key).filter(|_| is_known) {
                Some(found) => found.clone(),
                None => self.judge(tower.kind, place, attention, &rounds),
            };
            judged.insert(key, found.clone());
            match found {
                Ok(mask) => masks.push((place, block, mask)),
                Err(reason) => match refusals.iter_mut().find(|(p, r, _)| *p == place && r.reason == reason) {
                    Some((.., more)) => *more += 1,
                    None => refusals.push((place, self.refusal(tower.kind, block, attention, reason), 0)),
                },
            }
        }
        let with_more = |(_, mut refusal, more): (Place, Refusal, usize)| {
            if more > 0 {
                refusal.reason += &format!(" ({more} more of its blocks do the same)");
            }
            refusal
        };
        Judged { masks, refusals: refusals.into_iter().map(with_more).collect() }
    }

    /// Where attentions hide something else than the anatomy says.
    fn differences(&self, anatomy: &Anatomy) -> Vec<Refusal> {
        let at = || format!("at lengths of {}", self.lengths_text());
        let Judged { masks, mut refusals } = self.judge_all(anatomy);
        for refusal in &mut refusals {
            refusal.reason = format!("{} it {}", at(), refusal.reason);
        }
        for (place, block, mask) in masks {
            let tower = &anatomy.towers[place.tower];
            let Some(attention) = tower.blocks[block].attention(place.kind) else { continue };
            if attention.mask != mask {
                let reason = format!("hides other positions {} than at short ones", at());
                refusals.push(self.refusal(tower.kind, block, attention, reason));
            }
        }
        refusals
    }

    fn refusal(&self, tower: TowerKind, block: usize, attention: &Attention, reason: String) -> Refusal {
        let named = attention.bias.iter().flat_map(Bias::masks).next().unwrap_or(attention.softmax);
        let node = self.graph.value(named).name.clone();
        Refusal { place: crate::place::Place::Block(tower, block), node, reason }
    }

    /// What hides padding from an attention, `None` where nothing does; or why it is refused.
    fn judge(
        &self,
        tower: TowerKind,
        place: Place,
        attention: &Attention,
        rounds: &[Round],
    ) -> Result<Option<PaddingMask>, String> {
        let values: Vec<ValueId> = attention.bias.iter().flat_map(Bias::masks).collect();
        let behind = inputs_behind(self.graph, &values);
        let bias = attention.bias.as_ref();
        let unfolded = bias.and_then(Bias::unfolded_mask).and_then(numbers);
        let view = View { scene: self, place, bias, unfolded, heads: attention.heads, rounds };
        view.complete()?;
        let buckets: Vec<ValueId> = bias.iter().flat_map(|bias| bias.buckets()).collect();
        if let Some(input) = inputs_behind(self.graph, &buckets).first() {
            let name = &self.graph.value(*input).name;
            return Err(format!("has a position bias that depends on what `{name}` holds, not on distances alone"));
        }
        let wants_causal = place.kind == AttentionKind::SelfAttention && tower == TowerKind::Decoder;
        let candidates = (0..self.inputs.len()).filter(|input| behind.contains(&self.inputs[*input].value));
        // A target begins with the token of padding: padding cannot be told from its start.
        let of = |input: usize| match self.inputs[input].role {
            InputRole::Tokens if wants_causal => &[][..],
            InputRole::Tokens => &[Marks::Tokens][..],
            InputRole::Mask | InputRole::Padding => &[Marks::Tokens, Marks::Padding],
        };
        let masks = candidates.flat_map(|input| of(input).iter().map(move |marks| Some((input, *marks))));
        let masks: Vec<Option<(usize, Marks)>> = [None].into_iter().chain(masks).collect();
        let means = |causal: bool| {
            let mut meanings = masks.iter().map(|mask| Meaning { mask: *mask, causal });
            meanings.find(|meaning| view.is(*meaning))
        };
        match means(wants_causal) {
            Some(meaning) => {
                view.is_a_number(meaning)?;
                Ok(meaning.mask.map(|(input, marks)| PaddingMask { input: self.inputs[input].value, marks }))
            }
            None if wants_causal && masks.iter().all(|mask| view.sees_later(*mask)) => Err(
                "lets a position of the target see later ones, so the side network would be trained on its own answers: a \
                 decoder that is exported with one token has no causal mask; export it with several"
                    .to_owned(),
            ),
            None if place.kind == AttentionKind::SelfAttention && !wants_causal && means(true).is_some() => {
                Err("hides later positions of the source: a T5 encoder sees all of them".to_owned())
            }
            None => Err(view.oddness()),
        }
    }
}
