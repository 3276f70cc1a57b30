//! The values of a graph in the runtime's order: which of them are alive at once.

use std::collections::{HashMap, HashSet};

use lstc_graph::{Dim, Graph, NodeId, ValueId, dim_text};
use lstc_passes::loss::counted;
use lstc_tuned::opened::Opened;

use super::{Sizes, total};

/// Numbers for the symbolic dimensions of a model's graphs.
#[derive(Clone, Debug)]
pub struct Numbers {
    numbers: HashMap<String, i64>,
}

impl Numbers {
    /// With the sizes that labels decide, for this many labels, all of which count.
    pub fn new(labels: usize) -> Numbers {
        Numbers { numbers: counted(i64::try_from(labels).unwrap_or(i64::MAX)).collect() }
    }

    /// The numbers of the inputs of a directory's graphs, for batches of these sizes whose labels all count.
    pub fn of<'g>(opened: &Opened, graphs: impl IntoIterator<Item = &'g Graph>, sizes: Sizes) -> Numbers {
        let late = opened.late();
        let mut numbers = Numbers::new(sizes.batch.saturating_mul(sizes.target_length));
        for graph in graphs {
            for input in &graph.inputs {
                let name = graph.value(*input).name.as_str();
                let is_late = name == "labels" || late.contains(&name);
                let is_read = is_late || opened.record.inputs.iter().any(|input| input.name == name);
                if is_read && let Some([batch, length]) = graph.shape(*input).as_deref() {
                    numbers.set(batch, sizes.batch);
                    numbers.set(length, if is_late { sizes.target_length } else { sizes.source_length });
                }
            }
        }
        numbers
    }

    /// The shape of a value, where every dimension is known.
    pub fn dims(&self, graph: &Graph, value: ValueId) -> Option<Vec<usize>> {
        let shape = graph.shape(value)?;
        shape.iter().map(|dim| usize::try_from(self.number(dim)).ok().filter(|_| self.is_known(dim))).collect()
    }

    /// Whether the size of a dimension follows from the known ones.
    fn is_known(&self, dim: &Dim) -> bool {
        dim.iter().all(|part| match part {
            Dim::Var(symbol) => self.numbers.contains_key(&symbol.name),
            _ => true,
        })
    }

    /// Sets the size of a symbolic dimension.
    pub fn set(&mut self, dim: &Dim, size: usize) {
        self.numbers.insert(dim_text(dim), i64::try_from(size).unwrap_or(i64::MAX));
    }

    /// The size of a dimension; 1 for one that depends on something else.
    pub fn number(&self, dim: &Dim) -> i64 {
        match dim {
            Dim::Value(v) => i64::from(*v),
            Dim::Var(symbol) => self.numbers.get(&symbol.name).copied().unwrap_or(1),
            Dim::Mul(a, b) => self.number(a).saturating_mul(self.number(b)),
            Dim::Add(a, b) => self.number(a).saturating_add(self.number(b)),
            Dim::Sub(a, b) => self.number(a).saturating_sub(self.number(b)),
            Dim::Div(a, b) | Dim::DivCeil(a, b) => self.number(a) / self.number(b).max(1),
            Dim::Max(a, b) | Dim::Broadcast(a, b) => self.number(a).max(self.number(b)),
            Dim::Min(a, b) => self.number(a).min(self.number(b)),
            Dim::Neg(a) => -self.number(a),
        }
    }

    pub fn bytes(&self, graph: &Graph, value: ValueId) -> u64 {
        let shape = graph.shape(value).unwrap_or_default();
        let elements = shape.iter().fold(1_i64, |n, d| n.saturating_mul(self.number(d).max(0)));
        let size = graph.value(value).dtype.map_or(4, |d| d.size() as u64);
        (elements as u64).saturating_mul(size)
    }

    pub fn sum_of_floats(&self, graph: &Graph) -> u64 {
        let float = |v: &ValueId| graph.value(*v).dtype.is_some_and(|d| d.is_float());
        let outputs = graph.node_ids().filter(|id| !is_view(graph, *id)).flat_map(|id| &graph.node(id).outputs);
        total(outputs.flatten().filter(|v| float(v)).map(|v| self.bytes(graph, *v)))
    }

    /// The peak of live bytes when the nodes run in their order, without the values `elsewhere`.
    pub fn peak(&self, graph: &Graph, elsewhere: &HashSet<ValueId>) -> u64 {
        let order = runtime_order(graph);
        let mut last_use: HashMap<ValueId, usize> = HashMap::new();
        for (at, id) in order.iter().enumerate() {
            for value in graph.node(*id).inputs.iter().flatten() {
                last_use.insert(owner(graph, *value), at);
            }
        }
        for output in &graph.outputs {
            last_use.insert(owner(graph, *output), order.len());
        }
        let mut ends: Vec<u64> = vec![0; order.len() + 1];
        let (mut alive, mut peak) = (0_u64, 0_u64);
        for (at, id) in order.iter().enumerate() {
            if !is_view(graph, *id) {
                let stored = |v: &&ValueId| !elsewhere.contains(v) && !is_fused(graph, **v);
                for value in graph.node(*id).outputs.iter().flatten().filter(stored) {
                    let bytes = self.bytes(graph, *value);
                    alive = alive.saturating_add(bytes);
                    let end = &mut ends[last_use.get(value).copied().unwrap_or(at)];
                    *end = end.saturating_add(bytes);
                }
            }
            peak = peak.max(alive);
            alive = alive.saturating_sub(ends[at]);
        }
        peak
    }
}

/// The order in which ONNX Runtime runs the nodes: depth first, backwards from those that no node reads, the latest of the
/// file first.
fn runtime_order(graph: &Graph) -> Vec<NodeId> {
    enum Visit {
        Enter(NodeId),
        Leave(NodeId),
    }
    let uses = graph.uses();
    let is_leaf = |id: &NodeId| graph.node(*id).outputs.iter().flatten().all(|v| uses.of(*v).is_empty());
    let file = graph.order().unwrap_or_else(|_| graph.node_ids().collect());
    let place: HashMap<NodeId, usize> = file.iter().enumerate().map(|(place, id)| (*id, place)).collect();
    let mut stack: Vec<Visit> = file.iter().copied().filter(is_leaf).map(Visit::Enter).collect();
    let mut seen = HashSet::new();
    let mut order = Vec::new();
    while let Some(visit) = stack.pop() {
        match visit {
            Visit::Leave(id) => order.push(id),
            Visit::Enter(id) => {
                if !seen.insert(id) {
                    continue;
                }
                stack.push(Visit::Leave(id));
                let producer = |value: &ValueId| graph.producer_of(*value).map(|(producer, _)| producer);
                let mut before: Vec<NodeId> = graph.node(id).inputs.iter().flatten().filter_map(producer).collect();
                before.sort_unstable_by_key(|id| place[id]);
                stack.extend(before.into_iter().filter(|id| !seen.contains(id)).map(Visit::Enter));
            }
        }
    }
    order
}

/// Operators whose output shares their first operand's memory.
fn is_view(graph: &Graph, id: NodeId) -> bool {
    ["Reshape", "Identity", "Unsqueeze", "Squeeze", "Flatten"].iter().any(|op| graph.node(id).is(op))
}

/// Sums of quantised products: the runtime fuses the product with its scaling.
fn is_fused(graph: &Graph, value: ValueId) -> bool {
    let is_sum = |v: ValueId| graph.producer_of(v).is_some_and(|(id, _)| graph.node(id).is("MatMulInteger"));
    let cast_of = |v: ValueId| {
        graph.producer_of(v).and_then(|(id, _)| graph.node(id).input(0).filter(|_| graph.node(id).is("Cast")))
    };
    is_sum(value) || cast_of(value).is_some_and(is_sum)
}

/// The value whose memory a value lies in.
fn owner(graph: &Graph, value: ValueId) -> ValueId {
    let mut value = value;
    while let Some((id, 0)) = graph.producer_of(value)
        && is_view(graph, id)
        && let Some(inner) = graph.node(id).input(0)
    {
        value = inner;
    }
    value
}
