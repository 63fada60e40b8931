//! IP addresses.

use std::{fmt, net::IpAddr, str::FromStr};

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
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = cidr.prefix;
        message.attributes =
            vec![AddressAttribute::Local(cidr.address), AddressAttribute::Address(cidr.address)];
        if cidr.address.is_ipv4() {
            message.header.family = AddressFamily::Inet;
        } else {
            message.header.family = AddressFamily::Inet6;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        self.create(
            &format!("add the address {cidr} to link {index}"),
            RouteNetlinkMessage::NewAddress(message),
        )
        .await
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
}
