//! A switch: known unicast goes fast, the rest goes as if we were not there.

use std::{net::IpAddr, time::Duration};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use veth_tests::{
    Lab, for_each_hook,
    lab::{delete_link, eventually, hush, pod_link_stats},
    traffic::{bind, tcp, udp},
};
use veth_user::{datapath::Hook, net::Netns};

fn addresses(pod: usize) -> [IpAddr; 2] {
    [format!("10.200.0.{pod}").parse().unwrap(), format!("fd00:200::{pod:x}").parse().unwrap()]
}

for_each_hook!(
    sixteen_pods_all_to_all,
    broadcast_and_multicast_take_the_slow_path,
    a_pod_that_goes_is_left_to_the_bridge_at_once,
    pods_cannot_reach_the_host_through_a_switch_without_a_gateway,
);

fn up(lab: &Lab, hook: Hook, pods: usize) -> Vec<Netns> {
    lab.up(hook, &["--pods", &pods.to_string()]);
    (1..=pods).map(|pod| lab.pod(&format!("switch-pod{pod}"))).collect()
}

fn sixteen_pods_all_to_all(hook: Hook) {
    let lab = Lab::new();
    let kernel_counts = hook.is_xdp() || lab.redirect_peer().counts;
    let pods = up(&lab, hook, 16);
    for pod in &pods {
        hush(pod);
    }
    let all_to_all = || {
        for (number, from) in pods.iter().enumerate() {
            for (other, to) in pods.iter().enumerate().filter(|(other, _)| *other != number) {
                for address in addresses(other + 1) {
                    assert_eq!(udp(from, to, address, 100, 2), 0, "{number} -> {address}");
                    tcp(from, to, address, 10_000);
                }
            }
        }
    };
    all_to_all();
    let warm = lab.quiet_stats("switch");
    all_to_all();
    let after = lab.quiet_stats("switch");

    for (before, after) in warm["ports"].as_array().unwrap().iter().zip(after["ports"].as_array().unwrap()) {
        let sum =
            |port: &serde_json::Value, path: &str| port.pointer(path).unwrap()["packets"].as_u64().unwrap();
        let dropped: u64 =
            after["dropped"].as_object().unwrap().values().map(|sum| sum["packets"].as_u64().unwrap()).sum();
        assert_eq!(sum(after, "/rx"), sum(after, "/redirected") + sum(after, "/passed") + dropped, "{after}");
        assert_eq!(after["rx"]["packets"], after["kernel"]["rx_packets"], "{after}");
        // Neighbours are known by now, and are confirmed by unicast: nothing has to take the slow path.
        assert_eq!(sum(after, "/passed"), sum(before, "/passed"), "{after}");
        if let Some(pod) = after["pod"].as_str() {
            let bytes = |value: &serde_json::Value| value.as_u64().unwrap();
            // The table in docs/counters.md: what XDP receives, the host end counts without its Ethernet header.
            let header = if hook == Hook::Xdp { 14 * sum(after, "/rx") } else { 0 };
            assert_eq!(bytes(&after["rx"]["bytes"]), bytes(&after["kernel"]["rx_bytes"]) + header, "{after}");
            assert!(sum(after, "/redirected") > sum(before, "/redirected"));
            let namespace = lab.pod(&format!("switch-{pod}"));
            // A pod may ask for a neighbour between two readings; then both are read again.
            eventually(&format!("{pod} and its port have counted the same"), || {
                let stats = lab.stats("switch");
                let kernel = pod_link_stats(&namespace, "eth0");
                let port = stats["ports"].as_array().unwrap().iter().find(|port| port["pod"] == pod).unwrap();
                let received = (sum(port, "/tx"), bytes(&port["tx"]["bytes"]));
                // Trap A3: some kernels do not count peer redirects on the pod's link.
                let received_alike = if kernel_counts {
                    received == (kernel.rx_packets, kernel.rx_bytes)
                } else {
                    received.0 > kernel.rx_packets
                };
                sum(port, "/rx") == kernel.tx_packets && received_alike
            });
        }
    }
    assert_eq!(after["unattributed"]["packets"], 0);
}

fn broadcast_and_multicast_take_the_slow_path(hook: Hook) {
    let lab = Lab::new();
    let pods = up(&lab, hook, 3);
    let sender = bind(&pods[0], [0, 0, 0, 0].into());
    sender.set_broadcast(true).unwrap();
    let group = std::net::Ipv4Addr::new(239, 1, 2, 3);
    let listen = |pod: &Netns| {
        let socket =
            pod.run(|| Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))).unwrap().unwrap();
        let any: std::net::SocketAddr = "0.0.0.0:7777".parse().unwrap();
        socket.bind(&any.into()).unwrap();
        pod.run(|| {
            let index = eth0_index(pod);
            socket.join_multicast_v4_n(&group, &socket2::InterfaceIndexOrAddress::Index(index)).unwrap();
        })
        .unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        std::net::UdpSocket::from(socket)
    };
    let listeners: Vec<_> = pods[1..].iter().map(listen).collect();
    SockRef::from(&sender).bind_device(Some(b"eth0")).unwrap();
    let before = lab.quiet_stats("switch")["ports"][0]["passed"]["packets"].as_u64().unwrap();
    for (target, text) in [("10.200.255.255:7777", "to all"), ("239.1.2.3:7777", "to some")] {
        sender.send_to(text.as_bytes(), target).unwrap();
        for listener in &listeners {
            let mut buffer = [0; 100];
            let length = listener.recv(&mut buffer).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(&buffer[..length], text.as_bytes());
        }
    }
    let after = lab.stats("switch")["ports"][0]["passed"]["packets"].as_u64().unwrap();
    assert!(after >= before + 2, "{before} {after}");
}

/// The index of a pod's eth0.
fn eth0_index(pod: &Netns) -> u32 {
    pod.run(|| veth_tests::lab::with_netlink(async |netlink| netlink.link("eth0").await.unwrap().index))
        .unwrap()
}

fn a_pod_that_goes_is_left_to_the_bridge_at_once(hook: Hook) {
    let lab = Lab::new();
    let pods = up(&lab, hook, 3);
    let [address, _] = addresses(2);
    assert_eq!(udp(&pods[0], &pods[1], address, 100, 1), 0);
    lab.run(|| delete_link("switch-pod2"));
    let before = lab.stats("switch")["ports"][0]["passed"]["packets"].as_u64().unwrap();
    // The neighbour is still known, so this is unicast to an address in the FDB whose port is gone.
    bind(&pods[0], [0, 0, 0, 0].into()).send_to(b"anybody?", (address, 9)).unwrap();
    eventually("the frame took the slow path", || {
        lab.stats("switch")["ports"][0]["passed"]["packets"].as_u64().unwrap() > before
    });
    let [other, _] = addresses(3);
    assert_eq!(udp(&pods[0], &pods[2], other, 100, 10), 0, "others are not concerned");
}

fn pods_cannot_reach_the_host_through_a_switch_without_a_gateway(hook: Hook) {
    let lab = Lab::new();
    let pods = up(&lab, hook, 2);
    // An address of the host itself, which its stack would answer for on any link.
    lab.run(|| {
        veth_tests::lab::with_netlink(async |netlink| {
            let index = netlink.link("lo").await.unwrap().index;
            netlink.add_address(index, "10.200.77.77/32".parse().unwrap()).await.unwrap();
        });
    });
    let socket = bind(&pods[0], [0, 0, 0, 0].into());
    let before = lab.stats("switch")["ports"][2]["dropped"]["no_gateway"]["packets"].as_u64().unwrap();
    let _unused: std::io::Result<usize> = socket.send_to(b"hello host", "10.200.77.77:9");
    eventually("the host's answer is dropped before it is thought of", || {
        lab.stats("switch")["ports"][2]["dropped"]["no_gateway"]["packets"].as_u64().unwrap() > before
    });
    let neighbour = pods[0].run(|| std::fs::read_to_string("/proc/thread-self/net/arp").unwrap()).unwrap();
    let entry = neighbour.lines().find(|line| line.starts_with("10.200.77.77"));
    assert!(entry.is_none_or(|line| line.contains("00:00:00:00:00:00")), "the host answered: {neighbour}");
}

/// So many that they are kept from greeting each other while they come up; afterwards they find each other as ever.
#[test]
fn seventy_pods_find_each_other_in_both_families() {
    let lab = Lab::new();
    lab.ok(&["up", "--pods", "70"]);
    let (first, last) = (lab.pod("switch-pod1"), lab.pod("switch-pod70"));
    for address in ["10.200.0.70", "fd00:200::46"] {
        assert_eq!(udp(&first, &last, address.parse().unwrap(), 100, 5), 0, "{address}");
    }
    // The last that comes alone is as quick.
    lab.ok(&["up", "--pods", "71"]);
    assert_eq!(udp(&first, &lab.pod("switch-pod71"), "fd00:200::47".parse().unwrap(), 100, 5), 0);
}
