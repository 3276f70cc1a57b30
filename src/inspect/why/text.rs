//! A trace as an indented tree. What matched is a line; what did not shows the way to the pattern that failed.

use std::fmt::{self, Formatter, Write};

use lstc_models::{
    Attempt, BlockTrace, FusedTrace, Known, Meeting, NodeTrace, Operand, Outcome, Place, Reason, SublayerTrace,
    TowerTrace, Trace,
};

use super::{Answer, WhyReport};

/// How much of a match is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Detail {
    /// A line a sublayer, and of one that did not match the patterns that failed.
    Folded,
    /// Every pattern, with the node at which it was tried.
    Open,
}

/// Column in which outcomes begin.
const OUTCOMES: usize = 26;

/// Items of one kind in a line.
const LISTED: usize = 4;

impl fmt::Display for WhyReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let files: Vec<String> = self.files.iter().map(|p| p.display().to_string()).collect();
        writeln!(f, "{}", files.join(" + "))?;
        match &self.answer {
            Answer::Everything(trace) => {
                if self.understood {
                    writeln!(f, "  understood")?;
                } else {
                    writeln!(f, "  not understood:")?;
                    if let Some(likeness) = &self.likeness {
                        writeln!(f, "    {}", likeness.verdict())?;
                        likeness.seen().iter().try_for_each(|seen| writeln!(f, "      {seen}"))?;
                    }
                    self.refusals.iter().try_for_each(|r| writeln!(f, "    {r}"))?;
                }
                everything(f, trace)?;
            }
            Answer::Head(head) => {
                attempts(f, 2, head, None, Detail::Open)?;
                // A model that is refused without a walk.
                let untold = self.refusals.iter().filter(|_| head.is_empty());
                untold.into_iter().try_for_each(|r| line(f, 2, "not tried", &r.to_string()))?;
            }
            Answer::Towers(towers) => towers.iter().try_for_each(|t| tower(f, t))?,
            Answer::Blocks(blocks) => {
                for found in blocks {
                    writeln!(f, "\n{}", found.place.path())?;
                    block(f, 2, &found.part, Detail::Open)?;
                }
            }
            Answer::Sublayers(sublayers) => {
                for found in sublayers {
                    writeln!(f, "\n{}", found.place.path())?;
                    sublayer(f, 2, &found.part, Detail::Open)?;
                }
            }
            Answer::Node(found) => node(f, found)?,
        }
        if self.cut {
            writeln!(f, "\nMore was tried than is shown here.")?;
        }
        Ok(())
    }
}

fn everything(f: &mut Formatter<'_>, trace: &Trace) -> fmt::Result {
    for t in &trace.towers {
        tower(f, t)?;
    }
    if !trace.head.is_empty() {
        writeln!(f, "\nhead")?;
        attempts(f, 2, &trace.head, None, Detail::Folded)?;
    }
    fused(f, &trace.fused)
}

/// Fused operators by kind, and each that was left as it is.
fn fused(f: &mut Formatter<'_>, fused: &[FusedTrace]) -> fmt::Result {
    if fused.is_empty() {
        return Ok(());
    }
    writeln!(f, "\nfused operators")?;
    let mut kinds: Vec<(&str, &str, usize)> = Vec::new();
    for one in fused.iter().filter(|one| one.left.is_none()) {
        let operator = one.node.operator.as_str();
        match kinds.iter_mut().find(|(kind, rule, _)| (*kind, *rule) == (operator, one.rule)) {
            Some((.., count)) => *count += 1,
            None => kinds.push((operator, one.rule, 1)),
        }
    }
    for (operator, rule, count) in kinds {
        writeln!(f, "  {count} {operator} read as {rule}")?;
    }
    for one in fused {
        if let Some(reason) = one.left {
            writeln!(f, "  {} left as it is: {reason}", one.node)?;
        }
    }
    Ok(())
}

fn tower(f: &mut Formatter<'_>, tower: &TowerTrace) -> fmt::Result {
    writeln!(f, "\n{}", tower.kind)?;
    if let Some(ended) = &tower.ended {
        line(f, 2, "walk", "ended before it reached an embedding; block 0 is the first that it reached")?;
        writeln!(f, "{:OUTCOMES$}{ended}", "")?;
    }
    attempts(f, 2, &tower.embedding, None, Detail::Folded)?;
    for alike in tower.blocks.chunk_by(is_alike) {
        match alike {
            [one] => writeln!(f, "  block {}", one.index)?,
            [first, .., last] => writeln!(f, "  blocks {} to {}", first.index, last.index)?,
            [] => continue,
        }
        block(f, 4, &alike[0], Detail::Folded)?;
    }
    attempts(f, 2, &tower.final_norm, Some("final norm"), Detail::Folded)?;
    tower.refusals.iter().try_for_each(|r| line(f, 2, "as a whole", &format!("no: {}", wrong(&r.node, &r.reason))))
}

/// True for blocks in which the same was found, and nothing is wrong.
fn is_alike(a: &BlockTrace, b: &BlockTrace) -> bool {
    let sound = |block: &BlockTrace| block.refusals.is_empty() && block.sublayers.iter().all(|s| s.outcome.is_match());
    let found = |block: &BlockTrace| block.sublayers.iter().map(|s| (s.kind, s.outcome.clone())).collect::<Vec<_>>();
    sound(a) && sound(b) && found(a) == found(b)
}

fn block(f: &mut Formatter<'_>, indent: usize, block: &BlockTrace, detail: Detail) -> fmt::Result {
    if detail == Detail::Open {
        line(f, indent, "from", &format!("`{}`", block.input))?;
        line(f, indent, "to", &format!("`{}`", block.output))?;
    }
    block.sublayers.iter().try_for_each(|s| sublayer(f, indent, s, detail))?;
    block.refusals.iter().try_for_each(|r| line(f, indent, "as a whole", &format!("no: {}", wrong(&r.node, &r.reason))))
}

fn sublayer(f: &mut Formatter<'_>, indent: usize, sublayer: &SublayerTrace, detail: Detail) -> fmt::Result {
    line(f, indent, sublayer.kind.name(), &outcome(&sublayer.outcome))?;
    let failed = match &sublayer.outcome {
        Outcome::Matched { .. } => None,
        Outcome::No(reason) => Some(reason),
    };
    if detail == Detail::Open || failed.is_some() {
        let sign = sublayer.kind.sign();
        line(f, indent + 2, "known by", &format!("{sign}; the residual stream continues at {}", sublayer.add))?;
    }
    let within = || sublayer.tried.iter().any(|attempt| sublayer.outcome.is_because_of(&attempt.outcome));
    if let Some(reason) = failed.filter(|_| !within()) {
        operands(f, indent + 2, &reason.reads)?;
    }
    if detail == Detail::Folded && failed.is_none() {
        return Ok(());
    }
    tree(f, indent + 2, &sublayer.tried, &sublayer.outcome, detail)
}

/// Attempts at the top level, under their own name or another.
fn attempts(
    f: &mut Formatter<'_>,
    indent: usize,
    tried: &[Attempt],
    name: Option<&str>,
    detail: Detail,
) -> fmt::Result {
    for attempt in tried {
        line(f, indent, name.unwrap_or(attempt.pattern), &outcome(&attempt.outcome))?;
        if detail == Detail::Open || !attempt.outcome.is_match() {
            line(f, indent + 2, "at", &at(attempt))?;
            tree(f, indent + 2, &attempt.tried, &attempt.outcome, detail)?;
        }
    }
    Ok(())
}

/// What was tried within something with an outcome; its reason is not repeated.
fn tree(f: &mut Formatter<'_>, indent: usize, tried: &[Attempt], around: &Outcome, detail: Detail) -> fmt::Result {
    for attempt in tried {
        let text = match &attempt.outcome {
            Outcome::Matched { .. } if detail == Detail::Folded => outcome(&attempt.outcome),
            Outcome::Matched { .. } => format!("{}, at {}", outcome(&attempt.outcome), at(attempt)),
            no if !around.is_because_of(no) => outcome(no),
            Outcome::No(reason) if attempt.is_innermost() => format!("no: this is where, at {}", reason.node),
            Outcome::No(_) => format!("no, at {}", attempt.at),
        };
        line(f, indent, attempt.pattern, &text)?;
        let Outcome::No(reason) = &attempt.outcome else {
            if detail == Detail::Open {
                tree(f, indent + 2, &attempt.tried, &attempt.outcome, detail)?;
            }
            continue;
        };
        if attempt.is_innermost() && around.is_because_of(&attempt.outcome) {
            operands(f, indent + 2, &reason.reads)?;
        }
        tree(f, indent + 2, &attempt.tried, &attempt.outcome, detail)?;
    }
    Ok(())
}

fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Matched { found } => format!("matched: {found}"),
        Outcome::No(Reason { node, reason, remark, .. }) => {
            let remark = remark.map_or_else(String::new, |remark| format!(": {remark}"));
            format!("no: {}{remark}", wrong(&node.name, reason))
        }
    }
}

/// The node of an attempt, and the other operators that it matched.
fn at(attempt: &Attempt) -> String {
    let others: Vec<&str> = attempt.took.iter().filter(|n| **n != attempt.at).map(|n| n.operator.as_str()).collect();
    let mut text = attempt.at.to_string();
    if !others.is_empty() {
        let _ = write!(text, " with {}", counted(&others));
    }
    text
}

/// Each word once, with its count.
fn counted(words: &[&str]) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for word in words {
        match counts.iter_mut().find(|(known, _)| known == word) {
            Some((_, count)) => *count += 1,
            None => counts.push((word, 1)),
        }
    }
    let phrase =
        |(word, count): &(&str, usize)| if *count == 1 { (*word).to_owned() } else { format!("{count} {word}") };
    counts.iter().map(phrase).collect::<Vec<_>>().join(", ")
}

/// What a node reads.
fn operands(f: &mut Formatter<'_>, indent: usize, operands: &[Operand]) -> fmt::Result {
    for Operand { value, shape, operator } in operands {
        let source = match operator.as_str() {
            "input" => ", an input".to_owned(),
            "constant" => ", a constant".to_owned(),
            operator => format!(" from {operator}"),
        };
        line(f, indent, "reads", &format!("{shape} `{value}`{source}"))?;
    }
    Ok(())
}

fn node(f: &mut Formatter<'_>, node: &NodeTrace) -> fmt::Result {
    writeln!(f, "\n{}", node.node)?;
    operands(f, 2, &node.reads)?;
    let (shown, more) = node.read_by.split_at(node.read_by.len().min(LISTED));
    shown.iter().try_for_each(|reader| line(f, 2, "read by", &reader.to_string()))?;
    if !more.is_empty() {
        line(f, 2, "", &format!("and {} more", more.len()))?;
    }
    if let Some(FusedTrace { rule, restated, left, node: fused }) = &node.fused {
        match left {
            Some(reason) => line(f, 2, "fused operator", &format!("left as it is: {reason}"))?,
            None if *fused == node.node => {
                let operators: Vec<&str> = restated.iter().map(|n| n.operator.as_str()).collect();
                line(f, 2, "fused operator", &format!("read as {rule}: {}", counted(&operators)))?;
            }
            None => line(f, 2, "restates", &format!("{fused}, read as {rule}"))?,
        }
    }
    meetings(f, &node.parts)?;
    let taken = node.parts.iter().any(|part| matches!(part.known, Known::Took | Known::Stream));
    if taken {
        return Ok(());
    }
    let why = if node.live { "" } else { ": no output of the model is computed from it" };
    line(f, 2, "taken by", &format!("no pattern{why}"))?;
    let Some(nearest) = &node.nearest else { return Ok(()) };
    let steps = if nearest.steps == 1 { "1 node".to_owned() } else { format!("{} nodes", nearest.steps) };
    line(f, 2, "nearest", &format!("{}, {steps} further on", nearest.node))?;
    meetings(f, &nearest.parts)
}

/// How patterns treated a node.
fn meetings(f: &mut Formatter<'_>, parts: &[Meeting]) -> fmt::Result {
    let (shown, more) = parts.split_at(parts.len().min(LISTED));
    for part in shown {
        let label = match part.known {
            Known::Took => "taken by",
            Known::Stream => "passes on",
            Known::Blamed => "stopped",
            Known::Tried => "was tried by",
        };
        let mut way = part.place.path().to_string();
        if part.known == Known::Stream && matches!(part.place, Place::Sublayer(..)) {
            let _ = write!(way, ": adds its output to the residual stream");
        }
        part.patterns.iter().for_each(|pattern| {
            let _ = write!(way, " > {pattern}");
        });
        line(f, 2, label, &way)?;
        if let Some(found) = &part.outcome {
            line(f, 2, "", &outcome(found))?;
        }
    }
    if !more.is_empty() {
        line(f, 2, "", &format!("and {} more", more.len()))?;
    }
    Ok(())
}

/// An indented label, and its text in a column of its own.
fn line(f: &mut Formatter<'_>, indent: usize, label: &str, text: &str) -> fmt::Result {
    let width = OUTCOMES.saturating_sub(indent + 2).max(label.len());
    writeln!(f, "{:indent$}{label:width$}  {text}", "")
}

/// What is wrong, after the node that causes it, if any.
fn wrong(node: &str, reason: &str) -> String {
    if node.is_empty() { reason.to_owned() } else { format!("`{node}` {reason}") }
}
