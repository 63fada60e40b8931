//! Routes of the main table.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
        RouteType, RouteVia,
    },
};

use super::{
    Error, Netlink, Result,
    address::{Cidr, family, is_link_local},
};

/// A way to a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The network. Bits that tell its hosts apart do not count.
    pub to: Cidr,
    /// Who forwards to it; nobody if everyone there is on the link itself. May be outside of the link's own
    /// networks, and an IPv6 one for an IPv4 network.
    pub via: Option<IpAddr>,
    /// The link to send on.
    pub link: u32,
}

/// Where the kernel sends what is for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The link that it leaves by.
    pub link: u32,
    /// Who forwards it; nobody if the address is on the link itself.
    pub via: Option<IpAddr>,
    /// The address that it is sent from, unless a socket says otherwise.
    pub source: Option<IpAddr>,
}

impl Netlink {
    /// Where what is for an address would be sent: `ip route get`.
    ///
    /// # Errors
    ///
    /// `ENETUNREACH` and the like when there is no way.
    pub async fn route_to(&self, address: IpAddr) -> Result<Hop> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(address);
        message.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
        message.attributes = vec![RouteAttribute::Destination(address.into())];
        let action = format!("find the way to {address}");
        let answer = self.get(&action, RouteNetlinkMessage::GetRoute(message)).await?;
        let RouteNetlinkMessage::NewRoute(message) = answer else {
            return Err(Error::new(action, io::Error::from_raw_os_error(libc::ENETUNREACH)));
        };
        let (mut link, mut via, mut source) = (None, None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Oif(index) => link = Some(*index),
                RouteAttribute::Gateway(address) => via = plain(address),
                RouteAttribute::Via(RouteVia::Inet6(address)) => via = Some((*address).into()),
                RouteAttribute::PrefSource(address) => source = plain(address),
                _ => {}
            }
        }
        match link.filter(|_| message.header.kind == RouteType::Unicast) {
            Some(link) => Ok(Hop { link, via, source }),
            None => Err(Error::new(action, io::Error::from_raw_os_error(libc::ENETUNREACH))),
        }
    }

    /// Adds a route, or puts it in the place of the one to the same network.
    ///
    /// # Errors
    ///
    /// `ENETDOWN` when the link is not up.
    pub async fn add_route(&self, route: &Route) -> Result<()> {
        let mut message = by_route(route);
        message.header.kind = RouteType::Unicast;
        match route.via {
            None => {
                // IPv6 has no scopes of routes and takes any.
                message.header.scope = RouteScope::Link;
            }
            // The kernel would look for a way to the gateway otherwise, and there may be none but this link.
            Some(via) if !is_link_local(via) => message.header.flags = RouteFlags::Onlink,
            Some(_) => {}
        }
        self.replace(&format!("add {}", describe(route)), RouteNetlinkMessage::NewRoute(message)).await
    }

    /// Removes a route. Succeeds if there is none.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn remove_route(&self, route: &Route) -> Result<()> {
        let mut message = by_route(route);
        // Whatever it has.
        message.header.scope = RouteScope::NoWhere;
        let action = format!("remove {}", describe(route));
        match self.change(&action, RouteNetlinkMessage::DelRoute(message)).await {
            Err(error) if matches!(error.errno(), Some(libc::ESRCH | libc::ENODEV)) => Ok(()),
            result => result,
        }
    }

    /// The routes over a link that somebody added: a network, and who forwards to it. Neither those that the kernel
    /// made of addresses nor those that a daemon learned.
    ///
    /// # Errors
    ///
    /// `ENODEV` when the link is gone.
    pub async fn routes(&self, link: u32) -> Result<Vec<(Cidr, Option<IpAddr>)>> {
        let mut message = RouteMessage::default();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.attributes = vec![RouteAttribute::Oif(link)];
        let action = format!("list the routes over link {link}");
        let rows = self.dump(&action, RouteNetlinkMessage::GetRoute(message)).await?;
        Ok(rows
            .into_iter()
            .filter_map(|row| match row {
                RouteNetlinkMessage::NewRoute(message) => added(&message, link),
                _ => None,
            })
            .collect())
    }
}

fn by_route(route: &Route) -> RouteMessage {
    let Route { to, via, link } = *route;
    let to = to.network();
    let mut message = RouteMessage::default();
    message.header.address_family = family(to.address);
    message.header.destination_prefix_length = to.prefix;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.attributes = vec![RouteAttribute::Destination(to.address.into()), RouteAttribute::Oif(link)];
    message.attributes.extend(via.map(|via| match via {
        IpAddr::V6(via) if to.address.is_ipv4() => RouteAttribute::Via(RouteVia::Inet6(via)),
        via => RouteAttribute::Gateway(via.into()),
    }));
    message
}

fn describe(route: &Route) -> String {
    let Route { to, via, link } = route;
    let via = via.map(|via| format!(" by {via}")).unwrap_or_default();
    format!("the route to {}{via} over link {link}", to.network())
}

/// A route of the main table over a link, unless the kernel or a daemon made it.
fn added(message: &RouteMessage, link: u32) -> Option<(Cidr, Option<IpAddr>)> {
    let header = &message.header;
    if header.table != RouteHeader::RT_TABLE_MAIN
        || header.kind != RouteType::Unicast
        || !matches!(header.protocol, RouteProtocol::Static | RouteProtocol::Boot)
    {
        return None;
    }
    let mut to = match header.address_family {
        AddressFamily::Inet => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let mut via = None;
    let mut over = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = plain(address)?,
            RouteAttribute::Gateway(address) => via = plain(address),
            RouteAttribute::Via(RouteVia::Inet6(address)) => via = Some((*address).into()),
            RouteAttribute::Oif(index) => over = Some(*index),
            _ => {}
        }
    }
    (over == Some(link)).then_some((Cidr { address: to, prefix: header.destination_prefix_length }, via))
}

fn plain(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
