//! What small values hold when the inputs are given: masks, position buckets, and whatever else sizes and a few numbers decide.
//!
//! Floats are taken as f32, whatever their type: the numbers of a mask are zeros, ones and the least of a type, which f32 holds.
//!
//! **Invariant:** nothing is allocated beyond the limit, and a value is dropped when the last node that reads it has run.

use std::collections::HashMap;

use crate::constant::{Constant, evaluate};
use crate::dtype::DType;
use crate::infer::Dim;
use crate::ir::{Graph, NodeId, Source, ValueId};
use crate::weight::Weight;
use crate::widen::widen;

/// A tensor whose elements are read as floats, row by row: booleans as 0 and 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbers {
    pub dims: Vec<usize>,
    pub elements: Vec<f32>,
}

/// A graph whose inputs have sizes that are numbers, and what is computed of them.
pub struct Sized {
    graph: Graph,
    order: Vec<NodeId>,
}

/// Bytes of one value.
const LIMIT: usize = 1 << 27;

impl Sized {
    /// The graph with inputs of these sizes. What a file declares of other values' shapes is ignored.
    ///
    /// # Errors
    /// A node whose operands do not fit at these sizes.
    pub fn new(graph: &Graph, sizes: &[(ValueId, Vec<usize>)]) -> Result<Sized, (NodeId, String)> {
        let mut graph = graph.clone();
        graph.forget_shapes();
        for (input, sizes) in sizes {
            let dims: Vec<Dim> =
                sizes.iter().map(|size| Dim::Value(i32::try_from(*size).unwrap_or(i32::MAX))).collect();
            graph.refine(*input, &dims);
        }
        widen(&mut graph, DType::F16);
        graph.infer()?;
        let order = graph.order().map_err(|node| (node, "is part of a cycle".to_owned()))?;
        Ok(Sized { graph, order })
    }

    /// What `wanted` hold where the inputs hold what is `given`; of a value that is not known, the first node whose result is unknown.
    pub fn values(&self, wanted: &[ValueId], given: &[(ValueId, Weight)]) -> Vec<Result<Numbers, ValueId>> {
        let graph = &self.graph;
        // Sizes, and arithmetic of sizes alone, are known from inference.
        let by_fact = |v: ValueId| {
            let (node, _) = graph.producer_of(v)?;
            graph.known_by_fact(graph.node(node), v)
        };
        let nodes = graph.ancestors_until(wanted.iter().copied(), |v| by_fact(v).is_some());
        let mut readers: HashMap<ValueId, usize> = HashMap::new();
        let read = nodes.iter().flat_map(|id| graph.node(*id).inputs.iter().flatten());
        for value in read.chain(wanted) {
            *readers.entry(*value).or_default() += 1;
        }
        let mut known: HashMap<ValueId, Constant> = HashMap::new();
        for (input, weight) in given {
            known.extend(Constant::of_weight(weight, LIMIT).map(|constant| (*input, constant)));
        }
        let mut blamed: HashMap<ValueId, ValueId> = HashMap::new();
        let look_up = |known: &mut HashMap<ValueId, Constant>, value: ValueId| {
            if known.contains_key(&value) {
                return;
            }
            let constant = match &graph.value(value).source {
                Source::Weight(weight) => Constant::of_weight(weight, LIMIT),
                Source::Node(..) => by_fact(value),
                Source::Input(_) => None,
            };
            known.extend(constant.map(|constant| (value, constant)));
        };
        for id in self.order.iter().filter(|id| nodes.contains(id)) {
            let node = graph.node(*id);
            let operands: Vec<ValueId> = node.inputs.iter().flatten().copied().collect();
            operands.iter().for_each(|value| look_up(&mut known, *value));
            let found = evaluate(graph, node, |v| known.get(&v), LIMIT);
            for operand in &operands {
                if let Some(left) = readers.get_mut(operand) {
                    *left -= 1;
                    if *left == 0 {
                        known.remove(operand);
                    }
                }
            }
            let Some(output) = node.output(0) else { continue };
            match found {
                Some(constant) => {
                    known.insert(output, constant);
                }
                None => {
                    let earlier = operands.iter().find_map(|operand| blamed.get(operand).copied());
                    blamed.insert(output, earlier.unwrap_or(output));
                }
            }
        }
        let result = |value: &ValueId| {
            look_up(&mut known, *value);
            let missing = blamed.get(value).copied().unwrap_or(*value);
            known.get(value).map(Constant::numbers).ok_or(missing)
        };
        wanted.iter().map(result).collect()
    }
}
