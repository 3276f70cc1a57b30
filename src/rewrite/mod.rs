//! From a model file to the directory of trainable graphs.

mod companions;
mod folder;
mod model;
mod other_formats;
pub mod precision;
mod source;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use lstc_base::report::{Advise, Hinted};
use lstc_data::Reading;
use lstc_graph::{About, DType, DataFiles, DataWriter, Dim, Encoding, Graph, Links, Means, Saved, Spill, load, widen};
use lstc_models::{Anatomy, MASKED_TOKEN, recognise, unread_inputs};
use lstc_passes::options::{Precision, Sizes};
use lstc_passes::problem::listed;
use lstc_passes::{
    Artifacts, Module, Options, PassError, Store, Timing, artifacts, integer_products, ladder_side_tuning,
};
use lstc_runtime::{Device, Runtime, find};
use lstc_tuned::config::Config;
use lstc_tuned::intact::{self, WrittenFile};
use lstc_tuned::made_for::MadeFor;
use lstc_tuned::manifest::{self, Manifest, SourceFile};
use lstc_tuned::quantised::{Quantised, Sample};
use lstc_tuned::run::Started;
use lstc_tuned::side;
use lstc_tuned::tokens::Settled;
use lstc_tuned::{DATA, GRAPHS, INTEGERS_ON_CUDA, MANIFEST, SIDE, TOKENIZER, about, directory};

use crate::query;
use companions::{Companions, special_tokens};
pub use model::SourceModel;
use precision::{Candidate, Given};
use source::Hashing;
pub use source::source_file;

/// What a rewrite is to make, and from what.
pub struct Request<'r> {
    pub model: SourceModel,
    pub options: Options,
    /// How the result is to be trained, unless a command overrides it.
    pub training: Started,
    pub output: &'r Path,
    /// Replace an earlier rewrite at the output path.
    pub force: bool,
}

/// What to do with the frozen weights: data files that hold them are linked if possible, and the rest is copied.
#[derive(Clone, Copy, Default)]
pub struct Backbone<'r> {
    pub links: Links,
    /// Weights that are not in a data file of the source are linked to those of this rewritten directory.
    pub shared: Option<&'r Path>,
    /// Called with the progress of copies, from before the first byte on.
    pub copying: Option<&'r dyn Fn(&Copying)>,
}

/// How far a copy has come.
#[derive(Clone, Copy, Debug)]
pub struct Copying {
    pub done: u64,
    pub of: u64,
    /// Bytes that are in data files, none of which could be linked.
    pub in_data_files: u64,
}

/// How the backbone's precision is measured, and chosen if it is to be the fastest.
#[derive(Clone, Copy, Default)]
pub struct Measuring<'r> {
    /// A file of examples; if none is given, what was measured on before, or random tokens.
    pub sample: Option<&'r Path>,
    /// What an earlier rewrite was made with, and what it measured: it counts if nothing has changed.
    pub earlier: Option<&'r Config>,
    /// Where the model is to be trained.
    pub device: Device,
    pub precision: Choice,
    /// Called with how many blocks are done, and of how many, during the choice of the products that take more bits. Blocks may
    /// be walked several times.
    pub progress: Option<&'r dyn Fn(usize, usize)>,
}

/// Who chooses the backbone's precision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The options do.
    #[default]
    Said,
    /// No one has: what is usually best on the device.
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
    /// Bytes of the LM head's matrix before and after, if it was quantised.
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

impl Advise for NotUnderstood {
    /// What to do about it, and what shows more.
    fn hint(&self) -> Option<String> {
        let advice = self.refused.likeness.advice();
        let hints: Vec<String> = advice.into_iter().chain(query::hint(self.model.files(), &self.refused)).collect();
        (!hints.is_empty()).then(|| hints.join("; "))
    }

    fn is_answer(&self) -> bool {
        true
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

/// Makes a graph compute in f32 throughout, if that is asked for. One that was exported in f16 may overflow between its products
/// too: in its residual stream, where the taps are.
pub(crate) fn computed_in(graph: &mut Graph, precision: Precision) {
    if precision == Precision::Fp32 {
        widen(graph, DType::F16);
    }
}

fn run_passes(
    model: &SourceModel,
    mut graph: Graph,
    anatomy: Anatomy,
    options: Options,
    store: Store,
    stop_after: Option<&str>,
    after: impl FnMut(&'static str, &Module),
) -> anyhow::Result<(Module, Vec<Timing>)> {
    computed_in(&mut graph, options.backbone.precision);
    let mut module = Module::new(graph, anatomy, options)
        .map_err(|problems| anyhow!("the options do not fit `{model}`\n{}", listed(&problems)))?;
    module.store = store;
    let timings = ladder_side_tuning()
        .run(&mut module, stop_after, after)
        .map_err(|source| Stopped { model: model.clone(), source })?;
    Ok((module, timings))
}

/// The special tokens of a model, by the files beside it, and where they come from.
///
/// # Errors
/// As [`rewrite`].
pub fn tokens(model: &SourceModel, anatomy: &Anatomy, reading: &Reading) -> anyhow::Result<Settled> {
    let companions = Companions::of(model.first(), anatomy.last().width);
    special_tokens(&companions, anatomy.family, anatomy.head.linear.outputs, reading)
}

/// What is odd about the inputs of a model, in words.
pub fn odd_inputs(graph: &Graph, anatomy: &Anatomy) -> Vec<String> {
    let warning = |value| {
        format!(
            "the model does not read what its input `{}` holds: if it was exported with one tensor for two inputs, export it \
             again with two",
            graph.value(value).name
        )
    };
    unread_inputs(graph, anatomy).into_iter().map(warning).collect()
}

/// Rewrites a model: compiles it, and writes the directory under a temporary name that becomes the final one at the
/// end. The weights are linked if possible.
///
/// # Errors
/// As [`compile`]; an output that is there already; anything from the file system.
pub fn rewrite(request: Request, after: impl FnMut(&'static str, &Module)) -> anyhow::Result<Written> {
    rewrite_with(request, Backbone::default(), Measuring::default(), after)
}

/// As [`rewrite`], with a choice of what becomes of the weights, and of how another precision is measured.
///
/// # Errors
/// As [`rewrite`]; a directory to share with that belongs to another model; what keeps the precision from being measured.
pub fn rewrite_with(
    request: Request,
    backbone: Backbone,
    measuring: Measuring,
    after: impl FnMut(&'static str, &Module),
) -> anyhow::Result<Written> {
    let Request { model, options, training, output, force } = request;
    directory::check(model.files(), output, force)?;
    let (graph, anatomy) = open(&model)?;
    // For a large model this takes as long as everything else: run it meanwhile, on the other cores.
    let hashing = Hashing::begin(&model, &graph);
    let mut warnings = odd_inputs(&graph, &anatomy);
    let opset = graph.opset();
    let companions = Companions::of(model.first(), anatomy.last().width);
    let tokens = tokens(&model, &anatomy, &training.data)?;
    warnings.extend(companions.unread_tokenizer()?);
    check_lengths(&anatomy, &options.sizes)?;
    let tokenizer = companions.find(TOKENIZER).map(|found| found.path);
    let folder = directory::begin(output)?;
    if tokens.ids.pad != MASKED_TOKEN && anatomy.masks_by_tokens() {
        bail!(
            "`{model}` takes token {MASKED_TOKEN} for padding, but its configuration pads with token {}: check which is right",
            tokens.ids.pad
        );
    }
    let given = Given { reading: &training.data, tokenizer: tokenizer.as_deref(), special: tokens.ids };
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
        warnings
            .push(format!("the graphs have opset {raised}, the model has opset {opset}: dropout needs the newer one"));
    }
    if let (Some(limit), Some(Quantised { within_limit: Some(false), .. })) =
        (module.options.backbone.limit(), &quantised)
    {
        warnings.push(format!("more bits for products do not bring every tap's error below {limit}: see the manifest"));
    }
    let artifacts = artifacts(&module);
    let cannot = || format!("cannot write `{}`", output.display());
    let mut manifest = Manifest::new(&module, &artifacts, source, tokens, training.clone(), quantised);
    let about = about(&manifest.to_yaml()?)?;
    let made_for = MadeFor::new(&manifest.source, &manifest.method, &manifest.taps);
    let (data, files) =
        write(&companions, &module, &artifacts, (&manifest.source, &about, &made_for), backbone, folder.path())
            .with_context(cannot)?;
    manifest.files = files;
    fs::write(folder.path().join(MANIFEST), manifest.to_yaml()?).with_context(cannot)?;
    narrow(folder.path(), &manifest.source, &data).with_context(cannot)?;
    sync(folder.path(), &data).with_context(cannot)?;
    intact::remember(folder.path(), &manifest.files).with_context(cannot)?;
    directory::publish(folder, model.files(), output, force)?;
    let head = module.quantised_head.as_ref().map(|head| (head.bytes_before, head.bytes_after));
    Ok(Written { manifest, timings, data, head, frozen: frozen_elements(&module), candidates, warnings })
}

/// A text has at least a token, and the token that ends it.
///
/// # Errors
/// A length that is fixed, in the model or by the options, and leaves no room for both.
fn check_lengths(anatomy: &Anatomy, sizes: &Sizes) -> anyhow::Result<()> {
    let last = anatomy.towers.len() - 1;
    for (index, tower) in anatomy.towers.iter().enumerate() {
        let asked = if index == last { sizes.target_length } else { sizes.source_length };
        let fixed = match tower.length {
            Dim::Value(length) => usize::try_from(length).ok(),
            _ => asked,
        };
        if let Some(length) = fixed.filter(|length| *length < 2) {
            let error =
                anyhow!("the length of the {} is fixed at {length} token, but a text has at least two", tower.kind);
            let hint =
                "export the model with free lengths, or longer ones: a text is a token and the token that ends it";
            return Err(Hinted::new(error, hint).into());
        }
    }
    Ok(())
}

/// The options with the fastest precision, if that is asked for.
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

/// Whether a CUDA device has kernels for bf16. A device that is not in this machine is assumed to, as all from Ampere on do.
fn has_bf16(index: u32) -> bool {
    let device = find(Device::Cuda(index)).and_then(|library| Runtime::load(&library)?.cuda(index));
    device.and_then(|device| device.has_bf16()).unwrap_or(true)
}

/// What is measured of a backbone in another precision.
struct Quantising<'q> {
    measuring: &'q Measuring<'q>,
    given: &'q Given<'q>,
    /// For what keeps it from being measured.
    folder: &'q Path,
}

impl Quantising<'_> {
    /// True if it is yet to be measured which products take more bits: neither list is given.
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
        let feeds = precision::feeds(&self.sample()?, &module, self.given)?;
        let scratch = tempfile::tempdir_in(self.folder)?;
        let more =
            precision::more_bits(self.runtime()?, &module, &feeds, limit, scratch.path(), self.measuring.progress)?;
        (options.backbone.kept, options.backbone.in_8_bits) = (Some(more.kept), more.in_8_bits);
        Ok(options)
    }

    /// What the precision loses: as it was measured before, if nothing has changed since.
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
        let feeds = precision::feeds(&sample, module, self.given)?;
        let scratch = tempfile::tempdir_in(self.folder)?;
        let measured = precision::measure(self.runtime()?, module, &feeds, scratch.path())?;
        Ok(Quantised::new(module, sample, measured))
    }

    fn sample(&self) -> anyhow::Result<Sample> {
        let earlier = || self.measuring.earlier.and_then(|e| Some(e.quantised.as_ref()?.sample.clone()));
        match self.measuring.sample {
            Some(file) => precision::sample_of(file),
            None => Ok(earlier().unwrap_or_default()),
        }
    }

    fn runtime(&self) -> anyhow::Result<&'static Runtime> {
        // The process has one library: the one that the device was queried with.
        let device = match find(self.measuring.device) {
            Ok(_) => self.measuring.device,
            Err(_) => Device::Cpu,
        };
        let library = find(device).context("cannot measure what the backbone loses by its precision")?;
        Ok(Runtime::load(&library)?)
    }
}

/// Writes every file of a rewritten model but its manifest into a folder; the data files, and what the manifest records of files.
fn write(
    companions: &Companions,
    module: &Module,
    artifacts: &Artifacts,
    (source, about, made_for): (&[SourceFile], &About, &MadeFor),
    backbone: Backbone,
    folder: &Path,
) -> anyhow::Result<(Vec<Saved>, Vec<WrittenFile>)> {
    let files = artifacts.files();
    let graphs: Vec<&Graph> = files.iter().map(|(_, graph)| *graph).collect();
    let (data, saved, copied) = write_backbone(&graphs, backbone, folder)?;
    let mut written = Vec::new();
    for (name, graph) in files {
        let mut bytes = Vec::new();
        Encoding::new(graph, &data, about).write(&mut bytes)?;
        fs::write(folder.join(name), &bytes).with_context(|| name.to_owned())?;
        let blake3 = blake3::hash(&bytes).to_hex().to_string();
        written.push(WrittenFile { file: name.to_owned(), bytes: bytes.len() as u64, blake3 });
    }
    for Saved { name, bytes, means } in &saved {
        let blake3 = match means {
            Means::Copied => copied.clone(),
            Means::Linked(file) | Means::Reflinked(file) => hash_of(file, source)?,
        };
        written.push(WrittenFile { file: name.clone(), bytes: *bytes, blake3 });
    }
    let initial = module.plan.parameters.iter().map(|p| p.name.as_str()).zip(&module.initial);
    side::save_initial(&folder.join(SIDE), initial, &[made_for.entry()?])?;
    companions.write_tokenizer(folder)?;
    if folder.join(TOKENIZER).is_file() {
        written.push(WrittenFile::new(folder, TOKENIZER)?);
    }
    Ok((saved, written))
}

/// The BLAKE3 of a file, which is known if it is one of the source's.
fn hash_of(file: &Path, source: &[SourceFile]) -> anyhow::Result<String> {
    let known = source.iter().find(|known| known.file.canonicalize().is_ok_and(|path| path == file));
    known.map_or_else(|| Ok(source_file(file, manifest::FilePart::Data)?.blake3), |known| Ok(known.blake3.clone()))
}

/// Writes the data files; the last is the BLAKE3 of the one that is a copy.
fn write_backbone(
    graphs: &[&Graph],
    backbone: Backbone,
    folder: &Path,
) -> anyhow::Result<(DataFiles, Vec<Saved>, String)> {
    let mut writer = DataWriter::new(graphs, folder, DATA);
    writer.link(backbone.links)?;
    if let Some(directory) = backbone.shared {
        share(&mut writer, directory, backbone.links)
            .with_context(|| format!("the weights of `{}` cannot be shared", directory.display()))?;
    }
    let (of, in_data_files) = writer.left();
    let copying = |done| Copying { done, of, in_data_files };
    let notify = |done| backbone.copying.filter(|_| of > 0).map_or((), |hear| hear(&copying(done)));
    let mut hasher = blake3::Hasher::new();
    notify(0);
    let (data, saved) = writer.copy(&mut |bytes| {
        hasher.update(bytes);
        notify(hasher.count());
    })?;
    Ok((data, saved, hasher.finalize().to_hex().to_string()))
}

/// Links what is left to the data files of a rewritten directory.
fn share(writer: &mut DataWriter, directory: &Path, links: Links) -> anyhow::Result<()> {
    intact::record(directory)?;
    let graphs = GRAPHS.iter().map(|file| load(&directory.join(file))).collect::<Result<Vec<_>, _>>()?;
    if writer.is_incomplete() && writer.share(&graphs, links)? == 0 {
        let error = anyhow!("they are not the model's, or the file system cannot share them");
        let hint = "--link makes hard links if a file system has no reflinks; without --share the weights are copied";
        return Err(if links == Links::Reflinks { Hinted::new(error, hint).into() } else { error });
    }
    Ok(())
}

/// Removes from the files of a folder the permissions that a file of the source does not give: weights are in all of them.
fn narrow(folder: &Path, source: &[SourceFile], data: &[Saved]) -> std::io::Result<()> {
    let mode = |path: &Path| Ok::<u32, std::io::Error>(fs::metadata(path)?.permissions().mode());
    let mut mask = 0o777;
    for file in source {
        mask &= mode(&file.file)?;
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let now = mode(&path)?;
        if !is_linked(&path, data) && now & mask != now & 0o777 {
            fs::set_permissions(&path, fs::Permissions::from_mode(now & mask))?;
        }
    }
    Ok(())
}

/// True for a file that shares its bytes and permissions with one of the user's.
fn is_linked(path: &Path, data: &[Saved]) -> bool {
    data.iter().any(|saved| path.ends_with(&saved.name) && matches!(saved.means, Means::Linked(_)))
}

/// Makes sure that the files are on the disk before they get their final name. A hard link's bytes are the source's.
fn sync(folder: &Path, data: &[Saved]) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if !is_linked(&path, data) {
            fs::File::open(path)?.sync_data()?;
        }
    }
    fs::File::open(folder)?.sync_all()?;
    Ok(())
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
