//! Things of others, of every kind that a command could take for its own or trample on: none of them may change.

use std::fs;

use netlink_packet_route::rule::RuleAction;
use veth_common::Mac;
use veth_user::{
    net::{
        Netns,
        link::{End, Pair},
        route::Route,
        sysctl,
        tc::Direction,
    },
    topology::Topology,
};

use crate::{
    Lab, fingerprint,
    foreign::{Foreign, Place, Verdict},
    lab::{add_namespace, add_qdisc, with_netlink},
    need, nft,
};

/// Values that the kernel changes along where forwarding is changed, as somebody has set them.
const SYSCTLS: [(&str, &str); 4] = [
    ("net/ipv4/conf/their-br/forwarding", "1"),
    ("net/ipv6/conf/their-br/forwarding", "1"),
    ("net/ipv4/conf/all/accept_redirects", "0"),
    ("net/ipv4/conf/default/rp_filter", "2"),
];

/// What was planted on a host. What hangs on a handle ends with this.
#[derive(Debug)]
pub struct Planted {
    _programs: Vec<Foreign>,
    namespace: Netns,
    inside: Vec<String>,
}

impl Planted {
    /// Plants a bridge with a port and a static entry, a pair in the link group of a topology, a qdisc, a filter, a TCX
    /// program, a table of nftables, an address, a route, a rule, a neighbour, kernel parameters, a pin, files, also where
    /// ours are, and a namespace.
    #[must_use]
    pub fn plant(lab: &Lab, topology: &str) -> Self {
        let group = Topology::wire(topology, 1_500).unwrap().group();
        let programs = lab.run(move || {
            with_netlink(async |netlink| {
                let mac = |last| Mac::new([2, 0, 0, 0, 9, last]);
                netlink.add_bridge("their-br", mac(1), 1_500, 77).await.unwrap();
                let end = |name, mac| End { name, mac };
                let (host, pod) = (end("their-a", mac(2)), end("their-b", mac(3)));
                let pair = Pair { host, pod, namespace: None, mtu: 1_400, group, queues: 1 };
                netlink.add_pair(&pair).await.unwrap();
                let mut index = Vec::new();
                for link in ["their-br", "their-a", "their-b"] {
                    sysctl::disable_ipv6(link).unwrap();
                    index.push(netlink.link(link).await.unwrap().index);
                }
                let [bridge, a, b] = index[..] else { unreachable!() };
                netlink.join_bridge_learning(a, bridge).await.unwrap();
                netlink.set_up(bridge).await.unwrap();
                netlink.set_up(b).await.unwrap();
                netlink.set_alias(b, "theirs").await.unwrap();
                netlink.add_static_fdb(a, mac(4)).await.unwrap();
                netlink.add_address(bridge, "192.0.2.1/24".parse().unwrap()).await.unwrap();
                let to = "198.51.100.0/24".parse().unwrap();
                netlink.add_route(&Route { to, via: None, link: bridge }).await.unwrap();
                netlink.add_neighbour(bridge, "192.0.2.9".parse().unwrap(), mac(5)).await.unwrap();
                let (connection, handle, _) = rtnetlink::new_connection().unwrap();
                tokio::spawn(connection);
                let rule = handle.rule().add().v4().source_prefix([203, 0, 113, 0].into(), 24).priority(777);
                rule.table_id(77).action(RuleAction::ToTable).execute().await.unwrap();
            });
            add_qdisc("their-a", "pfifo");
            let b = with_netlink(async |netlink| netlink.link("their-b").await.unwrap().index);
            let mut programs = vec![Foreign::clsact(b, Direction::Ingress, 7, Verdict::Next)];
            if need::is_at_least(6, 6) {
                programs.push(Foreign::tcx(b, Place::Last, Verdict::Next));
            }
            programs.push(Foreign::pinned("/sys/fs/bpf/theirs".as_ref(), Verdict::Next));
            // Where the kernel has none, there is none to be touched.
            let _there: bool = nft::forward_rule();
            for (key, value) in SYSCTLS {
                sysctl::write(key, value).unwrap();
            }
            fs::create_dir("/run/veth").unwrap();
            for file in ["/run/theirs", "/run/veth/theirs", "/run/veth/lab.json.theirs"] {
                fs::write(file, "theirs").unwrap();
            }
            add_namespace("theirs");
            programs
        });
        let namespace = lab.pod("theirs");
        let inside = namespace.run(fingerprint::network).unwrap();
        Self { _programs: programs, namespace, inside }
    }

    /// Checks that the inside of their namespace is as it was. What is outside is in the fingerprint of the host.
    pub fn check(&self) {
        assert_eq!(self.namespace.run(fingerprint::network).unwrap(), self.inside);
    }

    /// Puts a filter and, where there is such a thing, a TCX program on a link of ours, as an agent would. They go with it.
    #[must_use]
    pub fn cling(lab: &Lab, link: &str) -> Vec<Foreign> {
        let index = lab.link(link).index;
        lab.run(move || {
            let mut programs = vec![Foreign::clsact(index, Direction::Ingress, 7, Verdict::Next)];
            if need::is_at_least(6, 6) {
                programs.push(Foreign::tcx(index, Place::First, Verdict::Next));
            }
            programs
        })
    }
}
