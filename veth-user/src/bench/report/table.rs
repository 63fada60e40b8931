//! The report for a terminal.

use std::fmt::Write as _;

use comfy_table::CellAlignment;

use super::{CellResult, Document, Row};
use crate::{
    bench::{spec::Workload, statistics::Estimate},
    text::{plain_table, si},
};

/// The tables, and what they say in words.
#[must_use]
pub fn render(document: &Document) -> String {
    let Document { machine, results, skipped, verdicts, seed, partial, method, .. } = document;
    let mut text = String::new();
    for cell in results {
        let _infallible = writeln!(
            text,
            "{}, {}, {} bytes, samples of {} ms:\n{}\n",
            cell.workload.name(),
            cell.placement.words(),
            cell.size,
            cell.sample_ms,
            table(cell)
        );
    }
    let mut lines: Vec<String> = verdicts.clone();
    if !verdicts.is_empty() {
        lines.push(String::new());
    }
    lines.extend(skipped.iter().map(|skipped| format!("not measured: {}: {}", skipped.name, skipped.why)));
    let virtualised = if machine.virtualised { "virtual machine" } else { "bare metal" };
    lines.push(format!(
        "Linux {}, {} ({} CPUs, {virtualised}), {}, IPv{}, seed {seed}.",
        machine.kernel, machine.cpu, machine.cpus, method.congestion_control, method.ip_version
    ));
    lines.push(
        "Medians of rounds; [95 % interval of the median]; ~ where that is wider than 5 % on a side: inconclusive."
            .to_owned(),
    );
    if *partial {
        lines.push("Interrupted: these are the rounds that there were.".to_owned());
    }
    text + &lines.join("\n") + "\n"
}

fn table(cell: &CellResult) -> String {
    let is_rr = cell.workload.is_request_response();
    let cpu = match cell.workload {
        Workload::TcpStream => "CPU us/MB",
        Workload::UdpPps | Workload::UdpNdr => "CPU us/datagram",
        Workload::XdpPps => "CPU us/frame",
        _ => "CPU us each",
    };
    let mut heading = vec!["PATH", &cell.unit, "OF DIRECT"];
    if is_rr {
        heading.extend(["OVER DIRECT us", "p50 us", "p90", "p99", "p99.9", "max"]);
    }
    heading.push(cpu);
    let has_loss = cell.rows.iter().any(|row| row.lost.is_some());
    if has_loss {
        heading.push("LOST");
    }
    let mut table = plain_table(&heading);
    for row in &cell.rows {
        table.add_row(line(row, is_rr, has_loss));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let failed = cell.rows.iter().filter_map(|row| Some(format!("\n{}: {}", row.path, row.failed.as_ref()?)));
    table.trim_fmt() + &failed.collect::<String>()
}

fn line(row: &Row, is_rr: bool, has_loss: bool) -> Vec<String> {
    let none = || "-".to_owned();
    let mut line = vec![
        row.path.clone(),
        row.rate.map_or_else(none, |rate| si(rate.median)),
        row.ratio.map_or_else(none, |ratio| interval(&ratio, 3)),
    ];
    if is_rr {
        line.push(row.residual_us.map_or_else(none, |Estimate { median, low, high }| {
            format!("{median:+.2} [{low:+.2}, {high:+.2}]")
        }));
        let times = row.latency.as_ref();
        let times = times.map(|latency| [latency.p50, latency.p90, latency.p99, latency.p99_9, latency.max]);
        line.extend(
            times.map_or_else(|| vec![none(); 5], |times| times.map(|time| format!("{time:.1}")).into()),
        );
    }
    line.push(row.cpu_us.map_or_else(none, |spent| format!("{:.2}", spent.busy())));
    if has_loss {
        line.push(row.lost.map_or_else(none, |lost| format!("{:.1} %", lost * 100.0)));
    }
    line
}

/// A figure with its interval, marked where it is inconclusive.
#[must_use]
pub fn interval(estimate: &Estimate, digits: usize) -> String {
    let Estimate { median, low, high } = estimate;
    let doubt = if estimate.is_conclusive() { "" } else { "~" };
    format!("{doubt}{median:.digits$} [{low:.digits$}, {high:.digits$}]")
}
