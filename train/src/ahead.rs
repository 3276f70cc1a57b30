//! The taps of a run's batches in order, made in the step that reads them, or ahead of it in a thread of their own.
//!
//! No gradient enters the backbone, so it can read a batch while the side network still learns from the previous one. The
//! result is the same: on the CPU, losses agree bit for bit. The taps of at most one batch are made in advance.

use std::ops::Range;
use std::sync::mpsc::{Receiver, SendError, sync_channel};
use std::thread::Scope;

use anyhow::{Context, anyhow};
use lstc_data::{Batch, Batches, Corpus};
use lstc_tuned::opened::Opened;

use super::backbone::Taps;
use super::source::TapSource;

/// The taps of a batch, and the warnings that came up.
type Made = anyhow::Result<(Taps, Vec<String>)>;

/// Where a run takes its taps from.
pub(super) enum Upcoming<'s, 'o> {
    Here(&'s mut TapSource<'o>),
    Ahead { made: Receiver<Made>, warnings: Vec<String> },
}

impl<'s, 'o> Upcoming<'s, 'o> {
    /// Begins to make the taps of these batches of an epoch. The thread ends after the last one, or when its reader is gone.
    pub(super) fn ahead<'scope>(
        scope: &'scope Scope<'scope, '_>,
        source: &'scope mut TapSource<'o>,
        (opened, corpus): (&'scope Opened, &'scope Corpus),
        (batches, range): (&'scope Batches, Range<usize>),
    ) -> anyhow::Result<Upcoming<'s, 'o>>
    where
        'o: 'scope,
    {
        // The channel holds nothing: taps belong to one thread or the other.
        let (send, made) = sync_channel::<Made>(0);
        let make = move || {
            for at in range.clone() {
                if range.contains(&(at + 1)) {
                    source.expect(corpus, batches.get(at + 1));
                }
                let rows = batches.get(at);
                let taps = Batch::new(corpus, rows, opened.record.tokens, &opened.fixed())
                    .and_then(|batch| source.taps(corpus, rows, &batch));
                let failed = taps.is_err();
                if let Err(SendError(unread)) = send.send(taps.map(|taps| (taps, source.take_warnings()))) {
                    source.give_back(unread.map(|(_, warnings)| warnings).unwrap_or_default());
                    return;
                }
                if failed {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("taps".to_owned())
            .spawn_scoped(scope, make)
            .context("cannot start the thread that reads ahead: `--overlap off` does without it")?;
        Ok(Upcoming::Ahead { made, warnings: Vec::new() })
    }

    /// The taps of the next batch.
    ///
    /// # Errors
    /// From the backbone, or from the cache.
    pub(super) fn next(&mut self, corpus: &Corpus, rows: &[u32], batch: &Batch) -> anyhow::Result<Taps> {
        match self {
            Upcoming::Here(source) => source.taps(corpus, rows, batch),
            Upcoming::Ahead { made, warnings } => {
                let made = made.recv().map_err(|_| anyhow!("the thread that reads ahead ended unexpectedly"))?;
                let (taps, more) = made?;
                warnings.extend(more);
                Ok(taps)
            }
        }
    }

    /// Lets the kernel read rows in advance.
    pub(super) fn expect(&self, corpus: &Corpus, rows: &[u32]) {
        if let Upcoming::Here(source) = self {
            source.expect(corpus, rows);
        }
    }

    /// Why the backbone's runs are not captured, although that was asked for.
    pub(super) fn plain(&self) -> Option<&str> {
        match self {
            Upcoming::Here(source) => source.plain(),
            // Only on the CPU.
            Upcoming::Ahead { .. } => None,
        }
    }

    /// Warnings that have come up.
    pub(super) fn take_warnings(&mut self) -> Vec<String> {
        match self {
            Upcoming::Here(source) => source.take_warnings(),
            Upcoming::Ahead { warnings, .. } => std::mem::take(warnings),
        }
    }
}
