//! The report for a browser: one file that fetches nothing.

use std::fmt::Write as _;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{
    CellResult, Document, Path, Row,
    chart::{self, GRID, INK, SERIES},
    table::interval,
};
use crate::{bench::statistics::Estimate, text::si};

/// What colours and sizes are, by what they are for.
const STYLE: &str = include_str!("report.css");

/// Everything that came of a run.
#[must_use]
pub fn render(document: &Document) -> String {
    let Document { results, verdicts, partial, machine, paths, skipped, .. } = document;
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "Pod to pod on " (machine.kernel) }
                style { (PreEscaped(STYLE)) (PreEscaped(chart_style())) }
            }
            body {
                h1 { "Pod to pod, side by side" }
                p.lead { "Linux " (machine.kernel) ", " (machine.cpu) ", " (time(document.time)) }
                @if *partial {
                    p.warning { "The run was interrupted: these are the rounds that there were." }
                }
                section {
                    h2 { "In words" }
                    ul { @for verdict in verdicts { li { (verdict) } } }
                    p.note {
                        "Medians of rounds, with the bootstrap 95 % interval of the median. ~ and “inconclusive” where that \
                         is wider than 5 % on a side."
                    }
                }
                @for cell in results { (section(cell)) }
                section {
                    h2 { "What was measured" }
                    (table(&["path", "what it is", "program", "offloads of the pod's end"], paths.iter().map(path)))
                    @for skipped in skipped { p { "Not measured: " b { (skipped.name) } ": " (skipped.why) } }
                }
                (conditions(document))
                (appendix(document))
            }
        }
    }
    .into_string()
}

fn path(path: &Path) -> Vec<Markup> {
    let Path { name, what, hook, offloads, .. } = path;
    let state = |(name, on): (&String, &bool)| format!("{name} {}", if *on { "on" } else { "off" });
    let offloads: Vec<String> = offloads.iter().map(state).collect();
    vec![
        html! { (name) },
        html! { (what) },
        html! { (hook.as_deref().unwrap_or("none")) },
        html! { (offloads.join(", ")) },
    ]
}

fn section(cell: &CellResult) -> Markup {
    let charts = [
        ("Of a bare veth pair", chart::ratios(cell), None),
        ("Rate", chart::rates(cell), None),
        ("Times of transactions", chart::latencies(cell), Some(legend(cell))),
        ("CPU time", chart::cpu(cell), Some(cpu_legend())),
    ];
    html! {
        section {
            h2 { (cell.workload.name()) ", " (cell.placement.words()) }
            p.note { (cell.size) " bytes at once, samples of " (cell.sample_ms) " ms" }
            (figures(cell))
            @for row in &cell.rows {
                @if let Some(why) = &row.failed { p.warning { b { (row.path) } ": " (why) } }
            }
            div.charts {
                @for (title, svg, legend) in charts {
                    @if let Some(svg) = svg {
                        figure {
                            figcaption { (title) }
                            (PreEscaped(svg))
                            @if let Some(legend) = legend { (legend) }
                        }
                    }
                }
            }
        }
    }
}

fn swatch(index: usize, name: &str) -> Markup {
    html! { span.key { span class={ "swatch c" (index % SERIES.len()) } {} (name) } " " }
}

fn legend(cell: &CellResult) -> Markup {
    let with = cell.rows.iter().filter(|row| row.latency.is_some());
    html! { p.legend { @for (index, row) in with.enumerate() { (swatch(index, &row.path)) } } }
}

fn cpu_legend() -> Markup {
    html! { p.legend { (swatch(5, "user")) (swatch(0, "system")) (swatch(1, "softirq")) } }
}

fn figures(cell: &CellResult) -> Markup {
    let is_rr = cell.workload.is_request_response();
    let mut heading = vec!["path", &cell.unit, "of direct"];
    if is_rr {
        heading.extend(["over direct, us", "p50, us", "p90", "p99", "p99.9", "max"]);
    }
    let cpu = format!("CPU us a {}", cell.workload.operation());
    heading.push(&cpu);
    let has_loss = cell.rows.iter().any(|row| row.lost.is_some());
    if has_loss {
        heading.push("lost");
    }
    table(&heading, cell.rows.iter().map(|row| line(row, is_rr, has_loss)))
}

fn line(row: &Row, is_rr: bool, has_loss: bool) -> Vec<Markup> {
    let text = |text: Option<String>| html! { (text.unwrap_or_else(|| "–".to_owned())) };
    let mut line = vec![
        text(Some(row.path.clone())),
        text(row.rate.map(|rate| si(rate.median))),
        text(row.ratio.map(|ratio| interval(&ratio, 3))),
    ];
    if is_rr {
        line.push(text(
            row.residual_us
                .map(|Estimate { median, low, high }| format!("{median:+.2} [{low:+.2}, {high:+.2}]")),
        ));
        let times = row.latency.as_ref();
        let times = times.map(|latency| [latency.p50, latency.p90, latency.p99, latency.p99_9, latency.max]);
        line.extend((0..5).map(|index| text(times.map(|times| format!("{:.1}", times[index])))));
    }
    line.push(text(row.cpu_us.map(|spent| format!("{:.2}", spent.busy()))));
    if has_loss {
        line.push(text(row.lost.map(|lost| format!("{:.1} %", lost * 100.0))));
    }
    line
}

/// Names and what is to be said of them, in text that may be long.
fn facts(rows: impl Iterator<Item = (&'static str, String)>) -> Markup {
    html! {
        table.facts { tbody { @for (name, value) in rows { tr { td { (name) } td { (value) } } } } }
    }
}

fn table(heading: &[&str], rows: impl Iterator<Item = Vec<Markup>>) -> Markup {
    html! {
        div.scroll {
            table {
                thead { tr { @for name in heading { th { (name) } } } }
                tbody { @for row in rows { tr { @for cell in row { td { (cell) } } } } }
            }
        }
    }
}

fn conditions(document: &Document) -> Markup {
    let Document { machine, method, seed, command, veth, .. } = document;
    let virtualised = if machine.virtualised {
        "yes: figures of one machine are worth little, compare within a run"
    } else {
        "no"
    };
    let known = [
        ("kernel", machine.kernel.clone()),
        ("CPU", machine.cpu.clone()),
        ("CPUs of the run", machine.cpus.to_string()),
        ("virtual machine", virtualised.to_owned()),
        ("clock", machine.clock.clone()),
        (
            "congestion control",
            format!(
                "{} (default of the machine: {})",
                method.congestion_control, machine.default_congestion_control
            ),
        ),
        ("IP version", method.ip_version.to_string()),
        ("pairs of ends", method.pairs.to_string()),
        ("mitigations", machine.mitigations.join("; ")),
        ("veth", veth.clone()),
        ("seed", seed.to_string()),
        ("command", command.join(" ")),
    ];
    html! {
        section {
            h2 { "Where and how" }
            (facts(known.into_iter()))
            ul { @for sentence in &method.words { li { (sentence) } } }
        }
    }
}

fn appendix(document: &Document) -> Markup {
    let declared = document.paths.iter().filter_map(|path| Some((&path.name, path.declaration.as_ref()?)));
    html! {
        section.appendix {
            h2 { "Every round" }
            @for cell in &document.results {
                details {
                    summary { (cell.workload.name()) ", " (cell.placement.words()) " (" (cell.unit) ")" }
                    (rounds(cell))
                }
            }
            h2 { "How the paths are declared" }
            @for (name, text) in declared {
                details { summary { (name) } pre { (text) } }
            }
        }
    }
}

fn rounds(cell: &CellResult) -> Markup {
    let mut numbers: Vec<u32> =
        cell.rows.iter().flat_map(|row| &row.rounds).map(|round| round.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let mut heading = vec!["round", "outside load"];
    heading.extend(cell.rows.iter().map(|row| row.path.as_str()));
    let line = |number: &u32| {
        let of = |row: &Row| row.rounds.iter().find(|round| round.number == *number).copied();
        let any = cell.rows.iter().find_map(of);
        let outside = any.map(|round| {
            let marked = if round.disturbed { ", does not count" } else { "" };
            format!("{:.0} %{marked}", round.outside * 100.0)
        });
        let mut line = vec![html! { (number) }, html! { (outside.unwrap_or_default()) }];
        line.extend(cell.rows.iter().map(|row| {
            let rate = of(row).map_or_else(|| "–".to_owned(), |round| format!("{:.0}", round.rate));
            html! { (rate) }
        }));
        line
    };
    table(&heading, numbers.iter().map(line))
}

/// The colours of charts, which the drawing only names.
fn chart_style() -> String {
    let hex =
        |colour: &plotters::style::RGBColor| format!("#{:02X}{:02X}{:02X}", colour.0, colour.1, colour.2);
    let rule = |name: &str, colour: &plotters::style::RGBColor| {
        let hex = hex(colour);
        format!("svg [fill=\"{hex}\"]{{fill:var(--{name})}}svg [stroke=\"{hex}\"]{{stroke:var(--{name})}}")
    };
    let mut style = rule("ink", &INK) + &rule("grid", &GRID);
    for (index, colour) in SERIES.iter().enumerate() {
        let _infallible = write!(style, ".c{index}{{background:{}}}", hex(colour));
    }
    style
}

fn time(seconds: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    humantime::format_rfc3339_seconds(time).to_string()
}
