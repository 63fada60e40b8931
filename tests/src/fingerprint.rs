//! All that a command could change of a host, as lines of text: two that are equal mean that nothing was changed.
//!
//! What changes by itself is left out: statistics, lifetimes, what was learned or heard. A number that the kernel gives
//! anew to whatever is made anew stands behind a `#`, and [`shape`] leaves it out.

use std::{
    collections::{BTreeMap, BTreeSet, hash_map::DefaultHasher},
    fs,
    hash::{Hash as _, Hasher as _},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
};

use aya::{
    maps::loaded_maps,
    programs::{loaded_links, loaded_programs},
};
use futures_util::StreamExt as _;
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{
        InfoBridge, InfoBridgePort, InfoData, InfoPortData, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    },
    neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAttribute, RouteMessage},
    rule::RuleMessage,
    tc::{TcAttribute, TcMessage},
};
use veth_user::{
    datapath::attach,
    net::{Netlink, ethtool::Ethtool, link::Link},
};

use crate::{lab::with_netlink, nft};

/// Links by their numbers.
type Names = BTreeMap<u32, String>;

/// What of a link stays as somebody set it.
const FLAGS: LinkFlags =
    LinkFlags::Up.union(LinkFlags::Noarp).union(LinkFlags::Promisc).union(LinkFlags::Allmulti);

/// Where the calling thread's host keeps what commands make.
const FOLDERS: [&str; 2] = ["/run", PINS];
const PINS: &str = "/sys/fs/bpf";

/// Values of the namespace. Those of netfilter come with modules that the kernel loads by itself.
const SYSCTLS: [&str; 4] = ["core", "ipv4", "ipv6", "bridge"];

/// The calling thread's host: its network, its files and its mounts.
#[must_use]
pub fn host() -> Vec<String> {
    let mut lines = network();
    for folder in FOLDERS {
        files(Path::new(folder), &mut lines);
    }
    lines.extend(mounts());
    // The folder and its mount are iproute2's convention and stay.
    lines.retain(|line| !line.starts_with("file /run/netns dir") && !line.starts_with("mount /run/netns "));
    lines.sort();
    lines
}

/// The calling thread's network namespace.
#[must_use]
pub fn network() -> Vec<String> {
    let mut lines = with_netlink(async |netlink| rows(netlink).await);
    for folder in SYSCTLS {
        sysctls(Path::new("/proc/sys/net").join(folder).as_path(), &mut lines);
    }
    lines.extend(nft::objects());
    lines.sort();
    lines
}

/// What there is of the whole machine, which others change at any time.
#[must_use]
pub fn machine() -> BTreeSet<String> {
    // One that goes while it is looked at is gone.
    let programs = loaded_programs().flatten().map(|program| format!("program #{}", program.id()));
    let maps = loaded_maps().flatten().map(|map| format!("map #{}", map.id()));
    let links = loaded_links().flatten().map(|link| format!("bpf link #{}", link.id()));
    let hurry = fs::read_to_string("/sys/kernel/rcu_expedited").unwrap_or_default();
    let hurry = format!("rcu_expedited {}", hurry.trim());
    programs.chain(maps).chain(links).chain([hurry]).collect()
}

/// A fingerprint without the numbers that are others for what was made again.
#[must_use]
pub fn shape(fingerprint: &[String]) -> Vec<String> {
    let known = |word: &&str| !word.starts_with('#');
    let line = |line: &String| line.split(' ').filter(known).collect::<Vec<_>>().join(" ");
    let mut lines: Vec<String> = fingerprint.iter().map(line).collect();
    lines.sort();
    lines
}

/// Checks that a host is as it was, and says what is not.
///
/// # Panics
///
/// When something is not.
pub fn assert_same(before: &[String], after: &[String], what: &str) {
    let without = |these: &[String], those: &[String], sign: &str| -> Vec<String> {
        let others = these.iter().filter(|line| !those.contains(line));
        others.map(|line| format!("{sign} {line}")).collect()
    };
    let difference = [without(before, after, "-"), without(after, before, "+")].concat().join("\n");
    assert!(difference.is_empty(), "{what} changed the host:\n{difference}");
}

/// Everything that rtnetlink tells of.
async fn rows(netlink: &Netlink) -> Vec<String> {
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    let connection = tokio::spawn(connection);
    let dump = async |request| dump(&handle, request).await;
    let mut lines = Vec::new();
    let mut names = Names::new();
    for link in netlink.links().await.unwrap() {
        lines.extend(programs(netlink, &link).await);
        lines.push(features(&link));
        names.insert(link.index, link.name);
    }
    let name = |index: u32| names.get(&index).cloned().unwrap_or_else(|| format!("#{index}"));
    let mut bridges = NeighbourMessage::default();
    bridges.header.family = AddressFamily::Bridge;
    for request in [
        RouteNetlinkMessage::GetLink(LinkMessage::default()),
        RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()),
        RouteNetlinkMessage::GetAddress(AddressMessage::default()),
        RouteNetlinkMessage::GetRoute(RouteMessage::default()),
        RouteNetlinkMessage::GetRule(RuleMessage::default()),
        RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()),
        RouteNetlinkMessage::GetNeighbour(bridges),
    ] {
        lines.extend(dump(request).await.iter().filter_map(|row| line(row, &name)));
    }
    connection.abort();
    lines
}

async fn dump(handle: &rtnetlink::Handle, request: RouteNetlinkMessage) -> Vec<RouteNetlinkMessage> {
    let mut request = NetlinkMessage::from(request);
    request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut answers = handle.clone().request(request).unwrap();
    let mut rows = Vec::new();
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::InnerMessage(row) => rows.push(row),
            NetlinkPayload::Error(error) if error.code.is_some() => panic!("{error:?}"),
            _ => {}
        }
    }
    rows
}

/// `RT_TABLE_LOCAL` of `linux/rtnetlink.h`.
const LOCAL_TABLE: u8 = 255;

/// A row in words, if it is one that stays as somebody made it.
fn line(row: &RouteNetlinkMessage, name: &impl Fn(u32) -> String) -> Option<String> {
    Some(match row {
        RouteNetlinkMessage::NewLink(link) => {
            let index = link.header.index;
            let what: Vec<String> =
                link.attributes.iter().flat_map(|attribute| link_attribute(attribute, name)).collect();
            let flags = link.header.flags & FLAGS;
            format!("link {} #{index} {flags:?} {}", name(index), what.join(" "))
        }
        RouteNetlinkMessage::NewQueueDiscipline(qdisc) => {
            let what: Vec<_> = qdisc
                .attributes
                .iter()
                .filter(|attribute| matches!(attribute, TcAttribute::Kind(_) | TcAttribute::Options(_)))
                .collect();
            let link = name(qdisc.header.index.cast_unsigned());
            // What the kernel puts there by itself has no number.
            format!("qdisc {link} {:?} #{:?} {what:?}", qdisc.header.parent, qdisc.header.handle)
        }
        RouteNetlinkMessage::NewAddress(address) => {
            let changes = |attribute: &&AddressAttribute| {
                matches!(attribute, AddressAttribute::CacheInfo(_) | AddressAttribute::Flags(_))
            };
            let what: Vec<_> = address.attributes.iter().filter(|attribute| !changes(attribute)).collect();
            let header = &address.header;
            format!("address {} /{} {:?} {what:?}", name(header.index), header.prefix_len, header.scope)
        }
        // The kernel's own for an address, which is a row itself; while it looks for duplicates they come and go.
        RouteNetlinkMessage::NewRoute(route) if route.header.table == LOCAL_TABLE => return None,
        RouteNetlinkMessage::NewRoute(route) => {
            let what: Vec<String> = route
                .attributes
                .iter()
                .filter_map(|attribute| match attribute {
                    RouteAttribute::CacheInfo(_) => None,
                    RouteAttribute::Oif(link) => Some(format!("dev {}", name(*link))),
                    other => Some(format!("{other:?}")),
                })
                .collect();
            let mut header = route.header.clone();
            // Whether its link can carry anything at this moment.
            header.flags = netlink_packet_route::route::RouteFlags::empty();
            format!("route {header:?} {}", what.join(" "))
        }
        RouteNetlinkMessage::NewRule(rule) => format!("rule {:?} {:?}", rule.header, rule.attributes),
        RouteNetlinkMessage::NewNeighbour(neighbour) => {
            let header = &neighbour.header;
            let is_fdb = header.family == AddressFamily::Bridge;
            let bridge = neighbour.attributes.iter().find_map(|attribute| match attribute {
                NeighbourAttribute::Controller(bridge) => Some(name(*bridge)),
                _ => None,
            });
            // Without a bridge: groups that a link listens to. And the kernel knows those of IP without being told.
            let is_told = match header.state {
                NeighbourState::Permanent => bridge.is_some() || !is_fdb,
                NeighbourState::Noarp => bridge.is_some(),
                _ => false,
            };
            if !is_told {
                return None;
            }
            let what: Vec<_> = neighbour
                .attributes
                .iter()
                .filter(|attribute| {
                    matches!(
                        attribute,
                        NeighbourAttribute::Destination(_)
                            | NeighbourAttribute::LinkLayerAddress(_)
                            | NeighbourAttribute::Vlan(_)
                    )
                })
                .collect();
            let kind = if is_fdb { "fdb" } else { "neighbour" };
            let bridge = bridge.unwrap_or_default();
            format!("{kind} {} {:?} {:?} {bridge} {what:?}", name(header.ifindex), header.state, header.flags)
        }
        _ => return None,
    })
}

fn link_attribute(attribute: &LinkAttribute, name: &impl Fn(u32) -> String) -> Vec<String> {
    match attribute {
        LinkAttribute::Controller(link) => vec![format!("port of {}", name(*link))],
        LinkAttribute::Address(_)
        | LinkAttribute::IfAlias(_)
        | LinkAttribute::Mtu(_)
        | LinkAttribute::Group(_)
        | LinkAttribute::TxQueueLen(_)
        | LinkAttribute::NumTxQueues(_)
        | LinkAttribute::NumRxQueues(_)
        | LinkAttribute::GsoMaxSegs(_)
        | LinkAttribute::GsoMaxSize(_)
        | LinkAttribute::GroMaxSize(_)
        | LinkAttribute::GsoIpv4MaxSize(_)
        | LinkAttribute::GroIpv4MaxSize(_)
        | LinkAttribute::ProtoDown(_) => vec![format!("{attribute:?}")],
        LinkAttribute::LinkInfo(infos) => infos.iter().flat_map(link_info).collect(),
        _ => Vec::new(),
    }
}

fn link_info(info: &LinkInfo) -> Vec<String> {
    match info {
        LinkInfo::Kind(kind) => vec![format!("{kind:?}")],
        LinkInfo::Data(InfoData::Bridge(settings)) => {
            let is_set = |setting: &&InfoBridge| {
                matches!(
                    setting,
                    InfoBridge::StpState(_)
                        | InfoBridge::AgeingTime(_)
                        | InfoBridge::ForwardDelay(_)
                        | InfoBridge::VlanFiltering(_)
                        | InfoBridge::MulticastSnooping(_)
                        | InfoBridge::NfCallIpTables(_)
                )
            };
            settings.iter().filter(is_set).map(|setting| format!("{setting:?}")).collect()
        }
        LinkInfo::PortData(InfoPortData::BridgePort(settings)) => {
            let is_set = |setting: &&InfoBridgePort| {
                matches!(
                    setting,
                    InfoBridgePort::Learning(_)
                        | InfoBridgePort::UnicastFlood(_)
                        | InfoBridgePort::MulticastFlood(_)
                        | InfoBridgePort::BroadcastFlood(_)
                        | InfoBridgePort::HairpinMode(_)
                        | InfoBridgePort::Isolated(_)
                )
            };
            settings.iter().filter(is_set).map(|setting| format!("{setting:?}")).collect()
        }
        _ => Vec::new(),
    }
}

/// XDP, TCX and filters, in the order they run.
async fn programs(netlink: &Netlink, link: &Link) -> Vec<String> {
    let ingress = attach::attached(netlink, link).await.unwrap();
    let egress = attach::attached_to_egress(netlink, link).await.unwrap();
    let sides = ingress.iter().map(|one| ("in", one)).chain(egress.iter().map(|one| ("out", one)));
    sides
        .enumerate()
        .map(|(number, (side, attach::Attached { hook, program, name, position }))| {
            let id = program.map(|id| format!(" #{id}")).unwrap_or_default();
            format!("program on {} {side} {number} {hook} {name} {position:?}{id}", link.name)
        })
        .collect()
}

/// What a link does for the kernel, and what it could.
fn features(link: &Link) -> String {
    let on: Vec<String> = match Ethtool::open().unwrap().features(&link.name) {
        Ok(features) => features.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect(),
        Err(error) => vec![error.to_string()],
    };
    format!("features {} {}", link.name, on.join(" "))
}

fn sysctls(folder: &Path, lines: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            sysctls(&path, lines);
        } else if let Ok(value) = fs::read_to_string(&path) {
            lines.push(format!("sysctl {} {}", path.display(), value.trim()));
        }
    }
}

/// Files with what is in them, and pins and names of namespaces with what they stand for.
fn files(folder: &Path, lines: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        let file = entry.metadata().unwrap();
        let place = format!("file {}", path.display());
        if file.is_dir() {
            lines.push(format!("{place} dir {:o}", file.mode()));
            files(&path, lines);
        } else if file.file_type().is_socket() {
            lines.push(format!("{place} socket {:o}", file.mode()));
        } else if file.is_symlink() {
            // Where it leads is not ours to follow: one of somebody else's may not be (`fs.protected_symlinks`).
            lines.push(format!("{place} link to {}", fs::read_link(&path).unwrap().display()));
        } else if let Some(content) = fs::read(&path).ok().filter(|_| !folder.starts_with(PINS)) {
            lines.push(format!("{place} {:o} #{:016x}", file.mode(), digest(&content)));
        } else {
            // What is mounted there, or pinned.
            let inode = fs::metadata(&path).unwrap().ino();
            lines.push(format!("{place} {:o} #{inode}", file.mode()));
        }
    }
}

/// Where what is mounted, without the numbers of mounts and their groups.
fn mounts() -> Vec<String> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let line = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        let kind = fields.iter().position(|field| *field == "-").unwrap();
        // The root of a namespace's name is its number.
        let root =
            if fields[3].starts_with("net:") { format!("#{}", fields[3]) } else { fields[3].to_owned() };
        format!("mount {} {root} {} {}", fields[4], fields[5], fields[kind + 1..].join(" "))
    };
    text.lines().map(line).collect()
}

pub(crate) fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}
