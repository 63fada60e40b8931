//! The table of a snapshot, for people.

use comfy_table::{Cell, CellAlignment, Color, Row};
use indicatif::{HumanBytes, HumanCount};

use super::{PortStats, Snapshot, rate};
use crate::text::{plain_table, si};

/// A table of the first `rows` ports. With rates if it is one of several: where there was an earlier one.
#[must_use]
pub fn render(snapshot: &Snapshot, earlier: Option<Option<&Snapshot>>, rows: usize) -> String {
    let Snapshot { topology, taken_ms, ports, unattributed } = snapshot;
    if ports.is_empty() {
        return format!(
            "{topology}\nno program counts on its paths: the kernel's own counters are in `ip -s link`\n"
        );
    }
    let mut heading =
        vec!["POD", "PORT", "LINK", "RX", "REDIRECTED", "PASSED", "DROPPED", "TX", "RX BYTES", "TX BYTES"];
    if earlier.is_some() {
        heading.extend(["RX/s", "TX/s", "TX bit/s"]);
    }
    let mut table = plain_table(&heading);
    for (number, port) in ports.iter().enumerate().take(rows) {
        let before = earlier.flatten().and_then(|earlier| {
            let port = earlier.port(port, number)?;
            Some((port, taken_ms.saturating_sub(earlier.taken_ms)))
        });
        table.add_row(row(port, before, earlier.is_some()));
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut lines = vec![topology.clone(), table.trim_fmt()];
    if ports.len() > rows {
        lines.push(format!("… and {} more ports", ports.len() - rows));
    }
    if unattributed.packets > 0 {
        let packets = HumanCount(unattributed.packets);
        lines.push(format!("{packets} frames came in on interfaces that are no port, and were passed on"));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn row(port: &PortStats, before: Option<(&PortStats, u64)>, rates: bool) -> Row {
    let count = |value: u64| Cell::new(HumanCount(value));
    let bytes = |value: u64| Cell::new(HumanBytes(value));
    let (rx, tx) = (port.rx(), port.tx());
    let dropped = port.dropped_packets();
    let mut row = Row::from(vec![
        Cell::new(port.pod.as_deref().unwrap_or("-")),
        Cell::new(&port.port),
        Cell::new(if port.link.is_empty() { "-" } else { &port.link }),
        count(rx.packets),
        count(port.redirected().packets),
        count(port.passed().packets),
        if dropped > 0 { Cell::new(why(port)).fg(Color::Red) } else { count(0) },
        count(tx.packets),
        bytes(rx.bytes),
        bytes(tx.bytes),
    ]);
    if rates {
        let per_second = |now: u64, then: fn(&PortStats) -> u64, factor: f64| {
            let value = before.and_then(|(before, elapsed)| rate(then(before), now, elapsed));
            Cell::new(value.map_or_else(|| "-".to_owned(), |value| si(value * factor)))
        };
        row.add_cell(per_second(rx.packets, |port| port.rx().packets, 1.0));
        row.add_cell(per_second(tx.packets, |port| port.tx().packets, 1.0));
        row.add_cell(per_second(tx.bytes, |port| port.tx().bytes, 8.0));
    }
    row
}

/// The drops of a port with their reasons: `12 no_peer`.
fn why(port: &PortStats) -> String {
    let reasons = port.dropped().filter(|(_, sum)| sum.packets > 0);
    let words: Vec<String> =
        reasons.map(|(reason, sum)| format!("{} {}", HumanCount(sum.packets), reason.name())).collect();
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{Sum, port::tests::example};

    #[test]
    fn long_tables_are_cut_and_say_so() {
        let snapshot = Snapshot {
            topology: "s".into(),
            taken_ms: 2_000,
            ports: (0..3).map(|number| example(&format!("pod{number}"), 1_234, 0, number)).collect(),
            unattributed: Sum::default(),
        };
        let text = render(&snapshot, None, 2);
        for expected in ["1,234", "120.51 KiB", "1 no_peer", "… and 1 more ports"] {
            assert!(text.contains(expected), "no {expected} in:\n{text}");
        }
        assert!(!text.contains("pod2"), "{text}");
    }
}
