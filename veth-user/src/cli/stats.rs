//! `veth stats`.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use futures_util::future::join_all;

use super::{
    live::Live,
    options::period,
    print, print_json,
    up::{Ended, interruptible},
};
use crate::{
    datapath::{self, pins::Pins},
    net::Netlink,
    state::{Record, Roots},
    stats::{Snapshot, render},
    topology::{self, model::LogLevel},
};

/// Show what each veth received, redirected, passed, dropped and was handed
///
/// Seen from the host: RX came from the pod and is the sum of REDIRECTED, PASSED and DROPPED; TX went to the pod.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sudo veth stats
  sudo veth stats switch --watch 500ms
  sudo veth stats --json | jq '.[].ports[] | {link, rx: .rx.packets}'")]
pub(super) struct Args {
    /// The topology [default: all]
    name: Option<String>,

    /// Show again and again, with rates, until Ctrl-C [default period: 1s]
    #[arg(long, value_name = "PERIOD", num_args = 0..=1, default_missing_value = "1s", value_parser = period)]
    watch: Option<Duration>,

    /// Print JSON: an array of topologies; with --watch one array a line
    #[arg(long)]
    json: bool,
}

pub(super) async fn main(args: Args, roots: &Roots) -> Result<ExitCode> {
    super::require_root("stats")?;
    let records = match &args.name {
        Some(name) => vec![topology::record(roots, name)?],
        None => topology::records(roots)?,
    };
    let named = args.name.is_some();
    if records.is_empty() && !args.json {
        print("nothing is up\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    match args.watch {
        None => {
            let snapshots = take(roots, &records, named, &Netlink::open()?).await?;
            if args.json { print_json(&snapshots)? } else { print(&tables(&snapshots, None, usize::MAX))? }
        }
        Some(period) => {
            let watching = watch(roots, &records, named, period, args.json);
            match interruptible(watching).await? {
                Ended::By(result) => result?,
                Ended::Signal(_) => {}
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A snapshot of each topology. Where none was named, those that cannot be read are told and left out, unless
/// that is all of them.
pub(super) async fn take(
    roots: &Roots,
    records: &[Record],
    named: bool,
    netlink: &Netlink,
) -> Result<Vec<Snapshot>> {
    let links = netlink.links().await?;
    let mut snapshots = Vec::new();
    for record in records {
        let snapshot = topology::check_layout(record)
            .and_then(|()| topology::check_place(record))
            .and_then(|()| Ok(Snapshot::take(roots, record, &links)?))
            .with_context(|| format!("read the counters of {}", record.topology.name));
        match snapshot {
            Ok(snapshot) => snapshots.push(snapshot),
            Err(error) if named || records.len() == 1 => return Err(error),
            Err(error) => log::warn!("{error:#}"),
        }
    }
    Ok(snapshots)
}

/// Shows snapshots for ever, and the programs' messages where they log any.
pub(super) async fn watch(
    roots: &Roots,
    records: &[Record],
    named: bool,
    period: Duration,
    json: bool,
) -> Result<()> {
    tokio::select! {
        result = show(roots, records, named, period, json) => result,
        result = messages(roots, records) => result,
    }
}

async fn show(roots: &Roots, records: &[Record], named: bool, period: Duration, json: bool) -> Result<()> {
    let netlink = Netlink::open()?;
    let mut live = Live::new();
    let mut ticks = tokio::time::interval(period);
    let mut earlier: Option<Vec<Snapshot>> = None;
    loop {
        ticks.tick().await;
        let snapshots = take(roots, records, named, &netlink).await?;
        if json {
            print_json(&snapshots)?;
        } else {
            live.draw(&tables(&snapshots, earlier.as_deref(), live.rows() / snapshots.len().max(1)))?;
        }
        earlier = Some(snapshots);
    }
}

/// Forwards the messages of every topology whose programs log. Never ends.
async fn messages(roots: &Roots, records: &[Record]) -> Result<()> {
    let pins: Vec<Pins> = records
        .iter()
        .filter(|record| record.topology.ebpf_log != LogLevel::Off)
        .map(|record| Pins::new(roots, record.layout_version, &record.topology.name))
        .collect();
    if !pins.is_empty() {
        // Whoever asked the programs to log wants to read it, whatever -v says.
        log::set_max_level(log::LevelFilter::Debug);
    }
    for result in join_all(pins.iter().map(datapath::log::forward)).await {
        result?;
    }
    std::future::pending().await
}

pub(super) fn tables(snapshots: &[Snapshot], earlier: Option<&[Snapshot]>, rows: usize) -> String {
    let table = |(number, snapshot)| render(snapshot, earlier.and_then(|earlier| earlier.get(number)), rows);
    snapshots.iter().enumerate().map(table).collect()
}
