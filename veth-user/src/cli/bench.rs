//! `veth bench`.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::value_parser;
use comfy_table::CellAlignment;
use serde::Serialize;

use super::{block_on, options::period, print, print_json, privilege, progress::TimeBar, up::stoppable};
use crate::{
    bench::{
        self, Attached, Document, Plan, SCHEMA,
        compare::{Change, Verdict, compare, overall},
        host, html,
        observe::{self, Figure},
        prog::{self, Cost},
        spec::{Base, Cell, PathSpec, Placement, Workload, single_cell, usual_cells},
        statistics::Estimate,
        table,
    },
    text::plain_table,
};

/// Exit codes of `bench compare`.
const SLOWER: u8 = 4;
const INCONCLUSIVE: u8 = 5;

/// Rounds of a workload that is not measured unless it is named.
const ROUNDS: u32 = 5;

/// How long a sample of such takes.
const SAMPLE: Duration = Duration::from_millis(100);

/// Of `bench scale`.
const SCALE_ROUNDS: u32 = 100;
const SCALE_SAMPLE: Duration = Duration::from_millis(20);

/// Of `bench churn`: a sample is long enough for several pods to come and go.
const CHURN_ROUNDS: u32 = 20;
const CHURN_SAMPLE: Duration = Duration::from_millis(300);

/// What namespaces of somebody else are compared with, unless something else is said.
const BESIDE: [Base; 4] = [Base::Loopback, Base::Direct, Base::Switch, Base::Bridge];

/// Set by a signal.
static STOP: AtomicBool = AtomicBool::new(false);

/// Measure paths between two pods side by side, with their limits, their rivals, and what is uncertain
///
/// Every path is made once, on a throw-away host of its own: nothing of this machine is touched, and nothing is left
/// however it ends, but for an Open vSwitch after SIGKILL. Rounds are interleaved, each end is bound to a CPU, and every figure is compared with that of a bare
/// veth pair in the same round. Without options it takes below 90 seconds.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  sudo veth bench
  sudo veth bench --quick
  sudo veth bench --html report.html --json report.json
  sudo veth bench --path switch,bridge --workload tcp_rr --rounds 50
  sudo veth bench --path switch:tcx:peer,switch:clsact,switch+xdp --workload tcp_rr,udp_pps
  veth bench compare old.json new.json --fail-below 0.97"
)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,

    /// Paths: loopback, direct, null-redirect, wire, switch, bridge, route, macvlan, ovs; wire and switch also with a
    /// hook and a redirect, as switch:tcx:peer, or +xdp; with +big-tcp for merged frames of 192 KiB [default: all that
    /// are there, and switch+xdp]
    #[arg(long = "path", value_name = "PATH,…", value_delimiter = ',')]
    paths: Vec<PathSpec>,

    /// What the ends do [default: all but `udp_ndr` and `xdp_pps`]
    #[arg(long = "workload", value_name = "WORKLOAD,…", value_delimiter = ',', value_enum)]
    workloads: Vec<Workload>,

    /// Where the ends run [default: what suits the workload]
    #[arg(long = "placement", value_name = "PLACEMENT,…", value_delimiter = ',', value_enum)]
    placements: Vec<Placement>,

    /// How much is sent at once, in bytes [default: 1 for request and response, 128 KiB for streams, 64 for datagrams]
    #[arg(long, value_name = "BYTES", value_parser = value_parser!(u32).range(1..=1_000_000))]
    size: Option<u32>,

    /// Pairs of ends at the same time, all on the same CPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u16).range(1..=64))]
    pairs: u16,

    /// Measure each path also with this
    #[arg(long, value_name = "WHAT")]
    tune: Option<Tuning>,

    /// Below 20 seconds: the most important workloads, in few rounds
    #[arg(long)]
    quick: bool,

    /// Measure also between two namespaces that are there: each a name of `ip netns`, a path, or the number of a
    /// process in it, as of a container. Nothing in them is changed; the first sends, the second answers
    #[arg(long, num_args = 2, value_names = ["POD_A", "POD_B"])]
    attach: Option<Vec<String>>,

    #[command(flatten)]
    common: Common,
}

/// What every measurement can be told.
#[derive(Debug, clap::Args)]
struct Common {
    /// Rounds of each workload that count [default: 5 to 100]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=10_000))]
    rounds: Option<u32>,

    /// How long a sample takes [default: 10 ms to 100 ms]
    #[arg(long = "time", value_name = "TIME", value_parser = period)]
    duration: Option<Duration>,

    /// Over IPv6
    #[arg(long)]
    ipv6: bool,

    /// What decides the order of everything [default: at random]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Write a report for a browser there
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Write all figures as JSON there; `-` is standard output, and the tables are not printed then
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What paths are tuned by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Tuning {
    /// Merged frames of 192 KiB
    BigTcp,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Scale(ScaleArgs),
    Churn(ChurnArgs),
    Prog(ProgArgs),
    Observe(ObserveArgs),
    Compare(CompareArgs),
    Schema(SchemaArgs),
}

/// Say whether request and response become slower with more pods, beside a Linux bridge
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sudo veth bench scale
  sudo veth bench scale --pods 2,16 --rounds 200")]
struct ScaleArgs {
    /// How many pods are on the switch, and on the bridge
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "2,16,128,1000", value_parser = value_parser!(u16).range(2..=1_000))]
    pods: Vec<u16>,

    #[command(flatten)]
    common: Common,
}

/// Say whether request and response become slower while pods come and go, beside a Linux bridge
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sudo veth bench churn
  sudo veth bench churn --pods 64 --json churn.json")]
struct ChurnArgs {
    /// How many pods stay
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = value_parser!(u16).range(2..=999))]
    pods: u16,

    #[command(flatten)]
    common: Common,
}

/// Say whether paths are slower than in an earlier report
///
/// Compares ratios to a bare veth pair, so that another machine is no change. Exit codes: 0 all paths pass, 4 one is
/// slower, 5 inconclusive: more rounds would tell.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  veth bench compare old.json new.json
  veth bench compare old.json new.json --fail-below 0.95 --workload tcp_rr --json")]
struct CompareArgs {
    /// The earlier report, as `veth bench --json` writes it
    old: PathBuf,

    /// The later one
    new: PathBuf,

    /// How much of what it was a path may be
    #[arg(long, value_name = "RATIO", default_value_t = 0.97)]
    fail_below: f64,

    /// Only these workloads
    #[arg(long = "workload", value_name = "WORKLOAD,…", value_delimiter = ',', value_enum)]
    workloads: Vec<Workload>,

    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Say how many nanoseconds each program takes, beside one that does nothing
///
/// By `BPF_PROG_TEST_RUN` on frames made by hand: 31 rounds of 200,000 runs, one program after the other in each.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sudo veth bench prog
  sudo veth bench prog --json")]
struct ProgArgs {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Say what it costs to see: counting, watching, and reading the counters of 1,000 ports
///
/// Each beside the same without it, in the same run: a program that decides and does not count, request and response
/// while nobody watches. With the targets that the figures have. On a throw-away host; takes about two minutes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  sudo veth bench observe
  sudo veth bench observe --json")]
struct ObserveArgs {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Print the JSON schema of a report
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  veth bench schema")]
struct SchemaArgs {}

pub(super) fn main(mut args: Args) -> Result<ExitCode> {
    match args.command.take() {
        Some(Command::Compare(args)) => compare_reports(&args),
        Some(Command::Schema(SchemaArgs {})) => {
            print_json(&schemars::schema_for!(Document))?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Scale(ScaleArgs { pods, common })) => {
            let pods = pods.iter().map(|pods| usize::from(*pods));
            let paths = [Base::Switch, Base::Bridge]
                .into_iter()
                .flat_map(|base| pods.clone().map(move |pods| PathSpec { pods, ..PathSpec::from(base) }));
            measure(&common, &preset(&common, paths.collect(), single_cell(SCALE_ROUNDS, SCALE_SAMPLE)))
        }
        Some(Command::Churn(ChurnArgs { pods, common })) => {
            let paths = [Base::Switch, Base::Bridge].into_iter().flat_map(|base| {
                let quiet = PathSpec { pods: pods.into(), ..PathSpec::from(base) };
                [quiet, PathSpec { churn: true, ..quiet }]
            });
            measure(&common, &preset(&common, paths.collect(), single_cell(CHURN_ROUNDS, CHURN_SAMPLE)))
        }
        Some(Command::Prog(args)) => programs(&args),
        Some(Command::Observe(args)) => seeing(&args),
        None => measure(&args.common, &plan(&args)?),
    }
}

fn programs(args: &ProgArgs) -> Result<ExitCode> {
    privilege::require("bench prog")?;
    host::enter().context("make a throw-away host")?;
    let costs = block_on(Box::pin(prog::costs()))?.context("measure the programs")?;
    if args.json {
        print_json(&costs)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = plain_table(&["PROGRAM", "FRAME", "ns A RUN", "ABOVE EMPTY"]);
    for Cost { program, frame, action: _, nanoseconds, above_empty } in costs {
        let above = above_empty.map_or_else(|| "-".to_owned(), |above| format!("{above:.0}"));
        table.add_row([program, frame, &format!("{nanoseconds:.0}"), &above]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    print(&format!("{}\n", table.trim_fmt()))?;
    Ok(ExitCode::SUCCESS)
}

fn seeing(args: &ObserveArgs) -> Result<ExitCode> {
    privilege::require("bench observe")?;
    host::enter().context("make a throw-away host")?;
    let bar = TimeBar::new();
    let figures = block_on(Box::pin(observe::figures(&bar)))?.context("measure what it costs to see")?;
    drop(bar);
    if args.json {
        print_json(&figures)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = plain_table(&["WHAT", "MEDIAN", "95 % INTERVAL", "UNIT", "TARGET", ""]);
    for figure in &figures {
        let Figure { what, unit, estimate: Estimate { median, low, high }, target, is_most } = figure;
        let sign = if *is_most { "≤" } else { "≥" };
        table.add_row([
            (*what).to_owned(),
            format!("{median:.3}"),
            if low < high { format!("{low:.3}–{high:.3}") } else { "-".to_owned() },
            (*unit).to_owned(),
            format!("{sign} {target}"),
            if figure.is_met() { "met" } else { "missed" }.to_owned(),
        ]);
    }
    for column in table.column_iter_mut().skip(1).take(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    print(&format!("{}\n", table.trim_fmt()))?;
    Ok(ExitCode::SUCCESS)
}

/// A plan of one cell.
fn preset(common: &Common, paths: Vec<PathSpec>, cell: Cell) -> Plan {
    let Common { rounds, duration, .. } = common;
    let cell =
        Cell { rounds: rounds.unwrap_or(cell.rounds), duration: duration.unwrap_or(cell.duration), ..cell };
    Plan { paths, cells: vec![cell], ..base(common) }
}

fn base(common: &Common) -> Plan {
    let usual = Plan::usual(false);
    Plan {
        is_v4: !common.ipv6,
        seed: common.seed.unwrap_or(usual.seed),
        command: std::env::args().collect(),
        ..usual
    }
}

fn measure(args: &Common, plan: &Plan) -> Result<ExitCode> {
    privilege::require("bench")?;
    // Before minutes of work, and before the host is left whose paths they are.
    let html = args.html.as_deref().map(create).transpose()?;
    let json = match &args.json {
        Some(path) if path != Path::new("-") => Some(create(path)?),
        _ => None,
    };
    host::enter().context("make a throw-away host")?;
    block_on(async {
        let (document, signal) = stoppable(Box::pin(bench::bench(plan, &STOP, TimeBar::new())), || {
            STOP.store(true, Ordering::Relaxed);
        })
        .await?;
        let document = document?;
        let text = serde_json::to_string(&document).context("write JSON")? + "\n";
        match (json, args.json.is_some()) {
            (Some((path, file)), _) => write(&path, file, &text)?,
            (None, true) => print(&text)?,
            (None, false) => {}
        }
        if let Some((path, file)) = html {
            write(&path, file, &html::render(&document))?;
        }
        if args.json.as_deref().is_none_or(|path| path != Path::new("-")) {
            print(&table::render(&document))?;
        }
        let failed = document.results.iter().flat_map(|cell| &cell.rows).any(|row| row.failed.is_some());
        Ok(match signal {
            Some(signal) => signal.exit_code(),
            None if failed => ExitCode::from(super::CHECK_FAILED),
            None => ExitCode::SUCCESS,
        })
    })?
}

/// What the options ask for.
fn plan(args: &Args) -> Result<Plan> {
    let Args { workloads, placements, size, pairs, quick, attach, common, .. } = args;
    let Common { rounds, duration, .. } = common;
    let is_placed = |cell: &Cell| placements.is_empty() || placements.contains(&cell.placement);
    let is_wanted = |cell: &Cell| workloads.is_empty() || workloads.contains(&cell.workload);
    let mut cells: Vec<Cell> =
        usual_cells(*quick && workloads.is_empty()).into_iter().filter(is_wanted).collect();
    let unusual = workloads.iter().filter(|workload| !cells.iter().any(|cell| cell.workload == **workload));
    let placed = |workload: &Workload| match workload {
        Workload::XdpPps => Placement::One,
        _ => Placement::Two,
    };
    let unusual: Vec<Cell> = unusual.map(|workload| cell(*workload, placed(workload))).collect();
    cells.extend(unusual);
    let missing: Vec<Cell> = placements
        .iter()
        .flat_map(|placement| workloads.iter().map(|workload| cell(*workload, *placement)))
        .filter(|cell| {
            !cells.iter().any(|other| (other.workload, other.placement) == (cell.workload, cell.placement))
        })
        .collect();
    cells.extend(missing);
    cells.retain(is_placed);
    for cell in &mut cells {
        if *quick && !workloads.is_empty() {
            cell.rounds = cell.rounds.min(ROUNDS);
        }
        cell.rounds = rounds.unwrap_or(cell.rounds);
        cell.duration = duration.unwrap_or(cell.duration);
        cell.size = size.map_or(cell.size, |size| size.try_into().unwrap_or(usize::MAX));
        let is_datagram = matches!(cell.workload, Workload::UdpRr | Workload::UdpPps | Workload::UdpNdr);
        ensure!(
            !is_datagram || cell.size <= 65_000,
            "a datagram of {} bytes is too long: use 65000 or less",
            cell.size
        );
        ensure!(
            cell.workload != Workload::UdpNdr || cell.placement == Placement::Two,
            "udp_ndr needs its ends on two CPUs: on one the sender would keep the receiver from receiving"
        );
    }
    ensure!(
        !cells.iter().any(|cell| cell.workload == Workload::XdpPps && cell.size > 1_400),
        "a frame of xdp_pps has to fit an MTU of 1500: use --size 1400 or less"
    );
    if cells.is_empty() {
        bail!("no workload is left; see `veth bench --help`");
    }
    let mut paths = args.paths.clone();
    let attached = match attach.as_deref() {
        Some([from, to]) => {
            privilege::require("bench")?;
            if paths.is_empty() {
                paths = BESIDE.map(PathSpec::from).to_vec();
            }
            Some(Attached::find([from, to], !common.ipv6)?)
        }
        _ => None,
    };
    Ok(Plan {
        paths,
        cells,
        pairs: (*pairs).into(),
        big_tcp: args.tune == Some(Tuning::BigTcp),
        attached,
        ..base(common)
    })
}

fn cell(workload: Workload, placement: Placement) -> Cell {
    Cell { workload, placement, size: workload.usual_size(), rounds: ROUNDS, duration: SAMPLE }
}

/// A file that is there before anything is measured, and keeps what is in it until there is something better.
fn create(path: &Path) -> Result<(PathBuf, File)> {
    let file = super::output().truncate(false).open(path);
    Ok((path.to_owned(), file.with_context(|| format!("write {}", path.display()))?))
}

fn write(path: &Path, mut file: File, text: &str) -> Result<()> {
    let written = file.set_len(0).and_then(|()| file.write_all(text.as_bytes()));
    written.with_context(|| format!("write {}", path.display()))
}

/// What `bench compare --json` prints.
#[derive(Debug, Serialize)]
struct Output<'a> {
    fail_below: f64,
    verdict: Verdict,
    changes: &'a [Change],
}

fn compare_reports(args: &CompareArgs) -> Result<ExitCode> {
    let CompareArgs { old, new, fail_below, workloads, json } = args;
    ensure!(*fail_below > 0.0 && fail_below.is_finite(), "--fail-below is a ratio above 0, as 0.97");
    let (old, new) = (read(old)?, read(new)?);
    let mut changes = compare(&old, &new, *fail_below);
    changes.retain(|change| workloads.is_empty() || workloads.contains(&change.workload));
    let verdict = overall(&changes);
    if *json {
        print_json(&Output { fail_below: *fail_below, verdict, changes: &changes })?;
    } else {
        ensure!(!changes.is_empty(), "the reports have no path under the same workload in common");
        print(&describe(&changes, verdict, *fail_below))?;
    }
    Ok(match verdict {
        Verdict::Pass => ExitCode::SUCCESS,
        Verdict::Fail => ExitCode::from(SLOWER),
        Verdict::Inconclusive => ExitCode::from(INCONCLUSIVE),
    })
}

fn read(path: &Path) -> Result<Document> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let wrong = || format!("{} is no report of `veth bench --json`", path.display());
    let value: serde_json::Value = serde_json::from_str(&text).with_context(wrong)?;
    let schema = value["schema"].as_str().unwrap_or("none");
    ensure!(
        schema == SCHEMA,
        "{} has the schema {schema}, and this veth reads {SCHEMA}; make it again with `veth bench --json`",
        path.display()
    );
    serde_json::from_value(value).with_context(wrong)
}

fn describe(changes: &[Change], verdict: Verdict, limit: f64) -> String {
    let mut table = plain_table(&["WORKLOAD", "PLACEMENT", "PATH", "OF WHAT IT WAS", "VERDICT"]);
    for Change { workload, placement, path, change, verdict } in changes {
        let verdict = match verdict {
            Verdict::Pass => "pass",
            Verdict::Inconclusive => "inconclusive",
            Verdict::Fail => "slower",
        };
        table.add_row([
            workload.name(),
            placement.words(),
            path,
            &format!("{:.3} [{:.3}, {:.3}]", change.median, change.low, change.high),
            verdict,
        ]);
    }
    if let Some(column) = table.column_mut(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let words = match verdict {
        Verdict::Pass => format!("No path is below {limit} of what it was."),
        Verdict::Fail => format!("A path is below {limit} of what it was."),
        Verdict::Inconclusive => {
            format!("It cannot be told whether a path is below {limit}: take more rounds.")
        }
    };
    format!("{}\n\n{words}\n", table.trim_fmt())
}
