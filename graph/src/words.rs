//! Words of messages that depend on what they are about.

use std::fmt::Display;

/// A count of something: `1 epoch`, `2 epochs`, `3 entries`. `one` is the word for one.
pub fn count<N: Display + PartialEq + From<u8>>(number: N, one: &str) -> String {
    match one.strip_suffix('y') {
        _ if number == N::from(1) => format!("1 {one}"),
        Some(stem) if !stem.ends_with(['a', 'e', 'o', 'u']) => format!("{number} {stem}ies"),
        _ => format!("{number} {one}s"),
    }
}

/// A word after its article.
pub fn an(word: &str) -> String {
    let article = if word.starts_with(['A', 'E', 'I', 'O', 'U', 'a', 'e', 'i', 'o']) { "an" } else { "a" };
    format!("{article} {word}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_not_many() {
        let counted = [(0, "epoch"), (1, "epoch"), (2, "epoch"), (1, "entry"), (2, "entry"), (2, "day")];
        let told = counted.map(|(number, one)| count(number, one));
        assert_eq!(told, ["0 epochs", "1 epoch", "2 epochs", "1 entry", "2 entries", "2 days"]);
    }
}
