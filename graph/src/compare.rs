//! What two graphs differ in.

use std::collections::HashSet;

use crate::infer::shape_text;
use crate::ir::{Graph, NodeId, ValueId};
use crate::weight::Weight;

/// Compares graphs by names: interface, nodes in order, and the contents of constants.
///
/// Constants of the same bytes in memory are compared once, over all graphs that one comparer sees.
#[derive(Default)]
pub struct Comparer {
    equal: HashSet<(usize, usize, usize)>,
}

impl Comparer {
    /// Everything in which `found` differs from `wanted`, in words.
    pub fn differences(&mut self, found: &Graph, wanted: &Graph) -> Vec<String> {
        let mut differences = Vec::new();
        if found.opsets != wanted.opsets {
            differences.push(format!("opsets are {:?}, not {:?}", found.opsets, wanted.opsets));
        }
        for (what, a, b) in [("input", &found.inputs, &wanted.inputs), ("output", &found.outputs, &wanted.outputs)] {
            let ports = |graph: &Graph, values: &[ValueId]| values.iter().map(|v| port(graph, *v)).collect::<Vec<_>>();
            let (a, b) = (ports(found, a), ports(wanted, b));
            let missing = b.iter().filter(|p| !a.contains(p)).map(|p| format!("{what} `{p}` is missing"));
            let extra = a.iter().filter(|p| !b.contains(p)).map(|p| format!("{what} `{p}` is new"));
            differences.extend(missing.chain(extra));
        }
        let order = |graph: &Graph| graph.order().unwrap_or_else(|_| graph.node_ids().collect());
        let (a, b) = (order(found), order(wanted));
        if a.len() != b.len() {
            differences.push(format!("{} nodes, not {}", a.len(), b.len()));
        }
        for (a, b) in a.into_iter().zip(b) {
            if let Some(difference) = self.node(found, a, wanted, b) {
                differences.push(difference);
            }
        }
        differences
    }

    fn node(&mut self, found: &Graph, a: NodeId, wanted: &Graph, b: NodeId) -> Option<String> {
        let names = |graph: &Graph, values: &[Option<ValueId>]| -> Vec<Option<String>> {
            values.iter().map(|v| v.map(|v| graph.value(v).name.clone())).collect()
        };
        let (x, y) = (found.node(a), wanted.node(b));
        let same = x.op == y.op
            && x.domain == y.domain
            && x.origin == y.origin
            && x.attributes == y.attributes
            && names(found, &x.inputs) == names(wanted, &y.inputs)
            && names(found, &x.outputs) == names(wanted, &y.outputs);
        if !same {
            return Some(format!("the {} `{}` is not the {} `{}`", x.op, x.name, y.op, y.name));
        }
        let operands = x.inputs.iter().flatten().zip(y.inputs.iter().flatten());
        for (v, w) in operands {
            match (found.weight(*v), wanted.weight(*w)) {
                (None, None) => {}
                (Some(v), Some(w)) if self.same(v, w) => {}
                _ => return Some(format!("the constant `{}` has different contents", found.value(*v).name)),
            }
        }
        None
    }

    fn same(&mut self, a: &Weight, b: &Weight) -> bool {
        let key = (a.bytes().as_ptr() as usize, b.bytes().as_ptr() as usize, a.bytes().len());
        self.equal.contains(&key) && a.dims() == b.dims()
            || a.is_same(b) && {
                self.equal.insert(key);
                true
            }
    }
}

fn port(graph: &Graph, value: ValueId) -> String {
    let value = graph.value(value);
    let dtype = value.dtype.map_or_else(String::new, |d| d.to_string());
    format!("{} {dtype}{}", value.name, value.shape().map_or_else(String::new, |s| shape_text(&s)))
}
