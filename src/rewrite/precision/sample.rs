//! The tokens on which the precisions are compared.

use std::path::Path;

use anyhow::{Context, bail};
use lstc_base::scratch::Scratch;
use lstc_data::{Batch, Corpus, Fixed, Reading, Tokenizer};
use lstc_models::{SpecialTokens, model_inputs};
use lstc_passes::Module;
use lstc_runtime::Tensor;
use lstc_tuned::manifest::FilePart;
use lstc_tuned::opened::fill;
use lstc_tuned::quantised::Sample;

use crate::probe::sample as drawn;
use crate::rewrite::source_file;

/// How many of a file's first examples are taken, and how many are run at once.
const EXAMPLES: usize = 16;
const BATCH: usize = 8;

/// How a file's text becomes tokens.
pub struct Given<'g> {
    pub reading: &'g Reading,
    /// A tokenizer.json; token ids do not need one.
    pub tokenizer: Option<&'g Path>,
    pub special: SpecialTokens,
}

/// The model's inputs, by name, for each batch.
pub type Feeds = Vec<Vec<(String, Tensor)>>;

/// A sample from a file.
///
/// # Errors
/// A file that cannot be read.
pub fn sample_of(file: &Path) -> anyhow::Result<Sample> {
    let hashed = source_file(file, FilePart::Data)?;
    Ok(Sample::File { file: hashed.file, blake3: hashed.blake3, examples: EXAMPLES })
}

/// The batches.
///
/// # Errors
/// A file that cannot be read, or is not the recorded one.
pub fn feeds(sample: &Sample, module: &Module, given: &Given) -> anyhow::Result<Feeds> {
    let (file, blake3, examples) = match sample {
        Sample::Drawn { seed } => {
            let labels = module.labels.map(|v| module.graph.value(v).name.as_str());
            let mut drawn = drawn::inputs(module, *seed)?;
            drawn.retain(|(name, _)| Some(name.as_str()) != labels);
            return Ok(vec![drawn]);
        }
        Sample::File { file, blake3, examples } => (file, blake3, *examples),
    };
    if source_file(file, FilePart::Data).context("the sample of the rewrite cannot be read")?.blake3 != *blake3 {
        bail!("the sample `{}` has changed since the model was rewritten", file.display());
    }
    let tokenizer = given.tokenizer.map(|path| Tokenizer::open(path, given.special)).transpose()?;
    let scratch = Scratch::new()?;
    let vocabulary = u32::try_from(module.anatomy.head.linear.outputs).unwrap_or(u32::MAX);
    let fixed = fixed(module);
    let reading = given.reading.within(&fixed);
    let corpus =
        Corpus::read(file, &reading, tokenizer.as_ref(), given.special, scratch.path(), vocabulary, &mut |_, _| ())?;
    let all: Vec<u32> = (0..corpus.len().min(examples) as u32).collect();
    let batches = all.chunks(fixed.batch.unwrap_or(BATCH).max(1));
    batches.map(|indices| Ok(feed(module, &Batch::new(&corpus, indices, given.special, &fixed)?))).collect()
}
/// The sizes that the options fix.
fn fixed(module: &Module) -> Fixed {
    let size = |dim: &lstc_graph::Dim| match dim {
        lstc_graph::Dim::Value(size) => usize::try_from(*size).ok(),
        _ => None,
    };
    let (first, last) = (&module.anatomy.towers[0], module.anatomy.last());
    Fixed { batch: size(&first.batch), source: size(&first.length), target: size(&last.length) }
}

fn feed(module: &Module, batch: &Batch) -> Vec<(String, Tensor)> {
    let graph = &module.graph;
    let last = module.anatomy.towers.len() - 1;
    let inputs = model_inputs(graph, &module.anatomy).into_iter();
    inputs
        .map(|input| {
            let value = graph.value(input.value);
            let dtype = value.dtype.unwrap_or(lstc_graph::DType::I64);
            (value.name.clone(), fill(batch, input.tower == last, input.role, dtype))
        })
        .collect()
}
