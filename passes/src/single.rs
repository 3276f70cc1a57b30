//! Numbers of the options, as the graphs hold them: in single precision.
//!
//! A number that rounds to zero or to infinity would differ in the graphs from what the options say. So would one that is not
//! normal: kernels may take it for zero.

use std::fmt;

use serde::de::{Deserializer, Error, Visitor};

/// A number in single precision.
///
/// # Errors
/// What is wrong with one that is not finite, too large, or so small that it would count as zero, as in "is 1e-46, ...".
pub fn rounded(value: f64) -> Result<f32, String> {
    let single = value as f32;
    if !value.is_finite() {
        return Err(format!("is {value}, which is not a finite number"));
    }
    if single.is_infinite() {
        return Err(format!("is {value:e}, which is too large for single precision: {:e} is the largest", f32::MAX));
    }
    if value != 0.0 && single.abs() < f32::MIN_POSITIVE {
        return Err(format!(
            "is {value:e}, which single precision rounds to 0: {:e} is the smallest",
            f32::MIN_POSITIVE
        ));
    }
    Ok(single)
}

/// Reads a number from the command line.
///
/// # Errors
/// As [`rounded`]; a text that is not a number.
pub fn parse(text: &str) -> Result<f32, String> {
    let value: f64 = text.parse().map_err(|_| "is not a number".to_owned())?;
    rounded(value)?;
    // So small that even double precision rounds it to 0.
    let digits = text.split(['e', 'E']).next().unwrap_or_default();
    if value == 0.0 && digits.contains(|c: char| ('1'..='9').contains(&c)) {
        return Err(format!("is {text}, which rounds to 0: {:e} is the smallest", f32::MIN_POSITIVE));
    }
    // Rounded once, from the text itself.
    text.parse().map_err(|_| "is not a number".to_owned())
}

/// Reads a number from a configuration, by its text.
///
/// # Errors
/// As [`parse`].
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
    struct Text;
    impl Visitor<'_> for Text {
        type Value = f32;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("a number")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<f32, E> {
            // As YAML spells what is not finite.
            let plain = text.strip_prefix('+').unwrap_or(text);
            parse(&plain.replace(".inf", "inf").replace(".nan", "nan"))
                .map_err(|problem| E::custom(format!("the number {problem}")))
        }
    }
    deserializer.deserialize_str(Text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_single_precision_cannot_hold_is_refused() {
        assert_eq!(rounded(0.1), Ok(0.1_f32));
        assert_eq!(parse("-0.0"), Ok(-0.0));
        assert_eq!(parse("1.2e-38"), Ok(1.2e-38));
        for (text, reason) in [
            ("1e-46", "rounds to 0"),
            ("-1e-46", "rounds to 0"),
            ("1e-40", "rounds to 0"),
            ("1e-400", "rounds to 0"),
            ("-0.002E-400", "rounds to 0"),
            ("1e39", "too large"),
            ("-1e39", "too large"),
            ("1e999", "not a finite number"),
            ("NaN", "not a finite number"),
            ("inf", "not a finite number"),
            ("one", "not a number"),
        ] {
            assert!(parse(text).is_err_and(|problem| problem.contains(reason)), "{text}");
        }
        assert_eq!(parse("0.0e-400"), Ok(0.0));
    }
}
