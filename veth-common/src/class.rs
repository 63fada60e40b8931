//! What kind of frame a frame is: the details by which counters are split.

use core::hint::black_box;

use crate::{
    EthernetHeader, Mac,
    ethertype::{ARP, IPV4, IPV6},
    ip_protocol::{ICMP, ICMPV6, TCP, UDP},
};

/// What a frame carries. The numbers index [`PortCounters`](crate::PortCounters): append, never reorder, and raise
/// [`LAYOUT_VERSION`](crate::LAYOUT_VERSION).
///
/// Judged by the Ethernet header and one byte of IP: a frame with a VLAN tag is [`Other`](Self::Other), and IPv6 with
/// extension headers [`Ipv6Other`](Self::Ipv6Other). A fragment is what its packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Protocol {
    /// ARP.
    Arp = 0,
    /// TCP over IPv4.
    Ipv4Tcp = 1,
    /// UDP over IPv4.
    Ipv4Udp = 2,
    /// ICMP.
    Ipv4Icmp = 3,
    /// Anything else over IPv4.
    Ipv4Other = 4,
    /// TCP over IPv6.
    Ipv6Tcp = 5,
    /// UDP over IPv6.
    Ipv6Udp = 6,
    /// `ICMPv6`.
    Ipv6Icmp = 7,
    /// Anything else over IPv6.
    Ipv6Other = 8,
    /// Another ethertype, a VLAN tag, or no whole Ethernet header.
    Other = 9,
}

impl Protocol {
    /// Every protocol, in the order of its number.
    pub const ALL: [Self; 10] = [
        Self::Arp,
        Self::Ipv4Tcp,
        Self::Ipv4Udp,
        Self::Ipv4Icmp,
        Self::Ipv4Other,
        Self::Ipv6Tcp,
        Self::Ipv6Udp,
        Self::Ipv6Icmp,
        Self::Ipv6Other,
        Self::Other,
    ];

    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// The name in tables, JSON and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Arp => "arp",
            Self::Ipv4Tcp => "ipv4_tcp",
            Self::Ipv4Udp => "ipv4_udp",
            Self::Ipv4Icmp => "ipv4_icmp",
            Self::Ipv4Other => "ipv4_other",
            Self::Ipv6Tcp => "ipv6_tcp",
            Self::Ipv6Udp => "ipv6_udp",
            Self::Ipv6Icmp => "ipv6_icmp",
            Self::Ipv6Other => "ipv6_other",
            Self::Other => "other",
        }
    }

    /// The counter that belongs to it.
    #[must_use]
    #[inline(always)]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The number of what a frame without a tag carries. `byte` reads one, from an offset behind the start of the destination
    /// address on; what it cannot read is something else.
    ///
    /// By a table: where branches find the number, the verifier goes through all that follows once for each of them. And the
    /// compiler must not look into the table, or it leaves out the check that the number is one, by which the verifier knows.
    #[must_use]
    #[inline(always)]
    pub fn number(ethertype: u16, byte: impl Fn(u32) -> Option<u8>) -> u8 {
        black_box(if ethertype == IPV4 {
            byte(IPV4_PROTOCOL).map_or(Self::Ipv4Other as u8, |next| OVER_IPV4[usize::from(next)])
        } else if ethertype == IPV6 {
            byte(IPV6_NEXT_HEADER).map_or(Self::Ipv6Other as u8, |next| OVER_IPV6[usize::from(next)])
        } else if ethertype == ARP {
            Self::Arp as u8
        } else {
            Self::Other as u8
        })
    }
}

/// The protocol by what IPv4 says that it carries.
static OVER_IPV4: [u8; 256] = over_ip(
    Protocol::Ipv4Other,
    [(TCP, Protocol::Ipv4Tcp), (UDP, Protocol::Ipv4Udp), (ICMP, Protocol::Ipv4Icmp)],
);

/// The same for IPv6.
static OVER_IPV6: [u8; 256] = over_ip(
    Protocol::Ipv6Other,
    [(TCP, Protocol::Ipv6Tcp), (UDP, Protocol::Ipv6Udp), (ICMPV6, Protocol::Ipv6Icmp)],
);

const fn over_ip(other: Protocol, known: [(u8, Protocol); 3]) -> [u8; 256] {
    let mut table = [other as u8; 256];
    let [(a, first), (b, second), (c, third)] = known;
    table[a as usize] = first as u8;
    table[b as usize] = second as u8;
    table[c as usize] = third as u8;
    table
}

/// Where IPv4 says what it carries.
const IPV4_PROTOCOL: u32 = EthernetHeader::LENGTH + 9;
/// Where IPv6 does.
const IPV6_NEXT_HEADER: u32 = EthernetHeader::LENGTH + 6;

/// How many sizes of frames are told apart.
pub const SIZES: usize = 6;

/// The longest frame of each size but the last, which has no end: powers of two less one.
pub const SIZE_ENDS: [u32; SIZES - 1] = [127, 255, 511, 1_023, 2_047];

/// The counter of a length by its bits above the first seven: all that are longer share the last.
static SIZE_OF: [u8; 17] = [0, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 5];

/// The counter of a frame's length, in bytes from the destination address on. By a table, as above.
#[must_use]
#[inline(always)]
pub fn size_index(length: u32) -> usize {
    let place = ((length >> 7) as usize).min(SIZE_OF.len() - 1);
    usize::from(black_box(SIZE_OF[place]))
}

/// To how many a frame is addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cast {
    /// One, or the frame has no whole Ethernet header.
    Unicast,
    /// A group.
    Multicast,
    /// All.
    Broadcast,
}

impl Cast {
    /// By the destination address.
    #[must_use]
    #[inline(always)]
    pub const fn of(destination: Mac) -> Self {
        if !destination.is_multicast() {
            Self::Unicast
        } else if destination.is_broadcast() {
            Self::Broadcast
        } else {
            Self::Multicast
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_numbered_by_their_place() {
        for (place, protocol) in Protocol::ALL.into_iter().enumerate() {
            assert_eq!(protocol.index(), place, "{}", protocol.name());
        }
    }

    #[test]
    fn a_protocol_is_told_by_the_ethertype_and_a_byte() {
        for (ethertype, offset, byte, expected) in [
            (0x0806, 0, 0, Protocol::Arp),
            (0x0800, 23, 6, Protocol::Ipv4Tcp),
            (0x0800, 23, 17, Protocol::Ipv4Udp),
            (0x0800, 23, 1, Protocol::Ipv4Icmp),
            (0x0800, 23, 58, Protocol::Ipv4Other),
            (0x86dd, 20, 6, Protocol::Ipv6Tcp),
            (0x86dd, 20, 17, Protocol::Ipv6Udp),
            (0x86dd, 20, 58, Protocol::Ipv6Icmp),
            (0x86dd, 20, 0, Protocol::Ipv6Other),
            (0x8100, 0, 0, Protocol::Other),
            (0x0008, 0, 0, Protocol::Other),
        ] {
            let ethertype = u16::to_be(ethertype);
            let found = Protocol::number(ethertype, |asked| (asked == offset).then_some(byte));
            assert_eq!(found, expected as u8, "{ethertype:#x} {byte}");
        }
        assert_eq!(Protocol::number(IPV4, |_| None), Protocol::Ipv4Other as u8);
        assert_eq!(Protocol::number(IPV6, |_| None), Protocol::Ipv6Other as u8);
    }

    #[test]
    fn sizes_end_before_powers_of_two() {
        for (length, index) in [
            (0, 0),
            (60, 0),
            (127, 0),
            (128, 1),
            (255, 1),
            (256, 2),
            (1_023, 3),
            (1_024, 4),
            (2_047, 4),
            (2_048, 5),
        ] {
            assert_eq!(size_index(length), index, "{length}");
        }
        assert_eq!(size_index(u32::MAX), SIZES - 1);
        for length in 0..5_000 {
            assert_eq!(size_index(length), SIZE_ENDS.iter().filter(|end| length > **end).count(), "{length}");
        }
        assert!(SIZE_ENDS.iter().all(|end| (end + 1).is_power_of_two()));
    }

    #[test]
    fn broadcast_is_no_multicast() {
        assert_eq!(Cast::of(Mac::new([2, 0, 0, 0, 0, 1])), Cast::Unicast);
        assert_eq!(Cast::of(Mac::new([0x33, 0x33, 0, 0, 0, 1])), Cast::Multicast);
        assert_eq!(Cast::of(Mac::new([0xff; 6])), Cast::Broadcast);
    }
}
