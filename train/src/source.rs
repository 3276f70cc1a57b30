//! Where the taps of a run come from: the backbone, or a cache of its taps.

use lstc_data::{Batch, Corpus};
use lstc_runtime::{HostMemory, Kept, Tensor};
use lstc_tuned::opened::Opened;

use super::backbone::{Backbone, Taps};
use crate::cache::{Cache, Holding, Tap};

/// The backbone, with or without a cache in front of it.
pub(super) struct TapSource<'o> {
    opened: &'o Opened,
    backbone: Backbone<'o>,
    cache: Option<Cache>,
    memory: HostMemory,
    /// Of the taps in the graphs.
    names: Vec<String>,
    /// Warnings not reported yet.
    unreported: Vec<String>,
}

impl<'o> TapSource<'o> {
    /// # Errors
    /// From ONNX Runtime, if the backbone is needed.
    pub(super) fn new(
        opened: &'o Opened,
        mut backbone: Backbone<'o>,
        cache: Option<Cache>,
        memory: HostMemory,
    ) -> anyhow::Result<TapSource<'o>> {
        if cache.as_ref().is_none_or(|cache| !cache.is_whole()) {
            backbone.open()?;
        }
        let graph = backbone.graph();
        let names = graph.outputs.iter().map(|tap| graph.value(*tap).name.clone()).collect();
        Ok(TapSource { opened, backbone, cache, memory, names, unreported: Vec::new() })
    }

    /// The taps of a batch of these rows.
    ///
    /// # Errors
    /// From ONNX Runtime; from the file system, if the cache cannot be read.
    pub(super) fn taps(&mut self, corpus: &Corpus, rows: &[u32], batch: &Batch) -> anyhow::Result<Taps> {
        let TapSource { opened, backbone, cache, memory, names, .. } = self;
        let Some(cache) = cache else { return backbone.taps(batch) };
        let compute = |batch: &Batch| backbone.taps_on_host(batch);
        let taps = cache.taps((opened, corpus, memory), rows, batch, compute)?;
        let kept = |(name, tap): (&String, Tap)| match tap {
            Tap::F32(tensor) => Ok(Kept::new(name, tensor)),
            Tap::F16(array) => Ok(Kept::host(name, Tensor::F16(array))?),
        };
        names.iter().zip(taps).map(kept).collect::<anyhow::Result<_>>().map(Taps)
    }

    /// Why the backbone's runs are not captured, although that was asked for.
    pub(super) fn plain(&self) -> Option<&str> {
        self.backbone.plain()
    }

    /// Lets the kernel read rows in advance.
    pub(super) fn expect(&self, corpus: &Corpus, rows: &[u32]) {
        if let Some(cache) = &self.cache {
            cache.expect(corpus, rows);
        }
    }

    /// What the cache holds, if there is one.
    pub(super) fn holding(&self) -> Option<Holding> {
        self.cache.as_ref().map(Cache::holding)
    }

    /// Warnings that have come up.
    pub(super) fn take_warnings(&mut self) -> Vec<String> {
        let mut warnings = std::mem::take(&mut self.unreported);
        warnings.extend(self.cache.as_mut().map(Cache::take_warnings).unwrap_or_default());
        warnings
    }

    /// Takes back warnings that were not reported.
    pub(super) fn give_back(&mut self, warnings: Vec<String>) {
        self.unreported.extend(warnings);
    }
}
