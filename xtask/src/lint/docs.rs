//! Links in documents: files must be there, and anchors must be headings, slugged as GitHub does. Of web links
//! only the syntax is checked, as there may be no network; links in doc comments are rustdoc's to check.

use std::{
    collections::{HashMap, HashSet},
    path::{Component, Path, PathBuf},
};

use anyhow::Result;
use pulldown_cmark::{BrokenLink, CowStr, Event, LinkType, Options, Parser, Tag, TagEnd};

use super::{Finding, report};
use crate::workspace::Workspace;

/// Checks the links of every document.
pub(super) fn check(workspace: &Workspace) -> Result<()> {
    let mut texts = HashMap::new();
    for file in workspace.files("*.md")? {
        let text = workspace.read(&file)?;
        texts.insert(file, text);
    }
    let documents: HashMap<&Path, Document> =
        texts.iter().map(|(file, text)| (file.as_path(), Document::parse(text))).collect();
    let mut findings = Vec::new();
    for (file, document) in &documents {
        let problems = document.links.iter().filter_map(|Link { offset, destination }| {
            let message = match destination {
                Some(destination) => {
                    problem(file, destination, &documents, |path| workspace.root.join(path).exists())?
                }
                None => "a reference that is not defined".to_owned(),
            };
            Some(Finding::new(file, &texts[*file], *offset, message))
        });
        findings.extend(problems);
    }
    findings.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    report(&findings)
}

/// A link or an image.
struct Link {
    offset: usize,
    /// Where it goes; `None` if it refers to a definition that does not exist.
    destination: Option<String>,
}

/// What links need to know of a document.
#[derive(Default)]
struct Document {
    anchors: HashSet<String>,
    links: Vec<Link>,
}

impl Document {
    fn parse(text: &str) -> Self {
        let mut undefined = Vec::new();
        let callback = |link: BrokenLink<'_>| {
            // `[text]` alone is more often meant as text.
            if matches!(link.link_type, LinkType::Reference | LinkType::Collapsed) {
                undefined.push(Link { offset: link.span.start, destination: None });
            }
            None::<(CowStr<'_>, CowStr<'_>)>
        };
        let options = Options::ENABLE_TABLES | Options::ENABLE_FOOTNOTES | Options::ENABLE_STRIKETHROUGH;
        let mut document = Self::default();
        let mut slugs = Slugs::default();
        let mut heading = None;
        let events = Parser::new_with_broken_link_callback(text, options, Some(callback)).into_offset_iter();
        for (event, range) in events {
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    document.anchors.extend(heading.take().map(|heading| slugs.next(&heading)));
                }
                Event::Text(part) | Event::Code(part) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&part);
                    }
                }
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    let destination = Some(dest_url.into_string());
                    document.links.push(Link { offset: range.start, destination });
                }
                _ => {}
            }
        }
        document.links.append(&mut undefined);
        document
    }
}

/// The anchors of a document's headings, in their order.
#[derive(Default)]
struct Slugs(HashMap<String, usize>);

impl Slugs {
    /// The anchor of the next heading; one that was there before gets a number.
    fn next(&mut self, heading: &str) -> String {
        let slug = slug(heading);
        let count = self.0.entry(slug.clone()).or_default();
        let anchor = if *count == 0 { slug } else { format!("{slug}-{count}") };
        *count += 1;
        anchor
    }
}

/// GitHub's anchor for a heading: letters and digits in lower case, spaces as hyphens, no punctuation.
///
/// <https://github.com/gjtorikian/html-pipeline/blob/v2.14.3/lib/html/pipeline/toc_filter.rb#L44-L46>
fn slug(heading: &str) -> String {
    heading
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

/// What is wrong with a link, if anything.
fn problem(
    file: &Path,
    destination: &str,
    documents: &HashMap<&Path, Document>,
    exists: impl Fn(&Path) -> bool,
) -> Option<String> {
    if let Some((scheme, rest)) = destination.split_once(':')
        && !scheme.contains(['/', '#'])
    {
        let valid = match scheme {
            "http" | "https" => rest.strip_prefix("//").is_some_and(is_web_address),
            "mailto" => rest.contains('@'),
            _ => false,
        };
        return (!valid).then(|| format!("not a valid address: {destination}"));
    }
    let (path, anchor) =
        destination.split_once('#').map_or((destination, None), |(path, anchor)| (path, Some(anchor)));
    let Some(target) = resolve(file, path) else {
        return Some(format!("leaves the repository: {destination}"));
    };
    if !exists(&target) {
        return Some(format!("no such file: {destination}"));
    }
    // Anchors of other files, such as `#L10` of a source, are GitHub's.
    let anchor = anchor?;
    let document = documents.get(target.as_path())?;
    (!document.anchors.contains(anchor)).then(|| format!("no such heading: {destination}"))
}

/// The rest of an address after `//`: a host, and nothing that an address cannot contain.
fn is_web_address(rest: &str) -> bool {
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    !host.is_empty()
        && !host.starts_with('.')
        && !rest.contains(|c: char| c.is_whitespace() || "<>\"`".contains(c))
}

/// The file that a link in `file` means, from the root of the repository on. As on GitHub, a leading `/` is
/// that root.
fn resolve(file: &Path, path: &str) -> Option<PathBuf> {
    let base = match path {
        "" => return Some(file.to_owned()),
        path if path.starts_with('/') => Path::new(""),
        _ => file.parent().unwrap_or(Path::new("")),
    };
    let mut resolved = PathBuf::new();
    for component in base.join(path.trim_start_matches('/')).components() {
        match component {
            Component::Normal(name) => resolved.push(name),
            Component::ParentDir => {
                if !resolved.pop() {
                    return None;
                }
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Some(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slugs_are_those_of_github() {
        for (heading, anchor) in [
            ("Quick start", "quick-start"),
            ("What is `veth`?", "what-is-veth"),
            ("TC & XDP", "tc--xdp"),
            ("1. Build, run", "1-build-run"),
            ("snake_case and kebab-case", "snake_case-and-kebab-case"),
            ("Größe", "größe"),
        ] {
            assert_eq!(Slugs::default().next(&heading.replace('`', "")), anchor);
        }
    }

    #[test]
    fn equal_headings_are_numbered() {
        let document = Document::parse("# Build\n\n## Build\n\nBuild\n-----\n");
        assert_eq!(document.anchors, ["build", "build-1", "build-2"].map(str::to_owned).into());
    }

    #[test]
    fn code_in_a_heading_is_part_of_it() {
        let document = Document::parse("## The `cargo xtask` *commands*\n");
        assert_eq!(document.anchors, ["the-cargo-xtask-commands".to_owned()].into());
    }

    #[test]
    fn links_go_somewhere() {
        let documents = HashMap::from([
            (Path::new("README.md"), Document::parse("# Top\n")),
            (Path::new("docs/design.md"), Document::parse("# Maps\n")),
        ]);
        let problem = |destination| {
            problem(Path::new("docs/design.md"), destination, &documents, |path| {
                documents.contains_key(path) || path == Path::new("xtask/src/main.rs")
            })
        };
        for fine in [
            "#maps",
            "design.md#maps",
            "../README.md",
            "../README.md#top",
            "/README.md#top",
            "./../xtask/src/main.rs#L3",
            "https://example.org/a?b#c",
            "mailto:a@example.org",
        ] {
            assert_eq!(problem(fine), None, "{fine}");
        }
        for (wrong, message) in [
            ("#map", "no such heading: #map"),
            ("README.md", "no such file: README.md"),
            ("../README.md#maps", "no such heading: ../README.md#maps"),
            ("../../README.md", "leaves the repository: ../../README.md"),
            ("https:///a", "not a valid address: https:///a"),
            ("https://a b", "not a valid address: https://a b"),
            ("htps://a", "not a valid address: htps://a"),
        ] {
            assert_eq!(problem(wrong).as_deref(), Some(message));
        }
    }

    #[test]
    fn a_reference_needs_a_definition() {
        let document = Document::parse("[a][b], [c][], [d], [e][f]\n\n[f]: g.md\n");
        let destinations: Vec<_> = document.links.iter().map(|link| link.destination.as_deref()).collect();
        assert_eq!(destinations, [Some("g.md"), None, None]);
    }
}
