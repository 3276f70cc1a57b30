//! Whether the files of a rewritten directory are those that were written.
//!
//! The manifest records the size and the BLAKE3 of each. Graphs and the tokenizer are hashed whenever a directory is opened; a data file
//! is hashed unless its size, times and inode number show that it is the file that was hashed before. These are kept in a file of
//! their own: a copy of the directory has others, and is hashed once.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, anyhow};
use lstc_base::files;
use lstc_base::hash::{State, blake3};
use lstc_base::report::{Hinted, ProgressLine, word};
use lstc_graph::regular;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::manifest::{self, Record};
use crate::{GRAPHS, MANIFEST, SIDE, TOKENIZER};

/// The states of the data files when they were hashed.
pub const SEEN: &str = ".seen.json";

/// A file of a rewritten directory as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenFile {
    pub file: String,
    pub bytes: u64,
    pub blake3: String,
}

/// A file whose hash is known, in the state in which it was hashed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Hashed {
    blake3: String,
    #[serde(flatten)]
    state: State,
}

impl Hashed {
    fn new(metadata: &Metadata, blake3: &str) -> Hashed {
        Hashed { blake3: blake3.to_owned(), state: State::new(metadata) }
    }
}

type Seen = BTreeMap<String, Hashed>;

/// The state in which a file was found.
enum Found {
    Same(Hashed),
    Changed { names: u64 },
    Missing,
}

impl WrittenFile {
    /// A file of a folder, as it is now.
    pub fn new(folder: &Path, name: &str) -> anyhow::Result<WrittenFile> {
        let context = || format!("cannot read `{}`", folder.join(name).display());
        let mut file = regular::open(&folder.join(name)).with_context(context)?;
        let bytes = file.metadata().with_context(context)?.len();
        let hash = blake3(&mut file, &AtomicBool::new(false)).with_context(context)?;
        Ok(WrittenFile { file: name.to_owned(), bytes, blake3: hash.expect("nothing stops it") })
    }

    /// True for a file that may be as large as a model: graphs and the tokenizer are small.
    fn is_data(&self) -> bool {
        self.file != TOKENIZER && !GRAPHS.contains(&self.file.as_str())
    }

    /// Looks at the file, and hashes it unless it is in a state that is known.
    fn look(&self, directory: &Path, known: Option<&Hashed>) -> anyhow::Result<Found> {
        let path = directory.join(&self.file);
        let context = || format!("cannot read `{}`", path.display());
        // A manifest names files beside it, and reading a pipe would block.
        let is_file = super::is_own(&self.file) && path.is_file();
        if !is_file {
            return Ok(Found::Missing);
        }
        let mut file = regular::open(&path).with_context(context)?;
        // Before it is read: a change made meanwhile is noticed next time.
        let metadata = file.metadata().with_context(context)?;
        let hashed = Hashed::new(&metadata, &self.blake3);
        if known == Some(&hashed) {
            return Ok(Found::Same(hashed));
        }
        let changed = Found::Changed { names: metadata.nlink() };
        if metadata.len() != self.bytes {
            return Ok(changed);
        }
        let mut line = ProgressLine::default();
        if self.is_data() {
            line.show(format!("checking {} ...", self.file));
        }
        let found = blake3(&mut file, &AtomicBool::new(false)).with_context(context)?;
        Ok(if found.as_ref() == Some(&self.blake3) { Found::Same(hashed) } else { changed })
    }
}

/// What the manifest of a rewritten directory records, whose files are those that were written.
///
/// # Errors
/// A directory without a readable manifest; a file that has changed, or is missing.
pub fn record(directory: &Path) -> anyhow::Result<Record> {
    Ok(watched(directory)?.0)
}

/// # Errors
/// A manifest that does not record a graph.
fn check_recorded(directory: &Path, record: &Record) -> anyhow::Result<()> {
    let Some(graph) = GRAPHS.iter().find(|graph| !record.files.iter().any(|file| file.file == **graph)) else {
        return Ok(());
    };
    let error = anyhow!("`{}` does not record {graph} as it was written", directory.join(MANIFEST).display());
    let hint =
        format!("rewrite the model again: `lstc rewrite --from {} -o AGAIN`", word(&directory.to_string_lossy()));
    Err(Hinted::new(error, hint).into())
}

/// The files of a directory that a command reads more than once, in the states in which they were checked.
#[derive(Debug)]
pub struct Watched {
    directory: PathBuf,
    files: Vec<WrittenFile>,
    seen: Mutex<Seen>,
}

impl Watched {
    /// Checks again. A file in the state in which it was checked before is not hashed again.
    ///
    /// # Errors
    /// A file that has changed, or is missing.
    pub fn check(&self) -> anyhow::Result<()> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = look_at(&self.directory, &self.files, |file| seen.get(&file.file))?;
        Ok(())
    }
}

/// As [`record`], with its files to be watched.
///
/// # Errors
/// As [`record`].
pub fn watched(directory: &Path) -> anyhow::Result<(Record, Watched)> {
    let record = manifest::record(directory)?;
    check_recorded(directory, &record)?;
    let seen = check(directory, &record.files)?;
    let watched = Watched { directory: directory.to_owned(), files: record.files.clone(), seen: seen.into() };
    Ok((record, watched))
}

/// Checks the files, and keeps the states of those that are large.
fn check(directory: &Path, files: &[WrittenFile]) -> anyhow::Result<Seen> {
    let seen = recall(directory);
    let all = look_at(directory, files, |file| seen.get(&file.file).filter(|_| file.is_data()))?;
    let is_data = |name: &String| files.iter().any(|file| file.file == *name && file.is_data());
    let data = all.iter().filter(|(name, _)| is_data(name));
    let free = seen.iter().filter(|(name, _)| FREE.contains(&name.as_str()));
    let now: Seen = data.chain(free).map(|(name, hashed)| (name.clone(), hashed.clone())).collect();
    if now != seen {
        // If it cannot be kept, the files are hashed next time too.
        let _ = keep(directory, &now);
    }
    Ok(all)
}

/// The states of files that are as they were written. Those that are known are not hashed.
fn look_at<'s>(
    directory: &Path,
    files: &[WrittenFile],
    known: impl Fn(&WrittenFile) -> Option<&'s Hashed>,
) -> anyhow::Result<Seen> {
    let mut now = Seen::new();
    for file in files {
        let shown = directory.join(&file.file);
        let (error, why) = match file.look(directory, known(file))? {
            Found::Same(hashed) => {
                now.insert(file.file.clone(), hashed);
                continue;
            }
            Found::Changed { names } => {
                (anyhow!("`{}` has changed since the rewrite", shown.display()), if names > 1 { LINKED } else { "" })
            }
            Found::Missing => (anyhow!("`{}` is missing", shown.display()), ""),
        };
        let hint = format!("{why}put back what was there, or rewrite the model: `lstc rewrite MODEL -o DIR`");
        return Err(Hinted::new(error, hint).into());
    }
    Ok(now)
}

/// What is probably wrong with a changed file that has several names.
const LINKED: &str = "it is a hard link, and was written to under another name; ";

/// Which files of a directory are not as they were written, whatever was seen before.
///
/// # Errors
/// From the file system.
pub fn differences(directory: &Path, files: &[WrittenFile]) -> anyhow::Result<Vec<String>> {
    let mut differences = Vec::new();
    for file in files {
        match file.look(directory, None)? {
            Found::Same(_) => {}
            Found::Changed { .. } => differences.push(format!("{} has changed since the rewrite", file.file)),
            Found::Missing => differences.push(format!("{} is missing", file.file)),
        }
    }
    Ok(differences)
}

/// Records the states of a directory's data files, as they were written, and the hashes of what may change later: the manifest and
/// the side network.
///
/// # Errors
/// From the file system.
pub fn remember(directory: &Path, files: &[WrittenFile]) -> anyhow::Result<()> {
    let hashed = |file: &WrittenFile| {
        let metadata = fs::metadata(directory.join(&file.file))?;
        Ok((file.file.clone(), Hashed::new(&metadata, &file.blake3)))
    };
    let free = FREE.map(|name| WrittenFile::new(directory, name)).into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let data = files.iter().filter(|file| file.is_data());
    let seen: std::io::Result<Seen> = data.chain(&free).map(hashed).collect();
    keep(directory, &seen?)
}

/// Files of a rewritten directory that users and other commands may change.
const FREE: [&str; 2] = [MANIFEST, SIDE];

/// Which of a directory's files a rewrite wrote.
pub struct Own {
    directory: PathBuf,
    /// None if the manifest does not say.
    files: Option<Vec<WrittenFile>>,
    seen: Seen,
}

impl Own {
    /// As far as the manifest can be read.
    pub fn of(directory: &Path) -> Own {
        let files = manifest::unchecked_record(directory).ok().map(|record| record.files);
        Own { directory: directory.to_owned(), files, seen: recall(directory) }
    }

    /// Why a file with a name that a rewrite gives is not what a rewrite wrote, in words; none if it is.
    ///
    /// # Errors
    /// From the file system.
    pub fn stranger(&self, name: &str) -> anyhow::Result<Option<&'static str>> {
        let recorded = self.files.iter().flatten().find(|file| file.file == name);
        if let Some(file) = recorded {
            return Ok(match file.look(&self.directory, self.seen.get(name))? {
                Found::Same(_) => None,
                Found::Changed { .. } | Found::Missing => Some(", which has changed since the rewrite"),
            });
        }
        if let Some(written) = self.seen.get(name).filter(|_| FREE.contains(&name)) {
            let is_same = WrittenFile::new(&self.directory, name)?.blake3 == written.blake3;
            return Ok(if is_same { None } else { Some(", which has changed since the rewrite") });
        }
        // Earlier versions recorded neither graphs nor what may change.
        let is_always_written = name == SEEN || FREE.contains(&name) || GRAPHS.contains(&name);
        let is_unknown = self.files.as_ref().is_none_or(Vec::is_empty);
        Ok(if is_always_written || is_unknown { None } else { Some("") })
    }
}

fn recall(directory: &Path) -> Seen {
    let text = regular::read_text(&directory.join(SEEN), Config::LIMIT).ok();
    text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

fn keep(directory: &Path, seen: &Seen) -> anyhow::Result<()> {
    let text = serde_json::to_vec_pretty(seen)?;
    files::replace(&directory.join(SEEN), |file| Ok(file.write_all(&text)?))
}
