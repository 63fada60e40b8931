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
    state::Roots,
    stats::{By, Snapshot, Source, Wanted, by, csv, render, source::Read},
    text::with_causes,
    topology::model::LogLevel,
};

/// Show what each veth received, redirected, passed, dropped and was handed
///
/// Seen from the host: RX came from the pod and is the sum of REDIRECTED, PASSED and DROPPED; TX went to the pod.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sudo veth stats
  sudo veth stats switch --watch 500ms
  sudo veth stats switch/pod7 --by protocol
  sudo veth stats --watch --csv > counters.csv
  sudo veth stats --json | jq '.[].ports[] | {link, rx: .rx.packets}'")]
pub(super) struct Args {
    /// The topology, the pod, or TOPOLOGY/POD [default: all]
    name: Option<String>,

    /// Split what came in
    #[arg(long, value_enum, conflicts_with = "json")]
    by: Option<By>,

    /// Show again and again, with rates, until Ctrl-C [default period: 1s]
    #[arg(long, value_name = "PERIOD", num_args = 0..=1, default_missing_value = "1s", value_parser = period)]
    watch: Option<Duration>,

    /// Print JSON, with every way to split: an array of topologies; with --watch one array a line
    #[arg(long)]
    json: bool,

    /// Print CSV: a line for each port, or with --by for each part of it
    #[arg(long, conflicts_with = "json")]
    csv: bool,
}

/// How snapshots are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Table(Option<By>),
    Json,
    Csv(Option<By>),
}

pub(super) async fn main(args: Args, roots: &Roots) -> Result<ExitCode> {
    super::privilege::require("stats")?;
    let Args { name, by, watch, json, csv } = args;
    let wanted = match &name {
        Some(name) => Wanted::named(roots, name)?,
        None => Wanted::All,
    };
    let format = match (json, csv) {
        (true, _) => Format::Json,
        (false, true) => Format::Csv(by),
        (false, false) => Format::Table(by),
    };
    let mut source = Source::open(roots, wanted)?;
    if matches!(format, Format::Table(_)) && watch.is_none() && source.records()?.next().is_none() {
        print("nothing is up\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    match watch {
        None => {
            let snapshots = readable(source.take().await?)?;
            match format {
                Format::Table(by) => print(&tables(&snapshots, None, by, usize::MAX))?,
                Format::Json => print_json(&snapshots)?,
                Format::Csv(by) => print(&(csv::heading(by)? + &rows(&snapshots, by)?))?,
            }
        }
        Some(period) => match interruptible(show(&mut source, period, format)).await? {
            Ended::By(result) => result?,
            Ended::Signal(_) => {}
        },
    }
    Ok(ExitCode::SUCCESS)
}

/// What could be read. Those that could not are told, unless that is all of them.
pub(super) fn readable(read: Vec<Read>) -> Result<Vec<Snapshot>> {
    let alone = read.len() == 1;
    let mut snapshots = Vec::new();
    for (topology, result) in read {
        match result {
            Ok(snapshot) => snapshots.push(snapshot),
            Err(error) if alone => {
                return Err(error).with_context(|| format!("read the counters of {topology}"));
            }
            Err(error) => log::warn!("read the counters of {topology}: {}", with_causes(&error)),
        }
    }
    Ok(snapshots)
}

/// Shows snapshots of a topology for ever, with rates.
pub(super) async fn watch(source: &mut Source, period: Duration) -> Result<()> {
    show(source, period, Format::Table(None)).await
}

/// Shows snapshots for ever, and the programs' messages where they log any.
async fn show(source: &mut Source, period: Duration, format: Format) -> Result<()> {
    let messages = messages(source)?;
    tokio::select! {
        result = show_snapshots(source, period, format) => result,
        result = messages => result,
    }
}

async fn show_snapshots(source: &mut Source, period: Duration, format: Format) -> Result<()> {
    let mut live = Live::new();
    let mut ticks = tokio::time::interval(period);
    let mut earlier: Vec<Snapshot> = Vec::new();
    if let Format::Csv(by) = format {
        print(&csv::heading(by)?)?;
    }
    loop {
        ticks.tick().await;
        let snapshots = readable(source.take().await?)?;
        match format {
            Format::Table(by) => {
                let rows = live.rows() / snapshots.len().max(1);
                live.draw(&tables(&snapshots, Some(&earlier), by, rows))?;
            }
            Format::Json => print_json(&snapshots)?,
            Format::Csv(by) => print(&rows(&snapshots, by)?)?,
        }
        earlier = snapshots;
    }
}

/// Forwards the messages of every topology whose programs log. Never ends.
fn messages(source: &mut Source) -> Result<impl Future<Output = Result<()>> + use<>> {
    let roots = source.roots().clone();
    let logging = source.records()?.filter(|record| record.topology.ebpf_log != LogLevel::Off);
    let pins: Vec<Pins> =
        logging.map(|record| Pins::new(&roots, record.layout_version, &record.topology.name)).collect();
    if !pins.is_empty() {
        // Whoever asked the programs to log wants to read it, whatever -v says.
        log::set_max_level(log::LevelFilter::Debug);
    }
    Ok(async move {
        for result in join_all(pins.iter().map(datapath::log::forward)).await {
            result?;
        }
        std::future::pending().await
    })
}

/// Tables of snapshots: of so many rows each, and with rates where there are earlier ones.
pub(super) fn tables(
    snapshots: &[Snapshot],
    earlier: Option<&[Snapshot]>,
    by: Option<By>,
    rows: usize,
) -> String {
    let table = |snapshot: &Snapshot| {
        if let Some(by) = by {
            return by::render(snapshot, by, rows);
        }
        let same = |before: &&Snapshot| before.topology == snapshot.topology;
        render(snapshot, earlier.map(|earlier| earlier.iter().find(same)), rows)
    };
    snapshots.iter().map(table).collect()
}

fn rows(snapshots: &[Snapshot], by: Option<By>) -> Result<String> {
    Ok(snapshots.iter().map(|snapshot| csv::render(snapshot, by)).collect::<Result<_, _>>()?)
}
