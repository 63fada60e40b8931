//! Frames that nobody would send: well made, nearly well made, and not made at all. They follow from a seed.

use std::net::{Ipv4Addr, Ipv6Addr};

use veth_common::Mac;

use crate::{
    Random,
    frame::{
        self, ETHERTYPE_ARP, ETHERTYPE_EXPERIMENTAL, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ,
        ETHERTYPE_VLAN, ICMPV6, UDP,
    },
};

/// The shortest frame that a packet socket sends.
pub const SHORTEST: usize = 14;

/// Lengths at which something changes: headers, the least that a cable carries, and the usual MTU.
const EDGES: [usize; 14] = [14, 15, 17, 18, 19, 21, 22, 33, 34, 59, 60, 1_514, 1_518, 1_519];

/// Numbers that programs do not expect.
const STRANGE: [u8; 8] = [0, 1, 0x7f, 0x80, 0xfe, 0xff, 0x45, 0x60];

const HOP_BY_HOP: u8 = 0;
const ICMP: u8 = 1;
const IGMP: u8 = 2;
const TCP: u8 = 6;

/// Extension headers of IPv6, beside that of fragments.
const EXTENSIONS: [u8; 5] = [HOP_BY_HOP, 43, 51, frame::DESTINATION_OPTIONS, 135];

/// Somebody who sends.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Its hardware address.
    pub mac: Mac,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

/// A sequence of frames that follows from a seed.
#[derive(Debug)]
pub struct Generator {
    random: Random,
    hosts: Vec<Host>,
    others: Vec<Mac>,
}

impl Generator {
    /// A sequence of frames among hosts. `others` are addresses of machines that are none of them.
    #[must_use]
    pub const fn new(seed: u64, hosts: Vec<Host>, others: Vec<Mac>) -> Self {
        Self { random: Random::new(seed), hosts, others }
    }

    /// A number below another, of the same sequence.
    pub fn below(&mut self, bound: usize) -> usize {
        self.random.below(bound)
    }

    /// A frame that a host sends, of 14 bytes at least. Where the kernel allows it, a tag makes it 4 longer than `longest`.
    pub fn frame(&mut self, from: usize, longest: usize) -> Vec<u8> {
        let mut frame = self.header(from);
        if self.random.one_in(24) {
            let length = self.random.below(200);
            self.fill(&mut frame, length);
        } else {
            self.payload(&mut frame, from);
        }
        self.resize(&mut frame, longest);
        if self.random.one_in(3) {
            for _ in 0..=self.random.below(6) {
                self.mutate(&mut frame);
            }
        }
        let is_tagged = frame.get(12..14) == Some(&ETHERTYPE_VLAN.to_be_bytes());
        frame.truncate(longest + if is_tagged { 4 } else { 0 });
        frame.resize(frame.len().max(SHORTEST), 0);
        frame
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.random.below(from.len())]
    }

    fn byte(&mut self) -> u8 {
        self.random.number().to_be_bytes()[0]
    }

    fn word(&mut self) -> [u8; 2] {
        let [a, b, ..] = self.random.number().to_be_bytes();
        [a, b]
    }

    fn fill(&mut self, frame: &mut Vec<u8>, length: usize) {
        let end = frame.len() + length;
        while frame.len() < end {
            frame.extend(self.random.number().to_be_bytes());
        }
        frame.truncate(end);
    }

    fn any_mac(&mut self) -> Mac {
        let [a, b, c, d, e, f, ..] = self.random.number().to_be_bytes();
        Mac::new([a, b, c, d, e, f])
    }

    fn host(&mut self) -> Host {
        let place = self.random.below(self.hosts.len());
        self.hosts[place]
    }

    /// Both addresses.
    fn header(&mut self, from: usize) -> Vec<u8> {
        let own = self.hosts[from].mac;
        let destination = match self.random.below(32) {
            0 => own,
            1 => Mac::new([0xff; 6]),
            2 => {
                let [a, b, ..] = self.word();
                Mac::new([1, 0, 0x5e, a & 0x7f, b, 1])
            }
            3 => Mac::new([0x33, 0x33, 0, 0, 0, self.byte()]),
            // What IEEE 802.1D keeps for bridges.
            4 => Mac::new([1, 0x80, 0xc2, 0, 0, self.byte() & 0x2f]),
            5 => Mac::new([0; 6]),
            6 => self.any_mac(),
            7 => Mac::new([2, 0xee, 0xee, 0, 0, self.byte()]),
            8 | 9 if !self.others.is_empty() => {
                let place = self.random.below(self.others.len());
                self.others[place]
            }
            10 => {
                let mut bytes = self.host().mac.bytes();
                bytes[self.random.below(6)] ^= 1 << self.random.below(8);
                Mac::new(bytes)
            }
            _ => self.host().mac,
        };
        let source = match self.random.below(32) {
            0 => Mac::new([0; 6]),
            1 => Mac::new([0xff; 6]),
            2 => {
                let mut bytes = own.bytes();
                bytes[0] |= 1;
                Mac::new(bytes)
            }
            3 => self.host().mac,
            4 => self.any_mac(),
            5 if !self.others.is_empty() => {
                let place = self.random.below(self.others.len());
                self.others[place]
            }
            6 => destination,
            _ => own,
        };
        [destination.bytes(), source.bytes()].concat()
    }

    /// Tags, an ethertype, and what stands behind it.
    fn payload(&mut self, frame: &mut Vec<u8>, from: usize) {
        let tags = self.pick(&[0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3]);
        for _ in 0..tags {
            let kind = self.pick(&[ETHERTYPE_VLAN, ETHERTYPE_VLAN, ETHERTYPE_QINQ, 0x9100]);
            frame.extend(kind.to_be_bytes());
            let tag = if self.random.one_in(2) { [0, self.byte() & 7] } else { self.word() };
            frame.extend(tag);
        }
        match self.random.below(16) {
            0 | 1 => self.arp(frame, from),
            2..7 => self.ipv4(frame, from),
            7..13 => self.ipv6(frame, from),
            13 => {
                // A length, as before there were ethertypes, or any number.
                let length = self.word();
                frame.extend(if self.random.one_in(2) { [length[0] & 5, length[1]] } else { length });
                let length = self.random.below(120);
                self.fill(frame, length);
            }
            _ => {
                frame.extend(ETHERTYPE_EXPERIMENTAL.to_be_bytes());
                let length = self.random.below(120);
                self.fill(frame, length);
            }
        }
    }

    fn v4(&mut self, usual: Ipv4Addr) -> Ipv4Addr {
        match self.random.below(16) {
            0 => Ipv4Addr::UNSPECIFIED,
            1 => Ipv4Addr::BROADCAST,
            2 => Ipv4Addr::new(224, 0, 0, self.byte()),
            3 => Ipv4Addr::LOCALHOST,
            4 => Ipv4Addr::from_bits(u32::try_from(self.random.number() >> 32).unwrap()),
            5 | 6 => self.host().v4,
            _ => usual,
        }
    }

    fn v6(&mut self, usual: Ipv6Addr) -> Ipv6Addr {
        match self.random.below(16) {
            0 => Ipv6Addr::UNSPECIFIED,
            1 => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, self.byte().into()),
            2 => Ipv6Addr::LOCALHOST,
            3 => Ipv6Addr::from_bits(self.random.number().into()),
            4 => self.host().mac.link_local(),
            5 | 6 => self.host().v6,
            _ => usual,
        }
    }

    fn arp(&mut self, frame: &mut Vec<u8>, from: usize) {
        let Host { mac, v4, .. } = self.hosts[from];
        let operation = self.pick(&[1, 1, 2, 2, 3, 8]);
        let mac = if self.random.one_in(4) { self.host().mac } else { mac };
        let (source, target) = (self.v4(v4), self.host().v4);
        let target = self.v4(target);
        frame.extend(ETHERTYPE_ARP.to_be_bytes());
        frame.extend(frame::arp(operation, mac, source, target));
    }

    fn ipv4(&mut self, frame: &mut Vec<u8>, from: usize) {
        let protocol = self.pick(&[TCP, TCP, UDP, UDP, ICMP, IGMP, 47, 58]);
        let mut inner = Vec::new();
        self.transport(&mut inner, protocol);
        let (own, target) = (self.hosts[from].v4, self.host().v4);
        let (source, target) = (self.v4(own), self.v4(target));
        let options = if self.random.one_in(3) { 4 * self.random.below(11) } else { 0 };
        let mut header = frame::ipv4_header(source, target, protocol, 20 + options + inner.len()).to_vec();
        header[0] += u8::try_from(options / 4).unwrap();
        self.fill(&mut header, options);
        if options > 0 && self.random.one_in(2) {
            // Source routes, the time, the route so far, nothing, the end.
            header[20] = self.pick(&[131, 137, 68, 7, 1, 0]);
        }
        if self.random.one_in(3) {
            let fragment = self.pick(&[0x2000_u16, 0x2001, 0x0001, 0x4000, 0x3fff, 0x1fff, 0x8000]);
            header[6..8].copy_from_slice(&fragment.to_be_bytes());
        }
        if self.random.one_in(8) {
            header[8] = self.pick(&[0, 1, 255]);
        }
        if !self.random.one_in(8) {
            frame::set_checksum(&mut header);
        }
        frame.extend(ETHERTYPE_IPV4.to_be_bytes());
        frame.extend(header);
        frame.extend(inner);
    }

    fn ipv6(&mut self, frame: &mut Vec<u8>, from: usize) {
        let mut next = self.pick(&[TCP, TCP, UDP, UDP, ICMPV6, ICMPV6, ICMPV6, 59, 4]);
        let mut inner = Vec::new();
        if next == ICMPV6 && !self.random.one_in(3) {
            self.neighbour(&mut inner, from);
        } else {
            self.transport(&mut inner, next);
        }
        let headers = if self.random.one_in(2) { self.random.below(9) } else { 0 };
        for _ in 0..headers {
            let (kind, header) = self.extension(next);
            inner.splice(0..0, header);
            next = kind;
        }
        let (own, target) = (self.hosts[from].v6, self.host().v6);
        let (source, target) = (self.v6(own), self.v6(target));
        frame.extend(ETHERTYPE_IPV6.to_be_bytes());
        frame.extend(frame::ipv6(source, target, next, &inner));
    }

    fn extension(&mut self, next: u8) -> (u8, Vec<u8>) {
        if self.random.one_in(4) {
            let place = self.pick(&[[0, 0], [0, 1], [0, 8], [0xff, 0xf9]]);
            return (frame::FRAGMENT, [&[next, 0][..], &place, &[0, 0, 0, 9]].concat());
        }
        let kind = self.pick(&EXTENSIONS);
        let length = self.pick(&[0, 0, 0, 1, 2]);
        // Of 8 bytes and more, but for an authentication header, which counts in 4.
        let (size, length) =
            if kind == 51 { (16 + 8 * length, 2 + 2 * length) } else { (8 + 8 * length, length) };
        let mut header = vec![next, u8::try_from(length).unwrap()];
        self.fill(&mut header, size - 2);
        (kind, header)
    }

    /// A message of Neighbour Discovery.
    fn neighbour(&mut self, inner: &mut Vec<u8>, from: usize) {
        let Host { mac, v6, .. } = self.hosts[from];
        let (kind, fixed) =
            self.pick(&[(133, 0), (134, 8), (135, 16), (136, 16), (136, 16), (137, 32), (143, 20)]);
        inner.extend([kind, 0, 0, 0]);
        inner.extend([0; 4]);
        let target = if self.random.one_in(3) { self.host().v6 } else { v6 };
        let start = inner.len();
        inner.extend(target.octets());
        inner.resize(start + fixed, 0);
        for _ in 0..self.random.below(3) {
            if self.random.one_in(3) {
                inner.extend([14, 1]);
                self.fill(inner, 6);
            } else {
                let mac = if self.random.one_in(4) { self.host().mac } else { mac };
                inner.extend([self.pick(&[1, 2]), self.pick(&[1, 1, 1, 1, 1, 0, 2])]);
                inner.extend(mac.bytes());
            }
        }
    }

    fn transport(&mut self, inner: &mut Vec<u8>, protocol: u8) {
        let payload = self.random.below(80);
        match protocol {
            TCP => {
                self.fill(inner, 12);
                let words = self.pick(&[5, 5, 5, 8, 15, 0]);
                inner.extend([words << 4, self.byte() & 0x3f]);
                self.fill(inner, 6 + usize::from(words.max(5) - 5) * 4);
            }
            UDP => {
                self.fill(inner, 4);
                let length =
                    if self.random.one_in(8) { self.word() } else { [0, u8::try_from(8 + payload).unwrap()] };
                inner.extend(length);
                inner.extend([0, 0]);
            }
            ICMP => {
                inner.extend([self.pick(&[0, 3, 5, 8, 11, 13, 17]), 0]);
                self.fill(inner, 6);
            }
            ICMPV6 => {
                inner.extend([self.pick(&[1, 2, 3, 128, 129, 130, 131, 132]), 0]);
                self.fill(inner, 6);
            }
            _ => {}
        }
        self.fill(inner, payload);
    }

    /// As short as a cable allows, at an edge, anything up to the longest, or as it is.
    fn resize(&mut self, frame: &mut Vec<u8>, longest: usize) {
        let length = match self.random.below(16) {
            0..5 => frame.len().max(60),
            5 => self.pick(&EDGES),
            6 => longest - self.random.below(8),
            7 => SHORTEST + self.random.below(longest - SHORTEST),
            8 => SHORTEST + self.random.below(frame.len().max(SHORTEST + 1) - SHORTEST),
            _ => return,
        };
        frame.resize(length, 0);
    }

    /// One small change.
    fn mutate(&mut self, frame: &mut Vec<u8>) {
        if frame.is_empty() {
            return;
        }
        // Mostly where headers are.
        let end = if self.random.one_in(4) { frame.len() } else { frame.len().min(80) };
        let at = self.random.below(end);
        match self.random.below(8) {
            0..3 => frame[at] ^= 1 << self.random.below(8),
            3 => frame[at] = self.byte(),
            4 => frame[at] = self.pick(&STRANGE),
            5 => {
                let length = 1 + self.random.below(8);
                let mut more = Vec::new();
                self.fill(&mut more, length);
                frame.splice(at..at, more);
            }
            6 => {
                let length = self.random.below(8).min(frame.len() - at);
                frame.drain(at..at + length);
            }
            _ => frame.truncate(at.max(SHORTEST)),
        }
    }
}
