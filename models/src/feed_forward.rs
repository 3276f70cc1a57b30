//! Feed-forward layers: `outer(f(inner x))`, or `outer(f(gate x) * inner x)`.

use lstc_graph::{Node, ValueId};

use crate::anatomy::{FeedForward, Linear};
use crate::matcher::{Match, Matcher, Mismatch};

impl Matcher<'_> {
    /// A feed-forward sublayer's branch: the layer, and the value that it reads.
    pub fn feed_forward(&self, branch: ValueId) -> Match<(FeedForward, ValueId)> {
        self.trying("feed-forward", branch, || {
            let (outer, hidden) = self.linear(branch)?;
            let plain = self.attempt(|| self.trying("plain", hidden, || self.plain(hidden, &outer)));
            plain.or_else(|mismatch| self.gated(hidden, &outer, mismatch))
        })
    }

    /// `f(inner x)`
    fn plain(&self, hidden: ValueId, outer: &Linear) -> Match<(FeedForward, ValueId)> {
        let (activation, x) = self.activation(hidden)?;
        let (inner, input) = self.linear(x)?;
        Ok((FeedForward { inner: vec![inner], activation, outer: outer.clone() }, input))
    }

    /// `f(gate x) * inner x`, where the plain form did not hold for the reason given.
    fn gated(&self, hidden: ValueId, outer: &Linear, plain: Mismatch) -> Match<(FeedForward, ValueId)> {
        let Some((id, product)) = self.node(hidden).filter(|(_, n)| n.is("Mul")) else { return Err(plain) };
        self.claim(id);
        self.trying("gated", hidden, || self.gated_product(product, outer, plain))
    }

    fn gated_product(&self, product: &Node, outer: &Linear, plain: Mismatch) -> Match<(FeedForward, ValueId)> {
        let mut error = plain;
        for (activated, linear) in self.orders(product)? {
            let Ok((inner, input)) = self.attempt(|| self.linear(linear)) else { continue };
            let found = self.attempt(|| {
                let (activation, x) = self.activation(activated)?;
                let (gate, gate_input) = self.linear(x)?;
                if gate_input != input {
                    return Err(self.mismatch(product, "gates one value by another's activation"));
                }
                Ok((FeedForward { inner: vec![gate, inner], activation, outer: outer.clone() }, input))
            });
            match found {
                Ok(found) => return Ok(found),
                Err(mismatch) => error = mismatch,
            }
        }
        Err(error)
    }
}
