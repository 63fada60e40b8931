//! `veth ls`.

use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use super::{print, print_json};
use crate::{
    net::Netlink,
    state::{Record, Roots},
    text::plain_table,
    topology::{self, Path, Status},
};

/// List topologies, and how they are
///
/// The status is asked of the kernel, not remembered: up, drifted (a namespace, link or pin is missing or changed),
/// incomplete (a command was killed), gone (the machine was restarted), elsewhere (made in another network
/// namespace). Needs no root, but then does not see whether the programs are still pinned.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  veth ls
  veth ls switch            its pods and ports, and why this hook and redirect
  veth ls --json")]
pub(super) struct Args {
    /// Show the pods and ports of this topology
    name: Option<String>,

    /// Print JSON: everything that is known, an array of topologies
    #[arg(long)]
    json: bool,
}

/// What is listed of a topology.
#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    record: Record,
    #[serde(flatten)]
    status: Status,
}

pub(super) async fn main(args: Args, roots: &Roots) -> Result<ExitCode> {
    let records = match &args.name {
        Some(name) => vec![topology::record(roots, name)?],
        None => topology::records(roots)?,
    };
    let mut rows = Vec::new();
    if !records.is_empty() {
        let netlink = Netlink::open()?;
        let links = netlink.links().await?;
        for record in records {
            match topology::observe(roots, &record, &netlink, &links).await {
                Ok(status) => rows.push(Row { record, status }),
                // One that changes at this very moment does not hide the others.
                Err(error) if args.name.is_none() => {
                    log::warn!("{}: {:#}", record.topology.name, anyhow::Error::from(error));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    if args.json {
        print_json(&rows)?;
    } else if let (Some(_), [row]) = (&args.name, rows.as_slice()) {
        print(&ports(row))?;
    } else if rows.is_empty() {
        print("nothing is up\n")?;
    } else {
        print(&topologies(&rows))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn topologies(rows: &[Row]) -> String {
    let mut table = plain_table(&["TOPOLOGY", "PATH", "KIND", "PODS", "HOOK", "REDIRECT", "MTU", "STATUS"]);
    for Row { record, status } in rows {
        let topology = &record.topology;
        for (number, path) in topology.paths.iter().enumerate() {
            table.add_row([
                topology.name.clone(),
                path.name.clone(),
                path.kind.name().to_owned(),
                topology.ports_of(number).count().to_string(),
                if_accelerated(path, &record.selection.hook),
                if_accelerated(path, &record.selection.redirect),
                path.mtu.to_string(),
                status.name().to_owned(),
            ]);
        }
    }
    let drift: String = rows.iter().map(drift).collect();
    format!("{}\n{drift}", table.trim_fmt())
}

/// What programs do, on a path that has some.
fn if_accelerated(path: &Path, word: &impl ToString) -> String {
    if path.kind.is_accelerated() { word.to_string() } else { "-".to_owned() }
}

fn ports(row: &Row) -> String {
    let mut table = plain_table(&["POD", "NAMESPACE", "PORT", "LINK", "ETHERNET ADDRESS", "ADDRESSES"]);
    for (pod, port) in row.record.topology.all_ports() {
        let addresses: Vec<String> = port.addresses.iter().map(ToString::to_string).collect();
        table.add_row([
            pod.name.clone(),
            pod.namespace.clone(),
            port.name.clone(),
            port.host_link.clone(),
            port.mac.to_string(),
            addresses.join(" "),
        ]);
    }
    let Record { topology, selection, .. } = &row.record;
    let (name, status, why) = (&topology.name, row.status.name(), &selection.why);
    let is_accelerated = topology.accelerated_ports().next().is_some();
    let changed: Vec<String> =
        row.record.changed_features.iter().map(|what| format!("changed for XDP: {what}\n")).collect();
    let changed = changed.concat();
    let build = if topology.has_programs() && row.record.is_of_another_build() {
        format!(
            "runs the programs of another build (veth {}); `veth upgrade {name}` replaces them\n",
            row.record.veth_version
        )
    } else {
        String::new()
    };
    let why = if is_accelerated { format!("{why}\n") } else { String::new() };
    format!("{name}: {status}\n{why}{build}{}\n{changed}{}", table.trim_fmt(), drift(row))
}

fn drift(row: &Row) -> String {
    let name = &row.record.topology.name;
    match &row.status {
        Status::Drifted(drift) => {
            let lines: Vec<String> = drift.iter().map(|drift| format!("{name}: {}\n", drift.what)).collect();
            lines.concat()
        }
        Status::Incomplete => {
            format!("{name}: a command was killed; `veth up` or `veth down {name}` repairs\n")
        }
        Status::Gone => {
            format!("{name}: from before the machine was restarted; `veth down {name}` forgets it\n")
        }
        Status::Up | Status::Elsewhere => String::new(),
    }
}
