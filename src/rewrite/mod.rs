//! From a model file to the directory of trainable graphs.

mod companions;
pub mod config;
pub(crate) mod directory;
pub mod manifest;
mod model;
pub mod opened;
mod placement;
pub mod precision;
mod source;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use lstc_graph::{DataFiles, DataWriter, Graph, Means, Saved, Spill, encode, load};
use lstc_models::{Anatomy, MASKED_TOKEN, recognise, unread_inputs};
use lstc_passes::options::Precision;
use lstc_passes::{
    Artifacts, Module, Options, PassError, Store, Timing, artifacts, integer_products, ladder_side_tuning,
};

use crate::inspect::why;
use crate::report::Hinted;
use crate::runtime::{Device, Runtime, find};
use crate::side;
use crate::train::Started;
pub use companions::TOKENIZER;
use companions::{copy_tokenizer, special_tokens};
use config::Config;
use manifest::{Manifest, SourceFile};
pub use model::SourceModel;
use precision::{Candidate, Given, Quantised, Sample};
use source::Hashing;
pub use source::source_file;

/// The frozen weights' file. Where one does not do, `backbone.1.data` and so on lie beside it.
pub const DATA: &str = "backbone.data";
/// The initial side network's file.
pub const SIDE: &str = "side.safetensors";
/// The folder of a training run, where no other is given.
pub const RUN: &str = "run";
/// The graphs' files.
pub const GRAPHS: [&str; 5] = ["train.onnx", "grad.onnx", "apply.onnx", "eval.onnx", "infer.onnx"];
/// The manifest's file.
pub const MANIFEST: &str = "lst.yaml";

/// What a rewrite is to make of what.
pub struct Request<'r> {
    pub model: SourceModel,
    pub options: Options,
    /// How the result is to be trained, where a command says nothing else.
    pub training: Started,
    pub output: &'r Path,
    /// Replace an earlier rewrite in the output's place.
    pub force: bool,
}

/// What becomes of the frozen weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backbone<'r> {
    /// The source's own data files are linked where they can be; what cannot is copied.
    #[default]
    Linked,
    /// All are copied.
    Copied,
    /// As `Linked`, but what cannot be is linked to the data files of this rewritten directory.
    Shared(&'r Path),
}

/// How the backbone's precision is measured, and chosen where it is to be the fastest.
#[derive(Clone, Copy, Default)]
pub struct Measuring<'r> {
    /// A file of examples; what was measured on before, or random tokens, where there is none.
    pub sample: Option<&'r Path>,
    /// What an earlier rewrite was made with, and what it measured: it counts where nothing has changed.
    pub earlier: Option<&'r Config>,
    /// Where the model is to be trained.
    pub device: Device,
    pub precision: Choice,
    /// Hears how many blocks are done, and of how many, while it is measured which products take more bits. Blocks may be walked
    /// several times over.
    pub progress: Option<&'r dyn Fn(usize, usize)>,
}

/// What becomes of a model of integers on CUDA.
pub const INTEGERS_ON_CUDA: &str = "the model uses integer products, for which there are no CUDA kernels: on CUDA its weights are \
                                    dequantised once and multiplied in bf16 (in f32 before Ampere)";

/// Who chooses the backbone's precision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The options do.
    #[default]
    Said,
    /// Nobody has: what is best as a rule on the device.
    Open,
    /// What is measured to be the fastest on the device.
    Fastest,
}

/// What was written.
pub struct Written {
    pub manifest: Manifest,
    pub timings: Vec<Timing>,
    pub data: Vec<Saved>,
    /// Elements of the backbone's weights, each counted once.
    pub frozen: usize,
    /// Bytes of the LM head's matrix before and after, where it was quantised.
    pub head: Option<(u64, u64)>,
    /// The precisions that were measured, the fastest first.
    pub candidates: Vec<Candidate>,
    /// What is odd about the model.
    pub warnings: Vec<String>,
}

/// A model that a pass, or its invariants, stopped.
#[derive(Debug, thiserror::Error)]
#[error("cannot rewrite `{model}`")]
pub struct Stopped {
    model: SourceModel,
    source: PassError,
}

/// Loads and recognises a model.
///
/// # Errors
/// What is wrong with the file, or everything that was not understood.
pub fn open(model: &SourceModel) -> anyhow::Result<(Graph, Anatomy)> {
    let mut graph = model.read()?;
    let anatomy = recognise(&mut graph).map_err(|refused| NotUnderstood { model: model.clone(), refused })?;
    Ok((graph, anatomy))
}

/// A model that was refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot rewrite `{model}`: it {}\n{refused}", refused.likeness.verdict())]
pub struct NotUnderstood {
    pub model: SourceModel,
    pub refused: lstc_models::Refused,
}

impl NotUnderstood {
    /// What to do about it, and what shows more.
    pub fn hint(&self) -> Option<String> {
        let advice = self.refused.likeness.advice();
        let hints: Vec<String> = advice.into_iter().chain(why::hint(&self.model, &self.refused)).collect();
        (!hints.is_empty()).then(|| hints.join("; "))
    }
}

/// Runs the passes over a model.
///
/// # Errors
/// As [`open`]; options that do not fit the model; a pass that fails.
pub fn compile(
    model: impl Into<SourceModel>,
    options: Options,
    stop_after: Option<&str>,
    after: impl FnMut(&'static str, &Module),
) -> anyhow::Result<(Module, Vec<Timing>)> {
    let model = model.into();
    let (graph, anatomy) = open(&model)?;
    let options = Options { backbone: precision::decided(options.backbone), ..options };
    let store = store(&options, &std::env::temp_dir())?;
    run_passes(&model, graph, anatomy, options, store, stop_after, after)
}

/// As [`compile`], for what goes by shapes alone: the matrices of a backbone in another precision are not made.
///
/// # Errors
/// As [`compile`].
pub fn sketch(model: impl Into<SourceModel>, options: Options) -> anyhow::Result<Module> {
    let model = model.into();
    let (graph, anatomy) = open(&model)?;
    Ok(run_passes(&model, graph, anatomy, options, Store::sketch(), None, |_, _| ())?.0)
}

/// Where quantised matrices are kept until they are written: a file without a name in a folder.
fn store(options: &Options, folder: &Path) -> anyhow::Result<Store> {
    if options.backbone.precision == Precision::Source && !options.backbone.quantise_head {
        return Ok(Store::default());
    }
    let file =
        tempfile::tempfile_in(folder).with_context(|| format!("cannot create a file in `{}`", folder.display()))?;
    let spill = Spill::new(file);
    Ok(Store::new(move |dtype, dims, bytes| spill.keep(dtype, dims, &bytes).map_err(|e| e.to_string())))
}

fn run_passes(
    model: &SourceModel,
    graph: Graph,
    anatomy: Anatomy,
    options: Options,
    store: Store,
    stop_after: Option<&str>,
    after: impl FnMut(&'static str, &Module),
) -> anyhow::Result<(Module, Vec<Timing>)> {
    let mut module = Module::new(graph, anatomy, options)
        .map_err(|problems| anyhow!("the options do not fit `{model}`\n  {}", problems.join("\n  ")))?;
    module.store = store;
    let timings = ladder_side_tuning()
        .run(&mut module, stop_after, after)
        .map_err(|source| Stopped { model: model.clone(), source })?;
    Ok((module, timings))
}

/// What is odd about the inputs of a model, in words.
pub fn odd_inputs(graph: &Graph, anatomy: &Anatomy) -> Vec<String> {
    let told = |value| {
        format!(
            "the model does not read what its input `{}` holds: if it was exported with one tensor for two inputs, export it \
             again with two",
            graph.value(value).name
        )
    };
    unread_inputs(graph, anatomy).into_iter().map(told).collect()
}

/// Rewrites a model: compiles it, and writes the directory under a temporary name that becomes the final one at the
/// end. The weights are linked where they can be.
///
/// # Errors
/// As [`compile`]; an output that is there already; anything from the file system.
pub fn rewrite(request: Request, after: impl FnMut(&'static str, &Module)) -> anyhow::Result<Written> {
    rewrite_with(request, Backbone::default(), Measuring::default(), after)
}

/// As [`rewrite`], with a choice of what becomes of the weights, and of how another precision is measured.
///
/// # Errors
/// As [`rewrite`]; a directory to share with that is of another model; what keeps the precision from being measured.
pub fn rewrite_with(
    request: Request,
    backbone: Backbone,
    measuring: Measuring,
    after: impl FnMut(&'static str, &Module),
) -> anyhow::Result<Written> {
    let Request { model, options, training, output, force } = request;
    directory::check(model.files(), output, force)?;
    let (graph, anatomy) = open(&model)?;
    // As long as everything else takes, where the model is large: at once, on the other cores.
    let hashing = Hashing::begin(&model, &graph);
    let mut warnings = odd_inputs(&graph, &anatomy);
    let opset = graph.opset();
    let folder = directory::begin(output)?;
    let tokens = special_tokens(model.first(), anatomy.family)?;
    if tokens.pad != MASKED_TOKEN && anatomy.masks_by_tokens() {
        bail!(
            "`{model}` takes token {MASKED_TOKEN} for padding, and its configuration fills up with token {}: which is right?",
            tokens.pad
        );
    }
    let tokenizer = model.first().with_file_name(TOKENIZER);
    let given = Given { reading: &training.data, tokenizer: &tokenizer, special: tokens };
    let (options, candidates) = chosen(&graph, &anatomy, options, &measuring, folder.path())?;
    let compiled = |options: Options, after: &mut dyn FnMut(&'static str, &Module)| {
        let store = store(&options, folder.path())?;
        run_passes(&model, graph.clone(), anatomy.clone(), options, store, None, after)
    };
    let quantising = Quantising { measuring: &measuring, given: &given, folder: folder.path() };
    let mut after = after;
    let (options, source) = if quantising.is_open(&options) {
        (quantising.with_more_bits(options, |options| Ok(compiled(options, &mut |_, _| ())?.0))?, None)
    } else {
        (options, None::<Vec<SourceFile>>)
    };
    let (module, timings) = compiled(options, &mut after)?;
    let source = source.map_or_else(|| hashing.finish(), Ok)?;
    let quantised = quantising.outcome(&module, &source)?;
    if measuring.device != Device::Cpu && integer_products(&module.graph) > 0 {
        warnings.push(INTEGERS_ON_CUDA.to_owned());
    }
    let raised = module.graph.opset();
    if raised != opset {
        warnings.push(format!("the graphs are of opset {raised}, the model is of opset {opset}: dropout needs it"));
    }
    if let (Some(limit), Some(Quantised { within_limit: Some(false), .. })) =
        (module.options.backbone.limit(), &quantised)
    {
        warnings.push(format!("more bits for products do not bring every tap's error below {limit}: see the manifest"));
    }
    let artifacts = artifacts(&module);
    let cannot = || format!("cannot write `{}`", output.display());
    let data = write(&model, &module, &artifacts, backbone, folder.path()).with_context(cannot)?;
    let manifest = Manifest::new(&module, &artifacts, source, tokens, training.clone(), quantised);
    fs::write(folder.path().join(MANIFEST), manifest.to_yaml()?).with_context(cannot)?;
    sync(folder.path(), &data).with_context(cannot)?;
    directory::publish(folder, model.files(), output, force)?;
    let head = module.quantised_head.as_ref().map(|head| (head.bytes_before, head.bytes_after));
    Ok(Written { manifest, timings, data, head, frozen: frozen_elements(&module), candidates, warnings })
}

/// The options with the precision that is the fastest, where that is asked for.
fn chosen(
    graph: &Graph,
    anatomy: &Anatomy,
    mut options: Options,
    measuring: &Measuring,
    scratch: &Path,
) -> anyhow::Result<(Options, Vec<Candidate>)> {
    let mut candidates = Vec::new();
    let device = measuring.device;
    match (measuring.precision, device) {
        (Choice::Fastest, _) => {
            let runtime = Runtime::load(&find(device)?)?;
            candidates = precision::fastest(runtime, device, graph, anatomy, &options, scratch)?;
            options.backbone.precision = candidates.first().map_or(Precision::Source, |c| c.precision);
            options.backbone.forget();
        }
        (Choice::Open, Device::Cuda(index)) if options.backbone.precision == Precision::Source => {
            if precision::is_f32(graph, anatomy) && has_bf16(index) {
                options.backbone.precision = Precision::Bf16;
                options.backbone.forget();
            }
        }
        (Choice::Said | Choice::Open, _) => {}
    }
    if options.backbone.precision == Precision::Int8 && device != Device::Cpu {
        let error = anyhow!("an int8 backbone runs only on the CPU: ONNX Runtime has no kernels for it on {device}");
        let hint = "--backbone bf16 is the fastest there, --backbone int4 takes the least memory";
        return Err(Hinted::new(error, hint).into());
    }
    if let (Precision::Bf16, Device::Cuda(index)) = (options.backbone.precision, device)
        && !has_bf16(index)
    {
        let error = anyhow!("{device} does not support bf16, which needs Ampere or later");
        return Err(Hinted::new(error, "--backbone source and int4 run there").into());
    }
    options.backbone = precision::decided(options.backbone);
    Ok((options, candidates))
}

/// Whether a CUDA device has kernels for bf16. One that is not in this machine is taken for one that has, as all from Ampere on do.
fn has_bf16(index: u32) -> bool {
    let device = find(Device::Cuda(index)).and_then(|library| Runtime::load(&library)?.cuda(index));
    device.and_then(|device| device.has_bf16()).unwrap_or(true)
}

/// What is measured of a backbone in another precision.
struct Quantising<'q> {
    measuring: &'q Measuring<'q>,
    given: &'q Given<'q>,
    /// For what is in the way of being measured.
    folder: &'q Path,
}

impl Quantising<'_> {
    /// True where it is yet to be measured which products take more bits: neither list is given.
    fn is_open(&self, options: &Options) -> bool {
        options.backbone.limit().is_some() && options.backbone.kept.is_none() && options.backbone.in_8_bits.is_none()
    }

    /// The options with the products that take more bits.
    fn with_more_bits(
        &self,
        mut options: Options,
        compiled: impl FnOnce(Options) -> anyhow::Result<Module>,
    ) -> anyhow::Result<Options> {
        let Some(limit) = options.backbone.limit() else { return Ok(options) };
        let module = compiled(options.clone())?;
        let feeds = self.sample()?.feeds(&module, self.given)?;
        let scratch = tempfile::tempdir_in(self.folder)?;
        let more =
            precision::more_bits(self.runtime()?, &module, &feeds, limit, scratch.path(), self.measuring.progress)?;
        (options.backbone.kept, options.backbone.in_8_bits) = (Some(more.kept), more.in_8_bits);
        Ok(options)
    }

    /// What the precision loses: as it was measured before, where nothing has changed since.
    fn outcome(&self, module: &Module, source: &[SourceFile]) -> anyhow::Result<Option<Quantised>> {
        if module.quantised.is_none() {
            return Ok(None);
        }
        let sample = self.sample()?;
        let options = &module.options;
        let same = |earlier: &&Config| {
            let hashes = |files: &[SourceFile]| files.iter().map(|f| f.blake3.clone()).collect::<Vec<_>>();
            earlier.backbone == options.backbone
                && earlier.options().reads_ends() == options.reads_ends()
                && earlier.sizes == options.sizes
                && earlier.written_by() == Some(env!("CARGO_PKG_VERSION"))
                && hashes(&earlier.source) == hashes(source)
        };
        let known = self.measuring.earlier.filter(same).and_then(|earlier| earlier.quantised.as_ref());
        if let Some(known) = known.filter(|known| known.sample == sample) {
            return Ok(Some(known.clone()));
        }
        let feeds = sample.feeds(module, self.given)?;
        let scratch = tempfile::tempdir_in(self.folder)?;
        let measured = precision::measure(self.runtime()?, module, &feeds, scratch.path())?;
        Ok(Quantised::new(module, sample, measured))
    }

    fn sample(&self) -> anyhow::Result<Sample> {
        let earlier = || self.measuring.earlier.and_then(|e| Some(e.quantised.as_ref()?.sample.clone()));
        match self.measuring.sample {
            Some(file) => Sample::of(file),
            None => Ok(earlier().unwrap_or_default()),
        }
    }

    fn runtime(&self) -> anyhow::Result<&'static Runtime> {
        // The process has one library: the one that the device was asked with.
        let device = match find(self.measuring.device) {
            Ok(_) => self.measuring.device,
            Err(_) => Device::Cpu,
        };
        let library = find(device).context("what the backbone loses by its precision cannot be measured")?;
        Ok(Runtime::load(&library)?)
    }
}

/// Writes every file of a rewritten model but its manifest into a folder.
fn write(
    model: &SourceModel,
    module: &Module,
    artifacts: &Artifacts,
    backbone: Backbone,
    folder: &Path,
) -> anyhow::Result<Vec<Saved>> {
    let files = artifacts.files();
    let graphs: Vec<&Graph> = files.iter().map(|(_, graph)| *graph).collect();
    let (data, saved) = write_backbone(&graphs, backbone, folder)?;
    for (name, graph) in files {
        fs::write(folder.join(name), encode(graph, &data)).with_context(|| name.to_owned())?;
    }
    let initial = module.plan.parameters.iter().map(|p| p.name.as_str()).zip(&module.initial);
    side::save_initial(&folder.join(SIDE), initial)?;
    copy_tokenizer(model.first(), folder)?;
    Ok(saved)
}

/// Writes the data files.
fn write_backbone(graphs: &[&Graph], backbone: Backbone, folder: &Path) -> anyhow::Result<(DataFiles, Vec<Saved>)> {
    let mut writer = DataWriter::new(graphs, folder, DATA);
    if backbone != Backbone::Copied {
        writer.link()?;
    }
    if let Backbone::Shared(directory) = backbone {
        share(&mut writer, directory)
            .with_context(|| format!("the weights of `{}` cannot be shared", directory.display()))?;
    }
    Ok(writer.copy()?)
}

/// Links what is left to the data files of a rewritten directory.
fn share(writer: &mut DataWriter, directory: &Path) -> anyhow::Result<()> {
    manifest::record(directory)?;
    let graphs = GRAPHS.iter().map(|file| load(&directory.join(file))).collect::<Result<Vec<_>, _>>()?;
    if writer.is_incomplete() && writer.share(&graphs)? == 0 {
        bail!("they are none of the model's, or lie on another file system");
    }
    Ok(())
}

/// Makes sure that the files are on the disk before they get their final name. A hard link's bytes are the source's.
fn sync(folder: &Path, data: &[Saved]) -> anyhow::Result<()> {
    let is_linked = |path: &Path| data.iter().any(|s| path.ends_with(&s.name) && matches!(s.means, Means::Linked(_)));
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if !is_linked(&path) {
            fs::File::open(path)?.sync_data()?;
        }
    }
    fs::File::open(folder)?.sync_all()?;
    Ok(())
}

/// The data files of a rewritten directory.
///
/// # Errors
/// From the file system.
pub fn data_files(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let is_data = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("backbone.") && name.ends_with(".data"))
    };
    let paths = fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    Ok(paths.into_iter().filter(is_data).collect())
}

/// Elements of the source's float weights. A tied head's transposed copy counts once with the table.
pub fn frozen_elements(module: &Module) -> usize {
    let (graph, head) = (&module.graph, &module.anatomy.head);
    let uses = graph.uses();
    let taken: std::collections::HashSet<_> =
        module.quantised.iter().flat_map(|q| q.products.iter().map(|p| p.source.weight)).collect();
    let counted = |v: &lstc_graph::ValueId| {
        let copy =
            head.tied && head.linear.weight.value() == Some(*v) && module.anatomy.last().table.value() != Some(*v);
        !copy && (!uses.of(*v).is_empty() || taken.contains(v)) && !module.is_new(*v) && !module.is_folded(*v)
    };
    let weights = graph.value_ids().filter(counted).filter_map(|v| graph.weight(v));
    let floats: usize = weights.filter(|w| w.dtype().is_float() && !w.dims().is_empty()).map(|w| w.elements()).sum();
    floats + module.anatomy.quantised().iter().map(|q| q.dims().iter().product::<usize>()).sum::<usize>()
}

/// Nodes by the pass that made them, in the order of the passes.
pub fn nodes_by_pass(graph: &Graph) -> Vec<(String, usize)> {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for id in graph.node_ids() {
        let pass = graph.node(id).origin.name();
        match counts.iter_mut().find(|(name, _)| name == pass) {
            Some((_, count)) => *count += 1,
            None => counts.push((pass.to_owned(), 1)),
        }
    }
    counts
}
