//! How well a side network does: loss, accuracy by label likelihood, and by greedy generation.
//!
//! The inference graph is run in two halves ([`Scorer`]): the source of a batch is read once, and then every label is
//! scored, and every token generated, by the other half alone.

mod answers;
mod guess;
mod labels;
mod metrics;
mod predictions;
mod scorer;

use lstc_data::{Batch, Corpus, Order, Targets, Tokenizer, sequential_batches};
use lstc_tuned::opened::{Execution, Opened};
use lstc_tuned::side::Side;

pub use answers::{AnswerForm, write_answers};
pub use guess::Guess;
pub use labels::{Label, labels, named_labels, record, recorded_labels};
pub use metrics::{Class, Metrics, Scored, percent};
pub use predictions::write_predictions;
pub use scorer::{Encoded, Parameter, Scorer};

/// What is evaluated.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The known labels; empty if targets are not labels.
    pub labels: Vec<Label>,
    /// Generate, up to so many tokens.
    pub generate: Option<usize>,
    pub batch_size: usize,
    /// Whether examples have targets to score.
    pub targets: Targets,
}

/// Token ids in readable form: their text, or the ids if there is no tokenizer.
pub fn text(ids: &[u32], tokenizer: Option<&Tokenizer>) -> anyhow::Result<String> {
    match tokenizer {
        Some(tokenizer) => tokenizer.decode(ids),
        None => Ok(ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")),
    }
}

/// Scores every example of a corpus with a side network on the host, in order. `progress` gets how many are done.
///
/// # Errors
/// From ONNX Runtime.
pub fn score_side(
    opened: &Opened,
    execution: &Execution,
    side: &Side,
    corpus: &Corpus,
    request: &Request,
    mut progress: impl FnMut(usize),
) -> anyhow::Result<Vec<Scored>> {
    let mut scorer = Scorer::open(opened, execution)?;
    let parameters = scorer.upload(side)?;
    let go_on = |done| {
        progress(done);
        true
    };
    Ok(score(opened, &mut scorer, &parameters, corpus, request, go_on)?.unwrap_or_default())
}

/// Scores every example of a corpus, in order. `progress` gets how many are done, and returns whether to continue: if it
/// does not, there are no scores.
///
/// # Errors
/// From ONNX Runtime; files of the directory that have changed meanwhile.
pub fn score(
    opened: &Opened,
    scorer: &mut Scorer,
    side: &[Parameter],
    corpus: &Corpus,
    request: &Request,
    mut progress: impl FnMut(usize) -> bool,
) -> anyhow::Result<Option<Vec<Scored>>> {
    let (tokens, fixed) = (opened.record.tokens, opened.fixed());
    let batch_size = fixed.batch.unwrap_or(request.batch_size);
    let mut scored: Vec<Scored> = vec![Scored::default(); corpus.len()];
    let mut done = 0;
    for indices in sequential_batches(corpus, batch_size, Order::Length).iter() {
        let batch = Batch::new(corpus, indices, tokens, &fixed)?;
        let encoded = scorer.encode(&batch, side)?;
        let own = match request.targets {
            Targets::Read => scorer.own(&encoded, side)?,
            Targets::Absent => vec![0.0; indices.len()],
        };
        let labels = request
            .labels
            .iter()
            .map(|(ids, _)| scorer.likelihood(&encoded, ids, tokens.start, side))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let mut said = match request.generate {
            Some(limit) => scorer.greedy(&encoded, limit, (tokens.start, tokens.end), side)?,
            None => Vec::new(),
        };
        for (row, index) in indices.iter().enumerate() {
            let example = corpus.example(*index as usize);
            scored[*index as usize] = Scored {
                row: example.row,
                target: example.labels(),
                likelihood: own[row],
                labels: labels.iter().map(|l| l[row]).collect(),
                generated: said.get_mut(row).map(std::mem::take),
            };
        }
        done += indices.len();
        if !progress(done) && done < corpus.len() {
            return Ok(None);
        }
    }
    // Weights may be read from their mapped files.
    opened.check()?;
    Ok(Some(scored))
}
