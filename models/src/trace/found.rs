//! What a pattern found, in a few words and without names.

use lstc_graph::{Graph, ValueId, count};

use crate::anatomy::{
    Activation, Attention, Bias, Buckets, FeedForward, Frozen, Head, Linear, Mask, Norm, Orientation, Relative,
};

/// Something that a pattern finds.
pub trait Found {
    fn words(&self, graph: &Graph) -> String;
}

impl<T: Found> Found for (T, ValueId) {
    fn words(&self, graph: &Graph) -> String {
        self.0.words(graph)
    }
}

impl<T: Found> Found for Option<T> {
    fn words(&self, graph: &Graph) -> String {
        self.as_ref().map_or_else(|| "nothing".to_owned(), |found| found.words(graph))
    }
}

/// A mask.
impl Found for () {
    fn words(&self, _: &Graph) -> String {
        "computed from inputs and sizes alone".to_owned()
    }
}

impl Found for Attention {
    fn words(&self, graph: &Graph) -> String {
        let Attention { heads, head_width, scale, .. } = self;
        format!("{} of {head_width}, scale {scale}, bias: {}", count(*heads, "head"), self.bias.words(graph))
    }
}

impl Found for Bias {
    fn words(&self, graph: &Graph) -> String {
        match self {
            Bias::Relative(relative) => relative.words(graph),
            Bias::Mask(Mask::Value(_)) => "a mask".to_owned(),
            Bias::Mask(Mask::Unfolded(_)) => "a mask read back from that constant".to_owned(),
            Bias::Sum(terms) => terms.iter().map(|t| t.words(graph)).collect::<Vec<_>>().join(" + "),
            Bias::Where { inner, .. } => format!("{} where a mask holds", inner.words(graph)),
        }
    }
}

impl Found for Relative {
    fn words(&self, _: &Graph) -> String {
        let folded = if matches!(self.buckets, Buckets::Unfolded(_)) { ", read back from a constant" } else { "" };
        format!("a position table of {} rows{folded}", self.rows)
    }
}

/// Scores before the softmax: their scale and bias.
impl Found for ((ValueId, f64), Option<Bias>) {
    fn words(&self, graph: &Graph) -> String {
        format!("scale {}, bias: {}", self.0.1, self.1.words(graph))
    }
}

impl Found for FeedForward {
    fn words(&self, _: &Graph) -> String {
        let gated = if self.is_gated() { "gated " } else { "" };
        let (width, outputs) = (self.width(), self.outer.outputs);
        let inputs = self.inner.first().map_or(0, |l| l.inputs);
        format!("{gated}{}, {inputs} to {width} to {outputs}", self.activation.name())
    }
}

impl Found for Activation {
    fn words(&self, _: &Graph) -> String {
        self.name().to_owned()
    }
}

impl Found for Linear {
    fn words(&self, graph: &Graph) -> String {
        let lies = match self.orientation {
            Orientation::InOut => "[in, out]",
            Orientation::OutIn => "[out, in]",
        };
        format!("{}, stored {lies}", self.weight.words(graph))
    }
}

impl Found for Frozen {
    fn words(&self, graph: &Graph) -> String {
        let kind = match self {
            Frozen::Value(_) => "",
            Frozen::Quantised(_) => " quantised",
            Frozen::Unfolded(_) => " read back from a constant",
            Frozen::Part(_) => " of a wider matrix",
        };
        format!("{:?}{kind}", self.dims(graph))
    }
}

impl Found for Norm {
    fn words(&self, graph: &Graph) -> String {
        let width = graph.weight(self.weight).map_or(0, |w| w.elements());
        format!("width {width}, epsilon {:e}", self.epsilon)
    }
}

impl Found for Head {
    fn words(&self, graph: &Graph) -> String {
        format!("{}, scale {:.6}", self.linear.words(graph), self.scale)
    }
}
