//! `veth top`.

use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use crossterm::event::{self, Event, KeyEventKind};
use ratatui::DefaultTerminal;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::{
    options::period,
    stats::readable,
    up::{Ended, interruptible},
};
use crate::{
    datapath::attach,
    net::{Netlink, ethtool::Ethtool},
    state::{Record, Roots},
    stats::{Source, Wanted},
    top::{Asked, Found, View, draw},
};

/// Features of a host end that matter to the datapath.
const FEATURES: [&str; 5] =
    ["rx-gro", "tx-generic-segmentation", "tx-tcp-segmentation", "tx-checksum-ip-generic", "rx-gro-list"];

/// So many targets are named; of more only their number.
const TARGETS_MAX: usize = 3;

/// Show all veths live: rates, trends, drops, and the details of one
///
/// Ports sorted by any column, with a filter by name. `?` shows the keys.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sudo veth top
  sudo veth top lab --interval 500ms")]
pub(super) struct Args {
    /// The topology, the pod, or TOPOLOGY/POD [default: all]
    name: Option<String>,

    /// How often counters are read
    #[arg(long, value_name = "PERIOD", default_value = "1s", value_parser = period)]
    interval: Duration,
}

pub(super) async fn main(args: Args, roots: &Roots) -> Result<ExitCode> {
    super::privilege::require("top")?;
    let Args { name, interval } = args;
    ensure!(
        io::stdout().is_terminal() && io::stdin().is_terminal(),
        "`veth top` needs a terminal to draw on; `veth stats --watch` writes anywhere"
    );
    let wanted = match &name {
        Some(name) => Wanted::named(roots, name)?,
        None => Wanted::All,
    };
    let mut source = Source::open(roots, wanted)?;
    // Messages would be written over the view.
    log::set_max_level(log::LevelFilter::Off);
    let mut terminal = ratatui::try_init().context("take the terminal over")?;
    let result = interruptible(show(&mut terminal, &mut source, interval)).await;
    // Also where a signal ended it; a panic does the same by a hook of the library.
    ratatui::try_restore().context("give the terminal back")?;
    match result? {
        Ended::By(result) => result.map(|()| ExitCode::SUCCESS),
        Ended::Signal(_) => Ok(ExitCode::SUCCESS),
    }
}

async fn show(terminal: &mut DefaultTerminal, source: &mut Source, interval: Duration) -> Result<()> {
    let mut view = View::default();
    let mut events = listen();
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let netlink = Netlink::open()?;
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                match source.take().await.map_err(anyhow::Error::from).and_then(readable) {
                    Ok(snapshots) => {
                        view.update(snapshots);
                        view.say(None);
                    }
                    Err(error) => view.say(Some(format!("{error:#}"))),
                }
                if let Some(link) = view.wants_details_of().map(str::to_owned) {
                    view.tell(look(source, &netlink, &link).await);
                }
            }
            event = events.recv() => match event {
                Some(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => {
                    if view.key(key) == Asked::End {
                        return Ok(());
                    }
                    if let Some(link) = view.wants_details_of().map(str::to_owned) {
                        view.tell(look(source, &netlink, &link).await);
                    }
                }
                // Another size: draw.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error).context("read the keyboard"),
                None => return Ok(()),
            }
        }
        terminal.draw(|frame| draw(&mut view, frame)).context("draw")?;
    }
}

/// What is known of a host end besides its counters. What cannot be found out is left out.
async fn look(source: &mut Source, netlink: &Netlink, link: &str) -> Found {
    let mut found = Found { targets: targets(source, link), ..Found::default() };
    if let Ok(link) = netlink.link(link).await
        && let Ok(attached) = attach::attached(netlink, &link).await
    {
        found.programs =
            attached.iter().map(|program| format!("{} {}", program.hook, program.name)).collect();
    }
    if let Ok(features) = Ethtool::open().and_then(|ethtool| ethtool.features(link)) {
        let on = FEATURES.into_iter().filter(|name| features.get(*name).copied().unwrap_or_default());
        found.features = on.map(str::to_owned).collect();
    }
    found
}

/// The ports that a port's frames can be redirected to.
fn targets(source: &mut Source, link: &str) -> Vec<String> {
    let Ok(records) = source.records() else { return Vec::new() };
    for Record { topology, .. } in records {
        let Some((_, port)) = topology.accelerated_ports().find(|(_, port)| port.host_link == link) else {
            continue;
        };
        let others = topology.ports_of(port.path).filter(|(_, other)| other.slot != port.slot);
        let mut names: Vec<String> =
            others.map(|(pod, port)| format!("{} {}", pod.name, port.name)).take(TARGETS_MAX + 1).collect();
        if names.len() > TARGETS_MAX {
            let all = topology.ports_of(port.path).count() - 1;
            names = vec![format!("{all} ports of the switch")];
        }
        return names;
    }
    Vec::new()
}

/// The terminal's events. They are read by a thread of their own, which ends with the process.
fn listen() -> UnboundedReceiver<io::Result<Event>> {
    let (sender, receiver) = unbounded_channel();
    thread::spawn(move || {
        loop {
            let event = event::read();
            let is_last = event.is_err();
            if sender.send(event).is_err() || is_last {
                return;
            }
        }
    });
    receiver
}
