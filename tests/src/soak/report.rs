//! What a long run has found.

use std::fmt::{self, Display};

use serde_json::{Value, json};

/// A number, and what it should be.
#[derive(Clone, Debug)]
pub struct Figure {
    what: String,
    value: String,
    wanted: Option<String>,
    is_met: bool,
}

/// Figures, in their order.
#[derive(Clone, Debug, Default)]
pub struct Report {
    figures: Vec<Figure>,
}

impl Report {
    /// Adds a number that nothing is promised of.
    pub fn tell(&mut self, what: impl Into<String>, value: impl Display) {
        let (what, value) = (what.into(), value.to_string());
        self.figures.push(Figure { what, value, wanted: None, is_met: true });
    }

    /// Adds a number that must be zero.
    pub fn none(&mut self, what: impl Into<String>, value: u64) {
        self.must(what, value, "0", value == 0);
    }

    /// Adds a number that must be as large as another.
    pub fn at_least(&mut self, what: impl Into<String>, value: u64, least: u64) {
        self.must(what, value, format!("at least {least}"), value >= least);
    }

    /// Adds what something was before and is now. It may have grown by `slack`.
    pub fn flat(&mut self, what: impl Into<String>, before: u64, now: u64, slack: u64) {
        let value = format!("{before} -> {now}");
        self.must(what, value, format!("at most {slack} more"), now <= before + slack);
    }

    /// Adds a number that something is promised of.
    pub fn must(
        &mut self,
        what: impl Into<String>,
        value: impl Display,
        wanted: impl Into<String>,
        is_met: bool,
    ) {
        let (what, value, wanted) = (what.into(), value.to_string(), Some(wanted.into()));
        self.figures.push(Figure { what, value, wanted, is_met });
    }

    /// Whether everything is as promised.
    #[must_use]
    pub fn is_met(&self) -> bool {
        self.figures.iter().all(|figure| figure.is_met)
    }

    /// All figures, as an array of objects.
    #[must_use]
    pub fn json(&self) -> Value {
        let figure = |figure: &Figure| {
            let Figure { what, value, wanted, is_met } = figure;
            json!({ "what": what, "value": value, "wanted": wanted, "met": is_met })
        };
        self.figures.iter().map(figure).collect()
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |text: fn(&Figure) -> usize| self.figures.iter().map(text).max().unwrap_or(0);
        let (what, value) = (width(|figure| figure.what.len()), width(|figure| figure.value.len()));
        for figure in &self.figures {
            let Figure { what: words, value: number, wanted, is_met } = figure;
            let wanted = wanted.as_ref().map(|wanted| format!("  wanted: {wanted}")).unwrap_or_default();
            let verdict = if *is_met { "" } else { "  MISSED" };
            writeln!(f, "{words:what$}  {number:>value$}{wanted}{verdict}")?;
        }
        Ok(())
    }
}
