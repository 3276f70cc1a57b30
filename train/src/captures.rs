//! Which captured graph a run replays: one for each set of sizes.

use std::collections::HashMap;
use std::error::Error as _;

use lstc_data::Batch;
use lstc_runtime::Error;

use crate::buckets::listed;

/// The most graphs that a session captures at a time: each keeps device memory. Other sizes run uncaptured.
const MOST: usize = 16;

/// Graphs that a session captures in all, void ones included: ONNX Runtime keeps them.
const MOST_EVER: u32 = 64;

/// The number of captures that are allowed to fail.
const TRIES: usize = 3;

/// The sizes of a batch that decide what a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape([usize; 4]);

impl Shape {
    pub fn of(batch: &Batch) -> Shape {
        let Shape([rows, source, target, _]) = Shape::of_backbone(batch);
        Shape([rows, source, target, listed(batch)])
    }

    /// As the backbone sees it, which reads no labels.
    pub fn of_backbone(batch: &Batch) -> Shape {
        let (rows, source) = batch.source.dim();
        Shape([rows, source, batch.target_in.ncols(), 0])
    }

    /// For runs whose sizes never change.
    pub const ONE: Shape = Shape([0; 4]);
}

/// How a run is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Node by node.
    Plain,
    /// Node by node, and captured under this number.
    First(u32),
    /// As it was captured.
    Again(u32),
}

/// The graphs that a session has captured.
#[derive(Debug, Default)]
pub struct Captures {
    graphs: HashMap<Shape, u32>,
    /// Captures under lower numbers are void.
    moves: u64,
    next: u32,
    failures: usize,
    /// Why some runs, or all further ones, go node by node.
    failed: Option<String>,
}

/// The part of ONNX Runtime's message that comes from CUDA.
fn brief(message: &str) -> &str {
    let from = message.find("CUDA failure").map_or(message, |at| &message[at..]);
    from.split(" ;").next().unwrap_or(from).trim()
}

impl Captures {
    /// How a run of these sizes is made, after the places of its values have moved so many times.
    pub fn way(&mut self, shape: Shape, moves: u64) -> Way {
        self.way_where(shape, moves, true)
    }

    /// As [`Captures::way`], with whether a capture may begin.
    pub fn way_where(&mut self, shape: Shape, moves: u64, may_begin: bool) -> Way {
        if moves != self.moves {
            self.graphs.clear();
            self.moves = moves;
        }
        if let Some(graph) = self.graphs.get(&shape) {
            return Way::Again(*graph);
        }
        if !may_begin || self.failures >= TRIES {
            return Way::Plain;
        }
        if self.graphs.len() >= MOST || self.next >= MOST_EVER {
            self.failed.get_or_insert_with(|| format!("batches have more than {MOST} sizes"));
            return Way::Plain;
        }
        let graph = self.next;
        self.next += 1;
        self.graphs.insert(shape, graph);
        Way::First(graph)
    }

    /// The last capture failed, as when the device's memory had to grow meanwhile. It is tried again with the next run of
    /// these sizes; after [`TRIES`] failures nothing more is captured.
    pub fn give_up(&mut self, graph: u32, error: &Error) {
        self.graphs.retain(|_, captured| *captured != graph);
        self.failures += 1;
        if self.failures == TRIES {
            let said = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            self.failed = Some(brief(&said).to_owned());
        }
    }

    /// Why some runs, or all further ones, go node by node.
    pub fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shape_is_captured_once_and_again_when_places_move() {
        let mut captures = Captures::default();
        let shape = |length| Shape([8, length, 2, 16]);
        assert_eq!(captures.way(shape(32), 0), Way::First(0));
        assert_eq!(captures.way(shape(64), 0), Way::First(1));
        assert_eq!(captures.way(shape(32), 0), Way::Again(0));
        assert_eq!(captures.way(shape(32), 1), Way::First(2));
        assert_eq!(captures.way(shape(32), 1), Way::Again(2));
    }

    #[test]
    fn what_could_not_be_captured_is_not_tried_for_ever() {
        let mut captures = Captures::default();
        let shape = |length| Shape([8, length, 2, 16]);
        assert_eq!(captures.way(shape(32), 0), Way::First(0));
        assert_eq!(captures.way(shape(64), 0), Way::First(1));
        let error = Error::NoSuchDevice { index: 0, count: 0 };
        captures.give_up(1, &error);
        assert_eq!((captures.way(shape(64), 0), captures.failed()), (Way::First(2), None), "once is not enough");
        captures.give_up(2, &error);
        assert_eq!(captures.way(shape(64), 0), Way::First(3));
        captures.give_up(3, &error);
        assert_eq!([32, 64, 96].map(|length| captures.way(shape(length), 0)), [Way::Again(0), Way::Plain, Way::Plain]);
        assert!(captures.failed().is_some());
    }

    #[test]
    fn the_reason_for_a_failure_is_reported() {
        let message = "/onnxruntime_src/cuda_call.cc:154 std::conditional_t<...> CUDA failure 901: operation failed due to a \
                       previous error during capture ; GPU=0 ; hostname=vm ; file=cuda_graph.cc ; line=61";
        assert_eq!(brief(message), "CUDA failure 901: operation failed due to a previous error during capture");
        assert_eq!(brief("Concat supports at most 32 inputs"), "Concat supports at most 32 inputs");
    }

    #[test]
    fn sizes_beyond_the_most_run_as_they_are() {
        let mut captures = Captures::default();
        let ways: Vec<Way> = (0..=MOST).map(|length| captures.way(Shape([1, length, 1, 1]), 0)).collect();
        assert_eq!((ways[MOST - 1], ways[MOST]), (Way::First(MOST as u32 - 1), Way::Plain));
        assert!(captures.failed().is_some(), "the reason can be reported");
    }

    #[test]
    fn a_capture_begins_only_where_it_may() {
        let mut captures = Captures::default();
        let mut way = |may_begin| captures.way_where(Shape::ONE, 0, may_begin);
        assert_eq!([false, true, false].map(&mut way), [Way::Plain, Way::First(0), Way::Again(0)]);
    }
}
