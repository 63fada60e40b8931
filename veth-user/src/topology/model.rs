//! The declared state. A value: nothing in this file looks at the machine.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};
use veth_common::Mac;

use crate::{
    datapath::{Hook, Place, Redirect},
    net::{address::Cidr, forwarding::ForwardPath, link, ovs},
};

/// Pods that one switch takes. The bridge behind it holds 1,023 ports; the rest is kept for links to others.
pub const SWITCH_PODS_MAX: usize = 1_000;

/// The topology of the tutorial. Only here are the namespaces called exactly like the pods.
pub const TUTORIAL: &str = "wire";

/// The name of a topology made by `up --pods` without `--name`.
pub const SWITCH: &str = "switch";

/// The longest name of a topology or a pod.
pub const NAME_MAX: usize = 32;

/// The MTU of every link, unless something else is said.
pub const DEFAULT_MTU: u32 = 1_500;

/// The smallest MTU that IPv6 works with.
pub const MTU_MIN: u32 = 1_280;

/// Everything that is to exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// Its name, unique on a machine.
    pub name: String,
    /// What the aliases of its links begin with.
    pub mark: String,
    /// The pods.
    pub pods: Vec<Pod>,
    /// The paths that the pods' ports are on.
    pub paths: Vec<Path>,
    /// Cables between switches, and from a switch to the host.
    #[serde(default)]
    pub cables: Vec<Cable>,
    /// Where programs are attached.
    #[serde(default)]
    pub hook: HookWish,
    /// How frames are handed over.
    pub redirect: RedirectWish,
    /// Where programs stand among those of others.
    #[serde(default)]
    pub place: Place,
    /// How much the programs log.
    pub ebpf_log: LogLevel,
    /// The file that declares it; nothing where options of `veth up` did.
    #[serde(default)]
    pub file: Option<PathBuf>,
}

/// A network namespace that stands for a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Its name in the topology.
    pub name: String,
    /// The namespace's name, as `ip netns` shows it.
    pub namespace: String,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Kernel parameters inside it, as `sysctl` names them.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// Routes inside it, beside those that its addresses and gateways bring.
    #[serde(default)]
    pub routes: Vec<Route>,
}

/// A route inside a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub to: Cidr,
    /// By which neighbour; nothing where all of it is on the link.
    pub via: Option<IpAddr>,
    /// By which port, an index into [`Pod::ports`].
    pub port: usize,
}

/// A pod's interface: the inner end of a veth pair. The outer end is in the host's namespace, or, on a
/// [`Kind::Direct`] path, the port of another pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The pod's end.
    pub name: String,
    /// The host end. Empty where there is none.
    pub host_link: String,
    /// Where it is counted: its entry in the maps.
    pub slot: u32,
    /// The path it is on, as an index into [`Topology::paths`].
    pub path: usize,
    /// The address of the pod's end.
    #[serde(with = "mac_text")]
    pub mac: Mac,
    /// The address of the host end.
    #[serde(with = "mac_text")]
    pub host_mac: Mac,
    /// The IP addresses of the pod's end.
    pub addresses: Vec<Cidr>,
}

/// How frames get from pod to pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "what a file says of a path, each for itself")]
pub struct Path {
    /// Its name in the topology.
    pub name: String,
    /// What it is made of.
    pub kind: Kind,
    /// The MTU of all ports.
    pub mtu: u32,
    /// Queues a direction of every port.
    #[serde(default = "one")]
    pub queues: u32,
    /// The bridge, where the kind has one.
    #[serde(default)]
    pub bridge: Option<Bridge>,
    /// The networks that its addresses are from.
    #[serde(default)]
    pub subnets: Vec<Cidr>,
    /// The host's addresses on it, by which pods reach what is not on it.
    #[serde(default)]
    pub gateway: Vec<Cidr>,
    /// Whether pods reach, by the gateway, what is beyond the host.
    #[serde(default)]
    pub outside: bool,
    /// Whether frames with a source that is not their port's are dropped.
    #[serde(default)]
    pub spoof_check: bool,
    /// Whether programs of ours count frames that they do not forward. Where they forward, they count anyway.
    #[serde(default)]
    pub counters: bool,
    /// Whether pods know each other's Ethernet addresses without asking.
    #[serde(default)]
    pub neighbours: bool,
    /// What is changed for speed.
    #[serde(default)]
    pub tune: Tune,
}

/// What a path is made of.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One veth pair, an end in each of two pods
    Direct,
    /// Two veth pairs whose host ends are cross-connected by eBPF, like a cable
    Wire,
    /// Pods on an eBPF switch, with a bridge as slow path
    #[default]
    Switch,
    /// Pods on a plain Linux bridge
    Bridge,
    /// Pods on routed point-to-point links
    Route,
    /// Pods on an Open vSwitch of the topology's own
    Ovs,
}

/// A link in the host's namespace that joins ports: a Linux bridge, or the local port of an Open vSwitch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// The forwarding domain of an accelerated switch, unique in the topology.
    pub domain: u16,
    /// The link's name.
    pub link: String,
    /// The link's address.
    #[serde(with = "mac_text")]
    pub mac: Mac,
    /// Where frames that the bridge would hand to the host are counted.
    pub slot: u32,
}

/// What is changed for speed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tune {
    /// Merged frames of up to 192 KiB instead of 64 (BIG TCP).
    pub big_tcp: bool,
    /// GRO in the pods: small frames are merged before the stack sees them.
    pub gro: bool,
}

/// A veth pair between two switches, or between a switch and the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cable {
    /// Its name in the topology.
    pub name: String,
    /// The MTU of both ends.
    pub mtu: u32,
    /// Both ends, in the host's namespace.
    pub ends: [CableEnd; 2],
}

/// An end of a [`Cable`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CableEnd {
    /// The path whose bridge it is a port of; nothing for an interface of the host's own.
    pub path: Option<usize>,
    /// The link's name.
    pub link: String,
    /// The link's address.
    #[serde(with = "mac_text")]
    pub mac: Mac,
    /// The IP addresses of an interface of the host's own.
    pub addresses: Vec<Cidr>,
}

const fn one() -> u32 {
    1
}

/// Where programs are attached, `--hook`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum HookWish {
    /// The fastest that is safe on this kernel; `veth ls` says which, and why
    #[default]
    Auto,
    /// TCX (Linux 6.6 or newer)
    Tcx,
    /// A filter on a clsact qdisc (any kernel)
    Clsact,
    /// XDP in the driver (6.2 or newer): for many small frames; bulk TCP is several times slower
    Xdp,
    /// XDP in the network stack: slower than all others, for drivers and kernels without the former
    XdpGeneric,
}

impl From<HookWish> for Option<Hook> {
    fn from(wish: HookWish) -> Self {
        match wish {
            HookWish::Auto => None,
            HookWish::Tcx => Some(Hook::Tcx),
            HookWish::Clsact => Some(Hook::Clsact),
            HookWish::Xdp => Some(Hook::Xdp),
            HookWish::XdpGeneric => Some(Hook::XdpGeneric),
        }
    }
}

/// How frames are handed over, `--redirect`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum RedirectWish {
    /// The fastest that is safe: peer by TC, devmap by XDP
    #[default]
    Auto,
    /// Straight into the pod (`bpf_redirect_peer`): the fastest
    Peer,
    /// Out of the host end (`bpf_redirect`): one more crossing, visible to tools on the host end
    Host,
    /// Out of the host end by XDP's device map
    Devmap,
}

impl From<RedirectWish> for Option<Redirect> {
    fn from(wish: RedirectWish) -> Self {
        match wish {
            RedirectWish::Auto => None,
            RedirectWish::Peer => Some(Redirect::Peer),
            RedirectWish::Host => Some(Redirect::Host),
            RedirectWish::Devmap => Some(Redirect::Devmap),
        }
    }
}

/// How much the programs log, `--ebpf-log`. A constant when they are loaded: what is off costs nothing.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// Nothing
    #[default]
    Off,
    /// Frames that were dropped
    Warn,
    /// Also frames from interfaces that are no port
    Debug,
}

/// A declaration that makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A name that cannot be a part of a path, a namespace's and a link's name.
    #[error(
        "`{0}` cannot be the name of a {1}: use 1 to {NAME_MAX} of a-z, 0-9 and `-`, beginning with a letter or digit"
    )]
    Name(String, &'static str),
    /// A name that the kernel would not take, or take for something else: it becomes a part of a path.
    #[error("`{0}` cannot be the name of {1}")]
    Unusable(String, &'static str),
    /// Too few or too many pods.
    #[error("a switch takes 2 to {SWITCH_PODS_MAX} pods, not {0}; spread more over several switches")]
    PodCount(usize),
    /// An MTU that does not work.
    #[error("an MTU of {0} is outside {MTU_MIN} to {max}", max = link::MTU_MAX)]
    Mtu(u32),
    /// Something that must be unique is not.
    #[error("the {what} {name} is used twice in the topology")]
    Twice {
        /// What it is.
        what: &'static str,
        /// The value used twice.
        name: String,
    },
    /// A record that speaks of another topology than its name says.
    #[error("it speaks of the topology {0}")]
    Renamed(String),
    /// A port on a path that there is not.
    #[error("a port of the pod {0} is on no path")]
    NoPath(String),
    /// A wire or a direct pair with other than two ends.
    #[error("a {} connects exactly 2 ports, not {ports}", kind.name())]
    Ends {
        /// Which of both.
        kind: Kind,
        /// How many it has.
        ports: usize,
    },
    /// A cable that ends at something that takes no ports.
    #[error("the link {0} ends at a path that is no switch")]
    NoBridge(String),
}

impl Topology {
    /// Two pods, `ns1` and `ns2`, and an accelerated wire between them.
    ///
    /// # Errors
    ///
    /// When the name or the MTU cannot be used.
    pub fn wire(name: &str, mtu: u32) -> Result<Self, Invalid> {
        let mut topology = Self::empty(name);
        let path = topology.add_path(Kind::Wire.name(), Kind::Wire, mtu);
        for number in 1..=2_u8 {
            let pod = topology.add_pod(&format!("ns{number}"));
            if name == TUTORIAL {
                topology.pods[pod].namespace = format!("ns{number}");
            }
            let addresses = vec![
                cidr(Ipv4Addr::new(172, 16, 0, number), 24),
                cidr(Ipv6Addr::new(0xfd00, 0x172, 0x16, 0, 0, 0, 0, number.into()), 64),
            ];
            topology.add_port(pod, path, addresses);
        }
        topology.number_slots(None);
        topology.validate()?;
        Ok(topology)
    }

    /// Any number of pods, `pod1` and so on, on one accelerated switch: `10.200.0.0/16` and `fd00:200::/64`.
    ///
    /// # Errors
    ///
    /// When the name, the number of pods or the MTU cannot be used.
    pub fn switch(name: &str, pods: usize, mtu: u32) -> Result<Self, Invalid> {
        if !(2..=SWITCH_PODS_MAX).contains(&pods) {
            return Err(Invalid::PodCount(pods));
        }
        let mut topology = Self::empty(name);
        let path = topology.add_path(Kind::Switch.name(), Kind::Switch, mtu);
        for number in (1..).take(pods) {
            let pod = topology.add_pod(&format!("pod{number}"));
            let [high, low] = u16::to_be_bytes(number);
            let addresses = vec![
                cidr(Ipv4Addr::new(10, 200, high, low), 16),
                cidr(Ipv6Addr::new(0xfd00, 0x200, 0, 0, 0, 0, 0, number), 64),
            ];
            topology.add_port(pod, path, addresses);
        }
        topology.number_slots(None);
        topology.validate()?;
        Ok(topology)
    }

    /// A topology with nothing in it.
    #[must_use]
    pub fn empty(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            mark: "veth".to_owned(),
            pods: Vec::new(),
            paths: Vec::new(),
            cables: Vec::new(),
            hook: HookWish::default(),
            redirect: RedirectWish::default(),
            place: Place::default(),
            ebpf_log: LogLevel::default(),
            file: None,
        }
    }

    /// Adds a path with everything else at its usual value, and returns its index.
    pub fn add_path(&mut self, name: &str, kind: Kind, mtu: u32) -> usize {
        // The link of the only switch of `up --pods` is called after its topology alone.
        let parts: &[&str] =
            if name == kind.name() { &[&self.name, "bridge"] } else { &[&self.name, name, "bridge"] };
        let readable = if name == kind.name() {
            format!("br-{}", self.name)
        } else {
            format!("br-{}-{name}", self.name)
        };
        let bridge = matches!(kind, Kind::Switch | Kind::Bridge | Kind::Ovs).then(|| Bridge {
            domain: 0,
            link: fit(&readable, parts),
            mac: derive_mac(parts),
            slot: 0,
        });
        self.paths.push(Path {
            name: name.to_owned(),
            kind,
            mtu,
            queues: 1,
            bridge,
            subnets: Vec::new(),
            gateway: Vec::new(),
            outside: false,
            spoof_check: false,
            counters: false,
            neighbours: false,
            tune: Tune::default(),
        });
        self.paths.len() - 1
    }

    /// Adds a pod without ports, and returns its index.
    pub fn add_pod(&mut self, name: &str) -> usize {
        self.pods.push(Pod {
            name: name.to_owned(),
            namespace: format!("{}-{name}", self.name),
            ports: Vec::new(),
            sysctls: BTreeMap::new(),
            routes: Vec::new(),
        });
        self.pods.len() - 1
    }

    /// Adds a port to a pod, on a path, with names and Ethernet addresses that follow from theirs; returns it.
    pub fn add_port(&mut self, pod: usize, path: usize, addresses: Vec<Cidr>) -> &mut Port {
        let slot = self.next_slot();
        let has_host_end = self.paths[path].kind != Kind::Direct;
        let Self { name: topology, pods, .. } = self;
        let pod = &mut pods[pod];
        let name = format!("eth{}", pod.ports.len());
        let host_link = match (has_host_end, pod.ports.len()) {
            (false, _) => String::new(),
            (true, 0) => fit(&format!("{topology}-{}", pod.name), &[topology, &pod.name]),
            (true, _) => fit(&format!("{topology}-{}-{name}", pod.name), &[topology, &pod.name, &name]),
        };
        pod.ports.push(Port {
            mac: derive_mac(&[topology, &pod.name, &name]),
            host_mac: derive_mac(&[topology, &pod.name, &name, "host"]),
            name,
            host_link,
            slot,
            path,
            addresses,
        });
        let last = pod.ports.len() - 1;
        &mut pod.ports[last]
    }

    /// Adds a cable between two paths, or a path and the host, with names and addresses that follow from its own.
    pub fn add_cable(&mut self, name: &str, mtu: u32, ends: [Option<usize>; 2]) -> &mut Cable {
        let end = |(side, path): (&str, Option<usize>)| CableEnd {
            path,
            link: fit(&format!("ln-{}-{name}-{side}", self.name), &[&self.name, name, side, "cable"]),
            mac: derive_mac(&[&self.name, name, side, "cable"]),
            addresses: Vec::new(),
        };
        let [a, b] = ends;
        let ends = [end(("a", a)), end(("b", b))];
        self.cables.push(Cable { name: name.to_owned(), mtu, ends });
        let last = self.cables.len() - 1;
        &mut self.cables[last]
    }

    /// Numbers what is counted: ports that were there before keep their number, so that their counters go on, and
    /// others get numbers that were free.
    pub fn number_slots(&mut self, before: Option<&Self>) {
        let mut kept: BTreeMap<(String, String), u32> = BTreeMap::new();
        if let Some(before) = before {
            kept.extend(
                before.all_ports().map(|(pod, port)| ((pod.name.clone(), port.name.clone()), port.slot)),
            );
            kept.extend(
                before.bridges().map(|(path, bridge)| ((String::new(), path.name.clone()), bridge.slot)),
            );
        }
        let mut taken: HashSet<u32> = kept.values().copied().collect();
        let mut free = veth_common::SLOT_UNATTRIBUTED + 1;
        let mut number = |key: (String, String)| {
            kept.get(&key).copied().unwrap_or_else(|| {
                while !taken.insert(free) {
                    free += 1;
                }
                free
            })
        };
        for pod in &mut self.pods {
            for port in &mut pod.ports {
                port.slot = number((pod.name.clone(), port.name.clone()));
            }
        }
        for path in &mut self.paths {
            if let Some(bridge) = &mut path.bridge {
                bridge.slot = number((String::new(), path.name.clone()));
            }
        }
        self.number_domains(before);
    }

    /// The same for forwarding domains.
    fn number_domains(&mut self, before: Option<&Self>) {
        let before: BTreeMap<&str, u16> = before
            .into_iter()
            .flat_map(|before| before.bridges().map(|(path, bridge)| (path.name.as_str(), bridge.domain)))
            .collect();
        let mut taken: HashSet<u16> = before.values().copied().collect();
        let mut free = 1;
        for path in &mut self.paths {
            if let Some(bridge) = &mut path.bridge {
                bridge.domain = before.get(path.name.as_str()).copied().unwrap_or_else(|| {
                    while !taken.insert(free) {
                        free += 1;
                    }
                    free
                });
            }
        }
    }

    /// Slot 0 counts what belongs to nobody.
    fn next_slot(&self) -> u32 {
        self.slots().max().unwrap_or(veth_common::SLOT_UNATTRIBUTED) + 1
    }

    fn slots(&self) -> impl Iterator<Item = u32> {
        let ports = self.all_ports().map(|(_, port)| port.slot);
        ports.chain(self.bridges().map(|(_, bridge)| bridge.slot))
    }

    /// Entries that the maps need.
    #[must_use]
    pub fn slot_count(&self) -> u32 {
        self.next_slot()
    }

    /// Every port with its pod.
    pub fn all_ports(&self) -> impl Iterator<Item = (&Pod, &Port)> {
        self.pods.iter().flat_map(|pod| pod.ports.iter().map(move |port| (pod, port)))
    }

    /// Every port that has a host end, with its pod.
    pub fn ports(&self) -> impl Iterator<Item = (&Pod, &Port)> {
        self.all_ports().filter(|(_, port)| !port.host_link.is_empty())
    }

    /// Every port whose frames are counted, with its pod: a program of ours stands on it, or, where it has no host
    /// end, at the other end of its pair.
    pub fn counted_ports(&self) -> impl Iterator<Item = (&Pod, &Port)> {
        self.all_ports().filter(|(_, port)| self.path(port).is_counted())
    }

    /// Every port whose frames programs of ours forward, with its pod.
    pub fn accelerated_ports(&self) -> impl Iterator<Item = (&Pod, &Port)> {
        self.ports().filter(|(_, port)| self.path(port).kind.is_accelerated())
    }

    /// The path that a port is on.
    #[must_use]
    pub fn path(&self, port: &Port) -> &Path {
        &self.paths[port.path]
    }

    /// Every path that has a bridge, with it.
    pub fn bridges(&self) -> impl Iterator<Item = (&Path, &Bridge)> {
        self.paths.iter().filter_map(|path| path.bridge.as_ref().map(|bridge| (path, bridge)))
    }

    /// Every bridge on which a program of ours keeps pods from the host.
    pub fn guarded_bridges(&self) -> impl Iterator<Item = (&Path, &Bridge)> {
        self.bridges().filter(|(path, _)| path.is_guarded())
    }

    /// Whether programs of ours are in it at all.
    #[must_use]
    pub fn has_programs(&self) -> bool {
        self.paths.iter().any(|path| path.is_counted() || path.is_guarded())
    }

    /// The ports of a path, with their pods.
    pub fn ports_of(&self, path: usize) -> impl Iterator<Item = (&Pod, &Port)> {
        self.all_ports().filter(move |(_, port)| port.path == path)
    }

    /// The port at the other end of a wire or a direct pair.
    #[must_use]
    pub fn wire_peer(&self, port: &Port) -> Option<&Port> {
        self.ports_of(port.path).map(|(_, other)| other).find(|other| other.slot != port.slot)
    }

    /// Every link that the topology has in the host's namespace.
    pub fn host_links(&self) -> impl Iterator<Item = &str> {
        let ports = self.ports().map(|(_, port)| port.host_link.as_str());
        let bridges = self.bridges().map(|(_, bridge)| bridge.link.as_str());
        let cables = self.cables.iter().flat_map(|cable| cable.ends.iter().map(|end| end.link.as_str()));
        ports.chain(bridges).chain(cables).chain(self.has_ovs().then_some(ovs::COMMON_LINK))
    }

    /// Whether an Open vSwitch is in it.
    #[must_use]
    pub fn has_ovs(&self) -> bool {
        self.paths.iter().any(|path| path.kind == Kind::Ovs)
    }

    /// Whether pods leave a path by the host's routing.
    #[must_use]
    pub fn is_routed(&self) -> bool {
        self.paths.iter().any(Path::is_routed)
    }

    /// Whether the host has to forward between its interfaces.
    #[must_use]
    pub fn needs_forwarding(&self) -> bool {
        self.paths.iter().any(|path| path.outside || path.kind == Kind::Route)
    }

    /// What the host forwards for each path that pods leave by it.
    #[must_use]
    pub fn forward_paths(&self) -> Vec<ForwardPath> {
        let routed = self.paths.iter().filter(|path| path.is_routed());
        let forward = |path: &Path| ForwardPath {
            group: self.path_group(path),
            outside: path.outside,
            subnets: path.subnets.clone(),
        };
        routed.map(forward).collect()
    }

    /// The name of the firewall's table.
    #[must_use]
    pub fn table(&self) -> String {
        format!("{}-{}", self.mark, self.name)
    }

    /// Whose Ethernet address goes with each IP address that pods may ask for: of a pod, of a gateway, or of the host's
    /// end of a cable.
    #[must_use]
    pub fn owners(&self) -> BTreeMap<IpAddr, Mac> {
        let ports = self.all_ports().map(|(_, port)| (&port.addresses, port.mac));
        let gateways = self.bridges().map(|(path, bridge)| (&path.gateway, bridge.mac));
        let legs = self.cables.iter().flat_map(|cable| &cable.ends).map(|end| (&end.addresses, end.mac));
        let all = ports.chain(gateways).chain(legs);
        all.flat_map(|(addresses, mac)| addresses.iter().map(move |cidr| (cidr.address, mac))).collect()
    }

    /// The Ethernet addresses that a port's pod is told.
    pub fn neighbours_of(&self, port: &Port) -> impl Iterator<Item = (IpAddr, Mac)> {
        let path = self.path(port);
        let others = path.neighbours.then(|| self.ports_of(port.path).map(|(_, other)| other));
        let others = others.into_iter().flatten().filter(|other| other.slot != port.slot);
        let pods = others.flat_map(|other| other.addresses.iter().map(|cidr| (cidr.address, other.mac)));
        // A routed pod has nobody but the host.
        let host = match (&path.bridge, path.kind) {
            (Some(bridge), _) if path.neighbours => Some(bridge.mac),
            (None, Kind::Route) => Some(port.host_mac),
            _ => None,
        };
        let gateway =
            host.into_iter().flat_map(|mac| path.gateway.iter().map(move |cidr| (cidr.address, mac)));
        pods.chain(gateway)
    }

    /// The routes of a pod: to everywhere by the gateway of the first of its ports that has one in a family, to the
    /// other pods of further routed paths by theirs, and its own.
    #[must_use]
    pub fn routes_of(&self, pod: &Pod) -> Vec<Route> {
        let mut routes = Vec::new();
        for to in [cidr(Ipv4Addr::UNSPECIFIED, 0), cidr(Ipv6Addr::UNSPECIFIED, 0)] {
            let is_alike = |cidr: &&Cidr| cidr.address.is_ipv4() == to.address.is_ipv4();
            let by_gateway = pod.ports.iter().enumerate().filter_map(|(number, port)| {
                port.addresses.iter().find(is_alike)?;
                let path = self.path(port);
                Some((number, path, path.gateway.iter().find(is_alike)?.address))
            });
            for (place, (port, path, via)) in by_gateway.enumerate() {
                let subnets = path.subnets.iter().filter(|subnet| place > 0 && is_alike(subnet));
                let subnets = subnets.filter(|_| path.kind == Kind::Route).copied();
                let to = (place == 0).then_some(to).into_iter().chain(subnets);
                routes.extend(to.map(|to| Route { to, via: Some(via), port }));
            }
        }
        routes.retain(|route| !pod.routes.iter().any(|own| own.to == route.to));
        routes.extend(pod.routes.iter().cloned());
        routes
    }

    /// The kernel parameters of a pod. One with several ports answers for an address only where it has it: two ports on
    /// one network would both answer otherwise, and replies come back at the wrong one.
    #[must_use]
    pub fn sysctls_of(&self, pod: &Pod) -> BTreeMap<String, String> {
        let mut sysctls = BTreeMap::new();
        if pod.ports.len() > 1 {
            for (key, value) in [("arp_ignore", "1"), ("arp_announce", "2")] {
                sysctls.insert(format!("net.ipv4.conf.all.{key}"), value.to_owned());
            }
        }
        sysctls.extend(pod.sysctls.clone());
        sysctls
    }

    /// The indexes of the paths that cables join with a path, and its own.
    fn joined(&self, path: usize) -> HashSet<usize> {
        let mut joined = HashSet::from([path]);
        loop {
            let before = joined.len();
            for cable in &self.cables {
                let ends: Vec<usize> = cable.ends.iter().filter_map(|end| end.path).collect();
                if ends.iter().any(|end| joined.contains(end)) {
                    joined.extend(ends);
                }
            }
            if joined.len() == before {
                return joined;
            }
        }
    }

    /// Whether an Open vSwitch in user space sees the frames of a path. It gets them without what the kernel
    /// remembers of them, so that a checksum left to the device would be lost.
    #[must_use]
    pub fn reaches_ovs(&self, path: usize) -> bool {
        self.has_ovs() && self.joined(path).iter().any(|path| self.paths[*path].kind == Kind::Ovs)
    }

    /// What features of a path's ports are set for: nothing, or the reason in a word.
    #[must_use]
    pub fn preparation(&self, path: usize, hook: Hook) -> Option<&'static str> {
        let value = &self.paths[path];
        if hook.is_xdp() && value.kind.is_accelerated() {
            Some("XDP")
        } else if self.reaches_ovs(path) {
            Some("Open vSwitch")
        } else {
            (value.tune != Tune::default()).then_some("speed")
        }
    }

    /// The link group of what is in the host's namespace, so that it can be deleted in one request.
    #[must_use]
    pub fn group(&self) -> u32 {
        group(&[&self.name, "group"])
    }

    /// The link group of a path that pods leave by the host: firewall rules know it by that.
    #[must_use]
    pub fn path_group(&self, path: &Path) -> u32 {
        if path.is_routed() { group(&[&self.name, &path.name, "group"]) } else { self.group() }
    }

    /// The link group of a port's host end. Only where it is routed does a firewall rule look at it.
    #[must_use]
    pub fn port_group(&self, port: &Port) -> u32 {
        let path = self.path(port);
        if path.kind == Kind::Route { self.path_group(path) } else { self.group() }
    }

    /// Every link group that links of the topology are in.
    pub fn groups(&self) -> impl Iterator<Item = u32> {
        std::iter::once(self.group())
            .chain(self.paths.iter().filter(|path| path.is_routed()).map(|path| self.path_group(path)))
    }

    /// What marks a link as this topology's: the beginning of its alias.
    #[must_use]
    pub fn alias_prefix(&self) -> String {
        alias_prefix(&self.mark, &self.name)
    }

    /// The alias of a port's host end.
    #[must_use]
    pub fn port_alias(&self, pod: &Pod, port: &Port) -> String {
        format!("{}{}/{}", self.alias_prefix(), pod.name, port.name)
    }

    /// The alias of a path's bridge.
    #[must_use]
    pub fn bridge_alias(&self, path: &Path) -> String {
        format!("{}{}/{}", self.alias_prefix(), path.kind.name(), path.name)
    }

    /// The alias of both ends of a cable.
    #[must_use]
    pub fn cable_alias(&self, cable: &Cable) -> String {
        format!("{}link/{}", self.alias_prefix(), cable.name)
    }

    /// The alias of a pod's loopback, which marks the namespace as this topology's.
    #[must_use]
    pub fn pod_alias(&self, pod: &Pod) -> String {
        format!("{}{}", self.alias_prefix(), pod.name)
    }

    /// Checks everything that can be checked without looking at the machine.
    ///
    /// # Errors
    ///
    /// The first thing that makes no sense.
    pub fn validate(&self) -> Result<(), Invalid> {
        check_name(&self.name, "topology")?;
        for pod in &self.pods {
            check_name(&pod.name, "pod")?;
        }
        for path in &self.paths {
            check_name(&path.name, "path")?;
        }
        for cable in &self.cables {
            check_name(&cable.name, "link")?;
        }
        if let Some(pod) = self.pods.iter().find(|pod| !is_namespace_name(&pod.namespace)) {
            return Err(Invalid::Unusable(pod.namespace.clone(), "a network namespace"));
        }
        let inner = self.all_ports().map(|(_, port)| port.name.as_str());
        if let Some(link) = inner.chain(self.host_links()).find(|link| !is_interface_name(link)) {
            return Err(Invalid::Unusable(link.to_owned(), "an interface"));
        }
        let lost = |(_, port): &(&Pod, &Port)| port.path >= self.paths.len();
        if let Some((pod, _)) = self.all_ports().find(lost) {
            return Err(Invalid::NoPath(pod.name.clone()));
        }
        for (number, path) in self.paths.iter().enumerate() {
            let ports = self.ports_of(number).count();
            match path.kind {
                Kind::Direct | Kind::Wire if ports != 2 => {
                    return Err(Invalid::Ends { kind: path.kind, ports });
                }
                Kind::Switch | Kind::Bridge | Kind::Ovs if ports > SWITCH_PODS_MAX => {
                    return Err(Invalid::PodCount(ports));
                }
                _ if !(MTU_MIN..=link::MTU_MAX).contains(&path.mtu) => return Err(Invalid::Mtu(path.mtu)),
                _ => {}
            }
        }
        for end in self.cables.iter().flat_map(|cable| &cable.ends) {
            if end.path.is_some_and(|path| self.paths.get(path).is_none_or(|path| path.bridge.is_none())) {
                return Err(Invalid::NoBridge(end.link.clone()));
            }
        }
        unique("pod", self.pods.iter().map(|pod| pod.name.clone()))?;
        unique("path", self.paths.iter().map(|path| path.name.clone()))?;
        unique("link", self.cables.iter().map(|cable| cable.name.clone()))?;
        unique("host interface", self.host_links().map(str::to_owned))?;
        unique("slot", self.slots().map(|slot| slot.to_string()))?;
        unique(
            "Ethernet address",
            self.all_ports().flat_map(|(_, port)| [port.mac.to_string(), port.host_mac.to_string()]),
        )
    }
}

impl Path {
    /// Whether programs of ours see its frames.
    #[must_use]
    pub const fn is_counted(&self) -> bool {
        self.counters || self.kind.is_accelerated()
    }

    /// Whether pods leave it by the host's routing.
    #[must_use]
    pub const fn is_routed(&self) -> bool {
        !self.gateway.is_empty()
    }

    /// Whether a program on its bridge keeps pods from the host. An Open vSwitch needs none: its local port is
    /// down.
    #[must_use]
    pub const fn is_guarded(&self) -> bool {
        matches!(self.kind, Kind::Switch | Kind::Bridge) && !self.is_routed()
    }
}

impl Kind {
    /// Its name in files, tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Wire => "wire",
            Self::Switch => "switch",
            Self::Bridge => "bridge",
            Self::Route => "route",
            Self::Ovs => "ovs",
        }
    }

    /// Whether programs of ours forward frames on it.
    #[must_use]
    pub const fn is_accelerated(self) -> bool {
        matches!(self, Self::Wire | Self::Switch)
    }
}

/// What marks a link as a topology's: the beginning of its alias.
#[must_use]
pub fn alias_prefix(mark: &str, topology: &str) -> String {
    format!("{mark}:{topology}/")
}

/// A link group: a fixed function of names, so that a crash cannot lose it.
fn group(parts: &[&str]) -> u32 {
    let [a, b, c, d, ..] = hash(parts).to_be_bytes();
    u32::from_be_bytes([a, b, c, d]) & 0x3fff_ffff | 0x4000_0000
}

/// An address with its prefix length.
fn cidr(address: impl Into<IpAddr>, prefix: u8) -> Cidr {
    Cidr { address: address.into(), prefix }
}

/// Checks the name of a topology or a pod: it becomes a part of paths and of other names.
///
/// # Errors
///
/// When it has other characters than those, or is too long.
pub fn check_name(name: &str, what: &'static str) -> Result<(), Invalid> {
    let fits = !name.is_empty()
        && name.len() <= NAME_MAX
        && !name.starts_with('-')
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if fits { Ok(()) } else { Err(Invalid::Name(name.to_owned(), what)) }
}

/// Whether a network namespace can have a name: a file's.
#[must_use]
pub fn is_namespace_name(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && !matches!(name, "." | "..")
        && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
}

/// Whether an interface can have a name, and nothing else is meant by it.
#[must_use]
pub fn is_interface_name(name: &str) -> bool {
    (1..=link::NAME_MAX).contains(&name.len())
        && !matches!(name, "." | ".." | "lo" | "all" | "default")
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'))
}

fn unique(what: &'static str, names: impl Iterator<Item = String>) -> Result<(), Invalid> {
    let mut seen = HashSet::new();
    for name in names {
        if let Some(name) = seen.replace(name) {
            return Err(Invalid::Twice { what, name });
        }
    }
    Ok(())
}

/// A link's name: readable where it fits, unique in any case.
fn fit(name: &str, parts: &[&str]) -> String {
    if name.len() <= link::NAME_MAX {
        return name.to_owned();
    }
    let digest = format!("{:010x}", hash(parts) >> 24);
    format!("{}-{digest}", &name[..link::NAME_MAX - 1 - digest.len()])
}

/// A stable, locally administered, unicast address.
fn derive_mac(parts: &[&str]) -> Mac {
    let [a, b, c, d, e, ..] = hash(parts).to_be_bytes();
    Mac::new([0x02, a, b, c, d, e])
}

/// FNV-1a, finished with a multiplication so that the high bits depend on every byte. Fixed for ever: names
/// and addresses of running topologies come from it.
#[must_use]
pub fn hash<T: AsRef<[u8]>>(parts: &[T]) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let bytes = parts.iter().flat_map(|part| part.as_ref().iter().copied().chain([0]));
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
    (hash ^ hash >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

mod mac_text {
    //! Ethernet addresses as text in JSON.
    #![expect(clippy::trivially_copy_pass_by_ref, reason = "serde chooses the signature")]

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
    use veth_common::Mac;

    pub(super) fn serialize<S: Serializer>(mac: &Mac, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(mac)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Mac, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes: Option<Vec<u8>> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .map(Mac::new)
            .ok_or_else(|| D::Error::custom(format!("`{text}` is not an Ethernet address")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_tutorial_is_as_the_tutorial_says() {
        let topology = Topology::wire(TUTORIAL, DEFAULT_MTU).unwrap();
        let namespaces: Vec<_> = topology.pods.iter().map(|pod| pod.namespace.as_str()).collect();
        assert_eq!(namespaces, ["ns1", "ns2"]);
        let addresses: Vec<_> = topology.ports().map(|(_, port)| port.addresses[0].to_string()).collect();
        assert_eq!(addresses, ["172.16.0.1/24", "172.16.0.2/24"]);
        let links: Vec<_> = topology.host_links().collect();
        assert_eq!(links, ["wire-ns1", "wire-ns2"]);
    }

    #[test]
    fn other_topologies_do_not_meet_the_tutorial() {
        let topology = Topology::wire("lab", DEFAULT_MTU).unwrap();
        assert_eq!(topology.pods[0].namespace, "lab-ns1");
        let topology = Topology::switch(TUTORIAL, 2, DEFAULT_MTU).unwrap();
        assert_eq!(topology.pods[0].namespace, "wire-pod1");
    }

    #[test]
    fn a_switch_has_one_address_a_pod_in_both_families() {
        let topology = Topology::switch(SWITCH, SWITCH_PODS_MAX, DEFAULT_MTU).unwrap();
        let last = &topology.pods[999].ports[0];
        let addresses: Vec<_> = last.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.200.3.232/16", "fd00:200::3e8/64"]);
        assert_eq!(topology.slot_count(), 1_002);
    }

    #[test]
    fn what_was_there_keeps_its_slot() {
        let before = Topology::switch("s", 3, 1_500).unwrap();
        let mut after = Topology::switch("s", 5, 1_500).unwrap();
        after.pods.remove(1);
        after.number_slots(Some(&before));
        let slots: Vec<u32> = after.ports().map(|(_, port)| port.slot).collect();
        assert_eq!(slots, [1, 3, 5, 6]);
        assert_eq!(after.paths[0].bridge.as_ref().unwrap().slot, 4);
        after.validate().unwrap();
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(Topology::switch("s", 1, 1500), Err(Invalid::PodCount(1)));
        assert_eq!(Topology::switch("s", 1_001, 1500), Err(Invalid::PodCount(1_001)));
        assert_eq!(Topology::wire("s", 1_279), Err(Invalid::Mtu(1_279)));
        assert_eq!(Topology::wire("s", 65_536), Err(Invalid::Mtu(65_536)));
        for name in ["", "-a", "a/b", "..", "a.b", "A", "a b", &"x".repeat(NAME_MAX + 1)] {
            assert!(matches!(Topology::wire(name, 1500), Err(Invalid::Name(..))), "{name}");
        }
        let mut topology = Topology::wire("s", 1500).unwrap();
        topology.pods.pop();
        assert_eq!(topology.validate(), Err(Invalid::Ends { kind: Kind::Wire, ports: 1 }));
        let mut topology = Topology::wire("s", 1500).unwrap();
        topology.pods[1].ports[0].mac = topology.pods[0].ports[0].mac;
        assert!(matches!(topology.validate(), Err(Invalid::Twice { what: "Ethernet address", .. })));
    }

    #[test]
    fn survives_json() {
        let topology = Topology::switch("s", 3, 9_000).unwrap();
        let text = serde_json::to_string(&topology).unwrap();
        assert_eq!(serde_json::from_str::<Topology>(&text).unwrap(), topology);
    }

    proptest! {
        #[test]
        fn every_valid_name_gives_valid_links(name in "[a-z0-9][a-z0-9-]{0,31}", pods in 2..40_usize) {
            let topology = Topology::switch(&name, pods, 1_500).unwrap();
            for link in topology.host_links() {
                prop_assert!(link.len() <= link::NAME_MAX && !link.contains(['/', ' ', '.']), "{}", link);
            }
            for (_, port) in topology.ports() {
                prop_assert!(port.mac.is_valid_source() && port.mac.bytes()[0] & 2 != 0);
            }
            prop_assert!(topology.group() > 0);
        }
    }
}
