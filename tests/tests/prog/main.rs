//! The programs, run by `BPF_PROG_TEST_RUN` with frames made by hand, against the maps that `veth up` has filled.
#![expect(clippy::unwrap_used, reason = "everything in a test panics when it fails")]

mod fuzz;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aya::{
    TestRun as _, TestRunOptions,
    programs::{ProgramInfo, SchedClassifier, Xdp},
};
use aya_obj::programs::XdpAttachType;
use rtnetlink::LinkMessageBuilder;
use serde_json::Value;
use veth_common::{FdbKey, Mac, Target};
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

impl Action {
    fn of_tc(returned: u32) -> Self {
        match returned {
            u32::MAX => Self::Next,
            2 => Self::Drop,
            7 => Self::Redirect,
            other => panic!("the program returned {other}"),
        }
    }

    fn of_xdp(returned: u32) -> Self {
        match returned {
            1 => Self::Drop,
            2 => Self::Next,
            4 => Self::Redirect,
            other => panic!("the program returned {other}"),
        }
    }
}

for_each_hook!(
    switch_redirects_known_unicast_and_counts_both_ends,
    switch_passes_what_a_bridge_must_judge,
    the_longest_frame_that_fits_goes_fast,
    wire_carries_everything_and_names_what_does_not_fit,
    nothing_enters_the_host_from_a_switch_without_a_gateway,
    what_a_pod_forges_is_dropped_and_named,
    what_a_pod_says_in_its_own_name_is_not_dropped,
    a_port_that_is_not_checked_may_forge,
    what_was_removed_is_forgotten,
    addresses_that_share_a_place_are_told_apart,
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
        Action::of_tc(returned)
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
        Action::of_xdp(returned)
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

/// What a checked pod is: its own addresses, and those of another.
struct Names {
    own: (Mac, Ipv4Addr, Ipv6Addr),
    other: (Mac, Ipv4Addr, Ipv6Addr),
}

impl Names {
    fn new(bench: &Bench) -> Self {
        let names = |pod: u8| {
            let mac = bench.mac(&format!("pod{pod}"));
            (mac, Ipv4Addr::new(192, 0, 2, pod), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, pod.into()))
        };
        Self { own: names(1), other: names(2) }
    }

    fn check(&self, bench: &Bench) {
        let (mac, v4, v6) = self.own;
        let addresses = vec![v4.into(), v6.into(), mac.link_local().into()];
        bench.lab.spoof_check(bench.hook, bench.topology, "switch-pod1", mac, addresses);
    }

    /// What a pod may forge in what follows the source address, with the ethertype in front.
    fn forged(&self) -> Vec<(&'static str, u16, Vec<u8>)> {
        use frame::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, neighbour};
        let ((mac, v4, v6), (other_mac, other_v4, other_v6)) = (self.own, self.other);
        let ipv6 = |next, payload: &[u8]| frame::ipv6(v6, other_v6, next, payload);
        let hidden = neighbour(frame::NEIGHBOUR_ADVERTISEMENT, other_v6, mac);
        vec![
            ("IPv4", ETHERTYPE_IPV4, ipv4(other_v4, v4)),
            ("IPv4 without an address", ETHERTYPE_IPV4, ipv4(Ipv4Addr::UNSPECIFIED, other_v4)),
            ("IPv6", ETHERTYPE_IPV6, frame::ipv6(other_v6, v6, frame::UDP, &[0; 8])),
            ("IPv6 without an address", ETHERTYPE_IPV6, frame::ipv6(NOBODY, other_v6, frame::UDP, &[0; 8])),
            ("IPv6 link-local", ETHERTYPE_IPV6, frame::ipv6(other_mac.link_local(), v6, frame::UDP, &[0; 8])),
            ("ARP request, hardware", ETHERTYPE_ARP, frame::arp(1, other_mac, v4, other_v4)),
            ("ARP answer, hardware", ETHERTYPE_ARP, frame::arp(2, other_mac, v4, other_v4)),
            ("ARP request, protocol", ETHERTYPE_ARP, frame::arp(1, mac, other_v4, v4)),
            ("ARP answer, protocol", ETHERTYPE_ARP, frame::arp(2, mac, other_v4, v4)),
            ("ARP probe, hardware", ETHERTYPE_ARP, frame::arp(1, other_mac, Ipv4Addr::UNSPECIFIED, v4)),
            (
                "advertisement, target",
                ETHERTYPE_IPV6,
                ipv6(frame::ICMPV6, &neighbour(frame::NEIGHBOUR_ADVERTISEMENT, other_v6, mac)),
            ),
            (
                "advertisement, option",
                ETHERTYPE_IPV6,
                ipv6(frame::ICMPV6, &neighbour(frame::NEIGHBOUR_ADVERTISEMENT, v6, other_mac)),
            ),
            (
                "solicitation, option",
                ETHERTYPE_IPV6,
                ipv6(frame::ICMPV6, &neighbour(frame::NEIGHBOUR_SOLICITATION, other_v6, other_mac)),
            ),
            (
                "advertisement behind options",
                ETHERTYPE_IPV6,
                ipv6(frame::DESTINATION_OPTIONS, &frame::extension(frame::ICMPV6, &hidden)),
            ),
            (
                "advertisement as a fragment",
                ETHERTYPE_IPV6,
                ipv6(frame::FRAGMENT, &frame::extension(frame::ICMPV6, &hidden)),
            ),
            (
                "more extension headers than anybody has",
                ETHERTYPE_IPV6,
                ipv6(
                    frame::DESTINATION_OPTIONS,
                    &(0..6).fold(frame::extension(frame::UDP, &[0; 8]), |inner, _| {
                        frame::extension(frame::DESTINATION_OPTIONS, &inner)
                    }),
                ),
            ),
        ]
    }

    /// The same with honest values, and what a pod says before it has an address.
    fn honest(&self) -> Vec<(&'static str, u16, Vec<u8>)> {
        use frame::{ETHERTYPE_ARP, ETHERTYPE_EXPERIMENTAL, ETHERTYPE_IPV4, ETHERTYPE_IPV6, neighbour};
        let ((mac, v4, v6), (_, other_v4, other_v6)) = (self.own, self.other);
        let ipv6 = |from, next, payload: &[u8]| frame::ipv6(from, other_v6, next, payload);
        let advertisement = neighbour(frame::NEIGHBOUR_ADVERTISEMENT, v6, mac);
        let solicitation = neighbour(frame::NEIGHBOUR_SOLICITATION, other_v6, mac);
        vec![
            ("something else", ETHERTYPE_EXPERIMENTAL, vec![0; 46]),
            ("IPv4", ETHERTYPE_IPV4, ipv4(v4, other_v4)),
            ("DHCP", ETHERTYPE_IPV4, ipv4(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST)),
            ("IPv6", ETHERTYPE_IPV6, ipv6(v6, frame::UDP, &[0; 8])),
            ("IPv6 link-local", ETHERTYPE_IPV6, ipv6(mac.link_local(), frame::UDP, &[0; 8])),
            ("ARP request", ETHERTYPE_ARP, frame::arp(1, mac, v4, other_v4)),
            ("ARP answer", ETHERTYPE_ARP, frame::arp(2, mac, v4, other_v4)),
            ("ARP probe", ETHERTYPE_ARP, frame::arp(1, mac, Ipv4Addr::UNSPECIFIED, v4)),
            ("advertisement", ETHERTYPE_IPV6, ipv6(v6, frame::ICMPV6, &advertisement)),
            ("solicitation", ETHERTYPE_IPV6, ipv6(v6, frame::ICMPV6, &solicitation)),
            (
                "advertisement behind options",
                ETHERTYPE_IPV6,
                ipv6(v6, frame::DESTINATION_OPTIONS, &frame::extension(frame::ICMPV6, &advertisement)),
            ),
            ("duplicate address detection", ETHERTYPE_IPV6, ipv6(NOBODY, frame::ICMPV6, &solicitation[..24])),
            (
                "six extension headers",
                ETHERTYPE_IPV6,
                ipv6(
                    v6,
                    frame::DESTINATION_OPTIONS,
                    &(0..5).fold(frame::extension(frame::UDP, &[0; 8]), |inner, _| {
                        frame::extension(frame::DESTINATION_OPTIONS, &inner)
                    }),
                ),
            ),
        ]
    }
}

const NOBODY: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

fn ipv4(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    frame::udp(from, to, 9, &[0; 8], 64).remove(0)
}

/// Payloads as they are, and behind one and two tags.
fn with_tags(payloads: &[(&'static str, u16, Vec<u8>)]) -> Vec<(String, u16, Vec<u8>)> {
    let tags = [&[][..], &[frame::ETHERTYPE_VLAN], &[frame::ETHERTYPE_VLAN, frame::ETHERTYPE_QINQ]];
    let wrap = |(what, ethertype, payload): &(&str, u16, Vec<u8>), tags: &[u16]| {
        let (ethertype, payload) =
            tags.iter().fold((*ethertype, payload.clone()), |(inner, payload), tag| {
                (*tag, frame::tagged(7, inner, &payload))
            });
        (format!("{what} behind {} tags", tags.len()), ethertype, payload)
    };
    payloads.iter().flat_map(|payload| tags.iter().map(move |tags| wrap(payload, tags))).collect()
}

/// Runs frames from pod1 to pod2, each of which must be dropped or not, and returns what they add up to in counters and
/// what the counters have grown by.
fn add_up(
    bench: &Bench,
    source: Mac,
    payloads: &[(String, u16, Vec<u8>)],
    drops: bool,
) -> ([u64; 3], Growth) {
    let destination = bench.mac("pod2");
    let (mut packets, mut bytes) = (0, 0);
    let (_, growth) = bench.grows(|bench| {
        for (what, ethertype, payload) in payloads {
            let mut frame = frame::ethernet(destination, source, *ethertype, payload);
            frame.resize(frame.len().max(60), 0);
            let action = bench.run("switch-pod1", &frame, PLAIN);
            assert_eq!(action, if drops { Action::Drop } else { Action::Redirect }, "{what}");
            let is_tagged = [frame::ETHERTYPE_VLAN, frame::ETHERTYPE_QINQ].contains(ethertype);
            packets += 1;
            bytes +=
                u64::try_from(frame.len()).unwrap() - if bench.hook.is_xdp() && is_tagged { 4 } else { 0 };
        }
        Action::Drop
    });
    ([packets, bytes, packets], growth)
}

fn what_a_pod_forges_is_dropped_and_named(hook: Hook) {
    let bench = Bench::switch(hook);
    let names = Names::new(&bench);
    names.check(&bench);

    let (sum, growth) = add_up(&bench, names.own.0, &with_tags(&names.forged()), true);
    assert_eq!(growth.of("switch-pod1", "/dropped/spoofed_address"), sum);
    assert_eq!(growth.of("switch-pod1", "/dropped/spoofed_mac"), NOTHING);
    assert_eq!(growth.of("switch-pod1", "/rx"), sum);

    // The hardware address comes first, whatever is in the frame.
    let all = with_tags(&[names.forged(), names.honest()].concat());
    let (sum, growth) = add_up(&bench, names.other.0, &all, true);
    assert_eq!(growth.of("switch-pod1", "/dropped/spoofed_mac"), sum);
    assert_eq!(growth.of("switch-pod1", "/dropped/spoofed_address"), NOTHING);
    assert_eq!(growth.of("switch-pod1", "/rx"), sum);
    assert_eq!(growth.of("switch-pod2", "/tx"), NOTHING);

    // What would go to the bridge is dropped too.
    let frame = raw(BROADCAST, names.other.0, 60);
    assert_eq!(bench.run("switch-pod1", &frame, PLAIN), Action::Drop);
    // A third tag might hide anything.
    let inner = (0..3).fold(ipv4(names.own.1, names.other.1), |inner, depth| {
        let ethertype = if depth == 0 { frame::ETHERTYPE_IPV4 } else { frame::ETHERTYPE_VLAN };
        frame::tagged(7, ethertype, &inner)
    });
    let frame = frame::ethernet(names.other.0, names.own.0, frame::ETHERTYPE_VLAN, &inner);
    assert_eq!(bench.run("switch-pod1", &frame, PLAIN), Action::Drop);
}

fn what_a_pod_says_in_its_own_name_is_not_dropped(hook: Hook) {
    let bench = Bench::switch(hook);
    let names = Names::new(&bench);
    names.check(&bench);
    let (sum, growth) = add_up(&bench, names.own.0, &with_tags(&names.honest()), false);
    assert_eq!(growth.of("switch-pod1", "/redirected"), sum);
    assert_eq!(growth.of("switch-pod1", "/rx"), sum);
    let frame = raw(BROADCAST, names.own.0, 60);
    assert_eq!(bench.run("switch-pod1", &frame, PLAIN), Action::Next);
}

fn a_port_that_is_not_checked_may_forge(hook: Hook) {
    let bench = Bench::switch(hook);
    let names = Names::new(&bench);
    let (sum, growth) = add_up(&bench, names.own.0, &with_tags(&names.forged()), false);
    assert_eq!(growth.of("switch-pod1", "/redirected"), sum);
    let strange = Mac::new([2, 0, 0, 0, 0, 0xee]);
    let (sum, growth) = add_up(&bench, strange, &with_tags(&names.forged()), false);
    assert_eq!(growth.of("switch-pod1", "/redirected"), sum);
}

fn what_was_removed_is_forgotten(hook: Hook) {
    let bench = Bench::switch(hook);
    let names = Names::new(&bench);
    names.check(&bench);
    let link = bench.lab.link("switch-pod1").index;
    let (slot, ip) =
        (bench.lab.datapath(hook, "switch", move |datapath| datapath.port(link).unwrap().slot), names.own.1);
    let frame = frame::ethernet(names.other.0, names.own.0, frame::ETHERTYPE_IPV4, &ipv4(ip, names.other.1));
    let run = || bench.run("switch-pod1", &frame, PLAIN);
    assert_eq!(run(), Action::Redirect);

    let before = bench.lab.datapath(hook, "switch", move |datapath| {
        let before: Vec<IpAddr> = datapath.sources(slot).collect::<Result<_, _>>().unwrap();
        datapath.remove_source(slot, ip.into()).unwrap();
        datapath.remove_source(slot, ip.into()).unwrap();
        let after: Vec<IpAddr> = datapath.sources(slot).collect::<Result<_, _>>().unwrap();
        assert!(before.contains(&ip.into()) && !after.contains(&ip.into()), "{before:?} {after:?}");
        assert_eq!(datapath.sources(slot + 1).count(), 0);
        before
    });
    assert_eq!(before.len(), 3);
    assert_eq!(run(), Action::Drop);

    bench.lab.datapath(hook, "switch", move |datapath| datapath.set_source(slot, ip.into()).unwrap());
    assert_eq!(run(), Action::Redirect);
    let two = names.other.0;
    bench.lab.datapath(hook, "switch", move |datapath| {
        let key = FdbKey { domain: datapath.port(link).unwrap().domain, mac: two };
        let target = datapath.fdb(key).unwrap();
        datapath.remove_fdb(key).unwrap();
        datapath.remove_fdb(key).unwrap();
        assert_eq!(datapath.fdb(key), None);
        datapath.set_fdb(key, &target).unwrap();
        datapath.remove_target(target.slot).unwrap();
        datapath.remove_target(target.slot).unwrap();
    });
    assert_eq!(run(), Action::Next, "the far pod has no target");

    assert_ne!(bench.lab.quiet_stats("switch")["ports"][0]["rx"]["packets"], 0);
    bench.lab.datapath(hook, "switch", move |datapath| datapath.clear_counters(slot).unwrap());
    assert_eq!(bench.lab.stats("switch")["ports"][0]["rx"]["packets"], 0);

    bench.lab.datapath(hook, "switch", move |datapath| {
        datapath.remove_port(link).unwrap();
        datapath.remove_port(link).unwrap();
        assert_eq!(datapath.port(link), None);
    });
    assert_eq!(run(), Action::Next);
    assert_eq!(bench.lab.stats("switch")["ports"][0]["rx"]["packets"], 0, "counted as nobody's");
}

fn addresses_that_share_a_place_are_told_apart(hook: Hook) {
    let bench = Bench::switch(hook);
    let [one, two] = ["pod1", "pod2"].map(|pod| bench.mac(pod));
    let link = bench.lab.link("switch-pod1").index;
    // For any size of the map up to 2^20: they have the high bits of the hash in common.
    let key = |domain, mac| FdbKey { domain, mac };
    let twin = |domain, of: Mac| {
        let candidates = (0_u32..).map(|number| {
            let [a, b, c, d] = number.to_be_bytes();
            Mac::new([2, 0xff, a, b, c, d])
        });
        let shares = |mac: &Mac| key(domain, *mac).place(12) == key(domain, of).place(12) && *mac != of;
        candidates.into_iter().find(shares).unwrap()
    };
    let to = |mac| bench.run("switch-pod1", &raw(mac, one, 100), PLAIN);
    let (domain, target) = bench.lab.datapath(hook, "switch", move |datapath| {
        let domain = datapath.port(link).unwrap().domain;
        (domain, datapath.fdb(key(domain, two)).unwrap())
    });
    let twin = twin(domain, two);
    assert_eq!((to(two), to(twin)), (Action::Redirect, Action::Next));
    let (first, second) = (key(domain, two), key(domain, twin));
    bench.lab.datapath(hook, "switch", move |datapath| {
        datapath.set_fdb(second, &Target { mac: twin, ..target }).unwrap();
        assert_eq!(datapath.fdb(first), Some(target));
    });
    assert_eq!((to(two), to(twin)), (Action::Redirect, Action::Redirect));
    // The place is free then, and the other stays where it is found.
    bench.lab.datapath(hook, "switch", move |datapath| {
        datapath.remove_fdb(first).unwrap();
        datapath.set_fdb(second, &Target { mac: twin, ..target }).unwrap();
    });
    assert_eq!((to(two), to(twin)), (Action::Next, Action::Redirect));
    bench.lab.datapath(hook, "switch", move |datapath| {
        datapath.set_fdb(first, &target).unwrap();
        datapath.remove_fdb(second).unwrap();
        assert_eq!(datapath.fdb(second), None);
    });
    assert_eq!((to(two), to(twin)), (Action::Redirect, Action::Next));
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
const VERIFIER_LIMIT: u32 = 100_000;

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
