//! What a watching program tells user space of a frame, and which frames it tells of.

use core::net::IpAddr;

use crate::{
    Decision, DropReason, EthernetHeader, Packet, PassReason, RedirectMode, SourceKey, Verdict,
    ethertype::{IPV4, IPV6},
    ip_protocol::{TCP, UDP},
};

/// What stands in front of the bytes of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// The host end where it was seen.
    pub ifindex: u32,
    /// The host end that it was redirected to, or 0.
    pub target: u32,
    /// The length of the frame, without a tag that the kernel keeps beside it.
    pub length: u32,
    /// How many of its bytes follow.
    pub captured: u32,
    /// What it will be cut into; 0 for a frame that is not GSO.
    pub gso_segments: u32,
    /// The tag beside the frame and its protocol in the order of the frame, as `tci << 16 | protocol`; 0 where there is none.
    pub tag: u32,
    /// An [`Outcome`], as a number because a buffer can hold any byte.
    pub outcome: u8,
    /// The number of a [`PassReason`] or a [`DropReason`].
    pub reason: u8,
    /// A [`RedirectMode`].
    pub mode: u8,
    /// Zero.
    pub reserved: [u8; 5],
}

impl Event {
    /// How long it is, in front of the bytes.
    pub const LENGTH: usize = size_of::<Self>();
}

const _: () = assert!(Event::LENGTH == 40);

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Left to the slow path.
    Passed(PassReason),
    /// Handed to another port.
    Redirected(RedirectMode),
    /// Ended here.
    Dropped(DropReason),
    /// Leaves by the host end: on its way into the pod, by the slow path or a redirect to the host end.
    Sent,
}

/// The number of [`Outcome::Sent`], which is no verdict.
const SENT: u8 = 3;

impl Outcome {
    /// As it stands in an [`Event`]: outcome, reason and mode.
    #[must_use]
    #[inline(always)]
    pub const fn numbers(self) -> (u8, u8, u8) {
        match self {
            Self::Passed(reason) => (Verdict::Passed as u8, reason as u8, 0),
            Self::Redirected(mode) => (Verdict::Redirected as u8, 0, mode as u8),
            Self::Dropped(reason) => (Verdict::Dropped as u8, reason as u8, 0),
            Self::Sent => (SENT, 0, 0),
        }
    }

    /// From an [`Event`]; `None` for numbers that this layout does not know.
    #[must_use]
    pub fn of(event: &Event) -> Option<Self> {
        let reason = usize::from(event.reason);
        match event.outcome {
            n if n == Verdict::Passed as u8 => PassReason::ALL.get(reason).copied().map(Self::Passed),
            n if n == Verdict::Dropped as u8 => DropReason::ALL.get(reason).copied().map(Self::Dropped),
            n if n == Verdict::Redirected as u8 => {
                Some(Self::Redirected(if event.mode == 0 { RedirectMode::Peer } else { RedirectMode::Host }))
            }
            SENT => Some(Self::Sent),
            _ => None,
        }
    }
}

impl From<Decision> for Outcome {
    #[inline(always)]
    fn from(decision: Decision) -> Self {
        match decision {
            Decision::Pass(reason) => Self::Passed(reason),
            Decision::Redirect { mode, .. } => Self::Redirected(mode),
            Decision::Drop(reason) => Self::Dropped(reason),
        }
    }
}

/// Host ends whose frames are watched, and so how many of them one program can tell apart from the rest.
pub const WATCHED_MAX: usize = 8;

/// Which end of a conversation something is said of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u16)]
pub enum Side {
    /// Nothing is said.
    #[default]
    None = 0,
    /// The sender.
    Source = 1,
    /// The receiver.
    Destination = 2,
    /// One of both.
    Either = 3,
}

/// An address that a frame must have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct HostTerm {
    /// A [`Side`].
    pub side: u32,
    /// 4 or 6.
    pub family: u32,
    /// As in [`SourceKey`].
    pub address: [u32; 4],
}

/// A port that a frame must have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PortTerm {
    /// A [`Side`].
    pub side: u16,
    /// The port, in the order of the frame.
    pub port: u16,
}

/// Which frames are meant: those that meet every term. The default means all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Filter {
    /// Addresses.
    pub hosts: [HostTerm; 2],
    /// Ports.
    pub ports: [PortTerm; 2],
    /// The ethertype in the order of the frame, or 0 for any.
    pub ethertype: u16,
    /// [`HAS_PROTOCOL`](Self::HAS_PROTOCOL) and what IP carries, or 0 for anything.
    pub protocol: u16,
}

const _: () = assert!(size_of::<Filter>() == 2 * 24 + 2 * 4 + 4);

impl HostTerm {
    /// The term for an address.
    #[must_use]
    pub const fn new(side: Side, address: IpAddr) -> Self {
        let SourceKey { family, address, .. } = SourceKey::new(0, address);
        Self { side: side as u32, family, address }
    }

    #[inline(always)]
    const fn matches(&self, family: u32, source: &[u32; 4], destination: &[u32; 4]) -> bool {
        if self.family != family {
            return false;
        }
        self.side & Side::Source as u32 != 0 && same(&self.address, source)
            || self.side & Side::Destination as u32 != 0 && same(&self.address, destination)
    }
}

#[inline(always)]
const fn same(a: &[u32; 4], b: &[u32; 4]) -> bool {
    a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3]
}

impl PortTerm {
    /// The term for a port.
    #[must_use]
    pub const fn new(side: Side, port: u16) -> Self {
        Self { side: side as u16, port: port.to_be() }
    }

    #[inline(always)]
    const fn matches(self, source: u16, destination: u16) -> bool {
        self.side & Side::Source as u16 != 0 && self.port == source
            || self.side & Side::Destination as u16 != 0 && self.port == destination
    }
}

/// Where IP begins.
const START: u32 = EthernetHeader::LENGTH;

impl Filter {
    /// The bit that tells a protocol from none.
    pub const HAS_PROTOCOL: u16 = 0x100;

    /// Whether a frame is meant. Of IPv6 it looks at the fixed header only, and of a fragment but the first at no port.
    #[must_use]
    #[inline(always)]
    pub fn matches(&self, ethertype: u16, packet: &impl Packet) -> bool {
        if self.ethertype != 0 && self.ethertype != ethertype {
            return false;
        }
        let [one, two] = &self.hosts;
        let [first, second] = &self.ports;
        if self.protocol == 0 && one.side == 0 && first.side == 0 {
            return true;
        }
        let (protocol, family, source, destination, ports) = if ethertype == IPV4 {
            let Some(header) = packet.load::<20>(START) else { return false };
            let address = |at: usize| {
                [u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]), 0, 0, 0]
            };
            let is_later_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0;
            let ports = START + u32::from(header[0] & 15) * 4;
            (header[9], 4, address(12), address(16), (!is_later_fragment).then_some(ports))
        } else if ethertype == IPV6 {
            let Some(header) = packet.load::<40>(START) else { return false };
            let word =
                |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
            let address = |at: usize| [word(at), word(at + 4), word(at + 8), word(at + 12)];
            (header[6], 6, address(8), address(24), Some(START + 40))
        } else {
            return false;
        };
        if self.protocol != 0 && self.protocol != Self::HAS_PROTOCOL | u16::from(protocol) {
            return false;
        }
        if one.side != 0 && !one.matches(family, &source, &destination)
            || two.side != 0 && !two.matches(family, &source, &destination)
        {
            return false;
        }
        if first.side == 0 {
            return true;
        }
        let Some(ports) = ports.filter(|_| protocol == TCP || protocol == UDP) else { return false };
        let Some([a, b, c, d]) = packet.load::<4>(ports) else { return false };
        let (source, destination) = (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]));
        first.matches(source, destination) && (second.side == 0 || second.matches(source, destination))
    }
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, integers only, and by the size assertion above without padding.
    unsafe impl aya::Pod for super::Filter {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// IPv4 UDP from 10.0.0.1:1000 to 10.0.0.2:53.
    fn udp() -> [u8; 42] {
        let mut frame = [0; 42];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14] = 0x45;
        frame[23] = 17;
        frame[26..30].copy_from_slice(&[10, 0, 0, 1]);
        frame[30..34].copy_from_slice(&[10, 0, 0, 2]);
        frame[34..38].copy_from_slice(&[3, 232, 0, 53]);
        frame
    }

    /// IPv6 TCP from `fd00::1`, port 80, to `fd00::2`, port 1000.
    fn tcp() -> [u8; 74] {
        let mut frame = [0; 74];
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        frame[20] = 6;
        frame[22] = 0xfd;
        frame[37] = 1;
        frame[38] = 0xfd;
        frame[53] = 2;
        frame[54..58].copy_from_slice(&[0, 80, 3, 232]);
        frame
    }

    fn matches(filter: &Filter, frame: &[u8]) -> bool {
        filter.matches(u16::from_ne_bytes([frame[12], frame[13]]), &frame)
    }

    fn hosts(terms: &[(Side, &str)]) -> Filter {
        let mut filter = Filter::default();
        for (place, (side, address)) in filter.hosts.iter_mut().zip(terms) {
            *place = HostTerm::new(*side, address.parse().unwrap());
        }
        filter
    }

    fn ports(terms: &[(Side, u16)]) -> Filter {
        let mut filter = Filter::default();
        for (place, (side, port)) in filter.ports.iter_mut().zip(terms) {
            *place = PortTerm::new(*side, *port);
        }
        filter
    }

    #[test]
    fn a_frame_must_meet_every_term() {
        let (udp, tcp) = (udp(), tcp());
        let protocol = |number: u16| Filter { protocol: Filter::HAS_PROTOCOL | number, ..Filter::default() };
        for (filter, meant) in [
            (Filter::default(), [true, true]),
            (Filter { ethertype: IPV4, ..Filter::default() }, [true, false]),
            (protocol(17), [true, false]),
            (protocol(6), [false, true]),
            (protocol(0), [false, false]),
            (hosts(&[(Side::Either, "10.0.0.1")]), [true, false]),
            (hosts(&[(Side::Source, "10.0.0.1")]), [true, false]),
            (hosts(&[(Side::Destination, "10.0.0.1")]), [false, false]),
            (hosts(&[(Side::Source, "10.0.0.1"), (Side::Destination, "10.0.0.2")]), [true, false]),
            (hosts(&[(Side::Either, "10.0.0.1"), (Side::Either, "10.0.0.3")]), [false, false]),
            (hosts(&[(Side::Either, "fd00::2")]), [false, true]),
            (ports(&[(Side::Either, 1_000)]), [true, true]),
            (ports(&[(Side::Source, 1_000)]), [true, false]),
            (ports(&[(Side::Source, 80), (Side::Destination, 1_000)]), [false, true]),
            (ports(&[(Side::Either, 54)]), [false, false]),
        ] {
            assert_eq!([matches(&filter, &udp), matches(&filter, &tcp)], meant, "{filter:?}");
        }
    }

    #[test]
    fn what_is_not_there_is_not_meant() {
        let filter = ports(&[(Side::Either, 53)]);
        assert!(matches(&filter, &udp()));
        let mut fragment = udp();
        fragment[21] = 1;
        assert!(!matches(&filter, &fragment), "a later fragment has no ports");
        let mut options = [0; 46];
        options[..34].copy_from_slice(&udp()[..34]);
        options[14] = 0x46;
        options[38..42].copy_from_slice(&[3, 232, 0, 53]);
        assert!(matches(&filter, &options), "behind options");
        assert!(!matches(&filter, &udp()[..36]), "cut off");
        assert!(!matches(&hosts(&[(Side::Either, "10.0.0.1")]), &udp()[..30]));
        let mut icmp = udp();
        icmp[23] = 1;
        assert!(!matches(&filter, &icmp), "ICMP has no ports");
    }

    #[test]
    fn outcomes_are_their_numbers_again() {
        let mut all: [Option<Outcome>; 16] = [None; 16];
        let outcomes = PassReason::ALL.into_iter().map(Outcome::Passed);
        let outcomes = outcomes.chain(DropReason::ALL.into_iter().map(Outcome::Dropped));
        let outcomes = outcomes.chain([RedirectMode::Peer, RedirectMode::Host].map(Outcome::Redirected));
        for (place, outcome) in all.iter_mut().zip(outcomes.chain([Outcome::Sent])) {
            *place = Some(outcome);
        }
        for outcome in all.into_iter().flatten() {
            let (number, reason, mode) = outcome.numbers();
            let event = Event { outcome: number, reason, mode, ..Event::default() };
            assert_eq!(Outcome::of(&event), Some(outcome));
        }
        assert_eq!(Outcome::of(&Event { outcome: 9, ..Event::default() }), None);
        assert_eq!(Outcome::of(&Event { reason: 99, ..Event::default() }), None);
    }
}
