//! Puts right what can be put right in place, without a frame of anybody else noticing.

use veth_common::RedirectMode;

use super::{
    Error, Record,
    apply::{fdb_key, port_entry, target},
    observe::{Drift, Repair},
    xdp,
};
use crate::{
    datapath::{Datapath, pins::Pins},
    net::Netlink,
    state::Roots,
};

/// Does every repair of a drift.
pub(super) async fn repair(
    roots: &Roots,
    record: &Record,
    netlink: &Netlink,
    drift: &[Drift],
) -> Result<(), Error> {
    let Record { topology, selection, layout_version, .. } = record;
    let pins = Pins::new(roots, *layout_version, &topology.name);
    let mut datapath = Datapath::open(pins, selection.hook)?;
    for repair in drift.iter().filter_map(|drift| drift.repair.as_ref()) {
        match repair {
            Repair::Attach { link, hook } => {
                let link = netlink.link(link).await?;
                datapath.attach(netlink, *hook, topology.place, &link).await?;
            }
            Repair::Prepare { slot } => {
                for (pod, port) in topology.ports().filter(|(_, port)| port.slot == *slot) {
                    xdp::prepare(pod, port)?;
                }
            }
            Repair::Redirect { slot, mode } => {
                set_mode(&mut datapath, record, netlink, *slot, *mode).await?;
            }
        }
    }
    Ok(())
}

/// Changes how frames reach a port: where its address is looked up, and at the other end of its wire.
async fn set_mode(
    datapath: &mut Datapath,
    record: &Record,
    netlink: &Netlink,
    slot: u32,
    mode: RedirectMode,
) -> Result<(), Error> {
    let topology = &record.topology;
    for (_, port) in topology.ports().filter(|(_, port)| port.slot == slot) {
        if let Some(key) = fdb_key(topology, port) {
            datapath.set_fdb(key, &target(topology, port, mode))?;
        } else if let Some(peer) = topology.wire_peer(port) {
            let ifindex = netlink.link(&peer.host_link).await?.index;
            datapath.set_port(&port_entry(topology, peer, ifindex, mode))?;
        }
    }
    Ok(())
}
