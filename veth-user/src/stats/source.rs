//! Snapshots, again and again: what is up is looked at each time, and what has not changed is not read again.

use std::collections::BTreeMap;

use super::{Error, Snapshot};
use crate::{
    net::Netlink,
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
    /// What was read of the state folder, and how its files were then.
    records: BTreeMap<String, (Stamp, Record)>,
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
        Ok(Self { roots: roots.clone(), wanted, netlink: Netlink::open()?, records: BTreeMap::new() })
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
            if records.get(&name).is_some_and(|(known, _)| *known == stamp) {
                continue;
            }
            match topology::record(roots, &name) {
                Ok(record) => drop(records.insert(name, (stamp, record))),
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
        Ok(records.values().map(|(_, record)| record))
    }

    /// A snapshot of each topology that is wanted. One that cannot be read hides no other.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer, or as [`records`](Self::records).
    pub async fn take(&mut self) -> Result<Vec<Read>, Error> {
        let links = self.netlink.links().await?;
        let roots = self.roots.clone();
        let pod = match &self.wanted {
            Wanted::Pod { pod, .. } => Some(pod.clone()),
            _ => None,
        };
        let read = |record: &Record| {
            topology::check_layout(record)?;
            topology::check_place(record)?;
            let mut snapshot = Snapshot::take(&roots, record, &links)?;
            if pod.is_some() {
                snapshot.ports.retain(|port| port.pod == pod);
            }
            Ok(snapshot)
        };
        Ok(self.records()?.map(|record| (record.topology.name.clone(), read(record))).collect())
    }
}
