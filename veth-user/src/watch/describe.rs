//! What a frame says, in a few words.

use std::net::IpAddr;

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacketSlice, EtherType, LaxNetSlice, LaxSlicedPacket, TransportSlice,
};
use serde::Serialize;
use veth_common::{Mac, RedirectMode, watch::Outcome};

use super::{Owner, Seen};

/// The addresses of a frame, as far as they could be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Addresses {
    /// The Ethernet address that it is for.
    pub destination_mac: Option<String>,
    /// The Ethernet address that it is from.
    pub source_mac: Option<String>,
    /// What it carries: `tcp`, `udp`, `arp request`, …, or the ethertype.
    pub protocol: String,
    /// The IP address that it is from.
    pub source: Option<IpAddr>,
    /// The port that it is from.
    pub source_port: Option<u16>,
    /// The IP address that it is for.
    pub destination: Option<IpAddr>,
    /// The port that it is for.
    pub destination_port: Option<u16>,
}

/// Reads the beginning of a frame.
#[must_use]
pub fn addresses(frame: &[u8]) -> Addresses {
    let Ok(packet) = LaxSlicedPacket::from_ethernet(frame) else {
        return Addresses { protocol: "no Ethernet header".to_owned(), ..Addresses::default() };
    };
    let mac = |at: usize| {
        let bytes: Option<[u8; 6]> = frame.get(at..at + 6).and_then(|bytes| bytes.try_into().ok());
        bytes.map(|bytes| Mac::new(bytes).to_string())
    };
    let ethertype = packet.ether_payload().map(|payload| payload.ether_type);
    let mut addresses = Addresses {
        destination_mac: mac(0),
        source_mac: mac(6),
        protocol: ethertype.map_or_else(|| "nothing".to_owned(), name),
        ..Addresses::default()
    };
    match &packet.net {
        Some(LaxNetSlice::Ipv4(ip)) => {
            let header = ip.header();
            addresses.source = Some(header.source_addr().into());
            addresses.destination = Some(header.destination_addr().into());
            addresses.protocol = protocol(header.protocol().keyword_str(), header.protocol().0);
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            let header = ip.header();
            addresses.source = Some(header.source_addr().into());
            addresses.destination = Some(header.destination_addr().into());
            let last = ip.payload().ip_number;
            addresses.protocol = protocol(last.keyword_str(), last.0);
        }
        Some(LaxNetSlice::Arp(arp)) => {
            let (what, from, to) = read_arp(arp);
            addresses.protocol = what;
            addresses.source = from;
            addresses.destination = to;
        }
        None => {}
    }
    let ports = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => Some((tcp.source_port(), tcp.destination_port())),
        Some(TransportSlice::Udp(udp)) => Some((udp.source_port(), udp.destination_port())),
        _ => None,
    };
    addresses.source_port = ports.map(|(source, _)| source);
    addresses.destination_port = ports.map(|(_, destination)| destination);
    addresses
}

fn name(ethertype: EtherType) -> String {
    format!("ethertype 0x{:04x}", ethertype.0)
}

fn protocol(keyword: Option<&str>, number: u8) -> String {
    keyword.map_or_else(|| format!("protocol {number}"), str::to_lowercase)
}

fn read_arp(arp: &ArpPacketSlice<'_>) -> (String, Option<IpAddr>, Option<IpAddr>) {
    let what = match arp.operation() {
        ArpOperation::REQUEST => "arp request".to_owned(),
        ArpOperation::REPLY => "arp reply".to_owned(),
        ArpOperation(other) => format!("arp {other}"),
    };
    let address = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    if arp.hw_addr_type() != ArpHardwareId::ETHERNET || arp.proto_addr_type() != EtherType::IPV4 {
        return (what, None, None);
    }
    (what, address(arp.sender_protocol_addr()), address(arp.target_protocol_addr()))
}

impl Addresses {
    /// `10.0.0.1:80 > 10.0.0.2:1000 tcp`, or the Ethernet addresses where there are no others.
    #[must_use]
    pub fn line(&self) -> String {
        let end = |address: Option<IpAddr>, port: Option<u16>, mac: &Option<String>| match (address, port) {
            (Some(IpAddr::V6(address)), Some(port)) => format!("[{address}]:{port}"),
            (Some(address), Some(port)) => format!("{address}:{port}"),
            (Some(address), None) => address.to_string(),
            (None, _) => mac.clone().unwrap_or_else(|| "?".to_owned()),
        };
        let from = end(self.source, self.source_port, &self.source_mac);
        let to = end(self.destination, self.destination_port, &self.destination_mac);
        format!("{from} > {to} {}", self.protocol)
    }
}

/// What became of a frame: `redirected to pod2 (peer)`, `passed: group`.
#[must_use]
pub fn outcome(seen: &Seen<'_>) -> String {
    match seen.outcome {
        Outcome::Passed(reason) => format!("passed: {}", reason.name()),
        Outcome::Dropped(reason) => format!("dropped: {}", reason.name()),
        Outcome::Sent => "sent".to_owned(),
        Outcome::Redirected(mode) => {
            let target = seen.target.map_or_else(|| format!("link {}", seen.event.target), Owner::name);
            let mode = match mode {
                RedirectMode::Peer => "peer",
                RedirectMode::Host => "host",
            };
            format!("redirected to {target} ({mode})")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_in_words() {
        let ethernet = || etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let mut frame = Vec::new();
        ethernet().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(7, 53).write(&mut frame, &[0; 10]).unwrap();
        assert_eq!(addresses(&frame).line(), "10.0.0.1:7 > 10.0.0.2:53 udp");
        assert_eq!(addresses(&frame[..38]).line(), "10.0.0.1 > 10.0.0.2 udp", "cut off");
        frame.clear();
        ethernet().ipv6([0xfd; 16], [0xfe; 16], 64).tcp(1, 2, 3, 4).write(&mut frame, &[]).unwrap();
        assert!(addresses(&frame).line().ends_with("]:2 tcp"), "{}", addresses(&frame).line());
        let other = [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5][..], &[0; 46]].concat();
        assert_eq!(addresses(&other).line(), "02:00:00:00:00:02 > 02:00:00:00:00:01 ethertype 0x88b5");
        let arp = [
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1][..],
            &[2, 0, 0, 0, 0, 2, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2],
        ]
        .concat();
        assert_eq!(addresses(&arp).line(), "10.0.0.1 > 10.0.0.2 arp request");
        assert_eq!(addresses(&[1, 2, 3]).protocol, "no Ethernet header");
    }
}
