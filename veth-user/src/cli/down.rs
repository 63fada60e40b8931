//! `veth down`.

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use super::{print, progress::Bar, up::uninterrupted};
use crate::{
    state::Roots,
    topology::{self, model},
};

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
    /// The topology [default: the only one]
    name: Option<String>,

    /// Every topology
    #[arg(long, conflicts_with = "name")]
    all: bool,
}

pub(super) async fn main(args: Args, roots: &Roots) -> Result<ExitCode> {
    super::require_root("down")?;
    if let Some(name) = &args.name {
        model::check_name(name, "topology")?;
    }
    let there = topology::names(roots, args.all).await?;
    let names = match (args.name, args.all) {
        (Some(name), _) => vec![name],
        (None, false) if there.len() > 1 => {
            bail!("there are several topologies ({}); name one, or use --all", there.join(", "))
        }
        (None, _) => there,
    };
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
