//! The files of the directory compared with what the compiler makes of the source with the manifest's options.

use std::path::Path;

use lstc_graph::Comparer;
use lstc_passes::artifacts;
use lstc_tuned::origin::Origin;
use lstc_tuned::side;
use lstc_tuned::{MANIFEST, SIDE, intact, manifest};

use super::{Check, Subject};
use crate::import;

/// The directory's files are those that were written, according to the manifest's hashes.
pub(super) fn unchanged(directory: &Path) -> anyhow::Result<Check> {
    let differences = intact::differences(directory, &manifest::unchecked_record(directory)?.files)?;
    Ok(Check::holds("the files are those that the rewrite wrote", "BLAKE3 equal", &differences))
}

/// `written_by` is the version of lstc that the manifest names: another version may emit other graphs.
pub(super) fn check(subject: &Subject, written_by: Option<&str>) -> anyhow::Result<Vec<Check>> {
    let mut checks = Vec::new();
    let here = env!("CARGO_PKG_VERSION");
    let name = "the graphs on disk are the compiler's, weights and all";
    if written_by == Some(here) {
        let artifacts = artifacts(&subject.module);
        let mut comparer = Comparer::default();
        let mut differences = Vec::new();
        for (file, wanted) in artifacts.files() {
            let found = subject.load(file)?;
            differences.extend(comparer.differences(&found, wanted).into_iter().map(|d| format!("{file}: {d}")));
        }
        checks.push(Check::holds(name, "all five", &differences));
    } else {
        let other = written_by.unwrap_or("an unknown version");
        let differences =
            [format!("{MANIFEST} was written by lstc {other}, this is {here}: rewrite the model to verify it")];
        checks.push(Check::holds(name, "", &differences));
    }
    let name = "lst.yaml says what the graphs were made with";
    checks.push(Check::holds(name, "equal", &manifest::differences(subject.directory)?));
    let path = subject.directory.join(SIDE);
    checks.push(match manifest::read(subject.directory)?.side {
        None => {
            let name = "side.safetensors is the initial side network";
            Check::holds(name, "equal", &side_differences(subject, &path))
        }
        Some(origin) => {
            let name = "side.safetensors is the side network that was imported";
            Check::holds(name, "SHA-256 equal, parameters complete", &import_differences(subject, &path, &origin))
        }
    });
    Ok(checks)
}

/// An imported side network has the parameters' names and shapes, and is the file that the import wrote.
fn import_differences(subject: &Subject, path: &Path, origin: &Origin) -> Vec<String> {
    let parameters = &subject.module.plan.parameters;
    let shapes = parameters.iter().map(|p| (p.name.as_str(), p.dims.as_slice()));
    let mut differences = Vec::new();
    if let Err(error) = side::load_parameters(path, shapes) {
        differences.push(format!("{error:#}"));
    }
    match import::hash(path) {
        Ok(hash) if hash == origin.written => {}
        Ok(_) => differences.push(format!("it is not what was imported from `{}`", origin.imported.display())),
        Err(error) => differences.push(format!("{error:#}")),
    }
    differences
}

fn side_differences(subject: &Subject, path: &Path) -> Vec<String> {
    let (found, _, seal) = match side::load_with(path) {
        Ok(found) => found,
        Err(error) => return vec![format!("{error:#}")],
    };
    let module = &subject.module;
    let mut differences: Vec<String> = seal.note(path).into_iter().collect();
    for (planned, initial) in module.plan.parameters.iter().zip(&module.initial) {
        match found.get(&planned.name) {
            None => differences.push(format!("`{}` is missing", planned.name)),
            Some(value) if *value != *initial.value() => {
                differences.push(format!("`{}` has other values", planned.name))
            }
            Some(_) => {}
        }
    }
    let extra = found.keys().filter(|name| !module.plan.parameters.iter().any(|p| p.name == **name));
    differences.extend(extra.map(|name| format!("`{name}` is not a parameter")));
    differences
}
