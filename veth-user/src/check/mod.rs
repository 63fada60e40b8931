//! Checks of a path with real traffic, by real sockets inside the pods.

mod ping;
mod tcp;

use std::{io, net::IpAddr, time::Duration};

use serde::Serialize;

use crate::{
    net::{self, Netns, sysctl},
    topology::{Pod, Topology},
};

pub use ping::PingReport;
pub use tcp::TcpReport;

/// Pods that are pinged in a ring; more would overflow the machine's neighbour table and take long.
const RING_MAX: usize = 32;

/// Why a check could not be made. A path that loses packets is no error: the report says so.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A pod's namespace could not be entered.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// A socket could not be used.
    #[error("{action}")]
    Socket {
        /// What was being done.
        action: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl Error {
    fn socket(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Socket { action, source }
    }
}

/// What a check found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Echo requests, both ways round a ring of the pods, in each address family.
    pub pings: Vec<PingReport>,
    /// A transfer from the first pod to the second.
    pub tcp: TcpReport,
}

impl Report {
    /// Whether every request was answered and bytes arrived.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.tcp.bytes > 0 && self.pings.iter().all(|ping| ping.received == ping.sent)
    }
}

/// Pings round a ring of the topology's pods, both ways, and makes one TCP transfer.
///
/// # Errors
///
/// When a pod's namespace cannot be entered or a socket cannot be used.
pub fn check(topology: &Topology, pings: u16, transfer: Duration) -> Result<Report, Error> {
    let pods = &topology.pods[..topology.pods.len().min(RING_MAX)];
    let mut report = Vec::new();
    for (number, pod) in pods.iter().enumerate() {
        let next = &pods[(number + 1) % pods.len()];
        let ways: &[(&Pod, &Pod)] = if pods.len() > 2 { &[(pod, next), (next, pod)] } else { &[(pod, next)] };
        for (from, to) in ways {
            for address in addresses(to) {
                report.push(ping::ping(from, to, address, pings)?);
            }
        }
    }
    let (first, second) = (&pods[0], &pods[1]);
    let address = addresses(second).next().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
    let tcp = tcp::transfer(
        (&first.name, &Netns::open(&first.namespace)?),
        (&second.name, &Netns::open(&second.namespace)?),
        address,
        transfer,
    )?;
    Ok(Report { pings: report, tcp })
}

fn addresses(pod: &Pod) -> impl Iterator<Item = IpAddr> {
    let addresses = pod.ports.iter().flat_map(|port| port.addresses.iter().map(|cidr| cidr.address));
    addresses.filter(|address| address.is_ipv4() || sysctl::has_ipv6())
}
