//! Caches of taps: what is damaged is computed again, and never becomes a number.

use std::fs;
use std::path::{Path, PathBuf};

use lstc_data::{Batch, Corpus, Reading};
use lstc_runtime::{HostMemory, Tensor};
use lstc_train::Backbone;
use lstc_train::cache::{self, Cache, Identity, Tap};
use lstc_tuned::cache::ABOUT;
use lstc_tuned::opened::{Execution, Opened};

use super::{MUTANTS, bytes, each, names};
use crate::common;
use crate::tuned::Tuned;

/// A whole cache of a rewritten case, and the taps that it was made from.
struct Cached {
    tuned: Tuned,
    opened: Opened,
    corpus: Corpus,
    identity: Identity,
    rows: Vec<u32>,
    batch: Batch,
    taps: Vec<Tensor>,
    memory: HostMemory,
}

impl Cached {
    fn new() -> Cached {
        let tuned = Tuned::new();
        let opened = Opened::new(&tuned.path("tuned")).expect("a rewritten model");
        let (special, scratch) = (opened.record.tokens, std::env::temp_dir());
        let vocabulary = u32::try_from(opened.record.model.tokens()).expect("a small model");
        let data = tuned.path("train.jsonl");
        let corpus = Corpus::read(&data, &Reading::default(), None, special, &scratch, vocabulary, &mut |_, _| ());
        let corpus = corpus.expect("rows of token ids");
        let graph = opened.tapped("grad.onnx").expect("a rewritten model");
        let identity = Identity::new(&opened, &graph, &corpus).expect("the taps of the manifest");
        let execution = Execution::cpu(common::runtime(), 1);
        let session = opened.session(&graph, &execution).expect("a rewritten model");
        let memory = session.host_memory().expect("there is memory");
        let rows: Vec<u32> = (0..corpus.len() as u32).collect();
        let batch = Batch::new(&corpus, &rows, special, &opened.fixed()).expect("a batch");
        let taps = Backbone::new(&opened, graph, &execution).taps_on_host(&batch).expect("taps");
        let cached = Cached { tuned, opened, corpus, identity, rows, batch, taps, memory };
        let (_, computed) = cached.read().expect("a new cache");
        assert!(computed);
        cached
    }

    fn folder(&self) -> PathBuf {
        self.tuned.path("taps")
    }

    /// The taps that the cache gives, and whether they had to be computed.
    fn read(&self) -> anyhow::Result<(Vec<Vec<f32>>, bool)> {
        let request = cache::Request { folder: &self.folder(), element: None, budget: None, threads: 1 };
        let mut cache = Cache::open(&request, &self.opened, self.identity.clone(), &self.corpus)?;
        let mut computed = false;
        let compute = |_: &Batch| {
            computed = true;
            Ok(self.taps.clone())
        };
        let taps = cache.taps((&self.opened, &self.corpus, &self.memory), &self.rows, &self.batch, compute)?;
        let numbers = |tap: Tap| match tap {
            Tap::F32(tensor) => Ok(tensor.read()?.iter().copied().collect()),
            Tap::F16(_) => panic!("the model computes in f32"),
        };
        Ok((taps.into_iter().map(numbers).collect::<anyhow::Result<_>>()?, computed))
    }

    /// The files of the cache.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let entries = fs::read_dir(self.folder()).expect("a cache").flatten();
        entries.map(|e| (e.path(), fs::read(e.path()).expect("a file of the cache"))).collect()
    }
}

#[test]
fn mutants_of_caches_are_computed_again() {
    let cached = Cached::new();
    let sound = cached.files();
    let (expected, computed) = cached.read().expect("a whole cache");
    assert!(!computed);
    let fresh: Vec<Vec<f32>> = cached.taps.iter().map(|tap| numbers(tap.clone())).collect();
    for (path, whole) in &sound {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        each(name, MUTANTS, |seed| {
            restore(&cached.folder(), &sound);
            fs::write(path, bytes::mutant(whole, seed)).expect("a temporary folder");
            // What `lstc cache show --check` says first: reading repairs.
            let survey = cache::survey(&cached.folder(), true, |_, _| ());
            let shown = match &survey {
                Err(error) => {
                    names(error, "taps");
                    false
                }
                Ok(survey) => survey.is_sound() && survey.kept == cached.rows.len(),
            };
            match cached.read() {
                Err(error) => {
                    names(&error, "taps");
                    "refused"
                }
                Ok((taps, computed)) => {
                    // Rows that are whole are read although others are computed: the kernels round by the batch.
                    let others = if computed { &fresh } else { &expected };
                    assert!(agree(&taps, &expected, others), "it is accepted, with other numbers");
                    assert!(shown != computed, "it is computed again, and said to be sound, or the reverse");
                    if computed { "computed again" } else { "without a change that counts" }
                }
            }
        });
    }
    assert!(sound.iter().any(|(path, _)| path.ends_with(ABOUT)));
}

/// Whether each number of some taps is, bit for bit, the one in the same place of one of two others.
fn agree(taps: &[Vec<f32>], one: &[Vec<f32>], other: &[Vec<f32>]) -> bool {
    let shape = |taps: &[Vec<f32>]| taps.iter().map(Vec::len).collect::<Vec<_>>();
    let bits = |taps: &[Vec<f32>]| taps.iter().flatten().map(|v| v.to_bits()).collect::<Vec<_>>();
    let (found, one_bits, other_bits) = (bits(taps), bits(one), bits(other));
    shape(taps) == shape(one)
        && shape(one) == shape(other)
        && found.iter().zip(one_bits.iter().zip(&other_bits)).all(|(x, (a, b))| x == a || x == b)
}

fn numbers(tap: Tensor) -> Vec<f32> {
    tap.as_f32().expect("the model computes in f32").iter().copied().collect()
}

/// A folder with these files, and no others.
fn restore(folder: &Path, files: &[(PathBuf, Vec<u8>)]) {
    for entry in fs::read_dir(folder).expect("a cache").flatten() {
        if !files.iter().any(|(path, _)| *path == entry.path()) {
            fs::remove_file(entry.path()).expect("a file of the cache");
        }
    }
    files.iter().for_each(|(path, bytes)| fs::write(path, bytes).expect("a temporary folder"));
}
