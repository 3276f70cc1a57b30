//! The quantised backbone against the source's own, at every tap and at the logits.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use lstc_base::report::Hinted;
use lstc_graph::{DataFiles, Graph, ValueId, data_to_run, encode};
use lstc_passes::Module;
use lstc_runtime::{Optimisation, Runtime, Session, Tensor};
use lstc_tuned::opened::on_cpu;
use lstc_tuned::quantised::{Measured, TapError};
use tempfile::TempDir;

use super::sample::Feeds;
use crate::probe::{give, run};

/// Squares of differences and of the values that they are differences from.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Squares {
    apart: f64,
    whole: f64,
}

impl Squares {
    pub(super) fn add(&mut self, found: &Tensor, wanted: &Tensor) {
        let (Ok(x), Ok(y)) = (found.as_f32(), wanted.as_f32()) else {
            self.apart = f64::INFINITY;
            return;
        };
        if x.shape() != y.shape() {
            self.apart = f64::INFINITY;
            return;
        }
        for (x, y) in x.iter().zip(y) {
            self.apart += (f64::from(*x) - f64::from(*y)).powi(2);
            self.whole += f64::from(*y).powi(2);
        }
    }

    /// Infinite if a value is not a number.
    pub(super) fn relative(self) -> f64 {
        let error = (self.apart / self.whole.max(f64::MIN_POSITIVE)).sqrt();
        if error.is_nan() { f64::INFINITY } else { error }
    }
}

/// Graphs that can run: their weights lie in a folder.
pub(super) struct Bench {
    runtime: &'static Runtime,
    data: DataFiles,
    folder: PathBuf,
    /// What had to be written.
    _written: TempDir,
}

impl Bench {
    /// Makes sure that the weights of graphs lie in a folder; those that do not are written to one in `scratch`.
    pub(super) fn new(runtime: &'static Runtime, scratch: &Path, graphs: &[&Graph]) -> anyhow::Result<Bench> {
        let written = tempfile::tempdir_in(scratch)?;
        let (data, folder) = data_to_run(graphs, written.path())?;
        Ok(Bench { runtime, data, folder, _written: written })
    }

    /// A session over a graph. The source's own weights are read from their mapped file; a quantised graph runs as it
    /// does in training.
    pub(super) fn session(&self, graph: &Graph, is_source: bool) -> anyhow::Result<Session> {
        let graph = on_cpu(graph);
        let optimisation = if is_source { Optimisation::Off } else { Optimisation::All };
        let session = self.runtime.session().optimisation(optimisation).deterministic(true).mapped(is_source);
        Ok(session.load(&encode(&graph, &self.data), Some(&self.folder))?)
    }
}

/// The values at which the precisions are compared: every block's output, the final one if it is a tap, and the logits.
fn compared(module: &Module) -> Vec<ValueId> {
    let blocks = module.anatomy.towers.iter().flat_map(|t| t.blocks.iter().map(|b| b.output));
    blocks.chain(final_output(module)).chain([module.anatomy.head.logits]).collect()
}

/// The backbone's final output, if it is a tap.
pub(super) fn final_output(module: &Module) -> Option<ValueId> {
    module.options.method.merge_last.then(|| module.anatomy.last().output)
}

/// Measures a module whose backbone is quantised, in a folder for its weights.
///
/// # Errors
/// A graph that does not run, or gives a value that is not a number; from the file system.
pub fn measure(runtime: &'static Runtime, module: &Module, feeds: &Feeds, scratch: &Path) -> anyhow::Result<Measured> {
    let values = compared(module);
    let ready = |graph: &Graph| {
        let mut graph = graph.clone();
        let names = give(&mut graph, &values);
        (graph.slice(&graph.outputs), names)
    };
    let ((source, names), (quantised, found_names)) = (ready(module.source()), ready(&module.graph));
    let mut squares = vec![Squares::default(); values.len()];
    let (mut changed, mut positions) = (0_usize, 0_usize);
    let mut wanted = Vec::new();
    {
        let mut session = Bench::new(runtime, scratch, &[&source])?.session(&source, true)?;
        for feed in feeds {
            wanted.push(run(&mut session, feed, &names)?);
        }
    }
    // A graph in which nothing has changed runs as the source's.
    let is_source = module.quantised.as_ref().is_some_and(|q| q.remade().next().is_none());
    let mut session = Bench::new(runtime, scratch, &[&quantised])?.session(&quantised, is_source)?;
    for (feed, wanted) in feeds.iter().zip(&wanted) {
        let found = run(&mut session, feed, &found_names)?;
        for (squares, (found, wanted)) in squares.iter_mut().zip(found.iter().zip(wanted)) {
            squares.add(found, wanted);
        }
        if let (Some(found), Some(wanted)) = (found.last(), wanted.last()) {
            let (found, wanted) = (likeliest(found), likeliest(wanted));
            changed += found.iter().zip(&wanted).filter(|(a, b)| a != b).count();
            positions += wanted.len();
        }
    }
    check_finite(module, &squares)?;
    let mut errors = squares.iter().map(|s| s.relative());
    let towers = module.anatomy.towers.iter();
    let places = towers.flat_map(|t| (0..t.blocks.len()).map(|block| (t.kind, block)));
    let taps = places.zip(errors.by_ref()).map(|((tower, block), error)| TapError { tower, block, error }).collect();
    Ok(Measured {
        taps,
        output: final_output(module).and_then(|_| errors.next()),
        logits: squares.last().map_or(0.0, |s| s.relative()),
        argmax_changed: changed as f64 / positions.max(1) as f64,
    })
}

/// Makes sure that every value is a number, in the source and quantised.
fn check_finite(module: &Module, squares: &[Squares]) -> anyhow::Result<()> {
    let Some(at) = squares.iter().position(|s| s.relative().is_infinite()) else { return Ok(()) };
    if !squares[at].whole.is_finite() {
        return Err(no_number(module, at));
    }
    let (place, backbone) = (place(module, at), &module.options.backbone);
    let error = anyhow!("in {} the backbone gives a value that is not a number at {place}", backbone.precision);
    let hint = match backbone.limit() {
        None => "--max-tap-error keeps the products that cause it as they are; another --backbone may avoid it",
        Some(_) => "another --backbone, or another list of kept products, may avoid it",
    };
    Err(Hinted::new(error, hint).into())
}

/// Makes sure that the source gives numbers, for each batch at the values that are compared.
///
/// # Errors
/// The first place where they are not.
pub(super) fn check_source(module: &Module, wanted: &[Vec<Tensor>]) -> anyhow::Result<()> {
    let is_finite = |tensor: &Tensor| tensor.as_f32().is_ok_and(|numbers| numbers.iter().all(|x| x.is_finite()));
    let at = wanted.iter().filter_map(|values| values.iter().position(|value| !is_finite(value))).min();
    at.map_or(Ok(()), |at| Err(no_number(module, at)))
}

fn no_number(module: &Module, at: usize) -> anyhow::Error {
    let (place, precision) = (place(module, at), module.options.backbone.precision);
    anyhow!(
        "the model itself gives a value that is not a number at {place}: its loss in {precision} cannot be measured"
    )
}

/// The place of a compared value, by its number.
fn place(module: &Module, at: usize) -> String {
    let towers = module.anatomy.towers.iter();
    let mut places = towers.flat_map(|t| (0..t.blocks.len()).map(|block| format!("block {block} of the {}", t.kind)));
    places.nth(at).unwrap_or_else(|| "its end".to_owned())
}

/// The likeliest token at each position.
fn likeliest(logits: &Tensor) -> Vec<usize> {
    let Ok(logits) = logits.as_f32() else { return Vec::new() };
    let most = |row: ndarray::ArrayView1<f32>| {
        row.iter().enumerate().fold((0, f32::NEG_INFINITY), |m, (i, v)| if *v > m.1 { (i, *v) } else { m }).0
    };
    logits.lanes(ndarray::Axis(logits.ndim() - 1)).into_iter().map(most).collect()
}
