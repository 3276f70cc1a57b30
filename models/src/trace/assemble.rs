//! Turns attempts in the order of the walk into a trace by place, with names for ids.

use std::cell::Cell;
use std::collections::HashMap;
use std::ops::Range;

use lstc_graph::{Graph, Node, NodeId, ValueId, shape_text};

use super::record::Entry;
use super::{
    Attempt, BlockTrace, FusedTrace, NodeRef, Operand, Outcome, Reason, SublayerGuess, SublayerTrace, TowerTrace, Trace,
};
use crate::anatomy::TowerKind;
use crate::matcher::{Matcher, Mismatch};
use crate::place::Place;
use crate::refusal::Refusal;
use crate::restate::Fused;

/// Bytes of names that a trace holds.
const MAX_NAMES: usize = 1 << 26;

/// Operands of one node that are reported.
const MAX_OPERANDS: usize = 8;

/// Where in a model attempts were made: ranges of a record.
#[derive(Default)]
pub struct Places {
    pub head: Range<usize>,
    /// In the order of the walk: the last tower first.
    pub towers: Vec<TowerPlace>,
}

pub struct TowerPlace {
    pub kind: TowerKind,
    pub output: ValueId,
    pub final_norm: Range<usize>,
    pub embedding: Range<usize>,
    pub blocks: Vec<BlockPlace>,
    pub ended: Option<Refusal>,
}

impl TowerPlace {
    /// A tower of which only the end is known.
    pub fn new(output: ValueId) -> TowerPlace {
        let (final_norm, embedding) = (0..0, 0..0);
        TowerPlace { kind: TowerKind::Encoder, output, final_norm, embedding, blocks: Vec::new(), ended: None }
    }
}

pub struct BlockPlace {
    pub input: ValueId,
    pub output: ValueId,
    pub sublayers: Vec<SublayerPlace>,
}

pub struct SublayerPlace {
    pub guess: SublayerGuess,
    /// The point of the residual stream after it.
    pub output: ValueId,
    pub tried: Range<usize>,
    /// Why it was not understood.
    pub mismatch: Option<Mismatch>,
}

/// The trace of a walk; an empty one where nothing was recorded.
pub fn assemble(matcher: Matcher, places: &Places, fused: &[Fused], refusals: &[Refusal]) -> Trace {
    let (graph, stream) = (matcher.graph, matcher.claimed_by_none());
    let Some(record) = matcher.into_record() else { return Trace::default() };
    let (entries, cut) = record.finish();
    let by_name = graph.node_ids().map(|id| (graph.node(id).name.as_str(), id)).collect();
    let values = graph.value_ids().collect();
    let told = Telling { graph, entries, values, by_name, refusals, room: Cell::new(MAX_NAMES), cut: Cell::new(cut) };
    Trace {
        head: told.attempts(&places.head),
        towers: places.towers.iter().rev().map(|t| told.tower(t)).collect(),
        fused: fused.iter().map(|f| told.fused(f)).collect(),
        stream: told.nodes(&stream),
        cut: told.cut.get(),
    }
}

struct Telling<'g> {
    graph: &'g Graph,
    entries: Vec<Entry>,
    values: Vec<ValueId>,
    by_name: HashMap<&'g str, NodeId>,
    refusals: &'g [Refusal],
    /// Bytes of names that can still be reported.
    room: Cell<usize>,
    cut: Cell<bool>,
}

impl Telling<'_> {
    /// A name, as long as there is room.
    fn name(&self, name: &str) -> String {
        match self.room.get().checked_sub(name.len()) {
            Some(left) => {
                self.room.set(left);
                name.to_owned()
            }
            None => {
                self.cut.set(true);
                String::new()
            }
        }
    }

    fn node(&self, node: &Node) -> NodeRef {
        NodeRef { name: self.name(&node.name), operator: self.name(&node.kind()) }
    }

    fn nodes(&self, ids: &[NodeId]) -> Vec<NodeRef> {
        ids.iter().map(|id| self.node(self.graph.node(*id))).collect()
    }

    /// The node that makes a value, or the value itself.
    fn place(&self, value: ValueId) -> NodeRef {
        match self.graph.producer_of(value) {
            Some((id, _)) => self.node(self.graph.node(id)),
            None => NodeRef {
                name: self.name(&self.graph.value(value).name),
                operator: source(self.graph, value).to_owned(),
            },
        }
    }

    fn tower(&self, tower: &TowerPlace) -> TowerTrace {
        let kind = tower.kind;
        let block = |(index, block): (usize, &BlockPlace)| {
            let own = |r: &Refusal| block.sublayers.iter().any(|s| s.mismatch.as_ref().is_some_and(|m| is_of(m, r)));
            BlockTrace {
                index,
                input: self.name(&self.graph.value(block.input).name),
                output: self.name(&self.graph.value(block.output).name),
                sublayers: block.sublayers.iter().map(|s| self.sublayer(s)).collect(),
                refusals: self.refused(Place::Block(kind, index), own),
            }
        };
        TowerTrace {
            kind,
            output: self.name(&self.graph.value(tower.output).name),
            final_norm: self.attempts(&tower.final_norm),
            blocks: tower.blocks.iter().enumerate().map(block).collect(),
            embedding: self.attempts(&tower.embedding),
            ended: tower.ended.clone(),
            refusals: self.refused(Place::Tower(kind), |_| false),
        }
    }

    /// The refusals of a place, without those for which `reported` holds.
    fn refused(&self, place: Place, reported: impl Fn(&Refusal) -> bool) -> Vec<Refusal> {
        self.refusals.iter().filter(|r| r.place == place && !reported(r)).cloned().collect()
    }

    fn sublayer(&self, place: &SublayerPlace) -> SublayerTrace {
        let tried = self.attempts(&place.tried);
        let outcome = match (&place.mismatch, tried.first()) {
            (Some(mismatch), _) => self.no(mismatch),
            (None, Some(first)) => first.outcome.clone(),
            (None, None) => Outcome::Matched { found: String::new() },
        };
        SublayerTrace { kind: place.guess, add: self.place(place.output), outcome, tried }
    }

    /// The attempts of a range, each with those within it.
    fn attempts(&self, range: &Range<usize>) -> Vec<Attempt> {
        let entries = self.entries.get(range.clone()).unwrap_or_default();
        let mut finished: Vec<(usize, Attempt)> = Vec::new();
        // From the last to the first, so that what lies within an attempt is there before it.
        for entry in entries.iter().rev() {
            let mut tried = Vec::new();
            while finished.last().is_some_and(|(depth, _)| *depth > entry.depth) {
                tried.extend(finished.pop().map(|(_, attempt)| attempt));
            }
            finished.push((entry.depth, self.attempt(entry, tried)));
        }
        finished.into_iter().rev().map(|(_, attempt)| attempt).collect()
    }

    fn attempt(&self, entry: &Entry, tried: Vec<Attempt>) -> Attempt {
        let outcome = match &entry.outcome {
            Some(Ok(found)) => Outcome::Matched { found: found.clone() },
            Some(Err(mismatch)) => self.no(mismatch),
            None => Outcome::No(Reason {
                node: self.place(entry.value),
                reason: "was left out of this trace".to_owned(),
                remark: None,
                reads: Vec::new(),
            }),
        };
        let at = entry.node.map_or_else(|| self.place(entry.value), |id| self.node(self.graph.node(id)));
        Attempt { pattern: entry.pattern, at, outcome, took: self.nodes(&entry.took), tried }
    }

    fn no(&self, mismatch: &Mismatch) -> Outcome {
        let node = self.by_name.get(mismatch.node.as_str()).map(|id| self.graph.node(*id));
        let value = || self.graph.find(&mismatch.node);
        let (node, reads) = match (node, value()) {
            (Some(node), _) => (self.node(node), self.operands(node)),
            (None, Some(value)) => (self.place(value), Vec::new()),
            (None, None) => (NodeRef { name: self.name(&mismatch.node), operator: String::new() }, Vec::new()),
        };
        Outcome::No(Reason { node, reason: self.name(&mismatch.reason), remark: mismatch.remark, reads })
    }

    fn operands(&self, node: &Node) -> Vec<Operand> {
        node.inputs.iter().flatten().take(MAX_OPERANDS).map(|value| self.operand(*value)).collect()
    }

    fn operand(&self, id: ValueId) -> Operand {
        let Operand { value, shape, operator } = operand(self.graph, id);
        Operand { value: self.name(&value), shape: self.name(&shape), operator: self.name(&operator) }
    }

    fn fused(&self, fused: &Fused) -> FusedTrace {
        let made = fused.values.as_ref().ok().and_then(|range| self.values.get(range.clone()));
        let outputs = fused.node.outputs.iter().flatten().filter(|_| made.is_some());
        let all = made.unwrap_or_default().iter().chain(outputs);
        let mut ids: Vec<NodeId> = all.filter_map(|v| self.graph.producer_of(*v)).map(|(id, _)| id).collect();
        ids.sort_unstable();
        ids.dedup();
        FusedTrace {
            node: self.node(&fused.node),
            rule: fused.rule,
            restated: self.nodes(&ids),
            left: fused.values.as_ref().err().copied(),
        }
    }
}

fn is_of(mismatch: &Mismatch, refusal: &Refusal) -> bool {
    refusal.node == mismatch.node && refusal.reason == mismatch.text()
}

/// A value as a node reads it.
pub fn operand(graph: &Graph, id: ValueId) -> Operand {
    let value = graph.value(id);
    let dtype = value.dtype.map_or_else(String::new, |d| d.to_string());
    let shape = value.shape().map_or_else(String::new, |s| shape_text(&s));
    let operator = match graph.producer_of(id) {
        Some((node, _)) => graph.node(node).kind(),
        None => source(graph, id).to_owned(),
    };
    Operand { value: value.name.clone(), shape: dtype + &shape, operator }
}

/// The source of a value that no node makes.
pub fn source(graph: &Graph, value: ValueId) -> &'static str {
    if graph.weight(value).is_some() { "constant" } else { "input" }
}
