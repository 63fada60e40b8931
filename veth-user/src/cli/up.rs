//! `veth up`.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, resume_unwind},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use futures_util::FutureExt as _;
use tokio::signal::unix::{SignalKind, signal};

use super::{options::TopologyArgs, print, progress::Bar};
use crate::{
    state::Roots,
    topology::{self, Outcome, Topology},
};

/// Make pods and the paths between them, or change them to what is declared now, and leave them running
///
/// With --file: what the file declares. Without arguments: the pods ns1 (172.16.0.1/24) and ns2 (172.16.0.2/24), each
/// on a veth pair of its own whose host ends are cross-connected by eBPF. With --pods: a switch. Programs, maps and
/// attachments are pinned, so that they go on without any process. What differs is changed, and nothing else: a second
/// `up` changes nothing, and a pod that is added does not disturb the others. What a killed command left is finished;
/// what fails is rolled back. Minimum kernel version: 5.10.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sudo veth up -f lab.toml
  sudo veth up
  sudo veth up --pods 16
  sudo veth up --name jumbo --mtu 9000 --redirect host
  sudo veth up --name fast --hook xdp")]
pub(super) struct Args {
    #[command(flatten)]
    topology: TopologyArgs,
}

pub(super) async fn main(args: Args, roots: &Roots) -> Result<ExitCode> {
    let topology = args.topology.topology()?;
    super::privilege::require("up")?;
    let begun = Cell::new(false);
    let undo = async |why: &str| {
        if begun.get() {
            log::warn!("{why}; undoing what was done");
            uninterrupted(topology::undo(roots, &topology.name, &Bar::new())).await??;
        }
        Ok::<(), anyhow::Error>(())
    };
    let work = interruptible(bring_up(&args.topology, roots, &topology, &begun));
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(ended) => match ended? {
            Ended::By(result) => {
                let pods = topology.pods.len();
                match result? {
                    Outcome::Made => print(&format!("{} is up: {pods} pods\n", topology.name))?,
                    Outcome::Upgraded => print(&format!("{} is upgraded: {pods} pods\n", topology.name))?,
                    Outcome::Changed => print(&format!("{} is changed: {pods} pods\n", topology.name))?,
                    Outcome::Repaired => print(&format!("{} is whole again: {pods} pods\n", topology.name))?,
                    Outcome::AlreadyUp => print(&format!("{} is up already: {pods} pods\n", topology.name))?,
                }
                Ok(ExitCode::SUCCESS)
            }
            Ended::Signal(signal) => {
                undo("interrupted").await?;
                Ok(signal.exit_code())
            }
        },
        Err(panic) => {
            if let Err(error) = undo("this is a bug").await {
                log::error!("{error:#}");
            }
            resume_unwind(panic)
        }
    }
}

/// Brings a topology up; `begun` says whether there is something to undo.
pub(super) async fn bring_up(
    args: &TopologyArgs,
    roots: &Roots,
    topology: &Topology,
    begun: &Cell<bool>,
) -> Result<Outcome> {
    let result = topology::up(roots, topology, &Bar::new(), begun).await;
    if result.is_err() {
        // It has undone its own; what is there by that name now is somebody else's.
        begun.set(false);
    }
    result
        .map_err(|error| args.point_out(error))
        .with_context(|| format!("bring up the topology {}", topology.name))
}

/// A signal that asks us to end.
#[derive(Clone, Copy, Debug)]
pub(super) enum Signal {
    Interrupt,
    Terminate,
    HangUp,
}

impl Signal {
    /// By convention 128 and the signal's number.
    pub(super) fn exit_code(self) -> ExitCode {
        ExitCode::from(match self {
            Self::HangUp => 129,
            Self::Interrupt => 130,
            Self::Terminate => 143,
        })
    }
}

/// How something ended.
pub(super) enum Ended<T> {
    By(T),
    Signal(Signal),
}

/// Does something to its end, whatever signal comes.
pub(super) async fn uninterrupted<T>(work: impl Future<Output = T>) -> Result<T> {
    // A signal that somebody listens to does not end the process.
    let listeners = listen()?;
    let result = work.await;
    drop(listeners);
    Ok(result)
}

fn listen() -> Result<[tokio::signal::unix::Signal; 3]> {
    let listen = |kind| signal(kind).context("listen for signals");
    Ok([listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?])
}

/// Does something to its end, which a signal makes come earlier: `stop` tells it to.
pub(super) async fn stoppable<T>(
    work: impl Future<Output = T>,
    stop: impl FnOnce(),
) -> Result<(T, Option<Signal>)> {
    let mut work = std::pin::pin!(work);
    match interruptible(work.as_mut()).await? {
        Ended::By(result) => Ok((result, None)),
        Ended::Signal(signal) => {
            stop();
            Ok((uninterrupted(work).await?, Some(signal)))
        }
    }
}

/// Does something until it ends or a signal asks to. What is dropped half-way must be repaired by the caller.
pub(super) async fn interruptible<T>(work: impl Future<Output = T>) -> Result<Ended<T>> {
    let [mut interrupt, mut terminate, mut hang_up] = listen()?;
    tokio::select! {
        biased;
        _ = interrupt.recv() => Ok(Ended::Signal(Signal::Interrupt)),
        _ = terminate.recv() => Ok(Ended::Signal(Signal::Terminate)),
        _ = hang_up.recv() => Ok(Ended::Signal(Signal::HangUp)),
        result = work => Ok(Ended::By(result)),
    }
}
