//! ICMP echo from inside a pod.

use std::{
    io,
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};

use super::Error;
use crate::{net::Netns, topology::Pod};

/// How long an answer is waited for.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Between two requests.
const INTERVAL: Duration = Duration::from_millis(10);

/// ICMP types of request and reply, version 4 and 6 (RFC 792, RFC 4443).
const ECHO_V4: (u8, u8) = (8, 0);
const ECHO_V6: (u8, u8) = (128, 129);

/// What became of some echo requests.
#[derive(Clone, Debug, Serialize)]
pub struct PingReport {
    /// The pod that asked.
    pub from: String,
    /// The pod that was asked.
    pub to: String,
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
}

/// Sends `count` echo requests from one pod to another and waits for each reply.
pub(super) fn ping(from: &Pod, to: &Pod, address: IpAddr, count: u16) -> Result<PingReport, Error> {
    let mut times = Netns::open(&from.namespace)?.run(|| exchange(address, count))??;
    times.sort();
    let microseconds = |time: &Duration| time.as_secs_f64() * 1e6;
    Ok(PingReport {
        from: from.name.clone(),
        to: to.name.clone(),
        address,
        sent: count,
        received: u16::try_from(times.len()).unwrap_or(u16::MAX),
        min_us: times.first().map(microseconds),
        median_us: times.get(times.len() / 2).map(microseconds),
        max_us: times.last().map(microseconds),
    })
}

/// The round-trip times of the requests that were answered.
fn exchange(address: IpAddr, count: u16) -> Result<Vec<Duration>, Error> {
    let action = format!("ping {address}");
    let (domain, protocol) = match address {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol)).map_err(Error::socket(&action))?;
    let target = SocketAddr::new(address, 0).into();
    let id = u16::try_from(std::process::id() & 0xffff).unwrap_or_default();
    let mut times = Vec::new();
    for sequence in 0..count {
        let request = request(address, id, sequence);
        let start = Instant::now();
        match socket.send_to(&request, &target) {
            Ok(_) => {}
            // No neighbour, no route: a lost request, not a broken check.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable
                ) =>
            {
                continue;
            }
            Err(error) => return Err(Error::socket(&action)(error)),
        }
        if let Some(time) = answer(&socket, address, id, sequence, start).map_err(Error::socket(&action))? {
            times.push(time);
        }
        if sequence + 1 < count {
            thread::sleep(INTERVAL);
        }
    }
    Ok(times)
}

/// Waits for the reply to one request. A raw socket sees other ICMP messages too; those are passed over.
fn answer(
    socket: &Socket,
    address: IpAddr,
    id: u16,
    sequence: u16,
    start: Instant,
) -> io::Result<Option<Duration>> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 1500];
    loop {
        let left = TIMEOUT.saturating_sub(start.elapsed());
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
