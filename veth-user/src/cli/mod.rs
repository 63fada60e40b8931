//! The command line: one file a subcommand, which parses its arguments, calls the library and prints.

mod agent;
mod bench;
mod capture;
mod check;
mod doctor;
mod down;
mod drops;
mod exec;
mod init;
mod live;
mod ls;
mod metrics;
mod options;
mod plan;
pub mod privilege;
mod progress;
mod run;
mod show;
mod stats;
mod top;
mod trace;
mod up;
mod upgrade;
mod why;

use std::{
    fs::OpenOptions,
    io::{self, IsTerminal as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::{
    net,
    state::{DEFAULT_PIN_DIR, DEFAULT_STATE_DIR, Roots},
    topology::{self, file::Diagnostics},
};

/// What the exit codes mean, for the end of every help text.
const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    could not be done; the reason is on standard error, and nothing half-done is left
  2    the command line cannot be understood
  3    `run`, `check --live`, `bench`: it is up, but a ping, a transfer or a sample failed
  4, 5   `bench compare`: a path is slower than it was; it cannot be told
  10, 11  `doctor`: something could be better or cannot be seen; something does not work
  101  a bug in veth (`up` and `run` have cleaned up all the same)
  126, 127, or the command's own  `exec`: could not be started, was not found, or how it ended
  129, 130, 143  ended by SIGHUP, Ctrl-C or SIGTERM: `up` after undoing what it had done, but for programs that took the
       place of others; `upgrade` after finishing what it had begun. `run`, `agent`, `metrics` and `stats --watch` are
       meant to be ended so, and end as if by themselves; `down` goes on to its end";

/// The exit code when something is up and its traffic does not arrive.
const CHECK_FAILED: u8 = 3;

/// The heading of options that every subcommand has.
const EVERYWHERE: &str = "Options of every command";

/// Redirect, count and watch frames between network namespaces, by eBPF on veth pairs.
///
/// A pod is a network namespace. Its veth pair's host end carries a TC program that hands each frame straight
/// to the pod it is for, and counts it. What the program does not know goes on to the kernel's own bridge.
#[derive(Debug, Parser)]
#[command(
    name = "veth",
    version,
    after_help = "Examples:
  sudo veth run --for 10s       two pods, checked, watched, removed again
  sudo veth up --pods 16        sixteen pods on one switch, until `veth down`
  veth init link                a file to begin with, for `veth up -f link.toml`
  sudo veth exec pod1 -- ping -c3 10.200.0.2
  sudo veth stats --watch"
)]
struct Cli {
    /// Folder of state and locks
    #[arg(long, global = true, help_heading = EVERYWHERE, env = "VETH_STATE_DIR", value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    state_dir: PathBuf,

    /// Folder of pinned programs, maps and links, on a bpffs
    #[arg(long, global = true, help_heading = EVERYWHERE, env = "VETH_PIN_DIR", value_name = "DIR", default_value = DEFAULT_PIN_DIR)]
    pin_dir: PathBuf,

    /// Say more: -v what is done, -vv also the whole log of the verifier
    #[arg(short, long, global = true, help_heading = EVERYWHERE, action = clap::ArgAction::Count)]
    verbose: u8,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Init(init::Args),
    Check(check::Args),
    Plan(plan::Args),
    Up(up::Args),
    Upgrade(upgrade::Args),
    Down(down::Args),
    Ls(ls::Args),
    Show(show::Args),
    Exec(exec::Args),
    Agent(agent::Args),
    Stats(stats::Args),
    Top(top::Args),
    Metrics(metrics::Args),
    Drops(drops::Args),
    Why(why::Args),
    Trace(trace::Args),
    Capture(capture::Args),
    Bench(Box<bench::Args>),
    Doctor(doctor::Args),
}

/// Parses the arguments and does what they say.
#[must_use]
pub fn main() -> ExitCode {
    let Cli { state_dir, pin_dir, verbose, command } = parse();
    let level = match verbose {
        0 => log::LevelFilter::Warn,
        1 => log::LevelFilter::Info,
        _ => log::LevelFilter::Debug,
    };
    env_logger::Builder::new()
        .filter_level(level)
        .filter_module("netlink_packet_route", log::LevelFilter::Error)
        .format_timestamp(None)
        .format_target(false)
        .init();
    let roots = Roots { state: state_dir, pins: pin_dir };
    let result = match command {
        // Becomes another process: no runtime, no threads.
        Command::Exec(args) => exec::main(&args, &roots),
        Command::Show(args) => show::main(&args, &roots),
        // Moves to another host first, before there are threads.
        Command::Bench(args) => bench::main(*args),
        Command::Run(args) => block_on(run::main(args, &roots)).flatten(),
        Command::Init(args) => init::main(&args),
        Command::Check(args) => block_on(check::main(args, &roots)).flatten(),
        Command::Plan(args) => block_on(plan::main(args, &roots)).flatten(),
        Command::Up(args) => block_on(up::main(args, &roots)).flatten(),
        Command::Upgrade(args) => block_on(upgrade::main(args, &roots)).flatten(),
        Command::Down(args) => block_on(down::main(args, &roots)).flatten(),
        Command::Ls(args) => block_on(ls::main(args, &roots)).flatten(),
        Command::Agent(args) => block_on(agent::main(args, &roots)).flatten(),
        Command::Stats(args) => block_on(stats::main(args, &roots)).flatten(),
        Command::Metrics(args) => block_on(metrics::main(args, &roots)).flatten(),
        Command::Top(args) => block_on(top::main(args, &roots)).flatten(),
        Command::Drops(args) => block_on(drops::main(args, &roots)).flatten(),
        Command::Why(args) => block_on(why::main(args, &roots)).flatten(),
        Command::Trace(args) => block_on(trace::main(args, &roots)).flatten(),
        Command::Capture(args) => block_on(capture::main(args, &roots)).flatten(),
        Command::Doctor(args) => block_on(doctor::main(args, &roots)).flatten(),
    };
    result.unwrap_or_else(|error| {
        if is_broken_pipe(&error) {
            // Whoever read our output has seen enough.
            return ExitCode::SUCCESS;
        }
        let _unused: io::Result<()> = match error.downcast_ref::<Diagnostics>() {
            Some(diagnostics) if io::stderr().is_terminal() => {
                writeln!(io::stderr(), "{}", diagnostics.styled())
            }
            Some(diagnostics) => writeln!(io::stderr(), "{diagnostics}"),
            None => writeln!(io::stderr(), "veth: {error:#}{}", advice(&error).unwrap_or_default()),
        };
        ExitCode::FAILURE
    })
}

/// The arguments, or the end of the process with help or a message.
fn parse() -> Cli {
    match Cli::from_arg_matches(&command().get_matches()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    }
}

/// The command line with the exit codes at the end of every help text.
fn command() -> clap::Command {
    let with_exit_codes = |command: clap::Command| {
        let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        command.after_help(format!("{examples}\n\n{EXIT_CODES}"))
    };
    with_exit_codes(Cli::command()).mut_subcommands(with_exit_codes)
}

fn block_on<T>(command: impl Future<Output = T>) -> Result<T> {
    /// What the runtime opens, or else panics.
    const DESCRIPTORS: usize = 8;
    net::check_files(DESCRIPTORS, "start the asynchronous runtime")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the asynchronous runtime")?;
    let result = runtime.block_on(command);
    // A check that was interrupted may still wait for its timeout.
    runtime.shutdown_background();
    Ok(result)
}

/// What to do where a limit of the machine was reached, whatever was being done.
fn advice(error: &anyhow::Error) -> Option<&'static str> {
    match errno(error.as_ref())? {
        libc::EMFILE => Some("; this process may open more files after `ulimit -n 1024`"),
        libc::ENFILE => Some("; the machine may open more files after `sysctl fs.file-max=N`"),
        libc::ENOMEM => Some("; free memory, or raise the limit of the cgroup or of `ulimit -v`"),
        libc::ENOSPC => Some(
            "; make room where it is to be written; for namespaces, `sysctl user.max_net_namespaces=N` does",
        ),
        libc::EROFS => {
            Some("; it must be mounted so that it can be written: `mount -o remount,rw MOUNTPOINT`")
        }
        _ => None,
    }
}

/// What the system answered, at the bottom of an error or of one of several that are told together.
fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let here = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    let among = || match error.downcast_ref() {
        Some(topology::Error::Teardown(errors)) => errors.iter().find_map(|error| errno(error)),
        _ => None,
    };
    here.or_else(among).or_else(|| errno(error.source()?))
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// How a file is opened that somebody asked for. Only whoever asked may change it, whatever the umask leaves open.
fn output() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o644);
    options
}

/// Prints a value as JSON on a line of its own.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string(value).context("write JSON")?;
    print(&format!("{text}\n"))
}

/// Prints text. Unlike `print!`, a reader that has gone is an error and not a panic.
fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).context("write to standard output")?;
    out.flush().context("write to standard output")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_subcommand_has_a_purpose_and_examples() {
        for command in command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(after.contains("Examples:") && after.contains("Exit codes:"), "{}", command.get_name());
        }
    }
}
