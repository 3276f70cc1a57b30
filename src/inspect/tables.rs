//! The figures of a page: tables that can be read without the drawing, and bars.

use std::collections::BTreeMap;

use lstc_base::report::Bytes;
use lstc_train::evaluate;
use lstc_train::memory::{Cost, total};
use lstc_tuned::gates::Gate;
use lstc_tuned::manifest::ModelSummary;
use lstc_tuned::manifest::PortSummary;
use maud::{Markup, html};

use super::Memory;
use super::Weights;
use super::ladder::{Ladder, Rung};
use super::rewritten::{CutReport, GraphReport};
use super::run::{Epoch, GateCourse};
use super::text::Grouped;

/// How a column's cells are aligned.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Column {
    Text(&'static str),
    Number(&'static str),
}

/// A table with a caption. A row's first cell is its header.
fn table(caption: &str, columns: &[Column], rows: impl IntoIterator<Item = Vec<Markup>>) -> Markup {
    let class = |at: usize| matches!(columns.get(at), Some(Column::Number(_))).then_some("n");
    html! {
        div.table {
            table {
                caption { (caption) }
                thead {
                    tr {
                        @for (at, Column::Text(name) | Column::Number(name)) in columns.iter().enumerate() {
                            th scope="col" class=[class(at)] { (name) }
                        }
                    }
                }
                tbody {
                    @for row in rows {
                        tr {
                            @for (at, cell) in row.iter().enumerate() {
                                @if at == 0 { th scope="row" { (cell) } } @else { td class=[class(at)] { (cell) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn number(n: usize) -> Markup {
    html! { (Grouped(n)) }
}

/// A name from a file. It does not change the text direction around it.
pub fn name(name: &str) -> Markup {
    html! { code { (breakable(name)) } }
}

/// A path that breaks after its slashes before it breaks anywhere else.
pub fn breakable(path: &str) -> Markup {
    html! { @for part in path.split_inclusive('/') { (part) wbr; } }
}

/// Bytes with their number and unit on one line.
pub fn bytes(count: u64) -> String {
    Bytes(count).to_string().replace(' ', "\u{a0}")
}

pub fn percent(part: usize, whole: usize) -> String {
    format!("{:.3}\u{a0}%", 100.0 * part as f64 / whole.max(1) as f64)
}

pub fn backbone(backbone: &ModelSummary) -> Markup {
    use Column::{Number, Text};
    let columns =
        [Text("tower"), Number("blocks"), Number("width"), Number("heads"), Text("feed-forward"), Text("position")];
    let rows = backbone.towers.iter().map(|t| {
        vec![
            html! { (t.kind) },
            number(t.blocks),
            number(t.width),
            html! { (t.heads) " of " (t.head_width) },
            html! { (Grouped(t.feed_forward)) @if t.gated { " gated" } " " (t.activation.name()) },
            match t.buckets {
                Some(buckets) => html! { (buckets) " buckets" },
                None => html! { "none" },
            },
        ]
    });
    let tied = if backbone.tied { "tied to the embedding" } else { "untied" };
    html! {
        (table("Backbone", &columns, rows))
        p.note {
            "LM head: vocabulary " (Grouped(backbone.vocabulary)) ", scale " (format!("{:.6}", backbone.head_scale))
            ", " (tied) "."
        }
    }
}

pub fn ports(inputs: &[PortSummary], outputs: &[PortSummary]) -> Markup {
    let columns = [Column::Text("name"), Column::Text(""), Column::Text("type and shape")];
    let row = |p: &PortSummary, kind: &str| vec![name(&p.name), html! { (kind) }, type_and_shape(p)];
    let rows = inputs.iter().map(|p| row(p, "input")).chain(outputs.iter().map(|p| row(p, "output")));
    table("Inputs and outputs", &columns, rows)
}

fn type_and_shape(p: &PortSummary) -> Markup {
    html! { code { (p.dtype) "[" (p.shape.join(", ")) "]" } }
}

pub fn weights(weights: &BTreeMap<String, Weights>) -> Markup {
    let columns = [Column::Text("type"), Column::Number("tensors"), Column::Number("elements"), Column::Number("size")];
    let rows = weights.iter().map(|(dtype, w)| {
        vec![html! { (dtype) }, number(w.tensors), number(w.elements), html! { (bytes(w.bytes as u64)) }]
    });
    table("Weights in the file", &columns, rows)
}

/// Trainable parameters by group, with bars of their shares.
pub fn groups(groups: &BTreeMap<String, Weights>) -> Markup {
    let total = groups.values().fold(0_usize, |n, w| n.saturating_add(w.elements));
    let columns = [
        Column::Text("group"),
        Column::Number("tensors"),
        Column::Number("parameters"),
        Column::Number("share"),
        Column::Text(""),
    ];
    let mut largest_first: Vec<_> = groups.iter().collect();
    largest_first.sort_by_key(|(_, w)| std::cmp::Reverse(w.elements));
    let rows = largest_first.into_iter().map(|(group, w)| {
        let share = 100.0 * w.elements as f64 / total.max(1) as f64;
        vec![
            html! { (group) },
            number(w.tensors),
            number(w.elements),
            html! { (format!("{share:.1}\u{a0}%")) },
            html! {
                svg.share width="100%" height="10" aria-hidden="true" {
                    rect class="activations" width=(format!("{share:.2}%")) height="10" {}
                }
            },
        ]
    });
    table("Trainable parameters by group", &columns, rows)
}

fn gate(gate: Option<&Gate>) -> Markup {
    match gate {
        Some(gate) => html! { (format!("{:.3}", gate.value)) " " small { (gate.state.name()) } },
        None => html! { "sum" },
    }
}

/// Every tap with its rung, and every dropped block.
pub fn rungs(ladder: &Ladder) -> Markup {
    let columns = [
        Column::Text("tap"),
        Column::Text("backbone value"),
        Column::Number("down-projection"),
        Column::Number("gate"),
        Column::Number("side block"),
    ];
    let mut rows = Vec::new();
    for stack in &ladder.stacks {
        let first = &stack.first;
        let dash = || html! { "–" };
        rows.push(vec![
            html! { (stack.tower) " embedding" },
            name(&first.value),
            number(first.elements),
            dash(),
            dash(),
        ]);
        for (block, rung) in stack.rungs.iter().enumerate() {
            let point = html! { (stack.tower) " " (block) };
            rows.push(match rung {
                Some(Rung { tap: Some(tap), gate: mixed, elements }) => {
                    vec![point, name(&tap.value), number(tap.elements), gate(mixed.as_ref()), number(*elements)]
                }
                Some(r) => vec![point, html! { "no tap" }, dash(), dash(), number(r.elements)],
                None => vec![point, html! { "dropped" }, dash(), dash(), dash()],
            });
        }
        for elements in &stack.free {
            rows.push(vec![html! { (stack.tower) " behind" }, html! { "no tap" }, dash(), dash(), number(*elements)]);
        }
    }
    let head = &ladder.head;
    html! {
        (table("Taps and rungs", &columns, rows))
        p.note {
            "Up-projection: " (Grouped(head.elements)) " parameters. "
            @if let Some(merge) = &head.merge {
                "The merge of the backbone's final output: gate " (gate(Some(merge))) ". "
            }
            "A gate is the share of the side state; the rest is the tap's."
        }
    }
}

pub fn cut(cut: &[CutReport]) -> Markup {
    let columns = [Column::Text("what"), Column::Text("backbone value"), Column::Text("nodes that read it")];
    let rows = cut.iter().map(|c| {
        let readers: Vec<String> = c.readers.iter().map(|(pass, n)| format!("{pass} {n}")).collect();
        vec![
            html! { (c.role) },
            html! { (name(&c.value.name)) br; (type_and_shape(&c.value)) },
            html! { (readers.join(", ")) },
        ]
    });
    table("The cut: everything that nodes of train.onnx read from the backbone", &columns, rows)
}

/// The epochs of a run.
pub fn epochs(epochs: &[Epoch]) -> Markup {
    use Column::{Number, Text};
    let columns =
        [Text("epoch"), Number("last step"), Number("mean loss"), Number("evaluated loss"), Number("accuracy")];
    let optional = |value: Option<String>| html! { (value.unwrap_or_else(|| "–".to_owned())) };
    let rows = epochs.iter().map(|e| {
        vec![
            html! { (e.epoch) },
            number(e.step as usize),
            html! { (format!("{:.4}", e.loss)) },
            optional(e.eval_loss.map(|loss| format!("{loss:.4}"))),
            optional(e.eval_accuracy.map(evaluate::percent)),
        ]
    });
    table("Epochs", &columns, rows)
}

/// The gates of a run.
pub fn courses(gates: &[GateCourse]) -> Markup {
    let columns = [Column::Text("gate"), Column::Number("first"), Column::Number("last"), Column::Number("opened")];
    let rows = gates.iter().map(|gate| {
        let value = |value: f64| html! { (format!("{value:.3}")) };
        vec![name(&gate.name), value(gate.first()), value(gate.last()), html! { (gate.opened_in_words()) }]
    });
    html! {
        (table("Gates", &columns, rows))
        p.note { "Opened: 0.05 or more from the initial value." }
    }
}

/// Nodes of each graph by the pass that made them.
pub fn nodes(graphs: &[GraphReport]) -> Markup {
    let mut passes: Vec<&str> = Vec::new();
    for (pass, _) in graphs.iter().flat_map(|g| &g.by_pass) {
        if !passes.contains(&pass.as_str()) {
            passes.push(pass);
        }
    }
    let of = |g: &GraphReport, pass: &str| g.by_pass.iter().find(|(p, _)| p == pass).map(|(_, n)| *n);
    html! {
        div.table {
            table {
                caption { "Nodes by pass" }
                thead { tr {
                    th scope="col" { "pass" }
                    @for g in graphs { th.n scope="col" { (g.file.trim_end_matches(".onnx")) } }
                } }
                tbody {
                    @for pass in passes {
                        tr {
                            th scope="row" { (pass) }
                            @for g in graphs {
                                td.n { @match of(g, pass) { Some(n) => (Grouped(n)), None => "–" } }
                            }
                        }
                    }
                }
                tfoot { tr {
                    th scope="row" { "all" }
                    @for g in graphs { td.n { (Grouped(g.nodes)) } }
                } }
            }
        }
    }
}

/// What takes memory: the class of its bars, and its name.
const PARTS: [(&str, &str); 4] = [
    ("weights", "weights"),
    ("activations", "kept activations"),
    ("optimizer", "gradients and moments"),
    ("runtime", "runtime"),
];

/// The prediction as bars and as a table.
pub fn memory(memory: &Memory) -> Markup {
    let sizes = memory.sizes;
    let ways = [
        (format!("side tuning, r = {}", memory.reduction), &memory.lst),
        ("the same, in CUDA device memory".to_owned(), &memory.cuda),
        ("full fine-tuning".to_owned(), &memory.full),
    ];
    let most = ways.iter().map(|(_, c)| c.total).max().unwrap_or(0).max(1);
    let columns = [
        Column::Text(""),
        Column::Number("weights"),
        Column::Number("kept activations"),
        Column::Number("gradients and moments"),
        Column::Number("runtime"),
        Column::Number("total"),
    ];
    let rows = ways.iter().map(|(way, c)| {
        let cells = [c.weights, c.activations, c.optimizer, c.runtime, c.total].map(|b| html! { (bytes(b)) });
        std::iter::once(html! { (way) }).chain(cells).collect()
    });
    html! {
        p.note {
            "For batches of " (Grouped(sizes.batch)) ", " (Grouped(sizes.source_length)) " tokens in and "
            (Grouped(sizes.target_length)) " out, in fp32."
        }
        div.bars {
            @for (way, cost) in &ways {
                p { span { (way) } b { (bytes(cost.total)) } }
                (bar(cost, most))
            }
        }
        ul.legend {
            @for (class, what) in PARTS {
                li {
                    svg width="28" height="16" aria-hidden="true" {
                        rect class=(class) x="1" y="2" width="26" height="12" {}
                    }
                    (what)
                }
            }
        }
        (table("Predicted memory of training", &columns, rows))
    }
}

fn bar(cost: &Cost, most: u64) -> Markup {
    let share = |bytes: u64| 100.0 * bytes as f64 / most as f64;
    let parts = [
        ("weights", 0, cost.weights),
        ("activations", cost.weights, cost.activations),
        ("optimizer", total([cost.weights, cost.activations]), cost.optimizer),
        ("runtime", cost.total - cost.runtime, cost.runtime),
    ];
    html! {
        svg.bar width="100%" height="20" aria-hidden="true" {
            rect class="ground" width="100%" height="20" {}
            @for (class, from, part) in parts {
                rect class=(class) height="20" x=(format!("{:.3}%", share(from)))
                    width=(format!("{:.3}%", share(part))) {}
            }
        }
    }
}
