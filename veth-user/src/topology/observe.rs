//! What there is of a topology, asked of the kernel.

use std::collections::{HashMap, HashSet};

use serde::Serialize;
use veth_common::{FdbKey, Mac, Port as PortEntry, RedirectMode, Target};

use super::{
    Error, Kind, Path, Pod, Port, Topology,
    entries::{fdb_key, mode, port_entry, target},
    features,
    model::{Bridge, Cable},
};
use crate::{
    datapath::{
        Datapath, Hook, INGRESS, Redirect, XDP,
        attach::{Attached, attached_by, has_counter},
        pins::Pins,
    },
    net::{
        Netlink, Netns,
        address::Cidr,
        capability::{Capabilities, Capability},
        forwarding,
        link::Link,
        netns,
        ovs::Ovs,
        sysctl,
    },
    state::{Phase, Record, Roots},
};

/// Something that is not as it was declared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Drift {
    /// What, in words.
    pub what: String,
    /// What a plan makes of it.
    #[serde(skip)]
    pub fault: Fault,
}

/// What is wrong, by the names of pods and their ports, paths and cables.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Programs or maps are gone: all must be made again.
    Programs,
    /// A pod's namespace is gone.
    Namespace(String),
    /// A veth pair is gone, or not ours any more.
    Pair(String, String),
    /// An end has another MTU.
    Mtu(String, String),
    /// A pod's end lacks features that it needs.
    Unfit(String, String),
    /// A pod's end is down, or lacks addresses.
    Addresses(String, String),
    /// The maps do not know a port, or wrongly.
    Maps(String, String),
    /// Our program is not on a host end.
    Program(String, String),
    /// Frames should reach a port in another way.
    Redirect(String, String, RedirectMode),
    /// A host end is down, or not a port of its bridge, or not routed to.
    Connection(String, String),
    /// A pod lacks routes.
    Routes(String),
    /// A bridge is gone.
    Bridge(String),
    /// A bridge lacks the addresses of the gateway, or has another MTU.
    Gateway(String),
    /// Nothing keeps pods of a path from the host.
    Guard(String),
    /// A cable is gone, or does not connect.
    Cable(String),
    /// The Open vSwitch does not run.
    Ovs,
    /// The firewall's table is gone or was changed, or the host does not forward.
    Firewall,
}

/// What a plan has to know beside what was made.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    faults: HashSet<Fault>,
    /// Whether other programs run than those of this veth.
    pub is_outdated: bool,
    /// What an interrupted command was about to turn into something else: anything of it may be there.
    pub leftovers: Vec<Topology>,
}

impl Observed {
    /// What is wrong, and what an interrupted command left.
    #[must_use]
    pub fn new(drift: &[Drift], leftovers: Vec<Topology>) -> Self {
        let faults = drift.iter().map(|drift| drift.fault.clone()).collect();
        Self { faults, is_outdated: false, leftovers }
    }

    /// Whether something is wrong in this way.
    #[must_use]
    pub fn has(&self, fault: &Fault) -> bool {
        self.faults.contains(fault)
    }

    /// How frames should reach a port, if in another way than they do.
    #[must_use]
    pub fn redirect(&self, pod: &str, port: &str) -> Option<RedirectMode> {
        let has = |mode| self.has(&Fault::Redirect(pod.to_owned(), port.to_owned(), mode));
        [RedirectMode::Peer, RedirectMode::Host].into_iter().find(|mode| has(*mode))
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
    let drift = drift(roots, record, netlink, links).await?;
    Ok(if drift.is_empty() { Status::Up } else { Status::Drifted(drift) })
}

/// Everything that is not as a record says. `links` are all links of the host's namespace.
///
/// # Errors
///
/// When the machine cannot be looked at.
pub async fn drift(
    roots: &Roots,
    record: &Record,
    netlink: &Netlink,
    links: &[Link],
) -> Result<Vec<Drift>, Error> {
    let Record { topology, selection, layout_version, .. } = record;
    let mut look = Look {
        record,
        topology,
        netlink,
        links: links.iter().map(|link| (link.name.as_str(), link)).collect(),
        ovs: Ovs::new(roots.ovs_folder(&topology.name)),
        has_ipv6: sysctl::has_ipv6(),
        sees_pods: Capabilities::current()?.has(Capability::NetAdmin),
        pins: Pins::new(roots, *layout_version, &topology.name),
        insides: HashMap::new(),
        drift: Vec::new(),
    };
    look.namespaces()?;
    look.bridges().await?;
    look.firewall()?;
    for cable in &topology.cables {
        look.cable(cable);
    }
    for (pod, port) in topology.all_ports() {
        look.port(pod, port).await;
    }
    if look.sees_pods {
        look.routes().await;
    }
    // Of another layout nothing more can be told.
    if topology.has_programs() && !look.pins.are_hidden() && record.is_of_our_layout() {
        let missing = look.pins.missing(selection.hook);
        for path in &missing {
            look.note(Fault::Programs, format!("the pin {} is gone", path.display()));
        }
        if missing.is_empty() {
            look.programs().await?;
        }
    }
    Ok(look.drift)
}

/// What is looked at, and what was found.
struct Look<'a> {
    record: &'a Record,
    topology: &'a Topology,
    netlink: &'a Netlink,
    links: HashMap<&'a str, &'a Link>,
    ovs: Ovs,
    has_ipv6: bool,
    /// Whether we may look into namespaces.
    sees_pods: bool,
    pins: Pins,
    /// The links of pods that were looked into, by the slot of the port.
    insides: HashMap<u32, Vec<Link>>,
    drift: Vec<Drift>,
}

impl Look<'_> {
    fn note(&mut self, fault: Fault, what: String) {
        self.drift.push(Drift { what, fault });
    }

    fn has(&self, fault: &Fault) -> bool {
        self.drift.iter().any(|drift| drift.fault == *fault)
    }

    fn namespaces(&mut self) -> Result<(), Error> {
        for pod in &self.topology.pods {
            if netns::look_up(&pod.namespace)? != netns::Name::Namespace {
                let what = format!("namespace {} is gone", pod.namespace);
                self.note(Fault::Namespace(pod.name.clone()), what);
            }
        }
        Ok(())
    }

    async fn bridges(&mut self) -> Result<(), Error> {
        let topology = self.topology;
        if topology.has_ovs() && !self.ovs.is_running()? {
            self.note(Fault::Ovs, "the Open vSwitch does not run".to_owned());
        }
        for (path, bridge) in topology.bridges() {
            let alias = topology.bridge_alias(path);
            if let Err(what) = our_link(&self.links, &bridge.link, &alias, bridge.mac) {
                self.note(Fault::Bridge(path.name.clone()), what);
                continue;
            }
            let link = self.links[bridge.link.as_str()];
            // The local port of an Open vSwitch that nobody uses is down.
            let is_used = path.kind != Kind::Ovs || path.is_routed();
            let mut what = None;
            if is_used && !link.up {
                what = Some(format!("link {} is down", bridge.link));
            } else if is_used && link.mtu != path.mtu {
                what = Some(format!("link {} has an MTU of {}, not {}", bridge.link, link.mtu, path.mtu));
            } else if path.is_routed() {
                let there = self.netlink.addresses(link.index).await?;
                let missing = self.usable(&path.gateway).find(|cidr| !there.contains(cidr));
                what = missing.map(|cidr| format!("link {} lacks the address {cidr}", bridge.link));
            }
            if let Some(what) = what {
                self.note(Fault::Gateway(path.name.clone()), what);
            }
        }
        Ok(())
    }

    fn firewall(&mut self) -> Result<(), Error> {
        let topology = self.topology;
        if !topology.is_routed() {
            return Ok(());
        }
        let table = topology.table();
        if !forwarding::is_current(&table, &topology.forward_paths())? {
            self.note(Fault::Firewall, format!("the nftables table inet {table} is gone or was changed"));
        } else if topology.needs_forwarding() {
            let sysctl::Forwarding { ipv4, ipv6 } = sysctl::forwarding()?;
            if !ipv4 || !ipv6 && self.has_ipv6 {
                self.note(Fault::Firewall, "the host does not forward any more".to_owned());
            }
        }
        Ok(())
    }

    fn cable(&mut self, cable: &Cable) {
        let alias = self.topology.cable_alias(cable);
        for end in &cable.ends {
            let bridge = end
                .path
                .and_then(|path| self.topology.paths[path].bridge.as_ref().map(|bridge| (path, bridge)));
            let found = our_link(&self.links, &end.link, &alias, end.mac).and_then(|link| match bridge {
                _ if !link.up => Err(format!("link {} is down", end.link)),
                Some((path, bridge)) if self.topology.paths[path].kind == Kind::Ovs => {
                    self.is_in_ovs(bridge, &end.link)
                }
                Some((_, bridge)) => is_in_bridge(&self.links, link, bridge),
                None => Ok(()),
            });
            if let Err(what) = found {
                self.note(Fault::Cable(cable.name.clone()), what);
                return;
            }
        }
    }

    /// Whether a link is a port of an Open vSwitch. Of one that does not run, nothing can be told.
    fn is_in_ovs(&self, bridge: &Bridge, link: &str) -> Result<(), String> {
        if self.has(&Fault::Ovs) {
            return Ok(());
        }
        match self.ovs.ports(&bridge.link) {
            Ok(ports) if ports.iter().any(|port| port == link) => Ok(()),
            Ok(_) => Err(format!("link {link} is not a port of {} any more", bridge.link)),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn port(&mut self, pod: &Pod, port: &Port) {
        let (of_pod, of_port) = (pod.name.clone(), port.name.clone());
        if self.has(&Fault::Namespace(of_pod.clone())) {
            return;
        }
        let path = self.topology.path(port);
        let mut host_end = None;
        if !port.host_link.is_empty() {
            let alias = self.topology.port_alias(pod, port);
            let link = match our_link(&self.links, &port.host_link, &alias, port.host_mac) {
                Ok(link) => link,
                Err(what) => return self.note(Fault::Pair(of_pod, of_port), what),
            };
            if link.mtu != path.mtu {
                let what = format!("link {} has an MTU of {}, not {}", link.name, link.mtu, path.mtu);
                self.note(Fault::Mtu(of_pod.clone(), of_port.clone()), what);
            }
            let connected = match &path.bridge {
                _ if !link.up => Err(format!("link {} is down", link.name)),
                Some(bridge) if self.has(&Fault::Bridge(path.name.clone())) => {
                    Err(format!("link {} is not a port of {} any more", link.name, bridge.link))
                }
                Some(bridge) if path.kind == Kind::Ovs => self.is_in_ovs(bridge, &link.name),
                Some(bridge) => is_in_bridge(&self.links, link, bridge),
                None if path.kind == Kind::Route => self.is_routed(path, port, link).await,
                None => Ok(()),
            };
            if let Err(what) = connected {
                self.note(Fault::Connection(of_pod.clone(), of_port.clone()), what);
            }
            host_end = Some(link);
        }
        if !self.sees_pods {
            return;
        }
        match self.inside(pod, port, host_end).await {
            Ok(Inside { found: None, .. }) if host_end.is_none() => {
                let what = format!("{of_pod}/{of_port} is gone");
                self.note(Fault::Pair(of_pod, of_port), what);
            }
            Ok(Inside { found: None, .. }) => {
                let what = format!("{of_pod}/{of_port} has another name now, or is elsewhere");
                self.note(Fault::Pair(of_pod, of_port), what);
            }
            Ok(Inside { found: Some(end), addresses }) => {
                let missing = self.usable(&port.addresses).find(|cidr| !addresses.contains(cidr));
                if end.mtu != path.mtu {
                    let what = format!("{of_pod}/{of_port} has an MTU of {}, not {}", end.mtu, path.mtu);
                    self.note(Fault::Mtu(of_pod.clone(), of_port.clone()), what);
                }
                if !end.up {
                    self.note(
                        Fault::Addresses(of_pod.clone(), of_port.clone()),
                        format!("{of_pod}/{of_port} is down"),
                    );
                } else if let Some(cidr) = missing {
                    let what = format!("{of_pod}/{of_port} lacks the address {cidr}");
                    self.note(Fault::Addresses(of_pod.clone(), of_port.clone()), what);
                }
                let wanted = features::needed(self.topology, port.path, self.record.selection.hook);
                match features::unfit_of(pod, port, &wanted) {
                    Ok(unfit) if unfit.is_empty() => {}
                    Ok(unfit) => {
                        let words: Vec<String> = unfit
                            .iter()
                            .map(|setting| {
                                format!("{} is {}", setting.feature, if setting.on { "off" } else { "on" })
                            })
                            .collect();
                        let hook = self.record.selection.hook;
                        let why = self.topology.preparation(port.path, hook).unwrap_or_default();
                        let what =
                            format!("{of_pod}/{of_port} is not fit for {why} any more: {}", words.join(", "));
                        self.note(Fault::Unfit(of_pod, of_port), what);
                    }
                    Err(error) => self.note(Fault::Unfit(of_pod, of_port), unseen(pod, port, &error)),
                }
            }
            // A pod may do anything to its end; that must not keep us from seeing the others.
            Err(error) => self.note(Fault::Addresses(of_pod, of_port), unseen(pod, port, &error)),
        }
    }

    /// A pod's end. Through the host end no name has to be looked up and no namespace entered.
    async fn inside(&mut self, pod: &Pod, port: &Port, host_end: Option<&Link>) -> Result<Inside, Error> {
        let is_it = |link: &Link| link.name == port.name && link.mac == Some(port.mac);
        if let Some(host_end) = host_end {
            let Some(namespace) = host_end.lower_namespace else {
                return Ok(Inside::default());
            };
            let links = self.netlink.links_in(namespace).await?;
            let found = links.iter().find(|link| Some(link.index) == host_end.lower && is_it(link)).cloned();
            self.insides.insert(port.slot, links);
            let Some(found) = found else { return Ok(Inside::default()) };
            let addresses = self.netlink.addresses_in(namespace).await?.into_iter();
            let addresses =
                addresses.filter(|(index, _)| *index == found.index).map(|(_, cidr)| cidr).collect();
            return Ok(Inside { found: Some(found), addresses });
        }
        let netlink = Netns::open(&pod.namespace)?.netlink()?;
        let found = netlink.links().await?.into_iter().find(is_it);
        let addresses = match &found {
            Some(link) => netlink.addresses(link.index).await?,
            None => Vec::new(),
        };
        Ok(Inside { found, addresses })
    }

    async fn is_routed(&self, path: &Path, port: &Port, link: &Link) -> Result<(), String> {
        let words = |error: crate::net::Error| error.to_string();
        let there = self.netlink.addresses(link.index).await.map_err(words)?;
        // Link-local ones are not told of.
        let is_told = |cidr: &&Cidr| cidr.address.is_ipv4() && !there.contains(cidr);
        if let Some(cidr) = path.gateway.iter().find(is_told) {
            return Err(format!("link {} lacks the address {cidr}", link.name));
        }
        let routes = self.netlink.routes(link.index).await.map_err(words)?;
        let missing = self
            .usable(&port.addresses)
            .find(|cidr| !routes.iter().any(|(to, _)| to.address == cidr.address));
        missing.map_or(Ok(()), |cidr| Err(format!("nothing is routed to {cidr} over {}", link.name)))
    }

    /// Routes of pods that have some.
    async fn routes(&mut self) {
        let topology = self.topology;
        for pod in &topology.pods {
            let wanted = topology.routes_of(pod);
            if wanted.is_empty() || self.has(&Fault::Namespace(pod.name.clone())) {
                continue;
            }
            let missing = async {
                let netlink = Netns::open(&pod.namespace)?.netlink()?;
                for (number, port) in pod.ports.iter().enumerate() {
                    let index = netlink.link(&port.name).await?.index;
                    let there = netlink.routes(index).await?;
                    for route in wanted.iter().filter(|route| route.port == number) {
                        let is_usable = route.to.address.is_ipv4() || self.has_ipv6;
                        if is_usable && !there.contains(&(route.to.network(), route.via)) {
                            return Ok(Some(route.to));
                        }
                    }
                }
                Ok::<_, Error>(None)
            };
            let what = match missing.await {
                Ok(None) => continue,
                Ok(Some(to)) => format!("{} lacks its route to {to}", pod.name),
                Err(error) => format!("the routes of {} cannot be looked at: {error}", pod.name),
            };
            self.note(Fault::Routes(pod.name.clone()), what);
        }
    }

    /// Attachments and map entries. Everything is there that they hang on.
    async fn programs(&mut self) -> Result<(), Error> {
        let (topology, selection) = (self.topology, &self.record.selection);
        let datapath = Datapath::open(self.pins.clone(), selection.hook)?;
        for (path, bridge) in topology.guarded_bridges() {
            let fault = Fault::Guard(path.name.clone());
            if self.has(&Fault::Bridge(path.name.clone())) {
                continue;
            }
            let link = self.links[bridge.link.as_str()];
            if let Some(what) = self.detached(link, selection.bridge_hook).await? {
                self.note(fault, what);
            }
        }
        for (pod, port) in topology.counted_ports() {
            let of = || (pod.name.clone(), port.name.clone());
            let (of_pod, of_port) = of();
            let is_whole = !self.has(&Fault::Namespace(of_pod.clone()))
                && !self.has(&Fault::Pair(of_pod.clone(), of_port.clone()));
            let is_accelerated = topology.path(port).kind.is_accelerated();
            let hook = selection.hook_of(is_accelerated);
            if port.host_link.is_empty() {
                if is_whole
                    && self.sees_pods
                    && let Some(what) = self.uncounted(pod, port, hook).await
                {
                    self.note(Fault::Program(of_pod, of_port), what);
                }
                continue;
            }
            let Some(link) = self.links.get(port.host_link.as_str()).copied().filter(|_| is_whole) else {
                continue;
            };
            if let Some(what) = self.detached(link, hook).await? {
                let (pod, port) = of();
                self.note(Fault::Program(pod, port), what);
            }
            if !self.is_registered(&datapath, port, link) {
                let what = format!("the maps do not know {} as it is", port.host_link);
                self.note(Fault::Maps(of_pod, of_port), what);
            } else if is_accelerated && selection.redirect == Redirect::Peer && !hook.is_xdp() {
                match self.redirect(&datapath, pod, port, link).await {
                    Ok(None) => {}
                    Ok(Some(drift)) => self.drift.push(drift),
                    Err(error) => self.note(Fault::Addresses(of_pod, of_port), unseen(pod, port, &error)),
                }
            }
        }
        Ok(())
    }

    /// Our program must be on the link, by the hook that it was attached by, and pinned where that keeps it alive.
    async fn detached(&self, link: &Link, hook: Hook) -> Result<Option<String>, Error> {
        let name = &link.name;
        let pin = self.pins.link(name);
        if hook.is_pinned() && !pin.exists() {
            return Ok(Some(format!("the pin {} is gone", pin.display())));
        }
        let program = if hook.is_xdp() { XDP } else { INGRESS };
        let id = self.pins.program_id(program);
        let ours = |attached: &Attached| attached.program == id;
        if attached_by(self.netlink, link, hook).await?.iter().any(ours) {
            return Ok(None);
        }
        Ok(Some(format!("our program is not on {name} by {hook} any more")))
    }

    /// The same for what counts at a pod's end.
    async fn uncounted(&self, pod: &Pod, port: &Port, hook: Hook) -> Option<String> {
        let pin = self.pins.inner_link(&pod.name, &port.name);
        if hook.is_pinned() && !pin.exists() {
            return Some(format!("the pin {} is gone", pin.display()));
        }
        let look = async {
            let namespace = Netns::open(&pod.namespace)?;
            let link = namespace.netlink()?.link(&port.name).await?;
            Ok(has_counter(&namespace, &link, hook).await?)
        };
        match look.await {
            Ok(true) => None,
            Ok(false) => Some(format!("our program is not on {}/{} by {hook} any more", pod.name, port.name)),
            Err(error) => Some(unseen(pod, port, &error)),
        }
    }

    /// Whether the maps say of a port what they should, but for how frames reach it.
    fn is_registered(&self, datapath: &Datapath, port: &Port, link: &Link) -> bool {
        let topology = self.topology;
        let any = |entry: PortEntry| {
            let target = Target { redirect: 0, ..entry.target };
            PortEntry { target, ..entry }
        };
        let expected = port_entry(topology, port, link.index, RedirectMode::Host);
        let there = datapath.port(link.index);
        let found = |key: FdbKey| datapath.fdb(key).map(|target| Target { redirect: 0, ..target });
        there.map(any) == Some(any(expected))
            && fdb_key(topology, port).is_none_or(|key| {
                found(key) == Some(Target { redirect: 0, ..target(topology, port, RedirectMode::Host) })
            })
    }

    /// A pod that peer redirect would harm gets its frames through the host end, as long as it would.
    async fn redirect(
        &self,
        datapath: &Datapath,
        pod: &Pod,
        port: &Port,
        link: &Link,
    ) -> Result<Option<Drift>, Error> {
        let Some(current) = current_mode(datapath, self.topology, &self.links, port) else {
            return Ok(None);
        };
        let hazard = match self.insides.get(&port.slot) {
            Some(inside) => hazard_among(inside, link),
            None => hazard(self.netlink, link).await?,
        };
        let wanted = if hazard.is_some() { RedirectMode::Host } else { mode(self.record.selection.redirect) };
        Ok((current != wanted).then(|| Drift {
            what: match hazard {
                Some(hazard) => {
                    format!("{} should be reached through its host end: {hazard}", port.host_link)
                }
                None => format!("{} can be reached by peer redirect again", port.host_link),
            },
            fault: Fault::Redirect(pod.name.clone(), port.name.clone(), wanted),
        }))
    }

    /// Addresses of families that the machine speaks.
    fn usable<'b>(&self, addresses: &'b [Cidr]) -> impl Iterator<Item = &'b Cidr> + use<'b> {
        let has_ipv6 = self.has_ipv6;
        addresses.iter().filter(move |cidr| cidr.address.is_ipv4() || has_ipv6)
    }
}

/// A pod's end, and what addresses it has.
#[derive(Default)]
struct Inside {
    found: Option<Link>,
    addresses: Vec<Cidr>,
}

/// A pod's end that cannot be looked at: renamed, moved, or going.
fn unseen(pod: &Pod, port: &Port, error: &Error) -> String {
    use std::error::Error as _;
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{}/{} cannot be looked at: {error}{cause}", pod.name, port.name)
}

/// How frames reach a port now, by what the programs look up.
pub(super) fn current_mode(
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
    Ok(hazard_among(&netlink.links_in(namespace).await?, host_end))
}

/// The same, by the links of the pod.
pub(super) fn hazard_among(inside: &[Link], host_end: &Link) -> Option<String> {
    let end = inside.iter().find(|link| Some(link.index) == host_end.lower)?;
    let name = &end.name;
    if end.xdp.is_some_and(|xdp| xdp.native) {
        return Some(format!("its pod runs an XDP program on {name}, which peer redirect would go past"));
    }
    if end.controller.is_some() {
        return Some(format!("its pod has bridged {name}, so that frames may be for others behind it"));
    }
    let on_top = |link: &&Link| {
        link.lower == Some(end.index)
            && link.lower_namespace.is_none()
            && matches!(link.kind.as_deref(), Some("macvlan" | "macvtap" | "ipvlan" | "ipvtap"))
    };
    inside.iter().find(on_top).map(|link| {
        format!("its pod has the {} {} on {name}", link.kind.as_deref().unwrap_or_default(), link.name)
    })
}

/// A link of the topology in the host's namespace, or what is wrong with it.
pub(super) fn our_link<'a>(
    links: &HashMap<&str, &'a Link>,
    name: &str,
    alias: &str,
    mac: Mac,
) -> Result<&'a Link, String> {
    let link = *links.get(name).ok_or_else(|| format!("link {name} is gone"))?;
    if link.alias.as_deref() != Some(alias) {
        return Err(format!("link {name} is not ours any more: its alias is not {alias}"));
    }
    if link.mac != Some(mac) {
        return Err(format!("link {name} has another Ethernet address than {mac}"));
    }
    Ok(link)
}

pub(super) fn is_in_bridge(links: &HashMap<&str, &Link>, link: &Link, bridge: &Bridge) -> Result<(), String> {
    let index = links.get(bridge.link.as_str()).map(|bridge| bridge.index);
    if index.is_some() && link.controller == index {
        return Ok(());
    }
    Err(format!("link {} is not a port of its bridge any more", link.name))
}
