//! The passes that a model goes through, and the driver that runs them.

use std::time::{Duration, Instant};

use crate::differentiate::Differentiate;
use crate::fold::Fold;
use crate::freeze::Freeze;
use crate::head::Head;
use crate::ladder::Ladder;
use crate::loss::Loss;
use crate::module::Module;
use crate::optimizer::Optimizer;
use crate::problem::{Problem, listed};
use crate::prune::Prune;
use crate::quantise::{Quantise, QuantiseHead};
use crate::side_stack::SideStack;
use crate::tap::Taps;

/// One step of the compiler: small, in a file of its own, named after what it makes.
pub trait Pass {
    /// Stamped on each node that the pass makes; what `--stop-after` takes.
    fn name(&self) -> &'static str;

    /// Changes the module.
    ///
    /// # Errors
    /// Everything that prevents the pass from running.
    fn run(&self, module: &mut Module) -> Result<(), Vec<Problem>>;
}

/// Passes in order.
#[derive(Default)]
pub struct Pipeline {
    passes: Vec<Box<dyn Pass>>,
}

/// From a recognised model to a training step. Order matters where a comment says so.
pub fn ladder_side_tuning() -> Pipeline {
    Pipeline::default()
        .then(Freeze)
        .then(Fold) // before values are tapped
        .then(Taps)
        .then(Prune) // reads frozen weights: before anything changes them
        .then(SideStack) // declares what the ladder reads
        .then(Ladder)
        .then(Head)
        .then(Loss)
        .then(Differentiate) // sees the whole forward graph
        .then(Optimizer)
        .then(Quantise) // changes the backbone's weights, which have no gradient: after all that reads them
        .then(QuantiseHead) // one form for the product and for its gradient: after both were made
}

/// Why a pass failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("pass {pass}:\n{}", listed(problems))]
pub struct PassError {
    pub pass: &'static str,
    pub problems: Vec<Problem>,
}

/// What one pass took and made.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub pass: &'static str,
    pub run: Duration,
    /// The check of the invariants that followed.
    pub check: Duration,
    /// Nodes in the graph afterwards.
    pub nodes: usize,
}

impl Pipeline {
    #[must_use]
    pub fn then(mut self, pass: impl Pass + 'static) -> Self {
        self.passes.push(Box::new(pass));
        self
    }

    /// The passes' names, in order.
    pub fn names(&self) -> Vec<&'static str> {
        self.passes.iter().map(|p| p.name()).collect()
    }

    /// Runs the passes, up to and with `stop_after`; checks the invariants after each; shows the module to `after`.
    ///
    /// # Errors
    /// The pass that failed, or after which an invariant does not hold.
    pub fn run(
        &self,
        module: &mut Module,
        stop_after: Option<&str>,
        mut after: impl FnMut(&'static str, &Module),
    ) -> Result<Vec<Timing>, PassError> {
        let mut timings = Vec::new();
        for pass in &self.passes {
            let error = |problems| PassError { pass: pass.name(), problems };
            let start = Instant::now();
            pass.run(module).map_err(error)?;
            let run = start.elapsed();
            module.check().map_err(error)?;
            timings.push(Timing {
                pass: pass.name(),
                run,
                check: start.elapsed() - run,
                nodes: module.graph.node_ids().count(),
            });
            after(pass.name(), module);
            if stop_after == Some(pass.name()) {
                break;
            }
        }
        Ok(timings)
    }
}
