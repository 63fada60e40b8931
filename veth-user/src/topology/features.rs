//! Features of a pod's end that a path needs, so that it loses nothing. All changes are on links of our own.

use std::collections::BTreeMap;

use super::{Error, Pod, Port, Topology};
use crate::{
    datapath::Hook,
    net::{
        Netns,
        ethtool::{Ethtool, Setting},
    },
};

/// What a user of XDP should know.
pub(super) const XDP_WARNING: &str = "XDP: bulk TCP is several times slower than by TC, because frames lose GSO and are \
    copied; it wins where frames are small, dropped or filtered. In the pods GRO is turned on (without it nothing \
    is received), transmit checksum and VLAN offload off (their results do not cross)";

/// What XDP needs, and why:
///
/// * A veth that frames are redirected to drops all of them unless its other end has NAPI, which GRO switches on
///   (`veth_xdp_xmit` in `drivers/net/veth.c`).
/// * A frame in XDP has no state beside its bytes: a checksum or a VLAN tag that the sender left to the device
///   would be lost, and ping would work while TCP never connects.
pub(crate) const XDP: [Setting; 5] = [
    GRO,
    Setting { feature: "tx-checksum-ip-generic", on: false },
    Setting { feature: "tx-checksum-sctp", on: false },
    Setting { feature: "tx-vlan-hw-insert", on: false },
    Setting { feature: "tx-vlan-stag-hw-insert", on: false },
];

/// What an Open vSwitch in user space needs: it reads frames from a packet socket, without the state that says that
/// a checksum was left to the device.
const OVS: [Setting; 2] = [
    Setting { feature: "tx-checksum-ip-generic", on: false },
    Setting { feature: "tx-checksum-sctp", on: false },
];

const GRO: Setting = Setting { feature: "rx-gro", on: true };

/// The features that the ports of a path need.
#[must_use]
pub fn needed(topology: &Topology, path: usize, hook: Hook) -> Vec<Setting> {
    let mut settings = Vec::new();
    if hook.is_xdp() && topology.paths[path].kind.is_accelerated() {
        settings.extend(XDP);
    }
    if topology.reaches_ovs(path) {
        settings.extend(OVS);
    }
    if topology.paths[path].tune.gro {
        settings.push(GRO);
    }
    settings
}

/// What a link is made with.
fn usual() -> impl Iterator<Item = Setting> {
    XDP.into_iter().map(|setting| Setting { on: !setting.on, ..setting })
}

/// Gives a pod's end the features that its path needs, and takes back those that it needs no more. Returns what was
/// changed, in words.
pub(super) fn prepare(pod: &Pod, port: &Port, needed: &[Setting]) -> Result<Vec<String>, Error> {
    let ethtool = Ethtool::open_in(&Netns::open(&pod.namespace)?)?;
    let is_needed = |feature: &str| needed.iter().any(|setting| setting.feature == feature);
    let there = ethtool.features(&port.name)?;
    let mut settings: Vec<Setting> = usual()
        .filter(|setting| !is_needed(setting.feature) && there.contains_key(setting.feature))
        .collect();
    settings.extend(needed);
    let before = ethtool.set_features(&port.name, &settings)?;
    let words = before.iter().map(|Setting { feature, on }| {
        format!("{}/{} {feature} {}", pod.name, port.name, if *on { "off" } else { "on" })
    });
    Ok(words.collect())
}

/// Gives an interface of the host's own what an Open vSwitch needs of whoever sends to it.
pub(super) fn prepare_for_ovs(link: &str) -> Result<(), Error> {
    Ethtool::open()?.set_features(link, &OVS)?;
    Ok(())
}

/// Which features of a pod's end are not as they are needed.
pub(super) fn unfit_of(pod: &Pod, port: &Port, needed: &[Setting]) -> Result<Vec<Setting>, Error> {
    if needed.is_empty() {
        return Ok(Vec::new());
    }
    Ok(unfit(&Ethtool::open_in(&Netns::open(&pod.namespace)?)?.features(&port.name)?, needed))
}

/// Which of some features are not as they are needed, and how they should be.
#[must_use]
pub fn unfit(features: &BTreeMap<String, bool>, needed: &[Setting]) -> Vec<Setting> {
    let is_wrong =
        |setting: &&Setting| features.get(setting.feature).copied().unwrap_or_default() != setting.on;
    needed.iter().filter(is_wrong).copied().collect()
}
