//! What a trace knows of one node: which patterns took it, which failed on it, and where recognition came nearest to one
//! that no pattern took.

use std::collections::{HashMap, HashSet, VecDeque};

use lstc_graph::{Graph, NodeId, ValueId};
use serde::Serialize;

use super::assemble::{operand, source};
use super::{Attempt, BlockTrace, FusedTrace, NodeRef, Operand, Outcome, SublayerTrace, Trace};
use crate::anatomy::TowerKind;
use crate::place::{Place, as_path};

/// Operands, readers and patterns of one node that are reported.
const MAX_TOLD: usize = 16;

/// One node, or one value that no node makes.
#[derive(Clone, Debug, Serialize)]
pub struct NodeTrace {
    pub node: NodeRef,
    pub reads: Vec<Operand>,
    pub read_by: Vec<NodeRef>,
    /// An output of the graph is computed from it.
    pub live: bool,
    /// What it was restated as, or why it was left unchanged.
    pub fused: Option<FusedTrace>,
    /// The patterns that met it.
    pub parts: Vec<Meeting>,
    /// Of a node that no pattern took: the nearest of those after it that one did or that one failed on.
    pub nearest: Option<Nearest>,
}

/// A node on the way from another to the outputs.
#[derive(Clone, Debug, Serialize)]
pub struct Nearest {
    pub node: NodeRef,
    /// Nodes from one to the other.
    pub steps: usize,
    pub parts: Vec<Meeting>,
}

/// How a pattern met a node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Meeting {
    pub known: Known,
    #[serde(serialize_with = "as_path")]
    pub place: Place,
    /// From the outermost pattern to the one that met it.
    pub patterns: Vec<&'static str>,
    pub outcome: Option<Outcome>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Known {
    /// It is part of what the pattern matched.
    Took,
    /// It passes the residual stream on.
    Stream,
    /// The pattern does not hold because of it.
    Blamed,
    /// The pattern was tried at its result.
    Tried,
}

impl Trace {
    /// What is known of the node or value of that name in the graph that was explained.
    pub fn about(&self, graph: &Graph, name: &str) -> Option<NodeTrace> {
        let index = Index::new(self);
        if let Some(id) = graph.node_ids().find(|id| graph.node(*id).name == name) {
            return Some(index.node(graph, id));
        }
        // A node that stands for a fused operator's output is none of the graph, though that output is.
        let own: HashSet<NodeId> = graph.node_ids().collect();
        let made = |value: ValueId| graph.producer_of(value).map(|(id, _)| id);
        match graph.find(name).map(|value| (value, made(value))) {
            Some((value, None)) => Some(index.value(graph, value)),
            Some((_, Some(id))) if own.contains(&id) => Some(index.node(graph, id)),
            _ => index.restated(name),
        }
    }

    /// Each attempt with its place and the patterns around it.
    fn visit<'t>(&'t self, mut see: impl FnMut(Place, &[&'static str], &'t Attempt)) {
        let mut all = |place: Place, attempts: &'t [Attempt]| {
            let mut open: Vec<(Vec<&'static str>, &Attempt)> = attempts.iter().rev().map(|a| (Vec::new(), a)).collect();
            while let Some((mut around, attempt)) = open.pop() {
                around.push(attempt.pattern);
                see(place, &around, attempt);
                open.extend(attempt.tried.iter().rev().map(|inner| (around.clone(), inner)));
            }
        };
        all(Place::Head, &self.head);
        for tower in &self.towers {
            all(Place::FinalNorm(tower.kind), &tower.final_norm);
            all(Place::Embedding(tower.kind), &tower.embedding);
        }
        for (place, sublayer) in self.sublayers() {
            all(place, &sublayer.tried);
        }
    }

    /// Each sublayer with its place.
    fn sublayers(&self) -> impl Iterator<Item = (Place, &SublayerTrace)> {
        let in_block =
            |kind: TowerKind, block: &BlockTrace, s: &SublayerTrace| Place::Sublayer(kind, block.index, s.kind);
        self.towers.iter().flat_map(move |t| {
            t.blocks.iter().flat_map(move |b| b.sublayers.iter().map(move |s| (in_block(t.kind, b, s), s)))
        })
    }
}

/// What is known, by the name of the node.
struct Index<'t> {
    trace: &'t Trace,
    parts: HashMap<&'t str, Vec<Meeting>>,
    fused: HashMap<&'t str, &'t FusedTrace>,
}

impl<'t> Index<'t> {
    fn new(trace: &'t Trace) -> Index<'t> {
        let mut parts: HashMap<&str, Vec<Meeting>> = HashMap::new();
        let mut add = |name: &'t str, part: Meeting| {
            let known = parts.entry(name).or_default();
            let at = known.iter().position(|k| k.place == part.place && k.known <= part.known);
            match at {
                // Of patterns that were only tried at it, the inner one says more than those around it.
                Some(at) if (known[at].known, part.known) == (Known::Tried, Known::Tried) => known[at] = part,
                Some(_) => {}
                None if known.len() < MAX_TOLD => known.push(part),
                None => {}
            }
        };
        trace.visit(|place, patterns, attempt| {
            let part = |known: Known| {
                let outcome = Some(attempt.outcome.clone());
                Meeting { known, place, patterns: patterns.to_vec(), outcome }
            };
            attempt.took.iter().for_each(|node| add(&node.name, part(Known::Took)));
            match &attempt.outcome {
                Outcome::No(reason) if reason.node.name == attempt.at.name && !attempt.is_innermost() => {}
                Outcome::No(reason) if attempt.is_innermost() => add(&reason.node.name, part(Known::Blamed)),
                _ => add(&attempt.at.name, part(Known::Tried)),
            }
        });
        for (place, sublayer) in trace.sublayers() {
            if let Outcome::No(reason) = &sublayer.outcome {
                let outcome = Some(sublayer.outcome.clone());
                let part = Meeting { known: Known::Blamed, place, patterns: Vec::new(), outcome };
                add(&reason.node.name, part);
            }
            add(&sublayer.add.name, Meeting { known: Known::Stream, place, patterns: Vec::new(), outcome: None });
        }
        let on_stream: HashSet<&str> = trace.sublayers().map(|(_, s)| s.add.name.as_str()).collect();
        for node in trace.stream.iter().filter(|n| !on_stream.contains(n.name.as_str())) {
            let place = Place::Stream(None);
            add(&node.name, Meeting { known: Known::Stream, place, patterns: Vec::new(), outcome: None });
        }
        let failed: HashSet<Place> =
            trace.sublayers().filter(|(_, s)| !s.outcome.is_match()).map(|(place, _)| place).collect();
        let fused = trace.fused.iter().map(|f| (f.node.name.as_str(), f)).collect();
        for known in parts.values_mut() {
            // Where one pattern took the node, others that were tried at it say nothing: they lie around that one, or
            // were the wrong ones.
            let took = |k: &Meeting| k.known == Known::Took && k.outcome.as_ref().is_some_and(Outcome::is_match);
            let places: HashSet<Place> = known.iter().filter(|k| took(k)).map(|k| k.place).collect();
            let around = |k: &Meeting| k.known == Known::Tried && k.outcome.as_ref().is_some_and(Outcome::is_match);
            let wrong = |k: &Meeting| k.known == Known::Blamed && !k.patterns.is_empty();
            known.retain(|k| !(places.contains(&k.place) && (around(k) || wrong(k) && !failed.contains(&k.place))));
            known.sort_by_key(|part| part.known);
        }
        Index { trace, parts, fused }
    }

    /// What met a node, or what it was restated as.
    fn parts(&self, name: &str) -> Vec<Meeting> {
        let restated = self.fused.get(name).map_or(&[][..], |f| &f.restated);
        let names = std::iter::once(name).chain(restated.iter().map(|n| n.name.as_str()));
        let mut found: Vec<Meeting> = Vec::new();
        for part in names.filter_map(|n| self.parts.get(n)).flatten() {
            if found.len() < MAX_TOLD && !found.contains(part) {
                found.push(part.clone());
            }
        }
        found
    }

    fn node(&self, graph: &Graph, id: NodeId) -> NodeTrace {
        let node = graph.node(id);
        let outputs: Vec<ValueId> = node.outputs.iter().flatten().copied().collect();
        let place = NodeRef { name: node.name.clone(), operator: node.kind() };
        let reads = node.inputs.iter().flatten().take(MAX_TOLD).map(|v| operand(graph, *v)).collect();
        self.reported(graph, place, reads, &outputs)
    }

    fn value(&self, graph: &Graph, value: ValueId) -> NodeTrace {
        let place = NodeRef { name: graph.value(value).name.clone(), operator: source(graph, value).to_owned() };
        self.reported(graph, place, Vec::new(), &[value])
    }

    fn reported(&self, graph: &Graph, node: NodeRef, reads: Vec<Operand>, outputs: &[ValueId]) -> NodeTrace {
        let uses = graph.uses();
        let parts = self.parts(&node.name);
        let mut readers: Vec<NodeId> = outputs.iter().flat_map(|v| uses.of(*v)).map(|(id, _)| *id).collect();
        readers.dedup();
        let read_by = readers.iter().take(MAX_TOLD).map(|id| name(graph, *id)).collect();
        let behind = Behind::new(graph, &uses, outputs);
        let taken = parts.iter().any(|part| matches!(part.known, Known::Took | Known::Stream));
        let nearest = || {
            let with_parts = |(id, steps): &(NodeId, usize)| {
                let parts = self.parts(&graph.node(*id).name);
                (!parts.is_empty()).then(|| Nearest { node: name(graph, *id), steps: *steps, parts })
            };
            behind.nodes.iter().find_map(with_parts)
        };
        NodeTrace {
            reads,
            read_by,
            live: behind.reaches_output,
            fused: self.fused.get(node.name.as_str()).map(|f| (*f).clone()),
            nearest: if taken { None } else { nearest() },
            parts,
            node,
        }
    }

    /// A node that stands for a part of a fused operator.
    fn restated(&self, name: &str) -> Option<NodeTrace> {
        let (fused, node) =
            self.trace.fused.iter().find_map(|f| Some((f, f.restated.iter().find(|n| n.name == name)?)))?;
        Some(NodeTrace {
            node: node.clone(),
            reads: Vec::new(),
            read_by: Vec::new(),
            live: true,
            fused: Some(fused.clone()),
            parts: self.parts(name),
            nearest: None,
        })
    }
}

fn name(graph: &Graph, id: NodeId) -> NodeRef {
    NodeRef { name: graph.node(id).name.clone(), operator: graph.node(id).kind() }
}

/// The nodes that are computed from some values, the nearest first, each with its distance.
struct Behind {
    nodes: Vec<(NodeId, usize)>,
    reaches_output: bool,
}

impl Behind {
    fn new(graph: &Graph, uses: &lstc_graph::Uses, values: &[ValueId]) -> Behind {
        let ends: HashSet<ValueId> = graph.outputs.iter().copied().collect();
        let mut reaches_output = values.iter().any(|v| ends.contains(v));
        let mut seen = HashSet::new();
        let mut nodes = Vec::new();
        let mut open: VecDeque<(ValueId, usize)> = values.iter().map(|v| (*v, 1)).collect();
        while let Some((value, steps)) = open.pop_front() {
            for (id, _) in uses.of(value).iter().filter(|(id, _)| seen.insert(*id)) {
                nodes.push((*id, steps));
                for output in graph.node(*id).outputs.iter().flatten() {
                    reaches_output |= ends.contains(output);
                    open.push_back((*output, steps + 1));
                }
            }
        }
        Behind { nodes, reaches_output }
    }
}
