//! Curves over the steps of a run, as inline SVG. Colours and strokes come from the page's style sheet, by class.

use maud::{Markup, html};

/// One curve.
pub struct Series {
    /// The label at its end; none if empty.
    pub label: String,
    /// A class of the style sheet.
    pub class: &'static str,
    /// The points: step and value.
    pub points: Vec<(f64, f64)>,
    /// Whether each point is marked, as when there are few.
    pub is_marked: bool,
}

/// Curves over the same steps.
pub struct Chart {
    /// What it shows, for readers who cannot see it.
    pub title: String,
    pub series: Vec<Series>,
    /// The first step and the last.
    pub steps: (f64, f64),
    /// The smallest and the largest value shown; values beyond them are drawn at the edge.
    pub range: (f64, f64),
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 96.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 34.0;
/// The most points of a curve; more are averaged.
const MOST_POINTS: usize = 400;
/// The least distance between two labels.
const LINE: f64 = 13.0;

/// The scale: where values are drawn.
struct Scale {
    x: (f64, f64),
    y: (f64, f64),
}

impl Scale {
    fn x(&self, step: f64) -> f64 {
        LEFT + (step - self.x.0) / (self.x.1 - self.x.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - (value - self.y.0) / (self.y.1 - self.y.0) * (HEIGHT - TOP - BOTTOM)
    }
}

impl Chart {
    pub fn svg(&self) -> Markup {
        let scale = self.scale();
        let steps = ticks(scale.x.0, scale.x.1, 6).into_iter().filter(|step| step.fract() == 0.0);
        let ends = self.ends(&scale);
        html! {
            svg.chart viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(self.title) {
                @for value in ticks(scale.y.0, scale.y.1, 5) {
                    @let y = rounded(scale.y(value));
                    path class="grid" d=(format!("M{LEFT} {y}H{}", WIDTH - RIGHT)) {}
                    text class="detail" x=(LEFT - 8.0) y=(y + 4.0) font-size="12" text-anchor="end" { (number(value)) }
                }
                path class="axis" d=(format!("M{LEFT} {}H{}", HEIGHT - BOTTOM, WIDTH - RIGHT)) {}
                @for step in steps {
                    @let x = rounded(scale.x(step));
                    path class="axis" d=(format!("M{x} {}v5", HEIGHT - BOTTOM)) {}
                    text class="detail" x=(x) y=(HEIGHT - BOTTOM + 18.0) font-size="12" text-anchor="middle" { (step) }
                }
                text class="detail" x=(WIDTH - RIGHT + 8.0) y=(HEIGHT - BOTTOM + 18.0) font-size="12" { "step" }
                @for series in &self.series { (self::series(series, &scale)) }
                @for (y, label, class) in &ends {
                    text class=(format!("end {class}")) x=(WIDTH - RIGHT + 8.0) y=(rounded(y + 4.0)) font-size="12" { (label) }
                }
            }
        }
    }

    fn scale(&self) -> Scale {
        let wide = |(low, high): (f64, f64)| {
            let room = low.abs().mul_add(1e-9, 0.5);
            if high > low { (low, high) } else { (low - room, low + room) }
        };
        Scale { x: wide(self.steps), y: wide(self.range) }
    }

    /// The positions of the curves' labels, moved apart; none if there is no room for all.
    fn ends(&self, scale: &Scale) -> Vec<(f64, &str, &'static str)> {
        let end = |s: &Series| s.points.last().map(|(_, value)| scale.y(*value));
        let labelled = self.series.iter().filter(|s| !s.label.is_empty());
        let mut ends: Vec<_> = labelled.filter_map(|s| Some((end(s)?, s.label.as_str(), s.class))).collect();
        if ends.len() as f64 * LINE > HEIGHT - TOP {
            return Vec::new();
        }
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut last = f64::NEG_INFINITY;
        for end in &mut ends {
            end.0 = end.0.max(last + LINE);
            last = end.0;
        }
        let mut next = HEIGHT - BOTTOM + LINE;
        for end in ends.iter_mut().rev() {
            end.0 = end.0.min(next - LINE);
            next = end.0;
        }
        ends
    }
}

fn series(series: &Series, scale: &Scale) -> Markup {
    let points: Vec<(f64, f64)> = thinned(&series.points)
        .into_iter()
        .map(|(step, value)| (rounded(scale.x(step)), rounded(scale.y(value.clamp(scale.y.0, scale.y.1)))))
        .collect();
    let mut path = String::new();
    for (at, (x, y)) in points.iter().enumerate() {
        path += &format!("{}{x} {y}", if at == 0 { 'M' } else { 'L' });
    }
    html! {
        path class=(format!("curve {}", series.class)) d=(path) {}
        @if series.is_marked {
            @for (x, y) in &points { circle class=(format!("point {}", series.class)) cx=(x) cy=(y) r="2.5" {} }
        }
    }
}

/// At most as many points as can be seen, by averaging neighbours.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let size = points.len().div_ceil(MOST_POINTS).max(1);
    let mean =
        |chunk: &[(f64, f64)], of: fn(&(f64, f64)) -> f64| chunk.iter().map(of).sum::<f64>() / chunk.len() as f64;
    points.chunks(size).map(|chunk| (mean(chunk, |p| p.0), mean(chunk, |p| p.1))).collect()
}

/// About this many round numbers in a range.
fn ticks(low: f64, high: f64, about: usize) -> Vec<f64> {
    let rough = (high - low) / about as f64;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|step| *step >= rough).unwrap_or(10.0 * power);
    let first = (low / step - 1e-9).ceil();
    let multiple = |n: usize| (first + n as f64) * step;
    (0..2 * about).map(multiple).take_while(|value| *value <= high + 1e-9 * step).collect()
}

fn number(value: f64) -> String {
    let trimmed = |digits: &str| digits.trim_end_matches('0').trim_end_matches('.').to_owned();
    if value.abs() >= 1e-3 || value == 0.0 {
        return trimmed(&format!("{value:.4}"));
    }
    // Multiples of a step are not its exact multiples.
    let text = format!("{value:.3e}");
    let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
    format!("{}e{power}", trimmed(digits))
}

fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        let labels = |low, high, about| ticks(low, high, about).into_iter().map(number).collect::<Vec<_>>();
        assert_eq!(labels(0.0, 1.0, 5), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(labels(1.0, 944.0, 6), ["200", "400", "600", "800"]);
        assert_eq!(labels(0.0, 0.0004, 4), ["0", "1e-4", "2e-4", "3e-4", "4e-4"]);
        assert_eq!(ticks(1e30, 1e30, 6), [0.0; 0]);
        assert!(ticks(1e30, 1.1e30, 6).len() > 2);
    }

    #[test]
    fn many_points_become_means() {
        let points: Vec<(f64, f64)> = (0..1000).map(|at| (f64::from(at), 2.0)).collect();
        let thin = thinned(&points);
        assert!(thin.len() <= MOST_POINTS && thin.iter().all(|p| p.1 == 2.0), "{}", thin.len());
        assert_eq!(thinned(&points[..3]), points[..3]);
    }
}
