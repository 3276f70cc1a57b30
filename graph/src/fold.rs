//! Folding: what sizes alone decide becomes a constant, and the nodes that computed it go.
//!
//! A value is folded where all operands of its node are known, as folded values, integer constants or single floats, or
//! where its fact is a small integer tensor without a symbol in it. A weight, i.e. a constant of several floats, is
//! never an operand, so no weight is copied, and nothing that a weight or an input's contents decide is folded.
//!
//! **Invariant:** ids stay. A folded value keeps its name, type and shape; every other value, node and weight is left as
//! it was.

use std::collections::HashMap;

use crate::constant::{Constant, evaluate};
use crate::dtype::DType;
use crate::infer::{Dim, weight_fact};
use crate::ir::{Graph, Node, NodeId, Source, ValueId};

/// What folding may take.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Bytes of one constant.
    pub one: usize,
    /// Bytes of all constants together.
    pub all: usize,
}

/// Contents of a fact beyond which it is left alone: facts saturate.
const MAX_FACT: u32 = 1 << 24;

/// A node whose one output is known.
struct Found {
    node: NodeId,
    value: ValueId,
    constant: Constant,
}

/// Rounds of inference and folding: what one has folded may give the next a shape.
const MAX_ROUNDS: usize = 8;

impl Graph {
    /// Folds what the shapes of the inputs decide, and infers types and shapes again. Returns the folded values.
    ///
    /// # Errors
    /// As [`Graph::infer`].
    pub fn fold(&mut self, budget: Budget) -> Result<Vec<ValueId>, (NodeId, String)> {
        let mut folded = Vec::new();
        let mut spent = 0;
        for _ in 0..MAX_ROUNDS {
            self.infer()?;
            let order = self.order().map_err(|node| (node, "is part of a cycle".to_owned()))?;
            let found = self.foldable(&order, budget, &mut spent);
            if found.is_empty() {
                break;
            }
            for Found { node, value, constant } in found {
                // The type and the number of elements were checked when it was found.
                let Some(weight) = constant.to_weight() else { continue };
                self.nodes[node.index()] = None;
                let slot = &mut self.values[value.index()];
                slot.fact = weight_fact(&weight);
                slot.source = Source::Weight(weight);
                folded.push(value);
            }
        }
        Ok(folded)
    }

    /// What can be folded now, without going over the budget.
    fn foldable(&self, order: &[NodeId], budget: Budget, spent: &mut usize) -> Vec<Found> {
        let mut known: HashMap<ValueId, Constant> = HashMap::new();
        let mut found = Vec::new();
        for id in order {
            let node = self.node(*id);
            let &[Some(value)] = &node.outputs[..] else { continue };
            if node.attributes.has_opaque() || self.outputs.contains(&value) {
                continue;
            }
            for operand in node.inputs.iter().flatten() {
                if let Some(weight) = self.weight(*operand)
                    && !known.contains_key(operand)
                    && let Some(constant) = Constant::of_sizes(weight, budget.one)
                {
                    known.insert(*operand, constant);
                }
            }
            let constant =
                evaluate(self, node, |v| known.get(&v), budget.one).or_else(|| self.known_by_fact(node, value));
            let Some(constant) = constant.filter(|c| self.agrees(value, c)) else { continue };
            *spent += constant.bytes();
            if *spent > budget.all {
                break;
            }
            found.push((*id, value));
            known.insert(value, constant);
        }
        let take = |(node, value)| Some(Found { node, value, constant: known.remove(&value)? });
        found.into_iter().filter_map(take).collect()
    }

    /// What inference knows of an integer value's contents.
    pub(crate) fn known_by_fact(&self, node: &Node, id: ValueId) -> Option<Constant> {
        let value = self.value(id);
        let dtype = value.dtype.filter(|d| matches!(d, DType::I64 | DType::I32))?;
        if !node.is_default_domain() {
            return None;
        }
        let number = |dim: &Dim| match dim {
            Dim::Value(v) if v.unsigned_abs() <= MAX_FACT => Some(i64::from(*v)),
            _ => None,
        };
        if let Some(scalar) = value.fact.as_scalar() {
            return Constant::of_ints(dtype, &[], vec![number(scalar)?]);
        }
        let values: Vec<i64> = value.fact.as_vector()?.iter().map(number).collect::<Option<_>>()?;
        Constant::of_ints(dtype, &[values.len()], values)
    }

    /// True where a constant has the type and the shape that inference gives its value.
    fn agrees(&self, id: ValueId, constant: &Constant) -> bool {
        let value = self.value(id);
        let shape = value.shape();
        let same = |dims: &[Dim]| {
            dims.len() == constant.dims().len()
                && dims.iter().zip(constant.dims()).all(|(dim, size)| match dim {
                    Dim::Value(v) => usize::try_from(*v) == Ok(*size),
                    _ => true,
                })
        };
        value.dtype == Some(constant.dtype()) && shape.is_none_or(|dims| same(&dims))
    }
}
