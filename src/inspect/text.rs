//! Text in a drawing: its width, and how it is made to fit.
//!
//! A drawing is laid out before the font is known. Widths are those of DejaVu Sans, rounded up: the widest of the fonts
//! that systems come with.

use std::fmt;

/// Separates groups of digits: a narrow no-break space.
const SEPARATOR: char = '\u{202f}';

/// A number with its digits in groups of three.
#[derive(Clone, Copy, Debug)]
pub struct Grouped(pub usize);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let mut grouped = String::with_capacity(digits.len() * 2);
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                grouped.push(SEPARATOR);
            }
            grouped.push(digit);
        }
        f.pad(&grouped)
    }
}

/// Width of a character in ems.
fn em(c: char) -> f64 {
    match c {
        SEPARATOR => 0.2,
        ' ' | ',' | '.' | ':' | '·' | '\'' | '(' | ')' | '/' => 0.4,
        'i' | 'j' | 'l' | 'f' | 't' | 'r' | '-' => 0.42,
        'm' | 'M' | 'W' | '…' | '%' => 1.0,
        '→' | 'w' => 0.84,
        'A'..='Z' => 0.78,
        ' '..='~' => 0.64,
        _ => 1.1,
    }
}

/// Upper bound of a text's width, in the units of its font size.
pub fn width(text: &str, size: f64) -> f64 {
    text.chars().map(em).sum::<f64>() * size
}

/// The first of several wordings that fits into `room`; otherwise as much of the last one as fits.
pub fn fit(candidates: &[String], size: f64, room: f64) -> String {
    if let Some(text) = candidates.iter().find(|t| width(t, size) <= room) {
        return text.clone();
    }
    let mut shortened = String::new();
    let mut used = em('…') * size;
    for c in candidates.last().into_iter().flat_map(|t| t.chars()) {
        used += em(c) * size;
        if used > room {
            break;
        }
        shortened.push(c);
    }
    shortened + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped() {
        let text = |n| Grouped(n).to_string().replace(SEPARATOR, "_");
        assert_eq!(text(0), "0");
        assert_eq!(text(999), "999");
        assert_eq!(text(1000), "1_000");
        assert_eq!(text(11_406_393), "11_406_393");
    }

    #[test]
    fn what_does_not_fit_is_shortened() {
        let ways = ["a long way to say it".to_owned(), "short".to_owned()];
        assert_eq!(fit(&ways, 10.0, 400.0), ways[0]);
        assert_eq!(fit(&ways, 10.0, 40.0), "short");
        let cut = fit(&["日本語の長い名前".to_owned()], 10.0, 40.0);
        assert!(cut.ends_with('…') && width(&cut, 10.0) <= 40.0, "{cut}");
    }
}
