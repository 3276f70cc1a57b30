//! Where an export goes: one file, or a model and its data file that appear together.
//!
//! **Invariant:** a model never lies beside another model's data file under the name of its own, whenever the process
//! ends: of a pair, the old model is removed first and the new model is renamed last.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use lstc_base::files::{parent, rename_new};
use lstc_base::interrupt;
use lstc_base::scratch::Scratch;
use lstc_graph::load;
use lstc_tuned::output::{self, Inputs};

/// The names of an export's files, and what must stay.
pub(super) struct Place {
    model: PathBuf,
    data: PathBuf,
    /// Files that the export reads.
    inputs: Inputs,
    force: bool,
}

impl Place {
    /// # Errors
    /// A name that does not end in `.onnx`.
    pub fn new(model: &Path, inputs: Inputs, force: bool) -> anyhow::Result<Place> {
        // Other files, such as a checkpoint named by mistake, are not replaced.
        if model.extension().is_none_or(|e| e != "onnx") || model.to_str().is_none() {
            bail!("`{}` is not a name for a model: it must end in .onnx", model.display());
        }
        Ok(Place { model: model.to_owned(), data: model.with_extension("data"), inputs, force })
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    pub fn model_name(&self) -> &str {
        name(&self.model)
    }

    pub fn data_name(&self) -> &str {
        name(&self.data)
    }

    /// Whether the model may be written.
    ///
    /// # Errors
    /// Something is there that is not to be replaced, or must not be.
    pub fn check_model(&self) -> anyhow::Result<()> {
        output::check(&self.model, &self.inputs, self.force)
    }

    /// Whether the data file may be written: nothing is there, or an earlier export's.
    ///
    /// # Errors
    /// As [`Place::check_model`].
    pub fn check_data(&self) -> anyhow::Result<()> {
        output::check(&self.data, &self.inputs, self.force)?;
        if self.data.exists() && !self.owns_data() {
            let (data, model) = (self.data.display(), self.model.display());
            bail!("`{data}` already exists, is not the data of `{model}`, and will not be replaced");
        }
        Ok(())
    }

    /// True if the model that is there reads the data file that is there.
    fn owns_data(&self) -> bool {
        load(&self.model).is_ok_and(|graph| {
            let reads = |v| graph.weight(v).and_then(|w| w.place()).is_some_and(|p| *p.file == self.data);
            graph.value_ids().any(reads)
        })
    }

    /// Gives the files of a finished folder their names. An earlier export is removed, with its data file.
    ///
    /// # Errors
    /// From the file system; something has appeared there meanwhile. What is there is then as it was.
    pub fn publish(&self, folder: Scratch, with_data: bool) -> anyhow::Result<()> {
        self.check_model()?;
        let old_data = self.force && self.data.exists() && self.owns_data();
        let new = |name: &str| folder.path().join(name);
        let held = interrupt::hold();
        if self.force && !with_data && !old_data {
            fs::rename(new(self.model_name()), &self.model)?;
        } else {
            let old = folder.path().join("old");
            fs::create_dir(&old)?;
            let aside = |path: &Path| (path.to_owned(), old.join(name(path)));
            let mut moves = Vec::new();
            moves.extend(self.model.exists().then(|| aside(&self.model)).filter(|_| self.force));
            moves.extend(old_data.then(|| aside(&self.data)));
            moves.extend(with_data.then(|| (new(self.data_name()), self.data.clone())));
            moves.push((new(self.model_name()), self.model.clone()));
            if let Err(error) = rename_all(&moves) {
                drop(held);
                if fs::read_dir(&old).is_ok_and(|mut entries| entries.next().is_some()) {
                    let kept = folder.keep();
                    return Err(error).with_context(|| format!("the earlier export is now in `{}`", kept.display()));
                }
                return Err(error.into());
            }
        }
        drop(held);
        let folder_of = File::open(parent(&self.model));
        folder_of.and_then(|folder| folder.sync_all()).context("the output is written, but not yet synced")?;
        folder.close().context("the output is in place, but the temporary folder beside it cannot be removed")
    }
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|n| n.to_str()).expect("a place has UTF-8 names that end in .onnx and .data")
}

/// Renames all files, or none.
fn rename_all(moves: &[(PathBuf, PathBuf)]) -> io::Result<()> {
    for (done, (from, to)) in moves.iter().enumerate() {
        if let Err(error) = rename_new(from, to) {
            for (from, to) in moves[..done].iter().rev() {
                fs::rename(to, from)?;
            }
            return Err(error);
        }
    }
    Ok(())
}
