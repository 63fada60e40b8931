//! What there is of a topology, asked of the kernel.

use std::collections::HashMap;

use serde::Serialize;
use veth_common::{LAYOUT_VERSION, RedirectMode};

use super::{
    Error, Pod, Port, Topology,
    apply::{fdb_key, mode},
    xdp,
};
use crate::{
    datapath::{
        Datapath, Hook, INGRESS, Redirect, XDP,
        attach::{Attached, attached},
        pins::Pins,
    },
    net::{Netlink, Netns, link::Link, netns},
    state::{Phase, Record, Roots},
};

/// Something that is not as it was declared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Drift {
    /// What, in words.
    pub what: String,
    /// How `up` puts it right in place. Nothing where all must be made again.
    #[serde(skip)]
    pub repair: Option<Repair>,
}

/// Something that can be put right in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Attach our program again.
    Attach {
        /// To this link.
        link: String,
        /// By this hook.
        hook: Hook,
    },
    /// Make a pod's end fit for XDP again.
    Prepare {
        /// The port's.
        slot: u32,
    },
    /// Change how frames reach a port.
    Redirect {
        /// The port's.
        slot: u32,
        /// To this.
        mode: RedirectMode,
    },
}

impl From<String> for Drift {
    fn from(what: String) -> Self {
        Self { what, repair: None }
    }
}

/// How a topology is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "status", content = "drift")]
pub enum Status {
    /// Everything that was declared is there.
    Up,
    /// Some of what was declared is missing or different.
    Drifted(Vec<Drift>),
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
pub async fn observe(
    roots: &Roots,
    record: &Record,
    netlink: &Netlink,
    links: &[Link],
) -> Result<Status, Error> {
    if record.is_from_another_boot()? {
        return Ok(Status::Gone);
    }
    if record.host_netns != Netns::current()?.inode()? {
        return Ok(Status::Elsewhere);
    }
    if record.phase == Phase::Changing {
        return Ok(Status::Incomplete);
    }
    let Record { topology, selection, layout_version, .. } = record;
    let links: HashMap<&str, &Link> = links.iter().map(|link| (link.name.as_str(), link)).collect();
    let mut drift: Vec<Drift> = Vec::new();
    for pod in &topology.pods {
        if netns::look_up(&pod.namespace)? != netns::Name::Namespace {
            drift.push(format!("namespace {} is gone", pod.namespace).into());
        }
    }
    for (path, bridge) in topology.bridges() {
        drift.extend(link_drift(&links, &bridge.link, &topology.bridge_alias(path), None).map(Drift::from));
    }
    for (pod, port) in topology.ports() {
        let bridge =
            bridge_of(topology, port.path).and_then(|bridge| links.get(bridge)).map(|link| link.index);
        let alias = topology.port_alias(pod, port);
        drift.extend(link_drift(&links, &port.host_link, &alias, bridge).map(Drift::from));
    }
    let pins = Pins::new(roots, *layout_version, &topology.name);
    // Of another layout nothing more can be told.
    if pins.are_hidden() || *layout_version != LAYOUT_VERSION {
        return Ok(status(drift));
    }
    let missing = pins.missing(selection.hook);
    drift.extend(missing.iter().map(|path| format!("the pin {} is gone", path.display()).into()));
    if !drift.is_empty() {
        return Ok(status(drift));
    }
    // Everything is there that a repair in place stands on.
    let bridges = topology.guarded_bridges().map(|(_, bridge)| (bridge.link.as_str(), selection.bridge_hook));
    let ports = topology.ports().map(|(_, port)| (port.host_link.as_str(), selection.hook));
    for (name, hook) in bridges.chain(ports) {
        drift.extend(attachment_drift(&pins, netlink, links[name], hook).await?);
    }
    let datapath = Datapath::open(pins, selection.hook)?;
    for (pod, port) in topology.ports() {
        // A pod may do anything to its end; that must not keep us from seeing the others.
        let found = if selection.hook.is_xdp() {
            feature_drift(pod, port)
        } else if selection.redirect == Redirect::Peer {
            redirect_drift(&datapath, record, netlink, &links, port).await
        } else {
            Ok(None)
        };
        drift.extend(found.unwrap_or_else(|error| Some(unseen(pod, port, &error).into())));
    }
    Ok(status(drift))
}

fn status(drift: Vec<Drift>) -> Status {
    if drift.is_empty() { Status::Up } else { Status::Drifted(drift) }
}

/// Our program must be on the link, by the hook that it was attached by, and pinned where that keeps it alive.
async fn attachment_drift(
    pins: &Pins,
    netlink: &Netlink,
    link: &Link,
    hook: Hook,
) -> Result<Option<Drift>, Error> {
    let name = &link.name;
    let repair = Some(Repair::Attach { link: name.clone(), hook });
    let pin = pins.link(name);
    if hook.is_pinned() && !pin.exists() {
        return Ok(Some(Drift { what: format!("the pin {} is gone", pin.display()), repair }));
    }
    let program = if hook.is_xdp() { XDP } else { INGRESS };
    let id = pins.program_id(program);
    let ours = |attached: &Attached| attached.hook == hook && attached.program == id;
    if attached(netlink, link).await?.iter().any(ours) {
        return Ok(None);
    }
    // A pinned link that does not hold the program any more cannot be attached again: it must be made anew.
    let repair = repair.filter(|_| !hook.is_pinned());
    Ok(Some(Drift { what: format!("our program is not on {name} by {hook} any more"), repair }))
}

/// A pod's end that cannot be looked at: renamed, moved, or going.
fn unseen(pod: &Pod, port: &Port, error: &Error) -> String {
    use std::error::Error as _;
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{}/{} cannot be looked at: {error}{cause}", pod.name, port.name)
}

/// What XDP needs of a pod's end.
fn feature_drift(pod: &Pod, port: &Port) -> Result<Option<Drift>, Error> {
    let words: Vec<String> = xdp::unfit_of(pod, port)?
        .iter()
        .map(|setting| format!("{} is {}", setting.feature, if setting.on { "off" } else { "on" }))
        .collect();
    Ok((!words.is_empty()).then(|| Drift {
        what: format!("{}/{} is not fit for XDP any more: {}", pod.name, port.name, words.join(", ")),
        repair: Some(Repair::Prepare { slot: port.slot }),
    }))
}

/// A pod that peer redirect would harm gets its frames through the host end, as long as it would.
async fn redirect_drift(
    datapath: &Datapath,
    record: &Record,
    netlink: &Netlink,
    links: &HashMap<&str, &Link>,
    port: &Port,
) -> Result<Option<Drift>, Error> {
    let Some(current) = current_mode(datapath, &record.topology, links, port) else {
        return Ok(None);
    };
    let hazard = hazard(netlink, links[port.host_link.as_str()]).await?;
    let wanted = if hazard.is_some() { RedirectMode::Host } else { mode(record.selection.redirect) };
    Ok((current != wanted).then(|| Drift {
        what: match hazard {
            Some(hazard) => format!("{} should be reached through its host end: {hazard}", port.host_link),
            None => format!("{} can be reached by peer redirect again", port.host_link),
        },
        repair: Some(Repair::Redirect { slot: port.slot, mode: wanted }),
    }))
}

/// How frames reach a port now, by what the programs look up.
fn current_mode(
    datapath: &Datapath,
    topology: &Topology,
    links: &HashMap<&str, &Link>,
    port: &Port,
) -> Option<RedirectMode> {
    let target = if let Some(key) = fdb_key(topology, port) {
        datapath.fdb(key)?
    } else {
        let peer = topology.wire_peer(port)?;
        datapath.port(links.get(peer.host_link.as_str())?.index)?.target
    };
    Some(if target.redirect == RedirectMode::Peer as u8 { RedirectMode::Peer } else { RedirectMode::Host })
}

/// Why peer redirect would harm the pod behind a host end, if it would.
///
/// # Errors
///
/// When the pod's namespace cannot be looked into.
pub async fn hazard(netlink: &Netlink, host_end: &Link) -> Result<Option<String>, Error> {
    let Some(namespace) = host_end.lower_namespace else {
        return Ok(Some(
            "its other end is in the same namespace, where the kernel refuses peer redirect".into(),
        ));
    };
    let inside = netlink.links_in(namespace).await?;
    let Some(end) = inside.iter().find(|link| Some(link.index) == host_end.lower) else {
        return Ok(None);
    };
    let name = &end.name;
    if end.xdp.is_some_and(|xdp| xdp.native) {
        return Ok(Some(format!("its pod runs an XDP program on {name}, which peer redirect would go past")));
    }
    if end.controller.is_some() {
        return Ok(Some(format!("its pod has bridged {name}, so that frames may be for others behind it")));
    }
    let on_top = |link: &&Link| {
        link.lower == Some(end.index)
            && link.lower_namespace.is_none()
            && matches!(link.kind.as_deref(), Some("macvlan" | "macvtap" | "ipvlan" | "ipvtap"))
    };
    Ok(inside.iter().find(on_top).map(|link| {
        format!("its pod has the {} {} on {name}", link.kind.as_deref().unwrap_or_default(), link.name)
    }))
}

fn bridge_of(topology: &Topology, path: usize) -> Option<&str> {
    topology.paths[path].bridge.as_ref().map(|bridge| bridge.link.as_str())
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
