//! How the numbers of a tap are stored: as they are, or in fewer bytes.

use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};

/// The element type of a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Element {
    /// Exact.
    #[default]
    Fp32,
    /// Rounded to 11 bits. A row with a number beyond 65504 is not kept.
    Fp16,
    // scale = max |x| / 127,   q = round(x / scale),   x' = q scale
    /// Rounded to 255 steps, with a scale for each token of each tap.
    Int8,
}

impl Element {
    pub fn name(self) -> &'static str {
        match self {
            Element::Fp32 => "fp32",
            Element::Fp16 => "fp16",
            Element::Int8 => "int8",
        }
    }

    /// Bytes of one token of a tap; the greatest number if they are more.
    pub fn token_bytes(self, width: usize) -> usize {
        match self {
            Element::Fp32 => width.saturating_mul(4),
            Element::Fp16 => width.saturating_mul(2),
            Element::Int8 => width.saturating_add(SCALE),
        }
    }

    /// Adds the numbers of one token to `out`.
    ///
    /// # Errors
    /// Numbers that the type cannot hold: out of range for f16, or not finite for int8. `out` is then unusable.
    pub fn encode(self, token: &[f32], out: &mut Vec<u8>) -> Result<(), Unfit> {
        match self {
            Element::Fp32 => out.extend(token.iter().flat_map(|x| x.to_le_bytes())),
            Element::Fp16 => {
                if !token.iter().all(|x| f16::from_f32(*x).is_finite()) {
                    return Err(Unfit);
                }
                out.extend(token.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()));
            }
            Element::Int8 => {
                let largest = token.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                if !token.iter().all(|x| x.is_finite()) {
                    return Err(Unfit);
                }
                let scale = largest / STEPS;
                out.extend(scale.to_le_bytes());
                // A scale that underflows means zeros.
                let inverse = if scale.is_normal() { 1.0 / scale } else { 0.0 };
                out.extend(token.iter().map(|x| (x * inverse).round_ties_even().clamp(-STEPS, STEPS) as i8 as u8));
            }
        }
        Ok(())
    }

    /// The numbers of tokens, one after the other, of a tap of this width.
    ///
    /// # Panics
    /// If the number of bytes is not that of the tokens, a mistake of the caller's.
    pub fn decode(self, bytes: &[u8], width: usize, tokens: &mut [f32]) {
        assert_eq!(bytes.len(), self.token_bytes(width) * (tokens.len() / width), "as many bytes as the tokens take");
        match self {
            Element::Fp32 => {
                for (x, bytes) in tokens.iter_mut().zip(bytes.as_chunks().0) {
                    *x = f32::from_le_bytes(*bytes);
                }
            }
            Element::Fp16 => {
                let mut halves = [f16::ZERO; 512];
                for (xs, bytes) in tokens.chunks_mut(halves.len()).zip(bytes.chunks(2 * halves.len())) {
                    let halves = &mut halves[..xs.len()];
                    for (half, bytes) in halves.iter_mut().zip(bytes.as_chunks().0) {
                        *half = f16::from_le_bytes(*bytes);
                    }
                    halves.convert_to_f32_slice(xs);
                }
            }
            Element::Int8 => {
                let records = bytes.chunks_exact(SCALE + width);
                for (token, record) in tokens.chunks_exact_mut(width).zip(records) {
                    let (scale, steps) = record.split_first_chunk().expect("a record begins with its scale");
                    let scale = f32::from_le_bytes(*scale);
                    for (x, q) in token.iter_mut().zip(steps) {
                        *x = f32::from(*q as i8) * scale;
                    }
                }
            }
        }
    }
}

/// Bytes of a token's scale.
const SCALE: usize = size_of::<f32>();

/// The largest step.
const STEPS: f32 = 127.0;

/// Numbers that the element type cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfit;

#[cfg(test)]
mod tests {
    use super::*;

    fn back(element: Element, tokens: &[&[f32]]) -> Result<Vec<f32>, Unfit> {
        let width = tokens[0].len();
        let mut bytes = Vec::new();
        tokens.iter().try_for_each(|token| element.encode(token, &mut bytes))?;
        assert_eq!(bytes.len(), tokens.len() * element.token_bytes(width));
        let mut values = vec![f32::NAN; tokens.len() * width];
        element.decode(&bytes, width, &mut values);
        Ok(values)
    }

    #[test]
    fn fp32_is_exact_whatever_the_bits() {
        let odd = [f32::MIN_POSITIVE / 2.0, -0.0, f32::INFINITY, f32::MAX];
        let values = back(Element::Fp32, &[&odd]).expect("it holds everything");
        assert_eq!(values.map_bits(), odd.map_bits());
        assert!(back(Element::Fp32, &[&[f32::NAN]]).expect("it holds everything")[0].is_nan());
    }

    trait Bits {
        fn map_bits(&self) -> Vec<u32>;
    }

    impl Bits for [f32] {
        fn map_bits(&self) -> Vec<u32> {
            self.iter().map(|x| x.to_bits()).collect()
        }
    }

    #[test]
    fn fp16_rounds_and_refuses_what_is_too_large() {
        let many: Vec<f32> = (0..1300).map(|x| x as f32 * 0.37 - 200.0).collect();
        let values = back(Element::Fp16, &[&many]).expect("they fit");
        assert!(many.iter().zip(&values).all(|(x, y)| (x - y).abs() <= x.abs() / 2048.0 + 1e-7));
        assert_eq!(back(Element::Fp16, &[&[65504.0]]), Ok(vec![65504.0]));
        for outlier in [65520.0, -1e6, f32::NAN, f32::INFINITY] {
            assert_eq!(back(Element::Fp16, &[&[1.0, outlier]]), Err(Unfit));
        }
    }

    #[test]
    fn int8_rounds_to_half_a_step_of_the_token() {
        let tokens: [&[f32]; 4] = [&[1.0, -127.0, 63.4], &[1e-3, 2e-3, -3e-3], &[0.0; 3], &[3e38, -1.0, 0.0]];
        let values = back(Element::Int8, &tokens).expect("they fit");
        for (token, values) in tokens.iter().zip(values.chunks(3)) {
            let step = token.iter().fold(0.0_f32, |most, x| most.max(x.abs())) / 127.0;
            assert!(token.iter().zip(values).all(|(x, y)| (x - y).abs() <= step * 0.501), "{token:?} {values:?}");
        }
        assert_eq!(back(Element::Int8, &[&[1e-44, -1e-45]]).map(|v| v[0]), Ok(0.0));
        assert_eq!(back(Element::Int8, &[&[1.0, f32::INFINITY]]), Err(Unfit));
        assert_eq!(back(Element::Int8, &[&[f32::NAN]]), Err(Unfit));
    }
}
