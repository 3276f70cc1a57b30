//! The frozen backbone on a device: from batches to what the side network reads of them.

use lstc_graph::Graph;

use crate::data::Batch;
use crate::rewrite::opened::{Execution, Opened};
use crate::runtime::{Binding, Kept, Session, Tensor};

/// What the side network reads of one batch: the taps, `[batch, length, width]` each, by their names in the graphs.
#[derive(Debug)]
pub struct Taps(pub Vec<Kept>);

/// The backbone. Its session opens when it is first needed: a run whose taps are all kept has no use for its weights.
pub struct Backbone<'o> {
    opened: &'o Opened,
    graph: Graph,
    execution: Execution,
    session: Option<Session>,
}

impl<'o> Backbone<'o> {
    /// The graph is what [`Opened::parts`] gives.
    pub fn new(opened: &'o Opened, graph: Graph, execution: &Execution) -> Backbone<'o> {
        Backbone { opened, graph, execution: *execution, session: None }
    }

    /// Its outputs are the taps.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Opens the session, if it is not open.
    ///
    /// # Errors
    /// From ONNX Runtime.
    pub fn open(&mut self) -> anyhow::Result<()> {
        if self.session.is_none() {
            self.session = Some(self.opened.session(&self.graph, &self.execution)?);
        }
        Ok(())
    }

    /// Reads a batch.
    ///
    /// # Errors
    /// From ONNX Runtime.
    pub fn taps(&mut self, batch: &Batch) -> anyhow::Result<Taps> {
        let (session, mut binding) = self.fed(batch)?;
        for port in session.outputs() {
            binding.keep(&port.name)?;
        }
        Ok(Taps(session.run_keeping(binding)?))
    }

    /// Reads a batch, and copies its taps to the host: in the order of the graph's outputs.
    ///
    /// # Errors
    /// From ONNX Runtime.
    pub fn taps_on_host(&mut self, batch: &Batch) -> anyhow::Result<Vec<Tensor>> {
        let (session, mut binding) = self.fed(batch)?;
        for port in session.outputs() {
            binding.fetch(&port.name)?;
        }
        Ok(session.run_bound(&binding)?)
    }

    /// The session, and a binding that has the batch.
    fn fed(&mut self, batch: &Batch) -> anyhow::Result<(&mut Session, Binding)> {
        self.open()?;
        let session = self.session.as_mut().expect("it was opened just now");
        let mut binding = session.binding()?;
        for (name, tensor) in self.opened.feeds(batch).iter().filter(|(name, _)| session.takes(name)) {
            binding.feed(name, tensor)?;
        }
        Ok((session, binding))
    }
}
