//! A report as one self-contained HTML page: no script, and nothing fetched from anywhere.
//!
//! **Invariant:** what comes from files is text, never markup. maud escapes it, control characters are replaced, and
//! the page's own policy forbids scripts and requests.

use std::path::Path;

use lstc_graph::count;
use lstc_train::evaluate::percent;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart::{Chart, Series};
use super::drawing;
use super::ladder::Ladder;
use super::layout::{Arrangement, Layout};
use super::model::ModelReport;
use super::rewritten::{Prediction, RewrittenReport};
use super::run::{Epoch, GateCourse, RunReport};
use super::tables;
use super::text::Grouped;

const STYLE: &str = include_str!("page.css");

/// What a browser may do with the page: nothing but show it.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

/// A key figure: its name, its value, and a note.
type Figure = (&'static str, String, String);

/// The page of a model file.
pub fn model(report: &ModelReport) -> String {
    let file = report.names();
    let about = html! {
        "Exported by " bdi { (report.exporter) } ", opset " (report.opset) ", " (Grouped(report.nodes)) " nodes"
    };
    let refused = report.model.is_none();
    let mut figures: Vec<Figure> = Vec::new();
    if let Some(m) = &report.memory {
        let (side, all) = (m.lst.trainable, m.full.trainable);
        figures.push(("trainable", Grouped(side).to_string(), format!("r = {}, all blocks kept", m.reduction)));
        figures.push(("share of the backbone", tables::percent(side, all), format!("of {} parameters", Grouped(all))));
        figures.push((
            "predicted memory",
            tables::bytes(m.lst.total),
            format!("{} to fine-tune", tables::bytes(m.full.total)),
        ));
    }
    let body = html! {
        @if refused { (refusals(report)) }
        @if let Some(model) = &report.model { section { (tables::backbone(model)) } }
        @if let Some(memory) = &report.memory { section.memory { h2 { "Predicted memory of training" } (tables::memory(memory)) } }
        @if report.ladder.is_some() { section { (tables::groups(&report.parameters)) } }
        @if let Some(ladder) = &report.ladder { section { (tables::rungs(ladder)) } }
        section { (tables::ports(&report.inputs, &report.outputs)) }
        section { (tables::weights(&report.weights)) }
    };
    let caption = report.ladder.as_ref().map(|ladder| {
        let r = ladder.reduction;
        format!("The side network that lstc rewrite grows when it keeps all blocks, r = {r}.")
    });
    page(&file, &about, &figures, report.ladder.as_ref().zip(caption), &body)
}

/// The page of a rewritten directory.
pub fn rewritten(report: &RewrittenReport) -> String {
    let directory = report.directory.display().to_string();
    let model = &report.model;
    let about = html! {
        "Rewritten from " (tables::name(&report.source.display().to_string())) ", exported by "
        bdi { (model.exporter) } ", opset " (model.opset)
    };
    let trainable = report.trainable();
    let r = report.ladder.reduction;
    let mut figures: Vec<Figure> = vec![("trainable", Grouped(trainable).to_string(), format!("r = {r}"))];
    if let Prediction::Made(m) = &report.memory {
        let all = m.full.trainable;
        figures.push((
            "share of the backbone",
            tables::percent(trainable, all),
            format!("of {} parameters", Grouped(all)),
        ));
        figures.push((
            "predicted memory",
            tables::bytes(m.lst.total),
            format!("{} to fine-tune", tables::bytes(m.full.total)),
        ));
    }
    let body = html! {
        section { (tables::backbone(model)) }
        section.memory {
            h2 { "Predicted memory of training" }
            @match &report.memory {
                Prediction::Made(memory) => (tables::memory(memory)),
                Prediction::LeftOut(reason) => p.note { "The prediction is left out: " bdi { (reason) } "." },
            }
        }
        section { (tables::groups(&report.parameters)) }
        section { (tables::rungs(&report.ladder)) }
        section { (tables::nodes(&report.graphs)) }
        section { (tables::cut(&report.cut)) }
    };
    let caption = match &report.side {
        Some(side) => format!("The side network, with the gates of {}.", short(side)),
        None => "The side network, with its gates at their initial values.".to_owned(),
    };
    page(&directory, &about, &figures, Some((&report.ladder, caption)), &body)
}

/// The page of a training run: its curves, and below them the same in figures.
pub fn run(report: &RunReport) -> String {
    let folder = report.folder.display().to_string();
    let about = html! { "A training run" @if let Some(asked) = report.asked() { ": " (asked) } };
    let mut figures: Vec<Figure> = vec![(
        "steps",
        Grouped(report.steps() as usize).to_string(),
        format!("in {}", count(report.epochs.len(), "epoch")),
    )];
    if let Some((step, loss)) = report.losses.last() {
        figures.push(("loss", format!("{loss:.4}"), format!("of step {step}")));
    }
    if let Some(best) = &report.best {
        let (value, what) = match best.accuracy {
            Some(accuracy) => (percent(accuracy), "accuracy"),
            None => (format!("{:.4}", best.loss), "evaluated loss"),
        };
        figures.push(("best", value, format!("{what} of epoch {}", best.epoch)));
    }
    let body = html! {
        @for (title, chart, note) in curves(report) {
            section { h2 { (title) } p.note { (note) } (chart.svg()) }
        }
        section { (tables::epochs(&report.epochs)) }
        @if !report.gates.is_empty() { section { (tables::courses(&report.gates)) } }
        @if report.damaged > 0 { p.note { (count(report.damaged, "damaged line")) " of the log skipped." } }
    };
    page(&folder, &about, &figures, None, &body)
}

/// The curves of a run, each with a note.
fn curves(report: &RunReport) -> Vec<(&'static str, Chart, String)> {
    let evaluated = |of: fn(&Epoch) -> Option<f64>| -> Vec<(f64, f64)> {
        report.epochs.iter().filter_map(|e| Some((e.step as f64, of(e)?))).collect()
    };
    let curve = |label: &str, class: &'static str, points: Vec<(f64, f64)>, is_marked: bool| Series {
        label: label.to_owned(),
        class,
        points,
        is_marked,
    };
    let (loss, accuracy) = (evaluated(|e| e.eval_loss), evaluated(|e| e.eval_accuracy));
    let training: Vec<(f64, f64)> = report.losses.iter().map(|(step, loss)| (*step as f64, *loss)).collect();
    let last = report.steps() as f64;
    let steps = (report.losses.first().map_or(1.0, |(step, _)| *step as f64), last);
    // The first steps may be far above all others.
    let settled = training.iter().chain(&loss).filter(|(step, _)| *step > 0.1 * last).map(|(_, loss)| *loss);
    let most = 1.1 * settled.fold(f64::MIN_POSITIVE, f64::max);
    let is_cut = training.iter().any(|(_, loss)| *loss > most);
    let mut series = vec![curve("training", "quiet", training, false)];
    if !loss.is_empty() {
        series.push(curve("evaluation", "accent", loss, true));
    }
    let cut = if is_cut { " Higher values in the first steps are cut off." } else { "" };
    let note = format!("Cross-entropy per target token in nats, by step.{cut}");
    let mut all = vec![("Loss", Chart { title: "Loss by step".to_owned(), series, steps, range: (0.0, most) }, note)];
    if !accuracy.is_empty() {
        let series = vec![curve("", "accent", accuracy, true)];
        let chart = Chart { title: "Accuracy by step".to_owned(), series, steps, range: (0.0, 1.0) };
        all.push(("Accuracy", chart, "The share of evaluated rows whose correct label is the likeliest.".to_owned()));
    }
    if !report.gates.is_empty() {
        let course = |gate: &GateCourse| {
            let points = gate.values.iter().map(|(step, value)| (*step as f64, *value)).collect();
            let (class, tower) = match gate.name.split_once('.') {
                Some(("encoder", _)) => ("accent", "encoder"),
                Some((_, _)) => ("cross", "decoder"),
                None => ("quiet", "merge"),
            };
            let block = gate.name.rsplit('.').next().filter(|block| block.parse::<usize>().is_ok());
            curve(&block.map_or_else(|| tower.to_owned(), |block| format!("{tower} {block}")), class, points, false)
        };
        let series = report.gates.iter().map(course).collect();
        let chart = Chart { title: "Gates by step".to_owned(), series, steps, range: (0.0, 1.0) };
        all.push(("Gates", chart, "The share of the side state at each rung; the rest is the tap's.".to_owned()));
    }
    all
}

/// The last two parts of a path.
fn short(path: &Path) -> String {
    let parts: Vec<_> = path.components().rev().take(2).map(|c| c.as_os_str().to_string_lossy()).collect();
    parts.into_iter().rev().collect::<Vec<_>>().join("/")
}

fn refusals(report: &ModelReport) -> Markup {
    html! {
        section.refused {
            h2 { "Not understood" }
            p { "lstc does not rewrite this model" @if let Some(likeness) = &report.likeness { ": it " bdi { (likeness.verdict()) } } "." }
            ul { @for reason in &report.refusals { li { bdi { (reason) } } } }
        }
    }
}

fn page(name: &str, about: &Markup, figures: &[Figure], ladder: Option<(&Ladder, String)>, body: &Markup) -> String {
    // Where the towers do not fit side by side, one is drawn above the other.
    let room = ladder.as_ref().map_or(0.0, |(l, _)| Layout::new(l, Arrangement::Beside).width);
    let narrow =
        format!("@media screen and (max-width:{}px){{.beside{{display:none}}.stacked{{display:block}}}}", room + 50.0);
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="generator" content=(format!("lstc {}", env!("CARGO_PKG_VERSION")));
                link rel="icon" href="data:,";
                title { (name) " – lstc" }
                style { (PreEscaped(STYLE)) (PreEscaped(narrow)) }
            }
            body {
                header {
                    p.tool { "lstc inspect" }
                    h1 { bdi { (tables::breakable(name)) } }
                    p.about { (about) }
                    @if !figures.is_empty() { (self::figures(figures)) }
                }
                main class=[ladder.is_none().then_some("plain")] {
                    @if let Some((ladder, caption)) = &ladder { (figure(ladder, name, caption)) }
                    div.figures { (body) }
                }
                footer { p { "lstc " (env!("CARGO_PKG_VERSION")) } }
            }
        }
    };
    let clean = |c: char| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c };
    markup.into_string().chars().map(clean).collect()
}

fn figures(figures: &[Figure]) -> Markup {
    html! {
        dl.key {
            @for (what, value, note) in figures {
                div { dt { (what) } dd { b { (value) } small { (note) } } }
            }
        }
    }
}

fn figure(ladder: &Ladder, name: &str, caption: &str) -> Markup {
    let several = ladder.stacks.len() > 1;
    html! {
        figure {
            figcaption { h2 { "Ladder" } p { bdi { (caption) } } }
            div class=[several.then_some("beside")] { (drawing::svg(ladder, Arrangement::Beside, "beside", name)) }
            @if several { div.stacked { (drawing::svg(ladder, Arrangement::Stacked, "stacked", name)) } }
            (drawing::legend(ladder))
        }
    }
}
