//! XDP with frames that the kernel makes itself (`BPF_PROG_TEST_RUN` with live frames): many, and fast.

use aya::{
    TestRun as _, TestRunOptions,
    programs::{TestRunAttrs, Xdp},
};
use aya_obj::programs::XdpAttachType;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use serde_json::Value;
use veth_tests::{
    Lab, Pair,
    frame::{ETHERTYPE_EXPERIMENTAL, ethernet},
    lab::{pins, pod_link_stats, silence, xdp_md},
    need,
};
use veth_user::{datapath::Hook, net::Netns};

const FRAMES: u64 = 200_000;

/// A receive ring holds 256 frames.
const SMALL_BATCH: u32 = 64;
const RING: u32 = 256;

/// Lets our program decide about frames that come in on a host link, and does what it decides.
fn live(lab: &Lab, topology: &str, link: &str, frame: Vec<u8>, batch: u32) {
    let ifindex = lab.link(link).index;
    let path = pins(topology).join("prog_veth_xdp");
    lab.run(move || {
        let context = xdp_md(&frame, ifindex);
        let program = Xdp::from_pin(path, XdpAttachType::Interface).unwrap();
        let options = TestRunOptions {
            data_in: Some(&frame),
            ctx_in: Some(&context),
            repeat: u32::try_from(FRAMES).unwrap(),
            attrs: TestRunAttrs::new().xdp_live_frames(batch),
            ..TestRunOptions::default()
        };
        program.test_run(options).unwrap();
    });
}

fn has_live_frames() -> bool {
    need::kernel(6, 2, "XDP redirects on veth that can be trusted")
}

/// What grew at the two ports: redirected at the first; received by the second's pod, and refused by its ring.
struct Outcome {
    redirected: u64,
    received: u64,
    refused: u64,
    sent: u64,
}

fn run(lab: &Lab, topology: &str, links: [&str; 2], pair: &Pair, batch: u32) -> Outcome {
    let Pair { one, two, a, b, .. } = pair;
    silence(one);
    silence(two);
    let (before, kernel) = (lab.quiet_stats(topology), pod_link_stats(two, "eth0").rx_packets);
    live(lab, topology, links[0], ethernet(*b, *a, ETHERTYPE_EXPERIMENTAL, &[0; 50]), batch);
    let after = lab.quiet_stats(topology);
    let grown = |path: &str| {
        let read = |stats: &Value| stats["ports"].pointer(path).unwrap().as_u64().unwrap();
        read(&after) - read(&before)
    };
    Outcome {
        redirected: grown("/0/redirected/packets"),
        received: pod_link_stats(two, "eth0").rx_packets - kernel,
        refused: grown("/1/xdp_xmit_errors"),
        sent: grown("/1/tx/packets"),
    }
}

#[test]
fn every_accepted_frame_is_delivered() {
    if !has_live_frames() {
        return;
    }
    for (topology, args, pods, links) in [
        ("wire", &[][..], ["ns1", "ns2"], ["wire-ns1", "wire-ns2"]),
        ("switch", &["--pods", "2"], ["switch-pod1", "switch-pod2"], ["switch-pod1", "switch-pod2"]),
    ] {
        let lab = Lab::new();
        let pair = Pair::up(&lab, Hook::Xdp, args, pods);
        let Outcome { redirected, received, refused, sent } = run(&lab, topology, links, &pair, SMALL_BATCH);
        assert_eq!(redirected, FRAMES, "{topology}");
        // A ring gets full where who empties it has to wait for a processor.
        assert_eq!((received + refused, sent), (FRAMES, received), "{topology}");
    }
}

#[test]
fn a_full_receive_ring_is_a_named_drop_of_the_kernel() {
    if !has_live_frames() {
        return;
    }
    let lab = Lab::new();
    let pair = Pair::wire(&lab, Hook::Xdp);
    slow_receiver(&pair.two);
    let outcome = run(&lab, "wire", ["wire-ns1", "wire-ns2"], &pair, RING);
    let Outcome { redirected, received, refused, sent } = outcome;
    assert_eq!(redirected, FRAMES);
    assert!(refused > 0, "the ring was never full: this test says nothing");
    assert_eq!(received + refused, redirected, "each frame is received or in xdp_xmit_errors");
    assert_eq!(sent, received);
}

/// Lets a pod's end receive in a thread, which is behind a sender that does not stop.
fn slow_receiver(pod: &Netns) {
    pod.run(|| {
        // The device files of the pod's namespace, in a mount namespace that ends with this thread.
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).unwrap();
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).unwrap();
        std::fs::write("/sys/class/net/eth0/threaded", "1").unwrap();
    })
    .unwrap();
}
