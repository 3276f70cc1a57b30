//! What only the whole model shows: widths that do not fit, what reads the inside of a block, outputs that are not part of it.

use std::collections::HashSet;

use lstc_graph::{Dim, Graph, NodeId, ValueId, Weight};

use super::{Walk, outputs};
use crate::anatomy::{Anatomy, AttentionKind, Norm, Sublayer, SublayerKind};
use crate::copies::Copied;
use crate::place::Place;
use crate::refusal::Refusal;

impl Walk<'_, '_> {
    /// Refuses what the walk alone cannot see.
    pub fn check_whole(&mut self, anatomy: &Anatomy) {
        self.misfits(anatomy);
        self.short(anatomy);
        let (claimed, given) = self.with_copies();
        self.strangers(&claimed);
        self.others(anatomy, &claimed, &given);
    }

    /// The nodes of the recognised model together with those that copy what it computes, and the values that are copies of
    /// graph inputs. A copy is nothing of its own: what it copies counts, and what reads it.
    fn with_copies(&self) -> (HashSet<NodeId>, HashSet<ValueId>) {
        let graph = self.graph();
        let mut claimed = self.matcher.claimed();
        let mut given: HashSet<ValueId> = graph.inputs.iter().copied().collect();
        for id in graph.order().unwrap_or_default() {
            let Some(output) = graph.node(id).output(0) else { continue };
            let Some(Copied { from, by, quantised_by }) = self.matcher.copied(output) else { continue };
            if given.contains(&from) {
                given.insert(output);
            } else if graph.producer_of(from).is_some_and(|(maker, _)| claimed.contains(&maker)) {
                claimed.insert(by);
                claimed.extend(quantised_by);
            }
        }
        (claimed, given)
    }

    /// Refuses weights that do not fit the width of their residual stream, which shapes that are not known may hide.
    fn misfits(&mut self, anatomy: &Anatomy) {
        let graph = self.graph();
        let mut found: Vec<(Place, String)> = Vec::new();
        let mut check = |place: Place, what: &str, size: usize, width: usize| {
            if size != width {
                found.push((place, format!("{what} {size} features of a stream that is {width} wide")));
            }
        };
        let gains = |norm: &Norm| graph.weight(norm.weight).map_or(0, Weight::elements);
        for (index, tower) in anatomy.towers.iter().enumerate() {
            let width = tower.width;
            for (number, block) in tower.blocks.iter().enumerate() {
                let place = Place::Block(tower.kind, number);
                for Sublayer { norm, kind } in &block.sublayers {
                    check(place, "a norm weighs", gains(norm), width);
                    match kind {
                        SublayerKind::Attention(a) => {
                            let crosses = a.kind == AttentionKind::Cross;
                            let before = if crosses { index.checked_sub(1) } else { Some(index) };
                            let context = before.map_or(width, |i| anatomy.towers[i].width);
                            check(place, "queries read", a.q.inputs, width);
                            check(place, "keys read", a.k.inputs, context);
                            check(place, "values read", a.v.inputs, context);
                            check(place, "an attention makes", a.o.outputs, width);
                        }
                        SublayerKind::FeedForward(f) => {
                            f.inner.iter().for_each(|l| check(place, "a feed-forward layer reads", l.inputs, width));
                            f.inner.iter().for_each(|l| {
                                check(place, "a feed-forward layer's inner matrix makes", l.outputs, f.outer.inputs);
                            });
                            check(place, "a feed-forward layer makes", f.outer.outputs, width);
                        }
                    }
                }
            }
            check(Place::Tower(tower.kind), "the final norm weighs", gains(&tower.final_norm), width);
        }
        check(Place::Head, "it reads", anatomy.head.linear.inputs, anatomy.last().width);
        for (place, reason) in found {
            self.refuse(place, "", reason);
        }
    }

    /// Refuses a target of one token: a label and its end token make two.
    fn short(&mut self, anatomy: &Anatomy) {
        let last = anatomy.last();
        if last.length == Dim::Value(1) {
            let name = self.graph().value(last.tokens).name.clone();
            let reason = "is fixed at 1 token, which leaves no text to learn: export the model again, with a dynamic axis for \
                          the target's length";
            self.refuse(Place::Tower(last.kind), name, reason);
        }
    }

    /// Refuses nodes that read the inside of what was recognised and whose results reach an output. Who reads a type
    /// or a shape alone does not count.
    fn strangers(&mut self, claimed: &HashSet<NodeId>) {
        let graph = self.graph();
        let live = graph.makers_until(outputs(graph), |_| false);
        let uses = graph.uses();
        for id in graph.node_ids().filter(|id| claimed.contains(id) && !constant_glue(graph, *id)) {
            for value in graph.node(id).outputs.iter().flatten() {
                let excused = |user: &NodeId| {
                    self.suspects.contains(user) && self.stream.contains(&self.matcher.settle_with(*value, |_| {}))
                };
                let stranger = |(user, slot): &&(NodeId, usize)| {
                    let reads = graph.node(*user).reads_numbers(*slot) && live.contains(user);
                    reads && !claimed.contains(user) && !excused(user)
                };
                let Some((user, _)) = uses.of(*value).iter().find(stranger) else { continue };
                let user = graph.node(*user);
                self.refusals.push(Refusal {
                    place: Place::Inside,
                    node: graph.value(*value).name.clone(),
                    reason: format!(
                        "is also read by the {} `{}`, which is not part of the model",
                        user.kind(),
                        user.name
                    ),
                });
            }
        }
    }

    /// Refuses outputs that are neither the logits, nor a value of the recognised model, nor a graph input.
    fn others(&mut self, anatomy: &Anatomy, claimed: &HashSet<NodeId>, given: &HashSet<ValueId>) {
        let graph = self.graph();
        for output in outputs(graph).into_iter().filter(|o| *o != anatomy.head.logits) {
            let known = given.contains(&output) || graph.producer_of(output).is_some_and(|(n, _)| claimed.contains(&n));
            if !known {
                let name = graph.value(output).name.clone();
                self.refuse(Place::Outputs, name, "is an output other than the logits, and not part of the model");
            }
        }
    }
}

/// True for a node all of whose operands are constants.
fn constant_glue(graph: &Graph, id: NodeId) -> bool {
    graph.node(id).inputs.iter().flatten().all(|v| graph.weight(*v).is_some())
}
