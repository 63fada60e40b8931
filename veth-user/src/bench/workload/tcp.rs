//! TCP: request and response, with and without a new connection each, and bulk.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::{Ends, Error, Failed, PATIENCE, Part, Setting, both, transactions};

/// The same on all machines: the default may be BBR, which without pacing by FQ shows itself more than the path.
pub(in super::super) const CONGESTION_CONTROL: &str = "cubic";

/// How much is read at once.
const READ: usize = 256 * 1024;

/// Connections that may wait.
const BACKLOG: i32 = 128;

fn at<T>(action: &'static str) -> impl FnOnce(io::Error) -> Result<T, Failed> {
    move |source| Err((action, source))
}

/// A socket as all of ours are.
fn socket(family: IpAddr) -> io::Result<Socket> {
    let domain = if family.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_congestion(CONGESTION_CONTROL.as_bytes())?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn listen(address: IpAddr) -> Result<(TcpListener, SocketAddr), Failed> {
    let listening = || {
        let socket = socket(address)?;
        socket.bind(&SocketAddr::new(address, 0).into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from(socket);
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    listening().or_else(at("listen"))
}

fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(target.ip())?;
    socket.connect_timeout(&target.into(), PATIENCE)?;
    Ok(socket.into())
}

fn accept(listener: &TcpListener) -> Result<TcpStream, Failed> {
    let (stream, _) = listener.accept().or_else(at("accept"))?;
    let prepared = || {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)
    };
    prepared().or_else(at("prepare a connection"))?;
    Ok(stream)
}

pub(super) fn request_response(ends: &Ends, setting: &Setting) -> Result<Part, Error> {
    let Setting { duration, size, .. } = *setting;
    let serve = |address, tell: &dyn Fn(SocketAddr)| {
        let (listener, own) = listen(address)?;
        tell(own);
        let mut stream = accept(&listener)?;
        let mut message = vec![0; size];
        loop {
            match stream.read_exact(&mut message) {
                Ok(()) => stream.write_all(&message).or_else(at("answer"))?,
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(("receive a request", error)),
            }
        }
    };
    let begin = |_, target| {
        let mut stream = connect(target).or_else(at("connect"))?;
        let mut message = vec![0x5a; size];
        transactions(duration, || {
            stream.write_all(&message)?;
            stream.read_exact(&mut message)
        })
    };
    Ok(both(ends, setting, serve, begin)?.1)
}

/// The answering end closes first, so that the one that begins does not run out of ports.
pub(super) fn connect_request_response(ends: &Ends, setting: &Setting) -> Result<Part, Error> {
    let Setting { duration, size, .. } = *setting;
    let serve = |address, tell: &dyn Fn(SocketAddr)| {
        let (listener, own) = listen(address)?;
        tell(own);
        let mut message = vec![0; size];
        loop {
            let mut stream = accept(&listener)?;
            match stream.read_exact(&mut message) {
                Ok(()) => stream.write_all(&message).or_else(at("answer"))?,
                // A connection without a request is the last.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(("receive a request", error)),
            }
        }
    };
    let begin = |_, target| {
        let mut message = vec![0x5a; size];
        let part = transactions(duration, || {
            let mut stream = connect(target)?;
            stream.write_all(&message)?;
            stream.read_exact(&mut message)?;
            match stream.read(&mut [0])? {
                0 => Ok(()),
                _ => Err(io::Error::other("more came than was asked for")),
            }
        })?;
        connect(target).or_else(at("connect once more"))?;
        Ok(part)
    };
    Ok(both(ends, setting, serve, begin)?.1)
}

/// What counts is what arrives. The receiver ends it, by closing.
pub(super) fn stream(ends: &Ends, setting: &Setting) -> Result<Part, Error> {
    let Setting { duration, size, .. } = *setting;
    let serve = |address, tell: &dyn Fn(SocketAddr)| {
        let (listener, own) = listen(address)?;
        tell(own);
        receive(accept(&listener)?, duration).or_else(at("receive"))
    };
    let begin = |_, target| {
        let mut stream = connect(target).or_else(at("connect"))?;
        let data = vec![0x5a; size];
        let start = Instant::now();
        while start.elapsed() < duration * 4 + PATIENCE {
            match stream.write_all(&data) {
                Ok(()) => {}
                Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                    break;
                }
                Err(error) => return Err(("send", error)),
            }
        }
        // Told here, so that a descriptor is not closed before the other end has read.
        let _unused: io::Result<()> = SockRef::from(&stream).shutdown(std::net::Shutdown::Both);
        Ok(())
    };
    Ok(both(ends, setting, serve, begin)?.0)
}

/// A quarter more than is counted: a connection has to find its window first.
fn receive(mut stream: TcpStream, duration: Duration) -> io::Result<Part> {
    let mut buffer = vec![0; READ];
    let mut read = || match stream.read(&mut buffer)? {
        0 => Err(io::Error::from(ErrorKind::UnexpectedEof)),
        length => Ok(u32::try_from(length).unwrap_or(u32::MAX)),
    };
    let mut before = 0.0;
    let start = Instant::now();
    while start.elapsed() < duration / 4 {
        before += f64::from(read()?);
    }
    let (mut bytes, start) = (0.0, Instant::now());
    loop {
        bytes += f64::from(read()?);
        let elapsed = start.elapsed();
        if elapsed >= duration {
            let megabytes = bytes / 1e6;
            let operations = (bytes + before) / 1e6;
            return Ok(Part { rate: megabytes / elapsed.as_secs_f64(), operations, ..Part::default() });
        }
    }
}
