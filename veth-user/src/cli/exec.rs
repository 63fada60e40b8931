//! `veth exec`.

use std::{ffi::OsString, io, os::unix::process::CommandExt as _, process, process::ExitCode};

use anyhow::{Context as _, Result};

use crate::{net::Netns, state::Roots, topology};

/// Run a command inside a pod
///
/// Only the network namespace changes: unlike under `ip netns exec`, /sys and with it the bpffs stay as they are.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sudo veth exec ns1 -- ping -c3 172.16.0.2
  sudo veth exec switch/pod7 -- ip addr")]
pub(super) struct Args {
    /// The pod, or TOPOLOGY/POD where several topologies have one of that name
    pod: String,

    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(super) fn main(args: &Args, roots: &Roots) -> Result<ExitCode> {
    let Args { pod, command } = args;
    let (_, pod) = topology::find_pod(roots, pod)?;
    super::privilege::require("exec")?;
    let [program, arguments @ ..] = command.as_slice() else {
        unreachable!("clap requires a command");
    };
    Netns::open(&pod.namespace)
        .and_then(|namespace| namespace.enter())
        .with_context(|| format!("enter the pod {}", pod.name))?;
    // Only comes back if it fails.
    let error = process::Command::new(program).args(arguments).exec();
    log::error!("start {} in {}: {error}", program.display(), pod.name);
    Ok(ExitCode::from(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 }))
}
