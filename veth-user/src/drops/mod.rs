//! Drops that concern our pods: those of our programs, which are counted all the time, and those of the kernel, which are
//! counted while somebody looks.

pub mod kernel;
mod symbols;
pub mod words;

use std::{collections::BTreeMap, io};

use serde::Serialize;
use veth_common::{
    Protocol,
    drops::{DropKey, DropPlace},
};

use crate::{
    datapath::{self, drops::KernelDrops},
    net::{self, Netlink, Netns},
    state::{Record, Roots},
    stats::{self, Snapshot, Source, Wanted},
    text::with_causes,
};

use self::{kernel::Kernel, symbols::Symbols};

/// Why drops cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel does not describe itself.
    #[error("read {path}, by which the kernel says where it keeps things (CONFIG_DEBUG_INFO_BTF)")]
    NoBtf {
        /// The file.
        path: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The kernel describes itself in no way that is understood.
    #[error("this kernel is not understood: {0}")]
    BadBtf(String),
    /// Counters.
    #[error(transparent)]
    Stats(#[from] stats::Error),
    /// Programs or maps.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
    /// Links and namespaces.
    #[error(transparent)]
    Net(#[from] net::Error),
}

/// Who dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// A program of ours.
    Veth,
    /// The kernel, or a program of somebody else.
    Kernel,
}

/// Packets of one kind that were dropped in one place for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// Who dropped them.
    pub by: By,
    /// The topology.
    pub topology: String,
    /// The pod, or nothing for the bridge behind a switch.
    pub pod: Option<String>,
    /// The link: the pod's end, the host end, or the bridge. Nothing where only the pod is known: a socket had the packet.
    pub link: Option<String>,
    /// Why, by its name.
    pub reason: String,
    /// Why, in words, where there is more to say.
    pub what: Option<&'static str>,
    /// What to do about it, where there is something.
    pub remedy: Option<&'static str>,
    /// What the packets carried.
    pub protocol: &'static str,
    /// The kernel's function.
    pub function: Option<String>,
    /// How many, since it is looked at.
    pub packets: u64,
    /// How many since the topology is up, where that is counted.
    pub since_up: Option<u64>,
}

/// Where packets are dropped.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Where {
    topology: String,
    pod: Option<String>,
    link: Option<String>,
}

/// Somebody looks.
pub struct Session {
    source: Source,
    before: Vec<Snapshot>,
    drops: KernelDrops,
    places: Vec<Where>,
    kernel: Kernel,
    symbols: Symbols,
}

impl Session {
    /// Begins to count.
    ///
    /// # Errors
    ///
    /// When what was asked for is not up, or the kernel refuses.
    pub async fn start(roots: &Roots, wanted: Wanted) -> Result<Self, Error> {
        let pod = match &wanted {
            Wanted::Pod { pod, .. } => Some(pod.clone()),
            _ => None,
        };
        let mut source = Source::open(roots, wanted)?;
        let records: Vec<Record> = source.records()?.cloned().collect();
        let (mut places, mut numbers) = (Vec::new(), Vec::new());
        for record in &records {
            for (place, at) in find_places(record, pod.as_deref()).await? {
                numbers.push((place, u32::try_from(places.len()).unwrap_or(u32::MAX)));
                places.push(at);
            }
        }
        let kernel = Kernel::running()?;
        let symbols = Symbols::running().unwrap_or_else(|error| {
            log::warn!("the functions that drop cannot be named: {error}");
            Symbols::default()
        });
        let before = read(&mut source).await?;
        let drops = KernelDrops::attach(&kernel.offsets, &numbers)?;
        Ok(Self { source, before, drops, places, kernel, symbols })
    }

    /// What was dropped since then, the most first.
    ///
    /// # Errors
    ///
    /// When counters cannot be read.
    pub async fn dropped(&mut self) -> Result<Vec<Dropped>, Error> {
        let now = read(&mut self.source).await?;
        let mut all = self.ours(&now);
        all.extend(self.kernels(&now)?);
        all.sort_by(|a, b| b.packets.cmp(&a.packets).then_with(|| b.since_up.cmp(&a.since_up)));
        Ok(all)
    }

    /// How many kernel drops there was no room to tell apart.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub fn other(&self) -> Result<u64, Error> {
        Ok(self.drops.other()?)
    }

    /// How many packets a port dropped of a protocol, for a reason of ours, since it is looked at and since it is up.
    fn own(&self, now: &Snapshot) -> Vec<(usize, &'static str, Protocol, u64, u64)> {
        let before = self.before.iter().find(|before| before.topology == now.topology);
        let mut all = Vec::new();
        for (number, port) in now.ports.iter().enumerate() {
            let earlier = before.and_then(|before| before.port(port, number));
            for (index, (reason, _)) in port.dropped().enumerate() {
                for protocol in Protocol::ALL {
                    let packets =
                        |port: &stats::PortStats| port.counted.dropped[index].protocols[protocol.index()];
                    let since_up = packets(port);
                    let grown = since_up.saturating_sub(earlier.map_or(0, packets));
                    if since_up > 0 {
                        all.push((number, reason.name(), protocol, grown, since_up));
                    }
                }
            }
        }
        all
    }

    fn ours(&self, now: &[Snapshot]) -> Vec<Dropped> {
        let dropped =
            |snapshot: &Snapshot,
             (number, reason, protocol, packets, since_up): (usize, &str, Protocol, u64, u64)| {
                let port = &snapshot.ports[number];
                let words = words::of(reason);
                Dropped {
                    by: By::Veth,
                    topology: snapshot.topology.clone(),
                    pod: port.pod.clone(),
                    link: Some(if port.link.is_empty() { port.port.clone() } else { port.link.clone() }),
                    reason: reason.to_owned(),
                    what: words.map(|words| words.what),
                    remedy: words.map(|words| words.remedy).filter(|remedy| !remedy.is_empty()),
                    protocol: protocol.name(),
                    function: None,
                    packets,
                    since_up: Some(since_up),
                }
            };
        now.iter()
            .flat_map(|snapshot| self.own(snapshot).into_iter().map(move |own| (snapshot, own)))
            .map(|(snapshot, own)| dropped(snapshot, own))
            .collect()
    }

    fn kernels(&self, now: &[Snapshot]) -> Result<Vec<Dropped>, Error> {
        // What a program of ours drops, the kernel drops for it: that has a line already.
        let mut ours: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for snapshot in now {
            for (number, _, protocol, grown, _) in self.own(snapshot) {
                *ours.entry((snapshot.ports[number].link.as_str(), protocol.name())).or_default() += grown;
            }
        }
        let mut kinds: BTreeMap<(&Where, String, &'static str, Option<String>), u64> = BTreeMap::new();
        for (key, packets) in self.drops.counts()? {
            let Some(at) = usize::try_from(key.place).ok().and_then(|place| self.places.get(place)) else {
                continue;
            };
            let protocol = usize::try_from(key.protocol).ok().and_then(|number| Protocol::ALL.get(number));
            let protocol = protocol.unwrap_or(&Protocol::Other).name();
            let reason = self.reason(key.reason);
            let mut packets = packets;
            if ["tc_ingress", "xdp", "no_reason"].contains(&reason.as_str())
                && let Some(own) = at.link.as_deref().and_then(|link| ours.get_mut(&(link, protocol)))
            {
                let both = packets.min(*own);
                packets -= both;
                *own -= both;
            }
            if packets > 0 {
                let function = self.symbols.name(key.location).map(str::to_owned);
                *kinds.entry((at, reason, protocol, function)).or_default() += packets;
            }
        }
        let dropped = |((at, reason, protocol, function), packets): ((&Where, String, _, _), u64)| {
            let words = words::of(&reason);
            let Where { topology, pod, link } = at.clone();
            Dropped {
                by: By::Kernel,
                topology,
                pod,
                link,
                what: words.map(|words| words.what),
                remedy: words.map(|words| words.remedy).filter(|remedy| !remedy.is_empty()),
                reason,
                protocol,
                function,
                packets,
                since_up: None,
            }
        };
        Ok(kinds.into_iter().map(dropped).collect())
    }

    /// The name of a number. Parts of the kernel have numbers of their own, which are not told.
    fn reason(&self, number: u32) -> String {
        if number == DropKey::NO_REASON {
            return "no_reason".to_owned();
        }
        self.kernel.reasons.get(&number).cloned().unwrap_or_else(|| format!("0x{number:x}"))
    }
}

/// Snapshots of what can be read; what cannot is told.
async fn read(source: &mut Source) -> Result<Vec<Snapshot>, Error> {
    let snapshot = |(topology, result): stats::source::Read| {
        result.inspect_err(|error| log::warn!("{topology}: {}", with_causes(error))).ok()
    };
    Ok(source.take().await?.into_iter().filter_map(snapshot).collect())
}

/// Where packets of a topology or one of its pods can be dropped: its links on the host, all links in its pods, and its
/// pods' sockets.
async fn find_places(record: &Record, pod: Option<&str>) -> Result<Vec<(DropPlace, Where)>, Error> {
    let topology = &record.topology;
    let at = |pod: Option<&str>, link: Option<String>| Where {
        topology: topology.name.clone(),
        pod: pod.map(str::to_owned),
        link,
    };
    let inode = |namespace: &Netns| -> Result<u32, Error> {
        Ok(u32::try_from(namespace.inode()?).unwrap_or_default())
    };
    let here = inode(&Netns::current()?)?;
    let netlink = Netlink::open()?;
    let links = netlink.links().await?;
    let index = |name: &str| links.iter().find(|link| link.name == name).map(|link| link.index);
    let mut places = Vec::new();
    for pod in topology.pods.iter().filter(|candidate| pod.is_none_or(|pod| pod == candidate.name)) {
        for port in &pod.ports {
            if let Some(ifindex) = index(&port.host_link) {
                let place = DropPlace { namespace: here, ifindex };
                places.push((place, at(Some(&pod.name), Some(port.host_link.clone()))));
            }
        }
        // A pod that is gone drops nothing.
        let Ok(namespace) = Netns::open(&pod.namespace) else { continue };
        let inside = inode(&namespace)?;
        places.push((DropPlace { namespace: inside, ifindex: 0 }, at(Some(&pod.name), None)));
        for link in namespace.netlink()?.links().await? {
            let place = DropPlace { namespace: inside, ifindex: link.index };
            places.push((place, at(Some(&pod.name), Some(link.name))));
        }
    }
    if pod.is_none() {
        for (_, bridge) in topology.bridges() {
            if let Some(ifindex) = index(&bridge.link) {
                places.push((DropPlace { namespace: here, ifindex }, at(None, Some(bridge.link.clone()))));
            }
        }
    }
    Ok(places)
}
