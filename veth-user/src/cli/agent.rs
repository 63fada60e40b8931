//! `veth agent`.

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use super::{
    print, print_json,
    up::{Ended, interruptible},
};
use crate::{agent, state::Roots, topology::follow::Note};

/// Keep the fast path of everything that is up true to what happens to its links
///
/// Optional: a topology runs without any process, and on when this one is killed. Told by the kernel of every change of
/// a link, here and in pods, it lets frames of a port take the slow path when its host end is set down or leaves its
/// bridge, when its pod changes its address, sets it down, or takes away what XDP needs; lets them go through the host
/// end where peer redirect would go past a bridge, a macvlan or an XDP program of the pod; and attaches our program again
/// where somebody has taken it off. It undoes itself when things are as they were. It changes maps and attachments, and
/// never a link: what people did stays, `veth ls` tells of it, and `veth up` puts it right. Minimum kernel version: 5.10.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sudo veth agent
  sudo veth agent --json")]
pub(super) struct Args {
    /// Print JSON: a line for everything that is done
    #[arg(long)]
    json: bool,
}

pub(super) async fn main(args: Args, roots: &Roots) -> Result<ExitCode> {
    super::privilege::require("agent")?;
    let mut tell = |note: &Note| {
        let told = if args.json {
            print_json(note)
        } else {
            let Note { topology, pod, port, what } = note;
            print(&format!("{topology}: {pod}/{port}: {what}\n"))
        };
        // Whoever read it has gone; the work goes on.
        told.unwrap_or_else(|error| log::debug!("{error:#}"));
    };
    if !args.json {
        print("following what happens to links\n")?;
    }
    match interruptible(agent::run(roots, &mut tell)).await? {
        Ended::By(result) => match result.context("follow what happens to links")? {},
        // A signal is the usual way to end it.
        Ended::Signal(_) => Ok(ExitCode::SUCCESS),
    }
}
