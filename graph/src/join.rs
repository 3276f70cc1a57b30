//! One graph of two, in which inputs of the second are values of the first.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use rten_shape_inference::SymTensor;

use crate::dtype::DType;
use crate::emit::Builder;
use crate::infer::Dim;
use crate::ir::{Graph, Node, NodeId, Origin, Source, Value, ValueId};
use crate::weight::Weight;

/// Joins two graphs. Each pair of `wires` is an input of `second` and the value of `first` that it becomes, cast where the
/// input is of another type. Outputs are those of the second; large weights that both hold are one in the result, by content. A symbolic size of the second is
/// one of the first's where a wire says so, whatever its name: names of sizes are each file's own.
///
/// # Errors
/// Graphs of different opsets; an input of the second whose name the first has too; shapes that do not fit, and types: floats
/// become other floats alone.
pub fn join(first: Graph, second: &Graph, wires: &[(ValueId, ValueId)]) -> Result<Graph, String> {
    let mut joined = first;
    for (domain, version) in &second.opsets {
        match joined.opsets.iter().find(|(d, _)| d == domain) {
            Some((_, other)) if other != version => {
                let domain = if domain.is_empty() { "ai.onnx" } else { domain };
                return Err(format!("are of versions {other} and {version} of the operator set {domain}"));
            }
            Some(_) => {}
            None => joined.opsets.push((domain.clone(), *version)),
        }
    }
    joined.ir_version = joined.ir_version.max(second.ir_version);
    joined.functions.extend(second.functions.iter().cloned());
    let sizes = Sizes::new(&joined, second, wires);
    let wires = &of_their_types(&mut joined, second, wires)?;
    let first_values = joined.values.len();
    let offset = joined.nodes.len() as u32;
    let mut place: HashMap<ValueId, ValueId> = wires.iter().copied().collect();
    for id in second.value_ids().filter(|v| !place.contains_key(v)).collect::<Vec<_>>() {
        let Value { name, source, dtype, fact } = second.value(id).clone();
        if matches!(source, Source::Input(_)) && joined.find(&name).is_some() {
            return Err(format!("both have a value `{name}`, which is an input of the second"));
        }
        let source = match source {
            Source::Node(NodeId(node), slot) => Source::Node(NodeId(node + offset), slot),
            other => other,
        };
        place.insert(id, joined.add_value(&name, source, dtype, sizes.moved(fact)));
    }
    let moved = |values: &[Option<ValueId>]| values.iter().map(|v| v.map(|v| place[&v])).collect();
    let mut names = Names::of(&joined);
    for node in &second.nodes {
        joined.nodes.push(node.as_ref().map(|node| Node {
            name: names.unused(&node.name),
            inputs: moved(&node.inputs),
            outputs: moved(&node.outputs),
            ..node.clone()
        }));
    }
    let kept = second.inputs.iter().filter(|v| !wires.iter().any(|(input, _)| input == *v));
    joined.inputs.extend(kept.map(|v| place[v]));
    joined.outputs = second.outputs.iter().map(|v| place[v]).collect();
    joined.next_symbol = joined.next_symbol.max(second.next_symbol);
    share(&mut joined, first_values);
    joined.infer().map_err(|(node, reason)| format!("do not fit: `{}` {reason}", joined.node(node).name))?;
    Ok(joined)
}

/// The wires, with a cast where the second graph reads another type than the first makes.
fn of_their_types(
    first: &mut Graph,
    second: &Graph,
    wires: &[(ValueId, ValueId)],
) -> Result<Vec<(ValueId, ValueId)>, String> {
    let mut typed = Vec::new();
    for (input, value) in wires {
        let (theirs, ours) = (second.value(*input).dtype, first.value(*value).dtype);
        let value = match (theirs, ours) {
            (Some(theirs), Some(ours)) if theirs == ours => *value,
            (Some(theirs), Some(ours)) if theirs.is_float() || !ours.is_float() => {
                let b = Builder::new(first, Origin::SOURCE);
                b.scope(&second.value(*input).name);
                b.cast(*value, theirs)
            }
            _ => {
                let text = |dtype: Option<DType>| dtype.map_or("an unknown type".to_owned(), |dtype| dtype.to_string());
                let (theirs, ours, name) = (text(theirs), text(ours), &second.value(*input).name);
                return Err(format!("do not fit: `{name}` takes {theirs}, but gets {ours}"));
            }
        };
        typed.push((*input, value));
    }
    Ok(typed)
}

/// The names of nodes: ONNX Runtime refuses two of one name.
struct Names {
    taken: HashSet<String>,
    /// The last number that was tried after a name.
    last: HashMap<String, usize>,
}

impl Names {
    fn of(graph: &Graph) -> Names {
        let taken = graph.nodes.iter().flatten().map(|n| n.name.clone()).collect();
        Names { taken, last: HashMap::new() }
    }

    /// A name, or the same with a number where another node has it.
    fn unused(&mut self, name: &str) -> String {
        let mut free = name.to_owned();
        while !self.taken.insert(free.clone()) {
            let count = self.last.entry(name.to_owned()).or_insert(0);
            *count += 1;
            free = format!("{name}_{count}");
        }
        free
    }
}

/// What the second graph's symbolic sizes are in the joined one.
struct Sizes(HashMap<String, Dim>);

impl Sizes {
    fn new(first: &Graph, second: &Graph, wires: &[(ValueId, ValueId)]) -> Sizes {
        let mut sizes: HashMap<String, Dim> = HashMap::new();
        for (input, value) in wires {
            let shapes = second.shape(*input).zip(first.shape(*value));
            for (theirs, ours) in shapes.into_iter().flat_map(|(theirs, ours)| theirs.into_iter().zip(ours)) {
                if let (Dim::Var(symbol), Dim::Var(_) | Dim::Value(_)) = (theirs, &ours) {
                    sizes.entry(symbol.name.clone()).or_insert(ours);
                }
            }
        }
        let (mut taken, own) = (symbols(first), symbols(second));
        let mut own: Vec<&String> = own.iter().filter(|name| !sizes.contains_key(*name)).collect();
        own.sort_unstable();
        let others: Vec<&String> = own.iter().copied().filter(|name| !taken.contains(*name)).collect();
        let clashing: Vec<String> = own.iter().filter(|name| taken.contains(**name)).map(|s| (*s).clone()).collect();
        taken.extend(others.into_iter().cloned());
        for name in clashing {
            let numbered = (1..).map(|n| format!("{name}_{n}")).find(|n| !taken.contains(n));
            let numbered = numbered.expect("some number is free");
            taken.insert(numbered.clone());
            sizes.insert(name, Dim::pos_var(&numbered));
        }
        Sizes(sizes)
    }

    /// A fact of the second graph in the joined one. Expressions of sizes are left to inference.
    fn moved(&self, fact: SymTensor) -> SymTensor {
        let Some(shape) = fact.shape().filter(|_| fact.values().is_none()) else { return fact };
        let moved = |dim: Dim| match &dim {
            Dim::Var(symbol) => self.0.get(&symbol.name).cloned().unwrap_or(dim),
            _ => dim,
        };
        SymTensor::from_shape(shape.map(moved).collect())
    }
}

/// The names of the sizes of a graph's values.
fn symbols(graph: &Graph) -> HashSet<String> {
    let name = |dim: Dim| match dim {
        Dim::Var(symbol) => Some(symbol.name.clone()),
        _ => None,
    };
    graph.value_ids().filter_map(|v| graph.shape(v)).flatten().filter_map(name).collect()
}

/// Weights below this size are not worth a comparison.
const MIN_SHARED: usize = 1024;

/// Readers of a weight at or after `boundary` read an equal one before it instead, where there is one.
fn share(graph: &mut Graph, boundary: usize) {
    let large = |v: &ValueId| graph.weight(*v).is_some_and(|w| w.bytes().len() >= MIN_SHARED);
    let (before, behind): (Vec<ValueId>, Vec<ValueId>) =
        graph.value_ids().filter(large).partition(|v| v.index() < boundary);
    let mut known: HashMap<(DType, Vec<usize>, u64), Vec<ValueId>> = HashMap::new();
    let key = |graph: &Graph, v: ValueId| {
        let weight = graph.weight(v).expect("large weights were taken");
        (weight.dtype(), weight.dims().to_vec(), fingerprint(weight))
    };
    for value in before {
        known.entry(key(graph, value)).or_default().push(value);
    }
    let mut moved = HashMap::new();
    for value in behind {
        let candidates = known.get(&key(graph, value)).cloned().unwrap_or_default();
        let is_same = |c: &ValueId| graph.weight(*c).zip(graph.weight(value)).is_some_and(|(a, b)| a.is_same(b));
        let equal = candidates.into_iter().find(is_same);
        if let Some(equal) = equal {
            moved.insert(value, equal);
        }
    }
    graph.redirect_all(&moved);
}

/// A hash of some of a weight's bytes: enough to tell most unequal weights apart without reading them.
fn fingerprint(weight: &Weight) -> u64 {
    const PIECES: usize = 16;
    const PIECE: usize = 64;
    let bytes = weight.bytes();
    let mut hasher = DefaultHasher::new();
    for piece in 0..PIECES {
        let at = (bytes.len() - PIECE.min(bytes.len())) / PIECES * piece;
        bytes[at..(at + PIECE).min(bytes.len())].hash(&mut hasher);
    }
    hasher.finish()
}
