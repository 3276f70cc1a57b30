//! The layout of a ladder's drawing as plain data; one unit is a pixel at natural size.
//!
//! A tower is a grid of levels, from the bottom up. A tap leaves the gap above its block; the side block that it enters
//! is above that gap, one level higher.
//!
//! ```text
//! level      backbone            side stack
//! n + 4      LM head ............ LM head       (the last tower)
//! n + 3                          up-projection  (the last tower)
//! n + 2                          final norm
//! n + 1      final norm          side block n-1
//! i + 1      block i             side block i-1
//! 0          embedding           caption
//! ```
//!
//! Invariants, for every ladder: no two boxes overlap; a text is within one box, or outside of all; no two texts
//! overlap; no wire crosses a box that it does not end at, except that of a dropped block; all is within the drawing.

use lstc_tuned::gates::Gate;

use super::ladder::Ladder;
use super::text::{fit, width};

mod tower;

/// How towers are placed: side by side, or one above the other where they do not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrangement {
    Beside,
    Stacked,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rect {
    pub x: f64,
    pub y: f64,
    pub w: f64,
    pub h: f64,
}

impl Rect {
    pub fn right(&self) -> f64 {
        self.x + self.w
    }

    pub fn bottom(&self) -> f64 {
        self.y + self.h
    }

    pub fn middle(&self) -> (f64, f64) {
        (self.x + self.w / 2.0, self.y + self.h / 2.0)
    }

    /// True where the insides meet; a shared edge does not count.
    pub fn overlaps(&self, other: &Rect) -> bool {
        self.x < other.right() && other.x < self.right() && self.y < other.bottom() && other.y < self.bottom()
    }

    pub fn holds(&self, other: &Rect) -> bool {
        self.x <= other.x && self.y <= other.y && other.right() <= self.right() && other.bottom() <= self.bottom()
    }
}

/// What a box represents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Frozen,
    Trainable,
    /// A projection that narrows to the left or right.
    Down(Side),
    Up,
    /// A dropped block, which the side state bypasses.
    Dropped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Left,
    Right,
}

#[derive(Clone, Debug)]
pub struct Block {
    pub rect: Rect,
    pub part: Part,
    /// The tooltip.
    pub about: String,
}

/// How a text looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Voice {
    Title,
    Name,
    Detail,
    /// On a trainable part.
    Accent,
    /// A value that training did not set.
    Initial,
}

impl Voice {
    pub fn size(self) -> f64 {
        match self {
            Voice::Title => 15.0,
            Voice::Name => 12.0,
            Voice::Detail | Voice::Accent | Voice::Initial => 10.5,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

#[derive(Clone, Debug)]
pub struct Text {
    pub x: f64,
    /// Position of the baseline.
    pub y: f64,
    pub anchor: Anchor,
    pub voice: Voice,
    pub text: String,
}

impl Text {
    /// The largest width that the text may take.
    pub fn bounds(&self) -> Rect {
        let size = self.voice.size();
        let w = width(&self.text, size);
        let x = match self.anchor {
            Anchor::Start => self.x,
            Anchor::Middle => self.x - w / 2.0,
            Anchor::End => self.x - w,
        };
        Rect { x, y: self.y - 0.8 * size, w, h: size }
    }
}

/// A gate, or the sum of a rung without one.
#[derive(Clone, Debug)]
pub struct Mark {
    pub x: f64,
    pub y: f64,
    pub gate: Option<Gate>,
    pub about: String,
}

impl Mark {
    pub const RADIUS: f64 = 7.0;

    pub fn bounds(&self) -> Rect {
        let r = Mark::RADIUS;
        Rect { x: self.x - r, y: self.y - r, w: 2.0 * r, h: 2.0 * r }
    }
}

/// What flows in a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The backbone's hidden states.
    Frozen,
    /// The side state.
    Side,
    /// The side output of the previous tower, to cross-attention.
    Cross,
}

/// Horizontal and vertical lines from one point to the next.
#[derive(Clone, Debug)]
pub struct Wire {
    pub points: Vec<(f64, f64)>,
    pub flow: Flow,
    pub arrow: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Layout {
    pub width: f64,
    pub height: f64,
    /// The background of a tower.
    pub panels: Vec<Rect>,
    pub blocks: Vec<Block>,
    pub texts: Vec<Text>,
    pub marks: Vec<Mark>,
    pub wires: Vec<Wire>,
    /// Where a tap leaves the backbone.
    pub dots: Vec<(f64, f64)>,
}

impl Layout {
    pub fn new(ladder: &Ladder, arrangement: Arrangement) -> Layout {
        let mut layout = Layout::default();
        let plans = tower::plans(ladder, arrangement);
        layout.width = plans.iter().map(|p| p.panel.right()).fold(0.0, f64::max);
        layout.height = plans.iter().map(|p| p.panel.bottom()).fold(0.0, f64::max);
        // What the cross-attention of the next tower reads.
        let mut output = None;
        for plan in &plans {
            output = Some(plan.draw(&mut layout, ladder, output));
        }
        layout
    }

    fn wire(&mut self, flow: Flow, points: &[(f64, f64)]) {
        self.wires.push(Wire { points: points.to_vec(), flow, arrow: false });
    }

    /// A line of text, in the first of several forms that fits.
    fn text(&mut self, at: (f64, f64), anchor: Anchor, voice: Voice, room: f64, forms: &[String]) {
        let text = fit(forms, voice.size(), room);
        self.texts.push(Text { x: at.0, y: at.1, anchor, voice, text });
    }

    /// A box with a name, and below it a detail in the first form that fits.
    fn block(&mut self, rect: Rect, part: Part, name: &str, details: &[String], about: String) {
        /// The margin between a text and the edges of its box, where the marks of frozen and trainable parts are.
        const MARGIN: f64 = 7.0;
        let (x, y) = rect.middle();
        let room = rect.w - 2.0 * MARGIN;
        let lift = if details.is_empty() { 4.0 } else { -2.5 };
        self.text((x, y + lift), Anchor::Middle, Voice::Name, room, &[name.to_owned()]);
        if !details.is_empty() {
            let voice = if part == Part::Frozen { Voice::Detail } else { Voice::Accent };
            self.text((x, y + 11.0), Anchor::Middle, voice, room, details);
        }
        self.blocks.push(Block { rect, part, about });
    }
}
