//! The options of a training run. This is also the layout of the `train` section of the configuration file.

use std::fmt;
use std::path::PathBuf;

use lstc_passes::{Narrow, single};
use lstc_runtime::{Device, Runtime};
use serde::{Deserialize, Serialize};

use crate::cache::{Element, Size};
use crate::opened::Execution;

/// A training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainOptions {
    /// Labelled text to train on.
    pub data: Option<PathBuf>,
    /// Labelled text to evaluate on after each epoch.
    pub eval: Option<PathBuf>,
    /// Instead of a file to evaluate on: the share of the training data that is held out for it, by `seed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_fraction: Option<f64>,
    /// Stop after so many evaluations without an improvement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<u64>,
    /// The side network to begin with, or the folder of the run whose best it is; the rewrite's own if none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
    /// The rewritten directory's own if none is given.
    pub tokenizer: Option<PathBuf>,
    pub epochs: u64,
    /// Examples in a batch.
    pub batch_size: usize,
    /// Batches whose gradients are combined into one step.
    pub accumulate: usize,
    /// The highest learning rate.
    pub lr: f64,
    pub schedule: Schedule,
    /// Steps over which the learning rate rises to `lr`; by default a tenth of all steps, but at most 500.
    pub warmup_steps: Option<u64>,
    /// For the order of the examples, and for what is held out; the rewrite's by default.
    pub seed: Option<u64>,
    /// Per operator; by default one per core.
    pub threads: Option<usize>,
    pub device: Device,
    /// Compute the backbone's products on CUDA in TF32: several times faster, with 10 bits of the operands' mantissas.
    pub tf32: bool,
    /// Read weights from their mapped file: less memory, but slower.
    pub map_weights: bool,
    /// Whether the backbone reads the next batch while the side network learns from the previous one.
    pub overlap: Overlap,
    /// How taps are held in memory from the forward pass to the backward pass.
    pub tap_dtype: TapDtype,
    /// On CUDA: whether steps are captured as CUDA graphs, and replayed.
    pub cuda_graphs: CudaGraphs,
    /// On CUDA: steps between reads of the losses. The host waits for the device no more often.
    pub log_every: u64,
    /// Steps between checkpoints; each epoch also ends with one.
    pub save_every: u64,
    /// Where checkpoints and metrics go; `run` in the rewritten directory by default.
    pub out: Option<PathBuf>,
    /// Folder in which taps are kept, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
    /// How much disk space the cache may take; by default all that is free but a margin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_budget: Option<Size>,
    /// The cache's own if it has one, else fp32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_dtype: Option<Element>,
}

impl Default for TrainOptions {
    fn default() -> TrainOptions {
        TrainOptions {
            data: None,
            eval: None,
            eval_fraction: None,
            patience: None,
            from: None,
            tokenizer: None,
            epochs: 5,
            batch_size: 16,
            accumulate: 1,
            lr: 3e-3,
            schedule: Schedule::Linear,
            warmup_steps: None,
            seed: None,
            threads: None,
            device: Device::Cpu,
            tf32: false,
            map_weights: false,
            overlap: Overlap::Auto,
            tap_dtype: TapDtype::Fp32,
            cuda_graphs: CudaGraphs::Auto,
            log_every: 10,
            save_every: 500,
            out: None,
            cache: None,
            cache_budget: None,
            cache_dtype: None,
        }
    }
}

/// More threads than any machine runs well.
const MOST_THREADS: usize = 1024;

impl TrainOptions {
    /// Every option that is not valid.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |holds: bool, problem: String| {
            if !holds {
                problems.push(problem);
            }
        };
        check(self.epochs > 0, "train.epochs is 0: at least one is needed".to_owned());
        check(self.batch_size > 0, "train.batch_size is 0: a batch holds at least one example".to_owned());
        check(self.accumulate > 0, "train.accumulate is 0: a step needs at least one batch".to_owned());
        if let Some(share) = self.eval_fraction {
            let is_share = share > 0.0 && share < 1.0;
            check(is_share, format!("train.eval_fraction is {share}, but must lie between 0 and 1, as in 0.1"));
            let both = "train.eval and train.eval_fraction are both given: evaluate on a file or on a share".to_owned();
            check(self.eval.is_none(), both);
        }
        if let Some(patience) = self.patience {
            check(patience > 0, "train.patience is 0, but must be at least 1".to_owned());
            let evaluates = self.eval.is_some() || self.eval_fraction.is_some();
            check(
                evaluates,
                "train.patience counts evaluations: give train.eval or train.eval_fraction too".to_owned(),
            );
        }
        check(self.lr > 0.0, format!("train.lr is {}, but must be positive", self.lr));
        if let Err(problem) = single::rounded(self.lr) {
            check(false, format!("train.lr {problem}"));
        }
        let threads = self.threads.unwrap_or(1);
        check(
            (1..=MOST_THREADS).contains(&threads),
            format!("train.threads is {threads}, but must be between 1 and {MOST_THREADS}"),
        );
        check(!self.tf32 || self.device != Device::Cpu, "train.tf32 needs CUDA, but train.device is cpu".to_owned());
        check(
            self.tap_dtype == TapDtype::Fp32 || self.cache.is_none(),
            "train.tap_dtype is for taps that are not cached: with train.cache, use train.cache_dtype".to_owned(),
        );
        check(self.log_every > 0, "train.log_every is 0, but must be at least 1".to_owned());
        check(
            self.overlap != Overlap::On || self.device == Device::Cpu,
            "train.overlap applies only to the CPU: on CUDA, the backbone and the side network share one stream"
                .to_owned(),
        );
        let captures = self.cuda_graphs != CudaGraphs::On || self.device != Device::Cpu;
        check(captures, "train.cuda_graphs is on, but train.device is cpu".to_owned());
        check(self.save_every > 0, "train.save_every is 0, but must be at least 1".to_owned());
        problems
    }

    /// Whether the backbone reads ahead on this machine.
    pub fn overlaps(&self) -> bool {
        match (self.overlap, self.device) {
            (Overlap::Off, _) | (_, Device::Cuda(_)) => false,
            (Overlap::On, Device::Cpu) => true,
            (Overlap::Auto, Device::Cpu) => {
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                cores >= self.resolved_threads().saturating_mul(2)
            }
        }
    }

    /// What sessions run on.
    pub fn execution(&self, runtime: &'static Runtime) -> Execution {
        let (device, threads) = (self.device, self.resolved_threads());
        let captures = device != Device::Cpu && self.cuda_graphs != CudaGraphs::Off;
        Execution { runtime, device, threads, mapped: self.map_weights, tf32: self.tf32, captures }
    }

    /// The number of threads on this machine.
    pub fn resolved_threads(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }
}

/// Whether the backbone reads ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Overlap {
    /// If there are cores for both: twice as many as `threads`.
    #[default]
    Auto,
    On,
    Off,
}

/// Whether steps on CUDA are captured as graphs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum CudaGraphs {
    /// As far as they can be.
    #[default]
    Auto,
    /// The whole step, or it is an error.
    On,
    Off,
}

/// As on the command line.
impl fmt::Display for CudaGraphs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CudaGraphs::Auto => "auto",
            CudaGraphs::On => "on",
            CudaGraphs::Off => "off",
        })
    }
}

/// How taps are held in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TapDtype {
    /// As the backbone gives them.
    #[default]
    Fp32,
    /// In half the memory: with 11 bits of mantissa, and not beyond 65504.
    Fp16,
    /// In a quarter of the memory: in 255 steps, with a scale for each token.
    Int8,
}

impl TapDtype {
    /// How the graphs are to store the taps.
    pub fn narrow(self) -> Option<Narrow> {
        match self {
            TapDtype::Fp32 => None,
            TapDtype::Fp16 => Some(Narrow::F16),
            TapDtype::Int8 => Some(Narrow::I8),
        }
    }
}

/// How the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// In a straight line to 0.
    #[default]
    Linear,
    /// Along half a cosine to 0.
    Cosine,
    /// Not at all.
    Constant,
}
