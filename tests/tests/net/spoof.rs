//! A port that is checked: a pod sends in its own name, or not at all.

use std::{net::IpAddr, time::Duration};

use rtnetlink::LinkMessageBuilder;
use veth_tests::{
    Lab, for_each_hook, frame,
    lab::{eventually, set_link},
    pair::Pair,
    topology::Declared,
    traffic::{tcp, udp},
};
use veth_user::datapath::Hook;

for_each_hook!(a_kernel_is_honest, what_is_forged_does_not_arrive);

fn addresses(pod: usize) -> [IpAddr; 2] {
    [format!("10.200.0.{pod}").parse().unwrap(), format!("fd00:200::{pod:x}").parse().unwrap()]
}

/// A switch of two pods that are checked, declared as a user would.
fn checked(lab: &Lab, hook: Hook) -> Pair {
    let subnet = "[\"10.200.0.0/16\", \"fd00:200::/64\"]";
    let file = Declared::new(&format!(
        "name = \"switch\"\n[switch.lan]\nsubnet = {subnet}\npods = 2\nspoof_check = true\n"
    ));
    lab.ok(&[&file.args("up")[..], &["--hook", hook.name()]].concat());
    Pair::open(lab, ["switch-pod1", "switch-pod2"])
}

/// How many frames a port has dropped for a reason.
fn dropped(lab: &Lab, port: usize, reason: &str) -> u64 {
    lab.stats("switch")["ports"][port]["dropped"][reason]["packets"].as_u64().unwrap()
}

/// Duplicate address detection, listener reports, solicitations of every kind, and traffic.
fn a_kernel_is_honest(hook: Hook) {
    let lab = Lab::new();
    let pair = checked(&lab, hook);
    // All that a kernel says when its link comes up, again. IPv6 addresses go with the link unless told otherwise.
    for pod in [&pair.one, &pair.two] {
        pod.run(|| {
            std::fs::write("/proc/sys/net/ipv6/conf/eth0/keep_addr_on_down", "1").unwrap();
            set_link("eth0", LinkMessageBuilder::down);
            set_link("eth0", LinkMessageBuilder::up);
        })
        .unwrap();
    }
    for address in addresses(2) {
        eventually("UDP crosses", || udp(&pair.one, &pair.two, address, 100, 1) == 0);
        assert_eq!(udp(&pair.one, &pair.two, address, 1_400, 20), 0);
        // Longer than the MTU: fragments.
        assert_eq!(udp(&pair.one, &pair.two, address, 4_000, 3), 0);
        tcp(&pair.one, &pair.two, address, 1_000_000);
    }
    for port in 0..2 {
        for reason in ["spoofed_mac", "spoofed_address"] {
            assert_eq!(dropped(&lab, port, reason), 0, "{reason}");
        }
    }
}

/// By a packet socket, so that the kernel takes the outer tag out of the frame before TC sees it.
fn what_is_forged_does_not_arrive(hook: Hook) {
    let lab = Lab::new();
    let pair = checked(&lab, hook);
    let ([IpAddr::V4(own), _], [IpAddr::V4(other), _]) = (addresses(1), addresses(2)) else {
        unreachable!();
    };
    let patience = Duration::from_millis(300);
    for tags in 0..4 {
        for (is_honest, from) in [(false, other), (true, own)] {
            let mark = [0xa5, u8::from(is_honest), tags, 1, 2, 3, 4, 5].repeat(4);
            let packet = frame::udp(from, other, 9, &mark, 64).remove(0);
            let (ethertype, payload) = (0..tags)
                .fold((frame::ETHERTYPE_IPV4, packet), |(inner, payload), _| {
                    (frame::ETHERTYPE_VLAN, frame::tagged(7, inner, &payload))
                });
            let before = dropped(&lab, 0, "spoofed_address");
            pair.out.send(&frame::ethernet(pair.b, pair.a, ethertype, &payload));
            let arrived = pair.into.receive(&mark, patience).is_some();
            let expected = is_honest && tags <= 2;
            assert_eq!(arrived, expected, "{tags} tags, honest: {is_honest}");
            assert_eq!(dropped(&lab, 0, "spoofed_address") - before, u64::from(!expected));
        }
    }
    // A broadcast goes by the bridge, and a forged one does not.
    for (source, expected) in [(pair.b, false), (pair.a, true)] {
        let mark = [0x5a, u8::from(expected), 6, 7, 8, 9].repeat(8);
        let broadcast = veth_common::Mac::new([0xff; 6]);
        let before = dropped(&lab, 0, "spoofed_mac");
        pair.out.send(&frame::ethernet(broadcast, source, frame::ETHERTYPE_EXPERIMENTAL, &mark));
        assert_eq!(pair.into.receive(&mark, patience).is_some(), expected);
        assert_eq!(dropped(&lab, 0, "spoofed_mac") - before, u64::from(!expected));
    }
}
