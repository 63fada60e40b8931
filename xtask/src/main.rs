//! The project's own tasks: `cargo xtask <task>`, one module each.

mod apt;
mod bench;
mod build;
mod ci;
mod command;
mod fuzz;
mod lint;
mod others;
mod run;
mod setup;
mod soak;
mod test;
mod toolchain;
mod vm;
mod workspace;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Builds, runs, tests and checks veth.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find a BPF toolchain, or get one.
    Setup,
    /// Build the eBPF programs.
    BuildEbpf,
    /// Build veth with its eBPF programs inside.
    Build(build::Arguments),
    /// Build veth for release and run it as root.
    Run(run::Arguments),
    /// Run the tests: those of the programs and of the network as root.
    Test(test::Arguments),
    /// Measure veth beside its alternatives, as root, in a throw-away host.
    #[command(subcommand)]
    Bench(bench::Benchmark),
    /// Keep veth busy, kill it, upgrade it, and account for every frame, as root, in a throw-away host.
    Soak(soak::Arguments),
    /// Feed what reads files and frames with what nobody would write.
    Fuzz(fuzz::Arguments),
    /// Check format, code, documents, spelling and licences.
    Lint,
    /// Do all that decides whether a change is good: lint, test, a short run, two busy minutes, another kernel.
    Ci,
}

fn main() -> Result<()> {
    let Cli { task } = Cli::parse();
    let workspace = Workspace::find()?;
    match task {
        Task::Setup => setup::run(&workspace),
        Task::BuildEbpf => build::ebpf(&workspace).map(drop),
        Task::Build(arguments) => build::run(&workspace, &arguments),
        Task::Run(arguments) => run::run(&workspace, arguments),
        Task::Test(arguments) => test::run(&workspace, &arguments),
        Task::Bench(benchmark) => bench::run(&workspace, benchmark),
        Task::Soak(arguments) => soak::run(&workspace, arguments),
        Task::Fuzz(arguments) => fuzz::run(&workspace, &arguments),
        Task::Lint => lint::run(&workspace),
        Task::Ci => ci::run(&workspace),
    }
}
