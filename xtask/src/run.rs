//! `cargo xtask run`: veth, built for release and started as root. Only veth is privileged; all that builds it
//! is not.

use std::{ffi::OsString, process::Command};

use anyhow::{Result, ensure};
use nix::unistd::geteuid;

use crate::{build, command, workspace::Workspace};

/// What to start veth with.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Veth's arguments: a subcommand of veth and its options. `run` if there are none.
    #[arg(last = true, value_name = "ARGUMENTS")]
    veth: Vec<OsString>,
}

/// Builds veth and becomes it: Ctrl-C reaches it, and its exit code is ours.
pub(crate) fn run(workspace: &Workspace, arguments: Arguments) -> Result<()> {
    let Arguments { mut veth } = arguments;
    if veth.is_empty() {
        veth.push("run".into());
    }
    match command::exec(build_and_prepare(workspace)?.args(veth))? {}
}

/// Builds veth and returns the command that starts it as root, without arguments.
pub(crate) fn build_and_prepare(workspace: &Workspace) -> Result<Command> {
    build::run(workspace, &build::Arguments { release: true })?;
    as_root(workspace, "release/veth")
}

/// The command that starts a veth below `target/` as root, without arguments.
pub(crate) fn as_root(workspace: &Workspace, veth: &str) -> Result<Command> {
    let veth = workspace.target.join(veth);
    if geteuid().is_root() {
        return Ok(workspace.command(veth));
    }
    ensure_sudo()?;
    let mut sudo = workspace.command("sudo");
    sudo.arg(veth);
    Ok(sudo)
}

/// Fails with a sentence, where `sudo` would fail with "No such file or directory".
pub(crate) fn ensure_sudo() -> Result<()> {
    ensure!(
        command::in_path("sudo").next().is_some(),
        "this needs root, and there is no sudo: start it as root, or install sudo"
    );
    Ok(())
}
