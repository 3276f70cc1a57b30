//! How much each weight of the backbone matters: what pruning ranks rows and columns by.

use std::borrow::Cow;

use lstc_graph::Weight;

/// An importance for every element of a weight.
pub trait Importance: Sync {
    /// A tensor of the weight's shape; its elements' absolute values are the importances.
    fn of<'w>(&self, weight: &'w Weight) -> Cow<'w, Weight>;
}

/// |w|: what is known without data.
pub struct Magnitude;

impl Importance for Magnitude {
    fn of<'w>(&self, weight: &'w Weight) -> Cow<'w, Weight> {
        Cow::Borrowed(weight)
    }
}
