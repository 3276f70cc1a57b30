//! Frozen numbers of a model, however its file stores them.

use std::sync::Arc;

use lstc_graph::{Builder, DType, Graph, ValueId, Weight};

use crate::quantised::Quantised;

/// A matrix or a table of the model.
#[derive(Clone, Debug, PartialEq)]
pub enum Frozen {
    /// A constant of the graph, of any float type.
    Value(ValueId),
    /// Integers with scales.
    Quantised(Arc<Quantised>),
    /// Read off a value that an exporter folded.
    Unfolded(Weight),
    /// Some of the rows or columns of another.
    Part(Box<Part>),
}

/// `count` rows (axis 0) or columns (axis 1) from `start` on.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    pub whole: Frozen,
    pub axis: usize,
    pub start: usize,
    pub count: usize,
}

impl Frozen {
    /// The numbers, of whatever float type; those of a quantised matrix are computed on request.
    ///
    /// # Panics
    /// When the graph is not the one in which this was found.
    pub fn weight(&self, graph: &Graph) -> Weight {
        match self {
            Frozen::Value(value) => graph.weight(*value).expect("frozen numbers are a constant").clone(),
            Frozen::Quantised(quantised) => quantised.dequantised(),
            Frozen::Unfolded(weight) => weight.clone(),
            Frozen::Part(part) => part.weight(graph),
        }
    }

    /// Rows and columns, as the numbers lie.
    ///
    /// # Panics
    /// As [`Frozen::weight`].
    pub fn dims(&self, graph: &Graph) -> [usize; 2] {
        let of = |weight: &Weight| <[usize; 2]>::try_from(weight.dims()).expect("a matrix has two axes");
        match self {
            Frozen::Value(value) => of(graph.weight(*value).expect("frozen numbers are a constant")),
            Frozen::Quantised(quantised) => quantised.dims(),
            Frozen::Unfolded(weight) => of(weight),
            Frozen::Part(part) => {
                let mut dims = part.whole.dims(graph);
                dims[part.axis] = part.count;
                dims
            }
        }
    }

    /// The quantised matrix that this is, or is a part of.
    pub fn quantised(&self) -> Option<&Quantised> {
        match self {
            Frozen::Quantised(quantised) => Some(quantised),
            Frozen::Part(part) => part.whole.quantised(),
            Frozen::Value(_) | Frozen::Unfolded(_) => None,
        }
    }

    /// The constant of the graph that this is.
    pub fn value(&self) -> Option<ValueId> {
        match self {
            Frozen::Value(value) => Some(*value),
            Frozen::Quantised(_) | Frozen::Unfolded(_) | Frozen::Part(_) => None,
        }
    }

    /// The constant of the graph that this is, or is a part of.
    pub fn constant(&self) -> Option<ValueId> {
        match self {
            Frozen::Part(part) => part.whole.constant(),
            other => other.value(),
        }
    }

    /// The numbers as an f32 value of the graph.
    pub fn emit(&self, b: &Builder) -> ValueId {
        match self {
            Frozen::Value(value) => b.cast(*value, DType::F32),
            Frozen::Quantised(quantised) => b.constant(quantised.dequantised()),
            Frozen::Unfolded(weight) => b.constant(weight.clone()),
            Frozen::Part(part) => {
                let weight = b.read(|graph| part.weight(graph));
                b.cast(b.constant(weight), DType::F32)
            }
        }
    }
}

impl Part {
    fn weight(&self, graph: &Graph) -> Weight {
        let whole = self.whole.weight(graph);
        let [_, columns] = self.whole.dims(graph);
        let (size, bytes) = (whole.dtype().size(), whole.bytes());
        let range = self.start * size..(self.start + self.count) * size;
        let (dims, part) = match self.axis {
            0 => (vec![self.count, columns], bytes.slice(range.start * columns..range.end * columns)),
            _ => {
                let rows = bytes.chunks_exact((columns * size).max(1));
                (vec![rows.len(), self.count], rows.flat_map(|row| &row[range.clone()]).copied().collect())
            }
        };
        Weight::new(whole.dtype(), dims, part, None).expect("as many bytes as the part has elements")
    }
}
