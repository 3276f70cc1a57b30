//! Rows as JSON objects, one a line.
//!
//! A file is tokenised already where its first row has arrays of integers `input_ids` and `labels`; then all rows must. In
//! other files numbers and booleans stand for their text, a number as JSON writes it shortest.
//!
//! **Invariant:** of a row only the wanted fields are kept, however many it has.

use std::fmt;

use anyhow::anyhow;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};

use super::reading::Reading;
use super::rows::{Content, Row, listed};
use super::source::{Line, Source};
use crate::report::Hinted;

const INPUT_IDS: &str = "input_ids";
const LABELS: &str = "labels";

pub struct JsonLines {
    pub source: Source,
    line: Vec<u8>,
    number: u64,
    input_field: String,
    target_field: String,
    form: Option<Form>,
}

/// What the rows of a file hold.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Text,
    Ids,
}

impl JsonLines {
    pub fn new(source: Source, reading: &Reading) -> JsonLines {
        let (input_field, target_field) = (reading.input_field.clone(), reading.target_field.clone());
        JsonLines { source, line: Vec::new(), number: 0, input_field, target_field, form: None }
    }

    pub fn next(&mut self) -> anyhow::Result<Option<Row>> {
        loop {
            let found = self.source.line(&mut self.line)?;
            self.number += 1;
            let content = match found {
                Line::End => return Ok(None),
                Line::TooLong => Err("it is longer than 16 MiB".to_owned()),
                Line::Whole if self.line.trim_ascii().is_empty() => continue,
                Line::Whole if self.form.is_none() && self.line.trim_ascii_start().starts_with(b"[") => {
                    return Err(array());
                }
                Line::Whole => self.content(),
            };
            return Ok(Some(Row { line: self.number, content }));
        }
    }

    fn content(&mut self) -> Result<Content, String> {
        let line = std::str::from_utf8(&self.line)
            .map_err(|error| format!("byte {} of the line is not UTF-8", error.valid_up_to() + 1))?;
        let names = [&self.input_field, &self.target_field, INPUT_IDS, LABELS];
        let fields = fields(line, names)?;
        let form = *self.form.get_or_insert_with(|| fields.form());
        match form {
            Form::Text => Ok(Content::Text {
                input: fields.text(&self.input_field).map_err(|bad| bad.told(line))?,
                target: fields.text(&self.target_field).map_err(|bad| bad.told(line))?,
            }),
            Form::Ids => Ok(Content::Ids {
                input: fields.ids(INPUT_IDS).map_err(|bad| bad.told(line))?,
                target: fields.ids(LABELS).map_err(|bad| bad.told(line))?,
            }),
        }
    }
}

fn array() -> anyhow::Error {
    let error = anyhow!("it begins with a JSON array, where each line is to be an object of its own");
    Hinted::new(error, "`jq -c '.[]'` turns an array into lines").into()
}

/// The wanted fields of one row.
struct Fields<'a> {
    names: [&'a str; 4],
    values: [Option<Field>; 4],
}

enum Field {
    Text(String),
    Ids(Vec<i64>),
    Null,
    Other(&'static str),
}

/// Why a field cannot be used.
enum Bad<'a> {
    Missing(&'a str),
    Wrong(String),
}

impl Bad<'_> {
    fn told(self, line: &str) -> String {
        match self {
            Bad::Wrong(why) => why,
            Bad::Missing(name) => {
                let Keys(keys) = serde_json::from_str(line).unwrap_or_default();
                match keys.is_empty() {
                    true => format!("no field `{name}`; it has none"),
                    false => format!("no field `{name}`; it has {}", listed(keys.iter().map(String::as_str))),
                }
            }
        }
    }
}

fn fields<'a>(line: &str, names: [&'a str; 4]) -> Result<Fields<'a>, String> {
    let mut fields = Fields { names, values: [const { None }; 4] };
    let mut json = serde_json::Deserializer::from_str(line);
    (&mut fields).deserialize(&mut json).and_then(|()| json.end()).map_err(|error| {
        let text = error.to_string();
        // A row is parsed alone: serde_json's own line number is always 1.
        let what = text.split(" at line ").next().unwrap_or_default();
        match error.is_data() {
            true => "it is JSON, but no object".to_owned(),
            false => format!("it is not JSON: {what} at column {}", error.column()),
        }
    })?;
    Ok(fields)
}

impl Fields<'_> {
    fn get(&self, name: &str) -> Option<&Field> {
        let slot = self.names.iter().position(|n| *n == name)?;
        self.values[slot].as_ref()
    }

    fn form(&self) -> Form {
        match (self.get(INPUT_IDS), self.get(LABELS)) {
            (Some(Field::Ids(_)), Some(Field::Ids(_))) => Form::Ids,
            _ => Form::Text,
        }
    }

    fn text<'a>(&self, name: &'a str) -> Result<String, Bad<'a>> {
        match self.get(name) {
            None => Err(Bad::Missing(name)),
            Some(Field::Text(text)) => Ok(text.clone()),
            Some(Field::Null) => Err(Bad::Wrong(format!("field `{name}` is null"))),
            Some(Field::Ids(_)) => Err(Bad::Wrong(format!("field `{name}` is an array, not text"))),
            Some(Field::Other(kind)) => Err(Bad::Wrong(format!("field `{name}` is {kind}, not text"))),
        }
    }

    fn ids<'a>(&self, name: &'a str) -> Result<Vec<i64>, Bad<'a>> {
        match self.get(name) {
            None => Err(Bad::Missing(name)),
            Some(Field::Ids(ids)) => Ok(ids.clone()),
            Some(_) => {
                Err(Bad::Wrong(format!("field `{name}` is no array of integers, as it is in the file's first row")))
            }
        }
    }
}

impl<'de> DeserializeSeed<'de> for &mut Fields<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &mut Fields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(slot) = map.next_key_seed(Slot(&self.names))? {
            match slot {
                Some(slot) => self.values[slot] = Some(map.next_value()?),
                None => map.next_value::<IgnoredAny>().map(drop)?,
            }
        }
        Ok(())
    }
}

/// Which of the wanted fields a key names.
struct Slot<'a>(&'a [&'a str]);

impl<'de> DeserializeSeed<'de> for Slot<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Option<usize>, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for Slot<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<Option<usize>, E> {
        Ok(self.0.iter().position(|name| *name == key))
    }
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Field, D::Error> {
        json.deserialize_any(FieldVisitor)
    }
}

struct FieldVisitor;

impl<'de> Visitor<'de> for FieldVisitor {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Field, E> {
        Ok(Field::Text(text.to_owned()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Field, E> {
        Ok(Field::Text(text))
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Field, E> {
        Ok(Field::Text(value.to_string()))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Field, E> {
        Ok(Field::Text(value.to_string()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Field, E> {
        Ok(Field::Text(value.to_string()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Field, E> {
        Ok(serde_json::Number::from_f64(value).map_or(Field::Null, |number| Field::Text(number.to_string())))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Field, E> {
        Ok(Field::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Field, A::Error> {
        let mut ids = Some(Vec::new());
        while let Some(Element(integer)) = elements.next_element()? {
            match (integer, &mut ids) {
                (Some(integer), Some(ids)) => ids.push(integer),
                _ => ids = None,
            }
        }
        Ok(ids.map_or(Field::Other("an array"), Field::Ids))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Field, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Field::Other("an object"))
    }
}

/// An element of an array, if it is an integer.
struct Element(Option<i64>);

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Element, D::Error> {
        json.deserialize_any(ElementVisitor)
    }
}

struct ElementVisitor;

impl<'de> Visitor<'de> for ElementVisitor {
    type Value = Element;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Element, E> {
        Ok(Element(Some(value)))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Element, E> {
        Ok(Element(i64::try_from(value).ok()))
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Element, E> {
        Ok(Element(None))
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Element, E> {
        Ok(Element(None))
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<Element, E> {
        Ok(Element(None))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Element, E> {
        Ok(Element(None))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Element, A::Error> {
        while elements.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Element(None))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Element, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Element(None))
    }
}

/// The keys of an object.
#[derive(Default)]
struct Keys(Vec<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Keys, D::Error> {
        json.deserialize_map(KeysVisitor)
    }
}

struct KeysVisitor;

impl<'de> Visitor<'de> for KeysVisitor {
    type Value = Keys;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
        let mut keys = Vec::new();
        while let Some((key, _)) = map.next_entry::<String, IgnoredAny>()? {
            keys.push(key);
        }
        Ok(Keys(keys))
    }
}
