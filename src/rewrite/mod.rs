//! From a model file to the directory of trainable graphs.

mod companions;
pub mod config;
pub(crate) mod directory;
pub mod manifest;
pub mod opened;
mod source;

use std::fs;
use std::path::Path;
use std::thread;

use anyhow::{Context, anyhow};
use lstc_graph::{Graph, Saved, encode, write_data};
use lstc_models::{Anatomy, recognise, unread_inputs};
use lstc_passes::{Artifacts, Module, Options, PassError, Timing, artifacts, ladder_side_tuning};

use crate::hash::sha256;
use crate::inspect::why;
use crate::side::{self, Side};
use crate::train::Started;
pub use companions::TOKENIZER;
use companions::{copy_tokenizer, special_tokens};
use manifest::{FilePart, Manifest, SourceFile};
pub use source::SourceModel;

/// The frozen weights' file.
pub const DATA: &str = "backbone.data";
/// The initial side network's file.
pub const SIDE: &str = "side.safetensors";
/// The folder of a training run, where no other is given.
pub const RUN: &str = "run";
/// The graphs' files.
pub const GRAPHS: [&str; 5] = ["train.onnx", "grad.onnx", "apply.onnx", "eval.onnx", "infer.onnx"];
/// The manifest's file.
pub const MANIFEST: &str = "lst.yaml";

/// What a rewrite is to make of what.
pub struct Request<'r> {
    pub model: SourceModel,
    pub options: Options,
    /// How the result is to be trained, where a command says nothing else.
    pub training: Started,
    pub output: &'r Path,
    /// Replace an earlier rewrite in the output's place.
    pub force: bool,
}

/// What was written.
pub struct Written {
    pub manifest: Manifest,
    pub timings: Vec<Timing>,
    pub data: Saved,
    /// Elements of the backbone's weights, each counted once.
    pub frozen: usize,
    /// What is odd about the model.
    pub warnings: Vec<String>,
}

/// A model that a pass, or its invariants, stopped.
#[derive(Debug, thiserror::Error)]
#[error("cannot rewrite `{model}`")]
pub struct Stopped {
    model: SourceModel,
    source: PassError,
}

/// Loads and recognises a model.
///
/// # Errors
/// What is wrong with the file, or everything that was not understood.
pub fn open(model: &SourceModel) -> anyhow::Result<(Graph, Anatomy)> {
    let mut graph = model.read()?;
    let anatomy = recognise(&mut graph).map_err(|refused| NotUnderstood { model: model.clone(), refused })?;
    Ok((graph, anatomy))
}

/// A model that was refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot rewrite `{model}`\n{refused}")]
pub struct NotUnderstood {
    pub model: SourceModel,
    pub refused: lstc_models::Refused,
}

impl NotUnderstood {
    /// What to do about it: which models lstc reads, where this is another one, and what shows more.
    pub fn hint(&self) -> Option<String> {
        let whole = self.refused.0.iter().any(|r| r.place == "the LM head" || r.place == "the model");
        let about = whole.then(|| {
            "lstc reads T5ForConditionalGeneration as PyTorch exports it: input_ids, attention_mask and \
             decoder_input_ids to logits"
                .to_owned()
        });
        let hints: Vec<String> = about.into_iter().chain(why::hint(&self.model, &self.refused)).collect();
        (!hints.is_empty()).then(|| hints.join("; "))
    }
}

/// Runs the passes over a model.
///
/// # Errors
/// As [`open`]; options that do not fit the model; a pass that fails.
pub fn compile(
    model: impl Into<SourceModel>,
    options: Options,
    stop_after: Option<&str>,
    after: impl FnMut(&'static str, &Module),
) -> anyhow::Result<(Module, Vec<Timing>)> {
    let model = model.into();
    let (graph, anatomy) = open(&model)?;
    run_passes(&model, graph, anatomy, options, stop_after, after)
}

fn run_passes(
    model: &SourceModel,
    graph: Graph,
    anatomy: Anatomy,
    options: Options,
    stop_after: Option<&str>,
    after: impl FnMut(&'static str, &Module),
) -> anyhow::Result<(Module, Vec<Timing>)> {
    let mut module = Module::new(graph, anatomy, options)
        .map_err(|problems| anyhow!("the options do not fit `{model}`\n  {}", problems.join("\n  ")))?;
    let timings = ladder_side_tuning()
        .run(&mut module, stop_after, after)
        .map_err(|source| Stopped { model: model.clone(), source })?;
    Ok((module, timings))
}

/// What is odd about the inputs of a model, in words.
pub fn odd_inputs(graph: &Graph, anatomy: &Anatomy) -> Vec<String> {
    let told = |value| {
        format!(
            "the model does not read what its input `{}` holds: if it was exported with one tensor for two inputs, export it \
             again with two",
            graph.value(value).name
        )
    };
    unread_inputs(graph, anatomy).into_iter().map(told).collect()
}

/// Rewrites a model: compiles it, and writes the directory under a temporary name that becomes the final one at the
/// end.
///
/// # Errors
/// As [`compile`]; an output that is there already; anything from the file system.
pub fn rewrite(request: Request, after: impl FnMut(&'static str, &Module)) -> anyhow::Result<Written> {
    let Request { model, options, training, output, force } = request;
    directory::check(model.files(), output, force)?;
    let (graph, anatomy) = open(&model)?;
    let warnings = odd_inputs(&graph, &anatomy);
    let (module, timings) = run_passes(&model, graph, anatomy, options, None, after)?;
    let artifacts = artifacts(&module);
    let folder = directory::begin(output)?;
    let (manifest, data) = write(&model, &module, &artifacts, training, folder.path())
        .with_context(|| format!("cannot write `{}`", output.display()))?;
    directory::publish(folder, model.files(), output, force)?;
    Ok(Written { manifest, timings, data, frozen: frozen_elements(&module), warnings })
}

/// Writes every file of a rewritten model into a folder.
fn write(
    model: &SourceModel,
    module: &Module,
    artifacts: &Artifacts,
    training: Started,
    folder: &Path,
) -> anyhow::Result<(Manifest, Saved)> {
    let files = artifacts.files();
    thread::scope(|scope| {
        // Hashing the source takes about as long as copying its weights: at once, on two cores.
        let hashing = scope.spawn(|| source_files(model, &module.graph));
        let graphs: Vec<&Graph> = files.iter().map(|(_, graph)| *graph).collect();
        let (data, saved) = write_data(&graphs, folder, DATA)?;
        for (name, graph) in files {
            fs::write(folder.join(name), encode(graph, &data)).with_context(|| name.to_owned())?;
        }
        let initial: Side =
            module.plan.parameters.iter().zip(&module.initial).map(|(p, a)| (p.name.clone(), a.clone())).collect();
        side::save(&folder.join(SIDE), &initial)?;
        copy_tokenizer(model.first(), folder)?;
        let tokens = special_tokens(model.first(), module.anatomy.family)?;
        let sources = hashing.join().map_err(|_| anyhow!("hashing the source failed"))??;
        let manifest = Manifest::new(module, artifacts, sources, tokens, training);
        fs::write(folder.join(MANIFEST), manifest.to_yaml()?)?;
        sync(folder, saved)?;
        Ok((manifest, saved))
    })
}

/// The model's files and the data files that its weights lie in, with their hashes.
fn source_files(model: &SourceModel, graph: &Graph) -> anyhow::Result<Vec<SourceFile>> {
    let mut paths = model.files().to_vec();
    let models = paths.len();
    for value in graph.value_ids() {
        if let Some(place) = graph.weight(value).and_then(|w| w.place())
            && !paths.contains(&place.file)
        {
            paths.push(place.file.to_path_buf());
        }
    }
    let part = |index: usize| if index < models { FilePart::Model } else { FilePart::Data };
    paths.iter().enumerate().map(|(index, path)| source_file(path, part(index))).collect()
}

/// The hash and size of a file.
pub fn source_file(path: &Path, part: FilePart) -> anyhow::Result<SourceFile> {
    let context = || format!("cannot read `{}`", path.display());
    let mut file = fs::File::open(path).with_context(context)?;
    let sha256 = sha256(&mut file).with_context(context)?;
    let bytes = file.metadata().with_context(context)?.len();
    // Not the file that a link leads to: external data lies beside the name.
    let path = std::path::absolute(path).with_context(context)?;
    Ok(SourceFile { file: path, part, sha256, bytes })
}

/// Makes sure that the files are on the disk before they get their final name. A linked data file is the source's.
fn sync(folder: &Path, saved: Saved) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if saved != Saved::Linked || !path.ends_with(DATA) {
            fs::File::open(path)?.sync_data()?;
        }
    }
    fs::File::open(folder)?.sync_all()?;
    Ok(())
}

/// Elements of the source's float weights. A tied head's transposed copy counts once with the table.
pub fn frozen_elements(module: &Module) -> usize {
    let (graph, head) = (&module.graph, &module.anatomy.head);
    let counted = |v: &lstc_graph::ValueId| {
        let copy =
            head.tied && head.linear.weight.value() == Some(*v) && module.anatomy.last().table.value() != Some(*v);
        !copy && !module.is_new(*v) && !module.is_folded(*v)
    };
    let weights = graph.value_ids().filter(counted).filter_map(|v| graph.weight(v));
    weights.filter(|w| w.dtype().is_float() && !w.dims().is_empty()).map(|w| w.elements()).sum()
}

/// Nodes by the pass that made them, in the order of the passes.
pub fn nodes_by_pass(graph: &Graph) -> Vec<(String, usize)> {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for id in graph.node_ids() {
        let pass = graph.node(id).origin.name();
        match counts.iter_mut().find(|(name, _)| name == pass) {
            Some((_, count)) => *count += 1,
            None => counts.push((pass.to_owned(), 1)),
        }
    }
    counts
}
