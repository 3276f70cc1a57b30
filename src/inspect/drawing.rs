//! A ladder's drawing as inline SVG.
//!
//! Colours and strokes come from the page's style sheet, by class. Frozen and trainable parts differ in outline too:
//! frozen boxes have a hatched edge.

use lstc_tuned::gates::{Gate, State};
use maud::{Markup, html};

use super::ladder::{Ladder, Rung};
use super::layout::{Anchor, Arrangement, Block, Flow, Layout, Mark, Part, Rect, Side, Text, Voice, Wire};
use super::text::Grouped;

/// The drawing in one arrangement. `id` sets its identifiers apart from those of other drawings on the page.
pub fn svg(ladder: &Ladder, arrangement: Arrangement, id: &str, title: &str) -> Markup {
    let layout = Layout::new(ladder, arrangement);
    let (w, h) = (layout.width, layout.height);
    let hatch = format!("{id}-hatch");
    html! {
        svg xmlns="http://www.w3.org/2000/svg" viewBox=(format!("-1 -1 {} {}", w + 2.0, h + 2.0))
            width=(w + 2.0) height=(h + 2.0) role="img" aria-labelledby=(format!("{id}-title {id}-desc")) {
            title id=(format!("{id}-title")) { "Ladder of " (title) }
            desc id=(format!("{id}-desc")) { (describe(ladder)) }
            (hatching(&hatch))
            @for r in &layout.panels { (rect(r, "panel", 10.0)) }
            @for wire in &layout.wires { (self::wire(wire)) }
            @for block in &layout.blocks { (self::block(block, &hatch)) }
            @for (x, y) in &layout.dots { circle class="dot" cx=(x) cy=(y) r="3.5" {} }
            @for mark in &layout.marks { (self::mark(mark)) }
            @for text in &layout.texts { (self::text(text)) }
        }
    }
}

/// The drawing in words.
fn describe(ladder: &Ladder) -> String {
    let is_tapped = |rung: &Option<Rung>| rung.as_ref().is_some_and(|rung| rung.tap.is_some());
    let mut words = String::new();
    for stack in &ladder.stacks {
        let kept: Vec<String> =
            stack.rungs.iter().enumerate().filter(|(_, r)| is_tapped(r)).map(|(b, _)| b.to_string()).collect();
        words += &format!(
            "The {} has {} frozen blocks of width {}. Beside it stands a side stack of width {} with {} parameters, \
             which taps the embedding{}. ",
            stack.tower,
            stack.rungs.len(),
            Grouped(stack.width),
            Grouped(stack.side_width),
            Grouped(stack.elements),
            if kept.is_empty() { String::new() } else { format!(" and the blocks {}", kept.join(", ")) }
        );
    }
    if ladder.stacks.iter().skip(1).any(|s| s.cross_attention) {
        words += "The cross-attention of the later side stack reads the side output of the one before. ";
    }
    let merge = if ladder.head.merge.is_some() { " and mixed with the backbone's final output" } else { "" };
    words
        + &format!(
            "The last side output is projected up{merge}, and enters the backbone's frozen LM head. \
         The tables below hold every figure."
        )
}

fn rect(r: &Rect, class: &str, radius: f64) -> Markup {
    html! { rect class=(class) x=(r.x) y=(r.y) width=(r.w) height=(r.h) rx=(radius) {} }
}

fn block(block: &Block, hatch: &str) -> Markup {
    let r = &block.rect;
    html! {
        g {
            @if !block.about.is_empty() { title { (block.about) } }
            @match block.part {
                Part::Frozen => {
                    (rect(r, "frozen", 3.0))
                    rect x=(r.x + 1.0) y=(r.y + 1.0) width="5" height=(r.h - 2.0) fill=(format!("url(#{hatch})")) {}
                }
                Part::Trainable => (rect(r, "trainable", 6.0)),
                Part::Dropped => (rect(r, "dropped", 6.0)),
                Part::Down(side) => path class="trainable" d=(trapezoid(r, side)) {},
                Part::Up => path class="trainable" d=(widening(r)) {},
            }
        }
    }
}

/// Narrows to one side.
fn trapezoid(r: &Rect, side: Side) -> String {
    const NARROWING: f64 = 3.5;
    let (wide, narrow) = match side {
        Side::Right => (r.x, r.right()),
        Side::Left => (r.right(), r.x),
    };
    let (low, high) = (r.bottom(), r.y);
    format!("M{wide} {high}L{narrow} {}V{}L{wide} {low}Z", high + NARROWING, low - NARROWING)
}

/// Widens upwards.
fn widening(r: &Rect) -> String {
    let inset = 8.0;
    format!("M{} {}H{}L{} {}H{}Z", r.x, r.y, r.right(), r.right() - inset, r.bottom(), r.x + inset)
}

fn wire(wire: &Wire) -> Markup {
    let class = match wire.flow {
        Flow::Frozen => "wire",
        Flow::Side => "wire side",
        Flow::Cross => "wire cross",
    };
    let mut path = String::new();
    for (at, (x, y)) in wire.points.iter().enumerate() {
        path += &format!("{}{x} {y}", if at == 0 { 'M' } else { 'L' });
    }
    html! {
        path class=(class) d=(path) {}
        @if wire.arrow { (arrow(wire)) }
    }
}

/// An arrowhead at the end of a wire.
fn arrow(wire: &Wire) -> Markup {
    let [.., from, to] = wire.points.as_slice() else { return html! {} };
    let (dx, dy) = ((to.0 - from.0).signum(), (to.1 - from.1).signum());
    let along = if from.0 == to.0 { (0.0, dy) } else { (dx, 0.0) };
    let (x, y) = (to.0 - along.0 * 6.0, to.1 - along.1 * 6.0);
    let (left, right) = ((x - along.1 * 3.5, y + along.0 * 3.5), (x + along.1 * 3.5, y - along.0 * 3.5));
    let class = if wire.flow == Flow::Cross { "arrow cross" } else { "arrow" };
    html! { path class=(class) d=(format!("M{} {}L{} {}L{} {}Z", to.0, to.1, left.0, left.1, right.0, right.1)) {} }
}

/// A pie: its filled part is the side state's share.
fn mark(mark: &Mark) -> Markup {
    let (x, y, r) = (mark.x, mark.y, Mark::RADIUS);
    let Some(gate) = mark.gate else {
        return html! {
            g {
                @if !mark.about.is_empty() { title { (mark.about) } }
                circle class="gate" cx=(x) cy=(y) r=(r) {}
                path class="plus" d=(format!("M{} {y}h8M{x} {}v8", x - 4.0, y - 4.0)) {}
            }
        };
    };
    let class = if gate.state == State::Trained { "gate" } else { "gate initial" };
    let share = if gate.value.is_finite() { gate.value.clamp(0.0, 1.0) } else { 0.0 };
    html! {
        g {
            @if !mark.about.is_empty() { title { (mark.about) } }
            circle class=(class) cx=(x) cy=(y) r=(r) {}
            (pie(x, y, r - 2.0, share))
        }
    }
}

fn pie(x: f64, y: f64, r: f64, share: f64) -> Markup {
    if share > 0.999 {
        return html! { circle class="share" cx=(x) cy=(y) r=(r) {} };
    }
    // From the bottom, where the side state enters, to both sides.
    let half = std::f64::consts::PI * share;
    let (dx, dy) = (r * half.sin(), r * half.cos());
    let large = u8::from(share > 0.5);
    let arc = format!("M{x} {y}L{:.2} {:.2}A{r} {r} 0 {large} 1 {:.2} {:.2}Z", x + dx, y + dy, x - dx, y + dy);
    html! { path class="share" d=(arc) {} }
}

fn text(text: &Text) -> Markup {
    let voice = match text.voice {
        Voice::Title => "title",
        Voice::Name => "name",
        Voice::Detail => "detail",
        Voice::Accent => "detail accent",
        Voice::Initial => "detail initial",
    };
    let anchor = match text.anchor {
        Anchor::Start => "start",
        Anchor::Middle => "middle",
        Anchor::End => "end",
    };
    html! {
        text class=(voice) x=(text.x) y=(text.y) font-size=(text.voice.size()) text-anchor=(anchor) { (text.text) }
    }
}

/// The legend: the signs that occur in this drawing.
pub fn legend(ladder: &Ladder) -> Markup {
    let rungs = || ladder.stacks.iter().flat_map(|s| &s.rungs);
    let has = |state| ladder.gates().any(|g| g.state == state);
    let has_sums = rungs().flatten().any(|r| r.tap.is_some() && r.gate.is_none());
    let has_dropped = rungs().any(Option::is_none);
    let has_cross = ladder.stacks.iter().skip(1).any(|s| s.cross_attention);
    let area = Rect { x: 1.0, y: 1.0, w: 26.0, h: 14.0 };
    let block_of = |part| block(&Block { rect: area, part, about: String::new() }, "legend-hatch");
    let mark_of = |gate| mark(&Mark { x: 14.0, y: 8.0, gate, about: String::new() });
    let gate = |state| mark_of(Some(Gate { value: if state == State::Trained { 0.7 } else { 0.5 }, state }));
    html! {
        ul.legend {
            li {
                (sign(html! { (hatching("legend-hatch")) (block_of(Part::Frozen)) }))
                "frozen: the backbone, hatched edge"
            }
            li { (sign(block_of(Part::Trainable))) "trainable: the side network" }
            li { (sign(html! { path class="wire" d="M1 8H27" {} circle class="dot" cx="14" cy="8" r="3.5" {} })) "tap" }
            li { (sign(block_of(Part::Down(Side::Right)))) "down-projection, from width to width" }
            @if has(State::Trained) {
                li { (sign(gate(State::Trained))) "gate: the filled part is the side state's share, the rest the tap's" }
            }
            @if has(State::Initial) { li { (sign(gate(State::Initial))) "gate at its initial value, before training" } }
            @if has(State::Scheduled) { li { (sign(gate(State::Scheduled))) "gate that a schedule sets for each epoch" } }
            @if has(State::Fixed) { li { (sign(gate(State::Fixed))) "fixed gate: training does not move it" } }
            @if has_sums { li { (sign(mark_of(None))) "no gate: tap and side state are added" } }
            @if has_dropped { li { (sign(block_of(Part::Dropped))) "dropped block: the side state bypasses it" } }
            @if has_cross {
                li {
                    (sign(html! { path class="wire cross" d="M1 8H27" {} }))
                    "cross-attention of the side stack; the backbone's own is not drawn"
                }
            }
        }
    }
}

/// What fills the edge of frozen boxes.
fn hatching(id: &str) -> Markup {
    html! {
        defs {
            pattern id=(id) width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)" {
                rect class="hatch-ground" width="5" height="5" {}
                rect class="hatch" width="2" height="5" {}
            }
        }
    }
}

/// A sign of the legend; the text beside it explains it.
fn sign(content: Markup) -> Markup {
    html! { svg width="28" height="16" viewBox="0 0 28 16" aria-hidden="true" { (content) } }
}
