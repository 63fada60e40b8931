//! What measurements say: spreads, a table, targets. Pure.

use std::{
    fmt::{self, Display, Formatter},
    time::Duration,
};

use comfy_table::{CellAlignment, Table, TableStyle};
use serde_json::{Value, json};

use super::{contestant::Sample, process::Usage};

/// The number of pods that targets are for.
pub(super) const TARGET_PODS: usize = 1000;

const MEBIBYTE: f64 = 1024.0 * 1024.0;

/// One contestant's rounds.
pub(super) struct Results {
    pub(super) name: &'static str,
    pub(super) pods: usize,
    pub(super) samples: Vec<Sample>,
}

/// Several measurements of one thing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    min: f64,
    max: f64,
}

/// What should be reached with 1,000 pods.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    what: &'static str,
    unit: Unit,
    limit: f64,
    /// Nothing if it was not measured.
    measured: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Seconds,
    Bytes,
    Times,
}

impl Spread {
    /// The median and the extremes, if anything was measured.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self { median, min, max })
    }
}

impl Display for Spread {
    /// As seconds.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { median, min, max } = *self;
        let (factor, unit, digits) = if median < 0.995 { (1e3, "ms", 0) } else { (1.0, "s", 2) };
        write!(f, "{:.digits$} {unit}", median * factor)?;
        if min < max {
            write!(f, " ({:.digits$}–{:.digits$})", min * factor, max * factor)?;
        }
        Ok(())
    }
}

impl Results {
    fn spread(&self, part: impl Fn(&Sample) -> Option<Duration>) -> Option<Spread> {
        Spread::of(self.samples.iter().filter_map(part).map(|time| time.as_secs_f64()))
    }

    fn up(&self) -> Option<Spread> {
        self.spread(|sample| Some(sample.up.wall))
    }

    fn down(&self) -> Option<Spread> {
        self.spread(|sample| Some(sample.down.wall))
    }

    /// The highest peak of any process in any round, in bytes. Nothing if there were no processes.
    fn memory(&self) -> Option<u64> {
        let usages = |&Sample { up, plan, ls, down, gone: _ }: &Sample| {
            [Some(up), plan, ls, Some(down)].into_iter().flatten().map(|usage| usage.memory).max()
        };
        self.samples.iter().filter_map(usages).max().filter(|&bytes| bytes > 0)
    }

    #[expect(clippy::cast_precision_loss, reason = "there are at most some thousands of pods")]
    fn per_pod(&self) -> Option<f64> {
        Some(self.up()?.median / self.pods as f64)
    }

    /// All measurements, in seconds and bytes.
    pub(super) fn json(&self) -> Value {
        let Self { name, pods, samples } = self;
        let usage = |Usage { wall, memory }: Usage| {
            let peak = (memory > 0).then_some(memory);
            json!({ "seconds": wall.as_secs_f64(), "peak_bytes": peak })
        };
        let samples: Vec<Value> = samples
            .iter()
            .map(|&Sample { up, plan, ls, down, gone }| {
                json!({
                    "up": usage(up), "plan": plan.map(usage), "ls": ls.map(usage), "down": usage(down),
                    "gone": { "seconds": gone.as_secs_f64() },
                })
            })
            .collect();
        json!({ "name": name, "pods": pods, "rounds": samples })
    }
}

impl Target {
    /// Whether it is met. What was not measured is not met.
    pub(super) fn met(&self) -> bool {
        self.measured.is_some_and(|measured| measured <= self.limit)
    }

    /// The target as data.
    pub(super) fn json(&self) -> Value {
        let Self { what, unit, limit, measured } = self;
        let unit = match unit {
            Unit::Seconds => "s",
            Unit::Bytes => "B",
            Unit::Times => "x",
        };
        json!({ "what": what, "unit": unit, "limit": limit, "measured": measured, "met": self.met() })
    }
}

impl Display for Target {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { what, unit, limit, measured } = self;
        let show = |value: f64| match unit {
            Unit::Seconds if *limit < 1.0 => format!("{:.0} ms", value * 1e3),
            Unit::Seconds => format!("{value:.2} s"),
            Unit::Bytes => format!("{:.1} MiB", value / MEBIBYTE),
            Unit::Times => format!("{value:.2} ×"),
        };
        match measured {
            Some(value) => {
                let verdict = if self.met() { "met" } else { "missed" };
                write!(f, "{verdict}: {what} ≤ {}, measured {}", show(*limit), show(*value))
            }
            None => write!(f, "not measured: {what} ≤ {}", show(*limit)),
        }
    }
}

/// A row for every contestant.
///
/// `least` is what a process that does nothing is said to need: a peak at or below it cannot be told.
pub(super) fn table(results: &[Results], least: u64) -> Table {
    let mut table = Table::new();
    table.load_style(TableStyle::new());
    table.set_header(["", "pods", "up", "per pod", "down", "gone", "peak memory"]);
    let show = |spread: Option<Spread>| spread.map_or_else(|| "–".to_owned(), |spread| spread.to_string());
    for result in results {
        table.add_row([
            result.name.to_owned(),
            result.pods.to_string(),
            show(result.up()),
            result.per_pod().map_or_else(|| "–".to_owned(), |seconds| format!("{:.2} ms", seconds * 1e3)),
            show(result.down()),
            show(result.spread(|sample| Some(sample.gone))),
            result.memory().map_or_else(|| "–".to_owned(), |bytes| memory(bytes, least)),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// How long veth's commands took that only look.
pub(super) fn looks(results: &[Results]) -> Vec<String> {
    let line = |result: &Results, what: &str, spread: Option<Spread>| {
        Some(format!("{}: {what} of {} pods {}", result.name, result.pods, spread?))
    };
    results
        .iter()
        .flat_map(|result| {
            [
                line(result, "`plan` with nothing to do", result.spread(|sample| Some(sample.plan?.wall))),
                line(result, "`ls`", result.spread(|sample| Some(sample.ls?.wall))),
            ]
        })
        .flatten()
        .collect()
}

/// How four times the pods compare with one times.
pub(super) fn ratios(one: Option<&Results>, four: Option<&Results>) -> Option<(f64, f64)> {
    let (one, four) = (one?, four?);
    Some((four.up()?.median / one.up()?.median, four.down()?.median / one.down()?.median))
}

/// The targets: times by their medians, memory by its highest peak.
pub(super) fn targets(veth: Option<&Results>, switches: Option<&Results>) -> Vec<Target> {
    let time = |what, limit, spread: Option<Spread>| Target {
        what,
        unit: Unit::Seconds,
        limit,
        measured: spread.map(|spread| spread.median),
    };
    #[expect(clippy::cast_precision_loss, reason = "memory is far below 2^52 bytes")]
    let memory = veth.and_then(Results::memory).map(|bytes| bytes as f64);
    vec![
        time("1,000 pods up", 4.0, veth.and_then(Results::up)),
        time("1,000 pods down", 3.0, veth.and_then(Results::down)),
        Target { what: "peak memory", unit: Unit::Bytes, limit: 100.0 * MEBIBYTE, measured: memory },
        time(
            "`plan` with nothing to do",
            0.3,
            veth.and_then(|veth| veth.spread(|sample| Some(sample.plan?.wall))),
        ),
        Target {
            what: "4,000 pods up, as against 1,000",
            unit: Unit::Times,
            limit: 4.5,
            measured: ratios(veth, switches).map(|(up, _)| up),
        },
    ]
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit after the point")]
fn memory(bytes: u64, least: u64) -> String {
    let below = if bytes <= least { "≤ " } else { "" };
    format!("{below}{:.1} MiB", bytes as f64 / MEBIBYTE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(pods: usize, seconds: &[f64]) -> Results {
        let usage = |seconds| Usage { wall: Duration::from_secs_f64(seconds), memory: 1024 * 1024 };
        let sample = |&seconds: &f64| Sample {
            up: usage(seconds),
            plan: None,
            ls: None,
            down: usage(seconds / 2.0),
            gone: Duration::from_secs_f64(seconds),
        };
        Results { name: "veth", pods, samples: seconds.iter().map(sample).collect() }
    }

    #[test]
    fn a_spread_is_the_middle_and_the_extremes() {
        let spread = Spread::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!(spread, Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(spread.to_string(), "2.00 s (1.00–3.00)");
        assert_eq!(Spread::of([0.2, 0.1]).unwrap().to_string(), "150 ms (100–200)");
        assert_eq!(Spread::of([0.01]).unwrap().to_string(), "10 ms");
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn targets_are_judged_by_medians() {
        let (one, four) = (results(1000, &[9.0, 3.0, 2.0]), results(4000, &[15.0]));
        let targets = targets(Some(&one), Some(&four));
        let lines: Vec<String> = targets.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "met: 1,000 pods up ≤ 4.00 s, measured 3.00 s",
                "met: 1,000 pods down ≤ 3.00 s, measured 1.50 s",
                "met: peak memory ≤ 100.0 MiB, measured 1.0 MiB",
                "not measured: `plan` with nothing to do ≤ 300 ms",
                "missed: 4,000 pods up, as against 1,000 ≤ 4.50 ×, measured 5.00 ×",
            ]
        );
        assert!(!targets[3].met() && !targets[4].met());
    }

    #[test]
    fn memory_below_what_can_be_told() {
        assert_eq!(memory(2 << 20, 2 << 20), "≤ 2.0 MiB");
        assert_eq!(memory(3 << 20, 2 << 20), "3.0 MiB");
    }

    #[test]
    fn a_row_for_every_contestant() {
        let table = table(&[results(100, &[1.0, 2.0, 3.0])], 0).to_string();
        assert!(table.lines().any(|line| {
            line.split_whitespace().collect::<Vec<_>>().join(" ")
                == "veth 100 2.00 s (1.00–3.00) 20.00 ms 1.00 s (0.50–1.50) 2.00 s (1.00–3.00) 1.0 MiB"
        }));
    }
}
