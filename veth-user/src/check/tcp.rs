//! A short TCP transfer between two pods.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::Error;
use crate::net::Netns;

/// How long the other end is waited for.
const TIMEOUT: Duration = Duration::from_secs(3);

/// What one call of `write` sends.
const CHUNK: usize = 128 * 1024;

/// What a transfer achieved.
#[derive(Clone, Debug, Serialize)]
pub struct TcpReport {
    /// The pod that sent.
    pub from: String,
    /// The pod that received.
    pub to: String,
    /// At which address.
    pub address: IpAddr,
    /// Bytes that arrived.
    pub bytes: u64,
    /// In how many seconds.
    pub seconds: f64,
    /// That is, in bits a second.
    pub bits_per_second: f64,
}

/// Sends as much as it can for some time. What counts is what arrives.
pub(super) fn transfer(
    (from, from_namespace): (&str, &Netns),
    (to, to_namespace): (&str, &Netns),
    address: IpAddr,
    duration: Duration,
) -> Result<TcpReport, Error> {
    let action = |what: &str| format!("{what} for a TCP transfer from {from} to {to} ({address})");
    let listener = to_namespace.run(|| listen(address))?.map_err(Error::socket(action("listen")))?;
    let target = listener.local_addr().map_err(Error::socket(action("listen")))?;
    let (received, sent) = thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(&listener));
        let sent = from_namespace.run(|| send(target, duration));
        (receiver.join(), sent)
    });
    sent?.map_err(Error::socket(action("send")))?;
    let (bytes, elapsed) = received
        .map_err(|_panic| io::Error::other("the receiver panicked"))
        .flatten()
        .map_err(Error::socket(action("receive")))?;
    let seconds = elapsed.as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a rate is shown with four digits")]
    let bits_per_second = if seconds > 0.0 { bytes as f64 * 8.0 / seconds } else { 0.0 };
    Ok(TcpReport { from: from.to_owned(), to: to.to_owned(), address, bytes, seconds, bits_per_second })
}

fn listen(address: IpAddr) -> io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::new(address, 0))
}

fn send(target: SocketAddr, duration: Duration) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    // The machine's default may be BBR, which without pacing by FQ shows itself more than the path.
    SockRef::from(&socket).set_tcp_congestion(b"cubic")?;
    socket.connect_timeout(&target.into(), TIMEOUT)?;
    let mut stream = TcpStream::from(socket);
    stream.set_write_timeout(Some(TIMEOUT))?;
    let chunk = vec![0_u8; CHUNK];
    let start = Instant::now();
    while start.elapsed() < duration {
        stream.write_all(&chunk)?;
    }
    Ok(())
}

/// Counts what arrives on one connection until its end.
fn receive(listener: &TcpListener) -> io::Result<(u64, Duration)> {
    SockRef::from(listener).set_read_timeout(Some(TIMEOUT))?;
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut buffer = vec![0_u8; CHUNK];
    let (mut bytes, start) = (0_u64, Instant::now());
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok((bytes, start.elapsed())),
            length => bytes += u64::try_from(length).unwrap_or(u64::MAX),
        }
    }
}
