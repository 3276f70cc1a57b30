//! A size in bytes as people write it: `20GB`, `1.5 GiB`, `4096`.

use std::fmt;
use std::str::FromStr;

use lstc_base::report::Bytes;
use serde::{Deserialize, Serialize};

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "u64")]
pub struct Size(pub u64);

/// As written in a configuration.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Text(String),
}

impl TryFrom<Written> for Size {
    type Error = String;

    fn try_from(written: Written) -> Result<Size, String> {
        match written {
            Written::Number(bytes) => Ok(Size(bytes)),
            Written::Text(text) => text.parse(),
        }
    }
}

impl From<Size> for u64 {
    fn from(size: Size) -> u64 {
        size.0
    }
}

/// Units in lower case: powers of 1000 and of 1024.
const UNITS: [(&str, u64); 10] = [
    ("", 1),
    ("b", 1),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let problem = || format!("`{text}` is not a size: expected a number and a unit, as in 500MB, 20GB or 1.5GiB");
        let trimmed = text.trim();
        let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(end);
        let unit = unit.trim().to_ascii_lowercase();
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(problem)?;
        let number: f64 = number.parse().map_err(|_| problem())?;
        let bytes = number * *factor as f64;
        if !(bytes.is_finite() && bytes < u64::MAX as f64) {
            return Err(problem());
        }
        Ok(Size(bytes.round() as u64))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Bytes(self.0).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let size = |text: &str| text.parse::<Size>().map(|size| size.0).ok();
        assert_eq!(size("20GB"), Some(20_000_000_000));
        assert_eq!(size(" 1.5 GiB "), Some(3 << 29));
        assert_eq!(size("500mb"), Some(500_000_000));
        assert_eq!(size("2TiB"), Some(2 << 40));
        assert_eq!((size("4096"), size("0"), size("7B")), (Some(4096), Some(0), Some(7)));
        for wrong in ["", "GB", "-1GB", "1e3", "20 parsecs", "1..2GB", "99999999999TB"] {
            assert_eq!(size(wrong), None, "{wrong}");
        }
    }
}
