//! Everything that stands in a BPF map. User space and programs of one [`LAYOUT_VERSION`] understand
//! each other; the version is part of the pin path, so that two versions never meet in one map.
//!
//! Every type is `repr(C)`, has no padding, and has its size asserted at compile time.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{Cast, DropReason, Mac, PassReason, Protocol, SIZES, size_index};

/// Raised with every change of a type, a map or the meaning of a number in this crate. `veth upgrade` goes from any
/// layout to any other. With the feature `next` it is that of a version to come, for tests of that.
pub const LAYOUT_VERSION: u32 = if cfg!(feature = "next") { 7 } else { 6 };

/// Raised with every change of [`PortCounters`]: layouts of the same one can carry counters over, in both directions.
pub const COUNTERS_VERSION: u32 = 1;

/// Slots, ports and FDB entries that the maps hold unless user space asks for more when it loads them.
///
/// A power of two: `PORTS` is indexed by the low bits of an interface index.
pub const DEFAULT_CAPACITY: u32 = 64;

/// How many places `FDB` has for each slot: with so many, few addresses find theirs taken.
///
/// A power of two: `FDB` is indexed by the high bits of a hash.
pub const FDB_PLACES_PER_SLOT: u32 = 8;

/// How many source addresses `SOURCES` holds for each slot, on average.
pub const SOURCES_PER_SLOT: u32 = 8;

/// The counters of frames that came in on an interface no map knows (any more).
pub const SLOT_UNATTRIBUTED: u32 = 0;

/// What a port is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum PortKind {
    /// An empty entry.
    None = 0,
    /// One end of a cable: everything goes to the other end.
    Wire = 1,
    /// A port of a forwarding domain: known unicast is redirected, the rest passes.
    Switch = 2,
    /// The bridge behind a switch without a gateway: what comes up from it would enter the host's own
    /// stack, and ends here instead.
    Bridge = 3,
    /// A port of a path that the kernel alone serves: everything passes, and is counted.
    Counted = 4,
}

/// How a frame is handed over to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RedirectMode {
    /// `bpf_redirect_peer`: straight into the pod, without a second pass through the CPU backlog.
    Peer = 0,
    /// Out of the host end, as if the kernel had sent it: `bpf_redirect` by TC, the device map by XDP.
    Host = 1,
}

/// A port that frames are sent to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Target {
    /// The port's slot: its entry in `TARGETS` and in `COUNTERS`.
    pub slot: u32,
    /// The longest frame that the pod's end takes: its MTU, an Ethernet header and a VLAN tag, as in the
    /// kernel's `is_skb_forwardable`.
    pub max_length: u32,
    /// The address of the pod's end.
    pub mac: Mac,
    /// A [`RedirectMode`], as a number because maps can hold any byte.
    pub redirect: u8,
    /// Zero.
    pub reserved: u8,
}

impl Target {
    /// What is added to an MTU to get [`max_length`](Self::max_length): `ETH_HLEN` + `VLAN_HLEN`.
    pub const MTU_OVERHEAD: u32 = 14 + 4;
}

/// An entry of `PORTS`: what a program must know of the port that a frame came in on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Port {
    /// The host end's interface index, checked because many indexes share an entry. 0 if empty.
    pub ifindex: u32,
    /// Where the port is counted, and its place in `TARGETS`.
    pub slot: u32,
    /// A [`PortKind`].
    pub kind: u32,
    /// The forwarding domain of a switch port.
    pub domain: u16,
    /// What is asked of the port besides: [`SPOOF_CHECK`](Self::SPOOF_CHECK).
    pub flags: u16,
    /// The other end of a wire. Zero for a switch port.
    pub target: Target,
    /// The address of the pod's end. Looked at only where it is checked.
    pub mac: Mac,
    /// Zero.
    pub reserved: u16,
}

impl Port {
    /// The bit of [`flags`](Self::flags) that drops what the pod sends in another's name: the hardware address
    /// must be [`mac`](Self::mac), and every other address one of the slot's in `SOURCES`.
    pub const SPOOF_CHECK: u16 = 1;
}

/// An address in a forwarding domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FdbKey {
    /// The forwarding domain.
    pub domain: u16,
    /// The destination address.
    pub mac: Mac,
}

impl FdbKey {
    /// Where in `FDB` the address belongs, if that has 2^(32 - `shift`) entries: multiplicative hashing, by the golden
    /// ratio. One multiplication, because a hash map's own function costs more than all else that a program does.
    #[must_use]
    #[inline(always)]
    pub const fn place(self, shift: u32) -> u32 {
        let [a, b, c] = self.mac.words();
        let low = c as u32 | (b as u32) << 16;
        let high = a as u32 | (self.domain as u32) << 16;
        (low ^ high).wrapping_mul(0x9e37_79b1) >> (shift & 31)
    }
}

/// An entry of `FDB`: whose an address is. The key is checked, because many addresses share an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FdbEntry {
    /// The address; zero if empty.
    pub key: FdbKey,
    /// Its port.
    pub target: Target,
}

/// The key of `SOURCES`: an address that a checked port may send from. There is nothing to say of one, so the
/// value is not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SourceKey {
    /// The port's slot.
    pub slot: u32,
    /// 4 or 6.
    pub family: u32,
    /// The address in the order of the frame, as words because programs write it so. An IPv4 address is the first, and the
    /// others are zero.
    pub address: [u32; 4],
}

impl SourceKey {
    /// The key of an IPv4 address.
    #[must_use]
    #[inline(always)]
    pub const fn v4(slot: u32, address: [u8; 4]) -> Self {
        Self { slot, family: 4, address: [u32::from_ne_bytes(address), 0, 0, 0] }
    }

    /// The key of an IPv6 address.
    #[must_use]
    #[inline(always)]
    #[expect(clippy::many_single_char_names, reason = "sixteen bytes in their order")]
    pub const fn v6(slot: u32, address: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address;
        let address = [
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ];
        Self { slot, family: 6, address }
    }

    /// The key of any address.
    #[must_use]
    pub const fn new(slot: u32, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::v4(slot, address.octets()),
            IpAddr::V6(address) => Self::v6(slot, address.octets()),
        }
    }

    /// The address again; `None` for a family that this layout does not know.
    #[must_use]
    #[expect(clippy::many_single_char_names, reason = "sixteen bytes in their order")]
    pub const fn address(&self) -> Option<IpAddr> {
        let Self { slot: _, family, address } = *self;
        let [first, second, third, fourth] = address;
        let [a, b, c, d] = first.to_ne_bytes();
        let ([e, f, g, h], [i, j, k, l]) = (second.to_ne_bytes(), third.to_ne_bytes());
        let [m, n, o, p] = fourth.to_ne_bytes();
        match family {
            4 => Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d))),
            6 => Some(IpAddr::V6(Ipv6Addr::from_octets([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]))),
            _ => None,
        }
    }
}

/// A sum over frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tally {
    /// Frames as the kernel handles them: a GSO frame is one.
    pub packets: u64,
    /// Their bytes from the destination address on.
    pub bytes: u64,
    /// Frames as a cable would carry them: a GSO frame counts as what it is cut into.
    pub segments: u64,
}

impl Tally {
    /// Adds another sum to this one.
    pub const fn add(&mut self, other: &Self) {
        let Self { packets, bytes, segments } = other;
        self.packets += *packets;
        self.bytes += *bytes;
        self.segments += *segments;
    }
}

/// Frames of one protocol that were not dropped. One cache line; how many there were is the sum of the sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Row {
    /// As in [`Tally`].
    pub bytes: u64,
    /// As in [`Tally`].
    pub segments: u64,
    /// Frames by their length ([`SIZE_ENDS`](crate::SIZE_ENDS)): a GSO frame is one, of the length that the kernel handles.
    pub sizes: [u64; SIZES],
}

/// Frames that were dropped for one reason. How many there were is the sum over the protocols.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DropRow {
    /// As in [`Tally`].
    pub bytes: u64,
    /// As in [`Tally`].
    pub segments: u64,
    /// Frames by [`Protocol`].
    pub protocols: [u64; Protocol::COUNT],
}

impl Row {
    /// How much it was.
    #[must_use]
    pub fn tally(&self) -> Tally {
        Tally { packets: self.sizes.iter().sum(), bytes: self.bytes, segments: self.segments }
    }
}

impl DropRow {
    /// How much it was.
    #[must_use]
    pub fn tally(&self) -> Tally {
        Tally { packets: self.protocols.iter().sum(), bytes: self.bytes, segments: self.segments }
    }
}

/// What one frame adds to counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Bytes from the destination address on, without a VLAN tag that the kernel keeps beside the frame.
    pub length: u32,
    /// What the frame will be cut into; 0 for a frame that is not GSO.
    pub gso_segments: u32,
    /// What it carries: the number of a [`Protocol`].
    pub protocol: u8,
    /// For how many it is.
    pub cast: Cast,
}

/// An entry of `COUNTERS`: one CPU's of one port. Nothing is stored twice: what came in is the sum of what was redirected,
/// passed and dropped, and so is every way to split it.
///
/// A unicast frame touches two cache lines: a [`Row`] where it came in, and the tallies of where it went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct PortCounters {
    /// Came in here and was handed to another port, by [`Protocol`].
    pub redirected: [Row; Protocol::COUNT],
    /// Came in here and was left to the slow path, by [`Protocol`].
    pub passed: [Row; Protocol::COUNT],
    /// Why it was, by [`PassReason`], in frames.
    pub passed_for: [u64; PassReason::COUNT],
    /// Came in elsewhere and was handed to this port's pod by `bpf_redirect_peer`, past the host end.
    pub to_peer: Tally,
    /// Came in elsewhere and was sent out of this port's host end, by `bpf_redirect` or XDP.
    pub to_host: Tally,
    /// Frames that came in here for a group, whatever became of them.
    pub multicast: u64,
    /// Frames that came in here for all, whatever became of them.
    pub broadcast: u64,
    /// Came in here and ended here, by [`DropReason`].
    pub dropped: [DropRow; DropReason::COUNT],
    /// Zero. Fills the last cache line.
    pub reserved: [u64; 4],
}

impl PortCounters {
    /// Of how many numbers it consists.
    pub const WORDS: usize = size_of::<Self>() / size_of::<u64>();

    /// Adds the counters of another CPU.
    pub fn add(&mut self, other: &Self) {
        let Self {
            redirected,
            passed,
            passed_for,
            to_peer,
            to_host,
            multicast,
            broadcast,
            dropped,
            reserved: _,
        } = other;
        let rows = self.redirected.iter_mut().chain(&mut self.passed);
        for (sum, part) in rows.zip(redirected.iter().chain(passed)) {
            sum.bytes += part.bytes;
            sum.segments += part.segments;
            add_each(&mut sum.sizes, &part.sizes);
        }
        for (sum, part) in self.dropped.iter_mut().zip(dropped) {
            sum.bytes += part.bytes;
            sum.segments += part.segments;
            add_each(&mut sum.protocols, &part.protocols);
        }
        add_each(&mut self.passed_for, passed_for);
        self.to_peer.add(to_peer);
        self.to_host.add(to_host);
        self.multicast += multicast;
        self.broadcast += broadcast;
    }

    /// What was handed to another port.
    #[must_use]
    pub fn redirected(&self) -> Tally {
        total(self.redirected.iter().map(Row::tally))
    }

    /// What was left to the slow path.
    #[must_use]
    pub fn passed(&self) -> Tally {
        total(self.passed.iter().map(Row::tally))
    }

    /// Everything that came in: the sum of what became of it.
    #[must_use]
    pub fn received(&self) -> Tally {
        let dropped = self.dropped.iter().map(DropRow::tally);
        total([self.redirected(), self.passed()].into_iter().chain(dropped))
    }

    /// Counts a frame that was handed to another port.
    #[inline(always)]
    pub fn count_redirected(&mut self, weight: &Weight) {
        Row::count(&mut self.redirected, weight);
        self.count_cast(weight.cast);
    }

    /// Counts a frame that was left to the slow path.
    #[inline(always)]
    pub fn count_passed(&mut self, reason: PassReason, weight: &Weight) {
        Row::count(&mut self.passed, weight);
        self.passed_for[reason.index()] += 1;
        self.count_cast(weight.cast);
    }

    /// Counts a frame that ended here.
    #[inline(always)]
    pub fn count_dropped(&mut self, reason: DropReason, weight: &Weight) {
        let row = &mut self.dropped[reason.index()];
        row.bytes += u64::from(weight.length);
        row.segments += weight.segments();
        if let Some(packets) = row.protocols.get_mut(usize::from(weight.protocol)) {
            *packets += 1;
        }
        self.count_cast(weight.cast);
    }

    /// Most frames are for one, and there is nothing to count.
    #[inline(always)]
    const fn count_cast(&mut self, cast: Cast) {
        match cast {
            Cast::Unicast => {}
            Cast::Multicast => self.multicast += 1,
            Cast::Broadcast => self.broadcast += 1,
        }
    }
}

impl Row {
    /// Counts a frame in the row of its protocol. There always is one and a place in it, which the verifier cannot know.
    #[inline(always)]
    fn count(rows: &mut [Self; Protocol::COUNT], weight: &Weight) {
        if let Some(row) = rows.get_mut(usize::from(weight.protocol)) {
            row.bytes += u64::from(weight.length);
            row.segments += weight.segments();
            if let Some(packets) = row.sizes.get_mut(size_index(weight.length)) {
                *packets += 1;
            }
        }
    }
}

impl Tally {
    /// Adds a frame.
    #[inline(always)]
    pub fn count(&mut self, weight: &Weight) {
        self.packets += 1;
        self.bytes += u64::from(weight.length);
        self.segments += weight.segments();
    }
}

impl Weight {
    #[inline(always)]
    fn segments(&self) -> u64 {
        u64::from(self.gso_segments.max(1))
    }
}

fn add_each(sums: &mut [u64], parts: &[u64]) {
    for (sum, part) in sums.iter_mut().zip(parts) {
        *sum += part;
    }
}

fn total(parts: impl Iterator<Item = Tally>) -> Tally {
    let mut sum = Tally::default();
    for part in parts {
        sum.add(&part);
    }
    sum
}

const _: () = assert!(size_of::<Target>() == 16);
const _: () = assert!(size_of::<Port>() == 40);
const _: () = assert!(size_of::<FdbKey>() == 8);
const _: () = assert!(size_of::<FdbEntry>() == 24);
const _: () = assert!(FDB_PLACES_PER_SLOT.is_power_of_two());
const _: () = assert!(size_of::<SourceKey>() == 24);
const _: () = assert!(size_of::<Tally>() == 24);
const _: () = assert!(size_of::<Row>() == 64);
const _: () = assert!(size_of::<PortCounters>() == 30 * 64);
const _: () = assert!(core::mem::offset_of!(PortCounters, to_peer) % 64 == 0);
const _: () = assert!(DEFAULT_CAPACITY.is_power_of_two());

#[cfg(feature = "user")]
mod pod {
    use super::{FdbEntry, FdbKey, Port, PortCounters, SourceKey};

    // SAFETY: `repr(C)`, integers only, and by the size assertions above without padding.
    unsafe impl aya::Pod for Port {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Target {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FdbKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FdbEntry {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SourceKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PortCounters {}
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    fn weight(length: u32, protocol: Protocol, cast: Cast) -> Weight {
        Weight { length, gso_segments: 0, protocol: protocol as u8, cast }
    }

    #[test]
    fn every_way_to_split_adds_up_to_what_came_in() {
        let mut counters = PortCounters::default();
        let gso = Weight { gso_segments: 44, ..weight(65_000, Protocol::Ipv4Tcp, Cast::Unicast) };
        counters.count_redirected(&gso);
        counters.count_redirected(&weight(66, Protocol::Ipv4Tcp, Cast::Unicast));
        counters.count_passed(PassReason::Group, &weight(42, Protocol::Arp, Cast::Broadcast));
        counters.count_passed(PassReason::Group, &weight(90, Protocol::Ipv6Icmp, Cast::Multicast));
        counters.count_dropped(DropReason::SpoofedMac, &weight(200, Protocol::Ipv6Udp, Cast::Unicast));
        counters.count_dropped(DropReason::SpoofedMac, &weight(42, Protocol::Arp, Cast::Broadcast));

        assert_eq!(counters.received(), Tally { packets: 6, bytes: 65_440, segments: 49 });
        assert_eq!(counters.redirected(), Tally { packets: 2, bytes: 65_066, segments: 45 });
        assert_eq!(counters.passed(), Tally { packets: 2, bytes: 132, segments: 2 });
        let dropped = counters.dropped[DropReason::SpoofedMac.index()];
        assert_eq!(dropped.tally(), Tally { packets: 2, bytes: 242, segments: 2 });
        assert_eq!(dropped.protocols[Protocol::Arp.index()], 1);
        assert_eq!(counters.redirected[Protocol::Ipv4Tcp.index()].sizes, [1, 0, 0, 0, 0, 1]);
        assert_eq!(counters.passed_for.iter().sum::<u64>(), counters.passed().packets);
        assert_eq!((counters.multicast, counters.broadcast), (1, 2));
        assert_eq!(counters.to_peer, Tally::default());
    }

    #[test]
    fn cpus_add_up_in_every_field() {
        let mut cpu = PortCounters::default();
        for protocol in Protocol::ALL {
            for length in [60, 200, 300, 600, 1_500, 9_000] {
                cpu.count_redirected(&weight(length, protocol, Cast::Broadcast));
                cpu.count_passed(PassReason::TooLong, &weight(length, protocol, Cast::Multicast));
            }
            for reason in DropReason::ALL {
                cpu.count_dropped(reason, &weight(60, protocol, Cast::Unicast));
            }
        }
        cpu.passed_for = [1, 2, 3, 4, 5, 6, 7, 8];
        cpu.to_peer = Tally { packets: 1, bytes: 2, segments: 3 };
        cpu.to_host = Tally { packets: 4, bytes: 5, segments: 6 };
        let mut sum = PortCounters::default();
        sum.add(&cpu);
        assert_eq!(sum, cpu);
        sum.add(&cpu);
        assert_eq!(sum.received().bytes, 2 * cpu.received().bytes);
        assert_eq!(sum.passed_for, [2, 4, 6, 8, 10, 12, 14, 16]);
        assert_eq!((sum.to_peer.segments, sum.to_host.packets), (6, 8));
        assert_eq!((sum.multicast, sum.broadcast), (2 * cpu.multicast, 2 * cpu.broadcast));
        assert_eq!(sum.redirected[0].sizes, [2; SIZES]);
        assert_eq!(sum.dropped[4].protocols, [2; Protocol::COUNT]);
    }

    #[test]
    fn addresses_are_spread_over_their_places() {
        const BITS: u32 = 13;
        let taken = |mac: &dyn Fn(u16) -> [u8; 6], domain: &dyn Fn(u16) -> u16| {
            let mut places: Vec<u32> = (0..1_000)
                .map(|n| FdbKey { domain: domain(n), mac: Mac::new(mac(n)) }.place(32 - BITS))
                .collect();
            places.sort_unstable();
            places.dedup();
            assert!(places.iter().all(|place| *place < 1 << BITS));
            1_000 - places.len()
        };
        let [one, counted] = [|_| 1, |n: u16| n];
        let last = |n: u16| [2, 0, 0, 0, n.to_be_bytes()[0], n.to_be_bytes()[1]];
        let first = |n: u16| [2, n.to_be_bytes()[0], n.to_be_bytes()[1], 7, 7, 7];
        let same = |_| [2, 1, 2, 3, 4, 5];
        for (what, collisions) in [
            ("the last bytes differ", taken(&last, &one)),
            ("bytes in the middle differ", taken(&first, &one)),
            ("the same in many domains", taken(&same, &counted)),
        ] {
            assert!(collisions < 120, "{what}: {collisions} of 1,000 share a place");
        }
    }

    #[test]
    fn a_source_is_its_address_again() {
        for text in ["10.0.0.1", "0.0.0.0", "fd00::1", "::ffff:10.0.0.1", "::"] {
            let address: IpAddr = text.parse().unwrap();
            let key = SourceKey::new(7, address);
            assert_eq!(key.address(), Some(address));
            assert_eq!(key.slot, 7);
        }
        assert_eq!(SourceKey { slot: 1, family: 0, address: [0; 4] }.address(), None);
        let (short, long) = ("10.0.0.1".parse().unwrap(), "a00:1::".parse().unwrap());
        assert_ne!(SourceKey::new(7, short), SourceKey::new(7, long));
    }
}
