//! The passes that a model goes through, and the driver that runs them.

use std::time::{Duration, Instant};

use crate::module::Module;
use crate::problem::{Problem, listed};

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
