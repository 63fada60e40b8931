//! `veth drops`.

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use anyhow::Result;
use comfy_table::{Cell, CellAlignment};
use indicatif::HumanCount;

use super::{
    live::Live,
    options::period,
    print, print_json,
    up::{Ended, interruptible},
};
use crate::{
    drops::{By, Dropped, Session},
    state::Roots,
    stats::Wanted,
    text::plain_table,
};

/// Show what was dropped of our pods' packets, by whom, where and why
///
/// Drops by our programs are counted all the time; drops by the kernel, in pods and on their links, while this runs. Says
/// what to do about the usual ones. Kernels before 5.17 give no reasons.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sudo veth drops
  sudo veth drops lab/a --for 10s
  sudo veth drops --watch
  sudo veth drops --json | jq '.[] | {pod, reason, packets}'")]
pub(super) struct Args {
    /// The topology, the pod, or TOPOLOGY/POD [default: all]
    name: Option<String>,

    /// Look for this long, then show it
    #[arg(long = "for", value_name = "TIME", default_value = "2s", value_parser = period, conflicts_with = "watch")]
    duration: Duration,

    /// Show again and again, until Ctrl-C [default period: 1s]
    #[arg(long, value_name = "PERIOD", num_args = 0..=1, default_missing_value = "1s", value_parser = period)]
    watch: Option<Duration>,

    /// Print JSON: an array; with --watch one a line
    #[arg(long)]
    json: bool,
}

pub(super) async fn main(args: Args, roots: &Roots) -> Result<ExitCode> {
    super::privilege::require("drops")?;
    let Args { name, duration, watch, json } = args;
    let wanted = match &name {
        Some(name) => Wanted::named(roots, name)?,
        None => Wanted::All,
    };
    let mut session = Session::start(roots, wanted).await?;
    let work = async {
        let mut live = Live::new();
        loop {
            tokio::time::sleep(watch.unwrap_or(duration)).await;
            let dropped = session.dropped().await?;
            match (json, watch) {
                (true, _) => print_json(&dropped)?,
                (false, Some(_)) => live.draw(&render(&dropped, live.rows()))?,
                (false, None) => print(&render(&dropped, usize::MAX))?,
            }
            let other = session.other()?;
            if other > 0 {
                log::warn!("{other} more drops by the kernel were of too many kinds to tell apart");
            }
            if watch.is_none() {
                return Ok(());
            }
        }
    };
    match interruptible(work).await? {
        Ended::By(result) => result.map(|()| ExitCode::SUCCESS),
        Ended::Signal(_) => Ok(ExitCode::SUCCESS),
    }
}

/// A table, and below it each reason in words.
fn render(dropped: &[Dropped], rows: usize) -> String {
    if dropped.is_empty() {
        return "nothing was dropped\n".to_owned();
    }
    let mut table = plain_table(&[
        "BY", "TOPOLOGY", "POD", "LINK", "PROTOCOL", "PACKETS", "SINCE UP", "REASON", "FUNCTION",
    ]);
    for drop in dropped.iter().take(rows) {
        let or_dash = |text: Option<&str>| Cell::new(text.unwrap_or("-"));
        table.add_row([
            Cell::new(match drop.by {
                By::Veth => "veth",
                By::Kernel => "kernel",
            }),
            Cell::new(&drop.topology),
            or_dash(drop.pod.as_deref()),
            or_dash(drop.link.as_deref()),
            Cell::new(drop.protocol),
            Cell::new(HumanCount(drop.packets)).set_alignment(CellAlignment::Right),
            or_dash(drop.since_up.map(|count| HumanCount(count).to_string()).as_deref())
                .set_alignment(CellAlignment::Right),
            Cell::new(&drop.reason),
            or_dash(drop.function.as_deref()),
        ]);
    }
    let mut lines = vec![table.trim_fmt()];
    if dropped.len() > rows {
        lines.push(format!("… and {} more rows", dropped.len() - rows));
    }
    let said: BTreeMap<&str, String> = dropped
        .iter()
        .take(rows)
        .filter_map(|drop| {
            let remedy = drop.remedy.map(|remedy| format!(": {remedy}")).unwrap_or_default();
            Some((drop.reason.as_str(), format!("{}{remedy}", drop.what?)))
        })
        .collect();
    lines.push(String::new());
    lines.extend(said.iter().map(|(reason, words)| format!("{reason}: {words}")));
    lines.push(String::new());
    lines.join("\n")
}
