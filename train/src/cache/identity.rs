//! What a cache was made for: everything that decides the taps of an example, and how they are stored.
//!
//! The side network, its initial values and the learning rate are not part of it, so rewrites of one model that read the same
//! taps share a cache.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use lstc_base::files;
use lstc_base::report::Hinted;
use lstc_data::{Corpus, Example, SpecialTokens};
use lstc_graph::{DType, Dim, Graph, regular};
use lstc_models::TowerKind;
use lstc_passes::Point;
use lstc_tuned::cache::{ABOUT, Element};
use lstc_tuned::config::Config;
use lstc_tuned::opened::Opened;
use serde::{Deserialize, Serialize};

use super::index::IdentityHash;
use super::layout::{Axis, Layout, Lengths, Native, TapShape};
use super::structure::{fingerprints, products};

/// A folder that a file system of its own may have at its root.
const FILE_SYSTEMS_OWN: &str = "lost+found";

/// Version of the layout of the files.
const FORMAT: u32 = 1;

/// What a cache was made for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    pub format: u32,
    pub dtype: Element,
    /// BLAKE3 of each file of the source model.
    pub source: Vec<String>,
    /// Products of the backbone by operator and type.
    pub products: BTreeMap<String, usize>,
    pub tokens: SpecialTokens,
    /// SHA-256 of the tokens of all rows, and how many there are.
    pub data: String,
    pub rows: usize,
    /// Tokens of each target, with padding, where its padding counts: with distillation, which sums over all positions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_length: Option<usize>,
    pub taps: Vec<TapIdentity>,
}

/// What a tap is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapIdentity {
    pub tower: TowerKind,
    pub point: Point,
    pub axis: Axis,
    pub width: usize,
    /// Its element type in the graphs.
    pub native: Native,
    /// BLAKE3 of how the backbone computes it.
    pub blake3: String,
}

impl TapIdentity {
    /// For example `encoder 3`.
    pub fn name(&self) -> String {
        format!("{} {}", self.tower.name(), self.point)
    }
}

impl Identity {
    /// The identity of the taps that a backbone, whose outputs they are, computes for a corpus.
    ///
    /// # Errors
    /// A graph whose outputs are not taps of the manifest.
    pub fn new(opened: &Opened, backbone: &Graph, corpus: &Corpus) -> anyhow::Result<Identity> {
        let record = &opened.record;
        let last = record.inputs.iter().map(|input| input.tower).max();
        let hashes = fingerprints(backbone)?;
        let taps = backbone.outputs.iter().zip(hashes).map(|(value, hash)| {
            let name = &backbone.value(*value).name;
            let tap = record.taps.iter().find(|tap| tap.value == *name);
            let tap = tap.ok_or_else(|| anyhow!("`{name}` is not a tap in the manifest: rewrite the model again"))?;
            let shape = backbone.shape(*value).unwrap_or_default();
            let width = match shape.last() {
                Some(Dim::Value(width)) if shape.len() == 3 => usize::try_from(*width).ok().filter(|width| *width > 0),
                _ => None,
            };
            let native = match backbone.value(*value).dtype {
                // A type without kernels runs in f32.
                Some(DType::F32 | DType::BF16) => Native::F32,
                Some(DType::F16) => Native::F16,
                other => {
                    bail!(
                        "the tap `{name}` has a type that a cache cannot store: {}",
                        other.map_or("none", DType::name)
                    )
                }
            };
            Ok(TapIdentity {
                native,
                tower: tap.tower,
                point: tap.point,
                axis: if Some(tap.tower) == last { Axis::Target } else { Axis::Source },
                width: width.ok_or_else(|| anyhow!("the tap `{name}` is not a [batch, length, width] tensor"))?,
                blake3: hash.to_hex().to_string(),
            })
        });
        let taps: Vec<TapIdentity> = taps.collect::<anyhow::Result<_>>()?;
        let longest = || (0..corpus.len()).map(|row| corpus.example(row).target.len()).max();
        Ok(Identity {
            target_length: if record.distills() { opened.fixed().target.or_else(longest) } else { None },
            format: FORMAT,
            dtype: Element::default(),
            source: record.source.iter().map(|file| file.blake3.clone()).collect(),
            products: products(backbone),
            tokens: record.tokens,
            data: corpus.sha256().to_owned(),
            rows: corpus.len(),
            taps,
        })
    }

    /// The tokens of an example that are kept.
    pub fn lengths(&self, example: &Example) -> Lengths {
        let lengths = Lengths::of(example);
        Lengths { target: self.target_length.unwrap_or(lengths.target), ..lengths }
    }

    pub fn layout(&self) -> Layout {
        let shape = |tap: &TapIdentity| TapShape { axis: tap.axis, width: tap.width, native: tap.native };
        Layout { element: self.dtype, taps: self.taps.iter().map(shape).collect() }
    }

    /// The hash that the shards of the cache carry.
    pub fn hash(&self) -> anyhow::Result<IdentityHash> {
        Ok(*blake3::hash(&serde_json::to_vec(self)?).as_bytes())
    }

    /// How a cache with this identity differs from the wanted one, in words.
    fn differences(&self, wanted: &Identity) -> Vec<String> {
        let mut differences = Vec::new();
        let mut check = |same: bool, what: String| {
            if !same {
                differences.push(what);
            }
        };
        check(self.source == wanted.source, "it belongs to another source model".to_owned());
        let words = |products: &BTreeMap<String, usize>| {
            products.iter().map(|(op, count)| format!("{count} {op}")).collect::<Vec<_>>().join(", ")
        };
        let (mine, theirs) = (words(&self.products), words(&wanted.products));
        check(mine == theirs, format!("its backbone computed with other products: {mine}, now {theirs}"));
        let names = |identity: &Identity| identity.taps.iter().map(TapIdentity::name).collect::<Vec<_>>();
        let (mine, theirs) = (names(self), names(wanted));
        let taps = format!("it holds the taps {}; the side network reads {}", mine.join(", "), theirs.join(", "));
        check(mine == theirs, taps);
        // A difference that was reported is not reported again.
        if mine == theirs && self.source == wanted.source && self.products == wanted.products {
            check(self.taps == wanted.taps, "the backbone now computes its taps differently".to_owned());
        }
        check(self.tokens == wanted.tokens, "it has another padding, end or start token".to_owned());
        if self.data != wanted.data {
            check(false, "the data, the tokenizer or the length limits have changed since it was made".to_owned());
        }
        check(self.rows == wanted.rows, format!("it is for {} rows, but there are {}", self.rows, wanted.rows));
        if self.data == wanted.data {
            let words = |length: Option<usize>| {
                length.map_or("without padding".to_owned(), |n| format!("padded to {n} tokens"))
            };
            let (mine, theirs) = (words(self.target_length), words(wanted.target_length));
            check(mine == theirs, format!("its targets are stored {mine}, not {theirs}"));
        }
        let (mine, theirs) = (self.dtype.name(), wanted.dtype.name());
        check(mine == theirs, format!("it is stored as {mine}, not {theirs}"));
        differences
    }
}

/// What the cache in a folder was made for; `None` where there is no cache.
///
/// # Errors
/// A file that is damaged, or from another version.
pub fn recorded(folder: &Path) -> anyhow::Result<Option<Identity>> {
    /// What every version records.
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let path = folder.join(ABOUT);
    let text = match regular::read_text(&path, Config::LIMIT) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.with_context(|| format!("cannot read `{}`", path.display()))?,
    };
    let damaged = || format!("`{}` is damaged", path.display());
    let Version { format } = serde_yaml::from_str(&text).with_context(damaged)?;
    if format != FORMAT {
        let error = anyhow!("the cache `{}` has format {format}, not {FORMAT}", folder.display());
        return Err(Hinted::new(error, "another version of lstc made it; remove it, or give another folder").into());
    }
    serde_yaml::from_str(&text).with_context(damaged).map(Some)
}

/// Makes a folder the cache for what is wanted, in the requested element type, or finds that it already is; returns its identity.
/// Several processes may do so at once.
///
/// # Errors
/// A folder that holds something else, with all that differs; from the file system.
pub fn settle(folder: &Path, mut wanted: Identity, asked: Option<Element>) -> anyhow::Result<Identity> {
    if recorded(folder)?.is_none() {
        wanted.dtype = asked.unwrap_or_default();
        create(folder, &wanted)?;
    }
    let Some(found) = recorded(folder)? else { bail!("the cache `{}` was removed", folder.display()) };
    wanted.dtype = asked.unwrap_or(found.dtype);
    let differences = found.differences(&wanted);
    if !differences.is_empty() || found != wanted {
        let error =
            anyhow!("the cache `{}` was made for something else\n  {}", folder.display(), differences.join("\n  "));
        let hint = "give --cache another folder to begin another cache; remove this one if it is no longer needed";
        return Err(Hinted::new(error, hint).into());
    }
    Ok(found)
}

/// Writes a cache's identity, unless another process was first.
fn create(folder: &Path, identity: &Identity) -> anyhow::Result<()> {
    let context = || format!("cannot create a cache in `{}`", folder.display());
    fs::create_dir_all(folder).with_context(context)?;
    let is_foreign = |entry: fs::DirEntry| {
        let name = entry.file_name();
        !name.to_string_lossy().starts_with('.') && name != ABOUT && name != FILE_SYSTEMS_OWN
    };
    if fs::read_dir(folder).with_context(context)?.flatten().any(is_foreign) && recorded(folder)?.is_none() {
        bail!("`{}` holds other files, and is not a cache", folder.display());
    }
    let text = serde_yaml::to_string(identity)?;
    let written = files::create(&folder.join(ABOUT), |file| Ok(file.write_all(text.as_bytes())?));
    let is_taken = |error: &io::Error| error.kind() == io::ErrorKind::AlreadyExists;
    match written {
        Err(error) if error.downcast_ref().is_some_and(is_taken) => Ok(()),
        written => written.with_context(context),
    }
}
