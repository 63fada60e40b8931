//! A pod that sends as much as it can: everything is counted all the same, the others still reach each other, and an agent
//! still follows.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use rtnetlink::LinkMessageBuilder;
use serde_json::Value;
use veth_common::Mac;
use veth_tests::{
    Lab, for_each_hook,
    frame::{ETHERTYPE_EXPERIMENTAL, ethernet},
    lab::{pod_link_stats, set_link, silence},
    packet::PacketSocket,
    pair,
    soak::kernel::softnet_drops,
    traffic::{End, udp},
};
use veth_user::{datapath::Hook, net::Netns};

for_each_hook!(a_flood_is_counted_and_drowns_nobody);

/// Who floods at the same time.
const THREADS: usize = 3;

/// Frames that go by one call.
const BATCH: usize = 64;

/// Datagrams that the others exchange meanwhile, each answered before the next.
const DATAGRAMS: usize = 300;

/// How often somebody looks meanwhile.
const LOOKS: usize = 10;

fn packets(stats: &Value, port: usize, path: &str) -> u64 {
    stats["ports"][port].pointer(path).unwrap_or_else(|| panic!("no {path} in {stats}")).as_u64().unwrap()
}

fn a_flood_is_counted_and_drowns_nobody(hook: Hook) {
    let lab = Lab::alone();
    lab.up(hook, &["--pods", "5"]);
    let pods: Vec<Netns> = (1..=4).map(|pod| lab.pod(&format!("switch-pod{pod}"))).collect();
    // They speak IPv4 only: nothing comes of them by itself between a look at our counters and one at the kernel's.
    pods.iter().for_each(silence);
    let [from, known] = [0, 1].map(|pod| pair::mac(&pods[pod]));
    let unknown = Mac::new([2, 0xee, 0, 0, 0, 1]);
    // The fast path, the bridge, and everybody.
    let frames = [known, unknown, Mac::new([0xff; 6])]
        .map(|to| ethernet(to, from, ETHERTYPE_EXPERIMENTAL, &[0xf1; 46]));
    let mut agent = lab.start(&["agent"], &[]);
    agent.wait_for("following");
    let before = lab.quiet_stats("switch");
    let kernel_before: Vec<_> = pods.iter().map(|pod| pod_link_stats(pod, "eth0")).collect();
    let backlog_before = softnet_drops();

    let is_over = AtomicBool::new(false);
    let (sent, lost) = thread::scope(|scope| {
        let flood = || {
            let socket = PacketSocket::sender(&pods[0], "eth0");
            // Mostly what goes fast.
            let batch: Vec<&[u8]> =
                (0..BATCH).map(|number| frames[if number < 2 { number + 1 } else { 0 }].as_slice()).collect();
            let mut batches = 0;
            while !is_over.load(Ordering::Relaxed) {
                socket.flood(&batch);
                batches += 1;
            }
            batches
        };
        let flooders: Vec<_> = (0..THREADS).map(|_| scope.spawn(flood)).collect();
        let others = scope.spawn(|| udp(&pods[2], &pods[3], "10.200.0.4".parse().unwrap(), 200, DATAGRAMS));
        // Also where something below fails.
        let end = End(&is_over);
        let mut seen = 0;
        for look in 0..LOOKS {
            let now = packets(&lab.stats("switch"), 0, "/rx/packets");
            assert!(now > seen, "{hook}: nothing was counted before look {look}");
            seen = now;
        }
        lab.run(|| set_link("switch-pod5", LinkMessageBuilder::down));
        agent.wait_for("pod5/eth0: left to the slow path");
        let lost = others.join().unwrap();
        drop(end);
        let batches: usize = flooders.into_iter().map(|flooder| flooder.join().unwrap()).sum();
        (u64::try_from(batches * BATCH).unwrap(), u64::try_from(lost).unwrap())
    });

    let after = lab.quiet_stats("switch");
    let kernel: Vec<_> = pods.iter().map(|pod| pod_link_stats(pod, "eth0")).collect();
    let grown = |port: usize, path: &str| packets(&after, port, path) - packets(&before, port, path);
    let batch = u64::try_from(BATCH).unwrap();
    let (batches, per_batch) = (sent / batch, batch - 2);
    let dropped = |pod: usize| kernel[pod].tx_dropped - kernel_before[pod].tx_dropped;
    // What the kernel had no room for before anybody of us saw it is in its own counter.
    assert_eq!(grown(0, "/rx/packets") + dropped(0), sent, "{hook}");
    assert_eq!(
        grown(0, "/rx/packets"),
        grown(0, "/redirected/packets") + grown(0, "/passed/packets"),
        "{hook}"
    );
    if dropped(0) == 0 {
        assert_eq!(grown(0, "/redirected/packets"), batches * per_batch, "{hook}");
        assert_eq!(grown(0, "/passed_for/group"), batches, "{hook}");
        assert_eq!(grown(0, "/passed_for/unknown_destination"), batches, "{hook}");
    }
    for pod in 0..pods.len() {
        let sent = kernel[pod].tx_packets - kernel_before[pod].tx_packets;
        assert_eq!(grown(pod, "/rx/packets"), sent, "{hook}: pod{}, by the kernel's count", pod + 1);
    }
    // Every datagram and every answer, but for those that the kernel itself had no room for: where a pod sends, in a backlog, or
    // where it receives.
    let refused: u64 = [2, 3]
        .map(|pod| {
            let by_xdp = if hook.is_xdp() { grown(pod, "/xdp_xmit_errors") } else { 0 };
            dropped(pod) + grown(pod, "/kernel/tx_dropped") + by_xdp
        })
        .iter()
        .sum();
    let refused = refused + (softnet_drops() - backlog_before);
    assert!(lost <= refused, "{hook}: {lost} of {DATAGRAMS} lost, and {refused} refused by the kernel");
}
