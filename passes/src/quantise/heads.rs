//! The heads of attention, laid out so that its products read them as they are.
//!
//! ```text
//! exported   x [batch, length, in]   -> Q x -> [batch, length, heads, width] -> Transpose -> [batch, heads, length, width]
//! here       x^T [length, batch, in] -> Q x -> [length, batch, heads, width] -> Transpose -> the same numbers
//! ```
//!
//! ONNX Runtime's products read an operand whose first axis a Transpose moves after the others without copying it, and with it goes a pass
//! over queries, keys and values. What is transposed instead is the activation, once for all three, and in bytes. No number
//! changes: an activation is quantised over all of its elements, in whichever order.

use std::collections::HashSet;

use lstc_graph::{Attributes, Builder, Dim, Graph, Node, NodeId, Uses, ValueId};

use super::{Product, Remade};

/// Permutations of `[batch, length, heads, width]` that products read: queries and values, and keys.
const BY_HEAD: [[i64; 4]; 2] = [[0, 2, 1, 3], [0, 2, 3, 1]];

/// As [`BY_HEAD`], of `[length, batch, heads, width]`.
const LENGTH_FIRST: [[i64; 4]; 2] = [[1, 2, 0, 3], [1, 2, 3, 0]];

/// An activation `[batch, length, in]` with the length first.
pub fn turned(b: &Builder, x: ValueId) -> ValueId {
    b.transpose(x, &[1, 0, 2])
}

/// What becomes of a product whose features are heads.
#[derive(Debug)]
pub struct Heads {
    heads: i64,
    width: i64,
    /// The Transposes that bring the heads before the length, with what they make, and which of [`BY_HEAD`] they are.
    transposed: Vec<(NodeId, ValueId, usize)>,
}

impl Heads {
    /// The heads that a product `[batch, length, heads * width]` makes; `None` where anyone reads it in another way than by
    /// products of heads, and of a value that is `needed` as it is.
    pub fn of(graph: &Graph, uses: &Uses, needed: &HashSet<ValueId>, product: &Product) -> Option<Heads> {
        let shape = |value| graph.shape(value);
        let ([batch, length, _], [_, _, _]) = (&shape(product.y)?[..], &shape(product.x)?[..]) else { return None };
        let [(reshape, 0)] = *uses.of(product.y) else { return None };
        let reads = |node: &Node, op| node.is(op) && node.outputs.len() == 1;
        let split = Some(graph.node(reshape)).filter(|node| reads(node, "Reshape"))?.output(0)?;
        let [of_batch, of_length, Dim::Value(heads), Dim::Value(width)] = &shape(split)?[..] else { return None };
        if (of_batch, of_length) != (batch, length) || needed.contains(&product.y) || needed.contains(&split) {
            return None;
        }
        let transposed = |(id, _): &(NodeId, usize)| {
            let node = Some(graph.node(*id)).filter(|node| reads(node, "Transpose"))?;
            let perm = node.attributes.get_ints("perm")?;
            let way = BY_HEAD.iter().position(|way| way == perm)?;
            let value = node.output(0).filter(|value| !needed.contains(value))?;
            let readers = uses.of(value);
            // Products, and who asks for their type or their length alone.
            let serves =
                |(id, slot): &(NodeId, usize)| graph.node(*id).is("MatMul") || !graph.node(*id).reads_numbers(*slot);
            (!readers.is_empty() && readers.iter().all(serves)).then_some((*id, value, way))
        };
        let transposed: Vec<_> = uses.of(split).iter().map(transposed).collect::<Option<_>>()?;
        let (heads, width) = (i64::from(*heads), i64::from(*width));
        (!transposed.is_empty()).then_some(Heads { heads, width, transposed })
    }

    /// Makes what the Transposes make, of the product `[length, batch, heads * width]`.
    pub fn emit(&self, b: &Builder, y: ValueId) -> Vec<Remade> {
        let split = b.unshared("Reshape", &[y, b.i64s(&[0, 0, self.heads, self.width])], Attributes::none(), 1)[0];
        let emit = |(node, value, way): &(NodeId, ValueId, usize)| {
            let perm = Attributes::none().ints("perm", &LENGTH_FIRST[*way]);
            let made = b.unshared("Transpose", &[split], perm, 1)[0];
            let by = b.read(|g| g.producer_of(made)).expect("a node was emitted").0;
            b.edit(|g| g.remake(*value, by));
            Remade { value: *value, source: *node, by }
        };
        self.transposed.iter().map(emit).collect()
    }
}

#[cfg(test)]
mod tests {
    use lstc_graph::parse;
    use lstc_models::Orientation;

    use super::*;

    /// The ways of the Transposes that take the heads of y, where `nodes` read `split: f32[B, T, 3, 4]`, y as four axes.
    fn ways(nodes: &str, needed: &str) -> Option<Vec<usize>> {
        let text = format!(
            "(x: f32[B, T, 8], other: f32[B, 3, T, 4]) {{
                weight = const f32[8, 12] {{{}}}
                y = MatMul(x, weight)
                shape = const i64[4] {{0, 0, 3, 4}}  split = Reshape(y, shape)
                {nodes}
            }} -> out",
            vec!["0"; 96].join(", ")
        );
        let graph = parse(&text, 17).expect("the test's graph is well-formed");
        let find = |name: &str| graph.find(name).expect("the test names its values so");
        let (x, y, weight) = (find("x"), find("y"), find("weight"));
        let (node, _) = graph.producer_of(y).expect("a product makes it");
        let needed = [find("out")].into_iter().chain((!needed.is_empty()).then(|| find(needed))).collect();
        let product = Product { node, x, y, weight, orientation: Orientation::InOut };
        let heads = Heads::of(&graph, &graph.uses(), &needed, &product)?;
        assert_eq!((heads.heads, heads.width), (3, 4));
        Some(heads.transposed.into_iter().map(|(.., way)| way).collect())
    }

    #[test]
    fn queries_keys_and_values_are_heads() {
        let queries =
            "q = Transpose<perm=[0, 2, 1, 3]>(split)  k = Transpose<perm=[0, 2, 3, 1]>(split)  out = MatMul(q, k)";
        assert_eq!(ways(queries, ""), Some(vec![0, 1]));
        let values = "v = Transpose<perm=[0, 2, 1, 3]>(split)  turned = Transpose<perm=[0, 1, 3, 2]>(other)
            p = MatMul(other, turned)  out = MatMul(p, v)";
        assert_eq!(ways(values, ""), Some(vec![0]));
        let measured =
            "k = Transpose<perm=[0, 2, 3, 1]>(split)  q = Transpose<perm=[0, 2, 1, 3]>(split)  size = Shape(q)
            turned = Reshape(other, size)  out = MatMul(turned, k)";
        assert_eq!(ways(measured, ""), Some(vec![1, 0]));
    }

    #[test]
    fn what_is_read_in_another_way_stays_as_it_is() {
        let product =
            "q = Transpose<perm=[0, 2, 1, 3]>(split)  k = Transpose<perm=[0, 1, 3, 2]>(other)  out = MatMul(q, k)";
        assert_eq!(ways(product, ""), Some(vec![0]));
        for value in ["y", "split", "q"] {
            assert_eq!(ways(product, value), None, "`{value}` is needed");
        }
        assert_eq!(ways("q = Transpose<perm=[0, 2, 1, 3]>(split)  out = Add(q, other)", ""), None, "a sum");
        let order = "q = Transpose<perm=[0, 1, 3, 2]>(split)  row = const f32[1, 4] {0, 0, 0, 0}  out = MatMul(row, q)";
        assert_eq!(ways(order, ""), None, "another order");
        let twice = "q = Transpose<perm=[0, 2, 1, 3]>(split)  s = Relu(split)  k = Transpose<perm=[0, 2, 3, 1]>(s)  out = MatMul(q, k)";
        assert_eq!(ways(twice, ""), None, "twice");
        assert_eq!(ways("out = Transpose<perm=[0, 2, 1, 3]>(split)", ""), None, "an output");
    }
}
