//! What a host forwards for routed paths: pods, the host, and a machine beyond it that knows only the host.

use std::{net::IpAddr, thread};

use veth_tests::{
    Lab,
    behind::Behind,
    lab::{eventually, with_netlink},
    traffic::udp,
};
use veth_user::net::{
    Netns,
    address::Cidr,
    forwarding::{self, ForwardPath},
    route::Route,
    sysctl::{self, Forwarding},
};

const TABLE: &str = "veth-lab";

/// A namespace with one link, `eth0`, to the host.
struct Machine {
    namespace: Netns,
    addresses: [IpAddr; 2],
}

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

/// The networks of a machine: 10.NUMBER.0.0/24 and `fd00:NUMBER::/64`.
fn networks(number: u8) -> [Cidr; 2] {
    [cidr(&format!("10.{number}.0.0/24")), cidr(&format!("fd00:{number}::/64"))]
}

/// An address of these networks.
fn addresses(number: u8, last: u8) -> [Cidr; 2] {
    [cidr(&format!("10.{number}.0.{last}/24")), cidr(&format!("fd00:{number}::{last}/64"))]
}

/// Makes a machine behind a link of a group. On the calling thread's namespace, the host.
fn machine(number: u8, group: u32, is_pod: bool) -> Machine {
    let texts = |last| addresses(number, last).map(|cidr| cidr.to_string());
    let (host, own) = (texts(1), texts(2));
    let Behind { namespace, link: _ } =
        Behind::new(number, group, &host.each_ref().map(String::as_str), &own.each_ref().map(String::as_str));
    if is_pod {
        with_netlink(async |_| {
            let inside = namespace.netlink().unwrap();
            let link = inside.link("eth0").await.unwrap().index;
            for (to, gateway) in ["0.0.0.0/0", "::/0"].into_iter().zip(addresses(number, 1)) {
                let route = Route { to: cidr(to), via: Some(gateway.address), link };
                inside.add_route(&route).await.unwrap();
            }
        });
    }
    Machine { namespace, addresses: addresses(number, 2).map(|cidr| cidr.address) }
}

/// Whether datagrams get there and back, by IPv4 and by IPv6.
fn reaches(from: &Machine, to: &Machine) -> [bool; 2] {
    to.addresses.map(|address| udp(&from.namespace, &to.namespace, address, 100, 1) == 0)
}

fn path(number: u8, group: u32, outside: bool) -> ForwardPath {
    ForwardPath { group, outside, subnets: networks(number).into() }
}

#[test]
fn paths_reach_what_they_may() {
    let lab = Lab::new();
    lab.run(|| {
        sysctl::set_forwarding(Forwarding { ipv4: true, ipv6: true }).unwrap();
        // While a link has no address `fe80::…`, nobody is looked for on it to forward to.
        sysctl::disable_dad().unwrap();
        // Two pods of a path whose host ends are two, one of another with the outside, and one of one without.
        let [one, beside, other, inner] =
            [(1, 101), (2, 101), (3, 102), (4, 103)].map(|(number, group)| machine(number, group, true));
        // It knows a way to the first path only, and none to the second.
        let outside = machine(9, 0, false);
        with_netlink(async |_| {
            let netlink = outside.namespace.netlink().unwrap();
            let link = netlink.link("eth0").await.unwrap().index;
            for (to, gateway) in networks(1).into_iter().zip(addresses(9, 1)) {
                netlink.add_route(&Route { to, via: Some(gateway.address), link }).await.unwrap();
            }
        });
        // Without a table everybody reaches everybody, who knows a way back.
        eventually("links are ready", || reaches(&one, &inner) == [true; 2]);
        let mut first = path(1, 101, true);
        first.subnets.extend(networks(2));
        let paths = [first, path(3, 102, true), path(4, 103, false)];
        assert!(!forwarding::is_current(TABLE, &paths).unwrap());
        for _ in 0..2 {
            forwarding::replace(TABLE, &paths).unwrap();
            assert!(forwarding::is_current(TABLE, &paths).unwrap());
        }
        // Those that nothing comes back of wait long, so all at once.
        let cases = [
            ("a pod of the same path", &one, &beside, true),
            ("the outside", &one, &outside, true),
            ("the outside, which knows no way back", &other, &outside, true),
            ("a pod of another path", &one, &other, false),
            ("a pod of another path, back", &other, &one, false),
            ("a pod of a path without outside", &one, &inner, false),
            ("the outside from a path without it", &inner, &outside, false),
            ("a path from one without outside", &inner, &one, false),
            ("a pod from outside", &outside, &one, false),
        ];
        thread::scope(|scope| {
            let cases = cases
                .map(|(what, from, to, expected)| (what, expected, scope.spawn(move || reaches(from, to))));
            for (what, expected, case) in cases {
                assert_eq!(case.join().unwrap(), [expected; 2], "{what}");
            }
        });
        // From the host to its pods and back nothing is in the way.
        let host = Netns::current().unwrap();
        for address in inner.addresses {
            assert_eq!(udp(&host, &inner.namespace, address, 100, 1), 0);
        }
        forwarding::delete(TABLE).unwrap();
        forwarding::delete(TABLE).unwrap();
        assert!(!forwarding::is_current(TABLE, &paths).unwrap());
        assert_eq!(reaches(&one, &inner), [true; 2]);
    });
}

#[test]
fn a_table_is_current_only_as_it_was_written() {
    let lab = Lab::new();
    lab.run(|| {
        let paths: Vec<_> = (1..=200).map(|number| path(number, 1_000 + u32::from(number), true)).collect();
        forwarding::replace(TABLE, &paths).unwrap();
        forwarding::replace("veth-other", &paths[..2]).unwrap();
        assert!(forwarding::is_current(TABLE, &paths).unwrap());
        assert!(forwarding::is_current("veth-other", &paths[..2]).unwrap());
        assert!(!forwarding::is_current(TABLE, &paths[..2]).unwrap());
        assert!(!forwarding::is_current("veth-other", &paths).unwrap());
        // Of another namespace nothing is read or written.
        let (elsewhere, ()) = Netns::anonymous(|| Ok(())).unwrap();
        assert!(!elsewhere.run(|| forwarding::is_current(TABLE, &paths)).unwrap().unwrap());
        elsewhere.run(|| forwarding::delete(TABLE)).unwrap().unwrap();
        forwarding::delete("veth-other").unwrap();
        assert!(forwarding::is_current(TABLE, &paths).unwrap());
        // Without subnets of the outside there is no NAT, and without paths nothing but chains.
        for paths in [&[path(1, 7, false)][..], &[]] {
            forwarding::replace(TABLE, paths).unwrap();
            assert!(forwarding::is_current(TABLE, paths).unwrap());
        }
        let error = forwarding::replace(TABLE, &[path(1, 7, false), path(2, 7, false)]).unwrap_err();
        assert!(error.source.to_string().contains("group"), "{error}");
        assert!(forwarding::is_current(TABLE, &[]).unwrap());
    });
}
