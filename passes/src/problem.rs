//! What keeps a model from being compiled, and where.

use std::borrow::Cow;
use std::fmt;

use lstc_models::Place;

/// A problem, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub at: At,
    /// What is wrong there, in words.
    pub what: String,
}

/// Where a problem is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum At {
    /// In the model or the options as a whole.
    Model,
    /// An option, by its key in the configuration file.
    Option(Cow<'static, str>),
    /// A part of the model, in words.
    Part(String),
    /// A node, by its name.
    Node(String),
    /// A value, by its name.
    Value(String),
}

impl Problem {
    pub fn model(what: impl Into<String>) -> Problem {
        Problem { at: At::Model, what: what.into() }
    }

    pub fn option(key: impl Into<Cow<'static, str>>, what: impl Into<String>) -> Problem {
        Problem { at: At::Option(key.into()), what: what.into() }
    }

    pub fn place(place: Place, what: impl Into<String>) -> Problem {
        Problem { at: At::Part(place.to_string()), what: what.into() }
    }

    pub fn node(name: impl Into<String>, what: impl Into<String>) -> Problem {
        Problem { at: At::Node(name.into()), what: what.into() }
    }

    pub fn value(name: impl Into<String>, what: impl Into<String>) -> Problem {
        Problem { at: At::Value(name.into()), what: what.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            At::Model => f.write_str(&self.what),
            At::Option(key) => write!(f, "{key} {}", self.what),
            At::Part(part) => write!(f, "{part} {}", self.what),
            At::Node(name) | At::Value(name) => write!(f, "`{name}`: {}", self.what),
        }
    }
}

/// Problems, a line each.
pub fn listed(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("  {problem}")).collect::<Vec<_>>().join("\n")
}
