//! Frames made by hand.

use std::net::{Ipv4Addr, Ipv6Addr};

use veth_common::Mac;

/// An ethertype that nobody uses (IEEE local experimental 1).
pub const ETHERTYPE_EXPERIMENTAL: u16 = 0x88b5;
/// An 802.1Q tag.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// An 802.1ad service tag.
pub const ETHERTYPE_QINQ: u16 = 0x88a8;
/// IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// IPv6 "next header" numbers.
pub const UDP: u8 = 17;
/// A fragment header.
pub const FRAGMENT: u8 = 44;
/// `ICMPv6`.
pub const ICMPV6: u8 = 58;
/// Destination options.
pub const DESTINATION_OPTIONS: u8 = 60;

/// `ICMPv6` types.
pub const NEIGHBOUR_SOLICITATION: u8 = 135;
/// The answer to a solicitation.
pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// An Ethernet frame.
#[must_use]
pub fn ethernet(destination: Mac, source: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&destination.bytes()[..], &source.bytes(), &ethertype.to_be_bytes(), payload].concat()
}

/// What stands behind a VLAN ethertype: the tag and the frame it tags.
#[must_use]
pub fn tagged(vlan: u16, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&vlan.to_be_bytes()[..], &ethertype.to_be_bytes(), payload].concat()
}

/// What stands behind the ethertype of ARP: a request (1) or an answer (2).
#[must_use]
pub fn arp(operation: u8, mac: Mac, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4, 0, operation], &mac.bytes()[..], &from.octets(), &[0; 6], &to.octets()].concat()
}

/// An IPv6 packet.
#[must_use]
pub fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&[0x60, 0, 0, 0][..], &length, &[next, 255], &from.octets(), &to.octets(), payload].concat()
}

/// A message of Neighbour Discovery about a target, with a link-layer address option of the kind that belongs to
/// it. Without a checksum.
#[must_use]
pub fn neighbour(kind: u8, target: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let option = if kind == NEIGHBOUR_ADVERTISEMENT { 2 } else { 1 };
    [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), &[option, 1], &mac.bytes()].concat()
}

/// An extension header of eight bytes in front of a payload: destination options that do nothing, or, as a fragment
/// header, one that fragments nothing.
#[must_use]
pub fn extension(next: u8, payload: &[u8]) -> Vec<u8> {
    [&[next, 0, 0, 0, 0, 0, 0, 0], payload].concat()
}

/// An IPv4 packet, with options of four bytes each in front of the payload.
#[must_use]
pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut header = ipv4_header(from, to, protocol, 20 + options.len() + payload.len()).to_vec();
    header.extend(options);
    header[0] += u8::try_from(options.len() / 4).unwrap();
    set_checksum(&mut header);
    [&header, payload].concat()
}

/// An IPv4 header for a packet of a length, which includes it.
#[must_use]
pub fn ipv4_header(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, length: usize) -> [u8; 20] {
    let mut header = [0x45, 0, 0, 0, 0, 7, 0, 0, 64, protocol, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[2..4].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
    header[12..16].copy_from_slice(&from.octets());
    header[16..].copy_from_slice(&to.octets());
    set_checksum(&mut header);
    header
}

/// Makes the checksum of an IPv4 header right, with its options.
pub fn set_checksum(header: &mut [u8]) {
    header[10..12].fill(0);
    let sum: u32 = header.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// An IPv4 datagram with UDP in it, whole or as fragments of `fragment` bytes of payload.
#[must_use]
pub fn udp(from: Ipv4Addr, to: Ipv4Addr, port: u16, payload: &[u8], fragment: usize) -> Vec<Vec<u8>> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    // No checksum: zero says so.
    let datagram =
        [&9_u16.to_be_bytes()[..], &port.to_be_bytes(), &length.to_be_bytes(), &[0, 0], payload].concat();
    let mut packets = Vec::new();
    for (number, part) in datagram.chunks(fragment).enumerate() {
        let offset = number * fragment;
        let more = offset + part.len() < datagram.len();
        let flags = u16::try_from(offset / 8).unwrap() | if more { 0x2000 } else { 0 };
        let mut header = ipv4_header(from, to, UDP, 20 + part.len());
        header[6..8].copy_from_slice(&flags.to_be_bytes());
        set_checksum(&mut header);
        packets.push([&header[..], part].concat());
    }
    packets
}
