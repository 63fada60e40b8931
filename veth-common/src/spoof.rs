//! Whether a pod sends in its own name. Runs for every frame of a port with [`Port::SPOOF_CHECK`], before
//! anything else is decided, so that what it drops reaches neither another pod nor the bridge.
//!
//! What counts as a name, and where it stands:
//!
//! | frame | must be the port's |
//! |---|---|
//! | any | the source of the Ethernet header |
//! | IPv4 | the source address. 0.0.0.0 (DHCP) only to 255.255.255.255 |
//! | ARP | the sender's hardware and protocol address. The protocol address of a request may be 0.0.0.0 (a probe, RFC 5227) |
//! | IPv6 | the source address. `::` only for what RFC 4861, 4862 and 3590 send before there is an address: solicitations, and multicast listener reports |
//! | Neighbour Discovery | also every link-layer address option, and the target of an advertisement |
//!
//! A check that can be walked around is none. So up to two VLAN tags are looked behind, and what would hide the
//! rest is dropped: more tags, extension headers beyond the six that RFC 8200 lists, headers cut off by the end of
//! the packet or of its first fragment, Neighbour Discovery in fragments (which RFC 6980 forbids), and ARP for
//! anything but IPv4 over Ethernet. Other ethertypes pass: they carry no address that we know. Tunnels do too: what
//! is inside is for whoever ends the tunnel to judge.

use crate::{
    DropReason, EthernetHeader, Frame, Mac, Packet, Port, SourceKey, Tables,
    ethertype::{ARP, IPV4, IPV6},
    ip_protocol::ICMPV6,
};

/// Ethertypes of tags, as they stand in a frame.
const DOT1Q: u16 = 0x8100_u16.to_be();
const DOT1AD: u16 = 0x88a8_u16.to_be();

/// How many tags are looked behind.
const MAX_TAGS: u32 = 2;

/// IPv6 "next header" numbers.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;

/// How many extension headers are walked: all that RFC 8200, section 4.1, lists and that can be looked behind.
const MAX_EXTENSIONS: u32 = 6;

/// `ICMPv6` types.
const LISTENER_REPORT: u8 = 131;
const LISTENER_DONE: u8 = 132;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const LISTENER_REPORT_V2: u8 = 143;

/// Neighbour Discovery options.
const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;

/// The address in an option's first eight bytes.
const MAC_BITS: u64 = 0xffff_ffff_ffff;

/// How many options of a Neighbour Discovery message are walked. Hosts send one or two.
const MAX_OPTIONS: u32 = 8;

/// Writes a block out as often as it can be needed. The verifier of 5.10 takes a loop that ends in a call for an
/// endless one (`check_cfg`: what follows a call may not be where the walk came from).
macro_rules! up_to {
    ($max:ident: $($number:literal)+ => $block:block) => {
        const _: () = assert!([$($number),+].len() == $max as usize);
        $({
            const _: u32 = $number;
            $block
        })+
    };
}

/// Whether an ethertype is that of a VLAN tag.
#[must_use]
#[inline(always)]
pub const fn is_tag(ethertype: u16) -> bool {
    ethertype == DOT1Q || ethertype == DOT1AD
}

/// Checks that a frame is in its port's own name.
///
/// # Errors
///
/// The reason to drop it.
#[inline(always)]
pub fn check(
    port: &Port,
    frame: &Frame<'_>,
    packet: &impl Packet,
    tables: &impl Tables,
) -> Result<(), DropReason> {
    match frame.header {
        Some(header) if header.source == port.mac => {
            let sender = Sender { port, frame, packet, tables };
            if sender.owns_what_is_in(header.ethertype) { Ok(()) } else { Err(DropReason::SpoofedAddress) }
        }
        _ => Err(DropReason::SpoofedMac),
    }
}

/// A frame, with what is needed to judge who sent it. Every method answers whether the frame may go on.
#[derive(Clone, Copy)]
struct Sender<'a, P, T> {
    port: &'a Port,
    frame: &'a Frame<'a>,
    packet: &'a P,
    tables: &'a T,
}

/// What IPv6 carries behind its extension headers.
enum Upper {
    /// `ICMPv6`.
    Icmp,
    /// Something else, or a fragment that does not begin it.
    Other,
    /// It cannot be seen.
    Hidden,
}

/// Whether something follows in a header of its own.
#[inline(always)]
const fn is_extension(next: u8) -> bool {
    matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION | MOBILITY)
}

impl<P: Packet, T: Tables> Sender<'_, P, T> {
    #[inline(always)]
    fn owns_v4(&self, address: [u8; 4]) -> bool {
        self.tables.is_source(&SourceKey::v4(self.port.slot, address))
    }

    #[inline(always)]
    fn owns_v6(&self, address: [u8; 16]) -> bool {
        self.tables.is_source(&SourceKey::v6(self.port.slot, address))
    }

    #[inline(always)]
    fn owns_what_is_in(&self, mut ethertype: u16) -> bool {
        let mut at = EthernetHeader::LENGTH;
        let mut tags = 0;
        up_to! { MAX_TAGS: 1 2 => {
            if is_tag(ethertype) {
                let Some([_, _, high, low]) = self.packet.load(at) else {
                    return false;
                };
                ethertype = u16::from_ne_bytes([high, low]);
                at += 4;
                tags += 1;
            }
        }}
        if is_tag(ethertype) {
            return false;
        }
        // So that the limit is the same whether the kernel has taken the outer tag out of the frame or not.
        if tags == MAX_TAGS && self.packet.has_tag_beside() {
            return false;
        }
        match ethertype {
            IPV4 => self.ipv4(at),
            IPV6 => self.ipv6(at),
            ARP => self.arp(at),
            _ => true,
        }
    }

    #[inline(always)]
    fn ipv4(&self, at: u32) -> bool {
        // Source and destination.
        let Some([a, b, c, d, to @ ..]) = self.packet.load::<8>(at + 12) else {
            return false;
        };
        if [a, b, c, d] == [0; 4] { to == [0xff; 4] } else { self.owns_v4([a, b, c, d]) }
    }

    #[inline(always)]
    fn arp(&self, at: u32) -> bool {
        let Some(header) = self.packet.load::<18>(at) else {
            return false;
        };
        let [kind @ .., _, _, _, _, _, _, _, _, _, _] = header;
        let [_, _, _, _, _, _, _, operation, a, b, c, d, e, f, ip @ ..] = header;
        // Ethernet, IPv4, and the lengths of both; the high byte of the operation.
        kind == [0, 1, 8, 0, 6, 4, 0, operation]
            && Mac::new([a, b, c, d, e, f]) == self.port.mac
            && if ip == [0; 4] { operation == 1 } else { self.owns_v4(ip) }
    }

    #[inline(always)]
    fn ipv6(&self, at: u32) -> bool {
        let Some(header) = self.packet.load::<24>(at) else {
            return false;
        };
        let [_, _, _, _, high, low, next, _, source @ ..] = header;
        let is_unspecified = source == [0; 16];
        if !is_unspecified && !self.owns_v6(source) {
            return false;
        }
        let at = at + 40;
        let payload = u32::from(u16::from_be_bytes([high, low]));
        // There the kernel takes the rest of the frame for the payload (`ip6_rcv_core` in `net/ipv6/ip6_input.c`), because a
        // jumbogram says its length in the hop-by-hop header.
        let end = if payload == 0 && next == HOP_BY_HOP { self.frame.length } else { at + payload };
        match self.upper(at, end, next) {
            (Upper::Icmp, at, is_fragment) => self.icmp(at, end, is_fragment, is_unspecified),
            (Upper::Other, ..) => !is_unspecified,
            (Upper::Hidden, ..) => false,
        }
    }

    /// Walks the extension headers. Nothing behind `end` is looked at: padding there could pretend to be the
    /// rest of a packet whose real rest is in the next fragment.
    ///
    /// Returns what there is, from which offset on, and whether it is in a fragment. All three always: what is left
    /// undefined somewhere LLVM takes from a register that the verifier knows to be empty.
    #[inline(always)]
    fn upper(&self, mut at: u32, end: u32, mut next: u8) -> (Upper, u32, bool) {
        let mut is_fragment = false;
        up_to! { MAX_EXTENSIONS: 1 2 3 4 5 6 => {
            if next == ICMPV6 {
                return (Upper::Icmp, at, is_fragment);
            }
            if !is_extension(next) {
                return (Upper::Other, at, is_fragment);
            }
            if at + 4 > end {
                return (Upper::Hidden, at, is_fragment);
            }
            let Some([following, length, high, low]) = self.packet.load(at) else {
                return (Upper::Hidden, at, is_fragment);
            };
            let length = u32::from(length);
            at += match next {
                FRAGMENT => {
                    if u16::from_be_bytes([high, low]) & !7 != 0 {
                        return (Upper::Other, at, is_fragment);
                    }
                    is_fragment = true;
                    8
                }
                AUTHENTICATION => 4 * (length + 2),
                _ => 8 * (length + 1),
            };
            next = following;
        }}
        match next {
            ICMPV6 => (Upper::Icmp, at, is_fragment),
            _ if is_extension(next) => (Upper::Hidden, at, is_fragment),
            _ => (Upper::Other, at, is_fragment),
        }
    }

    #[inline(always)]
    fn icmp(&self, at: u32, end: u32, is_fragment: bool, is_unspecified: bool) -> bool {
        if at >= end {
            return false;
        }
        let Some([kind]) = self.packet.load(at) else {
            return false;
        };
        if is_unspecified
            && !matches!(
                kind,
                LISTENER_REPORT
                    | LISTENER_DONE
                    | LISTENER_REPORT_V2
                    | ROUTER_SOLICITATION
                    | NEIGHBOUR_SOLICITATION
            )
        {
            return false;
        }
        let options = at
            + match kind {
                ROUTER_SOLICITATION => 8,
                ROUTER_ADVERTISEMENT => 16,
                NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT => 24,
                REDIRECT => 40,
                _ => return true,
            };
        if is_fragment || kind == NEIGHBOUR_ADVERTISEMENT && !self.owns_target(at) {
            return false;
        }
        self.options(options, end)
    }

    /// The address that a Neighbour Advertisement is about.
    #[inline(always)]
    fn owns_target(&self, at: u32) -> bool {
        self.packet.load(at + 8).is_some_and(|target| self.owns_v6(target))
    }

    #[inline(always)]
    fn options(&self, mut at: u32, end: u32) -> bool {
        // As numbers: to copy six bytes LLVM may call `memcpy`, which the verifier does not follow.
        let [a, b, c, d, e, f] = self.port.mac.bytes();
        let own = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        up_to! { MAX_OPTIONS: 1 2 3 4 5 6 7 8 => {
            if at == end {
                return true;
            }
            if at + 8 > end {
                return false;
            }
            let Some(option) = self.packet.load::<8>(at) else {
                return false;
            };
            let [kind, length, ..] = option;
            if length == 0 {
                return false;
            }
            if matches!(kind, SOURCE_LINK_LAYER | TARGET_LINK_LAYER) && u64::from_be_bytes(option) & MAC_BITS != own {
                return false;
            }
            at += 8 * u32::from(length);
        }}
        at == end
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::{
        cell::Cell,
        net::{IpAddr, Ipv6Addr},
    };
    use std::{vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;
    use crate::{Decision, FdbKey, PortKind, Target, decide};

    const OWN: Mac = Mac::new([2, 0xfc, 0, 0, 0, 1]);
    const OTHER: Mac = Mac::new([2, 0xfc, 0, 0, 0, 2]);
    const OWN_4: [u8; 4] = [10, 0, 0, 1];
    const OTHER_4: [u8; 4] = [10, 0, 0, 2];
    const OWN_6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const OTHER_6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    const NONE_6: [u8; 16] = [0; 16];

    const HONEST: Result<(), DropReason> = Ok(());
    const FORGED: Result<(), DropReason> = Err(DropReason::SpoofedAddress);
    const FORGED_MAC: Result<(), DropReason> = Err(DropReason::SpoofedMac);

    /// The port is in slot 1. Slot 2 is the port of the other pod.
    #[derive(Default)]
    struct Lab {
        lookups: Cell<u32>,
    }

    impl Tables for Lab {
        fn lookup(&self, _key: FdbKey) -> Option<Target> {
            Some(Target { slot: 2, max_length: 1518, ..Target::default() })
        }

        fn interface(&self, _slot: u32) -> Option<u32> {
            Some(102)
        }

        fn is_source(&self, key: &SourceKey) -> bool {
            self.lookups.set(self.lookups.get() + 1);
            let own = [IpAddr::from(OWN_4), IpAddr::from(OWN_6), IpAddr::V6(OWN.link_local())];
            let other = [IpAddr::from(OTHER_4), IpAddr::from(OTHER_6), IpAddr::V6(OTHER.link_local())];
            let addresses = if key.slot == 1 { own } else { other };
            addresses.iter().any(|address| SourceKey::new(key.slot, *address) == *key)
        }
    }

    fn port() -> Port {
        Port {
            ifindex: 101,
            slot: 1,
            kind: PortKind::Switch as u32,
            domain: 7,
            flags: Port::SPOOF_CHECK,
            mac: OWN,
            ..Port::default()
        }
    }

    /// A frame in memory, and perhaps a tag beside it.
    struct Skb<'a>(&'a [u8], bool);

    impl Packet for Skb<'_> {
        fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
            self.0.load(offset)
        }

        fn has_tag_beside(&self) -> bool {
            self.1
        }
    }

    #[expect(clippy::many_single_char_names, reason = "fourteen bytes in their order")]
    fn header(bytes: &[u8]) -> Option<EthernetHeader> {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n] = *bytes.first_chunk()?;
        Some(EthernetHeader {
            destination: Mac::new([a, b, c, d, e, f]),
            source: Mac::new([g, h, i, j, k, l]),
            ethertype: u16::from_ne_bytes([m, n]),
        })
    }

    fn judge(bytes: &[u8], has_tag_beside: bool, lab: &Lab) -> Result<(), DropReason> {
        let header = header(bytes);
        let length = u32::try_from(bytes.len()).unwrap();
        let frame = Frame { header: header.as_ref(), length, gso: false };
        check(&port(), &frame, &Skb(bytes, has_tag_beside), lab)
    }

    #[track_caller]
    fn assert_is(expected: Result<(), DropReason>, bytes: &[u8]) {
        assert_eq!(judge(bytes, false, &Lab::default()), expected);
    }

    fn ethernet(source: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
        [&OTHER.bytes()[..], &source.bytes(), &ethertype.to_ne_bytes(), payload].concat()
    }

    fn tagged(ethertype: u16, payload: &[u8]) -> Vec<u8> {
        [&[0, 7][..], &ethertype.to_ne_bytes(), payload].concat()
    }

    fn ipv4(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        [&[0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0][..], &source, &destination].concat()
    }

    fn arp(operation: u8, mac: Mac, ip: [u8; 4]) -> Vec<u8> {
        [&[0, 1, 8, 0, 6, 4, 0, operation][..], &mac.bytes(), &ip, &[0; 6], &OTHER_4].concat()
    }

    fn ipv6(source: [u8; 16], next: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [&[0x60, 0, 0, 0][..], &length, &[next, 255], &source, &OTHER_6, payload].concat()
    }

    /// An extension header of eight bytes.
    fn extension(next: u8, payload: &[u8]) -> Vec<u8> {
        [&[next, 0, 1, 4, 0, 0, 0, 0][..], payload].concat()
    }

    fn fragment(next: u8, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
        let place = (offset | u16::from(more)).to_be_bytes();
        [&[next, 0][..], &place, &[0, 0, 0, 9], payload].concat()
    }

    fn option(kind: u8, mac: Mac) -> Vec<u8> {
        [&[kind, 1][..], &mac.bytes()].concat()
    }

    fn icmp(kind: u8, fixed: &[u8], options: &[u8]) -> Vec<u8> {
        [&[kind, 0, 0, 0, 0, 0, 0, 0][..], fixed, options].concat()
    }

    fn advertisement(target: [u8; 16], mac: Mac) -> Vec<u8> {
        icmp(NEIGHBOUR_ADVERTISEMENT, &target, &option(TARGET_LINK_LAYER, mac))
    }

    fn solicitation(mac: Mac) -> Vec<u8> {
        icmp(NEIGHBOUR_SOLICITATION, &OTHER_6, &option(SOURCE_LINK_LAYER, mac))
    }

    fn v6(source: [u8; 16], next: u8, payload: &[u8]) -> Vec<u8> {
        ethernet(OWN, IPV6, &ipv6(source, next, payload))
    }

    const UDP: u8 = 17;

    #[test]
    fn the_hardware_address_is_the_ports() {
        assert_is(HONEST, &ethernet(OWN, IPV4, &ipv4(OWN_4, OTHER_4)));
        assert_is(FORGED_MAC, &ethernet(OTHER, IPV4, &ipv4(OWN_4, OTHER_4)));
        assert_is(FORGED_MAC, &ethernet(OTHER, 0x88b5_u16.to_be(), &[0; 46]));
        assert_is(HONEST, &ethernet(OWN, 0x88b5_u16.to_be(), &[0; 46]));
        assert_is(FORGED_MAC, &[0; 13]);
    }

    #[test]
    fn ipv4_sources() {
        assert_is(FORGED, &ethernet(OWN, IPV4, &ipv4(OTHER_4, OWN_4)));
        assert_is(FORGED, &ethernet(OWN, IPV4, &ipv4([224, 0, 0, 1], OTHER_4)));
        assert_is(HONEST, &ethernet(OWN, IPV4, &ipv4([0; 4], [0xff; 4])));
        assert_is(FORGED, &ethernet(OWN, IPV4, &ipv4([0; 4], OTHER_4)));
        assert_is(FORGED, &ethernet(OWN, IPV4, &ipv4(OWN_4, OTHER_4)[..19]));
    }

    #[test]
    fn arp_senders() {
        for operation in [1, 2] {
            assert_is(HONEST, &ethernet(OWN, ARP, &arp(operation, OWN, OWN_4)));
            assert_is(FORGED, &ethernet(OWN, ARP, &arp(operation, OTHER, OWN_4)));
            assert_is(FORGED, &ethernet(OWN, ARP, &arp(operation, OWN, OTHER_4)));
        }
        assert_is(HONEST, &ethernet(OWN, ARP, &arp(1, OWN, [0; 4])));
        assert_is(FORGED, &ethernet(OWN, ARP, &arp(2, OWN, [0; 4])));
        assert_is(FORGED, &ethernet(OWN, ARP, &arp(1, OTHER, [0; 4])));
        assert_is(FORGED, &ethernet(OWN, ARP, &arp(1, OWN, OWN_4)[..17]));
        for (place, _) in [1, 8, 0, 6, 4, 0].into_iter().enumerate() {
            let mut strange = arp(1, OWN, OWN_4);
            strange[place + 1] ^= 0x40;
            assert_is(FORGED, &ethernet(OWN, ARP, &strange));
        }
    }

    #[test]
    fn ipv6_sources() {
        let link_local = OWN.link_local().octets();
        for source in [OWN_6, link_local] {
            assert_is(HONEST, &v6(source, UDP, &[0; 8]));
        }
        let mapped: Ipv6Addr = "::ffff:10.0.0.1".parse().unwrap();
        for source in [OTHER_6, OTHER.link_local().octets(), NONE_6, mapped.octets()] {
            assert_is(FORGED, &v6(source, UDP, &[0; 8]));
        }
        assert_is(FORGED, &ethernet(OWN, IPV6, &ipv6(OWN_6, UDP, &[])[..23]));
    }

    #[test]
    fn no_address_yet() {
        // As a kernel does: duplicate address detection, a router solicitation, a listener report.
        assert_is(HONEST, &v6(NONE_6, ICMPV6, &icmp(NEIGHBOUR_SOLICITATION, &OWN_6, &[])));
        assert_is(HONEST, &v6(NONE_6, ICMPV6, &icmp(ROUTER_SOLICITATION, &[], &[])));
        let report = extension(ICMPV6, &icmp(LISTENER_REPORT_V2, &[0; 20], &[]));
        assert_is(HONEST, &v6(NONE_6, HOP_BY_HOP, &report));
        assert_is(FORGED, &v6(NONE_6, ICMPV6, &icmp(128, &[], &[])));
        assert_is(FORGED, &v6(NONE_6, ICMPV6, &advertisement(OWN_6, OWN)));
        assert_is(FORGED, &v6(NONE_6, ICMPV6, &solicitation(OTHER)));
        assert_is(FORGED, &v6(NONE_6, FRAGMENT, &fragment(ICMPV6, 8, false, &[0; 8])));
    }

    #[test]
    fn neighbour_discovery() {
        assert_is(HONEST, &v6(OWN_6, ICMPV6, &advertisement(OWN_6, OWN)));
        assert_is(FORGED, &v6(OWN_6, ICMPV6, &advertisement(OTHER_6, OWN)));
        assert_is(FORGED, &v6(OWN_6, ICMPV6, &advertisement(OWN_6, OTHER)));
        assert_is(HONEST, &v6(OWN_6, ICMPV6, &solicitation(OWN)));
        assert_is(FORGED, &v6(OWN_6, ICMPV6, &solicitation(OTHER)));
        for (kind, fixed) in [
            (ROUTER_SOLICITATION, 0),
            (ROUTER_ADVERTISEMENT, 8),
            (NEIGHBOUR_SOLICITATION, 16),
            (REDIRECT, 32),
        ] {
            for option_kind in [SOURCE_LINK_LAYER, TARGET_LINK_LAYER] {
                for (mac, expected) in [(OWN, HONEST), (OTHER, FORGED)] {
                    // Behind a nonce (RFC 3971), as in enhanced duplicate address detection.
                    let options = [&[14, 1, 1, 2, 3, 4, 5, 6], &option(option_kind, mac)[..]].concat();
                    assert_is(expected, &v6(OWN_6, ICMPV6, &icmp(kind, &vec![0; fixed], &options)));
                }
            }
        }
    }

    #[test]
    fn options_that_cannot_be_walked() {
        let message = |options: &[u8]| v6(OWN_6, ICMPV6, &icmp(NEIGHBOUR_SOLICITATION, &OTHER_6, options));
        let nonce = [14, 1, 0, 0, 0, 0, 0, 0];
        assert_is(HONEST, &message(&nonce.repeat(8)));
        assert_is(FORGED, &message(&nonce.repeat(9)));
        assert_is(FORGED, &message(&[14, 0, 0, 0, 0, 0, 0, 0]));
        assert_is(FORGED, &message(&[14, 2, 0, 0, 0, 0, 0, 0]));
        assert_is(FORGED, &message(&nonce[..7]));
        assert_is(FORGED, &v6(OWN_6, ICMPV6, &icmp(NEIGHBOUR_SOLICITATION, &OTHER_6[..15], &[])));
        assert_is(FORGED, &v6(OWN_6, ICMPV6, &icmp(NEIGHBOUR_ADVERTISEMENT, &[], &[])));
        assert_is(FORGED, &v6(OWN_6, ICMPV6, &[]));
    }

    #[test]
    fn extension_headers_hide_nothing() {
        for kind in [HOP_BY_HOP, ROUTING, DESTINATION, MOBILITY] {
            for (target, expected) in [(OWN_6, HONEST), (OTHER_6, FORGED)] {
                let hidden = extension(ICMPV6, &advertisement(target, OWN));
                assert_is(expected, &v6(OWN_6, kind, &hidden));
                let long = [&[ICMPV6, 1][..], &[0; 14], &advertisement(target, OWN)].concat();
                assert_is(expected, &v6(OWN_6, kind, &long));
            }
        }
        for (target, expected) in [(OWN_6, HONEST), (OTHER_6, FORGED)] {
            let signed = [&[ICMPV6, 4][..], &[0; 22], &advertisement(target, OWN)].concat();
            assert_is(expected, &v6(OWN_6, AUTHENTICATION, &signed));
        }
        let chain = |length: usize| {
            let last = extension(UDP, &[0; 8]);
            (1..length).fold(last, |inner, _| extension(DESTINATION, &inner))
        };
        assert_is(HONEST, &v6(OWN_6, DESTINATION, &chain(6)));
        assert_is(FORGED, &v6(OWN_6, DESTINATION, &chain(7)));
        assert_is(FORGED, &v6(OWN_6, DESTINATION, &[]));
    }

    #[test]
    fn fragments_hide_nothing() {
        for more in [false, true] {
            let whole = fragment(ICMPV6, 0, more, &advertisement(OWN_6, OWN));
            assert_is(FORGED, &v6(OWN_6, FRAGMENT, &whole));
            assert_is(HONEST, &v6(OWN_6, FRAGMENT, &fragment(ICMPV6, 0, more, &[128, 0, 0, 0, 0, 0, 0, 0])));
            assert_is(HONEST, &v6(OWN_6, FRAGMENT, &fragment(UDP, 0, more, &[0; 8])));
        }
        assert_is(HONEST, &v6(OWN_6, FRAGMENT, &fragment(ICMPV6, 8, true, &[0; 8])));
        assert_is(FORGED, &v6(OTHER_6, FRAGMENT, &fragment(UDP, 8, true, &[0; 8])));
        // The message begins in the next fragment, and padding pretends to be an echo request.
        let mut early = v6(OWN_6, FRAGMENT, &fragment(DESTINATION, 0, true, &extension(ICMPV6, &[])));
        early.extend([128, 0, 0, 0, 0, 0, 0, 0]);
        assert_is(FORGED, &early);
    }

    #[test]
    fn jumbograms_are_as_long_as_the_frame() {
        // As the kernel sends TCP when `gso_max_size` is raised (BIG TCP): no payload length, and a hop-by-hop header.
        let jumbo = |next, payload: &[u8]| {
            let mut packet = v6(OWN_6, HOP_BY_HOP, &extension(next, payload));
            packet[18..20].fill(0);
            packet
        };
        assert_is(HONEST, &jumbo(6, &[0; 20]));
        assert_is(FORGED, &jumbo(ICMPV6, &advertisement(OTHER_6, OWN)));
    }

    #[test]
    fn tags_hide_nothing() {
        let packets: [(u16, Vec<u8>, Vec<u8>); 3] = [
            (IPV4, ipv4(OWN_4, OTHER_4), ipv4(OTHER_4, OWN_4)),
            (ARP, arp(2, OWN, OWN_4), arp(2, OWN, OTHER_4)),
            (IPV6, ipv6(OWN_6, UDP, &[0; 8]), ipv6(OTHER_6, UDP, &[0; 8])),
        ];
        for (ethertype, honest, forged) in packets {
            for (packet, expected) in [(honest, HONEST), (forged, FORGED)] {
                let once = tagged(ethertype, &packet);
                let twice = tagged(DOT1Q, &once);
                let thrice = tagged(DOT1Q, &twice);
                for outer in [DOT1Q, DOT1AD] {
                    assert_is(expected, &ethernet(OWN, outer, &once));
                    assert_is(expected, &ethernet(OWN, outer, &twice));
                    assert_is(FORGED, &ethernet(OWN, outer, &thrice));
                    let beside = |inner: &[u8]| judge(&ethernet(OWN, outer, inner), true, &Lab::default());
                    assert_eq!(beside(&once), expected);
                    assert_eq!(beside(&twice), FORGED);
                }
                assert_is(FORGED_MAC, &ethernet(OTHER, DOT1Q, &once));
            }
        }
        assert_is(FORGED, &ethernet(OWN, DOT1Q, &[0, 7]));
        assert_is(HONEST, &ethernet(OWN, DOT1Q, &tagged(0x88b5_u16.to_be(), &[0; 46])));
    }

    #[test]
    fn only_ports_that_say_so_are_checked_and_before_anything_else() {
        let forged = ethernet(OTHER, IPV4, &ipv4(OTHER_4, OWN_4));
        let header = header(&forged);
        let frame = Frame { header: header.as_ref(), length: 60, gso: false };
        let lab = Lab::default();
        for kind in [PortKind::None, PortKind::Wire, PortKind::Switch, PortKind::Bridge] {
            let checked = Port { kind: kind as u32, ..port() };
            let decision = decide(&checked, &frame, &forged.as_slice(), &lab);
            assert_eq!(decision, Decision::Drop(DropReason::SpoofedMac), "{kind:?}");
            let unchecked = Port { flags: !Port::SPOOF_CHECK, ..checked };
            let decision = decide(&unchecked, &frame, &forged.as_slice(), &lab);
            assert_ne!(decision, Decision::Drop(DropReason::SpoofedMac), "{kind:?}");
        }
        assert_eq!(lab.lookups.get(), 0);
    }

    /// What a kernel would understand of a packet's extension headers, told without walking them: it is made of
    /// them.
    fn chain() -> impl Strategy<Value = Vec<(u8, u8)>> {
        let kind =
            prop::sample::select(vec![HOP_BY_HOP, ROUTING, DESTINATION, MOBILITY, AUTHENTICATION, FRAGMENT]);
        prop::collection::vec((kind, 0..4_u8), 0..9)
    }

    /// Puts extension headers, given as kind and length, in front of a message.
    fn wrap(chain: &[(u8, u8)], message: Vec<u8>) -> (u8, Vec<u8>) {
        chain.iter().rfold((ICMPV6, message), |(next, inner), &(kind, length)| {
            let size = match kind {
                FRAGMENT => 8,
                AUTHENTICATION => 4 * (usize::from(length) + 2),
                _ => 8 * (usize::from(length) + 1),
            };
            let mut header = vec![0; size];
            header[0] = next;
            if kind != FRAGMENT {
                header[1] = length;
            }
            (kind, [header, inner].concat())
        })
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged(bytes: Vec<u8>, ethertype in 0..5_usize, beside: bool) {
            let ethertype = [IPV4, ARP, IPV6, DOT1Q, DOT1AD][ethertype];
            let lab = Lab::default();
            let _any = judge(&ethernet(OWN, ethertype, &bytes), beside, &lab);
            prop_assert!(lab.lookups.get() <= 2);
        }

        #[test]
        fn forged_advertisements_never_pass(chain in chain(), padding in 0..64_usize, tags in 0..4_usize) {
            let (next, payload) = wrap(&chain, advertisement(OTHER_6, OWN));
            let mut frame = ipv6(OWN_6, next, &payload);
            let mut ethertype = IPV6;
            for _ in 0..tags {
                frame = tagged(ethertype, &frame);
                ethertype = DOT1Q;
            }
            frame.extend(vec![0; padding]);
            assert_is(FORGED, &ethernet(OWN, ethertype, &frame));
        }

        #[test]
        fn honest_advertisements_pass(chain in chain(), padding in 0..64_usize) {
            let (next, payload) = wrap(&chain, advertisement(OWN_6, OWN));
            let mut frame = ethernet(OWN, IPV6, &ipv6(OWN_6, next, &payload));
            frame.extend(vec![0; padding]);
            let is_fragment = chain.iter().any(|(kind, _)| *kind == FRAGMENT);
            let expected = if is_fragment || chain.len() > 6 { FORGED } else { HONEST };
            assert_is(expected, &frame);
        }

        #[test]
        fn cut_short_it_is_never_taken_for_honest(cut in 0..100_usize, chain in chain()) {
            let (next, payload) = wrap(&chain, advertisement(OTHER_6, OTHER));
            let frame = ethernet(OWN, IPV6, &ipv6(OWN_6, next, &payload));
            assert_is(FORGED, &frame[..frame.len().saturating_sub(cut).max(14)]);
        }

        #[test]
        fn only_own_addresses_pass(
            source: [u8; 16], pick in 0..6_usize, payload in prop::collection::vec(any::<u8>(), 0..80), next: u8,
        ) {
            let source = [OWN_6, OTHER_6, NONE_6, OWN.link_local().octets(), source, source][pick];
            let passes = judge(&v6(source, next, &payload), false, &Lab::default()).is_ok();
            prop_assert!(!passes || [OWN_6, NONE_6, OWN.link_local().octets()].contains(&source));
            let [a, b, c, d, ..] = source;
            let passes = judge(&ethernet(OWN, IPV4, &ipv4([a, b, c, d], OTHER_4)), false, &Lab::default());
            prop_assert_eq!(passes.is_ok(), [a, b, c, d] == OWN_4);
        }
    }
}
