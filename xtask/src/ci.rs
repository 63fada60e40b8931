//! `cargo xtask ci`: what decides whether a change is good, the same here and on a server.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::{command, lint, run, test, workspace::Workspace};

/// The command by which `README.md` tells readers to test.
const TEST: &str = "cargo xtask test";

/// Lints, runs the tests just as a reader of `README.md` would, and lets veth run for two seconds.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    lint::run(workspace)?;
    if workspace.root.join("README.md").exists() {
        let readme = workspace.read(Path::new("README.md"))?;
        ensure!(readme.lines().any(|line| line.trim() == TEST), "README.md has no line `{TEST}`");
    }
    test::run(workspace, &test::Arguments::default())?;
    command::run(run::build_and_prepare(workspace)?.args(["run", "--for", "2s"]))
}
