//! What each program costs by itself: `BPF_PROG_TEST_RUN`, for each verdict, beside a program that does nothing.

use aya::{
    Ebpf,
    programs::{Program, SchedClassifier, TestRun, TestRunOptions, TestRunResult, Xdp},
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

/// Runs of one measurement, in which the kernel takes the mean, and measurements, of which we take the median.
const REPEAT: u32 = 1_000_000;
const MEASUREMENTS: usize = 9;

/// The parts of `struct __sk_buff` of `linux/bpf.h` that our programs look at.
const SKB_SIZE: usize = 192;
const SKB_IFINDEX: usize = 40;

/// A frame of a TCP request of one byte.
const LENGTH: usize = 74;

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

/// A frame on its way in.
struct Case {
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
    let roots = super::roots();
    let netlink = Netlink::open()?;
    let mut costs = Vec::new();
    let empty = datapath::null_pass()?;
    let case = |program, frame, data, ifindex| Case { program, frame, data, ifindex };
    let loopback = netlink.link("lo").await?.index;
    let nothing = frame(Mac::new([2; 6]), Mac::new([4; 6]), LENGTH);
    costs.push(classifier(&empty, &case(NULL_PASS, "any: passed", nothing.clone(), loopback))?);
    let redirect = datapath::load_null_redirect(loopback)?;
    costs.push(classifier(&redirect, &case(NULL_REDIRECT, "any: redirected", nothing.clone(), loopback))?);
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
        let ifindex = netlink.link(&a.host_link).await?.index;
        let to_b = frame(b.mac, a.mac, LENGTH);
        let broadcast = frame(Mac::new([0xff; 6]), a.mac, LENGTH);
        let long = frame(b.mac, a.mac, 1_600);
        let is_xdp = hook == HookWish::Xdp;
        let program = if is_xdp { XDP } else { INGRESS };
        let mut cases = match base {
            Base::Wire => vec![
                case(program, "wire, to the other pod: redirected", to_b, ifindex),
                case(program, "wire, too long: dropped", long, ifindex),
            ],
            _ => vec![
                case(program, "switch, to a known address: redirected", to_b, ifindex),
                case(program, "switch, broadcast: passed to the bridge", broadcast, ifindex),
            ],
        };
        if !is_xdp {
            cases.push(case(program, "from no port of ours: passed", nothing.clone(), loopback));
        }
        if base == Base::Switch
            && !is_xdp
            && let Some((_, bridge)) = topology.guarded_bridges().next()
        {
            let ifindex = netlink.link(&bridge.link).await?.index;
            cases.push(case(program, "from a switch without a gateway: dropped", nothing.clone(), ifindex));
        }
        for case in &cases {
            costs.push(if is_xdp { xdp(&pins, case)? } else { pinned_classifier(&pins, case)? });
        }
    }
    let empty = costs.first().map(|cost| cost.nanoseconds);
    for cost in costs.iter_mut().filter(|cost| cost.program != XDP) {
        cost.above_empty = empty.map(|empty| cost.nanoseconds - empty);
    }
    Ok(costs)
}

fn frame(destination: Mac, source: Mac, length: usize) -> Vec<u8> {
    let mut frame = [&destination.bytes()[..], &source.bytes(), &[0x08, 0x00]].concat();
    frame.resize(length, 0);
    frame
}

fn failed(case: &Case) -> impl FnOnce(aya::programs::ProgramError) -> Error {
    let program = case.program;
    move |source| datapath::Error::program(format!("run {program}"), program, source).into()
}

fn classifier(object: &Ebpf, case: &Case) -> Result<Cost, Error> {
    match object.program(case.program) {
        Some(Program::SchedClassifier(program)) => run(program, case, &skb(case.ifindex)),
        _ => Err(datapath::Error::NotLoaded.into()),
    }
}

fn pinned_classifier(pins: &Pins, case: &Case) -> Result<Cost, Error> {
    let program = SchedClassifier::from_pin(pins.program(case.program)).map_err(failed(case))?;
    run(&program, case, &skb(case.ifindex))
}

fn xdp(pins: &Pins, case: &Case) -> Result<Cost, Error> {
    let path = pins.program(case.program);
    let program = Xdp::from_pin(path, XdpAttachType::Interface).map_err(failed(case))?;
    // data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
    let words = [0, u32::try_from(case.data.len()).unwrap_or_default(), 0, case.ifindex, 0, 0];
    let context: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    run(&program, case, &context)
}

fn skb(ifindex: u32) -> Vec<u8> {
    let mut context = vec![0; SKB_SIZE];
    context[SKB_IFINDEX..SKB_IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
    context
}

fn run<P>(program: &P, case: &Case, context: &[u8]) -> Result<Cost, Error>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    let mut times = Vec::new();
    let mut action = 0;
    for _ in 0..MEASUREMENTS {
        let options = TestRunOptions {
            data_in: Some(&case.data),
            ctx_in: Some(context),
            repeat: REPEAT,
            ..TestRunOptions::default()
        };
        let result = program.test_run(options).map_err(failed(case))?;
        action = result.return_value;
        times.push(result.duration.as_secs_f64() * 1e9);
    }
    let nanoseconds = median(&times).unwrap_or_default();
    Ok(Cost { program: case.program, frame: case.frame, action, nanoseconds, above_empty: None })
}
