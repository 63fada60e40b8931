//! What would happen to a frame from one pod to another: each step, with what the kernel and the maps say at this moment.
//!
//! The decision is the program's own: [`veth_common::decide`] runs here on the maps that the program looks at.

use std::net::IpAddr;

use etherparse::PacketBuilder;
use serde::Serialize;
use veth_common::{
    Decision, EthernetHeader, FdbKey, Frame, Mac, Port as PortEntry, PortKind, RedirectMode, SourceKey,
    Tables, Target, decide, ethertype,
};

use crate::{
    datapath::{self, Datapath, attach, pins::Pins},
    net::{self, Netlink, Netns, link::Link},
    state::{Record, Roots},
    text::with_causes,
    topology::{self, Kind, Pod, Port},
};

/// The payload of the frame that is asked about: as much as `ping` sends.
const PAYLOAD: [u8; 56] = [0; 56];

/// Why nothing can be said.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The destination is neither a pod nor an address.
    #[error("{0} is neither a pod that is up nor an IP address")]
    NoDestination(String),
    /// The pods have no addresses of one family.
    #[error("{to} has no IP address that {from} could send to")]
    NoAddress {
        /// Who sends.
        from: String,
        /// To whom.
        to: String,
    },
    /// What is up is not known, or is not ours to look at.
    #[error(transparent)]
    Topology(#[from] topology::Error),
    /// Programs or maps.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
    /// Links, routes, neighbours.
    #[error(transparent)]
    Net(#[from] net::Error),
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What.
    pub what: &'static str,
    /// What was found.
    pub found: String,
}

/// What would happen.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// The topology of the pod that sends.
    pub topology: String,
    /// The pod that sends.
    pub from: String,
    /// The pod or the address that it sends to.
    pub to: String,
    /// The address that it sends to.
    pub address: IpAddr,
    /// What was looked at, in the order of the frame's way.
    pub steps: Vec<Step>,
    /// `redirected`, `passed`, `dropped`, `not sent`, or `kernel` where no program of ours decides.
    pub verdict: &'static str,
    /// The verdict in words.
    pub conclusion: String,
}

struct Asked<'a> {
    record: &'a Record,
    pod: &'a Pod,
    answer: Answer,
}

/// Says what would happen to an echo request from a pod to a pod or an address.
///
/// # Errors
///
/// When there is no such pod or destination, or the kernel does not answer.
pub async fn why(roots: &Roots, from: &str, to: &str) -> Result<Answer, Error> {
    let (record, pod) = topology::find_pod(roots, from)?;
    topology::check_layout(&record)?;
    topology::check_place(&record)?;
    let address = destination(roots, &record, &pod, to)?;
    let answer = Answer {
        topology: record.topology.name.clone(),
        from: pod.name.clone(),
        to: to.to_owned(),
        address,
        steps: Vec::new(),
        verdict: "not sent",
        conclusion: String::new(),
    };
    let mut asked = Asked { record: &record, pod: &pod, answer };
    asked.follow(roots).await?;
    Ok(asked.answer)
}

/// The address that is meant: itself, or that of a pod, if possible one on a path that both are on.
fn destination(roots: &Roots, record: &Record, from: &Pod, to: &str) -> Result<IpAddr, Error> {
    if let Ok(address) = to.parse() {
        return Ok(address);
    }
    let qualified = format!("{}/{to}", record.topology.name);
    let found = topology::find_pod(roots, &qualified).or_else(|_| topology::find_pod(roots, to));
    let (other, pod) = match found {
        Ok(found) => found,
        Err(topology::Error::UnknownPod { .. }) => return Err(Error::NoDestination(to.to_owned())),
        Err(error) => return Err(error.into()),
    };
    let is_shared = |port: &&Port| {
        other.topology.name == record.topology.name && from.ports.iter().any(|own| own.path == port.path)
    };
    let ports = pod.ports.iter().filter(is_shared).chain(&pod.ports);
    let mut addresses = ports.flat_map(|port| port.addresses.iter().map(|cidr| cidr.address));
    addresses.next().ok_or_else(|| Error::NoAddress { from: from.name.clone(), to: pod.name.clone() })
}

impl Asked<'_> {
    fn step(&mut self, what: &'static str, found: impl Into<String>) {
        self.answer.steps.push(Step { what, found: found.into() });
    }

    fn conclude(&mut self, verdict: &'static str, conclusion: impl Into<String>) {
        self.answer.verdict = verdict;
        self.answer.conclusion = conclusion.into();
    }

    async fn follow(&mut self, roots: &Roots) -> Result<(), Error> {
        let (record, pod) = (self.record, self.pod);
        let topology = &record.topology;
        let inside = Netns::open(&pod.namespace)?.netlink()?;
        let address = self.answer.address;
        let hop = match inside.route_to(address).await {
            Ok(hop) => hop,
            Err(error) => {
                self.step("route", format!("there is none: {}", with_causes(&error)));
                self.conclude(
                    "not sent",
                    "the pod has no route to it: add one, or a gateway, in the topology file",
                );
                return Ok(());
            }
        };
        let links = inside.links().await?;
        let link = links.iter().find(|link| link.index == hop.link);
        let name = link.map_or_else(|| format!("link {}", hop.link), |link| link.name.clone());
        let how = hop.via.map_or_else(|| "on the link".to_owned(), |via| format!("by {via}"));
        self.step("route", format!("{address} is {how}, out of {name}"));
        let Some(port) = pod.ports.iter().find(|port| port.name == name) else {
            self.conclude("kernel", format!("it leaves by {name}, which is no port of {}", topology.name));
            return Ok(());
        };
        let next = hop.via.unwrap_or(address);
        let mac = self.neighbour(&inside, hop.link, next).await?;
        self.host_end(roots, port, hop.source, mac).await
    }

    /// Who has the address of the next hop.
    async fn neighbour(&mut self, inside: &Netlink, link: u32, next: IpAddr) -> Result<Option<Mac>, Error> {
        let is_it = |(address, _): &(IpAddr, Mac)| *address == next;
        if let Some((_, mac)) = inside.permanent_neighbours(link).await?.into_iter().find(is_it) {
            self.step("neighbour", format!("{next} is at {mac}, for good"));
            return Ok(Some(mac));
        }
        if let Some((_, mac)) = inside.learned_neighbours(link).await?.into_iter().find(is_it) {
            self.step("neighbour", format!("{next} is at {mac}, learned"));
            return Ok(Some(mac));
        }
        let declared = self.record.topology.owners().get(&next).copied();
        let asks = if next.is_ipv4() { "ARP" } else { "Neighbour Discovery" };
        let who = declared
            .map_or_else(|| "no pod of the topology has it".to_owned(), |mac| format!("{mac} will answer"));
        self.step(
            "neighbour",
            format!("{next} is not known yet: the pod asks all by {asks}, which takes the slow path; {who}"),
        );
        Ok(declared)
    }

    async fn host_end(
        &mut self,
        roots: &Roots,
        port: &Port,
        source: Option<IpAddr>,
        mac: Option<Mac>,
    ) -> Result<(), Error> {
        let topology = &self.record.topology;
        let path = topology.path(port);
        if port.host_link.is_empty() {
            self.step("host end", "none: the other end of the pair is in the other pod");
            self.conclude("kernel", "the pair leads straight into the other pod");
            return Ok(());
        }
        let netlink = Netlink::open()?;
        let links = netlink.links().await?;
        let Some(link) = links.iter().find(|link| link.name == port.host_link) else {
            self.step("host end", format!("{} is gone: `veth up` makes it again", port.host_link));
            self.conclude("not sent", "the pod's link has no other end");
            return Ok(());
        };
        let state = if link.up { "up" } else { "down: everything is lost there" };
        self.step("host end", format!("{} (interface {}), {state}", link.name, link.index));
        let programs = attach::attached(&netlink, link).await?;
        let names: Vec<String> =
            programs.iter().map(|program| format!("{} {}", program.hook, program.name)).collect();
        self.step("programs", if names.is_empty() { "none".to_owned() } else { names.join(", then ") });
        if !path.kind.is_accelerated() {
            let by = match path.kind {
                Kind::Bridge => "the Linux bridge decides",
                Kind::Ovs => "Open vSwitch decides",
                _ => "the host's routes decide",
            };
            self.conclude(
                "kernel",
                format!("{by}: no program of ours redirects on a {} path", path.kind.name()),
            );
            return Ok(());
        }
        let Some(mac) = mac else {
            self.conclude("not sent", "nobody is known to have the address of the next hop");
            return Ok(());
        };
        let pins = Pins::new(roots, self.record.layout_version, &topology.name);
        let datapath = Datapath::open(pins, self.record.selection.hook)?;
        self.decide(&datapath, link, &links, port, source, mac);
        Ok(())
    }

    /// Goes through the maps as the program does, and lets the program's own function decide.
    fn decide(
        &mut self,
        datapath: &Datapath,
        link: &Link,
        links: &[Link],
        port: &Port,
        source: Option<IpAddr>,
        mac: Mac,
    ) {
        let name = |ifindex: u32| {
            let link = links.iter().find(|link| link.index == ifindex);
            link.map_or_else(|| format!("interface {ifindex}, which is gone"), |link| link.name.clone())
        };
        let Some(entry) = datapath.port(link.index) else {
            self.step("port", format!("PORTS knows no interface {}: `veth up` registers it", link.index));
            self.conclude("passed", "left to the slow path: not_accelerated");
            return;
        };
        let kind = if entry.kind == PortKind::Wire as u32 { "wire" } else { "switch" };
        let checked = if entry.flags & PortEntry::SPOOF_CHECK == 0 { "" } else { ", its source is checked" };
        self.step("port", format!("PORTS: slot {}, {kind}, domain {}{checked}", entry.slot, entry.domain));
        let target = if entry.kind == PortKind::Wire as u32 {
            self.step("target", format!("the other end of the wire: slot {}", entry.target.slot));
            Some(entry.target)
        } else {
            let key = FdbKey { domain: entry.domain, mac };
            let target = datapath.fdb(key);
            let found = target.map_or_else(
                || "nobody's: the bridge itself, or somebody that it learned".to_owned(),
                |target| format!("slot {}", target.slot),
            );
            self.step("target", format!("FDB: {mac} in domain {} is {found}", entry.domain));
            target
        };
        if let Some(target) = target {
            let found =
                datapath.target(target.slot).map_or_else(|| "empty: its host end is gone".to_owned(), name);
            self.step("interface", format!("TARGETS: slot {} is {found}", target.slot));
        }
        let bytes = frame(port.mac, mac, source, self.answer.address);
        let header = EthernetHeader {
            destination: mac,
            source: port.mac,
            ethertype: if self.answer.address.is_ipv4() { ethertype::IPV4 } else { ethertype::IPV6 },
        };
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if let Some(target) = target {
            self.step("length", format!("{length} bytes as by ping, of {} at most", target.max_length));
        }
        let frame = Frame { header: Some(&header), length, gso: false };
        let decision = decide(&entry, &frame, &bytes.as_slice(), &Maps(datapath));
        match decision {
            Decision::Redirect { slot, ifindex, mode } => {
                let owner = self.record.topology.all_ports().find(|(_, port)| port.slot == slot);
                let to =
                    owner.map_or_else(|| name(ifindex), |(pod, port)| format!("{} {}", pod.name, port.name));
                let how = match mode {
                    RedirectMode::Peer => "bpf_redirect_peer, straight into the pod",
                    RedirectMode::Host => "the host end, as if the kernel had sent it",
                };
                self.conclude("redirected", format!("handed to {to} by {how}"));
            }
            Decision::Pass(reason) => {
                self.conclude("passed", format!("left to the slow path: {}", reason.name()));
            }
            Decision::Drop(reason) => self.conclude("dropped", format!("ended here: {}", reason.name())),
        }
    }
}

/// The maps as the decision looks at them.
struct Maps<'a>(&'a Datapath);

impl Tables for Maps<'_> {
    fn lookup(&self, key: FdbKey) -> Option<Target> {
        self.0.fdb(key)
    }

    fn interface(&self, slot: u32) -> Option<u32> {
        self.0.target(slot)
    }

    fn is_source(&self, key: &SourceKey) -> bool {
        self.0.is_source(key)
    }
}

/// An echo request as the pod would send it.
fn frame(source_mac: Mac, mac: Mac, source: Option<IpAddr>, destination: IpAddr) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(source_mac.bytes(), mac.bytes());
    let mut bytes = Vec::new();
    let written = match (source, destination) {
        (Some(IpAddr::V4(source)), IpAddr::V4(destination)) => ethernet
            .ipv4(source.octets(), destination.octets(), 64)
            .icmpv4_echo_request(1, 1)
            .write(&mut bytes, &PAYLOAD),
        (Some(IpAddr::V6(source)), IpAddr::V6(destination)) => ethernet
            .ipv6(source.octets(), destination.octets(), 64)
            .icmpv6_echo_request(1, 1)
            .write(&mut bytes, &PAYLOAD),
        _ => Ok(()),
    };
    if let Err(error) = written {
        log::debug!("the frame could not be made: {error}");
    }
    bytes
}
