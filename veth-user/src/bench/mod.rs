//! `veth bench`: paths between two pods measured side by side, in interleaved rounds, with what is uncertain.

mod attach;
mod churn;
pub mod compare;
mod cpu;
pub mod host;
pub mod observe;
pub mod prog;
mod report;
mod run;
pub mod spec;
mod stage;
pub mod statistics;
mod workload;

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
};

pub use self::{
    attach::Attached,
    report::{CellResult, Document, SCHEMA, html, table},
    run::Watch,
};
use self::{
    report::Context,
    run::Contestant,
    spec::{Base, Cell, PathSpec, Placement, usual_cells},
};
use crate::{datapath, net, state, stats, text::with_causes, topology};

/// Paths of one run: each has a network of its own.
const PATHS_MAX: usize = 100;

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The throw-away host could not be made.
    #[error("{action} (this needs root)")]
    Host {
        /// What was being done.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The kernel's accounting could not be read.
    #[error("read what the CPUs do")]
    Accounting(#[source] io::Error),
    /// A namespace that was asked for cannot be used.
    #[error("{name} cannot be measured: {why}")]
    Attach {
        /// The namespace.
        name: String,
        /// Why not.
        why: String,
    },
    /// A path that was asked for cannot be made.
    #[error("the path {path} cannot be measured: {why}")]
    Path {
        /// The path.
        path: String,
        /// Why not.
        why: String,
    },
    /// Ends cannot be placed as they should be.
    #[error("only one CPU may be used, so the ends cannot be on two: use --placement one")]
    OneCpu,
    /// More paths than there are networks for.
    #[error("{0} paths are too many: {PATHS_MAX} can be measured in one run")]
    Paths(usize),
    /// A mistake in this program: a path is declared by what is no topology.
    #[error("the topology of a path is wrong: {0}")]
    Declaration(String),
    /// There are no values of something that was to be measured.
    #[error("nothing was measured of {0}")]
    Nothing(&'static str),
    /// A mistake in this program: histograms of different kinds.
    #[error("times of transactions do not add up")]
    Histogram,
    /// From the operating system's edge.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// From the eBPF edge.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
    /// From the topology.
    #[error(transparent)]
    Topology(#[from] topology::Error),
    /// From the counters.
    #[error(transparent)]
    Stats(#[from] stats::Error),
}

/// What is measured, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The paths that were named. All, without those that are not there, if none was.
    pub paths: Vec<PathSpec>,
    /// The workloads.
    pub cells: Vec<Cell>,
    /// Pairs of ends at the same time.
    pub pairs: usize,
    /// Whether addresses are of IPv4, or of IPv6.
    pub is_v4: bool,
    /// Whether each path is also measured with merged frames of 192 KiB.
    pub big_tcp: bool,
    /// Two namespaces of somebody else, that are measured beside the paths.
    pub attached: Option<Attached>,
    /// What decides the order of everything.
    pub seed: u64,
    /// The command line, for the report.
    pub command: Vec<String>,
}

impl Plan {
    /// What is measured without being asked.
    #[must_use]
    pub fn usual(quick: bool) -> Self {
        Self {
            paths: Vec::new(),
            cells: usual_cells(quick),
            pairs: 1,
            is_v4: true,
            big_tcp: false,
            attached: None,
            seed: fastrand::u64(..),
            command: Vec::new(),
        }
    }
}

/// The paths of a run in which none was named, and whether their absence is an error.
fn wanted(plan: &Plan) -> Vec<(PathSpec, bool)> {
    let usual = [
        Base::Loopback,
        Base::Direct,
        Base::NullRedirect,
        Base::Wire,
        Base::Switch,
        Base::Bridge,
        Base::Route,
        Base::Macvlan,
        Base::Ovs,
    ];
    let mut wanted: Vec<(PathSpec, bool)> = plan.paths.iter().map(|spec| (*spec, true)).collect();
    if wanted.is_empty() {
        wanted = usual.into_iter().map(|base| (PathSpec::from(base), false)).collect();
        let xdp = PathSpec { hook: topology::model::HookWish::Xdp, ..PathSpec::from(Base::Switch) };
        wanted.insert(5, (xdp, false));
    } else if !plan.paths.iter().any(|spec| *spec == PathSpec::from(Base::Direct)) {
        // What all are compared with.
        wanted.insert(0, (PathSpec::from(Base::Direct), true));
    }
    if plan.big_tcp {
        let tunable = |spec: &PathSpec| !matches!(spec.base, Base::Loopback | Base::Macvlan | Base::Ovs);
        let twins: Vec<_> = wanted
            .iter()
            .filter(|(spec, _)| tunable(spec) && !spec.big_tcp)
            .map(|(spec, is_named)| (PathSpec { big_tcp: true, ..*spec }, *is_named))
            .collect();
        wanted.extend(twins);
    }
    let mut once: Vec<(PathSpec, bool)> = Vec::new();
    for (spec, is_named) in wanted {
        if !once.iter().any(|(other, _)| *other == spec) {
            once.push((spec, is_named));
        }
    }
    once
}

/// Makes the paths, measures them, and says what came of it. Must be called on a throw-away host
/// ([`host::enter`]), within a tokio runtime. `stop` ends it early, with what there is by then.
///
/// # Errors
///
/// When a path that was named cannot be made, or the machine cannot be looked at.
pub async fn bench(
    plan: &Plan,
    stop: &'static AtomicBool,
    watch: impl Watch + Send + 'static,
) -> Result<Document, Error> {
    let roots = roots();
    let document = measure(&roots, plan, stop, watch).await;
    end(&roots).await;
    document
}

async fn measure(
    roots: &state::Roots,
    plan: &Plan,
    stop: &'static AtomicBool,
    watch: impl Watch + Send + 'static,
) -> Result<Document, Error> {
    let cpus = cpu::allowed().map_err(Error::Accounting)?;
    if cpus.len() < 2 && plan.cells.iter().any(|cell| cell.placement == Placement::Two) {
        return Err(Error::OneCpu);
    }
    let wanted = wanted(plan);
    if wanted.len() > PATHS_MAX {
        return Err(Error::Paths(wanted.len()));
    }
    let netlink = net::Netlink::open()?;
    netlink.set_up(netlink.link("lo").await?.index).await?;
    let (mut contestants, mut skipped) = (Vec::new(), Vec::new());
    for (number, (spec, is_named)) in (1..).zip(wanted) {
        watch.sample(&format!("making {spec}"));
        match stage::build(roots, &spec, number, plan.is_v4).await {
            Ok(stage) => contestants.push(Contestant {
                name: spec.to_string(),
                what: spec.base.what().to_owned(),
                stage,
                has_helpers: spec.base == Base::Ovs || spec.churn,
                churn: spec.churn.then(|| churn::Churn::new(roots, &spec, number)),
            }),
            Err(error) if is_named => {
                return Err(Error::Path { path: spec.to_string(), why: with_causes(&error) });
            }
            Err(error) => skipped.push((spec.to_string(), with_causes(&error))),
        }
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    if let Some(Attached { ends, what }) = &plan.attached {
        let stage = stage::Stage::of(ends.clone());
        let (name, what) = ("attached".to_owned(), what.clone());
        contestants.insert(0, Contestant { name, what, stage, has_helpers: false, churn: None });
    }
    let context = Context::new(&contestants, skipped)?;
    let (cells, pairs, seed) = (plan.cells.clone(), plan.pairs, plan.seed);
    let measured = tokio::task::spawn_blocking(move || {
        let results = run::measure(&contestants, &cells, (pairs, seed), &cpus, stop, &watch);
        (results, contestants)
    });
    let (results, contestants) =
        measured.await.map_err(|error| Error::Accounting(io::Error::other(error)))?;
    Ok(report::document(&context, plan, &contestants, &results?))
}

/// The folders of a throw-away host.
fn roots() -> state::Roots {
    state::Roots { state: state::DEFAULT_STATE_DIR.into(), pins: state::DEFAULT_PIN_DIR.into() }
}

/// Everything ends with the throw-away host, except for what runs as a process of its own.
async fn end(roots: &state::Roots) {
    for topology in roots.names().unwrap_or_default() {
        if let Err(error) = topology::down(roots, &topology, &stage::Quiet).await {
            log::warn!("take down {topology}: {}", with_causes(&error));
        }
    }
}
