//! Benchmarks that veth has itself: it is built, and they are run.

use anyhow::Result;

use crate::{command, run, workspace::Workspace};

/// How to say it.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Builds veth and lets it measure: `veth bench NAME`.
pub(super) fn run(workspace: &Workspace, name: &str, arguments: &Arguments) -> Result<()> {
    let mut veth = run::build_and_prepare(workspace)?;
    veth.args(["bench", name]);
    if arguments.json {
        veth.arg("--json");
    }
    command::run(&mut veth)
}
