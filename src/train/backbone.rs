//! The frozen backbone on a device: from batches to what the side network reads of them.

use lstc_graph::Graph;

use crate::data::Batch;
use crate::rewrite::opened::{Execution, Opened};
use crate::runtime::{Kept, Session, Tensor};

/// What the side network reads of one batch: the taps, `[batch, length, width]` each, by their names in the graphs.
pub enum Taps {
    /// As the backbone left them on the device.
    OnDevice(Vec<Kept>),
    OnHost(Vec<(String, Tensor)>),
}

impl Taps {
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let (kept, fed) = match self {
            Taps::OnDevice(taps) => (&taps[..], &[][..]),
            Taps::OnHost(taps) => (&[][..], &taps[..]),
        };
        kept.iter().map(Kept::name).chain(fed.iter().map(|(name, _)| name.as_str()))
    }
}

/// The backbone, ready to run.
pub struct Backbone<'o> {
    opened: &'o Opened,
    session: Session,
}

impl<'o> Backbone<'o> {
    /// Opens the graph that [`Opened::parts`] gives.
    ///
    /// # Errors
    /// From ONNX Runtime.
    pub fn open(opened: &'o Opened, graph: &Graph, execution: &Execution) -> anyhow::Result<Backbone<'o>> {
        Ok(Backbone { opened, session: opened.session(graph, execution)? })
    }

    /// Reads a batch.
    ///
    /// # Errors
    /// From ONNX Runtime.
    pub fn taps(&mut self, batch: &Batch) -> anyhow::Result<Taps> {
        let mut binding = self.session.binding()?;
        for (name, tensor) in self.opened.feeds(batch).iter().filter(|(name, _)| self.session.takes(name)) {
            binding.feed(name, tensor)?;
        }
        for port in self.session.outputs() {
            binding.keep(&port.name)?;
        }
        Ok(Taps::OnDevice(self.session.run_keeping(binding)?))
    }
}
