//! The learning rate of each step.

use lstc_tuned::options::{Schedule, TrainOptions};

/// The learning rate of each step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    highest: f64,
    schedule: Schedule,
    warmup: u64,
    total: u64,
}

/// The share of all steps that warm up, and the most steps, unless the user gives a number.
const WARMUP: (u64, u64) = (10, 500);

impl LearningRate {
    /// For a run of `total` steps.
    pub fn new(options: &TrainOptions, total: u64) -> LearningRate {
        let warmup = options.warmup_steps.unwrap_or((total / WARMUP.0).min(WARMUP.1)).min(total);
        LearningRate { highest: options.lr, schedule: options.schedule, warmup, total }
    }

    /// ```text
    /// step <= warmup: lr step / warmup;   after: lr (1 - p) or lr (1 + cos(pi p)) / 2
    /// p = (step - 1 - warmup) / (total - warmup)
    /// ```
    ///
    /// Steps are counted from 1, so that none has a rate of 0.
    pub fn at(&self, step: u64) -> f64 {
        if step <= self.warmup {
            return self.highest * step as f64 / self.warmup as f64;
        }
        let past = (step - 1 - self.warmup) as f64 / (self.total - self.warmup).max(1) as f64;
        let share = match self.schedule {
            Schedule::Linear => 1.0 - past,
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * past).cos()),
            Schedule::Constant => 1.0,
        };
        self.highest * share.max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(schedule: Schedule, warmup: Option<u64>, total: u64) -> Vec<f64> {
        let options = TrainOptions { lr: 1.0, schedule, warmup_steps: warmup, ..TrainOptions::default() };
        let rate = LearningRate::new(&options, total);
        (1..=total).map(|step| (rate.at(step) * 1e4).round() / 1e4).collect()
    }

    #[test]
    fn rates_rise_and_fall() {
        assert_eq!(rates(Schedule::Linear, Some(2), 6), [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]);
        assert_eq!(rates(Schedule::Constant, Some(0), 3), [1.0, 1.0, 1.0]);
        assert_eq!(rates(Schedule::Cosine, Some(0), 4), [1.0, 0.8536, 0.5, 0.1464]);
        assert_eq!(
            rates(Schedule::Linear, Some(9), 3),
            [1.0 / 3.0, 2.0 / 3.0, 1.0].map(|r| (r * 1e4_f64).round() / 1e4)
        );
    }

    #[test]
    fn the_warm_up_is_a_tenth_and_at_most_500_steps() {
        let rate = |total| LearningRate::new(&TrainOptions::default(), total);
        assert_eq!((rate(100).warmup, rate(5).warmup, rate(1_000_000).warmup), (10, 0, 500));
    }
}
