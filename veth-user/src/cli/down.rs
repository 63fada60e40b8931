//! `veth down`.

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use super::{options::WhichArgs, print, progress::Bar, up::uninterrupted};
use crate::{state::Roots, topology};

/// Remove a topology and everything that belongs to it
///
/// Goes by what carries our marks, so it also removes what a killed command left, and never what others made.
/// Succeeds if there is nothing to remove.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sudo veth down            the one topology that is up
  sudo veth down switch
  sudo veth down --all")]
pub(super) struct Args {
    #[command(flatten)]
    which: WhichArgs,
}

pub(super) async fn main(args: Args, roots: &Roots) -> Result<ExitCode> {
    super::privilege::require("down")?;
    args.which.check()?;
    let there = topology::names(roots, args.which.all).await?;
    let names = args.which.names(there)?;
    let mut lines = Vec::new();
    if names.is_empty() {
        lines.push("nothing is up\n".to_owned());
    }
    let mut failed = Vec::new();
    for name in names {
        match uninterrupted(topology::down(roots, &name, &Bar::new())).await? {
            Ok(true) => lines.push(format!("{name} is down\n")),
            Ok(false) => lines.push(format!("{name} is not up\n")),
            Err(error) => failed.push((name, error)),
        }
    }
    topology::tidy(roots)?;
    // Last, so that a reader that has gone does not keep us from the rest.
    print(&lines.concat())?;
    match failed.len() {
        0 => Ok(ExitCode::SUCCESS),
        1 => {
            let (name, error) = failed.remove(0);
            Err(error).with_context(|| format!("take down the topology {name}"))
        }
        _ => {
            for (name, error) in failed {
                log::error!("take down the topology {name}: {:#}", anyhow::Error::from(error));
            }
            Ok(ExitCode::FAILURE)
        }
    }
}
