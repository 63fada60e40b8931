//! What a pod sends to get where it may not, and who hears of it.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use veth_common::Mac;
use veth_user::net::Netns;

use crate::{
    Lab,
    frame::{
        ETHERTYPE_ARP, ETHERTYPE_EXPERIMENTAL, ETHERTYPE_IPV4, ETHERTYPE_IPV6, FRAGMENT, ICMPV6,
        NEIGHBOUR_ADVERTISEMENT, NEIGHBOUR_SOLICITATION, UDP, arp, ethernet, extension, ipv4, ipv6,
        neighbour, udp,
    },
    lab::eventually,
    packet::PacketSocket,
    pair,
};

/// More protocol numbers.
const ICMP: u8 = 1;
const IP_IN_IP: u8 = 4;
const IPV6_IN_IP: u8 = 41;
const ROUTING: u8 = 43;
const GRE: u8 = 47;

/// More `ICMPv6` types.
const ROUTER_ADVERTISEMENT: u8 = 134;
const REDIRECT: u8 = 137;

/// LLDP.
const ETHERTYPE_LLDP: u16 = 0x88cc;

/// What stands in every frame before its number, so that it is known wherever it comes out, and in whatever.
const MARK: &[u8] = b"forged frame ";

/// How long that is with the numbers of the attempts, and of the frame among them.
#[expect(clippy::cast_possible_truncation, reason = "a few")]
const MARKED: u8 = MARK.len() as u8 + 8;

/// Tells attempts apart: answers to the last ones may come while others are made.
static ATTEMPTS: AtomicU32 = AtomicU32::new(0);

/// How long after the last frame something that takes another way may still come.
const AFTERMATH: Duration = Duration::from_millis(200);

/// How many frames are sent before somebody who hears them all listens: fewer than a socket's buffer holds.
const BATCH: usize = 32;

/// Somebody with addresses.
#[derive(Clone, Copy, Debug)]
pub struct Who {
    /// The Ethernet address.
    pub mac: Mac,
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

/// A pod: its addresses, and a packet socket on its link.
#[derive(Debug)]
pub struct Pod {
    /// Its addresses.
    pub who: Who,
    /// Its namespace.
    pub namespace: Netns,
    /// What comes in at `eth0`.
    pub ear: Ear,
}

/// Somebody who listens at a link.
#[derive(Debug)]
pub struct Ear {
    name: String,
    /// To send by, too.
    pub socket: PacketSocket,
}

/// Frames to be sent, each with its number in it.
#[derive(Debug)]
pub struct Attempts {
    series: u32,
    frames: Vec<(String, Vec<u8>)>,
}

impl Pod {
    /// A pod of a topology, by its namespace.
    #[must_use]
    pub fn open(lab: &Lab, namespace: &str, v4: &str, v6: &str) -> Self {
        Self::of(lab.pod(namespace), namespace, v4, v6)
    }

    /// What is in a namespace, by some name.
    #[must_use]
    pub fn of(namespace: Netns, name: &str, v4: &str, v6: &str) -> Self {
        let who = Who { mac: pair::mac(&namespace), v4: v4.parse().unwrap(), v6: v6.parse().unwrap() };
        let ear = Ear { name: name.to_owned(), socket: PacketSocket::open(&namespace, "eth0") };
        Self { who, namespace, ear }
    }
}

impl Ear {
    /// At a link of the host, where those frames are handed to the host's stack that no program and no bridge has taken.
    #[must_use]
    pub fn behind(host: &Netns, link: &str) -> Vec<Self> {
        let ethertypes =
            [ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_EXPERIMENTAL, ETHERTYPE_LLDP];
        let ear = |ethertype| Self {
            name: format!("the host's stack at {link}"),
            socket: PacketSocket::open_for(host, link, ethertype),
        };
        ethertypes.map(ear).into()
    }

    /// The numbers of the frames that were heard since, of some attempts.
    #[must_use]
    pub fn heard(&self, attempts: &Attempts) -> BTreeSet<usize> {
        self.socket.drain().iter().filter_map(|received| attempts.number(&received.bytes)).collect()
    }
}

impl Default for Attempts {
    fn default() -> Self {
        Self { series: ATTEMPTS.fetch_add(1, Ordering::Relaxed), frames: Vec::new() }
    }
}

impl Attempts {
    /// Adds a frame, made of the mark that must be in it somewhere, and says what it is.
    pub fn add(&mut self, what: String, frame: impl FnOnce(&[u8]) -> Vec<u8>) {
        let frame = frame(&self.mark(self.frames.len()));
        self.frames.push((what, frame));
    }

    /// Adds frames of all kinds from a pod to somebody, for an Ethernet address. What can name somebody on its way
    /// names `via`.
    pub fn add_all(&mut self, destination: Mac, source: Mac, from: Who, to: Who, via: Who) {
        for (kind, (name, ..)) in packets(from, to, via, &self.mark(0)).iter().enumerate() {
            let what = format!("{name} to {} for {destination} from {source}", to.v4);
            self.add(what, |mark| {
                let (_, ethertype, payload) = packets(from, to, via, mark).swap_remove(kind);
                ethernet(destination, source, ethertype, &payload)
            });
        }
    }

    /// How many there are.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.frames.len()
    }

    /// What some of them are.
    #[must_use]
    pub fn names(&self, numbers: impl IntoIterator<Item = usize>) -> Vec<&str> {
        numbers.into_iter().map(|number| self.frames[number].0.as_str()).collect()
    }

    /// Sends them all from a pod, and then an honest one to a friend of its, by the way of an Ethernet address. Returns
    /// the numbers of those that the friend heard.
    ///
    /// # Panics
    ///
    /// When one of the others heard one, or the friend not even the honest one.
    pub fn send(&mut self, from: &Pod, friend: &Pod, way: Mac, others: &[&Ear]) -> BTreeSet<usize> {
        let last = self.count();
        self.add("an honest one".to_owned(), |mark| {
            ethernet(way, from.who.mac, ETHERTYPE_IPV4, &udp(from.who.v4, friend.who.v4, 9, mark, 64)[0])
        });
        let mut heard = BTreeSet::new();
        for batch in self.frames.chunks(BATCH) {
            let frames: Vec<&[u8]> = batch.iter().map(|(_, frame)| frame.as_slice()).collect();
            from.ear.socket.send_all(&frames);
            heard.append(&mut friend.ear.heard(self));
        }
        eventually("the honest frame is heard", || {
            heard.append(&mut friend.ear.heard(self));
            heard.remove(&last)
        });
        thread::sleep(AFTERMATH);
        heard.append(&mut friend.ear.heard(self));
        for other in others {
            let what = self.names(other.heard(self));
            let some = &what[..what.len().min(20)];
            assert!(what.is_empty(), "{} heard {}, as {some:#?}", other.name, what.len());
        }
        heard
    }

    fn mark(&self, number: usize) -> Vec<u8> {
        [MARK, &self.series.to_be_bytes(), &u32::try_from(number).unwrap().to_be_bytes()].concat()
    }

    fn number(&self, bytes: &[u8]) -> Option<usize> {
        let at = bytes.windows(MARK.len()).position(|window| window == MARK)? + MARK.len();
        let [a, b, c, d, e, f, g, h] = *bytes.get(at..)?.first_chunk()?;
        let number = usize::try_from(u32::from_be_bytes([e, f, g, h])).ok()?;
        (self.series == u32::from_be_bytes([a, b, c, d])).then_some(number)
    }
}

/// All kinds of packets from one to another with a mark in them: their names, ethertypes and bytes.
#[must_use]
pub fn packets(from: Who, to: Who, via: Who, mark: &[u8]) -> Vec<(&'static str, u16, Vec<u8>)> {
    let datagram = udp(from.v4, to.v4, 9, mark, 1_400).remove(0);
    let of_v6 = |next, payload: &[u8]| ipv6(from.v6, to.v6, next, payload);
    let by_v6 = |next, payload: &[u8]| ipv6(from.v6, via.v6, next, payload);
    // A nonce option (RFC 3971).
    let nonce = [&[14, 3][..], mark, &[0; 24]].concat();
    let discovery = |head: &[u8], targets: &[Ipv6Addr]| {
        let targets: Vec<u8> = targets.iter().flat_map(Ipv6Addr::octets).collect();
        of_v6(ICMPV6, &[head, &targets, &nonce[..24]].concat())
    };
    // The mark is all that the port numbers, the length and no checksum would stand in: nobody listens anyway.
    let inner_v6 = of_v6(UDP, &[&[0, 9, 0, 9, 0, 8 + MARKED, 0, 0][..], mark].concat());
    let source_route = |kind| {
        let pointer = [&[kind, 7, 4][..], &to.v4.octets(), &[0]].concat();
        ipv4(from.v4, via.v4, UDP, &pointer, &datagram[20..])
    };
    let routing_header = |kind| {
        let head = [UDP, 2, kind, 1, 0, 0, 0, 0];
        by_v6(ROUTING, &[&head, &to.v6.octets()[..], &inner_v6[40..]].concat())
    };
    let icmp_redirect = [&[5, 1, 0, 0][..], &from.v4.octets(), &datagram].concat();
    let router = [[ROUTER_ADVERTISEMENT, 0, 0, 0, 64, 0, 255, 255], [0; 8]].concat();
    let gre = |ethertype: u16, inner: &[u8]| [&[0, 0][..], &ethertype.to_be_bytes(), inner].concat();
    let fragments = udp(from.v4, to.v4, 9, &[mark, &[0; 24][mark.len()..], mark].concat(), 32);
    let ask = |operation, from: Who, to: Who| [&arp(operation, from.mac, from.v4, to.v4)[..], mark].concat();
    let offer = [&[0, 67, 0, 68, 0, 12 + MARKED, 0, 0, 2, 1, 6, 0][..], mark].concat();
    vec![
        ("UDP", ETHERTYPE_IPV4, datagram.clone()),
        ("UDP by IPv6", ETHERTYPE_IPV6, inner_v6.clone()),
        ("a loose source route", ETHERTYPE_IPV4, source_route(131)),
        ("a strict source route", ETHERTYPE_IPV4, source_route(137)),
        ("a routing header of type 0", ETHERTYPE_IPV6, routing_header(0)),
        ("a routing header of type 2", ETHERTYPE_IPV6, routing_header(2)),
        ("a segment routing header", ETHERTYPE_IPV6, routing_header(4)),
        ("an ICMP redirect", ETHERTYPE_IPV4, ipv4(from.v4, to.v4, ICMP, &[], &icmp_redirect)),
        (
            "an ICMPv6 redirect",
            ETHERTYPE_IPV6,
            discovery(&[REDIRECT, 0, 0, 0, 0, 0, 0, 0], &[from.v6, to.v6]),
        ),
        ("IPv4 in IPv4", ETHERTYPE_IPV4, ipv4(from.v4, via.v4, IP_IN_IP, &[], &datagram)),
        ("IPv6 in IPv4", ETHERTYPE_IPV4, ipv4(from.v4, via.v4, IPV6_IN_IP, &[], &inner_v6)),
        ("IPv4 in IPv6", ETHERTYPE_IPV6, by_v6(IP_IN_IP, &datagram)),
        ("IPv6 in IPv6", ETHERTYPE_IPV6, by_v6(IPV6_IN_IP, &inner_v6)),
        ("GRE", ETHERTYPE_IPV4, ipv4(from.v4, via.v4, GRE, &[], &gre(ETHERTYPE_IPV4, &datagram))),
        ("GRE by IPv6", ETHERTYPE_IPV6, by_v6(GRE, &gre(ETHERTYPE_IPV6, &inner_v6))),
        ("a first fragment", ETHERTYPE_IPV4, fragments[0].clone()),
        ("a last fragment", ETHERTYPE_IPV4, fragments[1].clone()),
        ("a fragment by IPv6", ETHERTYPE_IPV6, of_v6(FRAGMENT, &extension(UDP, &inner_v6[40..]))),
        ("a DHCP offer", ETHERTYPE_IPV4, ipv4(from.v4, [255; 4].into(), UDP, &[], &offer)),
        ("an ARP request", ETHERTYPE_ARP, ask(1, from, to)),
        ("an ARP answer", ETHERTYPE_ARP, ask(2, from, to)),
        ("gratuitous ARP", ETHERTYPE_ARP, ask(1, from, from)),
        (
            "a neighbour solicitation",
            ETHERTYPE_IPV6,
            discovery(&neighbour(NEIGHBOUR_SOLICITATION, to.v6, from.mac), &[]),
        ),
        (
            "a neighbour advertisement",
            ETHERTYPE_IPV6,
            discovery(&neighbour(NEIGHBOUR_ADVERTISEMENT, from.v6, from.mac), &[]),
        ),
        ("a router advertisement", ETHERTYPE_IPV6, discovery(&router, &[])),
        ("LLDP", ETHERTYPE_LLDP, mark.to_vec()),
        ("an unknown protocol", ETHERTYPE_EXPERIMENTAL, mark.to_vec()),
    ]
}
