//! The few facts of a frame that a decision needs.

use core::fmt;

/// An Ethernet address.
///
/// Aligned to 2, as it is in a frame, so that programs read it by 16 bits and not byte by byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(2))]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Whether the group bit is set: multicast, and so broadcast too.
    #[must_use]
    #[inline(always)]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether every byte is zero.
    #[must_use]
    #[inline(always)]
    pub const fn is_zero(self) -> bool {
        let [a, b, c, d, e, f] = self.0;
        a | b | c | d | e | f == 0
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
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The addresses of an Ethernet header, as they stand in the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct EthernetHeader {
    /// Where the frame goes.
    pub destination: Mac,
    /// Who says it sent it.
    pub source: Mac,
}

/// What a decision looks at. Built from an `__sk_buff` by the TC program, by hand in tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The addresses, or `None` where the frame is too short to have them.
    pub header: Option<EthernetHeader>,
    /// Bytes from the destination address on, without a VLAN tag that the kernel keeps beside the frame.
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
        assert!(!Mac([0; 6]).is_valid_source());
        assert!(!Mac([0xff; 6]).is_valid_source());
        assert!(!Mac([0x01, 0, 0x5e, 0, 0, 1]).is_valid_source());
        assert!(!Mac([0x03, 0, 0, 0, 0, 1]).is_valid_source());
        assert!(Mac([0, 0, 0, 0, 0, 1]).is_valid_source());
        assert!(Mac([2, 0, 0, 0, 0, 0]).is_valid_source());
    }

    #[test]
    fn prints_as_iproute2_does() {
        assert_eq!(Mac([2, 0xfc, 0, 1, 0xab, 9]).to_string(), "02:fc:00:01:ab:09");
    }
}
