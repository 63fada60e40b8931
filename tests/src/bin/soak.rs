//! `cargo xtask soak`: long runs under load.

use std::{
    io::{IsTerminal as _, Write as _, stderr},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use veth_tests::soak::{self, Churn, Follow, Kill, Load, Upgrade};

/// Keep veth busy, kill it, upgrade it, and account for every frame.
///
/// In a throw-away host: nothing outside is touched. Exit codes: 0, everything is as promised; 1, a figure is missed;
/// 101, something failed.
#[derive(Parser)]
#[command(name = "cargo xtask soak", bin_name = "cargo xtask soak")]
struct Cli {
    #[command(subcommand)]
    what: What,

    /// Print JSON: an array of figures
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum What {
    /// Commands are killed at random moments while traffic flows
    Kill(Kill),
    /// A topology goes from build to build, and back, while traffic flows
    Upgrade(Upgrade),
    /// Pods come and go, and nothing is left of them
    Churn(Churn),
    /// How soon `veth agent` notices that a link was set down
    Follow(Follow),
    /// 32 pods with mixed traffic, a pod that comes or goes every second, and upgrades
    Load(Load),
}

fn main() -> ExitCode {
    let Cli { what, json } = Cli::parse();
    let report = match what {
        What::Kill(options) => soak::kill(&options, &progress),
        What::Upgrade(options) => soak::upgrade(&options, &progress),
        What::Churn(options) => soak::churn(&options, &progress),
        What::Follow(options) => soak::follow(&options, &progress),
        What::Load(options) => soak::load(&options, &progress),
    };
    if json {
        println!("{}", report.json());
    } else {
        print!("{report}");
    }
    if report.is_met() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How far it has come, on a terminal.
fn progress(done: u64, all: u64) {
    if stderr().is_terminal() {
        let end = if done >= all { "\n" } else { "" };
        let _unused: std::io::Result<()> = write!(stderr(), "\r{done} of {all}{end}");
    }
}
