//! The traffic: real sockets in the namespaces of both ends, each end on a thread of its own that is bound to a CPU.

mod batch;
mod tcp;
mod udp;
mod xdp;

use std::{
    fmt::Write as _,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

pub(super) use self::{
    tcp::CONGESTION_CONTROL,
    xdp::{Generator, Injection},
};
use super::{cpu, spec::Workload};
use crate::net::Netns;

/// How long an end waits for the other before it says that nothing comes.
const PATIENCE: Duration = Duration::from_secs(2);

/// The longest time of a transaction that is told apart, in nanoseconds.
const LATENCY_MAX: u64 = 10_000_000_000;

/// Digits of a transaction's time.
const LATENCY_DIGITS: u8 = 3;

/// An end of a path.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) namespace: Arc<Netns>,
    pub(super) address: IpAddr,
}

/// Both ends: the one that begins, and the one that answers.
pub(super) type Ends = [End; 2];

/// How one sample is taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    pub(super) workload: Workload,
    /// Of the end that begins, and of the one that answers.
    pub(super) cpus: [usize; 2],
    pub(super) duration: Duration,
    /// How much is sent at once, in bytes.
    pub(super) size: usize,
    /// Pairs of ends at the same time.
    pub(super) pairs: usize,
}

/// What one sample brought.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    /// In the workload's unit.
    pub(super) rate: f64,
    /// Transactions, datagrams or megabytes, of the time that the CPUs were looked at.
    pub(super) operations: f64,
    /// The times of transactions, in nanoseconds.
    pub(super) latency: Option<Histogram<u64>>,
    /// Datagrams that were sent, and did not arrive.
    pub(super) lost: Option<(u64, u64)>,
}

/// Why a sample could not be taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{end}: {action}")]
    Socket {
        end: &'static str,
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("nothing arrived at the {end} for {PATIENCE:?}; {counted}")]
    NoData { end: &'static str, counted: String },
    #[error(transparent)]
    Net(#[from] crate::net::Error),
    #[error("there is no link on which the kernel could make frames come in")]
    NoHostEnd,
    #[error("a thread of the workload panicked")]
    Panic,
}

/// What an end was doing when it failed.
type Failed = (&'static str, io::Error);

/// A part of the sum over all pairs.
#[derive(Debug, Default)]
struct Part {
    /// In operations a second.
    rate: f64,
    operations: f64,
    latency: Option<Histogram<u64>>,
    lost: Option<(u64, u64)>,
}

/// Takes one sample.
pub(super) fn run(ends: &Ends, injection: Option<&Injection>, setting: &Setting) -> Result<Outcome, Error> {
    let parts = thread::scope(|scope| {
        let pairs: Vec<_> =
            (0..setting.pairs).map(|_| scope.spawn(|| pair(ends, injection, setting))).collect();
        let join =
            |pair: thread::ScopedJoinHandle<'_, _>| pair.join().map_err(|_panic| Error::Panic).flatten();
        pairs.into_iter().map(join).collect::<Result<Vec<Part>, Error>>()
    })?;
    let mut sum = Part::default();
    for Part { rate, operations, latency, lost } in parts {
        sum.rate += rate;
        sum.operations += operations;
        if let Some(latency) = latency {
            match &mut sum.latency {
                // All are of the same bounds.
                Some(all) => all.add(latency).map_err(|_| Error::Panic)?,
                None => sum.latency = Some(latency),
            }
        }
        if let Some((sent, lost)) = lost {
            let (all_sent, all_lost) = sum.lost.unwrap_or_default();
            sum.lost = Some((all_sent + sent, all_lost + lost));
        }
    }
    let Part { rate, operations, latency, lost } = sum;
    Ok(Outcome { rate: rate * setting.workload.per_operation(), operations, latency, lost })
}

fn pair(ends: &Ends, injection: Option<&Injection>, setting: &Setting) -> Result<Part, Error> {
    match setting.workload {
        Workload::TcpRr => tcp::request_response(ends, setting),
        Workload::TcpCrr => tcp::connect_request_response(ends, setting),
        Workload::TcpStream => tcp::stream(ends, setting),
        Workload::UdpRr => udp::request_response(ends, setting),
        Workload::UdpPps => udp::flood(ends, setting),
        Workload::UdpNdr => udp::no_drop_rate(ends, setting),
        Workload::XdpPps => match injection {
            Some(injection) => xdp::flood(ends, setting, injection),
            None => Err(Error::NoHostEnd),
        },
    }
}

/// Runs both ends, each in its namespace and on its CPU. The one that answers tells the other where it listens before
/// it waits.
fn both<S: Send, C: Send>(
    ends: &Ends,
    setting: &Setting,
    serve: impl FnOnce(IpAddr, &dyn Fn(SocketAddr)) -> Result<S, Failed> + Send,
    begin: impl FnOnce(IpAddr, SocketAddr) -> Result<C, Failed> + Send,
) -> Result<(S, C), Error> {
    let [client, server] = ends;
    let [client_cpu, server_cpu] = setting.cpus;
    let (tell, told) = mpsc::channel();
    let (answers, requests) = thread::scope(|scope| {
        let answering = scope.spawn(move || {
            prepare(server, server_cpu)?;
            serve(server.address, &|address| {
                // Whoever does not listen any more has failed, and says why.
                let _unused: Result<(), _> = tell.send(address);
            })
            .map_err(|failed| explain("answering end", failed, ends))
        });
        let asking = scope.spawn(move || {
            prepare(client, client_cpu)?;
            // The other end failed before it listened, and says why.
            let Ok(target) = told.recv() else { return Ok(None) };
            begin(client.address, target).map(Some).map_err(|failed| explain("beginning end", failed, ends))
        });
        (answering.join(), asking.join())
    });
    let requests = requests.map_err(|_panic| Error::Panic)?;
    let answers = answers.map_err(|_panic| Error::Panic)?;
    match (answers, requests) {
        (Ok(answers), Ok(Some(requests))) => Ok((answers, requests)),
        (_, Err(error)) | (Err(error), _) => Err(error),
        (Ok(_), Ok(None)) => Err(Error::Panic),
    }
}

fn prepare(end: &End, cpu: usize) -> Result<(), Error> {
    end.namespace.enter()?;
    cpu::pin(cpu).map_err(|source| Error::Socket { end: "either end", action: "bind it to a CPU", source })
}

fn explain(end: &'static str, (action, source): Failed, ends: &Ends) -> Error {
    match source.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::NoData { end, counted: counted(ends) },
        _ => Error::Socket { end, action, source },
    }
}

/// What the links of both ends counted.
fn counted(ends: &Ends) -> String {
    let mut text = String::new();
    for (end, name) in ends.iter().zip(["beginning", "answering"]) {
        let links = end.namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"));
        let links = links.ok().and_then(Result::ok).unwrap_or_default();
        for line in links.lines().skip(2) {
            let Some((link, numbers)) = line.split_once(':') else { continue };
            let numbers: Vec<&str> = numbers.split_whitespace().collect();
            let [_, received, _, dropped, ..] = numbers[..] else { continue };
            let (sent, refused) = (numbers.get(9).unwrap_or(&"?"), numbers.get(11).unwrap_or(&"?"));
            let separator = if text.is_empty() { "" } else { "; " };
            let _infallible = write!(
                text,
                "{separator}{} of the {name} end: {received} packets received ({dropped} dropped), {sent} sent \
                 ({refused} dropped)",
                link.trim()
            );
        }
    }
    text
}

/// Exchanges for some time, and before that for an eighth of it without counting.
fn transactions(duration: Duration, mut exchange: impl FnMut() -> io::Result<()>) -> Result<Part, Failed> {
    let mut exchange = || exchange().map_err(|source| ("exchange", source));
    let start = Instant::now();
    while start.elapsed() < duration / 8 {
        exchange()?;
    }
    let mut latency = histogram()?;
    let (mut operations, start) = (0_u32, Instant::now());
    let mut before = start;
    loop {
        exchange()?;
        let now = Instant::now();
        latency.saturating_record(u64::try_from((now - before).as_nanos()).unwrap_or(LATENCY_MAX));
        operations += 1;
        before = now;
        let elapsed = now - start;
        if elapsed >= duration {
            let operations = f64::from(operations);
            let rate = operations / elapsed.as_secs_f64();
            return Ok(Part { rate, operations: operations * 9.0 / 8.0, latency: Some(latency), lost: None });
        }
    }
}

fn histogram() -> Result<Histogram<u64>, Failed> {
    Histogram::new_with_bounds(1, LATENCY_MAX, LATENCY_DIGITS)
        .map_err(|error| ("make a histogram", io::Error::other(error)))
}
