//! `veth trace`.

use std::{
    ops::ControlFlow,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::Serialize;
use veth_common::watch::Outcome;

use super::{
    options::period,
    print,
    up::{Ended, interruptible},
};
use crate::{
    datapath::watch::PERIOD,
    state::{Record, Roots},
    stats::{Source, Wanted},
    watch::{Owner, Seen, Session, Wish, describe, filter},
};

/// The bytes of a frame that are looked at: headers.
const SNAP: u32 = 96;

/// Room for what comes while nobody looks.
const BUFFER: u32 = 4 << 20;

/// Show frames as they are decided on, one a line
///
/// When, where it came in, what became of it, from where to where, and its length. The programs that tell stand in front
/// of all others and go with this process, however it ends. Needs Linux 6.6 and the hooks tcx or clsact.
///
/// The filter has a few of the words of pcap-filter(7), with their meaning there: arp, ip, ip6, tcp, udp, icmp, icmp6,
/// [src|dst] host ADDRESS, [src|dst] port NUMBER, joined by `and`. Two hosts and two ports at most.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sudo veth trace
  sudo veth trace --of lab/a tcp and port 80
  sudo veth trace --sample 1/100 --limit 20
  sudo veth trace --json arp | jq .source")]
pub(super) struct Args {
    /// Only this topology, or what comes from and goes to this pod [default: all]
    #[arg(long, value_name = "NAME")]
    of: Option<String>,

    /// Tell of one frame in N
    #[arg(long, value_name = "1/N", default_value = "1/1", value_parser = one_in)]
    sample: u32,

    /// End after so many frames
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,

    /// End after this long [default: never]
    #[arg(long = "for", value_name = "TIME", value_parser = period)]
    duration: Option<Duration>,

    /// Print JSON, an object a line
    #[arg(long)]
    json: bool,

    /// Which frames [default: all]
    filter: Vec<String>,
}

/// A frame as JSON.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    topology: &'a str,
    pod: Option<&'a str>,
    port: &'a str,
    link: &'a str,
    verdict: &'static str,
    reason: Option<&'static str>,
    target: Option<String>,
    length: u32,
    segments: u32,
    #[serde(flatten)]
    addresses: describe::Addresses,
}

pub(super) async fn main(args: Args, roots: &Roots) -> Result<ExitCode> {
    super::privilege::require("trace")?;
    let Args { of, sample, limit, duration, json, filter } = args;
    let filter = filter::parse(&filter.join(" "))?;
    let wish = Wish { snap: SNAP, sample, filter, both_ways: false, buffer: BUFFER };
    let (records, pod) = wanted(roots, of.as_deref())?;
    if records.is_empty() {
        print("nothing is up\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut session = Session::start(roots, &records, pod.as_deref(), &wish).await?;
    let mut left = limit.unwrap_or(u64::MAX);
    let mut text = String::new();
    let each = |told: Told<'_, '_>| match told {
        Told::Frame(seen) => {
            text.push_str(&line(seen, json)?);
            left -= 1;
            Ok(left > 0)
        }
        Told::NoMore => {
            print(&text)?;
            text.clear();
            Ok(true)
        }
    };
    let result = watch(&mut session, duration, each).await;
    let lost = session.lost()?;
    session.stop()?;
    if lost > 0 {
        log::warn!(
            "{lost} frames were not told of: there was no room. Tell of fewer with --sample 1/N, or use a filter"
        );
    }
    result.map(|()| ExitCode::SUCCESS)
}

/// What a watch has to tell.
pub(super) enum Told<'a, 'b> {
    /// A frame.
    Frame(&'a Seen<'b>),
    /// For now there are no more, and it is time to write.
    NoMore,
}

/// Hands over frames as they are seen, until it is told that there are enough, the time is over, or a signal asks to end:
/// then what was seen until that moment.
pub(super) async fn watch(
    session: &mut Session,
    duration: Option<Duration>,
    mut each: impl FnMut(Told<'_, '_>) -> Result<bool>,
) -> Result<()> {
    let end = duration.map(|duration| Instant::now() + duration);
    // Whether there are enough.
    let mut look = || {
        let drained = session.drain(|seen| match each(Told::Frame(&seen)) {
            Ok(true) => ControlFlow::Continue(()),
            Ok(false) => ControlFlow::Break(Ok(())),
            Err(error) => ControlFlow::Break(Err(error)),
        });
        each(Told::NoMore)?;
        match drained {
            ControlFlow::Break(result) => result.map(|()| true),
            ControlFlow::Continue(()) => Ok(false),
        }
    };
    let work = async {
        let mut ticks = tokio::time::interval(PERIOD);
        loop {
            ticks.tick().await;
            if look()? || end.is_some_and(|end| Instant::now() >= end) {
                return Ok(());
            }
        }
    };
    match interruptible(work).await? {
        Ended::By(result) => result,
        Ended::Signal(_) => look().map(drop),
    }
}

/// The records of what a name means, and the pod if it is one.
pub(super) fn wanted(roots: &Roots, name: Option<&str>) -> Result<(Vec<Record>, Option<String>)> {
    let wanted = match name {
        Some(name) => Wanted::named(roots, name)?,
        None => Wanted::All,
    };
    let pod = match &wanted {
        Wanted::Pod { pod, .. } => Some(pod.clone()),
        _ => None,
    };
    Ok((Source::open(roots, wanted)?.records()?.cloned().collect(), pod))
}

fn line(seen: &Seen<'_>, json: bool) -> Result<String> {
    let Seen { time, owner, outcome, target, event, bytes } = seen;
    let time = humantime::format_rfc3339_micros(*time).to_string();
    let addresses = describe::addresses(bytes);
    if !json {
        // The date is the reader's own.
        let clock = time.split_once('T').map_or(time.as_str(), |(_, clock)| clock.trim_end_matches('Z'));
        let cut = if event.gso_segments > 1 {
            format!(" in {} segments", event.gso_segments)
        } else {
            String::new()
        };
        return Ok(format!(
            "{clock} {} {}  {}  {} bytes{cut}\n",
            owner.name(),
            describe::outcome(seen),
            addresses.line(),
            event.length
        ));
    }
    let (verdict, reason) = match outcome {
        Outcome::Passed(reason) => ("passed", Some(reason.name())),
        Outcome::Dropped(reason) => ("dropped", Some(reason.name())),
        Outcome::Redirected(_) => ("redirected", None),
        Outcome::Sent => ("sent", None),
    };
    let line = Line {
        time,
        topology: &owner.topology,
        pod: owner.pod.as_deref(),
        port: &owner.port,
        link: &owner.link,
        verdict,
        reason,
        target: target.map(Owner::name),
        length: event.length,
        segments: event.gso_segments.max(1),
        addresses,
    };
    Ok(serde_json::to_string(&line).context("write JSON")? + "\n")
}

/// Reads `1/100`.
fn one_in(text: &str) -> Result<u32, String> {
    let wrong = || "write it like 1/100".to_owned();
    let number = text.strip_prefix("1/").ok_or_else(wrong)?.parse().map_err(|_| wrong())?;
    if number == 0 { Err(wrong()) } else { Ok(number) }
}
