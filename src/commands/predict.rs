//! `lstc predict`: a side network's answers to rows without a target.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use lstc_base::files::keep_private;
use lstc_base::report::{self, Exit, Hinted};
use lstc_data::{Inputs, Reading, Targets, Tokenizer};
use lstc_graph::count;
use lstc_runtime::{Runtime, find};
use lstc_train::evaluate::{self, AnswerForm, Label, Request, Scored, named_labels, recorded_labels, write_answers};
use lstc_train::{Event, Settings, read_corpus};
use lstc_tuned::manifest;
use lstc_tuned::opened::{Opened, side_file};
use lstc_tuned::output::{self, Output};
use lstc_tuned::run::Started;

use super::data_flags::DataFlags;
use super::running_flags::RunningFlags;
use super::train::Talk;

/// Predict labels, or generate text, for rows without a target
#[derive(Debug, clap::Args)]
#[command(
    long_about = "\
Predicts labels for rows without a target, or generates text. If the rows have targets, they are not read.

The answer to a row is the likeliest of the labels, with its probability among them, its margin (how far its log-likelihood \
is above the next one's, in nats) and the probability of each label. The labels are those that --labels or --labels-from names, \
or else those of the data that the side network was trained on, which its file records. If there are none, or with \
--generate, the answer is the text that the model writes, always taking the likeliest next token.

Each row of the output has its line number in the data, and its input. Data is read as the run read its own.",
    after_long_help = "\
Examples:
  lstc predict tuned/ --data new.jsonl > answers.jsonl
  lstc predict tuned/ --data new.csv -o answers.csv
  lstc predict tuned/ --data new.jsonl --labels positive,negative
  lstc predict tuned/ --data new.jsonl --side tuned/side.safetensors --labels-from train.jsonl     before training
  lstc predict tuned/ --data new.jsonl --generate"
)]
pub struct Predict {
    /// Directory that `lstc rewrite` wrote
    directory: PathBuf,

    /// Rows with an input, as for `lstc train`; a target is not needed
    #[arg(long, value_name = "FILE")]
    data: PathBuf,

    /// File to write [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Replace the file that --output names
    #[arg(long, requires = "output")]
    force: bool,

    /// Format of the answers [default: csv if --output ends in .csv, else jsonl]
    #[arg(long, value_enum)]
    format: Option<AnswerForm>,

    /// Side network, or the folder of a run [default: best.safetensors of the directory's run]
    #[arg(long, value_name = "FILE")]
    side: Option<PathBuf>,

    /// The labels, separated by commas [default: those of the training data]
    #[arg(long, value_name = "LABELS", value_delimiter = ',')]
    labels: Vec<String>,

    /// Labelled text whose targets are the labels
    #[arg(long, value_name = "FILE", conflicts_with = "labels")]
    labels_from: Option<PathBuf>,

    /// Generate text too, if there are labels
    #[arg(long)]
    generate: bool,

    #[command(flatten)]
    running: RunningFlags,

    #[command(flatten)]
    reading: DataFlags,
}

impl Predict {
    pub fn run(self) -> anyhow::Result<Exit> {
        let opened = Opened::new(&self.directory)?;
        let side = side_file(&self.directory, self.side.as_deref())?;
        let mut settings = Settings::of(&side, manifest::read(&self.directory)?.training())?;
        self.reading.apply(&mut settings.started.data);
        self.running.apply(&mut settings.started.train);
        let started = &settings.started;
        let output = self.output(&side, started)?;
        let options = &started.train;
        let runtime = Runtime::load(&find(options.device)?)?;
        let tokenizer = self.reading.tokenizer.as_deref().or(options.tokenizer.as_deref());
        let tokenizer = opened.tokenizer(tokenizer)?;
        let other = settings.check_tokenizer(&side, tokenizer.as_ref(), self.reading.tokenizer.is_some())?;
        other.iter().for_each(report::warning);
        let mut talk = Talk::default();
        let labels = self.labels(&opened, &side, &started.data, tokenizer.as_ref(), &mut talk)?;

        let reading = Reading { targets: Targets::Absent, ..started.data.clone() };
        let scratch = std::env::temp_dir();
        let mut notify = |event: Event| talk.show(&event);
        let corpus = read_corpus(&opened, &reading, tokenizer.as_ref(), &self.data, &scratch, &mut notify)?;
        talk.line.clear();
        let skipped = corpus.skipped();
        if skipped.count > 0 {
            let rows = count(skipped.count, "bad row");
            report::warning(format!("left out {rows}\n  {}", skipped.first.join("\n  ")));
        }
        let generate = (self.generate || labels.is_empty()).then_some(reading.max_target_length);
        let request = Request { labels, generate, batch_size: options.batch_size, targets: Targets::Absent };
        let (of, (network, notes)) = (corpus.len(), opened.side(&side)?);
        notes.iter().for_each(report::warning);
        let progress = |done: usize| talk.line.bar("predicting", done as u64, of as u64, format!("{done}/{of}"));
        keep_private([Some(&self.data), Some(&side), self.labels_from.as_ref()].into_iter().flatten());
        let scored = evaluate::score_side(&opened, &options.execution(runtime), &network, &corpus, &request, progress)?;
        talk.line.clear();
        let mut inputs = Inputs::open(&self.data, &reading, &corpus)?;
        self.write(output.as_ref(), &scored, &request.labels, tokenizer.as_ref(), &mut inputs)?;
        Ok(Exit::Done)
    }

    /// The labels to choose from; none if the model is to write text.
    fn labels(
        &self,
        opened: &Opened,
        side: &Path,
        reading: &Reading,
        tokenizer: Option<&Tokenizer>,
        talk: &mut Talk,
    ) -> anyhow::Result<Vec<Label>> {
        let Some(file) = &self.labels_from else {
            return match &self.labels[..] {
                [] => recorded_labels(side, opened.record.model.tokens() as u64),
                given => named_labels(given, tokenizer, reading.max_target_length),
            };
        };
        let mut notify = |event: Event| talk.show(&event);
        let corpus = read_corpus(opened, reading, tokenizer, file, &std::env::temp_dir(), &mut notify)?;
        talk.line.clear();
        let labels = evaluate::labels(&[&corpus], tokenizer)?;
        if labels.is_empty() {
            let error =
                anyhow!("the targets of `{}` are not labels: there are too many different ones", file.display());
            return Err(Hinted::new(error, "--labels names the labels; without them the model writes text").into());
        }
        Ok(labels)
    }

    /// Where the answers go, if not to stdout.
    fn output(&self, side: &Path, started: &Started) -> anyhow::Result<Option<Output>> {
        let options = &started.train;
        let read = [&options.data, &options.eval, &options.tokenizer, &self.reading.tokenizer, &self.labels_from];
        let read = read.into_iter().flatten().map(PathBuf::as_path);
        let inputs = output::Inputs::of(read.chain([self.data.as_path(), side, self.directory.as_path()]));
        self.output.as_deref().map(|path| Output::new(path, &inputs, self.force)).transpose()
    }

    fn form(&self) -> AnswerForm {
        let is_csv = |path: &PathBuf| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
        let by_name = if self.output.as_ref().is_some_and(is_csv) { AnswerForm::Csv } else { AnswerForm::Jsonl };
        self.format.unwrap_or(by_name)
    }

    fn write(
        &self,
        output: Option<&Output>,
        scored: &[Scored],
        labels: &[Label],
        tokenizer: Option<&Tokenizer>,
        inputs: &mut Inputs,
    ) -> anyhow::Result<()> {
        let mut write = |out: &mut dyn Write| {
            write_answers(out, self.form(), scored, labels, tokenizer, inputs)?;
            inputs.finish()
        };
        match output {
            Some(output) => output.write(|file| {
                let mut out = std::io::BufWriter::new(file);
                write(&mut out)?;
                Ok(out.flush()?)
            }),
            None => report::stream(write),
        }
    }
}
