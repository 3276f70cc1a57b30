//! Attention and norms as they look at a distance: enough to say what a model looks like, and where a walk continues beyond
//! what it does not understand.
//!
//! **Invariant:** nothing here decides that a model is understood.

use std::collections::HashSet;

use lstc_graph::{DType, Graph, MICROSOFT, Node, NodeId, Uses, ValueId, Weight};

/// Nodes between an attention's softmax and its products, or between these and what projects their operands.
const NEAR: usize = 96;

/// The largest mask in which a triangle is looked for.
const MAX_TRIANGLE: usize = 1024;

/// An attention: `softmax(q k^T + terms) v`, however it is spelled.
pub struct Sighting {
    /// The softmax, or the fused operator.
    pub node: NodeId,
    pub queries: ValueId,
    pub keys: ValueId,
    pub values: Option<ValueId>,
    /// What is added to the scores, or selects among them.
    pub terms: Vec<ValueId>,
    /// The nodes from the product of queries and keys on.
    pub scored: HashSet<NodeId>,
    /// Its keys are not made of everything that its queries are made of, or of a value that other queries attend to as well.
    pub crosses: bool,
}

/// What an operand of an attention is made of, up to the nearest products with constant matrices.
#[derive(Default)]
pub struct Sources {
    /// What those products read.
    pub projected: Vec<ValueId>,
    /// Graph inputs with no product after them.
    pub inputs: Vec<ValueId>,
    /// Halves are turned and added on the way, as rotary positions do.
    pub rotates: bool,
}

pub struct Survey<'g> {
    pub graph: &'g Graph,
    pub uses: Uses,
    /// The inputs whose contents go into each value, a bit each.
    contents: Vec<u128>,
    /// The place of each node in an order of computation.
    order: Vec<usize>,
    pub attentions: Vec<Sighting>,
}

impl<'g> Survey<'g> {
    pub fn new(graph: &'g Graph) -> Survey<'g> {
        let nodes = graph.order().unwrap_or_default();
        let mut contents = vec![0_u128; graph.value_ids().count()];
        for (bit, input) in graph.inputs.iter().enumerate().take(128) {
            contents[input.index()] = 1 << bit;
        }
        let mut order = vec![0; nodes.iter().map(|id| id.index() + 1).max().unwrap_or(0)];
        for (place, id) in nodes.iter().enumerate() {
            let node = graph.node(*id);
            order[id.index()] = place;
            let read = node.numbers().fold(0, |all, v| all | contents[v.index()]);
            node.outputs.iter().flatten().for_each(|v| contents[v.index()] = read);
        }
        let mut survey = Survey { graph, uses: graph.uses(), contents, order, attentions: Vec::new() };
        survey.attentions = nodes.into_iter().filter_map(|id| survey.sight(id)).collect();
        for at in survey.of_shared_keys() {
            survey.attentions[at].crosses = true;
        }
        survey
    }

    /// The attentions whose keys are made of a value that their queries are not made of, and other attentions attend to it too: the
    /// end of an encoder, of whose input the decoder's tokens are made.
    fn of_shared_keys(&self) -> Vec<usize> {
        let apart = |attention: &Sighting| {
            let (queries, keys) = (self.sources(attention.queries).projected, self.sources(attention.keys).projected);
            match keys[..] {
                [key] if !queries.is_empty() && !queries.contains(&key) => Some(key),
                _ => None,
            }
        };
        let keys: Vec<Option<ValueId>> = self.attentions.iter().map(apart).collect();
        let is_shared = |key: &Option<ValueId>| key.is_some() && keys.iter().filter(|other| *other == key).count() > 1;
        (0..keys.len()).filter(|at| is_shared(&keys[*at])).collect()
    }

    /// The inputs whose contents go into a value, a bit each.
    pub fn contents(&self, value: ValueId) -> u128 {
        self.contents[value.index()]
    }

    fn sight(&self, id: NodeId) -> Option<Sighting> {
        let node = self.graph.node(id);
        let fused = node.domain == MICROSOFT && (node.op.ends_with("Attention")) || node.is("Attention");
        let mut scored = HashSet::new();
        let (queries, keys, values, terms) = if node.is("Softmax") {
            let mut terms = Vec::new();
            let [queries, keys] = self.scores(node.input(0)?, &mut terms, &mut scored)?;
            (queries, keys, self.mixed(node.output(0)?), terms)
        } else if fused {
            let packed = node.input(1).is_none_or(|v| self.graph.weight(v).is_some());
            let keys = node.input(if packed { 0 } else { 1 })?;
            (node.input(0)?, keys, node.input(2), node.inputs.iter().skip(3).flatten().copied().collect())
        } else {
            return None;
        };
        let crosses = self.contents(queries) & !self.contents(keys) != 0;
        Some(Sighting { node: id, queries, keys, values, terms, scored, crosses })
    }

    /// The operands of the product that scores are made of. What else goes into them is collected.
    fn scores(&self, value: ValueId, terms: &mut Vec<ValueId>, seen: &mut HashSet<NodeId>) -> Option<[ValueId; 2]> {
        const PASSES: [&str; 17] = [
            "Add",
            "Sub",
            "Mul",
            "Div",
            "Where",
            "Cast",
            "Reshape",
            "Identity",
            "Clip",
            "Min",
            "Max",
            "Tanh",
            "Unsqueeze",
            "Squeeze",
            "Dropout",
            "QuantizeLinear",
            "DequantizeLinear",
        ];
        let (id, _) = self.graph.producer_of(value)?;
        let node = self.graph.node(id);
        if seen.len() > NEAR || !seen.insert(id) {
            return None;
        }
        let computed = |v: &ValueId| self.contents(*v) != 0;
        if (node.is("MatMul") || node.is("Einsum")) && node.inputs.iter().flatten().filter(|v| computed(v)).count() == 2
        {
            return Some([node.input(0)?, node.input(1)?]);
        }
        if !PASSES.iter().any(|op| node.is(op)) {
            return None;
        }
        let operands: Vec<ValueId> = node.inputs.iter().flatten().copied().collect();
        let (at, found) = operands.iter().enumerate().find_map(|(at, v)| Some((at, self.scores(*v, terms, seen)?)))?;
        terms.extend(operands.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, v)| *v));
        Some(found)
    }

    /// The values that an attention's weights are multiplied with.
    fn mixed(&self, weights: ValueId) -> Option<ValueId> {
        let mut open = vec![weights];
        for _ in 0..NEAR {
            let value = open.pop()?;
            for (id, slot) in self.uses.of(value) {
                let node = self.graph.node(*id);
                if node.is("MatMul") && *slot == 0 {
                    return node.input(1);
                }
                const PASSES: [&str; 8] =
                    ["Cast", "Dropout", "Identity", "Where", "Mul", "Reshape", "QuantizeLinear", "DequantizeLinear"];
                if PASSES.iter().any(|op| node.is(op)) {
                    open.extend(node.output(0));
                }
            }
        }
        None
    }

    /// What an operand of an attention is made of.
    pub fn sources(&self, operand: ValueId) -> Sources {
        let mut sources = Sources::default();
        let mut seen = HashSet::new();
        let mut open = vec![operand];
        while let Some(value) = open.pop() {
            let Some((id, _)) = self.graph.producer_of(value) else {
                if self.graph.inputs.contains(&value) && !sources.inputs.contains(&value) {
                    sources.inputs.push(value);
                }
                continue;
            };
            let node = self.graph.node(id);
            if seen.len() > NEAR || !seen.insert(id) {
                continue;
            }
            if let Some(x) = self.linear(node) {
                let x = self.copied(x);
                if !sources.projected.contains(&x) {
                    sources.projected.push(x);
                }
                continue;
            }
            sources.rotates |= node.is("Neg") || node.op == "RotaryEmbedding";
            let holds_numbers =
                |v: &ValueId| node.is("DequantizeLinear") || self.graph.value(*v).dtype.is_some_and(DType::is_float);
            open.extend(node.numbers().filter(holds_numbers));
        }
        sources
    }

    /// What the nearest cross-attention on a branch of a residual stream attends to.
    pub fn context(&self, branch: ValueId, residual: ValueId) -> Option<ValueId> {
        let nodes = self.graph.makers_until([branch], |v| v == residual);
        let on_branch = self.attentions.iter().filter(|a| a.crosses && nodes.contains(&a.node));
        let nearest = on_branch.max_by_key(|a| self.order[a.node.index()])?;
        self.sources(nearest.keys).projected.first().copied()
    }

    /// A product with a constant matrix: what it reads.
    pub fn linear(&self, node: &Node) -> Option<ValueId> {
        let products = ["MatMul", "Gemm", "Conv"];
        let is_product = products.iter().any(|op| node.is(op)) || node.domain == MICROSOFT && node.op == "MatMulNBits";
        let is_matrix = |v: ValueId| self.contents(v) == 0 && self.graph.shape(v).is_none_or(|s| s.len() >= 2);
        (is_product && node.input(1).is_some_and(is_matrix)).then_some(node.input(0))?
    }

    /// Products with an added term of low rank, `x W + s (x A) B`: the nodes that add the two.
    pub fn low_rank(&self) -> Vec<NodeId> {
        let made = |v: ValueId| Some(self.graph.node(self.graph.producer_of(self.copied(v))?.0));
        let unscaled = |v: ValueId| match made(v) {
            Some(node) if node.is("Mul") => {
                node.inputs.iter().flatten().copied().find(|v| self.contents(*v) != 0).unwrap_or(v)
            }
            _ => v,
        };
        let read = |v: ValueId| self.linear(made(unscaled(v))?).map(|x| self.copied(x));
        let width = |v: ValueId| match self.graph.shape(v)?.last() {
            Some(lstc_graph::Dim::Value(width)) => Some(*width),
            _ => None,
        };
        let is_low = |whole: ValueId, low: ValueId| {
            let (x, inner) = (read(whole)?, read(low)?);
            let rank = width(inner)?;
            let narrow = width(x).is_some_and(|w| rank < w) && width(low).is_some_and(|w| rank < w);
            (read(inner)? == x && narrow).then_some(())
        };
        let adds = |id: &NodeId| {
            let node = self.graph.node(*id);
            let operands = node.is("Add").then(|| node.input(0).zip(node.input(1))).flatten();
            operands.is_some_and(|(a, b)| is_low(a, b).or_else(|| is_low(b, a)).is_some())
        };
        self.graph.node_ids().filter(adds).collect()
    }

    /// Nodes other than products that read quantised activations.
    pub fn quantised_elsewhere(&self) -> usize {
        const OTHERS: [&str; 8] = ["Add", "Sub", "Mul", "Div", "Softmax", "Pow", "ReduceMean", "Sqrt"];
        let is_rounded = |v: &ValueId| {
            let maker = self.graph.producer_of(*v).map(|(id, _)| self.graph.node(id));
            self.contents(*v) != 0 && maker.is_some_and(|node| node.is("DequantizeLinear"))
        };
        let rounds = |id: &NodeId| {
            let node = self.graph.node(*id);
            OTHERS.iter().any(|op| node.is(op)) && node.inputs.iter().flatten().any(is_rounded)
        };
        self.graph.node_ids().filter(rounds).count()
    }

    /// True for a product with a constant matrix to which a constant is added.
    pub fn biased(&self, value: ValueId) -> bool {
        let made = |v: ValueId| Some(self.graph.node(self.graph.producer_of(self.copied(v))?.0));
        let Some(node) = made(value) else { return false };
        let computed = || node.inputs.iter().flatten().copied().filter(|v| self.contents(*v) != 0);
        let product = |v: ValueId| made(v).is_some_and(|n| self.linear(n).is_some());
        match node.op.as_str() {
            "Gemm" => self.linear(node).is_some(),
            "Reshape" => node.input(0).and_then(made).is_some_and(|n| n.is("Gemm") && self.linear(n).is_some()),
            "Add" => computed().count() == 1 && computed().all(product),
            _ => false,
        }
    }

    /// The value that a value is a copy of, in whichever precision.
    pub fn copied(&self, value: ValueId) -> ValueId {
        let mut value = value;
        while let Some((id, 0)) = self.graph.producer_of(value)
            && let node = self.graph.node(id)
            && ["Identity", "Cast", "Dropout", "QuantizeLinear", "DequantizeLinear"].iter().any(|op| node.is(op))
            && let Some(input) = node.input(0)
        {
            value = input;
        }
        value
    }

    /// The operand of a norm of any kind; `None` for a value that no norm makes.
    pub fn normed(&self, value: ValueId) -> Option<ValueId> {
        const NORMS: [&str; 5] = [
            "LayerNormalization",
            "RMSNormalization",
            "SimplifiedLayerNormalization",
            "InstanceNormalization",
            "GroupNormalization",
        ];
        let mut value = value;
        for _ in 0..8 {
            value = self.copied(value);
            let (id, _) = self.graph.producer_of(value)?;
            let node = self.graph.node(id);
            if NORMS.contains(&node.op.as_str()) {
                return node.input(0).map(|x| self.copied(x));
            }
            if !["Add", "Mul", "Div"].iter().any(|op| node.is(op)) {
                return None;
            }
            let (a, b) = (node.input(0)?, node.input(1)?);
            match (self.contents(a) != 0, self.contents(b) != 0) {
                (true, false) => value = a,
                (false, true) => value = b,
                _ => return [(a, b), (b, a)].into_iter().find_map(|(x, scale)| self.scaled_by_spread(x, scale)),
            }
        }
        None
    }

    /// x, where a value is `x` or `x - mean(x)` and the other is made of the mean of its square.
    fn scaled_by_spread(&self, value: ValueId, scale: ValueId) -> Option<ValueId> {
        let value = self.copied(value);
        let mut scale = scale;
        for _ in 0..8 {
            let (id, _) = self.graph.producer_of(self.copied(scale))?;
            let node = self.graph.node(id);
            let next = node.inputs.iter().flatten().copied().find(|v| self.contents(*v) != 0)?;
            if node.is("ReduceMean") {
                let (square, _) = self.graph.producer_of(self.copied(next))?;
                let squared = self.copied(self.graph.node(square).input(0)?);
                let centred = |v: ValueId| Some(self.graph.node(self.graph.producer_of(v)?.0)).filter(|n| n.is("Sub"));
                let x = centred(value).and_then(|sub| sub.input(0)).map_or(value, |x| self.copied(x));
                let of_x =
                    |v: ValueId| v == value || centred(v).and_then(|s| s.input(0)).is_some_and(|s| self.copied(s) == x);
                return of_x(squared).then_some(x);
            }
            if !["Sqrt", "Reciprocal", "Add", "Div", "Pow"].iter().any(|op| node.is(op)) {
                return None;
            }
            scale = next;
        }
        None
    }

    /// True for a model that attends within one tower alone, and to no later positions.
    pub fn is_decoder_only(&self) -> bool {
        !self.attentions.iter().any(|a| a.crosses) && self.attentions.iter().any(|a| self.is_causal(a))
    }

    /// True for an attention whose mask is a triangle, or compares positions with each other.
    pub fn is_causal(&self, attention: &Sighting) -> bool {
        let node = self.graph.node(attention.node);
        let flag = |name: &str| node.attributes.get_int(name) == Some(1);
        if node.op == "GroupQueryAttention" || flag("unidirectional") || flag("is_causal") {
            return true;
        }
        let made = self.graph.makers_until(attention.terms.iter().copied(), |_| false);
        let read = made.iter().flat_map(|id| self.graph.node(*id).numbers()).chain(attention.terms.iter().copied());
        let several = |v: Option<ValueId>| v.is_some_and(|v| self.graph.weight(v).is_none_or(|w| w.elements() > 1));
        let compares = |node: &Node| {
            node.is("Trilu")
                || ["Less", "LessOrEqual", "Greater", "GreaterOrEqual"].iter().any(|op| node.is(op))
                    && several(node.input(0))
                    && several(node.input(1))
        };
        made.iter().any(|id| compares(self.graph.node(*id)))
            || read.into_iter().filter_map(|v| self.graph.weight(v)).any(is_triangle)
    }
}

/// True for a square mask that is one thing at and below its diagonal, and another above.
fn is_triangle(mask: &Weight) -> bool {
    let &[.., rows, columns] = mask.dims() else { return false };
    if rows != columns || !(2..=MAX_TRIANGLE).contains(&rows) || mask.elements() < rows * columns {
        return false;
    }
    let size = mask.dtype().size();
    let at = |row: usize, column: usize| &mask.bytes()[(row * columns + column) * size..][..size];
    let (below, above) = (at(0, 0), at(0, 1));
    below != above && (0..rows).all(|i| (0..columns).all(|j| at(i, j) == if j <= i { below } else { above }))
}
