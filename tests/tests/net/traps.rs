//! What has bitten comparable systems: a test for each row of docs/traps.md that no other behaviour's test covers.

use std::{net::IpAddr, os::fd::AsRawFd as _, time::Duration};

use aya::programs::{SchedClassifier, TcAttachType, links::FdLink, tc::TcAttachOptions};
use rtnetlink::{LinkBridge, LinkMacVlan, packet_route::link::MacVlanMode};
use veth_tests::{
    Lab, Pair, for_each_hook,
    foreign::{Foreign, Place, Verdict},
    frame::{ETHERTYPE_EXPERIMENTAL, ethernet},
    lab::{add_link, delete_link, eventually, pins, pod_link_stats, set_link, silence, with_netlink},
    need,
    traffic::{bind, tcp, udp},
};
use veth_user::{
    datapath::{Hook, attach},
    net::{
        Netns,
        ethtool::{Ethtool, Setting},
        tc::Direction,
    },
    probe::Kernel,
};

for_each_hook!(two_attachments_of_ours_are_refused, trap_vlan_offload, a_pod_that_hides_its_link);

fn address() -> IpAddr {
    "172.16.0.2".parse().unwrap()
}

fn feature(pod: &Netns, feature: &'static str, on: bool) {
    let ethtool = Ethtool::open_in(pod).unwrap();
    let changed = ethtool.set_features("eth0", &[Setting { feature, on }]).unwrap();
    assert_eq!(changed.len(), 1, "{feature} was {on} already");
}

#[test]
fn trap_a1_packet_type() {
    let lab = Lab::new();
    let peer = lab.redirect_peer();
    assert!(peer.arrives);
    if Kernel::current().unwrap() >= Kernel(6, 15, 0) {
        assert!(peer.scrubs, "by its version this kernel scrubs, and veth does not set the packet type");
    }
    // Whether it does or not, the far stack accepts what it is handed.
    lab.ok(&["up", "--redirect", "peer"]);
    let (one, two) = (lab.pod("ns1"), lab.pod("ns2"));
    assert_eq!(udp(&one, &two, address(), 100, 20), 0);
}

#[test]
fn trap_a3_peer_statistics() {
    const FRAMES: u64 = 100;
    let lab = Lab::new();
    let kernel_counts = lab.redirect_peer().counts;
    assert!(kernel_counts || Kernel::current().unwrap() < Kernel(6, 7, 0));
    lab.ok(&["up"]);
    let Pair { one, two, a, b, out, .. } = Pair::open(&lab, ["ns1", "ns2"]);
    silence(&one);
    silence(&two);
    let packets = |stats: &serde_json::Value| stats["ports"][1]["tx"]["packets"].as_u64().unwrap();
    let (before, kernel) = (packets(&lab.quiet_stats("wire")), pod_link_stats(&two, "eth0").rx_packets);
    for _ in 0..FRAMES {
        out.send(&ethernet(b, a, ETHERTYPE_EXPERIMENTAL, &[0; 50]));
    }
    assert_eq!(packets(&lab.quiet_stats("wire")) - before, FRAMES, "ours is the source of truth");
    let kernel = pod_link_stats(&two, "eth0").rx_packets - kernel;
    assert_eq!(kernel, if kernel_counts { FRAMES } else { 0 });
}

/// A pod that peer redirect would harm is found, reached through its host end, and back to normal after.
fn falls_back_to_host(harm: impl FnOnce(&Netns), heal: impl FnOnce(&Netns), word: &str) {
    let lab = Lab::new();
    lab.ok(&["up", "--pods", "3"]);
    let pod = lab.pod("switch-pod2");
    let index = lab.link("switch-pod2").index;
    let sent_by_host_end = |lab: &Lab| {
        let Pair { out, a, b, .. } = Pair::open(lab, ["switch-pod1", "switch-pod2"]);
        let count = || lab.quiet_stats("switch")["ports"][1]["kernel"]["tx_packets"].as_u64().unwrap();
        let before = count();
        for _ in 0..50 {
            out.send(&ethernet(b, a, ETHERTYPE_EXPERIMENTAL, &[0; 50]));
        }
        count() - before
    };
    assert!(sent_by_host_end(&lab) < 50);
    harm(&pod);
    let list = lab.ok(&["ls"]);
    assert!(
        list.contains("drifted") && list.contains("switch-pod2 should be reached") && list.contains(word),
        "{list}"
    );
    assert!(lab.ok(&["up", "--pods", "3"]).contains("whole again"));
    assert!(lab.ok(&["ls"]).contains(" up\n"));
    assert!(sent_by_host_end(&lab) >= 50, "{word}");
    heal(&pod);
    assert!(lab.ok(&["ls"]).contains("by peer redirect again"));
    lab.ok(&["up", "--pods", "3"]);
    assert!(sent_by_host_end(&lab) < 50, "{word}");
    assert_eq!(lab.link("switch-pod2").index, index, "put right in place");
}

#[test]
fn trap_a4_pod_that_bridges_its_link() {
    falls_back_to_host(
        |pod| {
            pod.run(|| {
                add_link(LinkBridge::new("br0").build());
                let bridge = with_netlink(async |netlink| netlink.link("br0").await.unwrap().index);
                set_link("eth0", |link| link.controller(bridge));
            })
            .unwrap();
        },
        |pod| pod.run(|| delete_link("br0")).unwrap(),
        "has bridged eth0",
    );
}

#[test]
fn trap_a4_pod_with_a_macvlan() {
    falls_back_to_host(
        |pod| {
            pod.run(|| {
                let eth0 = with_netlink(async |netlink| netlink.link("eth0").await.unwrap().index);
                add_link(LinkMacVlan::new("mv0", eth0, MacVlanMode::Bridge).build());
            })
            .unwrap();
        },
        |pod| pod.run(|| delete_link("mv0")).unwrap(),
        "macvlan mv0",
    );
}

#[test]
fn trap_a4_pod_with_a_native_xdp_program() {
    let program = std::cell::Cell::new(None);
    falls_back_to_host(
        |pod| {
            let attach = || {
                let index = with_netlink(async |netlink| netlink.link("eth0").await.unwrap().index);
                Foreign::xdp(index, Verdict::Next)
            };
            program.set(Some(pod.run(attach).unwrap()));
        },
        |pod| {
            let program = program.take().unwrap();
            assert!(program.seen() >= 50, "through the host end, the pod's program sees the frames");
            drop(program);
            let is_gone = || with_netlink(async |netlink| netlink.link("eth0").await.unwrap().xdp.is_none());
            eventually("theirs is gone", || pod.run(is_gone).unwrap());
        },
        "XDP program on eth0",
    );
}

#[test]
fn trap_a5_peer_in_the_same_namespace() {
    let lab = Lab::new();
    lab.ok(&["up", "--pods", "3"]);
    let host = lab.run(|| Netns::current().unwrap());
    let pod = lab.pod("switch-pod2");
    let file = std::os::fd::AsFd::as_fd(&host).as_raw_fd();
    pod.run(|| set_link("eth0", |link| link.setns_by_fd(file))).unwrap();
    let list = lab.ok(&["ls"]);
    assert!(list.contains("pod2/eth0 has another name now, or is elsewhere"), "{list}");
    lab.ok(&["up", "--pods", "3"]);
    assert!(lab.ok(&["ls"]).contains(" up\n"));
}

/// What a pod does to its own end keeps nobody from seeing and repairing the others.
fn a_pod_that_hides_its_link(hook: Hook) {
    let lab = Lab::new();
    lab.up(hook, &["--pods", "3"]);
    let pod = lab.pod("switch-pod2");
    pod.run(|| {
        set_link("eth0", rtnetlink::LinkMessageBuilder::down);
        set_link("eth0", |link| link.name("other0".to_owned()));
    })
    .unwrap();
    let list = lab.ok(&["ls"]);
    assert!(list.contains("switch"), "{list}");
    if hook.is_xdp() {
        assert!(list.contains("pod2/eth0 has another name now"), "{list}");
    }
    lab.up(hook, &["--pods", "3"]);
    lab.ok(&["down"]);
}

/// A wish that cannot be is said before anything that is there is touched, whatever its state.
#[test]
fn a_drifted_topology_survives_a_wish_that_cannot_be() {
    let lab = Lab::new();
    lab.ok(&["up", "--pods", "2"]);
    let index = lab.link("switch-pod1").index;
    let pod = lab.pod("switch-pod2");
    pod.run(|| {
        let eth0 = with_netlink(async |netlink| netlink.link("eth0").await.unwrap().index);
        add_link(LinkMacVlan::new("mv0", eth0, MacVlanMode::Bridge).build());
    })
    .unwrap();
    for args in [
        &["up", "--pods", "2", "--hook", "clsact", "--redirect", "devmap"][..],
        &["up", "--pods", "2", "--mtu", "65536"],
    ] {
        assert_eq!(lab.veth(args).status.code(), Some(1), "{args:?}");
        assert_eq!(lab.link("switch-pod1").index, index, "{args:?} made everything again");
    }
    lab.ok(&["up", "--pods", "2"]);
    assert_eq!(lab.link("switch-pod1").index, index);
}

#[test]
fn trap_a6_redirects_that_do_not_go_with_the_hook() {
    let lab = Lab::new();
    for (hook, redirect) in
        [("xdp", "peer"), ("xdp-generic", "host"), ("tcx", "devmap"), ("clsact", "devmap")]
    {
        if hook == "tcx" && !need::kernel(6, 6, "TCX")
            || hook.starts_with("xdp") && !need::kernel(6, 2, "XDP on veth")
        {
            continue;
        }
        let error = lab.refused(&["up", "--hook", hook, "--redirect", redirect]);
        assert!(error.contains(hook) && error.contains(redirect), "{error}");
    }
}

#[test]
fn trap_a7_outcome_of_a_redirect_is_not_seen() {
    let lab = Lab::new();
    lab.ok(&["up"]);
    let Pair { one, two, a, b, out, .. } = Pair::open(&lab, ["ns1", "ns2"]);
    silence(&one);
    two.run(|| set_link("eth0", rtnetlink::LinkMessageBuilder::down)).unwrap();
    let before = lab.quiet_stats("wire");
    let kernel = pod_link_stats(&two, "eth0").rx_packets;
    out.send(&ethernet(b, a, ETHERTYPE_EXPERIMENTAL, &[0; 50]));
    let after = lab.quiet_stats("wire");
    let grown = |port: usize, what: &str| {
        let read = |stats: &serde_json::Value| stats["ports"][port][what]["packets"].as_u64().unwrap();
        read(&after) - read(&before)
    };
    // Handed over, and lost after: the difference to the kernel's own counter is how it is found.
    assert_eq!((grown(0, "redirected"), grown(1, "tx")), (1, 1));
    assert_eq!(pod_link_stats(&two, "eth0").rx_packets, kernel);
}

#[test]
fn trap_b1_receiver_without_napi() {
    if !need::kernel(6, 2, "XDP redirects on veth that can be trusted") {
        return;
    }
    let lab = Lab::new();
    lab.ok(&["up", "--hook", "xdp"]);
    let (one, two) = (lab.pod("ns1"), lab.pod("ns2"));
    assert_eq!(udp(&one, &two, address(), 100, 20), 0);
    let shown = lab.ok(&["ls", "wire"]);
    assert!(shown.contains("changed for XDP: ns1/eth0 rx-gro on"), "what was changed is on record: {shown}");
    feature(&two, "rx-gro", false);
    assert_eq!(udp(&one, &two, address(), 100, 1), 1, "the kernel drops all of it");
    let list = lab.ok(&["ls"]);
    assert!(list.contains("ns2/eth0 is not fit for XDP any more: rx-gro is off"), "{list}");
    assert!(lab.ok(&["up", "--hook", "xdp"]).contains("whole again"));
    assert_eq!(udp(&one, &two, address(), 100, 20), 0);
}

#[test]
fn trap_b2_partial_checksum() {
    if !need::kernel(6, 2, "XDP redirects on veth that can be trusted") {
        return;
    }
    let lab = Lab::new();
    for hook in ["xdp", "xdp-generic"] {
        let name = format!("b2{}", hook.len());
        lab.ok(&["up", "--hook", hook, "--name", &name]);
        let (one, two) = (lab.pod(&format!("{name}-ns1")), lab.pod(&format!("{name}-ns2")));
        // Ping would work without it, and TCP never connect.
        tcp(&one, &two, address(), 1_000_000);
        feature(&one, "tx-checksum-ip-generic", true);
        let list = lab.ok(&["ls"]);
        assert!(list.contains("tx-checksum-ip-generic is on"), "{list}");
        lab.ok(&["up", "--hook", hook, "--name", &name]);
        tcp(&one, &two, address(), 1_000_000);
    }
}

#[test]
fn trap_b3_lost_gso_is_told() {
    if !need::kernel(6, 2, "XDP redirects on veth that can be trusted") {
        return;
    }
    let lab = Lab::new();
    let finished = lab.veth(&["up", "--hook", "xdp"]);
    assert!(finished.err.contains("bulk TCP is several times slower"), "{finished:?}");
    lab.ok(&["down"]);
    lab.ok(&["up"]);
    let list = lab.ok(&["ls"]);
    assert!(!list.contains("xdp"), "auto never picks XDP: {list}");
}

#[test]
fn trap_b4_mtu_limit() {
    if !need::kernel(6, 2, "XDP redirects on veth that can be trusted") {
        return;
    }
    for mtu in ["9000", "65535"] {
        let lab = Lab::new();
        // Without `frags` the kernel refuses to attach above 3,506 bytes, with a bare ERANGE.
        lab.ok(&["up", "--hook", "xdp", "--mtu", mtu]);
        let (one, two) = (lab.pod("ns1"), lab.pod("ns2"));
        let size = mtu.parse::<usize>().unwrap() - 28;
        assert_eq!(udp(&one, &two, address(), size, 20), 0, "{mtu}");
    }
}

#[test]
fn trap_b11_generic_only_when_asked_for() {
    if !need::kernel(6, 2, "XDP redirects on veth that can be trusted") {
        return;
    }
    let lab = Lab::new();
    for (hook, native) in [("xdp", true), ("xdp-generic", false)] {
        lab.ok(&["up", "--hook", hook]);
        assert_eq!(lab.link("wire-ns1").xdp.unwrap().native, native, "{hook}");
        lab.ok(&["down"]);
    }
    // Where the driver cannot, it is said, and nothing else is done instead.
    lab.ok(&["up", "--hook", "xdp"]);
    let index = lab.link("wire-ns1").index;
    let path = pins("wire").join("link_wire-ns1");
    lab.run(move || std::fs::remove_file(path).unwrap());
    // The kernel lets go of a link a little after its last pin.
    eventually("ours is gone", || lab.link("wire-ns1").xdp.is_none());
    let _theirs = lab.run(move || Foreign::xdp(index, Verdict::Next));
    let finished = lab.veth(&["up", "--hook", "xdp"]);
    assert!(finished.err.contains("takes only one") && finished.err.contains("xdp off"), "{finished:?}");
}

/// A tag that a sender leaves to the device is beside the frame, where XDP does not see it.
fn trap_vlan_offload(hook: Hook) {
    let lab = Lab::new();
    let Pair { one, a, b, out, into, .. } = Pair::wire(&lab, hook);
    let index = one.run(|| with_netlink(async |netlink| netlink.link("eth0").await.unwrap().index)).unwrap();
    let tagger = one.run(|| Foreign::tag_egress(index, 7)).unwrap();
    out.send(&ethernet(b, a, ETHERTYPE_EXPERIMENTAL, &[0x77; 60]));
    let received = into.receive(&[0x77; 60], Duration::from_secs(5)).expect("it is lost");
    assert!(tagger.seen() > 0);
    assert_eq!(received.vlan, Some(7), "{hook}: the tag is lost");
}

/// Trap D1: a program of ours that this topology did not attach is another topology's, or a leftover.
fn two_attachments_of_ours_are_refused(hook: Hook) {
    if !need::kernel(6, 6, "TCX, by which the second one is planted") {
        return;
    }
    let lab = Lab::new();
    lab.up(hook, &[]);
    lab.ok(&["up", "--name", "other"]);
    if hook.is_pinned() {
        let path = pins("wire").join("link_wire-ns1");
        lab.run(move || std::fs::remove_file(path).unwrap());
    } else {
        lab.remove_filters("wire-ns1");
    }
    let _second = lab.run(|| {
        let mut program = SchedClassifier::from_pin(pins("other").join("prog_veth_ingress")).unwrap();
        let options = TcAttachOptions::TcxOrder(aya::programs::LinkOrder::last());
        let id = program.attach_with_options("wire-ns1", TcAttachType::Ingress, options).unwrap();
        FdLink::try_from(program.take_link(id).unwrap()).unwrap()
    });
    let finished = lab.veth(&["up", "--hook", hook.name()]);
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert!(finished.err.contains("already carries a veth program by tcx"), "{finished:?}");
}

#[test]
fn trap_d2_filter_removed_by_another_agent() {
    let lab = Lab::new();
    lab.ok(&["up", "--hook", "clsact"]);
    let (one, two) = (lab.pod("ns1"), lab.pod("ns2"));
    assert_eq!(udp(&one, &two, address(), 100, 5), 0);
    let index = lab.link("wire-ns1").index;
    lab.remove_filters("wire-ns1");
    assert_eq!(udp(&one, &two, address(), 100, 1), 1, "a wire has no slow path");
    let list = lab.ok(&["ls"]);
    assert!(list.contains("our program is not on wire-ns1 by clsact any more"), "{list}");
    assert!(lab.ok(&["up", "--hook", "clsact"]).contains("whole again"));
    assert_eq!(udp(&one, &two, address(), 100, 5), 0);
    assert_eq!(lab.link("wire-ns1").index, index, "put right in place");
}

#[test]
fn trap_d3_qdisc_and_filters_of_others() {
    let lab = Lab::new();
    lab.ok(&["up", "--hook", "clsact"]);
    let index = lab.link("wire-ns1").index;
    let theirs = lab.run(move || Foreign::clsact(index, Direction::Ingress, 1, Verdict::Next));
    let (one, two) = (lab.pod("ns1"), lab.pod("ns2"));
    assert_eq!(udp(&one, &two, address(), 100, 20), 0);
    assert!(theirs.seen() >= 20, "before ours, it sees everything");
    // Repair leaves theirs alone too.
    lab.run(move || {
        with_netlink(async |netlink| {
            let filters = netlink.filters(index, Direction::Ingress).await.unwrap();
            let ours = filters.iter().find(|filter| filter.name.as_deref() == Some("veth_ingress")).unwrap();
            netlink.delete_filter(index, ours.position).await.unwrap();
        });
    });
    lab.ok(&["up", "--hook", "clsact"]);
    let names = move || {
        with_netlink(async |netlink| {
            let filters = netlink.filters(index, Direction::Ingress).await.unwrap();
            filters.into_iter().map(|filter| filter.name.unwrap()).collect::<Vec<_>>()
        })
    };
    assert_eq!(lab.run(names), ["theirs", "veth_ingress"], "in this order");
    // Somebody makes the link theirs: it stays, with the qdisc and their filter, and without ours.
    lab.run(|| set_link("wire-ns1", |link| link.alias("mine".to_owned())));
    lab.ok(&["down"]);
    assert_eq!(lab.run(names), ["theirs"]);
}

#[test]
fn trap_d3_a_policy_before_ours_can_drop() {
    // TCX runs before every filter: a policy by tc must be beside --hook clsact, as doctor says.
    for (hook, plant, drops) in
        [("tcx", "tcx", true), ("tcx", "clsact", false), ("clsact", "clsact", true), ("clsact", "tcx", true)]
    {
        if (hook == "tcx" || plant == "tcx") && !need::kernel(6, 6, "TCX") {
            continue;
        }
        let lab = Lab::new();
        lab.ok(&["up", "--hook", hook]);
        let (one, two) = (lab.pod("ns1"), lab.pod("ns2"));
        assert_eq!(udp(&one, &two, address(), 100, 1), 0);
        let index = lab.link("wire-ns1").index;
        let policy = lab.run(move || match plant {
            "tcx" => Foreign::tcx(index, Place::First, Verdict::Drop),
            _ => Foreign::clsact(index, Direction::Ingress, 1, Verdict::Drop),
        });
        assert_eq!(udp(&one, &two, address(), 100, 1), usize::from(drops), "{plant} beside {hook}");
        assert_eq!(policy.seen() > 0, drops);
    }
}

#[test]
fn trap_d3_ours_first_when_told() {
    let lab = Lab::new();
    lab.ok(&["up", "--hook", "clsact", "--place", "first"]);
    let (one, two) = (lab.pod("ns1"), lab.pod("ns2"));
    assert_eq!(udp(&one, &two, address(), 100, 1), 0);
    let index = lab.link("wire-ns1").index;
    let policy = lab.run(move || Foreign::clsact(index, Direction::Ingress, 2, Verdict::Drop));
    assert_eq!(udp(&one, &two, address(), 100, 5), 0, "what we redirect, nobody behind us sees");
    assert_eq!(policy.seen(), 0);
}

#[test]
fn an_xdp_program_of_somebody_else_before_a_tc_hook_of_ours() {
    let lab = Lab::new();
    lab.ok(&["up"]);
    let (one, two) = (lab.pod("ns1"), lab.pod("ns2"));
    let index = lab.link("wire-ns1").index;
    let program = lab.run(move || Foreign::xdp(index, Verdict::Next));
    assert_eq!(udp(&one, &two, address(), 100, 20), 0);
    assert!(program.seen() >= 20);
    let before_ours = lab.run(|| {
        with_netlink(async |netlink| {
            let link = netlink.link("wire-ns1").await.unwrap();
            let attached = attach::attached(netlink, &link).await.unwrap();
            (attached[0].hook, attached[1].is_named_ours())
        })
    });
    assert_eq!(before_ours, (Hook::Xdp, true));
    drop(program);
    // The kernel lets go of a link a little after its last descriptor.
    eventually("theirs is gone", || lab.link("wire-ns1").xdp.is_none());
    let _policy = lab.run(move || Foreign::xdp(index, Verdict::Drop));
    bind(&one, [0, 0, 0, 0].into()).send_to(b"dropped", (address(), 9)).unwrap();
    eventually("ours never saw it", || {
        lab.stats("wire")["ports"][0]["kernel"]["rx_packets"].as_u64() > Some(0)
    });
    assert_eq!(udp(&one, &two, address(), 100, 1), 1);
}
