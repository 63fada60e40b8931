//! Counters: one snapshot type, of which the table, JSON and metrics are renderers.

pub mod metrics;
mod table;

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use veth_common::{DropReason, PortCounters, SLOT_UNATTRIBUTED, Tally};

use crate::{
    datapath::{self, Counters, Hook, pins::Pins},
    net::{
        ethtool::Ethtool,
        link::{Link, LinkStats},
    },
    state::{Record, Roots},
};

pub use table::render;

/// A sum over frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sum {
    /// Frames as the kernel handles them: a GSO frame is one.
    pub packets: u64,
    /// Their bytes, Ethernet header included.
    pub bytes: u64,
    /// Frames as a cable would carry them.
    pub segments: u64,
}

impl From<Tally> for Sum {
    fn from(Tally { packets, bytes, segments }: Tally) -> Self {
        Self { packets, bytes, segments }
    }
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

/// The counters of a port, from the host's side: `rx` came from the pod, `tx` went to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PortStats {
    /// The pod, or nothing for the bridge behind a switch.
    pub pod: Option<String>,
    /// The pod's end, or the bridge.
    pub port: String,
    /// The host end. Empty where there is none.
    pub link: String,
    /// The kind of path: `wire`, `switch`, …, and `bridge` for the bridge behind a switch too, where `pod` is nothing.
    pub path: &'static str,
    /// Came in from the pod: the sum of `redirected`, `passed` and every `dropped`.
    pub rx: Sum,
    /// Was handed to the pod: by peer redirect, and out of the host end.
    pub tx: Sum,
    /// Came in and was handed to another port.
    pub redirected: Sum,
    /// Came in and was left to the slow path.
    pub passed: Sum,
    /// Came in and ended here, by reason.
    pub dropped: BTreeMap<&'static str, Sum>,
    /// The kernel's own counters of the host end, or nothing where there is none.
    pub kernel: Option<LinkStats>,
    /// Frames that XDP handed to this port and its full receive ring refused: the kernel's `xdp_xmit_errors`. They
    /// are in `redirected` where they came in. Nothing where the programs are not attached by XDP.
    pub xdp_xmit_errors: Option<u64>,
}

/// What the kernel counts at a host end.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    link: LinkStats,
    xdp_xmit_errors: Option<u64>,
}

impl Snapshot {
    /// Reads the counters of a topology. `links` are all links of the host's namespace.
    ///
    /// # Errors
    ///
    /// When the counters are not there, or of another layout.
    pub fn take(roots: &Roots, record: &Record, links: &[Link]) -> Result<Self, datapath::Error> {
        let topology = &record.topology;
        let taken = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let taken_ms = u64::try_from(taken.as_millis()).unwrap_or(u64::MAX);
        if !topology.has_programs() {
            let topology = topology.name.clone();
            return Ok(Self { topology, taken_ms, ports: Vec::new(), unattributed: Sum::default() });
        }
        let counters = Counters::open(&Pins::new(roots, record.layout_version, &topology.name))?;
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
        let mut ports = Vec::new();
        for (pod, port) in topology.counted_ports() {
            let kind = topology.path(port).kind;
            let sent = sent(&port.host_link, record.selection.hook_of(kind.is_accelerated()));
            let counted = counters.read(port.slot)?;
            let link = &port.host_link;
            ports.push(PortStats::new(Some(&pod.name), &port.name, link, kind.name(), &counted, sent));
        }
        for (_, bridge) in topology.guarded_bridges() {
            let sent = sent(&bridge.link, record.selection.bridge_hook);
            let counted = counters.read(bridge.slot)?;
            ports.push(PortStats::new(None, &bridge.link, &bridge.link, "bridge", &counted, sent));
        }
        Ok(Self {
            topology: topology.name.clone(),
            taken_ms,
            ports,
            unattributed: counters.read(SLOT_UNATTRIBUTED)?.received().into(),
        })
    }
}

impl PortStats {
    fn new(
        pod: Option<&String>,
        port: &str,
        link: &str,
        path: &'static str,
        counted: &PortCounters,
        sent: Option<Sent>,
    ) -> Self {
        let PortCounters { redirected, passed, to_peer, to_host, dropped } = counted;
        Self {
            pod: pod.cloned(),
            port: port.to_owned(),
            link: link.to_owned(),
            path,
            rx: counted.received().into(),
            tx: handed_over(to_peer, to_host, &sent.unwrap_or_default()),
            redirected: (*redirected).into(),
            passed: (*passed).into(),
            dropped: DropReason::ALL
                .into_iter()
                .map(|reason| (reason.name(), dropped[reason.index()].into()))
                .collect(),
            kernel: sent.map(|sent| sent.link),
            xdp_xmit_errors: sent.and_then(|sent| sent.xdp_xmit_errors),
        }
    }

    /// Everything that was dropped, whatever the reason.
    #[must_use]
    pub fn dropped_packets(&self) -> u64 {
        self.dropped.values().map(|sum| sum.packets).sum()
    }
}

/// What went to a pod: past the host end by peer redirect, or through it, which the link counts. What the
/// link counts without knowing its segments (the slow path) counts as one segment a frame. Frames that XDP handed
/// over and the receive ring refused did not go.
fn handed_over(to_peer: &Tally, to_host: &Tally, sent: &Sent) -> Sum {
    let Sent { link, xdp_xmit_errors } = sent;
    let slow_path = link.tx_packets.saturating_sub(to_host.packets);
    let segments = match xdp_xmit_errors {
        // XDP sees no GSO frames.
        Some(_) => link.tx_packets,
        None => to_host.segments + slow_path,
    };
    Sum {
        packets: to_peer.packets + link.tx_packets,
        bytes: to_peer.bytes + link.tx_bytes,
        segments: to_peer.segments + segments,
    }
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

    fn tally(packets: u64, segments: u64) -> Tally {
        Tally { packets, bytes: 100 * packets, segments }
    }

    #[test]
    fn tx_is_what_went_past_the_host_end_and_what_went_through_it() {
        let link = LinkStats { tx_packets: 7, tx_bytes: 700, ..LinkStats::default() };
        // 2 of the link's 7 frames were redirected as 30 segments; 5 came the slow way.
        let sent = Sent { link, ..Sent::default() };
        let sum = handed_over(&tally(10, 40), &tally(2, 30), &sent);
        assert_eq!(sum, Sum { packets: 17, bytes: 1_700, segments: 40 + 30 + 5 });
    }

    #[test]
    fn what_a_full_ring_refused_did_not_go() {
        let link = LinkStats { tx_packets: 7, tx_bytes: 700, ..LinkStats::default() };
        // 3 were redirected and 1 of them refused; 5 came the slow way.
        let sent = Sent { link, xdp_xmit_errors: Some(1) };
        let sum = handed_over(&tally(0, 0), &tally(3, 3), &sent);
        assert_eq!(sum, Sum { packets: 7, bytes: 700, segments: 7 });
    }

    #[test]
    fn rx_is_conserved() {
        let counted = PortCounters {
            redirected: tally(5, 6),
            passed: tally(3, 3),
            dropped: [tally(1, 1), tally(2, 2), tally(4, 4), tally(0, 0), tally(0, 0)],
            ..PortCounters::default()
        };
        let port = PortStats::new(None, "eth0", "wire-ns1", "wire", &counted, None);
        assert_eq!(port.rx, Sum { packets: 15, bytes: 1_500, segments: 16 });
        assert_eq!(port.dropped_packets(), 7);
        assert_eq!(port.dropped["mtu_exceeded"].packets, 2);
    }

    #[test]
    fn rates_over_uneven_and_empty_periods() {
        assert_eq!(rate(10, 30, 2_000), Some(10.0));
        assert_eq!(rate(10, 30, 0), None);
        assert_eq!(rate(30, 10, 1_000), None);
        assert_eq!(rate(0, 1, 250), Some(4.0));
    }
}
