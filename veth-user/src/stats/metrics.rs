//! Snapshots as metrics, for Prometheus and whatever else reads OpenMetrics.
//!
//! `receive` came from a pod and `transmit` went to it, as in `veth stats`: seen from the host.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, text},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};

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

/// The counters of all topologies as OpenMetrics text. A port that is gone has no series any more.
///
/// # Errors
///
/// When a name cannot be written, which is a mistake in this program.
pub fn render(scraped: Vec<Scraped>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(All(scraped)));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct All(Vec<Scraped>);

/// A counter of a port: its name, what it is, its unit, and where it stands.
type Counter = (&'static str, &'static str, Option<Unit>, fn(&PortStats) -> u64);

const PACKETS: &str = "packets";

/// In the order of the text.
fn counters() -> Vec<Counter> {
    let packets = || Some(Unit::Other(PACKETS.to_owned()));
    let bytes = || Some(Unit::Bytes);
    vec![
        ("veth_port_receive", "Frames that came from the pod; a GSO frame is one", packets(), |p| {
            p.rx.packets
        }),
        ("veth_port_receive", "Bytes that came from the pod, Ethernet header included", bytes(), |p| {
            p.rx.bytes
        }),
        ("veth_port_transmit", "Frames that were handed to the pod; a GSO frame is one", packets(), |p| {
            p.tx.packets
        }),
        ("veth_port_transmit", "Bytes that were handed to the pod", bytes(), |p| p.tx.bytes),
        ("veth_port_receive_segments", "Frames from the pod as a cable would carry them", None, |p| {
            p.rx.segments
        }),
        ("veth_port_transmit_segments", "Frames to the pod as a cable would carry them", None, |p| {
            p.tx.segments
        }),
        ("veth_port_redirected", "Frames from the pod that were handed to another port", packets(), |p| {
            p.redirected.packets
        }),
        ("veth_port_passed", "Frames from the pod that were left to the slow path", packets(), |p| {
            p.passed.packets
        }),
    ]
}

/// The labels of a port.
fn labels(snapshot: &Snapshot, port: &PortStats) -> [(&'static str, String); 3] {
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
        let Self(scraped) = self;
        let snapshots = || scraped.iter().filter_map(|scraped| scraped.snapshot.as_ref());
        let ports =
            || snapshots().flat_map(|snapshot| snapshot.ports.iter().map(move |port| (snapshot, port)));
        let counter =
            |family: &mut prometheus_client::encoding::MetricEncoder<'_>,
             labels: &[(&str, String)],
             value| { ConstCounter::new(value).encode(family.encode_family(&labels)?) };
        for (name, help, unit, read) in counters() {
            let mut family = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
            for (snapshot, port) in ports() {
                counter(&mut family, &labels(snapshot, port), read(port))?;
            }
        }
        let packets = Unit::Other(PACKETS.to_owned());
        let help = "Frames from the pod that ended here, by reason";
        let mut family =
            encoder.encode_descriptor("veth_port_dropped", help, Some(&packets), MetricType::Counter)?;
        for (snapshot, port) in ports() {
            for (reason, Sum { packets, .. }) in &port.dropped {
                let [topology, pod, name] = labels(snapshot, port);
                counter(&mut family, &[topology, pod, name, ("reason", (*reason).to_owned())], *packets)?;
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
        for (snapshot, port) in ports() {
            let [topology, pod, name] = labels(snapshot, port);
            let all = [topology, pod, name, ("link", escaped(&port.link)), ("path", port.path.to_owned())];
            ConstGauge::new(1_i64).encode(family.encode_family(&all.as_slice())?)?;
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
    use std::collections::BTreeMap;

    use super::*;

    fn sum(packets: u64) -> Sum {
        Sum { packets, bytes: 100 * packets, segments: 2 * packets }
    }

    #[test]
    fn every_counter_has_a_series_for_each_port() {
        let port = PortStats {
            pod: Some("a\"b".to_owned()),
            port: "eth0".to_owned(),
            link: "lab-a".to_owned(),
            path: "switch",
            rx: sum(6),
            tx: sum(7),
            redirected: sum(3),
            passed: sum(2),
            dropped: BTreeMap::from([("no_peer", sum(1))]),
            kernel: None,
            xdp_xmit_errors: None,
        };
        let topology = "lab".to_owned();
        let snapshot =
            Snapshot { topology: topology.clone(), taken_ms: 0, ports: vec![port], unattributed: sum(9) };
        let text = render(vec![
            Scraped { topology, snapshot: Some(snapshot) },
            Scraped { topology: "broken".to_owned(), snapshot: None },
        ])
        .unwrap();
        let port = "topology=\"lab\",pod=\"a\\\"b\",port=\"eth0\"";
        for line in [
            format!("veth_port_receive_packets_total{{{port}}} 6"),
            format!("veth_port_receive_bytes_total{{{port}}} 600"),
            format!("veth_port_transmit_packets_total{{{port}}} 7"),
            format!("veth_port_transmit_segments_total{{{port}}} 14"),
            format!("veth_port_dropped_packets_total{{{port},reason=\"no_peer\"}} 1"),
            "veth_unattributed_packets_total{topology=\"lab\"} 9".to_owned(),
            "veth_topology_readable{topology=\"broken\"} 0".to_owned(),
            "# UNIT veth_port_receive_bytes bytes".to_owned(),
            "# EOF".to_owned(),
        ] {
            assert!(text.lines().any(|found| found == line), "no `{line}` in:\n{text}");
        }
    }
}
