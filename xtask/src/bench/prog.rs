//! `cargo xtask bench prog`: what each program costs by itself.

use anyhow::Result;

use crate::{command, run, workspace::Workspace};

/// How to say it.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Builds veth and lets it measure its programs.
pub(super) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let mut veth = run::build_and_prepare(workspace)?;
    veth.args(["bench", "prog"]);
    if arguments.json {
        veth.arg("--json");
    }
    command::run(&mut veth)
}
