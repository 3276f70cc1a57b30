//! Wheels through pip, so that the user's index, proxy, certificates and credentials are honoured.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use lstc_base::interrupt;

use super::install::Progress;
use super::pins::{Package, Pin};

/// Why pip fetched nothing.
#[derive(Debug, thiserror::Error)]
pub enum PipError {
    #[error("`python3` cannot be run")]
    NoPython(#[source] io::Error),
    #[error("this `python3` has no pip")]
    NoPip,
    #[error("pip cannot download {package}; its last output was\n{words}")]
    Failed { package: String, words: String },
    #[error("pip fetched another file than `{expected}`")]
    OtherFile { expected: &'static str },
    #[error("cannot use `{}`", path.display())]
    Scratch { path: PathBuf, source: io::Error },
}

/// Downloads one wheel into `into`, which must exist, and returns its path. It is whatever the index has under that name.
pub(super) fn download(
    package: &Package,
    pin: &Pin,
    into: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<PathBuf, PipError> {
    let requirement = format!("{}=={}", package.name, package.version);
    let scratch = |source| PipError::Scratch { path: into.to_owned(), source };
    // A file, because a pipe that is not read would block pip once it is full.
    let log = into.join("pip.log");
    let output = File::create(&log).map_err(scratch)?;

    progress(Progress::Downloading { package: &requirement });
    let mut pip = Command::new("python3")
        // Neither the working directory nor PYTHONPATH decides which `pip` runs.
        .current_dir(into)
        .args(["-I", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"])
        .args(["--no-input", "--disable-pip-version-check", "--progress-bar", "off"])
        // The pinned wheel, whatever version this Python has.
        .args(["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--abi", "none"])
        .args(["--platform", pin.platform(), "--dest"])
        .arg(into)
        .arg(&requirement)
        // On the same file system as the cache directory, which is known to have room for large files.
        .env("TMPDIR", into)
        .stdin(Stdio::null())
        .stdout(output.try_clone().map_err(scratch)?)
        .stderr(output)
        .spawn()
        .map_err(PipError::NoPython)?;
    let registered = interrupt::end_with(&pip);
    let status = loop {
        if let Some(status) = pip.try_wait().map_err(PipError::NoPython)? {
            break status;
        }
        thread::sleep(Duration::from_millis(100));
        progress(Progress::Arrived { bytes: size_below(into) });
    };
    drop(registered);
    if !status.success() {
        let words = fs::read(&log).map_err(scratch)?;
        let words = String::from_utf8_lossy(&words);
        return Err(if words.contains("No module named pip") {
            PipError::NoPip
        } else {
            PipError::Failed { package: requirement, words: last_lines(&words, 8) }
        });
    }
    let wheel = into.join(pin.file);
    if wheel.is_file() { Ok(wheel) } else { Err(PipError::OtherFile { expected: pin.file }) }
}

/// The last lines that are not empty, indented.
fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let last: Vec<String> = lines[lines.len().saturating_sub(count)..].iter().map(|line| format!("  {line}")).collect();
    last.join("\n")
}

/// The bytes of all files in and below a directory; files that vanish meanwhile do not count.
pub(super) fn size_below(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => size_below(&entry.path()),
            Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |metadata| metadata.len()),
            _ => 0,
        })
        .sum()
}
