//! Subnets and the addresses in them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::net::address::Cidr;

/// The addresses that share a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subnet {
    first: u128,
    prefix: u8,
    bits: u8,
}

impl Subnet {
    /// The subnet that an address with a prefix length is in.
    pub(super) fn of(cidr: Cidr) -> Self {
        let (number, bits) = number(cidr.address);
        let subnet = Self { first: 0, prefix: cidr.prefix, bits };
        Self { first: number & !subnet.host_mask(), ..subnet }
    }

    fn host_mask(self) -> u128 {
        1_u128.checked_shl((self.bits - self.prefix).into()).unwrap_or(0).wrapping_sub(1)
    }

    fn last(self) -> u128 {
        self.first | self.host_mask()
    }

    fn address(self, number: u128) -> IpAddr {
        match u32::try_from(number) {
            Ok(number) if self.bits == 32 => Ipv4Addr::from(number).into(),
            _ => Ipv6Addr::from(number).into(),
        }
    }

    /// The first and the last address that a pod can have: not that of the network itself (in IPv6 the one of all
    /// its routers), and not the broadcast address.
    fn usable(self) -> (u128, u128) {
        match self.bits - self.prefix {
            0 | 1 => (self.first, self.last()),
            _ if self.bits == 32 => (self.first + 1, self.last() - 1),
            _ => (self.first + 1, self.last()),
        }
    }

    /// The subnet as an address with a prefix length.
    pub(super) fn network(self) -> Cidr {
        self.with(self.address(self.first))
    }

    /// Whether an address is one that a pod can have here.
    pub(super) fn is_usable(self, address: IpAddr) -> bool {
        let (least, most) = self.usable();
        let (number, bits) = number(address);
        bits == self.bits && (least..=most).contains(&number)
    }

    /// Every address that a pod can have, in order.
    pub(super) fn addresses(self) -> impl Iterator<Item = IpAddr> {
        let (least, most) = self.usable();
        (least..=most).map(move |number| self.address(number))
    }

    pub(super) fn contains(self, address: IpAddr) -> bool {
        let (number, bits) = number(address);
        bits == self.bits && (self.first..=self.last()).contains(&number)
    }

    pub(super) fn overlaps(self, other: Self) -> bool {
        self.bits == other.bits && self.first <= other.last() && other.first <= self.last()
    }

    pub(super) fn is_ipv4(self) -> bool {
        self.bits == 32
    }

    /// Its smallest surrounding with so many addresses.
    pub(super) fn enough_for(self, count: usize) -> Option<Self> {
        let wider = (1..=self.prefix).rev().map(|prefix| {
            let wider = Self { prefix, ..self };
            Self { first: self.first & !wider.host_mask(), ..wider }
        });
        wider.into_iter().find(|wider| {
            let (least, most) = wider.usable();
            most - least >= count.saturating_sub(1) as u128
        })
    }

    /// An address in it, with its prefix length.
    pub(super) fn with(self, address: IpAddr) -> Cidr {
        Cidr { address, prefix: self.prefix }
    }

    /// An address in it, alone.
    pub(super) fn alone(self, address: IpAddr) -> Cidr {
        Cidr { address, prefix: self.bits }
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with(self.address(self.first)).fmt(f)
    }
}

fn number(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(address) => (u32::from(address).into(), 32),
        IpAddr::V6(address) => (address.into(), 128),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        Subnet::of(text.parse().unwrap())
    }

    #[test]
    fn some_addresses_are_nobodys() {
        let count = |text: &str| subnet(text).addresses().count();
        assert_eq!(
            ["10.0.0.0/30", "10.0.0.0/31", "10.0.0.0/32", "fd00::/126", "fd00::/127"].map(count),
            [2, 2, 1, 3, 2]
        );
        assert_eq!(subnet("10.0.0.77/24").addresses().next(), Some("10.0.0.1".parse().unwrap()));
        assert_eq!(subnet("fd00::77/64").addresses().next(), Some("fd00::1".parse().unwrap()));
        assert_eq!(subnet("::/0").addresses().next(), Some("::1".parse().unwrap()));
        assert!(!subnet("10.0.0.0/24").is_usable("10.0.0.255".parse().unwrap()));
        assert!(!subnet("10.0.0.0/24").is_usable("fd00::1".parse().unwrap()));
    }

    #[test]
    fn overlap_is_within_a_family() {
        assert!(subnet("10.0.0.0/8").overlaps(subnet("10.1.0.0/24")));
        assert!(subnet("10.1.0.0/24").overlaps(subnet("10.0.0.0/8")));
        assert!(!subnet("10.1.0.0/24").overlaps(subnet("10.1.1.0/24")));
        assert!(!subnet("0.0.0.0/0").overlaps(subnet("::/0")));
    }

    #[test]
    fn more_room_is_around() {
        assert_eq!(subnet("10.1.0.8/29").enough_for(7).unwrap().to_string(), "10.1.0.0/28");
        assert_eq!(subnet("10.1.0.0/24").enough_for(255).unwrap().to_string(), "10.1.0.0/23");
    }
}
