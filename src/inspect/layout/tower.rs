//! One tower: its place in the drawing, and its parts.

use lstc_passes::options::Merge;
use lstc_tuned::gates::{Gate, State};

use super::{Anchor, Arrangement, Block, Flow, Layout, Mark, Part, Rect, Side, Voice, Wire};
use crate::inspect::ladder::{Ladder, Rung, Stack, Tap};
use crate::inspect::text::Grouped;

const ROW: f64 = 32.0;
const GAP: f64 = 23.0;
const PITCH: f64 = ROW + GAP;
const PAD: f64 = 12.0;
const HEADER: f64 = 50.0;
/// The space below the embedding for the name of its tokens.
const FOOT: f64 = 14.0;
const BACKBONE: f64 = 92.0;
/// The space between the columns.
const RUNG: f64 = 78.0;
const SIDE: f64 = 146.0;
/// The space beyond the side stack for the rail of its cross-attention, if any.
const RAIL: f64 = 24.0;
const BETWEEN: f64 = 16.0;
const PROJECTION: (f64, f64) = (62.0, 18.0);

/// A tower, its background, and which way it faces.
pub(super) struct Plan<'l> {
    stack: &'l Stack,
    pub(super) panel: Rect,
    /// Whether the side stack is on the left.
    mirrored: bool,
    is_last: bool,
    /// The position of the rail of its cross-attention.
    rail: f64,
}

/// The places of all towers. Side by side they share a ground line, and all but the first are mirrored: the first one's
/// side stack and the next one's are then neighbours.
pub(super) fn plans(ladder: &Ladder, arrangement: Arrangement) -> Vec<Plan<'_>> {
    let count = ladder.stacks.len();
    let columns = PAD + BACKBONE + RUNG + SIDE;
    let has_rails = ladder.stacks.iter().skip(1).any(|s| s.cross_attention);
    let mut plans: Vec<Plan> = Vec::new();
    for (index, stack) in ladder.stacks.iter().enumerate() {
        let is_last = index + 1 == count;
        let levels = stack.rungs.len() + stack.free.len() + if is_last { 5 } else { 3 };
        // The side stack is then a level lower, but the backbone is not.
        let lower = stack.merge == Merge::After && (is_last || !stack.free.is_empty());
        let levels = levels - usize::from(lower);
        let top = if is_last { 2.0 * GAP } else { GAP };
        let h = HEADER + top + levels as f64 * PITCH - GAP + FOOT + PAD;
        let beside = arrangement == Arrangement::Beside;
        let rail = if has_rails && (!beside || index > 0) { RAIL } else { 0.0 };
        let x = if beside { plans.last().map_or(0.0, |p: &Plan| p.panel.right() + BETWEEN) } else { 0.0 };
        let panel = Rect { x, y: 0.0, w: columns + rail.max(PAD), h };
        let mirrored = beside && index > 0;
        let rail = if mirrored { panel.x + RAIL / 2.0 } else { panel.right() - RAIL / 2.0 };
        plans.push(Plan { stack, panel, mirrored, is_last, rail });
    }
    match arrangement {
        Arrangement::Beside => {
            let ground = plans.iter().map(|p| p.panel.h).fold(0.0, f64::max);
            plans.iter_mut().for_each(|p| p.panel.y = ground - p.panel.h);
        }
        Arrangement::Stacked => {
            let mut y = 0.0;
            for plan in plans.iter_mut().rev() {
                plan.panel.y = y;
                y = plan.panel.bottom() + BETWEEN;
            }
        }
    }
    plans
}

/// `12 345 parameters`, or shorter.
fn parameters(count: usize) -> [String; 2] {
    [format!("{} parameters", Grouped(count)), Grouped(count).to_string()]
}

impl Plan<'_> {
    /// Left edge of something `w` wide that begins `offset` from the backbone's side.
    fn x(&self, offset: f64, w: f64) -> f64 {
        if self.mirrored { self.panel.right() - offset - w } else { self.panel.x + offset }
    }

    fn row(&self, level: usize) -> f64 {
        self.panel.bottom() - PAD - FOOT - ROW - level as f64 * PITCH
    }

    /// Middle of the gap above a level.
    fn gap(&self, level: usize) -> f64 {
        self.row(level) - GAP / 2.0
    }

    fn backbone(&self, level: usize) -> Rect {
        Rect { x: self.x(PAD, BACKBONE), y: self.row(level), w: BACKBONE, h: ROW }
    }

    fn side(&self, level: usize) -> Rect {
        Rect { x: self.x(PAD + BACKBONE + RUNG, SIDE), y: self.row(level), w: SIDE, h: ROW }
    }

    /// Middle of a column.
    fn stream(&self, column: Rect) -> f64 {
        column.middle().0
    }

    /// The level of a side block. Where its tap is mixed in behind it, it stands beside the block that is tapped.
    fn level(&self, block: usize) -> usize {
        match self.stack.merge {
            Merge::Before => block + 2,
            Merge::After => block + 1,
        }
    }

    /// The level of the side stack's final norm.
    fn top(&self) -> usize {
        self.level(self.stack.rungs.len() + self.stack.free.len())
    }

    /// The side state on its way up to a level, past a gap without a gate.
    fn straight(&self, to: &mut Layout, level: usize) {
        let rect = self.side(level);
        let x = self.stream(rect);
        to.wire(Flow::Side, &[(x, rect.bottom() + GAP), (x, rect.bottom())]);
    }

    fn outwards(&self) -> f64 {
        if self.mirrored { -1.0 } else { 1.0 }
    }

    /// Draws the tower; `before` is where the side output of the previous tower leaves. Returns where its own does.
    pub(super) fn draw(&self, to: &mut Layout, ladder: &Ladder, before: Option<(f64, f64)>) -> (f64, f64) {
        to.panels.push(self.panel);
        self.header(to);
        self.draw_backbone(to);
        self.rung_of_embedding(to);
        for (block, rung) in self.stack.rungs.iter().enumerate() {
            match rung {
                Some(rung) => self.rung(to, block, rung),
                None => self.dropped(to, block),
            }
        }
        for (place, elements) in self.stack.free.iter().enumerate() {
            let block = self.stack.rungs.len() + place;
            if place > 0 || self.stack.merge == Merge::Before {
                self.straight(to, self.level(block));
            }
            self.side_block(to, block, *elements);
        }
        let output = self.side_norm(to);
        if let Some(before) = before.filter(|_| self.stack.cross_attention) {
            self.cross_attention(to, before);
        }
        if self.is_last {
            self.head(to, ladder);
        }
        output
    }

    fn header(&self, to: &mut Layout) {
        let stack = self.stack;
        let name = stack.tower.name();
        let title: String = name[..1].to_uppercase() + &name[1..];
        let tapped = |rung: &&Rung| rung.tap.is_some();
        let (blocks, kept) = (stack.rungs.len(), stack.rungs.iter().flatten().filter(tapped).count());
        let of = if kept == blocks { format!("{blocks}") } else { format!("{kept} of {blocks}") };
        let (d, side) = (Grouped(stack.width), Grouped(stack.side_width));
        let s = if blocks == 1 { "" } else { "s" };
        let detail = [
            format!("{of} block{s} tapped · {d} wide, side stack {side}"),
            format!("{of} block{s} · {d} → {side} wide"),
        ];
        // Clear of a rail.
        let x = self.panel.x + if self.mirrored { RAIL } else { PAD };
        let room = self.panel.w - PAD - RAIL;
        to.text((x, self.panel.y + 23.0), Anchor::Start, Voice::Title, room, &[title]);
        to.text((x, self.panel.y + 39.0), Anchor::Start, Voice::Detail, room, &detail);
    }

    fn draw_backbone(&self, to: &mut Layout) {
        let (stack, blocks) = (self.stack, self.stack.rungs.len());
        let name = stack.tower.name();
        let x = self.stream(self.backbone(0));
        let about = format!("embedding of the {name}, frozen; tokens: {}", stack.tokens);
        to.block(self.backbone(0), Part::Frozen, "embedding", &[], about);
        let (edge, anchor) =
            if self.mirrored { (self.backbone(0).right(), Anchor::End) } else { (self.backbone(0).x, Anchor::Start) };
        let below = self.backbone(0).bottom() + FOOT;
        to.text((edge, below), anchor, Voice::Detail, BACKBONE + RUNG, std::slice::from_ref(&stack.tokens));
        for block in 0..blocks {
            let about = format!("block {block} of the {name}, frozen, {} wide", stack.width);
            to.block(self.backbone(block + 1), Part::Frozen, &format!("block {block}"), &[], about);
        }
        let about = format!("final norm of the {name}, frozen");
        to.block(self.backbone(blocks + 1), Part::Frozen, "final norm", &[], about);
        for level in 0..=blocks {
            to.wire(Flow::Frozen, &[(x, self.row(level)), (x, self.row(level) - GAP)]);
        }
        let y = self.row(blocks + 2) + ROW;
        for (voice, lift, caption) in [(Voice::Name, 17.0, "backbone"), (Voice::Detail, 4.0, "frozen")] {
            to.text((x, y - lift), Anchor::Middle, voice, BACKBONE, &[caption.to_owned()]);
        }
        let (x, y) = (self.stream(self.side(0)), self.row(0));
        to.text((x, y + 13.0), Anchor::Middle, Voice::Name, SIDE, &["side stack, trainable".to_owned()]);
        to.text((x, y + 26.5), Anchor::Middle, Voice::Accent, SIDE, &parameters(stack.elements));
    }

    /// The wire from a tap to the side stack, at the gap above `level`, with its down-projection.
    fn projection(&self, to: &mut Layout, level: usize, end: f64, tap: &Tap, point: &str) {
        let y = self.gap(level);
        let start = self.stream(self.backbone(level));
        let (w, h) = PROJECTION;
        let rect = Rect { x: self.x(PAD + BACKBONE + (RUNG - w) / 2.0, w), y: y - h / 2.0, w, h };
        let (near, far) = if self.mirrored { (rect.right(), rect.x) } else { (rect.x, rect.right()) };
        to.dots.push((start, y));
        to.wire(Flow::Frozen, &[(start, y), (near, y)]);
        to.wires.push(Wire { points: vec![(far, y), (end, y)], flow: Flow::Side, arrow: false });
        let stack = self.stack;
        let about = format!(
            "down-projection of {point} of the {}, trainable, {} parameters; tap: {}",
            stack.tower,
            Grouped(tap.elements),
            tap.value
        );
        let forms = [
            format!("{} → {}", stack.width, stack.side_width),
            format!("{}→{}", stack.width, stack.side_width),
            format!("→{}", stack.side_width),
        ];
        let (x, y) = rect.middle();
        to.text((x, y + 3.5), Anchor::Middle, Voice::Accent, w - 4.0, &forms);
        let part = Part::Down(if self.mirrored { Side::Left } else { Side::Right });
        to.blocks.push(Block { rect, part, about });
    }

    fn rung_of_embedding(&self, to: &mut Layout) {
        let x = self.stream(self.side(0));
        self.projection(to, 0, x, &self.stack.first, "the embedding");
        let end = if self.stack.merge == Merge::Before { self.row(1) } else { self.side(1).bottom() };
        to.wire(Flow::Side, &[(x, self.gap(0)), (x, end)]);
    }

    fn rung(&self, to: &mut Layout, block: usize, rung: &Rung) {
        match &rung.tap {
            Some(tap) => {
                let (x, y) = (self.stream(self.side(0)), self.gap(block + 1));
                let end = x - self.outwards() * Mark::RADIUS;
                self.projection(to, block + 1, end, tap, &format!("block {block}"));
                let about = format!("gate of block {block} of the {}", self.stack.tower);
                self.gate(to, (x, y), rung.gate, about, self.outwards());
            }
            None => self.straight(to, block + 2),
        }
        self.side_block(to, block, rung.elements);
    }

    fn side_block(&self, to: &mut Layout, block: usize, elements: usize) {
        let (name, count) = (format!("side block {block}"), Grouped(elements));
        let width = Grouped(self.stack.side_width);
        let millions = format!("{width} wide · {:.1} M", elements as f64 / 1e6);
        let details = [format!("{width} wide · {count}"), millions, count.to_string()];
        let about =
            format!("side block {block} of the {}, trainable, {width} wide, {count} parameters", self.stack.tower);
        to.block(self.side(self.level(block)), Part::Trainable, &name, &details, about);
    }

    /// A gate on the side stream, its value on the side that its rung does not come from.
    fn gate(&self, to: &mut Layout, (x, y): (f64, f64), gate: Option<Gate>, about: String, value_at: f64) {
        let half = GAP / 2.0;
        to.wire(Flow::Side, &[(x, y + half), (x, y + Mark::RADIUS)]);
        to.wire(Flow::Side, &[(x, y - Mark::RADIUS), (x, y - half)]);
        let about = match gate {
            Some(gate) => {
                let anchor = if value_at > 0.0 { Anchor::Start } else { Anchor::End };
                let (text, voice) = match gate.state {
                    State::Trained => (format!("{:.3}", gate.value), Voice::Accent),
                    state => (format!("{:.3} {}", gate.value, state.name()), Voice::Initial),
                };
                // Up to the rail.
                let (from, room) = (Mark::RADIUS + 3.0, SIDE / 2.0 + RAIL / 2.0 - 3.0);
                to.text((x + value_at * from, y + 3.5), anchor, voice, room - from, &[text]);
                format!("{about}: {:.3}, {}", gate.value, gate.state.name())
            }
            None => format!("{about}: none, tap and side state are added"),
        };
        to.marks.push(Mark { x, y, gate, about });
    }

    fn dropped(&self, to: &mut Layout, block: usize) {
        let rect = self.side(self.level(block));
        let x = self.stream(rect);
        // The gap without a gate: below it, or where taps are mixed in behind blocks, above it.
        let gap = if self.stack.merge == Merge::Before { GAP } else { 0.0 };
        to.wire(Flow::Side, &[(x, rect.bottom() + gap), (x, rect.y)]);
        if self.stack.merge == Merge::After {
            self.straight(to, block + 2);
        }
        let (room, at) = (SIDE / 2.0 - 12.0, x + self.outwards() * 7.0);
        let anchor = if self.mirrored { Anchor::End } else { Anchor::Start };
        let (_, middle) = rect.middle();
        to.text((at, middle - 2.5), anchor, Voice::Detail, room, &[format!("block {block}"), block.to_string()]);
        to.text((at, middle + 10.5), anchor, Voice::Detail, room, &["dropped".to_owned()]);
        let about =
            format!("block {block} of the {} is dropped: no side block, the side state bypasses it", self.stack.tower);
        to.blocks.push(Block { rect, part: Part::Dropped, about });
    }

    /// The final norm of the side stack. Returns where its output leaves.
    fn side_norm(&self, to: &mut Layout) -> (f64, f64) {
        let rect = self.side(self.top());
        let x = self.stream(rect);
        if !self.stack.free.is_empty() || self.stack.merge == Merge::Before {
            self.straight(to, self.top());
        }
        let about = format!("final norm of the {}'s side stack, trainable", self.stack.tower);
        to.block(rect, Part::Trainable, "final side norm", &parameters(self.stack.norm), about);
        (x, rect.y)
    }

    /// The wires from the side output of the previous tower to each side block.
    fn cross_attention(&self, to: &mut Layout, (x, y): (f64, f64)) {
        let blocks = self.stack.rungs.len();
        let kept = self.stack.rungs.iter().enumerate().filter(|(_, r)| r.is_some()).map(|(block, _)| block);
        let all = kept.chain(blocks..blocks + self.stack.free.len());
        let ends: Vec<f64> = all.map(|block| self.side(self.level(block)).middle().1).collect();
        let turn = y - GAP / 2.0;
        let (Some(low), Some(high)) = (ends.first(), ends.last()) else { return };
        to.wire(Flow::Cross, &[(x, y), (x, turn), (self.rail, turn)]);
        to.wire(Flow::Cross, &[(self.rail, low.max(turn)), (self.rail, high.min(turn))]);
        let edge = if self.mirrored { self.side(0).x } else { self.side(0).right() };
        for end in ends {
            to.wires.push(Wire { points: vec![(self.rail, end), (edge, end)], flow: Flow::Cross, arrow: true });
        }
    }

    /// Up-projection, merge and LM head.
    fn head(&self, to: &mut Layout, ladder: &Ladder) {
        let (head, top) = (&ladder.head, self.top());
        let up = self.side(top + 1);
        let x = self.stream(up);
        to.wire(Flow::Side, &[(x, self.row(top)), (x, up.bottom())]);
        let (d, side, count) = (Grouped(self.stack.width), Grouped(self.stack.side_width), Grouped(head.elements));
        let details = [format!("{side} → {d} · {count}"), format!("{side} → {d}")];
        let about = format!("up-projection, trainable, {side} to {d}, {count} parameters");
        to.block(up, Part::Up, "up-projection", &details, about);

        let y = self.gap(top + 1);
        // The backbone's final output goes up between the columns.
        let norm = self.backbone(self.stack.rungs.len() + 1);
        let lane = self.x(PAD + BACKBONE + RUNG / 2.0, 0.0);
        let from = (if self.mirrored { norm.x } else { norm.right() }, norm.middle().1);
        match head.merge {
            Some(gate) => {
                to.dots.push(from);
                let end = x - self.outwards() * Mark::RADIUS;
                to.wire(Flow::Frozen, &[from, (lane, from.1), (lane, y), (end, y)]);
                self.gate(to, (x, y), Some(gate), "gate of merge_last".to_owned(), self.outwards());
            }
            None => to.wire(Flow::Side, &[(x, up.y), (x, up.y - GAP)]),
        }
        let w = BACKBONE + RUNG + SIDE;
        let rect = Rect { x: self.x(PAD, w), y: self.row(top + 2), w, h: ROW };
        if head.distilled {
            to.dots.push(from);
            to.wire(Flow::Frozen, &[from, (lane, from.1), (lane, rect.bottom())]);
        }
        let uses = [head.merge.map(|_| "merge_last"), head.distilled.then_some("teacher")];
        let uses: Vec<&str> = uses.into_iter().flatten().collect();
        if !uses.is_empty() {
            let at = (lane - self.outwards() * 7.0, up.middle().1 + 3.5);
            let anchor = if self.mirrored { Anchor::Start } else { Anchor::End };
            to.text(at, anchor, Voice::Detail, BACKBONE + RUNG / 2.0 - 7.0, &[uses.join(", ")]);
        }
        let vocabulary = Grouped(head.vocabulary);
        let details = [
            format!("frozen, the backbone's own · vocabulary {vocabulary}"),
            format!("frozen · vocabulary {vocabulary}"),
        ];
        let about = format!("LM head, frozen, shared with the backbone, vocabulary {vocabulary}");
        to.block(rect, Part::Frozen, "LM head", &details, about);
        to.wires.push(Wire { points: vec![(x, rect.y), (x, rect.y - GAP + 3.0)], flow: Flow::Side, arrow: true });
        let at = (x + self.outwards() * 9.0, rect.y - GAP / 2.0 + 2.0);
        let anchor = if self.mirrored { Anchor::End } else { Anchor::Start };
        to.text(at, anchor, Voice::Name, SIDE / 2.0, &["logits".to_owned()]);
    }
}
