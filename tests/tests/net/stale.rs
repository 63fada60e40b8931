//! Numbers that are used again, an interface's or a port's, inherit nothing.

use std::time::Duration;

use rtnetlink::{LinkMessageBuilder, LinkVeth};
use veth_common::{FdbKey, SourceKey};
use veth_tests::{
    Lab, Pair, for_each_hook,
    lab::{add_link, delete_link, set_link, silence},
    packet::PacketSocket,
    topology::Declared,
    traffic::udp,
};
use veth_user::{datapath::Hook, net::Netns};

/// How long nothing must arrive.
const SILENCE: Duration = Duration::from_millis(300);

fn frame(pair: &Pair, ending: &[u8]) -> Vec<u8> {
    [&pair.b.bytes()[..], &pair.a.bytes(), &[0x88, 0xb5], &[0; 60], ending].concat()
}

/// A stranger's link gets the very index that a pod's host end had: no frame for the pod may come out of it.
fn an_interface_index_that_is_used_again_is_no_target(hook: Hook) {
    let lab = Lab::new();
    let pair = Pair::switch(&lab, hook);
    let index = lab.link("switch-pod2").index;
    let slot = lab.datapath(hook, "switch", move |datapath| datapath.port(index).unwrap().slot);
    pair.out.send(&frame(&pair, b"before"));
    assert!(pair.into.receive(b"before", Duration::from_secs(5)).is_some());
    lab.run(move || {
        delete_link("switch-pod2");
        let mut theirs = LinkVeth::new("theirs0", "theirs1").build();
        theirs.header.index = index;
        add_link(theirs);
        set_link("theirs0", LinkMessageBuilder::up);
        set_link("theirs1", LinkMessageBuilder::up);
    });
    assert_eq!(lab.link("theirs0").index, index, "the kernel takes the number that is asked for");
    let host = lab.run(|| Netns::current().unwrap());
    let theirs = ["theirs0", "theirs1"].map(|link| PacketSocket::open(&host, link));
    assert_eq!(lab.datapath(hook, "switch", move |datapath| datapath.target(slot)), None);
    pair.out.send(&frame(&pair, b"after"));
    for socket in &theirs {
        assert_eq!(socket.receive(b"after", SILENCE), None);
    }
    // What is made again is found again, and the stranger is still none of ours.
    lab.run(|| set_link("theirs0", |link| link.alias("theirs".to_owned())));
    lab.up(hook, &["--pods", "2"]);
    let (one, two) = (lab.pod("switch-pod1"), lab.pod("switch-pod2"));
    assert_eq!(udp(&one, &two, "10.200.0.2".parse().unwrap(), 100, 10), 0);
    assert_eq!(lab.datapath(hook, "switch", move |datapath| datapath.port(index)), None);
    assert_eq!(lab.link("theirs0").index, index);
}

/// A new pod gets the slot, and here also the interface index, of one that has gone.
fn a_slot_that_is_used_again_is_as_new(hook: Hook) {
    let lab = Lab::new();
    let file = |pods: &str| {
        Declared::new(&format!(
            "name = \"switch\"\nhook = \"{}\"\n[switch.lan]\nsubnet = \"10.1.0.0/24\"\nspoof_check = true\n\
             pods = [{pods}]\n",
            hook.name()
        ))
    };
    lab.ok(&file("\"a\", \"b\"").args("up"));
    let (a, b) = (lab.pod("switch-a"), lab.pod("switch-b"));
    assert_eq!(udp(&b, &a, "10.1.0.1".parse().unwrap(), 100, 10), 0);
    let port = |name: &str| {
        let index = lab.link(name).index;
        lab.datapath(hook, "switch", move |datapath| datapath.port(index).unwrap())
    };
    let old = port("switch-b");
    drop((a, b));
    lab.ok(&file("\"a\"").args("up"));
    lab.ok(&file("\"a\", \"c\"").args("up"));
    let c = lab.pod("switch-c");
    silence(&c);
    let new = port("switch-c");
    assert_eq!(new.slot, old.slot, "the slot is used again, or this shows nothing");
    let stats = lab.stats("switch");
    let counted = stats["ports"].as_array().unwrap().iter().find(|port| port["pod"] == "c").unwrap();
    assert!(counted["protocols"].get("ipv4_udp").is_none(), "{counted}");
    let slot = new.slot;
    lab.datapath(hook, "switch", move |datapath| {
        let key = FdbKey { domain: new.domain, mac: old.mac };
        assert!(datapath.fdb(key).is_none(), "frames for the old one's address go nowhere");
        let is_source = |address: &str| datapath.is_source(&SourceKey::new(slot, address.parse().unwrap()));
        assert!(is_source("10.1.0.2"), "the new one's");
        let addresses: Vec<_> = datapath.sources(slot).collect::<Result<_, _>>().unwrap();
        assert!(!addresses.contains(&old.mac.link_local().into()), "{addresses:?}");
    });
}

for_each_hook!(an_interface_index_that_is_used_again_is_no_target, a_slot_that_is_used_again_is_as_new);
