//! `cargo xtask lint`: everything that can be said about the repository without running it.

mod docs;
mod licences;
mod spelling;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};

use crate::{build, command, workspace::Workspace};

/// A part of the check.
type Part = fn(&Workspace) -> Result<()>;

/// All of them.
const PARTS: [(&str, Part); 5] = [
    ("format", format),
    ("clippy", clippy),
    ("documents", docs::check),
    ("spelling", spelling::check),
    ("licences", licences::check),
];

/// Runs every part, also when one fails, and reports all that failed.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let mut failures = Vec::new();
    for (name, part) in PARTS {
        eprintln!("# {name}");
        if let Err(error) = part(workspace) {
            failures.push(format!("{name}: {error:#}"));
        }
    }
    if failures.is_empty() {
        return Ok(());
    }
    bail!("{} of {} parts failed\n{}", failures.len(), PARTS.len(), failures.join("\n"))
}

fn format(workspace: &Workspace) -> Result<()> {
    command::run(workspace.command("cargo").args(["fmt", "--all", "--", "--check"]))?;
    // No member of the workspace.
    command::run(workspace.command("cargo").args([
        "fmt",
        "--manifest-path=tests/fuzz/Cargo.toml",
        "--",
        "--check",
    ]))
}

/// The eBPF crate takes part: for the host it is an empty program with the same modules.
fn clippy(workspace: &Workspace) -> Result<()> {
    let mut cargo = workspace.command("cargo");
    cargo.args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    // As in `build`, so that cargo has no reason to check what depends on it anew.
    let object = build::object(workspace);
    if object.exists() {
        cargo.env(build::OBJECT, object);
    }
    command::run(&mut cargo)
}

/// Something that is wrong in a file.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    file: PathBuf,
    line: usize,
    column: usize,
    message: String,
}

impl Finding {
    /// A finding at an offset in the text of a file.
    fn new(file: &Path, text: &str, offset: usize, message: String) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            file: file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[start..].chars().count() + 1,
            message,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, message } = self;
        write!(f, "{}:{line}:{column}: {message}", file.display())
    }
}

/// Prints findings; any is a failure.
fn report(findings: &[Finding]) -> Result<()> {
    for finding in findings {
        eprintln!("{finding}");
    }
    match findings.len() {
        0 => Ok(()),
        1 => bail!("one finding"),
        count => bail!("{count} findings"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_placed_as_an_editor_counts() {
        let at = |offset| Finding::new(Path::new("a.md"), "one\nzwölf x\n", offset, "m".into()).to_string();
        assert_eq!(at(0), "a.md:1:1: m");
        assert_eq!(at(3), "a.md:1:4: m");
        assert_eq!(at(4), "a.md:2:1: m");
        assert_eq!(at(11), "a.md:2:7: m");
    }
}
