//! Ordinary traffic between two pods, by ordinary sockets.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use socket2::SockRef;
use veth_user::net::Netns;

use crate::lab::PATIENCE;

/// Tells other threads to end when it is dropped, also by a panic: a scope waits for them.
#[derive(Debug)]
pub struct End<'a>(pub &'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends some bytes by TCP and checks that the same arrive.
pub fn tcp(from: &Netns, to: &Netns, address: IpAddr, bytes: usize) {
    let listener = to.run(|| TcpListener::bind((address, 0))).unwrap().unwrap();
    // Also for `accept`: a connection that never comes must fail the test, not hang it.
    SockRef::from(&listener).set_read_timeout(Some(PATIENCE)).unwrap();
    let target = listener.local_addr().unwrap();
    let data: Vec<u8> = (0..bytes).map(|n| u8::try_from(n % 251).unwrap()).collect();
    thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            received
        });
        let mut stream = from.run(|| TcpStream::connect_timeout(&target, PATIENCE)).unwrap().unwrap();
        stream.write_all(&data).unwrap();
        drop(stream);
        assert!(receiver.join().unwrap() == data, "TCP to {address} changed {bytes} bytes");
    });
}

/// Sends datagrams one after the other, each answered before the next. Returns how many were lost.
#[must_use]
pub fn udp(from: &Netns, to: &Netns, address: IpAddr, size: usize, count: usize) -> usize {
    let server = bind(to, address);
    let target = server.local_addr().unwrap();
    let client = bind(from, if address.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() });
    client.connect(target).unwrap();
    let (data, mut buffer) = (vec![0x5a; size], vec![0; size + 1]);
    let mut lost = 0;
    for _ in 0..count {
        client.send(&data).unwrap();
        let answered = server.recv_from(&mut buffer).and_then(|(length, sender)| {
            assert_eq!(buffer[..length], data);
            server.send_to(&buffer[..length], sender)?;
            client.recv(&mut buffer)
        });
        match answered {
            Ok(length) => assert_eq!(buffer[..length], data),
            Err(_) => lost += 1,
        }
    }
    lost
}

/// A UDP socket in a pod that gives up after a while.
#[must_use]
pub fn bind(pod: &Netns, address: IpAddr) -> UdpSocket {
    let socket = pod.run(|| UdpSocket::bind(SocketAddr::new(address, 0))).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket
}
