//! IP addresses.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage},
};
use serde::{Deserialize, Serialize};

use super::{Netlink, Result};

/// An address and the length of its network's prefix, `172.16.0.1/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Cidr {
    /// The address.
    pub address: IpAddr,
    /// How many leading bits name the network.
    pub prefix: u8,
}

impl Cidr {
    /// The address alone, as a network of one.
    #[must_use]
    pub const fn host(self) -> Self {
        Self { address: self.address, prefix: if self.address.is_ipv4() { 32 } else { 128 } }
    }

    /// The network alone, without the bits that tell its hosts apart.
    #[must_use]
    pub fn network(self) -> Self {
        let Self { address, prefix } = self;
        let address = match address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32_u32.saturating_sub(prefix.into())).unwrap_or(0);
                Ipv4Addr::from_bits(address.to_bits() & mask).into()
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128_u32.saturating_sub(prefix.into())).unwrap_or(0);
                Ipv6Addr::from_bits(address.to_bits() & mask).into()
            }
        };
        Self { address, prefix }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

/// Text that is not an address with a prefix length.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not an address with a prefix length, as in 172.16.0.1/24 or fd00:200::1/64")]
pub struct ParseCidrError(String);

impl FromStr for Cidr {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            let address: IpAddr = address.parse().ok()?;
            let prefix: u8 = prefix.parse().ok()?;
            (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some(Self { address, prefix })
        };
        parse().ok_or_else(|| ParseCidrError(text.to_owned()))
    }
}

impl TryFrom<String> for Cidr {
    type Error = ParseCidrError;

    fn try_from(text: String) -> std::result::Result<Self, Self::Error> {
        text.parse()
    }
}

impl Netlink {
    /// Adds an address to a link. IPv6 addresses skip duplicate address detection and answer at once.
    ///
    /// # Errors
    ///
    /// `EEXIST` when the link has it already.
    pub async fn add_address(&self, index: u32, cidr: Cidr) -> Result<()> {
        let mut message = by_address(index, cidr);
        if cidr.address.is_ipv6() {
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        self.create(
            &format!("add the address {cidr} to link {index}"),
            RouteNetlinkMessage::NewAddress(message),
        )
        .await
    }

    /// Removes an address of a link. Succeeds if the link has no such address.
    ///
    /// # Errors
    ///
    /// When the link is gone.
    pub async fn remove_address(&self, index: u32, cidr: Cidr) -> Result<()> {
        let message = RouteNetlinkMessage::DelAddress(by_address(index, cidr));
        match self.change(&format!("remove the address {cidr} from link {index}"), message).await {
            Err(error) if error.errno() == Some(libc::EADDRNOTAVAIL) => Ok(()),
            result => result,
        }
    }

    /// The addresses of a link, but those of `fe80::/10`, which the kernel gives it by itself.
    ///
    /// # Errors
    ///
    /// `ENODEV` when the link is gone.
    pub async fn addresses(&self, index: u32) -> Result<Vec<Cidr>> {
        let mut message = AddressMessage::default();
        message.header.index = index;
        let rows = self.list_addresses(&format!("list the addresses of link {index}"), message).await?;
        Ok(rows.into_iter().filter(|(link, _)| *link == index).map(|(_, cidr)| cidr).collect())
    }

    /// The addresses of every link of another namespace, by the number that this one knows it by, as
    /// [`Netlink::links_in`] lists its links: the link's index there, and an address. Those of `fe80::/10` are left
    /// out.
    ///
    /// Minimum kernel version: 4.20 (`IFA_TARGET_NETNSID` in dumps).
    ///
    /// # Errors
    ///
    /// When there is no such namespace any more, or it may not be looked into.
    #[doc(alias = "IFA_TARGET_NETNSID")]
    pub async fn addresses_in(&self, namespace: i32) -> Result<Vec<(u32, Cidr)>> {
        let mut message = AddressMessage::default();
        message.attributes = vec![AddressAttribute::TargetNetNsId(namespace)];
        self.list_addresses(&format!("list the addresses of namespace {namespace}"), message).await
    }

    async fn list_addresses(&self, action: &str, message: AddressMessage) -> Result<Vec<(u32, Cidr)>> {
        let rows = self.dump(action, RouteNetlinkMessage::GetAddress(message)).await?;
        Ok(rows
            .into_iter()
            .filter_map(|row| match row {
                RouteNetlinkMessage::NewAddress(message) => address_of(&message),
                _ => None,
            })
            .filter(|(_, cidr)| !is_link_local(cidr.address))
            .collect())
    }
}

fn by_address(index: u32, cidr: Cidr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = cidr.prefix;
    message.header.family = family(cidr.address);
    message.attributes = vec![AddressAttribute::Local(cidr.address), AddressAttribute::Address(cidr.address)];
    message
}

/// A link's index and an address of it. The local one where there are two: the other is that of the far side.
fn address_of(message: &AddressMessage) -> Option<(u32, Cidr)> {
    let mut far = None;
    let mut local = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => far = Some(*address),
            _ => {}
        }
    }
    let cidr = Cidr { address: local.or(far)?, prefix: message.header.prefix_len };
    Some((message.header.index, cidr))
}

/// Whether an address is one that is valid on one link only, `fe80::/10`.
pub(super) fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// The family of an address.
pub(super) const fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cidrs_survive_text() {
        for text in ["172.16.0.1/24", "fd00:200::1/64", "0.0.0.0/0", "::1/128"] {
            assert_eq!(text.parse::<Cidr>().unwrap().to_string(), text);
        }
        for text in ["", "172.16.0.1", "172.16.0.1/33", "::1/129", "a/24", "1.2.3.4/-1"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_network_has_no_host_bits() {
        for (cidr, network) in [
            ("172.16.5.9/24", "172.16.5.0/24"),
            ("172.16.5.9/32", "172.16.5.9/32"),
            ("172.16.5.9/0", "0.0.0.0/0"),
            ("fd00:200::7/64", "fd00:200::/64"),
            ("fd00:200::7/127", "fd00:200::6/127"),
            ("fd00:200::7/0", "::/0"),
        ] {
            assert_eq!(cidr.parse::<Cidr>().unwrap().network().to_string(), network);
        }
    }
}
