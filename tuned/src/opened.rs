//! A rewritten directory as training and evaluation see it: its graphs, and how a batch becomes their inputs.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use lstc_base::report::Hinted;
use lstc_data::{Batch, Fixed, Reading, Tokenizer};
use lstc_graph::{DType, DataFiles, Dim, Graph, encode, load, widen};
use lstc_models::{InputRole, TowerKind};
use lstc_passes::{Parts, for_cuda, parts};
use lstc_runtime::{Device, Runtime, Session, Tensor, Version};
use ndarray::Array2;

use crate::intact::{self, Watched};
use crate::manifest::{InputSummary, Record, TapSummary};
use crate::placement;
use crate::run::BEST;
use crate::side::{self, Loaded, Seal, Side};
use crate::{RUN, SIDE, TOKENIZER};

/// What sessions run on.
#[derive(Clone, Copy, Debug)]
pub struct Execution {
    pub runtime: &'static Runtime,
    pub device: Device,
    /// Per operator.
    pub threads: usize,
    /// Read weights from their mapped file: less memory, but slower.
    pub mapped: bool,
    /// Compute products on CUDA in TF32.
    pub tf32: bool,
    /// Capture what runs on CUDA as graphs, and replay these.
    pub captures: bool,
}

impl Execution {
    /// On the CPU, with kernels' own copies of the weights.
    pub fn cpu(runtime: &'static Runtime, threads: usize) -> Execution {
        Execution { runtime, device: Device::Cpu, threads, mapped: false, tf32: false, captures: false }
    }
}

/// The first ONNX Runtime that keeps what the nodes of a captured graph read from pinned memory.
const CAPTURES: Version = Version { major: 1, minor: 31, patch: 0 };

/// A rewritten directory.
pub struct Opened {
    pub directory: PathBuf,
    pub record: Record,
    watched: Watched,
    inputs: Vec<Input>,
}

/// An input of the model, and how it is filled.
struct Input {
    summary: InputSummary,
    dtype: DType,
    dims: [Dim; 2],
}

impl Opened {
    /// Reads the manifest, and what the graphs take.
    ///
    /// # Errors
    /// A directory that is not a rewritten model; an input of the model that no batch could fill.
    pub fn new(directory: &Path) -> anyhow::Result<Opened> {
        let (record, watched) = intact::watched(directory)?;
        let graph = graph(directory, "eval.onnx")?;
        let parameter = |name: &str| record.parameters.iter().any(|p| p.name == name);
        let mut inputs = Vec::new();
        for value in &graph.inputs {
            let name = &graph.value(*value).name;
            if parameter(name) || name == "labels" {
                continue;
            }
            let Some(summary) = record.inputs.iter().find(|i| i.name == *name) else {
                let error = anyhow!("the model has an input `{name}`, and lstc does not know what to give it");
                let hint =
                    "it may have been exported with one tensor for two inputs; `lstc inspect` shows which it reads";
                return Err(Hinted::new(error, hint).into());
            };
            let dtype = graph.value(*value).dtype.filter(|d| fills(*d));
            let dims = graph.shape(*value).and_then(|s| <[Dim; 2]>::try_from(s).ok());
            let (Some(dtype), Some(dims)) = (dtype, dims) else {
                bail!("the model's input `{name}` is not a [batch, length] tensor of a type that lstc fills");
            };
            inputs.push(Input { summary: summary.clone(), dtype, dims });
        }
        Ok(Opened { directory: directory.to_owned(), record, watched, inputs })
    }

    /// A graph of the directory.
    ///
    /// # Errors
    /// A file that is missing or damaged, or has changed.
    pub fn graph(&self, file: &str) -> anyhow::Result<Graph> {
        let graph = graph(&self.directory, file)?;
        self.check()?;
        Ok(graph)
    }

    /// Checks that the files are still those that were written: for what was computed from them.
    ///
    /// # Errors
    /// A file that has changed, or is missing.
    pub fn check(&self) -> anyhow::Result<()> {
        self.watched.check()
    }

    /// A graph of the directory in two, at the taps.
    ///
    /// # Errors
    /// As [`Opened::graph`]; a graph that is not as lstc writes it.
    pub fn parts(&self, file: &str) -> anyhow::Result<Parts> {
        let graph = self.graph(file)?;
        let find = |tap: &TapSummary| graph.find(&tap.value).ok_or_else(|| self.lacks(file, &tap.value));
        let taps = self.record.taps.iter().map(find).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(parts(&graph, &taps))
    }

    /// The backbone that makes the taps of a graph of the directory, and only taps: what a cache can replace.
    ///
    /// # Errors
    /// As [`Opened::parts`]; a model whose masks depend on its hidden states.
    pub fn tapped(&self, file: &str) -> anyhow::Result<Graph> {
        let Parts { backbone, entangled, .. } = self.parts(file)?;
        entangled.map_or(Ok(backbone), |reason| {
            let hint =
                "export the model without an optimiser, or train without a cache, which works for this one as it is";
            Err(Hinted::new(anyhow!("the taps of this model cannot be kept: {reason}"), hint).into())
        })
    }

    /// Elements of the side network.
    pub fn trainable(&self) -> usize {
        self.record.parameters.iter().map(|p| p.shape.iter().product::<usize>()).sum()
    }

    /// The error for a file that lacks a value that every rewrite has.
    pub fn lacks(&self, file: &str, value: &str) -> anyhow::Error {
        anyhow!("`{}` has no value `{value}`: rewrite the model again", self.directory.join(file).display())
    }

    /// A session over a graph of the directory, changed or not, beside its data.
    ///
    /// # Errors
    /// From ONNX Runtime; a node that a device leaves to the CPU, except for the arithmetic of sizes; a file that has changed.
    pub fn session(&self, graph: &Graph, execution: &Execution) -> anyhow::Result<Session> {
        let builder = execution.runtime.session().device(execution.device).threads(execution.threads);
        let graph = runnable(graph, execution.runtime, execution.device)?;
        let bytes = encode(&graph, &DataFiles::of(&graph, &self.directory));
        let builder = builder.deterministic(true).mapped(execution.mapped).tf32(execution.tf32);
        let session = builder.captures(execution.captures).load(&bytes, Some(&self.directory))?;
        placement::check(&graph, &session, execution.device)?;
        self.check()?;
        Ok(session)
    }

    /// As [`Opened::session`]; if a graph cannot be captured, a session that runs it normally, and why.
    ///
    /// # Errors
    /// As [`Opened::session`].
    pub fn captured(&self, graph: &Graph, execution: &Execution) -> anyhow::Result<(Session, Option<String>)> {
        let (found, plain) = (execution.runtime.library().version, Execution { captures: false, ..*execution });
        if execution.captures && found < CAPTURES {
            let reason =
                format!("ONNX Runtime {found} reuses memory that replays still read: {CAPTURES} or later is needed");
            return Ok((self.session(graph, &plain)?, Some(reason)));
        }
        match self.session(graph, execution) {
            Err(error) if execution.captures => {
                let Some(lstc_runtime::Error::Model { source, .. }) = error.downcast_ref() else { return Err(error) };
                let reason = source.message().to_owned();
                Ok((self.session(graph, &plain)?, Some(reason)))
            }
            session => Ok((session?, None)),
        }
    }

    /// The side network as the rewrite initialised it.
    ///
    /// # Errors
    /// A file that is missing or damaged, or that belongs to another rewrite or another program.
    pub fn initial(&self) -> anyhow::Result<Side> {
        let path = self.directory.join(SIDE);
        let Loaded { side, seal, .. } = self.load(&path)?;
        if seal == Seal::Foreign {
            let error = anyhow!("`{}` is not what lstc wrote there: it has no checksum", path.display());
            let hint =
                "`lstc import` makes a side network from elsewhere the initial one; `lstc rewrite` makes a new one";
            return Err(Hinted::new(error, hint).into());
        }
        Ok(side)
    }

    /// The side network in a file, and what to say about it; anything else in the file is ignored.
    ///
    /// # Errors
    /// A file that is missing or damaged; a parameter that it lacks, or has in another shape.
    pub fn side(&self, path: &Path) -> anyhow::Result<(Side, Vec<String>)> {
        let loaded = self.load(path)?;
        let notes = self.record.notes(path, &loaded)?;
        Ok((loaded.side, notes))
    }

    fn load(&self, path: &Path) -> anyhow::Result<Loaded> {
        side::load_parameters(path, self.record.parameters.iter().map(|p| (p.name.as_str(), p.shape.as_slice())))
    }

    /// The tokenizer: the one that is given, or else the directory's own, if it has one.
    ///
    /// # Errors
    /// A file that is not a tokenizer.
    pub fn tokenizer(&self, given: Option<&Path>) -> anyhow::Result<Option<Tokenizer>> {
        let own = self.directory.join(TOKENIZER);
        match given {
            Some(path) => Tokenizer::open(path, self.record.tokens).map(Some),
            None if fs::symlink_metadata(&own).is_ok() => Tokenizer::open(&own, self.record.tokens).map(Some),
            None => Ok(None),
        }
    }

    /// The sizes that the graphs fix.
    pub fn fixed(&self) -> Fixed {
        let last = self.last();
        let size = |input: Option<&Input>, axis: usize| match input.map(|i| &i.dims[axis]) {
            Some(Dim::Value(size)) => usize::try_from(*size).ok(),
            _ => None,
        };
        let of = |is_last: bool| self.inputs.iter().find(|i| (i.summary.tower == last) == is_last);
        Fixed { batch: size(self.inputs.first(), 0), source: size(of(false), 1), target: size(of(true), 1) }
    }

    /// Whether as many examples can be run at once as were asked for.
    ///
    /// # Errors
    /// A number other than the one that the model fixes.
    pub fn check_batch_size(&self, asked: Option<usize>) -> anyhow::Result<()> {
        match (asked, self.fixed().batch) {
            (Some(asked), Some(fixed)) if asked != fixed => {
                let error = anyhow!("the model's batch is fixed at {fixed}: --batch-size cannot be {asked}");
                let hint = "omit --batch-size, or rewrite a model whose batch is free, without --batch";
                Err(Hinted::new(error, hint).into())
            }
            _ => Ok(()),
        }
    }

    /// Whether the special tokens that a configuration gives are the model's.
    ///
    /// # Errors
    /// Tokens other than those that the model was rewritten with.
    pub fn check_tokens(&self, reading: &Reading) -> anyhow::Result<()> {
        let tokens = self.record.tokens;
        for (name, given, made) in [
            ("pad_token_id", reading.pad_token_id, tokens.pad),
            ("eos_token_id", reading.eos_token_id, tokens.end),
            ("decoder_start_token_id", reading.decoder_start_token_id, tokens.start),
        ] {
            if let Some(given) = given.filter(|given| *given != made) {
                let error = anyhow!("data.{name} is {given}, but the model was rewritten with {made}");
                let hint =
                    "special tokens are settled by a rewrite: put back what was there, or rewrite the model again";
                return Err(Hinted::new(error, hint).into());
            }
        }
        Ok(())
    }

    /// The tower whose tokens are the output.
    fn last(&self) -> TowerKind {
        self.record.inputs.iter().map(|i| i.tower).max().unwrap_or(TowerKind::Decoder)
    }

    /// Which attentions over a source read padding, in words; `None` if it is hidden from all.
    pub fn reads_padding(&self) -> Option<String> {
        let last = self.last();
        let mut masks = self.inputs.iter().filter(|i| i.summary.tower != last && i.summary.role == InputRole::Mask);
        match &self.record.reads_padding {
            Some(found) if found.is_empty() => None,
            Some(found) => {
                let readers: Vec<String> = found.iter().map(ToString::to_string).collect();
                let read = if readers.len() == 1 { "reads" } else { "read" };
                Some(format!("{} {read} padding", readers.join(" and ")))
            }
            None if masks.next().is_some() => None,
            None => Some("the model, which takes no mask for its source, reads padding".to_owned()),
        }
    }

    /// The names of the inputs that only the last tower reads.
    pub fn late(&self) -> Vec<&str> {
        let last = self.last();
        self.inputs.iter().filter(|i| i.summary.tower == last).map(|i| i.summary.name.as_str()).collect()
    }

    /// The model's inputs for a batch, without `labels`.
    pub fn feeds(&self, batch: &Batch) -> Vec<(&str, Tensor)> {
        let last = self.last();
        let fill = |input: &Input| fill(batch, input.summary.tower == last, input.summary.role, input.dtype);
        self.inputs.iter().map(|input| (input.summary.name.as_str(), fill(input))).collect()
    }
}

/// A graph in the form that a device has kernels for.
///
/// # Errors
/// A device that cannot be used.
pub fn runnable<'g>(graph: &'g Graph, runtime: &Runtime, device: Device) -> anyhow::Result<Cow<'g, Graph>> {
    let Device::Cuda(index) = device else { return Ok(on_cpu(graph)) };
    let has_bf16 = runtime.cuda(index)?.has_bf16()?;
    if !has_bf16 && has(graph, DType::BF16) {
        let error =
            anyhow!("{device} does not support bf16, which this model's backbone uses: it needs Ampere or later");
        return Err(Hinted::new(error, "rewrite the model with --backbone fp32, or with int4").into());
    }
    let mut restated = graph.clone();
    for_cuda(&mut restated, has_bf16);
    Ok(Cow::Owned(restated))
}

fn has(graph: &Graph, dtype: DType) -> bool {
    graph.value_ids().any(|v| graph.value(v).dtype == Some(dtype))
}

/// A graph in the form that the CPU has kernels for: none of them computes in bf16.
pub fn on_cpu(graph: &Graph) -> Cow<'_, Graph> {
    if !has(graph, DType::BF16) {
        return Cow::Borrowed(graph);
    }
    let mut wide = graph.clone();
    widen(&mut wide, DType::BF16);
    Cow::Owned(wide)
}

fn graph(directory: &Path, file: &str) -> anyhow::Result<Graph> {
    let context = || format!("`{}` is damaged; rewrite the model again", directory.display());
    load(&directory.join(file)).with_context(context)
}

/// The element types that an input may have.
fn fills(dtype: DType) -> bool {
    matches!(dtype, DType::I64 | DType::I32 | DType::F32 | DType::Bool)
}

/// What a batch gives an input: of the last tower's positions, or of another's.
pub fn fill(batch: &Batch, is_last: bool, role: InputRole, dtype: DType) -> Tensor {
    let (tokens, mask) = match is_last {
        true => (&batch.target_in, &batch.target_mask),
        false => (&batch.source, &batch.source_mask),
    };
    match role {
        InputRole::Tokens => cast(tokens, dtype),
        InputRole::Mask => cast(mask, dtype),
        InputRole::Padding => cast(&mask.mapv(|token| 1 - token), dtype),
    }
}

fn cast(array: &Array2<i64>, dtype: DType) -> Tensor {
    match dtype {
        DType::I32 => array.mapv(|v| v as i32).into(),
        DType::F32 => array.mapv(|v| v as f32).into(),
        DType::Bool => array.mapv(|v| v != 0).into(),
        _ => array.clone().into(),
    }
}

/// The file of a side network: the one that is given, or the best one in the folder that is given, or of the
/// directory's own run.
///
/// # Errors
/// None is given and the directory has no run; a folder without a side network.
pub fn side_file(directory: &Path, given: Option<&Path>) -> anyhow::Result<PathBuf> {
    match given {
        Some(path) if path.is_dir() => {
            let best = path.join(BEST);
            if !best.exists() {
                let error = anyhow!("`{}` is not the folder of a run: it does not hold {BEST}", path.display());
                let own = path.join(RUN);
                let hint = format!("its run is in `{}`", own.display());
                return Err(if own.join(BEST).exists() { Hinted::new(error, hint).into() } else { error });
            }
            Ok(best)
        }
        Some(path) => Ok(path.to_owned()),
        None => {
            let best = directory.join(RUN).join(BEST);
            if best.exists() {
                return Ok(best);
            }
            let initial = directory.join(SIDE);
            let hint = format!("train it first, or pass `--side {}` for the untrained one", initial.display());
            Err(Hinted::new(anyhow!("there is no trained side network at `{}`", best.display()), hint).into())
        }
    }
}
