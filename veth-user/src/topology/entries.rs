//! What the maps say of ports: the same for whoever writes it and whoever looks whether it is still there.

use veth_common::{FdbKey, Port as PortEntry, PortKind, RedirectMode, Target};

use super::{Kind, Path, Port, Topology};
use crate::datapath::Redirect;

/// What a redirect means to the programs. XDP goes out of the host end too, in its own way.
pub(super) const fn mode(redirect: Redirect) -> RedirectMode {
    match redirect {
        Redirect::Peer => RedirectMode::Peer,
        Redirect::Host | Redirect::Devmap => RedirectMode::Host,
    }
}

/// What the programs are told of a port. `mode` is how frames reach the other end of its wire.
pub(super) fn port_entry(topology: &Topology, port: &Port, ifindex: u32, mode: RedirectMode) -> PortEntry {
    let flags = if topology.path(port).spoof_check { PortEntry::SPOOF_CHECK } else { 0 };
    let entry = PortEntry { ifindex, slot: port.slot, flags, mac: port.mac, ..PortEntry::default() };
    match topology.path(port) {
        Path { kind: Kind::Switch, bridge, .. } => PortEntry {
            kind: PortKind::Switch as u32,
            domain: bridge.as_ref().map(|bridge| bridge.domain).unwrap_or_default(),
            ..entry
        },
        Path { kind: Kind::Wire, .. } => PortEntry {
            kind: PortKind::Wire as u32,
            target: topology.wire_peer(port).map(|peer| target(topology, peer, mode)).unwrap_or_default(),
            ..entry
        },
        _ => PortEntry { kind: PortKind::Counted as u32, ..entry },
    }
}

/// Where a switch looks a port's address up.
pub(super) fn fdb_key(topology: &Topology, port: &Port) -> Option<FdbKey> {
    let path = topology.path(port);
    let bridge = path.bridge.as_ref().filter(|_| path.kind == Kind::Switch)?;
    Some(FdbKey { domain: bridge.domain, mac: port.mac })
}

/// A port as a target, with how frames reach it.
pub(super) fn target(topology: &Topology, port: &Port, mode: RedirectMode) -> Target {
    Target {
        slot: port.slot,
        max_length: topology.path(port).mtu + Target::MTU_OVERHEAD,
        mac: port.mac,
        redirect: mode as u8,
        reserved: 0,
    }
}
