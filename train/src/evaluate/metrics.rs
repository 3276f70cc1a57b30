//! The figures of an evaluation.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use lstc_base::report;
use serde::Serialize;

use super::{Guess, Label};

/// How well a model does on a file.
#[derive(Clone, Debug, Serialize)]
pub struct Metrics {
    pub examples: usize,
    /// Mean cross-entropy of a target token, in nats.
    pub loss: f64,
    /// The share of examples whose target is the likeliest of the known labels; none if targets are not labels.
    pub accuracy: Option<f64>,
    /// The mean F1 of the classes that occur, as a target or as a prediction: scikit-learn's `f1_score(..., average="macro")`.
    /// A target that is not a known label is a class whose F1 is 0. None if targets are not labels.
    pub macro_f1: Option<f64>,
    /// What a guess without the input would reach, if targets are labels.
    pub guess: Option<Guess>,
    /// The share of examples for which greedy generation gives the target, token by token; none if it was not asked for.
    pub generated: Option<f64>,
    /// By label, if targets are labels.
    pub classes: Vec<Class>,
}

/// The results for the examples of one label, by likelihood.
#[derive(Clone, Debug, Serialize)]
pub struct Class {
    pub label: String,
    /// Examples with this label.
    pub examples: usize,
    /// The share of them that were found.
    pub recall: f64,
    /// The share of what was taken for this label that has it; none if nothing was.
    pub precision: Option<f64>,
    /// Harmonic mean of the two.
    pub f1: f64,
    /// The share of them for which generation gave the label.
    pub generated: Option<f64>,
}

/// What is known about a scored example.
#[derive(Clone, Debug, Default)]
pub struct Scored {
    /// In the file, as a line from 1.
    pub row: u64,
    pub target: Vec<u32>,
    /// Log-likelihood of the target.
    pub likelihood: f64,
    /// Log-likelihoods of the labels, in their order.
    pub labels: Vec<f64>,
    pub generated: Option<Vec<u32>>,
}

impl Scored {
    /// The index of the likeliest label; the first of equals.
    pub fn best(&self) -> Option<usize> {
        let mut best = None;
        for (place, value) in self.labels.iter().enumerate() {
            if best.is_none_or(|b: usize| *value > self.labels[b]) {
                best = Some(place);
            }
        }
        best
    }

    /// The probability of each label, if it is one of them: what the softmax makes of their log-likelihoods.
    pub fn probabilities(&self) -> Vec<f64> {
        let largest = self.labels.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let shares: Vec<f64> = self.labels.iter().map(|l| (l - largest).exp()).collect();
        let sum: f64 = shares.iter().sum();
        shares.into_iter().map(|share| share / sum).collect()
    }

    /// How far the log-likelihood of the likeliest label is above that of the next; none for fewer than two labels.
    pub fn margin(&self) -> Option<f64> {
        let mut falling = self.labels.clone();
        falling.sort_by(|a, b| b.total_cmp(a));
        Some(falling.first()? - falling.get(1)?)
    }

    /// Whether generation gave the target; its end token is not among what was generated.
    pub fn said_it(&self) -> Option<bool> {
        let wanted = self.target.split_last().map_or(&[][..], |(_, before)| before);
        self.generated.as_ref().map(|said| said == wanted)
    }
}

impl Metrics {
    /// Counts what was scored. `labels` are the known ones, with their texts.
    pub fn of(scored: &[Scored], labels: &[Label]) -> Metrics {
        let tokens: usize = scored.iter().map(|s| s.target.len()).sum();
        let likelihood: f64 = scored.iter().map(|s| s.likelihood).sum();
        let share = |hits: usize, of: usize| hits as f64 / of.max(1) as f64;
        let said = scored.iter().map(Scored::said_it).collect::<Option<Vec<bool>>>();
        let place: BTreeMap<&[u32], usize> = labels.iter().enumerate().map(|(i, (ids, _))| (&ids[..], i)).collect();
        let own = |s: &Scored| place.get(&s.target[..]).copied();
        let hits = scored.iter().filter(|s| s.best().is_some() && s.best() == own(s)).count();
        let class = |(place, (_, label)): (usize, &Label)| {
            let mine: Vec<&Scored> = scored.iter().filter(|s| own(s) == Some(place)).collect();
            let found = mine.iter().filter(|s| s.best() == Some(place)).count();
            let taken = scored.iter().filter(|s| s.best() == Some(place)).count();
            let recall = share(found, mine.len());
            let said = mine.iter().map(|s| s.said_it()).collect::<Option<Vec<bool>>>();
            Class {
                label: label.clone(),
                examples: mine.len(),
                recall,
                precision: (taken > 0).then(|| share(found, taken)),
                f1: share(2 * found, mine.len() + taken),
                generated: said.map(|said| share(said.iter().filter(|s| **s).count(), mine.len())),
            }
        };
        let classes: Vec<Class> = labels.iter().enumerate().map(class).collect();
        let are_labels = !labels.is_empty();
        let unknown: BTreeSet<&[u32]> = scored.iter().filter(|s| own(s).is_none()).map(|s| &s.target[..]).collect();
        let occurring = classes.iter().filter(|c| c.examples > 0 || c.precision.is_some());
        let (sum, count) = occurring.fold((0.0, unknown.len()), |(sum, count), c| (sum + c.f1, count + 1));
        Metrics {
            examples: scored.len(),
            loss: -likelihood / tokens.max(1) as f64,
            accuracy: are_labels.then(|| share(hits, scored.len())),
            macro_f1: are_labels.then(|| sum / count.max(1) as f64),
            guess: are_labels.then(|| Guess::of(scored.iter().map(|s| &s.target[..]))),
            generated: said.map(|said| share(said.iter().filter(|s| **s).count(), said.len())),
            classes,
        }
    }
}

/// A share as a percentage.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "examples             {}", self.examples)?;
        writeln!(f, "loss                 {:.4}", self.loss)?;
        if let Some(guess) = &self.guess {
            let stands = if guess.is_reached_by(self.loss) { "; this loss is no lower" } else { "" };
            writeln!(f, "loss of a guess      {:.4}{stands}", guess.loss)?;
        }
        if let Some(accuracy) = self.accuracy {
            writeln!(f, "label by likelihood  {}", percent(accuracy))?;
        }
        if let (Some(accuracy), Some(guess)) = (self.accuracy, &self.guess) {
            let stands = if accuracy <= guess.majority { "; the accuracy is no higher" } else { "" };
            writeln!(f, "majority baseline    {}{stands}", percent(guess.majority))?;
        }
        if let Some(f1) = self.macro_f1 {
            writeln!(f, "macro F1             {f1:.4}")?;
        }
        if let Some(generated) = self.generated {
            writeln!(f, "greedy generation    {}", percent(generated))?;
        }
        if self.classes.is_empty() {
            return Ok(());
        }
        let optional = |share: Option<f64>| share.map_or_else(|| "-".to_owned(), percent);
        let rows = self.classes.iter().map(|c| {
            let (recall, f1) = (percent(c.recall), percent(c.f1));
            [c.label.clone(), c.examples.to_string(), recall, optional(c.precision), f1, optional(c.generated)]
        });
        writeln!(f, "\n{}", report::table(["label", "examples", "recall", "precision", "F1", "generated"], rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(target: u32, labels: [f64; 2], generated: &[u32]) -> Scored {
        let likelihood = labels[target as usize - 5];
        let labels = labels.to_vec();
        Scored { row: 1, target: vec![target, 1], likelihood, labels, generated: Some(generated.to_vec()) }
    }

    #[test]
    fn figures_are_what_they_are_called() {
        let labels = [(vec![5, 1], "a".to_owned()), (vec![6, 1], "b".to_owned())];
        let all = [
            scored(5, [-1.0, -2.0], &[5]),
            scored(5, [-3.0, -1.0], &[6]),
            scored(6, [-2.0, -1.0], &[6, 6]),
            scored(6, [-2.0, -1.0], &[6]),
        ];
        let m = Metrics::of(&all, &labels);
        assert_eq!((m.examples, m.accuracy, m.generated), (4, Some(0.75), Some(0.5)));
        assert!((m.loss - 6.0 / 8.0).abs() < 1e-12);
        let [a, b] = &m.classes[..] else { panic!("two classes") };
        assert_eq!((a.recall, a.precision, a.examples), (0.5, Some(1.0), 2));
        assert_eq!((b.recall, b.precision), (1.0, Some(2.0 / 3.0)));
        assert!((a.f1 - 2.0 / 3.0).abs() < 1e-12 && (b.f1 - 0.8).abs() < 1e-12);
        assert_eq!((a.generated, b.generated), (Some(0.5), Some(0.5)));
    }

    /// Examples whose targets and predictions are these letters; the labels are `a` to `d`.
    fn lettered(targets: &str, predictions: &str) -> Metrics {
        let token = |letter: char| letter as u32;
        let known: Vec<(Vec<u32>, String)> = ('a'..='d').map(|c| (vec![token(c), 1], c.to_string())).collect();
        let one = |(target, predicted): (char, char)| Scored {
            target: vec![token(target), 1],
            labels: ('a'..='d').map(|label| if label == predicted { -0.5 } else { -2.0 }).collect(),
            ..Scored::default()
        };
        Metrics::of(&targets.chars().zip(predictions.chars()).map(one).collect::<Vec<_>>(), &known)
    }

    /// Expected values from scikit-learn 1.9:
    ///
    /// ```text
    /// python -c "from sklearn.metrics import f1_score
    /// print(f1_score(list('aaaaabbbccd'), list('aabcaabbcac'), average='macro'))
    /// print(f1_score(list('aabbx'), list('aabba'), average='macro'))"
    /// ```
    #[test]
    fn macro_f1_is_scikit_learns() {
        let m = lettered("aaaaabbbccd", "aabcaabbcac");
        assert!(m.macro_f1.is_some_and(|f1| (f1 - 0.416_666_666_666_666_63).abs() < 1e-12), "{:?}", m.macro_f1);
        assert_eq!(m.guess.map(|g| g.majority), Some(5.0 / 11.0));
        // `c` and `d` do not occur and do not count; `x` is not a label, and has no F1.
        let m = lettered("aabbx", "aabba");
        assert!(m.macro_f1.is_some_and(|f1| (f1 - 0.6).abs() < 1e-12), "{:?}", m.macro_f1);
    }

    #[test]
    fn a_report_says_what_a_guess_reaches() {
        let text = lettered("aabb", "aaaa").to_string();
        assert!(text.contains("majority baseline    50.0 %; the accuracy is no higher\n"), "{text}");
        let text = lettered("aabb", "aaab").to_string();
        assert!(
            text.contains("majority baseline    50.0 %\n") && text.contains("macro F1             0.7333\n"),
            "{text}"
        );
    }

    #[test]
    fn without_labels_there_is_no_accuracy() {
        let m = Metrics::of(&[Scored { target: vec![7, 1], likelihood: -4.0, ..Scored::default() }], &[]);
        assert_eq!((m.accuracy, m.generated, m.loss), (None, None, 2.0));
        assert!(m.classes.is_empty());
    }
}
