//! Order, reachability and removal, on petgraph's algorithms.

use std::collections::HashSet;
use std::iter;

use petgraph::visit::{Dfs, DfsPostOrder, EdgeFiltered, EdgeRef};

use crate::ir::{Graph, NodeId, Role, Source, ValueId};
use crate::visit::{Edge, Reads};

impl Graph {
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
        let mut walk = DfsPostOrder::empty(Reads(self));
        let mut order = Vec::with_capacity(self.nodes.len());
        for id in self.node_ids() {
            walk.move_to(id);
            order.extend(iter::from_fn(|| walk.next(Reads(self))));
        }
        let mut placed = vec![false; self.nodes.len()];
        for id in &order {
            if !producers(*id).all(|producer| placed[producer.index()]) {
                return Err(*id);
            }
            placed[id.index()] = true;
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
        self.behind(values, |value, _| !stop(value))
    }

    /// The nodes that decide the numbers of the given values, without looking behind a value for which `stop` holds. Nodes of which
    /// a type or a shape alone is read are not among them.
    pub fn makers_until(
        &self,
        values: impl IntoIterator<Item = ValueId>,
        stop: impl Fn(ValueId) -> bool,
    ) -> HashSet<NodeId> {
        let decides = |edge: &Edge| self.node(edge.source()).reads_numbers(edge.place());
        self.behind(values, |value, edge| edge.is_none_or(decides) && !stop(value))
    }

    /// The nodes behind some values, as far as a value may be followed: one that was given, or one that an edge leads to.
    fn behind(
        &self,
        values: impl IntoIterator<Item = ValueId>,
        follows: impl Fn(ValueId, Option<&Edge>) -> bool,
    ) -> HashSet<NodeId> {
        let reads = EdgeFiltered::from_fn(Reads(self), |edge: Edge| follows(edge.value(), Some(&edge)));
        let mut walk = Dfs::empty(&reads);
        for value in values.into_iter().filter(|value| follows(*value, None)) {
            let Some((node, _)) = self.producer_of(value) else { continue };
            walk.move_to(node);
            while walk.next(&reads).is_some() {}
        }
        walk.discovered
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
