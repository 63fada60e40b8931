//! Counters equal what was sent, and the kernel's own, to the packet.

use std::sync::atomic::{AtomicBool, Ordering};

use veth_tests::{
    Lab, Pair, for_each_hook,
    frame::{ETHERTYPE_EXPERIMENTAL, ethernet},
    lab::{pins, pod_link_stats, silence},
    topology::Declared,
    traffic::{End, bind, udp},
};

use veth_user::datapath::Hook;

const FRAMES: u64 = 10_000;

for_each_hook!(
    equal_to_what_was_sent_and_to_the_kernels,
    conserved_in_every_snapshot_under_load,
    on_paths_that_only_the_kernel_serves,
);

fn equal_to_what_was_sent_and_to_the_kernels(hook: Hook) {
    for (topology, args, pods) in [
        ("wire", &[][..], ["ns1", "ns2"]),
        ("switch", &["--pods", "2"], ["switch-pod1", "switch-pod2"]),
        ("h", &["--name", "h", "--redirect", "host"], ["h-ns1", "h-ns2"]),
        ("s", &["--name", "s", "--pods", "2", "--redirect", "host"], ["s-pod1", "s-pod2"]),
    ] {
        let host_redirect = args.contains(&"host");
        if host_redirect && hook.is_xdp() {
            continue;
        }
        let lab = Lab::new();
        let by_host_end = host_redirect || hook.is_xdp();
        // Trap A3: some kernels do not count peer redirects on the pod's link.
        let kernel_counts = by_host_end || lab.redirect_peer().counts;
        let Pair { one, two, a, b, out, .. } = Pair::up(&lab, hook, args, pods);
        silence(&one);
        silence(&two);
        let before = lab.quiet_stats(topology);
        let (sent_before, received_before) = (pod_link_stats(&one, "eth0"), pod_link_stats(&two, "eth0"));
        let mut bytes = 0;
        for number in 0..FRAMES {
            let length = usize::try_from(number % 1_487 + 14).unwrap();
            out.send(&ethernet(b, a, ETHERTYPE_EXPERIMENTAL, &vec![0; length]));
            bytes += u64::try_from(length + 14).unwrap();
        }
        let after = lab.quiet_stats(topology);
        let grown = |port: usize, path: &str| {
            let read =
                |stats: &serde_json::Value| stats["ports"][port].pointer(path).unwrap().as_u64().unwrap();
            read(&after) - read(&before)
        };
        for (counter, expected) in [("packets", FRAMES), ("bytes", bytes), ("segments", FRAMES)] {
            assert_eq!(grown(0, &format!("/rx/{counter}")), expected, "{topology} rx {counter}");
            assert_eq!(
                grown(0, &format!("/redirected/{counter}")),
                expected,
                "{topology} redirected {counter}"
            );
            assert_eq!(grown(1, &format!("/tx/{counter}")), expected, "{topology} tx {counter}");
            assert_eq!(grown(1, &format!("/rx/{counter}")), 0, "{topology} rx of the receiver");
        }
        let (sent, received) = (pod_link_stats(&one, "eth0"), pod_link_stats(&two, "eth0"));
        assert_eq!(sent.tx_packets - sent_before.tx_packets, FRAMES, "{topology}");
        // What native XDP receives is counted at both ends of the pair without its Ethernet header.
        let header = if hook == Hook::Xdp { 14 * FRAMES } else { 0 };
        assert_eq!(sent.tx_bytes - sent_before.tx_bytes + header, bytes, "{topology}");
        let arrived =
            (received.rx_packets - received_before.rx_packets, received.rx_bytes - received_before.rx_bytes);
        assert_eq!(arrived, if kernel_counts { (FRAMES, bytes) } else { (0, 0) }, "{topology}");
        assert_eq!(grown(0, "/kernel/rx_packets"), FRAMES, "{topology}");
        // redirect_peer goes past the host end; redirect goes through it.
        let through = if by_host_end { FRAMES } else { 0 };
        assert_eq!(grown(1, "/kernel/tx_packets"), through, "{topology}");
    }
}

fn conserved_in_every_snapshot_under_load(hook: Hook) {
    let lab = Lab::new();
    let Pair { a, b, out, .. } = Pair::wire(&lab, hook);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _end = End(&done);
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                out.send(&ethernet(b, a, ETHERTYPE_EXPERIMENTAL, &[0; 100]));
            }
        });
        let mut last = 0;
        for _ in 0..30 {
            let stats = lab.stats("wire");
            for port in stats["ports"].as_array().unwrap() {
                let of = |value: &serde_json::Value| value["packets"].as_u64().unwrap();
                let dropped: u64 = port["dropped"].as_object().unwrap().values().map(of).sum();
                assert_eq!(of(&port["rx"]), of(&port["redirected"]) + of(&port["passed"]) + dropped);
            }
            let now = stats["ports"][0]["rx"]["packets"].as_u64().unwrap();
            assert!(now >= last, "counters never go back");
            last = now;
        }
    });
}

fn on_paths_that_only_the_kernel_serves(hook: Hook) {
    const ROUNDS: usize = 1_000;
    let path = |kind: &str, more: &str| {
        format!(
            "name = \"{kind}\"\nhook = \"{hook}\"\n\n[{kind}.p]\nsubnet = \"10.1.0.0/24\"\npods = [\"a\", \"b\"]\n{more}"
        )
    };
    for (kind, own) in [("direct", "neighbours = true\n"), ("bridge", "neighbours = true\n"), ("route", "")] {
        let lab = Lab::new();
        let file = Declared::new(&path(kind, own));
        lab.ok(&file.args("up"));
        assert_eq!(
            lab.stats(kind)["ports"].as_array().unwrap().iter().filter(|p| p["pod"] == "a").count(),
            0
        );
        file.write(&path(kind, &format!("{own}counters = true\n")));
        lab.ok(&file.args("up"));
        assert!(lab.ok(&file.args("plan")).contains("nothing to do"), "{kind}");
        // Off and on again.
        for text in [path(kind, own), path(kind, &format!("{own}counters = true\n"))] {
            file.write(&text);
            lab.ok(&file.args("up"));
        }
        let [a, b] = ["a", "b"].map(|pod| lab.pod(&format!("{kind}-{pod}")));
        silence(&a);
        silence(&b);
        let ports = |stats: &serde_json::Value| -> Vec<serde_json::Value> {
            let ports = stats["ports"].as_array().unwrap().iter();
            ports.filter(|port| port["pod"].is_string()).cloned().collect()
        };
        let address = "10.1.0.2".parse().unwrap();
        // The first may bring what is said once.
        assert_eq!(udp(&a, &b, address, 100, 10), 0, "{kind}");
        let before = ports(&lab.quiet_stats(kind));
        let kernel_before = pod_link_stats(&a, "eth0");
        assert_eq!(udp(&a, &b, address, 100, ROUNDS), 0, "{kind}");
        let after = ports(&lab.quiet_stats(kind));
        let kernel = pod_link_stats(&a, "eth0");
        assert_eq!(after.len(), 2, "{kind}");
        let rounds = u64::try_from(ROUNDS).unwrap();
        for port in 0..2 {
            let grown = |path: &str| {
                let read = |ports: &[serde_json::Value]| ports[port].pointer(path).unwrap().as_u64().unwrap();
                read(&after) - read(&before)
            };
            for counter in ["/rx", "/tx", "/passed"] {
                assert_eq!(grown(&format!("{counter}/packets")), rounds, "{kind} {port} {counter}");
                assert_eq!(grown(&format!("{counter}/bytes")), 142 * rounds, "{kind} {port} {counter}");
            }
            assert_eq!(grown("/redirected/packets"), 0, "{kind} {port}");
        }
        assert_eq!(kernel.tx_packets - kernel_before.tx_packets, rounds, "{kind}");

        // One way only: who sent is told from who received.
        let (sender, receiver) = (bind(&a, "0.0.0.0".parse().unwrap()), bind(&b, address));
        for _ in 0..7 {
            sender.send_to(&[0; 100], receiver.local_addr().unwrap()).unwrap();
            receiver.recv(&mut [0; 200]).unwrap();
        }
        let later = ports(&lab.quiet_stats(kind));
        let grown = |port: usize, path: &str| {
            let read = |ports: &[serde_json::Value]| ports[port].pointer(path).unwrap().as_u64().unwrap();
            read(&later) - read(&after)
        };
        let packets = |port| (grown(port, "/rx/packets"), grown(port, "/tx/packets"));
        assert_eq!((packets(0), packets(1)), ((7, 0), (0, 7)), "{kind}");

        // What counts at a pod's end goes with its pin, and is put back.
        if kind == "direct" && hook == Hook::Tcx {
            let pin = pins("direct").join("link_b:eth0");
            lab.run(move || std::fs::remove_file(pin).unwrap());
            assert!(lab.ok(&["ls", "direct"]).contains("link_b:eth0 is gone"));
            lab.ok(&file.args("up"));
            assert!(lab.ok(&file.args("plan")).contains("nothing to do"), "{kind}");
            let before = ports(&lab.quiet_stats(kind));
            assert_eq!(udp(&a, &b, address, 100, 10), 0, "{kind}");
            let after = ports(&lab.quiet_stats(kind));
            let tx = |ports: &[serde_json::Value]| ports[1]["tx"]["packets"].as_u64().unwrap();
            assert_eq!(tx(&after) - tx(&before), 10);
        }
    }
}
