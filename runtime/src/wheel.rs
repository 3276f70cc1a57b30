//! A wheel: a zip file from anywhere, so nothing in it is trusted.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use zip::ZipArchive;
use zip::result::ZipError;

use super::pins::Package;

/// More than any pinned wheel unpacks to.
const LARGEST: u64 = 2 << 30;

/// Why a wheel is not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum WheelError {
    #[error("it cannot be read as a zip file")]
    Unreadable(#[source] ZipError),
    #[error("its entry `{0}` leads outside the directory it is unpacked in")]
    Escapes(String),
    #[error("its entry `{0}` is not a plain file")]
    NotAFile(String),
    #[error("it unpacks to more than {} GiB", LARGEST >> 30)]
    TooLarge,
    #[error("its entry `{entry}` is damaged")]
    Damaged { entry: String, source: io::Error },
    #[error("cannot write `{}`", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Unpacks the shared libraries of a package's wheel into `into`, its licences into `into/licenses/<package>`, and
/// nothing else. What is written is on the disk when this returns.
pub(super) fn unpack(wheel: File, package: &Package, into: &Path) -> Result<(), WheelError> {
    let mut archive = ZipArchive::new(io::BufReader::new(wheel)).map_err(WheelError::Unreadable)?;
    let licences = into.join("licenses").join(package.name);
    let mut left = LARGEST;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(WheelError::Unreadable)?;
        let name = entry.name().map_err(WheelError::Unreadable)?.into_owned();
        if !Path::new(&name).components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(WheelError::Escapes(name));
        }
        let path = match destination(&name, package) {
            Some(Destination::Library(file)) => into.join(file),
            Some(Destination::Licence(file)) => licences.join(file),
            None => continue,
        };
        if !entry.is_file() {
            return Err(WheelError::NotAFile(name));
        }
        let size = entry.size();
        left = left.checked_sub(size).ok_or(WheelError::TooLarge)?;
        write(&mut entry, size, &name, &path)?;
    }
    Ok(())
}

enum Destination<'n> {
    Library(&'n str),
    Licence(&'n str),
}

fn destination<'n>(entry: &'n str, package: &Package) -> Option<Destination<'n>> {
    let (directory, file) = entry.rsplit_once('/')?;
    if file.is_empty() {
        return None;
    }
    if Some(directory) == package.libraries.strip_suffix('/') {
        let wanted = package.wanted.iter().any(|start| file.starts_with(start));
        return wanted.then_some(Destination::Library(file));
    }
    let licence = match directory.split_once('/') {
        None if directory == "onnxruntime" => matches!(file, "LICENSE" | "ThirdPartyNotices.txt"),
        Some((top, "licenses")) => top.ends_with(".dist-info"),
        _ => false,
    };
    licence.then_some(Destination::Licence(file))
}

/// Writes an entry that declares `size` bytes; its checksum is checked at its end.
fn write(entry: &mut impl Read, size: u64, name: &str, path: &Path) -> Result<(), WheelError> {
    let failed = |source| WheelError::Write { path: path.to_owned(), source };
    let damaged = |source| WheelError::Damaged { entry: name.to_owned(), source };

    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    let mut file = File::create_new(path).map_err(failed)?;
    let mut buffer = vec![0; 1 << 16];
    let mut written = 0;
    loop {
        let count = entry.read(&mut buffer).map_err(damaged)?;
        if count == 0 {
            break;
        }
        written += count as u64;
        if written > size {
            return Err(damaged(io::Error::other("it is larger than it declares")));
        }
        file.write_all(&buffer[..count]).map_err(failed)?;
    }
    if written != size {
        return Err(damaged(io::Error::other("it is smaller than it declares")));
    }
    file.sync_all().map_err(failed)
}
