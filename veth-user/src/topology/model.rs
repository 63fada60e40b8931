//! The declared state. A value: nothing in this file looks at the machine.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};
use veth_common::Mac;

use crate::{
    datapath::{Hook, Place, Redirect},
    net::{address::Cidr, link},
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
}

/// A veth pair between a pod and the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The pod's end.
    pub name: String,
    /// The host end.
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
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Path {
    /// Two ports cross-connected, like a cable.
    Wire {
        /// The MTU of both ports.
        mtu: u32,
    },
    /// Any number of ports in one forwarding domain.
    Switch(Switch),
}

/// An accelerated switch and the bridge that is its slow path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switch {
    /// The forwarding domain, unique in the topology.
    pub domain: u16,
    /// The bridge's name.
    pub bridge: String,
    /// The bridge's address.
    #[serde(with = "mac_text")]
    pub mac: Mac,
    /// Where frames that the bridge would hand to the host are counted.
    pub slot: u32,
    /// The MTU of all ports.
    pub mtu: u32,
}

/// Where programs are attached, `--hook`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
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
    /// Too few or too many pods.
    #[error("a switch takes 2 to {SWITCH_PODS_MAX} pods, not {0}; make several topologies for more")]
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
    /// A wire with other than two ends.
    #[error("a wire connects exactly 2 ports, not {0}")]
    WireEnds(usize),
}

impl Topology {
    /// Two pods, `ns1` and `ns2`, and an accelerated wire between them.
    ///
    /// # Errors
    ///
    /// When the name or the MTU cannot be used.
    pub fn wire(name: &str, mtu: u32) -> Result<Self, Invalid> {
        let mut topology = Self::empty(name);
        topology.paths.push(Path::Wire { mtu });
        for number in 1..=2_u8 {
            topology.add_pod(&format!("ns{number}"), |_slot| {
                vec![
                    cidr(Ipv4Addr::new(172, 16, 0, number), 24),
                    cidr(Ipv6Addr::new(0xfd00, 0x172, 0x16, 0, 0, 0, 0, number.into()), 64),
                ]
            });
        }
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
        for number in 1..=pods {
            topology.add_pod(&format!("pod{number}"), |slot| {
                let [.., high, low] = slot.to_be_bytes();
                vec![
                    cidr(Ipv4Addr::new(10, 200, high, low), 16),
                    cidr(Ipv6Addr::new(0xfd00, 0x200, 0, 0, 0, 0, 0, u16::from_be_bytes([high, low])), 64),
                ]
            });
        }
        topology.paths.push(Path::Switch(Switch {
            domain: 1,
            bridge: bridge_name(name),
            mac: derive_mac(&[name, "bridge"]),
            slot: topology.next_slot(),
            mtu,
        }));
        topology.validate()?;
        Ok(topology)
    }

    fn empty(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            mark: "veth".to_owned(),
            pods: Vec::new(),
            paths: Vec::new(),
            hook: HookWish::default(),
            redirect: RedirectWish::default(),
            place: Place::default(),
            ebpf_log: LogLevel::default(),
        }
    }

    /// Adds a pod with one port on the first path.
    fn add_pod(&mut self, name: &str, addresses: impl FnOnce(u32) -> Vec<Cidr>) {
        let slot = self.next_slot();
        let is_tutorial = self.name == TUTORIAL && matches!(self.paths.first(), Some(Path::Wire { .. }));
        self.pods.push(Pod {
            name: name.to_owned(),
            namespace: if is_tutorial { name.to_owned() } else { format!("{}-{name}", self.name) },
            ports: vec![Port {
                name: "eth0".to_owned(),
                host_link: host_link_name(&self.name, name),
                slot,
                path: 0,
                mac: derive_mac(&[&self.name, name, "eth0"]),
                host_mac: derive_mac(&[&self.name, name, "eth0", "host"]),
                addresses: addresses(slot),
            }],
        });
    }

    /// Slot 0 counts what belongs to nobody.
    fn next_slot(&self) -> u32 {
        self.slots().max().unwrap_or(veth_common::SLOT_UNATTRIBUTED) + 1
    }

    fn slots(&self) -> impl Iterator<Item = u32> {
        let ports = self.ports().map(|(_, port)| port.slot);
        ports.chain(self.switches().map(|switch| switch.slot))
    }

    /// Entries that the maps need.
    #[must_use]
    pub fn slot_count(&self) -> u32 {
        self.next_slot()
    }

    /// Every port with its pod.
    pub fn ports(&self) -> impl Iterator<Item = (&Pod, &Port)> {
        self.pods.iter().flat_map(|pod| pod.ports.iter().map(move |port| (pod, port)))
    }

    /// Every switch.
    pub fn switches(&self) -> impl Iterator<Item = &Switch> {
        self.paths.iter().filter_map(|path| match path {
            Path::Switch(switch) => Some(switch),
            Path::Wire { .. } => None,
        })
    }

    /// The port at the other end of a wire.
    #[must_use]
    pub fn wire_peer(&self, port: &Port) -> Option<&Port> {
        self.ports().map(|(_, other)| other).find(|other| other.path == port.path && other.slot != port.slot)
    }

    /// Every link that the topology has in the host's namespace.
    pub fn host_links(&self) -> impl Iterator<Item = &str> {
        let ports = self.ports().map(|(_, port)| port.host_link.as_str());
        ports.chain(self.switches().map(|switch| switch.bridge.as_str()))
    }

    /// The link group of everything in the host's namespace, so that it can be deleted in one request.
    #[must_use]
    pub fn group(&self) -> u32 {
        group(&self.name)
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

    /// The alias of a switch's bridge.
    #[must_use]
    pub fn bridge_alias(&self, switch: &Switch) -> String {
        format!("{}switch/{}", self.alias_prefix(), switch.domain)
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
        if let Some((pod, _)) = self.ports().find(|(_, port)| port.path >= self.paths.len()) {
            return Err(Invalid::NoPath(pod.name.clone()));
        }
        for (number, path) in self.paths.iter().enumerate() {
            let ports = self.ports().filter(|(_, port)| port.path == number).count();
            match path {
                Path::Wire { .. } if ports != 2 => return Err(Invalid::WireEnds(ports)),
                Path::Switch(_) if !(2..=SWITCH_PODS_MAX).contains(&ports) => {
                    return Err(Invalid::PodCount(ports));
                }
                Path::Wire { mtu } | Path::Switch(Switch { mtu, .. }) => {
                    if !(MTU_MIN..=link::MTU_MAX).contains(mtu) {
                        return Err(Invalid::Mtu(*mtu));
                    }
                }
            }
        }
        unique("pod", self.pods.iter().map(|pod| pod.name.clone()))?;
        unique("link", self.host_links().map(str::to_owned))?;
        unique("slot", self.slots().map(|slot| slot.to_string()))?;
        unique(
            "Ethernet address",
            self.ports().flat_map(|(_, port)| [port.mac.to_string(), port.host_mac.to_string()]),
        )
    }
}

impl Path {
    /// Its name in tables and JSON.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Wire { .. } => "wire",
            Self::Switch(_) => "switch",
        }
    }

    /// The MTU of its ports.
    #[must_use]
    pub const fn mtu(&self) -> u32 {
        match self {
            Self::Wire { mtu } | Self::Switch(Switch { mtu, .. }) => *mtu,
        }
    }
}

/// What marks a link as a topology's: the beginning of its alias.
#[must_use]
pub fn alias_prefix(mark: &str, topology: &str) -> String {
    format!("{mark}:{topology}/")
}

/// The link group of a topology: a fixed function of its name, so that a crash cannot lose it.
#[must_use]
pub fn group(topology: &str) -> u32 {
    let [a, b, c, d, ..] = hash(&[topology, "group"]).to_be_bytes();
    u32::from_be_bytes([a, b, c, d]) & 0x3fff_ffff | 0x4000_0000
}

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

fn unique(what: &'static str, names: impl Iterator<Item = String>) -> Result<(), Invalid> {
    let mut seen = HashSet::new();
    for name in names {
        if let Some(name) = seen.replace(name) {
            return Err(Invalid::Twice { what, name });
        }
    }
    Ok(())
}

/// The host end of a pod's port: readable where it fits a link's name, unique in any case.
fn host_link_name(topology: &str, pod: &str) -> String {
    fit(&format!("{topology}-{pod}"), &[topology, pod])
}

fn bridge_name(topology: &str) -> String {
    fit(&format!("br-{topology}"), &[topology, "bridge"])
}

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
pub fn hash(parts: &[&str]) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
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
        assert_eq!(topology.validate(), Err(Invalid::WireEnds(1)));
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
