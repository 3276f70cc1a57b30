//! Proof that a rewritten directory is right, by measurement and by inspection of what is on disk.
//!
//! * the source is the one that was rewritten, and every file is what the compiler makes of it with the manifest's
//!   options: the five graphs node for node, the frozen weights byte for byte, the initial side network;
//! * the four invariants hold in every graph;
//! * each block, emitted from the anatomy at full width with the backbone's own weights, is the backbone's own map from
//!   tap to tap, so the anatomy that the side network was built from is right;
//! * the matrix that the side network's LM head reads is the one that the source's head reads, element for element;
//! * ONNX Runtime, given the source's own files, computes the same as with the graph that lstc read from them;
//! * what fixed sizes turned into constants is what the source computes at those sizes;
//! * the taps are finite in the graph that training runs;
//! * the backbone inside the rewritten graphs gives the source's values, bit for bit with graph optimisation off; one in
//!   another precision gives, so far as that is in what is computed from its products, what the compiler's own does, each
//!   matrix is within half a step of its source's, and every tap is as far from the source's as the manifest says;
//! * gradients agree with finite differences, for each group of parameters.

mod backbone;
mod blocks;
mod files;
mod folded;
mod gradients;
mod head;
mod invariants;
mod precision;
mod quantised;
pub(crate) mod source;
mod taps;
mod wide;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use lstc_base::report;
use lstc_graph::Graph;
use lstc_passes::Module;
use lstc_runtime::{Runtime, Session};
use lstc_tuned::manifest;
use lstc_tuned::opened::on_cpu;
use serde::Serialize;

use crate::rewrite::{SourceModel, compile, source_file};

/// One thing that was checked.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub name: String,
    /// What was measured, in words if the check is not a measurement.
    pub measured: String,
    /// What it must be.
    pub bound: String,
    pub holds: bool,
}

impl Check {
    /// An error that must not exceed a bound. NaN exceeds every bound.
    fn at_most(name: impl Into<String>, error: f64, bound: f64) -> Check {
        Check {
            name: name.into(),
            measured: format!("{error:.1e}"),
            bound: format!("{bound:.0e}"),
            holds: error <= bound,
        }
    }

    /// Something that holds, or the breaches.
    fn holds(name: impl Into<String>, good: impl Into<String>, breaches: &[String]) -> Check {
        const MAX_LISTED: usize = 5;
        let more = breaches.len().saturating_sub(MAX_LISTED);
        let mut listed = breaches[..breaches.len() - more].join("\n");
        if more > 0 {
            listed += &format!("\nand {more} more");
        }
        let holds = breaches.is_empty();
        Check { name: name.into(), measured: if holds { good.into() } else { listed }, bound: String::new(), holds }
    }
}

/// The outcome of a verification.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    pub directory: PathBuf,
    pub holds: bool,
    pub checks: Vec<Check>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.checks.iter().map(|c| {
            let verdict = if c.holds { "ok" } else { "FAILED" };
            [c.name.clone(), c.measured.clone(), c.bound.clone(), verdict.to_owned()]
        });
        writeln!(f, "{}", report::table(["check", "measured", "at most", ""], rows))?;
        let failed = self.checks.iter().filter(|c| !c.holds).count();
        match failed {
            0 => writeln!(f, "{}: all {} checks hold", self.directory.display(), self.checks.len()),
            _ => writeln!(f, "{}: {failed} of {} checks failed", self.directory.display(), self.checks.len()),
        }
    }
}

/// A rewritten directory, and its source compiled again.
struct Subject<'s> {
    directory: &'s Path,
    module: Module,
    runtime: &'static Runtime,
    seed: u64,
}

/// Verifies a rewritten directory. `progress` is given what is being checked.
///
/// # Errors
/// Not a rewritten directory, a missing source, a graph that does not run. A failed check is not an error.
pub fn verify(
    directory: &Path,
    runtime: &'static Runtime,
    seed: u64,
    mut progress: impl FnMut(&str),
) -> anyhow::Result<Verdict> {
    let config = manifest::read(directory)?;
    let source = SourceModel::recorded(&config.source)?;
    progress("hashing the source");
    let mut checks = vec![source_check(&config.source)?];
    if !checks[0].holds {
        // Everything else is measured against the source.
        return Ok(Verdict { directory: directory.to_owned(), holds: false, checks });
    }
    let (module, _) = compile(source, config.options(), None, |_, _| ())?;
    let unchanged = files::unchanged(directory)?;
    match prove(directory, module, config.written_by(), runtime, seed, progress) {
        Ok(proved) => checks.extend(proved),
        // If something cannot be read or run, the changed file is why.
        Err(_) if !unchanged.holds => {}
        Err(error) => return Err(error),
    }
    checks.push(unchanged);
    Ok(Verdict { directory: directory.to_owned(), holds: checks.iter().all(|c| c.holds), checks })
}

/// The checks of a directory against its source, compiled again. `written_by` is the version of lstc that the
/// manifest names.
///
/// # Errors
/// A graph that cannot be read, or does not run.
pub fn prove(
    directory: &Path,
    module: Module,
    written_by: Option<&str>,
    runtime: &'static Runtime,
    seed: u64,
    mut progress: impl FnMut(&str),
) -> anyhow::Result<Vec<Check>> {
    let mut checks = Vec::new();
    let subject = Subject { directory, module, runtime, seed };
    progress("files");
    checks.extend(files::check(&subject, written_by)?);
    progress("invariants");
    checks.extend(invariants::check(&subject)?);
    progress("blocks against the backbone");
    checks.extend(blocks::check(&subject)?);
    progress("the source's files");
    checks.push(source::check(&subject)?);
    progress("backbone against the source");
    checks.extend(backbone::check(&subject)?);
    progress("taps as training reads them");
    checks.push(taps::check(&subject)?);
    if subject.module.folded.is_some() {
        progress("folded values against the source");
        checks.extend(folded::check(&subject)?);
    }
    progress("the LM head against the source's");
    checks.push(head::check(&subject)?);
    if subject.module.quantised.is_some() {
        progress("quantised matrices against the source");
        checks.extend(quantised::check(&subject)?);
    }
    progress("gradients against finite differences");
    checks.extend(gradients::check(&subject)?);
    Ok(checks)
}

fn source_check(files: &[manifest::SourceFile]) -> anyhow::Result<Check> {
    let mut changed = Vec::new();
    for file in files {
        let now = source_file(&file.file, file.part).context("the source of the rewrite cannot be read")?;
        if now.blake3 != file.blake3 {
            changed.push(format!("`{}` has changed since it was rewritten", file.file.display()));
        }
    }
    Ok(Check::holds("the source is the one that was rewritten", "BLAKE3 equal", &changed))
}

impl Subject<'_> {
    /// A graph of the directory.
    fn load(&self, file: &str) -> anyhow::Result<Graph> {
        Ok(lstc_graph::load(&self.directory.join(file))?)
    }

    /// A session over a changed graph of the directory, beside its own data files.
    fn session(&self, graph: &Graph, optimisation: lstc_runtime::Optimisation) -> anyhow::Result<Session> {
        let graph = on_cpu(graph);
        let bytes = lstc_graph::encode(&graph, &lstc_graph::DataFiles::of(&graph, self.directory));
        Ok(self.runtime.session().optimisation(optimisation).load(&bytes, Some(self.directory))?)
    }
}
