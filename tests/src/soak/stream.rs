//! TCP flows whose every byte is checked.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use socket2::SockRef;
use veth_user::net::Netns;

use crate::lab::PATIENCE;

/// Bytes that are sent at a time.
const BLOCK: usize = 16 << 10;

/// How long the sender rests between two blocks: a flow is to be there, and not to take a CPU.
const REST: Duration = Duration::from_millis(5);

/// A TCP connection that carries data until it is told to end.
pub(super) struct Stream {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<u64>,
}

impl Stream {
    pub(super) fn start(from: &Netns, to: &Netns, address: IpAddr) -> Self {
        let listener = to.run(|| TcpListener::bind((address, 0))).unwrap().unwrap();
        SockRef::from(&listener).set_read_timeout(Some(PATIENCE)).unwrap();
        let target = listener.local_addr().unwrap();
        let receiver = thread::spawn(move || receive(&listener));
        let connected = from.run(|| TcpStream::connect_timeout(&target, PATIENCE)).unwrap().unwrap();
        connected.set_write_timeout(Some(PATIENCE)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&stop);
        let sender = thread::spawn(move || send(connected, &end));
        Self { stop, sender, receiver }
    }

    /// Ends it. Returns how many bytes arrived; all were as they were sent, and all that were sent did.
    pub(super) fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let (sent, received) = (self.sender.join().unwrap(), self.receiver.join().unwrap());
        assert_eq!(sent, received, "bytes of a TCP flow");
        received
    }
}

/// What a flow consists of, again and again. No power of two, so that what is moved is seen.
const PERIOD: usize = 251;

/// Enough of it to take a block from any place.
fn pattern() -> Vec<u8> {
    (0..PERIOD + BLOCK).map(|at| u8::try_from(at % PERIOD).unwrap()).collect()
}

fn send(mut stream: TcpStream, stop: &AtomicBool) -> u64 {
    let pattern = pattern();
    let mut sent = 0_usize;
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&pattern[sent % PERIOD..][..BLOCK]).expect("a TCP flow goes on");
        sent += BLOCK;
        thread::sleep(REST);
    }
    sent.try_into().unwrap()
}

fn receive(listener: &TcpListener) -> u64 {
    let (mut stream, _) = listener.accept().expect("a TCP flow comes about");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let pattern = pattern();
    let (mut received, mut block) = (0_usize, vec![0; BLOCK]);
    loop {
        let length = stream.read(&mut block).expect("a TCP flow goes on");
        if length == 0 {
            return received.try_into().unwrap();
        }
        let is_intact = block[..length] == pattern[received % PERIOD..][..length];
        assert!(is_intact, "a TCP flow is changed behind byte {received}");
        received += length;
    }
}
