//! The model that is rewritten: one file, or an encoder and a decoder in files of their own, as Hugging Face Optimum
//! writes them.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use lstc_base::report::Hinted;
use lstc_graph::{DType, Dim, Graph, ValueId, join, load, widen};
use lstc_models::{Likeness, Place, Refusal, Refused, Use};
use lstc_tuned::manifest::{FilePart, SourceFile};

use super::NotUnderstood;
use super::folder::model_in;
use super::other_formats;

/// The files of a model, as they are found; none is read yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceModel(Vec<PathBuf>);

impl<P: AsRef<Path>> From<P> for SourceModel {
    /// A model in one file.
    fn from(file: P) -> SourceModel {
        SourceModel(vec![file.as_ref().to_owned()])
    }
}

impl fmt::Display for SourceModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(|p| p.display().to_string()).collect();
        f.write_str(&names.join(" + "))
    }
}

impl SourceModel {
    /// The files of a model that is given as a file, several files, or a folder.
    ///
    /// # Errors
    /// A folder in which no model is found, or more than one; a file of another format.
    pub fn find(paths: &[PathBuf]) -> anyhow::Result<SourceModel> {
        match paths {
            [] => bail!("no model is given"),
            [folder] if folder.is_dir() => model_in(folder),
            files => {
                files.iter().try_for_each(|file| other_formats::check(file))?;
                Ok(SourceModel(files.to_vec()))
            }
        }
    }

    /// The model that a manifest's list of files makes up.
    ///
    /// # Errors
    /// A list without a model.
    pub fn recorded(files: &[SourceFile]) -> anyhow::Result<SourceModel> {
        let graphs: Vec<PathBuf> = files.iter().filter(|f| f.part == FilePart::Model).map(|f| f.file.clone()).collect();
        SourceModel::find(&graphs).context("the manifest does not name a source")
    }

    /// A model in these files, the encoder's first.
    pub(super) fn of(files: Vec<PathBuf>) -> SourceModel {
        SourceModel(files)
    }

    /// The model's files, the encoder's first.
    pub fn files(&self) -> &[PathBuf] {
        &self.0
    }

    /// The file beside which the tokenizer and the configuration are.
    pub fn first(&self) -> &Path {
        &self.0[0]
    }

    /// Reads the model as one graph. One in bf16 computes in f32: the CPU has no kernels for bf16.
    ///
    /// # Errors
    /// What is wrong with a file; files that are not an encoder and a decoder of one model.
    pub fn read(&self) -> anyhow::Result<Graph> {
        let mut graph = match &self.0[..] {
            [file] => load(file)?,
            files => joined(files)?,
        };
        widen(&mut graph, DType::BF16);
        Ok(graph)
    }
}

fn alone(file: &Path, what: &str) -> anyhow::Error {
    let error = anyhow!("`{}` is only {what}", file.display());
    Hinted::new(error, "pass the encoder's and the decoder's file, or the folder that holds both").into()
}

/// What a file of a model computes.
pub(super) enum Part {
    /// From tokens to hidden states: this output.
    Encoder(ValueId),
    /// From tokens and hidden states, this input, to logits.
    Decoder(ValueId),
    /// A decoder that reads a cache of keys and values.
    Step,
    Whole,
}

pub(super) fn part(graph: &Graph, likeness: &Likeness) -> Part {
    let of_rank = |values: &[ValueId], rank: usize| {
        let fits = |v: &&ValueId| {
            graph.value(**v).dtype.is_some_and(DType::is_float) && graph.shape(**v).is_some_and(|s| s.len() == rank)
        };
        values.iter().filter(fits).copied().collect::<Vec<_>>()
    };
    // If fused operators hide the attention, an encoder's output looks like other features, and a cache like nothing known.
    let given = |rank: usize, parts: [Use; 2]| {
        let used = |v: &ValueId| graph.inputs.iter().position(|i| i == v).and_then(|i| Some(likeness.inputs.get(i)?.1));
        let mut inputs = of_rank(&graph.inputs, rank);
        inputs.retain(|v| used(v).is_none_or(|used| used == Use::Unknown || parts.contains(&used)));
        inputs
    };
    let (hidden, caches) = (given(3, [Use::Context, Use::Features]), given(4, [Use::Cache, Use::Cache]));
    match (&hidden[..], &of_rank(&graph.outputs, 3)[..]) {
        _ if !caches.is_empty() => Part::Step,
        ([hidden], _) => Part::Decoder(*hidden),
        ([], [output]) if graph.outputs.len() == 1 && tokens(graph).len() == 1 => Part::Encoder(*output),
        _ => Part::Whole,
    }
}

/// The inputs whose elements are looked up in a table.
fn tokens(graph: &Graph) -> Vec<ValueId> {
    let uses = graph.uses();
    let looked_up = |input: &&ValueId| {
        let mut open = vec![**input];
        let mut seen = 0;
        while let Some(value) = open.pop() {
            seen += 1;
            for (id, slot) in uses.of(value).iter().filter(|_| seen < 64) {
                let node = graph.node(*id);
                let table = |v: ValueId| graph.weight(v).is_some_and(|w| w.dims().len() == 2);
                if node.is("Gather") && *slot == 1 && node.input(0).is_some_and(table) {
                    return true;
                }
                if ["Cast", "Identity", "Reshape"].iter().any(|op| node.is(op)) && *slot == 0 {
                    open.extend(node.output(0));
                }
            }
        }
        false
    };
    graph.inputs.iter().filter(looked_up).copied().collect()
}

/// An encoder and a decoder as one graph. If there are more files, a decoder's step that reads a cache is not needed.
fn joined(files: &[PathBuf]) -> anyhow::Result<Graph> {
    let (mut encoder, mut decoder) = (None, None);
    for file in files {
        let graph = load(file)?;
        let likeness = Likeness::of(&graph);
        let twice = |what: &str| anyhow!("`{}` is a second {what}", file.display());
        match part(&graph, &likeness) {
            Part::Encoder(output) if encoder.is_none() => encoder = Some((file, graph, output)),
            Part::Decoder(hidden) if decoder.is_none() => decoder = Some((file, graph, hidden)),
            Part::Encoder(_) => return Err(twice("encoder")),
            Part::Decoder(_) => return Err(twice("decoder")),
            Part::Step => {}
            Part::Whole => {
                let reason =
                    format!("`{}` is neither an encoder of tokens nor a decoder that reads one", file.display());
                let refused = Refused { likeness, refusals: vec![Refusal::whole(Place::Model, reason)] };
                return Err(NotUnderstood { model: SourceModel(files.to_vec()), refused }.into());
            }
        }
    }
    let missing = |what: &str| match files {
        [file, ..] => alone(file, what),
        [] => anyhow!("no model is given"),
    };
    let (encoder_file, encoder, output) = encoder.ok_or_else(|| missing("a decoder"))?;
    let (decoder_file, mut decoder, hidden) = decoder.ok_or_else(|| missing("an encoder"))?;
    let mut wires = vec![(hidden, output)];
    wires.extend(shared_mask(&encoder, &decoder, hidden));
    name_inputs(&encoder, &mut decoder, &wires).map_err(anyhow::Error::msg)?;
    let both = || {
        format!(
            "`{}` and `{}` are not an encoder and decoder of one model",
            encoder_file.display(),
            decoder_file.display()
        )
    };
    join(encoder, &decoder, &wires).map_err(anyhow::Error::msg).with_context(both)
}

/// The decoder's input that masks the encoder's positions, and the encoder's own mask.
fn shared_mask(encoder: &Graph, decoder: &Graph, hidden: ValueId) -> Option<(ValueId, ValueId)> {
    let length = decoder.shape(hidden)?.get(1)?.clone();
    let is_mask =
        |graph: &Graph, v: &ValueId| !tokens(graph).contains(v) && graph.shape(*v).is_some_and(|s| s.len() == 2);
    // If the decoder's tokens have that length too, it does not distinguish their masks from the encoder's.
    let distinct = !tokens(decoder).into_iter().any(|v| decoder.shape(v).is_some_and(|s| s.get(1) == Some(&length)));
    let over_hidden = |v: &ValueId| {
        let named = decoder.value(*v).name == "encoder_attention_mask";
        let same = distinct && decoder.shape(*v).is_some_and(|s| matches!(s[1], Dim::Var(_)) && s[1] == length);
        is_mask(decoder, v) && (named || same)
    };
    let theirs: Vec<ValueId> = decoder.inputs.iter().copied().filter(over_hidden).collect();
    let ours: Vec<ValueId> = encoder.inputs.iter().copied().filter(|v| is_mask(encoder, v)).collect();
    match (&theirs[..], &ours[..]) {
        ([theirs], [ours]) => Some((*theirs, *ours)),
        _ => None,
    }
}

/// Inputs of the decoder whose names the encoder also has get the prefix `decoder_`.
fn name_inputs(encoder: &Graph, decoder: &mut Graph, wires: &[(ValueId, ValueId)]) -> Result<(), String> {
    for input in decoder.inputs.clone() {
        let name = decoder.value(input).name.clone();
        if wires.iter().any(|(wired, _)| *wired == input) || encoder.find(&name).is_none() {
            continue;
        }
        decoder.rename(input, &format!("decoder_{name}"))?;
    }
    Ok(())
}
