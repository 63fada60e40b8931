//! The kernel's own bridge, set up to be a quiet slow path.

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{BridgeStpState, InfoBridge, InfoData, InfoKind, LinkAttribute, LinkInfo, LinkMessage},
    neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
};
use veth_common::Mac;

use super::{Netlink, Result};

impl Netlink {
    /// Makes a bridge that forwards and does nothing else: no spanning tree, no multicast snooping (it would
    /// send queries of its own), and no detour through the host's firewall.
    ///
    /// # Errors
    ///
    /// `EEXIST` when the name is taken.
    pub async fn add_bridge(&self, name: &str, mac: Mac, mtu: u32, group: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(mac.bytes().to_vec()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::Group(group),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Bridge),
                LinkInfo::Data(InfoData::Bridge(vec![
                    InfoBridge::StpState(BridgeStpState::Disabled),
                    InfoBridge::ForwardDelay(0),
                    InfoBridge::MulticastSnooping(false),
                    InfoBridge::NfCallIpTables(false),
                    InfoBridge::NfCallIp6Tables(false),
                    InfoBridge::NfCallArpTables(false),
                ])),
            ]),
        ];
        self.create(&format!("make the bridge {name}"), RouteNetlinkMessage::NewLink(message)).await
    }

    /// Tells the bridge of a port which address is behind it, for good: `bridge fdb add … master static`.
    ///
    /// rtnetlink's own default (permanent, without `NTF_MASTER`) would be accepted and do nothing.
    ///
    /// # Errors
    ///
    /// When the link is no bridge port.
    pub async fn add_static_fdb(&self, port: u32, mac: Mac) -> Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = port;
        message.header.state = NeighbourState::Noarp;
        message.header.flags = NeighbourFlags::Controller;
        message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.bytes().to_vec())];
        self.replace(
            &format!("add {mac} on link {port} to its bridge"),
            RouteNetlinkMessage::NewNeighbour(message),
        )
        .await
    }
}
