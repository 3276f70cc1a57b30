//! Why a model is understood or not: what recognition tried at a place, what matched, and what did not.

mod text;

use std::path::PathBuf;

use lstc_models::{
    Attempt, BlockTrace, Likeness, NodeTrace, Place, Refusal, SublayerTrace, TowerKind, TowerTrace, Trace, as_path,
    explain,
};
use serde::Serialize;

use crate::query::{Query, unknown};
use crate::rewrite::SourceModel;

/// What recognition tried at one place of a model.
#[derive(Debug, Serialize)]
pub struct WhyReport {
    /// One file, or the encoder's and the decoder's.
    pub files: Vec<PathBuf>,
    pub understood: bool,
    /// What the model looks like, where it is refused.
    pub likeness: Option<Likeness>,
    /// Why the model is refused, whatever was asked for.
    pub refusals: Vec<Refusal>,
    /// What was asked for; empty for everything.
    pub query: String,
    pub answer: Answer,
    /// Whether more was tried than is shown.
    pub cut: bool,
}

/// The part of the model that was asked for. A refused model may have several towers of one kind.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    Everything(Trace),
    Head(Vec<Attempt>),
    Towers(Vec<TowerTrace>),
    Blocks(Vec<Within<BlockTrace>>),
    Sublayers(Vec<Within<SublayerTrace>>),
    Node(Box<NodeTrace>),
}

/// A part of a tower, with its name.
#[derive(Debug, Serialize)]
pub struct Within<T> {
    /// In the form that `--why` takes.
    #[serde(serialize_with = "as_path")]
    pub place: Place,
    #[serde(flatten)]
    pub part: T,
}

impl WhyReport {
    /// Finds what recognition tries at the place that `asked` names.
    ///
    /// # Errors
    /// A file that cannot be read; a place that the model does not have. A refused model is not an error.
    pub fn new(model: &SourceModel, asked: &str) -> anyhow::Result<WhyReport> {
        let mut graph = model.read()?;
        let (found, trace) = explain(&mut graph);
        let cut = trace.cut;
        let node = || trace.about(&graph, asked).map(|node| Answer::Node(Box::new(node)));
        let answer = match Query::parse(asked).and_then(|query| answer(&trace, query)).or_else(node) {
            Some(answer) => answer,
            None => return Err(unknown(model, &graph, &trace, asked)),
        };
        let refused = found.err();
        let likeness = refused.as_ref().map(|refused| refused.likeness.clone());
        let refusals = refused.map(|refused| refused.refusals).unwrap_or_default();
        Ok(WhyReport {
            files: model.files().to_vec(),
            understood: refusals.is_empty(),
            likeness,
            refusals,
            query: asked.to_owned(),
            answer,
            cut,
        })
    }
}

/// What a trace says of a place; `None` if it has no such place.
fn answer(trace: &Trace, query: Query) -> Option<Answer> {
    let towers = |kind: TowerKind| trace.towers.iter().filter(move |t| t.kind == kind);
    let blocks = |kind: TowerKind, index: usize| towers(kind).filter_map(move |t| t.blocks.get(index));
    let some = |is_empty: bool, answer: Answer| (!is_empty).then_some(answer);
    match query {
        Query::Everything => Some(Answer::Everything(trace.clone())),
        Query::Head => Some(Answer::Head(trace.head.clone())),
        Query::Named(_) => None,
        Query::Tower(kind) => {
            let found: Vec<TowerTrace> = towers(kind).cloned().collect();
            some(found.is_empty(), Answer::Towers(found))
        }
        Query::Block(kind, index) => {
            let within = |part: &BlockTrace| Within { place: Place::Block(kind, index), part: part.clone() };
            let found: Vec<_> = blocks(kind, index).map(within).collect();
            some(found.is_empty(), Answer::Blocks(found))
        }
        Query::Sublayer(kind, index, which) => {
            let is_meant = |(at, s): &(usize, &SublayerTrace)| which == s.kind.name() || which.parse() == Ok(*at);
            let within = |(_, part): (usize, &SublayerTrace)| Within {
                place: Place::Sublayer(kind, index, part.kind),
                part: part.clone(),
            };
            let sublayers = blocks(kind, index).flat_map(|b| b.sublayers.iter().enumerate());
            let found: Vec<_> = sublayers.filter(is_meant).map(within).collect();
            some(found.is_empty(), Answer::Sublayers(found))
        }
    }
}
