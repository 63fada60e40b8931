//! `cargo xtask bench up`: how long a topology takes to come and to go.

use std::{
    env,
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::value_parser;
use indicatif::{ProgressBar, ProgressStyle};
use nix::unistd::geteuid;
use serde_json::json;

use super::{
    contestant::{Contestant, Veth},
    host::{self, Machine},
    kernel, process,
    report::{self, Results, TARGET_PODS, Target},
};
use crate::{build, command, others, run::ensure_sudo, workspace::Workspace};

/// What `--quick` means.
const QUICK_PODS: u16 = 100;
const QUICK_ROUNDS: u16 = 1;

/// How often the progress bar moves.
const TICK: Duration = Duration::from_millis(300);

/// How much to measure.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Pods on the switch (2 to 1000).
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = value_parser!(u16).range(2..=1000))]
    pods: u16,
    /// Pods for the CNI plugin (1 to 1000), which takes about a tenth of a second for each.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = value_parser!(u16).range(1..=1000))]
    cni_pods: u16,
    /// Rounds; all contestants take their turn in each.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = value_parser!(u16).range(1..))]
    rounds: u16,
    /// 100 pods, one round; targets are not judged.
    #[arg(long, conflicts_with_all = ["pods", "rounds", "check"])]
    quick: bool,
    /// Write all measurements there as JSON; `-` is standard output, and the table goes to standard error then.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fail if a target is missed.
    #[arg(long)]
    check: bool,
    /// The veth to measure; what is said to the process that runs as root.
    #[arg(long, hide = true, value_name = "FILE")]
    built: Option<PathBuf>,
    /// The folder of CNI plugins, said to the same.
    #[arg(long, hide = true, value_name = "FOLDER")]
    plugins: Option<PathBuf>,
}

/// Builds and gets what is needed without privilege, and goes on as root.
pub(super) fn run(workspace: &Workspace, arguments: Arguments) -> Result<()> {
    ensure!(
        !arguments.check || usize::from(arguments.pods) == TARGET_PODS,
        "targets are for {TARGET_PODS} pods, so --check cannot be with --pods {}",
        arguments.pods
    );
    if let Some(file) = &arguments.json {
        // Now, by the user who will want to read it, and before minutes of work.
        let _unused = create(file)?;
    }
    match arguments.built {
        Some(_) => in_host(arguments),
        None => match command::exec(&mut prepare(workspace)?)? {},
    }
}

/// The command that does the same as root, told what was prepared.
fn prepare(workspace: &Workspace) -> Result<Command> {
    build::run(workspace, &build::Arguments { release: true })?;
    let plugins = others::find_or_get_cni(workspace)
        .inspect_err(|error| eprintln!("the CNI plugin is not measured: {error:#}"));
    let own = env::current_exe().context("find this program")?;
    let mut command = if geteuid().is_root() {
        Command::new(own)
    } else {
        ensure_sudo()?;
        let mut sudo = Command::new("sudo");
        // Root's `PATH` may have no cargo, which is asked for the workspace.
        sudo.arg("env").args(env::var_os("CARGO").map(|cargo| {
            let mut assignment = std::ffi::OsString::from("CARGO=");
            assignment.push(cargo);
            assignment
        }));
        sudo.arg(own);
        sudo
    };
    command.args(env::args_os().skip(1)).arg("--built").arg(workspace.target.join("release/veth"));
    if let Ok(plugins) = plugins {
        command.arg("--plugins").arg(plugins);
    }
    Ok(command)
}

/// Measures in a throw-away host.
fn in_host(arguments: Arguments) -> Result<()> {
    let Arguments { pods, cni_pods, rounds, quick, json, check, built, plugins } = arguments;
    let (pods, rounds) = if quick { (QUICK_PODS, QUICK_ROUNDS) } else { (pods, rounds) };
    let pods = usize::from(pods);
    let veth = Veth { program: built.context("there is no veth to measure")? };
    // Before the host is entered, where paths may lead elsewhere.
    let json = json.map(|file| create(&file)).transpose()?;
    let (contestants, skipped) = contestants(veth, plugins);
    let machine = Machine::now()?;
    if machine.is_busy() {
        eprintln!("the machine is {} % busy with something else: times will be too long", machine.busy);
    }
    process::listen()?;
    host::enter()?;
    kernel::settle()?;
    let results = measure(&contestants, pods, cni_pods.into(), rounds)?;
    let least = process::least_memory()?;

    let find = |wanted: fn(&Contestant) -> bool| {
        contestants.iter().position(wanted).and_then(|index| results.get(index))
    };
    let one = find(|contestant| matches!(contestant, Contestant::Veth(_)));
    let four = find(|contestant| matches!(contestant, Contestant::VethSwitches(_)));
    let floor = (
        find(|contestant| *contestant == Contestant::Kernel),
        find(|contestant| *contestant == Contestant::KernelSwitches),
    );
    let targets = if pods == TARGET_PODS { report::targets(one, four) } else { Vec::new() };
    let mut lines = vec![
        format!("{}\n", report::table(&results, least)),
        "Medians (least–most) of rounds. gone: from the start of down until the kernel has removed everything. peak \
         memory: of the largest process."
            .to_owned(),
    ];
    let Machine { kernel, cpus, busy } = &machine;
    lines.push(format!("Linux {kernel}, {cpus} CPUs, {busy} % busy before."));
    lines.extend(
        results
            .iter()
            .filter(|result| result.pods < pods)
            .map(|result| format!("{}: only {} pods, so compare it per pod", result.name, result.pods)),
    );
    lines.extend(report::looks(&results));
    lines.extend(report::ratios(one, four).map(|(up, down)| {
        format!("four switches, four times the pods: up {up:.2} ×, down {down:.2} × the time")
    }));
    lines.extend(
        report::ratios(floor.0, floor.1)
            .map(|(up, _)| format!("the kernel's own pairs, four times as many: {up:.2} × the time")),
    );
    lines.extend(skipped.iter().map(|what| format!("not measured: {what}")));
    if targets.is_empty() {
        lines.push(format!("targets are for {TARGET_PODS} pods and are not judged"));
    } else {
        lines.push(String::new());
        lines.extend(targets.iter().map(ToString::to_string));
    }
    let text = lines.join("\n");
    let Some(json) = json else {
        println!("{text}");
        return verdict(check, &targets);
    };
    let value = json!({
        "kernel": kernel,
        "cpus": cpus,
        "busy_percent": busy,
        "pods": pods,
        "least_peak_bytes": least,
        "contestants": results.iter().map(Results::json).collect::<Vec<_>>(),
        "skipped": skipped,
        "targets": targets.iter().map(Target::json).collect::<Vec<_>>(),
    });
    match json {
        Json::Output => {
            eprintln!("{text}");
            println!("{value}");
        }
        Json::File(mut file) => {
            println!("{text}");
            writeln!(file, "{value}").context("write JSON")?;
        }
    }
    verdict(check, &targets)
}

/// Where JSON goes.
enum Json {
    Output,
    File(File),
}

fn create(path: &Path) -> Result<Json> {
    if path == Path::new("-") {
        return Ok(Json::Output);
    }
    File::create(path).map(Json::File).with_context(|| format!("create {}", path.display()))
}

/// Who can be measured, and why others cannot.
fn contestants(veth: Veth, plugins: Option<PathBuf>) -> (Vec<Contestant>, Vec<&'static str>) {
    let mut contestants = vec![Contestant::Veth(veth.clone()), Contestant::VethSwitches(veth)];
    let mut skipped = Vec::new();
    let missing = |program| command::in_path(program).next().is_none();
    if missing("ip") || missing("nsenter") {
        skipped.push("iproute2 scripts and the CNI plugin, for want of `ip` or `nsenter`");
    } else {
        contestants.push(Contestant::Iproute);
        match plugins {
            Some(plugins) => contestants.push(Contestant::Cni(plugins)),
            None => skipped.push("the CNI plugin, which could not be had"),
        }
    }
    contestants.extend([Contestant::Kernel, Contestant::KernelSwitches]);
    (contestants, skipped)
}

/// Lets everybody take their turn in each round. Each round begins with another, so that none always comes after
/// the same.
fn measure(contestants: &[Contestant], pods: usize, cni_pods: usize, rounds: u16) -> Result<Vec<Results>> {
    let mut results: Vec<Results> = contestants
        .iter()
        .map(|contestant| Results {
            name: contestant.name(),
            pods: contestant.pods(pods, cni_pods),
            samples: Vec::new(),
        })
        .collect();
    let bar = ProgressBar::new(u64::from(rounds) * u64::try_from(contestants.len())?);
    bar.set_style(
        ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {wide_msg}").context("draw progress")?,
    );
    bar.enable_steady_tick(TICK);
    for round in 0..usize::from(rounds) {
        for turn in 0..contestants.len() {
            let index = (round + turn) % contestants.len();
            let Results { name, pods, samples } = &mut results[index];
            bar.set_message(format!("round {} of {rounds}: {name}, {pods} pods", round + 1));
            samples.push(contestants[index].measure(*pods)?);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(results)
}

fn verdict(check: bool, targets: &[Target]) -> Result<()> {
    let missed = targets.iter().filter(|target| !target.met()).count();
    ensure!(!check || missed == 0, "{missed} of {} targets missed or not measured", targets.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn arguments_that_contradict_each_other() {
        let parse = |arguments: &str| Cli::try_parse_from(std::iter::once("up").chain(arguments.split(' ')));
        assert!(parse("--quick --json -").is_ok_and(|cli| cli.arguments.quick));
        for wrong in ["--quick --pods 3", "--quick --check", "--pods 1001", "--rounds 0"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
