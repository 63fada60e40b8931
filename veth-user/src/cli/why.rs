//! `veth why`.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    ops::ControlFlow,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{print, print_json};
use crate::{
    datapath::watch::PERIOD,
    net::Netns,
    state::Roots,
    topology,
    watch::{Session, Wish, describe, filter},
    why::{Answer, Step, why},
};

/// The "discard" service (RFC 863): nobody answers there, which is no matter.
const DISCARD: u16 = 9;

/// How long a probe may take to be seen: longer than a neighbour that is asked for.
const PATIENCE: Duration = Duration::from_millis(500);

/// Say what would happen to a frame from one pod to another, step by step
///
/// Route and neighbour in the pod, the programs on its host end, what each map says, and the verdict: by the program's
/// own decision on the maps that it looks at. With --probe, a datagram is sent, and what became of it is shown.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sudo veth why lab/a lab/b
  sudo veth why lab/a 10.1.0.2 --probe
  sudo veth why lab/a lab/b --json | jq -r .verdict")]
pub(super) struct Args {
    /// The pod that sends, or TOPOLOGY/POD
    source: String,

    /// The pod that it sends to, or an IP address
    destination: String,

    /// Send a UDP datagram to the discard port and show what happens to it. Needs Linux 6.6 and the hooks tcx or clsact
    #[arg(long)]
    probe: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is printed as JSON.
#[derive(Serialize)]
struct Output<'a> {
    #[serde(flatten)]
    answer: &'a Answer,
    #[serde(skip_serializing_if = "Option::is_none")]
    probe: Option<&'a [String]>,
}

pub(super) async fn main(args: Args, roots: &Roots) -> Result<ExitCode> {
    super::privilege::require("why")?;
    let Args { source, destination, probe, json } = args;
    let answer = why(roots, &source, &destination).await?;
    let seen = if probe { Some(send(roots, &source, answer.address).await?) } else { None };
    if json {
        print_json(&Output { answer: &answer, probe: seen.as_deref() })?;
        return Ok(ExitCode::SUCCESS);
    }
    let Answer { topology, from, to, address, steps, verdict, conclusion } = &answer;
    let mut lines = vec![format!("{topology}/{from} to {to} at {address}")];
    lines.extend(steps.iter().map(|Step { what, found }| format!("  {what:<10} {found}")));
    lines.push(format!("  {verdict:<10} {conclusion}"));
    if let Some(seen) = &seen {
        lines.push("sent a datagram:".to_owned());
        lines.extend(seen.iter().map(|line| format!("  {line}")));
        if seen.is_empty() {
            lines.push("  no packet to or from that address was seen at the pod's host end".to_owned());
        }
    }
    lines.push(String::new());
    print(&lines.join("\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// Sends a datagram and returns what the programs made of it and of what answers it.
async fn send(roots: &Roots, source: &str, address: IpAddr) -> Result<Vec<String>> {
    let (record, pod) = topology::find_pod(roots, source)?;
    let wish = Wish {
        snap: 96,
        sample: 1,
        filter: filter::parse(&format!("host {address}"))?,
        both_ways: false,
        buffer: 1 << 20,
    };
    let mut session = Session::start(roots, &[record], Some(&pod.name), &wish).await?;
    let sent = Netns::open(&pod.namespace)?.run(|| datagram(address))?;
    if let Err(error) = sent {
        // The kernel may refuse to send, which is an answer too.
        return Ok(vec![format!("the pod's kernel refuses to send it: {error}")]);
    }
    let mut seen = Vec::new();
    let end = tokio::time::Instant::now() + PATIENCE;
    while tokio::time::Instant::now() < end {
        tokio::time::sleep(PERIOD).await;
        let _unused: ControlFlow<()> = session.drain(|frame| {
            let what = describe::addresses(frame.bytes).line();
            seen.push(format!("{}: {what}: {}", frame.owner.name(), describe::outcome(&frame)));
            ControlFlow::Continue(())
        });
    }
    session.stop().context("stop watching")?;
    Ok(seen)
}

fn datagram(address: IpAddr) -> io::Result<()> {
    let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.send_to(&[0; 56], SocketAddr::new(address, DISCARD)).map(drop)
}
