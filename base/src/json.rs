//! JSON in which no object has a key twice: readers differ on which of the two counts.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Checks a text.
///
/// # Errors
/// Text that is not JSON; a key that an object has twice, with its place.
pub fn check(text: &[u8]) -> serde_json::Result<()> {
    serde_json::from_slice::<Unique>(text).map(drop)
}

/// Any value, whose keys are unique.
struct Unique;

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Unique, D::Error> {
        json.deserialize_any(Unique)
    }
}

impl<'de> Visitor<'de> for Unique {
    type Value = Unique;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Unique, E> {
        Ok(self)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Unique, E> {
        Ok(self)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Unique, E> {
        Ok(self)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Unique, E> {
        Ok(self)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Unique, E> {
        Ok(self)
    }

    fn visit_unit<E: Error>(self) -> Result<Unique, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Unique, A::Error> {
        while elements.next_element::<Unique>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique, A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            map.next_value::<Unique>()?;
            if let Some(twice) = keys.replace(key) {
                return Err(A::Error::custom(format_args!("the key `{twice}` is given twice")));
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn a_key_that_is_given_twice_is_found_at_any_depth() {
        let problem = |text: &str| check(text.as_bytes()).err().map(|error| error.to_string());
        assert_eq!(problem(r#"{"a": [1, -2, 0.5, null, true, "a"], "b": {"a": {}}}"#), None);
        for text in [r#"{"a": 1, "a": 1}"#, r#"[{"b": {"a": 1, "c": 2, "a": 3}}]"#, r#"{"a": 1, "\u0061": 1}"#] {
            assert!(problem(text).is_some_and(|p| p.contains("`a` is given twice")), "{text}");
        }
        assert!(problem("{").is_some());
    }
}
