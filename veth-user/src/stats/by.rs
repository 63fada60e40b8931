//! The counters of a port, split in one of several ways.

use veth_common::{Protocol, SIZE_ENDS, Verdict};

use super::{PortStats, Snapshot, Sum};
use crate::text::plain_table;

/// By what counters are split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum By {
    /// The processor that the frame came in on.
    Cpu,
    /// What became of it: redirected, passed or dropped.
    Verdict,
    /// Why it was dropped, or left to the slow path.
    Reason,
    /// What it carries.
    Protocol,
    /// Its length. Dropped frames are not told apart by length.
    Size,
    /// For how many it was: one, a group or all.
    Cast,
}

/// One part of what came in at a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub key: String,
    /// Frames.
    pub packets: u64,
    /// Their bytes, where they are counted for this part. Of a protocol, without those that were dropped.
    pub bytes: Option<u64>,
}

impl By {
    /// The heading of its column.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Verdict => "verdict",
            Self::Reason => "reason",
            Self::Protocol => "protocol",
            Self::Size => "size",
            Self::Cast => "cast",
        }
    }

    /// All parts of a port, those without frames too.
    #[must_use]
    pub fn split(self, port: &PortStats) -> Vec<Part> {
        let whole = |key: String, sum: Sum| Part { key, packets: sum.packets, bytes: Some(sum.bytes) };
        let frames = |key: String, packets| Part { key, packets, bytes: None };
        match self {
            Self::Cpu => {
                let cpus = port.cpus.iter().enumerate();
                cpus.map(|(cpu, tally)| whole(cpu.to_string(), (*tally).into())).collect()
            }
            Self::Verdict => {
                let mut dropped = Sum::default();
                for (_, sum) in port.dropped() {
                    dropped.packets += sum.packets;
                    dropped.bytes += sum.bytes;
                }
                vec![
                    whole(Verdict::Redirected.name().to_owned(), port.redirected()),
                    whole(Verdict::Passed.name().to_owned(), port.passed()),
                    whole(Verdict::Dropped.name().to_owned(), dropped),
                ]
            }
            Self::Reason => {
                let key = |verdict: Verdict, reason| format!("{} {reason}", verdict.name());
                let passed = port
                    .passed_for()
                    .map(|(reason, packets)| frames(key(Verdict::Passed, reason.name()), packets));
                let dropped =
                    port.dropped().map(|(reason, sum)| whole(key(Verdict::Dropped, reason.name()), sum));
                passed.chain(dropped).collect()
            }
            Self::Protocol => Protocol::ALL
                .into_iter()
                .map(|protocol| {
                    let stats = port.protocol(protocol);
                    Part {
                        key: protocol.name().to_owned(),
                        packets: stats.packets(),
                        bytes: Some(stats.redirected.bytes + stats.passed.bytes),
                    }
                })
                .collect(),
            Self::Size => size_names()
                .into_iter()
                .zip(port.sizes())
                .map(|(key, packets)| frames(key, packets))
                .collect(),
            Self::Cast => {
                port.casts().into_iter().map(|(key, packets)| frames(key.to_owned(), packets)).collect()
            }
        }
    }
}

/// `0-127`, …, `2048-`: in bytes.
#[must_use]
pub fn size_names() -> Vec<String> {
    let mut first = 0;
    let mut names: Vec<String> = SIZE_ENDS
        .into_iter()
        .map(|end| {
            let name = format!("{first}-{end}");
            first = end + 1;
            name
        })
        .collect();
    names.push(format!("{first}-"));
    names
}

/// A table of a snapshot, split: `rows` of it, and only parts that there are frames of.
#[must_use]
pub fn render(snapshot: &Snapshot, by: By, rows: usize) -> String {
    use comfy_table::{Cell, CellAlignment};
    use indicatif::{HumanBytes, HumanCount};

    let heading = by.name().to_uppercase();
    let mut table = plain_table(&["POD", "PORT", "LINK", &heading, "PACKETS", "BYTES"]);
    let parts: Vec<(&PortStats, Part)> = snapshot
        .ports
        .iter()
        .flat_map(|port| by.split(port).into_iter().map(move |part| (port, part)))
        .filter(|(_, part)| part.packets > 0)
        .collect();
    for (port, Part { key, packets, bytes }) in parts.iter().take(rows) {
        table.add_row([
            Cell::new(port.pod.as_deref().unwrap_or("-")),
            Cell::new(&port.port),
            Cell::new(if port.link.is_empty() { "-" } else { &port.link }),
            Cell::new(key),
            Cell::new(HumanCount(*packets)).set_alignment(CellAlignment::Right),
            Cell::new(bytes.map_or_else(|| "-".to_owned(), |bytes| HumanBytes(bytes).to_string()))
                .set_alignment(CellAlignment::Right),
        ]);
    }
    let mut lines = vec![snapshot.topology.clone(), table.trim_fmt()];
    if parts.len() > rows {
        lines.push(format!("… and {} more rows", parts.len() - rows));
    }
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::port::tests::example;

    #[test]
    fn every_split_adds_up() {
        let port = example("a", 5, 3, 2);
        let sum = |by: By| by.split(&port).iter().map(|part| part.packets).sum::<u64>();
        for by in [By::Cpu, By::Verdict, By::Protocol, By::Cast] {
            assert_eq!(sum(by), 10, "{}", by.name());
        }
        assert_eq!(sum(By::Size), 8, "without those that were dropped");
        assert_eq!(sum(By::Reason), 5, "without those that were redirected");
        let snapshot = Snapshot {
            topology: "s".to_owned(),
            taken_ms: 0,
            ports: vec![port],
            unattributed: Sum::default(),
        };
        let text = render(&snapshot, By::Reason, 1);
        assert!(text.contains("passed group") && text.contains("… and 1 more rows"), "{text}");
        assert!(!text.contains("spoofed_mac"), "nothing to say of it:\n{text}");
    }

    #[test]
    fn sizes_have_no_gaps() {
        assert_eq!(size_names(), ["0-127", "128-255", "256-511", "512-1023", "1024-2047", "2048-"]);
    }
}
