//! What is wrong with a topology file, all of it, each with the text that it is about.

use std::{fmt, ops::Range};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde::{Serialize, Serializer};

/// Everything that is wrong with a file.
///
/// `Display` shows it without colours, [`Self::styled`] with them, and serde as a list of [`Diagnostic`]s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics {
    file: String,
    text: String,
    problems: Vec<Problem>,
}

/// One thing that is wrong, with its place as editors and scripts take it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic<'a> {
    /// The file's name, as it was given.
    pub file: &'a str,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// How many characters it concerns.
    pub length: usize,
    /// What is wrong.
    pub message: &'a str,
    /// What to do.
    pub hint: &'a str,
}

/// A problem in a text, before it is known how the text is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    span: Range<usize>,
    message: String,
    hint: String,
    other: Option<(Range<usize>, &'static str)>,
}

impl Problem {
    pub(super) fn new(span: Range<usize>, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { span, message: message.into(), hint: hint.into(), other: None }
    }

    /// Points to another place too.
    pub(super) fn beside(mut self, span: Range<usize>, label: &'static str) -> Self {
        self.other = (span != self.span).then_some((span, label));
        self
    }
}

impl Diagnostics {
    /// Problems in the order of the text.
    pub(super) fn new(file: &str, text: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| (problem.span.start, problem.span.end));
        problems.dedup();
        Self { file: file.to_owned(), text: text.to_owned(), problems }
    }

    /// How many there are. Never none.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "there is no such value without a problem")]
    pub fn len(&self) -> usize {
        self.problems.len()
    }

    /// Each, in the order of the text.
    #[must_use]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Diagnostic<'_>> {
        self.problems.iter().map(|Problem { span, message, hint, other: _ }| {
            let before = self.text.get(..span.start).unwrap_or(&self.text);
            let line = before.rsplit('\n').next().unwrap_or_default();
            Diagnostic {
                file: &self.file,
                line: before.matches('\n').count() + 1,
                column: line.chars().count() + 1,
                length: self.text.get(span.clone()).unwrap_or_default().chars().count(),
                message,
                hint,
            }
        })
    }

    /// For a terminal: with colours, as `ESC [` sequences.
    #[must_use]
    pub fn styled(&self) -> String {
        self.render(&Renderer::styled())
    }

    fn render(&self, renderer: &Renderer) -> String {
        let reports = self.problems.iter().map(|Problem { span, message, hint, other }| {
            let snippet = Snippet::source(&self.text)
                .path(&self.file)
                .annotation(AnnotationKind::Primary.span(span.clone()))
                .annotations(
                    other
                        .iter()
                        .map(|(span, label)| AnnotationKind::Context.span(span.clone()).label(*label)),
                );
            let title = Level::ERROR.primary_title(message.as_str());
            renderer.render(&[title.element(snippet).element(Level::HELP.message(hint.as_str()))])
        });
        reports.collect::<Vec<_>>().join("\n\n")
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(&Renderer::plain()))
    }
}

impl std::error::Error for Diagnostics {}

impl Serialize for Diagnostics {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}
