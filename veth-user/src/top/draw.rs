//! Drawing the view.

use indicatif::{HumanBytes, HumanCount};
use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize as _},
    text::{Line, Span},
    widgets::{Block, Cell, Clear, Paragraph, Row as TableRow, Sparkline, Table},
};
use veth_common::Protocol;

use super::{Column, Keys, Row, View, kernel};
use crate::{stats::by::size_names, text::si};

/// Room for the details of a port, with their frame.
const DETAILS: u16 = 17;

/// How wide a row's trend is.
const TREND: u16 = 12;

/// The steps of a trend.
const STEPS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// What the keys do.
const HELP: [(&str, &str); 10] = [
    ("↑ ↓ PgUp PgDn g G", "another port"),
    ("← →", "sort by another column"),
    ("r", "sort the other way round"),
    ("/", "show only ports whose topology/pod or name has some letters in it"),
    ("Enter d", "details of the port, or none"),
    ("p space", "stand still, or go on"),
    ("? h", "this help"),
    ("Esc", "close what is open; end"),
    ("q Ctrl-C", "end"),
    ("", "RX came from the pod, TX went to it. A frame is one however large (GSO)."),
];

/// Draws all of it.
pub fn draw(view: &mut View, frame: &mut Frame<'_>) {
    let details = if view.has_details { DETAILS.min(frame.area().height / 2) } else { 0 };
    let [head, table, below, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Length(details),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    draw_head(view, frame, head);
    draw_table(view, frame, table);
    if details > 0
        && let Some(row) = view.selected.as_ref().and_then(|key| view.rows.get(key))
    {
        draw_details(view, row, frame, below);
    }
    draw_foot(view, frame, foot);
    if view.keys == Keys::Help {
        draw_help(frame);
    }
}

fn draw_head(view: &View, frame: &mut Frame<'_>, area: Rect) {
    let sum = |read: fn(&Row) -> f64| view.rows.values().map(read).sum::<f64>();
    let drops = sum(|row| row.rates.drops);
    let mut spans = vec![
        " veth top ".bold(),
        format!(
            " {} ports in {} topologies   {} pkt/s   {} bit/s",
            view.rows.len(),
            view.taken.len(),
            si(sum(|row| row.rates.rx_packets)),
            si(sum(|row| row.rates.rx_bits))
        )
        .into(),
    ];
    if drops > 0.0 {
        spans.push(format!("   {} dropped/s", si(drops)).red().bold());
    }
    if view.is_paused {
        spans.push("   stands still (p)".yellow().bold());
    }
    frame.render_widget(Line::from(spans), area);
}

fn draw_table(view: &mut View, frame: &mut Frame<'_>, area: Rect) {
    let range = view.scroll(usize::from(area.height.saturating_sub(1)));
    let heading = Column::ALL.map(|column| {
        let arrow = if column != view.sort {
            ""
        } else if column.is_text() == view.reversed {
            "▼"
        } else {
            "▲"
        };
        let text = Line::from(format!("{}{arrow}", column.heading()));
        let cell = Cell::from(if column.is_text() { text } else { text.alignment(Alignment::Right) });
        if column == view.sort { cell.style(Style::new().add_modifier(Modifier::BOLD)) } else { cell }
    });
    let heading = TableRow::new(heading.into_iter().chain([Cell::from("TREND"), Cell::from("REASONS")]));
    let rows = view.shown[range].iter().filter_map(|key| {
        let row = view.rows.get(key)?;
        let style = if view.selected.as_ref() == Some(key) {
            Style::new().add_modifier(Modifier::REVERSED)
        } else {
            Style::new()
        };
        Some(table_row(row).style(style))
    });
    let widths = [
        Constraint::Min(14),
        Constraint::Length(6),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(7),
        Constraint::Length(9),
        Constraint::Fill(1),
        Constraint::Fill(2),
    ];
    frame.render_widget(Table::new(rows, widths).header(heading.style(Style::new().fg(Color::Cyan))), area);
}

fn table_row(row: &Row) -> TableRow<'static> {
    let right = |text: String| Cell::from(Line::from(text).alignment(Alignment::Right));
    let red = Style::new().fg(Color::Red);
    let dropped = row.stats.dropped_packets();
    let reasons: Vec<String> = row
        .stats
        .dropped()
        .filter(|(_, sum)| sum.packets > 0)
        .map(|(reason, sum)| format!("{} {}", HumanCount(sum.packets), reason.name()))
        .collect();
    let drops = right(si(row.rates.drops));
    let total = right(HumanCount(dropped).to_string());
    TableRow::new(vec![
        Cell::from(row.pod()),
        Cell::from(row.stats.port.clone()),
        right(si(row.rates.rx_packets)),
        right(si(row.rates.tx_packets)),
        right(si(row.rates.rx_bits)),
        right(si(row.rates.tx_bits)),
        if row.rates.drops > 0.0 { drops.style(red) } else { drops },
        if dropped > 0 { total.style(red) } else { total },
        Cell::from(trend(row)),
        Cell::from(reasons.join(", ")).style(red),
    ])
}

/// The last rates, as much as there is room for, the highest of them as a full block.
fn trend(row: &Row) -> String {
    let width = usize::from(TREND);
    let rates = row.trend.iter().skip(row.trend.len().saturating_sub(width));
    let most = rates.clone().max().copied().unwrap_or_default();
    let step = |rate: &u64| {
        let steps = u64::try_from(STEPS.len()).unwrap_or(1);
        if *rate == 0 {
            return ' ';
        }
        let step = u128::from(*rate) * u128::from(steps - 1) / u128::from(most.max(1));
        usize::try_from(step).ok().and_then(|step| STEPS.get(step)).copied().unwrap_or(' ')
    };
    rates.map(step).collect()
}

fn draw_details(view: &View, row: &Row, frame: &mut Frame<'_>, area: Rect) {
    let stats = &row.stats;
    let title = format!(" {} {}: {} path, host end {} ", row.pod(), stats.port, stats.path, stats.link);
    let block = Block::bordered().title(title);
    let inside = block.inner(area);
    frame.render_widget(block, area);
    let [left, middle, right] =
        Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1), Constraint::Fill(1)]).areas(inside);

    let count =
        |name: &str, number: u64| Line::from(format!("{name:<22}{:>14}", HumanCount(number).to_string()));
    let protocols =
        Protocol::ALL.into_iter().map(|protocol| (protocol.name(), stats.protocol(protocol).packets()));
    let mut lines = vec![Line::from("frames from the pod by protocol".bold())];
    lines.extend(protocols.filter(|(_, packets)| *packets > 0).map(|(name, packets)| count(name, packets)));
    lines.push(Line::from("by number of receivers".bold()));
    lines.extend(stats.casts().map(|(name, packets)| count(name, packets)));
    frame.render_widget(Paragraph::new(lines), left);

    let mut lines = vec![Line::from("by size in bytes".bold())];
    let sizes = size_names().into_iter().zip(stats.sizes());
    lines.extend(sizes.map(|(name, packets)| count(&name, packets)));
    lines.push(Line::from("what became of them".bold()));
    lines.push(count("redirected", stats.redirected().packets));
    let passed = stats.passed_for().filter(|(_, packets)| *packets > 0);
    lines.extend(passed.map(|(reason, packets)| count(&format!("passed {}", reason.name()), packets)));
    let dropped = stats.dropped().filter(|(_, sum)| sum.packets > 0);
    lines
        .extend(dropped.map(|(reason, sum)| count(&format!("dropped {}", reason.name()), sum.packets).red()));
    frame.render_widget(Paragraph::new(lines), middle);

    let [top, chart] = Layout::vertical([Constraint::Min(1), Constraint::Length(3)]).areas(right);
    let mut lines = vec![Line::from("frames from the pod by cpu".bold())];
    let cpus = stats.cpus.iter().enumerate().filter(|(_, tally)| tally.packets > 0);
    lines.extend(cpus.map(|(cpu, tally)| count(&format!("cpu {cpu}"), tally.packets)));
    lines.push(count("bytes in all", stats.rx().bytes));
    lines.push(Line::from(format!(
        "that is {} in, {} out",
        HumanBytes(stats.rx().bytes),
        HumanBytes(stats.tx().bytes)
    )));
    if let Some(link) = kernel(stats) {
        lines.push(Line::from(format!(
            "host end: {} rx dropped, {} tx dropped",
            link.rx_dropped, link.tx_dropped
        )));
    }
    let list = |what: &str, names: &[String]| {
        Line::from(vec![Span::from(format!("{what}: ")).bold(), names.join(", ").into()])
    };
    lines.push(list("programs", &view.found.programs));
    lines.push(list("redirects to", &view.found.targets));
    lines.push(list("features", &view.found.features));
    frame.render_widget(Paragraph::new(lines).wrap(ratatui::widgets::Wrap { trim: false }), top);
    let bars: Vec<u64> = row.trend.iter().copied().collect();
    frame.render_widget(Sparkline::default().data(&bars).style(Style::new().fg(Color::Green)), chart);
}

fn draw_foot(view: &View, frame: &mut Frame<'_>, area: Rect) {
    let line = if view.keys == Keys::Filter {
        Line::from(vec![
            " filter: ".bold(),
            view.filter.clone().into(),
            "▏".into(),
            "  Enter keeps it, Esc clears it".dim(),
        ])
    } else if let Some(message) = &view.message {
        Line::from(format!(" {message}").red())
    } else if view.filter.is_empty() {
        Line::from(" q end   ? help   / filter   ← → sort   r reverse   Enter details   p stand still".dim())
    } else {
        Line::from(
            format!(
                " {} of {} ports have `{}` in their name; Esc shows all",
                view.shown.len(),
                view.rows.len(),
                view.filter
            )
            .yellow(),
        )
    };
    frame.render_widget(line, area);
}

fn draw_help(frame: &mut Frame<'_>) {
    let area = frame.area();
    let height = u16::try_from(HELP.len()).unwrap_or(u16::MAX).saturating_add(2).min(area.height);
    let width = 80.min(area.width);
    let place =
        Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    let lines = HELP.map(|(keys, what)| Line::from(format!(" {keys:<18} {what}")));
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(lines.to_vec()).block(Block::bordered().title(" keys ")), place);
}
