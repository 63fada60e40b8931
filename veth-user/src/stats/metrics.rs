//! Snapshots as metrics, for Prometheus and whatever else reads OpenMetrics.
//!
//! `receive` came from a pod and `transmit` went to it, as in `veth stats`: seen from the host.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, MetricEncoder, NoLabelSet, text},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};
use veth_common::{Protocol, SIZE_ENDS};

use super::{PortStats, Snapshot, Sum};

/// What the text is, for the header of an answer.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A topology whose counters were asked for, and what came of it.
#[derive(Clone, Debug)]
pub struct Scraped {
    /// Its name.
    pub topology: String,
    /// Its counters, unless they could not be read.
    pub snapshot: Option<Snapshot>,
}

/// The counters of all topologies as OpenMetrics text. A port that is gone has no series any more. With details, every
/// port has about forty more: what it received by protocol, size, number of receivers and reason of the slow path.
///
/// # Errors
///
/// When a name cannot be written, which is a mistake in this program.
pub fn render(scraped: Vec<Scraped>, detail: bool) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(All { scraped, detail }));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct All {
    scraped: Vec<Scraped>,
    detail: bool,
}

/// A counter of a port: its name, what it is, its unit, and where it stands.
type Counter = (&'static str, &'static str, Option<Unit>, fn(&PortStats) -> u64);

const PACKETS: &str = "packets";

/// In the order of the text.
fn counters() -> Vec<Counter> {
    let packets = || Some(Unit::Other(PACKETS.to_owned()));
    let bytes = || Some(Unit::Bytes);
    vec![
        ("veth_port_receive", "Frames that came from the pod; a GSO frame is one", packets(), |p| {
            p.rx().packets
        }),
        ("veth_port_receive", "Bytes that came from the pod, Ethernet header included", bytes(), |p| {
            p.rx().bytes
        }),
        ("veth_port_transmit", "Frames that were handed to the pod; a GSO frame is one", packets(), |p| {
            p.tx().packets
        }),
        ("veth_port_transmit", "Bytes that were handed to the pod", bytes(), |p| p.tx().bytes),
        ("veth_port_receive_segments", "Frames from the pod as a cable would carry them", None, |p| {
            p.rx().segments
        }),
        ("veth_port_transmit_segments", "Frames to the pod as a cable would carry them", None, |p| {
            p.tx().segments
        }),
        ("veth_port_redirected", "Frames from the pod that were handed to another port", packets(), |p| {
            p.redirected().packets
        }),
        ("veth_port_passed", "Frames from the pod that were left to the slow path", packets(), |p| {
            p.passed().packets
        }),
    ]
}

/// One way to split what a port received.
struct Split {
    name: &'static str,
    label: &'static str,
    help: &'static str,
    read: fn(&PortStats) -> Vec<(&'static str, u64)>,
}

/// In the order of the text.
const SPLITS: [Split; 3] = [
    Split {
        name: "veth_port_receive_protocol",
        label: "protocol",
        help: "Frames that came from the pod, by what they carry",
        read: |port| {
            let protocols = Protocol::ALL.into_iter();
            protocols.map(|protocol| (protocol.name(), port.protocol(protocol).packets())).collect()
        },
    },
    Split {
        name: "veth_port_receive_cast",
        label: "cast",
        help: "Frames that came from the pod, by how many they are for",
        read: |port| port.casts().into(),
    },
    Split {
        name: "veth_port_passed_reason",
        label: "reason",
        help: "Frames from the pod that were left to the slow path, by reason",
        read: |port| port.passed_for().map(|(reason, packets)| (reason.name(), packets)).collect(),
    },
];

/// A label and its value, ready to be written.
type Label = (&'static str, String);

fn borrowed([a, b, c]: &[Label; 3]) -> [(&str, &str); 3] {
    [(a.0, &a.1), (b.0, &b.1), (c.0, &c.1)]
}

/// The labels of a port, and one more.
fn with<'a>(labels: &'a [Label; 3], other: (&'a str, &'a str)) -> [(&'a str, &'a str); 4] {
    let [a, b, c] = borrowed(labels);
    [a, b, c, other]
}

/// Writes a counter.
fn counter(
    family: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    value: u64,
) -> Result<(), fmt::Error> {
    ConstCounter::new(value).encode(family.encode_family(labels)?)
}

/// The labels of a port.
fn labels(snapshot: &Snapshot, port: &PortStats) -> [Label; 3] {
    let pod = port.pod.as_deref().unwrap_or_default();
    [("topology", escaped(&snapshot.topology)), ("pod", escaped(pod)), ("port", escaped(&port.port))]
}

/// A value as it stands between quotes, which the encoder does not see to. The name of a link may have any character
/// but a few.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

impl Collector for All {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Self { scraped, detail } = self;
        let snapshots = || scraped.iter().filter_map(|scraped| scraped.snapshot.as_ref());
        // Once, for every port has them a dozen times.
        let labelled = |snapshot| move |port| (labels(snapshot, port), port);
        let ports: Vec<([Label; 3], &PortStats)> =
            snapshots().flat_map(|snapshot| snapshot.ports.iter().map(labelled(snapshot))).collect();
        for (name, help, unit, read) in counters() {
            let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
            for (labels, port) in &ports {
                counter(&mut family, labels, read(port))?;
            }
        }
        let packets = Unit::Other(PACKETS.to_owned());
        let help = "Frames from the pod that ended here, by reason";
        let mut family =
            encoder.encode_descriptor("veth_port_dropped", help, Some(&packets), MetricType::Counter)?;
        for (labels, port) in &ports {
            for (reason, Sum { packets, .. }) in port.dropped() {
                counter(&mut family, &with(labels, ("reason", reason.name())), packets)?;
            }
        }
        if *detail {
            for split in SPLITS {
                let Split { name, label, help, read } = split;
                let mut family =
                    encoder.encode_descriptor(name, help, Some(&packets), MetricType::Counter)?;
                for (labels, port) in &ports {
                    for (part, packets) in read(port) {
                        counter(&mut family, &with(labels, (label, part)), packets)?;
                    }
                }
            }
            let help = "Lengths of frames from the pod that were not dropped";
            let mut family = encoder.encode_descriptor(
                "veth_port_receive_frame_size",
                help,
                Some(&Unit::Bytes),
                MetricType::Histogram,
            )?;
            for (labels, port) in &ports {
                let sizes = port.sizes();
                let ends = SIZE_ENDS.into_iter().map(f64::from).chain([f64::MAX]);
                let buckets: Vec<(f64, u64)> = ends.zip(sizes).collect();
                #[expect(clippy::cast_precision_loss, reason = "the format has no other sums")]
                let sum = (port.redirected().bytes + port.passed().bytes) as f64;
                family.encode_family(labels)?.encode_histogram::<NoLabelSet>(
                    sum,
                    sizes.iter().sum(),
                    &buckets,
                    None,
                )?;
            }
        }
        let help = "Frames from interfaces that are no port, which were passed on";
        let mut family =
            encoder.encode_descriptor("veth_unattributed", help, Some(&packets), MetricType::Counter)?;
        for snapshot in snapshots() {
            counter(
                &mut family,
                &[("topology", escaped(&snapshot.topology))],
                snapshot.unattributed.packets,
            )?;
        }
        let help = "Which link on the host and which kind of path a port is, as labels";
        let mut family = encoder.encode_descriptor("veth_port", help, None, MetricType::Info)?;
        for (labels, port) in &ports {
            let link = escaped(&port.link);
            let [topology, pod, name] = borrowed(labels);
            family.encode_info(&[topology, pod, name, ("link", &link), ("path", port.path)])?;
        }
        let help = "Whether the counters of a topology could be read: 1, or 0";
        let mut family =
            encoder.encode_descriptor("veth_topology_readable", help, None, MetricType::Gauge)?;
        for Scraped { topology, snapshot } in scraped {
            let labels = [("topology", escaped(topology))];
            ConstGauge::new(i64::from(snapshot.is_some()))
                .encode(family.encode_family(&labels.as_slice())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        net::link::LinkStats,
        stats::{Sent, port::tests::example},
    };

    #[test]
    fn every_counter_has_a_series_for_each_port() {
        let link = LinkStats { tx_packets: 7, tx_bytes: 700, ..LinkStats::default() };
        let port = PortStats { sent: Some(Sent { link, xdp_xmit_errors: None }), ..example("a\"b", 3, 2, 1) };
        let topology = "lab".to_owned();
        let snapshot = Snapshot {
            topology: topology.clone(),
            taken_ms: 0,
            ports: vec![port],
            unattributed: Sum { packets: 9, ..Sum::default() },
        };
        let scraped = vec![
            Scraped { topology, snapshot: Some(snapshot) },
            Scraped { topology: "broken".to_owned(), snapshot: None },
        ];
        assert!(!render(scraped.clone(), false).unwrap().contains("protocol="));
        let text = render(scraped, true).unwrap();
        let port = "topology=\"lab\",pod=\"a\\\"b\",port=\"eth0\"";
        for line in [
            format!("veth_port_receive_packets_total{{{port}}} 6"),
            format!("veth_port_receive_bytes_total{{{port}}} 600"),
            format!("veth_port_transmit_packets_total{{{port}}} 7"),
            format!("veth_port_transmit_segments_total{{{port}}} 7"),
            format!("veth_port_dropped_packets_total{{{port},reason=\"no_peer\"}} 1"),
            format!("veth_port_receive_protocol_packets_total{{{port},protocol=\"ipv4_udp\"}} 6"),
            format!("veth_port_receive_cast_packets_total{{{port},cast=\"unicast\"}} 6"),
            format!("veth_port_passed_reason_packets_total{{{port},reason=\"group\"}} 2"),
            format!("veth_port_receive_frame_size_bytes_bucket{{le=\"127.0\",{port}}} 5"),
            format!("veth_port_receive_frame_size_bytes_bucket{{le=\"+Inf\",{port}}} 5"),
            format!("veth_port_receive_frame_size_bytes_sum{{{port}}} 500.0"),
            "veth_unattributed_packets_total{topology=\"lab\"} 9".to_owned(),
            format!("veth_port_info{{{port},link=\"s-a\\\"b\",path=\"switch\"}} 1"),
            "veth_topology_readable{topology=\"broken\"} 0".to_owned(),
            "# UNIT veth_port_receive_bytes bytes".to_owned(),
            "# EOF".to_owned(),
        ] {
            assert!(text.lines().any(|found| found == line), "no `{line}` in:\n{text}");
        }
    }
}
