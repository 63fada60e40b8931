//! The same frames through a switch and through the same switch without our programs on its ports, which is a plain
//! Linux bridge: the same pods get the same frames, byte for byte, and their kernels take them for the same.
//!
//! What may differ is told by [`is_cut_short`], and nothing else is excused.
//!
//! `VETH_FUZZ_FRAMES=100000000 cargo xtask test net -- differential::` tries more by each hook, and `VETH_FUZZ_SEED` others. A
//! difference prints the frames that it is seen with alone. They belong into `differential.txt`, which always goes first.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::Ipv6Addr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rtnetlink::LinkMessageBuilder;
use serde_json::Value;
use veth_common::Mac;
use veth_tests::{
    Lab, for_each_hook,
    frame::{ETHERTYPE_EXPERIMENTAL, ETHERTYPE_QINQ, ETHERTYPE_VLAN, ethernet},
    generate::{Generator, Host},
    lab::{PATIENCE, eventually, pins, set_link, silence, with_netlink},
    packet::{Arrived, PacketSocket, Receiver},
    topology::Declared,
};
use veth_user::{
    datapath::{Hook, attach::attached, pins::remove_pin},
    net::Netns,
    watch::describe::addresses,
};

for_each_hook!(a_switch_does_what_a_bridge_does);

/// Frames by each hook.
const USUAL: usize = 100_000;

/// By the hook that is picked where there is TCX.
const USUAL_TCX: usize = 1_000_000;

const PODS: usize = 4;

/// The pod with a longer MTU, so that it sends what is too long for the others.
const LONG: usize = 0;

/// The MTU of that pod and of its host end.
const LONG_MTU: u32 = 3_000;

const MTU: usize = 1_500;

/// An Ethernet header.
const HEADER: usize = 14;

/// A `PPPoE` session.
const ETHERTYPE_PPPOE: u16 = 0x8864;

/// Frames of a batch, fewer than any queue on the way holds.
const BATCH: usize = 64;

/// How long a frame may take that one side has and the other has not yet.
const DELAY: Duration = Duration::from_secs(1);

/// How often a frame of a batch with a difference is sent alone.
const AGAIN: usize = 3;

/// Frames that once made a difference: a line each, the number of the pod that sends, the bytes, and how many zeros follow. A
/// comment says why.
const CORPUS: &str = include_str!("differential.txt");

/// One of the two switches.
struct Side {
    name: &'static str,
    senders: Vec<PacketSocket>,
    receivers: Vec<Receiver>,
}

/// The only difference that is meant to be: `br_netfilter`, where it is loaded, drops a frame whose second tag, or whose `PPPoE`
/// header, is not whole (`br_nf_pre_routing` looks so far before it looks whether it is wanted at all, and `br_netfilter` cannot
/// be taken out of a namespace). Without it a bridge forwards such a frame as it does any other, and so do we: what it carries is
/// nobody's business but the receiver's.
fn is_cut_short(frame: &[u8]) -> bool {
    let ethertype = |bytes: &[u8]| bytes.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
    let mut rest = &frame[12..];
    if matches!(ethertype(rest), Some(ETHERTYPE_VLAN | ETHERTYPE_QINQ)) && rest.len() >= 6 {
        rest = &rest[4..];
    }
    let needed = match ethertype(rest) {
        Some(ETHERTYPE_VLAN) => 4,
        Some(ETHERTYPE_PPPOE) => 8,
        _ => 0,
    };
    rest.len() < 2 + needed
}

/// What each pod got.
type Received = Vec<Vec<Arrived>>;

/// Both switches.
struct Rig {
    lab: Lab,
    sides: [Side; 2],
    markers: u64,
    /// Whether `br_netfilter` is loaded.
    has_br_netfilter: bool,
    /// The counters of the switch whose ports have no program any more.
    before: Value,
}

const FAST: &str = "fast";
const SLOW: &str = "slow";

/// The address of a pod, on both sides.
fn mac(pod: usize) -> Mac {
    Mac::new([2, 0xfc, 0, 0, 0, u8::try_from(pod + 1).unwrap()])
}

/// The address of a pod's host end, and of the bridge.
fn host_mac(pod: usize) -> Mac {
    Mac::new([2, 0xfc, 0, 0, 1, u8::try_from(pod + 1).unwrap()])
}

const BRIDGE: Mac = Mac::new([2, 0xfc, 0, 0, 2, 1]);

fn a_switch_does_what_a_bridge_does(hook: Hook) {
    let usual = if hook == Hook::Tcx { USUAL_TCX } else { USUAL };
    let frames = std::env::var("VETH_FUZZ_FRAMES").map_or(usual, |text| text.parse().unwrap());
    let seed: u64 = std::env::var("VETH_FUZZ_SEED").map_or(1, |text| text.parse().unwrap());
    let mut rig = Rig::up(hook);
    for (from, frame) in corpus() {
        rig.compare(from, &[frame], "a frame of differential.txt");
    }
    let hosts = (0..PODS).map(|pod| Host {
        mac: mac(pod),
        v4: [10, 1, 0, u8::try_from(pod + 1).unwrap()].into(),
        v6: Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, u16::try_from(pod + 1).unwrap()),
    });
    let others = (0..PODS).map(host_mac).chain([BRIDGE]).collect();
    let mut generator = Generator::new(seed, hosts.collect(), others);
    let (mut sent, start) = (0, Instant::now());
    while sent < frames {
        let from = generator.below(PODS);
        let longest = HEADER + if from == LONG { usize::try_from(LONG_MTU).unwrap() } else { MTU };
        let batch: Vec<_> = (0..BATCH).map(|_| generator.frame(from, longest)).collect();
        rig.compare(from, &batch, &format!("VETH_FUZZ_SEED={seed}, after {sent} frames"));
        sent += batch.len();
    }
    println!("{hook}: {sent} frames on each side in {} s", start.elapsed().as_secs());
    rig.finish(hook);
}

/// The frames of the corpus, each with the pod that sends it.
fn corpus() -> Vec<(usize, Vec<u8>)> {
    let lines = CORPUS.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let parse = |line: &str| {
        let (from, rest) = line.split_once(' ').unwrap();
        let (hex, zeros) = rest.split_once('+').unwrap_or((rest, "0"));
        let byte = |place: usize| u8::from_str_radix(&hex[place..place + 2], 16).unwrap();
        let mut frame: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        frame.resize(frame.len() + zeros.parse::<usize>().unwrap(), 0);
        (from.parse().unwrap(), frame)
    };
    let frames: Vec<_> = lines.map(parse).collect();
    assert!(!frames.is_empty());
    frames
}

impl Rig {
    fn up(hook: Hook) -> Self {
        let lab = Lab::new();
        // A new namespace begins with 1 where `br_netfilter` is loaded, and drops what is no whole packet.
        let has_br_netfilter = lab.run(|| {
            let folder = Path::new("/proc/sys/net/bridge");
            for family in ["ip", "ip6", "arp"].into_iter().filter(|_| folder.exists()) {
                fs::write(folder.join(format!("bridge-nf-call-{family}tables")), "0").unwrap();
            }
            folder.exists()
        });
        let sides = [FAST, SLOW].map(|name| Side::up(&lab, hook, name));
        for pod in 1..=PODS {
            detach(&lab, hook, &format!("{SLOW}-pod{pod}"));
        }
        let before = lab.quiet_stats(SLOW);
        Self { lab, sides, markers: 0, has_br_netfilter, before }
    }

    /// Sends frames on both sides and compares what arrives.
    fn compare(&mut self, from: usize, frames: &[Vec<u8>], what: &str) {
        let Some(difference) = self.difference(from, frames) else { return };
        let mut report = format!("{what}, from pod {from}\n{difference}\n");
        let mut found = false;
        for frame in frames {
            let alone: Vec<_> =
                (0..AGAIN).filter_map(|_| self.difference(from, std::slice::from_ref(frame))).collect();
            if let Some(difference) = alone.first() {
                found = true;
                let hex = hex(frame);
                let read = addresses(frame);
                writeln!(report, "{} of {AGAIN} times alone: {read:?}", alone.len()).unwrap();
                writeln!(report, "{difference}{from} {hex}\n").unwrap();
            }
        }
        if !found {
            report.push_str("No frame differs alone.\n");
        }
        panic!("{report}");
    }

    /// What one side received and the other did not, if anything.
    fn difference(&mut self, from: usize, frames: &[Vec<u8>]) -> Option<String> {
        self.markers += 1;
        let payload = [&b"the end of batch "[..], &self.markers.to_be_bytes(), &[0; 30]].concat();
        let marker = ethernet(Mac::new([0xff; 6]), mac(from), ETHERTYPE_EXPERIMENTAL, &payload);
        let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        for side in &self.sides {
            side.senders[from].send_all(&frames);
            side.senders[from].send(&marker);
        }
        let mut received = [(); 2].map(|()| vec![Vec::new(); PODS]);
        let mut ended = [[false; PODS]; 2];
        for pods in &mut ended {
            pods[from] = true;
        }
        let start = Instant::now();
        loop {
            for ((side, received), ended) in self.sides.iter_mut().zip(&mut received).zip(&mut ended) {
                side.take(&marker, received, ended);
            }
            let elapsed = start.elapsed();
            if ended == [[true; PODS]; 2] {
                if self.has_br_netfilter {
                    received[0]
                        .iter_mut()
                        .for_each(|pod| pod.retain(|arrived| !is_cut_short(&arrived.bytes)));
                }
                received.iter_mut().flatten().for_each(|pod| pod.sort_unstable());
                // What XDP redirects waits for the end of a round that the marker does not wait for.
                if received[0] == received[1] {
                    return None;
                }
                if elapsed > DELAY {
                    let lost = self.sides.iter().flat_map(|side| &side.receivers).map(Receiver::lost);
                    assert_eq!(lost.sum::<u32>(), 0, "the test was too slow");
                    return Some(describe(&received));
                }
            }
            assert!(elapsed < PATIENCE, "the end of a batch does not arrive: {ended:?}");
            thread::sleep(Duration::from_micros(20));
        }
    }

    /// The comparison is worth something: one side is ours, and the other is the bridge's alone.
    fn finish(self, hook: Hook) {
        let Self { lab, sides, markers, has_br_netfilter: _, before } = self;
        assert!(markers > 0);
        for side in sides {
            let lost = side.receivers.iter().map(Receiver::lost).sum::<u32>();
            assert_eq!(lost, 0, "{hook} {}: the test was too slow", side.name);
        }
        let after = lab.stats(SLOW);
        for (before, after) in ports(&before).zip(ports(&after)) {
            assert_eq!(before["rx"], after["rx"], "{hook}: a program is still there: {after}");
        }
        for port in ports(&lab.stats(FAST)) {
            let packets = |verdict: &str| port[verdict]["packets"].as_u64().unwrap();
            assert!(packets("redirected") > 0 && packets("passed") > 0, "{hook}: {port}");
        }
    }
}

/// The ports of pods, without the bridge.
fn ports(stats: &Value) -> impl Iterator<Item = &Value> {
    stats["ports"].as_array().unwrap().iter().filter(|port| !port["pod"].is_null())
}

/// Takes our program off a link, and waits until it is: the kernel does that after the call.
fn detach(lab: &Lab, hook: Hook, link: &str) {
    let pin = pins(SLOW).join(format!("link_{link}"));
    lab.run(move || remove_pin(&pin).unwrap());
    if hook == Hook::Clsact {
        lab.remove_filters(link);
    }
    eventually("the program is gone", || {
        let link = lab.link(link);
        lab.run(move || with_netlink(async |netlink| attached(netlink, &link).await.unwrap().is_empty()))
    });
}

impl Side {
    fn up(lab: &Lab, hook: Hook, name: &'static str) -> Self {
        let mut text =
            format!("name = \"{name}\"\n[switch.switch]\nsubnet = \"10.1.0.0/24\"\npods = {PODS}\n");
        for pod in 0..PODS {
            writeln!(text, "[pod.pod{}.port.switch]\nmac = \"{}\"", pod + 1, mac(pod)).unwrap();
        }
        let file = Declared::new(&text);
        lab.ok(&[&file.args("up")[..], &["--hook", hook.name()]].concat());
        let pods: Vec<Netns> = (1..=PODS).map(|pod| lab.pod(&format!("{name}-pod{pod}"))).collect();
        for (number, pod) in pods.iter().enumerate() {
            silence(pod);
            let mtu = if number == LONG { LONG_MTU } else { u32::try_from(MTU).unwrap() };
            let link = format!("{name}-pod{}", number + 1);
            lab.run(move || {
                let own = host_mac(number).bytes().to_vec();
                set_link(&link, |message| message.mtu(mtu).address(own));
            });
            pod.run(|| {
                set_link("eth0", |message: LinkMessageBuilder<_>| message.mtu(mtu));
                forget_addresses();
            })
            .unwrap();
        }
        lab.run(move || set_link(&format!("br-{name}"), |message| message.address(BRIDGE.bytes().to_vec())));
        let senders = pods.iter().map(|pod| PacketSocket::sender(pod, "eth0")).collect();
        let receivers = pods.iter().map(|pod| Receiver::open(pod, "eth0")).collect();
        Self { name, senders, receivers }
    }

    /// Takes what has arrived, and notes where the marker has.
    fn take(&mut self, marker: &[u8], received: &mut [Vec<Arrived>], ended: &mut [bool; PODS]) {
        for ((receiver, received), ended) in self.receivers.iter_mut().zip(received).zip(ended) {
            receiver.take(|arrived| {
                if arrived.bytes == marker {
                    *ended = true;
                } else {
                    received.push(arrived);
                }
            });
        }
    }
}

/// Takes the addresses of a pod away, in the pod: who has none does not answer.
fn forget_addresses() {
    with_netlink(async |netlink| {
        let index = netlink.link("eth0").await.unwrap().index;
        for address in netlink.addresses(index).await.unwrap() {
            netlink.remove_address(index, address).await.unwrap();
        }
    });
}

/// What only one side received: how often more, by which pod, taken for whom, and the frame.
fn describe(received: &[Received; 2]) -> String {
    let mut counts: BTreeMap<(usize, &Arrived), i32> = BTreeMap::new();
    for (received, sign) in received.iter().zip([1, -1]) {
        for (pod, frames) in received.iter().enumerate() {
            for arrived in frames {
                *counts.entry((pod, arrived)).or_default() += sign;
            }
        }
    }
    let mut text = String::new();
    for ((pod, Arrived { cast, bytes }), count) in counts.into_iter().filter(|(_, count)| *count != 0) {
        let who = if count > 0 { FAST } else { SLOW };
        let (count, hex) = (count.abs(), hex(bytes));
        writeln!(text, "pod {pod} has {count} more of {who}, of packet type {cast}: {hex}").unwrap();
    }
    text
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}
