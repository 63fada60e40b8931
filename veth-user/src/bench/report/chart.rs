//! Charts, as SVG that stands in a page. Colours are names: the page says what they look like, light, dark and on
//! paper.

use std::ops::Range;

use plotters::{coord::ranged1d::SegmentValue, prelude::*};

use super::{CellResult, Row};
use crate::bench::{spec::Workload, statistics::Estimate};

/// Pixels of a chart's width: what a phone shows without making letters small.
const WIDTH: u32 = 460;

/// Pixels a path takes.
const ROW: u32 = 26;

/// Pixels that axes take.
const AXES: u32 = 64;

/// Pixels of a curve's height.
const CURVES: u32 = 340;

/// Pixels of the names of paths.
const NAMES: u32 = 128;

/// Text, lines behind the data, and what stands for a limit.
pub(super) const INK: RGBColor = RGBColor(0x01, 0x01, 0x01);
pub(super) const GRID: RGBColor = RGBColor(0x02, 0x02, 0x02);

/// Colours that people with any kind of colour vision tell apart (Okabe and Ito, and two of Tol's), one for each usual path.
pub(super) const SERIES: [RGBColor; 10] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x8c, 0x8c, 0x00),
    RGBColor(0x80, 0x80, 0x80),
    RGBColor(0x88, 0x22, 0x55),
    RGBColor(0x44, 0xaa, 0x99),
];

/// What drawing into a string can fail by: nothing but a mistake.
type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw(
    height: u32,
    work: impl FnOnce(&DrawingArea<SVGBackend<'_>, plotters::coord::Shift>) -> Drawn,
) -> String {
    let mut svg = String::new();
    let done = {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        work(&area).and_then(|()| Ok(area.present()?))
    };
    match done {
        Ok(()) => svg,
        Err(error) => format!("<p>This chart could not be drawn: {error}</p>"),
    }
}

fn height(rows: usize) -> u32 {
    u32::try_from(rows).unwrap_or_default() * ROW + AXES
}

/// A line a path, from the top, along an axis.
fn rows(
    names: &[&str],
    range: Range<f64>,
    label: &str,
    marks: impl Fn(usize) -> Vec<(f64, f64, usize)>,
    whiskers: impl Fn(usize) -> Option<Estimate>,
    limit: Option<f64>,
) -> String {
    let count = i32::try_from(names.len()).unwrap_or_default();
    draw(height(names.len()), |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(6)
            .margin_right(16)
            .x_label_area_size(44)
            .y_label_area_size(NAMES)
            .build_cartesian_2d(range, (0..count).into_segmented())?;
        let name = |value: &SegmentValue<i32>| match value {
            SegmentValue::CenterOf(index) => {
                let index = usize::try_from(count - 1 - index).unwrap_or(usize::MAX);
                names.get(index).copied().unwrap_or_default().to_owned()
            }
            _ => String::new(),
        };
        let text = ("sans-serif", 13).into_font().color(&INK);
        chart
            .configure_mesh()
            .disable_y_mesh()
            .bold_line_style(GRID)
            .light_line_style(GRID.mix(0.0))
            .axis_style(GRID)
            .label_style(text.clone())
            .x_labels(5)
            .y_labels(names.len())
            .y_label_formatter(&name)
            .x_label_formatter(&|value| axis_number(*value))
            .x_desc(label)
            .axis_desc_style(text)
            .draw()?;
        let place = |row: usize| count - 1 - i32::try_from(row).unwrap_or_default();
        for row in 0..names.len() {
            for (from, to, colour) in marks(row) {
                let corners =
                    [(from, SegmentValue::Exact(place(row))), (to, SegmentValue::Exact(place(row) + 1))];
                let mut bar = Rectangle::new(corners, SERIES[colour].filled());
                bar.set_margin(5, 5, 0, 0);
                chart.draw_series([bar])?;
            }
            if let Some(Estimate { median, low, high }) = whiskers(row) {
                let centre = SegmentValue::CenterOf(place(row));
                let line = [(low, centre.clone()), (high, centre.clone())];
                chart.draw_series([PathElement::new(line, INK.stroke_width(2))])?;
                chart.draw_series([Circle::new((median, centre), 4, INK.filled())])?;
            }
        }
        if let Some(limit) = limit {
            let line = [(limit, SegmentValue::Exact(0)), (limit, SegmentValue::Exact(count))];
            chart.draw_series([PathElement::new(line, INK.stroke_width(1))])?;
        }
        Ok(())
    })
}

fn names(rows: &[&Row]) -> Vec<String> {
    rows.iter().map(|row| row.path.clone()).collect()
}

fn refer(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

/// Of a bare veth pair, with intervals.
pub(super) fn ratios(cell: &CellResult) -> Option<String> {
    let with: Vec<&Row> = cell.rows.iter().filter(|row| row.ratio.is_some()).collect();
    let of = |row: usize| with.get(row).and_then(|row| row.ratio);
    let highs = with.iter().filter_map(|row| row.ratio).map(|ratio| ratio.high);
    let highest = highs.fold(1.05, f64::max) * 1.02;
    let names = names(&with);
    (!with.is_empty()).then(|| {
        rows(
            &refer(&names),
            0.0..highest,
            "rate, of a bare veth pair in the same round",
            |row| of(row).map(|ratio| vec![(0.0, ratio.median, 0)]).unwrap_or_default(),
            of,
            Some(1.0),
        )
    })
}

/// The rate itself.
pub(super) fn rates(cell: &CellResult) -> Option<String> {
    let with: Vec<&Row> = cell.rows.iter().filter(|row| row.rate.is_some()).collect();
    let of = |row: usize| with.get(row).and_then(|row| row.rate);
    let highest = with.iter().filter_map(|row| row.rate).map(|rate| rate.high).fold(0.0, f64::max) * 1.05;
    let names = names(&with);
    (highest > 0.0).then(|| {
        rows(
            &refer(&names),
            0.0..highest,
            &cell.unit,
            |row| of(row).map(|rate| vec![(0.0, rate.median, 2)]).unwrap_or_default(),
            of,
            None,
        )
    })
}

/// What each operation costs, by where the time was spent.
pub(super) fn cpu(cell: &CellResult) -> Option<String> {
    let with: Vec<&Row> = cell.rows.iter().filter(|row| row.cpu_us.is_some()).collect();
    let of = |row: usize| {
        let Some(spent) = with.get(row).and_then(|row| row.cpu_us) else { return Vec::new() };
        let ends = [spent.user, spent.user + spent.system, spent.busy()];
        vec![(0.0, ends[0], 5), (ends[0], ends[1], 0), (ends[1], ends[2], 1)]
    };
    let highest =
        with.iter().filter_map(|row| row.cpu_us).map(|spent| spent.busy()).fold(0.0, f64::max) * 1.05;
    let names = names(&with);
    let label = match cell.workload {
        Workload::TcpStream => "CPU microseconds a megabyte",
        Workload::UdpPps | Workload::UdpNdr => "CPU microseconds a datagram",
        Workload::XdpPps => "CPU microseconds a frame",
        _ => "CPU microseconds a transaction",
    };
    (highest > 0.0).then(|| rows(&refer(&names), 0.0..highest, label, of, |_| None, None))
}

/// How many transactions took longer than each time.
pub(super) fn latencies(cell: &CellResult) -> Option<String> {
    let with: Vec<_> = cell.rows.iter().filter_map(|row| Some((row, row.latency.as_ref()?))).collect();
    let times = || with.iter().flat_map(|(_, latency)| &latency.curve);
    let shortest = times().map(|(time, _)| *time).fold(f64::INFINITY, f64::min).max(0.1);
    let longest = times().map(|(time, _)| *time).fold(0.0, f64::max);
    if longest <= shortest {
        return None;
    }
    let least = times().map(|(_, above)| *above).fold(1.0, f64::min);
    Some(draw(CURVES, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(6)
            .margin_right(16)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d((shortest..longest * 1.1).log_scale(), (least..1.0).log_scale())?;
        let text = ("sans-serif", 13).into_font().color(&INK);
        chart
            .configure_mesh()
            .bold_line_style(GRID)
            .light_line_style(GRID.mix(0.0))
            .axis_style(GRID)
            .label_style(text.clone())
            .axis_desc_style(text)
            .x_labels(6)
            .y_labels(6)
            .x_desc("microseconds a transaction")
            .y_desc("share that took longer")
            .x_label_formatter(&|value| axis_number(*value))
            .y_label_formatter(&|share| format!("{} %", axis_number(share * 100.0)))
            .draw()?;
        for (index, (_, latency)) in with.iter().enumerate() {
            let line = latency.curve.iter().copied();
            chart.draw_series(LineSeries::new(line, SERIES[index % SERIES.len()].stroke_width(2)))?;
        }
        Ok(())
    }))
}

/// A number on an axis: no more digits than it needs.
fn axis_number(value: f64) -> String {
    if value >= 999.5 {
        return crate::text::si(value);
    }
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_on_axes_are_short() {
        for (value, text) in [(0.0, "0"), (0.2, "0.2"), (1.0, "1"), (250.0, "250"), (50_000.0, "50.0k")] {
            assert_eq!(axis_number(value), text);
        }
    }
}
