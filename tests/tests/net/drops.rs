//! `veth drops`: who dropped what, where and why, with the pod that it concerns.

use std::{
    net::UdpSocket,
    process::Command,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;
use socket2::SockRef;
use veth_common::Mac;
use veth_tests::{
    Lab, Pair, Running,
    frame::{self, ETHERTYPE_EXPERIMENTAL, ETHERTYPE_IPV4, ethernet},
    lab::{delete_link, set_link, silence},
    need,
    topology::Declared,
};

const LAN: &str =
    "name = \"lab\"\n\n[switch.lan]\nsubnet = \"10.1.0.0/24\"\npods = [\"a\", \"b\"]\nspoof_check = true\n";

/// How often a table comes.
const EVERY: Duration = Duration::from_millis(300);

/// Starts to look, and waits until it has once: it counts from before that on.
fn start(lab: &Lab, args: &[&str]) -> Running {
    let mut running = lab.start(args, &[]);
    running.wait_for("\n");
    running
}

/// Ends it with a table that it has begun now, and returns that. Those that nobody has read wait before.
fn last(mut running: Running) -> Vec<Value> {
    let start = Instant::now();
    let mut line = String::new();
    while start.elapsed() < 3 * EVERY {
        line = running.wait_for("\n");
    }
    running.signal(Signal::SIGINT);
    assert!(running.finish().status.success());
    serde_json::from_str(line.trim()).unwrap()
}

/// How many packets there are of a kind.
fn count(dropped: &[Value], wanted: &[(&str, &str)]) -> u64 {
    let is_it = |line: &&Value| wanted.iter().all(|(key, value)| line[key].as_str().unwrap_or("-") == *value);
    dropped.iter().filter(is_it).map(|line| line["packets"].as_u64().unwrap()).sum()
}

#[test]
fn the_kernels_drops_have_a_reason_and_a_pod() {
    if !need::kernel(5, 17, "reasons of drops") {
        return;
    }
    let lab = Lab::new();
    let file = Declared::new(LAN);
    lab.ok(&file.args("up"));
    let Pair { one, two, a, b, out, .. } = Pair::open(&lab, ["lab-a", "lab-b"]);
    silence(&one);
    silence(&two);
    let bind = |pod: &veth_user::net::Netns, address: &'static str| {
        pod.run(move || UdpSocket::bind((address, 0))).unwrap().unwrap()
    };
    let (sender, full) = (bind(&one, "10.1.0.1"), bind(&two, "10.1.0.2"));
    let open = bind(&two, "10.1.0.2");
    SockRef::from(&full).set_recv_buffer_size(2_048).unwrap();
    let unused = bind(&two, "10.1.0.2").local_addr().unwrap();
    let running = start(&lab, &["drops", "--watch", &format!("{}ms", EVERY.as_millis()), "--json"]);

    for _ in 0..40 {
        sender.send_to(&[0; 1_000], full.local_addr().unwrap()).unwrap();
    }
    for _ in 0..6 {
        let _unused: std::io::Result<usize> = sender.send_to(b"x", unused);
    }
    // A checksum that is not right, to a port that is open.
    let mut datagram = frame::udp(
        [10, 1, 0, 1].into(),
        [10, 1, 0, 2].into(),
        open.local_addr().unwrap().port(),
        &[7; 20],
        1_400,
    )
    .remove(0);
    datagram[26..28].copy_from_slice(&[1, 1]);
    for _ in 0..5 {
        out.send(&ethernet(b, a, ETHERTYPE_IPV4, &datagram));
    }
    // For nobody here, and of no protocol.
    let stray = frame::udp([10, 1, 0, 1].into(), [10, 9, 9, 9].into(), 9, &[7; 20], 1_400).remove(0);
    for _ in 0..4 {
        out.send(&ethernet(b, a, ETHERTYPE_IPV4, &stray));
    }
    for _ in 0..3 {
        out.send(&ethernet(b, a, ETHERTYPE_EXPERIMENTAL, &[0; 50]));
    }
    // To an address that the bridge floods and the pod is not meant by.
    for _ in 0..2 {
        out.send(&ethernet(Mac::new([2, 0xee, 0, 0, 0, 1]), a, ETHERTYPE_IPV4, &stray));
    }
    let dropped = last(running);
    let at_b =
        |reason| count(&dropped, &[("by", "kernel"), ("topology", "lab"), ("pod", "b"), ("reason", reason)]);
    let full = at_b("socket_rcvbuff");
    assert!(full > 20 && full < 40, "{full} of 40 did not fit: {dropped:#?}");
    assert_eq!(at_b("no_socket"), 6, "{dropped:#?}");
    assert_eq!(at_b("udp_csum"), 5, "{dropped:#?}");
    assert_eq!(at_b("unhandled_proto"), 3, "{dropped:#?}");
    assert_eq!(at_b("otherhost"), 2, "{dropped:#?}");
    // What does not belong to the pod's address: the kernel's name for it has changed over time.
    let strays: u64 = dropped
        .iter()
        .filter(|line| line["pod"] == "b" && line["reason"].as_str().unwrap().starts_with("ip_"))
        .map(|line| line["packets"].as_u64().unwrap())
        .sum();
    let unnamed = at_b("not_specified");
    assert!(strays == 4 || unnamed >= 4, "{dropped:#?}");
    let line = dropped.iter().find(|line| line["reason"] == "no_socket").unwrap();
    assert_eq!((&line["protocol"], &line["link"]), (&"ipv4_udp".into(), &"eth0".into()), "{line}");
    assert!(line["remedy"].as_str().unwrap().contains("start the service"), "{line}");
    assert!(line["function"].as_str().unwrap().contains("udp"), "{line}");
    assert_eq!(
        count(&dropped, &[("by", "kernel"), ("reason", "tc_ingress")]),
        0,
        "ours have lines of their own"
    );
}

#[test]
fn our_own_drops_are_told_by_reason() {
    let lab = Lab::new();
    let file = Declared::new(LAN);
    lab.ok(&file.args("up"));
    lab.ok(&["up"]);
    let lan = Pair::open(&lab, ["lab-a", "lab-b"]);
    let wire = Pair::open(&lab, ["ns1", "ns2"]);
    for pod in [&lan.one, &lan.two, &wire.one, &wire.two] {
        silence(pod);
    }
    wire.one.run(|| set_link("eth0", |link| link.mtu(9_000))).unwrap();
    lab.run(|| set_link("wire-ns1", |link| link.mtu(9_000)));
    let running = start(&lab, &["drops", "--watch", &format!("{}ms", EVERY.as_millis()), "--json"]);
    let forged = frame::udp([10, 7, 7, 7].into(), [10, 1, 0, 2].into(), 9, &[0; 20], 1_400).remove(0);
    for _ in 0..6 {
        lan.out.send(&ethernet(lan.b, Mac::new([2, 9, 9, 9, 9, 9]), ETHERTYPE_EXPERIMENTAL, &[0; 50]));
    }
    for _ in 0..5 {
        lan.out.send(&ethernet(lan.b, lan.a, ETHERTYPE_IPV4, &forged));
    }
    for _ in 0..4 {
        lan.out.send(&ethernet(Mac::new([0xff; 6]), lan.a, ETHERTYPE_EXPERIMENTAL, &[0; 50]));
        wire.out.send(&ethernet(wire.b, wire.a, ETHERTYPE_EXPERIMENTAL, &[0; 4_000]));
    }
    lab.run(|| delete_link("wire-ns2"));
    for _ in 0..3 {
        wire.out.send(&ethernet(wire.b, wire.a, ETHERTYPE_EXPERIMENTAL, &[0; 50]));
    }
    let dropped = last(running);
    let ours = |pod, reason| count(&dropped, &[("by", "veth"), ("pod", pod), ("reason", reason)]);
    for (pod, reason, packets) in [
        ("a", "spoofed_mac", 6),
        ("a", "spoofed_address", 5),
        ("-", "no_gateway", 4),
        ("ns1", "mtu_exceeded", 4),
        ("ns1", "no_peer", 3),
    ] {
        assert_eq!(ours(pod, reason), packets, "{reason}: {dropped:#?}");
    }
    assert_eq!(count(&dropped, &[("by", "kernel"), ("reason", "tc_ingress")]), 0, "not twice: {dropped:#?}");

    let text = lab.ok(&["drops", "lab/a", "--for", "50ms"]);
    assert!(text.contains("spoofed_mac") && !text.contains("no_peer"), "{text}");
    assert!(text.contains("sent from a hardware address that is not the pod's"), "{text}");
    assert!(lab.refused(&["drops", "nobody"]).contains("there is no topology nobody"));
    assert_eq!(lab.veth(&["drops", "--for", "0s"]).status.code(), Some(2));
}

#[test]
fn nothing_of_it_is_left_when_it_is_killed() {
    let lab = Lab::new();
    lab.ok(&["up"]);
    let before = lab.fingerprint();
    let running = start(&lab, &["drops", "--watch", "100ms"]);
    running.signal(Signal::SIGKILL);
    assert!(running.finish().was_killed());
    assert_eq!(lab.fingerprint(), before);
    let mut shell = Command::new("sh");
    shell.args(["-c", "\"$VETH_BIN\" drops --watch 20ms | head -n 2"]);
    assert!(!lab.spawn(shell).finish().err.contains("veth:"), "whoever reads may stop reading");
}
