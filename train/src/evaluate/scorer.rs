//! Runs the model on batches: how likely it finds a text, and what it writes itself.

use anyhow::anyhow;
use lstc_data::{Batch, Fixed, IGNORED};
use lstc_graph::ValueId;
use lstc_passes::scoring::{LOG_LIKELIHOOD, NEXT_TOKEN, Scoring, scoring};
use lstc_runtime::{DeviceTensor, Kept, Places, Session, Tensor};
use lstc_tuned::opened::{Execution, Opened};
use lstc_tuned::side::Side;
use ndarray::Array2;

/// A parameter on the device.
pub type Parameter = (String, DeviceTensor);

/// The two halves of the inference graph, ready to run.
pub struct Scorer<'o> {
    opened: &'o Opened,
    encode: Option<Session>,
    decode: Session,
    places: Places,
    fixed: Fixed,
}

/// A batch whose source has been read.
pub struct Encoded<'b> {
    batch: &'b Batch,
    kept: Vec<Kept>,
}

impl<'o> Scorer<'o> {
    /// Opens the inference graph of a rewritten directory.
    ///
    /// # Errors
    /// A graph that is damaged, or that ONNX Runtime refuses.
    pub fn open(opened: &'o Opened, execution: &Execution) -> anyhow::Result<Scorer<'o>> {
        // Its batches have many sizes, and its values no fixed places.
        let execution = &Execution { captures: false, ..*execution };
        let infer = opened.graph("infer.onnx")?;
        let late: Vec<ValueId> = opened.late().into_iter().filter_map(|name| infer.find(name)).collect();
        let Scoring { encode: early, decode } = scoring(&infer, &late).map_err(|reason| anyhow!(reason))?;
        let has_work = !early.outputs.is_empty();
        let encode = has_work.then(|| opened.session(&early, execution)).transpose()?;
        let decode = opened.session(&decode, execution)?;
        let places = decode.places();
        Ok(Scorer { opened, encode, decode, places, fixed: opened.fixed() })
    }

    /// The side network on the device.
    ///
    /// # Errors
    /// From ONNX Runtime: no memory.
    pub fn upload(&self, side: &Side) -> anyhow::Result<Vec<Parameter>> {
        side.iter().map(|(name, values)| Ok((name.clone(), self.decode.upload(values)?))).collect()
    }

    /// Reads the source of a batch.
    ///
    /// # Errors
    /// From ONNX Runtime.
    pub fn encode<'b>(&mut self, batch: &'b Batch, side: &[Parameter]) -> anyhow::Result<Encoded<'b>> {
        let Some(session) = &mut self.encode else { return Ok(Encoded { batch, kept: Vec::new() }) };
        let mut binding = session.binding(&self.places)?;
        for (name, tensor) in side.iter().filter(|(name, _)| session.takes(name)) {
            binding.input(name, tensor)?;
        }
        for (name, tensor) in self.opened.feeds(batch).iter().filter(|(name, _)| session.takes(name)) {
            binding.feed(name, tensor)?;
        }
        for port in session.outputs() {
            binding.keep(port)?;
        }
        Ok(Encoded { batch, kept: session.run_keeping(binding)? })
    }

    /// The log-likelihood of each row's own target, and the number of its tokens.
    ///
    /// # Errors
    /// From ONNX Runtime.
    pub fn own(&mut self, encoded: &Encoded, side: &[Parameter]) -> anyhow::Result<Vec<f64>> {
        let batch = encoded.batch;
        let likelihood = self.decode(encoded, &batch.target_in, &batch.target_mask, &batch.labels, side)?.0;
        Ok(sums(&likelihood, batch.rows.len()))
    }

    /// The log-likelihood of one target, the same for each row.
    ///
    /// # Errors
    /// A target that is longer than the model's fixed length; from ONNX Runtime.
    pub fn likelihood(
        &mut self,
        encoded: &Encoded,
        target: &[u32],
        start: i64,
        side: &[Parameter],
    ) -> anyhow::Result<Vec<f64>> {
        let rows = encoded.batch.target_in.nrows();
        let length = self.length(target.len())?;
        let id = |at: usize| target.get(at).map(|id| i64::from(*id));
        let labels = Array2::from_shape_fn((rows, length), |(_, at)| id(at).unwrap_or(IGNORED));
        let given = Array2::from_shape_fn((rows, length), |(_, at)| match at.checked_sub(1) {
            None => start,
            Some(before) => id(before).unwrap_or(start),
        });
        let mask = labels.mapv(|id| i64::from(id != IGNORED));
        let likelihood = self.decode(encoded, &given, &mask, &labels, side)?.0;
        Ok(sums(&likelihood, encoded.batch.rows.len()))
    }

    /// What the model writes itself, always the likeliest next token, until the end token or `limit` tokens; without
    /// the end token.
    ///
    /// # Errors
    /// From ONNX Runtime.
    pub fn greedy(
        &mut self,
        encoded: &Encoded,
        limit: usize,
        (start, end): (i64, i64),
        side: &[Parameter],
    ) -> anyhow::Result<Vec<Vec<u32>>> {
        let (rows, real) = (encoded.batch.target_in.nrows(), encoded.batch.rows.len());
        let limit = self.fixed.target.map_or(limit, |fixed| fixed.min(limit));
        let mut said: Vec<Vec<i64>> = vec![Vec::new(); rows];
        let ended = |said: &[i64]| said.last() == Some(&end);
        while said.iter().take(real).any(|s| !ended(s) && s.len() < limit) {
            let step = said.iter().map(Vec::len).max().unwrap_or(0);
            let length = self.length(step + 1)?;
            let given = Array2::from_shape_fn((rows, length), |(row, at)| match at.checked_sub(1) {
                None => start,
                Some(before) => said[row].get(before).copied().unwrap_or(start),
            });
            let mask = Array2::from_shape_fn((rows, length), |(_, at)| i64::from(at <= step));
            let labels = Array2::from_elem((rows, length), IGNORED);
            let next = self.decode(encoded, &given, &mask, &labels, side)?.1;
            for (row, said) in said.iter_mut().enumerate().filter(|(_, said)| !ended(said)) {
                said.push(next[[row, step]]);
            }
        }
        said.truncate(real);
        let text = |said: Vec<i64>| said.into_iter().filter(|id| *id != end).filter_map(|id| u32::try_from(id).ok());
        Ok(said.into_iter().map(|s| text(s).collect()).collect())
    }

    /// A length that the model takes, for so many target tokens.
    fn length(&self, wanted: usize) -> anyhow::Result<usize> {
        match self.fixed.target {
            Some(fixed) if wanted > fixed => {
                Err(anyhow!("{wanted} target tokens do not fit the model, whose length is fixed at {fixed}"))
            }
            Some(fixed) => Ok(fixed),
            None => Ok(wanted),
        }
    }

    /// Log-likelihoods of the labels, and the likeliest next tokens.
    fn decode(
        &mut self,
        encoded: &Encoded,
        given: &Array2<i64>,
        mask: &Array2<i64>,
        labels: &Array2<i64>,
        side: &[Parameter],
    ) -> anyhow::Result<(Array2<f32>, Array2<i64>)> {
        let session = &mut self.decode;
        let mut binding = session.binding(&self.places)?;
        for (name, tensor) in side.iter().filter(|(name, _)| session.takes(name)) {
            binding.input(name, tensor)?;
        }
        let batch = Batch { target_in: given.clone(), target_mask: mask.clone(), ..encoded.batch.clone() };
        for (name, tensor) in self.opened.feeds(&batch).iter().filter(|(name, _)| session.takes(name)) {
            binding.feed(name, tensor)?;
        }
        binding.feed("labels", &Tensor::from(labels.clone()))?;
        for kept in encoded.kept.iter().filter(|kept| session.takes(kept.name())) {
            binding.lend(kept)?;
        }
        binding.fetch(LOG_LIKELIHOOD)?;
        binding.fetch(NEXT_TOKEN)?;
        let results = session.run_bound(&binding)?;
        let [likelihood, next] = &results[..] else { return Err(anyhow!("the scoring graph gave {}", results.len())) };
        Ok((likelihood.as_f32()?.to_owned().into_dimensionality()?, next.as_i64()?.to_owned().into_dimensionality()?))
    }
}

/// The sum of each of the first `rows` rows.
fn sums(values: &Array2<f32>, rows: usize) -> Vec<f64> {
    values.rows().into_iter().take(rows).map(|row| row.iter().map(|v| f64::from(*v)).sum()).collect()
}
