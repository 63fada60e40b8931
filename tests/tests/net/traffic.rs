//! Ordinary traffic crosses, whatever its kind.

use std::{
    net::{IpAddr, UdpSocket},
    os::fd::AsRawFd as _,
};

use veth_tests::{
    Lab, for_each_hook,
    lab::pod_link_stats,
    packet::receive_with,
    traffic::{bind, tcp, udp},
};
use veth_user::datapath::Hook;

for_each_hook!(
    tcp_and_udp_over_a_wire_in_both_families,
    jumbo_datagrams_cross_in_one_piece,
    a_first_ipv6_packet_needs_no_second,
);

fn wire_addresses() -> [IpAddr; 2] {
    ["172.16.0.2".parse().unwrap(), "fd00:172:16::2".parse().unwrap()]
}

fn tcp_and_udp_over_a_wire_in_both_families(hook: Hook) {
    let lab = Lab::new();
    lab.up(hook, &[]);
    let (one, two) = (lab.pod("ns1"), lab.pod("ns2"));
    for address in wire_addresses() {
        tcp(&one, &two, address, 20_000_000);
        assert_eq!(udp(&one, &two, address, 1_000, 200), 0, "lost to {address}");
    }
    let stats = lab.quiet_stats("wire");
    let rx = &stats["ports"][0]["rx"];
    let (packets, segments) = (rx["packets"].as_u64().unwrap(), rx["segments"].as_u64().unwrap());
    if hook.is_xdp() {
        assert_eq!(segments, packets, "XDP sees no GSO frames: {rx}");
    } else {
        assert!(segments > 5 * packets, "GSO frames stay whole and count as what they are cut into: {rx}");
    }
    assert!(segments >= 2 * 20_000_000 / 1_500, "{rx}");
}

#[test]
fn tcp_and_udp_by_host_redirect() {
    let lab = Lab::new();
    lab.ok(&["up", "--redirect", "host"]);
    let (one, two) = (lab.pod("ns1"), lab.pod("ns2"));
    for address in wire_addresses() {
        tcp(&one, &two, address, 5_000_000);
        assert_eq!(udp(&one, &two, address, 1_000, 100), 0);
    }
    let stats = lab.quiet_stats("wire");
    // Every frame to ns2 left by its host end: the link has counted all that we have.
    let port = &stats["ports"][1];
    assert_eq!(port["tx"]["packets"], port["kernel"]["tx_packets"]);
    assert!(port["tx"]["segments"].as_u64() > port["tx"]["packets"].as_u64(), "{port}");
}

fn jumbo_datagrams_cross_in_one_piece(hook: Hook) {
    let lab = Lab::new();
    lab.up(hook, &["--pods", "2", "--mtu", "9000"]);
    let (one, two) = (lab.pod("switch-pod1"), lab.pod("switch-pod2"));
    let address: IpAddr = "10.200.0.2".parse().unwrap();
    assert_eq!(udp(&one, &two, address, 1, 1), 0, "warm the neighbour table");
    let before = lab.stats("switch")["ports"][0]["redirected"].clone();
    let socket = bind(&one, [0, 0, 0, 0].into());
    // IP_MTU_DISCOVER, IP_PMTUDISC_DO: fail rather than fragment.
    let option: libc::c_int = libc::IP_PMTUDISC_DO;
    let fd = socket.as_raw_fd();
    // SAFETY: an int of the length that we say.
    let result = unsafe {
        libc::setsockopt(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, (&raw const option).cast(), 4)
    };
    assert_eq!(result, 0);
    let receiver = bind(&two, address);
    socket.send_to(&[7; 8_972], receiver.local_addr().unwrap()).unwrap();
    let mut buffer = [0; 9_000];
    assert_eq!(receiver.recv(&mut buffer).unwrap(), 8_972);
    let after = &lab.stats("switch")["ports"][0]["redirected"];
    let grown = |field: &str| after[field].as_u64().unwrap() - before[field].as_u64().unwrap();
    assert!(grown("bytes") >= 9_014, "{before} {after}");
}

fn a_first_ipv6_packet_needs_no_second(hook: Hook) {
    // Without `nodad` and `accept_dad=0`, binding to a fresh address fails for a second or two.
    const IFA_F_TENTATIVE: u32 = 0x40;
    let lab = Lab::new();
    lab.up(hook, &[]);
    let (one, two) = (lab.pod("ns1"), lab.pod("ns2"));
    // The link-local address too, which the kernel adds by itself.
    let text = one.run(|| std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap()).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| line.ends_with("eth0")).collect();
    assert_eq!(lines.len(), 2, "{text}");
    for line in lines {
        let flags = u32::from_str_radix(line.split_whitespace().nth(4).unwrap(), 16).unwrap();
        assert_eq!(flags & IFA_F_TENTATIVE, 0, "{line}");
    }
    assert_eq!(udp(&one, &two, wire_addresses()[1], 100, 1), 0);
}

#[test]
fn the_mark_of_a_program_before_ours_does_not_reach_the_pod() {
    use veth_tests::foreign::Foreign;

    if !veth_tests::need::kernel(5, 19, "SO_RCVMARK, by which a socket is told of a mark") {
        return;
    }
    let lab = Lab::new();
    lab.ok(&["up", "--hook", "clsact"]);
    let (one, two) = (lab.pod("ns1"), lab.pod("ns2"));
    let index = lab.link("wire-ns1").index;
    let foreign = lab.run(move || Foreign::mark_ingress(index, 0x77));
    let receiver = bind(&two, wire_addresses()[0]);
    ask_for_marks(&receiver);
    bind(&one, [0, 0, 0, 0].into()).send_to(b"marked?", receiver.local_addr().unwrap()).unwrap();
    let (bytes, mark) = receive_with::<u32>(receiver.as_raw_fd());
    assert_eq!(bytes, b"marked?");
    assert_eq!(mark, Some(0), "trap A2: redirect_peer leaves the mark in place");
    assert!(foreign.seen() >= 1);
    assert!(pod_link_stats(&two, "eth0").rx_packets > 0);
}

/// Asks for the mark of each datagram: `SO_RCVMARK`, which the socket crate does not know.
fn ask_for_marks(socket: &UdpSocket) {
    const SO_RCVMARK: libc::c_int = 75;
    let on: libc::c_int = 1;
    let fd = socket.as_raw_fd();
    // SAFETY: an int of the length that we say.
    let result = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, SO_RCVMARK, (&raw const on).cast(), 4) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
