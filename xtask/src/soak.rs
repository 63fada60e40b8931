//! `cargo xtask soak`: long runs under load, in a throw-away host (`tests/src/soak`).

use std::{ffi::OsString, process::Command};

use anyhow::Result;

use crate::{build::Objects, command, run::as_root, workspace::Workspace};

/// What to do: `kill`, `upgrade`, `churn`, `follow` or `load`, and its options.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Arguments {
    /// Arguments of the soak: `--help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    soak: Vec<OsString>,
}

/// How it is built.
#[derive(Clone, Copy)]
pub(crate) enum Profile {
    /// As the tests are.
    Dev,
    /// Optimised.
    Release,
}

/// Builds veth and the soak for release, and becomes the soak.
pub(crate) fn run(workspace: &Workspace, arguments: Arguments) -> Result<()> {
    let mut soak = prepare(workspace, Profile::Release)?;
    match command::exec(soak.args(arguments.soak))? {}
}

/// Builds veth and the soak. Returns the command that starts it as root, without arguments.
///
/// Packages and features are those of the tests, so that what they have built is built already. The veth can take other
/// builds of its programs: it is not the one to be released.
pub(crate) fn prepare(workspace: &Workspace, profile: Profile) -> Result<Command> {
    let mut cargo = workspace.command("cargo");
    Objects::build(workspace)?.tell(&mut cargo);
    cargo.args(["build", "--package=veth-user", "--package=veth-tests", "--features=veth-user/test-hooks"]);
    cargo.args(["--bin=veth", "--bin=soak"]);
    let folder = match profile {
        Profile::Dev => "debug",
        Profile::Release => {
            cargo.arg("--release");
            "release"
        }
    };
    command::run(&mut cargo)?;
    let veth = workspace.target.join(folder).join("veth");
    // `sudo` passes no variables on, but takes them as arguments, and so does `env`.
    let mut soak = as_root(workspace, "/usr/bin/env")?;
    let mut variable = OsString::from("VETH_BIN=");
    variable.push(veth);
    soak.arg(variable).arg(workspace.target.join(folder).join("soak"));
    Ok(soak)
}
