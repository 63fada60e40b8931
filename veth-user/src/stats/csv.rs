//! Snapshots as CSV (RFC 4180): a row for each port, or for each part of it.

use csv::{Result, Writer, WriterBuilder};
use veth_common::DropReason;

use super::{By, PortStats, Snapshot, Sum};

/// What every row begins with.
const PORT: [&str; 6] = ["topology", "taken_ms", "pod", "port", "link", "path"];

/// Sums over frames, of each of which there are packets, bytes and segments.
const SUMS: [&str; 4] = ["rx", "tx", "redirected", "passed"];

/// The first line.
///
/// # Errors
///
/// Never: it is written to memory.
pub fn heading(by: Option<By>) -> Result<String> {
    let mut columns: Vec<String> = PORT.map(str::to_owned).into();
    if let Some(by) = by {
        columns.extend([by.name(), "packets", "bytes"].map(str::to_owned));
    } else {
        for sum in SUMS {
            columns.extend(["packets", "bytes", "segments"].map(|unit| format!("{sum}_{unit}")));
        }
        columns.extend(DropReason::ALL.map(|reason| format!("dropped_{}_packets", reason.name())));
    }
    let mut writer = writer();
    writer.write_record(columns)?;
    text(writer)
}

/// The lines of a snapshot. What is not counted is empty.
///
/// # Errors
///
/// Never: they are written to memory.
pub fn render(snapshot: &Snapshot, by: Option<By>) -> Result<String> {
    let mut writer = writer();
    for port in &snapshot.ports {
        if let Some(by) = by {
            for part in by.split(port) {
                let mut row = beginning(snapshot, port);
                let bytes = part.bytes.map(|bytes| bytes.to_string()).unwrap_or_default();
                row.extend([part.key, part.packets.to_string(), bytes]);
                writer.write_record(row)?;
            }
        } else {
            let mut row = beginning(snapshot, port);
            for Sum { packets, bytes, segments } in [port.rx(), port.tx(), port.redirected(), port.passed()] {
                row.extend([packets, bytes, segments].map(|number| number.to_string()));
            }
            row.extend(port.dropped().map(|(_, sum)| sum.packets.to_string()));
            writer.write_record(row)?;
        }
    }
    text(writer)
}

fn beginning(snapshot: &Snapshot, port: &PortStats) -> Vec<String> {
    let PortStats { pod, port, link, path, .. } = port;
    vec![
        snapshot.topology.clone(),
        snapshot.taken_ms.to_string(),
        pod.clone().unwrap_or_default(),
        port.clone(),
        link.clone(),
        (*path).to_owned(),
    ]
}

fn writer() -> Writer<Vec<u8>> {
    WriterBuilder::new().from_writer(Vec::new())
}

fn text(writer: Writer<Vec<u8>>) -> Result<String> {
    let bytes = writer.into_inner().map_err(|error| csv::Error::from(error.into_error()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::port::tests::example;

    #[test]
    fn rows_have_as_many_fields_as_the_heading() {
        let snapshot = Snapshot {
            topology: "s".to_owned(),
            taken_ms: 7,
            ports: vec![example("a,b", 2, 1, 0), example("c", 0, 0, 1)],
            unattributed: Sum::default(),
        };
        for by in [None, Some(By::Protocol), Some(By::Cpu), Some(By::Reason)] {
            let text = heading(by).unwrap() + &render(&snapshot, by).unwrap();
            let mut reader = csv::Reader::from_reader(text.as_bytes());
            let columns = reader.headers().unwrap().len();
            let rows: Vec<csv::StringRecord> = reader.records().map(|row| row.unwrap()).collect();
            assert!(rows.len() >= 2 && rows.iter().all(|row| row.len() == columns), "{text}");
            assert_eq!((&rows[0][0], &rows[0][1], &rows[0][2]), ("s", "7", "a,b"));
        }
        let text = heading(None).unwrap() + &render(&snapshot, None).unwrap();
        assert!(text.contains("rx_packets,rx_bytes,rx_segments,tx_packets"), "{text}");
        assert!(text.contains("s,7,\"a,b\",eth0,s-\"") || text.contains("\"a,b\""), "{text}");
    }
}
