//! Reasons in words, and what to do about the usual ones.

/// What a reason means and what can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words {
    /// What happened.
    pub what: &'static str,
    /// What to do about it; empty where nothing is wrong, or nothing general can be said.
    pub remedy: &'static str,
}

/// By the kernel's name (`enum skb_drop_reason`, in lower case and without its prefix), or ours. Nothing for those that speak
/// for themselves.
#[must_use]
pub fn of(reason: &str) -> Option<Words> {
    let (what, remedy) = match reason {
        // Ours.
        "no_peer" => ("the other end of the wire is gone", "`veth up` makes it again"),
        "mtu_exceeded" => {
            ("longer than the other end's link takes", "give both ends of the wire the same MTU")
        }
        "no_gateway" => (
            "sent to all or to the host by a pod of a switch without a gateway",
            "usual for broadcast; a gateway in the topology file lets pods reach the host",
        ),
        "spoofed_mac" => {
            ("sent from a hardware address that is not the pod's", "what forges it runs in the pod")
        }
        "spoofed_address" => (
            "sent from an IP address that is not the pod's",
            "declare the address, or find what sends from it in the pod",
        ),
        // The kernel's.
        "no_reason" | "not_specified" => ("the kernel does not say why", "where it was dropped may tell"),
        "no_socket" => ("nobody listens on the port", "start the service, or bind it to this address"),
        "socket_rcvbuff" | "socket_backlog" | "proto_mem" | "socket_rcv_queue_full" => (
            "the receive buffer of the socket is full",
            "read faster, or raise SO_RCVBUF (net.core.rmem_max)",
        ),
        "udp_csum" | "tcp_csum" | "ip_csum" | "icmp_csum" | "skb_csum" => (
            "wrong checksum",
            "a sender whose checksum was left to hardware: turn off its tx offload (`ethtool -K eth0 tx off`)",
        ),
        "ip_innoroutes" | "ip_outnoroutes" => ("no route to the destination", "add a route in the pod"),
        "ip_inaddrerrors" | "ip_invalid_dest" => {
            ("the destination is not an address of the pod", "check addresses and routes")
        }
        "ip_invalid_source" | "ip_localnet" | "ip_local_source" => {
            ("the source address cannot be", "check the sender's addresses")
        }
        "ip_rpfilter" => {
            ("the way back leads elsewhere (rp_filter)", "add a route back, or set rp_filter to 2")
        }
        "pkt_too_big" | "pkt_too_small" => {
            ("longer than the link takes", "lower the sender's MTU, or raise the link's")
        }
        "otherhost" => ("for another hardware address", "usual where a bridge does not know the address yet"),
        "unhandled_proto" => ("no protocol takes this ethertype", "usual; nobody listens to it"),
        "dev_ready" | "dev_hdr" => ("the link is down", "set it up: `ip link set LINK up`"),
        "cpu_backlog" => ("the queue of the processor is full", "raise net.core.netdev_max_backlog"),
        "full_ring" => ("the receive ring is full", "the pod is slower than what is sent to it"),
        "qdisc_drop" | "qdisc_overlimit" | "qdisc_congested" => {
            ("the queueing discipline dropped it", "`tc -s qdisc` tells which")
        }
        "tc_ingress" | "tc_egress" | "xdp" | "bpf_cgroup_egress" => (
            "a BPF program or tc filter dropped it",
            "`bpftool net` lists what is attached; what ours dropped has a line of its own",
        ),
        "netfilter_drop" => (
            "a firewall rule dropped it",
            "`nft list ruleset` and `iptables-save`, in the pod and on the host",
        ),
        "socket_filter" => ("the socket's own filter refused it", ""),
        "neigh_failed" | "neigh_queuefull" | "neigh_dead" | "neigh_createfail" => (
            "nobody answers for the next hop's address",
            "check that it is up, and the size of the neighbour table (gc_thresh3)",
        ),
        "ip_inhdr" | "ip_noproto" | "hdr_trunc" | "pkt_too_short" => ("not a whole packet", ""),
        "ipv6disabled" => ("IPv6 is off at this link", "net.ipv6.conf.eth0.disable_ipv6"),
        "nomem" => ("out of memory", ""),
        "frag_reasm_timeout" | "dup_frag" | "frag_too_far" => {
            ("fragments did not come together", "avoid fragments: lower the MTU")
        }
        "mac_invalid_source" | "mac_ieee_mac_control" => ("a bridge refuses such a hardware address", ""),
        "bridge_ingress_stp_state" | "bridge_no_egress_port" => {
            ("the bridge has no port for it", "usual while a port comes up")
        }
        _ => return None,
    };
    Some(Words { what, remedy })
}

#[cfg(test)]
mod tests {
    use veth_common::DropReason;

    use super::*;

    #[test]
    fn every_reason_of_ours_is_explained() {
        for reason in DropReason::ALL {
            assert!(of(reason.name()).is_some(), "{}", reason.name());
        }
        assert!(of("something_new").is_none());
    }
}
