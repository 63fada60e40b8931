//! Watching frames where they are decided on: `veth trace` and `veth capture`.
//!
//! The programs stand in front of all others on unpinned attachments, so that nothing of it is in the path when nobody
//! watches, also after a SIGKILL. They only look: a frame that cannot be told of is counted as lost and goes on all the same.

pub mod checksum;
pub mod describe;
pub mod filter;
pub mod pcapng;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    ops::ControlFlow,
    time::{Duration, SystemTime},
};

use nix::time::{ClockId, clock_gettime};
use veth_common::watch::{Event, Filter, Outcome, WATCHED_MAX};

use crate::{
    datapath::{
        self,
        pins::Pins,
        watch::{Options, Watch},
    },
    hooks,
    net::{self, Netlink, tc::Direction},
    probe,
    state::{Record, Roots},
    topology,
};

/// Why frames cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no place for it.
    #[error("watching needs TCX, which Linux has from 6.6 on: its attachments end with their process")]
    NoTcx,
    /// XDP has one program a link, and hands frames over before TC sees them.
    #[error(
        "the programs of {topology} are attached by XDP, which has room for one program and comes before all others; bring \
         it up with `--hook tcx` to watch it, or capture inside a pod: `veth exec {topology}/POD -- tcpdump -i eth0`"
    )]
    Xdp {
        /// The topology.
        topology: String,
    },
    /// There is no link of it on the host.
    #[error(
        "{what} has no veth on the host where its frames could be seen: both ends of its pairs are in pods. Capture inside: \
         `veth exec POD -- tcpdump -i eth0`"
    )]
    NothingToWatch {
        /// What was asked for.
        what: String,
    },
    /// More ports than a program can tell apart.
    #[error("{pod} has {ports} ports, and {WATCHED_MAX} at most can be watched at once")]
    TooManyPorts {
        /// The pod.
        pod: String,
        /// How many it has.
        ports: usize,
    },
    /// What is up is not known, or is not ours to look at.
    #[error(transparent)]
    Topology(#[from] topology::Error),
    /// Programs or maps.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
    /// Links.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// What the kernel can do is not known.
    #[error(transparent)]
    Probe(#[from] probe::Error),
}

/// What to watch, and how much of it to be told.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// Bytes of each frame.
    pub snap: u32,
    /// One frame in so many.
    pub sample: u32,
    /// Which frames.
    pub filter: Filter,
    /// Whether also frames on their way into a pod are told of that no program decides on any more: the slow path.
    pub both_ways: bool,
    /// The buffer for what has not been read yet, in bytes.
    pub buffer: u32,
}

/// Whose host end a link is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The topology.
    pub topology: String,
    /// The pod, or nothing for the bridge behind a switch.
    pub pod: Option<String>,
    /// The pod's end, or the bridge.
    pub port: String,
    /// The host end.
    pub link: String,
}

impl Owner {
    /// `lab/a eth0`, or the bridge.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.pod {
            Some(pod) => format!("{}/{pod} {}", self.topology, self.port),
            None => format!("{} {}", self.topology, self.port),
        }
    }
}

/// A frame that was seen.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// When.
    pub time: SystemTime,
    /// Where: the port that it came in on, or that it leaves by.
    pub owner: &'a Owner,
    /// What became of it.
    pub outcome: Outcome,
    /// The port that it was redirected to.
    pub target: Option<&'a Owner>,
    /// Its length, and what else is known of it.
    pub event: &'a Event,
    /// Its first bytes, without a tag that the kernel keeps beside it.
    pub bytes: &'a [u8],
}

/// Programs that watch.
pub struct Session {
    watches: Vec<Watch>,
    owners: BTreeMap<u32, Owner>,
    /// From the clock of the programs to that of the day.
    clock: Duration,
    roots: Roots,
    attached: usize,
}

impl Session {
    /// Watches topologies, or only what comes from and goes to one pod of one.
    ///
    /// # Errors
    ///
    /// When there is nothing to watch, or the kernel cannot.
    pub async fn start(
        roots: &Roots,
        records: &[Record],
        pod: Option<&str>,
        wish: &Wish,
    ) -> Result<Self, Error> {
        if !probe::look_for_tcx()? {
            return Err(Error::NoTcx);
        }
        let links = Netlink::open()?.links().await?;
        let mut session = Self {
            watches: Vec::new(),
            owners: BTreeMap::new(),
            clock: clock_offset().map_err(|source| net::Error::new("read the clock", source))?,
            roots: roots.clone(),
            attached: 0,
        };
        let mut places = Vec::new();
        for record in records {
            topology::check_layout(record)?;
            topology::check_place(record)?;
            let place = Place::of(record, pod)?;
            for owner in place.ingress.iter().chain(&place.egress) {
                if let Some(link) = links.iter().find(|link| link.name == owner.link) {
                    session.owners.insert(link.index, owner.clone());
                }
            }
            places.push((record, place));
        }
        let attachments = places.iter().map(|(_, place)| place.ingress.len() + place.egress.len()).sum();
        if attachments == 0 {
            let names: Vec<&str> = records.iter().map(|record| record.topology.name.as_str()).collect();
            let what = pod.map_or_else(|| names.join(", "), str::to_owned);
            return Err(Error::NothingToWatch { what });
        }
        topology::hurry(roots, attachments);
        hooks::step();
        session.attached = attachments;
        let result = places.iter().try_for_each(|(record, place)| session.add(record, place, pod, wish));
        topology::stop_hurrying(roots)?;
        hooks::step();
        result?;
        Ok(session)
    }

    fn add(&mut self, record: &Record, place: &Place, pod: Option<&str>, wish: &Wish) -> Result<(), Error> {
        let Wish { snap, sample, filter, both_ways, buffer } = *wish;
        let mut ports = [0; WATCHED_MAX];
        if let Some(pod) = pod {
            let own = self.owners.iter().filter(|(_, owner)| owner.pod.as_deref() == Some(pod));
            for (port, (index, _)) in ports.iter_mut().zip(own) {
                *port = *index;
            }
        }
        let pins = record
            .topology
            .has_programs()
            .then(|| Pins::new(&self.roots, record.layout_version, &record.topology.name));
        let egress = both_ways && pod.is_some();
        let options = Options { snap, sample, ports, egress, filter, buffer };
        let mut watch = Watch::load(pins.as_ref(), &options)?;
        for owner in &place.ingress {
            watch.attach(&owner.link, Direction::Ingress)?;
            hooks::step();
        }
        if egress {
            for owner in &place.egress {
                watch.attach(&owner.link, Direction::Egress)?;
                hooks::step();
            }
        }
        self.watches.push(watch);
        Ok(())
    }

    /// Whose frames are seen.
    pub fn owners(&self) -> impl Iterator<Item = &Owner> {
        self.owners.values().collect::<BTreeSet<_>>().into_iter()
    }

    /// Hands over what was seen since the last time, until it is told to stop.
    pub fn drain<E>(&mut self, mut each: impl FnMut(Seen<'_>) -> ControlFlow<E>) -> ControlFlow<E> {
        let Self { watches, owners, clock, .. } = self;
        for watch in watches {
            loop {
                let next = watch.next(|event, bytes| {
                    let (Some(owner), Some(outcome)) = (owners.get(&event.ifindex), Outcome::of(event))
                    else {
                        return ControlFlow::Continue(());
                    };
                    let time = SystemTime::UNIX_EPOCH + *clock + Duration::from_nanos(event.time_ns);
                    let target = owners.get(&event.target);
                    each(Seen { time, owner, outcome, target, event, bytes })
                });
                match next {
                    Some(ControlFlow::Continue(())) => {}
                    Some(ControlFlow::Break(end)) => return ControlFlow::Break(end),
                    None => break,
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// How many frames could not be told of for want of room, so far.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub fn lost(&self) -> Result<u64, Error> {
        let mut lost = 0;
        for watch in &self.watches {
            lost += watch.lost()?;
        }
        Ok(lost)
    }

    /// Ends it. Dropping does the same, but slowly where many links are watched.
    ///
    /// # Errors
    ///
    /// When it cannot be remembered that the kernel was told to hurry.
    pub fn stop(self) -> Result<(), Error> {
        let Self { watches, roots, attached, .. } = self;
        topology::hurry(&roots, attached);
        hooks::step();
        drop(watches);
        hooks::step();
        Ok(topology::stop_hurrying(&roots)?)
    }
}

/// Where the frames of a topology or a pod can be seen.
struct Place {
    ingress: Vec<Owner>,
    egress: Vec<Owner>,
}

impl Place {
    fn of(record: &Record, pod: Option<&str>) -> Result<Self, Error> {
        let topology = &record.topology;
        let is_wanted = |name: &str| pod.is_none_or(|pod| pod == name);
        let own: Vec<_> = topology.ports().filter(|(pod, _)| is_wanted(&pod.name)).collect();
        if let Some(pod) = pod
            && own.len() > WATCHED_MAX
        {
            return Err(Error::TooManyPorts { pod: pod.to_owned(), ports: own.len() });
        }
        // What is redirected to a pod is seen where it comes in: at every port that reaches it so.
        let paths: BTreeSet<usize> = own.iter().map(|(_, port)| port.path).collect();
        let is_fast = |path: usize| topology.paths[path].kind.is_accelerated();
        if record.selection.hook.is_xdp() && paths.iter().any(|path| is_fast(*path)) {
            return Err(Error::Xdp { topology: topology.name.clone() });
        }
        let owner = |pod: &topology::Pod, port: &topology::Port| Owner {
            topology: topology.name.clone(),
            pod: Some(pod.name.clone()),
            port: port.name.clone(),
            link: port.host_link.clone(),
        };
        let reaches = |port: &topology::Port| is_fast(port.path) && paths.contains(&port.path);
        let mut ingress: Vec<Owner> = topology
            .ports()
            .filter(|(pod, port)| is_wanted(&pod.name) || reaches(port))
            .map(|(pod, port)| owner(pod, port))
            .collect();
        if pod.is_none() {
            ingress.extend(topology.guarded_bridges().map(|(_, bridge)| Owner {
                topology: topology.name.clone(),
                pod: None,
                port: bridge.link.clone(),
                link: bridge.link.clone(),
            }));
        }
        Ok(Self { ingress, egress: own.iter().map(|(pod, port)| owner(pod, port)).collect() })
    }
}

/// How far the day's clock is ahead of the programs'.
fn clock_offset() -> io::Result<Duration> {
    let day = Duration::from(clock_gettime(ClockId::CLOCK_REALTIME)?);
    Ok(day.saturating_sub(clock_gettime(ClockId::CLOCK_MONOTONIC)?.into()))
}
