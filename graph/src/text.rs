//! A text form of graphs, for tests that one can read.
//!
//! ```text
//! (x: f32[B, 4], trainable w: f32[4, 4]) {
//!     two = const f32[] {2}
//!     y = MatMul(x, w)
//!     z = Mul(y, two)
//!     loss = ReduceSum<keepdims=0>(z)
//! } -> loss
//! ```
//!
//! Without `-> ...` the outputs are the values that no node reads. An absent optional operand is `_`. Operators of
//! another domain are written `domain::Op`.

use std::fmt::Write;

use crate::attribute::{Attribute, Attributes};
use crate::dtype::DType;
use crate::infer::{Dim, shape_text};
use crate::ir::{Graph, Origin, Role, Source, ValueId};
use crate::weight::Weight;

/// Why a text is no graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct ParseError {
    pub line: usize,
    pub reason: String,
}

/// Reads the text form, infers types and shapes.
///
/// # Errors
/// The line and the reason.
pub fn parse(text: &str, opset: i64) -> Result<Graph, ParseError> {
    let mut parser = Parser { rest: text, line: 1, graph: Graph::new("text", opset) };
    parser.graph()?;
    let Parser { mut graph, line, .. } = parser;
    graph.infer().map_err(|(node, reason)| ParseError { line, reason: format!("{}: {reason}", graph.node(node).name) })?;
    Ok(graph)
}

/// Writes the text form: what [`parse`] reads back as an equal graph.
pub fn print(graph: &Graph) -> String {
    let mut out = String::new();
    let name = |v: ValueId| graph.value(v).name.as_str();
    let inputs: Vec<String> = graph
        .inputs
        .iter()
        .map(|v| {
            let value = graph.value(*v);
            let role = if value.is_trainable() { "trainable " } else { "" };
            let dtype = value.dtype.map_or("?", DType::name);
            format!("{role}{}: {dtype}{}", value.name, value.shape().map_or_else(String::new, |s| shape_text(&s)))
        })
        .collect();
    let _ = writeln!(out, "({}) {{", inputs.join(", "));
    let uses = graph.uses();
    for id in graph.value_ids() {
        let value = graph.value(id);
        if let Source::Weight(weight) = &value.source
            && (!uses.of(id).is_empty() || graph.outputs.contains(&id))
        {
            let _ = writeln!(out, "    {} = const {}", value.name, weight_text(weight));
        }
    }
    for id in graph.order().unwrap_or_else(|_| graph.node_ids().collect()) {
        let node = graph.node(id);
        let names = |vs: &[Option<ValueId>]| vs.iter().map(|v| v.map_or("_", name)).collect::<Vec<_>>().join(", ");
        let domain = if node.domain.is_empty() { String::new() } else { format!("{}::", node.domain) };
        let attributes: Vec<String> = node.attributes.iter().map(|(k, v)| format!("{k}={}", attribute_text(v))).collect();
        let attributes = if attributes.is_empty() { String::new() } else { format!("<{}>", attributes.join(", ")) };
        let _ = writeln!(out, "    {} = {domain}{}{attributes}({})", names(&node.outputs), node.op, names(&node.inputs));
    }
    let outputs: Vec<&str> = graph.outputs.iter().map(|v| name(*v)).collect();
    let _ = write!(out, "}} -> {}", outputs.join(", "));
    out
}

fn weight_text(weight: &Weight) -> String {
    let numbers = match (weight.to_f32(), weight.to_i64()) {
        (Some(v), _) => v.iter().map(|v| format!("{v:?}")).collect::<Vec<_>>(),
        (_, Some(v)) => v.iter().map(i64::to_string).collect(),
        (None, None) => Vec::new(),
    };
    format!("{}{:?} {{{}}}", weight.dtype(), weight.dims(), numbers.join(", "))
}

fn attribute_text(value: &Attribute) -> String {
    match value {
        Attribute::Int(v) => v.to_string(),
        Attribute::Float(v) => format!("{v:?}"),
        Attribute::String(v) => format!("{v:?}"),
        Attribute::Ints(v) => format!("{v:?}"),
        Attribute::Floats(v) => format!("{v:?}"),
        Attribute::Strings(v) => format!("{v:?}"),
        Attribute::Tensor(v) => format!("const {}", weight_text(v)),
        Attribute::Opaque(v) => format!("{:?}", v.name()),
    }
}

struct Parser<'a> {
    rest: &'a str,
    line: usize,
    graph: Graph,
}

impl<'a> Parser<'a> {
    fn fail<T>(&self, reason: impl Into<String>) -> Result<T, ParseError> {
        Err(ParseError { line: self.line, reason: reason.into() })
    }

    fn skip(&mut self) {
        let trimmed = self.rest.trim_start();
        self.line += self.rest[..self.rest.len() - trimmed.len()].matches('\n').count();
        self.rest = trimmed;
    }

    /// Takes `token` if it comes next.
    fn eat(&mut self, token: &str) -> bool {
        self.skip();
        let found = self.rest.strip_prefix(token);
        self.rest = found.unwrap_or(self.rest);
        found.is_some()
    }

    fn expect(&mut self, token: &str) -> Result<(), ParseError> {
        if self.eat(token) {
            return Ok(());
        }
        let next: String = self.rest.chars().take(12).collect();
        self.fail(format!("expected `{token}`, found `{next}`"))
    }

    /// A name: of a value, operator, attribute, symbol or type.
    fn word(&mut self) -> Result<&'a str, ParseError> {
        self.skip();
        let end = self.rest.find(|c: char| !(c.is_alphanumeric() || "_./".contains(c))).unwrap_or(self.rest.len());
        if end == 0 {
            return self.fail("expected a name");
        }
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(word)
    }

    fn number(&mut self) -> Result<&'a str, ParseError> {
        self.skip();
        let end = self.rest.find(|c: char| !(c.is_alphanumeric() || "+-.".contains(c))).unwrap_or(self.rest.len());
        if end == 0 {
            return self.fail("expected a number");
        }
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(word)
    }

    fn parsed<T: std::str::FromStr>(&mut self) -> Result<T, ParseError> {
        let word = self.number()?;
        word.parse().or_else(|_| self.fail(format!("`{word}` is no number of the wanted kind")))
    }

    /// Items up to the closing token, parted by commas.
    fn list<T>(
        &mut self,
        close: &str,
        mut item: impl FnMut(&mut Self) -> Result<T, ParseError>,
    ) -> Result<Vec<T>, ParseError> {
        let mut items = Vec::new();
        while !self.eat(close) {
            if !items.is_empty() {
                self.expect(",")?;
            }
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn dtype(&mut self) -> Result<DType, ParseError> {
        let word = self.word()?;
        DType::from_name(word).map_or_else(|| self.fail(format!("`{word}` is no element type")), Ok)
    }

    fn graph(&mut self) -> Result<(), ParseError> {
        self.expect("(")?;
        self.list(")", Self::input)?;
        self.expect("{")?;
        while !self.eat("}") {
            self.statement()?;
        }
        if self.eat("->") {
            let names = self.list("\0", |p| {
                let word = p.word()?;
                if p.rest.trim().is_empty() {
                    p.rest = "\0";
                }
                Ok(word)
            })?;
            for name in names {
                let value = self.value(name)?;
                self.graph.outputs.push(value);
            }
        } else {
            let uses = self.graph.uses();
            let unread = |v: &ValueId| self.graph.producer_of(*v).is_some() && uses.of(*v).is_empty();
            self.graph.outputs = self.graph.value_ids().filter(unread).collect();
        }
        Ok(())
    }

    fn value(&self, name: &str) -> Result<ValueId, ParseError> {
        self.graph.find(name).map_or_else(|| self.fail(format!("nothing is named `{name}`")), Ok)
    }

    fn input(&mut self) -> Result<(), ParseError> {
        let mut name = self.word()?;
        let mut role = Role::Frozen;
        if name == "trainable" {
            role = Role::Trainable;
            name = self.word()?;
        }
        self.expect(":")?;
        let dtype = self.dtype()?;
        self.expect("[")?;
        let dims = self.list("]", |p| {
            let word = p.word()?;
            Ok(word.parse().map_or_else(|_| Dim::pos_var(word), Dim::Value))
        })?;
        self.graph.add_input(name, dtype, &dims, role).or_else(|e| self.fail(e)).map(drop)
    }

    fn weight(&mut self) -> Result<Weight, ParseError> {
        let dtype = self.dtype()?;
        self.expect("[")?;
        let dims: Vec<usize> = self.list("]", Self::parsed)?;
        self.expect("{")?;
        let bytes: Vec<u8> = match dtype {
            DType::F32 => self.list("}", Self::parsed::<f32>)?.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DType::I64 => self.list("}", Self::parsed::<i64>)?.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DType::I32 => self.list("}", Self::parsed::<i32>)?.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DType::Bool => self.list("}", Self::parsed::<u8>)?,
            _ => return self.fail(format!("constants of {dtype} have no text form")),
        };
        let count = bytes.len() / dtype.size();
        Weight::new(dtype, dims, bytes.into(), None)
            .map_or_else(|| self.fail(format!("{count} numbers do not fit the shape")), Ok)
    }

    fn statement(&mut self) -> Result<(), ParseError> {
        let mut names = vec![self.word()?];
        while self.eat(",") {
            names.push(self.word()?);
        }
        if let Some(taken) = names.iter().find(|n| self.graph.find(n).is_some()) {
            return self.fail(format!("`{taken}` is defined twice"));
        }
        self.expect("=")?;
        let mut op = self.word()?;
        if op == "const" {
            let weight = self.weight()?;
            self.graph.add_weight(names[0], weight);
            return Ok(());
        }
        let mut domain = "";
        if self.eat("::") {
            domain = op;
            op = self.word()?;
        }
        let mut attributes = Attributes::none();
        if self.eat("<") {
            for (name, value) in self.list(">", Self::attribute)? {
                attributes.insert(name, value);
            }
        }
        self.expect("(")?;
        let operands = self.list(")", |p| {
            let word = p.word()?;
            if word == "_" { Ok(None) } else { p.value(word).map(Some) }
        })?;
        let node = self.graph.add_node("unnamed", op, &[], attributes, names.len(), Origin::SOURCE);
        let outputs: Vec<ValueId> = self.graph.node(node).outputs.iter().flatten().copied().collect();
        for (output, name) in outputs.into_iter().zip(&names) {
            self.graph.rename(output, name).or_else(|e| self.fail(e))?;
        }
        let node = self.graph.nodes[node.index()].as_mut().expect("it was just added");
        node.name = names[0].to_owned();
        node.domain = domain.to_owned();
        node.inputs = operands;
        Ok(())
    }

    fn attribute(&mut self) -> Result<(&'a str, Attribute), ParseError> {
        let name = self.word()?;
        self.expect("=")?;
        let value = if self.eat("[") {
            Attribute::Ints(self.list("]", Self::parsed)?)
        } else if self.eat("\"") {
            let Some((text, rest)) = self.rest.split_once('"') else { return self.fail("a string has no end") };
            self.rest = rest;
            Attribute::String(text.to_owned())
        } else if self.eat("const ") {
            Attribute::Tensor(self.weight()?)
        } else {
            let word = self.number()?;
            match word.parse::<i64>() {
                Ok(v) => Attribute::Int(v),
                Err(_) => match word.parse() {
                    Ok(v) => Attribute::Float(v),
                    Err(_) => return self.fail(format!("`{word}` is no number")),
                },
            }
        };
        Ok((name, value))
    }
}
