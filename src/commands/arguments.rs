//! The arguments of the command line: how switches are spelled, and which numbers flags take.
//!
//! A switch is a flag that is on or off. Every switch of every command takes `--bias`, `--bias=false`, `--bias false` and
//! `--no-bias`, so that a value never becomes an argument of its own.

use std::ffi::{OsStr, OsString};
use std::iter::Peekable;

use clap::builder::PossibleValue;
use clap::{Arg, ArgAction, Command};

/// The command line in the one spelling that clap is given: a switch with its value after `=`, or without one; a flag with a
/// negative number after `=`, so that the number is refused as what it is, out of range, and not as an unknown flag.
pub fn settled(command: &Command, words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut command = command;
    let mut words = words.into_iter().peekable();
    let mut settled: Vec<OsString> = words.next().into_iter().collect();
    while let Some(word) = words.next() {
        if word == "--" {
            settled.push(word);
            settled.extend(words);
            break;
        }
        let text = word.to_str().unwrap_or_default();
        if !text.starts_with('-') {
            command = command.find_subcommand(text).unwrap_or(command);
            settled.push(word);
        } else if let Some(made) = as_switch(command, text, &mut words) {
            settled.extend(made);
        } else if takes_a_value(command, text)
            && let Some(number) = words.next_if(|next| next.to_str().is_some_and(is_negative))
        {
            settled.push([word, number].join(OsStr::new("=")));
        } else {
            settled.push(word);
        }
    }
    settled
}

/// A switch as clap is given it, with its value, which may be the next word; none if the word is another flag, or has a value
/// that clap is to refuse.
fn as_switch(
    command: &Command,
    word: &str,
    words: &mut Peekable<impl Iterator<Item = OsString>>,
) -> Option<Option<OsString>> {
    let flag = word.strip_prefix("--")?;
    let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
    let (switch, is_on) = switch(command, name)?;
    let value = match value {
        Some(value) => Some(on_or_off(value)?),
        None => {
            let beside = words.next_if(|next| next.to_str().and_then(on_or_off).is_some());
            beside.and_then(|next| on_or_off(next.to_str()?))
        }
    };
    Some(spelled(switch, value.is_none_or(|value| value) == is_on))
}

/// Whether a word is a flag of the command, long or short, whose value is the next word.
fn takes_a_value(command: &Command, word: &str) -> bool {
    let is_named = |arg: &&Arg| match word.strip_prefix("--") {
        Some(name) => arg.get_long() == Some(name),
        None => arg.get_short().is_some_and(|short| word.strip_prefix('-') == Some(short.encode_utf8(&mut [0; 4]))),
    };
    command.get_arguments().find(is_named).is_some_and(|arg| arg.get_action().takes_values())
}

/// Whether a text begins like a negative number, or a list of them.
fn is_negative(text: &str) -> bool {
    let number = text.strip_prefix('-').unwrap_or_default().to_ascii_lowercase();
    number.starts_with(|c: char| c.is_ascii_digit() || c == '.') || ["inf", "nan"].iter().any(|n| number.starts_with(n))
}

/// The switch of this name, and whether the name alone turns it on: `no-bias` turns `bias` off.
fn switch<'c>(command: &'c Command, name: &str) -> Option<(&'c Arg, bool)> {
    let find = |name: &str| command.get_arguments().find(|a| a.get_long() == Some(name) && kind(a).is_some());
    let off = || Some((find(name.strip_prefix("no-")?)?, false));
    find(name).map(|switch| (switch, true)).or_else(off)
}

/// How a switch is declared.
enum Kind {
    /// It is given or not.
    Bare,
    /// It may also be left to the configuration, and has a value.
    Valued,
}

fn kind(arg: &Arg) -> Option<Kind> {
    let names = arg.get_possible_values();
    let is_bool = names.iter().map(PossibleValue::get_name).eq(["true", "false"]);
    match arg.get_action() {
        ArgAction::SetTrue => Some(Kind::Bare),
        ArgAction::Set if is_bool => Some(Kind::Valued),
        _ => None,
    }
}

fn spelled(switch: &Arg, value: bool) -> Option<OsString> {
    let name = switch.get_long()?;
    match (kind(switch)?, value) {
        (Kind::Bare, true) => Some(format!("--{name}").into()),
        (Kind::Bare, false) => None,
        (Kind::Valued, value) => Some(format!("--{name}={value}").into()),
    }
}

fn on_or_off(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// Reads a whole number that is at least `least`, and that its type can hold.
pub fn at_least<T: TryFrom<i128>>(least: u32) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |text| {
        let number: i128 = text.parse().map_err(|_| "it is not a whole number".to_owned())?;
        if number < i128::from(least) {
            return Err(format!("out of range: it must be at least {least}"));
        }
        T::try_from(number).map_err(|_| "out of range: it is too large".to_owned())
    }
}

/// Reads a share of a whole.
pub fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share < 1.0 => Ok(share),
        Ok(_) => Err("out of range: a share lies between 0 and 1, as in 0.1".to_owned()),
        Err(_) => Err("it is not a number".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::commands::Cli;

    fn settle(line: &str) -> String {
        let words = settled(&Cli::command(), line.split_whitespace().map(OsString::from));
        words.iter().map(|w| w.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn every_spelling_of_a_flag_becomes_one() {
        for (line, expected) in [
            ("lstc rewrite --bias false a.onnx", "lstc rewrite --bias=false a.onnx"),
            ("lstc rewrite a.onnx --bias=OFF", "lstc rewrite a.onnx --bias=false"),
            ("lstc rewrite a.onnx --no-bias", "lstc rewrite a.onnx --bias=false"),
            ("lstc rewrite --merge-last a.onnx", "lstc rewrite --merge-last=true a.onnx"),
            ("lstc rewrite a.onnx --force false --link yes", "lstc rewrite a.onnx --link"),
            ("lstc eval d --no-generation false", "lstc eval d"),
            ("lstc eval d --no-generation", "lstc eval d --no-generation"),
            ("lstc runtime install --cuda 1", "lstc runtime install --cuda"),
            ("lstc cache show taps --no-check", "lstc cache show taps"),
            ("lstc train d --epochs -1 --lr -inf", "lstc train d --epochs=-1 --lr=-inf"),
            ("lstc rewrite -r -8 --encoder-blocks -1,2", "lstc rewrite -r=-8 --encoder-blocks=-1,2"),
        ] {
            assert_eq!(settle(line), expected, "{line}");
        }
    }

    #[test]
    fn everything_else_stays() {
        for line in [
            "lstc rewrite a.onnx --bias=perhaps",
            "lstc rewrite a.onnx --no-seed 1",
            "lstc train d --prefix true",
            "lstc rewrite -- --bias false",
            "lstc export d --no-verify",
            "lstc train d -o -x",
            "lstc inspect -1",
        ] {
            assert_eq!(settle(line), line);
        }
    }

    #[test]
    fn every_switch_may_have_a_value_with_a_blank() {
        fn all(path: &str, command: &Command, seen: &mut usize) {
            for name in command.get_arguments().filter(|a| kind(a).is_some()).filter_map(Arg::get_long) {
                let words = format!("{path} --{name} false").split(' ').map(OsString::from).collect::<Vec<_>>();
                assert!(!settled(&Cli::command(), words).contains(&OsString::from("false")), "{path} --{name}");
                *seen += 1;
            }
            command.get_subcommands().for_each(|c| all(&format!("{path} {}", c.get_name()), c, seen));
        }
        let mut seen = 0;
        all("lstc", &Cli::command(), &mut seen);
        assert!(seen > 15, "{seen}");
    }

    #[test]
    fn numbers_are_held_to_their_range() {
        assert_eq!(at_least::<usize>(1)("1"), Ok(1));
        assert_eq!(at_least::<u64>(0)("18446744073709551615"), Ok(u64::MAX));
        assert!(at_least::<usize>(1)("0").is_err_and(|e| e.contains("at least 1")));
        assert!(at_least::<usize>(1)("-1").is_err_and(|e| e.contains("out of range")));
        assert!(at_least::<u32>(1)("4294967296").is_err_and(|e| e.contains("too large")));
        assert!(at_least::<u64>(0)("1.5").is_err_and(|e| e.contains("not a whole number")));
    }
}
