//! What is known of one port.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use veth_common::{DropReason, PassReason, PortCounters, Protocol, SIZE_ENDS, Tally};

use crate::net::link::LinkStats;

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

/// What the kernel counts at a host end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// The kernel's own counters of the link.
    pub link: LinkStats,
    /// Frames that XDP handed to this port and its full receive ring refused: the kernel's `xdp_xmit_errors`. They
    /// are in `redirected` where they came in. Nothing where the programs are not attached by XDP.
    pub xdp_xmit_errors: Option<u64>,
}

/// The counters of a port, from the host's side: `rx` came from the pod, `tx` went to it.
///
/// Serialised as what is derived of the counters, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortStats {
    /// The pod, or nothing for the bridge behind a switch.
    pub pod: Option<String>,
    /// The pod's end, or the bridge.
    pub port: String,
    /// The host end. Empty where there is none.
    pub link: String,
    /// The kind of path: `wire`, `switch`, …, and `bridge` for the bridge behind a switch too, where `pod` is nothing.
    pub path: &'static str,
    /// What the programs counted, on all processors.
    pub counted: PortCounters,
    /// What came in on each processor.
    pub cpus: Vec<Tally>,
    /// What the kernel counts at the host end, or nothing where there is none.
    pub sent: Option<Sent>,
}

impl PortStats {
    /// Came in from the pod: what was redirected, passed and dropped.
    #[must_use]
    pub fn rx(&self) -> Sum {
        self.counted.received().into()
    }

    /// Went to the pod: past the host end by peer redirect, or through it, which the link counts. What the link counts
    /// without knowing its segments (the slow path) counts as one segment a frame. Frames that XDP handed over and the
    /// receive ring refused did not go.
    #[must_use]
    pub fn tx(&self) -> Sum {
        let PortCounters { to_peer, to_host, .. } = &self.counted;
        let Sent { link, xdp_xmit_errors } = self.sent.unwrap_or_default();
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

    /// Came in and was handed to another port.
    #[must_use]
    pub fn redirected(&self) -> Sum {
        self.counted.redirected().into()
    }

    /// Came in and was left to the slow path.
    #[must_use]
    pub fn passed(&self) -> Sum {
        self.counted.passed().into()
    }

    /// Came in and ended here, by reason.
    pub fn dropped(&self) -> impl Iterator<Item = (DropReason, Sum)> + '_ {
        DropReason::ALL.into_iter().zip(self.counted.dropped.iter().map(|row| row.tally().into()))
    }

    /// Everything that was dropped, whatever the reason.
    #[must_use]
    pub fn dropped_packets(&self) -> u64 {
        self.dropped().map(|(_, sum)| sum.packets).sum()
    }

    /// Everything that came in of a protocol.
    #[must_use]
    pub fn protocol(&self, protocol: Protocol) -> ProtocolStats {
        let index = protocol.index();
        ProtocolStats {
            redirected: self.counted.redirected[index].tally().into(),
            passed: self.counted.passed[index].tally().into(),
            dropped: self.counted.dropped.iter().map(|row| row.protocols[index]).sum(),
        }
    }

    /// How many frames came in of each size ([`SIZE_ENDS`]) and were not dropped.
    #[must_use]
    pub fn sizes(&self) -> [u64; SIZE_ENDS.len() + 1] {
        let mut sum = [0; SIZE_ENDS.len() + 1];
        for row in self.counted.redirected.iter().chain(&self.counted.passed) {
            for (sum, size) in sum.iter_mut().zip(row.sizes) {
                *sum += size;
            }
        }
        sum
    }

    /// Frames that came in for one receiver, for a group and for all.
    #[must_use]
    pub fn casts(&self) -> [(&'static str, u64); 3] {
        let PortCounters { multicast, broadcast, .. } = self.counted;
        let unicast = self.rx().packets.saturating_sub(multicast + broadcast);
        [("unicast", unicast), ("multicast", multicast), ("broadcast", broadcast)]
    }

    /// Why frames were left to the slow path, and how many.
    pub fn passed_for(&self) -> impl Iterator<Item = (PassReason, u64)> + '_ {
        PassReason::ALL.into_iter().zip(self.counted.passed_for)
    }
}

/// What came in of one protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ProtocolStats {
    /// Was handed to another port.
    pub redirected: Sum,
    /// Was left to the slow path.
    pub passed: Sum,
    /// Ended here, in frames.
    pub dropped: u64,
}

impl ProtocolStats {
    /// Frames.
    #[must_use]
    pub const fn packets(&self) -> u64 {
        self.redirected.packets + self.passed.packets + self.dropped
    }
}

/// A port as it is written.
#[derive(Serialize)]
struct View<'a> {
    pod: Option<&'a str>,
    port: &'a str,
    link: &'a str,
    path: &'static str,
    rx: Sum,
    tx: Sum,
    redirected: Sum,
    passed: Sum,
    passed_for: BTreeMap<&'static str, u64>,
    dropped: BTreeMap<&'static str, Sum>,
    /// Only those that there are frames of.
    protocols: BTreeMap<&'static str, ProtocolStats>,
    sizes: Vec<Size>,
    casts: BTreeMap<&'static str, u64>,
    /// In the order of the processors.
    cpus: Vec<Sum>,
    kernel: Option<LinkStats>,
    xdp_xmit_errors: Option<u64>,
}

/// How many frames there are up to a length.
#[derive(Serialize)]
struct Size {
    /// Bytes; nothing for those that are longer than all others.
    longest: Option<u32>,
    packets: u64,
}

impl Serialize for PortStats {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { pod, port, link, path, counted: _, cpus, sent } = self;
        let protocols = Protocol::ALL.into_iter().map(|protocol| (protocol.name(), self.protocol(protocol)));
        let ends = SIZE_ENDS.into_iter().map(Some).chain([None]);
        View {
            pod: pod.as_deref(),
            port,
            link,
            path,
            rx: self.rx(),
            tx: self.tx(),
            redirected: self.redirected(),
            passed: self.passed(),
            passed_for: self.passed_for().map(|(reason, packets)| (reason.name(), packets)).collect(),
            dropped: self.dropped().map(|(reason, sum)| (reason.name(), sum)).collect(),
            protocols: protocols.filter(|(_, stats)| stats.packets() > 0).collect(),
            sizes: ends.zip(self.sizes()).map(|(longest, packets)| Size { longest, packets }).collect(),
            casts: self.casts().into(),
            cpus: cpus.iter().map(|tally| (*tally).into()).collect(),
            kernel: sent.map(|sent| sent.link),
            xdp_xmit_errors: sent.and_then(|sent| sent.xdp_xmit_errors),
        }
        .serialize(serializer)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use veth_common::{Cast, Weight};

    use super::*;

    /// A port of a switch that came by frames of 100 bytes: some were redirected, some passed, and some dropped for want
    /// of a peer.
    pub(crate) fn example(pod: &str, redirected: u64, passed: u64, dropped: u64) -> PortStats {
        let mut counted = PortCounters::default();
        let weight =
            Weight { length: 100, gso_segments: 0, protocol: Protocol::Ipv4Udp as u8, cast: Cast::Unicast };
        (0..redirected).for_each(|_| counted.count_redirected(&weight));
        (0..passed).for_each(|_| counted.count_passed(PassReason::Group, &weight));
        (0..dropped).for_each(|_| counted.count_dropped(DropReason::NoPeer, &weight));
        PortStats {
            pod: Some(pod.to_owned()),
            port: "eth0".to_owned(),
            link: format!("s-{pod}"),
            path: "switch",
            cpus: vec![Tally::default(), counted.received()],
            counted,
            sent: None,
        }
    }

    fn tally(packets: u64, segments: u64) -> Tally {
        Tally { packets, bytes: 100 * packets, segments }
    }

    fn handed_over(to_peer: Tally, to_host: Tally, sent: Sent) -> Sum {
        let port = example("a", 0, 0, 0);
        PortStats { counted: PortCounters { to_peer, to_host, ..port.counted }, sent: Some(sent), ..port }
            .tx()
    }

    #[test]
    fn tx_is_what_went_past_the_host_end_and_what_went_through_it() {
        let link = LinkStats { tx_packets: 7, tx_bytes: 700, ..LinkStats::default() };
        // 2 of the link's 7 frames were redirected as 30 segments; 5 came the slow way.
        let sum = handed_over(tally(10, 40), tally(2, 30), Sent { link, ..Sent::default() });
        assert_eq!(sum, Sum { packets: 17, bytes: 1_700, segments: 40 + 30 + 5 });
    }

    #[test]
    fn what_a_full_ring_refused_did_not_go() {
        let link = LinkStats { tx_packets: 7, tx_bytes: 700, ..LinkStats::default() };
        // 3 were redirected and 1 of them refused; 5 came the slow way.
        let sum = handed_over(tally(0, 0), tally(3, 3), Sent { link, xdp_xmit_errors: Some(1) });
        assert_eq!(sum, Sum { packets: 7, bytes: 700, segments: 7 });
    }

    #[test]
    fn rx_is_conserved_and_so_is_every_way_to_split_it() {
        let port = example("a", 5, 3, 7);
        assert_eq!(port.rx(), Sum { packets: 15, bytes: 1_500, segments: 15 });
        assert_eq!(port.dropped_packets(), 7);
        assert_eq!(port.protocol(Protocol::Ipv4Udp).packets(), 15);
        assert_eq!(port.sizes().iter().sum::<u64>(), 8);
        assert_eq!(port.casts().iter().map(|(_, packets)| packets).sum::<u64>(), 15);
        assert_eq!(port.passed_for().map(|(_, packets)| packets).sum::<u64>(), 3);
        let json = serde_json::to_value(&port).unwrap();
        assert_eq!(json["protocols"]["ipv4_udp"]["dropped"], 7);
        assert_eq!(json["protocols"].as_object().unwrap().len(), 1, "the others are zero");
        assert_eq!(json["dropped"]["no_peer"]["bytes"], 700);
        assert_eq!(json["sizes"][0]["longest"], 127);
        assert_eq!(json["cpus"][1]["packets"], 15);
    }
}
