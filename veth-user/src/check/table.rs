//! The table of a report, for people.

use comfy_table::{Cell, CellAlignment, Color};

use super::{PathReport, Report};
use crate::text::{plain_table, si};

/// Failures that are shown one by one: a switch that is down fails a thousand times.
const FAILURES_MAX: usize = 20;

/// A table of the paths, and below it what did not work.
#[must_use]
pub fn table(report: &Report) -> String {
    let Report { topology, seed, is_sampled, paths, failures, pings: _ } = report;
    let mut table = plain_table(&["PATH", "KIND", "PAIRS", "PINGS", "MEDIAN", "WORST", "TCP"]);
    for PathReport { path, kind, pairs, sent, received, median_us, worst_us, tcp } in paths {
        let time = |time: &Option<f64>| time.map_or_else(|| "-".to_owned(), |time| format!("{time:.0} us"));
        let pings = match (*pairs, received == sent) {
            (0, _) if tcp.is_none() => Cell::new("nothing to try"),
            (_, true) => Cell::new(format!("{received}/{sent}")),
            (_, false) => Cell::new(format!("{received}/{sent}")).fg(Color::Red),
        };
        let tcp = match tcp {
            None => Cell::new("-"),
            Some(tcp) if tcp.passed() => Cell::new(format!("{}bit/s", si(tcp.bits_per_second))),
            Some(_) => Cell::new("FAILED").fg(Color::Red),
        };
        table.add_row([
            Cell::new(path),
            Cell::new(kind),
            Cell::new(pairs),
            pings,
            Cell::new(time(median_us)),
            Cell::new(time(worst_us)),
            tcp,
        ]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut lines = vec![topology.clone(), table.trim_fmt()];
    lines.extend(failures.iter().take(FAILURES_MAX).map(ToString::to_string));
    if failures.len() > FAILURES_MAX {
        lines.push(format!("… and {} more failures", failures.len() - FAILURES_MAX));
    }
    if *is_sampled {
        lines.push(format!(
            "too many pods to try each with each: a ring and random pairs, of the seed {seed}"
        ));
    }
    lines.push(String::new());
    lines.join("\n")
}
