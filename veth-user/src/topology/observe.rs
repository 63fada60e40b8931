//! What there is of a topology, asked of the kernel.

use std::collections::HashMap;

use serde::Serialize;

use crate::{
    datapath::pins::Pins,
    net::{Netns, link::Link, netns},
    state::{Phase, Record, Roots},
};

use super::{Error, Topology};

/// How a topology is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "status", content = "drift")]
pub enum Status {
    /// Everything that was declared is there.
    Up,
    /// Some of what was declared is missing or different.
    Drifted(Vec<String>),
    /// A command that changed it did not come to its end.
    Incomplete,
    /// It was made before the machine was started last: nothing of it is there.
    Gone,
    /// It was made in another network namespace, which cannot be seen from here.
    Elsewhere,
}

impl Status {
    /// The status in a word.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Drifted(_) => "drifted",
            Self::Incomplete => "incomplete",
            Self::Gone => "gone",
            Self::Elsewhere => "elsewhere",
        }
    }
}

/// Compares a record with the machine. `links` are all links of the host's namespace.
///
/// # Errors
///
/// When the machine cannot be looked at.
pub fn observe(roots: &Roots, record: &Record, links: &[Link]) -> Result<Status, Error> {
    if record.is_from_another_boot()? {
        return Ok(Status::Gone);
    }
    if record.host_netns != Netns::current()?.inode()? {
        return Ok(Status::Elsewhere);
    }
    if record.phase == Phase::Changing {
        return Ok(Status::Incomplete);
    }
    let topology = &record.topology;
    let links: HashMap<&str, &Link> = links.iter().map(|link| (link.name.as_str(), link)).collect();
    let mut drift = Vec::new();
    for pod in &topology.pods {
        if netns::look_up(&pod.namespace)? != netns::Name::Namespace {
            drift.push(format!("namespace {} is gone", pod.namespace));
        }
    }
    for switch in topology.switches() {
        drift.extend(link_drift(&links, &switch.bridge, &topology.bridge_alias(switch), None));
    }
    for (pod, port) in topology.ports() {
        let bridge =
            bridge_of(topology, port.path).and_then(|bridge| links.get(bridge)).map(|link| link.index);
        drift.extend(link_drift(&links, &port.host_link, &topology.port_alias(pod, port), bridge));
    }
    let pins = Pins::new(roots, record.layout_version, &topology.name);
    let missing = pins.missing(topology.host_links());
    drift.extend(missing.iter().map(|path| format!("the pin {} is gone", path.display())));
    Ok(if drift.is_empty() { Status::Up } else { Status::Drifted(drift) })
}

fn bridge_of(topology: &Topology, path: usize) -> Option<&str> {
    match &topology.paths[path] {
        super::Path::Switch(switch) => Some(&switch.bridge),
        super::Path::Wire { .. } => None,
    }
}

fn link_drift(
    links: &HashMap<&str, &Link>,
    name: &str,
    alias: &str,
    controller: Option<u32>,
) -> Option<String> {
    let Some(link) = links.get(name) else {
        return Some(format!("link {name} is gone"));
    };
    if link.alias.as_deref() != Some(alias) {
        return Some(format!("link {name} is not ours any more: its alias is not {alias}"));
    }
    if !link.up {
        return Some(format!("link {name} is down"));
    }
    (link.controller != controller).then(|| format!("link {name} is not a port of its bridge any more"))
}
