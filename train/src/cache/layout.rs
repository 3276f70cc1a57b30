//! What a record holds: the taps of one example without padding, one after the other.

use lstc_data::Example;
use lstc_tuned::cache::{Element, Unfit};
use serde::{Deserialize, Serialize};

/// Which tokens a tap has a vector for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    Source,
    Target,
}

/// Tokens of an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    pub source: usize,
    pub target: usize,
}

impl Lengths {
    pub fn of(example: &Example) -> Lengths {
        Lengths { source: example.source.len(), target: example.target.len() }
    }

    pub fn along(self, axis: Axis) -> usize {
        match axis {
            Axis::Source => self.source,
            Axis::Target => self.target,
        }
    }
}

/// The element type of a tap in the graphs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Native {
    F32,
    F16,
}

/// The form of one tap, `[batch, length, width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TapShape {
    pub axis: Axis,
    pub width: usize,
    pub native: Native,
}

/// How the taps of an example are laid out in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub element: Element,
    pub taps: Vec<TapShape>,
}

impl Layout {
    /// Bytes of a record; the greatest number if they are more, which no file has.
    pub fn bytes(&self, lengths: Lengths) -> usize {
        self.taps.iter().map(|tap| self.tap_bytes(tap, lengths)).fold(0, usize::saturating_add)
    }

    /// Bytes of a token of the source, and of the target.
    pub fn token_bytes(&self) -> (usize, usize) {
        let one = |source, target| self.bytes(Lengths { source, target });
        (one(1, 0), one(0, 1))
    }

    fn tap_bytes(&self, tap: &TapShape, lengths: Lengths) -> usize {
        self.element.token_bytes(tap.width).saturating_mul(lengths.along(tap.axis))
    }

    /// Writes a record into `out`, from the numbers of each tap: at least as many tokens as the example has.
    ///
    /// # Errors
    /// Numbers that the element type cannot hold.
    pub(super) fn encode(&self, lengths: Lengths, taps: &[&[f32]], out: &mut Vec<u8>) -> Result<(), Unfit> {
        out.clear();
        out.reserve(self.bytes(lengths));
        for (shape, tap) in self.taps.iter().zip(taps) {
            for token in tap.chunks_exact(shape.width).take(lengths.along(shape.axis)) {
                self.element.encode(token, out)?;
            }
        }
        Ok(())
    }

    /// Reads a record into the numbers of each tap: as many tokens as there is room for. Tokens after the record's become zeros.
    ///
    /// # Panics
    /// For a record of another number of bytes, a mistake of the caller's.
    pub(super) fn decode(&self, lengths: Lengths, mut record: &[u8], taps: &mut [&mut [f32]]) {
        assert_eq!(record.len(), self.bytes(lengths), "a record is as long as its lengths say");
        for (shape, tap) in self.taps.iter().zip(taps) {
            let (bytes, rest) = record.split_at(self.tap_bytes(shape, lengths));
            let wanted = lengths.along(shape.axis).min(tap.len() / shape.width);
            let (tokens, padding) = tap.split_at_mut(shape.width * wanted);
            self.element.decode(&bytes[..self.element.token_bytes(shape.width) * wanted], shape.width, tokens);
            padding.fill(0.0);
            record = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_not_kept_and_comes_back_as_zeros() {
        let tap = |axis, width| TapShape { axis, width, native: Native::F32 };
        let taps = vec![tap(Axis::Source, 2), tap(Axis::Target, 3)];
        let layout = Layout { element: Element::Fp32, taps };
        let lengths = Lengths { source: 2, target: 1 };
        let mut record = Vec::new();
        let source = [1.0, 2.0, 3.0, 4.0, 9.0, 9.0];
        let target = [5.0, 6.0, 7.0, 9.0, 9.0, 9.0];
        layout.encode(lengths, &[&source, &target], &mut record).expect("fp32 holds everything");
        assert_eq!((record.len(), layout.bytes(lengths), layout.token_bytes()), (28, 28, (8, 12)));
        let (mut a, mut b) = ([8.0; 8], [8.0; 3]);
        layout.decode(lengths, &record, &mut [&mut a, &mut b]);
        assert_eq!((a, b), ([1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0], [5.0, 6.0, 7.0]));
        let mut short = [8.0; 2];
        layout.decode(lengths, &record, &mut [&mut short, &mut b]);
        assert_eq!((short, b), ([1.0, 2.0], [5.0, 6.0, 7.0]));
    }
}
