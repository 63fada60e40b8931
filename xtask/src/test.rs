//! `cargo xtask test`: the tiers, from the one that needs nothing to the one that needs other kernels.

use std::{ffi::OsString, path::Path};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use nix::unistd::geteuid;

use crate::{
    build::Objects, command, others, run::ensure_sudo, toolchain::Version, vm::Machines, workspace::Workspace,
};

/// What to test.
#[derive(Default, clap::Args)]
pub(crate) struct Arguments {
    /// One tier only; all but `vm` if none is named.
    tier: Option<Tier>,
    /// The kernels for `vm`, by series: 6.12, or 7 for the newest that starts so.
    kernels: Vec<String>,
    /// Arguments of the test binaries: a filter, `--nocapture`, …
    #[arg(last = true, value_name = "ARGUMENTS")]
    harness: Vec<OsString>,
}

/// A tier of tests.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tier {
    /// Pure logic and the eBPF object as a file, without root.
    Unit,
    /// Each eBPF program on frames made by hand and at random, and inputs that a fuzzer has kept, as root.
    Prog,
    /// Whole networks of pods, as root.
    Net,
    /// Veth with real programs of others, xdp-filter, tc and Open vSwitch, as root.
    Others,
    /// `prog` and `net` in virtual machines with the kernels of distributions, without root.
    Vm,
}

/// Runs the tests. The object is built even for the unit tests, some of which look into it.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let Arguments { tier, kernels, harness } = arguments;
    ensure!(kernels.is_empty() || *tier == Some(Tier::Vm), "kernels are for `cargo xtask test vm`");
    if *tier == Some(Tier::Vm) {
        // First what may be missing, then what takes long.
        let machines = Machines::find_or_get(workspace, kernels)?;
        return machines.test(workspace, &Objects::build(workspace)?, harness);
    }
    let objects = Objects::build(workspace)?;
    if tier.is_none_or(|tier| tier == Tier::Unit) {
        let mut cargo = workspace.command("cargo");
        objects.tell(&mut cargo);
        command::run(cargo.arg("test").arg("--").args(harness))?;
    }
    match tier {
        None => {
            privileged(workspace, &objects, &["fuzz", "prog", "net"], None, harness)?;
            match others::find_or_get(workspace) {
                Ok(root) => privileged(workspace, &objects, &["others"], Some(&root), harness),
                Err(error) => {
                    eprintln!("veth was not tested beside programs of others: {error:#}");
                    Ok(())
                }
            }
        }
        Some(Tier::Prog) => privileged(workspace, &objects, &["fuzz", "prog"], None, harness),
        Some(Tier::Net) => privileged(workspace, &objects, &["net"], None, harness),
        Some(Tier::Others) => {
            let root = others::find_or_get(workspace)?;
            privileged(workspace, &objects, &["others"], Some(&root), harness)
        }
        Some(Tier::Unit | Tier::Vm) => Ok(()),
    }
}

/// Runs integration tests as root. They start the veth that is named by `VETH_BIN`.
///
/// Both commands select the same packages and features, so that cargo unifies features alike and builds
/// `veth-user` once.
fn privileged(
    workspace: &Workspace,
    objects: &Objects,
    tests: &[&str],
    others: Option<&Path>,
    harness: &[OsString],
) -> Result<()> {
    let cargo = |verb| {
        let mut cargo = workspace.command("cargo");
        objects.tell(&mut cargo);
        cargo.arg(verb);
        cargo.args(["--package=veth-user", "--package=veth-tests", "--features=veth-user/test-hooks"]);
        cargo.args(tests.iter().map(|test| format!("--test={test}")));
        cargo
    };
    command::run(cargo("build").arg("--bin=veth"))?;
    let mut test = cargo("test");
    test.envs(others.into_iter().flat_map(|root| [others::FOLDER, others::OVS].map(|name| (name, root))));
    if !geteuid().is_root() {
        ensure_sudo()?;
        let host = Version::of(&mut workspace.command("rustc")).context("ask rustc for the host")?.host;
        test.env(runner(&host), "sudo -E");
    }
    command::run(test.env("VETH_BIN", workspace.target.join("debug/veth")).arg("--").args(harness))
}

/// The variable that tells cargo what to start the programs of a target with.
fn runner(target: &str) -> String {
    format!("CARGO_TARGET_{}_RUNNER", target.replace('-', "_").to_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runner_is_named_by_its_target() {
        assert_eq!(runner("x86_64-unknown-linux-gnu"), "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER");
    }
}
