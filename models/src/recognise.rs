//! From a graph to its anatomy.
//!
//! The walk begins at the LM head and follows the residual stream back, one residual add at a time, to the embedding.
//! Of an add's two operands one is the stream and the other the branch of a sublayer, `f(norm(stream))`. A tower that
//! a cross-attention reads is walked in the same way.
//!
//! Everything that is not understood is collected and refused at once: where a head, a norm or a sublayer is not understood, the
//! walk continues beyond it, as far as its appearance shows where.

mod foreign;
mod head;
mod whole;

use std::cell::OnceCell;
use std::collections::HashSet;
use std::ops::Range;

use lstc_graph::{Dim, Graph, Node, NodeId, ValueId};

use crate::anatomy::{Anatomy, AttentionKind, Block, Frozen, Sublayer, SublayerKind, Tower, TowerKind};
use crate::axes::own_axes;
use crate::families::families;
use crate::likeness::Likeness;
use crate::matcher::{Match, Matcher, Mismatch};
use crate::place::Place;
use crate::refusal::{Refusal, Refused};
use crate::restate::{Fused, View, restate};
use crate::sight::look;
use crate::survey::Survey;
use crate::tied::is_tied;
use crate::trace::{
    BlockPlace, Places, Record, Remark, SublayerGuess as Guess, SublayerPlace, TowerPlace, Trace, assemble,
};

/// Recognises the model that a graph computes. Values that the side network needs and that a fused operator keeps to
/// itself are added to the graph, with the nodes that compute them, under the origin [`RESTATED`](crate::RESTATED).
///
/// # Errors
/// Everything that was not understood; the graph is then as it was.
pub fn recognise(graph: &mut Graph) -> Result<Anatomy, Refused> {
    examine(graph, |graph| Matcher::new(graph)).0
}

/// As [`recognise`], and reports everything that was tried. The trace of a model that is refused at a glance, for its opset
/// or an operator of an unknown domain, is empty.
pub fn explain(graph: &mut Graph) -> (Result<Anatomy, Refused>, Trace) {
    examine(graph, |graph| Matcher::recording(graph))
}

fn examine(graph: &mut Graph, matcher: for<'g> fn(&'g Graph) -> Matcher<'g>) -> (Result<Anatomy, Refused>, Trace) {
    let foreign = foreign::refusals(graph);
    if !foreign.is_empty() {
        return (Err(Refused { likeness: Likeness::of(graph), refusals: foreign }), Trace::default());
    }
    let (found, trace) = match restate(graph) {
        Some(View { graph: view, fused }) => {
            let (found, trace) = walk(matcher(&view), &fused);
            if let Ok(anatomy) = &found {
                graph.annex(&view, &anatomy.values());
            }
            (found, trace)
        }
        None => walk(matcher(graph), &[]),
    };
    let sized = found.and_then(|mut anatomy| match own_axes(graph, &mut anatomy) {
        Ok(()) => Ok(anatomy),
        Err(refusal) => Err(Refused { likeness: Likeness::of(graph), refusals: vec![refusal] }),
    });
    (sized, trace)
}

/// Recognises the model that a graph of plain operators computes.
fn walk(matcher: Matcher, fused: &[Fused]) -> (Result<Anatomy, Refused>, Trace) {
    let graph = matcher.graph;
    let mut walk = Walk {
        matcher: &matcher,
        depths: depths(graph),
        refusals: Vec::new(),
        stream: HashSet::new(),
        suspects: HashSet::new(),
        contexts: Vec::new(),
        survey: OnceCell::new(),
        places: Places::default(),
    };
    let mut anatomy = walk.model();
    if let Some(anatomy) = &mut anatomy {
        walk.check_whole(anatomy);
        walk.refusals.extend(look(graph, anatomy));
    }
    let Walk { refusals, places, .. } = walk;
    let found = match anatomy {
        Some(anatomy) if refusals.is_empty() => belongs(anatomy),
        _ => Err(refusals),
    };
    let found = found.map_err(|refusals| Refused { likeness: Likeness::plain(graph), refusals });
    let refusals = found.as_ref().err().map_or(&[][..], |refused| &refused.refusals);
    let trace = assemble(matcher, &places, fused, refusals);
    (found, trace)
}

/// The first family whose constraints a model meets; else what the nearest one misses.
fn belongs(mut anatomy: Anatomy) -> Result<Anatomy, Vec<Refusal>> {
    let mut nearest: Option<Vec<Refusal>> = None;
    for family in families() {
        match family.check(&anatomy) {
            Ok(()) => {
                anatomy.family = family.name;
                return Ok(anatomy);
            }
            Err(refusals) if nearest.as_ref().is_none_or(|n| refusals.len() < n.len()) => nearest = Some(refusals),
            Err(_) => {}
        }
    }
    Err(nearest.unwrap_or_default())
}

/// Sublayers of a tower that are not understood before the walk gives up.
const MAX_STRANGERS: usize = 64;

/// Towers that attend to each other.
const MAX_TOWERS: usize = 8;

struct Walk<'m, 'g> {
    matcher: &'m Matcher<'g>,
    /// Nodes on the longest way to each value, by its index.
    depths: Vec<u32>,
    refusals: Vec<Refusal>,
    /// Points of the residual streams, and tower outputs: what many may read.
    stream: HashSet<ValueId>,
    /// Nodes of branches that were not understood.
    suspects: HashSet<NodeId>,
    /// What attentions that were not understood attend to, of the tower that is walked.
    contexts: Vec<ValueId>,
    /// The attentions of the graph, where something is not understood.
    survey: OnceCell<Survey<'g>>,
    /// Where in the model the recorded attempts were made.
    places: Places,
}

/// A step back along the stream between two of its points, and the attempts that it took.
struct Stretch {
    step: Step,
    input: ValueId,
    output: ValueId,
    tried: Range<usize>,
}

/// What is between two points of the residual stream.
enum Step {
    Sublayer(Box<Sublayer>),
    /// Not understood; why is noted when the block's number is known.
    Stranger(Guess, Mismatch),
}

impl Step {
    fn mismatch(&self) -> Option<Mismatch> {
        match self {
            Step::Stranger(_, mismatch) => Some(mismatch.clone()),
            Step::Sublayer(_) => None,
        }
    }

    fn guess(&self) -> Guess {
        match self {
            Step::Stranger(guess, _) => *guess,
            Step::Sublayer(sublayer) => match &sublayer.kind {
                SublayerKind::FeedForward(_) => Guess::FeedForward,
                SublayerKind::Attention(a) if a.kind == AttentionKind::Cross => Guess::Cross,
                SublayerKind::Attention(_) => Guess::SelfAttention,
            },
        }
    }
}

impl<'g> Walk<'_, 'g> {
    fn graph(&self) -> &'g Graph {
        self.matcher.graph
    }

    fn refuse(&mut self, place: Place, node: impl Into<String>, reason: impl Into<String>) {
        self.refusals.push(Refusal { place, node: node.into(), reason: reason.into() });
    }

    fn mismatch(&mut self, place: Place, mismatch: &Mismatch) {
        self.refuse(place, &mismatch.node, mismatch.text());
    }

    fn survey(&self) -> &Survey<'g> {
        self.survey.get_or_init(|| Survey::new(self.matcher.graph))
    }

    /// Where the next attempt is recorded.
    fn mark(&self) -> usize {
        self.matcher.record().map_or(0, Record::mark)
    }

    fn model(&mut self) -> Option<Anatomy> {
        let found = self.head();
        self.places.head = 0..self.mark();
        let (head, end) = match found {
            Ok((head, output)) => (Some(head), Some(output)),
            Err(end) => (None, end),
        };
        let mut towers: Vec<Option<Tower>> = Vec::new();
        let mut open: Vec<ValueId> = end.into_iter().collect();
        let mut seen: HashSet<ValueId> = open.iter().copied().collect();
        while let Some(output) = open.pop() {
            if towers.len() == MAX_TOWERS {
                self.refuse(Place::Model, "", "has more towers that attend to each other than any known model");
                break;
            }
            let tower = self.tower(output);
            let contexts: HashSet<ValueId> = tower.iter().flat_map(contexts).chain(self.contexts.drain(..)).collect();
            if contexts.len() > 1 {
                let kind = tower.as_ref().map_or(TowerKind::Decoder, |t| t.kind);
                self.refuse(Place::Tower(kind), "", "its blocks attend to different towers");
            }
            towers.insert(0, tower);
            open.extend(contexts.into_iter().filter(|context| seen.insert(*context)));
            open.sort_unstable();
        }
        let towers: Vec<Tower> = towers.into_iter().collect::<Option<_>>()?;
        let mut anatomy = Anatomy { family: "", towers, head: head? };
        anatomy.head.tied = is_tied(self.graph(), &anatomy.last().table, &anatomy.head.linear);
        Some(anatomy)
    }

    /// Walks a tower back from its output.
    fn tower(&mut self, output: ValueId) -> Option<Tower> {
        let start = self.mark();
        let found = self.matcher.attempt(|| self.matcher.norm(output));
        let final_tried = start..self.mark();
        let (final_norm, mut stream) = match found {
            Ok((norm, stream)) => (Ok(norm), stream),
            Err(mismatch) => match self.survey().normed(output) {
                Some(stream) => (Err(mismatch), self.matcher.settle(stream)),
                None => return self.no_tower(output, final_tried, mismatch),
            },
        };
        self.stream.extend([self.matcher.resolve(output), self.matcher.settle(output)]);
        let mut steps: Vec<Stretch> = Vec::new();
        let mut normed: Option<ValueId> = None;
        let mut strangers = 0;
        let mut mark;
        let embedding = loop {
            self.stream.extend([stream, self.matcher.resolve(stream)]);
            mark = self.mark();
            let embedding = self.matcher.attempt(|| self.embedding(stream));
            let stepped = self.mark();
            if let Ok(embedding) = embedding {
                break Ok((embedding, stream));
            }
            let looked_up = |n: &Node| n.is("Gather") || n.is("DequantizeLinear");
            if let Some((_, node)) = self.matcher.node(stream).filter(|(_, n)| looked_up(n))
                && let Err(mismatch) = embedding
            {
                break Err((
                    Place::Embedding as fn(TowerKind) -> Place,
                    Mismatch { node: node.name.clone(), ..mismatch },
                ));
            }
            match self.step(stream) {
                Ok((step, before)) => {
                    strangers += usize::from(matches!(step, Step::Stranger(..)));
                    if strangers > MAX_STRANGERS {
                        let reason = format!(
                            "comes before {MAX_STRANGERS} sublayers that were not understood: the rest was not examined"
                        );
                        break Err((of_stream, Mismatch::at(&self.graph().value(stream).name, reason)));
                    }
                    steps.push(Stretch { step, input: before, output: stream, tried: stepped..self.mark() });
                    stream = before;
                }
                Err(mismatch) => match self.survey().normed(stream) {
                    Some(before) => {
                        normed.get_or_insert(stream);
                        stream = self.matcher.settle(before);
                    }
                    None => break Err((of_stream, mismatch)),
                },
            }
        };
        steps.reverse();
        let crosses = steps.iter().any(|s| s.step.guess() == Guess::Cross);
        let decodes = crosses || strangers > 0 && self.survey().is_decoder_only();
        let kind = if decodes { TowerKind::Decoder } else { TowerKind::Encoder };
        if let Err(mismatch) = &final_norm {
            self.mismatch(Place::FinalNorm(kind), mismatch);
        }
        if let Some(normed) = normed {
            let name = self.matcher.node(normed).map_or_else(String::new, |(_, n)| n.name.clone());
            let reason =
                "is a norm of the residual stream itself: the norms of a T5 are on the branches, before each sublayer";
            self.refuse(of_stream(kind), name, reason);
        }
        let ended = embedding.as_ref().err().map(|(place, mismatch)| {
            self.mismatch(place(kind), mismatch);
            Refusal { place: place(kind), node: mismatch.node.clone(), reason: mismatch.text() }
        });
        self.places.towers.push(TowerPlace {
            kind,
            final_norm: final_tried,
            embedding: mark..self.mark(),
            ended,
            ..TowerPlace::new(output)
        });
        let blocks = self.blocks(kind, crosses, steps);
        let ((table, tokens), embedding) = embedding.ok()?;
        let width = table.dims(self.graph())[1];
        let shape = self.graph().shape(tokens).unwrap_or_default();
        let [batch, length] = <[Dim; 2]>::try_from(shape).ok().or_else(|| {
            let name = self.graph().value(tokens).name.clone();
            self.refuse(Place::Tower(kind), name, "expected token indices [batch, length]");
            None
        })?;
        let final_norm = final_norm.ok()?;
        Some(Tower { kind, width, tokens, table, embedding, blocks, final_norm, output, batch, length })
    }

    /// A value that does not end a tower.
    fn no_tower(&mut self, output: ValueId, final_norm: Range<usize>, mismatch: Mismatch) -> Option<Tower> {
        let reason = if self.graph().inputs.contains(&output) {
            "is an input of the model that cross-attention reads: the encoder that computes it is in another file"
                .to_owned()
        } else {
            mismatch.text()
        };
        let refusal = Refusal { place: Place::TowerEnd, node: mismatch.node, reason };
        let place = TowerPlace { ended: Some(refusal.clone()), final_norm, ..TowerPlace::new(output) };
        self.places.towers.push(place);
        self.refusals.push(refusal);
        None
    }

    /// `table[tokens]`: the table and the tokens.
    fn embedding(&self, value: ValueId) -> Match<(Frozen, ValueId)> {
        self.matcher.trying("embedding", value, || self.embedding_at(value))
    }

    fn embedding_at(&self, value: ValueId) -> Match<(Frozen, ValueId)> {
        let (table, tokens) = self.matcher.rows(value)?;
        if !self.graph().inputs.contains(&tokens) {
            let node = self.matcher.expect(value, &["Gather", "DequantizeLinear"])?;
            return Err(self
                .matcher
                .mismatch(node, "expected table rows looked up by the token indices of a graph input"));
        }
        Ok((table, tokens))
    }

    /// One step back along the stream: what was added, and the stream before.
    fn step(&mut self, stream: ValueId) -> Match<(Step, ValueId)> {
        let add = match self.matcher.expect(stream, &["Add"]) {
            Ok(add) => add,
            // Perhaps a sublayer that lacks its residual add.
            Err(mismatch) => return self.bare_sublayer(stream).ok_or(mismatch),
        };
        let (a, b) = (self.matcher.operand(add, 0)?, self.matcher.operand(add, 1)?);
        let (residual, branch) = self.sides(a, b);
        match self.matcher.attempt(|| self.sublayer(branch, residual)) {
            Ok(sublayer) => Ok((Step::Sublayer(Box::new(sublayer)), residual)),
            Err(mut mismatch) => {
                let mut guess = self.guess(branch, residual);
                if guess == Guess::Other && self.survey().biased(branch) {
                    guess = self.guess_by_softmax(branch, residual);
                    let name = self.matcher.node(branch).map_or_else(String::new, |(_, n)| n.name.clone());
                    mismatch = Mismatch::at(name, "is a matrix product with a bias: the layers of a T5 have none");
                }
                if guess == Guess::Other {
                    mismatch.remark = Some(Remark::NoSublayer);
                }
                if guess == Guess::Cross {
                    self.contexts.extend(self.survey().context(branch, residual));
                }
                self.suspects.extend(self.graph().makers_until([branch], |v| v == residual));
                Ok((Step::Stranger(guess, mismatch), residual))
            }
        }
    }

    /// Which operand of a residual add is the stream, and which the branch: the branch is computed from the stream.
    fn sides(&self, a: ValueId, b: ValueId) -> (ValueId, ValueId) {
        let settled = [a, b].map(|v| self.matcher.settle(v));
        let (a, b) = (self.matcher.resolve(a), self.matcher.resolve(b));
        let depth = |v: ValueId| self.depths[v.index()];
        let ([mut stream, mut branch], shallow, deep) =
            if depth(a) <= depth(b) { (settled, a, b) } else { ([settled[1], settled[0]], b, a) };
        let between = self.graph().makers_until([deep], |v| v == shallow || depth(v) <= depth(shallow));
        let computed = deep == shallow || between.iter().any(|n| self.graph().node(*n).numbers().any(|v| v == shallow));
        if !computed {
            std::mem::swap(&mut stream, &mut branch);
        }
        (stream, branch)
    }

    /// A sublayer whose output is the stream itself.
    fn bare_sublayer(&self, stream: ValueId) -> Option<(Step, ValueId)> {
        let read = self
            .matcher
            .attempt(|| self.matcher.attention(stream).map(|(_, input)| input))
            .or_else(|_| self.matcher.attempt(|| self.matcher.feed_forward(stream).map(|(_, input)| input)));
        let (_, before) = self.matcher.attempt(|| self.matcher.norm(read?)).ok()?;
        let node = self.matcher.node(stream).map_or_else(String::new, |(_, n)| n.name.clone());
        let mismatch = Mismatch::at(node, "the output of a sublayer is not added to the residual stream");
        Some((Step::Stranger(self.guess(stream, before), mismatch), before))
    }

    fn sublayer(&self, branch: ValueId, residual: ValueId) -> Match<Sublayer> {
        let (kind, input) = match self.guess(branch, residual) {
            Guess::FeedForward | Guess::Other => {
                let (feed_forward, input) = self.matcher.feed_forward(branch)?;
                (SublayerKind::FeedForward(feed_forward), input)
            }
            Guess::SelfAttention | Guess::Cross => {
                let (attention, input) = self.matcher.attention(branch)?;
                (SublayerKind::Attention(Box::new(attention)), input)
            }
        };
        let (norm, x) = self.matcher.norm(input)?;
        if x != self.matcher.resolve(residual) {
            let name = self.matcher.node(branch).map_or_else(String::new, |(_, n)| n.name.clone());
            return Err(Mismatch::at(name, "reads one point of the residual stream, but is added to another"));
        }
        Ok(Sublayer { norm, kind })
    }

    /// What a branch looks like at a distance: attention has a softmax, cross-attention another tower's products too.
    fn guess(&self, branch: ValueId, residual: ValueId) -> Guess {
        if !self.matcher.is_product(branch) {
            return Guess::Other;
        }
        self.guess_by_softmax(branch, residual)
    }

    fn guess_by_softmax(&self, branch: ValueId, residual: ValueId) -> Guess {
        // Beyond cross-attention, past its own softmax, is another tower with softmaxes of its own.
        let nodes = self.graph().makers_until([branch], |v| v == residual);
        match nodes.iter().filter(|n| self.graph().node(**n).is("Softmax")).count() {
            0 => Guess::FeedForward,
            1 => Guess::SelfAttention,
            _ => Guess::Cross,
        }
    }

    /// Steps grouped into blocks: a block begins at each self-attention.
    fn blocks(&mut self, kind: TowerKind, crosses: bool, steps: Vec<Stretch>) -> Vec<Block> {
        let mut wanted = vec![Guess::SelfAttention, Guess::FeedForward];
        if crosses {
            wanted.insert(1, Guess::Cross);
        }
        let mut blocks: Vec<Block> = Vec::new();
        let mut shapes: Vec<Vec<Guess>> = Vec::new();
        let mut places: Vec<BlockPlace> = Vec::new();
        for Stretch { step, input, output, tried } in steps {
            let guess = step.guess();
            if let (true, Step::Stranger(Guess::Other, mismatch)) = (blocks.is_empty(), &step) {
                self.mismatch(Place::Embedding(kind), mismatch);
                continue;
            }
            if guess == Guess::SelfAttention || blocks.is_empty() {
                blocks.push(Block { input, output, sublayers: Vec::new() });
                shapes.push(Vec::new());
                places.push(BlockPlace { input, output, sublayers: Vec::new() });
            }
            let index = blocks.len() - 1;
            blocks[index].output = output;
            places[index].output = output;
            places[index].sublayers.push(SublayerPlace { guess, output, tried, mismatch: step.mismatch() });
            if guess != Guess::Other {
                shapes[index].push(guess);
            }
            match step {
                Step::Sublayer(sublayer) => blocks[index].sublayers.push(*sublayer),
                Step::Stranger(_, mismatch) => self.mismatch(Place::Block(kind, index), &mismatch),
            }
        }
        if let Some(tower) = self.places.towers.last_mut() {
            tower.blocks = places;
        }
        if blocks.is_empty() {
            self.refuse(Place::Tower(kind), "", "has no blocks");
        }
        for (index, shape) in shapes.into_iter().enumerate() {
            if shape == wanted {
                continue;
            }
            let last = self.graph().value(blocks[index].output).name.clone();
            let (node, reason) = if crosses && !shape.contains(&Guess::Cross) {
                let first = self.graph().value(blocks[index].input).name.clone();
                (String::new(), format!("no cross-attention found between `{first}` and `{last}`"))
            } else {
                let names: Vec<&str> = shape.iter().map(|g| g.name()).collect();
                let wanted: Vec<&str> = wanted.iter().map(|g| g.name()).collect();
                (last, format!("ends a block of {}, not of {}", names.join(", "), wanted.join(", ")))
            };
            self.refuse(Place::Block(kind, index), node, reason);
        }
        blocks
    }
}

/// What the cross-attentions of a tower attend to.
fn contexts(tower: &Tower) -> impl Iterator<Item = ValueId> {
    tower.blocks.iter().flat_map(|b| &b.sublayers).filter_map(|s| match &s.kind {
        SublayerKind::Attention(a) => a.context,
        SublayerKind::FeedForward(_) => None,
    })
}

/// A place on the residual stream of a tower.
fn of_stream(kind: TowerKind) -> Place {
    Place::Stream(Some(kind))
}

/// The outputs without keys and values for a cache, which have four axes: training needs none. Where there are no others,
/// they are not a cache.
fn outputs(graph: &Graph) -> Vec<ValueId> {
    let is_cache = |v: &&ValueId| graph.shape(**v).is_some_and(|s| s.len() == 4);
    let others: Vec<ValueId> = graph.outputs.iter().filter(|v| !is_cache(v)).copied().collect();
    if others.is_empty() { graph.outputs.clone() } else { others }
}

/// Nodes on the longest way from the graph's inputs and constants to each value.
fn depths(graph: &Graph) -> Vec<u32> {
    let mut depths = vec![0; graph.values()];
    for id in graph.order().unwrap_or_default() {
        let node = graph.node(id);
        let depth = node.inputs.iter().flatten().map(|v| depths[v.index()]).max().unwrap_or(0);
        for output in node.outputs.iter().flatten() {
            depths[output.index()] = depth + 1;
        }
    }
    depths
}
