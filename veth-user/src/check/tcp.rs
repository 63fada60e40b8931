//! A short TCP transfer between two pods.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::{
    Error,
    ping::leave_by,
    select::{End, Pair},
};
use crate::{
    net::Netns,
    topology::{Pod, Topology},
};

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
    /// Why it came to nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl TcpReport {
    /// Whether anything arrived, and all of it.
    #[must_use]
    pub const fn passed(&self) -> bool {
        self.bytes > 0 && self.error.is_none()
    }
}

/// Sends as much as it can for some time from the port of a pair to the address of another. What counts is what
/// arrives.
pub(super) fn transfer(
    topology: &Topology,
    pair: &Pair,
    to: End,
    duration: Duration,
) -> Result<TcpReport, Error> {
    let (from, port) = pair.from.of(topology);
    let (to, _) = to.of(topology);
    let done = carry((from, to), &port.name, pair, duration)?;
    let (bytes, elapsed, error) = match done {
        Ok((bytes, elapsed)) => (bytes, elapsed, None),
        Err(error) => (0, Duration::ZERO, Some(error)),
    };
    let seconds = elapsed.as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a rate is shown with four digits")]
    let bits_per_second = if seconds > 0.0 { bytes as f64 * 8.0 / seconds } else { 0.0 };
    let (from, to) = (from.name.clone(), to.name.clone());
    Ok(TcpReport { from, to, address: pair.target, bytes, seconds, bits_per_second, error })
}

/// How many bytes arrived in which time, or what failed and why.
fn carry(
    (from, to): (&Pod, &Pod),
    interface: &str,
    pair: &Pair,
    duration: Duration,
) -> Result<Result<(u64, Duration), String>, Error> {
    let (from, to) = (Netns::open(&from.namespace)?, Netns::open(&to.namespace)?);
    let listening = to.run(|| {
        let listener = TcpListener::bind(SocketAddr::new(pair.target, 0))?;
        let target = listener.local_addr()?;
        Ok::<_, io::Error>((listener, target))
    })?;
    let (listener, target) = match listening {
        Ok(listening) => listening,
        Err(error) => return Ok(Err(format!("listen: {error}"))),
    };
    let (received, sent) = thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(&listener));
        let sent = from.run(|| send(target, interface, pair, duration));
        (receiver.join(), sent)
    });
    if let Err(error) = sent? {
        return Ok(Err(format!("send: {error}")));
    }
    let received = received.map_err(|_panic| io::Error::other("the receiver panicked")).flatten();
    Ok(received.map_err(|error| format!("receive: {error}")))
}

fn send(target: SocketAddr, interface: &str, pair: &Pair, duration: Duration) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    // The machine's default may be BBR, which without pacing by FQ shows itself more than the path.
    SockRef::from(&socket).set_tcp_congestion(b"cubic")?;
    leave_by(&socket, interface, pair.source)?;
    socket.connect_timeout(&target.into(), TIMEOUT)?;
    let mut stream = TcpStream::from(socket);
    stream.set_write_timeout(Some(TIMEOUT))?;
    let chunk = vec![0_u8; CHUNK];
    let start = Instant::now();
    // At least once, however long this thread had to wait.
    loop {
        stream.write_all(&chunk)?;
        if start.elapsed() >= duration {
            return Ok(());
        }
    }
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
