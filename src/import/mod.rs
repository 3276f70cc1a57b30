//! A side network that was trained elsewhere becomes a rewritten directory's initial one.
//!
//! Ensures: the written file holds every parameter of the manifest under its name, f32, finite, and nothing else; the
//! manifest says where it came from, so that `lstc verify` knows what side.safetensors must be. Neither is touched
//! if any parameter is missing.

mod made;
mod state_dict;
mod unused;

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use lstc_base::hash::sha256;
use lstc_base::report::{Hinted, word};
use lstc_graph::regular;
use lstc_tuned::output::{Inputs, Output};
use lstc_tuned::run::is_run;
use lstc_tuned::side::{self, Contents, Mapped, Seal};
use lstc_tuned::{MANIFEST, RUN, SIDE, intact, manifest};
use serde::{Deserialize, Serialize};

use state_dict::{Found, gather};
pub use unused::Unused;

/// What to import.
pub struct Request<'r> {
    /// A rewritten directory.
    pub directory: &'r Path,
    /// Safetensors, in the reference's state-dict names.
    pub side: &'r Path,
    /// Write this file, and leave the directory as it is.
    pub output: Option<&'r Path>,
    /// Import although the directory has a run; replace the output.
    pub force: bool,
}

/// Where a directory's side network came from: `side` of the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The file that it was read from, and its SHA-256.
    pub imported: PathBuf,
    pub sha256: String,
    /// SHA-256 of side.safetensors as it was written.
    pub written: String,
}

/// What was imported.
#[derive(Debug, Serialize)]
pub struct Imported {
    /// The file that was written.
    pub output: PathBuf,
    pub source: PathBuf,
    /// Whether the file's values could be checked.
    pub seal: Seal,
    /// How it differs from one that was made for the rewritten model, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other: Option<String>,
    /// The prefix of the names in the file.
    pub prefix: String,
    pub tensors: usize,
    pub elements: usize,
    /// Tensors that were not f32.
    pub converted: usize,
    /// Position tables that were in another block: the parameter, and the name in the file.
    pub moved: Vec<(String, String)>,
    /// What else the file holds, by group.
    pub unused: Vec<Unused>,
}

/// Imports a side network.
///
/// # Errors
/// A directory that is not a rewritten model, or has a run; a file that is not a safetensors file, or is damaged; every parameter that is
/// missing or misshapen, at once; anything from the file system.
pub fn import(request: &Request) -> anyhow::Result<Imported> {
    let Request { directory, side: source, output, force } = *request;
    let record = intact::record(directory)?;
    let own = directory.join(SIDE);
    let to = match output {
        Some(path) => Some(named(path, [directory, source], force)?),
        None => {
            check_run(directory, force)?;
            None
        }
    };
    let mapped = Mapped::open(source)?;
    let Contents { tensors, seal, metadata } =
        mapped.contents(source).map_err(|e| not_safetensors(source, &mapped, e))?;
    let Found { side, prefix, names, converted, moved } = gather(source, &tensors, &record.parameters)?;
    let unused = unused::by_group(&tensors, &prefix, &names);
    let elements = side.values().map(ndarray::ArrayD::len).sum();
    let origin = output.is_none().then(|| read_from(source)).transpose()?;
    let made_for = record.made_for();
    let other = made_for.difference(source, &metadata)?;
    match &to {
        Some(output) => output.write(|file| side::fill(file.path(), &side, &[made_for.entry()?]))?,
        None => side::save_with(&own, &side, &[made_for.entry()?])?,
    }
    if let Some(origin) = origin {
        note(directory, Origin { written: hash(&own)?, ..origin })?;
    }
    Ok(Imported {
        output: to.map_or(own, |output| output.path().to_owned()),
        source: source.to_owned(),
        seal,
        other,
        prefix,
        tensors: side.len(),
        elements,
        converted,
        moved,
        unused,
    })
}

/// A run began from the side network that was there; its figures would be ascribed to another.
fn check_run(directory: &Path, force: bool) -> anyhow::Result<()> {
    let run = directory.join(RUN);
    if force || !is_run(&run) {
        return Ok(());
    }
    let error = anyhow!("`{}` is a training run that began from another side network", run.display());
    let hint = format!("remove or rename `{}`, write elsewhere with -o FILE, or pass --force", run.display());
    Err(Hinted::new(error, hint).into())
}

/// The file named for the output.
fn named(path: &Path, [directory, source]: [&Path; 2], force: bool) -> anyhow::Result<Output> {
    if let (Ok(path), Ok(own)) = (path.canonicalize(), directory.join(SIDE).canonicalize())
        && path == own
    {
        bail!("`{}` is the directory's own side network: omit -o to replace it", path.display());
    }
    Output::new(path, &Inputs::of([directory, source]), force)
}

pub(crate) fn hash(path: &Path) -> anyhow::Result<String> {
    let context = || format!("cannot read `{}`", path.display());
    sha256(&mut regular::open(path).with_context(context)?).with_context(context)
}

/// The origin of a side network read from a file, before it is written.
fn read_from(source: &Path) -> anyhow::Result<Origin> {
    let absolute = std::path::absolute(source).with_context(|| format!("cannot read `{}`", source.display()))?;
    Ok(Origin { imported: absolute, sha256: hash(source)?, written: String::new() })
}

#[derive(Serialize)]
struct Section {
    side: Origin,
}

/// Puts the origin into the manifest, in place of an earlier one. The rest of the file stays as it is.
fn note(directory: &Path, side: Origin) -> anyhow::Result<()> {
    let path = directory.join(MANIFEST);
    let text = manifest::text(directory)?;
    let text = without_section(&text, "side") + &serde_yaml::to_string(&Section { side })?;
    lstc_base::files::replace(&path, |file| Ok(std::io::Write::write_all(file, text.as_bytes())?))
}

/// A YAML mapping in block style without one of its keys.
fn without_section(text: &str, key: &str) -> String {
    let mut inside = false;
    let mut kept = String::new();
    for line in text.lines() {
        if !line.starts_with([' ', '-', '#']) && !line.is_empty() {
            inside = line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':'));
        }
        if !inside {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// PyTorch's own files are pickles, which run code as they are read: lstc does not.
fn not_safetensors(path: &Path, mapped: &Mapped, error: anyhow::Error) -> anyhow::Error {
    if !is_pickle(mapped.bytes()) {
        return error;
    }
    let quoted = |path: &Path| word(&path.to_string_lossy());
    let converted = path.with_extension("safetensors");
    let hint = format!(
        "convert it with Python, where torch and safetensors are installed:\n  python -c \"{CONVERT}\" {} {}",
        quoted(path),
        quoted(&converted)
    );
    Hinted::new(anyhow!("`{}` is a PyTorch pickle, not a safetensors file", path.display()), hint).into()
}

/// A zip archive of a pickle and its tensors, or the bare pickle of PyTorch before 1.6. A safetensors file has a brace after
/// the first 8 bytes.
fn is_pickle(bytes: &[u8]) -> bool {
    const START: usize = 1024;
    const ENTRY: &[u8] = b"data.pkl";
    let start = &bytes[..bytes.len().min(START)];
    let is_archive = start.starts_with(b"PK\x03\x04") && start.windows(ENTRY.len()).any(|w| w == ENTRY);
    is_archive || (start.first() == Some(&0x80) && start.get(8) != Some(&b'{'))
}

/// Clones are of tensors that share memory, such as tied embeddings: safetensors refuses those.
const CONVERT: &str = "import sys, torch; from safetensors.torch import save_file; \
                       d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); d = d.get('state_dict', d); \
                       save_file({k: v.clone().contiguous() for k, v in d.items() if torch.is_tensor(v)}, sys.argv[2])";

#[cfg(test)]
mod tests {
    use super::without_section;

    #[test]
    fn a_section_is_taken_out_and_the_rest_stays() {
        let text = "a: 1\nside:\n  imported: x\n  list:\n  - 1\nsides: 2\n# a comment\nb:\n- 1\n";
        assert_eq!(without_section(text, "side"), "a: 1\nsides: 2\n# a comment\nb:\n- 1\n");
        assert_eq!(without_section("a: 1\n", "side"), "a: 1\n");
    }
}
