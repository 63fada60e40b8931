//! UDP: request and response, as many datagrams as go, and as many as go without loss.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};

use super::{Ends, Error, Failed, PATIENCE, Part, Setting, batch, batch::Batch, both, transactions};

/// What a socket may hold, in bytes: enough that what is lost was lost by the path.
const BUFFER: usize = 8 << 20;

/// Halvings of the interval in which the highest rate without loss is looked for.
const HALVINGS: u32 = 7;

/// How long the last datagrams of a trial may be on their way.
const SETTLE: Duration = Duration::from_millis(20);

fn at<T>(action: &'static str) -> impl FnOnce(io::Error) -> Result<T, Failed> {
    move |source| Err((action, source))
}

fn bind(address: IpAddr) -> Result<UdpSocket, Failed> {
    let bound = || {
        let socket = UdpSocket::bind(SocketAddr::new(address, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
        Ok(socket)
    };
    bound().or_else(at("make a socket"))
}

fn connect(address: IpAddr, target: SocketAddr) -> Result<UdpSocket, Failed> {
    let socket = bind(address)?;
    socket.connect(target).or_else(at("connect"))?;
    Ok(socket)
}

/// An empty datagram ends it.
pub(super) fn request_response(ends: &Ends, setting: &Setting) -> Result<Part, Error> {
    let Setting { duration, size, .. } = *setting;
    let serve = |address, tell: &dyn Fn(SocketAddr)| {
        let socket = bind(address)?;
        tell(socket.local_addr().or_else(at("listen"))?);
        let mut message = vec![0; size + 1];
        loop {
            let (length, from) = socket.recv_from(&mut message).or_else(at("receive a request"))?;
            if length == 0 {
                return Ok(());
            }
            socket.send_to(&message[..length], from).or_else(at("answer"))?;
        }
    };
    let begin = |address, target| {
        let socket = connect(address, target)?;
        let mut message = vec![0x5a; size];
        let part = transactions(duration, || {
            socket.send(&message)?;
            socket.recv(&mut message).map(drop)
        })?;
        socket.send(&[]).or_else(at("end"))?;
        Ok(part)
    };
    Ok(both(ends, setting, serve, begin)?.1)
}

pub(super) fn flood(ends: &Ends, setting: &Setting) -> Result<Part, Error> {
    let [client, server] = setting.cpus;
    if client == server { in_turns(ends, setting) } else { side_by_side(ends, setting) }
}

/// On one CPU a sender and a receiver would only show how the scheduler shares it. One thread sends a batch and
/// receives it, so that each datagram costs its way and nothing else.
fn in_turns(ends: &Ends, setting: &Setting) -> Result<Part, Error> {
    let [client, server] = ends;
    let explain = |failed| super::explain("only end", failed, ends);
    let into = server.namespace.run(|| bind(server.address))?.map_err(explain)?;
    let target = into.local_addr().or_else(at("listen")).map_err(explain)?;
    let out = client.namespace.run(|| connect(client.address, target))?.map_err(explain)?;
    let work = || {
        super::prepare(client, setting.cpus[0])?;
        turns(setting, &out, &into).map_err(explain)
    };
    thread::scope(|scope| scope.spawn(work).join()).map_err(|_panic| Error::Panic)?
}

fn turns(setting: &Setting, out: &UdpSocket, into: &UdpSocket) -> Result<Part, Failed> {
    let Setting { duration, size, .. } = *setting;
    let (mut sending, mut receiving) = (Batch::new(size), Batch::new(size));
    let (mut sent, mut received) = (0_u64, 0_u64);
    let mut turn = || {
        let batch = sending.send(out, batch::LENGTH).or_else(at("send"))?;
        let mut came = 0;
        while came < batch {
            match receiving.receive(into) {
                Ok(count) => came += count,
                // The rest of it is lost. Where nothing comes at all, that is said.
                Err(error) if error.kind() == ErrorKind::WouldBlock && came > 0 => break,
                Err(error) => return Err(("receive", error)),
            }
        }
        sent += u64::try_from(batch).unwrap_or_default();
        received += u64::try_from(came).unwrap_or_default();
        Ok::<_, Failed>(u32::try_from(came).unwrap_or_default())
    };
    let start = Instant::now();
    while start.elapsed() < duration / 8 {
        turn()?;
    }
    let (mut datagrams, start) = (0.0, Instant::now());
    loop {
        datagrams += f64::from(turn()?);
        let elapsed = start.elapsed();
        if elapsed >= duration {
            let rate = datagrams / elapsed.as_secs_f64();
            let lost = Some((sent, sent.saturating_sub(received)));
            return Ok(Part { rate, operations: datagrams * 9.0 / 8.0, latency: None, lost });
        }
    }
}

/// On two CPUs one sends as fast as it can, and the other takes what comes.
fn side_by_side(ends: &Ends, setting: &Setting) -> Result<Part, Error> {
    let Setting { duration, size, .. } = *setting;
    let is_over = AtomicBool::new(false);
    let serve = |address, tell: &dyn Fn(SocketAddr)| {
        let socket = bind(address)?;
        tell(socket.local_addr().or_else(at("listen"))?);
        let received = receive_for(&socket, size, duration);
        is_over.store(true, Ordering::Relaxed);
        received.or_else(at("receive"))
    };
    let begin = |address, target| {
        let socket = connect(address, target)?;
        let mut batch = Batch::new(size);
        let mut sent = 0_u64;
        let start = Instant::now();
        while !is_over.load(Ordering::Relaxed) && start.elapsed() < duration * 4 + PATIENCE {
            sent +=
                u64::try_from(batch.send(&socket, batch::LENGTH).or_else(at("send"))?).unwrap_or_default();
        }
        Ok(sent)
    };
    let ((rate, received), sent) = both(ends, setting, serve, begin)?;
    let lost = sent.saturating_sub(received);
    #[expect(clippy::cast_precision_loss, reason = "there are millions at most")]
    let operations = received as f64;
    Ok(Part { rate, operations, lost: Some((sent, lost)), latency: None })
}

/// How many come a second, after an eighth of the time, and how many in all.
fn receive_for(socket: &UdpSocket, size: usize, duration: Duration) -> io::Result<(f64, u64)> {
    let mut batch = Batch::new(size);
    let mut before = batch.receive(socket)?;
    let start = Instant::now();
    while start.elapsed() < duration / 8 {
        before += batch.receive(socket)?;
    }
    let (mut counted, start) = (0, Instant::now());
    loop {
        counted += batch.receive(socket)?;
        let elapsed = start.elapsed();
        if elapsed >= duration {
            let datagrams = u32::try_from(counted).unwrap_or(u32::MAX);
            let all = u64::try_from(before + counted).unwrap_or(u64::MAX);
            return Ok((f64::from(datagrams) / elapsed.as_secs_f64(), all));
        }
    }
}

/// Between nothing and what arrives of a flood, the highest rate of which everything arrives, by halving: RFC 2544,
/// section 26.1, with trials of the sample's duration.
pub(super) fn no_drop_rate(ends: &Ends, setting: &Setting) -> Result<Part, Error> {
    let flood = side_by_side(ends, setting)?;
    let (mut none_lost, mut some_lost) = (0.0, flood.rate);
    let mut operations = flood.operations;
    for _ in 0..HALVINGS {
        let rate = f64::midpoint(none_lost, some_lost);
        let (sent, received, achieved) = trial(ends, setting, rate)?;
        operations += f64::from(received);
        if received == sent && sent > 0 {
            // What could be sent, which may be less than was asked for.
            none_lost = achieved.min(rate);
        } else {
            some_lost = rate;
        }
    }
    Ok(Part { rate: none_lost, operations, ..Part::default() })
}

/// Sends at a rate, and returns how many were sent and came, and the rate at which they were sent.
fn trial(ends: &Ends, setting: &Setting, rate: f64) -> Result<(u32, u32, f64), Error> {
    let Setting { duration, size, .. } = *setting;
    let serve = |address, tell: &dyn Fn(SocketAddr)| {
        let socket = bind(address)?;
        socket.set_read_timeout(Some(duration + SETTLE)).or_else(at("set a timeout"))?;
        tell(socket.local_addr().or_else(at("listen"))?);
        let (mut batch, mut received) = (Batch::new(size), 0);
        loop {
            match batch.receive(&socket) {
                Ok(count) => received += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Ok(u32::try_from(received).unwrap_or(u32::MAX));
                }
                Err(error) => return Err(("receive", error)),
            }
        }
    };
    let begin = |address, target| {
        let socket = connect(address, target)?;
        let (mut batch, mut sent) = (Batch::new(size), 0_u32);
        let start = Instant::now();
        loop {
            let elapsed = start.elapsed();
            if elapsed >= duration {
                return Ok((sent, f64::from(sent) / elapsed.as_secs_f64()));
            }
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "few datagrams are due"
            )]
            let due = (rate * elapsed.as_secs_f64()) as u32;
            if due > sent {
                let due = usize::try_from(due - sent).unwrap_or(batch::LENGTH);
                let count = batch.send(&socket, due).or_else(at("send"))?;
                sent += u32::try_from(count).unwrap_or_default();
            } else {
                std::hint::spin_loop();
            }
        }
    };
    let (received, (sent, achieved)) = both(ends, setting, serve, begin)?;
    Ok((sent, received, achieved))
}
