//! What was not understood, and where.

use std::collections::HashMap;
use std::fmt;

use serde::Serialize;

use crate::likeness::Likeness;
use crate::place::Place;

/// One thing that was not understood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    pub place: Place,
    /// The node's name; empty where no single node is to blame.
    pub node: String,
    pub reason: String,
}

impl Refusal {
    /// Of the place as a whole.
    pub fn whole(place: Place, reason: impl Into<String>) -> Refusal {
        Refusal { place, node: String::new(), reason: reason.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.node.is_empty() {
            write!(f, "`{}` ", self.node)?;
        }
        f.write_str(&self.reason)
    }
}

/// Refusals of one tower for one reason that are all listed; of more, the first ones.
const ALIKE: usize = 3;

/// A model that is not understood: what it looks like, and every reason.
#[derive(Clone, Debug, thiserror::Error)]
pub struct Refused {
    pub likeness: Likeness,
    /// In the order in which the model was walked.
    pub refusals: Vec<Refusal>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = |r: &Refusal| (r.place.tower(), r.reason.clone());
        let mut counts: HashMap<_, usize> = HashMap::new();
        self.refusals.iter().for_each(|r| *counts.entry(key(r)).or_default() += 1);
        let mut told: HashMap<_, usize> = HashMap::new();
        let mut lines = Vec::new();
        for refusal in &self.refusals {
            let told = told.entry(key(refusal)).or_default();
            *told += 1;
            let count = counts.get(&key(refusal)).copied().unwrap_or_default();
            match count - *told {
                _ if *told < ALIKE || count == ALIKE => lines.push(format!("  {refusal}")),
                more if *told == ALIKE => lines.push(format!("  {refusal}; likewise in {more} more places")),
                _ => {}
            }
        }
        f.write_str(&lines.join("\n"))
    }
}
