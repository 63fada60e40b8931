//! Numbered datagrams at a steady rate, of which each is accounted for.

use std::{
    collections::HashSet,
    net::{IpAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::socket::{setsockopt, sockopt},
    unistd::Pid,
};
use veth_user::net::Netns;

use super::{kernel, report::Report};
use crate::traffic::bind;

/// What the receiver's socket may hold, in bytes: a receiver that does not run for a second loses nothing.
const BUFFER: usize = 256 << 20;

/// A datagram's size.
const SIZE: usize = 64;

/// How often the sender sends what has become due, at least: a flow that is slow sends some datagrams at a time.
const TICK: Duration = Duration::from_micros(500);

/// How many datagrams are worth to be woken up for.
const BURST: u32 = 8;

/// How long nothing must have come after the last datagram was sent.
const QUIET: Duration = Duration::from_millis(500);

/// A flow of datagrams from one pod to another. One thread on one CPU sends all of it, so that the kernel has no reason
/// to change their order.
pub(super) struct Flow {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    sender: JoinHandle<()>,
    receiver: JoinHandle<Received>,
    to: Netns,
    errors_before: u64,
}

/// What arrived.
#[derive(Clone, Copy, Debug, Default)]
struct Received {
    datagrams: u64,
    reordered: u64,
    duplicated: u64,
}

/// What became of a flow.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Account {
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) reordered: u64,
    pub(super) duplicated: u64,
    /// What the receiving socket had no room for.
    pub(super) refused: u64,
}

impl Flow {
    /// Begins, at a rate per second.
    pub(super) fn start(from: &Netns, to: Netns, address: IpAddr, rate: u64) -> Self {
        let into = bind(&to, address);
        setsockopt(&into, sockopt::RcvBufForce, &BUFFER).unwrap();
        into.set_read_timeout(Some(QUIET)).unwrap();
        let out = bind(from, if address.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() });
        out.connect(into.local_addr().unwrap()).unwrap();
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let errors_before = kernel::receive_errors(&to);
        let (end, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let sender = thread::spawn(move || send(&out, rate, &end, &count));
        let end = Arc::clone(&stop);
        let receiver = thread::spawn(move || receive(&into, &end));
        Self { stop, sent, sender, receiver, to, errors_before }
    }

    /// How many datagrams were sent until now.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends, and accounts for every datagram.
    pub(super) fn finish(self) -> Account {
        self.stop.store(true, Ordering::Relaxed);
        self.sender.join().unwrap();
        let Received { datagrams, reordered, duplicated } = self.receiver.join().unwrap();
        let refused = kernel::receive_errors(&self.to) - self.errors_before;
        Account {
            sent: self.sent.load(Ordering::Relaxed),
            received: datagrams,
            reordered,
            duplicated,
            refused,
        }
    }
}

fn send(socket: &UdpSocket, rate: u64, stop: &AtomicBool, sent: &AtomicU64) {
    let mut here = CpuSet::new();
    here.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &here).unwrap();
    let mut datagram = [0; SIZE];
    let tick = TICK.max(Duration::from_secs(1) * BURST / u32::try_from(rate).unwrap());
    let (start, mut number) = (Instant::now(), 0_u64);
    while !stop.load(Ordering::Relaxed) {
        let due = u64::try_from(start.elapsed().as_micros()).unwrap() * rate / 1_000_000;
        // What was missed by not running is not made up for in one burst.
        for _ in 0..due.saturating_sub(number).min(rate / 10 + 1) {
            datagram[..8].copy_from_slice(&number.to_ne_bytes());
            socket.send(&datagram).unwrap();
            number += 1;
        }
        sent.store(number, Ordering::Relaxed);
        thread::sleep(tick);
    }
}

fn receive(socket: &UdpSocket, stop: &AtomicBool) -> Received {
    let mut received = Received::default();
    let mut missing = HashSet::new();
    let (mut next, mut datagram) = (0_u64, [0; SIZE]);
    loop {
        if socket.recv(&mut datagram).is_err() {
            // Nothing for a while.
            if stop.load(Ordering::Relaxed) {
                return received;
            }
            continue;
        }
        let number = u64::from_ne_bytes(datagram[..8].try_into().unwrap());
        received.datagrams += 1;
        if number >= next {
            missing.extend(next..number);
            next = number + 1;
        } else if missing.remove(&number) {
            received.reordered += 1;
        } else {
            received.duplicated += 1;
            received.datagrams -= 1;
        }
    }
}

impl Account {
    pub(super) fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.received += other.received;
        self.reordered += other.reordered;
        self.duplicated += other.duplicated;
        self.refused += other.refused;
    }

    /// Everything about the datagrams. `softnet` is what the kernel's backlog dropped, of all flows.
    pub(super) fn tell(&self, report: &mut Report, least: u64, softnet: u64) {
        report.at_least("datagrams sent", self.sent, least);
        report.tell("refused by the receiving socket (UdpRcvbufErrors)", self.refused);
        report.tell("dropped by the kernel's backlog (softnet_stat)", softnet);
        let lost = self.sent.saturating_sub(self.received + self.refused + softnet);
        report.none("datagrams lost beside those", lost);
        report.none("datagrams reordered", self.reordered);
        report.none("datagrams duplicated", self.duplicated);
    }
}
