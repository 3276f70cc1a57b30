//! Attempts as they are made: a list in the order in which they began, each with its depth.

use std::cell::{Cell, RefCell};

use lstc_graph::{NodeId, ValueId};

use crate::matcher::Mismatch;

/// Attempts that are kept.
const MAX_ATTEMPTS: usize = 1 << 16;

/// Patterns within patterns that are kept.
const MAX_DEPTH: usize = 64;

/// Nodes that are kept of what one attempt took.
const MAX_TOOK: usize = 64;

/// Bytes of all words and reasons that are kept.
const MAX_TEXT: usize = 1 << 24;

/// One pattern at one value.
pub struct Entry {
    pub pattern: &'static str,
    pub value: ValueId,
    /// The node that makes the value, before what copies it.
    pub node: Option<NodeId>,
    pub depth: usize,
    /// What was found, in words; `None` while the pattern is being tried.
    pub outcome: Option<Result<String, Mismatch>>,
    pub took: Vec<NodeId>,
}

/// Collects attempts.
#[derive(Default)]
pub struct Record {
    entries: RefCell<Vec<Entry>>,
    depth: Cell<usize>,
    /// The attempt that is being made.
    open: Cell<Option<u32>>,
    text: Cell<usize>,
    cut: Cell<bool>,
}

impl Record {
    /// Where the next attempt will lie.
    pub fn mark(&self) -> usize {
        self.entries.borrow().len()
    }

    /// The attempt that is being made.
    pub fn open(&self) -> Option<u32> {
        self.open.get()
    }

    /// Begins an attempt; `None` where there is no more room.
    pub fn begin(&self, pattern: &'static str, value: ValueId, node: Option<NodeId>) -> Option<Begun> {
        let mut entries = self.entries.borrow_mut();
        if entries.len() >= MAX_ATTEMPTS || self.depth.get() >= MAX_DEPTH {
            self.cut.set(true);
            return None;
        }
        let (index, outer, depth) = (entries.len(), self.open.get(), self.depth.get());
        entries.push(Entry { pattern, value, node, depth, outcome: None, took: Vec::new() });
        self.open.set(u32::try_from(index).ok());
        self.depth.set(depth + 1);
        Some(Begun { index, outer })
    }

    /// Ends an attempt with what came of it and the nodes that it took.
    pub fn end(&self, begun: Begun, outcome: Result<String, Mismatch>, mut took: Vec<NodeId>) {
        self.open.set(begun.outer);
        self.depth.set(self.depth.get() - 1);
        let size = match &outcome {
            Ok(words) => words.len(),
            Err(mismatch) => mismatch.node.len() + mismatch.reason.len(),
        };
        let text = self.text.get().saturating_add(size);
        took.sort_unstable();
        took.dedup();
        if text > MAX_TEXT || took.len() > MAX_TOOK {
            self.cut.set(true);
        }
        took.truncate(MAX_TOOK);
        if let Some(entry) = self.entries.borrow_mut().get_mut(begun.index) {
            entry.took = took;
            if text <= MAX_TEXT {
                self.text.set(text);
                entry.outcome = Some(outcome);
            }
        }
    }

    /// The attempts, and whether some were left out.
    pub fn finish(self) -> (Vec<Entry>, bool) {
        (self.entries.into_inner(), self.cut.get())
    }
}

/// An attempt that has begun.
pub struct Begun {
    pub index: usize,
    outer: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_bounded() {
        let mut graph = lstc_graph::Graph::new("", 17);
        let value = graph.add_weight("w", lstc_graph::Weight::scalar_f32(0.0));
        let record = Record::default();
        let outer: Vec<Begun> = (0..MAX_DEPTH).filter_map(|_| record.begin("outer", value, None)).collect();
        assert!(record.begin("too deep", value, None).is_none());
        for begun in outer.into_iter().rev() {
            record.end(begun, Ok("x".repeat(MAX_TEXT / 8)), Vec::new());
        }
        while let Some(begun) = record.begin("one of many", value, None) {
            record.end(begun, Ok(String::new()), Vec::new());
        }
        let (entries, cut) = record.finish();
        let text: usize = entries.iter().filter_map(|e| e.outcome.as_ref()?.as_ref().ok()).map(String::len).sum();
        assert_eq!((entries.len(), cut), (MAX_ATTEMPTS, true));
        assert!(text <= MAX_TEXT);
    }
}
