//! Products with constant matrices and rows of constant tables, plain and quantised.

use std::sync::Arc;

use lstc_graph::{MICROSOFT, Node, ValueId};

use crate::anatomy::{Frozen, Linear, Orientation};
use crate::frozen::Part;
use crate::matcher::{Match, Matcher};
use crate::quantised::Quantised;

impl Matcher<'_> {
    /// `y = x W`: the matrix and x.
    pub fn linear(&self, value: ValueId) -> Match<(Linear, ValueId)> {
        self.trying("linear", value, || self.linear_at(value))
    }

    fn linear_at(&self, value: ValueId) -> Match<(Linear, ValueId)> {
        if let Some((id, node)) = self.node(value).filter(|(_, n)| n.is("Split")) {
            self.claim(id);
            return self.part_of_product(node, self.resolve(value));
        }
        self.whole_product(value)
    }

    /// A product that is not part of another.
    fn whole_product(&self, value: ValueId) -> Match<(Linear, ValueId)> {
        if let Some((id, node)) = self.node(value).filter(|(_, n)| n.domain == MICROSOFT && n.op == "MatMulNBits") {
            self.claim(id);
            return self.packed_product(node);
        }
        let node = self.expect(value, &["MatMul"])?;
        let (x, w) = (self.operand(node, 0)?, self.operand(node, 1)?);
        let Some((weight, orientation)) = self.matrix(w) else {
            return Err(self.mismatch(node, "expected a product with a constant matrix"));
        };
        Ok((self.oriented(weight, orientation), self.resolve(x)))
    }

    /// True for a value that a product with a constant matrix may make.
    pub fn is_product(&self, value: ValueId) -> bool {
        self.node(value).is_some_and(|(_, n)| n.is("MatMul") || n.domain == MICROSOFT && n.op == "MatMulNBits")
    }

    fn oriented(&self, weight: Frozen, orientation: Orientation) -> Linear {
        let dims = weight.dims(self.graph);
        let (inputs, outputs) = match orientation {
            Orientation::InOut => (dims[0], dims[1]),
            Orientation::OutIn => (dims[1], dims[0]),
        };
        Linear { weight, orientation, inputs, outputs }
    }

    /// A constant matrix, plain or dequantised, also under a Transpose.
    fn matrix(&self, value: ValueId) -> Option<(Frozen, Orientation)> {
        let value = self.resolve(value);
        if let Some(frozen) = self.frozen(value) {
            return Some((frozen, Orientation::InOut));
        }
        let (id, node) = self.node(value)?;
        let swaps = node.attributes.get_ints("perm").is_none_or(|p| p == [1, 0]);
        let inner = self.frozen(self.resolve(node.input(0)?))?;
        (node.is("Transpose") && swaps).then(|| {
            self.claim(id);
            (inner, Orientation::OutIn)
        })
    }

    /// A constant of two axes: of floats, or of integers that a DequantizeLinear makes floats of.
    fn frozen(&self, value: ValueId) -> Option<Frozen> {
        if self.graph.weight(value).is_some_and(|w| w.dims().len() == 2 && w.dtype().is_float()) {
            return Some(Frozen::Value(value));
        }
        let (id, node) = self.node(value).filter(|(_, n)| n.is("DequantizeLinear"))?;
        let parts = [node.input(0)?, node.input(1)?];
        let frozen = self.dequantised(node, parts, node.input(2)).ok()?;
        self.claim(id);
        Some(frozen)
    }

    /// Integers, scales and zero points as `node`, a DequantizeLinear or the like, puts them together.
    fn dequantised(&self, node: &Node, [integers, scales]: [ValueId; 2], zeros: Option<ValueId>) -> Match<Frozen> {
        let constant = |v: ValueId| {
            self.constant(v).ok_or_else(|| self.mismatch(node, "dequantises something that is not constant"))
        };
        let zeros = zeros.map(constant).transpose()?;
        // MatMulInteger and its kin have a scale for each column.
        let (axis, block) = (node.attributes.get_int("axis").unwrap_or(1), node.attributes.get_int("block_size"));
        let block = usize::try_from(block.unwrap_or(0)).unwrap_or(0);
        let quantised = Quantised::linear(constant(integers)?, constant(scales)?, zeros, axis, block);
        quantised.map(|q| Frozen::Quantised(Arc::new(q))).map_err(|reason| self.mismatch(node, reason))
    }

    /// One of the parts that a product with several matrices side by side is split into.
    fn part_of_product(&self, split: &Node, value: ValueId) -> Match<(Linear, ValueId)> {
        let product = self.operand(split, 0)?;
        if self.node(product).is_some_and(|(_, n)| n.is("Split")) {
            return Err(self.mismatch(split, "splits a part of a product further"));
        }
        let (whole, x) = self.whole_product(product)?;
        let last = self.rank(self.operand(split, 0)?).map_or(-1, |r| r as i64 - 1);
        let axis = split.attributes.get_int("axis").unwrap_or(0);
        let parts = split.outputs.len();
        let sizes = match (split.input(1), split.attributes.get_ints("split")) {
            (Some(sizes), _) => self.ints(sizes),
            (None, Some(sizes)) => Some(sizes.to_vec()),
            (None, None) => Some(vec![whole.outputs.div_ceil(parts) as i64; parts]),
        };
        let sizes: Option<Vec<usize>> =
            sizes.and_then(|sizes| sizes.into_iter().map(|s| usize::try_from(s).ok()).collect());
        let slot = split.outputs.iter().position(|o| *o == Some(value));
        match (sizes, slot) {
            (Some(sizes), Some(slot))
                if (axis == -1 || axis == last)
                    && sizes.len() == parts
                    && sizes.iter().try_fold(0_usize, |sum, s| sum.checked_add(*s)) == Some(whole.outputs) =>
            {
                let axis = usize::from(whole.orientation == Orientation::InOut);
                let part = Part { whole: whole.weight, axis, start: sizes[..slot].iter().sum(), count: sizes[slot] };
                Ok((self.oriented(Frozen::Part(Box::new(part)), whole.orientation), x))
            }
            _ => Err(self.mismatch(split, "expected a split of a product's columns into parts of constant sizes")),
        }
    }

    /// `MatMulNBits(x, W, scales, zeros)`
    fn packed_product(&self, node: &Node) -> Match<(Linear, ValueId)> {
        self.no_bias(node, 4)?;
        self.no_bias(node, 5)?;
        let constant = |slot: usize| {
            let value = self.operand(node, slot)?;
            self.constant(value).ok_or_else(|| self.mismatch(node, "expected a product with a constant matrix"))
        };
        let zeros = node.input(3).map(|_| constant(3)).transpose()?;
        let size = |name: &str, absent: i64| {
            let value = node.attributes.get_int(name).unwrap_or(absent);
            usize::try_from(value).map_err(|_| self.mismatch(node, format!("has {name} = {value}")))
        };
        let (n, k, bits, block) = (size("N", -1)?, size("K", -1)?, size("bits", 4)?, size("block_size", -1)?);
        let quantised = Quantised::packed(constant(1)?, constant(2)?, zeros, [n, k], bits, block)
            .map_err(|reason| self.mismatch(node, reason))?;
        let weight = Frozen::Quantised(Arc::new(quantised));
        Ok((self.oriented(weight, Orientation::OutIn), self.resolve(self.operand(node, 0)?)))
    }

    /// A fused product may add a bias, which no layer that lstc knows has.
    fn no_bias(&self, node: &Node, slot: usize) -> Match<()> {
        match node.input(slot) {
            Some(_) => Err(self.mismatch(node, format!("has an operand {slot}, a bias or an order of columns"))),
            None => Ok(()),
        }
    }

    /// `table[indices]`: the constant table of two axes, and the indices.
    pub fn rows(&self, value: ValueId) -> Match<(Frozen, ValueId)> {
        self.trying("rows", value, || self.rows_at(value))
    }

    fn rows_at(&self, value: ValueId) -> Match<(Frozen, ValueId)> {
        let node = self.expect(value, &["Gather", "DequantizeLinear"])?;
        let gather = if node.is("Gather") { node } else { self.expect(self.operand(node, 0)?, &["Gather"])? };
        let (table, indices) = (self.resolve(self.operand(gather, 0)?), self.resolve(self.operand(gather, 1)?));
        let not_rows = || self.mismatch(gather, "expected rows of a constant table");
        if gather.attributes.get_int("axis").unwrap_or(0) != 0 {
            return Err(not_rows());
        }
        let table = if node.is("Gather") {
            self.frozen(table).ok_or_else(not_rows)?
        } else {
            let scale = self.operand(node, 1)?;
            if self.constant(scale).is_none_or(|s| s.elements() != 1) {
                return Err(self.mismatch(node, "dequantises rows of a table with more than one scale"));
            }
            self.dequantised(node, [table, scale], node.input(2))?
        };
        Ok((table, indices))
    }
}
