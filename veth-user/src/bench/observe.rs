//! What it costs to see: counting, watching, and reading the counters of a thousand ports. Beside the same without it, in
//! the same run.

use std::{
    env, fs,
    io::{self, Read as _, Write as _},
    net::TcpStream,
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use aya::programs::{LinkOrder, Program, TcAttachType, tc::TcAttachOptions};
use nix::{
    pty::{Winsize, openpty},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    Error, Watch, cpu, prog,
    spec::{Base, PathSpec, Workload},
    stage,
    statistics::{Estimate, ratios},
    workload::{self, Setting},
};
use crate::{
    datapath::{self, INGRESS, attach, pins::Pins},
    net::Netlink,
    state::Roots,
    stats::{Source, Wanted},
    text::with_causes,
    topology,
};

/// Rounds of request and response, and how long each sample of one takes.
const ROUNDS: u32 = 60;
const SAMPLE: Duration = Duration::from_millis(150);

/// Ports whose counters are read.
const PORTS: u16 = 1_000;

/// How long somebody reads them, and how long before that is not looked at.
const READING: Duration = Duration::from_secs(10);
const WARM_UP: Duration = Duration::from_secs(2);

/// How often.
const PERIOD: Duration = Duration::from_secs(1);

/// Snapshots of which the median is taken.
const SNAPSHOTS: usize = 101;

/// How long a command may take to do what it is started for.
const PATIENCE: Duration = Duration::from_secs(20);

/// One figure, and what it must be.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Figure {
    /// What was measured.
    pub what: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// What came out. Of single values the interval has no width.
    pub estimate: Estimate,
    /// The most or the least that it should be.
    pub target: f64,
    /// Whether the target is the most.
    pub is_most: bool,
}

impl Figure {
    /// Whether the target is met, by the median.
    #[must_use]
    pub fn is_met(&self) -> bool {
        if self.is_most { self.estimate.median <= self.target } else { self.estimate.median >= self.target }
    }
}

/// Measures all of it. Must be called on a throw-away host, within a tokio runtime.
///
/// # Errors
///
/// When something cannot be made, attached or measured.
pub async fn figures(progress: &dyn Watch) -> Result<Vec<Figure>, Error> {
    let roots = super::roots();
    let mut figures = vec![counting().await?];
    figures.extend(request_response(&roots, progress).await?);
    figures.extend(reading(&roots).await?);
    Ok(figures)
}

fn single(what: &'static str, unit: &'static str, value: f64, target: f64) -> Figure {
    let estimate = Estimate { median: value, low: value, high: value };
    Figure { what, unit, estimate, target, is_most: true }
}

/// What counting adds to a program's run.
async fn counting() -> Result<Figure, Error> {
    let added = prog::counting().await?;
    let estimate = estimate("counting", &added)?;
    Ok(Figure {
        what: "counting, of a switch's program",
        unit: "ns a frame",
        estimate,
        target: 10.0,
        is_most: true,
    })
}

/// What is done meanwhile to a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Meanwhile {
    /// Nothing: as everybody has it.
    Nothing,
    /// A program that does not count decides.
    Uncounted,
    /// `veth trace --sample 1/100`.
    Trace,
    /// `veth capture -s 96`.
    Capture,
}

/// Transactions a second, with and without.
async fn request_response(roots: &Roots, progress: &dyn Watch) -> Result<Vec<Figure>, Error> {
    let spec = PathSpec::from(Base::Switch);
    let (number, name) = (1, "bench1");
    let stage = stage::declared(roots, &spec, number, true).await?;
    let netlink = Netlink::open()?;
    let record = topology::record(roots, name)?;
    let links: Vec<String> = record.topology.ports().map(|(_, port)| port.host_link.clone()).collect();
    let pins = Pins::new(roots, record.layout_version, name);
    let cpu = cpu::allowed().map_err(Error::Accounting)?.last().copied().unwrap_or_default();
    let setting = Setting { workload: Workload::TcpRr, cpus: [cpu; 2], duration: SAMPLE, size: 1, pairs: 1 };
    let kinds = [Meanwhile::Nothing, Meanwhile::Uncounted, Meanwhile::Trace, Meanwhile::Capture];
    let mut rates: [Vec<(u32, f64)>; 4] = Default::default();
    progress.begin(SAMPLE * 9 / 8 * ROUNDS * u32::try_from(kinds.len()).unwrap_or(1));
    for round in 0..ROUNDS {
        progress.sample(&format!("request and response, round {} of {ROUNDS}", round + 1));
        for turn in 0..kinds.len() {
            let place = (turn + usize::try_from(round).unwrap_or_default()) % kinds.len();
            let kind = kinds[place];
            let mut uncounted = None;
            let mut command = match kind {
                Meanwhile::Nothing => None,
                Meanwhile::Uncounted => {
                    uncounted = Some(put_first(&pins, &links)?);
                    None
                }
                Meanwhile::Trace => Some(Running::start(&["trace", "--of", name, "--sample", "1/100"])?),
                Meanwhile::Capture => {
                    Some(Running::start(&["capture", "bench1/a", "-s", "96", "-w", "/dev/null"])?)
                }
            };
            if command.is_some() {
                wait_for_watchers(&netlink, &links).await?;
            }
            let outcome = workload::run(&stage.ends, None, &setting)
                .map_err(|error| Error::Path { path: name.to_owned(), why: with_causes(&error) })?;
            rates[place].push((round, outcome.rate));
            progress.took(SAMPLE * 9 / 8);
            drop(uncounted);
            if let Some(command) = &mut command {
                command.end()?;
            }
        }
    }
    progress.end();
    let [nothing, uncounted, trace, capture] = &rates;
    let ratio = |of: &[(u32, f64)], to: &[(u32, f64)], what, target| {
        let estimate = estimate(what, &ratios(of, to))?;
        Ok::<_, Error>(Figure { what, unit: "of the transactions without", estimate, target, is_most: false })
    };
    Ok(vec![
        ratio(nothing, uncounted, "counting, by a switch", 0.985)?,
        ratio(trace, nothing, "trace --sample 1/100", 0.97)?,
        ratio(capture, nothing, "capture -s 96", 0.85)?,
    ])
}

/// Lets a program decide on links that does all but count, until what is returned is dropped.
fn put_first(pins: &Pins, links: &[String]) -> Result<aya::Ebpf, Error> {
    let mut ebpf = datapath::uncounted(pins)?;
    let failed =
        |source| datapath::Error::program("attach a program that does not count".to_owned(), INGRESS, source);
    if let Some(Program::SchedClassifier(program)) = ebpf.program_mut(INGRESS) {
        for link in links {
            let first = TcAttachOptions::TcxOrder(LinkOrder::first());
            program.attach_with_options(link, TcAttachType::Ingress, first).map_err(failed)?;
        }
    }
    Ok(ebpf)
}

/// Waits until somebody watches all links.
async fn wait_for_watchers(netlink: &Netlink, links: &[String]) -> Result<(), Error> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        let mut watched = 0;
        for link in links {
            let link = netlink.link(link).await?;
            let attached = attach::attached(netlink, &link).await?;
            watched += usize::from(attached.iter().any(|attached| attached.name == datapath::watch::WATCH));
        }
        if watched == links.len() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Err(late("nobody watches"))
}

/// What it takes to read the counters of many ports.
async fn reading(roots: &Roots) -> Result<Vec<Figure>, Error> {
    let spec = PathSpec { pods: PORTS.into(), ..PathSpec::from(Base::Switch) };
    stage::bring_up(roots, &stage::declaration(&spec, 2, PORTS.into())).await?;
    let mut source = Source::open(roots, Wanted::Topology("bench2".to_owned()))?;
    let mut times = Vec::new();
    for _ in 0..SNAPSHOTS {
        let start = Instant::now();
        drop(source.take().await?);
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let estimate = estimate("snapshots", &times)?;
    let mut figures =
        vec![Figure { what: "a snapshot of 1,000 ports", unit: "ms", estimate, target: 5.0, is_most: true }];
    for (what, arguments) in [
        ("stats --watch 1s, of 1,000 ports", &["stats", "--watch", "1s"][..]),
        ("top, of 1,000 ports", &["top"]),
    ] {
        let mut command = Running::on_terminal(arguments)?;
        tokio::time::sleep(WARM_UP).await;
        let reading = async {
            tokio::time::sleep(READING).await;
            Ok(())
        };
        let share = command.share(reading).await?;
        command.end()?;
        figures.push(single(what, "% of a CPU", share, 1.0));
    }
    // A host that was just made has no loopback that carries anything.
    let netlink = Netlink::open()?;
    netlink.set_up(netlink.link("lo").await?.index).await?;
    let mut command = Running::start(&["metrics", "--listen", "127.0.0.1:9464"])?;
    let scrapes = READING.as_secs() / PERIOD.as_secs();
    tokio::time::sleep(WARM_UP).await;
    scrape()?;
    let work = async {
        for _ in 0..scrapes {
            scrape()?;
            tokio::time::sleep(PERIOD).await;
        }
        Ok(())
    };
    let share = command.share(work).await?;
    command.end()?;
    figures.push(single("metrics scraped once a second, of 1,000 ports", "% of a CPU", share, 1.0));
    Ok(figures)
}

/// Asks for the metrics and throws them away.
fn scrape() -> Result<(), Error> {
    let ask = || {
        let mut stream = TcpStream::connect("127.0.0.1:9464")?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        io::copy(&mut stream, &mut io::sink())
    };
    ask().map(drop).map_err(|source| Error::Host { action: "scrape the metrics", source })
}

/// A command of this program that runs meanwhile.
struct Running {
    child: Child,
    _terminal: Option<OwnedFd>,
}

impl Running {
    fn start(arguments: &[&str]) -> Result<Self, Error> {
        let child =
            command(arguments)?.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.map_err(|source| Error::Host { action: "start veth", source })?;
        Ok(Self { child, _terminal: None })
    }

    /// On a terminal of 50 lines that somebody reads from.
    fn on_terminal(arguments: &[&str]) -> Result<Self, Error> {
        let size = Winsize { ws_row: 50, ws_col: 150, ws_xpixel: 0, ws_ypixel: 0 };
        let failed = |source| Error::Host { action: "make a terminal", source };
        let pty = openpty(Some(&size), None).map_err(|errno| failed(errno.into()))?;
        let mut master = fs::File::from(pty.master.try_clone().map_err(failed)?);
        thread::spawn(move || {
            let mut bytes = vec![0; 65_536];
            while master.read(&mut bytes).is_ok_and(|count| count > 0) {}
        });
        let [input, output] = [pty.slave.try_clone().map_err(failed)?, pty.slave];
        let child = command(arguments)?.stdin(input).stdout(output).stderr(Stdio::null()).spawn();
        let child = child.map_err(|source| Error::Host { action: "start veth", source })?;
        Ok(Self { child, _terminal: Some(pty.master) })
    }

    /// The share of a CPU that it takes while something goes on, in percent.
    async fn share(&mut self, meanwhile: impl Future<Output = Result<(), Error>>) -> Result<f64, Error> {
        let (start, before) = (Instant::now(), self.spent()?);
        meanwhile.await?;
        let spent = self.spent()?.saturating_sub(before);
        if !matches!(self.child.try_wait(), Ok(None)) {
            return Err(Error::Nothing("a command that ended by itself"));
        }
        Ok(100.0 * spent.as_secs_f64() / start.elapsed().as_secs_f64())
    }

    /// The time that it has spent on CPUs.
    fn spent(&self) -> Result<Duration, Error> {
        let read = || {
            let text = fs::read_to_string(format!("/proc/{}/schedstat", self.child.id()))?;
            let nanoseconds = text.split_whitespace().next().and_then(|word| word.parse().ok());
            nanoseconds.map(Duration::from_nanos).ok_or_else(|| io::ErrorKind::InvalidData.into())
        };
        read().map_err(Error::Accounting)
    }

    /// Ends it as Ctrl-C does.
    fn end(&mut self) -> Result<(), Error> {
        let failed = |source| Error::Host { action: "end veth", source };
        let process = Pid::from_raw(self.child.id().cast_signed());
        kill(process, Signal::SIGINT).map_err(|errno| failed(errno.into()))?;
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            match self.child.try_wait().map_err(failed)? {
                Some(_) => return Ok(()),
                None => thread::sleep(Duration::from_millis(1)),
            }
        }
        Err(late("it does not end"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _unused: io::Result<()> = self.child.kill();
            let _unused: io::Result<std::process::ExitStatus> = self.child.wait();
        }
    }
}

/// A median, unless nothing was measured: nothing meets no target.
fn estimate(what: &'static str, values: &[f64]) -> Result<Estimate, Error> {
    Estimate::bootstrap(values, 0).ok_or(Error::Nothing(what))
}

fn command(arguments: &[&str]) -> Result<Command, Error> {
    let own = env::current_exe().map_err(|source| Error::Host { action: "find this program", source })?;
    let mut command = Command::new(own);
    // What the caller's own veth is told is not meant for this one.
    command.args(arguments).env_remove("VETH_STATE_DIR").env_remove("VETH_PIN_DIR");
    Ok(command)
}

fn late(what: &'static str) -> Error {
    Error::Host { action: what, source: io::ErrorKind::TimedOut.into() }
}
