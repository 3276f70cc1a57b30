//! The wanted fields of a JSON object.
//!
//! **Invariant:** the others are not kept, however many there are.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_json::value::RawValue;

use super::rows::listed;

pub struct Fields<'a> {
    object: &'a str,
    names: &'a [&'a str],
    values: Vec<Option<Field>>,
    /// What is wrong with a wanted field.
    wrong: Option<String>,
}

pub enum Field {
    Text(String),
    Integer(i64),
    Ids(Vec<i64>),
    Null,
    Other(&'static str),
}

impl<'a> Fields<'a> {
    /// Reads the fields of these names.
    ///
    /// # Errors
    /// Text that is not a JSON object, with the column; a field given twice, where it is not clear which one counts.
    pub fn of(object: &'a str, names: &'a [&'a str]) -> Result<Fields<'a>, String> {
        let mut fields = Fields { object, names, values: names.iter().map(|_| None).collect(), wrong: None };
        let mut json = serde_json::Deserializer::from_str(object);
        json.deserialize_map(&mut fields).and_then(|()| json.end()).map_err(|error| match error.is_data() {
            true => "it is JSON, but not an object".to_owned(),
            false => not_json(&error, error.column()),
        })?;
        match fields.wrong.take() {
            Some(problem) => Err(problem),
            None => Ok(fields),
        }
    }

    pub fn get(&self, name: &str) -> Option<&Field> {
        let slot = self.names.iter().position(|n| *n == name)?;
        self.values[slot].as_ref()
    }

    /// # Errors
    /// A field that is missing, null, an array or an object.
    pub fn text(&self, name: &str) -> Result<String, String> {
        match self.get(name) {
            None => Err(self.missing(name)),
            Some(Field::Text(text)) => Ok(text.clone()),
            Some(Field::Integer(value)) => Ok(value.to_string()),
            Some(Field::Null) => Err(format!("field `{name}` is null")),
            Some(Field::Ids(_)) => Err(format!("field `{name}` is an array, not text")),
            Some(Field::Other(kind)) => Err(format!("field `{name}` is {kind}, not text")),
        }
    }

    /// # Errors
    /// A field that is missing or not an array of integers.
    pub fn ids(&self, name: &str) -> Result<Vec<i64>, String> {
        match self.get(name) {
            None => Err(self.missing(name)),
            Some(Field::Ids(ids)) => Ok(ids.clone()),
            Some(_) => Err(format!("field `{name}` is not an array of integers")),
        }
    }

    fn missing(&self, name: &str) -> String {
        let keys: BTreeMap<String, IgnoredAny> = serde_json::from_str(self.object).unwrap_or_default();
        match keys.is_empty() {
            true => format!("no field `{name}`; it has none"),
            false => format!("no field `{name}`; it has {}", listed(keys.keys().map(String::as_str))),
        }
    }
}

impl<'de> Visitor<'de> for &mut Fields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(slot) = map.next_key_seed(Slot(self.names))? {
            match slot {
                Some(slot) => {
                    let written = map.next_value::<&RawValue>()?.get();
                    let name = self.names[slot];
                    let problem = match Field::of(written) {
                        Ok(field) => self.values[slot].replace(field).map(|_| format!("field `{name}` is given twice")),
                        Err(error) => {
                            let column = written.as_ptr() as usize - self.object.as_ptr() as usize + error.column();
                            Some(not_json(&error, column))
                        }
                    };
                    self.wrong = self.wrong.take().or(problem);
                }
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

fn not_json(error: &serde_json::Error, column: usize) -> String {
    let text = error.to_string();
    // An object is parsed alone: serde_json's own line number is always 1.
    let what = text.split(" at line ").next().unwrap_or_default();
    format!("it is not JSON: {what} at column {column}")
}

/// More significant digits than a double has.
const DIGITS: usize = 17;

impl Field {
    /// The value that is written so. A number stands for its shortest form, unless that would be another number's too.
    fn of(written: &str) -> serde_json::Result<Field> {
        let is_number = written.starts_with(|c: char| c == '-' || c.is_ascii_digit());
        let digits = written.split(['e', 'E']).next().unwrap_or_default().chars().filter(char::is_ascii_digit).count();
        let is_exact =
            || written.parse::<f64>().is_ok_and(|value| value.is_finite() && (value != 0.0 || !has_digits(written)));
        match is_number && written.parse::<i64>().is_err() && (digits > DIGITS || !is_exact()) {
            true => Ok(Field::Text(written.to_owned())),
            false => serde_json::from_str(written),
        }
    }
}

/// Whether a number has a digit that is not 0 before its exponent.
fn has_digits(number: &str) -> bool {
    number.split(['e', 'E']).next().unwrap_or_default().contains(|c: char| ('1'..='9').contains(&c))
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Field, D::Error> {
        json.deserialize_any(AnyField)
    }
}

struct AnyField;

impl<'de> Visitor<'de> for AnyField {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Field, E> {
        Ok(Field::Text(text.to_owned()))
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Field, E> {
        Ok(Field::Text(value.to_string()))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Field, E> {
        Ok(Field::Integer(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Field, E> {
        Ok(i64::try_from(value).map_or_else(|_| Field::Text(value.to_string()), Field::Integer))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Field, E> {
        Ok(serde_json::Number::from_f64(value).map_or(Field::Null, |number| Field::Text(number.to_string())))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Field, E> {
        Ok(Field::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Field, A::Error> {
        let mut ids = Some(Vec::new());
        while let Some(element) = elements.next_element()? {
            match (element, &mut ids) {
                (Field::Integer(id), Some(ids)) => ids.push(id),
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
