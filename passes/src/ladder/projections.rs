//! How the down- and up-projections start.
//!
//! The reference draws both from N(0, 0.01). With that the side network's output is so small at first that its loss stays
//! where a model that ignores its input would have it, until the projections have grown (docs/training.md has the table). Either of
//! two starts avoids it: projections of the usual size, and projections that select the features for which the blocks between
//! them were cut.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::options::Init;
use crate::single;

/// How one kind of projection starts. Biases start at 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Projection {
    /// 0 and 1: a down-projection selects the kept features of the residual stream, an up-projection puts them back.
    Aligned,
    /// U(-1/sqrt(n), 1/sqrt(n)) of n inputs, as PyTorch's `nn.Linear` starts.
    Uniform,
    /// N(0, deviation).
    Normal(f32),
}

/// Draws from a normal distribution with this deviation are finite in single precision.
const LARGEST: f32 = 1e30;

/// How the projections start: `aligned`, or `normal:0.01,uniform` where down- and up-projections differ.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Projections {
    pub down: Projection,
    pub up: Projection,
}

impl Projections {
    /// The reference's start.
    pub const REFERENCE: Projections = Projections::both(Projection::Normal(0.01));

    pub const fn both(projection: Projection) -> Projections {
        Projections { down: projection, up: projection }
    }

    /// What is used with an initialisation of the blocks when nothing else is said: what was measured to learn best.
    pub const fn default_of(init: Init) -> Projections {
        match init {
            Init::MagnitudeConsistent => Projections::both(Projection::Aligned),
            Init::Magnitude | Init::Random => Projections::both(Projection::Uniform),
        }
    }

    /// Whether the features of the residual stream have to be known.
    pub fn select(&self) -> bool {
        self.down == Projection::Aligned || self.up == Projection::Aligned
    }

    /// Options out of range.
    pub(crate) fn problem(&self) -> Option<String> {
        [self.down, self.up].into_iter().find_map(|projection| match projection {
            Projection::Normal(deviation) if deviation.is_nan() || deviation <= 0.0 => {
                Some(format!("has the deviation {deviation}, but it must be positive"))
            }
            Projection::Normal(deviation) if deviation > LARGEST => {
                Some(format!("has the deviation {deviation:e}, but it must be at most {LARGEST:e}"))
            }
            _ => None,
        })
    }
}

impl fmt::Display for Projection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Projection::Aligned => f.write_str("aligned"),
            Projection::Uniform => f.write_str("uniform"),
            Projection::Normal(deviation) => write!(f, "normal:{deviation:?}"),
        }
    }
}

impl FromStr for Projection {
    type Err = String;

    fn from_str(text: &str) -> Result<Projection, String> {
        match text.trim() {
            "aligned" => Ok(Projection::Aligned),
            "uniform" => Ok(Projection::Uniform),
            other => {
                let unknown = || {
                    format!(
                        "`{other}` is not an initialisation for projections: expected aligned, uniform or normal:S, as in normal:0.01"
                    )
                };
                let deviation = other.strip_prefix("normal:").ok_or_else(unknown)?;
                let _: f64 = deviation.parse().map_err(|_| unknown())?;
                single::parse(deviation).map(Projection::Normal).map_err(|problem| format!("the deviation {problem}"))
            }
        }
    }
}

impl fmt::Display for Projections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.down == self.up { self.down.fmt(f) } else { write!(f, "{},{}", self.down, self.up) }
    }
}

impl FromStr for Projections {
    type Err = String;

    fn from_str(text: &str) -> Result<Projections, String> {
        let (down, up) = text.split_once(',').unwrap_or((text, text));
        Ok(Projections { down: down.parse()?, up: up.parse()? })
    }
}

impl TryFrom<String> for Projections {
    type Error = String;

    fn try_from(text: String) -> Result<Projections, String> {
        text.parse()
    }
}

impl From<Projections> for String {
    fn from(projections: Projections) -> String {
        projections.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        for text in ["aligned", "uniform", "normal:0.01", "normal:1e-5,uniform", "aligned,normal:2.0"] {
            assert_eq!(text.parse::<Projections>().expect("projections").to_string(), text);
        }
    }

    #[test]
    fn what_is_not_a_start_is_named() {
        for (text, named) in
            [("alined", "`alined`"), ("normal", "`normal`"), ("normal:x", "`normal:x`"), ("uniform,", "``")]
        {
            let problem = text.parse::<Projections>().expect_err(text);
            assert!(problem.contains(named), "{problem}");
        }
        for deviation in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert!(Projections::both(Projection::Normal(deviation)).problem().is_some(), "{deviation}");
        }
        assert_eq!(Projections::REFERENCE.problem(), None);
    }
}
