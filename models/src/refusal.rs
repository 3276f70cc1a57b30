//! What was not understood, and where.

use std::fmt;

use serde::Serialize;

use crate::anatomy::TowerKind;

/// One thing that was not understood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// `block 3 of the decoder`, `the LM head`, ...
    pub place: String,
    /// The node's name; empty where no single node is to blame.
    pub node: String,
    pub reason: String,
}

pub(crate) const LM_HEAD: &str = "the LM head";

impl Refusal {
    /// The place of what is wrong with a block.
    pub(crate) fn block(kind: TowerKind, index: usize) -> String {
        format!("block {index} of the {kind}")
    }

    /// The place of what is wrong with a tower.
    pub(crate) fn tower(kind: TowerKind) -> String {
        format!("the {kind}")
    }

    /// Where a trace tells of it: `head`, `decoder`, `decoder.1`, or the name of a node or value.
    pub fn query(&self) -> Option<String> {
        let kind = |name: &str| ["encoder", "decoder"].into_iter().find(|kind| *kind == name);
        let block = || {
            let (index, name) = self.place.strip_prefix("block ")?.split_once(" of the ")?;
            Some(format!("{}.{index}", kind(name)?))
        };
        let tower = || Some(kind(self.place.strip_prefix("the ")?)?.to_owned());
        let head = || (self.place == LM_HEAD).then(|| "head".to_owned());
        block().or_else(tower).or_else(head).or_else(|| Some(self.node.clone()).filter(|node| !node.is_empty()))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.node.is_empty() {
            write!(f, "`{}` ", self.node)?;
        }
        f.write_str(&self.reason)
    }
}

/// A model that is not understood, with every reason.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", .0.iter().map(|r| format!("  {r}")).collect::<Vec<_>>().join("\n"))]
pub struct Refused(pub Vec<Refusal>);
