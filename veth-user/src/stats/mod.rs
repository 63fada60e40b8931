//! Counters: one snapshot type, of which the tables, CSV, JSON and metrics are renderers.

pub mod by;
pub mod csv;
pub mod metrics;
mod port;
pub mod source;
mod table;

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use veth_common::{PortCounters, SLOT_UNATTRIBUTED, Tally};

use crate::{
    datapath::{self, Counters, Hook},
    net::{
        self,
        ethtool::Ethtool,
        link::{Link, LinkStats},
    },
    state::Record,
    topology,
};

pub use by::By;
#[cfg(test)]
pub(crate) use port::tests::example as port_example;
pub use port::{PortStats, Sent, Sum};
pub use source::{Source, Wanted};
pub use table::render;

/// Why counters could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What is up is not known, or is not ours to read.
    #[error(transparent)]
    Topology(#[from] topology::Error),
    /// The maps cannot be read.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
    /// The kernel does not tell of links.
    #[error(transparent)]
    Net(#[from] net::Error),
}

/// Every counter of a topology at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// The topology.
    pub topology: String,
    /// When, in milliseconds since 1970.
    pub taken_ms: u64,
    /// The ports, in the order of their slots. The bridge behind a switch is one.
    pub ports: Vec<PortStats>,
    /// Frames from interfaces that were no port: passed on, and counted here.
    pub unattributed: Sum,
}

impl Snapshot {
    /// The same port, which was at a place in another snapshot and usually still is.
    #[must_use]
    pub fn port(&self, of: &PortStats, place: usize) -> Option<&PortStats> {
        let same = |port: &&PortStats| (&port.pod, &port.port) == (&of.pod, &of.port);
        self.ports.get(place).filter(same).or_else(|| self.ports.iter().find(same))
    }

    /// Reads the counters of a topology, if it has any. `links` are all links of the host's namespace.
    fn take(record: &Record, counters: Option<&Counters>, links: &[Link]) -> Result<Self, datapath::Error> {
        let topology = &record.topology;
        let taken = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let taken_ms = u64::try_from(taken.as_millis()).unwrap_or(u64::MAX);
        let Some(counters) = counters else {
            let topology = topology.name.clone();
            return Ok(Self { topology, taken_ms, ports: Vec::new(), unattributed: Sum::default() });
        };
        let prefix = topology.alias_prefix();
        let ours = |link: &&Link| link.alias.as_deref().is_some_and(|alias| alias.starts_with(&prefix));
        let links: BTreeMap<&str, LinkStats> =
            links.iter().filter(ours).map(|link| (link.name.as_str(), link.stats)).collect();
        let hook = record.selection.hook;
        let ethtool = if hook.is_xdp() { Some(Ethtool::open()?) } else { None };
        let sent = |name: &str, hook: Hook| {
            let link = links.get(name).copied();
            let errors =
                ethtool.as_ref().filter(|_| hook.is_xdp()).and_then(|ethtool| xmit_errors(ethtool, name));
            link.map(|link| Sent { link, xdp_xmit_errors: errors })
        };
        let mut ports =
            Vec::with_capacity(topology.counted_ports().count() + topology.guarded_bridges().count());
        for (pod, port) in topology.counted_ports() {
            let kind = topology.path(port).kind;
            let sent = sent(&port.host_link, record.selection.hook_of(kind.is_accelerated()));
            let (counted, cpus) = read(counters, port.slot)?;
            ports.push(PortStats {
                pod: Some(pod.name.clone()),
                port: port.name.clone(),
                link: port.host_link.clone(),
                path: kind.name(),
                counted,
                cpus,
                sent,
            });
        }
        for (_, bridge) in topology.guarded_bridges() {
            let sent = sent(&bridge.link, record.selection.bridge_hook);
            let (counted, cpus) = read(counters, bridge.slot)?;
            ports.push(PortStats {
                pod: None,
                port: bridge.link.clone(),
                link: bridge.link.clone(),
                path: "bridge",
                counted,
                cpus,
                sent,
            });
        }
        Ok(Self {
            topology: topology.name.clone(),
            taken_ms,
            ports,
            unattributed: read(counters, SLOT_UNATTRIBUTED)?.0.received().into(),
        })
    }
}

/// A slot's counters, and what came in on each processor.
fn read(counters: &Counters, slot: u32) -> Result<(PortCounters, Vec<Tally>), datapath::Error> {
    let mut sum = PortCounters::default();
    let mut cpus = Vec::new();
    let (each, carried) = counters.read_each(slot)?;
    for cpu in each {
        cpus.push(cpu.received());
        sum.add(&cpu);
    }
    sum.add(&carried);
    Ok((sum, cpus))
}

/// The frames that a device refused from XDP, over all queues.
fn xmit_errors(ethtool: &Ethtool, link: &str) -> Option<u64> {
    let statistics = ethtool.statistics(link).ok()?;
    let errors = statistics.iter().filter(|(name, _)| name.ends_with("_xdp_xmit_errors"));
    Some(errors.map(|(_, count)| count).sum())
}

/// How fast a counter grew, per second. Nothing for a period of no length or a counter that went back.
#[must_use]
pub fn rate(before: u64, after: u64, elapsed_ms: u64) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "rates are shown with four digits")]
    let per_second = |grown: u64| grown as f64 * 1_000.0 / elapsed_ms as f64;
    after.checked_sub(before).filter(|_| elapsed_ms > 0).map(per_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_over_uneven_and_empty_periods() {
        assert_eq!(rate(10, 30, 2_000), Some(10.0));
        assert_eq!(rate(10, 30, 0), None);
        assert_eq!(rate(30, 10, 1_000), None);
        assert_eq!(rate(0, 1, 250), Some(4.0));
    }
}
