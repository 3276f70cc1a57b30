//! A text form of graphs, for readable tests.
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
//! Without `-> ...` the outputs are the values that no node reads. An absent optional operand or output is `_`.
//! Operators of another domain are written `domain::Op`. A name of more than letters, digits and `_./` is in
//! quotes. What the form does not hold: names of nodes, the payload of a NaN.

use std::fmt::Write;

use half::{bf16, f16};
use rten_shape_inference::SymTensor;

use crate::attribute::{Attribute, Attributes};
use crate::dtype::DType;
use crate::infer::{Dim, dim_text};
use crate::ir::{Graph, Node, NodeId, Origin, Role, Source, ValueId};
use crate::weight::Weight;

/// Why a text is not a graph.
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
    graph
        .infer()
        .map_err(|(node, reason)| ParseError { line, reason: format!("{}: {reason}", graph.node(node).name) })?;
    Ok(graph)
}

/// Writes the text form: what [`parse`] reads back as an equal graph.
pub fn print(graph: &Graph) -> String {
    let mut out = String::new();
    let name = |v: ValueId| name_text(&graph.value(v).name);
    let inputs: Vec<String> = graph
        .inputs
        .iter()
        .map(|v| {
            let value = graph.value(*v);
            let role = if value.is_trainable() { "trainable " } else { "" };
            let dtype = value.dtype.map_or("?", DType::name);
            let dim = |d: &Dim| if let Dim::Value(v) = d { v.to_string() } else { name_text(&dim_text(d)) };
            let dims = |s: Vec<Dim>| format!("[{}]", s.iter().map(dim).collect::<Vec<_>>().join(", "));
            format!("{role}{}: {dtype}{}", name(*v), value.shape().map_or_else(String::new, dims))
        })
        .collect();
    let _ = writeln!(out, "({}) {{", inputs.join(", "));
    let uses = graph.uses();
    for id in graph.value_ids() {
        let value = graph.value(id);
        if let Source::Weight(weight) = &value.source
            && (!uses.of(id).is_empty() || graph.outputs.contains(&id))
        {
            let _ = writeln!(out, "    {} = const {}", name(id), weight_text(weight));
        }
    }
    for id in graph.order().unwrap_or_else(|_| graph.node_ids().collect()) {
        let node = graph.node(id);
        let operand = |v: &Option<ValueId>| v.map_or_else(|| "_".to_owned(), name);
        let names = |vs: &[Option<ValueId>]| vs.iter().map(operand).collect::<Vec<_>>().join(", ");
        let domain = if node.domain.is_empty() { String::new() } else { format!("{}::", name_text(&node.domain)) };
        let attribute = |(k, v): (&String, &Attribute)| format!("{}={}", name_text(k), attribute_text(v));
        let attributes: Vec<String> = node.attributes.iter().map(attribute).collect();
        let attributes = if attributes.is_empty() { String::new() } else { format!("<{}>", attributes.join(", ")) };
        let (outputs, op) = (names(&node.outputs), name_text(&node.op));
        let _ = writeln!(out, "    {outputs} = {domain}{op}{attributes}({})", names(&node.inputs));
    }
    let outputs: Vec<String> = graph.outputs.iter().map(|v| name(*v)).collect();
    let _ = write!(out, "}} -> {}", outputs.join(", "));
    out
}

/// Words with a meaning where a name can appear.
const RESERVED: [&str; 3] = ["_", "const", "trainable"];

fn is_word_char(c: char) -> bool {
    c.is_alphanumeric() || "_./".contains(c)
}

fn name_text(name: &str) -> String {
    let plain = !name.is_empty() && name.chars().all(is_word_char) && !RESERVED.contains(&name);
    // A dimension named like a number is a symbol all the same.
    if plain && name.parse::<i64>().is_err() { name.to_owned() } else { format!("{name:?}") }
}

/// A listing of a graph for people: every value with its type and shape, every node with the pass that made it, and no
/// contents of large constants.
pub fn listing(graph: &Graph) -> String {
    const MAX_SHOWN: usize = 8;
    let mut out = String::new();
    let typed = |v: ValueId| {
        let value = graph.value(v);
        let dtype = value.dtype.map_or("?", DType::name);
        format!(
            "{}: {dtype}{}",
            value.name,
            value.shape().map_or_else(|| "?".to_owned(), |s| crate::infer::shape_text(&s))
        )
    };
    for input in &graph.inputs {
        let role = if graph.value(*input).is_trainable() { "trainable" } else { "input" };
        let _ = writeln!(out, "{role} {}", typed(*input));
    }
    let uses = graph.uses();
    for id in graph.value_ids().filter(|v| !uses.of(*v).is_empty()) {
        if let Some(weight) = graph.weight(id) {
            let contents = if weight.elements() <= MAX_SHOWN { weight_text(weight) } else { "...".to_owned() };
            let _ = writeln!(out, "const {} = {contents}", typed(id));
        }
    }
    for id in graph.order().unwrap_or_else(|_| graph.node_ids().collect()) {
        let node = graph.node(id);
        let outputs: Vec<String> = node.outputs.iter().flatten().map(|v| typed(*v)).collect();
        let inputs: Vec<&str> = node.inputs.iter().map(|v| v.map_or("_", |v| graph.value(v).name.as_str())).collect();
        let attributes: Vec<String> =
            node.attributes.iter().map(|(k, v)| format!("{k}={}", attribute_text(v))).collect();
        let attributes = if attributes.is_empty() { String::new() } else { format!("<{}>", attributes.join(", ")) };
        let (outputs, inputs) = (outputs.join(", "), inputs.join(", "));
        let _ = writeln!(out, "{outputs} = {}{attributes}({inputs})  # {}", node.op, node.origin);
    }
    for output in &graph.outputs {
        let _ = writeln!(out, "output {}", typed(*output));
    }
    out
}

fn weight_text(weight: &Weight) -> String {
    let numbers = match (weight.dtype(), weight.to_f32(), weight.to_i64()) {
        (DType::F64, ..) => {
            let doubles = weight.bytes().chunks_exact(8);
            doubles.map(|c| format!("{:?}", f64::from_le_bytes(c.try_into().expect("chunks of 8 bytes")))).collect()
        }
        (_, Some(v), _) => v.iter().map(|v| format!("{v:?}")).collect::<Vec<_>>(),
        (DType::U64, _, Some(v)) => v.iter().map(|v| (*v as u64).to_string()).collect(),
        (_, _, Some(v)) => v.iter().map(i64::to_string).collect(),
        (_, None, None) => Vec::new(),
    };
    format!("{}{:?} {{{}}}", weight.dtype(), weight.dims(), numbers.join(", "))
}

fn attribute_text(value: &Attribute) -> String {
    match value {
        Attribute::Int(v) => v.to_string(),
        Attribute::Float(v) => format!("{v:?}"),
        Attribute::String(v) => format!("{v:?}"),
        Attribute::Ints(v) => format!("{v:?}"),
        // Three kinds of list: an empty one says which.
        Attribute::Floats(v) if v.is_empty() => "floats []".to_owned(),
        Attribute::Strings(v) if v.is_empty() => "strings []".to_owned(),
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
        let end = self.rest.find(|c: char| !is_word_char(c)).unwrap_or(self.rest.len());
        if end == 0 {
            return self.fail("expected a name");
        }
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(word)
    }

    /// A word, or a text in quotes.
    fn name(&mut self) -> Result<String, ParseError> {
        if self.eat("\"") { self.quoted() } else { self.word().map(str::to_owned) }
    }

    /// A name, or `_` for what is absent.
    fn optional(&mut self) -> Result<Option<String>, ParseError> {
        let quoted = self.rest.trim_start().starts_with('"');
        self.name().map(|name| (quoted || name != "_").then_some(name))
    }

    /// The rest of a text in quotes, in Rust's escapes.
    fn quoted(&mut self) -> Result<String, ParseError> {
        let mut text = String::new();
        let mut chars = self.rest.chars();
        loop {
            match chars.next() {
                Some('"') => break,
                Some('\\') => {
                    let escaped = chars.next().and_then(|c| match c {
                        'n' => Some('\n'),
                        't' => Some('\t'),
                        'r' => Some('\r'),
                        '0' => Some('\0'),
                        '\\' | '"' | '\'' => Some(c),
                        'u' => {
                            let (code, rest) = chars.as_str().strip_prefix('{')?.split_once('}')?;
                            chars = rest.chars();
                            char::from_u32(u32::from_str_radix(code, 16).ok()?)
                        }
                        _ => None,
                    });
                    match escaped {
                        Some(c) => text.push(c),
                        None => return self.fail("a string has an invalid escape"),
                    }
                }
                Some(c) => text.push(c),
                None => return self.fail("a string does not end"),
            }
        }
        let rest = chars.as_str();
        self.line += self.rest[..self.rest.len() - rest.len()].matches('\n').count();
        self.rest = rest;
        Ok(text)
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
        word.parse().or_else(|_| self.fail(format!("`{word}` is not a number of the expected kind")))
    }

    /// Items up to the closing token, separated by commas.
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
        DType::from_name(word).map_or_else(|| self.fail(format!("`{word}` is not an element type")), Ok)
    }

    fn graph(&mut self) -> Result<(), ParseError> {
        self.expect("(")?;
        self.list(")", Self::input)?;
        self.expect("{")?;
        while !self.eat("}") {
            self.statement()?;
        }
        if self.eat("->") {
            self.skip();
            while !self.rest.is_empty() {
                let name = self.name()?;
                let value = self.value(&name)?;
                self.graph.outputs.push(value);
                self.skip();
                if !self.rest.is_empty() {
                    self.expect(",")?;
                }
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
        let quoted = self.rest.trim_start().starts_with('"');
        let mut name = self.name()?;
        let mut role = Role::Frozen;
        if name == "trainable" && !quoted {
            role = Role::Trainable;
            name = self.name()?;
        }
        self.expect(":")?;
        let dtype = self.dtype()?;
        let known = self.eat("[");
        let mut dims = Vec::new();
        if known {
            dims = self.list("]", |p| {
                if p.eat("\"") {
                    return p.quoted().map(|name| Dim::pos_var(&name));
                }
                let word = p.word()?;
                Ok(word.parse().map_or_else(|_| Dim::pos_var(word), Dim::Value))
            })?;
        }
        let input = self.graph.add_input(&name, dtype, &dims, role).or_else(|e| self.fail(e))?;
        if !known {
            self.graph.values[input.index()].fact = SymTensor::unknown("not declared");
        }
        Ok(())
    }

    fn weight(&mut self) -> Result<Weight, ParseError> {
        let dtype = self.dtype()?;
        self.expect("[")?;
        let dims: Vec<usize> = self.list("]", Self::parsed)?;
        self.expect("{")?;
        let bytes: Vec<u8> = match dtype {
            DType::F32 => self.list("}", Self::parsed::<f32>)?.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DType::F64 => self.list("}", Self::parsed::<f64>)?.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DType::F16 => self.list("}", Self::parsed::<f16>)?.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DType::BF16 => self.list("}", Self::parsed::<bf16>)?.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DType::I64 => self.list("}", Self::parsed::<i64>)?.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DType::U64 => self.list("}", Self::parsed::<u64>)?.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DType::I32 => self.list("}", Self::parsed::<i32>)?.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DType::U32 => self.list("}", Self::parsed::<u32>)?.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DType::I16 => self.list("}", Self::parsed::<i16>)?.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DType::U16 => self.list("}", Self::parsed::<u16>)?.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DType::I8 => self.list("}", Self::parsed::<i8>)?.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DType::U8 | DType::Bool => self.list("}", Self::parsed::<u8>)?,
        };
        let count = bytes.len() / dtype.size();
        Weight::new(dtype, dims, bytes.into(), None)
            .map_or_else(|| self.fail(format!("{count} numbers do not fit the shape")), Ok)
    }

    fn statement(&mut self) -> Result<(), ParseError> {
        let mut names = vec![self.optional()?];
        while self.eat(",") {
            names.push(self.optional()?);
        }
        for (index, name) in names.iter().enumerate().filter_map(|(i, n)| Some((i, n.as_ref()?))) {
            if self.graph.find(name).is_some() || names[..index].iter().flatten().any(|n| n == name) {
                return self.fail(format!("`{name}` is defined twice"));
            }
        }
        self.expect("=")?;
        let quoted = self.rest.trim_start().starts_with('"');
        let mut op = self.name()?;
        if op == "const" && !quoted {
            let weight = self.weight()?;
            let [Some(name)] = &names[..] else { return self.fail("a constant has one name") };
            self.graph.add_weight(name, weight);
            return Ok(());
        }
        let mut domain = String::new();
        if self.eat("::") {
            domain = if op == "ai.onnx" { String::new() } else { op };
            op = self.name()?;
        }
        let mut attributes = Attributes::none();
        if self.eat("<") {
            for (name, value) in self.list(">", Self::attribute)? {
                attributes.insert(&name, value);
            }
        }
        self.expect("(")?;
        let inputs = self.list(")", |p| p.optional()?.map(|name| p.value(&name)).transpose())?;
        let id = NodeId(self.graph.nodes.len() as u32);
        let mut output = |(slot, name): (usize, &Option<String>)| {
            let unknown = SymTensor::unknown("not inferred");
            name.as_ref().map(|name| self.graph.add_value(name, Source::Node(id, slot), None, unknown))
        };
        let outputs = names.iter().enumerate().map(&mut output).collect();
        let name = names.into_iter().flatten().next().unwrap_or_default();
        self.graph.nodes.push(Some(Node { name, op, domain, inputs, outputs, attributes, origin: Origin::SOURCE }));
        Ok(())
    }

    fn attribute(&mut self) -> Result<(String, Attribute), ParseError> {
        let name = self.name()?;
        self.expect("=")?;
        let value = if self.eat("[") {
            self.numbers_or_strings()?
        } else if self.eat("\"") {
            Attribute::String(self.quoted()?)
        } else if self.eat("const ") {
            Attribute::Tensor(self.weight()?)
        } else if self.eat("floats [") {
            self.expect("]")?;
            Attribute::Floats(Vec::new())
        } else if self.eat("strings [") {
            self.expect("]")?;
            Attribute::Strings(Vec::new())
        } else {
            let word = self.number()?;
            match (word.parse(), word.parse()) {
                (Ok(v), _) => Attribute::Int(v),
                (_, Ok(v)) => Attribute::Float(v),
                _ => return self.fail(format!("`{word}` is not a number")),
            }
        };
        Ok((name, value))
    }

    /// A list: of strings, of integers, or of floats where one of its numbers is not an integer.
    fn numbers_or_strings(&mut self) -> Result<Attribute, ParseError> {
        self.skip();
        if self.rest.starts_with('"') {
            return self.list("]", Self::name).map(Attribute::Strings);
        }
        let words = self.list("]", Self::number)?;
        if let Ok(ints) = words.iter().map(|w| w.parse()).collect() {
            return Ok(Attribute::Ints(ints));
        }
        match words.iter().map(|w| w.parse()).collect() {
            Ok(floats) => Ok(Attribute::Floats(floats)),
            Err(_) => self.fail(format!("`{}` are not numbers", words.join(", "))),
        }
    }
}
