//! The decision: a pure function of the port a frame came in on, the frame, and the tables.
//!
//! TC and XDP entry points translate its answer into their own return codes and do nothing else, so what
//! is tested here without a kernel is what runs in one.

use crate::{
    DropReason, FdbKey, Frame, Mac, Packet, PassReason, Port, PortKind, RedirectMode, SourceKey, Target,
    Verdict, spoof,
};

/// What a decision may look up. At most one hash look-up a frame, and another where the sender is checked.
pub trait Tables {
    /// The port that owns an address, from `FDB`.
    fn lookup(&self, key: FdbKey) -> Option<Target>;

    /// The interface index of a slot's host end, from `TARGETS`, which the kernel empties by itself when
    /// the interface goes.
    fn interface(&self, slot: u32) -> Option<u32>;

    /// Whether a checked port may send from an address, from `SOURCES`.
    fn is_source(&self, key: &SourceKey) -> bool;
}

/// What to do with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Leave it to the slow path.
    Pass(PassReason),
    /// Hand it to a port.
    Redirect {
        /// The port's slot, where the hand-over is counted.
        slot: u32,
        /// The port's host end.
        ifindex: u32,
        /// How.
        mode: RedirectMode,
    },
    /// End it here.
    Drop(DropReason),
}

impl Decision {
    /// The outcome without its parameters.
    #[must_use]
    pub const fn verdict(self) -> Verdict {
        match self {
            Self::Pass(_) => Verdict::Passed,
            Self::Redirect { .. } => Verdict::Redirected,
            Self::Drop(_) => Verdict::Dropped,
        }
    }
}

/// Decides what happens to a frame that came in on `port`.
#[must_use]
#[inline(always)]
pub fn decide(port: &Port, frame: &Frame<'_>, packet: &impl Packet, tables: &impl Tables) -> Decision {
    if port.flags & Port::SPOOF_CHECK != 0
        && let Err(reason) = spoof::check(port, frame, packet, tables)
    {
        return Decision::Drop(reason);
    }
    if port.kind == PortKind::Switch as u32 {
        switch(port, frame, tables)
    } else if port.kind == PortKind::Wire as u32 {
        wire(port, frame, tables)
    } else if port.kind == PortKind::Bridge as u32 {
        Decision::Drop(DropReason::NoGateway)
    } else {
        Decision::Pass(PassReason::NotAccelerated)
    }
}

/// Known unicast that a bridge would forward goes fast. Everything else is the bridge's to judge.
#[inline(always)]
fn switch(port: &Port, frame: &Frame<'_>, tables: &impl Tables) -> Decision {
    let Some(header) = frame.header else {
        return Decision::Pass(PassReason::NoHeader);
    };
    if header.destination.is_multicast() {
        return Decision::Pass(PassReason::Group);
    }
    if !header.source.is_valid_source() {
        return Decision::Pass(PassReason::InvalidSource);
    }
    let Some(target) = tables.lookup(FdbKey { domain: port.domain, mac: header.destination }) else {
        return Decision::Pass(PassReason::UnknownDestination);
    };
    if target.slot == port.slot {
        return Decision::Pass(PassReason::SamePort);
    }
    if too_long(frame, &target) {
        return Decision::Pass(PassReason::TooLong);
    }
    match tables.interface(target.slot) {
        Some(ifindex) => {
            Decision::Redirect { slot: target.slot, ifindex, mode: mode(header.destination, &target) }
        }
        None => Decision::Pass(PassReason::TargetGone),
    }
}

/// A wire is a cable: all that fits comes out at the other end, whoever it is for.
#[inline(always)]
fn wire(port: &Port, frame: &Frame<'_>, tables: &impl Tables) -> Decision {
    let target = &port.target;
    if too_long(frame, target) {
        return Decision::Drop(DropReason::MtuExceeded);
    }
    let mode = match frame.header {
        Some(header) => mode(header.destination, target),
        None => RedirectMode::Host,
    };
    match tables.interface(target.slot) {
        Some(ifindex) => Decision::Redirect { slot: target.slot, ifindex, mode },
        None => Decision::Drop(DropReason::NoPeer),
    }
}

/// `bpf_redirect_peer` marks every frame as addressed to the far stack, so it is only for frames that
/// are. `bpf_redirect` lets the far end look at the address itself.
#[inline(always)]
fn mode(destination: Mac, target: &Target) -> RedirectMode {
    if target.redirect == RedirectMode::Peer as u8 && destination == target.mac {
        RedirectMode::Peer
    } else {
        RedirectMode::Host
    }
}

/// `bpf_redirect_peer` checks no MTU, so we do, by the kernel's rule (`is_skb_forwardable`).
#[inline(always)]
const fn too_long(frame: &Frame<'_>, target: &Target) -> bool {
    !frame.gso && frame.length > target.max_length
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use proptest::prelude::*;

    use super::*;
    use crate::EthernetHeader;

    const A: Mac = Mac::new([2, 0, 0, 0, 0, 0xa]);
    const B: Mac = Mac::new([2, 0, 0, 0, 0, 0xb]);
    const STRANGER: Mac = Mac::new([2, 0, 0, 0, 0, 0xee]);

    const fn target(slot: u32, mac: Mac) -> Target {
        Target { slot, max_length: 1518, mac, redirect: RedirectMode::Peer as u8, reserved: 0 }
    }

    /// Nothing here looks beyond the Ethernet header; `spoof.rs` does.
    fn decide(port: &Port, frame: &Frame<'_>, tables: &Lab) -> Decision {
        super::decide(port, frame, &[].as_slice(), tables)
    }

    /// Ports A (slot 1) and B (slot 2) in domain 7, with host ends 101 and 102.
    struct Lab {
        b_is_there: bool,
        redirect: RedirectMode,
        lookups: Cell<u32>,
    }

    impl Lab {
        const fn new() -> Self {
            Self { b_is_there: true, redirect: RedirectMode::Peer, lookups: Cell::new(0) }
        }
    }

    impl Tables for Lab {
        fn lookup(&self, key: FdbKey) -> Option<Target> {
            self.lookups.set(self.lookups.get() + 1);
            let slot = match (key.domain, key.mac) {
                (7, A) => 1,
                (7, B) => 2,
                _ => return None,
            };
            Some(Target { redirect: self.redirect as u8, ..target(slot, key.mac) })
        }

        fn interface(&self, slot: u32) -> Option<u32> {
            match slot {
                1 => Some(101),
                2 if self.b_is_there => Some(102),
                _ => None,
            }
        }

        fn is_source(&self, _key: &SourceKey) -> bool {
            panic!("no port here is checked");
        }
    }

    fn switch_port() -> Port {
        Port { ifindex: 101, slot: 1, kind: PortKind::Switch as u32, domain: 7, ..Port::default() }
    }

    fn wire_port() -> Port {
        let kind = PortKind::Wire as u32;
        Port { ifindex: 101, slot: 1, kind, target: target(2, B), ..Port::default() }
    }

    fn header(destination: Mac, source: Mac) -> EthernetHeader {
        EthernetHeader { destination, source, ethertype: 0x88b5_u16.to_be() }
    }

    fn frame(header: &EthernetHeader) -> Frame<'_> {
        Frame { header: Some(header), length: 60, gso: false }
    }

    const TO_B: Decision = Decision::Redirect { slot: 2, ifindex: 102, mode: RedirectMode::Peer };
    const TO_B_BY_HOST: Decision = Decision::Redirect { slot: 2, ifindex: 102, mode: RedirectMode::Host };

    #[test]
    fn switch_redirects_known_unicast() {
        assert_eq!(decide(&switch_port(), &frame(&header(B, A)), &Lab::new()), TO_B);
    }

    #[test]
    fn switch_does_not_care_who_sent_it() {
        assert_eq!(decide(&switch_port(), &frame(&header(B, STRANGER)), &Lab::new()), TO_B);
    }

    #[test]
    fn switch_uses_the_mode_of_the_target() {
        let lab = Lab { redirect: RedirectMode::Host, ..Lab::new() };
        assert_eq!(decide(&switch_port(), &frame(&header(B, A)), &lab), TO_B_BY_HOST);
    }

    #[test]
    fn switch_leaves_the_rest_to_the_bridge() {
        let lab = Lab::new();
        for (reason, destination, source) in [
            (PassReason::UnknownDestination, STRANGER, A),
            (PassReason::Group, Mac::new([0xff; 6]), A),
            (PassReason::Group, Mac::new([0x33, 0x33, 0, 0, 0, 1]), A),
            (PassReason::SamePort, A, A),
            (PassReason::InvalidSource, B, Mac::new([0; 6])),
            (PassReason::InvalidSource, B, Mac::new([1, 0, 0, 0, 0, 1])),
        ] {
            let decision = decide(&switch_port(), &frame(&header(destination, source)), &lab);
            assert_eq!(decision, Decision::Pass(reason));
        }
        let headless = Frame { header: None, length: 10, gso: false };
        assert_eq!(decide(&switch_port(), &headless, &lab), Decision::Pass(PassReason::NoHeader));
    }

    #[test]
    fn switch_keeps_domains_apart() {
        let port = Port { domain: 8, ..switch_port() };
        let decision = decide(&port, &frame(&header(B, A)), &Lab::new());
        assert_eq!(decision, Decision::Pass(PassReason::UnknownDestination));
    }

    #[test]
    fn switch_falls_to_the_slow_path_when_the_target_is_gone() {
        let lab = Lab { b_is_there: false, ..Lab::new() };
        let decision = decide(&switch_port(), &frame(&header(B, A)), &lab);
        assert_eq!(decision, Decision::Pass(PassReason::TargetGone));
    }

    #[test]
    fn length_is_the_kernels_rule() {
        let lab = Lab::new();
        for (length, gso, fits) in [(1518, false, true), (1519, false, false), (65_000, true, true)] {
            let header = header(B, A);
            let frame = Frame { length, gso, ..frame(&header) };
            let switch_verdict = if fits { TO_B } else { Decision::Pass(PassReason::TooLong) };
            let wire_verdict = if fits { TO_B } else { Decision::Drop(DropReason::MtuExceeded) };
            assert_eq!(decide(&switch_port(), &frame, &lab), switch_verdict, "{length} {gso}");
            assert_eq!(decide(&wire_port(), &frame, &lab), wire_verdict, "{length} {gso}");
        }
    }

    #[test]
    fn wire_carries_everything_and_looks_nothing_up() {
        let lab = Lab::new();
        assert_eq!(decide(&wire_port(), &frame(&header(B, A)), &lab), TO_B);
        for destination in
            [STRANGER, A, Mac::new([0xff; 6]), Mac::new([1, 0, 0x5e, 0, 0, 1]), Mac::new([0; 6])]
        {
            let decision = decide(&wire_port(), &frame(&header(destination, Mac::new([0; 6]))), &lab);
            assert_eq!(decision, TO_B_BY_HOST, "{destination}");
        }
        let headless = Frame { header: None, length: 10, gso: false };
        assert_eq!(decide(&wire_port(), &headless, &lab), TO_B_BY_HOST);
        assert_eq!(lab.lookups.get(), 0);
    }

    #[test]
    fn wire_without_a_far_end_says_so() {
        let lab = Lab { b_is_there: false, ..Lab::new() };
        assert_eq!(decide(&wire_port(), &frame(&header(B, A)), &lab), Decision::Drop(DropReason::NoPeer));
    }

    #[test]
    fn nothing_enters_the_host_from_a_bridge_without_a_gateway() {
        let port = Port { kind: PortKind::Bridge as u32, ..switch_port() };
        for destination in [B, STRANGER, Mac::new([0xff; 6])] {
            let decision = decide(&port, &frame(&header(destination, A)), &Lab::new());
            assert_eq!(decision, Decision::Drop(DropReason::NoGateway));
        }
    }

    #[test]
    fn an_empty_entry_passes() {
        let decision = decide(&Port::default(), &frame(&header(B, A)), &Lab::new());
        assert_eq!(decision, Decision::Pass(PassReason::NotAccelerated));
    }

    proptest! {
        #[test]
        fn never_redirects_to_the_ingress_port_or_by_two_lookups(
            destination: [u8; 6], source: [u8; 6], pick in 0..4u8, length: u32, gso: bool,
        ) {
            let destination = match pick { 0 => A, 1 => B, _ => Mac::new(destination) };
            let lab = Lab::new();
            let header = header(destination, Mac::new(source));
            let frame = Frame { header: Some(&header), length, gso };
            if let Decision::Redirect { slot, ifindex, mode } = decide(&switch_port(), &frame, &lab) {
                prop_assert_eq!((slot, ifindex, mode), (2, 102, RedirectMode::Peer));
                prop_assert_eq!(destination, B);
                prop_assert!(gso || length <= 1518);
            }
            prop_assert!(lab.lookups.get() <= 1);
        }
    }
}
