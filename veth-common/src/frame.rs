//! The few facts of a frame that a decision needs.

use core::{fmt, net::Ipv6Addr};

/// An Ethernet address.
///
/// Kept as three 16-bit words in the order of the frame: programs read and compare it by words, and not byte
/// by byte as they would an array of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Mac([u16; 3]);

impl Mac {
    /// An address from its bytes, in the order of the frame.
    #[must_use]
    pub const fn new([a, b, c, d, e, f]: [u8; 6]) -> Self {
        Self([u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]), u16::from_ne_bytes([e, f])])
    }

    /// Its bytes, in the order of the frame.
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        let [ab, cd, ef] = self.0;
        let ([a, b], [c, d], [e, f]) = (ab.to_ne_bytes(), cd.to_ne_bytes(), ef.to_ne_bytes());
        [a, b, c, d, e, f]
    }

    /// Its words, in the order of the frame, as they are in memory.
    #[must_use]
    #[inline(always)]
    pub const fn words(self) -> [u16; 3] {
        self.0
    }

    /// The IPv6 link-local address that a kernel makes of it by default: modified EUI-64 behind `fe80::/64`
    /// (RFC 4291, appendix A).
    #[must_use]
    pub const fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.bytes();
        Ipv6Addr::from_octets([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }

    /// Whether the group bit is set: multicast, and so broadcast too.
    #[must_use]
    #[inline(always)]
    pub const fn is_multicast(self) -> bool {
        self.0[0].to_ne_bytes()[0] & 1 != 0
    }

    /// Whether every bit is set.
    #[must_use]
    #[inline(always)]
    pub const fn is_broadcast(self) -> bool {
        let [ab, cd, ef] = self.0;
        ab & cd & ef == u16::MAX
    }

    /// Whether all of it is zero.
    #[must_use]
    #[inline(always)]
    pub const fn is_zero(self) -> bool {
        let [ab, cd, ef] = self.0;
        ab | cd | ef == 0
    }

    /// What a bridge accepts as a source: neither zero nor multicast, the kernel's `is_valid_ether_addr`.
    #[must_use]
    #[inline(always)]
    pub const fn is_valid_source(self) -> bool {
        !self.is_multicast() && !self.is_zero()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.bytes();
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// An Ethernet header, as it stands in the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct EthernetHeader {
    /// Where the frame goes.
    pub destination: Mac,
    /// Who says it sent it.
    pub source: Mac,
    /// What follows, in the order of the frame.
    pub ethertype: u16,
}

impl EthernetHeader {
    /// Its length: `ETH_HLEN`.
    pub const LENGTH: u32 = 14;
}

const _: () = assert!(size_of::<EthernetHeader>() == EthernetHeader::LENGTH as usize);

/// Ethertypes, in the order of the frame.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800_u16.to_be();
    /// ARP.
    pub const ARP: u16 = 0x0806_u16.to_be();
    /// IPv6.
    pub const IPV6: u16 = 0x86dd_u16.to_be();
}

/// What IP says that it carries.
pub mod ip_protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// `ICMPv6`.
    pub const ICMPV6: u8 = 58;
}

/// The bytes of a frame, for the few decisions that look beyond its Ethernet header.
pub trait Packet {
    /// Some bytes, from an offset behind the destination address on; `None` where the frame ends before.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;

    /// Whether the kernel keeps a VLAN tag beside the frame, which stands in front of everything behind the
    /// source address.
    fn has_tag_beside(&self) -> bool;
}

/// A frame in memory, with all its tags.
impl Packet for &[u8] {
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.get(usize::try_from(offset).ok()?..)?.first_chunk().copied()
    }

    fn has_tag_beside(&self) -> bool {
        false
    }
}

/// What a decision looks at. Built from an `__sk_buff` or an `xdp_md` by the programs, by hand in tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The header, still in the frame, so that only what a decision needs is read; `None` where the frame is too short to have them.
    pub header: Option<&'a EthernetHeader>,
    /// Bytes from the destination address on, without a VLAN tag that the kernel keeps beside the frame. (XDP
    /// sees every tag in the frame.)
    pub length: u32,
    /// Whether the frame is a GSO frame that is cut up later, so that its length says nothing about MTUs.
    pub gso: bool,
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::ToString as _;

    use super::*;

    #[test]
    fn sources_that_a_bridge_refuses() {
        assert!(!Mac::new([0; 6]).is_valid_source());
        assert!(!Mac::new([0xff; 6]).is_valid_source());
        assert!(!Mac::new([0x01, 0, 0x5e, 0, 0, 1]).is_valid_source());
        assert!(!Mac::new([0x03, 0, 0, 0, 0, 1]).is_valid_source());
        assert!(Mac::new([0, 0, 0, 0, 0, 1]).is_valid_source());
        assert!(Mac::new([2, 0, 0, 0, 0, 0]).is_valid_source());
    }

    #[test]
    fn prints_as_iproute2_does() {
        assert_eq!(Mac::new([2, 0xfc, 0, 1, 0xab, 9]).to_string(), "02:fc:00:01:ab:09");
    }

    #[test]
    fn link_local_as_the_kernel_makes_it() {
        assert_eq!(Mac::new([2, 0xfc, 0, 1, 0xab, 9]).link_local().to_string(), "fe80::fc:ff:fe01:ab09");
        assert_eq!(Mac::new([0, 0, 0, 0, 0, 1]).link_local().to_string(), "fe80::200:ff:fe00:1");
    }
}
