//! The frozen backbone on a device: from batches to what the side network reads.

use lstc_data::Batch;
use lstc_graph::Graph;
use lstc_runtime::{Binding, Kept, Places, Resident, Session, Tensor};
use lstc_tuned::opened::{Execution, Opened};

use super::captures::{Captures, Shape, Way};
use crate::memory::{Numbers, Sizes};

/// What the side network reads for one batch: the taps, `[batch, length, width]` each, by their names in the graphs.
#[derive(Debug)]
pub struct Taps(pub Vec<Kept>);

/// The backbone. Its session opens when it is first needed: a run whose taps are all cached never needs its weights.
pub struct Backbone<'o> {
    opened: &'o Opened,
    graph: Graph,
    execution: Execution,
    /// Where batches and taps are on a device.
    places: Places,
    session: Option<Session>,
    captures: Captures,
    /// Why its runs are not captured, although that was asked for.
    plain: Option<String>,
}

impl<'o> Backbone<'o> {
    /// The graph is what [`Opened::parts`] gives.
    pub fn new(opened: &'o Opened, graph: Graph, execution: &Execution) -> Backbone<'o> {
        let (places, captures) = (Places::default(), Captures::default());
        Backbone { opened, graph, execution: *execution, places, session: None, captures, plain: None }
    }

    /// Its outputs are the taps.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Its values are where another session reads them.
    pub fn shares(&mut self, places: &Places) {
        self.places = places.clone();
    }

    /// Why its runs are not captured, although that was asked for.
    pub fn plain(&self) -> Option<&str> {
        self.plain.as_deref().or(self.captures.failed())
    }

    /// Opens the session, if it is not open yet.
    ///
    /// # Errors
    /// From ONNX Runtime.
    pub fn open(&mut self) -> anyhow::Result<()> {
        if self.session.is_none() {
            let (session, plain) = self.opened.captured(&self.graph, &self.execution)?;
            if !self.places.are_for(&session) {
                self.places = session.places();
            }
            // Its weights may lie where a captured graph had values of its own.
            self.places.void();
            (self.session, self.plain) = (Some(session), plain);
        }
        Ok(())
    }

    /// Waits until the taps of what was read are there.
    ///
    /// # Errors
    /// From ONNX Runtime.
    pub fn wait(&self) -> anyhow::Result<()> {
        Ok(self.session.as_ref().map_or(Ok(()), Session::wait)?)
    }

    /// As [`Session::memory`].
    ///
    /// # Errors
    /// From ONNX Runtime.
    pub fn memory(&self) -> anyhow::Result<Resident> {
        Ok(self.session.as_ref().map_or_else(|| Ok(Resident::read()), |session| session.memory(&self.places))?)
    }

    /// Reads a batch.
    ///
    /// # Errors
    /// From ONNX Runtime.
    pub fn taps(&mut self, batch: &Batch) -> anyhow::Result<Taps> {
        self.open()?;
        let shapes = self.shapes(batch);
        let are_known = shapes.iter().all(Option::is_some);
        let captures = self.session.as_ref().is_some_and(Session::captures) && are_known;
        if !are_known && self.execution.captures && self.plain.is_none() {
            self.plain =
                Some("the shapes of the side network's inputs cannot be derived from the batch's shape".to_owned());
        }
        // Before anything else, since a place may grow.
        let binding = self.fed(batch)?;
        let (shape, moves) = (Shape::of_backbone(batch), self.places.moves());
        let way = if captures { self.captures.way(shape, moves) } else { Way::Plain };
        // Nothing is written in place: all passes of a first run give the same result.
        match way {
            Way::Plain => self.run(binding, &shapes, None),
            Way::Again(graph) => self.run(binding, &shapes, Some(graph)),
            Way::First(graph) => match self.run(binding, &shapes, Some(graph)) {
                Err(error) => match error.downcast() {
                    Ok(error @ lstc_runtime::Error::OutOfMemory { .. }) => Err(error.into()),
                    Ok(error) => {
                        self.captures.give_up(graph, &error);
                        let binding = self.fed(batch)?;
                        self.run(binding, &shapes, None)
                    }
                    Err(other) => Err(other),
                },
                taps => taps,
            },
        }
    }

    fn run(&mut self, mut binding: Binding, shapes: &[Option<Vec<usize>>], graph: Option<u32>) -> anyhow::Result<Taps> {
        binding.replay(graph);
        let session = self.session.as_mut().expect("it was opened to be fed");
        for (port, dims) in session.outputs().iter().zip(shapes) {
            match dims {
                Some(dims) => binding.keep_placed(port, dims)?,
                None => binding.keep(port)?,
            }
        }
        Ok(Taps(session.run_keeping(binding)?))
    }

    /// Makes room for the taps of batches up to these sizes, so that none of them moves to a larger place later.
    ///
    /// # Errors
    /// No memory on the device.
    pub fn reserve(&self, sizes: Sizes) -> anyhow::Result<()> {
        let numbers = Numbers::of(self.opened, [&self.graph], sizes);
        for tap in &self.graph.outputs {
            let bytes = usize::try_from(numbers.bytes(&self.graph, *tap)).unwrap_or(usize::MAX);
            self.places.reserve(&self.graph.value(*tap).name, bytes)?;
        }
        Ok(())
    }

    /// The shapes of the taps of a batch, as far as its sizes determine them.
    fn shapes(&self, batch: &Batch) -> Vec<Option<Vec<usize>>> {
        let (rows, source) = batch.source.dim();
        let sizes = Sizes { batch: rows, source_length: source, target_length: batch.target_in.ncols() };
        let numbers = Numbers::of(self.opened, [&self.graph], sizes);
        self.graph.outputs.iter().map(|tap| numbers.dims(&self.graph, *tap)).collect()
    }

    /// Reads a batch, and copies its taps to the host: in the order of the graph's outputs.
    ///
    /// # Errors
    /// From ONNX Runtime.
    pub fn taps_on_host(&mut self, batch: &Batch) -> anyhow::Result<Vec<Tensor>> {
        let mut binding = self.fed(batch)?;
        let session = self.session.as_mut().expect("it was opened to be fed");
        for port in session.outputs() {
            binding.fetch(&port.name)?;
        }
        Ok(session.run_bound(&binding)?)
    }

    /// A binding that has the batch.
    fn fed(&mut self, batch: &Batch) -> anyhow::Result<Binding> {
        self.open()?;
        let session = self.session.as_ref().expect("it was opened just now");
        let mut binding = session.binding(&self.places)?;
        for (name, tensor) in self.opened.feeds(batch).iter().filter(|(name, _)| session.takes(name)) {
            binding.feed(name, tensor)?;
        }
        Ok(binding)
    }
}
