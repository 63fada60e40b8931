//! The programs, run by `BPF_PROG_TEST_RUN` with frames made by hand, against the maps that `veth up` has filled.
#![expect(clippy::unwrap_used, reason = "everything in a test panics when it fails")]

use aya::{
    TestRun as _, TestRunOptions,
    programs::{ProgramInfo, SchedClassifier, Xdp},
};
use aya_obj::programs::XdpAttachType;
use rtnetlink::LinkMessageBuilder;
use serde_json::Value;
use veth_common::Mac;
use veth_tests::{
    Lab, for_each_hook, frame,
    lab::{pins, set_link, xdp_md},
    need,
};
use veth_user::{
    datapath::{self, Hook},
    probe::Kernel,
};

/// What a program says, whatever its hook's word for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// `TCX_NEXT`, `XDP_PASS`.
    Next,
    /// `TC_ACT_SHOT`, `XDP_DROP`.
    Drop,
    /// `TC_ACT_REDIRECT`, `XDP_REDIRECT`.
    Redirect,
}

for_each_hook!(
    switch_redirects_known_unicast_and_counts_both_ends,
    switch_passes_what_a_bridge_must_judge,
    the_longest_frame_that_fits_goes_fast,
    wire_carries_everything_and_names_what_does_not_fit,
    nothing_enters_the_host_from_a_switch_without_a_gateway,
    frames_of_a_stranger_interface_pass_and_are_counted_as_nobodys,
);

/// Size of `__sk_buff`, and the offsets of fields that a test run lets us set.
const SKB_SIZE: usize = 192;
const SKB_IFINDEX: usize = 40;
const SKB_GSO_SEGS: usize = 164;
const SKB_GSO_SIZE: usize = 176;

/// A topology with the program that runs on its ports.
struct Bench {
    lab: Lab,
    hook: Hook,
    topology: &'static str,
}

#[derive(Clone, Copy, Default)]
struct Gso {
    segments: u32,
    size: u32,
}

impl Bench {
    fn wire(hook: Hook) -> Self {
        Self::up(hook, "wire", &[])
    }

    fn switch(hook: Hook) -> Self {
        Self::up(hook, "switch", &["--pods", "3"])
    }

    fn up(hook: Hook, topology: &'static str, args: &[&str]) -> Self {
        let lab = Lab::new();
        lab.up(hook, args);
        // Silent pods: only the test's own frames are counted.
        let list: Value = serde_json::from_str(&lab.ok(&["ls", topology, "--json"])).unwrap();
        for pod in list[0]["topology"]["pods"].as_array().unwrap() {
            let pod = lab.pod(pod["namespace"].as_str().unwrap());
            pod.run(|| set_link("eth0", LinkMessageBuilder::down)).unwrap();
        }
        Self { lab, hook, topology }
    }

    /// Runs the program once on a frame that came in on a link of the host. Bridges have the TC program.
    fn run(&self, link: &str, frame: &[u8], gso: Gso) -> Action {
        let ifindex = self.lab.link(link).index;
        if self.hook.is_xdp() && !link.starts_with("br-") {
            self.run_xdp(ifindex, frame.to_owned())
        } else {
            self.run_tc(ifindex, frame.to_owned(), gso)
        }
    }

    fn run_tc(&self, ifindex: u32, frame: Vec<u8>, gso: Gso) -> Action {
        let path = pins(self.topology).join("prog_veth_ingress");
        let returned = self.lab.run(move || {
            let mut context = [0_u8; SKB_SIZE];
            for (offset, value) in
                [(SKB_IFINDEX, ifindex), (SKB_GSO_SEGS, gso.segments), (SKB_GSO_SIZE, gso.size)]
            {
                context[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
            }
            let program = SchedClassifier::from_pin(path).unwrap();
            let options =
                TestRunOptions { data_in: Some(&frame), ctx_in: Some(&context), ..TestRunOptions::default() };
            program.test_run(options).unwrap().return_value
        });
        match returned {
            u32::MAX => Action::Next,
            2 => Action::Drop,
            7 => Action::Redirect,
            other => panic!("the program returned {other}"),
        }
    }

    fn run_xdp(&self, ifindex: u32, frame: Vec<u8>) -> Action {
        let path = pins(self.topology).join("prog_veth_xdp");
        let returned = self.lab.run(move || {
            let context = xdp_md(&frame, ifindex);
            let program = Xdp::from_pin(path, XdpAttachType::Interface).unwrap();
            let options =
                TestRunOptions { data_in: Some(&frame), ctx_in: Some(&context), ..TestRunOptions::default() };
            program.test_run(options).unwrap().return_value
        });
        match returned {
            1 => Action::Drop,
            2 => Action::Next,
            4 => Action::Redirect,
            other => panic!("the program returned {other}"),
        }
    }

    /// What running the program once adds to the counters of each port.
    fn grows(&self, run: impl FnOnce(&Self) -> Action) -> (Action, Growth) {
        let before = self.lab.quiet_stats(self.topology);
        let action = run(self);
        let after = self.lab.stats(self.topology);
        (action, Growth { before, after })
    }

    fn mac(&self, pod: &str) -> Mac {
        let list: Value = serde_json::from_str(&self.lab.ok(&["ls", self.topology, "--json"])).unwrap();
        let pods = list[0]["topology"]["pods"].as_array().unwrap();
        let pod = pods.iter().find(|candidate| candidate["name"] == pod).unwrap();
        let text = pod["ports"][0]["mac"].as_str().unwrap();
        let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        Mac::new(bytes.try_into().unwrap())
    }
}

struct Growth {
    before: Value,
    after: Value,
}

impl Growth {
    /// `[packets, bytes, segments]` that a counter of a port grew by.
    fn of(&self, link: &str, path: &str) -> [u64; 3] {
        let read = |snapshot: &Value| {
            let port =
                snapshot["ports"].as_array().unwrap().iter().find(|port| port["link"] == link).unwrap();
            let sum = port.pointer(path).unwrap_or_else(|| panic!("no {path} in {port}"));
            ["packets", "bytes", "segments"].map(|field| sum[field].as_u64().unwrap())
        };
        let (before, after) = (read(&self.before), read(&self.after));
        std::array::from_fn(|number| after[number] - before[number])
    }
}

const STRANGER: Mac = Mac::new([2, 0, 0, 0, 0, 0xee]);
const BROADCAST: Mac = Mac::new([0xff; 6]);
const PLAIN: Gso = Gso { segments: 0, size: 0 };
const NOTHING: [u64; 3] = [0, 0, 0];

fn raw(destination: Mac, source: Mac, length: usize) -> Vec<u8> {
    frame::ethernet(destination, source, frame::ETHERTYPE_EXPERIMENTAL, &vec![0xab; length - 14])
}

fn switch_redirects_known_unicast_and_counts_both_ends(hook: Hook) {
    let bench = Bench::switch(hook);
    let frame = raw(bench.mac("pod2"), bench.mac("pod1"), 100);
    let (action, growth) = bench.grows(|bench| bench.run("switch-pod1", &frame, PLAIN));
    assert_eq!(action, Action::Redirect);
    assert_eq!(growth.of("switch-pod1", "/redirected"), [1, 100, 1]);
    assert_eq!(growth.of("switch-pod1", "/rx"), [1, 100, 1]);
    assert_eq!(growth.of("switch-pod1", "/passed"), NOTHING);
    // A test run says what XDP would do and does not do it; `net xdp::` does, with live frames.
    let arrived = if hook.is_xdp() { NOTHING } else { [1, 100, 1] };
    assert_eq!(growth.of("switch-pod2", "/tx"), arrived);
    assert_eq!(growth.of("switch-pod3", "/tx"), NOTHING);
}

fn switch_passes_what_a_bridge_must_judge(hook: Hook) {
    let bench = Bench::switch(hook);
    let (one, two) = (bench.mac("pod1"), bench.mac("pod2"));
    for (why, frame) in [
        ("broadcast", raw(BROADCAST, one, 60)),
        ("multicast", raw(Mac::new([0x33, 0x33, 0, 0, 0, 1]), one, 60)),
        ("unknown", raw(STRANGER, one, 60)),
        ("to itself", raw(one, one, 60)),
        ("zero source", raw(two, Mac::new([0; 6]), 60)),
        ("multicast source", raw(two, Mac::new([1, 0, 0, 0, 0, 1]), 60)),
        ("too long", raw(two, one, 1_519)),
    ] {
        let length = u64::try_from(frame.len()).unwrap();
        let (action, growth) = bench.grows(|bench| bench.run("switch-pod1", &frame, PLAIN));
        assert_eq!(action, Action::Next, "{why}");
        assert_eq!(growth.of("switch-pod1", "/passed"), [1, length, 1], "{why}");
        assert_eq!(growth.of("switch-pod1", "/redirected"), NOTHING, "{why}");
    }
}

fn the_longest_frame_that_fits_goes_fast(hook: Hook) {
    let bench = Bench::switch(hook);
    let frame = raw(bench.mac("pod2"), bench.mac("pod1"), 1_518);
    assert_eq!(bench.run("switch-pod1", &frame, PLAIN), Action::Redirect);
}

#[test]
fn a_gso_frame_counts_as_what_it_is_cut_into() {
    let bench = Bench::wire(Hook::Clsact);
    let frame = raw(bench.mac("ns2"), bench.mac("ns1"), 3_000);
    let gso = Gso { segments: 3, size: 1_000 };
    let (action, growth) = bench.grows(|bench| bench.run("wire-ns1", &frame, gso));
    assert_eq!(action, Action::Redirect, "GSO frames have no length");
    assert_eq!(growth.of("wire-ns1", "/redirected"), [1, 3_000, 3]);
    assert_eq!(growth.of("wire-ns2", "/tx"), [1, 3_000, 3]);
}

fn wire_carries_everything_and_names_what_does_not_fit(hook: Hook) {
    let bench = Bench::wire(hook);
    let (one, two) = (bench.mac("ns1"), bench.mac("ns2"));
    for (why, frame) in [
        ("for the far pod", raw(two, one, 60)),
        ("broadcast", raw(BROADCAST, one, 60)),
        ("for somebody else", raw(STRANGER, one, 60)),
        ("zero source", raw(two, Mac::new([0; 6]), 60)),
    ] {
        assert_eq!(bench.run("wire-ns1", &frame, PLAIN), Action::Redirect, "{why}");
    }
    let long = raw(two, one, 1_519);
    let (action, growth) = bench.grows(|bench| bench.run("wire-ns1", &long, PLAIN));
    assert_eq!(action, Action::Drop);
    assert_eq!(growth.of("wire-ns1", "/dropped/mtu_exceeded"), [1, 1_519, 1]);
    assert_eq!(growth.of("wire-ns1", "/rx"), [1, 1_519, 1]);
    assert_eq!(growth.of("wire-ns2", "/tx"), NOTHING);
}

fn nothing_enters_the_host_from_a_switch_without_a_gateway(hook: Hook) {
    let bench = Bench::switch(hook);
    let frame = raw(STRANGER, bench.mac("pod1"), 60);
    let (action, growth) = bench.grows(|bench| bench.run("br-switch", &frame, PLAIN));
    assert_eq!(action, Action::Drop);
    assert_eq!(growth.of("br-switch", "/dropped/no_gateway"), [1, 60, 1]);
}

fn frames_of_a_stranger_interface_pass_and_are_counted_as_nobodys(hook: Hook) {
    let bench = Bench::switch(hook);
    let frame = raw(bench.mac("pod2"), bench.mac("pod1"), 60);
    let (action, growth) = bench.grows(|bench| bench.run("lo", &frame, PLAIN));
    assert_eq!(action, Action::Next);
    let unattributed = |snapshot: &Value| snapshot["unattributed"]["packets"].as_u64().unwrap();
    assert_eq!(unattributed(&growth.after) - unattributed(&growth.before), 1);
}

#[test]
fn an_outer_tag_is_not_counted_by_xdp_either() {
    if !veth_tests::hook::is_there(Hook::Xdp) {
        return;
    }
    let bench = Bench::wire(Hook::Xdp);
    let (one, two) = (bench.mac("ns1"), bench.mac("ns2"));
    let inner = frame::tagged(7, frame::ETHERTYPE_EXPERIMENTAL, &[0; 60]);
    for (ethertype, payload) in [
        (frame::ETHERTYPE_VLAN, inner.clone()),
        (frame::ETHERTYPE_QINQ, frame::tagged(5, frame::ETHERTYPE_VLAN, &inner)),
    ] {
        let frame = frame::ethernet(two, one, ethertype, &payload);
        let length = u64::try_from(frame.len()).unwrap();
        let (action, growth) = bench.grows(|bench| bench.run("wire-ns1", &frame, PLAIN));
        assert_eq!(action, Action::Redirect);
        assert_eq!(growth.of("wire-ns1", "/redirected"), [1, length - 4, 1]);
    }
}

/// The verifier gives up after this many instructions: `BPF_COMPLEXITY_LIMIT_INSNS`.
const VERIFIER_LIMIT: u32 = 1_000_000;

/// `cargo xtask test vm` shows these for each kernel.
#[test]
fn the_verifier_is_far_from_giving_up() {
    let kernel = Kernel::current().unwrap();
    // XDP brings the TC program with it.
    let hook = if kernel >= Kernel(6, 2, 0) { Hook::Xdp } else { Hook::Clsact };
    for (how, args) in [("", &[][..]), (" with messages", &["--ebpf-log", "debug"])] {
        let bench = Bench::up(hook, "wire", args);
        for name in datapath::programs(hook) {
            let path = pins("wire").join(format!("prog_{name}"));
            let info = bench.lab.run(move || ProgramInfo::from_pin(path).unwrap());
            match info.verified_instruction_count() {
                Some(count) => {
                    assert!(count > 0 && count < VERIFIER_LIMIT, "{name}{how}: {count}");
                    need::fact(&format!("{name}{how}"), count.into());
                }
                // Older kernels verify as well, but do not tell.
                None => assert!(kernel < Kernel(5, 16, 0), "{name}"),
            }
        }
    }
}
