//! `cargo xtask soak`: long runs under load.

use std::{
    io::{IsTerminal as _, Write as _, stderr},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, Subcommand};
use veth_tests::soak::{self, Churn, Follow, Kill, Load, Upgrade};
use veth_user::topology::model::HookWish;

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
    Kill {
        /// How many are killed
        #[arg(long, default_value_t = 1_000)]
        count: u64,
        /// Datagrams to send at least
        #[arg(long, default_value_t = 10_000_000)]
        datagrams: u64,
        /// Datagrams a second
        #[arg(long, default_value_t = 60_000)]
        rate: u64,
        /// Where programs are attached
        #[arg(long, value_enum, default_value_t)]
        hook: HookWish,
        /// Where random numbers begin
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// A topology goes from build to build, and back, while traffic flows
    Upgrade {
        /// How many upgrades and downgrades, together
        #[arg(long, default_value_t = 200)]
        count: u64,
        /// Datagrams to send at least
        #[arg(long, default_value_t = 10_000_000)]
        datagrams: u64,
        /// Datagrams a second
        #[arg(long, default_value_t = 60_000)]
        rate: u64,
        /// Where programs are attached
        #[arg(long, value_enum, default_value_t)]
        hook: HookWish,
    },
    /// Pods come and go, and nothing is left of them
    Churn {
        /// How many
        #[arg(long, default_value_t = 10_000)]
        pods: u64,
        /// Where random numbers begin
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// How soon `veth agent` notices that a link was set down
    Follow {
        /// How often
        #[arg(long, default_value_t = 100)]
        count: u64,
        /// Pods of the switch
        #[arg(long, default_value_t = 1_000)]
        pods: usize,
    },
    /// 32 pods with mixed traffic, a pod that comes or goes every second, and upgrades
    Load {
        /// How long
        #[arg(long = "for", default_value = "1h", value_parser = humantime::parse_duration)]
        duration: Duration,
        /// Datagrams a second, all flows together
        #[arg(long, default_value_t = 20_000)]
        rate: u64,
        /// How often the programs are replaced
        #[arg(long, default_value = "1m", value_parser = humantime::parse_duration)]
        upgrade_every: Duration,
    },
}

fn main() -> ExitCode {
    let Cli { what, json } = Cli::parse();
    let report = match what {
        What::Kill { count, datagrams, rate, hook, seed } => {
            soak::kill(&Kill { count, datagrams, rate, hook, seed }, &progress)
        }
        What::Upgrade { count, datagrams, rate, hook } => {
            soak::upgrade(&Upgrade { count, datagrams, rate, hook }, &progress)
        }
        What::Churn { pods, seed } => soak::churn(&Churn { pods, seed }, &progress),
        What::Follow { count, pods } => soak::follow(&Follow { count, pods }, &progress),
        What::Load { duration, rate, upgrade_every } => {
            soak::load(&Load { duration, rate, upgrade_every }, &progress)
        }
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
