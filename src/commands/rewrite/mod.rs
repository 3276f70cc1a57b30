//! `lstc rewrite`: the trainable graphs.

mod flags;
mod summary;

use std::cell::RefCell;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use lstc_base::files::keep_private;
use lstc_base::report::{self, Bytes, Exit, Format, Hinted, ProgressLine};
use lstc_base::scratch::{self, Made};
use lstc_graph::{Links, listing};
use lstc_passes::{Module, Timing};
use lstc_tuned::config::{Config, annotated};
use lstc_tuned::manifest::{self, SourceFile};
use lstc_tuned::output::{Inputs, Output};

use crate::rewrite::{Backbone, Copying, Request, SourceModel, compile, rewrite_with, source_file};
use flags::MethodFlags;
use summary::Summary;

/// Compile a model into trainable graphs
#[derive(Debug, clap::Args)]
#[command(
    long_about = "\
Compiles a T5 that was exported to ONNX into the graphs that train a ladder side network beside it. The model itself \
is read, never changed; its weights are copied once, or share their blocks on disk if the file system has reflinks.

What is written to the output directory:
  train.onnx        one optimizer step: forward, backward, clipping, AdamW
  grad.onnx         loss and gradients
  apply.onnx        AdamW from given gradients
  eval.onnx         loss and logits
  infer.onnx        logits
  backbone.data     the frozen weights
  side.safetensors  the trainable parameters, as initialised
  lst.yaml          the manifest: what was made from what, and how",
    after_long_help = "\
Examples:
  lstc rewrite t5.onnx -o tuned/
  lstc rewrite flan-t5-onnx/ -o tuned/       a folder as Hugging Face Optimum writes it
  lstc rewrite encoder_model.onnx decoder_model.onnx -o tuned/
  lstc rewrite t5.onnx -o tuned/ --encoder-blocks 1,3,5 --decoder-blocks 1,3,5
  lstc rewrite t5.onnx -o tuned/ --keep-blocks 9         the nine most important of each tower
  lstc rewrite t5.onnx -o tuned/ --batch 8 --source-length 128 --target-length 8     static shapes
  lstc rewrite t5.onnx -o tuned/ --backbone int8         the backbone in 8 bits, with what that costs
  lstc rewrite t5.onnx -o tuned/ --backbone int8 --max-tap-error 0.05 --sample train.jsonl
  lstc rewrite --print-config > lst.yaml     every option with its default, to edit
  lstc rewrite t5.onnx --config lst.yaml -o tuned/
  lstc rewrite --from tuned/ -o again/                   the same once more
  lstc rewrite --from tuned/ -o again/ -r 4 --seed 1     the same, except for the flags
  lstc rewrite t5.onnx -o small/ -r 16 --link --share tuned/     another side network on the same weights"
)]
pub struct Rewrite {
    /// The ONNX model: a file, an encoder's and a decoder's file, or a folder that holds them [default: with --config, the
    /// model that a manifest names]
    model: Vec<PathBuf>,

    /// Rewrite again what this rewritten directory was made from, which must be unchanged; flags override its options
    #[arg(long, value_name = "DIR", conflicts_with_all = ["model", "config"])]
    from: Option<PathBuf>,

    /// Directory to write
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,

    /// Options from a YAML file, or from the lst.yaml of an earlier rewrite; flags override it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Print the complete configuration with a comment on every key, and exit
    #[arg(long)]
    print_config: bool,

    /// Replace an earlier rewrite at the output path, and the listings of --emit; a directory that holds anything else is kept
    #[arg(long)]
    force: bool,

    /// Make hard links to the model's data files instead of copies. They take no space, but each file then has two names:
    /// Python's onnx refuses to open such a model, the original included, and a change to one changes the other
    #[arg(long)]
    link: bool,

    /// Take weights that would be copied from an earlier rewrite of the same model, as reflinks, or with --link as hard links
    #[arg(long, value_name = "DIR")]
    share: Option<PathBuf>,

    /// Print how long each pass took
    #[arg(long, help_heading = "Looking into the compiler")]
    timings: bool,

    /// Stop after a pass, and write no model; an unknown name lists the passes
    #[arg(
        long,
        value_name = "PASS",
        help_heading = "Looking into the compiler",
        value_parser = pass_name,
        conflicts_with = "output"
    )]
    stop_after: Option<String>,

    /// Write a listing of the graph after each pass to a directory
    #[arg(long, value_name = "DIR", help_heading = "Looking into the compiler")]
    emit: Option<PathBuf>,

    /// Format of the report on stdout
    #[arg(long, value_enum, default_value_t, help_heading = "Options")]
    format: Format,

    #[command(flatten)]
    method: MethodFlags,
}

fn pass_name(text: &str) -> Result<String, String> {
    let names = lstc_passes::ladder_side_tuning().names();
    if names.contains(&text) { Ok(text.to_owned()) } else { Err(format!("the passes are {}", names.join(", "))) }
}

impl Rewrite {
    pub fn run(self) -> anyhow::Result<Exit> {
        let config = self.base()?;
        let mut options = config.options();
        let before = options.reads_ends();
        self.method.apply(&mut options);
        if options.reads_ends() != before {
            // Which products take more bits was measured at other taps.
            options.backbone.forget();
        }
        let mut training = config.training();
        self.method.apply_tokens(&mut training.data);
        if self.print_config {
            report::text(&annotated(&options, &training))?;
            return Ok(Exit::Done);
        }
        let model = match (&self.model[..], &config.source[..]) {
            ([], []) => {
                return Err(Hinted::new(anyhow!("no model is given"), "`lstc rewrite model.onnx -o tuned/`").into());
            }
            ([], recorded) => SourceModel::recorded(recorded)?,
            (given, _) => SourceModel::find(given)?,
        };
        if self.stop_after.is_none() {
            self.place()?;
        }
        if self.model.is_empty() {
            self.check_source(&config.source)?;
        }
        keep_private(model.files());
        let emit = self.emit.as_deref().map(|folder| Emit::new(folder, &self.inputs(&model), self.force));
        let emit = emit.transpose()?;
        let mut failed = None;
        let show = |pass: &'static str, module: &Module| {
            if let Some(emit) = &emit
                && let Err(error) = emit.pass(pass, module)
            {
                failed.get_or_insert(error);
            }
        };
        let timings = match &self.stop_after {
            Some(stop) => {
                let (module, timings) = compile(model, options, Some(stop), show)?;
                if emit.is_none() {
                    report::text(&listing(&module.graph))?;
                }
                timings
            }
            None => {
                let output = self.place()?;
                let request = Request { model, options, training, output, force: self.force };
                let line = RefCell::new(ProgressLine::default());
                let progress = |done, of| {
                    line.borrow_mut().bar("error by block", done as u64, of as u64, format!("{done} of {of}"));
                };
                let measuring = self.method.measuring(&config, self.config.is_some() || self.from.is_some(), &progress);
                let links = if self.link { Links::HardLinks } else { Links::Reflinks };
                let copying = |copying: &Copying| show_copy(&mut line.borrow_mut(), links, copying);
                let backbone = Backbone { links, shared: self.share.as_deref(), copying: Some(&copying) };
                let written = rewrite_with(request, backbone, measuring, show);
                line.borrow_mut().clear();
                let written = written?;
                report::data(&Summary::new(output, &written), self.format)?;
                written.warnings.iter().for_each(report::warning);
                self.warn_of_import(&config);
                written.timings
            }
        };
        if let Some(error) = failed {
            return Err(error);
        }
        if self.timings {
            report::note(timing_table(&timings));
        }
        Ok(Exit::Done)
    }
}

impl Rewrite {
    /// What the command reads.
    fn inputs(&self, model: &SourceModel) -> Inputs {
        let others = [&self.config, &self.from, &self.share].into_iter().flatten();
        Inputs::of(model.files().iter().chain(others))
    }

    /// The options that flags override.
    fn base(&self) -> anyhow::Result<Config> {
        match (&self.from, &self.config) {
            (Some(directory), _) => manifest::read(directory),
            (None, Some(file)) => Config::read(file),
            (None, None) => Ok(Config::default()),
        }
    }

    /// Whether the recorded source is unchanged: an error with --from, a warning with a configuration.
    fn check_source(&self, source: &[SourceFile]) -> anyhow::Result<()> {
        for recorded in source {
            let name = recorded.file.display();
            if self.from.is_some() && !recorded.file.exists() {
                let error = anyhow!("the source `{name}` is no longer there");
                let hint = "put it back, or name where it is now: `lstc rewrite MODEL --config DIR/lst.yaml -o AGAIN`";
                return Err(Hinted::new(error, hint).into());
            }
            if source_file(&recorded.file, recorded.part)?.blake3 == recorded.blake3 {
                continue;
            }
            if self.from.is_some() {
                let error = anyhow!("the source `{name}` has changed since it was rewritten");
                let hint =
                    "to rewrite the model that is there now: `lstc rewrite MODEL --config DIR/lst.yaml -o AGAIN`";
                return Err(Hinted::new(error, hint).into());
            }
            report::warning(format!("`{name}` has changed since the configuration was recorded"));
        }
        Ok(())
    }

    /// Where to write. The directory that is rewritten again is kept.
    fn place(&self) -> anyhow::Result<&Path> {
        let Some(output) = &self.output else {
            return Err(Hinted::new(anyhow!("no output directory is given"), "add -o DIR, as in -o tuned/").into());
        };
        if let Some(from) = &self.from
            && let (Ok(there), Ok(here)) = (from.canonicalize(), output.canonicalize())
            && there == here
        {
            let error = anyhow!("`{}` is the directory to rewrite again, and is not replaced", from.display());
            return Err(Hinted::new(error, "write to another directory: -o DIR").into());
        }
        Ok(output)
    }

    /// A rewrite initialises its side network, whatever the earlier directory's was.
    fn warn_of_import(&self, config: &Config) {
        if let (Some(from), Some(side)) = (&self.from, &config.side) {
            report::warning(format!(
                "the side network of `{}` was imported, and the new one is not: `lstc import` with --side `{}` imports it",
                from.display(),
                side.imported.display()
            ));
        }
    }
}

/// Shows how far a copy of the weights has come, and says at its start why one is made.
fn show_copy(line: &mut ProgressLine, links: Links, Copying { done, of, in_data_files }: &Copying) {
    if *done == 0 && *in_data_files > 0 {
        let size = Bytes(*in_data_files);
        let why = match links {
            Links::Reflinks => "the file systems cannot share them (no reflinks); --link makes hard links",
            Links::HardLinks => "they cannot be linked from their file system to the output's",
        };
        report::note(format!("copying {size} of weights: {why}"));
    }
    line.bar("copying weights", *done, *of, format!("{} of {}", Bytes(*done), Bytes(*of)));
}

/// Writes a listing after each pass.
struct Emit {
    /// By pass.
    files: Vec<(&'static str, Output)>,
    /// If nothing is written, it is removed again.
    _made: Made,
}

impl Emit {
    fn new(folder: &Path, inputs: &Inputs, force: bool) -> anyhow::Result<Emit> {
        let made = scratch::make(folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
        let file = |(place, pass): (usize, &'static str)| {
            Ok((pass, Output::new(&folder.join(format!("{}-{pass}.txt", place + 1)), inputs, force)?))
        };
        let files = lstc_passes::ladder_side_tuning().names().into_iter().enumerate().map(file);
        Ok(Emit { files: files.collect::<anyhow::Result<_>>()?, _made: made })
    }

    fn pass(&self, pass: &str, module: &Module) -> anyhow::Result<()> {
        let Some((_, output)) = self.files.iter().find(|(name, _)| *name == pass) else { return Ok(()) };
        output.write(|file| Ok(file.write_all(listing(&module.graph).as_bytes())?))
    }
}

fn timing_table(timings: &[Timing]) -> comfy_table::Table {
    let ms = |d: Duration| format!("{:.1} ms", d.as_secs_f64() * 1e3);
    report::table(
        ["pass", "run", "check", "nodes after"],
        timings.iter().map(|t| [t.pass.to_owned(), ms(t.run), ms(t.check), t.nodes.to_string()]),
    )
}
