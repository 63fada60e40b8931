//! Neighbours: who has which address on a link, told rather than asked for.

use std::net::IpAddr;

use netlink_packet_route::{
    RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::RouteType,
};
use veth_common::Mac;

use super::{Netlink, Result, address::family};

impl Netlink {
    /// Tells a link which Ethernet address an IP address has, for good: `ip neighbour replace … nud permanent`.
    ///
    /// # Errors
    ///
    /// When the link is gone.
    #[doc(alias = "NUD_PERMANENT")]
    pub async fn add_neighbour(&self, link: u32, address: IpAddr, mac: Mac) -> Result<()> {
        let mut message = by_neighbour(link, address);
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.bytes().to_vec()));
        self.replace(
            &format!("tell link {link} that {address} is at {mac}"),
            RouteNetlinkMessage::NewNeighbour(message),
        )
        .await
    }

    /// Makes a link forget a neighbour. Succeeds if it knows none.
    ///
    /// # Errors
    ///
    /// When the link is gone.
    pub async fn remove_neighbour(&self, link: u32, address: IpAddr) -> Result<()> {
        self.forget(&format!("make link {link} forget {address}"), by_neighbour(link, address)).await
    }

    /// The neighbours that a link was told for good.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn permanent_neighbours(&self, link: u32) -> Result<Vec<(IpAddr, Mac)>> {
        self.neighbours(link, true).await
    }

    /// The neighbours that a link has learned of.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn learned_neighbours(&self, link: u32) -> Result<Vec<(IpAddr, Mac)>> {
        self.neighbours(link, false).await
    }

    async fn neighbours(&self, link: u32, is_permanent: bool) -> Result<Vec<(IpAddr, Mac)>> {
        let mut message = NeighbourMessage::default();
        message.attributes = vec![NeighbourAttribute::IfIndex(link)];
        let action = format!("list the neighbours of link {link}");
        let rows = self.dump(&action, RouteNetlinkMessage::GetNeighbour(message)).await?;
        Ok(rows
            .into_iter()
            .filter_map(|row| match row {
                RouteNetlinkMessage::NewNeighbour(message) => neighbour(message, link, is_permanent),
                _ => None,
            })
            .collect())
    }

    async fn forget(&self, action: &str, message: NeighbourMessage) -> Result<()> {
        match self.change(action, RouteNetlinkMessage::DelNeighbour(message)).await {
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(()),
            result => result,
        }
    }
}

fn by_neighbour(link: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = link;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![NeighbourAttribute::Destination(address.into())];
    message
}

fn neighbour(message: NeighbourMessage, link: u32, is_permanent: bool) -> Option<(IpAddr, Mac)> {
    let is_wanted = (message.header.state == NeighbourState::Permanent) == is_permanent;
    if message.header.ifindex != link || !is_wanted {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => address = Some(found.into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => address = Some(found.into()),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok().map(Mac::new),
            _ => {}
        }
    }
    address.zip(mac)
}
