//! What a fuzzer feeds with bytes that nobody would write (`cargo xtask fuzz`), and a test with those that were kept of them
//! (`tests/fuzz.rs`). Whatever comes: no panic, and nothing that must never be.

use std::net::IpAddr;

use etherparse::{ArpPacketSlice, Ipv4HeaderSlice, LaxIpv6Slice};
use veth_common::{
    Cast, Decision, EthernetHeader, FdbKey, Frame, Mac, Packet, PassReason, Port, PortCounters, PortKind,
    Protocol, RedirectMode, SourceKey, Tables, Target, Weight, decide, ip_protocol::ICMPV6, size_index,
    spoof,
};
use veth_user::{
    datapath::Hook,
    show,
    topology::{Topology, file, observe::Observed, plan},
};

use crate::frame::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN};

/// A topology file. What is wrong with it can be told, with places that are in the text; and what is right can be planned,
/// drawn and remembered.
pub fn topology(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let topology = match file::parse("fuzz.toml", text) {
        Ok(topology) => topology,
        Err(diagnostics) => {
            let lines = text.split('\n').count();
            assert!(!diagnostics.to_string().is_empty() && diagnostics.len() > 0);
            for problem in diagnostics.iter() {
                assert!(problem.line <= lines && !problem.message.is_empty() && !problem.hint.is_empty());
            }
            return;
        }
    };
    topology.validate().unwrap();
    let json = serde_json::to_string(&topology).unwrap();
    assert_eq!(serde_json::from_str::<Topology>(&json).unwrap(), topology);
    for drawing in [show::text(&topology), show::dot(&topology), show::svg(&topology)] {
        assert!(drawing.contains(&topology.name));
    }
    for hook in [Hook::Tcx, Hook::Xdp] {
        for step in plan::build(&topology, hook) {
            assert!(!step.describe(&topology, hook).to_string().is_empty());
        }
        let again = plan::diff(&topology, &topology, &Observed::default(), hook);
        assert!(again.is_empty(), "what is as declared has nothing to be done for it: {again:?}");
    }
}

/// Ports by slot: two switches of three, the second of which is checked, a wire, a bridge, a port that is only counted, and
/// none.
const OPEN: std::ops::RangeInclusive<u32> = 1..=3;
const CHECKED: std::ops::RangeInclusive<u32> = 4..=6;
const WIRE: [u32; 2] = [7, 8];
const BRIDGE: u32 = 9;
const COUNTED: u32 = 10;
const SLOTS: u32 = 12;

/// The slot whose interface is gone.
const GONE: u32 = 3;

/// The first interface.
const FIRST: u32 = 100;

/// What fits everywhere.
const MAX_LENGTH: u32 = 1_518;

struct Known;

impl Tables for Known {
    fn lookup(&self, key: FdbKey) -> Option<Target> {
        OPEN.chain(CHECKED).find(|slot| key == FdbKey { domain: domain(*slot), mac: mac(*slot) }).map(target)
    }

    fn interface(&self, slot: u32) -> Option<u32> {
        (slot != GONE && slot < BRIDGE).then_some(FIRST + slot)
    }

    fn is_source(&self, key: &SourceKey) -> bool {
        key.address().is_some_and(|address| owns(key.slot, address))
    }
}

/// A frame whose outer tag the kernel keeps beside it, or not.
struct Bytes<'a> {
    bytes: &'a [u8],
    beside: bool,
}

impl Packet for Bytes<'_> {
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.bytes.load(offset)
    }

    fn has_tag_beside(&self) -> bool {
        self.beside
    }
}

fn mac(slot: u32) -> Mac {
    Mac::new([2, 0xfc, 0, 0, 0, slot.to_be_bytes()[3]])
}

const fn domain(slot: u32) -> u16 {
    match slot {
        1..=3 | BRIDGE => 1,
        4..=6 => 2,
        _ => 0,
    }
}

fn target(slot: u32) -> Target {
    let redirect = if slot.is_multiple_of(2) { RedirectMode::Peer } else { RedirectMode::Host };
    Target { slot, max_length: MAX_LENGTH, mac: mac(slot), redirect: redirect as u8, reserved: 0 }
}

/// 10.0.0.SLOT, `fd00::SLOT` and the link-local address.
fn owns(slot: u32, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.to_bits() == 0x0a00_0000 + slot,
        IpAddr::V6(address) => {
            address.to_bits() == 0xfd00 << 112 | u128::from(slot) || address == mac(slot).link_local()
        }
    }
}

fn port(slot: u32) -> Port {
    let kind = match slot {
        1..=6 => PortKind::Switch,
        7 | 8 => PortKind::Wire,
        BRIDGE => PortKind::Bridge,
        COUNTED => PortKind::Counted,
        _ => PortKind::None,
    };
    let [one, two] = WIRE;
    Port {
        ifindex: FIRST + slot,
        slot,
        kind: kind as u32,
        domain: domain(slot),
        flags: if CHECKED.contains(&slot) { Port::SPOOF_CHECK } else { 0 },
        target: if slot == one {
            target(two)
        } else if slot == two {
            target(one)
        } else {
            Target::default()
        },
        mac: mac(slot),
        reserved: 0,
    }
}

/// A frame on a port: two bytes that say on which and how, and the frame.
pub fn frame(bytes: &[u8]) {
    let [slot, how, bytes @ ..] = bytes else { return };
    let port = port(u32::from(*slot) % SLOTS);
    let gso = how & 1 != 0;
    let packet = Bytes { bytes, beside: how & 2 != 0 };
    let header = header(bytes);
    let length = u32::try_from(bytes.len()).unwrap();
    let frame = Frame { header: header.as_ref(), length, gso };
    let decision = decide(&port, &frame, &packet, &Known);
    assert_eq!(decide(&port, &frame, &packet, &Known), decision);
    match decision {
        Decision::Redirect { slot, ifindex, mode } => {
            assert_eq!(Known.interface(slot), Some(ifindex));
            assert!(gso || length <= MAX_LENGTH);
            assert_ne!(slot, port.slot);
            let destination = header.map(|header| header.destination);
            assert!(mode == RedirectMode::Host || destination == Some(mac(slot)) && slot.is_multiple_of(2));
            if port.kind == PortKind::Switch as u32 {
                assert_eq!((domain(slot), destination), (port.domain, Some(mac(slot))));
                assert!(header.unwrap().source.is_valid_source());
            } else {
                assert!(WIRE.contains(&slot) && WIRE.contains(&port.slot));
            }
        }
        Decision::Pass(PassReason::NotAccelerated) => assert!(![1, 2, 3].contains(&port.kind)),
        Decision::Pass(_) => assert_eq!(port.kind, PortKind::Switch as u32),
        Decision::Drop(_) => assert!(port.flags != 0 || [1, 3].contains(&port.kind)),
    }
    if port.flags != 0 && spoof::check(&port, &frame, &packet, &Known).is_ok() {
        assert_eq!(header.unwrap().source, port.mac);
        assert_honest(port.slot, &bytes[12..]);
    }
    if let Some(header) = header {
        outer_tag_is_no_cover(&port, &header, bytes);
        counts_once(decision, &header, bytes);
    }
}

fn header(bytes: &[u8]) -> Option<EthernetHeader> {
    let mac = |at: usize| Some(Mac::new(*bytes.get(at..)?.first_chunk()?));
    let ethertype = u16::from_ne_bytes(*bytes.get(12..)?.first_chunk()?);
    Some(EthernetHeader { destination: mac(0)?, source: mac(6)?, ethertype })
}

const fn is_tag(ethertype: u16) -> bool {
    matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_QINQ)
}

/// What a checked port may send, as somebody else's code reads it: an ethertype and what stands behind it.
fn assert_honest(slot: u32, mut bytes: &[u8]) {
    let ethertype = loop {
        let [high, low, rest @ ..] = bytes else { return };
        let ethertype = u16::from_be_bytes([*high, *low]);
        bytes = rest;
        if !is_tag(ethertype) {
            break ethertype;
        }
        bytes = bytes.get(2..).unwrap_or_default();
    };
    match ethertype {
        ETHERTYPE_IPV4 => {
            if let Ok(ip) = Ipv4HeaderSlice::from_slice(bytes) {
                let (source, destination) = (ip.source_addr(), ip.destination_addr());
                assert!(owns(slot, source.into()) || source.is_unspecified() && destination.is_broadcast());
            }
        }
        ETHERTYPE_ARP => {
            // Who receives one that ends behind the sender takes it for none.
            let Ok(arp) = ArpPacketSlice::from_slice(bytes) else { return };
            let ip: [u8; 4] = arp.sender_protocol_addr().try_into().unwrap();
            assert_eq!(arp.sender_hw_addr(), mac(slot).bytes());
            assert!(owns(slot, IpAddr::from(ip)) || ip == [0; 4] && arp.operation().0 == 1);
        }
        ETHERTYPE_IPV6 => {
            let Ok((ip, _)) = LaxIpv6Slice::from_slice(bytes) else { return };
            let source = ip.header().source_addr();
            assert!(owns(slot, source.into()) || source.is_unspecified());
            let payload = ip.payload();
            if payload.ip_number.0 == ICMPV6 && !payload.fragmented && payload.payload.first() == Some(&136) {
                let target: [u8; 16] = *payload.payload[8..].first_chunk().unwrap();
                assert!(owns(slot, IpAddr::from(target)));
            }
        }
        _ => {}
    }
}

/// The same whether the kernel has taken the outer tag out of the frame or not.
fn outer_tag_is_no_cover(port: &Port, header: &EthernetHeader, bytes: &[u8]) {
    let judge = |header: &EthernetHeader, bytes: &[u8], beside: bool| {
        let length = u32::try_from(bytes.len()).unwrap();
        let frame = Frame { header: Some(header), length, gso: false };
        spoof::check(port, &frame, &Bytes { bytes, beside }, &Known)
    };
    if is_tag(u16::from_be(header.ethertype)) && bytes.len() >= 18 {
        let without = [&bytes[..12], &bytes[16..]].concat();
        let inner = self::header(&without).unwrap();
        assert_eq!(judge(header, bytes, false), judge(&inner, &without, true));
    }
}

/// Whatever a frame is, it is counted as one.
fn counts_once(decision: Decision, header: &EthernetHeader, bytes: &[u8]) {
    let byte = |offset: u32| bytes.get(usize::try_from(offset).unwrap()).copied();
    let protocol = Protocol::number(header.ethertype, byte);
    let length = u32::try_from(bytes.len()).unwrap();
    let weight = Weight { length, gso_segments: 0, protocol, cast: Cast::of(header.destination) };
    let mut counters = PortCounters::default();
    match decision {
        Decision::Pass(reason) => counters.count_passed(reason, &weight),
        Decision::Redirect { .. } => counters.count_redirected(&weight),
        Decision::Drop(reason) => counters.count_dropped(reason, &weight),
    }
    let sum = counters.received();
    assert_eq!((sum.packets, sum.bytes, sum.segments), (1, u64::from(length), 1));
    assert!(size_index(length) < veth_common::SIZES);
}
