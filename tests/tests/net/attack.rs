//! What a pod can send to reach another domain, the host, or a neighbour in somebody else's name: all of it at once, with
//! somebody listening wherever it must not come out.

use std::net::{Ipv4Addr, Ipv6Addr};

use veth_common::Mac;
use veth_tests::{
    Lab,
    behind::Behind,
    for_each_hook,
    forged::{Attempts, Ear, Pod, Who, packets},
    frame::{ETHERTYPE_EXPERIMENTAL, ETHERTYPE_IPV4, ETHERTYPE_QINQ, ETHERTYPE_VLAN, ethernet, tagged, udp},
    lab::with_netlink,
    topology::Declared,
};
use veth_user::{
    datapath::Hook,
    net::{
        Netns,
        sysctl::{self, Forwarding},
    },
};

for_each_hook!(
    without_a_gateway_a_pod_gets_nowhere_else,
    a_gateway_leads_to_no_other_path,
    a_checked_pod_speaks_for_nobody_else,
);

/// Addresses of the host that no path has.
const HOST: Who = Who {
    mac: BROADCAST,
    v4: Ipv4Addr::new(192, 0, 2, 1),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
};

const BROADCAST: Mac = Mac::new([0xff; 6]);

/// What may stand in front of a packet: nothing, or one or two tags. VLAN 1 is the one that a bridge uses by itself.
const TAGS: [&[(u16, u16)]; 7] = [
    &[],
    &[(ETHERTYPE_VLAN, 0)],
    &[(ETHERTYPE_VLAN, 1)],
    &[(ETHERTYPE_VLAN, 7)],
    &[(ETHERTYPE_QINQ, 1)],
    &[(ETHERTYPE_VLAN, 1), (ETHERTYPE_VLAN, 7)],
    &[(ETHERTYPE_QINQ, 7), (ETHERTYPE_VLAN, 1)],
];

/// A frame with tags in front of what it carries.
fn frame(destination: Mac, source: Mac, tags: &[(u16, u16)], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let (ethertype, payload) =
        tags.iter().rev().fold((ethertype, payload.to_vec()), |(inner, payload), (tag, vlan)| {
            (*tag, tagged(*vlan, inner, &payload))
        });
    ethernet(destination, source, ethertype, &payload)
}

/// The addresses that a bridge does not forward by itself, and some of other groups.
fn groups() -> Vec<Mac> {
    let reserved = (0..16).map(|last| Mac::new([1, 0x80, 0xc2, 0, 0, last]));
    let others =
        [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1], [1, 0, 0xc, 0xcc, 0xcc, 0xcc], [0; 6]];
    reserved.chain(others.map(Mac::new)).collect()
}

/// A host that forwards, as one with Docker does, and believes what packets say of their way; and a machine behind it.
fn host(lab: &Lab) -> (Netns, Pod) {
    lab.run(|| {
        sysctl::set_forwarding(Forwarding { ipv4: true, ipv6: true }).unwrap();
        let host = Netns::current().unwrap();
        for key in [
            "ipv4.conf.all.accept_source_route",
            "ipv6.conf.all.seg6_enabled",
            "ipv6.conf.default.seg6_enabled",
        ] {
            let key = format!("net.{key}");
            if sysctl::read_in(&host, &key).unwrap().is_some() {
                sysctl::write_in(&host, &key, "1").unwrap();
            }
        }
        with_netlink(async |netlink| {
            let index = netlink.link("lo").await.unwrap().index;
            for address in [format!("{}/32", HOST.v4), format!("{}/128", HOST.v6)] {
                netlink.add_address(index, address.parse().unwrap()).await.unwrap();
            }
        });
        let Behind { namespace, link: _ } = Behind::new(
            9,
            0,
            &["198.51.100.1/24", "2001:db8:9::1/64"],
            &["198.51.100.9/24", "2001:db8:9::9/64"],
        );
        (host, Pod::of(namespace, "the outside", "198.51.100.9", "2001:db8:9::9"))
    })
}

/// The addresses of the host's links.
fn host_macs(lab: &Lab) -> Vec<Mac> {
    lab.links().into_iter().filter(|link| link.name != "lo").filter_map(|link| link.mac).collect()
}

/// Brings topologies up by a hook.
fn up(lab: &Lab, hook: Hook, texts: &[&str]) {
    for text in texts {
        let file = Declared::new(text);
        lab.ok(&[&file.args("up")[..], &["--hook", hook.name()]].concat());
    }
}

/// The address of a path's bridge.
fn bridge(lab: &Lab, path: &str) -> Mac {
    let is_it = |alias: &String| alias.ends_with(path);
    let links = lab.links();
    links.iter().find(|link| link.alias.as_ref().is_some_and(is_it)).unwrap().mac.unwrap()
}

/// That a pod is heard by a neighbour, and the ear there not deaf.
fn control(from: &Pod, to: &Pod, way: Mac) {
    let _unused = Attempts::default().send(from, to, way, &[]);
}

/// A switch, and a plain bridge, in front of which there are no programs of ours.
fn without_a_gateway_a_pod_gets_nowhere_else(hook: Hook) {
    for kind in ["switch", "bridge"] {
        let lab = Lab::new();
        let (host, outside) = host(&lab);
        let one = format!(
            "name = \"one\"\n\
             [{kind}.red]\nsubnet = [\"10.1.0.0/24\", \"fd00:1::/64\"]\npods = [\"mallory\", \"friend\"]\n\
             [switch.blue]\nsubnet = [\"10.2.0.0/24\", \"fd00:2::/64\"]\npods = [\"b1\", \"b2\"]\n\
             [bridge.grey]\nsubnet = [\"10.3.0.0/24\", \"fd00:3::/64\"]\npods = [\"g1\", \"g2\"]\n"
        );
        // With the very addresses of the first.
        let two = "name = \"two\"\n\
             [switch.red]\nsubnet = [\"10.1.0.0/24\", \"fd00:1::/64\"]\npods = [\"x1\", \"x2\"]\n";
        up(&lab, hook, &[&one, two]);
        let mallory = Pod::open(&lab, "one-mallory", "10.1.0.1", "fd00:1::1");
        let friend = Pod::open(&lab, "one-friend", "10.1.0.2", "fd00:1::2");
        let others = [
            Pod::open(&lab, "one-b1", "10.2.0.1", "fd00:2::1"),
            Pod::open(&lab, "one-b2", "10.2.0.2", "fd00:2::2"),
            Pod::open(&lab, "one-g1", "10.3.0.1", "fd00:3::1"),
            Pod::open(&lab, "one-g2", "10.3.0.2", "fd00:3::2"),
            Pod::open(&lab, "two-x1", "10.1.0.1", "fd00:1::1"),
            Pod::open(&lab, "two-x2", "10.1.0.2", "fd00:1::2"),
        ];
        for neighbours in others.as_chunks::<2>().0 {
            let [one, two] = neighbours;
            control(one, two, two.who.mac);
            control(two, one, one.who.mac);
        }
        let stack: Vec<Ear> = lab.links().iter().flat_map(|link| Ear::behind(&host, &link.name)).collect();
        let ears: Vec<&Ear> = others.iter().chain([&outside]).map(|pod| &pod.ear).chain(&stack).collect();

        let this_host = Who { mac: bridge(&lab, &format!("one/{kind}/red")), ..HOST };
        let targets: Vec<Who> =
            others.iter().chain([&outside]).map(|pod| pod.who).chain([this_host]).collect();
        let macs: Vec<Mac> =
            targets.iter().map(|who| who.mac).chain(groups()).chain(host_macs(&lab)).collect();
        let (own, mut attempts) = (mallory.who, Attempts::default());
        for target in &targets {
            for mac in &macs {
                attempts.add_all(*mac, own.mac, own, *target, this_host);
            }
            // In the name of whom it wants to reach.
            attempts.add_all(BROADCAST, target.mac, *target, friend.who, this_host);
            attempts.add_all(target.mac, target.mac, *target, this_host, this_host);
        }
        for tags in TAGS {
            for mac in &macs {
                attempts.add(format!("{tags:?} for {mac}"), |mark| {
                    frame(*mac, own.mac, tags, ETHERTYPE_EXPERIMENTAL, mark)
                });
            }
        }
        let honest = attempts.count();
        attempts.add_all(friend.who.mac, own.mac, own, friend.who, friend.who);
        let heard = attempts.send(&mallory, &friend, friend.who.mac, &ears);
        let unheard = attempts.names((honest..attempts.count() - 1).filter(|number| !heard.contains(number)));
        assert_eq!(unheard, Vec::<&str>::new(), "{hook} {kind}: honest");
    }
}

/// Paths that all end at the host, which forwards. Only one may go on to what is beyond it.
fn a_gateway_leads_to_no_other_path(hook: Hook) {
    let lab = Lab::new();
    let (host, outside) = host(&lab);
    let one = "name = \"one\"\n\
         [switch.red]\nsubnet = [\"10.1.0.0/24\", \"fd00:1::/64\"]\npods = [\"r1\", \"r2\"]\noutside = true\n\
         [switch.blue]\nsubnet = [\"10.2.0.0/24\", \"fd00:2::/64\"]\npods = [\"b1\", \"b2\"]\ngateway = true\n\
         [bridge.grey]\nsubnet = [\"10.3.0.0/24\", \"fd00:3::/64\"]\npods = [\"g1\", \"g2\"]\ngateway = true\n\
         [route.pink]\nsubnet = [\"10.4.0.0/24\", \"fd00:4::/64\"]\npods = [\"p1\", \"p2\"]\n\
         [switch.dark]\nsubnet = [\"10.5.0.0/24\", \"fd00:5::/64\"]\npods = [\"d1\", \"d2\"]\n";
    let two = "name = \"two\"\n\
         [switch.red]\nsubnet = [\"10.6.0.0/24\", \"fd00:6::/64\"]\npods = [\"x1\", \"x2\"]\noutside = true\n";
    up(&lab, hook, &[one, two]);
    // The first two addresses, behind the gateway's where it is of the same network.
    let paths = [
        ("one-r", 1, 2),
        ("one-b", 2, 2),
        ("one-g", 3, 2),
        ("one-p", 4, 1),
        ("one-d", 5, 1),
        ("two-x", 6, 2),
    ];
    let paths = paths.map(|(name, number, first)| {
        [1, 2].map(|pod| {
            let last = first + pod - 1;
            Pod::open(
                &lab,
                &format!("{name}{pod}"),
                &format!("10.{number}.0.{last}"),
                &format!("fd00:{number}::{last}"),
            )
        })
    });
    let routed =
        lab.links().into_iter().find(|link| link.alias.as_deref() == Some("veth:one/p1/eth0")).unwrap();
    let ways = [
        bridge(&lab, "one/switch/red"),
        bridge(&lab, "one/switch/blue"),
        bridge(&lab, "one/bridge/grey"),
        routed.mac.unwrap(),
    ];
    for ((number, [from, friend]), way) in paths.iter().enumerate().zip(ways) {
        let others = paths.iter().enumerate().filter(|(other, _)| *other != number);
        let mut others: Vec<&Pod> = others.flat_map(|(_, pods)| pods).collect();
        if number == 0 {
            // What it may reach.
            control(from, &outside, way);
        } else {
            others.push(&outside);
        }
        let ears: Vec<&Ear> = others.iter().map(|pod| &pod.ear).collect();
        let gateway = Who { mac: way, ..HOST };
        let macs: Vec<Mac> = host_macs(&lab).into_iter().chain(groups()).collect();
        let mut attempts = Attempts::default();
        for target in others.iter().map(|pod| pod.who) {
            for mac in macs.iter().chain([&target.mac]) {
                attempts.add_all(*mac, from.who.mac, from.who, target, gateway);
            }
            attempts.add_all(way, target.mac, from.who, target, gateway);
            for mac in [way, target.mac] {
                // Whatever the host answers is not for whoever it would be for.
                let name = format!("in the name of {}", friend.who.v4);
                attempts.add(name, |mark| {
                    ethernet(
                        mac,
                        from.who.mac,
                        ETHERTYPE_IPV4,
                        &udp(friend.who.v4, target.v4, 9, mark, 64)[0],
                    )
                });
            }
        }
        // What it may all the same: the host is its gateway.
        let stack = lab.links().into_iter().find(|link| link.mac == Some(way)).unwrap();
        let stack = Ear::behind(&host, &stack.name);
        let _heard = attempts.send(from, friend, way, &ears);
        assert!(stack.iter().any(|ear| !ear.heard(&attempts).is_empty()), "{hook} {}", from.who.v4);
    }
}

/// In somebody else's name by any means, behind any tag, for anybody.
fn a_checked_pod_speaks_for_nobody_else(hook: Hook) {
    let lab = Lab::new();
    let (host, outside) = host(&lab);
    let text = "name = \"one\"\n\
         [switch.red]\nsubnet = [\"10.1.0.0/24\", \"fd00:1::/64\"]\npods = [\"mallory\", \"friend\", \"third\"]\n\
         gateway = true\nspoof_check = true\n";
    up(&lab, hook, &[text]);
    let pod = |name: &str, last| Pod::open(&lab, name, &format!("10.1.0.{last}"), &format!("fd00:1::{last}"));
    let (mallory, friend, third) = (pod("one-mallory", 2), pod("one-friend", 3), pod("one-third", 4));
    control(&third, &friend, friend.who.mac);
    control(&friend, &third, third.who.mac);
    let own = mallory.who;
    let gateway = Who {
        mac: bridge(&lab, "one/switch/red"),
        v4: [10, 1, 0, 1].into(),
        v6: "fd00:1::1".parse().unwrap(),
    };
    let stack: Vec<Ear> = lab.links().iter().flat_map(|link| Ear::behind(&host, &link.name)).collect();
    let ears: Vec<&Ear> = [&third, &outside].map(|pod| &pod.ear).into_iter().chain(&stack).collect();

    // Of these it is the sender's own address that counts; all others say whom they speak of.
    let is_of_ethernet = |name: &str| ["LLDP", "an unknown protocol"].contains(&name);
    let speaks_of_ethernet = |name: &str| name.contains("ARP") || name.starts_with("a neighbour ");
    let mut attempts = Attempts::default();
    let mut add = |name: &str, tags, destination, source, from: Who, to: Who| {
        for (kind, (kind_name, ..)) in packets(from, to, to, &[0; 21]).iter().enumerate() {
            let is_forged = source != own.mac
                || (from.v4 != own.v4 && !is_of_ethernet(kind_name))
                || (from.mac != own.mac && speaks_of_ethernet(kind_name));
            if is_forged == name.is_empty() {
                attempts.add(
                    format!("{name}{kind_name} {tags:?} for {destination} from {source} as {from:?}"),
                    |mark| {
                        let (_, ethertype, payload) = packets(from, to, to, mark).swap_remove(kind);
                        frame(destination, source, tags, ethertype, &payload)
                    },
                );
            }
        }
    };
    for tags in TAGS {
        for (destination, to) in
            [(friend.who.mac, friend.who), (gateway.mac, gateway), (BROADCAST, friend.who)]
        {
            for other in [friend.who, third.who, gateway, HOST] {
                let names = [
                    (other.mac, own),
                    (own.mac, Who { mac: own.mac, ..other }),
                    (own.mac, Who { mac: other.mac, ..own }),
                    (other.mac, other),
                ];
                for (source, from) in names {
                    add("", tags, destination, source, from, to);
                }
            }
        }
    }
    for tags in TAGS {
        add("honest: ", tags, friend.who.mac, own.mac, own, friend.who);
    }
    let heard = attempts.send(&mallory, &friend, friend.who.mac, &ears);
    let is_honest = |number: &usize| attempts.names([*number])[0].starts_with("honest");
    let forged = attempts.names(heard.iter().copied().filter(|number| !is_honest(number)));
    assert_eq!(forged, Vec::<&str>::new(), "{hook}");
    let missing = (0..attempts.count() - 1).filter(|number| is_honest(number) && !heard.contains(number));
    assert_eq!(attempts.names(missing), Vec::<&str>::new(), "{hook}");
}
