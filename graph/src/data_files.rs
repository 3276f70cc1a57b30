//! Data files: the large weights of several graphs, each once, beside them.
//!
//! A data file of the source is reflinked where the file system can, so that its bytes exist once; what is left is copied. A hard
//! link is made only where the caller asks for one: a file with two names is refused by some programs, Python's `onnx` among them.
//! No symbolic link is made: ONNX Runtime resolves them before it checks that external data lies in the model's folder.
//!
//! **Invariant:** a file that is written here can be read only by those who can read every file that its weights come from.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::ioctl_ficlone;
use rustix::io::Errno;

use crate::ir::{Graph, ValueId};
use crate::save::used_weights;
use crate::weight::{FileRange, Weight};

/// Weights below this size are embedded in each graph; the others go to a data file.
const MIN_EXTERNAL: usize = 1024;

/// Weights of at least this size start on a page of their own, so that a runtime can map them.
const PAGE: u64 = 4096;

/// Bytes that are copied at once.
const BLOCK: usize = 1 << 20;

/// The data files beside some graphs: where each weight's bytes lie in them.
#[derive(Clone, Debug, Default)]
pub struct DataFiles {
    places: HashMap<(usize, usize), Place>,
}

/// Where a weight's bytes lie.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Relative to the graphs' folder.
    pub file: Arc<str>,
    pub offset: u64,
}

impl DataFiles {
    /// The data files in `folder` that a graph's weights were read from: for writing the graph again there.
    pub fn of(graph: &Graph, folder: &Path) -> DataFiles {
        let mut names: HashMap<&Path, Arc<str>> = HashMap::new();
        let mut data = DataFiles::default();
        for weight in graph.value_ids().filter_map(|v| graph.weight(v)) {
            let Some(FileRange { file, offset }) = data_file(weight) else { continue };
            let Some(name) = file.strip_prefix(folder).ok().and_then(Path::to_str) else { continue };
            let name = names.entry(file).or_insert_with(|| name.into()).clone();
            data.put(weight, name, *offset);
        }
        data
    }

    pub(crate) fn place(&self, weight: &Weight) -> Option<&Place> {
        self.places.get(&identity(weight.bytes()))
    }

    fn put(&mut self, weight: &Weight, file: Arc<str>, offset: u64) {
        self.places.insert(identity(weight.bytes()), Place { file, offset });
    }
}

/// Bytes in memory are known by where they are: a clone of a weight is the same weight.
fn identity(bytes: &Bytes) -> (usize, usize) {
    (bytes.as_ptr() as usize, bytes.len())
}

/// A weight's place in a data file. A model's own file does not count: its offsets are not aligned, and a name that ends in
/// `.onnx` would lie about what it is.
fn data_file(weight: &Weight) -> Option<&FileRange> {
    weight.place().filter(|place| place.file.extension().is_none_or(|e| e != "onnx"))
}

/// What may take the place of a copy of a data file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Links {
    /// A reflink: a file of its own that shares its blocks.
    #[default]
    Reflinks,
    /// A hard link, or else a reflink. A hard link is the same file under two names: what changes one changes the other.
    HardLinks,
}

/// A data file that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Its name, in the graphs' folder.
    pub name: String,
    pub bytes: u64,
    pub means: Means,
}

/// How a data file was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Means {
    /// A hard link to this file.
    Linked(PathBuf),
    /// A file of its own that shares its blocks with this one, until one of them is written to.
    Reflinked(PathBuf),
    /// A copy of the weights.
    Copied,
}

/// The large weights of graphs that only run: read where they lie if that is one folder's data files, and otherwise from files that
/// are written to `scratch`. With them, the folder that has them. The source's files get no second name: a process that is killed
/// would leave it.
///
/// # Errors
/// From the file system, e.g. no space.
pub fn data_to_run(graphs: &[&Graph], scratch: &Path) -> io::Result<(DataFiles, PathBuf)> {
    let mut writer = DataWriter::new(graphs, scratch, "weights.data");
    if let Some(found) = where_they_lie(&writer.left) {
        return Ok(found);
    }
    writer.link(Links::Reflinks)?;
    let (data, _) = writer.copy(&mut |_| ())?;
    Ok((data, scratch.to_owned()))
}

/// The data files that hold all of some weights, and their folder; `None` if there is not one that has them all.
fn where_they_lie(weights: &[(&str, &Weight)]) -> Option<(DataFiles, PathBuf)> {
    let mut data = DataFiles::default();
    let mut files: HashMap<&Path, (PathBuf, Arc<str>)> = HashMap::new();
    let mut shared: Option<PathBuf> = None;
    for (_, weight) in weights {
        let FileRange { file, offset } = data_file(weight)?;
        let (folder, name) = match files.get(file.as_path()) {
            Some(known) => known.clone(),
            None => {
                // ONNX Runtime follows links before it looks for a file in the folder.
                let real = file.canonicalize().ok()?;
                let found = (real.parent()?.to_owned(), Arc::from(real.file_name()?.to_str()?));
                files.insert(file, found.clone());
                found
            }
        };
        if *shared.get_or_insert_with(|| folder.clone()) != folder {
            return None;
        }
        data.put(weight, name, *offset);
    }
    Some((data, shared?))
}

/// Writes the large weights of `graphs`, and nothing else, to a file of its own; the number of its bytes.
///
/// # Errors
/// From the file system, e.g. no space, or a file of that name.
pub fn copy_data(graphs: &[&Graph], folder: &Path, name: &str) -> io::Result<(DataFiles, u64)> {
    let (data, saved) = DataWriter::new(graphs, folder, name).copy(&mut |_| ())?;
    Ok((data, saved.iter().map(|s| s.bytes).sum()))
}

/// Data files being written: each step finds places for some of the weights that have none.
pub struct DataWriter<'g> {
    folder: &'g Path,
    /// Of the first file.
    name: &'g str,
    /// The weights that have no place yet, each once, with their values' names.
    left: Vec<(&'g str, &'g Weight)>,
    data: DataFiles,
    saved: Vec<Saved>,
}

impl<'g> DataWriter<'g> {
    /// The large weights that nodes or outputs of `graphs` read, for files in `folder` of which the first is `name`.
    pub fn new(graphs: &[&'g Graph], folder: &'g Path, name: &'g str) -> DataWriter<'g> {
        let mut seen = HashSet::new();
        let mut left = Vec::new();
        for graph in graphs {
            let named = |v: ValueId| Some((graph.value(v).name.as_str(), graph.weight(v)?));
            let used = used_weights(graph).into_iter().filter_map(named);
            left.extend(used.filter(|(_, w)| w.bytes().len() >= MIN_EXTERNAL && seen.insert(identity(w.bytes()))));
        }
        DataWriter { folder, name, left, data: DataFiles::default(), saved: Vec::new() }
    }

    /// Links the data files that the weights lie in.
    ///
    /// # Errors
    /// From the file system; a file that cannot be linked is not an error.
    pub fn link(&mut self, links: Links) -> io::Result<()> {
        let lie = self.left.iter().filter_map(|(_, w)| Some((*w, data_file(w)?))).collect();
        self.link_files(lie, links)
    }

    /// True where weights have no place yet.
    pub fn is_incomplete(&self) -> bool {
        !self.left.is_empty()
    }

    /// Bytes of the weights that have no place yet, and how many of them lie in data files, which could be linked.
    pub fn left(&self) -> (u64, u64) {
        let bytes = |weight: &Weight| weight.bytes().len() as u64;
        let in_files = self.left.iter().filter(|(_, w)| data_file(w).is_some());
        (self.left.iter().map(|(_, w)| bytes(w)).sum(), in_files.map(|(_, w)| bytes(w)).sum())
    }

    /// Links the data files of other graphs, which hold weights of the same names; how many were linked.
    ///
    /// # Errors
    /// A weight of the same name that has other contents; from the file system.
    pub fn share(&mut self, others: &[Graph], links: Links) -> io::Result<usize> {
        let mut lie = Vec::new();
        for (name, weight) in &self.left {
            let mut same_name = others.iter().filter_map(|graph| graph.weight(graph.find(name)?));
            let Some(other) = same_name.find(|w| data_file(w).is_some()) else { continue };
            let equal = weight == &other;
            [weight, other].into_iter().for_each(Weight::release);
            if !equal {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("its weight `{name}` is different")));
            }
            lie.extend(data_file(other).map(|place| (*weight, place)));
        }
        let before = self.saved.len();
        self.link_files(lie, links)?;
        Ok(self.saved.len() - before)
    }

    /// Copies the weights that have no place yet to a file of their own; what was written. `watch` sees all bytes of that file, in
    /// their order.
    ///
    /// # Errors
    /// From the file system.
    pub fn copy(mut self, watch: &mut dyn FnMut(&[u8])) -> io::Result<(DataFiles, Vec<Saved>)> {
        if self.left.is_empty() && !self.saved.is_empty() {
            return Ok((self.data, self.saved));
        }
        let name = self.next_name();
        let mut sources = Sources::open(self.left.iter().map(|(_, weight)| *weight))?;
        // Never through an existing name: it may be a link to a model's own weights.
        let mut out = Copy { file: create(&self.folder.join(&name), sources.mode)?, at: 0, watch };
        let file: Arc<str> = name.as_str().into();
        for (_, weight) in &self.left {
            let align = if weight.bytes().len() as u64 >= PAGE { PAGE } else { 64 };
            out.skip(out.at.next_multiple_of(align) - out.at);
            self.data.put(weight, file.clone(), out.at);
            sources.copy(weight, &mut out)?;
        }
        // The last bytes may be a hole.
        out.file.set_len(out.at)?;
        out.file.sync_data()?;
        self.saved.push(Saved { name, bytes: out.at, means: Means::Copied });
        Ok((self.data, self.saved))
    }

    /// Links the files that weights lie in, in the order of the weights.
    fn link_files(&mut self, lie: Vec<(&Weight, &FileRange)>, links: Links) -> io::Result<()> {
        let mut names: HashMap<&Path, Option<Arc<str>>> = HashMap::new();
        for (weight, FileRange { file, offset }) in lie {
            let name = match names.get(file.as_path()) {
                Some(name) => name.clone(),
                None => {
                    let name = self.link_file(file, links)?;
                    names.insert(file, name.clone());
                    name
                }
            };
            if let Some(name) = name {
                self.data.put(weight, name, *offset);
            }
        }
        self.left.retain(|(_, w)| self.data.place(w).is_none());
        Ok(())
    }

    /// Links one file; `None` where that cannot be done.
    fn link_file(&mut self, file: &Path, links: Links) -> io::Result<Option<Arc<str>>> {
        let name = self.next_name();
        // The file itself, where a name is a link to it.
        let Some(means) = link(file.canonicalize()?, &self.folder.join(&name), links)? else { return Ok(None) };
        let bytes = fs::metadata(file)?.len();
        self.saved.push(Saved { name: name.clone(), bytes, means });
        Ok(Some(name.into()))
    }

    /// `backbone.data`, `backbone.1.data`, `backbone.2.data`.
    fn next_name(&self) -> String {
        match (self.saved.len(), self.name.rsplit_once('.')) {
            (0, _) => self.name.to_owned(),
            (n, Some((stem, extension))) => format!("{stem}.{n}.{extension}"),
            (n, None) => format!("{}.{n}", self.name),
        }
    }
}

/// Makes `target` a link to a file; `None` where that cannot be done.
fn link(source: PathBuf, target: &Path, links: Links) -> io::Result<Option<Means>> {
    if links == Links::HardLinks {
        match fs::hard_link(&source, target) {
            Ok(()) => return Ok(Some(Means::Linked(source))),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
            // Another file system, a file of another user, too many links.
            Err(_) => {}
        }
    }
    let from = File::open(&source)?;
    let to = create(target, from.metadata()?.permissions().mode())?;
    if ioctl_ficlone(&to, &from).is_ok() {
        return Ok(Some(Means::Reflinked(source)));
    }
    fs::remove_file(target)?;
    Ok(None)
}

/// Makes a file with no other permissions than these, and those that the process's mask leaves.
fn create(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(mode & 0o666).open(path)
}

/// The files that weights are copied from.
struct Sources {
    files: HashMap<PathBuf, File>,
    /// The permissions that all of them have.
    mode: u32,
}

impl Sources {
    fn open<'w>(weights: impl Iterator<Item = &'w Weight>) -> io::Result<Sources> {
        let mut sources = Sources { files: HashMap::new(), mode: 0o666 };
        for place in weights.filter_map(Weight::place) {
            if !sources.files.contains_key(place.file.as_path()) {
                let file = File::open(place.file.as_path())?;
                sources.mode &= file.metadata()?.permissions().mode();
                sources.files.insert(place.file.to_path_buf(), file);
            }
        }
        Ok(sources)
    }

    /// Copies a weight, from file to file where it lies in one. Holes stay holes.
    fn copy(&mut self, weight: &Weight, out: &mut Copy) -> io::Result<()> {
        let source = weight.place().and_then(|place| Some((place, self.files.get(place.file.as_path())?)));
        let Some((place, file)) = source else {
            let written = weight.bytes().chunks(BLOCK).try_for_each(|block| out.write(block));
            weight.release();
            return written;
        };
        let (mut at, end) = (place.offset, place.offset + weight.bytes().len() as u64);
        let length = file.metadata()?.len();
        if length < end {
            let text = format!("`{}` ended {} bytes early", place.file.display(), end - length);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        let mut buffer = vec![0; BLOCK];
        while at < end {
            let data = seek(file, rustix::fs::SeekFrom::Data(at))?.unwrap_or(end).min(end);
            out.skip(data - at);
            at = data;
            let hole = seek(file, rustix::fs::SeekFrom::Hole(at))?.unwrap_or(end).min(end);
            while at < hole {
                let block = &mut buffer[..BLOCK.min((hole - at) as usize)];
                file.read_exact_at(block, at)?;
                out.write(block)?;
                at += block.len() as u64;
            }
        }
        Ok(())
    }
}

/// Where data or a hole begins; `None` after the last.
fn seek(file: &File, to: rustix::fs::SeekFrom) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, to) {
        Err(Errno::NXIO) => Ok(None),
        // A file system without holes: all is data.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => match to {
            rustix::fs::SeekFrom::Data(at) => Ok(Some(at)),
            _ => Ok(None),
        },
        found => Ok(Some(found?)),
    }
}

/// A file that is being written from its start to its end.
struct Copy<'w> {
    file: File,
    at: u64,
    watch: &'w mut dyn FnMut(&[u8]),
}

impl Copy<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        (self.watch)(bytes);
        Ok(())
    }

    /// Leaves a hole, which reads as zeros.
    fn skip(&mut self, bytes: u64) {
        static ZEROS: [u8; BLOCK] = [0; BLOCK];
        let mut left = bytes;
        while left > 0 {
            let block = left.min(ZEROS.len() as u64);
            (self.watch)(&ZEROS[..block as usize]);
            left -= block;
        }
        self.at += bytes;
    }
}
