//! Frames that nobody would send, through every program, on ports of several domains: every verdict is the one of
//! `veth_common::decide` on the same tables, nothing goes to a port of another domain, and every counter is what those verdicts
//! add up to. `VETH_FUZZ_RUNS=100000000 cargo xtask test prog -- fuzz::` runs more, and `VETH_FUZZ_SEED` others.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::Instant,
};

use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunOptions,
    maps::{MapInfo, RingBuf},
    programs::{Program, SchedClassifier, TestRunResult, Xdp},
};
use aya_obj::programs::XdpAttachType;
use rtnetlink::LinkMessageBuilder;
use veth_common::{
    Cast, Decision, DropReason, EthernetHeader, FDB_PLACES_PER_SLOT, FdbKey, Frame, LAYOUT_VERSION, Mac,
    PassReason, Port, PortCounters, PortKind, Protocol, RedirectMode, SLOT_UNATTRIBUTED, SourceKey, Tables,
    Target, Verdict, Weight, decide,
    ethertype::{IPV4, IPV6},
    spoof::is_tag,
    watch::{Event, Outcome},
};
use veth_tests::{
    Lab,
    generate::{Generator, Host, SHORTEST},
    hook,
    lab::{pins, set_link, with_netlink, xdp_md},
    need,
    topology::Declared,
};
use veth_user::{
    datapath::{
        Counters, Datapath, Hook, NULL_PASS, NULL_REDIRECT, NULL_XDP, object,
        pins::Pins,
        watch::{WATCH, WATCH_OUT},
    },
    state::{DEFAULT_PIN_DIR, DEFAULT_STATE_DIR, Roots},
    topology::{self, Topology},
};

use super::{Action, SKB_GSO_SEGS, SKB_GSO_SIZE, SKB_IFINDEX, SKB_SIZE};

/// How often each program runs that decides.
const USUAL: usize = 1_000_000;

/// How many times more often those run that decide than those that only look, or do nothing.
const LESS: usize = 10;

/// The longest frame: the kernel takes nothing longer than a page for a test run, less what belongs to it.
const LONGEST: usize = 3_000;

/// After how many runs counters are compared.
const ROUND: usize = 512;

/// Two switches, one of which is checked, and two wires, one of which is checked and one of which takes less than the rest.
const DECLARATION: &str = "
name = \"fuzz\"
[switch.open]
pods = [\"a1\", \"a2\", \"a3\"]
[switch.checked]
pods = [\"b1\", \"b2\", \"b3\"]
spoof_check = true
[wire.short]
pods = [\"c1\", \"c2\"]
mtu = 1280
[wire.careful]
pods = [\"d1\", \"d2\"]
spoof_check = true
";

/// Their pods.
const PODS: [&str; 10] = ["a1", "a2", "a3", "b1", "b2", "b3", "c1", "c2", "d1", "d2"];

/// Those that the programs believe to be gone.
const GONE: [&str; 2] = ["a3", "c2"];

/// Maps that programs beside those of a topology share with them.
const MAPS: [&str; 8] =
    ["PORTS", "PORTS_OVERFLOW", "FDB", "FDB_OVERFLOW", "SOURCES", "TARGETS", "XDP_TARGETS", "COUNTERS"];

const TOPOLOGY: &str = "fuzz";

fn number(variable: &str, usual: usize) -> usize {
    std::env::var(variable).map_or(usual, |text| text.parse().unwrap())
}

/// Where a frame comes in.
#[derive(Clone, Copy, Debug)]
struct Way {
    ifindex: u32,
    /// What the maps say of it.
    port: Option<Port>,
    /// The path that it is declared to be on.
    path: Option<usize>,
    /// Who sends there, by its place among the hosts of the generator.
    host: usize,
}

/// What the maps hold, copied out of them.
#[derive(Default)]
struct Copied {
    fdb: HashMap<FdbKey, Target>,
    targets: HashMap<u32, u32>,
    sources: Vec<SourceKey>,
}

impl Tables for Copied {
    fn lookup(&self, key: FdbKey) -> Option<Target> {
        self.fdb.get(&key).copied()
    }

    fn interface(&self, slot: u32) -> Option<u32> {
        self.targets.get(&slot).copied()
    }

    fn is_source(&self, key: &SourceKey) -> bool {
        self.sources.contains(key)
    }
}

/// A frame that is run.
struct Case {
    way: Way,
    frame: Vec<u8>,
    /// Not zero for a GSO frame.
    segments: u32,
}

/// What all that is run stands on. Made and used on the thread that holds the host.
struct Stage {
    topology: Topology,
    counters: Counters,
    ways: Vec<Way>,
    tables: Copied,
    generator: Generator,
    seed: usize,
}

/// Sums of counters by slot.
type Sums = BTreeMap<u32, PortCounters>;

/// Makes the host, and does something with all that is on it.
fn on_stage(hook: Hook, work: impl FnOnce(Stage) + Send + 'static) {
    let lab = Lab::new();
    let file = Declared::new(DECLARATION);
    lab.ok(&[&file.args("up")[..], &["--hook", hook.name()]].concat());
    // Silent pods: only what is run is counted.
    for name in PODS {
        let pod = lab.pod(&format!("{TOPOLOGY}-{name}"));
        pod.run(|| set_link("eth0", LinkMessageBuilder::down)).unwrap();
    }
    let _quiet = lab.quiet_stats(TOPOLOGY);
    lab.run(move || work(Stage::new(hook)));
}

impl Stage {
    fn new(hook: Hook) -> Self {
        let roots = Roots { state: DEFAULT_STATE_DIR.into(), pins: DEFAULT_PIN_DIR.into() };
        let topology = topology::record(&roots, TOPOLOGY).unwrap().topology;
        let pins = Pins::new(&roots, LAYOUT_VERSION, TOPOLOGY);
        let counters = Counters::open(&pins).unwrap();
        let mut datapath = Datapath::open(pins, hook).unwrap();
        for (pod, port) in topology.ports() {
            if GONE.contains(&pod.name.as_str()) {
                datapath.remove_target(port.slot).unwrap();
            }
        }

        let links = with_netlink(async |netlink| netlink.links().await.unwrap());
        let ifindex = |name: &str| links.iter().find(|link| link.name == name).unwrap().index;
        let (mut ways, mut hosts, mut tables) = (Vec::new(), Vec::new(), Copied::default());
        for (_, port) in topology.ports() {
            let ifindex = ifindex(&port.host_link);
            tables.targets.extend(datapath.target(port.slot).map(|target| (port.slot, target)));
            let sources = datapath.sources(port.slot);
            tables.sources.extend(sources.map(|source| SourceKey::new(port.slot, source.unwrap())));
            ways.push(Way {
                ifindex,
                port: datapath.port(ifindex),
                path: Some(port.path),
                host: hosts.len(),
            });
            let [v4, v6] = port.addresses[..] else { panic!("{port:?} has other addresses") };
            let (IpAddr::V4(v4), IpAddr::V6(v6)) = (v4.address, v6.address) else { panic!("{port:?}") };
            hosts.push(Host { mac: port.mac, v4, v6 });
        }
        for (number, path) in topology.paths.iter().enumerate() {
            let Some(bridge) = &path.bridge else { continue };
            let ifindex = ifindex(&bridge.link);
            ways.push(Way { ifindex, port: datapath.port(ifindex), path: Some(number), host: number });
            for host in &hosts {
                let key = FdbKey { domain: bridge.domain, mac: host.mac };
                tables.fdb.extend(datapath.fdb(key).map(|target| (key, target)));
            }
        }
        assert!(ways.iter().all(|way| way.port.is_some()));
        ways.push(Way { ifindex: ifindex("lo"), port: None, path: None, host: 0 });
        assert_eq!(tables.fdb.len(), 6, "each pod of a switch is known in its own domain alone");
        assert_eq!(tables.sources.len(), 5 * 3, "each checked pod has two addresses and a link-local one");

        let seed = number("VETH_FUZZ_SEED", 1);
        let bridges = topology.bridges().map(|(_, bridge)| bridge.mac);
        let others = bridges.chain(topology.ports().map(|(_, port)| port.host_mac)).collect();
        let generator = Generator::new(seed.try_into().unwrap(), hosts, others);
        Self { topology, counters, ways, tables, generator, seed }
    }

    fn case(&mut self, ways: &[Way], is_tc: bool) -> Case {
        let way = ways[self.generator.below(ways.len())];
        let mut frame = self.generator.frame(way.host, LONGEST);
        if is_tc {
            frame.resize(frame.len().max(least(&frame)), 0);
        }
        let is_gso = is_tc && self.generator.below(16) == 0;
        let segments = if is_gso { 1 + self.generator.below(9) } else { 0 };
        Case { way, frame, segments: segments.try_into().unwrap() }
    }

    /// Ports, bridges, and a stranger. Bridges have the TC program under every hook.
    fn ways(&self, hook: Hook) -> Vec<Way> {
        let is_bridge = |way: &Way| way.port.is_some_and(|port| port.kind == PortKind::Bridge as u32);
        self.ways.iter().copied().filter(|way| !(hook.is_xdp() && is_bridge(way))).collect()
    }

    /// The counters of every slot, and those of nobody.
    fn read(&self) -> Sums {
        let read = |slot: u32| {
            let mut sum = PortCounters::default();
            self.counters.read_each(slot).unwrap().0.iter().for_each(|cpu| sum.add(cpu));
            (slot, sum)
        };
        (0..=self.topology.slot_count()).map(read).collect()
    }

    /// What must become of a frame, by the function that the programs are made of.
    fn decide(&self, case: &Case) -> Decision {
        let Case { way, frame: bytes, segments } = case;
        let header = header(bytes);
        let length = bytes.len().try_into().unwrap();
        let frame = Frame { header: Some(&header), length, gso: *segments > 0 };
        way.port.map_or(Decision::Pass(PassReason::NotAccelerated), |port| {
            decide(&port, &frame, &bytes.as_slice(), &self.tables)
        })
    }

    /// What is declared, whatever the tables say: a frame stays on its path and does not come back, a wire has no slow path,
    /// and nothing leaves a bridge for the host.
    fn is_allowed(&self, way: &Way, decision: Decision) -> bool {
        let is = |kind: PortKind| way.port.is_some_and(|port| port.kind == kind as u32);
        match decision {
            Decision::Redirect { slot, ifindex, .. } => {
                let target = self.ways.iter().find(|way| way.ifindex == ifindex).unwrap();
                target.port.unwrap().slot == slot && target.path == way.path && ifindex != way.ifindex
            }
            Decision::Pass(_) => way.port.is_none() || is(PortKind::Switch),
            Decision::Drop(DropReason::NoGateway) => is(PortKind::Bridge),
            Decision::Drop(DropReason::NoPeer | DropReason::MtuExceeded) => is(PortKind::Wire),
            Decision::Drop(DropReason::SpoofedMac | DropReason::SpoofedAddress) => {
                way.path.is_some_and(|path| self.topology.paths[path].spoof_check)
            }
        }
    }

    /// Runs a program that decides.
    fn decides(&mut self, hook: Hook, run: impl Fn(&Case) -> Action) {
        let runs = number("VETH_FUZZ_RUNS", USUAL);
        let ways = self.ways(hook);
        let mut sums = self.read();
        let mut seen = BTreeSet::new();
        let start = Instant::now();
        for _ in 0..runs.div_ceil(ROUND) {
            let round: Vec<Case> = (0..ROUND).map(|_| self.case(&ways, !hook.is_xdp())).collect();
            for case in &round {
                let decision = self.decide(case);
                let expected = match decision {
                    Decision::Pass(_) => Action::Next,
                    Decision::Redirect { .. } => Action::Redirect,
                    Decision::Drop(_) => Action::Drop,
                };
                assert_eq!(run(case), expected, "{hook} {decision:?} {}", self.told(case));
                assert!(self.is_allowed(&case.way, decision), "{hook} {decision:?} {}", self.told(case));
                count(&mut sums, case, decision, hook);
                seen.insert(name(decision));
            }
            if self.read() != sums {
                self.locate(hook, &round, &run);
                panic!("{hook}: counters differ, by no frame alone");
            }
        }
        let rate = u128::try_from(runs).unwrap() * 1_000_000 / start.elapsed().as_micros();
        println!("{hook}: {runs} runs, {rate} a second");
        need::fact(&format!("runs of the {hook} program a second"), rate.try_into().unwrap());
        let never = ["no_header", if hook.is_xdp() { "no_gateway" } else { "no_header" }];
        let all =
            PassReason::ALL.map(PassReason::name).into_iter().chain(DropReason::ALL.map(DropReason::name));
        for name in all.chain(["redirected"]).filter(|name| !never.contains(name)) {
            assert!(seen.contains(name), "{hook}: nothing was ever {name}");
        }
    }

    /// Runs frames again, each alone, and says which is counted otherwise.
    fn locate(&self, hook: Hook, round: &[Case], run: impl Fn(&Case) -> Action) {
        for case in round {
            let mut sums = self.read();
            let decision = self.decide(case);
            count(&mut sums, case, decision, hook);
            let _again: Action = run(case);
            for (slot, counters) in self.read() {
                assert_eq!(counters, sums[&slot], "{hook} {decision:?}, slot {slot}, {}", self.told(case));
            }
        }
    }

    /// A frame, for messages.
    fn told(&self, case: &Case) -> String {
        let Case { way, frame, segments } = case;
        format!("VETH_FUZZ_SEED={} {way:?}, {segments} segments: {frame:02x?}", self.seed)
    }
}

/// What a decision is called.
const fn name(decision: Decision) -> &'static str {
    match decision {
        Decision::Pass(reason) => reason.name(),
        Decision::Drop(reason) => reason.name(),
        Decision::Redirect { .. } => Verdict::Redirected.name(),
    }
}

/// Adds to counters what a decision must add.
fn count(sums: &mut Sums, case: &Case, decision: Decision, hook: Hook) {
    let weight = weight(case, hook);
    let own = case.way.port.map_or(SLOT_UNATTRIBUTED, |port| port.slot);
    let mut of = |slot: u32, count: &dyn Fn(&mut PortCounters)| count(sums.get_mut(&slot).unwrap());
    match decision {
        Decision::Pass(reason) => of(own, &|counters| counters.count_passed(reason, &weight)),
        Decision::Drop(reason) => of(own, &|counters| counters.count_dropped(reason, &weight)),
        Decision::Redirect { slot, mode, .. } => {
            of(own, &|counters| counters.count_redirected(&weight));
            of(slot, &|counters| match mode {
                RedirectMode::Peer => counters.to_peer.count(&weight),
                RedirectMode::Host => counters.to_host.count(&weight),
            });
        }
    }
}

fn header(bytes: &[u8]) -> EthernetHeader {
    let mac = |at: usize| Mac::new(bytes[at..at + 6].try_into().unwrap());
    let ethertype = u16::from_ne_bytes([bytes[12], bytes[13]]);
    EthernetHeader { destination: mac(0), source: mac(6), ethertype }
}

/// What a frame adds to counters. In a test run all tags are in the frame, and XDP does not count the outer one.
fn weight(case: &Case, hook: Hook) -> Weight {
    let Case { frame, segments, .. } = case;
    let header = header(frame);
    let byte = |offset: u32| frame.get(usize::try_from(offset).unwrap()).copied();
    let tag = if hook.is_xdp() && is_tag(header.ethertype) { 4 } else { 0 };
    Weight {
        length: u32::try_from(frame.len()).unwrap() - tag,
        gso_segments: *segments,
        protocol: Protocol::number(header.ethertype, byte),
        cast: Cast::of(header.destination),
    }
}

/// The shortest frame like this that the kernel takes for a TC program: not a header alone (5.19), and not less than a header of
/// IP behind it (6.18). `net differential::` sends shorter ones.
fn least(frame: &[u8]) -> usize {
    match header(frame).ethertype {
        IPV4 => SHORTEST + 20,
        IPV6 => SHORTEST + 40,
        _ => SHORTEST + 1,
    }
}

fn run_tc(program: &SchedClassifier, case: &Case) -> u32 {
    let Case { way, frame, segments } = case;
    let size = if *segments == 0 { 0 } else { 500 };
    let mut context = [0_u8; SKB_SIZE];
    for (offset, value) in [(SKB_IFINDEX, way.ifindex), (SKB_GSO_SEGS, *segments), (SKB_GSO_SIZE, size)] {
        context[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
    }
    run(program, frame, &context)
}

fn run_xdp(program: &Xdp, case: &Case) -> u32 {
    run(program, &case.frame, &xdp_md(&case.frame, case.way.ifindex))
}

fn run<P>(program: &P, frame: &[u8], context: &[u8]) -> u32
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    let options = TestRunOptions { data_in: Some(frame), ctx_in: Some(context), ..TestRunOptions::default() };
    program.test_run(options).unwrap().return_value
}

/// Loads a program beside those of the topology, on the same maps.
fn beside(name: &str, globals: &[(&'static str, u32)]) -> Ebpf {
    let pin = |map: &str| pins(TOPOLOGY).join(format!("map_{map}"));
    let slots = MapInfo::from_pin(pin("PORTS")).unwrap().max_entries();
    let shift = (slots * FDB_PLACES_PER_SLOT).leading_zeros() + 1;
    let sizes = [("PORTS_MASK", slots - 1), ("FDB_SHIFT", shift), ("COUNTER_SLOTS", slots)];
    let globals = [&sizes[..], globals].concat();
    let mut loader = EbpfLoader::new();
    for (global, value) in &globals {
        loader.override_global(global, value, true);
    }
    for map in MAPS {
        loader.map_pin_path(map, pin(map));
    }
    loader.map_max_entries("EVENTS", 1 << 20);
    let mut ebpf = loader.load(object::bytes()).unwrap();
    match ebpf.program_mut(name).unwrap() {
        Program::SchedClassifier(program) => program.load().unwrap(),
        Program::Xdp(program) => program.load().unwrap(),
        other => panic!("{name} is {other:?}"),
    }
    ebpf
}

fn classifier<'a>(ebpf: &'a Ebpf, name: &str) -> &'a SchedClassifier {
    match ebpf.program(name).unwrap() {
        Program::SchedClassifier(program) => program,
        other => panic!("{name} is {other:?}"),
    }
}

#[test]
fn the_tc_program_decides_as_declared_whatever_comes() {
    // What TCX takes for its own is the same number to clsact.
    on_stage(Hook::Clsact, |mut stage| {
        let program = SchedClassifier::from_pin(pins(TOPOLOGY).join("prog_veth_ingress")).unwrap();
        stage.decides(Hook::Clsact, |case| Action::of_tc(run_tc(&program, case)));
    });
}

#[test]
fn the_xdp_program_decides_as_declared_whatever_comes() {
    if hook::is_there(Hook::Xdp) {
        on_stage(Hook::Xdp, |mut stage| {
            let path = pins(TOPOLOGY).join("prog_veth_xdp");
            let program = Xdp::from_pin(path, XdpAttachType::Interface).unwrap();
            stage.decides(Hook::Xdp, |case| Action::of_xdp(run_xdp(&program, case)));
        });
    }
}

#[test]
fn a_program_that_counts_leaves_everything_alone() {
    on_stage(Hook::Clsact, |mut stage| {
        let [from, to] = [1, 2];
        let ebpf = beside("veth_count", &[("COUNT_FROM", from), ("COUNT_TO", to)]);
        let program = classifier(&ebpf, "veth_count");
        let ways = stage.ways(Hook::Clsact);
        let mut sums = stage.read();
        for _ in 0..number("VETH_FUZZ_RUNS", USUAL) / LESS {
            let case = stage.case(&ways, true);
            assert_eq!(Action::of_tc(run_tc(program, &case)), Action::Next, "{}", stage.told(&case));
            let weight = weight(&case, Hook::Clsact);
            sums.get_mut(&from).unwrap().count_passed(PassReason::NotAccelerated, &weight);
            sums.get_mut(&to).unwrap().to_peer.count(&weight);
        }
        assert_eq!(stage.read(), sums);
    });
}

#[test]
fn programs_that_watch_tell_the_truth_and_leave_everything_alone() {
    if !need::kernel(6, 6, "TCX, which watching is by") {
        return;
    }
    on_stage(Hook::Clsact, |mut stage| {
        const SNAP: u32 = 1_000;
        let sums = stage.read();
        let ways = stage.ways(Hook::Clsact);
        for name in [WATCH, WATCH_OUT] {
            let mut ebpf = beside(name, &[("WATCH_SNAP", SNAP)]);
            let mut events = RingBuf::try_from(ebpf.take_map("EVENTS").unwrap()).unwrap();
            let program = classifier(&ebpf, name);
            for _ in 0..number("VETH_FUZZ_RUNS", USUAL) / LESS {
                let case = stage.case(&ways, true);
                assert_eq!(Action::of_tc(run_tc(program, &case)), Action::Next, "{}", stage.told(&case));
                let item =
                    events.next().unwrap_or_else(|| panic!("nothing is told of {}", stage.told(&case)));
                let (head, bytes) = item.split_at(Event::LENGTH);
                // SAFETY: as many bytes as an event has, of which any are one; perhaps not aligned.
                let event = unsafe { head.as_ptr().cast::<Event>().read_unaligned() };
                let decision = stage.decide(&case);
                let (outcome, target) = match decision {
                    _ if name == WATCH_OUT => (Outcome::Sent, 0),
                    Decision::Redirect { ifindex, .. } => (decision.into(), ifindex),
                    _ => (decision.into(), 0),
                };
                let length = u32::try_from(case.frame.len()).unwrap();
                let expected = Event {
                    time_ns: event.time_ns,
                    ifindex: case.way.ifindex,
                    target,
                    length,
                    captured: length.min(SNAP),
                    gso_segments: case.segments,
                    outcome: outcome.numbers().0,
                    reason: outcome.numbers().1,
                    mode: outcome.numbers().2,
                    ..Event::default()
                };
                assert_eq!(event, expected, "{name} {}", stage.told(&case));
                let captured = usize::try_from(event.captured).unwrap();
                assert_eq!(bytes[..captured], case.frame[..captured], "{name} {}", stage.told(&case));
            }
        }
        assert_eq!(stage.read(), sums);
    });
}

#[test]
fn programs_that_do_nothing_do_it_to_everything() {
    let hook = if hook::is_there(Hook::Xdp) { Hook::Xdp } else { Hook::Clsact };
    on_stage(hook, move |mut stage| {
        let sums = stage.read();
        let ways = stage.ways(hook);
        let (pass, redirect) =
            (beside(NULL_PASS, &[]), beside(NULL_REDIRECT, &[("NULL_TARGET", ways[0].ifindex)]));
        let xdp = hook.is_xdp().then(|| beside(NULL_XDP, &[]));
        for _ in 0..number("VETH_FUZZ_RUNS", USUAL) / LESS {
            let case = stage.case(&ways, true);
            let returned = Action::of_tc(run_tc(classifier(&pass, NULL_PASS), &case));
            assert_eq!(returned, Action::Next, "{}", stage.told(&case));
            let returned = Action::of_tc(run_tc(classifier(&redirect, NULL_REDIRECT), &case));
            assert_eq!(returned, Action::Redirect, "{}", stage.told(&case));
            if let Some(ebpf) = &xdp {
                let Some(Program::Xdp(program)) = ebpf.program(NULL_XDP) else { unreachable!() };
                assert_eq!(Action::of_xdp(run_xdp(program, &case)), Action::Next, "{}", stage.told(&case));
            }
        }
        assert_eq!(stage.read(), sums);
    });
}
