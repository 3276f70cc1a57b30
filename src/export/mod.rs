//! From a rewritten directory and a side network to one inference model.
//!
//! The model is infer.onnx with the parameters as initializers: its inputs are the source model's own, its output is
//! `logits`, and nothing of training is in it. The only other file it reads is its own data file, if any.
//!
//! **Invariant:** weights go from file to file; what is held in memory is the graph and the side network.
//!
//! **Invariant:** an output appears whole and checked, or not at all.

mod agreement;
mod parameters;
mod place;

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use lstc_base::files::parent;
use lstc_base::hash::sha256;
use lstc_base::report::Bytes;
use lstc_base::scratch::{self, Scratch};
use lstc_graph::{About, DataFiles, Encoding, copy_data, count, load, regular};
use lstc_runtime::Runtime;
use lstc_tuned::manifest::Record;
use lstc_tuned::opened::side_file;
use lstc_tuned::output::Inputs;
use lstc_tuned::side::{self, Loaded, Seal};
use lstc_tuned::{MANIFEST, intact};
use serde::Serialize;

pub use agreement::Agreement;
use place::Place;

/// The graph that is exported.
const INFER: &str = "infer.onnx";

/// Protobuf's limit is 2 GiB less one byte. Readers count what they unpack too, hence the margin.
const MAX_EMBEDDED: usize = (2 << 30) - (16 << 20);

/// Where the weights of an export go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weights {
    /// Into the model's own file, unless protobuf could not hold it.
    #[default]
    EmbeddedWhereTheyFit,
    /// Into a data file beside it.
    External,
}

impl Weights {
    /// True for a model that gets a data file, by its size in one file.
    pub fn are_external(self, embedded_size: usize) -> bool {
        self == Weights::External || embedded_size > MAX_EMBEDDED
    }
}

/// What to export, and where to.
pub struct Request<'r> {
    /// A rewritten directory.
    pub directory: &'r Path,
    /// A side network's file, or the folder of a run; `run` of the directory where none is named.
    pub side: Option<&'r Path>,
    /// The ONNX file to write.
    pub output: &'r Path,
    pub weights: Weights,
    /// Replace an earlier export in the output's place.
    pub force: bool,
    /// Checks the export against infer.onnx before it appears; none goes unchecked.
    pub runtime: Option<&'static Runtime>,
}

/// What was exported.
#[derive(Debug, Serialize)]
pub struct Exported {
    pub output: PathBuf,
    pub bytes: u64,
    /// The data file beside the output, if there is one.
    pub data: Option<DataSummary>,
    pub family: String,
    pub nodes: usize,
    pub source_blake3: String,
    pub side: SideSummary,
    /// How far the export's logits are from infer.onnx's; none if not checked.
    pub agreement: Option<Agreement>,
}

impl Exported {
    /// False if the export does not agree with infer.onnx: no part of it is left.
    pub fn is_written(&self) -> bool {
        self.agreement.is_none_or(|a| a.holds)
    }
}

#[derive(Debug, Serialize)]
pub struct DataSummary {
    pub file: PathBuf,
    pub bytes: u64,
}

#[derive(Debug, Serialize)]
pub struct SideSummary {
    pub file: PathBuf,
    /// Whether its values could be checked.
    pub seal: Seal,
    pub sha256: String,
    pub tensors: usize,
    pub elements: usize,
    /// What is odd about it, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// The hash of the source model, or of its files in the manifest's order.
fn source_blake3(record: &Record) -> String {
    record.source.iter().map(|s| s.blake3.as_str()).collect::<Vec<_>>().join(" ")
}

/// Exports: writes the model under a temporary name, checks it, and gives it its name.
///
/// # Errors
/// Not a rewritten directory; a side network that is missing or does not fit, with every tensor that does not fit;
/// an output that is there already; anything from the file system or from ONNX Runtime. An export that does not agree
/// with infer.onnx is not an error: [`Exported::agreement`] reports it, and nothing is left.
pub fn export(request: Request) -> anyhow::Result<Exported> {
    let Request { directory, output, force, .. } = request;
    let record = intact::record(directory)?;
    let side = side_file(directory, request.side)?;
    // The source's files too, though only the rewrite read them.
    let inputs = Inputs::of(record.source.iter().map(|s| s.file.as_path()).chain([directory, &side]));
    let place = Place::new(output, inputs, force)?;
    place.check_model()?;

    let mut graph = load(&directory.join(INFER))?;
    let loaded = side::load_parameters(&side, record.shapes())?;
    let notes = record.notes(&side, &loaded)?;
    let Loaded { side: loaded, seal, .. } = loaded;
    let values = parameters::weights(&loaded);
    let side_sha256 = sha256(&mut regular::open(&side)?)?;
    let elements = values.iter().map(|(_, weight)| weight.elements()).sum();
    parameters::bind(&mut graph, &values)
        .with_context(|| format!("`{}` does not fit its {MANIFEST}", directory.join(INFER).display()))?;
    // Which pass made a node matters only in training graphs.
    graph.assign(&lstc_graph::Origin::SOURCE);

    let about = about(&record, &side_sha256);
    let embedded = Encoding::new(&graph, &DataFiles::default(), &about);
    let external = request.weights.are_external(embedded.size());
    if external {
        place.check_data()?;
    }
    let cannot = || format!("cannot write `{}`", output.display());
    let _parents = scratch::make(parent(output)).with_context(cannot)?;
    let folder = Scratch::new_in(parent(output)).with_context(cannot)?;
    let written = folder.path().join(place.model_name());
    let (infer, trained) = (fs::metadata(directory.join(INFER))?, fs::metadata(&side)?);
    let mode = infer.permissions().mode() & trained.permissions().mode();
    let (bytes, data_bytes) = if external {
        let (data, data_bytes) = copy_data(&[&graph], folder.path(), place.data_name()).with_context(cannot)?;
        let model = Encoding::new(&graph, &data, &about);
        (write(&model, &written, mode).with_context(cannot)?, Some(data_bytes))
    } else {
        (write(&embedded, &written, mode).with_context(cannot)?, None)
    };

    let check = |runtime| agreement::measure(runtime, &directory.join(INFER), &written, &graph, &values);
    let agreement = request.runtime.map(check).transpose().context("the export cannot be checked")?;
    let exported = Exported {
        output: output.to_owned(),
        bytes,
        data: data_bytes.map(|bytes| DataSummary { file: place.data().to_owned(), bytes }),
        family: record.model.family.clone(),
        nodes: graph.node_ids().count(),
        source_blake3: source_blake3(&record),
        side: SideSummary { file: side, seal, sha256: side_sha256, tensors: values.len(), elements, notes },
        agreement,
    };
    if exported.is_written() {
        place.publish(folder, external).with_context(cannot)?;
    }
    Ok(exported)
}

fn about(record: &Record, side_sha256: &str) -> About {
    let family = &record.model.family;
    let source = record.source.first().and_then(|s| s.file.file_name()).unwrap_or_default().to_string_lossy();
    let entry = |key: &str, value: &str| (format!("lstc.{key}"), value.to_owned());
    About {
        doc: format!("{family} `{source}` with a ladder side network, by lstc {}", env!("CARGO_PKG_VERSION")),
        metadata: vec![
            entry("family", family),
            entry("source.blake3", &source_blake3(record)),
            entry("side.sha256", side_sha256),
        ],
    }
}

/// Writes a model and syncs it, with at most these permissions; returns its size.
fn write(model: &Encoding, path: &Path, mode: u32) -> anyhow::Result<u64> {
    let mut file = File::options().write(true).create_new(true).mode(mode & 0o666).open(path)?;
    model.write(&mut file)?;
    file.flush()?;
    file.sync_data()?;
    Ok(model.size() as u64)
}

impl fmt::Display for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = &self.side;
        let written = if self.is_written() { "" } else { " (not written)" };
        let (output, family, bytes) = (self.output.display(), &self.family, Bytes(self.bytes));
        writeln!(f, "{output}{written}: {family}, {}, {bytes}", count(self.nodes, "node"))?;
        if let Some(data) = &self.data {
            writeln!(f, "  weights in `{}`, {}", data.file.display(), Bytes(data.bytes))?;
        }
        let file = side.file.display();
        let (elements, tensors) = (count(side.elements, "parameter"), count(side.tensors, "tensor"));
        writeln!(f, "  side network `{file}`, {elements} in {tensors}")?;
        if let Some(agreement) = &self.agreement {
            writeln!(f, "  logits against {INFER}'s: {agreement}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_goes_to_two_files_when_protobuf_could_not_hold_it() {
        let fits = |size| !Weights::EmbeddedWhereTheyFit.are_external(size);
        assert!(fits(1_900_000_000) && fits(MAX_EMBEDDED) && !fits(MAX_EMBEDDED + 1) && !fits(1 << 31));
        assert!(Weights::External.are_external(1));
    }
}
