//! `veth upgrade`.

use std::{cell::Cell, process::ExitCode};

use anyhow::{Context as _, Result, ensure};

use super::{
    options::WhichArgs,
    print,
    progress::Bar,
    up::{Ended, interruptible, uninterrupted},
};
use crate::{
    state::Roots,
    topology::{self, Outcome},
};

/// Let this veth's programs take the place of those that a topology runs, without losing a frame or a count
///
/// Each attachment goes from one program to the other in place, so that frames flow all the while; counters go on. Where
/// this veth lays its maps out differently, new ones are filled first. Goes back in the same way: run the older veth's
/// `upgrade`. `up` does the same before it changes anything. What cannot be upgraded in place is refused, with the
/// reason. A killed `upgrade` leaves every port to one of the two; the next `upgrade` or `up` finishes it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sudo veth upgrade          the one topology that is up
  sudo veth upgrade lab
  sudo veth upgrade --all")]
pub(super) struct Args {
    #[command(flatten)]
    which: WhichArgs,
}

pub(super) async fn main(args: Args, roots: &Roots) -> Result<ExitCode> {
    super::privilege::require("upgrade")?;
    args.which.check()?;
    let names = args.which.names(roots.names()?)?;
    ensure!(!names.is_empty(), "nothing is up");
    for name in names {
        let begun = Cell::new(false);
        let upgraded = interruptible(topology::upgrade(roots, &name, &Bar::new(), &begun)).await?;
        let outcome = match upgraded {
            Ended::By(result) => result.with_context(|| format!("upgrade the topology {name}"))?,
            Ended::Signal(signal) => {
                if begun.get() {
                    log::warn!("interrupted; finishing what was begun, which is the shorter way");
                    let bar = Bar::new();
                    let finished = uninterrupted(topology::upgrade(roots, &name, &bar, &begun)).await?;
                    finished.with_context(|| format!("upgrade the topology {name}"))?;
                }
                return Ok(signal.exit_code());
            }
        };
        print(&match outcome {
            Outcome::AlreadyUp => format!("{name} runs these programs already\n"),
            Outcome::Upgraded => format!("{name} is upgraded\n"),
            Outcome::Made | Outcome::Changed | Outcome::Repaired => format!("{name} is whole again\n"),
        })?;
    }
    Ok(ExitCode::SUCCESS)
}
