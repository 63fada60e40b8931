//! The topology file: TOML that declares pods and what connects them, short for the usual and explicit where
//! wanted.
//!
//! ```toml
//! name = "lab"
//!
//! [switch.lan]
//! subnet = "10.1.0.0/24"
//! pods = ["a", "b", "c"]
//! ```
//!
//! Every key is described by [`schema`]; complete examples are in [`init`].

mod diagnostics;
mod document;
pub mod init;
mod point_out;
mod resolve;
mod schema;
mod subnet;
#[cfg(test)]
mod tests;
mod text;

use serde::Deserialize as _;
use toml::de::{DeTable, Deserializer};

use self::{diagnostics::Problem, document::Document};
pub use self::{
    diagnostics::{Diagnostic, Diagnostics},
    point_out::point_out,
    schema::schema,
};
use super::Topology;

/// Reads a topology file. Its name is for messages, and names the topology where the text does not.
///
/// # Errors
///
/// Everything that is wrong with it. Only what is no TOML at all is told alone.
pub fn parse(name: &str, text: &str) -> Result<Topology, Diagnostics> {
    let wrong = |problems| Diagnostics::new(name, text, problems);
    let (mut table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(wrong(errors.iter().map(|error| syntax_problem(text, error)).collect()));
    }
    let mut findings = schema::check(table.get_mut());
    let document = match Document::deserialize(Deserializer::from(table)) {
        Ok(document) => document,
        Err(error) => {
            // What the schema lets pass, the types take; this is for the case that they should ever disagree.
            let span = error.span().unwrap_or_default();
            findings.problems.push(Problem::new(
                span,
                error.message(),
                "`veth check --schema` describes every key",
            ));
            return Err(wrong(findings.problems));
        }
    };
    resolve::resolve(name, &document, findings).map_err(wrong)
}

fn syntax_problem(text: &str, error: &toml::de::Error) -> Problem {
    let message = error.message().lines().collect::<Vec<_>>().join(", ");
    // The parser may point behind the last character.
    let span = error.span().unwrap_or_default();
    let start = span.start.min(text.len());
    let hint = if message.contains("duplicate key") {
        "a key or table can be written only once: join both, or rename one"
    } else if message.contains("quote") || message.contains("string") {
        "text stands in double quotes: name = \"lab\""
    } else if message.contains("bracket") || message.contains("array") || message.contains("table") {
        "a table begins with [kind.NAME] on a line of its own, a list is [\"a\", \"b\"]"
    } else {
        "a line is KEY = VALUE, with text in double quotes, or [kind.NAME]"
    };
    Problem::new(start..span.end.clamp(start, text.len()), message, hint)
}
