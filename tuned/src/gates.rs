//! How far the gates of a ladder are open, according to a file of side parameters.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use serde::Serialize;

use crate::opened::side_file;
use crate::run::BEST;
use crate::side::{self, Loaded, Seal, Side};
use crate::{RUN, SIDE};

/// Shapes of the trainable tensors by name.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// A gate's value: the share of the side state from below; the rest is the tap's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Gate {
    /// sigmoid(alpha / T), from 0 to 1.
    pub value: f64,
    pub state: State,
}

/// Where a gate's value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The value at which training begins.
    Initial,
    Trained,
    /// Training does not move it.
    Fixed,
    /// Set by the epoch of a run.
    Scheduled,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            State::Initial => "initial",
            State::Trained => "trained",
            State::Fixed => "fixed",
            State::Scheduled => "scheduled",
        }
    }
}

impl Gate {
    pub fn new(alpha: f32, temperature: f32, state: State) -> Gate {
        let x = f64::from(alpha) / f64::from(temperature);
        Gate { value: 1.0 / (1.0 + (-x).exp()), state }
    }

    pub fn fixed(alpha: f32, temperature: f32) -> Gate {
        Gate::new(alpha, temperature, State::Fixed)
    }
}

/// The gates' parameters: those of a file, or their common initial value.
#[derive(Debug)]
pub struct Alphas {
    pub file: Option<PathBuf>,
    /// Whether the file's values could be checked.
    pub seal: Option<Seal>,
    state: State,
    side: Option<Side>,
    initial: f32,
    temperature: f32,
}

impl Alphas {
    /// The initial values.
    pub fn initial(alpha: f32, temperature: f32) -> Alphas {
        Alphas { file: None, seal: None, state: State::Initial, side: None, initial: alpha, temperature }
    }

    /// Those of `side` if given, else of the trained side network in the directory, else of the initial one.
    ///
    /// # Errors
    /// A file that is not a side network, or does not fit the directory, with every tensor that does not fit.
    pub fn of(self, directory: &Path, side: Option<&Path>, shapes: &Shapes) -> anyhow::Result<Alphas> {
        let initial = directory.join(SIDE);
        let best = directory.join(RUN).join(BEST);
        let file = match side {
            Some(file) => side_file(directory, Some(file))?,
            None if best.is_file() => best,
            None if initial.is_file() => initial.clone(),
            None => return Ok(self),
        };
        let is_initial = matches!((file.canonicalize(), initial.canonicalize()), (Ok(a), Ok(b)) if a == b);
        let Loaded { side: found, seal, .. } =
            side::load_parameters(&file, shapes.iter().map(|(name, dims)| (name.as_str(), dims.as_slice())))?;
        let state = if is_initial { State::Initial } else { State::Trained };
        Ok(Alphas { file: Some(file), seal: Some(seal), state, side: Some(found), ..self })
    }

    /// The value of a learnable gate.
    ///
    /// # Errors
    /// A gate that is missing from the file.
    pub fn trained(&self, name: &str) -> anyhow::Result<Gate> {
        Ok(Gate::new(self.number(name, self.initial)?, self.temperature, self.state))
    }

    /// The value of gates that a schedule sets.
    ///
    /// # Errors
    /// As [`Alphas::trained`].
    pub fn scheduled(&self, name: &str, first: Option<f32>) -> anyhow::Result<Gate> {
        let value = f64::from(self.number(name, first.unwrap_or_default())?);
        Ok(Gate { value, state: State::Scheduled })
    }

    fn number(&self, name: &str, initial: f32) -> anyhow::Result<f32> {
        let Some(side) = &self.side else { return Ok(initial) };
        let tensor = side.get(name).and_then(|tensor| tensor.first());
        tensor.copied().ok_or_else(|| anyhow!("there is no gate parameter `{name}`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_is_the_sigmoid_of_alpha_by_the_temperature() {
        let value = |alpha| Gate::fixed(alpha, 0.1).value;
        assert_eq!(value(0.0), 0.5);
        assert!((value(0.1) - 0.731_058_578_630_004_9).abs() < 1e-7);
        assert!(value(-1e30) == 0.0 && value(1e30) == 1.0);
    }
}
