//! Two namespaces that somebody else made: those of containers, of Kubernetes pods, or of anything else.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::PathBuf,
    sync::Arc,
};

use nix::ifaddrs::getifaddrs;

use super::{
    Error,
    workload::{End, Ends},
};
use crate::{
    net::{Netns, netns::NETNS_DIR},
    text::with_causes,
};

/// Two namespaces, and the addresses by which their pods talk.
#[derive(Clone, Debug)]
pub struct Attached {
    pub(super) ends: Ends,
    pub(super) what: String,
}

/// Where a name leads: `NAME` of `ip netns`, a path, or a process.
fn path(name: &str) -> PathBuf {
    if name.contains('/') {
        name.into()
    } else if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
        format!("/proc/{name}/ns/net").into()
    } else {
        PathBuf::from(NETNS_DIR).join(name)
    }
}

impl Attached {
    /// Finds both namespaces, each by its name in `ip netns`, a path, or the number of a process in it. On the machine
    /// itself, for a throw-away host has no names.
    ///
    /// # Errors
    ///
    /// When there is no such namespace, or the first cannot reach the second.
    pub fn find(names: [&str; 2], is_v4: bool) -> Result<Self, Error> {
        let wrong = |name: &str, why: String| Error::Attach { name: name.to_owned(), why };
        let open =
            |name: &str| Netns::open_path(&path(name)).map_err(|error| wrong(name, with_causes(&error)));
        let [from, to] = [open(names[0])?, open(names[1])?];
        let family = if is_v4 { "IPv4" } else { "IPv6" };
        let there = to.run(|| addresses(is_v4))?.map_err(|error| wrong(names[1], error.to_string()))?;
        if there.is_empty() {
            return Err(wrong(names[1], format!("it has no {family} address but those of the loopback")));
        }
        let route = |target: &IpAddr| Some((from.run(|| source(*target)).ok()?.ok()?, *target));
        let Some((source, target)) = there.iter().find_map(route) else {
            let there: Vec<String> = there.iter().map(ToString::to_string).collect();
            let why =
                format!("it has no route to any {family} address of {}: {}", names[1], there.join(", "));
            return Err(wrong(names[0], why));
        };
        let ends = [
            End { namespace: Arc::new(from), address: source },
            End { namespace: Arc::new(to), address: target },
        ];
        Ok(Self { ends, what: format!("{} to {}, {source} to {target}, as it is", names[0], names[1]) })
    }
}

/// The addresses of the calling thread's namespace that others can reach.
fn addresses(is_v4: bool) -> io::Result<Vec<IpAddr>> {
    let of = |address: nix::ifaddrs::InterfaceAddress| {
        let address = address.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    };
    let is_usable = |address: &IpAddr| {
        let is_local = match address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        address.is_ipv4() == is_v4 && !address.is_loopback() && !is_local
    };
    Ok(getifaddrs()?.filter_map(of).filter(is_usable).collect())
}

/// The address by which the calling thread's namespace would send to another. Sends nothing.
fn source(target: IpAddr) -> io::Result<IpAddr> {
    let any: IpAddr = if target.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    socket.connect(SocketAddr::new(target, 9))?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_named_in_three_ways() {
        for (name, expected) in [
            ("lab-a", "/run/netns/lab-a"),
            ("1234", "/proc/1234/ns/net"),
            ("/proc/7/ns/net", "/proc/7/ns/net"),
            ("./x", "./x"),
        ] {
            assert_eq!(path(name), PathBuf::from(expected));
        }
    }
}
