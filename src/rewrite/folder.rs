//! Finding the model in a folder: by the names that tools give its files, else by what each file computes.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use lstc_base::report::{Hinted, word};
use lstc_graph::load;
use lstc_models::Likeness;
use lstc_tuned::manifest::is_rewritten;

use super::model::{Part, SourceModel, part};
use super::other_formats;

/// Optimum's names. A merged decoder serves if there is no plain one.
const ENCODER: &str = "encoder_model.onnx";
const DECODERS: [&str; 2] = ["decoder_model.onnx", "decoder_model_merged.onnx"];
const WHOLE: &str = "model.onnx";
/// The folder of a repository in which Optimum puts its exports.
const SUBFOLDER: &str = "onnx";
/// In the names of decoders that are merged with their step.
const MERGED: &str = "merged";

/// The model that a folder holds.
///
/// # Errors
/// A folder in which no model is found, or more than one.
pub fn model_in(folder: &Path) -> anyhow::Result<SourceModel> {
    if is_rewritten(folder) {
        let error = anyhow!("`{}` is a rewritten model", folder.display());
        return Err(Hinted::new(error, "`--from` rewrites such a directory's source again").into());
    }
    let has = |name: &str| folder.join(name).is_file();
    let both = DECODERS.iter().find(|d| has(d)).filter(|_| has(ENCODER));
    match (both, has(WHOLE)) {
        (Some(decoder), false) => return Ok(SourceModel::of(vec![folder.join(ENCODER), folder.join(decoder)])),
        (None, true) => return Ok(folder.join(WHOLE).into()),
        (Some(decoder), true) => {
            let error = anyhow!("`{}` holds {WHOLE}, and {ENCODER} with {decoder}", folder.display());
            let hint = format!("name the files: {}", named([folder.join(ENCODER), folder.join(decoder)]));
            return Err(Hinted::new(error, hint).into());
        }
        (None, false) => {}
    }
    let context = || format!("cannot read `{}`", folder.display());
    let mut models = Vec::new();
    for entry in fs::read_dir(folder).with_context(context)? {
        let path = entry.with_context(context)?.path();
        if path.extension().is_some_and(|e| e == "onnx") {
            models.push(path);
        }
    }
    models.sort();
    match &models[..] {
        [one] => Ok(one.into()),
        [] if folder.join(SUBFOLDER).is_dir() => model_in(&folder.join(SUBFOLDER)),
        [] => Err(other_formats::in_folder(folder)
            .unwrap_or_else(|| anyhow!("`{}` does not hold an ONNX model", folder.display()))),
        _ => by_structure(folder, models),
    }
}

/// A file in a folder, and what it is.
struct Candidate {
    path: PathBuf,
    /// None if it cannot be read.
    part: Option<Part>,
}

impl Candidate {
    fn new(path: PathBuf) -> Candidate {
        let part = load(&path).ok().map(|graph| part(&graph, &Likeness::of(&graph)));
        Candidate { path, part }
    }

    fn name(&self) -> String {
        self.path.file_name().unwrap_or(OsStr::new("")).to_string_lossy().into_owned()
    }

    fn what(&self) -> &'static str {
        match self.part {
            Some(Part::Encoder(_)) => "an encoder",
            Some(Part::Decoder(_)) => "a decoder",
            Some(Part::Step) => "a decoder's step that reads a cache",
            Some(Part::Whole) => "a whole model, or not a model",
            None => "cannot be read",
        }
    }
}

/// The model among several files: the one encoder with the one decoder, or the only file that is not part of a model.
fn by_structure(folder: &Path, models: Vec<PathBuf>) -> anyhow::Result<SourceModel> {
    let candidates: Vec<Candidate> = models.into_iter().map(Candidate::new).collect();
    let of = |is: fn(&Part) -> bool| candidates.iter().filter(move |c| c.part.as_ref().is_some_and(is));
    let encoders: Vec<&Candidate> = of(|p| matches!(p, Part::Encoder(_))).collect();
    let wholes: Vec<&Candidate> = of(|p| matches!(p, Part::Whole)).collect();
    let (merged, plain): (Vec<&Candidate>, Vec<&Candidate>) =
        of(|p| matches!(p, Part::Decoder(_))).partition(|c| c.name().contains(MERGED));
    let decoders = if plain.is_empty() { merged } else { plain };
    match (&encoders[..], &decoders[..], &wholes[..]) {
        ([encoder], [decoder], []) => return Ok(SourceModel::of(vec![encoder.path.clone(), decoder.path.clone()])),
        ([], [], [whole]) => return Ok((&whole.path).into()),
        _ => {}
    }
    let list: Vec<String> = candidates.iter().map(|c| format!("\n  {}: {}", c.name(), c.what())).collect();
    let error = anyhow!(
        "`{}` holds several files, and it is not clear which of them are the model{}",
        folder.display(),
        list.concat()
    );
    let pair = encoders.iter().find_map(|encoder| {
        let decoder = encoder.name().replace("encoder", "decoder");
        let decoder = decoders.iter().find(|d| d.name() == decoder)?;
        Some(named([encoder.path.clone(), decoder.path.clone()]))
    });
    let example = pair.or_else(|| wholes.first().map(|whole| named([whole.path.clone()])));
    let example = example.map_or_else(String::new, |files| format!(", as in {files}"));
    Err(Hinted::new(error, format!("name the file of the model, or its encoder's and its decoder's{example}")).into())
}

/// Files as they are written on a command line.
fn named<const COUNT: usize>(files: [PathBuf; COUNT]) -> String {
    format!("`{}`", files.map(|file| word(&file.to_string_lossy())).join(" "))
}
