//! ICMP echo from inside a pod.

use std::{
    ffi::CString,
    io,
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr, SocketAddrV6},
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};

use super::{Error, HOST, select::Pair};
use crate::{net::Netns, topology::Topology};

/// How long an answer is waited for: longer than the kernel asks a second time for a neighbour.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The same after one was lost: the check has failed already, and the rest only tells how badly.
const TIMEOUT_AFTER_LOSS: Duration = Duration::from_millis(200);

/// Between two requests.
const INTERVAL: Duration = Duration::from_millis(10);

/// ICMP types of request and reply, version 4 and 6 (RFC 792, RFC 4443).
const ECHO_V4: (u8, u8) = (8, 0);
const ECHO_V6: (u8, u8) = (128, 129);

/// Tells exchanges that run at the same time in one namespace apart: a raw socket sees the replies of all.
static EXCHANGES: AtomicU16 = AtomicU16::new(0);

/// What became of some echo requests.
#[derive(Clone, Debug, Serialize)]
pub struct PingReport {
    /// The pod that asked.
    pub from: String,
    /// The pod that was asked, or `host`.
    pub to: String,
    /// From which address, where it was not left to the kernel.
    pub source: Option<IpAddr>,
    /// At which address.
    pub address: IpAddr,
    /// Requests sent.
    pub sent: u16,
    /// Replies received.
    pub received: u16,
    /// The shortest round trip, in microseconds.
    pub min_us: Option<f64>,
    /// The median, in microseconds.
    pub median_us: Option<f64>,
    /// The longest: usually the first, which had to find the neighbour.
    pub max_us: Option<f64>,
    /// Why requests could not be sent, where the kernel said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl PingReport {
    /// Whether every request was answered.
    #[must_use]
    pub const fn passed(&self) -> bool {
        self.received == self.sent && self.error.is_none()
    }
}

/// Sends `count` echo requests from a port and waits for each reply. Also returns the round trips in microseconds.
pub(super) fn ping(topology: &Topology, pair: &Pair, count: u16) -> Result<(PingReport, Vec<f64>), Error> {
    let (pod, port) = pair.from.of(topology);
    let mut times = Vec::new();
    let exchange = || exchange(pair, &port.name, count, &mut times);
    let error = Netns::open(&pod.namespace)?.run(exchange)?.err().map(|error| error.to_string());
    times.sort();
    let times: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e6).collect();
    let report = PingReport {
        from: pod.name.clone(),
        to: pair.to.map_or_else(|| HOST.to_owned(), |to| to.of(topology).0.name.clone()),
        source: pair.source,
        address: pair.target,
        sent: count,
        received: u16::try_from(times.len()).unwrap_or(u16::MAX),
        min_us: times.first().copied(),
        median_us: median(&times),
        max_us: times.last().copied(),
        error,
    };
    Ok((report, times))
}

/// The middle of what is sorted.
pub(super) fn median(sorted: &[f64]) -> Option<f64> {
    sorted.get(sorted.len() / 2).copied()
}

/// Collects the round-trip times of the requests that were answered.
fn exchange(pair: &Pair, interface: &str, count: u16, times: &mut Vec<Duration>) -> io::Result<()> {
    let address = pair.target;
    let (domain, protocol) = match address {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    leave_by(&socket, interface, pair.source)?;
    // Connected, so that the kernel hands over only what comes from there.
    socket.connect(&target(address, interface)?.into())?;
    // Not from 0 in every process: two checks may run at the same time.
    let process = u16::try_from(std::process::id() & 0xffff).unwrap_or_default();
    let id = EXCHANGES.fetch_add(1, Ordering::Relaxed).wrapping_add(process);
    let mut refused = None;
    for sequence in 0..count {
        let lost = times.len() < usize::from(sequence);
        let patience = if lost { TIMEOUT_AFTER_LOSS } else { TIMEOUT };
        let start = Instant::now();
        let answer = match socket.send(&request(address, id, sequence)) {
            Ok(_) => answer(&socket, address, id, sequence, start, patience),
            Err(error) => Err(error),
        };
        match answer {
            Ok(time) => times.extend(time),
            // No neighbour, no route: a lost request.
            Err(error) => refused = Some(error),
        }
        if sequence + 1 < count {
            thread::sleep(INTERVAL);
        }
    }
    refused.map_or(Ok(()), Err)
}

/// Makes a socket use one of several interfaces, and an address of it.
pub(super) fn leave_by(socket: &Socket, interface: &str, source: Option<IpAddr>) -> io::Result<()> {
    let said =
        |what: String| move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    socket.bind_device(Some(interface.as_bytes())).map_err(said(format!("bind to {interface}")))?;
    if let Some(source) = source {
        let address = target(source, interface)?;
        socket.bind(&address.into()).map_err(said(format!("bind to {source}")))?;
    }
    Ok(())
}

/// An address with, where it is only valid on a link, the number of that link.
fn target(address: IpAddr, interface: &str) -> io::Result<SocketAddr> {
    Ok(match address {
        IpAddr::V6(address) if address.is_unicast_link_local() => {
            let name = CString::new(interface)?;
            let index = nix::net::if_::if_nametoindex(name.as_c_str())?;
            SocketAddrV6::new(address, 0, 0, index).into()
        }
        other => SocketAddr::new(other, 0),
    })
}

/// Waits for the reply to one request. A raw socket sees other ICMP messages too; those are passed over.
fn answer(
    socket: &Socket,
    address: IpAddr,
    id: u16,
    sequence: u16,
    start: Instant,
    patience: Duration,
) -> io::Result<Option<Duration>> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 1500];
    loop {
        let left = patience.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv_from(&mut buffer) {
            Ok((length, sender)) => {
                let time = start.elapsed();
                // SAFETY: the kernel has written this many bytes.
                let message = unsafe { &*(std::ptr::from_ref(&buffer[..length]) as *const [u8]) };
                let is_ours = sender.as_socket().is_some_and(|sender| sender.ip() == address)
                    && is_reply(message, address, id, sequence);
                if is_ours {
                    return Ok(Some(time));
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Ok(None);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// An echo request of 64 bytes, as ping sends.
fn request(address: IpAddr, id: u16, sequence: u16) -> [u8; 64] {
    let mut message = [0_u8; 64];
    message[0] = if address.is_ipv4() { ECHO_V4.0 } else { ECHO_V6.0 };
    message[4..6].copy_from_slice(&id.to_be_bytes());
    message[6..8].copy_from_slice(&sequence.to_be_bytes());
    for (byte, value) in message[8..].iter_mut().zip(0..) {
        *byte = value;
    }
    // The kernel computes the checksum of ICMPv6 itself: it covers the addresses.
    if address.is_ipv4() {
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    message
}

/// Whether a message is the reply to a request. Version 4 comes with its IP header.
fn is_reply(message: &[u8], address: IpAddr, id: u16, sequence: u16) -> bool {
    let (kind, header) = match address {
        IpAddr::V4(_) => (ECHO_V4.1, message.first().map_or(0, |first| usize::from(first & 0xf) * 4)),
        IpAddr::V6(_) => (ECHO_V6.1, 0),
    };
    let [id, sequence] = [id.to_be_bytes(), sequence.to_be_bytes()];
    message.get(header..).is_some_and(|icmp| {
        icmp.first() == Some(&kind)
            && icmp.get(4..6) == Some(&id[..])
            && icmp.get(6..8) == Some(&sequence[..])
    })
}

/// The internet checksum of an even number of bytes (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_checks_out() {
        let message = request("10.0.0.1".parse().unwrap(), 0x1234, 7);
        assert_eq!(checksum(&message), 0);
    }

    #[test]
    fn only_the_reply_is_taken() {
        let v4 = "10.0.0.1".parse().unwrap();
        let mut message = vec![0_u8; 20];
        message[0] = 0x45;
        message.extend(request(v4, 1, 2));
        assert!(!is_reply(&message, v4, 1, 2), "our own request");
        message[20] = 0;
        assert!(is_reply(&message, v4, 1, 2));
        assert!(!is_reply(&message, v4, 1, 3));
        assert!(!is_reply(&message[..22], v4, 1, 2));
    }
}
