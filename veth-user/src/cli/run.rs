//! `veth run`.

use std::{
    cell::Cell,
    io::IsTerminal as _,
    panic::{AssertUnwindSafe, resume_unwind},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use futures_util::FutureExt as _;
use serde::Serialize;

use super::{
    options::{TopologyArgs, period},
    print, print_json,
    progress::Bar,
    stats,
    up::{Ended, bring_up, interruptible, uninterrupted},
};
use crate::{
    check::{Extent, Options, PingReport, Report, TcpReport, check},
    hooks,
    net::Netlink,
    state::Roots,
    stats::{Snapshot, Source, Wanted},
    topology::{self, Outcome, Status, Topology},
};

/// Echo requests in each direction.
const PINGS: u16 = 10;

/// How long the transfer lasts.
const TRANSFER: Duration = Duration::from_secs(1);

/// Pings at the same time: few, for the round-trip times are shown.
const THREADS: usize = 4;

/// How often the table is drawn.
const PERIOD: Duration = Duration::from_secs(1);

/// Make a path, check it with real traffic, watch it, and remove it again
///
/// Does what `up` does, pings both ways, makes a TCP transfer, prints the round-trip times and the rate, and
/// shows a live table of the counters until Ctrl-C or for the time given with --for. Without a terminal it
/// prints the final table once. Removes everything it made, however it ends; after SIGKILL, `veth down` does.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sudo veth run
  sudo veth run --for 10s
  sudo veth run --pods 8 --redirect host --json")]
pub(super) struct Args {
    #[command(flatten)]
    topology: TopologyArgs,

    /// Watch for this long and end [default: until Ctrl-C; at once without a terminal]
    #[arg(long = "for", value_name = "TIME", value_parser = period)]
    duration: Option<Duration>,

    /// Print the result as JSON, once, at the end
    #[arg(long)]
    json: bool,
}

/// What `run --json` prints.
#[derive(Debug, Serialize)]
struct Output<'a> {
    check: Checked<'a>,
    stats: Vec<Snapshot>,
}

/// What it prints of the check: there is one path.
#[derive(Debug, Serialize)]
struct Checked<'a> {
    pings: &'a [PingReport],
    tcp: Option<&'a TcpReport>,
}

pub(super) async fn main(args: Args, roots: &Roots) -> Result<ExitCode> {
    let topology = args.topology.topology()?;
    super::privilege::require("run")?;
    let netlink = Netlink::open()?;
    if let Some(record) = roots.load(&topology.name)?
        && let Status::Up | Status::Drifted(_) | Status::Elsewhere =
            topology::observe(roots, &record, &netlink, &netlink.links().await?).await?
    {
        let name = topology.name;
        bail!(
            "{name} is up already, and `run` would remove it at its end; watch it with `veth stats {name} --watch`"
        );
    }
    let (begun, passed) = (Cell::new(false), Cell::new(true));
    let body = interruptible(body(&args, roots, &topology, &begun, &passed));
    let ended = AssertUnwindSafe(body).catch_unwind().await;
    let removed = if begun.get() {
        uninterrupted(topology::down(roots, &topology.name, &Bar::new()))
            .await?
            .with_context(|| format!("take down the topology {}", topology.name))
    } else {
        Ok(false)
    };
    let result = match ended {
        // A signal is the usual way to end it.
        Ok(Ok(Ended::By(Ok(())) | Ended::Signal(_))) => Ok(()),
        Ok(Ok(Ended::By(Err(error))) | Err(error)) => Err(error),
        Err(panic) => {
            if let Err(error) = removed {
                log::error!("{error:#}");
            }
            resume_unwind(panic)
        }
    };
    match (result, removed) {
        (Ok(()), Ok(_)) => {
            Ok(if passed.get() { ExitCode::SUCCESS } else { ExitCode::from(super::CHECK_FAILED) })
        }
        (Ok(()), Err(error)) | (Err(error), Ok(_)) => Err(error),
        (Err(error), Err(second)) => {
            log::error!("{second:#}");
            Err(error)
        }
    }
}

async fn body(
    args: &Args,
    roots: &Roots,
    topology: &Topology,
    begun: &Cell<bool>,
    passed: &Cell<bool>,
) -> Result<()> {
    let Args { topology: options, duration, json } = args;
    let (duration, json) = (*duration, *json);
    if bring_up(options, roots, topology, begun).await? != Outcome::Made {
        // Not ours to remove.
        begun.set(false);
        bail!("{} was there before, or was brought up by somebody else meanwhile", topology.name);
    }
    let report = {
        let topology = topology.clone();
        let options =
            Options { extent: Extent::Ring, pings: PINGS, transfer: TRANSFER, seed: 0, threads: THREADS };
        tokio::task::spawn_blocking(move || check(&topology, &options, |_| {}))
            .await
            .context("check the path")?
            .context("check the path")?
    };
    passed.set(report.passed());
    hooks::step();
    if !json {
        print(&describe(&report))?;
    }
    let mut source = Source::open(roots, Wanted::Topology(topology.name.clone()))?;
    let watching = async {
        if json || !std::io::stdout().is_terminal() {
            tokio::time::sleep(duration.unwrap_or_default()).await;
            let stats = stats::readable(source.take().await?)?;
            if json {
                let check = Checked { pings: &report.pings, tcp: report.transfers().next() };
                print_json(&Output { check, stats })
            } else {
                print(&stats::tables(&stats, None, None, usize::MAX))
            }
        } else {
            let watching = stats::watch(&mut source, PERIOD);
            match duration {
                Some(duration) => tokio::time::timeout(duration, watching).await.unwrap_or(Ok(())),
                None => watching.await,
            }
        }
    };
    watching.await?;
    hooks::step();
    Ok(())
}

fn describe(report: &Report) -> String {
    let microseconds =
        |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"));
    let mut lines: Vec<String> = report
        .pings
        .iter()
        .map(|ping| {
            let reason = ping.error.as_ref().map(|error| format!(" ({error})")).unwrap_or_default();
            format!(
                "ping {} -> {} ({}): {}/{} received, round trip min/median/max {}/{}/{} us{reason}",
                ping.from,
                ping.to,
                ping.address,
                ping.received,
                ping.sent,
                microseconds(ping.min_us),
                microseconds(ping.median_us),
                microseconds(ping.max_us),
            )
        })
        .collect();
    lines.extend(report.transfers().map(|tcp| {
        let TcpReport { from, to, address, bytes: _, seconds, bits_per_second, error } = tcp;
        let what = error
            .clone()
            .unwrap_or_else(|| format!("{:.1} Gbit/s over {seconds:.1} s", bits_per_second / 1e9));
        format!("tcp  {from} -> {to} ({address}): {what}")
    }));
    lines.join("\n") + "\n\n"
}
