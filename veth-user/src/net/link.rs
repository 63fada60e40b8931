//! Links: veth pairs made whole in one request, and what a dump says of links that exist.

use std::os::fd::{AsFd as _, AsRawFd as _};

use netlink_packet_core::DefaultNla;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoMacVlan, InfoVeth, LinkAttribute,
        LinkFlags, LinkInfo, LinkMessage, LinkProtoInfoBridge, LinkXdp, MacVlanMode, State, XdpAttached,
    },
};
use serde::{Deserialize, Serialize};
use veth_common::Mac;

use super::{Error, Netlink, Netns, Result};

/// The longest name the kernel gives a link, `IFNAMSIZ` less the closing zero.
pub const NAME_MAX: usize = 15;

/// The largest merged frame of a link, unless something else is said: `GSO_LEGACY_MAX_SIZE`, in bytes.
pub const MERGED_MAX: u32 = 65_536;

/// The largest MTU of a veth.
pub const MTU_MAX: u32 = 65_535;

/// `IFLA_BRPORT_LEARNING`, `IFLA_BRPORT_GROUP_FWD_MASK` and `IFLA_BRPORT_MCAST_FLOOD` of `linux/if_link.h`.
const BRPORT_LEARNING: u16 = 8;
const BRPORT_GROUP_FORWARD: u16 = 31;
const BRPORT_MCAST_FLOOD: u16 = 27;

/// The addresses 01:80:c2:00:00:0X that a bridge port forwards as it does any other group's: all but that of pause
/// frames, which the kernel drops (`BR_GROUPFWD_MACPAUSE`).
const FORWARDED_GROUPS: u16 = !(1 << 1);

/// One end of a veth pair to be made.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// The link's name.
    pub name: &'a str,
    /// Its Ethernet address.
    pub mac: Mac,
}

/// A veth pair to be made, in one request, so that nothing of it can be half-made.
#[derive(Debug)]
pub struct Pair<'a> {
    /// The end in the namespace of the socket.
    pub host: End<'a>,
    /// The other end.
    pub pod: End<'a>,
    /// Where the other end is born. Nothing if beside the first.
    pub namespace: Option<&'a Netns>,
    /// The MTU of both.
    pub mtu: u32,
    /// The link group of the host end, and of the other if it is in the same namespace.
    pub group: u32,
    /// How many queues both ends have to receive, and how many to send.
    pub queues: u32,
}

/// What the kernel knows of a link.
#[derive(Clone, Debug, Default)]
pub struct Link {
    /// The interface index.
    pub index: u32,
    /// The name.
    pub name: String,
    /// The alias, `ip link set alias`.
    pub alias: Option<String>,
    /// The link group.
    pub group: u32,
    /// What kind of link: `veth`, `bridge`, ….
    pub kind: Option<String>,
    /// The bridge that it is a port of.
    pub controller: Option<u32>,
    /// The link that this one hangs on: the other end of a veth pair, the link below a macvlan.
    pub lower: Option<u32>,
    /// The number that this namespace knows the other link's namespace by; nothing if it is this one.
    pub lower_namespace: Option<i32>,
    /// The XDP program on it.
    pub xdp: Option<XdpProgram>,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it can send and receive. After it was set up, the kernel takes a moment to start its queue, and
    /// until then drops what is sent.
    pub operational: bool,
    /// The MTU.
    pub mtu: u32,
    /// How long a packet is handed to it that it, or what is behind it, cuts into frames. 0 where the kernel does not
    /// say.
    pub gso_max_size: u32,
    /// How long a packet becomes that is put together of frames that it received. 0 where the kernel does not say.
    pub gro_max_size: u32,
    /// The Ethernet address.
    pub mac: Option<Mac>,
    /// Its counters.
    pub stats: LinkStats,
}

/// A macvlan link to be made, in bridge mode.
#[derive(Debug)]
pub struct Macvlan<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its Ethernet address.
    pub mac: Mac,
    /// The link below it, in the namespace of the socket.
    pub lower: u32,
    /// Where it is to be.
    pub namespace: &'a Netns,
}

/// An XDP program on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpProgram {
    /// Its number.
    pub id: u32,
    /// Whether the driver runs it. Otherwise the network stack does, for every driver (generic XDP).
    pub native: bool,
}

/// The kernel's 64-bit counters of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStats {
    /// Frames received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Received frames that were dropped before any program.
    pub rx_dropped: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames that could not be sent.
    pub tx_dropped: u64,
}

impl Netlink {
    /// Makes a veth pair: names, addresses, MTU, queues, group and the other end's namespace in one request.
    ///
    /// # Errors
    ///
    /// `EEXIST` when a name is taken.
    pub async fn add_pair(&self, pair: &Pair<'_>) -> Result<()> {
        let Pair { host, pod, namespace, mtu, group, queues } = pair;
        let end = |end: &End<'_>| {
            let mut message = LinkMessage::default();
            message.attributes = vec![
                LinkAttribute::IfName(end.name.to_owned()),
                LinkAttribute::Address(end.mac.bytes().to_vec()),
                LinkAttribute::Mtu(*mtu),
                LinkAttribute::NumTxQueues(*queues),
                LinkAttribute::NumRxQueues(*queues),
            ];
            message
        };
        let mut peer = end(pod);
        peer.attributes.push(match namespace {
            Some(namespace) => LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd()),
            None => LinkAttribute::Group(*group),
        });
        let mut message = end(host);
        message.attributes.extend([
            LinkAttribute::Group(*group),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ]);
        self.create(&format!("make the veth pair {}", host.name), RouteNetlinkMessage::NewLink(message)).await
    }

    /// Makes a macvlan link, which sends to others on the same link below straight.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` when the kernel has no macvlan.
    pub async fn add_macvlan(&self, macvlan: &Macvlan<'_>) -> Result<()> {
        let Macvlan { name, mac, lower, namespace } = macvlan;
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName((*name).to_owned()),
            LinkAttribute::Address(mac.bytes().to_vec()),
            LinkAttribute::Link(*lower),
            LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::MacVlan),
                LinkInfo::Data(InfoData::MacVlan(vec![InfoMacVlan::Mode(MacVlanMode::Bridge)])),
            ]),
        ];
        self.create(&format!("make the macvlan link {name}"), RouteNetlinkMessage::NewLink(message)).await
    }

    /// Makes a link of some kind, with nothing but its name.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` when the kernel has no such kind.
    pub async fn add_kind(&self, name: &str, kind: &str) -> Result<()> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Other(kind.to_owned()))]),
        ];
        self.create(&format!("make the {kind} link {name}"), RouteNetlinkMessage::NewLink(message)).await
    }

    /// Every link of the namespace.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn links(&self) -> Result<Vec<Link>> {
        self.list("list links", LinkMessage::default()).await
    }

    /// Every link of another namespace, by the number that this one knows it by ([`Link::lower_namespace`]). Needs
    /// no look-up of a name and no change of namespace.
    ///
    /// Minimum kernel version: 4.20 (`IFLA_TARGET_NETNSID` in dumps).
    ///
    /// # Errors
    ///
    /// When there is no such namespace any more, or it may not be looked into.
    pub async fn links_in(&self, namespace: i32) -> Result<Vec<Link>> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfNetnsId(namespace)];
        self.list(&format!("list the links of namespace {namespace}"), message).await
    }

    async fn list(&self, action: &str, message: LinkMessage) -> Result<Vec<Link>> {
        let rows = self.dump(action, RouteNetlinkMessage::GetLink(message)).await?;
        Ok(rows
            .into_iter()
            .filter_map(|row| match row {
                RouteNetlinkMessage::NewLink(message) => Some(Link::from(message)),
                _ => None,
            })
            .collect())
    }

    /// The link of a name.
    ///
    /// # Errors
    ///
    /// `ENODEV` when there is none.
    pub async fn link(&self, name: &str) -> Result<Link> {
        let action = format!("find the link {name}");
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        match self.get(&action, RouteNetlinkMessage::GetLink(message)).await? {
            RouteNetlinkMessage::NewLink(message) => Ok(Link::from(message)),
            _ => Err(Error::new(action, std::io::Error::from_raw_os_error(libc::ENODEV))),
        }
    }

    /// Writes a link's alias. Aliases in the request that makes a link are ignored by the kernel.
    ///
    /// # Errors
    ///
    /// When the link is gone.
    pub async fn set_alias(&self, index: u32, alias: &str) -> Result<()> {
        let message = by_index(index, vec![LinkAttribute::IfAlias(alias.to_owned())]);
        self.change(&format!("set alias {alias}"), RouteNetlinkMessage::SetLink(message)).await
    }

    /// Sets a link up.
    ///
    /// # Errors
    ///
    /// When the link is gone.
    pub async fn set_up(&self, index: u32) -> Result<()> {
        self.change(&format!("set link {index} up"), RouteNetlinkMessage::SetLink(up(index))).await
    }

    /// Changes how long packets may be on the way to a link that cuts them (GSO) and from a link that puts them
    /// together (GRO), of both families. Above 65,536 that is BIG TCP.
    ///
    /// Minimum kernel version: 5.19 above 65,536 (`IFLA_GRO_MAX_SIZE`, IPv6 only), 6.3 for IPv4
    /// (`IFLA_GSO_IPV4_MAX_SIZE`); kernels before that ignore what they do not know.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the device cannot cut as much. When the link is gone.
    #[doc(alias = "IFLA_GSO_MAX_SIZE")]
    #[doc(alias = "IFLA_GRO_MAX_SIZE")]
    pub async fn set_max_sizes(&self, index: u32, gso: u32, gro: u32) -> Result<()> {
        // The order is the kernel's: the older two also set the newer ones, up to 65,536.
        let sizes = vec![
            LinkAttribute::GsoMaxSize(gso),
            LinkAttribute::GroMaxSize(gro),
            LinkAttribute::GsoIpv4MaxSize(gso),
            LinkAttribute::GroIpv4MaxSize(gro),
        ];
        self.change(
            &format!("let packets of link {index} be {gso} bytes long to send and {gro} to receive"),
            RouteNetlinkMessage::SetLink(by_index(index, sizes)),
        )
        .await
    }

    /// Keeps the kernel from giving a link an IPv6 address of its own: `ip link set addrgenmode none`.
    ///
    /// # Errors
    ///
    /// When the link is gone, or is without IPv6.
    pub async fn make_no_addresses(&self, index: u32) -> Result<()> {
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let message =
            by_index(index, vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])])]);
        let action = format!("keep link {index} from making addresses");
        self.change(&action, RouteNetlinkMessage::SetLink(message)).await
    }

    /// Puts a link in a link group.
    ///
    /// # Errors
    ///
    /// When the link is gone.
    pub async fn set_group(&self, index: u32, group: u32) -> Result<()> {
        let message = by_index(index, vec![LinkAttribute::Group(group)]);
        self.change(&format!("put link {index} in group {group}"), RouteNetlinkMessage::SetLink(message))
            .await
    }

    /// Changes a link's MTU.
    ///
    /// # Errors
    ///
    /// When the link is gone, or does not take it.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<()> {
        let message = by_index(index, vec![LinkAttribute::Mtu(mtu)]);
        self.change(&format!("set the MTU of link {index} to {mtu}"), RouteNetlinkMessage::SetLink(message))
            .await
    }

    /// Makes a link a port of a bridge that neither learns from it nor expects anything but `master
    /// static` entries to find it, and sets it up.
    ///
    /// # Errors
    ///
    /// `EXFULL` when the bridge has its 1,023 ports.
    pub async fn join_bridge(&self, index: u32, bridge: u32, takes_multicast: bool) -> Result<()> {
        self.join(index, bridge).await?;
        let flags = [flag(BRPORT_LEARNING, false), flag(BRPORT_MCAST_FLOOD, takes_multicast)];
        self.set_bridge_port(index, flags.into_iter().chain([forwarded_groups()])).await
    }

    /// As `bridge link set` does it, and not `ip link set type bridge_slave`: that would tell everybody of the link as
    /// a whole, and for that the kernel looks for the number of the pod's namespace among all others.
    async fn set_bridge_port(
        &self,
        index: u32,
        settings: impl IntoIterator<Item = LinkProtoInfoBridge>,
    ) -> Result<()> {
        let settings = settings.into_iter().collect();
        let mut message = by_index(index, vec![LinkAttribute::ProtoInfoBridge(settings)]);
        message.header.interface_family = AddressFamily::Bridge;
        self.change(&format!("set up the bridge port {index}"), RouteNetlinkMessage::SetLink(message)).await
    }

    /// Whether a bridge hands what is for many to this port of it.
    ///
    /// # Errors
    ///
    /// When the link is no bridge port.
    pub async fn set_multicast_flood(&self, index: u32, on: bool) -> Result<()> {
        self.set_bridge_port(index, [flag(BRPORT_MCAST_FLOOD, on)]).await
    }

    /// Makes a link a plain port of a bridge, which learns who is behind it, and sets it up.
    ///
    /// # Errors
    ///
    /// `EXFULL` when the bridge has its 1,023 ports.
    pub async fn join_bridge_learning(&self, index: u32, bridge: u32) -> Result<()> {
        self.join(index, bridge).await?;
        self.set_bridge_port(index, [forwarded_groups()]).await
    }

    async fn join(&self, index: u32, bridge: u32) -> Result<()> {
        let mut join = up(index);
        join.attributes.push(LinkAttribute::Controller(bridge));
        self.change(
            &format!("make link {index} a port of bridge {bridge}"),
            RouteNetlinkMessage::SetLink(join),
        )
        .await
    }

    /// Deletes a link. The other end of a veth pair goes with it. Succeeds if there is none.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn delete_link(&self, index: u32) -> Result<()> {
        let message = by_index(index, Vec::new());
        self.delete(&format!("delete link {index}"), message).await
    }

    /// Deletes every link of a group in one transaction: 50 links take as long as two deleted one by one.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn delete_group(&self, group: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::Group(group)];
        self.delete(&format!("delete the links of group {group}"), message).await
    }

    async fn delete(&self, action: &str, message: LinkMessage) -> Result<()> {
        match self.change(action, RouteNetlinkMessage::DelLink(message)).await {
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(()),
            result => result,
        }
    }
}

fn flag(kind: u16, on: bool) -> LinkProtoInfoBridge {
    LinkProtoInfoBridge::Other(DefaultNla::new(kind, vec![u8::from(on)]))
}

/// A bridge does not forward what is for an address reserved by IEEE 802.1Q (8.6.3), as LLDP is. Instead it leaves such
/// a frame, whatever is in it, to the stack of the host as if its port were no port: a way from any pod into a host
/// that is not on the bridge at all. Forwarded, it comes up at the bridge itself, like the rest.
/// `br_handle_frame` in `net/bridge/br_input.c`.
fn forwarded_groups() -> LinkProtoInfoBridge {
    LinkProtoInfoBridge::Other(DefaultNla::new(BRPORT_GROUP_FORWARD, FORWARDED_GROUPS.to_ne_bytes().to_vec()))
}

fn up(index: u32) -> LinkMessage {
    let mut message = by_index(index, Vec::new());
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
}

fn by_index(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    message
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            up: message.header.flags.contains(LinkFlags::Up),
            ..Self::default()
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::Group(group) => link.group = group,
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::Link(index) => link.lower = Some(index),
                LinkAttribute::LinkNetNsId(namespace) => link.lower_namespace = Some(namespace),
                LinkAttribute::Xdp(attributes) => link.xdp = xdp_program(&attributes),
                LinkAttribute::OperState(state) => link.operational = state == State::Up,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::GsoMaxSize(size) => link.gso_max_size = size,
                LinkAttribute::GroMaxSize(size) => link.gro_max_size = size,
                LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(Mac::new),
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.into_iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                }
                LinkAttribute::Stats64(stats) => {
                    link.stats = LinkStats {
                        rx_packets: stats.rx_packets,
                        rx_bytes: stats.rx_bytes,
                        rx_dropped: stats.rx_dropped,
                        tx_packets: stats.tx_packets,
                        tx_bytes: stats.tx_bytes,
                        tx_dropped: stats.tx_dropped,
                    };
                }
                _ => {}
            }
        }
        link
    }
}

fn xdp_program(attributes: &[LinkXdp]) -> Option<XdpProgram> {
    let mut native = true;
    let mut id = None;
    for attribute in attributes {
        match attribute {
            LinkXdp::Attached(attached) => native = *attached != XdpAttached::SocketBuffer,
            LinkXdp::ProgId(number) => id = Some(*number),
            _ => {}
        }
    }
    id.map(|id| XdpProgram { id, native })
}
