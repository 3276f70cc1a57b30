//! What can be reached by guessing from the targets' frequencies, without the input.

use std::collections::BTreeMap;

use serde::Serialize;

use super::percent;

/// How well the targets of some examples can be guessed without their inputs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Guess {
    /// The share of the most frequent target: the accuracy of always giving it.
    pub majority: f64,
    /// The least loss, in nats a target token, of a prediction that does not see the input. It gives each token its
    /// frequency after the tokens before it, so that a whole target t has its own frequency p(t):
    ///
    /// ```text
    /// loss = - sum over the examples of ln p(target) / their target tokens
    /// ```
    ///
    /// Two equally frequent labels of two tokens each give ln 2 / 2, as the end token is certain.
    pub loss: f64,
}

/// A loss this close to a guess's counts as equal to it.
const NEAR: f64 = 0.01;

impl Guess {
    /// For the targets of all examples; there must be at least one.
    pub fn of<'t>(targets: impl Iterator<Item = &'t [u32]>) -> Guess {
        let mut counts: BTreeMap<&[u32], usize> = BTreeMap::new();
        targets.for_each(|target| *counts.entry(target).or_default() += 1);
        let examples: usize = counts.values().sum();
        let tokens: usize = counts.iter().map(|(target, count)| target.len() * count).sum();
        let share = |count: usize| count as f64 / examples.max(1) as f64;
        let surprise = |count: &usize| *count as f64 * share(*count).recip().ln();
        Guess {
            majority: share(counts.values().copied().max().unwrap_or_default()),
            loss: counts.values().map(surprise).sum::<f64>() / tokens.max(1) as f64,
        }
    }

    /// Whether a model with this loss knows no more than the guess: within a hundredth of its loss, or above it.
    pub fn is_reached_by(&self, loss: f64) -> bool {
        loss >= self.loss * (1.0 - NEAR)
    }

    /// What to say about an evaluation that does no better than the guess; empty if it does.
    pub fn falls_short(&self, loss: f64, accuracy: Option<f64>) -> String {
        let accuracy = accuracy.filter(|accuracy| *accuracy <= self.majority);
        let loss = self.is_reached_by(loss).then_some(self.loss);
        match (accuracy, loss) {
            (Some(_), Some(loss)) => {
                format!(
                    "  no better than the majority ({}), nor than the loss of a guess ({loss:.4})",
                    percent(self.majority)
                )
            }
            (Some(_), None) => format!("  no better than the majority ({})", percent(self.majority)),
            (None, Some(loss)) => format!("  loss no better than that of a guess ({loss:.4})"),
            (None, None) => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guess_has_the_entropy_of_the_targets() {
        let guess = |targets: &[&[u32]]| Guess::of(targets.iter().copied());
        let even = guess(&[&[5, 1], &[6, 1]]);
        assert_eq!(even.majority, 0.5);
        assert!((even.loss - 2.0_f64.ln() / 2.0).abs() < 1e-12);
        // python: -(3 * log(3 / 4) + log(1 / 4)) / (3 * 2 + 3)
        let uneven = guess(&[&[5, 1], &[5, 1], &[7, 9, 1], &[5, 1]]);
        assert_eq!(uneven.majority, 0.75);
        assert!((uneven.loss - 0.249_926_730_941).abs() < 1e-9, "{}", uneven.loss);
        assert_eq!(guess(&[&[5, 1]]), Guess { majority: 1.0, loss: 0.0 });
    }

    #[test]
    fn a_loss_near_a_guesss_stands_at_it() {
        let guess = Guess { majority: 0.5, loss: 0.3466 };
        assert!(guess.is_reached_by(0.3470) && guess.is_reached_by(0.345) && !guess.is_reached_by(0.33));
    }
}
