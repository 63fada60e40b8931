//! Keeps what the maps say of ports true to what links are at this moment, while a topology runs.
//!
//! Where a port is not what its entry says any more, the entry goes, and its frames take the slow path, which knows
//! nothing of us. What people did is not undone; that is for `up`.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use serde::Serialize;
use veth_common::RedirectMode;

use super::{
    Error, Pod, Port,
    entries::{fdb_key, mode, port_entry, target},
    features,
    observe::{hazard_among, is_in_bridge, our_link},
};
use crate::{
    datapath::{Datapath, INGRESS, XDP, attach::attached_by, pins::Pins},
    net::{
        Netlink,
        events::{Happened, Touched},
        link::Link,
    },
    state::{Record, Roots},
    text::with_causes,
};

/// So many ports are looked at before it is listened again for what happens meanwhile, which goes first.
const AT_ONCE: usize = 16;

/// Something that was done about a port, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// The topology.
    pub topology: String,
    /// The pod.
    pub pod: String,
    /// Its port.
    pub port: String,
    /// What.
    pub what: String,
}

/// How frames are to reach a port.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    /// Straight, in this way.
    Fast(RedirectMode),
    /// As if we were not there, and why.
    Slow(String),
}

/// A running topology.
pub struct Followed {
    record: Record,
    datapath: Datapath,
    /// Pods and their ports, by index, that programs know.
    ports: Vec<(usize, usize)>,
    /// How frames reach each of them.
    ways: Vec<Way>,
    /// Where each was when it was looked at last.
    places: Vec<Place>,
    /// Those that something happened to, in this order.
    pressing: VecDeque<usize>,
    /// Those that are looked at because something may have happened to them before.
    waiting: VecDeque<usize>,
}

/// Where a port is: its host end, and the number of its pod's namespace.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    host_end: Option<u32>,
    namespace: Option<i32>,
}

/// A port as it is.
struct Found<'a> {
    host_end: Option<&'a Link>,
    inside: Option<Vec<Link>>,
}

impl Followed {
    /// Opens the maps of a topology that is up, in our namespace, and of our layout.
    ///
    /// # Errors
    ///
    /// When its pins are not there, or the kernel does not answer.
    pub async fn open(roots: &Roots, record: Record, netlink: &Netlink) -> Result<Self, Error> {
        let pins = Pins::new(roots, record.layout_version, &record.topology.name);
        let datapath = Datapath::open(pins, record.selection.hook)?;
        let topology = &record.topology;
        let ports: Vec<(usize, usize)> = topology
            .pods
            .iter()
            .enumerate()
            .flat_map(|(at, pod)| (0..pod.ports.len()).map(move |port| (at, port)))
            .filter(|(pod, port)| topology.path(&topology.pods[*pod].ports[*port]).kind.is_accelerated())
            .collect();
        let usual = Way::Fast(mode(record.selection.redirect));
        let links = netlink.links().await?;
        let links: HashMap<&str, &Link> = links.iter().map(|link| (link.name.as_str(), link)).collect();
        let place = |(pod, port): &(usize, usize)| {
            Place::of(links.get(topology.pods[*pod].ports[*port].host_link.as_str()).copied())
        };
        let places = ports.iter().map(place).collect();
        Ok(Self {
            ways: vec![usual; ports.len()],
            places,
            pressing: VecDeque::new(),
            waiting: (0..ports.len()).collect(),
            record,
            datapath,
            ports,
        })
    }

    /// What it was opened by.
    #[must_use]
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// Notes what has happened.
    pub fn notice(&mut self, happened: &Happened) {
        let numbers = 0..self.ports.len();
        match happened {
            Happened::TooMuch => {
                let missing: Vec<usize> = numbers.filter(|number| !self.waiting.contains(number)).collect();
                self.waiting.extend(missing);
            }
            Happened::To(touched) => {
                for number in numbers.filter(|number| is_touched(self.places[*number], touched)) {
                    if !self.pressing.contains(&number) {
                        self.pressing.push_back(number);
                    }
                }
            }
        }
    }

    /// Whether there are ports to look at.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.is_pressed() || !self.waiting.is_empty()
    }

    /// Whether something is known to have happened to a port.
    #[must_use]
    pub fn is_pressed(&self) -> bool {
        !self.pressing.is_empty()
    }

    /// Looks at some of the ports that something happened to, and changes what the maps say of them. Whoever calls has
    /// the topology to himself.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer. The ports are looked at next time.
    pub async fn look(&mut self, netlink: &Netlink) -> Result<Vec<Note>, Error> {
        // However much happens, the others get their turn.
        let more = if self.is_pressed() { AT_ONCE / 4 } else { AT_ONCE };
        let mut concerned: Vec<usize> = self.pressing.drain(..self.pressing.len().min(AT_ONCE)).collect();
        concerned.extend(self.waiting.drain(..self.waiting.len().min(more)));
        let links = self.links(netlink, &concerned).await.inspect_err(|_| self.waiting.extend(&concerned))?;
        let links: HashMap<&str, &Link> = links.iter().map(|link| (link.name.as_str(), link)).collect();
        let topology = self.record.topology.name.clone();
        let mut notes = Vec::new();
        for number in concerned {
            let (pod, port) = self.ports[number];
            let (pod, port) = {
                let pod = &self.record.topology.pods[pod];
                (pod.clone(), pod.ports[port].clone())
            };
            let mut note = |what: String| {
                notes.push(Note {
                    topology: topology.clone(),
                    pod: pod.name.clone(),
                    port: port.name.clone(),
                    what,
                });
            };
            // One that goes at this very moment fails, and will have been touched.
            if let Err(error) = self.look_at(number, &pod, &port, &links, netlink, &mut note).await {
                note(format!("not followed: {}", with_causes(&error)));
            }
        }
        Ok(notes)
    }

    /// Looks at one of the ports.
    async fn look_at(
        &mut self,
        number: usize,
        pod: &Pod,
        port: &Port,
        links: &HashMap<&str, &Link>,
        netlink: &Netlink,
        note: &mut dyn FnMut(String),
    ) -> Result<(), Error> {
        let alias = self.record.topology.port_alias(pod, port);
        let host_end = our_link(links, &port.host_link, &alias, port.host_mac).ok();
        let inside = match host_end.and_then(|link| link.lower_namespace) {
            // One that goes at this very moment has no links.
            Some(namespace) => Some(netlink.links_in(namespace).await.unwrap_or_default()),
            None => None,
        };
        self.places[number] = Place::of(host_end);
        let way = self.way(pod, port, links, &Found { host_end, inside });
        // First of all: frames may be going astray.
        self.go(port, links, &way)?;
        if way != self.ways[number] {
            note(match &way {
                Way::Fast(RedirectMode::Peer) => "reached by peer redirect".to_owned(),
                Way::Fast(RedirectMode::Host) => "reached through its host end".to_owned(),
                Way::Slow(why) => format!("left to the slow path: {why}"),
            });
            self.ways[number] = way;
        }
        if let Some(link) = host_end
            && self.reattach(netlink, link).await?
        {
            note(format!("our program was not on {} any more; it is again", link.name));
        }
        Ok(())
    }

    /// The links of the host that matter for some ports.
    async fn links(&self, netlink: &Netlink, concerned: &[usize]) -> Result<Vec<Link>, Error> {
        let topology = &self.record.topology;
        let mut names: HashSet<&str> = HashSet::new();
        for number in concerned {
            let (pod, port) = self.ports[*number];
            let port = &topology.pods[pod].ports[port];
            names.insert(&port.host_link);
            names.extend(topology.wire_peer(port).map(|peer| peer.host_link.as_str()));
            names.extend(topology.path(port).bridge.as_ref().map(|bridge| bridge.link.as_str()));
        }
        let mut links = Vec::new();
        for name in names {
            match netlink.link(name).await {
                Ok(link) => links.push(link),
                Err(error) if error.errno() == Some(libc::ENODEV) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(links)
    }

    /// How frames must reach a port as it is.
    fn way(&self, pod: &Pod, port: &Port, links: &HashMap<&str, &Link>, found: &Found<'_>) -> Way {
        let Record { topology, selection, .. } = &self.record;
        let path = topology.path(port);
        let slow = |why: String| Way::Slow(why);
        let Some(host_end) = found.host_end else {
            return slow(format!("the link {} is gone, or not ours any more", port.host_link));
        };
        if !host_end.up {
            return slow(format!("the link {} is down", port.host_link));
        }
        if let Some(bridge) = &path.bridge
            && let Err(why) = is_in_bridge(links, host_end, bridge)
        {
            return slow(why);
        }
        let usual = mode(selection.redirect);
        let Some(inside) = &found.inside else {
            // In the same namespace the kernel refuses peer redirect.
            return Way::Fast(RedirectMode::Host);
        };
        let Some(end) = inside.iter().find(|link| Some(link.index) == host_end.lower) else {
            return slow("its pod\'s end is gone".to_owned());
        };
        if end.mac != Some(port.mac) {
            return slow(format!("its pod has given {} another Ethernet address", end.name));
        }
        if !end.up {
            return slow(format!("its pod has set {} down", end.name));
        }
        if selection.hook.is_xdp() {
            let needed = features::needed(topology, port.path, selection.hook);
            if features::unfit_of(pod, port, &needed).is_ok_and(|unfit| !unfit.is_empty()) {
                return slow(format!("its pod has changed features of {} that XDP needs", end.name));
            }
        }
        match hazard_among(inside, host_end) {
            Some(_) => Way::Fast(RedirectMode::Host),
            None => Way::Fast(usual),
        }
    }

    /// Lets the maps say so.
    fn go(&mut self, port: &Port, links: &HashMap<&str, &Link>, way: &Way) -> Result<(), Error> {
        let Self { record: Record { topology, .. }, datapath, .. } = self;
        if let (Way::Fast(_), Some(link)) = (way, links.get(port.host_link.as_str()))
            && datapath.target(port.slot) != Some(link.index)
        {
            datapath.set_target(port.slot, link.index)?;
        }
        if let Some(key) = fdb_key(topology, port) {
            let there = datapath.fdb(key);
            match way {
                Way::Slow(_) if there.is_some() => datapath.remove_fdb(key)?,
                Way::Fast(mode) if there != Some(target(topology, port, *mode)) => {
                    datapath.set_fdb(key, &target(topology, port, *mode))?;
                }
                Way::Slow(_) | Way::Fast(_) => {}
            }
        } else if let Some(peer) = topology.wire_peer(port)
            && let Some(link) = links.get(peer.host_link.as_str())
        {
            // A wire has no slow path; out of its host end the kernel does with a frame what it does with any.
            let mode = match way {
                Way::Fast(mode) => *mode,
                Way::Slow(_) => RedirectMode::Host,
            };
            let entry = port_entry(topology, peer, link.index, mode);
            if datapath.port(link.index) != Some(entry) {
                datapath.set_port(&entry)?;
            }
        }
        Ok(())
    }

    /// Attaches our program again where somebody has taken it off. Returns whether that was so.
    async fn reattach(&mut self, netlink: &Netlink, link: &Link) -> Result<bool, Error> {
        let Record { topology, selection, .. } = &self.record;
        let hook = selection.hook;
        let id = self.datapath.pins().program_id(if hook.is_xdp() { XDP } else { INGRESS });
        if attached_by(netlink, link, hook).await?.iter().any(|attached| attached.program == id) {
            return Ok(false);
        }
        self.datapath.attach(netlink, hook, topology.place, link).await?;
        Ok(true)
    }
}

impl Place {
    fn of(host_end: Option<&Link>) -> Self {
        Self {
            host_end: host_end.map(|link| link.index),
            namespace: host_end.and_then(|link| link.lower_namespace),
        }
    }
}

/// Whether something happened to a port where it was last.
fn is_touched(Place { host_end, namespace }: Place, touched: &BTreeSet<Touched>) -> bool {
    touched.iter().any(|touched| match touched.namespace {
        // One that has no host end may have got one.
        None => host_end.is_none_or(|index| index == touched.index),
        // Its number there is not ours to know: a pod has few links.
        Some(_) => namespace.is_none() || touched.namespace == namespace,
    })
}
