//! The files of a source model, with their sizes and hashes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, anyhow};
use lstc_base::hash::blake3;
use lstc_graph::{Graph, regular};
use lstc_tuned::manifest::{FilePart, SourceFile};

use super::SourceModel;

/// The model's files and the data files that hold its weights.
fn source_paths(model: &SourceModel, graph: &Graph) -> Vec<PathBuf> {
    let mut paths = model.files().to_vec();
    for place in graph.value_ids().filter_map(|v| graph.weight(v)?.place()) {
        if !paths.contains(&place.file) {
            paths.push(place.file.to_path_buf());
        }
    }
    paths
}

/// The hash and size of a file.
///
/// # Errors
/// A file that cannot be read.
pub fn source_file(path: &Path, part: FilePart) -> anyhow::Result<SourceFile> {
    let hashed = hashed(path, part, &AtomicBool::new(false))?;
    Ok(hashed.expect("nothing stops it"))
}

/// As [`source_file`]; none if it was stopped.
fn hashed(path: &Path, part: FilePart, stop: &AtomicBool) -> anyhow::Result<Option<SourceFile>> {
    let context = || format!("cannot read `{}`", path.display());
    let mut file = regular::open(path).with_context(context)?;
    let Some(blake3) = blake3(&mut file, stop).with_context(context)? else { return Ok(None) };
    let bytes = file.metadata().with_context(context)?.len();
    // Not the file that a link leads to: external data is beside the name.
    let path = std::path::absolute(path).with_context(context)?;
    Ok(Some(SourceFile { file: path, part, blake3, bytes }))
}

/// Hashes a model's files while other work continues. It stops when nothing waits for it any longer.
pub(super) struct Hashing {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<Vec<SourceFile>>>>,
}

impl Hashing {
    /// Begins with the files of a model.
    pub(super) fn begin(model: &SourceModel, graph: &Graph) -> Hashing {
        let (paths, models) = (source_paths(model, graph), model.files().len());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let hash = move || {
            let part = |index: usize| if index < models { FilePart::Model } else { FilePart::Data };
            let files = paths.iter().enumerate().map_while(|(i, path)| hashed(path, part(i), &stopped).transpose());
            files.collect()
        };
        Hashing { stop, thread: Some(thread::spawn(hash)) }
    }

    /// Waits for the hashes.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(super) fn finish(mut self) -> anyhow::Result<Vec<SourceFile>> {
        let thread = self.thread.take().expect("it is taken here and when it is dropped");
        thread.join().map_err(|_| anyhow!("hashing the source failed"))?
    }
}

impl Drop for Hashing {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its result is no longer needed.
            let _ = thread.join();
        }
    }
}
