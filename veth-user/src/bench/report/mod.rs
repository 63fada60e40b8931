//! What came of a run: one document, of which the table, JSON and HTML are renderers.

mod chart;
pub mod html;
mod machine;
pub mod table;

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use hdrhistogram::Histogram;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::machine::Machine;
use super::{
    Error, Plan,
    cpu::Spent,
    run::{Contestant, Results, Sample, Series},
    spec::{Base, Cell, Placement, Workload},
    stage::Stage,
    statistics::{Estimate, median, ratios},
};
use crate::net::ethtool::Ethtool;

/// The version of the document. It grows with every change that a reader must know of.
pub const SCHEMA: &str = "veth-bench/1";

/// Features of links by which paths differ, as the kernel names them.
const OFFLOADS: [&str; 4] =
    ["tx-checksum-ip-generic", "tx-tcp-segmentation", "tx-generic-segmentation", "rx-gro"];

/// Points of a latency curve.
const CURVE_POINTS: usize = 200;

/// What `veth bench --json` writes.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "veth bench report")]
pub struct Document {
    /// The version of this document: `veth-bench/1`.
    pub schema: String,
    /// The version of veth.
    pub veth: String,
    /// When the run began, in seconds since 1970.
    pub time: u64,
    /// The command line.
    pub command: Vec<String>,
    /// What decided the order of everything: the same seed gives the same order.
    pub seed: u64,
    /// Whether the run was interrupted, so that rounds are missing.
    pub partial: bool,
    /// Where it ran.
    pub machine: Machine,
    /// How it was measured.
    pub method: Method,
    /// The paths, in the order of the tables.
    pub paths: Vec<Path>,
    /// Paths that could not be measured.
    pub skipped: Vec<Skipped>,
    /// What came of each workload and placement.
    pub results: Vec<CellResult>,
    /// The most important figures, in words.
    pub verdicts: Vec<String>,
}

/// How it was measured.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Method {
    /// In words, a sentence an item.
    pub words: Vec<String>,
    /// 4 or 6.
    pub ip_version: u8,
    /// Pairs of ends at the same time.
    pub pairs: usize,
    /// The congestion control of all TCP sockets.
    pub congestion_control: String,
    /// The path that all are compared with.
    pub baseline: String,
}

/// A path that was measured.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Path {
    /// Its name, as `--path` takes it.
    pub name: String,
    /// What it is.
    pub what: String,
    /// Where programs are attached and how they hand over, if any are.
    pub hook: Option<String>,
    /// The topology file that makes it, where veth does.
    pub declaration: Option<String>,
    /// Offloads that matter, of the link of the end that begins, and whether they are on. Nothing where it is not known.
    pub offloads: BTreeMap<String, bool>,
}

/// A path that could not be measured.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Skipped {
    /// Its name.
    pub name: String,
    /// Why not.
    pub why: String,
}

/// What came of a workload with its ends in certain places.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CellResult {
    /// What the ends did.
    pub workload: Workload,
    /// Where they ran.
    pub placement: Placement,
    /// What `rate` is in.
    pub unit: String,
    /// How much was sent at once, in bytes.
    pub size: usize,
    /// How long a sample took, in milliseconds.
    pub sample_ms: u64,
    /// A row for each path.
    pub rows: Vec<Row>,
}

/// A path under a workload.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Row {
    /// The path.
    pub path: String,
    /// Why nothing came of it.
    pub failed: Option<String>,
    /// The rate.
    pub rate: Option<Estimate>,
    /// The rate, by that of `direct` in the same round.
    pub ratio: Option<Estimate>,
    /// What a transaction takes longer than over `direct` in the same round, in microseconds.
    pub residual_us: Option<Estimate>,
    /// The times of transactions, of all rounds.
    pub latency: Option<Latency>,
    /// CPU time for each transaction, datagram or megabyte, in microseconds, all CPUs together.
    pub cpu_us: Option<Spent>,
    /// The share of datagrams that were sent and did not arrive.
    pub lost: Option<f64>,
    /// Every round.
    pub rounds: Vec<Round>,
}

/// The times of transactions, in microseconds.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Latency {
    /// How many there were.
    pub count: u64,
    /// Half are below.
    pub p50: f64,
    /// 90 % are below.
    pub p90: f64,
    /// 99 % are below.
    pub p99: f64,
    /// 99.9 % are below.
    pub p99_9: f64,
    /// The longest.
    pub max: f64,
    /// Points of the distribution: a time, and the share that is above it.
    pub curve: Vec<(f64, f64)>,
}

/// A round.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Round {
    /// Its number: the same for all paths that were measured side by side.
    pub number: u32,
    /// The rate.
    pub rate: f64,
    /// The share of a CPU that somebody else had meanwhile.
    pub outside: f64,
    /// Whether that was so much that the round does not count.
    pub disturbed: bool,
}

impl Row {
    /// The rates of rounds that count.
    #[must_use]
    pub fn rates(&self) -> Vec<(u32, f64)> {
        counted(&self.rounds).map(|round| (round.number, round.rate)).collect()
    }
}

/// Rounds without outside load; all, where that leaves less than half.
fn counted(rounds: &[Round]) -> impl Iterator<Item = &Round> {
    let quiet = rounds.iter().filter(|round| !round.disturbed).count();
    let all = quiet * 2 < rounds.len();
    rounds.iter().filter(move |round| all || !round.disturbed)
}

impl CellResult {
    /// The row of a path.
    #[must_use]
    pub fn row(&self, path: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.path == path)
    }

    /// How one path is to another, round by round.
    #[must_use]
    pub fn compare(&self, path: &str, to: &str, seed: u64) -> Option<Estimate> {
        Estimate::bootstrap(&ratios(&self.row(path)?.rates(), &self.row(to)?.rates()), seed)
    }
}

/// What is known before anything is measured.
pub(super) struct Context {
    time: u64,
    machine: Machine,
    paths: Vec<Path>,
    skipped: Vec<Skipped>,
}

impl Context {
    pub(super) fn new(contestants: &[Contestant], skipped: Vec<(String, String)>) -> Result<Self, Error> {
        let path = |contestant: &Contestant| Path {
            name: contestant.name.clone(),
            what: contestant.what.clone(),
            hook: contestant.stage.hook.clone(),
            declaration: contestant.stage.declaration.clone(),
            offloads: offloads(&contestant.stage),
        };
        Ok(Self {
            time: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            machine: Machine::now().map_err(Error::Accounting)?,
            paths: contestants.iter().map(path).collect(),
            skipped: skipped.into_iter().map(|(name, why)| Skipped { name, why }).collect(),
        })
    }
}

fn offloads(stage: &Stage) -> BTreeMap<String, bool> {
    let features = stage.link.as_ref().and_then(|link| {
        let ethtool = Ethtool::open_in(&stage.ends[0].namespace).ok()?;
        ethtool.features(link).ok()
    });
    let matters = |(name, _): &(String, bool)| OFFLOADS.contains(&name.as_str());
    features.into_iter().flatten().filter(matters).collect()
}

/// Everything that came of a run.
pub(super) fn document(
    context: &Context,
    plan: &Plan,
    contestants: &[Contestant],
    results: &Results,
) -> Document {
    let cells = plan.cells.iter().enumerate().map(|(number, cell)| {
        let series = |index: usize| results.series.get(&(number, index));
        let baseline = contestants.iter().position(|contestant| contestant.name == Base::Direct.name());
        let baseline = baseline.and_then(series).map(rounds).unwrap_or_default();
        let rows = contestants.iter().enumerate().filter_map(|(index, contestant)| {
            Some(row(&contestant.name, cell.workload, series(index)?, &baseline, plan.seed))
        });
        CellResult {
            workload: cell.workload,
            placement: cell.placement,
            unit: cell.workload.unit().to_owned(),
            size: cell.size,
            sample_ms: u64::try_from(cell.duration.as_millis()).unwrap_or(u64::MAX),
            rows: rows.collect(),
        }
    });
    let results_of_cells: Vec<CellResult> = cells.collect();
    let verdicts = verdicts(&results_of_cells, plan.seed);
    Document {
        schema: SCHEMA.to_owned(),
        veth: env!("CARGO_PKG_VERSION").to_owned(),
        time: context.time,
        command: plan.command.clone(),
        seed: plan.seed,
        partial: results.is_partial,
        machine: context.machine.clone(),
        method: method(plan),
        paths: context.paths.clone(),
        skipped: context.skipped.clone(),
        results: results_of_cells,
        verdicts,
    }
}

fn rounds(series: &Series) -> Vec<Round> {
    let round = |sample: &Sample| Round {
        number: sample.round,
        rate: sample.rate,
        outside: sample.outside,
        disturbed: sample.is_disturbed(),
    };
    series.samples.iter().map(round).collect()
}

fn row(path: &str, workload: Workload, series: &Series, baseline: &[Round], seed: u64) -> Row {
    let rounds = rounds(series);
    let rates = |rounds: &[Round]| -> Vec<(u32, f64)> {
        counted(rounds).map(|round| (round.number, round.rate)).collect()
    };
    let (own, direct) = (rates(&rounds), rates(baseline));
    let values: Vec<f64> = own.iter().map(|(_, rate)| *rate).collect();
    let residual = || {
        let microseconds = |rate: f64| 1e6 / rate;
        let of = |round: u32| direct.iter().find(|(other, _)| *other == round).map(|(_, rate)| *rate);
        let more: Vec<f64> = own
            .iter()
            .filter_map(|(round, rate)| Some(microseconds(*rate) - microseconds(of(*round)?)))
            .collect();
        Estimate::bootstrap(&more, seed)
    };
    Row {
        path: path.to_owned(),
        failed: series.failed.clone(),
        rate: Estimate::bootstrap(&values, seed),
        ratio: Estimate::bootstrap(&ratios(&own, &direct), seed),
        residual_us: if workload.is_request_response() { residual() } else { None },
        latency: series.latency.as_ref().map(latency),
        // The kernel makes frames with its clock stopped.
        cpu_us: if workload == Workload::XdpPps { None } else { cpu(&series.samples) },
        lost: lost(&series.samples),
        rounds,
    }
}

fn cpu(samples: &[Sample]) -> Option<Spent> {
    let mut spent = Spent::default();
    for sample in samples {
        spent.add(&sample.spent);
    }
    let operations: f64 = samples.iter().map(|sample| sample.operations).sum();
    let each = |seconds: f64| seconds * 1e6 / operations;
    (operations > 0.0).then(|| Spent {
        user: each(spent.user),
        system: each(spent.system),
        softirq: each(spent.softirq),
        steal: each(spent.steal),
    })
}

fn lost(samples: &[Sample]) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "a share is shown with three digits")]
    let share = |(sent, lost): (u64, u64)| if sent > 0 { lost as f64 / sent as f64 } else { 0.0 };
    let shares: Vec<f64> = samples.iter().filter_map(|sample| sample.lost.map(share)).collect();
    median(&shares)
}

fn latency(histogram: &Histogram<u64>) -> Latency {
    #[expect(clippy::cast_precision_loss, reason = "times are shown with four digits")]
    let microseconds = |nanoseconds: u64| nanoseconds as f64 / 1e3;
    let at = |quantile: f64| microseconds(histogram.value_at_quantile(quantile));
    // As many points for the first 90 % as for the next 9, and so on.
    let count = histogram.len();
    #[expect(
        clippy::cast_precision_loss,
        reason = "there are a few hundred points, and millions of transactions"
    )]
    let curve = (0..=CURVE_POINTS).map(|point| {
        let decades = (count.max(10) as f64).log10();
        let above = 10_f64.powf(-decades * point as f64 / CURVE_POINTS as f64);
        (at(1.0 - above), above)
    });
    Latency {
        count,
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p99_9: at(0.999),
        max: microseconds(histogram.max()),
        curve: curve.collect(),
    }
}

fn method(plan: &Plan) -> Method {
    let Plan { cells, pairs, is_v4, .. } = plan;
    let placements: Vec<&str> = [Placement::One, Placement::Two]
        .into_iter()
        .filter(|placement| cells.iter().any(|cell: &Cell| cell.placement == *placement))
        .map(Placement::words)
        .collect();
    let words = [
        "All on a throw-away host: namespaces that nothing of the machine is in. Each path is made once.",
        "Rounds are interleaved: in each, every path takes its turn, in an order that the seed decides; rounds of all \
         workloads are mixed. The first round of each workload is discarded.",
        "Real sockets in the namespaces of both pods, each end a thread that is bound to a CPU.",
        "Neighbours are known beforehand. TCP sockets use cubic, whatever the machine's default is.",
        "A ratio is of two paths in the same round. The figure is the median of all rounds, with the bootstrap 95 % \
         interval of the median. Where that is wider than 5 % on either side, it is inconclusive.",
        "A second in which others had more than 8 % of a CPU, by the kernel's own accounting, is marked; its rounds are \
         taken again and do not count.",
        "Times of transactions are taken by the end that begins, in an HDR histogram of three digits, over all rounds.",
        "CPU time is that of all CPUs while a sample is taken, in ticks of 10 ms, by what was done meanwhile.",
        "udp_pps on one CPU is one thread that sends a batch of 64 and receives it: what a datagram costs. On two CPUs \
         one sends as fast as it can, and what arrives counts.",
    ];
    let mut words: Vec<String> = words.map(str::to_owned).to_vec();
    words.push(format!("Placements: {}.", placements.join("; ")));
    Method {
        words,
        ip_version: if *is_v4 { 4 } else { 6 },
        pairs: *pairs,
        congestion_control: super::workload::CONGESTION_CONTROL.to_owned(),
        baseline: Base::Direct.name().to_owned(),
    }
}

/// What a reader wants to know first: of our paths, and of those of somebody else.
fn verdicts(cells: &[CellResult], seed: u64) -> Vec<String> {
    let mut verdicts = Vec::new();
    for cell in cells {
        for row in cell.rows.iter().filter(|row| is_of_interest(row, cell)) {
            let to = |(other, words): (String, String)| {
                let ratio = cell.compare(&row.path, &other, seed).filter(|_| other != row.path)?;
                let doubt = if ratio.is_conclusive() { "" } else { ", inconclusive" };
                let Estimate { median, low, high } = ratio;
                Some(format!("{median:.3} of {words} [{low:.3}, {high:.3}{doubt}]"))
            };
            let parts: Vec<String> = others(row, cell).into_iter().filter_map(to).collect();
            let residual = row.residual_us.filter(|_| !row.path.contains('@'));
            let residual = residual.map(|Estimate { median, low, high }| {
                format!("; {median:+.2} us a transaction over a bare pair [{low:+.2}, {high:+.2}]")
            });
            if !parts.is_empty() {
                let (workload, placement) = (cell.workload.name(), cell.placement.words());
                let (parts, residual) = (parts.join(", "), residual.unwrap_or_default());
                verdicts.push(format!("{}, {workload}, {placement}: {parts}{residual}", row.path));
            }
        }
    }
    verdicts
}

/// The switch everywhere, the wire where it is known best, and all that was named.
fn is_of_interest(row: &Row, cell: &CellResult) -> bool {
    let has_switch = cell.row("switch").is_some();
    match row.path.as_str() {
        "wire" => !has_switch || (cell.workload, cell.placement) == (Workload::TcpRr, Placement::One),
        "switch+xdp" => !has_switch,
        path => {
            path == "attached" || path.starts_with("switch") || path.starts_with("wire") || path.contains('@')
        }
    }
}

/// What a path is compared with, and what that is in words.
fn others(row: &Row, cell: &CellResult) -> Vec<(String, String)> {
    let words = |(path, words): (&str, &str)| (path.to_owned(), words.to_owned());
    if row.path.contains("+churn") {
        return vec![(row.path.replace("+churn", ""), "the same when no pods come and go".to_owned())];
    }
    let kind = |path: &str| path.split('@').next().unwrap_or_default().to_owned();
    let fewest =
        cell.rows.iter().find(|other| other.path.contains('@') && kind(&other.path) == kind(&row.path));
    // With two pods a path is called by its kind alone.
    let fewest = cell.row(&kind(&row.path)).or(fewest);
    if let Some(fewest) = fewest.filter(|_| row.path.contains('@')) {
        return vec![(fewest.path.clone(), "the same with fewest pods".to_owned())];
    }
    [("direct", "a bare pair"), ("null-redirect", "a null redirect"), ("bridge", "a bridge")]
        .map(words)
        .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(round: u32, rate: f64, outside: f64) -> Sample {
        Sample {
            round,
            rate,
            operations: rate,
            spent: Spent { user: 1.0, ..Spent::default() },
            lost: None,
            outside,
        }
    }

    fn series(rates: &[f64]) -> Series {
        let samples = (1..).zip(rates).map(|(round, rate)| sample(round, *rate, 0.0)).collect();
        Series { samples, latency: None, failed: None }
    }

    #[test]
    fn a_row_is_compared_round_by_round() {
        let direct = rounds(&series(&[100_000.0, 50_000.0, 200_000.0]));
        let row = row("switch", Workload::TcpRr, &series(&[80_000.0, 40_000.0, 160_000.0]), &direct, 1);
        let ratio = row.ratio.unwrap();
        assert!((ratio.low - 0.8).abs() < 1e-9 && (ratio.high - 0.8).abs() < 1e-9, "{ratio:?}");
        assert!((row.rate.unwrap().median - 80_000.0).abs() < 1e-6);
        // 12.5 - 10, 25 - 20, 6.25 - 5.
        assert!((row.residual_us.unwrap().median - 2.5).abs() < 1e-9);
        let spent = row.cpu_us.unwrap();
        assert!((spent.user - 3e6 / 280_000.0).abs() < 1e-9);
    }

    #[test]
    fn disturbed_rounds_do_not_count_unless_they_are_most() {
        let with = |outside: [f64; 3]| {
            let samples =
                (1..).zip(outside).map(|(round, outside)| sample(round, f64::from(round), outside)).collect();
            rounds(&Series { samples, ..Series::default() })
        };
        let count = |rounds: &[Round]| counted(rounds).count();
        assert_eq!(count(&with([0.0, 0.2, 0.0])), 2);
        assert_eq!(count(&with([0.2, 0.2, 0.0])), 3);
    }

    #[test]
    fn percentiles_are_those_of_the_times() {
        let mut histogram = Histogram::new_with_bounds(1, 10_000_000_000, 3).unwrap();
        (1..=1_000_u64).for_each(|time| histogram.record(time * 1_000).unwrap());
        let latency = latency(&histogram);
        for (found, expected) in
            [(latency.p50, 500.0), (latency.p90, 900.0), (latency.p99, 990.0), (latency.max, 1_000.0)]
        {
            assert!((found - expected).abs() / expected < 0.002, "{found} where {expected} is expected");
        }
        assert!(latency.curve.is_sorted_by(|a, b| a.0 <= b.0 && a.1 > b.1));
    }

    #[test]
    fn the_schema_in_the_repository_is_that_of_the_document() {
        let schema = serde_json::to_value(schemars::schema_for!(Document)).unwrap();
        let kept: serde_json::Value =
            serde_json::from_str(include_str!("../../../../docs/bench.schema.json")).unwrap();
        assert_eq!(schema, kept, "write it anew: `veth bench schema > docs/bench.schema.json`");
    }
}
