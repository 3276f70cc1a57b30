//! How fast a run goes, and how long it will take.

use std::time::{Duration, Instant};

use crate::log::StepLine;

/// How fast a run goes.
pub(super) struct Clock {
    pub begun: Instant,
    /// When the last steps were known.
    pub mark: Instant,
    /// Seconds of the last evaluation.
    pub evaluation: f64,
    seconds: Vec<f32>,
    tokens: usize,
}

impl Default for Clock {
    fn default() -> Clock {
        Clock { begun: Instant::now(), mark: Instant::now(), evaluation: 0.0, seconds: Vec::new(), tokens: 0 }
    }
}

impl Clock {
    /// Seconds since the last steps were known.
    pub fn lap(&mut self) -> f64 {
        std::mem::replace(&mut self.mark, Instant::now()).elapsed().as_secs_f64()
    }

    pub fn add(&mut self, line: &StepLine) {
        self.seconds.push(line.seconds as f32);
        self.tokens += line.tokens;
    }

    fn total(&self) -> f64 {
        self.seconds.iter().map(|s| f64::from(*s)).sum()
    }

    /// How long so many more steps and evaluations take.
    pub fn left(&self, steps: u64, evaluations: u64) -> Duration {
        let step = self.total() / self.seconds.len().max(1) as f64;
        Duration::from_secs_f64(step * steps as f64 + self.evaluation * evaluations as f64)
    }

    pub fn median(&self) -> f64 {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f32::total_cmp);
        sorted.get(sorted.len() / 2).map_or(0.0, |s| f64::from(*s))
    }

    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.total().max(1e-9)
    }
}
