//! Attention: `o(softmax(scale q k^T + bias) v)`.

use std::collections::HashSet;

use lstc_graph::{DType, Dim, Graph, ValueId, dim_text};

use crate::anatomy::{Attention, AttentionKind, Bias, Buckets, Frozen, Linear, Mask, Relative};
use crate::folded::{Unfolded, masks, unfold};
use crate::matcher::{Match, Matcher, Mismatch};
use crate::trace::Found;

/// Sums, scales and masks between a softmax and the product of queries and keys: more than any model has.
const MAX_TERMS: usize = 64;

/// A projection split into heads, and how it was transposed on the way.
struct Heads {
    linear: Linear,
    input: ValueId,
    heads: Dim,
    width: Dim,
    scale: f64,
}

impl Found for Heads {
    fn words(&self, _: &Graph) -> String {
        format!("{} heads of {}", dim_text(&self.heads), dim_text(&self.width))
    }
}

impl Matcher<'_> {
    /// An attention sublayer's branch: the attention, and the value its queries are computed from.
    pub fn attention(&self, branch: ValueId) -> Match<(Attention, ValueId)> {
        self.trying("attention", branch, || self.attention_at(branch))
    }

    fn attention_at(&self, branch: ValueId) -> Match<(Attention, ValueId)> {
        let (o, merged) = self.linear(branch)?;
        let merge = self.expect(merged, &["Reshape"])?;
        let swap = self.expect(self.operand(merge, 0)?, &["Transpose"])?;
        if swap.attributes.get_ints("perm") != Some(&[0, 2, 1, 3]) {
            return Err(self.mismatch(swap, "expected heads to be merged by a transposition [0, 2, 1, 3]"));
        }
        let mixed = self.expect(self.operand(swap, 0)?, &["MatMul"])?;
        let (weights, values) = (self.operand(mixed, 0)?, self.operand(mixed, 1)?);
        let softmax = self.expect(weights, &["Softmax"])?;
        let axis = softmax.attributes.get_int("axis").unwrap_or(if self.graph.opset() < 13 { 1 } else { -1 });
        if axis != -1 && axis != 3 {
            return Err(self.mismatch(softmax, format!("expected a softmax over the keys, the last axis, not {axis}")));
        }
        let mut terms = MAX_TERMS;
        let summed = self.operand(softmax, 0)?;
        let (scores, bias) = self.trying("scores", summed, || self.scores(summed, &mut terms))?;
        let product = self.expect(scores.0, &["MatMul"])?;
        let q = self.heads("queries", self.operand(product, 0)?, [0, 2, 1, 3])?;
        let k = self.heads("keys", self.operand(product, 1)?, [0, 2, 3, 1])?;
        let v = self.heads("values", values, [0, 2, 1, 3])?;
        if k.input != v.input {
            return Err(self.mismatch(product, "its keys and values are computed from different inputs"));
        }
        let (heads, head_width) = match (&q.heads, &q.width) {
            (Dim::Value(h), Dim::Value(w)) if *h > 0 && *w > 0 => (*h as usize, *w as usize),
            // A reshape that infers one of the two: the projection's width determines it.
            (Dim::Value(h), _) if *h > 0 => (*h as usize, q.linear.outputs / *h as usize),
            (_, Dim::Value(w)) if *w > 0 => (q.linear.outputs / *w as usize, *w as usize),
            _ => return Err(self.mismatch(product, "the number of heads or their width is not constant")),
        };
        let widths = [q.linear.outputs, k.linear.outputs, v.linear.outputs, o.inputs];
        if widths.iter().any(|w| Some(*w) != heads.checked_mul(head_width)) {
            return Err(self.mismatch(product, format!("{heads} heads of {head_width} do not fit widths {widths:?}")));
        }
        let columns = bias.as_ref().and_then(Bias::relative).map(|relative| relative.table.dims(self.graph)[1]);
        if let Some(columns) = columns.filter(|columns| *columns != heads) {
            return Err(self.mismatch(product, format!("its position table has {columns} columns for {heads} heads")));
        }
        let kind = if k.input == q.input { AttentionKind::SelfAttention } else { AttentionKind::Cross };
        let attention = Attention {
            kind,
            heads,
            head_width,
            scale: (scores.1 * q.scale * k.scale * v.scale) as f32,
            bias,
            mask: None,
            softmax: weights,
            context: (kind == AttentionKind::Cross).then_some(k.input),
            q: q.linear,
            k: k.linear,
            v: v.linear,
            o,
        };
        if !self.close(v.scale, 1.0) {
            return Err(self.mismatch(mixed, "its values are scaled"));
        }
        Ok((attention, q.input))
    }

    /// Scores before the softmax: the product of queries and keys with its scale, and the bias. `terms` are left to
    /// be looked at.
    fn scores(&self, value: ValueId, terms: &mut usize) -> Match<((ValueId, f64), Option<Bias>)> {
        let value = self.resolve(value);
        let node = self.expect(value, &["MatMul", "Add", "Mul", "Div"])?;
        self.one_term(value, terms)?;
        match node.op.as_str() {
            "MatMul" => Ok(((value, 1.0), None)),
            "Add" => {
                let Some((scores, bias)) = self.orders(node)?.into_iter().find(|(s, _)| self.leads_to_product(*s))
                else {
                    return Err(self.mismatch(node, "does not contain a product of queries and keys"));
                };
                let (found, earlier) = self.scores(scores, terms)?;
                let bias = self.trying("bias", bias, || self.bias(bias, terms))?;
                Ok((found, sum(earlier, bias)))
            }
            _ => {
                let (factors, scale) = self.product(value);
                let [inner] = factors[..] else {
                    return Err(self.mismatch(node, "scales the scores by something that is not constant"));
                };
                let ((scores, earlier), bias) = self.scores(inner, terms)?;
                if bias.is_some() && !self.close(scale, 1.0) {
                    return Err(self.mismatch(node, format!("scales the scores by {scale} after the bias was added")));
                }
                Ok(((scores, earlier * scale), bias))
            }
        }
    }

    /// Counts one of the terms that are added up before a softmax.
    fn one_term(&self, value: ValueId, terms: &mut usize) -> Match<()> {
        let Some(left) = terms.checked_sub(1) else {
            let reason = format!("is one of more than {MAX_TERMS} terms of a softmax");
            return Err(Mismatch::at(&self.graph.value(value).name, reason));
        };
        *terms = left;
        Ok(())
    }

    /// True where sums and scales lead back to a matrix product.
    fn leads_to_product(&self, value: ValueId) -> bool {
        let mut seen = HashSet::new();
        let mut open = vec![value];
        while let Some(value) = open.pop() {
            let Some((id, node)) = self.node(value) else { continue };
            if node.is("MatMul") {
                return true;
            }
            if seen.insert(id) && (node.is("Add") || node.is("Mul") || node.is("Div")) {
                open.extend(node.inputs.iter().flatten());
            }
        }
        false
    }

    /// A projection split into heads: `[batch, length, features]` to the wanted order of `[batch, length, head, width]`.
    fn heads(&self, pattern: &'static str, value: ValueId, wanted: [usize; 4]) -> Match<Heads> {
        self.trying(pattern, value, || self.heads_at(value, wanted))
    }

    fn heads_at(&self, value: ValueId, wanted: [usize; 4]) -> Match<Heads> {
        let mut order = [0, 1, 2, 3];
        let mut scale = 1.0;
        let mut value = self.resolve(value);
        loop {
            let node = self.expect(value, &["Transpose", "Mul", "Div", "Reshape"])?;
            match node.op.as_str() {
                "Transpose" => {
                    let perm = node.attributes.get_ints("perm").unwrap_or_default();
                    let Ok(perm) = <[i64; 4]>::try_from(perm) else {
                        return Err(self.mismatch(node, "expected a transposition of four axes"));
                    };
                    if perm.iter().any(|p| !(0..4).contains(p)) {
                        return Err(self.mismatch(node, format!("has an invalid permutation, {perm:?}")));
                    }
                    order = order.map(|axis| perm[axis] as usize);
                    value = self.resolve(self.operand(node, 0)?);
                }
                "Mul" | "Div" => {
                    let (factors, constant) = self.product(value);
                    let [inner] = factors[..] else {
                        return Err(self.mismatch(node, "scales heads by something that is not constant"));
                    };
                    scale *= constant;
                    value = inner;
                }
                _ => {
                    if order != wanted {
                        let reason = format!("splits heads in the order {order:?}, not {wanted:?}");
                        return Err(self.mismatch(node, reason));
                    }
                    let dims = self.graph.shape(value).unwrap_or_default();
                    let [_, _, heads, width] = &dims[..] else {
                        return Err(self.mismatch(node, "expected a projection split into heads"));
                    };
                    let (linear, input) = self.linear(self.operand(node, 0)?)?;
                    let shape = self.operand(node, 1)?;
                    let [written_heads, written_width] = self.peek(|| self.written_tail(shape));
                    let known = |dim: &Dim, written: Option<i64>| match (dim, written.map(i32::try_from)) {
                        (Dim::Value(_), _) | (_, None | Some(Err(_))) => dim.clone(),
                        (_, Some(Ok(written))) => Dim::Value(written),
                    };
                    let (heads, width) = (known(heads, written_heads), known(width, written_width));
                    return Ok(Heads { linear, input, heads, width, scale });
                }
            }
        }
    }

    /// The last two sizes of a shape operand, as far as they are written as positive constants.
    fn written_tail(&self, shape: ValueId) -> [Option<i64>; 2] {
        let parts: Vec<Option<i64>> = match self.node(shape) {
            Some((_, node)) if node.is("Concat") => {
                let one = |v: &Option<ValueId>| self.ints((*v)?).filter(|v| v.len() == 1).map(|v| v[0]);
                node.inputs.iter().map(one).collect()
            }
            _ => self.ints(shape).unwrap_or_default().into_iter().map(Some).collect(),
        };
        let at = |from_end: usize| {
            let part = parts.len().checked_sub(from_end).and_then(|i| parts[i]);
            part.filter(|v| (1..=i64::from(i32::MAX)).contains(v))
        };
        [at(2), at(1)]
    }

    /// What is added to the scores; `None` for nothing but zeros.
    fn bias(&self, value: ValueId, terms: &mut usize) -> Match<Option<Bias>> {
        let value = self.resolve(value);
        self.one_term(value, terms)?;
        if self.is_zero(value) {
            return Ok(None);
        }
        if self.mask(value).is_ok() {
            return Ok(Some(Bias::Mask(Mask::Value(value))));
        }
        match self.node(value) {
            Some((id, node)) if node.is("Add") => {
                self.claim(id);
                let a = self.bias(self.operand(node, 0)?, terms)?;
                Ok(sum(a, self.bias(self.operand(node, 1)?, terms)?))
            }
            Some((id, node)) if node.is("Where") => {
                self.claim(id);
                let (keep, inner, fill) = (self.operand(node, 0)?, self.operand(node, 1)?, self.operand(node, 2)?);
                if self.scalar(fill).is_none() || !self.is_mask(keep) {
                    return Err(self.mismatch(node, "selects a bias by something other than a mask"));
                }
                match self.bias(inner, terms)? {
                    Some(inner) => Ok(Some(Bias::Where { keep, inner: Box::new(inner), fill })),
                    None => Err(self.mismatch(node, "masks a bias of zeros")),
                }
            }
            Some(_) => self.relative(value).map(|r| Some(Bias::Relative(r))),
            None => self.folded(value).map(Some),
        }
    }

    /// A relative bias that the exporter folded into a constant, alone or with a mask.
    fn folded(&self, value: ValueId) -> Match<Bias> {
        self.trying("folded bias", value, || self.folded_at(value))
    }

    fn folded_at(&self, value: ValueId) -> Match<Bias> {
        let name = &self.graph.value(value).name;
        let Some(weight) = self.graph.weight(value) else {
            return Err(Mismatch::at(name, "is a graph input that is added to the attention scores"));
        };
        let Unfolded { table, rows, buckets, mask } = unfold(weight).map_err(|reason| {
            Mismatch::at(name, format!("is a bias {:?} on the attention scores that {reason}", weight.dims()))
        })?;
        let relative =
            Bias::Relative(Relative { table: Frozen::Unfolded(table), rows, buckets: Buckets::Unfolded(buckets) });
        Ok(match mask {
            Some(mask) => Bias::Sum(vec![relative, Bias::Mask(Mask::Unfolded(mask))]),
            None => relative,
        })
    }

    /// `unsqueeze(transpose(table[buckets], [2, 0, 1]))`
    fn relative(&self, value: ValueId) -> Match<Relative> {
        self.trying("position bias", value, || self.relative_at(value))
    }

    fn relative_at(&self, value: ValueId) -> Match<Relative> {
        let node = self.expect(value, &["Unsqueeze"])?;
        let swap = self.expect(self.operand(node, 0)?, &["Transpose"])?;
        if swap.attributes.get_ints("perm") != Some(&[2, 0, 1]) {
            return Err(self.mismatch(swap, "expected a position bias [queries, keys, heads] transposed by [2, 0, 1]"));
        }
        let (table, buckets) = self.rows(self.operand(swap, 0)?)?;
        let rows = table.dims(self.graph)[0];
        if self.rank(buckets) != Some(2) || !self.is_mask(buckets) {
            return Err(self.mismatch(swap, "expected bucket indices [queries, keys] computed from lengths alone"));
        }
        Ok(Relative { table, rows, buckets: Buckets::Value(buckets) })
    }

    /// A mask, by [`Matcher::is_mask`].
    fn mask(&self, value: ValueId) -> Match<()> {
        self.trying("mask", value, || {
            if self.is_mask(value) {
                return Ok(());
            }
            let node = self.peek(|| self.node(value)).map_or(&self.graph.value(value).name, |(_, n)| &n.name);
            Err(Mismatch::at(node, "is not a mask: it depends on learned numbers or on hidden states"))
        })
    }

    /// A value computed from the model's inputs, shapes and small constants alone: no learned tensor, no hidden state.
    fn is_mask(&self, value: ValueId) -> bool {
        let graph = self.graph;
        let learned = |v: ValueId| {
            graph.weight(v).is_some_and(|w| {
                // Zeros and huge negative numbers are a mask, whatever the heads; other numbers a folded position bias.
                let by_position = w.dims().len() == 4 && w.elements() > 1;
                let quantised = matches!(w.dtype(), DType::I8 | DType::U8);
                (w.dtype().is_float() || quantised) && (matches!(w.dims().len(), 2 | 3) || by_position && !masks(w))
            })
        };
        if learned(value) {
            return false;
        }
        graph.makers_until([value], |_| false).into_iter().all(|id| {
            let node = graph.node(id);
            !(node.numbers().any(learned) || node.is("MatMul") || node.is("Softmax"))
        })
    }

    /// A tensor of zeros, whatever its shape.
    fn is_zero(&self, value: ValueId) -> bool {
        let mut value = value;
        loop {
            if let Some(w) = self.graph.weight(value) {
                return w.bytes().iter().all(|b| *b == 0);
            }
            match self.node(value) {
                Some((_, node)) if node.is("ConstantOfShape") => {
                    return match node.attributes.get("value") {
                        Some(lstc_graph::Attribute::Tensor(t)) => t.as_scalar() == Some(0.0),
                        _ => true,
                    };
                }
                Some((_, node)) if node.is("Expand") => match node.input(0) {
                    Some(inner) => value = self.resolve(inner),
                    None => return false,
                },
                _ => return false,
            }
        }
    }
}

fn sum(a: Option<Bias>, b: Option<Bias>) -> Option<Bias> {
    let terms = |bias: Bias| match bias {
        Bias::Sum(terms) => terms,
        one => vec![one],
    };
    match (a, b) {
        (Some(a), Some(b)) => Some(Bias::Sum(terms(a).into_iter().chain(terms(b)).collect())),
        (a, b) => a.or(b),
    }
}
