//! What kind of frame a frame is: the details by which counters are split.

use crate::{EthernetHeader, Mac};

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

    /// What a frame without a tag carries. `byte` reads one, from an offset behind the start of the destination address
    /// on; what it cannot read is something else.
    #[must_use]
    #[inline(always)]
    pub fn of(ethertype: u16, byte: impl Fn(u32) -> Option<u8>) -> Self {
        if ethertype == IPV4 {
            match byte(IPV4_PROTOCOL) {
                Some(TCP) => Self::Ipv4Tcp,
                Some(UDP) => Self::Ipv4Udp,
                Some(ICMP) => Self::Ipv4Icmp,
                _ => Self::Ipv4Other,
            }
        } else if ethertype == IPV6 {
            match byte(IPV6_NEXT_HEADER) {
                Some(TCP) => Self::Ipv6Tcp,
                Some(UDP) => Self::Ipv6Udp,
                Some(ICMPV6) => Self::Ipv6Icmp,
                _ => Self::Ipv6Other,
            }
        } else if ethertype == ARP {
            Self::Arp
        } else {
            Self::Other
        }
    }
}

const IPV4: u16 = 0x0800_u16.to_be();
const IPV6: u16 = 0x86dd_u16.to_be();
const ARP: u16 = 0x0806_u16.to_be();

/// Where IPv4 says what it carries.
const IPV4_PROTOCOL: u32 = EthernetHeader::LENGTH + 9;
/// Where IPv6 does.
const IPV6_NEXT_HEADER: u32 = EthernetHeader::LENGTH + 6;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// How many sizes of frames are told apart.
pub const SIZES: usize = 6;

/// The longest frame of each size but the last, which has no end: powers of two less one.
pub const SIZE_ENDS: [u32; SIZES - 1] = [127, 255, 511, 1_023, 2_047];

/// The counter of a frame's length, in bytes from the destination address on.
#[must_use]
#[inline(always)]
pub const fn size_index(length: u32) -> usize {
    // Spelt out: a program has no instruction that counts leading zeroes.
    let [a, b, c, d, e] = SIZE_ENDS;
    (length > a) as usize
        + (length > b) as usize
        + (length > c) as usize
        + (length > d) as usize
        + (length > e) as usize
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
            let found = Protocol::of(ethertype, |asked| (asked == offset).then_some(byte));
            assert_eq!(found, expected, "{ethertype:#x} {byte}");
        }
        assert_eq!(Protocol::of(IPV4, |_| None), Protocol::Ipv4Other);
        assert_eq!(Protocol::of(IPV6, |_| None), Protocol::Ipv6Other);
    }

    #[test]
    fn sizes_end_before_powers_of_two() {
        for (length, index) in
            [(0, 0), (60, 0), (127, 0), (128, 1), (255, 1), (256, 2), (1_514, 4), (2_047, 4), (2_048, 5)]
        {
            assert_eq!(size_index(length), index, "{length}");
        }
        assert_eq!(size_index(u32::MAX), SIZES - 1);
        assert!(SIZE_ENDS.iter().all(|end| (end + 1).is_power_of_two()));
    }

    #[test]
    fn broadcast_is_no_multicast() {
        assert_eq!(Cast::of(Mac::new([2, 0, 0, 0, 0, 1])), Cast::Unicast);
        assert_eq!(Cast::of(Mac::new([0x33, 0x33, 0, 0, 0, 1])), Cast::Multicast);
        assert_eq!(Cast::of(Mac::new([0xff; 6])), Cast::Broadcast);
    }
}
