//! Where the backbone is tapped.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Where in a tower a hidden state is tapped. In files: `embedding`, the number of a block, `output`, `logits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Point {
    /// The embedding output e.
    Embedding,
    /// h of this block.
    Block(usize),
    /// The tower's output, after its final norm.
    Output,
    /// The backbone's own logits, `[batch, length, vocabulary]`.
    Logits,
}

impl Point {
    /// The number of the block that is tapped.
    pub fn block(self) -> Option<usize> {
        match self {
            Point::Block(block) => Some(block),
            Point::Embedding | Point::Output | Point::Logits => None,
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Point::Embedding => f.pad("embedding"),
            Point::Block(block) => f.pad(&block.to_string()),
            Point::Output => f.pad("output"),
            Point::Logits => f.pad("logits"),
        }
    }
}

impl FromStr for Point {
    type Err = String;

    fn from_str(text: &str) -> Result<Point, String> {
        match text {
            "embedding" => Ok(Point::Embedding),
            "output" => Ok(Point::Output),
            "logits" => Ok(Point::Logits),
            number => number.parse().map(Point::Block).map_err(|_| {
                format!("`{text}` is not the point of a tap: expected embedding, a block's number, output or logits")
            }),
        }
    }
}

impl Serialize for Point {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Point {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Point, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_read_as_they_are_written() {
        for point in [Point::Embedding, Point::Block(12), Point::Output, Point::Logits] {
            assert_eq!(point.to_string().parse(), Ok(point));
        }
        for text in ["", "nowhere", "-1", "1.5", "block 3"] {
            assert!(text.parse::<Point>().is_err(), "{text}");
        }
    }
}
