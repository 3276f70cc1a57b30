//! Mutants of JSON, by its objects, arrays and values.

use serde_json::{Value, json};

use super::chance::Chance;

/// JSON with one change, or a few.
pub fn mutant(json: &Value, chance: &mut Chance) -> Value {
    let mut mutant = json.clone();
    let changes = if chance.once_in(4) { 2 + chance.below(3) } else { 1 };
    (0..changes).for_each(|_| change(&mut mutant, chance));
    mutant
}

/// Changes a value that is found by going down at random.
fn change(value: &mut Value, chance: &mut Chance) {
    let stops = chance.once_in(4);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            let names: Vec<String> = fields.keys().cloned().collect();
            let name = chance.one(&names).unwrap_or_default();
            if !stops {
                return change(&mut fields[&name], chance);
            }
            let removed = fields.remove(&name).unwrap_or_default();
            match chance.below(4) {
                0 => {}
                1 => drop(fields.insert(format!("{name}_"), removed)),
                2 => drop(fields.insert(chance.one(&names).unwrap_or_default(), removed)),
                _ => drop(fields.insert(name, odd(chance))),
            }
        }
        Value::Array(items) if !items.is_empty() => {
            let at = chance.below(items.len());
            if !stops {
                return change(&mut items[at], chance);
            }
            match chance.below(5) {
                0 => drop(items.remove(at)),
                1 => items.push(items[at].clone()),
                2 => items.reverse(),
                3 => items.clear(),
                _ => items[at] = odd(chance),
            }
        }
        Value::String(text) if stops => match chance.below(3) {
            0 => text.clear(),
            1 => drop(text.pop()),
            _ => text.push('\u{2581}'),
        },
        Value::Bool(set) if !stops => *set = !*set,
        _ => *value = odd(chance),
    }
}

/// A value that is not expected.
fn odd(chance: &mut Chance) -> Value {
    match chance.below(12) {
        0 => Value::Null,
        1 => json!(chance.once_in(2)),
        2 | 3 => json!(chance.odd()),
        4 => json!(1e300),
        5 => json!(-0.5),
        6 => json!(u64::MAX),
        7 => json!(""),
        8 => json!("\u{0}a\u{301}\u{10ffff}"),
        9 => json!([]),
        10 => json!({}),
        _ => (0..100).fold(json!("deep"), |within, _| json!([within])),
    }
}
