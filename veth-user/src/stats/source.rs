//! Snapshots, again and again: what is up is looked at each time, and what has not changed is not read again.

use std::collections::BTreeMap;

use super::{Error, PortStats, Snapshot};
use crate::{
    datapath::{Counters, pins::Pins},
    net::{Netlink, counters::LinkCounters, link::Link},
    state::{Record, Roots, Stamp},
    text::with_causes,
    topology,
};

/// Whose counters are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Those of everything that is up, from time to time.
    All,
    /// Those of a topology.
    Topology(String),
    /// Those of a pod.
    Pod {
        /// Its topology.
        topology: String,
        /// The pod.
        pod: String,
    },
}

impl Wanted {
    /// What a name means: a topology, a pod, or a `TOPOLOGY/POD`.
    ///
    /// # Errors
    ///
    /// When there is neither, or several pods are called so.
    pub fn named(roots: &Roots, name: &str) -> Result<Self, topology::Error> {
        let unknown = match topology::record(roots, name) {
            Ok(record) => return Ok(Self::Topology(record.topology.name)),
            Err(error) => error,
        };
        match topology::find_pod(roots, name) {
            Ok((record, pod)) => Ok(Self::Pod { topology: record.topology.name, pod: pod.name }),
            Err(topology::Error::UnknownPod { .. }) if !name.contains('/') => Err(unknown),
            Err(error) => Err(error),
        }
    }

    fn has(&self, topology: &str) -> bool {
        match self {
            Self::All => true,
            Self::Topology(wanted) | Self::Pod { topology: wanted, .. } => wanted == topology,
        }
    }
}

/// A topology whose counters were asked for, and what came of it.
pub type Read = (String, Result<Snapshot, Error>);

/// Where snapshots come from.
pub struct Source {
    roots: Roots,
    wanted: Wanted,
    netlink: Netlink,
    /// What was read of the state folder.
    records: BTreeMap<String, Known>,
    /// The links of the host, as they were when one came or went, with their counters as they are.
    links: Vec<Link>,
    /// Whether one of them may be known by another name or mark meanwhile: it was missing.
    is_stale: bool,
    counters: LinkCounters,
}

/// A topology that is up.
struct Known {
    /// How its file was.
    stamp: Stamp,
    record: Record,
    /// Its counters, once they were opened.
    counters: Option<Counters>,
}

impl Source {
    /// Connects to the kernel.
    ///
    /// # Errors
    ///
    /// When it gives no socket.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn open(roots: &Roots, wanted: Wanted) -> Result<Self, Error> {
        Ok(Self {
            roots: roots.clone(),
            wanted,
            netlink: Netlink::open()?,
            records: BTreeMap::new(),
            links: Vec::new(),
            is_stale: true,
            counters: LinkCounters::open()?,
        })
    }

    /// The folders that it looks into.
    #[must_use]
    pub const fn roots(&self) -> &Roots {
        &self.roots
    }

    /// The records of what is up and wanted.
    ///
    /// # Errors
    ///
    /// When the state folder cannot be read, or what was asked for by its name is not there (any more).
    pub fn records(&mut self) -> Result<impl Iterator<Item = &Record>, Error> {
        let Self { roots, wanted, records, .. } = self;
        let names = roots.names().map_err(topology::Error::from)?;
        records.retain(|name, _| names.contains(name));
        for name in names.into_iter().filter(|name| wanted.has(name)) {
            let Some(stamp) = roots.stamp(&name) else {
                // Gone between our two looks.
                records.remove(&name);
                continue;
            };
            if records.get(&name).is_some_and(|known| known.stamp == stamp) {
                continue;
            }
            match topology::record(roots, &name) {
                Ok(record) => drop(records.insert(name, Known { stamp, record, counters: None })),
                Err(error) if *wanted == Wanted::All => {
                    log::warn!("{}", with_causes(&error));
                    records.remove(&name);
                }
                Err(error) => return Err(error.into()),
            }
        }
        if let Wanted::Topology(name) | Wanted::Pod { topology: name, .. } = wanted
            && records.is_empty()
        {
            // Says which there are.
            topology::record(roots, name)?;
        }
        Ok(records.values().map(|known| &known.record))
    }

    /// A snapshot of each topology that is wanted. One that cannot be read hides no other.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer, or as [`records`](Self::records).
    pub async fn take(&mut self) -> Result<Vec<Read>, Error> {
        self.look_at_links().await?;
        drop(self.records()?);
        let Self { roots, wanted, records, links, .. } = self;
        let pod = match wanted {
            Wanted::Pod { pod, .. } => Some(pod),
            _ => None,
        };
        let read = |(name, known): (&String, &mut Known)| {
            let mut result = known.read(roots, links);
            if let (Ok(snapshot), Some(pod)) = (&mut result, &pod) {
                snapshot.ports.retain(|port| port.pod.as_ref() == Some(pod));
            }
            (name.clone(), result)
        };
        let read: Vec<Read> = records.iter_mut().map(read).collect();
        let lacks_link = |port: &PortStats| port.sent.is_none() && !port.link.is_empty();
        self.is_stale = read
            .iter()
            .filter_map(|(_, result)| result.as_ref().ok())
            .any(|snapshot| snapshot.ports.iter().any(lacks_link));
        Ok(read)
    }

    /// Asks for the links' counters, and for the links themselves only where one has come or gone.
    async fn look_at_links(&mut self) -> Result<(), Error> {
        let counters = self.counters.read()?;
        let is_known = !self.is_stale
            && counters.len() == self.links.len()
            && self.links.iter().all(|link| counters.contains_key(&link.index));
        if !is_known {
            self.links = self.netlink.links().await?;
            return Ok(());
        }
        for link in &mut self.links {
            if let Some(stats) = counters.get(&link.index) {
                link.stats = *stats;
            }
        }
        Ok(())
    }
}

impl Known {
    fn read(&mut self, roots: &Roots, links: &[Link]) -> Result<Snapshot, Error> {
        let Self { record, counters, .. } = self;
        topology::check_layout(record)?;
        topology::check_place(record)?;
        if counters.is_none() && record.topology.has_programs() {
            let pins = Pins::new(roots, record.layout_version, &record.topology.name);
            *counters = Some(Counters::open(&pins)?);
        }
        Ok(Snapshot::take(record, counters.as_ref(), links)?)
    }
}
