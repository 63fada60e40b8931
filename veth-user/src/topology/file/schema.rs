//! The schema of the file, made from its types, and the check of a document against it: unlike serde it goes on
//! after what does not fit, and knows where everything stands.

use std::{collections::BTreeSet, ops::Range};

use serde_json::Value;
use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue},
};

use super::{
    diagnostics::Problem,
    document::Document,
    text::{did_you_mean, listed},
};

/// The JSON schema of the topology file, for editors.
#[must_use]
pub fn schema() -> Value {
    let mut schema = schemars::schema_for!(Document).to_value();
    without_null(&mut schema);
    schema
}

/// TOML has no null: what may be left out is not there.
fn without_null(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if object.get("default").is_some_and(|default| default.is_null() || default.is_object()) {
                object.remove("default");
            }
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|kind| kind != "null");
                if let [kind] = types.as_slice() {
                    let kind = kind.clone();
                    object.insert("type".to_owned(), kind);
                }
            }
            object.values_mut().for_each(without_null);
        }
        Value::Array(items) => items.iter_mut().for_each(without_null),
        _ => {}
    }
}

/// What a check found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) problems: Vec<Problem>,
    /// The tables, as `switch.lan`, of which something was taken out. What seems to lack there may have been that.
    pub(super) damaged: BTreeSet<String>,
}

/// Checks a document, and takes everything out of it that does not fit, so that the rest can be read.
pub(super) fn check(document: &mut DeTable<'_>) -> Findings {
    let schema = schema();
    let mut walk = Walk { root: &schema, findings: Findings::default(), place: Vec::new() };
    walk.table(&schema, document);
    walk.findings
}

struct Walk<'s> {
    root: &'s Value,
    findings: Findings,
    place: Vec<String>,
}

impl<'s> Walk<'s> {
    fn refuse(&mut self, span: Range<usize>, message: String, hint: String) -> bool {
        self.findings.problems.push(Problem::new(span, message, hint));
        self.findings.damaged.insert(self.place[..self.place.len().min(2)].join("."));
        false
    }

    fn table(&mut self, schema: &'s Value, table: &mut DeTable<'_>) {
        let mut refused = Vec::new();
        for (key, value) in table.iter_mut() {
            let name: &str = key.get_ref();
            let known = schema.pointer("/properties").and_then(Value::as_object);
            let inner = known
                .and_then(|known| known.get(name))
                .or_else(|| schema.get("additionalProperties").filter(|schema| schema.is_object()));
            let fits = if let Some(inner) = inner {
                self.place.push(name.to_owned());
                let fits = self.value(inner, name, value);
                self.place.pop();
                fits
            } else {
                let known: Vec<&str> =
                    known.into_iter().flat_map(|known| known.keys()).map(String::as_str).collect();
                let place = match self.place.as_slice() {
                    [] => "at the top of a topology file".to_owned(),
                    place => format!("in `{}`", place.join(".")),
                };
                let hint = did_you_mean(name, known.iter().copied())
                    .unwrap_or_else(|| format!("known here: {}", listed(&known)));
                self.refuse(key.span(), format!("there is no key `{name}` {place}"), hint)
            };
            if !fits {
                refused.push(name.to_owned());
            }
        }
        for name in refused {
            let _unused: Option<_> = table.remove(name.as_str());
        }
    }

    /// Whether a value may stay.
    fn value(&mut self, schema: &'s Value, name: &str, value: &mut Spanned<DeValue<'_>>) -> bool {
        let about = description(schema).or_else(|| description(self.resolve(schema)));
        let schema = self.resolve(schema);
        let alternatives = ["anyOf", "oneOf"].into_iter().find_map(|key| schema.get(key)?.as_array());
        let alternatives: Vec<&'s Value> = match alternatives {
            Some(alternatives) => alternatives.iter().map(|schema| self.resolve(schema)).collect(),
            None => vec![schema],
        };
        let words: Vec<&str> = alternatives.iter().copied().flat_map(words).collect();
        let span = value.span();
        let found = value.get_ref().type_str();
        let Some(schema) = alternatives.iter().copied().find(|schema| fits(schema, value.get_ref())) else {
            let wanted: BTreeSet<&str> = alternatives
                .iter()
                .filter_map(|schema| schema.get("type")?.as_str())
                .map(type_name)
                .collect();
            let wanted: Vec<&str> = wanted.into_iter().collect();
            let message = format!("`{name}` is {}, and must be {}", found_name(found), wanted.join(" or "));
            return self.refuse(
                span,
                message,
                type_hint(name, &alternatives, value.get_ref(), about, &words),
            );
        };
        match value.get_mut() {
            DeValue::String(text) if !words.is_empty() && !words.contains(&text.as_ref()) => {
                let hint = did_you_mean(text, words.iter().copied())
                    .unwrap_or_else(|| format!("it can be {}", listed(&words)));
                let message = format!("`{text}` is no value of `{name}`");
                self.refuse(span, message, hint)
            }
            DeValue::Integer(number) => {
                let limit = |key| schema.get(key).and_then(Value::as_i64).map(i128::from);
                let (least, most) = (
                    limit("minimum").unwrap_or(i64::MIN.into()),
                    limit("maximum").unwrap_or(i64::MAX.into()),
                );
                let digits = number.as_str().replace('_', "");
                match i128::from_str_radix(&digits, number.radix()) {
                    Ok(number) if (least..=most).contains(&number) => true,
                    _ => {
                        let message = format!("`{name}` cannot be {digits}");
                        self.refuse(span, message, format!("it can be {least} to {most}"))
                    }
                }
            }
            DeValue::Array(items) => {
                if let Some(inner) = schema.get("items") {
                    let all = std::mem::replace(items, DeArray::new());
                    *items = all
                        .into_iter()
                        .filter_map(|mut item| self.value(inner, name, &mut item).then_some(item))
                        .collect();
                }
                true
            }
            DeValue::Table(table) => {
                self.table(schema, table);
                true
            }
            _ => true,
        }
    }

    fn resolve(&self, schema: &'s Value) -> &'s Value {
        let target = schema.get("$ref").and_then(Value::as_str).and_then(|target| target.strip_prefix('#'));
        target.and_then(|target| self.root.pointer(target)).unwrap_or(schema)
    }
}

/// The first sentence of what a schema says of itself.
fn description(schema: &Value) -> Option<&str> {
    let text = schema.get("description")?.as_str()?;
    Some(text.split_once(". ").map_or(text, |(first, _)| first).trim_end_matches('.'))
}

/// The values of an enumeration.
fn words(schema: &Value) -> Vec<&str> {
    let one = schema.get("const").into_iter();
    let more = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
    one.chain(more).filter_map(Value::as_str).collect()
}

fn fits(schema: &Value, value: &DeValue<'_>) -> bool {
    let json = match value {
        DeValue::String(_) => "string",
        DeValue::Integer(_) => "integer",
        DeValue::Float(_) => "number",
        DeValue::Boolean(_) => "boolean",
        DeValue::Array(_) => "array",
        DeValue::Table(_) => "object",
        DeValue::Datetime(_) => "date",
    };
    schema.get("type").and_then(Value::as_str).is_none_or(|kind| kind == json)
}

fn type_name(json: &str) -> &str {
    match json {
        "string" => "text in quotes",
        "integer" => "a whole number",
        "boolean" => "true or false",
        "array" => "a list",
        "object" => "a table",
        other => other,
    }
}

fn found_name(toml: &str) -> &str {
    match toml {
        "string" => "text",
        "integer" => "a number",
        "float" => "a number with a fraction",
        "boolean" => "true or false",
        "array" => "a list",
        "table" => "a table",
        "datetime" => "a date",
        other => other,
    }
}

fn type_hint(
    name: &str,
    alternatives: &[&Value],
    value: &DeValue<'_>,
    about: Option<&str>,
    words: &[&str],
) -> String {
    let wants =
        |kind: &str| alternatives.iter().any(|schema| schema.get("type").is_some_and(|found| found == kind));
    match value {
        DeValue::String(text)
            if wants("integer") && text.parse::<i64>().is_ok()
                || wants("boolean") && matches!(text.as_ref(), "true" | "false") =>
        {
            format!("without quotes: {name} = {text}")
        }
        DeValue::Integer(number) if wants("boolean") && matches!(number.as_str(), "0" | "1") => {
            format!("{name} = {}", number.as_str() == "1")
        }
        DeValue::String(text) if wants("array") => format!("with brackets: {name} = [\"{text}\"]"),
        DeValue::Table(_) if wants("string") => {
            "if dots are a part of the name before it, put that in quotes".to_owned()
        }
        _ if !words.is_empty() => format!("it can be {}", listed(words)),
        _ => match about {
            Some(about) => format!("`{name}`: {about}"),
            None => format!("change the value of `{name}`"),
        },
    }
}
