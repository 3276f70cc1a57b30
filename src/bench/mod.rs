//! The cost of training on this machine: seconds and memory of a step, with the backbone as it is and quantised.
//!
//! Each row is measured in a process of its own, which does nothing else: its peak is the row's. The batch is of random
//! tokens without padding; neither time nor memory depends on what they are.

mod row;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use lstc_base::interrupt;
use lstc_base::report::{self, Bytes};
use lstc_base::scratch::Scratch;
use lstc_graph::count;
use lstc_passes::Options;
use lstc_passes::options::Precision;
use lstc_runtime::Device;
use lstc_tuned::manifest;
use lstc_tuned::opened::Opened;
use lstc_tuned::options::CudaGraphs;
use lstc_tuned::run::Started;
use serde::{Deserialize, Serialize};

use crate::rewrite::{Request, SourceModel, rewrite};
pub use row::measure;

/// What a row measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The backbone alone, up to its last tap: its forward pass without the LM head
    Forward,
    /// A step of training
    Step,
    /// A step of training on cached taps: the side network alone
    Cached,
}

impl Part {
    pub const ALL: [Part; 3] = [Part::Forward, Part::Step, Part::Cached];
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Forward => "forward",
            Part::Step => "step",
            Part::Cached => "cached",
        })
    }
}

impl Part {
    fn words(self) -> &'static str {
        match self {
            Part::Forward => "the backbone alone",
            Part::Step => "a step of training",
            Part::Cached => "a step on cached taps",
        }
    }
}

/// How a row is measured.
#[derive(Clone, Debug)]
pub struct Settings {
    pub batch: usize,
    pub source_length: usize,
    pub target_length: usize,
    /// Measured runs; the warm-up runs before them do not count.
    pub runs: usize,
    pub threads: usize,
    pub device: Device,
    /// On CUDA.
    pub cuda_graphs: CudaGraphs,
}

/// What was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    pub backbone: Precision,
    pub part: Part,
    /// The median, and the fastest.
    pub seconds: f64,
    pub best: f64,
    /// Tokens of sources and targets.
    pub tokens_per_second: f64,
    /// The peak of resident memory, or of device memory, from the first run on.
    pub peak_memory: u64,
    /// On CUDA, whether all that was run was captured as CUDA graphs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captured: Option<bool>,
}

/// Rows, and what they measure.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    pub model: PathBuf,
    pub batch: usize,
    pub source_length: usize,
    pub target_length: usize,
    pub threads: usize,
    pub device: Device,
    pub rows: Vec<Row>,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Table { batch, source_length, target_length, threads, device, .. } = self;
        let sizes = format!("batch {batch}, {source_length} tokens in, {target_length} out");
        writeln!(f, "{}: {sizes}; {device}, {}", self.model.display(), count(*threads, "thread"))?;
        let rows = self.rows.iter().map(|row| {
            [
                row.backbone.to_string(),
                format!("{}{}", row.part.words(), if row.captured == Some(true) { ", captured" } else { "" }),
                seconds(row.seconds),
                seconds(row.best),
                format!("{:.0}", row.tokens_per_second),
                Bytes(row.peak_memory).to_string(),
            ]
        });
        write!(f, "{}", report::table(["backbone", "", "s, median", "s, best", "tokens/s", "peak memory"], rows))
    }
}

/// To a millisecond, or to ten microseconds for a small model.
fn seconds(of: f64) -> String {
    if of < 0.01 { format!("{of:.5}") } else { format!("{of:.3}") }
}

/// Measures a model, rewritten for each precision into a temporary folder, or a rewritten directory as it is.
///
/// # Errors
/// A model that cannot be rewritten; a row that could not be measured, with what its process says.
pub fn bench(
    model: &[PathBuf],
    precisions: &[Precision],
    parts: &[Part],
    settings: &Settings,
    mut progress: impl FnMut(&str),
) -> anyhow::Result<Table> {
    let scratch = Scratch::new()?;
    let mut rows = Vec::new();
    let mut settings = settings.clone();
    let directories: Vec<(PathBuf, Option<Precision>)> = match model {
        [one] if manifest::is_rewritten(one) => vec![(one.clone(), None)],
        _ => precisions.iter().map(|p| (scratch.path().join(p.to_string()), Some(*p))).collect(),
    };
    for (directory, precision) in directories {
        if let Some(precision) = precision {
            progress(&format!("rewriting, backbone {precision}"));
            let mut options = Options::default();
            options.method = options.method.by_shape();
            options.backbone.precision = precision;
            let model = SourceModel::find(model)?;
            rewrite(
                Request { model, options, training: Started::default(), output: &directory, force: false },
                |_, _| (),
            )?;
        }
        let fixed = Opened::new(&directory)?.fixed();
        settings.batch = fixed.batch.unwrap_or(settings.batch);
        settings.source_length = fixed.source.unwrap_or(settings.source_length);
        settings.target_length = fixed.target.unwrap_or(settings.target_length);
        for part in parts {
            progress(&format!("measuring {part}{}", precision.map_or_else(String::new, |p| format!(", backbone {p}"))));
            rows.push(apart(&directory, *part, &settings)?);
        }
    }
    let Settings { batch, source_length, target_length, threads, device, .. } = settings;
    let model = model.first().cloned().unwrap_or_default();
    Ok(Table { model, batch, source_length, target_length, threads, device, rows })
}

/// Measures a row in a process of its own.
fn apart(directory: &Path, part: Part, settings: &Settings) -> anyhow::Result<Row> {
    let number = |n: usize| n.to_string();
    let measuring = Command::new(std::env::current_exe()?)
        .arg("bench")
        .arg(directory)
        .args(["--row", &part.to_string(), "--device", &settings.device.to_string()])
        .args(["--batch", &number(settings.batch), "--source-length", &number(settings.source_length)])
        .args(["--target-length", &number(settings.target_length), "--runs", &number(settings.runs)])
        .args(["--threads", &number(settings.threads)])
        .args(["--cuda-graphs", &settings.cuda_graphs.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start the measuring process")?;
    let registered = interrupt::end_with(&measuring);
    let done = measuring.wait_with_output().context("cannot wait for the measuring process")?;
    drop(registered);
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        let said = match said.trim() {
            // For example when it is killed for lack of memory.
            "" => format!("its process ended with {}", done.status),
            said => said.trim_start_matches("error: ").to_owned(),
        };
        bail!("`{part}` could not be measured\n{said}");
    }
    serde_json::from_slice(&done.stdout).context("the measuring process returned no row")
}
