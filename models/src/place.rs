//! Places in a model.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::anatomy::TowerKind;
use crate::trace::SublayerGuess;

/// Where in a model something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// The model as a whole.
    Model,
    Head,
    Outputs,
    Tower(TowerKind),
    /// The value in which a tower ends, of whichever kind it is.
    TowerEnd,
    FinalNorm(TowerKind),
    Embedding(TowerKind),
    /// The residual stream, of a tower that is known or of some tower.
    Stream(Option<TowerKind>),
    Block(TowerKind, usize),
    Sublayer(TowerKind, usize, SublayerGuess),
    /// Some block, where it does not matter which.
    Inside,
}

impl Place {
    /// The tower that it belongs to, where that is known.
    pub fn tower(&self) -> Option<TowerKind> {
        match self {
            Place::Tower(kind)
            | Place::FinalNorm(kind)
            | Place::Embedding(kind)
            | Place::Block(kind, _)
            | Place::Sublayer(kind, ..) => Some(*kind),
            Place::Stream(kind) => *kind,
            Place::Model | Place::Head | Place::Outputs | Place::TowerEnd | Place::Inside => None,
        }
    }

    /// As `--why` takes and reports it: `decoder.1.feed-forward`.
    pub fn path(&self) -> impl fmt::Display + use<> {
        Path(*self)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Model => f.write_str("the model"),
            Place::Head => f.write_str("the LM head"),
            Place::Outputs => f.write_str("the outputs"),
            Place::Tower(kind) => write!(f, "the {kind}"),
            Place::TowerEnd => f.write_str("the end of a tower"),
            Place::FinalNorm(kind) => write!(f, "the final norm of the {kind}"),
            Place::Embedding(kind) => write!(f, "the embedding of the {kind}"),
            Place::Stream(None) => f.write_str("the residual stream"),
            Place::Stream(Some(kind)) => write!(f, "the residual stream of the {kind}"),
            Place::Block(kind, index) => write!(f, "block {index} of the {kind}"),
            Place::Sublayer(kind, index, guess) => write!(f, "the {} of block {index} of the {kind}", guess.name()),
            Place::Inside => f.write_str("inside a block"),
        }
    }
}

impl Serialize for Place {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

struct Path(Place);

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Place::Model | Place::Outputs | Place::TowerEnd | Place::Inside => f.write_str("model"),
            Place::Head => f.write_str("head"),
            Place::Tower(kind) => write!(f, "{kind}"),
            Place::FinalNorm(kind) => write!(f, "{kind}.final-norm"),
            Place::Embedding(kind) => write!(f, "{kind}.embedding"),
            Place::Stream(None) => f.write_str("residual-stream"),
            Place::Stream(Some(kind)) => write!(f, "{kind}.residual-stream"),
            Place::Block(kind, index) => write!(f, "{kind}.{index}"),
            Place::Sublayer(kind, index, guess) => write!(f, "{kind}.{index}.{}", guess.name()),
        }
    }
}

/// A place as its path.
/// # Errors
/// The serializer's.
pub fn as_path<S: Serializer>(place: &Place, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&place.path())
}
