//! Checks of a topology with real traffic, by real sockets inside the pods.

mod ping;
mod select;
mod table;
mod tcp;

use std::{
    fmt, io,
    net::IpAddr,
    ops::Range,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use serde::Serialize;

use crate::{
    net::{self, sysctl},
    topology::Topology,
};

pub use ping::PingReport;
pub use select::{ALL_MAX, End, Extent, Over, Pair, is_sampled, pairs, select, transfers};
pub use table::table;
pub use tcp::TcpReport;

/// What stands for the host's own namespace.
const HOST: &str = "host";

/// Entries of the machine's neighbour table, which all namespaces share, where it does not say.
const NEIGHBOURS: usize = 1_024;

/// Entries that are left to others.
const NEIGHBOURS_OF_OTHERS: usize = 32;

/// After this long the kernel makes room in a full table by forgetting entries. It keeps those that are younger than
/// 5 s: <https://github.com/torvalds/linux/blob/v6.12/net/core/neighbour.c#L261>.
const FORGETTING: Duration = Duration::from_secs(6);

/// Why a check could not be made. A path that loses packets is no error: the report says so.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A pod's namespace could not be entered.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// No thread could be started.
    #[error("start a thread for pings")]
    Thread(#[source] io::Error),
}

/// How a check is made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Which pairs.
    pub extent: Extent,
    /// Echo requests to each address.
    pub pings: u16,
    /// How long each transfer lasts.
    pub transfer: Duration,
    /// What random pairs follow from.
    pub seed: u64,
    /// Pings at the same time. Many are fast, and disturb each other's round-trip times.
    pub threads: usize,
}

impl Default for Options {
    /// Two pings to each address, half a second a transfer, another seed every time.
    fn default() -> Self {
        Self {
            extent: Extent::Full,
            pings: 2,
            transfer: Duration::from_millis(500),
            seed: fastrand::u64(..),
            threads: 32,
        }
    }
}

/// How far a check has come.
#[derive(Clone, Copy)]
pub struct Step<'a> {
    /// Steps that are done: 0 at the beginning.
    pub done: usize,
    /// All steps.
    pub total: usize,
    /// What was done last.
    pub what: &'a dyn fmt::Display,
}

impl fmt::Debug for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { done, total, what } = self;
        write!(f, "{done}/{total} {what}")
    }
}

/// What a check found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The topology.
    pub topology: String,
    /// What random pairs followed from.
    pub seed: u64,
    /// Whether pairs were drawn at random: there were too many for all.
    pub is_sampled: bool,
    /// Each path, and after them each cable that was tried.
    pub paths: Vec<PathReport>,
    /// What did not work.
    pub failures: Vec<Failure>,
    /// Every ping.
    #[serde(skip)]
    pub pings: Vec<PingReport>,
}

/// What was found of a path, or of a cable.
#[derive(Clone, Debug, Serialize)]
pub struct PathReport {
    /// Its name.
    pub path: String,
    /// Its kind: that of a cable is `link`.
    pub kind: &'static str,
    /// Addresses that were tried, each from one port. None: no two pods on it share a subnet.
    pub pairs: usize,
    /// Echo requests sent.
    pub sent: u64,
    /// Replies received.
    pub received: u64,
    /// The median of all round trips, in microseconds.
    pub median_us: Option<f64>,
    /// The longest, in microseconds.
    pub worst_us: Option<f64>,
    /// A transfer between two of its pods.
    pub tcp: Option<TcpReport>,
}

/// Something that did not work.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// The path or the cable.
    pub path: String,
    /// `ping` or `tcp`.
    pub traffic: &'static str,
    /// The pod that began.
    pub from: String,
    /// The other pod, or `host`.
    pub to: String,
    /// From which address, where it was not left to the kernel.
    pub source: Option<IpAddr>,
    /// To which address.
    pub address: IpAddr,
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// In which way.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, traffic, from, to, source, address, family: _, what } = self;
        write!(f, "{traffic} {from} -> {to} ({address}")?;
        if let Some(source) = source {
            write!(f, " from {source}")?;
        }
        write!(f, ") on {path}: {what}")
    }
}

impl Report {
    /// Whether every request was answered and every transfer arrived.
    #[must_use]
    pub const fn passed(&self) -> bool {
        self.failures.is_empty()
    }

    /// Every transfer.
    pub fn transfers(&self) -> impl Iterator<Item = &TcpReport> {
        self.paths.iter().filter_map(|path| path.tcp.as_ref())
    }
}

/// Pings between the topology's pods, and makes a TCP transfer over each path. Blocks; `progress` is called on the
/// calling thread.
///
/// # Errors
///
/// When a pod's namespace cannot be entered.
pub fn check(
    topology: &Topology,
    options: &Options,
    mut progress: impl FnMut(Step<'_>),
) -> Result<Report, Error> {
    let ipv6 = sysctl::has_ipv6();
    let mut pairs = select(topology, options.extent, options.seed);
    pairs.retain(|pair| pair.target.is_ipv4() || ipv6);
    let transfers = transfers(topology, ipv6);
    let total = pairs.len() + transfers.len();
    let mut done = 0;
    progress(Step { done, total, what: &"begin" });
    let mut step = |what: &dyn fmt::Display| {
        done += 1;
        progress(Step { done, total, what });
    };
    let pings = ping_all(topology, &pairs, options, &mut step)?;
    let mut carried = Vec::new();
    for pair in transfers {
        let Some(to) = pair.to else { continue };
        let report = tcp::transfer(topology, &pair, to, options.transfer)?;
        step(&format_args!("tcp {} -> {} ({})", report.from, report.to, report.address));
        carried.push((pair, report));
    }
    let is_sampled = options.extent == Extent::Full && is_sampled(topology);
    Ok(sum_up(topology, &pairs, pings, &carried, (options.seed, is_sampled)))
}

/// A ping and its round trips.
type Pinged = (PingReport, Vec<f64>);

/// Pings all pairs, many at a time, and never more of them in a short time than the neighbour table has room for.
fn ping_all(
    topology: &Topology,
    pairs: &[Pair],
    options: &Options,
    step: &mut dyn FnMut(&dyn fmt::Display),
) -> Result<Vec<Pinged>, Error> {
    let mut pings = Vec::with_capacity(pairs.len());
    for (number, batch) in select::batches(topology, pairs, neighbours()?).into_iter().enumerate() {
        if number > 0 {
            thread::sleep(FORGETTING);
        }
        pings.extend(ping_batch(topology, pairs, batch, options, step)?);
    }
    Ok(pings)
}

fn ping_batch(
    topology: &Topology,
    pairs: &[Pair],
    batch: Range<usize>,
    options: &Options,
    step: &mut dyn FnMut(&dyn fmt::Display),
) -> Result<Vec<Pinged>, Error> {
    let next = AtomicUsize::new(batch.start);
    let (next, batch) = (&next, &batch);
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for _ in 0..options.threads.clamp(1, batch.len()) {
            let sender = sender.clone();
            let work = move || {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(pair) = pairs[..batch.end].get(number) else { return };
                    let result = ping::ping(topology, pair, options.pings);
                    if sender.send((number, result)).is_err() {
                        return;
                    }
                }
            };
            let started = thread::Builder::new().name("ping".to_owned()).spawn_scoped(scope, work);
            if let Err(error) = started {
                next.store(batch.end, Ordering::Relaxed);
                return Err(Error::Thread(error));
            }
        }
        drop(sender);
        let mut pings = Vec::with_capacity(batch.len());
        for (number, result) in receiver {
            match result {
                Ok(ping) => {
                    step(&format_args!("ping {} -> {} ({})", ping.0.from, ping.0.to, ping.0.address));
                    pings.push((number, ping));
                }
                Err(error) => {
                    // The others end what they are at.
                    next.store(batch.end, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        pings.sort_by_key(|(number, _)| *number);
        Ok(pings.into_iter().map(|(_, ping)| ping).collect())
    })
}

/// Entries of the neighbour tables that a check may fill. Only the machine's first namespace shows their size.
fn neighbours() -> Result<usize, Error> {
    let mut least = NEIGHBOURS;
    for family in ["ipv4", "ipv6"] {
        let value = sysctl::read(&format!("net/{family}/neigh/default/gc_thresh3"))?;
        least = least.min(value.and_then(|value| value.parse().ok()).unwrap_or(NEIGHBOURS));
    }
    Ok(least.saturating_sub(NEIGHBOURS_OF_OTHERS).max(1))
}

/// Turns what was seen of pairs into what is known of paths.
fn sum_up(
    topology: &Topology,
    pairs: &[Pair],
    pings: Vec<Pinged>,
    transfers: &[(Pair, TcpReport)],
    (seed, is_sampled): (u64, bool),
) -> Report {
    let paths = (0..topology.paths.len()).map(Over::Path);
    let cables = (0..topology.cables.len()).map(Over::Cable);
    let mut reports = Vec::new();
    for over in paths.chain(cables) {
        let (path, kind) = name(topology, over);
        let mut report = PathReport {
            path: path.to_owned(),
            kind,
            pairs: 0,
            sent: 0,
            received: 0,
            median_us: None,
            worst_us: None,
            tcp: transfers.iter().find(|(pair, _)| pair.over == over).map(|(_, tcp)| tcp.clone()),
        };
        let mut times = Vec::new();
        for (_, (ping, some)) in pairs.iter().zip(&pings).filter(|(pair, _)| pair.over == over) {
            report.pairs += 1;
            report.sent += u64::from(ping.sent);
            report.received += u64::from(ping.received);
            times.extend(some);
        }
        times.sort_by(f64::total_cmp);
        report.median_us = ping::median(&times);
        report.worst_us = times.last().copied();
        let was_tried = report.pairs > 0 || report.tcp.is_some();
        if was_tried || matches!(over, Over::Path(_)) {
            reports.push(report);
        }
    }
    let lost = pairs.iter().zip(&pings).filter(|(_, (ping, _))| !ping.passed()).map(|(pair, (ping, _))| {
        let reason = ping.error.as_ref().map(|error| format!(" ({error})")).unwrap_or_default();
        let what = format!("{} of {} received{reason}", ping.received, ping.sent);
        failure(topology, pair, "ping", (&ping.from, &ping.to), what)
    });
    let stuck = transfers.iter().filter(|(_, tcp)| !tcp.passed()).map(|(pair, tcp)| {
        let what = tcp.error.clone().unwrap_or_else(|| "nothing arrived".to_owned());
        failure(topology, pair, "tcp", (&tcp.from, &tcp.to), what)
    });
    let failures = lost.chain(stuck).collect();
    let pings = pings.into_iter().map(|(ping, _)| ping).collect();
    Report { topology: topology.name.clone(), seed, is_sampled, paths: reports, failures, pings }
}

fn failure(
    topology: &Topology,
    pair: &Pair,
    traffic: &'static str,
    (from, to): (&str, &str),
    what: String,
) -> Failure {
    Failure {
        path: name(topology, pair.over).0.to_owned(),
        traffic,
        from: from.to_owned(),
        to: to.to_owned(),
        source: pair.source,
        address: pair.target,
        family: if pair.target.is_ipv4() { "ipv4" } else { "ipv6" },
        what,
    }
}

fn name(topology: &Topology, over: Over) -> (&str, &'static str) {
    match over {
        Over::Path(path) => (&topology.paths[path].name, topology.paths[path].kind.name()),
        Over::Cable(cable) => (&topology.cables[cable].name, "link"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{Kind, model::DEFAULT_MTU};

    fn pinged(topology: &Topology, pair: &Pair, times: &[f64], sent: u16) -> Pinged {
        let report = PingReport {
            from: pair.from.of(topology).0.name.clone(),
            to: pair.to.map_or_else(|| HOST.to_owned(), |to| to.of(topology).0.name.clone()),
            source: pair.source,
            address: pair.target,
            sent,
            received: u16::try_from(times.len()).unwrap(),
            min_us: times.first().copied(),
            median_us: ping::median(times),
            max_us: times.last().copied(),
            error: None,
        };
        (report, times.to_vec())
    }

    fn two_switches() -> Topology {
        let mut topology = Topology::empty("lab");
        for (name, number) in [("a", 1), ("b", 2)] {
            let path = topology.add_path(name, Kind::Switch, DEFAULT_MTU);
            let pod = topology.add_pod(&format!("{name}1"));
            topology.add_port(pod, path, vec![format!("10.0.0.{number}/24").parse().unwrap()]);
        }
        topology.add_cable("trunk", DEFAULT_MTU, [Some(0), Some(1)]);
        topology
    }

    #[test]
    fn losses_are_failures_of_the_path_that_lost() {
        let topology = two_switches();
        let pairs = pairs(&topology, 0);
        let pings =
            vec![pinged(&topology, &pairs[0], &[10.0, 30.0], 2), pinged(&topology, &pairs[1], &[20.0], 2)];
        let tcp = TcpReport {
            from: "a1".into(),
            to: "b1".into(),
            address: pairs[0].target,
            bytes: 0,
            seconds: 0.0,
            bits_per_second: 0.0,
            error: Some("send: timed out".into()),
        };
        let transfers = vec![(transfers(&topology, true)[0], tcp)];
        let report = sum_up(&topology, &pairs, pings, &transfers, (9, false));
        assert!(!report.passed());
        let rows: Vec<_> =
            report.paths.iter().map(|path| (path.path.as_str(), path.kind, path.pairs)).collect();
        assert_eq!(rows, [("a", "switch", 0), ("b", "switch", 0), ("trunk", "link", 2)]);
        let trunk = &report.paths[2];
        assert_eq!((trunk.sent, trunk.received), (4, 3));
        assert_eq!((trunk.median_us, trunk.worst_us), (Some(20.0), Some(30.0)));
        let failures: Vec<String> = report.failures.iter().map(ToString::to_string).collect();
        assert_eq!(
            failures,
            [
                "ping b1 -> a1 (10.0.0.1 from 10.0.0.2) on trunk: 1 of 2 received",
                "tcp a1 -> b1 (10.0.0.2 from 10.0.0.1) on trunk: send: timed out"
            ]
        );
        let text = table(&report);
        for expected in ["trunk", "3/4", "FAILED", "1 of 2 received", "nothing to try"] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
    }

    #[test]
    fn a_pod_that_is_not_there_ends_the_check() {
        let mut topology = Topology::switch("s", 16, DEFAULT_MTU).unwrap();
        for pod in &mut topology.pods {
            pod.namespace = "no-such-namespace-of-veth".to_owned();
        }
        let mut steps = 0;
        let result = check(&topology, &Options::default(), |_| steps += 1);
        assert!(matches!(result, Err(Error::Net(_))), "{result:?}");
        assert_eq!(steps, 1);
    }
}
