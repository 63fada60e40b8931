//! What each program costs by itself: `BPF_PROG_TEST_RUN`, for each verdict, beside a program that does nothing.

use aya::{
    Ebpf, TestRun as _,
    programs::{Program, ProgramError, SchedClassifier, TestRunOptions, TestRunResult, Xdp},
};
use aya_obj::programs::XdpAttachType;
use schemars::JsonSchema;
use serde::Serialize;
use veth_common::Mac;

use super::{
    Error,
    spec::{Base, PathSpec},
    stage,
    statistics::median,
};
use crate::{
    datapath::{self, INGRESS, NULL_PASS, NULL_REDIRECT, XDP, pins::Pins},
    net::Netlink,
    topology::{self, model::HookWish},
};

/// Runs at a time, of which the kernel takes the mean, and rounds, of which we take the median.
const REPEAT: u32 = 200_000;
const ROUNDS: usize = 31;

/// The number of the path on which counting is measured: none that has traffic.
const COUNTING_PATH: u8 = 9;

/// The parts of `struct __sk_buff` of `linux/bpf.h` that our programs look at.
const SKB_SIZE: usize = 192;
const SKB_IFINDEX: usize = 40;

/// A frame of a TCP request of one byte, and one that is too long.
const LENGTH: usize = 74;
const TOO_LONG: usize = 1_600;

/// What a program costs.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Cost {
    /// The program, as the object names it.
    pub program: &'static str,
    /// On which frame, and what becomes of that.
    pub frame: &'static str,
    /// The action it returns.
    pub action: u32,
    /// Nanoseconds a run, the kernel's loop and its call included.
    pub nanoseconds: f64,
    /// The same, less what a program takes that does nothing. Nothing for XDP, whose loop is another.
    pub above_empty: Option<f64>,
}

/// A program, where it is kept.
enum Loaded {
    /// A program of an object that is loaded for this alone.
    Object(Ebpf, &'static str),
    /// One that is attached to ports of a path.
    Classifier(SchedClassifier),
    Xdp(Xdp),
}

/// A program, and a frame on its way in.
struct Case {
    loaded: Loaded,
    program: &'static str,
    frame: &'static str,
    data: Vec<u8>,
    ifindex: u32,
}

/// Measures all programs. Must be called on a throw-away host, within a tokio runtime.
///
/// # Errors
///
/// When a program cannot be loaded or run.
pub async fn costs() -> Result<Vec<Cost>, Error> {
    let mut cases = cases().await?;
    let mut times = vec![Vec::new(); cases.len()];
    let mut actions = vec![0; cases.len()];
    // One after the other in each round, so that a slow moment of the machine is one for all.
    for _ in 0..ROUNDS {
        for (number, case) in cases.iter_mut().enumerate() {
            let result = case.run()?;
            actions[number] = result.return_value;
            times[number].push(result.duration.as_secs_f64() * 1e9);
        }
    }
    let cost = |(number, case): (usize, &Case)| {
        let above = |(time, empty): (&f64, &f64)| time - empty;
        let above: Vec<f64> = times[number].iter().zip(&times[0]).map(above).collect();
        Cost {
            program: case.program,
            frame: case.frame,
            action: actions[number],
            nanoseconds: median(&times[number]).unwrap_or_default(),
            above_empty: median(&above).filter(|_| !matches!(case.loaded, Loaded::Xdp(_))),
        }
    };
    Ok(cases.iter().enumerate().map(cost).collect())
}

/// What counting adds to the run of a switch's program that redirects, in nanoseconds, in each round.
///
/// # Errors
///
/// When a program cannot be loaded or run.
pub(super) async fn counting() -> Result<Vec<f64>, Error> {
    let roots = super::roots();
    let text = stage::declaration(&PathSpec::from(Base::Switch), COUNTING_PATH, 2);
    let topology = stage::bring_up(&roots, &text).await?;
    let record = topology::record(&roots, &topology.name)?;
    let pins = Pins::new(&roots, record.layout_version, &topology.name);
    let mut ports = topology.ports().map(|(_, port)| port);
    let (Some(a), Some(b)) = (ports.next(), ports.next()) else { return Ok(Vec::new()) };
    let ifindex = Netlink::open()?.link(&a.host_link).await?.index;
    let case = |loaded| {
        let data = frame(b.mac, a.mac, LENGTH);
        Case { loaded, program: INGRESS, frame: "switch, to a known address: redirected", data, ifindex }
    };
    let with = case(open(&pins, false).map_err(failed(INGRESS))?);
    let without = case(Loaded::Object(datapath::uncounted(&pins)?, INGRESS));
    let nanoseconds = |case: &Case| Ok::<_, Error>(case.run()?.duration.as_secs_f64() * 1e9);
    (0..ROUNDS).map(|_| Ok(nanoseconds(&with)? - nanoseconds(&without)?)).collect()
}

/// What is measured. The program that does nothing is the first.
async fn cases() -> Result<Vec<Case>, Error> {
    let roots = super::roots();
    let netlink = Netlink::open()?;
    let ifindex = netlink.link("lo").await?.index;
    let data = frame(Mac::new([2; 6]), Mac::new([4; 6]), LENGTH);
    let mut cases = Vec::new();
    for (program, loaded, frame) in [
        (NULL_PASS, datapath::null(NULL_PASS)?, "any: passed"),
        (NULL_REDIRECT, datapath::load_null_redirect(ifindex)?, "any: redirected"),
    ] {
        let (loaded, data) = (Loaded::Object(loaded, program), data.clone());
        cases.push(Case { loaded, program, frame, data, ifindex });
    }
    for (number, base, hook) in [
        (1, Base::Wire, HookWish::Auto),
        (2, Base::Switch, HookWish::Auto),
        (3, Base::Wire, HookWish::Xdp),
        (4, Base::Switch, HookWish::Xdp),
    ] {
        let spec = PathSpec { hook, ..PathSpec::from(base) };
        let topology = stage::bring_up(&roots, &stage::declaration(&spec, number, 2)).await?;
        let record = topology::record(&roots, &topology.name)?;
        let pins = Pins::new(&roots, record.layout_version, &topology.name);
        let mut ports = topology.ports().map(|(_, port)| port);
        let (Some(a), Some(b)) = (ports.next(), ports.next()) else { continue };
        let port = netlink.link(&a.host_link).await?.index;
        let to = |mac: Mac, length| frame(mac, a.mac, length);
        let mut wanted = match base {
            Base::Wire => vec![
                ("wire, to the other pod: redirected", to(b.mac, LENGTH), port),
                ("wire, too long: dropped", to(b.mac, TOO_LONG), port),
            ],
            _ => vec![
                ("switch, to a known address: redirected", to(b.mac, LENGTH), port),
                ("switch, broadcast: passed to the bridge", to(Mac::new([0xff; 6]), LENGTH), port),
            ],
        };
        let is_xdp = hook == HookWish::Xdp;
        if let Some((_, bridge)) = topology.guarded_bridges().next().filter(|_| !is_xdp) {
            let bridge = netlink.link(&bridge.link).await?.index;
            wanted.push(("from a switch without a gateway: dropped", data.clone(), bridge));
            wanted.push(("from no port of ours: passed", data.clone(), ifindex));
        }
        let program = if is_xdp { XDP } else { INGRESS };
        for (frame, data, ifindex) in wanted {
            let loaded = open(&pins, is_xdp).map_err(failed(program))?;
            cases.push(Case { loaded, program, frame, data, ifindex });
        }
    }
    Ok(cases)
}

fn open(pins: &Pins, is_xdp: bool) -> Result<Loaded, ProgramError> {
    if is_xdp {
        Xdp::from_pin(pins.program(XDP), XdpAttachType::Interface).map(Loaded::Xdp)
    } else {
        SchedClassifier::from_pin(pins.program(INGRESS)).map(Loaded::Classifier)
    }
}

impl Case {
    /// The mean of many runs.
    fn run(&self) -> Result<TestRunResult, Error> {
        let skb = || {
            let mut context = vec![0; SKB_SIZE];
            context[SKB_IFINDEX..SKB_IFINDEX + 4].copy_from_slice(&self.ifindex.to_ne_bytes());
            context
        };
        // data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        let xdp = || [0, u32::try_from(self.data.len()).unwrap_or_default(), 0, self.ifindex, 0, 0];
        let xdp = || xdp().iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        let context = if matches!(self.loaded, Loaded::Xdp(_)) { xdp() } else { skb() };
        let options = TestRunOptions {
            data_in: Some(&self.data),
            ctx_in: Some(&context),
            repeat: REPEAT,
            ..TestRunOptions::default()
        };
        let result = match &self.loaded {
            Loaded::Object(object, name) => match object.program(name) {
                Some(Program::SchedClassifier(program)) => program.test_run(options),
                _ => return Err(datapath::Error::NotLoaded.into()),
            },
            Loaded::Classifier(program) => program.test_run(options),
            Loaded::Xdp(program) => program.test_run(options),
        };
        result.map_err(failed(self.program))
    }
}

fn failed(program: &'static str) -> impl FnOnce(ProgramError) -> Error {
    move |source| datapath::Error::program(format!("run {program}"), program, source).into()
}

fn frame(destination: Mac, source: Mac, length: usize) -> Vec<u8> {
    let mut frame = [&destination.bytes()[..], &source.bytes(), &[0x08, 0x00]].concat();
    frame.resize(length, 0);
    frame
}
