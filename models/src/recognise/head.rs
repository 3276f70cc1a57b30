//! The LM head, and where the last tower ends.

use std::collections::HashSet;

use lstc_graph::ValueId;

use super::{Walk, outputs};
use crate::anatomy::Head;
use crate::matcher::Match;
use crate::place::Place;

/// Nodes between an output and the end of a tower.
const MAX_BEHIND: usize = 64;

impl Walk<'_, '_> {
    /// The one graph output that is an LM head, and the tower output that it reads; where there is none, what looks like the end of
    /// the last tower.
    pub fn head(&mut self) -> Result<(Head, ValueId), Option<ValueId>> {
        let mut found: Vec<(Head, ValueId)> = Vec::new();
        let mut reasons = Vec::new();
        let outputs = outputs(self.graph());
        for output in &outputs {
            match self.matcher.attempt(|| self.matcher.trying("LM head", *output, || self.match_head(*output))) {
                Ok(head) => found.push(head),
                Err(mismatch) => reasons.push((*output, mismatch)),
            }
        }
        // Copies of the same logits are one head.
        let mut seen = HashSet::new();
        found.retain(|(head, _)| seen.insert(self.matcher.settle_with(head.logits, |_| ())));
        if found.len() > 1 {
            let others = found.len() - 1;
            for (head, _) in &found {
                let name = self.graph().value(head.logits).name.clone();
                self.refuse(Place::Head, name, format!("is one of several LM heads ({others} more): which to train?"));
            }
            return Err(found.first().map(|(_, end)| *end));
        }
        if let Some(found) = found.pop() {
            return Ok(found);
        }
        if reasons.is_empty() {
            self.refuse(Place::Head, "", "is missing: all outputs have four axes, like the keys and values of a cache");
        }
        for (output, mismatch) in reasons {
            let name = self.graph().value(output).name.clone();
            let reason = if self.survey().biased(output) {
                format!("makes output `{name}`, a matrix product with a bias: the LM head of a T5 has none")
            } else if self.survey().normed(output).is_some() {
                format!("makes output `{name}`, the output of a norm: an encoder alone, or a model without its LM head")
            } else {
                format!("makes output `{name}`, which is not the logits of an LM head: it {}", mismatch.text())
            };
            self.refuse(Place::Head, mismatch.node, reason);
        }
        Err(outputs.into_iter().find_map(|output| self.end_before(output)))
    }

    /// `logits = scale * norm(h) W`, which reads `norm(h)`; the scale may be on either side of the product.
    fn match_head(&self, output: ValueId) -> Match<(Head, ValueId)> {
        let (product, after) = self.scaled(output);
        let (linear, input) = self.matcher.linear(product)?;
        let (normed, before) = self.scaled(input);
        self.matcher.norm(normed)?;
        Ok((Head { linear, scale: (before * after) as f32, logits: output, tied: false }, normed))
    }

    /// A value times constants, without looking into the norm that makes it.
    fn scaled(&self, value: ValueId) -> (ValueId, f64) {
        let mut value = self.matcher.resolve(value);
        let mut scale = 1.0;
        while let Some((id, node)) = self.matcher.node(value)
            && (node.is("Mul") || node.is("Div"))
            && let (Some(a), Some(b)) = (node.input(0), node.input(1))
        {
            let (x, c) = match (self.matcher.scalar(b), self.matcher.scalar(a)) {
                (Some(c), _) if node.is("Div") => (a, 1.0 / c),
                (Some(c), _) => (a, c),
                (_, Some(c)) if node.is("Mul") => (b, c),
                _ => break,
            };
            self.matcher.claim(id);
            value = self.matcher.resolve(x);
            scale *= c;
        }
        (value, scale)
    }

    /// The norm in which a tower ends that an output is computed from alone.
    fn end_before(&self, output: ValueId) -> Option<ValueId> {
        let survey = self.survey();
        let mut value = output;
        for _ in 0..MAX_BEHIND {
            value = survey.copied(value);
            if survey.normed(value).is_some() {
                return Some(value);
            }
            let (id, _) = self.graph().producer_of(value)?;
            let computed = |v: &&ValueId| survey.contents(**v) != 0;
            let mut operands = self.graph().node(id).inputs.iter().flatten().filter(computed);
            let next = *operands.next()?;
            if operands.next().is_some_and(|second| *second != next) {
                return None;
            }
            value = next;
        }
        None
    }
}
