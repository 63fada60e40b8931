//! `cargo xtask ci`: what decides whether a change is good, the same here and on a server.

use std::{ffi::OsString, path::Path, time::Instant};

use anyhow::{Result, ensure};

use crate::{build::Objects, command, lint, run, soak, test, vm::Machines, workspace::Workspace};

/// The command by which `README.md` tells readers to test.
const TEST: &str = "cargo xtask test";

/// The kernel that differs most from those that machines run: the oldest that is supported. Newer ones take twice as long
/// in a guest, for they run more of the tests; they are for `cargo xtask test vm`.
const KERNELS: [&str; 1] = ["5.10"];

/// The short form of what `cargo xtask soak load` does for an hour.
const LOAD: [&str; 5] = ["load", "--for", "2m", "--upgrade-every", "15s"];

/// Tests of what veth does in user space, and those that send more than a guest gets through.
const NOT_IN_GUESTS: [&str; 21] = [
    "agent::",
    "attack::",
    "bench::",
    "differential::",
    "doctor::",
    "edge::",
    "errors::",
    "flood::",
    "forwarding::",
    "kill::",
    "lifecycle::",
    "limits::",
    "metrics::",
    "privilege::",
    "random::",
    "soak::",
    "stale::",
    "stats::",
    "topology::",
    "upgrade::",
    "why::",
];

/// Lints, runs the tests just as a reader of `README.md` would, lets veth run for two seconds, keeps it busy for two minutes,
/// and then tests on other kernels if virtual machines can be had.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    timed("lint", || lint::run(workspace))?;
    if workspace.root.join("README.md").exists() {
        let readme = workspace.read(Path::new("README.md"))?;
        ensure!(readme.lines().any(|line| line.trim() == TEST), "README.md has no line `{TEST}`");
    }
    timed(TEST, || test::run(workspace, &test::Arguments::default()))?;
    // The one that the tests have built: for release it is compiled below, for guests.
    command::run(run::as_root(workspace, "debug/veth")?.args(["run", "--for", "2s"]))?;
    timed("soak", || command::run(soak::prepare(workspace, soak::Profile::Dev)?.args(LOAD)))?;
    let machines = match Machines::find_or_get(workspace, &KERNELS.map(str::to_owned)) {
        Ok(machines) => machines,
        Err(error) => {
            eprintln!("no other kernels were tested: {error:#}");
            return Ok(());
        }
    };
    eprintln!(
        "on other kernels only the datapath is tested; emulated, everything else takes several times as long, and says \
         more of veth than of a kernel: `{TEST} vm` runs all of it, on more kernels"
    );
    let harness = NOT_IN_GUESTS.into_iter().flat_map(|part| ["--skip", part]).map(OsString::from);
    let harness: Vec<OsString> = harness.collect();
    timed("other kernels", || machines.test(workspace, &Objects::build(workspace)?, &harness))
}

/// Does a part, and says how long it took.
fn timed(part: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    let result = work();
    eprintln!("{part} took {} s", start.elapsed().as_secs());
    result
}
