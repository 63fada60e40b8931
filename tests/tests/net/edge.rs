//! What links, addresses, routes, neighbours and values are told, read back from the kernel.

use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use netlink_packet_route::link::LinkAttribute;
use veth_common::Mac;
use veth_tests::{Lab, lab::with_netlink, need};
use veth_user::net::{
    Netlink, Netns,
    address::Cidr,
    link::{End, Link, Pair},
    route::Route,
    sysctl::{self, Forwarding},
};

/// One more than a bit of the last byte: whatever is cut, shows.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xa1];

fn mac(last: u8) -> Mac {
    let mut bytes = MAC;
    bytes[4] = last;
    Mac::new(bytes)
}

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Two links `one` and `two` of a pair, `two` in another namespace if there is one.
async fn pair(netlink: &Netlink, namespace: Option<&Netns>, group: u32, queues: u32) -> (Link, Link) {
    let (host, pod) = (End { name: "one", mac: mac(1) }, End { name: "two", mac: mac(2) });
    netlink.add_pair(&Pair { host, pod, namespace, mtu: 1_400, group, queues }).await.unwrap();
    let there = namespace.map(|namespace| namespace.netlink().unwrap());
    let there = there.as_ref().unwrap_or(netlink);
    (netlink.link("one").await.unwrap(), there.link("two").await.unwrap())
}

/// Its queues to send and to receive.
async fn queues(name: &str) -> Vec<u32> {
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    tokio::spawn(connection);
    let message =
        handle.link().get().match_name(name.to_owned()).execute().try_next().await.unwrap().unwrap();
    let queues = message.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::NumTxQueues(count) | LinkAttribute::NumRxQueues(count) => Some(*count),
        _ => None,
    });
    queues.collect()
}

#[test]
fn a_pair_has_queues_and_may_stay_in_one_namespace() {
    let lab = Lab::new();
    lab.run(|| {
        with_netlink(async |netlink| {
            let (one, two) = pair(netlink, None, 77, 3).await;
            assert_eq!((one.group, two.group), (77, 77));
            assert_eq!((one.mtu, two.mtu), (1_400, 1_400));
            assert_eq!((one.mac, two.mac), (Some(mac(1)), Some(mac(2))));
            assert_eq!((one.lower, two.lower), (Some(two.index), Some(one.index)));
            for name in ["one", "two"] {
                assert_eq!(queues(name).await, [3, 3]);
            }
            netlink.delete_group(77).await.unwrap();
            assert_eq!(netlink.links().await.unwrap().len(), 1, "only lo");
        });
    });
}

#[test]
fn the_other_end_of_a_pair_has_no_group_elsewhere() {
    let lab = Lab::new();
    lab.run(|| {
        let (pod, ()) = Netns::anonymous(|| Ok(())).unwrap();
        with_netlink(async |netlink| {
            let (one, two) = pair(netlink, Some(&pod), 77, 1).await;
            assert_eq!((one.group, two.group), (77, 0));
            assert_eq!(queues("one").await, [1, 1]);
        });
    });
}

#[test]
fn links_are_changed() {
    let lab = Lab::new();
    lab.run(|| {
        with_netlink(async |netlink| {
            let (one, _) = pair(netlink, None, 0, 1).await;
            let now = async || netlink.link("one").await.unwrap();
            netlink.set_up(one.index).await.unwrap();
            assert!(now().await.up);
            netlink.set_group(one.index, 78).await.unwrap();
            assert_eq!(now().await.group, 78);
            netlink.add_bridge("bridge", mac(8), 1_400, 0).await.unwrap();
            let bridge = netlink.link("bridge").await.unwrap().index;
            netlink.join_bridge_learning(one.index, bridge).await.unwrap();
            assert_eq!(now().await.controller, Some(bridge));
            assert!(netlink.set_up(999_999).await.is_err());
        });
    });
}

#[test]
fn packets_may_be_big() {
    if !need::kernel(6, 3, "BIG TCP of both families") {
        return;
    }
    let lab = Lab::new();
    lab.run(|| {
        with_netlink(async |netlink| {
            let (one, _) = pair(netlink, None, 0, 1).await;
            assert_eq!((one.gso_max_size, one.gro_max_size), (65_536, 65_536));
            netlink.set_max_sizes(one.index, 196_608, 185_000).await.unwrap();
            let big = netlink.link("one").await.unwrap();
            assert_eq!((big.gso_max_size, big.gro_max_size), (196_608, 185_000));
            let error = netlink.set_max_sizes(one.index, 9_999_999, 65_536).await.unwrap_err();
            assert_eq!(error.errno(), Some(libc::EINVAL), "{error}");
        });
    });
}

#[test]
fn addresses_are_read_here_and_elsewhere() {
    let lab = Lab::new();
    lab.run(|| {
        let (pod, ()) = Netns::anonymous(|| Ok(())).unwrap();
        with_netlink(async |netlink| {
            let (one, two) = pair(netlink, Some(&pod), 0, 1).await;
            let there = pod.netlink().unwrap();
            let addresses = [cidr("172.16.9.1/24"), cidr("172.16.9.2/32"), cidr("fd00:9::1/64")];
            for address in addresses {
                there.add_address(two.index, address).await.unwrap();
            }
            netlink.add_address(one.index, cidr("172.16.9.3/24")).await.unwrap();
            netlink.set_up(one.index).await.unwrap();
            there.set_up(two.index).await.unwrap();
            there.set_up(there.link("lo").await.unwrap().index).await.unwrap();
            assert_eq!(there.addresses(two.index).await.unwrap(), addresses);
            let here = netlink.link("one").await.unwrap();
            assert_eq!(netlink.addresses(one.index).await.unwrap(), [cidr("172.16.9.3/24")]);
            let number = here.lower_namespace.unwrap();
            let all = netlink.addresses_in(number).await.unwrap();
            let of_two: Vec<Cidr> =
                all.iter().filter(|(index, _)| *index == two.index).map(|(_, cidr)| *cidr).collect();
            assert_eq!(of_two, addresses);
            assert!(all.iter().any(|(_, found)| *found == cidr("127.0.0.1/8")), "{all:?}");
            assert!(all.iter().all(|(_, found)| *found != cidr("172.16.9.3/24")), "{all:?}");
            for _ in 0..2 {
                there.remove_address(two.index, addresses[2]).await.unwrap();
                assert_eq!(there.addresses(two.index).await.unwrap(), addresses[..2]);
            }
            assert!(netlink.addresses_in(12_345).await.is_err());
        });
    });
}

#[test]
fn routes_are_replaced_listed_and_removed() {
    let lab = Lab::new();
    lab.run(|| {
        with_netlink(async |netlink| {
            let (one, two) = pair(netlink, None, 0, 1).await;
            let link = one.index;
            netlink.add_address(link, cidr("172.16.9.1/24")).await.unwrap();
            netlink.add_address(link, cidr("fd00:9::1/64")).await.unwrap();
            netlink.set_up(link).await.unwrap();
            netlink.set_up(two.index).await.unwrap();
            assert_eq!(netlink.routes(link).await.unwrap(), [], "the kernel's own are not listed");
            let routes = [
                ("0.0.0.0/0", Some("172.16.9.254")),
                ("10.1.0.7/16", Some("192.0.2.1")), // beyond every network of the link
                ("10.2.0.0/16", None),
                ("10.3.0.0/16", Some("fe80::1")),
                ("::/0", Some("fe80::1")),
                ("fd00:a::/64", Some("fd00:9::2")),
                ("fd00:b::/64", None),
                ("fd00:c::1/128", Some("2001:db8::1")),
            ];
            let routes = routes.map(|(to, via)| Route { to: cidr(to), via: via.map(ip), link });
            for _ in 0..2 {
                for route in &routes {
                    netlink.add_route(route).await.unwrap();
                }
            }
            let mut expected: Vec<String> =
                routes.iter().map(|route| format!("{:?}", (route.to.network(), route.via))).collect();
            let listed = async || {
                let found = netlink.routes(link).await.unwrap();
                let mut found: Vec<String> = found.iter().map(|route| format!("{route:?}")).collect();
                found.sort();
                found
            };
            expected.sort();
            assert_eq!(listed().await, expected);
            assert_eq!(netlink.routes(two.index).await.unwrap(), []);
            // Another gateway takes the place of the first.
            let moved = Route { via: Some(ip("172.16.9.253")), ..routes[0] };
            netlink.add_route(&moved).await.unwrap();
            assert!(netlink.routes(link).await.unwrap().contains(&(moved.to, moved.via)));
            assert_eq!(listed().await.len(), expected.len());
            for _ in 0..2 {
                for route in routes[1..].iter().chain([&moved]) {
                    netlink.remove_route(route).await.unwrap();
                }
                assert_eq!(netlink.routes(link).await.unwrap(), []);
            }
            assert_eq!(netlink.addresses(link).await.unwrap().len(), 2);
        });
    });
}

#[test]
fn neighbours_are_told_and_forgotten() {
    let lab = Lab::new();
    lab.run(|| {
        with_netlink(async |netlink| {
            let (one, two) = pair(netlink, None, 0, 1).await;
            for link in [&one, &two] {
                netlink.set_up(link.index).await.unwrap();
            }
            for (address, last) in [("172.16.9.2", 3), ("fd00:9::2", 4), ("172.16.9.2", 5)] {
                netlink.add_neighbour(one.index, ip(address), mac(last)).await.unwrap();
            }
            netlink.add_neighbour(two.index, ip("172.16.9.9"), mac(6)).await.unwrap();
            let mut found = netlink.permanent_neighbours(one.index).await.unwrap();
            found.sort_by_key(|(address, _)| *address);
            assert_eq!(found, [(ip("172.16.9.2"), mac(5)), (ip("fd00:9::2"), mac(4))]);
            for _ in 0..2 {
                netlink.remove_neighbour(one.index, ip("172.16.9.2")).await.unwrap();
                let found = netlink.permanent_neighbours(one.index).await.unwrap();
                assert_eq!(found, [(ip("fd00:9::2"), mac(4))]);
            }
        });
    });
}

#[test]
fn values_are_those_of_a_namespace() {
    let lab = Lab::new();
    lab.run(|| {
        let (pod, ()) = Netns::anonymous(|| Ok(())).unwrap();
        let before = sysctl::read("net.core.somaxconn").unwrap();
        for key in ["net.core.somaxconn", "net/core/somaxconn"] {
            sysctl::write_in(&pod, key, "777").unwrap();
            assert_eq!(sysctl::read_in(&pod, key).unwrap().as_deref(), Some("777"));
        }
        assert_eq!(sysctl::read("net.core.somaxconn").unwrap(), before);
        sysctl::write_in(&pod, "net.ipv4.ip_local_port_range", "20000 30000").unwrap();
        sysctl::write_in(&pod, "net.ipv4.ip_local_port_range", "20000\t30000").unwrap();
        let error = sysctl::write_in(&pod, "net.ipv4.no_such_thing", "1").unwrap_err();
        assert!(error.action.contains("net/ipv4/no_such_thing"), "{error}");
        assert_eq!(sysctl::read_in(&pod, "net.ipv4.no_such_thing").unwrap(), None);
        assert!(sysctl::write_in(&pod, "kernel.panic", "1").is_err());

        for on in [true, true, false] {
            let wanted = Forwarding { ipv4: on, ipv6: !on };
            sysctl::set_forwarding(wanted).unwrap();
            assert_eq!(sysctl::forwarding().unwrap(), wanted);
        }
    });
}
