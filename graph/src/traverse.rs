//! Order, reachability and removal, on petgraph's algorithms.

use std::collections::HashSet;

use petgraph::algo::toposort;
use petgraph::graph::{DiGraph, NodeIndex};

use crate::ir::{Graph, Node, NodeId, Role, Source, ValueId};

impl Graph {
    /// The data flow between nodes as a petgraph: one edge for each value that a node reads from another.
    pub fn dataflow(&self) -> DiGraph<NodeId, ValueId, u32> {
        let mut flow = DiGraph::with_capacity(self.nodes.len(), self.nodes.len() * 2);
        let mut index = vec![NodeIndex::end(); self.nodes.len()];
        for id in self.node_ids() {
            index[id.index()] = flow.add_node(id);
        }
        for id in self.node_ids() {
            for value in self.node(id).inputs.iter().flatten() {
                if let Source::Node(producer, _) = self.value(*value).source {
                    flow.add_edge(index[producer.index()], index[id.index()], *value);
                }
            }
        }
        flow
    }

    /// Nodes, each after those it reads from: in the order they were added where possible, else right before the
    /// first that reads from it.
    ///
    /// # Errors
    /// A node on a cycle.
    pub fn order(&self) -> Result<Vec<NodeId>, NodeId> {
        let producers = |id: NodeId| {
            self.node(id).inputs.iter().flatten().filter_map(|v| self.producer_of(*v)).map(|(producer, _)| producer)
        };
        if self.node_ids().all(|id| producers(id).all(|producer| producer < id)) {
            return Ok(self.node_ids().collect());
        }
        let flow = self.dataflow();
        if let Err(cycle) = toposort(&flow, None) {
            return Err(flow[cycle.node_id()]);
        }
        let mut order = Vec::with_capacity(self.nodes.len());
        let mut placed = vec![false; self.nodes.len()];
        for id in self.node_ids() {
            let mut open = vec![id];
            while let Some(&next) = open.last() {
                let waits = producers(next).filter(|p| !placed[p.index()]);
                let before = open.len();
                open.extend(waits);
                if open.len() == before {
                    open.pop();
                    if !std::mem::replace(&mut placed[next.index()], true) {
                        order.push(next);
                    }
                } else {
                    open[before..].reverse();
                }
            }
        }
        Ok(order)
    }

    /// The nodes that the given values are computed from.
    pub fn ancestors(&self, values: impl IntoIterator<Item = ValueId>) -> HashSet<NodeId> {
        self.ancestors_until(values, |_| false)
    }

    /// As [`Graph::ancestors`], without looking beyond a value for which `stop` holds.
    pub fn ancestors_until(
        &self,
        values: impl IntoIterator<Item = ValueId>,
        stop: impl Fn(ValueId) -> bool,
    ) -> HashSet<NodeId> {
        self.behind(values, stop, |node, open| open.extend(node.inputs.iter().flatten()))
    }

    /// The nodes that decide the numbers of the given values, without looking behind a value for which `stop` holds. Nodes of which
    /// a type or a shape alone is read are not among them.
    pub fn makers_until(
        &self,
        values: impl IntoIterator<Item = ValueId>,
        stop: impl Fn(ValueId) -> bool,
    ) -> HashSet<NodeId> {
        self.behind(values, stop, |node, open| open.extend(node.numbers()))
    }

    fn behind(
        &self,
        values: impl IntoIterator<Item = ValueId>,
        stop: impl Fn(ValueId) -> bool,
        read: impl Fn(&Node, &mut Vec<ValueId>),
    ) -> HashSet<NodeId> {
        let mut seen = HashSet::new();
        let mut open: Vec<ValueId> = values.into_iter().collect();
        while let Some(value) = open.pop() {
            if stop(value) {
                continue;
            }
            if let Source::Node(node, _) = self.value(value).source
                && seen.insert(node)
            {
                read(self.node(node), &mut open);
            }
        }
        seen
    }

    /// The values that depend on any of the given ones, themselves included.
    pub fn dependents(&self, values: impl IntoIterator<Item = ValueId>) -> Vec<bool> {
        let uses = self.uses();
        let mut marked = vec![false; self.values.len()];
        let mut open: Vec<ValueId> = values.into_iter().collect();
        while let Some(value) = open.pop() {
            if std::mem::replace(&mut marked[value.index()], true) {
                continue;
            }
            for (node, _) in uses.of(value) {
                open.extend(self.node(*node).outputs.iter().flatten().filter(|v| !marked[v.index()]));
            }
        }
        marked
    }

    /// Removes every node that no output is computed from.
    pub fn remove_dead(&mut self) {
        let live = self.ancestors(self.outputs.iter().copied());
        for (index, slot) in self.nodes.iter_mut().enumerate() {
            if !live.contains(&NodeId(index as u32)) {
                *slot = None;
            }
        }
    }

    /// The graph that computes only `outputs`, with the inputs that they need.
    pub fn slice(&self, outputs: &[ValueId]) -> Graph {
        let mut slice = self.clone();
        slice.outputs = outputs.to_vec();
        slice.remove_dead();
        let uses = slice.uses();
        slice.inputs.retain(|v| !uses.of(*v).is_empty() || outputs.contains(v));
        slice
    }

    /// Splits the graph in two: what can be computed before the inputs `late` are known, and the rest. The values that pass from
    /// one to the other are outputs of the first and inputs of the second, under their names.
    pub fn split(&self, late: &[ValueId]) -> (Graph, Graph) {
        let waits = self.dependents(late.iter().copied());
        let live = self.ancestors(self.outputs.iter().copied());
        let is_late = |id: &NodeId| self.node(*id).outputs.iter().flatten().any(|v| waits[v.index()]);
        let read = live.iter().filter(|id| is_late(id)).flat_map(|id| self.node(*id).inputs.iter().flatten());
        let made_early = |v: &&ValueId| !waits[v.index()] && self.producer_of(**v).is_some();
        let mut frontier: Vec<ValueId> = read.chain(&self.outputs).filter(made_early).copied().collect();
        frontier.sort_unstable();
        frontier.dedup();

        self.divide(&frontier)
    }

    /// Splits the graph at some of its values: what computes them, and the rest. They are outputs of the first and inputs of
    /// the second, under their names, as far as the rest reads them.
    pub fn divide(&self, at: &[ValueId]) -> (Graph, Graph) {
        let mut rest = self.clone();
        for value in at {
            rest.values[value.index()].source = Source::Input(Role::Frozen);
        }
        rest.inputs.extend(at);
        let outputs = rest.outputs.clone();
        let rest = rest.slice(&outputs);
        let read: Vec<ValueId> = at.iter().copied().filter(|v| rest.inputs.contains(v)).collect();
        (self.slice(&read), rest)
    }

    /// True where a path of values leads from `from` to `to`.
    pub fn reaches(&self, from: ValueId, to: ValueId) -> bool {
        if from == to {
            return true;
        }
        match self.producer_of(from) {
            _ if self.producer_of(to).is_none() => false,
            None => self.ancestors([to]).iter().any(|n| self.node(*n).inputs.contains(&Some(from))),
            Some((node, _)) => self.ancestors([to]).contains(&node),
        }
    }
}
