//! `cargo xtask ci`: what decides whether a change is good, the same here and on a server.

use std::{ffi::OsString, path::Path, time::Instant};

use anyhow::{Result, ensure};

use crate::{build, command, lint, run, test, vm::Machines, workspace::Workspace};

/// The command by which `README.md` tells readers to test.
const TEST: &str = "cargo xtask test";

/// The kernel that differs most from those that machines run: the oldest that is supported. Newer ones take twice as long
/// in a guest, for they run more of the tests; they are for `cargo xtask test vm`.
const KERNELS: [&str; 1] = ["5.10"];

/// Tests of what veth does in user space.
const USER_SPACE: [&str; 12] = [
    "bench::",
    "doctor::",
    "edge::",
    "errors::",
    "forwarding::",
    "kill::",
    "lifecycle::",
    "metrics::",
    "random::",
    "stats::",
    "topology::",
    "why::",
];

/// Lints, runs the tests just as a reader of `README.md` would, lets veth run for two seconds, and then tests on
/// other kernels if virtual machines can be had.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    lint::run(workspace)?;
    if workspace.root.join("README.md").exists() {
        let readme = workspace.read(Path::new("README.md"))?;
        ensure!(readme.lines().any(|line| line.trim() == TEST), "README.md has no line `{TEST}`");
    }
    test::run(workspace, &test::Arguments::default())?;
    // The one that the tests have built: for release it is compiled below, for guests.
    command::run(run::as_root(workspace, "debug/veth")?.args(["run", "--for", "2s"]))?;
    let machines = match Machines::find_or_get(workspace, &KERNELS.map(str::to_owned)) {
        Ok(machines) => machines,
        Err(error) => {
            eprintln!("no other kernels were tested: {error:#}");
            return Ok(());
        }
    };
    let start = Instant::now();
    eprintln!(
        "on other kernels only the datapath is tested; emulated, everything else takes several times as long, and says \
         more of veth than of a kernel: `{TEST} vm` runs all of it, on more kernels"
    );
    let harness = USER_SPACE.into_iter().flat_map(|part| ["--skip", part]).map(OsString::from);
    let harness: Vec<OsString> = harness.collect();
    let result = machines.test(workspace, &build::ebpf(workspace)?, &harness);
    eprintln!("`{TEST} vm` took {} s", start.elapsed().as_secs());
    result
}
