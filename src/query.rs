//! What can be asked for: a place in the model, or a node or value by its name.

use std::fmt;
use std::path::PathBuf;

use anyhow::anyhow;
use lstc_base::report::{Hinted, word};
use lstc_graph::Graph;
use lstc_models::{Place, Refusal, Refused, TowerKind, Trace};

/// A place in a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    Everything,
    Head,
    Tower(TowerKind),
    Block(TowerKind, usize),
    /// A sublayer by its kind or its number.
    Sublayer(TowerKind, usize, String),
    /// A node or value by its name.
    Named(String),
}

impl Query {
    /// Reads a place such as `decoder.1.feed-forward`; `None` if the text cannot be one.
    pub fn parse(text: &str) -> Option<Query> {
        let kind = |name: &str| [TowerKind::Encoder, TowerKind::Decoder].into_iter().find(|k| k.name() == name);
        match text.split('.').collect::<Vec<_>>()[..] {
            [""] => Some(Query::Everything),
            ["head"] => Some(Query::Head),
            [tower] => Some(Query::Tower(kind(tower)?)),
            [tower, block] => Some(Query::Block(kind(tower)?, block.parse().ok()?)),
            [tower, block, sublayer] => Some(Query::Sublayer(kind(tower)?, block.parse().ok()?, sublayer.to_owned())),
            _ => None,
        }
    }

    /// How to see more of a refusal.
    fn of(refusal: &Refusal) -> Option<Query> {
        match refusal.place {
            Place::Head => Some(Query::Head),
            Place::Tower(kind) => Some(Query::Tower(kind)),
            Place::Block(kind, index) => Some(Query::Block(kind, index)),
            _ => Some(Query::Named(refusal.node.clone())).filter(|_| !refusal.node.is_empty()),
        }
    }
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Query::Everything => Ok(()),
            Query::Head => f.write_str("head"),
            Query::Tower(kind) => write!(f, "{kind}"),
            Query::Block(kind, index) => write!(f, "{kind}.{index}"),
            Query::Sublayer(kind, index, which) => write!(f, "{kind}.{index}.{which}"),
            Query::Named(name) => f.write_str(name),
        }
    }
}

/// The command that shows what was matched at the first place of a model, in these files, that is refused.
pub fn hint(files: &[PathBuf], refused: &Refused) -> Option<String> {
    let query = refused.refusals.iter().find_map(Query::of)?;
    let files: Vec<String> = files.iter().map(|p| word(&p.to_string_lossy())).collect();
    Some(format!("`lstc inspect {} --why {}` shows what was matched", files.join(" "), word(&query.to_string())))
}

/// Names of this many bytes or more are not compared with the query.
const LONGEST: usize = 256;

/// The number of similar names that a message suggests.
const OFFERED: usize = 5;

/// The error for a query that matches nothing.
pub fn unknown(model: &dyn fmt::Display, graph: &Graph, trace: &Trace, asked: &str) -> anyhow::Error {
    let error = anyhow!("`{model}` has no place, node or value `{asked}`");
    let mut places = vec!["`head`".to_owned()];
    for tower in &trace.towers {
        let kind = tower.kind;
        places.push(match tower.blocks.len() {
            0 => format!("`{kind}`"),
            1 => format!("`{kind}`, `{kind}.0`"),
            n => format!("`{kind}`, `{kind}.0` to `{kind}.{}`", n - 1),
        });
    }
    let ended = if trace.towers.is_empty() { " (recognition did not get past the LM head)" } else { "" };
    let mut hint =
        format!("places are {}{ended}, a block's sublayers as in `decoder.0.feed-forward`", places.join(", "));
    let near = nearest(graph, asked);
    if !near.is_empty() {
        hint.push_str(&format!("; the nearest names are {}", near.join(", ")));
    }
    Hinted::new(error, hint).into()
}

/// The names of nodes and values most similar to a text: first those that contain it.
fn nearest(graph: &Graph, asked: &str) -> Vec<String> {
    let nodes = graph.node_ids().map(|id| graph.node(id).name.as_str());
    let values = graph.inputs.iter().chain(&graph.outputs).map(|v| graph.value(*v).name.as_str());
    let lower = asked.to_lowercase();
    let mut ranked: Vec<(bool, f64, &str)> = nodes
        .chain(values)
        .filter(|name| name.len() < LONGEST && asked.len() < LONGEST)
        .map(|name| (name.to_lowercase().contains(&lower), strsim::jaro(name, asked), name))
        .filter(|(holds, likeness, _)| *holds || *likeness > 0.7)
        .collect();
    ranked.sort_by(|a, b| b.0.cmp(&a.0).then(b.1.total_cmp(&a.1)).then(a.2.cmp(b.2)));
    ranked.dedup_by_key(|(.., name)| *name);
    ranked.into_iter().take(OFFERED).map(|(.., name)| format!("`{name}`")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_names_are_not() {
        let sublayer = |which: &str| Some(Query::Sublayer(TowerKind::Decoder, 1, which.to_owned()));
        assert_eq!(Query::parse(""), Some(Query::Everything));
        assert_eq!(Query::parse("encoder"), Some(Query::Tower(TowerKind::Encoder)));
        assert_eq!(Query::parse("decoder.12"), Some(Query::Block(TowerKind::Decoder, 12)));
        assert_eq!(Query::parse("decoder.1.2"), sublayer("2"));
        assert_eq!(Query::parse("decoder.1.cross-attention"), sublayer("cross-attention"));
        for query in ["head", "encoder", "decoder.12", "decoder.1.feed-forward"] {
            assert_eq!(Query::parse(query).map(|q| q.to_string()).as_deref(), Some(query));
        }
        for name in ["/model/decoder/block.1/Mul", "decoder.block.1.Mul", "Decoder", "decoder.-1", "Add_812"] {
            assert_eq!(Query::parse(name), None, "{name}");
        }
    }
}
