//! A wire is a cable: everything comes out at the other end as it went in, and nobody is fooled by it.

use std::{net::Ipv4Addr, time::Duration};

use veth_common::Mac;
use veth_tests::{
    Lab, Pair, for_each_hook,
    frame::{self, ETHERTYPE_EXPERIMENTAL, ETHERTYPE_IPV4, ETHERTYPE_QINQ, ETHERTYPE_VLAN, ethernet, tagged},
    lab::{delete_link, eventually, set_link},
    traffic::bind,
};
use veth_user::datapath::Hook;

for_each_hook!(
    every_kind_of_frame_comes_out_as_it_went_in,
    fragments_cross_and_are_put_together,
    a_frame_for_another_address_is_not_accepted_by_the_far_stack,
    what_does_not_fit_is_dropped_and_named,
    a_wire_without_a_far_end_names_its_drops,
);

const SHORT: Duration = Duration::from_millis(500);
const LONG: Duration = Duration::from_secs(5);
const STRANGER: Mac = Mac::new([2, 0, 0, 0, 0, 0xee]);
const BROADCAST: Mac = Mac::new([0xff; 6]);
const MULTICAST: Mac = Mac::new([1, 0, 0x5e, 1, 2, 3]);

fn every_kind_of_frame_comes_out_as_it_went_in(hook: Hook) {
    for (topology, args, namespaces) in [
        ("wire", &[][..], ["ns1", "ns2"]),
        ("switch", &["--pods", "2"], ["switch-pod1", "switch-pod2"]),
        ("host", &["--name", "host", "--redirect", "host"], ["host-ns1", "host-ns2"]),
    ] {
        if topology == "host" && hook.is_xdp() {
            continue;
        }
        let lab = Lab::new();
        let Pair { a, b, out, into, .. } = Pair::up(&lab, hook, args, namespaces);
        let payload = |number: u8| vec![number; 100];
        let inner = |number| tagged(7, ETHERTYPE_EXPERIMENTAL, &payload(number));
        for (what, frame, vlan) in [
            ("unknown ethertype", ethernet(b, a, ETHERTYPE_EXPERIMENTAL, &payload(1)), None),
            ("802.1Q", ethernet(b, a, ETHERTYPE_VLAN, &inner(2)), Some(7)),
            ("802.1ad", ethernet(b, a, ETHERTYPE_QINQ, &tagged(5, ETHERTYPE_VLAN, &inner(3))), Some(5)),
            ("broadcast", ethernet(BROADCAST, a, ETHERTYPE_EXPERIMENTAL, &payload(4)), None),
            ("multicast", ethernet(MULTICAST, a, ETHERTYPE_EXPERIMENTAL, &payload(5)), None),
            ("foreign unicast", ethernet(STRANGER, a, ETHERTYPE_EXPERIMENTAL, &payload(6)), None),
            ("largest", ethernet(b, a, ETHERTYPE_EXPERIMENTAL, &[7; 1_500]), None),
            ("smallest", ethernet(b, a, ETHERTYPE_EXPERIMENTAL, &[8]), None),
        ] {
            out.send(&frame);
            let ending = &frame[frame.len().saturating_sub(100).max(14)..];
            let received = into.receive(ending, LONG).unwrap_or_else(|| panic!("{topology}: {what} is lost"));
            // The kernel keeps the outer tag beside the frame.
            let mut expected = frame.clone();
            if vlan.is_some() {
                expected.drain(12..16);
            }
            assert_eq!(received.vlan, vlan, "{topology}: {what}");
            assert!(received.bytes == expected, "{topology}: {what} was changed");
        }
    }
}

fn fragments_cross_and_are_put_together(hook: Hook) {
    let lab = Lab::new();
    let Pair { two, a, b, out, .. } = Pair::wire(&lab, hook);
    let address = Ipv4Addr::new(172, 16, 0, 2);
    let socket = bind(&two, address.into());
    let port = socket.local_addr().unwrap().port();
    for packet in frame::udp(Ipv4Addr::new(172, 16, 0, 1), address, port, &[9; 4_000], 1_480) {
        out.send(&ethernet(b, a, ETHERTYPE_IPV4, &packet));
    }
    let mut buffer = [0; 5_000];
    assert_eq!(socket.recv(&mut buffer).unwrap(), 4_000);
}

fn a_frame_for_another_address_is_not_accepted_by_the_far_stack(hook: Hook) {
    let lab = Lab::new();
    let Pair { two, a, b, out, into, .. } = Pair::wire(&lab, hook);
    let address = Ipv4Addr::new(172, 16, 0, 2);
    let socket = bind(&two, address.into());
    let port = socket.local_addr().unwrap().port();
    let datagram =
        |payload: &[u8]| frame::udp(Ipv4Addr::new(172, 16, 0, 1), address, port, payload, 1_480).remove(0);

    // bpf_redirect_peer would mark it as addressed to the far stack, and the socket would get it.
    let stray = datagram(b"not for you");
    out.send(&ethernet(STRANGER, a, ETHERTYPE_IPV4, &stray));
    assert!(into.receive(&stray, LONG).is_some(), "the cable carries it all the same");
    socket.set_read_timeout(Some(SHORT)).unwrap();
    let mut buffer = [0; 100];
    assert!(socket.recv(&mut buffer).is_err(), "accepted: {:?}", String::from_utf8_lossy(&buffer));

    out.send(&ethernet(b, a, ETHERTYPE_IPV4, &datagram(b"for you")));
    let length = socket.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"for you");
}

fn what_does_not_fit_is_dropped_and_named(hook: Hook) {
    let lab = Lab::new();
    let Pair { one, a, b, out, into, .. } = Pair::wire(&lab, hook);
    // Raise both ends of the near pair: the far pod's end stays at 1,500.
    one.run(|| set_link("eth0", |link| link.mtu(9_000))).unwrap();
    lab.run(|| set_link("wire-ns1", |link| link.mtu(9_000)));
    out.send(&ethernet(b, a, ETHERTYPE_EXPERIMENTAL, &[1; 4_000]));
    assert!(into.receive(&[1; 100], SHORT).is_none());
    let port = lab.stats("wire")["ports"][0].clone();
    assert_eq!(port["dropped"]["mtu_exceeded"]["packets"], 1, "{port}");
    assert_eq!(port["dropped"]["mtu_exceeded"]["bytes"], 4_014, "{port}");
}

fn a_wire_without_a_far_end_names_its_drops(hook: Hook) {
    let lab = Lab::new();
    let Pair { a, out, .. } = Pair::wire(&lab, hook);
    lab.run(|| delete_link("wire-ns2"));
    for _ in 0..3 {
        out.send(&ethernet(STRANGER, a, ETHERTYPE_EXPERIMENTAL, &[1; 60]));
    }
    eventually("three frames are counted as no_peer", || {
        lab.stats("wire")["ports"][0]["dropped"]["no_peer"]["packets"].as_u64() >= Some(3)
    });
    let list = lab.ok(&["ls"]);
    assert!(list.contains("drifted") && list.contains("link wire-ns2 is gone"), "{list}");
    lab.up(hook, &[]);
    assert!(lab.ok(&["ls"]).contains(" up\n"), "`up` repairs");
}
