//! What a cache's folder holds, as far as can be seen without the data.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, anyhow};
use lstc_base::report::Hinted;
use lstc_graph::regular;
use serde::Serialize;

use super::identity::{Identity, recorded};
use super::index::{self, Found, checksum};
use super::layout::Lengths;
use super::shard::{self, Shard};

/// What a cache was made for, and what it holds.
#[derive(Clone, Debug, Serialize)]
pub struct Survey {
    pub identity: Identity,
    /// Bytes of a token of the source, and of the target.
    pub token_bytes: (usize, usize),
    /// Rows that are kept.
    pub kept: usize,
    pub shards: usize,
    /// Bytes on the disk.
    pub bytes: u64,
    /// Tokens of the records: of sources, and of targets.
    pub tokens: (u64, u64),
    /// Damaged entries, and entries without their records, of rows that are kept nowhere else.
    pub damaged_entries: usize,
    /// Rows whose records are not as they were written; none if records were not read.
    pub damaged_records: Option<usize>,
    /// Indices of other caches.
    pub foreign: Vec<String>,
}

/// What is kept of a row.
enum Record {
    /// An entry, but no record where it points.
    Missing,
    Damaged,
    /// With its tokens of source and target.
    Sound {
        tokens: (u64, u64),
    },
}

impl Survey {
    pub fn is_sound(&self) -> bool {
        self.damaged_entries == 0 && self.damaged_records.unwrap_or(0) == 0 && self.foreign.is_empty()
    }
}

/// Surveys a cache; also reads every record if they are to be checked. `progress` is given the number of shards done, and of all.
///
/// # Errors
/// A folder that is not a cache; from the file system.
pub fn survey(folder: &Path, check: bool, mut progress: impl FnMut(usize, usize)) -> anyhow::Result<Survey> {
    let Some(identity) = recorded(folder)? else {
        let error = anyhow!("`{}` is not a cache", folder.display());
        return Err(Hinted::new(error, "`lstc cache build` or `lstc train --cache` makes one").into());
    };
    let (hash, layout) = (identity.hash()?, identity.layout());
    let paths = shard::list(folder).with_context(|| format!("cannot read the cache `{}`", folder.display()))?;
    // Whether the last record of a row is there and sound: the one that is read.
    let mut rows: HashMap<u64, Record> = HashMap::new();
    let mut survey = Survey {
        token_bytes: layout.token_bytes(),
        identity,
        kept: 0,
        shards: paths.len(),
        bytes: 0,
        tokens: (0, 0),
        damaged_entries: 0,
        damaged_records: check.then_some(0),
        foreign: Vec::new(),
    };
    for (done, path) in paths.iter().enumerate() {
        progress(done, paths.len());
        let index_path = shard::index_of(path);
        let context = || format!("cannot read `{}`", index_path.display());
        let index = regular::open(&index_path).with_context(context)?;
        let index_bytes = index.metadata().with_context(context)?.len();
        let mut entries = Vec::new();
        let found = index::read(index, &hash, |entry| entries.push(entry)).with_context(context)?;
        // Another process may be adding records, each before its entry.
        let bytes = fs::metadata(path).map_or(0, |m| m.len());
        survey.bytes += bytes + index_bytes;
        let shard = if check && bytes > 0 {
            Some(Shard::map(path).with_context(|| format!("cannot read `{}`", path.display()))?)
        } else {
            None
        };
        let of = survey.identity.rows as u64;
        for entry in entries {
            let lengths = Lengths { source: entry.source as usize, target: entry.target as usize };
            let length = layout.bytes(lengths);
            if entry.row >= of {
                survey.damaged_entries += 1;
                continue;
            }
            if entry.offset.checked_add(length as u64).is_none_or(|end| end > bytes) {
                rows.entry(entry.row).or_insert(Record::Missing);
                continue;
            }
            let holds = shard.as_ref().is_none_or(|shard| {
                let record = shard.get(entry.offset, length);
                let holds = record.is_some_and(|record| checksum(record) == entry.checksum);
                shard.release(entry.offset, length);
                holds
            });
            let tokens = (u64::from(entry.source), u64::from(entry.target));
            rows.insert(entry.row, if holds { Record::Sound { tokens } } else { Record::Damaged });
        }
        match found {
            Found::Entries { dropped } => survey.damaged_entries += dropped,
            Found::Other => survey.foreign.push(index_path.display().to_string()),
        }
    }
    for record in rows.values() {
        match record {
            Record::Missing => survey.damaged_entries += 1,
            Record::Damaged => *survey.damaged_records.get_or_insert(0) += 1,
            Record::Sound { tokens: (source, target) } => {
                survey.kept += 1;
                survey.tokens.0 += source;
                survey.tokens.1 += target;
            }
        }
    }
    // Nothing is lost of a row that is kept elsewhere.
    if survey.kept == survey.identity.rows {
        survey.damaged_entries = 0;
    }
    Ok(survey)
}
