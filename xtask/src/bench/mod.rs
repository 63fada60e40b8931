//! `cargo xtask bench`: veth measured beside its alternatives, in the same run and on the same machine.

mod contestant;
mod host;
mod kernel;
mod process;
mod report;
mod up;
mod veth;

use anyhow::Result;
use clap::Subcommand;

use crate::workspace::Workspace;

/// What to measure.
#[derive(Subcommand)]
pub(crate) enum Benchmark {
    /// How long a topology takes to come and to go: veth, iproute2, the reference CNI plugin, the bare kernel.
    Up(up::Arguments),
    /// How many nanoseconds each program takes, beside one that does nothing: `veth bench prog`.
    Prog(veth::Arguments),
    /// What counting, watching and reading counters cost, beside the same without: `veth bench observe`.
    Observe(veth::Arguments),
}

/// Measures it.
pub(crate) fn run(workspace: &Workspace, benchmark: Benchmark) -> Result<()> {
    match benchmark {
        Benchmark::Up(arguments) => up::run(workspace, arguments),
        Benchmark::Prog(arguments) => veth::run(workspace, "prog", &arguments),
        Benchmark::Observe(arguments) => veth::run(workspace, "observe", &arguments),
    }
}
