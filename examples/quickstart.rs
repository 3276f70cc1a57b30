//! All steps in one program: `cargo run --release --example quickstart`
//!
//! Fetches ONNX Runtime if there is none, adds a side network to the T5 of 1.4 million parameters in
//! `models/t5-nano`, trains it to classify what a dictionary definition defines, evaluates it on definitions that it has not
//! seen, exports one inference model, and queries that model. Everything that it writes is under `target/quickstart`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use lstc::commands::failure;
use lstc::commands::train::Talk;
use lstc::export::{self, Weights, export};
use lstc::rewrite::{self, rewrite};
use lstc_base::interrupt;
use lstc_base::report::{self, Bytes, Exit};
use lstc_data::{Reading, Tokenizer};
use lstc_passes::Options;
use lstc_passes::options::Init;
use lstc_runtime::install::{self, install};
use lstc_runtime::{Device, Error, Flavour, Runtime, Session, Tensor, find};
use lstc_train::evaluate::{self, Metrics, percent};
use lstc_train::{Event, Summary, read_corpus, train};
use lstc_tuned::opened::{Execution, Opened};
use lstc_tuned::options::TrainOptions;
use lstc_tuned::run::Started;
use ndarray::Array2;

/// Definitions to query the exported model with; none of them is in the data.
const QUESTIONS: [&str; 4] = [
    "a small wild cat with spotted fur that lives in trees",
    "a soup of tomatoes and cream",
    "someone who repairs clocks",
    "a river in the north of Germany",
];

fn main() -> ExitCode {
    interrupt::handle();
    run().map_or_else(|error| failure(&error), |()| Exit::Done).into()
}

fn run() -> anyhow::Result<()> {
    let begun = Instant::now();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let [model, tokenizer] = ["model.onnx", "tokenizer.json"].map(|name| root.join("models/t5-nano").join(name));
    let [trained_on, held_out] = ["train", "test"].map(|part| root.join(format!("examples/glosses.{part}.jsonl")));
    let folder = root.join("target/quickstart");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove `{}`", folder.display()))?;
    }
    let [directory, exported] = ["tuned", "tuned.onnx"].map(|name| folder.join(name));

    let runtime = runtime()?;
    let started = Started {
        train: TrainOptions {
            data: Some(trained_on),
            epochs: 8,
            batch_size: 64,
            lr: 3e-3,
            out: Some(directory.join("run")),
            ..TrainOptions::default()
        },
        data: Reading::default(),
    };

    report::note("rewriting models/t5-nano/model.onnx");
    let mut options = Options::default();
    options.method.reduction = 4;
    options.method.init = Init::MagnitudeConsistent;
    let (training, output) = (started.clone(), directory.as_path());
    let request = rewrite::Request { model: (&model).into(), options, training, output, force: false };
    let written = rewrite(request, |_, _| ())?;
    let trainable: usize = written.manifest.parameters.iter().map(|p| p.shape.iter().product::<usize>()).sum();

    let threads = started.train.resolved_threads();
    let execution = Execution { mapped: true, ..Execution::cpu(runtime, threads) };
    let before = evaluated(&directory, "side.safetensors", &held_out, &started, &execution)?;

    report::note("training on examples/glosses.train.jsonl");
    let Started { train: options, data: reading } = started.clone();
    let request = lstc_train::Request { directory: &directory, train: options, reading, runtime, resume: false };
    let mut talk = Talk::default();
    let summary = train(&request, |event| talk.show(&event))?;
    talk.line.clear();
    let after = evaluated(&directory, "run/best.safetensors", &held_out, &started, &execution)?;

    let request = export::Request {
        directory: &directory,
        side: None,
        output: &exported,
        weights: Weights::default(),
        force: false,
        runtime: Some(runtime),
    };
    let export = export(request)?;
    anyhow::ensure!(export.is_written(), "the exported model does not agree with the trained one");
    let answers = ask(runtime, &exported, &tokenizer, &directory)?;

    report::text(&comparison(&before, &after, (trainable, written.frozen), &summary))?;
    report::text(&format!("  exported       {}, {}\n\n", shown(root, &exported).display(), Bytes(export.bytes)))?;
    for (question, answer) in QUESTIONS.iter().zip(answers) {
        report::text(&format!("  {question}: {answer}\n"))?;
    }
    report::text(&format!("\n{:.0} s in all\n", begun.elapsed().as_secs_f64()))
}

/// ONNX Runtime: an installed one, or else a fetched one.
fn runtime() -> anyhow::Result<&'static Runtime> {
    let library = match find(Device::Cpu) {
        Err(Error::NotFound { .. }) => {
            report::note("fetching ONNX Runtime with pip");
            install(&install::Request::new(Flavour::Cpu), &mut |_| {})?;
            find(Device::Cpu)?
        }
        found => found?,
    };
    Ok(Runtime::load(&library)?)
}

/// Evaluates a side network on the held-out file, in both ways.
fn evaluated(
    directory: &Path,
    side: &str,
    data: &Path,
    started: &Started,
    execution: &Execution,
) -> anyhow::Result<Metrics> {
    let mut talk = Talk::default();
    let mut notify = |event: Event| talk.show(&event);
    let opened = Opened::new(directory)?;
    let tokenizer = opened.tokenizer(None)?;
    let corpus = read_corpus(&opened, &started.data, tokenizer.as_ref(), data, directory, &mut notify)?;
    let labels = evaluate::labels(&[&corpus], tokenizer.as_ref())?;
    let request =
        evaluate::Request { labels, generate: Some(8), batch_size: started.train.batch_size, ..Default::default() };
    let of = corpus.len();
    let (network, _) = opened.side(&directory.join(side))?;
    let progress = |done| notify(Event::Evaluating { done, of });
    let scored = evaluate::score_side(&opened, execution, &network, &corpus, &request, progress)?;
    talk.line.clear();
    Ok(Metrics::of(&scored, &request.labels))
}

/// The exported model's answer, token by token, as any program with ONNX Runtime would get it.
fn ask(runtime: &Runtime, model: &Path, tokenizer: &Path, directory: &Path) -> anyhow::Result<Vec<String>> {
    let tokens = Opened::new(directory)?.record.tokens;
    let tokenizer = Tokenizer::open(tokenizer, tokens)?;
    let mut session = runtime.session().open(model)?;
    QUESTIONS
        .iter()
        .map(|question| {
            let ids: Vec<i64> = tokenizer.encode(question, 128)?.ids.iter().map(|id| i64::from(*id)).collect();
            let said = answer(&mut session, &ids, tokens.start, tokens.end)?;
            tokenizer.decode(&said)
        })
        .collect()
}

fn answer(session: &mut Session, ids: &[i64], start: i64, end: i64) -> anyhow::Result<Vec<u32>> {
    const LONGEST: usize = 8;
    let row = |ids: &[i64]| Tensor::from(Array2::from_shape_fn((1, ids.len()), |(_, at)| ids[at]));
    let (source, mask) = (row(ids), row(&vec![1; ids.len()]));
    let mut said = vec![start];
    while said.len() <= LONGEST {
        let given = row(&said);
        let inputs = [("input_ids", &source), ("attention_mask", &mask), ("decoder_input_ids", &given)];
        let logits = session.run(&inputs, &["logits"])?.remove(0);
        let logits = logits.as_f32()?;
        let last = logits.slice(ndarray::s![0, said.len() - 1, ..]);
        let likeliest = last.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(id, _)| id as i64);
        if likeliest == end {
            break;
        }
        said.push(likeliest);
    }
    Ok(said[1..].iter().filter_map(|id| u32::try_from(*id).ok()).collect())
}

fn comparison(before: &Metrics, after: &Metrics, (trainable, frozen): (usize, usize), summary: &Summary) -> String {
    let share = |accuracy: Option<f64>| accuracy.map_or_else(String::new, percent);
    let table = report::table(
        ["held-out definitions", "before", "after"],
        [
            ["label by likelihood".to_owned(), share(before.accuracy), share(after.accuracy)],
            ["label generated".to_owned(), share(before.generated), share(after.generated)],
            ["loss".to_owned(), format!("{:.3}", before.loss), format!("{:.3}", after.loss)],
        ],
    );
    let table = report::trimmed(&table.to_string());
    let percentage = 100.0 * trainable as f64 / frozen as f64;
    format!(
        "{table}\n\n  trainable      {trainable} parameters, {percentage:.1} % of the backbone's {frozen}\n  step           \
         {:.1} ms, {:.0} tokens/s\n  peak memory    {}\n",
        1e3 * summary.step_seconds,
        summary.tokens_per_second,
        Bytes(summary.peak_memory),
    )
}

/// A path as seen from the repository.
fn shown(root: &Path, path: &Path) -> PathBuf {
    path.strip_prefix(root).unwrap_or(path).to_owned()
}
