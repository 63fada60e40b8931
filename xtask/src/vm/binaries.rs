//! The programs that run in a guest: static, for a guest has no libraries, and optimised, for emulation is slow.

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use cargo_metadata::Message;

use super::log::Test;
use crate::{build::Objects, command, workspace::Workspace};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The binary of veth.
const VETH: &str = "veth";

/// veth and its tests.
pub(super) struct Binaries {
    /// veth itself.
    pub(super) veth: PathBuf,
    /// The test binaries by their names.
    pub(super) tests: BTreeMap<String, PathBuf>,
}

impl Binaries {
    /// Builds them.
    pub(super) fn build(workspace: &Workspace, objects: &Objects) -> Result<Self> {
        let mut cargo = workspace.command("cargo");
        cargo.args([
            "build",
            "--profile=guest",
            "--target",
            TARGET,
            "--message-format=json-render-diagnostics",
        ]);
        cargo.args(["--package=veth-user", "--package=veth-tests", "--features=veth-user/test-hooks"]);
        cargo.args(["--bin=veth", "--test=prog", "--test=net"]);
        objects.tell(&mut cargo);
        cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
        let messages = command::capture(&mut cargo)?;
        let mut tests = BTreeMap::new();
        for message in Message::parse_stream(messages.as_bytes()) {
            // Other binaries of a package come with its tests.
            if let Message::CompilerArtifact(artifact) = message.context("read what cargo built")?
                && (artifact.target.is_test() || artifact.target.name == VETH)
                && let Some(executable) = artifact.executable
            {
                tests.insert(artifact.target.name, executable.into());
            }
        }
        let veth = tests.remove(VETH).context("cargo built no veth")?;
        Ok(Self { veth, tests })
    }

    /// The tests that are in them, those that a filter leaves.
    pub(super) fn list(&self, harness: &[OsString]) -> Result<Vec<Test>> {
        let Self { veth: _, tests } = self;
        let mut list = Vec::new();
        for (binary, path) in tests {
            let mut list_tests = Command::new(path);
            // As in `init.sh`.
            list_tests.env("RUSTC_BOOTSTRAP", "1").args(["--list", "--format=terse"]).args(harness);
            let names = command::output(&mut list_tests)?;
            list.extend(
                names
                    .lines()
                    .filter_map(|line| line.strip_suffix(": test"))
                    .map(|name| Test { binary: binary.clone(), name: name.to_owned() }),
            );
        }
        Ok(list)
    }
}
