//! Mixed frames over a switch: every counter equals the account of whoever made them, and the kernel's, to the packet.
//! `VETH_FRAMES=2500000 cargo xtask test net -- exact::` sends more by each hook.

use std::collections::BTreeMap;

use serde_json::Value;
use veth_common::{Mac, SIZE_ENDS};
use veth_tests::{
    Lab, Random, for_each_hook,
    frame::{
        ETHERTYPE_ARP, ETHERTYPE_EXPERIMENTAL, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, ethernet,
        ipv4_header, ipv6, tagged,
    },
    lab::{pod_link_stats, silence},
    packet::PacketSocket,
};
use veth_user::{datapath::Hook, net::Netns};

for_each_hook!(mixed_frames_equal_the_generators_account);

/// How many frames go by each hook.
const USUAL: u64 = 250_000;

const PODS: usize = 16;

/// Frames of a pod that are made once and sent again and again.
const POOL: usize = 512;

/// Frames that go by one call, fewer than any queue on the way holds.
const BATCH: usize = 32;

/// A frame, and what it must be counted as.
struct Made {
    bytes: Vec<u8>,
    /// Without a tag, which no counter includes.
    length: u64,
    protocol: &'static str,
    cast: &'static str,
    /// The pod that it is for, if it is for one that the switch knows and that did not send it.
    target: Option<usize>,
    /// Why it is not redirected otherwise.
    reason: &'static str,
    /// Whether the bridge hands it to every other pod.
    is_flooded: bool,
    /// Whether it comes up from the bridge, into the host.
    is_for_host: bool,
}

/// What counters must have grown by.
#[derive(Debug, Default)]
struct Account {
    sent: u64,
    sent_bytes: u64,
    redirected: u64,
    redirected_bytes: u64,
    received: u64,
    received_bytes: u64,
    flooded: u64,
    flooded_bytes: u64,
    protocols: BTreeMap<&'static str, u64>,
    casts: BTreeMap<&'static str, u64>,
    reasons: BTreeMap<&'static str, u64>,
    sizes: [u64; SIZE_ENDS.len() + 1],
}

fn mixed_frames_equal_the_generators_account(hook: Hook) {
    let frames = std::env::var("VETH_FRAMES").map_or(USUAL, |text| text.parse().unwrap());
    let lab = Lab::new();
    let kernel_counts = hook.is_xdp() || lab.redirect_peer().counts;
    lab.up(hook, &["--pods", &PODS.to_string()]);
    let pods: Vec<Netns> = (1..=PODS).map(|pod| lab.pod(&format!("switch-pod{pod}"))).collect();
    pods.iter().for_each(silence);
    let macs: Vec<Mac> = pods.iter().map(veth_tests::pair::mac).collect();
    let sockets: Vec<PacketSocket> = pods.iter().map(|pod| PacketSocket::sender(pod, "eth0")).collect();
    let mut random = Random::new(7);
    let pools: Vec<Vec<Made>> =
        (0..PODS).map(|from| (0..POOL).map(|_| make(&mut random, from, &macs)).collect()).collect();

    let before = lab.quiet_stats("switch");
    let kernel_before: Vec<_> = pods.iter().map(|pod| pod_link_stats(pod, "eth0")).collect();
    let mut accounts: Vec<Account> = (0..PODS).map(|_| Account::default()).collect();
    let mut for_host = 0;
    for _ in 0..frames.div_ceil(u64::try_from(BATCH).unwrap()) {
        let from = random.below(PODS);
        let start = random.below(POOL - BATCH);
        let batch = &pools[from][start..start + BATCH];
        let bytes: Vec<&[u8]> = batch.iter().map(|made| made.bytes.as_slice()).collect();
        sockets[from].send_all(&bytes);
        for made in batch {
            accounts[from].add_sent(made);
            if let Some(target) = made.target {
                accounts[target].received += 1;
                accounts[target].received_bytes += made.length;
            }
            for_host += u64::from(made.is_for_host);
        }
    }
    let after = lab.quiet_stats("switch");
    let flooded: u64 = accounts.iter().map(|account| account.flooded).sum();
    let flooded_bytes: u64 = accounts.iter().map(|account| account.flooded_bytes).sum();

    for (number, account) in accounts.iter().enumerate() {
        assert!(account.flooded > 0, "every pod sends some to all");
        let port = |stats: &Value| stats["ports"][number].clone();
        let (old, new) = (port(&before), port(&after));
        let grown = |path: &str| {
            let read = |port: &Value| port.pointer(path).and_then(Value::as_u64).unwrap_or_default();
            read(&new) - read(&old)
        };
        let name = &new["pod"];
        assert_eq!(grown("/rx/packets"), account.sent, "{hook} {name}");
        assert_eq!(grown("/rx/bytes"), account.sent_bytes, "{hook} {name}");
        assert_eq!(grown("/redirected/packets"), account.redirected, "{hook} {name}");
        assert_eq!(grown("/redirected/bytes"), account.redirected_bytes, "{hook} {name}");
        assert_eq!(grown("/passed/packets"), account.sent - account.redirected, "{hook} {name}");
        for (protocol, packets) in &account.protocols {
            let counted = ["redirected", "passed"]
                .map(|verdict| grown(&format!("/protocols/{protocol}/{verdict}/packets")));
            assert_eq!(counted.iter().sum::<u64>(), *packets, "{hook} {name} {protocol}");
        }
        for (cast, packets) in &account.casts {
            assert_eq!(grown(&format!("/casts/{cast}")), *packets, "{hook} {name} {cast}");
        }
        for (reason, packets) in &account.reasons {
            assert_eq!(grown(&format!("/passed_for/{reason}")), *packets, "{hook} {name} {reason}");
        }
        for (size, packets) in account.sizes.iter().enumerate() {
            assert_eq!(grown(&format!("/sizes/{size}/packets")), *packets, "{hook} {name} size {size}");
        }
        let cpus: u64 = (0..new["cpus"].as_array().unwrap().len())
            .map(|cpu| grown(&format!("/cpus/{cpu}/packets")))
            .sum();
        assert_eq!(cpus, account.sent, "{hook} {name}");

        // What is flooded comes to everybody but who sent it. A full receive ring may have refused what XDP sent.
        let refused = grown("/xdp_xmit_errors");
        let received = account.received + flooded - account.flooded;
        let received_bytes = account.received_bytes + flooded_bytes - account.flooded_bytes;
        assert_eq!(grown("/tx/packets") + refused, received, "{hook} {name}");
        // By XDP, the link counts a tag (docs/counters.md).
        if !hook.is_xdp() {
            assert_eq!(grown("/tx/bytes"), received_bytes, "{hook} {name}");
        }
        let (old, new) = (&kernel_before[number], pod_link_stats(&pods[number], "eth0"));
        assert_eq!(new.tx_packets - old.tx_packets, account.sent, "{hook} {name}: the kernel's own");
        if kernel_counts {
            assert_eq!(
                new.rx_packets - old.rx_packets + refused,
                received,
                "{hook} {name}: the kernel's own"
            );
        }
    }
    let bridge = |stats: &Value| {
        let port = stats["ports"].as_array().unwrap().iter().find(|port| port["pod"].is_null()).unwrap();
        port["dropped"]["no_gateway"]["packets"].as_u64().unwrap()
    };
    assert_eq!(bridge(&after) - bridge(&before), for_host, "{hook}: what came up from the bridge");
    assert_eq!(before["unattributed"], after["unattributed"], "{hook}");
}

impl Account {
    fn add_sent(&mut self, made: &Made) {
        self.sent += 1;
        self.sent_bytes += made.length;
        *self.protocols.entry(made.protocol).or_default() += 1;
        *self.casts.entry(made.cast).or_default() += 1;
        let size = SIZE_ENDS.iter().filter(|end| made.length > u64::from(**end)).count();
        self.sizes[size] += 1;
        if made.target.is_some() {
            self.redirected += 1;
            self.redirected_bytes += made.length;
        } else {
            *self.reasons.entry(made.reason).or_default() += 1;
        }
        if made.is_flooded {
            self.flooded += 1;
            self.flooded_bytes += made.length;
        }
    }
}

/// A frame that some pod sends, as it comes.
fn make(random: &mut Random, from: usize, macs: &[Mac]) -> Made {
    let other = (from + 1 + random.below(PODS - 1)) % PODS;
    let one = |target, reason, is_flooded| ("unicast", target, reason, is_flooded, false);
    let (destination, (cast, target, reason, is_flooded, is_for_host)) = match random.below(32) {
        0 => (Mac::new([0xff; 6]), ("broadcast", None, "group", true, true)),
        1 => (Mac::new([0x33, 0x33, 0, 0, 0, 9]), ("multicast", None, "group", true, true)),
        2 => (Mac::new([2, 0xee, 0xee, 0, 0, 1]), one(None, "unknown_destination", true)),
        3 => (macs[from], one(None, "same_port", false)),
        4 => (macs[other], one(None, "invalid_source", false)),
        _ => (macs[other], one(Some(other), "", false)),
    };
    let source = if reason == "invalid_source" { Mac::new([0; 6]) } else { macs[from] };
    let mut payload = vec![0; 46 + random.below(1_455)];
    let protocols = [
        (ETHERTYPE_ARP, 0, "arp"),
        (ETHERTYPE_IPV4, 6, "ipv4_tcp"),
        (ETHERTYPE_IPV4, 17, "ipv4_udp"),
        (ETHERTYPE_IPV4, 1, "ipv4_icmp"),
        (ETHERTYPE_IPV4, 47, "ipv4_other"),
        (ETHERTYPE_IPV6, 6, "ipv6_tcp"),
        (ETHERTYPE_IPV6, 17, "ipv6_udp"),
        (ETHERTYPE_IPV6, 58, "ipv6_icmp"),
        (ETHERTYPE_IPV6, 59, "ipv6_other"),
        (ETHERTYPE_EXPERIMENTAL, 0, "other"),
        (ETHERTYPE_VLAN, 0, "other"),
    ];
    let (ethertype, next, protocol) = protocols[random.below(protocols.len())];
    // For nobody, so that nobody answers, but whole: bridge netfilter drops what is not.
    if ethertype == ETHERTYPE_IPV4 {
        let header = ipv4_header([192, 0, 2, 1].into(), [192, 0, 2, 2].into(), next, payload.len());
        payload[..header.len()].copy_from_slice(&header);
    } else if ethertype == ETHERTYPE_IPV6 {
        let whole =
            ipv6("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap(), next, &payload[40..]);
        payload.copy_from_slice(&whole);
    }
    let (bytes, tag) = if ethertype == ETHERTYPE_VLAN {
        (ethernet(destination, source, ethertype, &tagged(5, ETHERTYPE_IPV4, &payload)), 4)
    } else {
        (ethernet(destination, source, ethertype, &payload), 0)
    };
    let length = u64::try_from(bytes.len() - tag).unwrap();
    Made { bytes, length, protocol, cast, target, reason, is_flooded, is_for_host }
}
