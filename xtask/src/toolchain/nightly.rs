//! rustup's nightly, with which cargo can build `core` from source.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::Result;

use super::{
    compiler::{self, Compiler, Core},
    is_installed,
};
use crate::{command, workspace::Workspace};

/// How long rustup may take to fetch what is missing. Without a network it gives up sooner.
const PATIENCE: Duration = Duration::from_mins(1);

/// The start of a command that runs in nightly. It never installs nightly by accident.
pub(super) fn run(workspace: &Workspace) -> Command {
    let mut rustup = workspace.command("rustup");
    rustup.env("RUSTUP_AUTO_INSTALL", "0").args(["run", "nightly"]);
    rustup
}

/// Nightly, if it is installed with the sources of `core`.
pub(super) fn find(workspace: &Workspace) -> Result<Option<Compiler>> {
    let source = "lib/rustlib/src/rust/library/core/Cargo.toml";
    installed(workspace)
        .filter(|sysroot| sysroot.join(source).exists())
        .map(|sysroot| Compiler::new(Core::Source, sysroot))
        .transpose()
}

/// Nightly, after rustup has installed what is missing of it. rustup does this in its own folder, in one
/// transaction, and touches no other toolchain.
pub(super) fn get(workspace: &Workspace) -> Result<Option<Compiler>> {
    if !is_installed("rustup") || find(workspace)?.is_some() {
        return Ok(None);
    }
    let mut rustup = workspace.command("rustup");
    if installed(workspace).is_some() {
        rustup.args(["component", "add", "rust-src", "--toolchain", "nightly"]);
    } else {
        rustup.args(["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"]);
        rustup.arg("--no-self-update");
    }
    command::run_within(&mut rustup, PATIENCE)?;
    find(workspace)
}

/// The folder of nightly. An error means that rustup or nightly is not there.
fn installed(workspace: &Workspace) -> Option<PathBuf> {
    compiler::sysroot(run(workspace).arg("rustc")).ok()
}
